"""The paper's comparisons, as matrices of runs over one data set.

    python train_scripts/reproduce.py table6 --data data/ferplus --out runs/reproduce --seeds 0 1 2

The script pre-trains and fine-tunes the runs of the table, one after the other, and evaluates each on the split
`validation`. It skips finished runs and resumes an interrupted one, so the same command continues. Every run is a line
of runs.csv in --results, and its curves are a line of curves.csv. From these, the script writes to OUT/GROUP/tables a
Markdown table and the figures. The table has the mean and standard deviation over the seeds, the lead of the last row
seed by seed, and a column with the paper's own figures. A result that was made with other settings is refused; the
machine and the number of workers do not matter. Give a --group of their own to runs that must not be compared with the
existing ones.

Everything after `--` goes to `fer-pll pretrain` and `fer-pll finetune` alike, for instance `-- --bf16 true`.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .audit import audit_tables
from .cost import measure_cost
from .experiments import SCALES, Experiments, machine
from .figures import Drawing
from .report import markdown
from .runs import Row
from .tables import TABLES


def reproduce(table: str, experiments: Experiments) -> None:
    """Make the runs of a table, print the table, and write it and its figures to the folder `tables` beside them."""
    experiments.tables.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    if table == "cost":
        text = f"## Section 4.2.2: time and memory of fine-tuning\n\n{measure_cost(experiments)}\n\n{machine()}\n"
    elif table == "audit":
        text = f"## Finding wrong labels, in percent\n{audit_tables(experiments)}"
    else:
        title, figure = TABLES[table].title, TABLES[table].figure
        text = f"## {title}\n"
        for votes in experiments.args.votes or TABLES[table].votes:
            rows, results = run_rows(table, votes, experiments)
            text += f"\n{describe(votes, results)}\n\n{markdown(rows, results, TABLES[table].columns)}\n"
            stem = experiments.tables / (table if votes is None else f"{table}-{votes}votes")
            files += figure(Drawing(title, rows, results, experiments, stem)) if figure else []
    path = experiments.tables / f"{table}.md"
    path.write_text(text)
    print(f"\n{text}\nwritten to {path}", *files, sep="\n")


def run_rows(table: str, votes: int | None, experiments: Experiments) -> tuple[list[Row], list[list[dict]]]:
    """The rows of a table, and for each row the results of its seeds. With --finished, only existing results."""
    args = experiments.args
    get = experiments.finished if args.finished else experiments.result
    rows, results = [], []
    for number, row in enumerate(TABLES[table].with_votes(votes), 1):
        if args.rows is None or number in args.rows:
            found = list(filter(None, (get(row.run, seed) for seed in args.seeds)))
            if found:
                rows.append(row)
                results.append(found)
    if not rows:
        raise ValueError(
            f"--finished: there are no results of {table} for {experiments.group} in {experiments.results} yet."
        )
    return rows, results


def describe(votes: int | None, results: list[list[dict]]) -> str:
    """A sentence about the training labels, the seeds and the time of the runs."""
    regime = "all votes" if votes is None else f"{votes} drawn votes for each row"
    found = [result for row in results for result in row]
    seeds = ", ".join(map(str, sorted({result["settings"]["seed"] for result in found})))
    hours = sum(result["seconds"] for result in found) / 3600
    return f"Trained on {regime}; seeds {seeds}; {len(found)} runs, {hours:.1f} hours."


def contents(table: str) -> str:
    """The title of a table, and its rows with their numbers."""
    rows = TABLES[table].rows
    return "\n".join([TABLES[table].title, *(f"  {number:3}  {row.title}" for number, row in enumerate(rows, 1))])


def parse_votes(text: str) -> int | None:
    if not re.fullmatch(r"all|[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of votes, or all")
    return None if text == "all" else int(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = argv[argv.index("--") + 1 :] if "--" in argv else []
    argv = argv[: argv.index("--")] if "--" in argv else argv
    tables = "\n".join(f"  {name:12} {table.title}" for name, table in TABLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"tables:\n{tables}\n  cost         Section 4.2.2: time and memory of fine-tuning\n"
        "  audit        finding wrong labels out of fold, ours, cleanlab, crowd-kit (not in the paper)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="+", choices=[*TABLES, "cost", "audit"], metavar="TABLE", help="see below")
    parser.add_argument("--data", metavar="DIR", help="folder written by fer-pll prepare")
    parser.add_argument("--out", metavar="DIR", help="folder of the runs")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="only these rows of a table; see --list")
    parser.add_argument("--list", action="store_true", help="print the rows of TABLE with their numbers, and exit")
    parser.add_argument("--results", metavar="DIR", help="folder of the results (default: OUT/results)")
    parser.add_argument("--scale", choices=list(SCALES), default="nano", help="size of the networks (default: nano)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--group", metavar="NAME", help="name of runs that belong together (default: the scale)")
    parser.add_argument("--finished", action="store_true", help="make no runs; show the finished ones")
    parser.add_argument("--max-samples", type=int, metavar="N", help="use only N images of each split")
    parser.add_argument(
        "--votes", type=parse_votes, nargs="+", metavar="N", help="number of drawn votes for each row, or all"
    )
    parser.add_argument("--pretrain-epochs", type=int, metavar="N", help="epochs of pre-training (nano, tiny: 20)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of fine-tuning (nano, tiny: 12)")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="folds of the audit (default: 3)")
    args = parser.parse_args(argv)
    args.options = options
    if not args.list and None in (args.data, args.out):
        parser.error("--data and --out are required")
    if (args.rows or args.list) and not set(args.table) <= set(TABLES):
        parser.error("cost and audit have no rows to choose from")
    for table in args.table if args.rows else []:
        if not set(args.rows) <= set(range(1, 1 + len(TABLES[table].rows))):
            parser.error(f"--rows {' '.join(map(str, args.rows))}: these are the rows of {contents(table)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        for table in args.table:
            print(contents(table))
        return
    experiments = Experiments(args)
    for table in args.table:
        reproduce(table, experiments)
