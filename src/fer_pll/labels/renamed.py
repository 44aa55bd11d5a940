"""Names that losses and revision rules had in the version before, as its settings and records still say them."""

import warnings
from typing import Any

_NOW = {
    "loss": {"softmax": "cross_entropy"},
    "revision": {"paper": "margin", "normalized": "margin_softmax"},
}


def current_name(setting: str, value: Any) -> Any:
    """What the value of a setting is called today; warns where that is something else than before.

    Args:
        setting: `loss` or `revision`; the values of other settings kept their names.
        value: as it was written down; what is no name is given back as it is.
    """
    now = _NOW.get(setting, {}).get(value) if isinstance(value, str) else None
    if now is None:
        return value
    warnings.warn(f"{setting}={value!r} is called {now!r} now.", stacklevel=2)
    return now
