"""Memory and time of the confidence table."""

import os
import tempfile
import time

from .common import Result, fresh_process, take_turns, whole_numbers
from .communication import gathers


def add_options(parser):
    parser.add_argument(
        "--rows",
        type=whole_numbers,
        default="10000,100000,1000000,10000000",
        metavar="N,N,...",
        help="sizes of the table (default: %(default)s)",
    )
    parser.add_argument("--classes", type=int, default=8, metavar="K", help="labels (default: 8)")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows of a step (default: 256)")
    parser.add_argument(
        "--processes",
        type=whole_numbers,
        default="1,2,4,1000",
        metavar="N,N,...",
        help="processes of a training (default: %(default)s)",
    )
    parser.add_argument(
        "--most-processes",
        type=int,
        default=4,
        metavar="N",
        help="with more, what a process gathers is computed from the measured sizes (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of each size (default: 5)")


def measure(args):
    """The confidence table at several numbers of rows. No library has one to compare with.

    A step is look-up, revision and summary of a random batch. The memory of building (from existing candidate sets),
    saving and loading is the peak of a fresh process's anonymous memory, less the table itself. It is read from
    outside every half millisecond. Pages of the file that loading maps do not count: the system drops them when
    memory runs short. Saving ends when the disk has confirmed. Loading reads a file that the system has in its cache.
    ratios, each at most the target: bytes_per_row of the table and MiB beyond it (build_mib, save_mib, load_mib), at
    the largest number of rows; step_growth, the time of a step at the largest number over that at the smallest.

    The last rows say what a step costs with several processes, each with a batch: what a process gathers from all of
    them besides the gradients, in a real training on this machine (the smallest model, gloo; the wait for the slowest
    process does not count), and the step of the table with the rows of all, which each process does.
    """
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        beyond = memory_beyond_table(args, folder)
        tables = {count: build_table(draw_candidates(count, args.classes)) for count in args.rows}
        paths = {count: table_path(folder, count) for count in args.rows}
        steps = take_turns({n: lambda n=n: seconds_of_table_step(tables[n], args) for n in args.rows}, args.repeats)
        of_all = {n: lambda n=n: seconds_of_table_step(tables[args.rows[-1]], args, n) for n in args.processes}
        of_all = take_turns(of_all, args.repeats)
        saving = take_turns({n: lambda n=n: tables[n].save(paths[n]) for n in args.rows}, args.repeats)
        loading = take_turns({n: lambda n=n: load_table(paths[n], args.classes) for n in args.rows}, args.repeats)
    fewest, most = args.rows[0], args.rows[-1]
    bytes_per_row = {n: size_of(tables[n]) / n for n in args.rows}
    growth = {n: steps[n] / steps[fewest] for n in args.rows}
    ratios = {"bytes_per_row": bytes_per_row[most]}
    ratios |= {f"{action}_mib": values[most] for action, values in beyond.items()}
    ratios["step_growth"] = growth[most]
    targets = {"bytes_per_row": 4 * args.classes + 16.0, "build_mib": 32.0, "save_mib": 32.0, "load_mib": 32.0}
    targets["step_growth"] = 1.5

    def row_of(title, values, form, name=None):
        target = f"<= {targets[name]:g}" if name else ""
        return (title, *(format(values[n], form) for n in args.rows), target)

    table = [
        (f"rows, {args.classes} classes", *(f"{n:,}" for n in args.rows), "target"),
        row_of("table, bytes per row", bytes_per_row, ".1f", "bytes_per_row"),
        row_of("table, MiB", {n: size_of(tables[n]) / 2**20 for n in args.rows}, ".1f"),
        *(row_of(f"{action}, MiB beyond it", beyond[action], ".1f", f"{action}_mib") for action in beyond),
        row_of("save, s", saving, ".3f"),
        row_of("load, s", loading, ".3f"),
        row_of(f"step of {args.batch_size} rows, ms", {n: steps[n] * 1e3 for n in args.rows}, ".3f"),
        row_of("step, over that of the fewest rows", growth, ".2f", "step_growth"),
        *process_rows(args, of_all),
    ]
    table = [(*line[:-1], *[""] * (max(map(len, table)) - len(line)), line[-1]) for line in table]
    return Result(table, ratios, targets, "none")


