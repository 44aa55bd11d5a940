"""What is printed of names that strangers chose."""

import ast
import io
import sys
import unicodedata
from pathlib import Path

import pytest

from fer_pll.io.terminal import number_of, printable, printable_lines, say

SOURCE = Path(__file__).parents[2] / "src"


@pytest.mark.parametrize(
    "code", [*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066, 0x200F, 0xFEFF, 0xDC80]
)
def test_what_a_terminal_would_obey_is_escaped(code):
    shown = printable(f"a{chr(code)}b")
    assert shown.isprintable() and shown[0] == "a" and shown[-1] == "b" and "\\" in shown


def test_words_of_all_scripts_stay():
    for text in ("Éva ☃.png", "日本語", "नमस्ते", "می‌خواهم", "👩‍👩‍👧", "C:\\x", "a  b"):
        assert printable(text) == text, [unicodedata.name(letter) for letter in text]


def test_a_text_is_one_line_and_a_report_has_its_own(capsys):
    class Summary:
        def __str__(self):
            return printable_lines(["of two", "a\nb"])

    say("x\ny", Summary(), Path("p\x1b"))
    assert capsys.readouterr().out == "x\\ny\nof two\na\\nb\np\\x1b\n"
    say("\x07", to_stderr=True)
    assert capsys.readouterr() == ("", "\\x07\n")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", "é \\u65e5"), ("ascii", "\\xe9 \\u65e5"), ("utf-8", "é 日")]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_letters_that_a_stream_lacks_are_escaped(encoding, shown, name, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, name, stream)
    say("é 日", to_stderr=name == "stderr")
    assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"


# What is printed there has no names in it: help, the version, a count. The unknown command is shown by repr.
OWN_TEXT = {"fer_pll_cli.py": 4, "fer_pll/training/settings_parser.py": 1, "fer_pll/inference/predict.py": 2}


def test_everything_that_is_printed_goes_through_say():
    found = {}
    for path in SOURCE.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if number := sum(isinstance(name, ast.Name) and name.id == "print" for name in calls):
            found[path.relative_to(SOURCE).as_posix()] = number
    assert found == OWN_TEXT | {"fer_pll/io/terminal.py": 1}


def test_numbers_and_nouns():
    assert [number_of(n, "face") for n in (0, 1, 2)] == ["0 faces", "1 face", "2 faces"]
