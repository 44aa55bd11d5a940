"""Do to trainings what happens to them on clusters, and check that nothing is lost.

Each cell of the campaign does one thing to a run: SIGKILL at a random moment or
while it saves, one damaged file of a checkpoint, a signal, a full or read-only
disk, a clock that is set back, a second run in the same folder, a late or dead
process. Then the same command is given again. It must end bit for bit as if
nothing had been (every tensor of weights, optimizer, random state and table is
compared with an undisturbed run), or with one clear line of error and the
checkpoint before.

The runs are the real commands in processes of their own, on 64 drawn faces with
a tiny network, seconds each. A cell's moments and bits are drawn from --seed
and its name. Results are lines of results.jsonl in --out: the same command goes
on where it was cut off, and tries failed cells again. What a failed cell leaves
stays in --out. The exit status is 1 if any cell failed.
"""

import argparse
import fnmatch
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

from tqdm import tqdm

from fer_pll.io.terminal import say

from .cells import FAILED, Cell, Ground, all_cells, run_cell
from .commands import Commands

EPILOG = """\
examples:
  # all of it: an hour on a core; as root also the disks
  python train_scripts/faults.py --out runs/faults --seed 0

  # what there is
  python train_scripts/faults.py --list

  # some cells, by name or pattern
  python train_scripts/faults.py --out runs/faults --cells 'kill/*' 'damage/optimizer.pt/*'

  # the document
  python train_scripts/faults.py --out runs/faults --table train_scripts/FAULTS.md

A new cell is a function in train_scripts/campaign/cells.py and a line in its
list; a new kind of run is an entry in train_scripts/campaign/jobs.py.
"""

GROUPS = {
    "undisturbed": "Nothing at all",
    "kill": "SIGKILL, at random moments and while saving",
    "signal": "Signals",
    "requeue": "Requeued jobs",
    "clock": "The clock set back by an hour",
    "disk": "Disks",
    "two runs": "Two runs in one folder",
    "late rank": "A late process",
    "killed rank": "One of two processes killed",
    "world size": "Another number of processes",
    "other data": "Another data set",
    "damage": "Damaged checkpoints",
    "torchrun": "The real torchrun, two processes",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "faults.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results, the data and the runs")
    parser.add_argument("--seed", type=int, default=0, help="of moments and bits (default: %(default)s)")
    parser.add_argument(
        "--cells", "--only", nargs="+", metavar="PATTERN", help="names or patterns of cells (default: all of them)"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cells, and run none")
    parser.add_argument("--table", metavar="FILE", help="write the table of all results to a Markdown file as well")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run cells that have a result already once more")
    return parser


def chosen(patterns: Sequence[str] | None) -> list[Cell]:
    """The cells that any of the patterns names.

    Raises:
        ValueError: a pattern names none.
    """
    cells = all_cells()
    if patterns is None:
        return cells
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            raise ValueError(f"--cells {pattern}: no cell has such a name; --list prints the names.")
    return [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """The last result of each cell, by its name. A line that was cut off is none."""
    results = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            result = json.loads(line)
            results[result["cell"]] = result
        except (ValueError, KeyError):
            continue
    return results


def machine() -> str:
    """The machine and the versions that a result depends on, in a line."""
    cpu, cpuinfo = platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    return f"{cores} cores of {cpu}, no GPU used, Python {platform.python_version()}, {packages}"


def table(results: dict[str, dict[str, Any]], seed: int) -> str:
    """The document: how many cells ended how, and each of them."""
    cells = [(cell, results[cell.name]) for cell in all_cells() if cell.name in results]
    kills = sum(result["kills"] for _, result in cells)
    kinds = list(dict.fromkeys(result["result"] for _, result in cells))
    lines = [
        "# Faults",
        "",
        "What happens to runs on clusters, done to small ones: "
        f"`python train_scripts/faults.py --out runs/faults --seed {seed}`, which wrote this page. A cell is equal "
        "if the run ended as an undisturbed one, bit for bit in every tensor of weights, optimizer, random state and "
        "table. After a clear error, in one line, the same command ended so. With another number of processes or "
        "another stream, a run goes on and says so. Anything else is FAILED.",
        "",
        f"Machine: {machine()}. {len(cells)} of {len(all_cells())} cells were run, with {kills} times SIGKILL.",
        "",
        "| | cells | " + " | ".join(kinds) + " |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for group, title in GROUPS.items():
        found = [result["result"] for cell, result in cells if cell.group == group]
        if found:
            lines.append(f"| {title} | {len(found)} | " + " | ".join(str(found.count(kind)) for kind in kinds) + " |")
    found = [result["result"] for _, result in cells]
    lines.append(f"| all | {len(found)} | " + " | ".join(str(found.count(kind)) for kind in kinds) + " |")
    for group, title in GROUPS.items():
        inside = [(cell, result) for cell, result in cells if cell.group == group]
        if inside:
            lines += ["", f"## {title}", "", "| cell | ended | seen |", "|---|---|---|"]
            for cell, result in inside:
                detail = " ".join(result["detail"].split()).replace("|", "\\|")
                lines.append(f"| {cell.name.partition('/')[2]} | {result['result']} | {detail} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    cells = chosen(args.cells)
    if args.list:
        for cell in cells:
            print(cell.name)
        return 0
    if args.out is None:
        parser.error("--out is needed: the folder of the results")
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    file = out / "results.jsonl"
    results = read_results(file)
    if seeds := {result["seed"] for result in results.values()} - {args.seed}:
        raise ValueError(f"--seed {args.seed}: {file} has results of seed {seeds.pop()}. Choose another folder.")
    todo = [cell for cell in cells if args.again or results.get(cell.name, {}).get("result", FAILED) == FAILED]
    commands = Commands()
    if todo:
        Ground(out, commands).prepare()

    def run(cell: Cell) -> None:
        ground = Ground(out, Commands(), Random(f"{args.seed}/{cell.name}"))
        started = time.monotonic()
        outcome = run_cell(cell, ground, out / "cells" / cell.name.replace("/", "-").replace(" ", "-"))
        result = {"cell": cell.name, **asdict(outcome), "seed": args.seed}
        with writing:
            results[cell.name] = result | {"seconds": round(time.monotonic() - started, 1)}
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(results[cell.name]) + "\n")
            bar.set_postfix_str(cell.name)
            bar.update()
        if outcome.result == FAILED:
            say(f"{cell.name}: {outcome.detail}", to_stderr=True)

    writing = Lock()
    with tqdm(total=len(todo), unit="cell", disable=None) as bar, ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(run, todo):
            pass
    text = table(results, args.seed)
    print(text)
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    return int(any(results[cell.name]["result"] == FAILED for cell in cells))
