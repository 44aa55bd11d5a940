"""The cells: each does one thing to a run, and says how it ended."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from .commands import Commands, Hung, Running
from .compare import content, differences, newest
from .jobs import BATCH_SIZE, JOBS, SAVE_STEPS, STEPS, prepare_argv, write_config, write_shards

EQUAL = "equal"
REFUSED = "clear error, then equal"
SAID = "goes on, and says what changed"
SKIPPED = "skipped"
FAILED = "FAILED"


class CellFailed(Exception):
    """A run did not end as it must. The message says how."""


class CellSkipped(Exception):
    """This machine cannot do it. The message says why."""


@dataclass
class Outcome:
    """How a cell ended.

    Attributes:
        result: one of the words above.
        detail: what was seen, in a few words.
        kills: SIGKILLs that reached a running process.
    """

    result: str
    detail: str = ""
    kills: int = 0


@dataclass
class Ground:
    """Where cells run.

    Attributes:
        root: folder of the data, of the undisturbed runs, and of what failed cells leave.
        commands: starts processes.
        random: numbers of this cell alone.
    """

    root: Path
    commands: Commands
    random: Random = field(default_factory=Random)

    def prepare(self) -> None:
        """Draw the data, once."""
        write_config(self.root)
        if not (self.root / "faces").is_dir():
            expect_success(self.commands.start(prepare_argv(self.root / "faces"), self.root / "prepare.log"))
        if not (self.root / "shards").is_dir():
            write_shards(self.root)

    def reference(self, job: str, ranks: int = 1) -> Path:
        """The folder of an undisturbed run, trained once."""
        name = job if ranks == 1 else f"{job}-{ranks}-ranks"
        with _making[f"undisturbed/{name}"]:
            return self._reference(job, ranks, name)

    def seconds(self, job: str, ranks: int = 1) -> float:
        """How long an undisturbed run took."""
        return float(self.reference(job, ranks).with_suffix(".seconds").read_text())

    def _reference(self, job: str, ranks: int, name: str) -> Path:
        folder, log = self.root / "undisturbed" / name, self.root / "undisturbed" / f"{name}.log"
        finished = folder.with_suffix(".seconds")
        if not finished.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            started = time.monotonic()
            if ranks == 1:
                expect_success(self.commands.start(JOBS[job].argv(self.root, folder), log))
                check_files(job, folder)
            else:
                for running in self.commands.ranks(JOBS[job].argv(self.root, folder, *TWO_RANKS), log):
                    expect_success(running)
            finished.write_text(f"{time.monotonic() - started:.2f}")
        return folder


_making: dict[str, threading.Lock] = defaultdict(threading.Lock)
"""What several cells use, and one of them makes."""


def check_files(job: str, folder: Path) -> None:
    """The files of a checkpoint are those that are damaged, but for the model's code."""
    checkpoint = newest(folder)
    assert checkpoint is not None
    names = {path.name for path in checkpoint.iterdir() if path.suffix != ".py"}
    if names != set(JOBS[job].files):
        raise CellFailed(f"{job}: a checkpoint has the files {sorted(names)}: name them in campaign/jobs.py")


