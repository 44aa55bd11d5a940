"""Calibrate a classifier's probabilities on held-out rows.

Fits one temperature on rows that the model was not trained on, folds it into
the weights of the output layer, and saves the model as a new checkpoint. The
most likely class of an image stays the same, unless --balance changes it so
that rare classes are named more often. training.json is copied for the card,
with the temperature and the calibration error (ECE) before and after.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import fer_pll_cli

from ..data.splits import HELD_OUT
from ..training.calibrated import calibrate

EPILOG = """\
example:
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus --hold-out 0.05
  fer-pll finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --output_dir runs/finetune
  fer-pll calibrate runs/finetune data/ferplus --out runs/calibrated
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll calibrate", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="output folder of fer-pll finetune")
    parser.add_argument("data", help="folder written by fer-pll prepare")
    parser.add_argument("--split", default=HELD_OUT, help="split to fit the temperature on (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder for the calibrated checkpoint"
    )
    parser.add_argument(
        "--balance",
        type=float,
        default=0.0,
        metavar="TAU",
        help="first lower each class's logit by TAU times the log of its share in the run's confidences, so that "
        "rare classes are named more often (default: 0)",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="save the weights in float16, half the size; they still load as float32",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    done = calibrate(args.checkpoint, args.data, args.out, args.split, args.balance, args.half)
    errors = f"ECE {done['ece_before']:.3f} before, {done['ece_after']:.3f} after"
    print(f"temperature {done['temperature']:.3f}, fitted on {done['rows']:,} rows: {errors}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    fer_pll_cli.run(main)
