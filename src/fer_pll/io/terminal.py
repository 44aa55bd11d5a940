"""Text for a terminal: names from files made safe, and numbers with their nouns."""

import sys
import unicodedata
from collections.abc import Iterable

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


def printable_lines(lines: Iterable[str]) -> str:
    """The text of these lines, each made `printable`: no name in them makes a line of its own."""
    return "\n".join(map(printable, lines))


def say(*lines: object, to_stderr: bool = False) -> None:
    """Print lines, each made `printable`, at once. All that is printed goes this way.

    Letters that the stream cannot encode, such as 日 in a Windows console, are escaped.

    An object that is no text, such as a summary whose `__str__` is of `printable_lines`, may have several.
    """
    texts = (part for line in lines for part in ([line] if isinstance(line, str) else str(line).split("\n")))
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(printable_lines(texts).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError as error:
        error.filename = stream.name
        raise


def number_of(number: int, noun: str) -> str:
    """`"1 face"`, `"2 faces"`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
