"""Names of the expressions, and their synonyms."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

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


def misspelled(name: str, class_names: Sequence[str]) -> str | None:
    """The class that a name looks like a misspelling of, or of whose synonym; `None` where it looks like none."""
    spellings = {each: each for each in class_names}
    spellings = {synonym: each for synonym, each in SYNONYMS.items() if each in spellings} | spellings
    close = get_close_matches(canonical_name(name), spellings, n=1, cutoff=0.8)
    return spellings[close[0]] if close else None
