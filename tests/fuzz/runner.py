"""Runs damaged inputs in child processes with limits, and counts what came of them."""

import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from fer_pll.io.errors import DataError, MissingExtra
from fer_pll.io.images import ImageError

from .mutate import damage

MEMORY = 2**31
"""Bytes of address space that reading an input may take beside what the process has."""

CPU_SECONDS = 20.0
"""Processor time that reading an input may take; a machine may be busy with other things, so no time of the clock."""

_FORK = get_context("fork")

OURS = (DataError, ImageError, MissingExtra)
OUTCOMES = ("ok", "row", "clean", "unnamed", "raw", "memory", "time", "crash")
BAD = ("unnamed", "raw", "memory", "time", "crash")


@dataclass(frozen=True)
class Target:
    """A format that the package reads.

    name: what it is called in tables.
    make: writes whole files into a folder, which `read` reads without an error.
    read: reads them to the end, as the commands do. Returns what is wrong with single rows, where the rest goes on.
    damaged: patterns of the files that are damaged, one at a time.
    errors: exceptions that are answers, beside our own and any `ValueError` or `OSError` that names the file.
    quick: how many inputs the tests take.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Sequence[str] | None]
    damaged: Sequence[str] = ("*",)
    errors: tuple[type[BaseException], ...] = ()
    quick: int = 200


@dataclass
class Result:
    """What came of the inputs of a target. `examples` has the first input of each kind of bad outcome."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    peak: int = 0  # bytes of resident memory beyond what the process had
    seconds: float = 0.0  # of the processor

    @property
    def bad(self) -> int:
        return sum(self.counts[outcome] for outcome in BAD)


def classify(error: BaseException, target: Target, names: Sequence[str]) -> str:
    """The outcome that an exception stands for."""
    chain: list[BaseException] = []
    waiting: BaseException | None = error
    while waiting is not None and waiting not in chain:
        chain.append(waiting)
        waiting = waiting.__cause__ or waiting.__context__
    if any(
        isinstance(each, MemoryError) or "bad_alloc" in str(each) or "Unable to allocate" in str(each)
        for each in chain
    ):
        return "memory"
    if isinstance(error, target.errors):
        return "clean"
    named = any(name in str(error) for name in names)
    if isinstance(error, OURS):
        return "clean" if named else "unnamed"
    return "clean" if named and isinstance(error, (ValueError, OSError)) else "raw"


def one_input(target: Target, seed: int, number: int, whole: Path, work: Path) -> tuple[str, str]:
    """Damage a copy of the whole files and read it. Returns the outcome and, for an error, where it was raised."""
    rng = random.Random(f"{seed}:{target.name}:{number}")
    folder = work / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    files = sorted({file for pattern in target.damaged for file in folder.rglob(pattern) if file.is_file()})
    file = rng.choice(files)
    damage(file, rng)
    try:
        problems = target.read(folder)
    except (Exception, SystemExit) as error:
        outcome = classify(error, target, ("damaged", file.name))
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        text = " ".join(str(error).split())[:160]
        return outcome, f"{type(error).__name__} at {where}, {file.relative_to(folder)}: {text}"
    return "row" if problems else "ok", ""


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _child(target: Target, seed: int, numbers: range, whole: Path, work: Path, pipe: Connection) -> None:
    _silence()
    os.chdir(work)
    with suppress(Exception):  # once without damage, so that what is imported then is not counted
        target.read(whole)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        outcome = one_input(target, seed, number, whole, work)
        pipe.send((number, *outcome, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
    pipe.send(None)
    pipe.close()
    os._exit(0)


def _make(target: Target, whole: Path) -> None:
    """Write the whole files, and read them once, in a child: forks and threads do not go together.

    Raises:
        RuntimeError: the target does not read what it makes.
    """

    def make(pipe: Connection) -> None:
        _silence()
        try:
            target.make(whole)
            target.read(whole)
        except BaseException:
            pipe.send(traceback.format_exc())
        os._exit(0)

    ours, theirs = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=make, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        raise RuntimeError(f"{target.name}: its whole files cannot be made and read:\n{ours.recv()}")
    except EOFError:
        child.join()


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(target: Target, seed: int, numbers: range, deadline: float | None = None) -> Result:
    """Read damaged inputs of a target.

    Args:
        target: the format.
        seed: of the damage. An input depends on seed, name of the target and its number only.
        numbers: of the inputs.
        deadline: time of `time.monotonic` after which no further input is begun.
    """
    result = Result()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        whole, work = Path(folder) / "whole", Path(folder) / "work"
        whole.mkdir()
        work.mkdir()
        _make(target, whole)
        while numbers and (deadline is None or time.monotonic() < deadline):
            numbers = _run_child(target, seed, numbers, whole, work, result, deadline)
    return result


def _run_child(
    target: Target, seed: int, numbers: range, whole: Path, work: Path, result: Result, deadline: float | None
) -> range:
    """Run inputs in one child until it ends or has to be ended. Returns the numbers that are left."""
    ours, theirs = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_child, args=(target, seed, numbers, whole, work, theirs), daemon=True)
    child.start()
    theirs.close()
    assert child.pid is not None
    done, used = 0, 0.0

    def note(number: int, outcome: str, what: str) -> None:
        result.counts[outcome] += 1
        if outcome in BAD:
            kind = f"{outcome}: {what.partition(', ')[0]}"
            result.examples.setdefault(kind, f"input {number}: {what}")

    last = time.monotonic()
    try:
        while done < len(numbers):
            if ours.poll(0.2):
                try:
                    message = ours.recv()
                except EOFError:
                    message = None
                if message is None:
                    break
                number, outcome, what, peak = message
                note(number, outcome, what)
                result.peak = max(result.peak, peak)
                done, used, last = done + 1, _cpu(child.pid), time.monotonic()
                if deadline is not None and last > deadline:
                    numbers = numbers[:done]
                continue
            with suppress(FileNotFoundError):
                if _cpu(child.pid) - used > CPU_SECONDS or time.monotonic() - last > 30 * CPU_SECONDS:
                    note(numbers[done], "time", f"more than {CPU_SECONDS:g} s, ended")
                    done += 1
                    break
            if not child.is_alive() and not ours.poll():
                break
        with suppress(FileNotFoundError):
            used = _cpu(child.pid)
    finally:
        result.seconds += used
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        ours.close()
    if done < len(numbers) and child.exitcode not in (0, -signal.SIGKILL):
        note(numbers[done], "crash", f"the process ended with {child.exitcode}")
        done += 1
    return numbers[done:]


def table(results: dict[str, Result]) -> Iterator[str]:
    """A table in Markdown: for each target the inputs, the outcomes, peak memory and time."""
    yield f"| format | inputs | {' | '.join(OUTCOMES)} | memory (MiB) | CPU (s) |"
    yield f"|---|---:|{'---:|' * (len(OUTCOMES) + 2)}"
    everything = Result()
    for name, result in results.items():
        everything.counts.update(result.counts)
        everything.peak = max(everything.peak, result.peak)
        everything.seconds += result.seconds
        yield _line(name, result)
    yield _line("**all**", everything)


def _line(name: str, result: Result) -> str:
    counts = " | ".join(f"{result.counts[outcome]:,}" for outcome in OUTCOMES)
    return f"| {name} | {result.counts.total():,} | {counts} | {result.peak / 2**20:,.0f} | {result.seconds:,.1f} |"
