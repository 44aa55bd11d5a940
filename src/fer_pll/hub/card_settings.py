"""Settings on the model card: those that say what was learned. They are marked where they are defined."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class CardMark:
    """Marks a setting for the card; with `only_with` = (setting, value), only where that setting has that value."""

    only_with: tuple[str, Any] | None = None


OnCard = Annotated[T, CardMark()]
"""Type of a dataclass field that a card shows: `learning_rate: OnCard[float] = 1e-3`.

The mark is not in the field's metadata, because `HfArgumentParser` passes metadata on to argparse.
"""


def card_settings(options: Any) -> dict[str, Any]:
    """The marked settings of a dataclass instance by name, in the order of its fields, without those that are `None`.

    All other settings, such as paths of the machine, are left out.
    """
    shown = {}
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            if not isinstance(mark, CardMark) or getattr(options, name) is None:
                continue
            if mark.only_with is None or getattr(options, mark.only_with[0]) == mark.only_with[1]:
                shown[name] = getattr(options, name)
    return shown