def last_lines(text: str) -> str:
    """The last lines that a command printed, but its log of losses."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("{")]
    return " / ".join(lines[-4:])[-600:]


def expect_success(running: Running) -> str:
    """Wait for a command that must succeed; its text."""
    status, text = running.end()
    if status != 0 or "Traceback" in text:
        raise CellFailed(f"ended with {status}: {last_lines(text)}")
    return text


def expect_error(running: Running, *words: str) -> str:
    """Wait for a command that must end with one clear line that has one of `words`; that line."""
    status, text = running.end()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text:
        raise CellFailed(f"traceback: {last_lines(text)}")
    if status != 1 or len(lines) != 1:
        raise CellFailed(f"ended with {status} and {len(lines)} lines of error: {last_lines(text)}")
    if not any(word in lines[0] for word in words):
        raise CellFailed(f"the error says none of {', '.join(words)}: {lines[0]}")
    return lines[0]


def expect_equal(ground: Ground, job: str, output: Path, ranks: int = 1) -> None:
    """A finished run must have the bits of the undisturbed one."""
    found = differences(ground.reference(job, ranks), output)
    if found:
        raise CellFailed(f"differs from the undisturbed run in {len(found)} places: {', '.join(found[:5])}")


def new_log(output: Path) -> Path:
    """A file for what one start prints: workers of a killed process may still write to that of an earlier one."""
    number = 1 + sum(1 for _ in output.parent.glob(f"{output.name}.*.log"))
    return output.with_name(f"{output.name}.{number:02}.log")


def train(ground: Ground, job: str, output: Path, *more: object, **options: object) -> Running:
    """Start a job in a folder, or let it go on there."""
    resume = () if "--resume_from_checkpoint" in more else ("--resume_from_checkpoint", "auto")
    argv = JOBS[job].argv(ground.root, output, *resume, *more)
    return ground.commands.start(argv, new_log(output), **options)  # type: ignore[arg-type]


TWO_RANKS = ("--num_train_epochs", 4, "--resume_from_checkpoint", "auto")
"""With twice the batch, as many steps as one process."""


def train_ranks(ground: Ground, job: str, output: Path, *more: object, delay: float = 0.0) -> list[Running]:
    """The same as two processes."""
    argv = JOBS[job].argv(ground.root, output, *TWO_RANKS, *more)
    return ground.commands.ranks(argv, new_log(output), delay)


def finish(ground: Ground, job: str, output: Path, ranks: int = 1) -> str:
    """Let a run go on to its end with the same command; it must be equal. Its text."""
    if ranks == 1:
        text = expect_success(train(ground, job, output))
    else:
        text = "".join([expect_success(running) for running in train_ranks(ground, job, output)])
    expect_equal(ground, job, output, ranks)
    return text


def sealed(output: Path, step: int) -> Callable[[], bool]:
    """Whether the checkpoint of a step is whole."""
    file = output / f"checkpoint-{step}" / "checksums.json"
    return lambda: file.is_file() and file.stat().st_size > 10  # it is an empty list before


def checkpoints(output: Path) -> set[str]:
    return {path.name for path in output.glob("checkpoint-*")}


# Nothing at all


def undisturbed(ground: Ground, output: Path, job: str) -> Outcome:
    """Nothing happens. If two such runs differed, no other cell could be equal."""
    finish(ground, job, output)
    return Outcome(EQUAL)


# SIGKILL


def kill(ground: Ground, output: Path, job: str, moment: str, kills: int = 3) -> Outcome:
    """Kill a run several times, start the same command each time, and let it end."""
    length = ground.seconds(job)
    killed, half = 0, 0
    for _ in range(kills + 4):  # it may end before it is hit
        if killed == kills:
            break
        there = checkpoints(output)
        running = train(ground, job, output)
        if moment == "random":
            wait = ground.random.uniform(0.05, 0.9) * length
            limit = time.monotonic() + wait
            running.until(lambda limit=limit: time.monotonic() >= limit)
        else:
            running.until(lambda there=there: checkpoints(output) - there)
            time.sleep(ground.random.uniform(0.0, 0.25))
        if running.status is not None:
            expect_success(running)
            shutil.rmtree(output)
            length *= 0.8
            continue
        running.send(signal.SIGKILL)  # the process alone: its workers find out by themselves
        running.end()
        killed += 1
        half += any(not sealed(output, int(name.rpartition("-")[2]))() for name in checkpoints(output))
    finish(ground, job, output)
    return Outcome(EQUAL, f"{killed} kills, {half} of them left a half-written checkpoint", killed)


# Damaged files


def _change(path: Path, damage: str, where: Random) -> None:
    data = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
        return
    if damage == "one bit":
        data[where.randrange(len(data))] ^= 1 << where.randrange(8)
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}.get(damage, data))


DAMAGES = ("cut", "empty", "deleted", "one bit", "zeros")


def begun(ground: Ground, job: str, ranks: int = 1) -> Path:
    """The folder of a run that was killed after its third checkpoint, made once."""
    name = job if ranks == 1 else f"{job}-{ranks}-ranks"
    with _making[f"begun/{name}"]:
        return _begun(ground, job, ranks, name)


def _begun(ground: Ground, job: str, ranks: int, name: str) -> Path:
    folder = ground.root / "begun" / name
    finished, last = folder.with_suffix(".made"), 3 * SAVE_STEPS
    if not finished.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        running = [train(ground, job, folder)] if ranks == 1 else train_ranks(ground, job, folder)
        if not running[0].until(sealed(folder, last)):
            raise CellFailed(f"the run that is to be damaged ended: {last_lines(running[0].text)}")
        for each in running:
            each.send(signal.SIGKILL, group=True)
            each.end()
        shutil.rmtree(folder / f"checkpoint-{last + SAVE_STEPS}", ignore_errors=True)
        finished.touch()
    return folder


def damage(ground: Ground, output: Path, job: str, name: str, how: str, ranks: int = 1) -> Outcome:
    """Damage a file of the last checkpoint: named, it is refused; `auto` uses the one before."""
    ground.reference(job, ranks)
    shutil.copytree(begun(ground, job, ranks), output)
    last = output / f"checkpoint-{3 * SAVE_STEPS}"
    _change(last / name, how, ground.random)
    if (name, how) == ("checksums.json", "deleted"):  # as in checkpoints of earlier versions: it is used
        finish(ground, job, output, ranks)
        return Outcome(EQUAL, "used, as one without checksums")
    if ranks == 1:
        error = expect_error(train(ground, job, output, "--resume_from_checkpoint", last), last.name)
        if name not in error and name != "trainer_state.json":
            raise CellFailed(f"the error does not name {name}: {error}")
    text = finish(ground, job, output, ranks)
    if f"{last.name} is passed over" not in text:
        raise CellFailed("nothing says that the damaged checkpoint was passed over")
    return Outcome(REFUSED, f"named in the error; checkpoint-{2 * SAVE_STEPS} used")


def all_damaged(ground: Ground, output: Path, job: str) -> Outcome:
    """Damage all checkpoints: the run is refused, and nothing is deleted."""
    shutil.copytree(begun(ground, job), output)
    there = checkpoints(output)
    for name in there:
        _change(output / name / "optimizer.pt", "one bit", ground.random)
    expect_error(train(ground, job, output), "none of the checkpoints")
    if checkpoints(output) != there:
        raise CellFailed("checkpoints were deleted")
    return Outcome(REFUSED, "none is whole, says so, and leaves them alone")


# Signals

STATUS = {"TERM": 75, "USR1": 75, "INT": 130}


def signals(ground: Ground, output: Path, job: str, name: str, ranks: int = 1, times: int = 2) -> Outcome:
    """Send a signal while it trains, as often as said; each time the same command goes on."""
    ground.reference(job, ranks)
    number, steps = getattr(signal, f"SIG{name}"), []
    for turn in range(times):
        running = [train(ground, job, output)] if ranks == 1 else train_ranks(ground, job, output)
        step = SAVE_STEPS * (turn + 1)
        if not running[0].until(
            lambda step=step: checkpoints(output) and int(str(newest(output)).rpartition("-")[2]) >= step
        ):
            raise CellFailed(f"ended before the signal: {last_lines(running[0].text)}")
        time.sleep(ground.random.uniform(0, 0.2))
        target = running[ground.random.randrange(ranks)]
        target.send(number, group=name == "INT")  # Ctrl-C reaches the workers too
        for each in running:
            status, text = each.end()
            if "Traceback" in text:
                raise CellFailed(f"traceback: {last_lines(text)}")
            if status == 0:
                break
            if status != STATUS[name]:
                raise CellFailed(f"ended with {status}, not {STATUS[name]}: {last_lines(text)}")
            saved = re.findall(r"It is saved in (\S+);", text)
            if not saved or not Path(saved[-1]).is_dir():
                raise CellFailed(f"nothing says where it is saved: {last_lines(text)}")
            steps.append(int(saved[-1].rpartition("-")[2]))
    if not steps:
        raise CellFailed("every run ended before the signal took effect")
    finish(ground, job, output, ranks)
    return Outcome(EQUAL, f"status {STATUS[name]}, saved after step {', '.join(map(str, dict.fromkeys(steps)))}")


def early_signal(ground: Ground, output: Path, job: str) -> Outcome:
    """SIGTERM before the first checkpoint, at any moment from the start on."""
    ground.reference(job)
    seen = set()
    for _ in range(3):
        running = train(ground, job, output)
        limit = time.monotonic() + ground.random.uniform(0.0, 0.5) * ground.seconds(job)
        running.until(lambda limit=limit: time.monotonic() >= limit)
        running.send(signal.SIGTERM)
        status, text = running.end()
        if "Traceback" in text or status not in (0, 75, -signal.SIGTERM):
            raise CellFailed(f"ended with {status}: {last_lines(text)}")
        seen.add(status)
    finish(ground, job, output)
    return Outcome(EQUAL, f"ended with {', '.join(map(str, sorted(seen)))}")


def second_signal(ground: Ground, output: Path, job: str) -> Outcome:
    """Two signals: the second ends the run at once."""
    ground.reference(job)
    running = train(ground, job, output)
    running.until(sealed(output, SAVE_STEPS))
    running.send(signal.SIGTERM)
    running.until(lambda: "SIGTERM: the run saves" in running.text)
    running.send(signal.SIGTERM)
    status, text = running.end()
    if status not in (-signal.SIGTERM, 75):  # 75: it was faster
        raise CellFailed(f"ended with {status}: {last_lines(text)}")
    finish(ground, job, output)
    return Outcome(EQUAL, f"ended with {status}")


# The clock


def clock(ground: Ground, output: Path, job: str) -> Outcome:
    """The clock is set back by an hour: earlier checkpoints seem to come from the future. Then a kill."""
    ground.reference(job)
    running = train(ground, job, output)
    running.until(sealed(output, 2 * SAVE_STEPS))
    ahead = time.time() + 3600
    for path in output.glob("checkpoint-*"):
        os.utime(path, (ahead, ahead))
    running.until(sealed(output, 3 * SAVE_STEPS))
    running.send(signal.SIGKILL)
    running.end()
    if f"checkpoint-{3 * SAVE_STEPS}" not in checkpoints(output):
        raise CellFailed(f"only {sorted(checkpoints(output))} are left")
    finish(ground, job, output)
    expected = {f"checkpoint-{step}" for step in range(STEPS - 2 * SAVE_STEPS, STEPS + 1, SAVE_STEPS)}
    if checkpoints(output) != expected:
        raise CellFailed(f"{sorted(checkpoints(output))} are left, not the newest three")
    return Outcome(EQUAL, "the newest three checkpoints are left", 1)


# Disks


@contextmanager
def disk(folder: Path, kib: int = 65536) -> Iterator[Path]:
    """A small disk of its own at a folder."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise CellSkipped("mounting a small disk needs root")
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise CellSkipped(f"mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder / "run")], capture_output=True)  # see `read_only_disk`
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path, leave_kib: int) -> None:
    """Leave only so much room on a disk."""
    usage = shutil.disk_usage(folder)
    try:
        with (folder / "others").open("wb") as stream:
            stream.write(bytes(max(0, usage.free - leave_kib * 1024)))
    except OSError:
        pass


