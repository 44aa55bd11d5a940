"""Former names of losses and revision rules, which settings and records of the previous version still have."""

import warnings
from typing import Any

_NOW = {
    "loss": {"softmax": "cross_entropy"},
    "revision": {"paper": "margin", "normalized": "margin_softmax"},
}


def current_name(setting: str, value: Any) -> Any:
    """Today's name for the value of a setting; warns if the name has changed.

    Args:
        setting: `loss` or `revision`; the values of other settings kept their names.
        value: as it was written down; a value that is not a former name is returned unchanged.
    """
    now = _NOW.get(setting, {}).get(value) if isinstance(value, str) else None
    if now is None:
        return value
    warnings.warn(f"{setting}={value!r} is called {now!r} now.", stacklevel=2)
    return now
