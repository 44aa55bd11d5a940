"""Judge a checkpoint on a prepared data set.

    python train_scripts/evaluate.py runs/finetune data/ferplus --split validation --out runs/finetune/evaluation

Writes metrics.json (for each protocol: sample accuracy, mean class accuracy, recall per class, confusion matrix and
calibration error), predictions.csv (the probabilities of each row), a confusion matrix per protocol and, where the
checkpoint comes from our trainer, its training curves. Protocols: `all` is every row of the split; `majority` the rows
whose top label holds more than half of the votes, where the data set says which these are. With the output below the
checkpoint's folder, push_to_hub.py puts the figures on the model card.

The data set need not be the one that the model was trained on: classes are matched by name. Rows of a class that the
model does not know are left out, and so, in the choice between classes, are those that the data set does not have.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import numpy as np
import pandas as pd
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import fer_pll  # noqa: F401  (registers the models with the Auto classes)
from fer_pll.data.dataset import load_prepared, numpy_column
from fer_pll.hub.card import weights_digest
from fer_pll.hub.files import CONFUSION_MATRIX_NAME, METRICS_NAME, PREDICTIONS_NAME
from fer_pll.inference.loading import load_weights
from fer_pll.inference.predictions import predict_logits
from fer_pll.io.atomic import write_json
from fer_pll.labels.expressions import canonical_name
from fer_pll.metrics.fer_metrics import FerMetrics
from fer_pll.plots.confusion_matrix import plot_confusion_matrix
from fer_pll.plots.curves import plot_training_curves
from fer_pll.training.run_folder import RunFolder


def shared_classes(of_model: list[str], of_data: list[str]) -> list[str]:
    """Names of the classes that both know, in the order of the model.

    Raises:
        ValueError: where there are fewer than two.
    """
    shared = [name for name in of_model if name in of_data]
    if len(shared) < 2:
        raise ValueError(
            f"The checkpoint has the classes {', '.join(of_model)}; the data set has {', '.join(of_data)}: judging "
            "needs two in common. Name them alike in the config's id2label and in the data set."
        )
    return shared


def judge(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> dict:
    """All metrics of one protocol, ready for JSON."""
    metrics = FerMetrics().compute(predictions=probabilities, references=labels)
    metrics["per_class_recall"] = dict(zip(names, metrics["per_class_recall"], strict=True))
    return {"rows": len(labels), **metrics}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name of a classifier")
    parser.add_argument("data", help="folder written by prepare_data.py")
    parser.add_argument("--split", default="validation", help="split to judge on (default: %(default)s)")
    parser.add_argument("--out", help="output folder (default: CHECKPOINT/evaluation-SPLIT)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    dataset = load_prepared(args.data, args.split)
    model = load_weights(AutoModelForImageClassification, args.checkpoint).to(args.device).eval()
    image_processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    of_model = [canonical_name(model.config.id2label[i]) for i in range(model.config.num_labels)]
    of_data = [canonical_name(name) for name in dataset.features["label"].names]
    names = shared_classes(of_model, of_data)
    probabilities = predict_logits(model, image_processor, dataset, args.batch_size).softmax(dim=1).numpy()
    given = numpy_column(dataset, "label")
    labels = np.array([names.index(name) if name in names else -1 for name in of_data] + [-1])[given]  # -1 stays -1

    out = Path(args.out or RunFolder(args.checkpoint).evaluation(args.split))
    out.mkdir(parents=True, exist_ok=True)
    predictions = pd.DataFrame(probabilities, columns=of_model)
    predictions.insert(0, "row_id", dataset["row_id"][:])
    predictions.insert(1, "label", [of_data[label] if label >= 0 else "" for label in given])
    predictions.insert(2, "predicted", [of_model[label] for label in probabilities.argmax(axis=1)])
    predictions.to_csv(out / PREDICTIONS_NAME, index=False, float_format="%.6f")

    probabilities = probabilities[:, [of_model.index(name) for name in names]]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    defined = labels >= 0
    protocols = {"all": defined}
    if "majority" in dataset.column_names:
        protocols["majority"] = defined & numpy_column(dataset, "majority")
    if not defined.any():
        raise ValueError(f"{args.data}: split {args.split!r} has no row of a class that the checkpoint knows.")
    results = {name: judge(probabilities[rows], labels[rows], names) for name, rows in protocols.items() if rows.any()}

    # For the model card, which is published: no paths, and the digest says whose figures these are.
    report = {
        "weights": weights_digest(args.checkpoint),
        "data": dataset.info.description or Path(args.data).name,
        "split": args.split,
        "classes": names,
        "classes_of_the_data_only": [name for name in of_data if name not in names],
        "classes_of_the_model_only": [name for name in of_model if name not in names],
        "rows_left_out": int((labels < 0).sum()),
        "protocols": results,
    }
    write_json(out / METRICS_NAME, report)
    for name, metrics in results.items():
        title = f"{args.split}, protocol {name}: {metrics['accuracy']:.1%} of {metrics['rows']:,} pictures"
        plot_confusion_matrix(metrics["confusion_matrix"], names, out / CONFUSION_MATRIX_NAME.format(name), title)
    state = RunFolder(args.checkpoint).trainer_state
    if state.is_file():
        plot_training_curves(json.loads(state.read_text())["log_history"], RunFolder(out).training_curves)

    for whose in ("data", "model"):
        only = report[f"classes_of_the_{whose}_only"]
        if only:
            print(f"classes of the {whose} only, left out: {', '.join(only)}")
    if report["rows_left_out"]:
        print(f"{report['rows_left_out']} of {len(labels)} rows have none of the {len(names)} classes judged")
    print(f"{'protocol':10} {'rows':>6} {'accuracy':>9} {'mean class':>11} {'ECE':>6}")
    for name, metrics in results.items():
        figures = f"{metrics['accuracy']:9.1%} {metrics['mean_class_accuracy']:11.1%} {metrics['ece']:6.3f}"
        print(f"{name:10} {metrics['rows']:6} {figures}")
    print(f"written to {out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
