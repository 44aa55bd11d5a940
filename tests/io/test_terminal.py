"""What is printed of names that strangers chose."""

import unicodedata

import pytest

from fer_pll.io.terminal import number_of, printable


@pytest.mark.parametrize(
    "code", [*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066, 0x200F, 0xFEFF, 0xDC80]
)
def test_what_a_terminal_would_obey_is_escaped(code):
    shown = printable(f"a{chr(code)}b")
    assert shown.isprintable() and shown[0] == "a" and shown[-1] == "b" and "\\" in shown


def test_words_of_all_scripts_stay():
    for text in ("Éva ☃.png", "日本語", "नमस्ते", "می‌خواهم", "👩‍👩‍👧", "C:\\x", "a  b"):
        assert printable(text) == text, [unicodedata.name(letter) for letter in text]


def test_numbers_and_nouns():
    assert [number_of(n, "face") for n in (0, 1, 2)] == ["0 faces", "1 face", "2 faces"]
