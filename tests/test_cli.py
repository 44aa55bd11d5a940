"""The `fer-pll` command: help without the weight of what it helps with, versions, mistakes and exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import fer_pll_cli
from fer_pll.commands.__main__ import help_texts
from fer_pll_cli import COMMANDS, HELP
from siblings import siblings

COMMAND = Path(sys.executable).with_name("fer-pll")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return dict(help_texts())


def test_help_comes_from_the_installed_command_and_teaches():
    run = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert "candidate label sets" in run.stdout
    assert "examples:" in run.stdout
    assert all(re.search(rf"^  {command} ", run.stdout, re.MULTILINE) for command in COMMANDS)


def test_help_texts_are_those_of_the_parsers(rendered):
    """`make help-texts` writes them. Only the words count: Pythons differ in how they wrap a usage."""
    written = {path.stem: path.read_text() for path in HELP.glob("*.txt")}
    assert written.keys() == rendered.keys()
    assert {*COMMANDS, "fer-pll", "prepare-ferplus"} <= written.keys()
    for name, text in written.items():
        assert text.split() == rendered[name].split(), f"{name}.txt is not up to date: make help-texts"
        assert max(map(len, text.splitlines())) <= 80, name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_can_be_parsed_in_part(command, rendered):
    """Each names the command as a user of the wheel has it, and the option list has it, too."""
    text = rendered[command]
    examples = re.split(r"^examples?:$", text, flags=re.MULTILINE)[1].replace("\\\n", " ")
    used = re.findall(rf"^  fer-pll {command} .*", examples, flags=re.MULTILINE)
    assert used and "train_scripts" not in text
    if command in ("prepare", "pretrain", "finetune", "out-of-fold"):  # whose options are in part those of others
        return
    for option in re.findall(r" (--[\w-]+)", " ".join(used)):
        assert f"  {option}" in text, option


def test_help_does_not_depend_on_the_machine(rendered, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 12345)
    monkeypatch.setenv("COLUMNS", "200")
    assert dict(help_texts()) == rendered


HELP_FOR_ALL = """
import json, sys
before = set(sys.modules)
import fer_pll_cli
for argv in json.loads(sys.argv[1]):
    assert fer_pll_cli.main(argv) == 0