ROOM = ("make room", "Make room")


def full_disk(ground: Ground, output: Path, job: str, when: str) -> Outcome:
    """The disk is filled by others at some moment. Then there is room again."""
    ground.reference(job)
    with disk(output.with_name(f"{output.name}-disk")) as place:
        output = place / "run"
        log = place.with_name(f"{place.name}.log")
        leave = 0
        argv = JOBS[job].argv(ground.root, output, "--resume_from_checkpoint", "auto")
        if when == "start":
            fill(place, leave := ground.random.choice([0, 8, 24]))
        running = ground.commands.start(argv, log)
        if when == "saving":
            running.until(sealed(output, SAVE_STEPS))
            fill(place, leave := ground.random.randrange(0, 600))
        elif when == "end":
            running.until(sealed(output, STEPS))
            fill(place, leave := ground.random.randrange(0, 200))
        if when == "end" and running.end()[0] == 0:
            detail = "it had ended before"
        else:
            expect_error(running, *ROOM)
            detail = f"{leave} KiB left"
        (place / "others").unlink()
        expect_success(ground.commands.start(argv, log.with_suffix(".again")))
        expect_equal(ground, job, output)
    return Outcome(REFUSED, f"{detail}; with room again equal")


def read_only_disk(ground: Ground, output: Path, job: str, when: str) -> Outcome:
    """The disk becomes read-only, as after an error of the hardware. Then it is writable again."""
    ground.reference(job)
    with disk(output.with_name(f"{output.name}-disk")) as place:
        output = place / "run"
        log = place.with_name(f"{place.name}.log")
        argv = JOBS[job].argv(ground.root, output, "--resume_from_checkpoint", "auto")
        if when == "start":
            remount(place, "ro")
        running = ground.commands.start(argv, log)
        if when == "saving":
            running.until(sealed(output, SAVE_STEPS))
            # A disk with files open for writing, such as the lock, cannot be made read-only. Another view of it can.
            subprocess.run(["mount", "--bind", str(output), str(output)], check=True)
            remount(output, "bind,ro")
        error = expect_error(running, "read-only", "Read-only", "writable")
        if "make room" in error.lower():
            raise CellFailed(f"the advice does not fit: {error}")
        if when == "start":
            remount(place, "rw")
        else:
            subprocess.run(["umount", "-l", str(output)], check=True)
        expect_success(ground.commands.start(argv, log.with_suffix(".again")))
        expect_equal(ground, job, output)
    return Outcome(REFUSED, "writable again: equal")


