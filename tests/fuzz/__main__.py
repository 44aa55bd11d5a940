"""Read damaged files for as long as you like, and print what came of them as a table in Markdown.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m tests.fuzz --minutes 60 --seed 7

"ok" are inputs that are read in spite of the damage, "row" those where single rows are left out with a reason, and
"clean" those that end with one line that names the file. Ends with status 1 if any input ended in a raw traceback, in
an error that names no file, in a crash, or above the limit of memory or time. For the first input of each kind it
says how to run it alone.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from .runner import CPU_SECONDS, MEMORY, one_input, run, table
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, help="time for all targets together (default: a fixed number of inputs)"
    )
    parser.add_argument("--inputs", type=int, metavar="N", help="as many for each target, without --minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=TARGETS, help="this target; may be repeated"
    )
    parser.add_argument("--input", type=int, metavar="N", help="with --only: this input alone, with its traceback")
    parser.add_argument("--list", action="store_true", help="name the targets")
    args = parser.parse_args()
    names = args.only or list(TARGETS)
    if args.list:
        print("\n".join(TARGETS))
        return 0
    if args.input is not None:
        return show_one(names[0], args.seed, args.input)
    results = {}
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    for left, name in enumerate(names):
        target = TARGETS[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        if end is None:
            results[name] = run(target, args.seed, range(args.inputs or target.quick))
        else:
            now = time.monotonic()
            results[name] = run(target, args.seed, range(10**9), now + (end - now) / (len(names) - left))
    print("\n".join(table(results)))
    print(
        f"\nSeed {args.seed}. Limits: {MEMORY / 2**30:g} GiB of address space and {CPU_SECONDS:g} s of CPU an input."
    )
    for name, result in results.items():
        for kind, example in result.examples.items():
            print(
                f"\n- `{name}`, {kind}\n  {example}\n  `python -m tests.fuzz --seed {args.seed} --only '{name}' "
                f"--input {example.split()[1].rstrip(':')}`"
            )
    return int(any(result.bad for result in results.values()))


def show_one(name: str, seed: int, number: int) -> int:
    """Read one input in this process, without limits, and keep its files."""
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    whole, work = folder / "whole", folder / "work"
    whole.mkdir()
    work.mkdir()
    target = TARGETS[name]
    target.make(whole)
    print(f"files in {work / 'damaged'}", file=sys.stderr)
    found: list[BaseException] = []

    def read(path: Path) -> Sequence[str] | None:
        try:
            return target.read(path)
        except (Exception, SystemExit) as error:
            found.append(error)
            raise

    print(*one_input(replace(target, read=read), seed, number, whole, work))
    if found:
        raise found[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
