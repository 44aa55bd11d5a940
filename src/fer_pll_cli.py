"""The `fer-pll` command.

This module lies outside the package and imports nothing but the standard library, because `import fer_pll` loads
transformers and torch, which takes seconds. Help is read from files that `python -m fer_pll.commands` writes.
A command is a module of `fer_pll.commands` with the functions `make_parser()` and `main(argv)`.
"""

import argparse
import atexit
import errno
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import NoReturn

# In the order of use. To add a command, write its module and put its name here.
COMMANDS = (
    "demo",
    "prepare",
    "pretrain",
    "finetune",
    "evaluate",
    "calibrate",
    "propose",
    "audit",
    "predict",
    "app",
    "export",
    "push",
    "measure-crop",
    "out-of-fold",
)
HELP = Path(__file__).with_name("fer_pll") / "commands" / "help"

PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells have it

Main = Callable[[Sequence[str] | None], int | None]


def module_name(command: str) -> str:
    return f"fer_pll.commands.{command.replace('-', '_')}"


def status(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`; an error that the user can fix (`ValueError`, `OSError`) is printed in one line.

    In Python's development mode (PYTHONDEVMODE=1), these errors have their traceback.

    Returns:
        the exit status: the one that `main` returned, with 0 for `None`; 1 for an error; 130 for Ctrl-C; 75 for a run
        that a signal has stopped and that can go on; 141, with no message, where nobody reads the output any more, as
        in `fer-pll predict photos | head`.
    """
    try:
        return main(argv) or 0
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and error.filename == "<stdout>":  # `say` names it; no connection
            throw_output_away()
            return PIPE_CLOSED
        if sys.flags.dev_mode:
            raise
        _say(f"error: {' '.join(str(error).splitlines())}{_advice(error)}", to_stderr=True)
        return 1
    except RuntimeError as error:
        processes = sys.modules.get("fer_pll.training.processes")
        if sys.flags.dev_mode or processes is None or not processes.is_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        how = "Then give the same command again, with --resume_from_checkpoint auto"
        _say(f"error: {processes.LOST} ({type(error).__name__}: {reason}). {how}", to_stderr=True)
        return 1
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "interrupted", to_stderr=True)
        return getattr(interrupt, "status", 130)  # 128 + SIGINT, as shells have it


def throw_output_away() -> None:
    """Let stdout, a pipe that nobody reads any more, lead nowhere, so that Python can end without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _advice(error: Exception) -> str:
    """What to do about an error of the operating system that has no words of ours."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ": make room, then give the same command again"
    if number == errno.EROFS:
        return ": make that disk writable, or name a folder on another one"
    return ""


def _say(line: str, to_stderr: bool = False) -> None:
    leave_out_transformers()  # where Ctrl-C came while they were imported
    from fer_pll.io.terminal import say

    say(line, to_stderr=to_stderr)


def next_command(*words: object) -> None:
    """Print the command that goes on with what a command has written, ready to be copied."""
    _say(f"next: {shlex.join(map(str, ('fer-pll', *words)))}")


def run(main: Main, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's `main` and end the process with its `status`."""
    end_process(status(main, argv))


def end_process(code: int) -> NoReturn:
    """End this process with a status; a process of several that has got to its end, without taking Python down.

    A thread of torch.distributed that frees a tensor while Python ends aborts the process, with a status of its own.
    `destroy_process_group` does not end all of these threads: a device mesh, as FSDP has, keeps its groups.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        sys.exit(code)
    if code not in (0, 75):  # an error: the others may wait for this process
        sys.exit(code)
    distributed.destroy_process_group()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def help_file(command: str, argv: Sequence[str]) -> Path | None:
    """The file with the help that a command line asks for; `None` where it asks for none, or there is no file."""
    if not {"-h", "--help"} & set(argv):
        return None
    names = [f"{command}-{argv[0]}", command]  # prepare has a help text for each source
    return next((HELP / f"{name}.txt" for name in names if (HELP / f"{name}.txt").is_file()), None)


def leave_out_transformers() -> None:
    """Let modules of `fer_pll` be imported without the package's `__init__`, which loads transformers and torch.

    An exported model runs without them. Nothing changes if the package is imported already.
    """
    if "fer_pll" not in sys.modules:
        spec = find_spec("fer_pll")
        assert spec is not None  # it is installed together with this module
        sys.modules["fer_pll"] = module_from_spec(spec)


def runs_exported_model(command: str, argv: Sequence[str]) -> bool:
    """Whether a command line needs neither transformers nor torch; see `is_onnx_folder` in `fer_pll.io.names`."""
    if command != "predict":
        return False
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--backend", nargs="?")
    parser.add_argument("--model", nargs="?")
    args = parser.parse_known_args(argv)[0]
    folder = Path(args.model or ".")
    exported = (folder / "model.onnx").is_file() and not any(folder.glob("*.safetensors*"))
    return args.backend == "onnx" or (args.backend is None and args.model is not None and exported)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`); print the help if it is empty.

    Returns:
        the exit status, see `status`; 2 for an unknown command. Other command lines that cannot be parsed end the
        process with status 2.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print((HELP / "fer-pll.txt").read_text(encoding="utf-8"), end="")
    elif command == "--version":
        print(f"fer-pll {version('fer-pll')}")
    elif command not in COMMANDS:
        print(f"fer-pll: error: {command!r} is not a command: choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    elif file := help_file(command, rest):
        print(file.read_text(encoding="utf-8"), end="")
    else:
        if runs_exported_model(command, rest):
            leave_out_transformers()
        return status(lambda argv: import_module(module_name(command)).main(argv), rest)
    return 0


def program() -> NoReturn:
    """The program `fer-pll`, also as what a launcher starts: `torchrun --no-python fer-pll finetune`."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # of a help text
        throw_output_away()
        code = PIPE_CLOSED
    end_process(code)


if __name__ == "__main__":
    program()