def quota(ground: Ground, output: Path, job: str) -> Outcome:
    """A file may not have more than some bytes, as under a quota."""
    ground.reference(job)
    largest = ground.random.randrange(60, 180) * 1024
    expect_error(train(ground, job, output, largest_file=largest), *ROOM)
    finish(ground, job, output)
    return Outcome(REFUSED, f"files of {largest // 1024} KiB at most; without the limit equal")


def prepare_full(ground: Ground, output: Path, when: str) -> Outcome:
    """`fer-pll prepare` on a full or read-only disk leaves no half of a set."""
    with disk(output, 2048) as place:
        out, log = place / "faces", output.with_name(f"{output.name}.log")
        argv = prepare_argv(out)
        if when == "read-only":
            remount(place, "ro")
            expect_error(ground.commands.start(argv, log), "writable", "Read-only", "read-only")
            remount(place, "rw")
        else:
            fill(place, ground.random.randrange(0, 60))
            expect_error(ground.commands.start(argv, log), *ROOM)
            (place / "others").unlink()
        if out.exists():
            raise CellFailed("half of a set is left")
        expect_success(ground.commands.start(argv, log.with_suffix(".again")))
        for split in ("train", "validation"):
            for path in (ground.root / "faces" / split).glob("*.arrow"):
                if path.read_bytes() != (out / split / path.name).read_bytes():
                    raise CellFailed(f"{path.name} differs")
    return Outcome(REFUSED, "the same command with room gives the same set")


