"""Trainings in processes of their own that are killed, and what they leave behind."""

import os
import random
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

import torch

from fer_pll.training.checkpoints import last_checkpoint


def leave(result: dict, folder: str | Path) -> None:
    """To be called last in a process: writes its result, whole or not at all."""
    torch.save(result, Path(folder) / "unfinished.pt")
    (Path(folder) / "unfinished.pt").replace(Path(folder) / "result.pt")
    os._exit(0)  # what libraries do at the exit of a forked process takes ten seconds


def result_of(process: Process, folder: Path) -> dict:
    """What a process leaves when it has come to its end."""
    process.join()
    assert process.exitcode == 0
    return torch.load(folder / "result.pt")


def kill_at_random_moments(
    start: Callable[[Path], Process], tmp_path: Path, kills: int, check: Callable[[dict], None]
) -> None:
    """Kill a training so many times and check what it leaves in the end; a new one begins whenever one ends before.

    `start` starts a training in a folder, or lets it go on from the folder's last checkpoint.
    """
    began = time.monotonic()
    result_of(start(tmp_path / "timed"), tmp_path / "timed")
    longest = time.monotonic() - began
    moments, killed, runs, reached = random.Random(0), 0, 0, set()
    folder = tmp_path / "run-0"
    while killed < kills:
        process = start(folder)
        process.join(timeout=moments.uniform(0.1, 0.9) * longest)
        if process.exitcode == 0:
            check(result_of(process, folder))
            runs += 1
            folder = tmp_path / f"run-{runs}"
            continue
        process.kill()
        process.join()
        killed += 1
        place = (runs, last_checkpoint(folder))
        if place in reached:  # a machine that has become slower since would never get further
            longest *= 1.2
        reached.add(place)
    check(result_of(start(folder), folder))
    assert len(reached) > 3  # it was killed at different places
