"""Text for a terminal: names from files made safe, and numbers with their nouns."""

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # within letters of several scripts, and within emoji


def printable(text: str) -> str:
    """The text with everything escaped that a terminal acts on instead of showing: `"a\\n"` becomes `"a\\\\n"`.

    Control characters (which move the cursor, set titles, or begin a line of their own), marks that turn the direction
    of writing, and bytes of file names that are no Unicode.
    """
    if text.isprintable():
        return text
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in _UNSEEN and letter not in _JOINERS else letter
        for letter in text
    )


def number_of(number: int, noun: str) -> str:
    """`"1 face"`, `"2 faces"`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