# Two runs, or ranks


def two_at_once(ground: Ground, output: Path, job: str, pause: str) -> Outcome:
    """Two runs in one folder: the second is refused, the first does not notice."""
    ground.reference(job)
    first = train(ground, job, output)
    if pause == "later":
        first.until(sealed(output, SAVE_STEPS))
        time.sleep(ground.random.uniform(0, 0.3))
    argv = JOBS[job].argv(ground.root, output, "--resume_from_checkpoint", "auto")
    second = ground.commands.start(argv, output.with_name(f"{output.name}-second.log"))
    ends = [running.end() for running in (first, second)]
    refused = [text for status, text in ends if status == 1]
    if [status for status, _ in ends].count(0) != 1 or len(refused) != 1:
        if all(status == 0 for status, _ in ends):  # one after the other
            expect_equal(ground, job, output)
            return Outcome(EQUAL, "the second came after the end of the first")
        raise CellFailed(f"ended with {ends[0][0]} and {ends[1][0]}: {last_lines(ends[1][1])}")
    if "another run (process" not in refused[0] or "Traceback" in refused[0]:
        raise CellFailed(f"refused, but not by name: {last_lines(refused[0])}")
    expect_equal(ground, job, output)
    return Outcome(REFUSED, "the second names the process of the first")


