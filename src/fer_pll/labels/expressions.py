"""The expressions by name, and how people call them."""

from collections.abc import Iterable

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
"""The eight expressions in FER+'s order; loaders of other data sets map their own order onto this one."""

SYNONYMS = {
    "happy": "happiness",
    "joy": "happiness",
    "surprised": "surprise",
    "sad": "sadness",
    "angry": "anger",
    "disgusted": "disgust",
    "afraid": "fear",
    "fearful": "fear",
}
"""Other names that people give the expressions."""


def in_order_of_expressions(names: Iterable[str]) -> list[str]:
    """Class names in FER+'s order where all of them are its expressions, else as they come."""
    names = list(names)
    return [name for name in EXPRESSIONS if name in names] if set(names) <= set(EXPRESSIONS) else names


def canonical_name(name: str) -> str:
    """A class name as we write it: lower case, and FER+'s word where it is a synonym of one."""
    name = name.strip().lower()
    return SYNONYMS.get(name, name)
