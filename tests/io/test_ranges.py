"""Ranges of numbers in settings."""

import math
from types import SimpleNamespace

import pytest

from fer_pll.io.ranges import check_range, check_ranges


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1)"), (1, "(0, 1]"), (0.5, "(0, 1)"), (0, "[0, inf)"), (1e308, "(0, inf)"), (10**400, "[1, inf)")],
)
def test_what_lies_inside_passes(value, interval):
    check_range("share", value, interval)


@pytest.mark.parametrize(
    ("value", "interval", "needed"),
    [
        (1, "[0, 1)", r"must lie in \[0, 1\)"),
        (0, "(0, 1]", r"must lie in \(0, 1\]"),
        (math.nan, "[0, 1]", r"must lie in \[0, 1\]"),
        (math.inf, "[0, 1]", r"must lie in \[0, 1\]"),
        (0, "(0, inf)", "must be positive"),
        (-1, "[0, inf)", "must not be negative"),
        (math.nan, "[0, inf)", "must not be negative"),
        (0, "[1, inf)", "must be at least 1"),
        (math.inf, "[0, inf)", "must be finite"),
        (math.nan, "(-inf, inf)", "must be finite"),
        (-math.inf, "(-inf, inf)", "must be finite"),
    ],
)
def test_what_lies_outside_is_named(value, interval, needed):
    with pytest.raises(ValueError, match=f"^share={value} {needed}.$"):
        check_range("share", value, interval)


def test_a_setting_that_is_left_open_is_left_out():
    settings = SimpleNamespace(rate=None, steps=0)
    check_ranges(settings, rate="(0, inf)", steps="[0, inf)")
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        check_ranges(settings, rate="(0, inf)", steps="[1, inf)")
