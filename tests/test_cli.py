"""The `fer-pll` command."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

import fer_pll_cli

COMMAND = Path(sys.executable).with_name("fer-pll")


def test_help_comes_from_the_installed_command_and_teaches():
    run = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert "candidate label sets" in run.stdout
    assert "examples:" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_parsing_imports_nothing_heavy():
    # What makes --help slow: measured apart from any test, this is the reason why it is not.
    code = """
import sys
before = set(sys.modules)
import fer_pll_cli
fer_pll_cli.build_parser().parse_args(["demo", "--out", "x"])
third_party = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(third_party))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["fer_pll_cli"]


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        fer_pll_cli.main(["--version"])
    assert capsys.readouterr().out == f"fer-pll {version('fer-pll')}\n"


def test_without_a_command_the_help_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        fer_pll_cli.main([])
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "named"), [(["dmeo"], "dmeo"), (["demo", "--seed", "x"], "--seed")])
def test_a_wrong_command_line_is_refused_by_name(argv, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        fer_pll_cli.main(argv)
    assert named in capsys.readouterr().err


@pytest.fixture
def demo_calls(monkeypatch):
    """In the place of the demo, which takes minutes: what it was called with."""
    calls = []
    monkeypatch.setitem(
        sys.modules, "fer_pll.commands.demo", SimpleNamespace(run_demo=lambda *args: calls.append(args))
    )
    return calls


@pytest.mark.parametrize(
    ("argv", "expected"), [([], ("fer-pll-demo", 0)), (["--out", "runs/x", "--seed", "3"], ("runs/x", 3))]
)
def test_demo_gets_its_options(argv, expected, demo_calls):
    assert fer_pll_cli.main(["demo", *argv]) == 0
    assert demo_calls == [expected]


def test_demo_refuses_a_folder_with_files_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert fer_pll_cli.main(["demo", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {tmp_path}")
    assert (tmp_path / "notes.txt").read_text() == "mine"
