"""Make a classifier's probabilities say how often it is right.

Fits one temperature on rows that the model was not trained on, folds it into
the output rows, and saves the model as a checkpoint of its own. The most likely
class of an image stays the same, unless --balance moves it, so that rare
classes are named more often. What training.json tells of the training goes
along, with the temperature and the calibration error (ECE) before and after,
for the card.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

import fer_pll_cli

from ..data.dataset import load_dataset, numpy_column
from ..data.splits import HELD_OUT
from ..hub.card import TRAINING_NAME, training_record
from ..inference.loading import load_weights
from ..inference.predictions import predict_logits
from ..labels.confidence_table import ConfidenceTable
from ..metrics.calibration import fit_temperature, fold_balance, fold_temperature
from ..metrics.classification import expected_calibration_error
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from ..training.trainer import CONFIDENCE_NAME

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
        help="first lower each class's logit by TAU times the log of its share in the training's confidences, so that "
        "rare classes are named more often (default: 0)",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="save the weights in float16, half the size; they are loaded as float32 all the same",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.balance < 0:
        raise ValueError(f"--balance {args.balance} must not be negative.")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"--out {args.out} holds files already: choose another folder.")

    dataset = load_dataset(args.data, args.split)
    model = load_weights(FerPllForImageClassification, args.checkpoint, dtype=torch.float32).eval()
    image_processor = FerPllImageProcessor.from_pretrained(args.checkpoint)
    names, of_model = dataset.features["label"].names, list(model.config.id2label.values())
    if names != of_model:
        raise ValueError(f"{args.data} has the classes {', '.join(names)}, the model {', '.join(of_model)}.")
    labels = numpy_column(dataset, "label")
    dataset, labels = dataset.select((labels >= 0).nonzero()[0]), labels[labels >= 0]

    if args.balance:
        confidence = ConfidenceTable.load(args.checkpoint / CONFIDENCE_NAME, names).confidence
        fold_balance(model, confidence.double().mean(dim=0), args.balance)
    logits = predict_logits(model, image_processor, dataset)
    temperature = fit_temperature(logits, labels)
    before, after = (
        expected_calibration_error((logits / divisor).softmax(dim=1), labels) for divisor in (1.0, temperature)
    )
    fold_temperature(model, temperature)
    if args.half:
        model.half()
    model.save_pretrained(args.out)
    image_processor.save_pretrained(args.out)
    config = json.loads((args.out / CONFIG_NAME).read_text())
    write_json(config | {"dtype": "float32"}, args.out / CONFIG_NAME)  # what from_pretrained loads the weights as
    training = args.checkpoint / TRAINING_NAME
    calibration = {
        "balance": args.balance,
        "rows": len(labels),
        "temperature": temperature,
        "ece_before": before,
        "ece_after": after,
    }
    record = json.loads(training.read_text()) if training.is_file() else training_record({})
    write_json(record | {"calibration": calibration}, args.out / TRAINING_NAME)
    print(f"temperature {temperature:.3f}, fitted on {len(labels):,} rows: ECE {before:.3f} before, {after:.3f} after")
    print(f"written to {args.out}")


def write_json(value: dict, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    fer_pll_cli.run(main)
