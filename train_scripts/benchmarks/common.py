"""Code that several benchmarks share: taking turns, results, devices, fresh processes."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median


@dataclass
class Result:
    """The result of a benchmark.

    table: rows of cells to print, the header first.
    ratios: the measured ratios by name.
    targets: by name, the value that a ratio should reach or, where the benchmark's help says so, stay below.
    peer: library and version on the other side.
    """

    table: list[tuple[str, ...]]
    ratios: dict[str, float]
    targets: dict[str, float]
    peer: str


def take_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function. Every round calls all functions, in alternating order; the first is a warm-up.

    If a function returns a float, that is its time in seconds.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name in list(functions)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            taken = functions[name]()
            if turn:
                seconds[name].append(taken if isinstance(taken, float) else time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def row(title, values, form, target=None):
    """Cells: title, ours, theirs, ours over theirs, and the upper limit of this ratio."""
    cells = [format(values[side], form) for side in ("ours", "theirs")]
    return (title, *cells, f"{values['ours'] / values['theirs']:.3f}", f"<= {target:g}" if target else "")


def whole_numbers(text):
    return sorted(int(count) for count in text.split(","))


def photo_crops(batch_size: int, image_size: int, channels: int):
    """Random crops of scikit-image's portrait of an astronaut, uint8 (B, C, H, W) numpy array."""
    import numpy as np
    from skimage import data

    photo = data.astronaut().transpose(2, 0, 1)[:channels]  # (C, 512, 512)
    repeat = -(-image_size // 512) + 1
    photo = np.tile(photo, (1, repeat, repeat))
    corners = np.random.default_rng(0).integers(0, 512, (batch_size, 2))
    return np.stack([photo[:, top : top + image_size, left : left + image_size] for top, left in corners])


def device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize():
    """Wait until the GPU, if there is one, has finished its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synchronized(function):
    """`function`, followed by a wait until the GPU has finished its work."""

    def call():
        function()
        synchronize()

    return call


def fresh_process():
    """A pool of one new process for measuring memory. The process returns freed memory to the system at once.

    By default glibc keeps some of it. The measurement would count this part as used, and would not see memory that is
    taken from it later.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    return ProcessPoolExecutor(1, get_context("spawn"))
