"""Make a classifier's probabilities say how often it is right and, if asked, have it name rare classes more often.

    python train_scripts/prepare_data.py ferplus path/to/ferplus --out data/ferplus --hold-out 0.05
    python train_scripts/finetune.py --config fer-pll-tiny-ferplus --data data/ferplus --output_dir runs/finetune
    python train_scripts/calibrate.py runs/finetune data/ferplus --out runs/calibrated

Fits one temperature on rows that the model was not trained on, folds it into the output rows, and saves the model as a
checkpoint of its own. The most likely class of a picture stays the same, unless --balance moves it. What training.json
tells of the training goes along, with the temperature and the calibration error (ECE) before and after, for the card.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import torch
from transformers.utils import CONFIG_NAME

from fer_pll import FerPllForImageClassification, FerPllImageProcessor
from fer_pll.data.dataset import load_prepared, numpy_column
from fer_pll.data.splits import HELD_OUT
from fer_pll.hub.card import training_record
from fer_pll.inference.loading import load_weights
from fer_pll.inference.predictions import predict_logits
from fer_pll.io.atomic import write_json
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.metrics.calibration import fit_temperature, fold_balance, fold_temperature
from fer_pll.metrics.classification import expected_calibration_error
from fer_pll.training.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="output folder of finetune.py")
    parser.add_argument("data", help="folder written by prepare_data.py")
    parser.add_argument("--split", default=HELD_OUT, help="split to fit the temperature on (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the calibrated checkpoint")
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
    args = parser.parse_args(argv)
    if args.balance < 0:
        raise ValueError(f"--balance {args.balance} must not be negative.")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"--out {args.out} holds files already: choose another folder.")

    dataset = load_prepared(args.data, args.split)
    model = load_weights(FerPllForImageClassification, args.checkpoint, dtype=torch.float32).eval()
    image_processor = FerPllImageProcessor.from_pretrained(args.checkpoint)
    names, of_model = dataset.features["label"].names, list(model.config.id2label.values())
    if names != of_model:
        raise ValueError(f"{args.data} has the classes {', '.join(names)}, the model {', '.join(of_model)}.")
    labels = numpy_column(dataset, "label")
    dataset, labels = dataset.select((labels >= 0).nonzero()[0]), labels[labels >= 0]

    if args.balance:
        confidence = ConfidenceTable.load(RunFolder(args.checkpoint).confidence, names).confidence
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
    write_json(args.out / CONFIG_NAME, config | {"dtype": "float32"})  # what from_pretrained loads the weights as
    training = RunFolder(args.checkpoint).training
    calibration = {
        "balance": args.balance,
        "rows": len(labels),
        "temperature": temperature,
        "ece_before": before,
        "ece_after": after,
    }
    record = json.loads(training.read_text()) if training.is_file() else training_record({})
    write_json(RunFolder(args.out).training, record | {"calibration": calibration})
    print(f"temperature {temperature:.3f}, fitted on {len(labels):,} rows: ECE {before:.3f} before, {after:.3f} after")
    print(f"written to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
