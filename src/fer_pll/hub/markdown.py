"""Text from data and files, made harmless for Markdown: a card shows it, and never obeys it."""

import html
import re
from typing import Any
from urllib.parse import quote

# Control characters, line ends, marks that turn the direction of text, and halves of characters, which UTF-8 lacks.
_INVISIBLE = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def one_line(value: Any) -> str:
    """The value as text in one line, without control characters."""
    return _INVISIBLE.sub(" ", str(value)).strip()


def escaped(value: Any) -> str:
    """The value as Markdown that shows it as it is, also in a table: no HTML, link, image, code or formula."""
    text = html.escape(one_line(value), quote=False)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word it stands for itself


def prose(value: Any) -> str:
    """A sentence that may hold emphasis and `code`, but no HTML, link or image."""
    return re.sub(r"([\[\]|])", r"\\\1", html.escape(one_line(value), quote=False))


def code(value: Any) -> str:
    """The value as text for a code span, between backticks, also in a table."""
    return one_line(value).replace("`", "'").replace("|", "\\|")


def link(path: Any) -> str:
    """A path inside the repository, as the target of a link."""
    return quote(str(path), errors="replace")
