"""Ranges of numbers in settings and options."""

import math
from numbers import Integral, Real

from .errors import DataError


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval, NaN among them.

    Args:
        name: the setting, for the message.
        interval: its two ends, as in mathematics: `[0, 1)` has 0 and not 1; `inf` is no number and never in.

    Raises:
        ValueError: the value lies outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if above and below:
        return
    if high < math.inf:
        needed = f"lie in {interval}"
    elif value == math.inf or low == -math.inf:
        needed = "be finite"
    elif low == 0:
        needed = "not be negative" if interval[0] == "[" else "be positive"
    else:
        needed = f"be at least {low:g}"
    raise ValueError(f"{name}={value} must {needed}.")


def check_ranges(settings: object, **intervals: str) -> None:
    """`check_range` for attributes of `settings`, each with its interval. An attribute that is None is left out."""
    for name, interval in intervals.items():
        value = getattr(settings, name)
        if value is not None:
            check_range(name, value, interval)


def check_whole(option: str, value: object, least: int = 0) -> None:
    """Raises a `DataError` that names the option unless the value is a whole number from `least` up."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise DataError(f"{option} {value!r}: give a whole number from {least} up")


def is_share(value: object) -> bool:
    """Whether a value is a number from 0 to less than 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1
