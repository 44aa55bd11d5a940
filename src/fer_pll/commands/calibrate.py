"""Calibrate a classifier's probabilities on held-out rows.

Fits one temperature on rows that the model was not trained on, folds it into
the weights of the output layer, and saves the model as a new checkpoint. The
most likely class of an image stays the same, unless --balance changes it so
that rare classes are named more often. training.json is copied for the card,
with the temperature, and the negative log-likelihood (NLL), which it minimizes,
and the calibration error (ECE) before and after.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fer_pll_cli

from ..data.splits import HELD_OUT
from ..io.terminal import say
from ..metrics.calibration import differs_from_one
from ..training.calibrated import calibrate
from .options import quiet_transformers

FEW_ROWS = 500
"""Below this, a calibration error says little: it has 15 bins, some of which are nearly empty."""

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
    quiet_transformers()
    done = calibrate(args.checkpoint, args.data, args.out, args.split, args.balance, args.half)
    say(*summary(done).split("\n"))
    say(f"written to {args.out}")
    fer_pll_cli.next_command("evaluate", args.out, args.data)


def summary(done: Mapping[str, Any]) -> str:
    """What `calibrate` returned, in words, with a warning where it did not help or rows are few."""
    lines = [
        f"temperature {done['temperature']:.3f}, fitted on {done['rows']:,} rows",
        f"{'':6} {'before':>7} {'after':>7}",
    ]
    lines += [
        f"{name.upper():6} {done[f'{name}_before']:7.4f} {done[f'{name}_after']:7.4f}" for name in ("nll", "ece")
    ]
    if done["rows"] < FEW_ROWS:
        lines.append(
            f"warning: {done['rows']:,} rows are few: ECE varies by several hundredths from draw to draw. Hold out "
            f"{FEW_ROWS:,} or more (fer-pll prepare ... --hold-out SHARE)."
        )
    if not differs_from_one(done["nll_before"], done["nll_after"], done["rows"]):
        lines.append(
            "warning: the calibration did not help measurably: on these rows the temperature 1 is as likely as the "
            "fitted one (likelihood-ratio test, 5 %). The checkpoint that you had is as good."
        )
    elif done["ece_after"] > done["ece_before"]:
        lines.append(
            "warning: NLL fell, but ECE rose: one temperature for all classes does not suit this model, or the rows "
            "are too few to tell."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    fer_pll_cli.run(main)
