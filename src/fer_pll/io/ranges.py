"""Ranges of numbers in settings."""

import math


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
