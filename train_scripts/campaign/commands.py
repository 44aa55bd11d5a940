"""The real commands in processes of their own, forked from one that has done the imports."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

PATIENCE = 150.0
"""Seconds after which a command hangs. The slowest takes 20 on an idle core."""


class Hung(Exception):
    """A command did not end in time."""


def _become(argv: Sequence[str], log: str, environment: Mapping[str, str], largest_file: int | None) -> None:
    """Run `fer-pll` with these words in this process, which then ends as the command does."""
    os.setsid()  # as a shell or a scheduler does, so that a signal can go to the workers as well
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    if "fork" in multiprocessing.get_all_start_methods():  # as in a process that was not forked itself
        multiprocessing.set_start_method("fork" if sys.version_info < (3, 14) else "forkserver", force=True)
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    status: int | str | None = 1
    try:
        import fer_pll_cli

        status = fer_pll_cli.main(argv)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)  # libraries take seconds to end


class Running:
    """A command that runs.

    Attributes:
        log: the file with what it prints.
        pid: of its process, which leads a process group.
    """

    def __init__(self, process: "ForkServerProcess | subprocess.Popen", log: Path) -> None:
        self.process, self.log = process, log
        pid = process.pid
        assert pid is not None
        self.pid = pid
        self.started = time.monotonic()

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; `None` while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to it and its workers. Nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def until(self, happens: Callable[[], object], pause: float = 0.002) -> bool:
        """Wait for something. False if the command ends before.

        Raises:
            Hung: neither comes in time.
        """
        limit = time.monotonic() + PATIENCE
        while not happens():
            if self.status is not None:
                return bool(happens())
            if time.monotonic() > limit:
                self.send(signal.SIGKILL, group=True)
                raise Hung(f"hung for {PATIENCE:.0f} s, then killed: {self.log}")
            time.sleep(pause)
        return True

    def end(self) -> tuple[int, str]:
        """Wait for the end; status and text.

        Raises:
            Hung: it does not come in time.
        """
        self.until(lambda: self.status is not None, pause=0.02)
        status = self.status
        assert status is not None
        return status, self.text


class Commands:
    """Starts commands. `close` ends what still runs, and the process that they are forked from."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        if paths[0] not in paths[1].split(os.pathsep):  # the process that does the imports looks nowhere else
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([f"{__package__}.imports"])
        self.running: list[Running] = []

    def start(
        self,
        argv: Sequence[object],
        log: Path,
        environment: Mapping[str, object] | None = None,
        largest_file: int | None = None,
    ) -> Running:
        """Start `fer-pll` with these words.

        Args:
            argv: the words after `fer-pll`.
            log: the file that gets what it prints, appended.
            environment: variables on top of those of this process.
            largest_file: the most bytes that it may write into one file, as a quota would have it.
        """
        words, variables = [str(word) for word in argv], {k: str(v) for k, v in (environment or {}).items()}
        process = self._context.Process(target=_become, args=(words, str(log), variables, largest_file))
        process.start()
        running = Running(process, log)
        self.running.append(running)
        return running

    def ranks(self, argv: Sequence[object], log: Path, delay: float = 0.0) -> list[Running]:
        """Start the same command as two processes of one run. The second starts `delay` seconds later."""
        port, started = free_port(), []
        for rank in range(2):
            time.sleep(delay * rank)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            started.append(self.start(argv, log.with_name(f"{log.stem}-{rank}{log.suffix}"), place | address))
        return started

    def torchrun(self, argv: Sequence[object], log: Path, *options: str) -> Running:
        """Start the command with the real torchrun and options of it, two processes."""
        script = Path(__file__).parents[1] / f"{argv[0]}.py"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        with log.open("a") as stream:
            process = subprocess.Popen(
                [str(word) for word in (*command, *options, script, *argv[1:])],
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        running = Running(process, log)
        self.running.append(running)
        return running

    def sweep(self) -> None:
        """Kill what a cell has left running."""
        for running in self.running:
            if running.status is None:
                running.send(signal.SIGCONT, group=True)
                running.send(signal.SIGKILL, group=True)
                running.until(lambda running=running: running.status is not None, pause=0.02)
        self.running.clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
