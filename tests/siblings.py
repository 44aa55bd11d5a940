"""Cases of one kind: one of them in the default tests, where each is a matter of seconds."""

from typing import Any

import pytest


def siblings(first: Any, *others: Any) -> list:
    """The values of `pytest.mark.parametrize`; all but the first are long. A tuple has several arguments."""
    values = [value if isinstance(value, tuple) else (value,) for value in others]
    return [first, *(pytest.param(*value, marks=pytest.mark.long) for value in values)]