third_party = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(*sorted(third_party), file=sys.stderr)
"""


def test_help_and_version_import_nothing_of_others():
    # What makes --help slow: measured apart from any test, this is the reason why it is not.
    argvs = [["--help"], ["--version"], [], *([command, "--help"] for command in COMMANDS), ["prepare", "votes", "-h"]]
    command = [sys.executable, "-c", HELP_FOR_ALL, json.dumps(argvs)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr.split() == ["fer_pll_cli"]
    usages = re.findall(r"^usage: fer-pll (\S+)(?: (\w+))?", run.stdout, re.MULTILINE)
    assert [command for command, _ in usages] == ["COMMAND", "COMMAND", *COMMANDS, "prepare"]
    assert usages[-1] == ("prepare", "votes")


def test_help_answers_at_once():
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([COMMAND, "finetune", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5  # 0.1 s, on a machine that does other things as well


def test_help_all_is_that_of_the_parser(capsys):
    with pytest.raises(SystemExit, match="0"):
        fer_pll_cli.main(["finetune", "--help-all"])
    text = capsys.readouterr().out
    assert "--lr_scheduler_kwargs" in text and "--max_candidates" in text


def test_version(capsys):
    assert fer_pll_cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fer-pll {version('fer-pll')}\n"


def test_without_a_command_the_help_is_printed(capsys):
    assert fer_pll_cli.main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_a_command_that_there_is_not_is_refused_by_name(capsys):
    assert fer_pll_cli.main(["dmeo"]) == 2
    error = capsys.readouterr().err
    assert "'dmeo'" in error and "demo" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_refused_by_name(command, capsys):
    argv = {"demo": ["--seed", "x"], "app": ["--port", "x"]}.get(command, [])  # all others need something
    with pytest.raises(SystemExit, match="2"):
        fer_pll_cli.main([command, *argv])
    error = capsys.readouterr().err
    assert f"fer-pll {command}: error: " in error and (not argv or argv[0] in error)


@pytest.mark.parametrize(
    ("argv", "expected"), [([], ("fer-pll-demo", 0)), (["--out", "runs/x", "--seed", "3"], ("runs/x", 3))]
)
def test_demo_gets_its_options(argv, expected, monkeypatch):
    calls = []  # in the place of the demo, which takes minutes
    monkeypatch.setattr("fer_pll.commands.demo.run_demo", lambda *args: calls.append(args))
    assert fer_pll_cli.main(["demo", *argv]) == 0
    assert calls == [expected]


def test_demo_refuses_a_folder_with_files_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert fer_pll_cli.main(["demo", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {tmp_path}")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_statuses(capsys):
    def fails(error: BaseException):
        def main(argv):
            raise error

        return fer_pll_cli.status(main, [])

    assert fer_pll_cli.status(lambda argv: None, []) == 0 and fer_pll_cli.status(lambda argv: 130, []) == 130
    assert fails(ValueError("two\nlines")) == 1
    assert capsys.readouterr().err == "error: two lines\n"
    for name in ("hub.push.PushError", "training.checkpoints.SaveError", "training.checkpoints.NonFiniteLossError",
                 "io.errors.MissingExtra", "io.errors.DataError"):  # fmt: skip
        module, _, error = name.rpartition(".")
        assert fails(getattr(import_module(f"fer_pll.{module}"), error)("why")) == 1
        assert capsys.readouterr().err == "error: why\n"
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(TypeError):
        fails(TypeError("ours to put right"))
    assert fails(OSError(28, "No space left on device", "run/settings.json")) == 1
    assert re.fullmatch(r"error: .*'run/settings\.json': make room.*\n", capsys.readouterr().err)
    assert fails(OSError(30, "Read-only file system", "run/settings.json")) == 1
    assert "make that disk writable" in capsys.readouterr().err


def test_a_lost_process_is_one_line_that_says_how_to_go_on(capsys):
    """As gloo says it. Other errors of PyTorch keep their traceback: they are not the user's."""
    import_module("fer_pll.training.processes")

    from torch.distributed import DistStoreError

    def fails(message: str, kind: type[RuntimeError] = RuntimeError) -> int:
        def main(argv):
            raise kind(message)

        return fer_pll_cli.status(main, [])

    assert fails("[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4123") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: another process of the run has ended") and len(error.splitlines()) == 1
    assert "Connection closed by peer" in error and "--resume_from_checkpoint auto" in error
    assert fails("Timed out after 11 seconds waiting for clients. 1/2 clients joined.", DistStoreError) == 1
    assert "error: another process of the run" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        fails("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    "program",
    siblings(
        ["-m", "fer_pll_cli", "evaluate"],
        ["-m", "fer_pll.commands.evaluate"],
        [str(ROOT / "train_scripts" / "evaluate.py")],
    ),
    ids=" ".join,
)
def test_an_error_ends_every_kind_of_process_alike(program, tmp_path):
    command = [sys.executable, *program, str(tmp_path / "model"), str(tmp_path / "data")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1


INTERRUPTED_IMPORT = """
import sys
import fer_pll_cli

class Interrupt:
    def find_spec(self, name, *_):
        if name == "fer_pll.model.modeling_fer_pll":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.exit(fer_pll_cli.main(["prepare", "synthetic", "--out", "data"]))
"""


def test_ctrl_c_while_libraries_are_imported_is_one_line_too(tmp_path):
    run = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


def test_ctrl_c_ends_a_command_with_one_line(tmp_path):
    command = [sys.executable, "-m", "fer_pll_cli", "prepare", "synthetic", "--out", tmp_path / "data"]
    process = subprocess.Popen(
        [*map(str, command), "--num-train", "100000", "--num-proc", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    )
    while process.poll() is None and not (tmp_path / ".data.shards").exists():  # until it writes images
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.startswith("interrupted") and len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("argv", [["--help"], ["predict", ".", "--cropped"]])
def test_a_reader_that_leaves_ends_the_command_without_a_word(argv, tmp_path):
    Image.new("L", (48, 48)).save(tmp_path / "face.png")
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "fer_pll_cli", *argv]
        run = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (run.returncode, run.stderr) == (141, "")