def late_rank(ground: Ground, output: Path, job: str, which: str) -> Outcome:
    """A rank starts late, or stops for seconds somewhere at the start, as on a busy machine."""
    ground.reference(job, 2)
    if which == "start":
        running = train_ranks(ground, job, output, delay=6.0)
    else:
        running = train_ranks(ground, job, output)
        rank = running[int(which)]
        for _ in range(3):
            limit = time.monotonic() + ground.random.uniform(0.1, 0.4) * ground.seconds(job, 2)
            rank.until(lambda limit=limit: time.monotonic() >= limit)
            rank.send(signal.SIGSTOP)
            time.sleep(3)
            rank.send(signal.SIGCONT)
    for each in running:
        expect_success(each)
    expect_equal(ground, job, output, 2)
    return Outcome(EQUAL)


def killed_rank(ground: Ground, output: Path, job: str, rank: int, moment: str) -> Outcome:
    """One of two ranks is killed: the other says so and ends; the same command goes on."""
    ground.reference(job, 2)
    running = train_ranks(ground, job, output)
    if moment == "start":
        running[0].until(lambda: (output / "settings.json").is_file())
    else:
        running[0].until(sealed(output, SAVE_STEPS))
    if moment == "saving":
        there = checkpoints(output)
        running[0].until(lambda: checkpoints(output) - there)
    time.sleep(ground.random.uniform(0, 0.1))
    running[rank].send(signal.SIGKILL)
    running[rank].end()
    expect_error(running[1 - rank], "nother process of the run has ended")
    finish(ground, job, output, 2)
    return Outcome(REFUSED, "the other rank names the cause", 1)