def process_rows(args, seconds):
    """Lines of the table: a step with several processes. Sizes that are not measured grow with the processes."""
    measured = {
        n: gathers(n, args.batch_size, args.classes) for n in args.processes if 1 < n <= args.most_processes
    } or {2: gathers(2, args.batch_size, args.classes)}
    most = max(measured)
    calls, size, _ = measured[most]
    sizes = {n: measured[n][1] if n in measured else size * n / most * (n > 1) for n in args.processes}
    times = {n: f"{measured[n][2] * 1e3:.2f}" if n in measured else "-" for n in args.processes}
    return [
        (f"processes with {args.batch_size} rows each", *(f"{n:,}" for n in args.processes), ""),
        (f"gathered by each ({calls} gathers), KiB", *(f"{sizes[n] / 1024:,.1f}" for n in args.processes), ""),
        ("the same, ms", *times.values(), ""),
        ("step of the rows of all, ms", *(f"{seconds[n] * 1e3:.3f}" for n in args.processes), ""),
    ]


def draw_candidates(count, classes):
    """Candidate sets (count, classes), numpy bool: a random third of the classes, one more so that none is empty."""
    import numpy as np

    candidates = np.random.default_rng(0).integers(0, 3, (count, classes), dtype=np.uint8) == 0
    for label in range(classes):
        candidates[label::classes, label] = True
    return candidates


def table_path(folder, count):
    return f"{folder}/{count}.safetensors"


def class_names(classes):
    return [str(label) for label in range(classes)]


def build_table(candidates):
    from fer_pll.labels.confidence_table import ConfidenceTable

    return ConfidenceTable.from_candidates(candidates, class_names(candidates.shape[1]), "fingerprint")


def load_table(path, classes):
    from fer_pll.labels.confidence_table import ConfidenceTable

    return ConfidenceTable.load(path, class_names(classes), "fingerprint")


def size_of(table):
    """Bytes of all tensors of a table."""
    import torch

    return sum(value.nbytes for value in vars(table).values() if isinstance(value, torch.Tensor))


def seconds_of_table_step(table, args, processes=1):
    """Seconds of a step with a batch for each process: a mean of a hundred, or of fewer for many processes."""
    import torch

    size = args.batch_size * processes
    logits = torch.randn(size, args.classes)
    # The rows are new in each step. Otherwise the processor's cache would hold those of a big table too.
    batches = torch.randint(len(table), (max(3, 100 // processes), size)).unbind()
    start = time.perf_counter()
    for index in batches:
        table.lookup(index)
        # This rule writes a row at every visit. The paper's rule decides a row once, so small tables would soon have
        # less to do.
        table.revise(index, logits, epoch=0, rule="soft")
        table.summary()
    return (time.perf_counter() - start) / len(batches)


def memory_beyond_table(args, folder):
    """Peak MiB that building, saving and loading take beyond the table, by action and number of rows."""
    beyond = {"build": {}, "save": {}, "load": {}}
    with fresh_process() as child:
        for count in [args.rows[0], *args.rows]:  # the first size twice: what the process loads once does not count
            path = table_path(folder, count)
            child.submit(keep_candidates, count, args.classes, args.threads).result()
            rise = {
                "build": memory_rise(child, build_kept_table),
                "save": memory_rise(child, save_kept_table, path),
                "load": memory_rise(child, load_kept_table, path),
            }
            size = child.submit(size_of_kept_table).result()
            for action in beyond:
                # Not below zero: memory that the process has already may be enough for a small table.
                beyond[action][count] = max(0, rise[action] - (0 if action == "save" else size)) / 2**20
    return beyond


def memory_rise(child, function, *args):
    """The largest rise, in bytes, of the anonymous memory of a process while it calls a function.

    This process reads it, because a thread of the other would not run while the function holds its GIL.
    """
    import psutil

    process = psutil.Process(child.submit(os.getpid).result())

    def anonymous():
        memory = process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)  # on Linux: what is mapped from files

    before = most = anonymous()
    call = child.submit(function, *args)
    while not call.done():
        most = max(most, anonymous())
        time.sleep(0.0005)
    call.result()
    return max(most, anonymous()) - before


def keep_candidates(count, classes, threads):
    """Keep the candidate sets for the next functions. All of them run in the process whose memory is read."""
    import torch

    global kept_candidates
    torch.set_num_threads(threads)
    kept_candidates = draw_candidates(count, classes)


def build_kept_table():
    global kept_table
    kept_table = build_table(kept_candidates)


def save_kept_table(path):
    kept_table.save(path)


def load_kept_table(path):
    global kept_table
    kept_table = load_table(path, kept_candidates.shape[1])


def size_of_kept_table():
    return size_of(kept_table)
