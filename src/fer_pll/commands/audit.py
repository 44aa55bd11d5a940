"""Find the labels of a training set that look wrong.

RUN is an output folder of fer-pll finetune. Its confidences say which
candidates were struck out, when, and in favor of which label. The command
writes to DIR a table of all rows, the most suspicious first (audit.csv), a
figure (audit.png), and a page to look through the rows and mark them
(audit.html; one file, opens in any browser).
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..audit.report import run_audit
from ..io.terminal import say
from .options import AtLeast, add_safe_csv, quiet_transformers

EPILOG = """\
examples:
  fer-pll audit runs/finetune --out audit
  fer-pll audit runs/finetune --out audit --cross-validate 5
  fer-pll audit runs/finetune --out audit --explain 200
  fer-pll audit fer-pll-demo/candidates --data fer-pll-demo/data --out audit

A run has seen the labels that it judges, and never doubts the only candidate
of a row. --cross-validate trains N models with the settings of RUN, each on the
rows outside its fold, and finds more. It takes as long as N runs. Finished
folds are kept in RUN, so the same command continues after Ctrl-C.

To apply the marks that you made on the page:
  fer-pll prepare ... --corrections marks.csv
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll audit", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="RUN", help="output folder of fer-pll finetune, a checkpoint in it, or published confidences"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table, figure and page")
    parser.add_argument("--data", metavar="DIR", help="prepared data set (default: the one in RUN's settings)")
    parser.add_argument(
        "--cross-validate",
        type=AtLeast(2),
        metavar="N",
        dest="num_folds",
        help="judge each row by one of N models that has not seen it",
    )
    parser.add_argument(
        "--table", metavar="FILE", help="table to write: .csv, .jsonl or .parquet (default: audit.csv in --out)"
    )
    add_safe_csv(parser)
    parser.add_argument(
        "--page-rows", type=AtLeast(1), default=30_000, metavar="N", help="rows on the page (default: %(default)s)"
    )
    parser.add_argument(
        "--explain",
        type=AtLeast(1),
        default=0,
        metavar="N",
        help="heat maps on the page for the N most suspicious rows: what speaks for the given and the believed label",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier audit")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(make_parser().parse_args(argv))
    quiet_transformers()
    run_audit(options.pop("folder"), **options)
    say("mark rows on the page and download them")
    fer_pll_cli.next_command("prepare", "SOURCE", "FILES", "--corrections", "marks.csv", "--out", "DIR")


if __name__ == "__main__":
    fer_pll_cli.run(main)
