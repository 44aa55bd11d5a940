"""Evaluate a checkpoint on a prepared data set.

Writes metrics.json (for each protocol: sample accuracy, mean class accuracy,
recall per class, confusion matrix and calibration error), predictions.csv (the
probabilities of each row, in a column with the name of the class, or p_CLASS
where a class is named as another column), a confusion matrix for each protocol
and, for a checkpoint of fer-pll finetune, its training curves. Where rows have
candidates, also how often the prediction is one of them; rows without a label
are left out of the rest.

Protocols: `all` is every row of the split; `majority` is the rows whose top
label has more than half of the votes, if the data set has votes. If the output
folder lies inside the checkpoint's folder, fer-pll push puts the results on the
model card.

The data set need not be the one that the model was trained on: classes are
matched by name. Rows of a class that the model does not know are left out. The
model chooses only between classes that the data set has; predictions.csv has
what it says among all of its own.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..io.terminal import say
from ..training.evaluation import default_out, evaluate
from ..training.run_folder import RunFolder
from .options import AtLeast, add_safe_csv, quiet_transformers

EPILOG = """\
examples:
  fer-pll evaluate runs/finetune data/ferplus --split validation \\
      --out runs/finetune/evaluation
  fer-pll evaluate runs/finetune data/rafdb --split test --out runs/on-rafdb
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll evaluate", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a classifier, fer-pll-tiny-ferplus (in the package) or Hub name")
    parser.add_argument("data", help="folder written by fer-pll prepare")
    parser.add_argument("--split", default="validation", help="split to evaluate on (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: CHECKPOINT/evaluation-SPLIT)")
    add_safe_csv(parser)
    parser.add_argument(
        "--batch-size", type=AtLeast(1), default=256, metavar="N", help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU, where there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    quiet_transformers()
    out = args.out or default_out(args.checkpoint, args.split)
    report = evaluate(args.checkpoint, args.data, args.split, out, args.batch_size, args.device, args.safe_csv)
    for whose in ("data", "model"):
        only = report[f"classes_of_the_{whose}_only"]
        if only:
            say(f"classes of the {whose} only, left out: {', '.join(only)}")
    judged = report["protocols"]["all"]["rows"] if report["protocols"] else 0
    total, unlabeled = report["rows_left_out"] + judged, report["unlabeled_rows"]
    if unlabeled:
        say(f"{unlabeled} of {total} rows have no label and are left out of the accuracy")
    if report["rows_left_out"] > unlabeled:
        others = report["rows_left_out"] - unlabeled
        say(f"{others} of {total} rows have none of the {len(report['classes'])} classes judged")
    if report["protocols"]:
        say(f"{'protocol':10} {'rows':>6} {'accuracy':>9} {'mean class':>11} {'ECE':>6}")
    for name, metrics in report["protocols"].items():
        figures = f"{metrics['accuracy']:9.1%} {metrics['mean_class_accuracy']:11.1%} {metrics['ece']:6.3f}"
        say(f"{name:10} {metrics['rows']:6} {figures}")
    if "candidates" in report:
        judged = report["candidates"]
        say(f"{judged['accuracy']:.1%} of {judged['rows']} predictions are among the candidates of their row")
    say(f"written to {out}")
    if RunFolder(args.checkpoint).confidence.is_file():
        fer_pll_cli.next_command("audit", args.checkpoint, "--out", "audit")
    else:
        fer_pll_cli.next_command("predict", "PHOTO.jpg", "--model", args.checkpoint)


if __name__ == "__main__":
    fer_pll_cli.run(main)
