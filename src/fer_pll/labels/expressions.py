"""Names of the expressions, and their synonyms."""

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
    """Class names in FER+'s order if all of them are expressions of FER+, else in the given order."""
    names = list(names)
    return [name for name in EXPRESSIONS if name in names] if set(names) <= set(EXPRESSIONS) else names


def canonical_name(name: str) -> str:
    """A class name as we write it: lower case, and a synonym replaced by FER+'s word."""
    name = name.strip().lower()
    return SYNONYMS.get(name, name)