def changed_world(ground: Ground, output: Path, job: str, before: int, after: int) -> Outcome:
    """The run goes on with another number of processes and the same global batch: it says so, and stays close."""
    shutil.copytree(begun(ground, job, before), output)
    batch = ("--per_device_train_batch_size", BATCH_SIZE * before // after, "--num_train_epochs", 2 * before)
    if after == 1:
        text = expect_success(train(ground, job, output, *batch))
    else:
        text = "".join([expect_success(running) for running in train_ranks(ground, job, output, *batch)])
    if "was written with other processes or batches" not in text:
        raise CellFailed("nothing says that the processes have changed")
    expected = content(ground.reference(job, before) / "trainer_state.json")
    if content(output / "trainer_state.json")["global_step"] != expected["global_step"]:
        raise CellFailed("it ended after another number of steps")
    return Outcome(SAID, f"{before} -> {after} processes")


def damaged_rank(ground: Ground, output: Path, job: str, name: str, how: str) -> Outcome:
    """The same damage with two ranks, which must take the same checkpoint."""
    return damage(ground, output, job, name, how, ranks=2)


def other_data(ground: Ground, output: Path, job: str) -> Outcome:
    """A run is resumed with another data set."""
    shutil.copytree(begun(ground, job), output)
    other = ground.root / "other"
    with _making["other"]:
        if not (other / "shards").is_dir():
            expect_success(ground.commands.start(prepare_argv(other / "faces", seed=1), ground.root / "other.log"))
            write_shards(other)
    argv = [str(word) for word in JOBS[job].argv(ground.root, output, "--resume_from_checkpoint", "auto")]
    argv[argv.index("--data") + 1] = str(other / JOBS[job].data)
    log = output.with_name(f"{output.name}.log")
    if JOBS[job].data == "shards":  # a stream may be exchanged, and the run says that it begins another pass
        text = expect_success(ground.commands.start(argv, log))
        if "was written with other images" not in text:
            raise CellFailed("nothing says that the images are others")
        return Outcome(SAID, "a new pass over the new images")
    error = expect_error(ground.commands.start(argv, log), "data")
    finish(ground, job, output)
    return Outcome(REFUSED, error[:100])


# torchrun


def torchrun(ground: Ground, output: Path, what: str) -> Outcome:
    """The real torchrun: a signal to it or to its whole group, or the death of a rank; the same command goes on."""
    job = "finetune"
    ground.reference(job, 2)
    argv = JOBS[job].argv(ground.root, output, *TWO_RANKS)
    log = output.with_name(f"{output.name}.log")
    running = ground.commands.torchrun(argv, log, *(("--signals-to-handle", SIGNALS) if "USR1" in what else ()))
    if not running.until(sealed(output, SAVE_STEPS)):
        raise CellFailed(f"ended: {last_lines(running.text)}")
    kills = 0
    if what == "rank killed":
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        kills = 1
    else:
        name, target = what.split(" to ")
        number = getattr(signal, f"SIG{name}")
        # torchrun gives its processes sessions of their own, and passes on what it gets. Slurm reaches all of them.
        for pid in children(running.pid) if target == "all" else []:
            os.kill(pid, number)
        running.send(number)
    status, text = running.end()
    limit = time.monotonic() + 60
    while time.monotonic() < limit and writes(output):
        time.sleep(0.2)
    if status == 0:
        raise CellFailed("torchrun ended with 0, as if all were done")
    detail = f"torchrun ended with {status}"
    if what != "rank killed":
        if "It is saved in" not in log.read_text(errors="replace"):
            raise CellFailed(f"nothing was saved ({detail}): {last_lines(text)}")
        detail += ", saved at the step"
    elif "nother process of the run has ended" not in text:
        raise CellFailed(f"the cause is not named: {last_lines(text)}")
    finish(ground, job, output, 2)
    return Outcome(EQUAL, detail, kills)


SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""That torchrun passes on; SIGUSR1 would end it, and Slurm would end the rest."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def writes(output: Path) -> bool:
    """Whether a process still holds the lock of a run's folder."""
    code = "import sys, filelock; filelock.FileLock(sys.argv[1], timeout=0).acquire()"
    return subprocess.run([sys.executable, "-c", code, str(output / ".run.lock")], capture_output=True).returncode != 0


# The list


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        name: group/what/variant; the random numbers follow from it and the campaign's seed.
        run: does it, in a folder of its own.
    """

    name: str
    run: Callable[[Ground, Path], Outcome]

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


def _cells() -> Iterator[tuple[str, Callable[..., Outcome]]]:
    for job in JOBS:
        yield f"undisturbed/{job}", partial(undisturbed, job=job)
    for number, job in enumerate(("finetune", "workers", "stream", "finetune", "pico", "paper", "pretrain")):
        for moment in ("random", "saving"):
            turn = "" if number < 3 else "-again" if job == "finetune" else ""
            yield f"kill/{job}/{moment}{turn}", partial(kill, job=job, moment=moment)
    for name in STATUS:
        for job in ("finetune", "stream"):
            yield f"signal/{name}/{job}", partial(signals, job=job, name=name)
        yield f"signal/{name}/two ranks", partial(signals, job="finetune", name=name, ranks=2, times=1)
    yield "signal/TERM/any moment", partial(early_signal, job="finetune")
    yield "signal/TERM/twice", partial(second_signal, job="finetune")
    yield "requeue/finetune", partial(signals, job="paper", name="TERM", times=3)
    yield "requeue/after the end", after_the_end
    for job in ("finetune", "pretrain"):
        yield f"clock/{job}", partial(clock, job=job)
    for job in ("finetune", "pretrain"):
        for when in ("start", "saving", "end"):
            yield f"disk/full/{job}/{when}", partial(full_disk, job=job, when=when)
        for when in ("start", "saving"):
            yield f"disk/read-only/{job}/{when}", partial(read_only_disk, job=job, when=when)
        yield f"disk/quota/{job}", partial(quota, job=job)
    for when in ("full", "read-only"):
        yield f"disk/{when}/prepare", partial(prepare_full, when=when)
    for pause in ("at once", "later"):
        yield f"two runs/{pause}", partial(two_at_once, job="finetune", pause=pause)
    yield "two runs/after a kill with workers", restarted_at_once
    for which in ("start", "0", "1"):
        yield f"late rank/{which}", partial(late_rank, job="finetune", which=which)
    for rank in (0, 1):
        for moment in ("start", "training", "saving"):
            yield f"killed rank/{rank}/{moment}", partial(killed_rank, job="finetune", rank=rank, moment=moment)
    for before, after in ((1, 2), (2, 1)):
        yield f"world size/{before} to {after}", partial(changed_world, job="finetune", before=before, after=after)
    for job in ("finetune", "pretrain", "stream"):
        yield f"other data/{job}", partial(other_data, job=job)
    yield "damage/every checkpoint", partial(all_damaged, job="pretrain")
    done: set[str] = set()
    for job in ("pico", "stream", "pretrain"):
        for name in (*JOBS[job].files, "modeling_fer_pll.py"):
            if name in done:
                continue
            done.add(name)
            # What every kind of run has is damaged where a run costs least.
            cheap = "pretrain" if name in (*JOBS["pretrain"].files, "modeling_fer_pll.py") else job
            for how in DAMAGES:
                yield f"damage/{name}/{how}", partial(damage, job=cheap, name=name, how=how)
    for how in DAMAGES:
        yield (
            f"damage/rng_state_1.pth/{how}/two ranks",
            partial(damage, job="finetune", name="rng_state_1.pth", how=how, ranks=2),
        )
    for what in ("TERM to torchrun", "TERM to all", "INT to all", "USR1 to all", "rank killed"):
        yield f"torchrun/{what}", partial(torchrun, what=what)


def after_the_end(ground: Ground, output: Path) -> Outcome:
    """The same command after the end of the run."""
    for _ in range(2):
        finish(ground, "finetune", output)
    return Outcome(EQUAL, "nothing changes")


def restarted_at_once(ground: Ground, output: Path) -> Outcome:
    """A run with workers is killed and started again in the same moment: the dead process keeps no lock."""
    ground.reference("workers")
    for _ in range(2):
        running = train(ground, "workers", output)
        running.until(sealed(output, SAVE_STEPS))
        time.sleep(ground.random.uniform(0, 0.3))
        running.send(signal.SIGKILL)
        running.end()
    finish(ground, "workers", output)
    return Outcome(EQUAL, "", 2)


def all_cells() -> list[Cell]:
    """All cells, in the order in which they are run."""
    return [Cell(name, run) for name, run in _cells()]


def run_cell(cell: Cell, ground: Ground, output: Path) -> Outcome:
    """Run a cell in a new folder, which is deleted unless the cell fails."""
    for path in output.parent.glob(f"{output.name}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        outcome = cell.run(ground, output)
    except CellSkipped as reason:
        outcome = Outcome(SKIPPED, str(reason))
    except (CellFailed, Hung) as reason:
        outcome = Outcome(FAILED, f"{reason}")
    finally:
        ground.commands.sweep()
    if outcome.result != FAILED:
        for path in output.parent.glob(f"{output.name}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return outcome
