"""Judge a checkpoint on a prepared data set.

Writes metrics.json (for each protocol: sample accuracy, mean class accuracy,
recall per class, confusion matrix and calibration error), predictions.csv (the
probabilities of each row), a confusion matrix per protocol and, where the
checkpoint comes from our trainer, its training curves.

Protocols: `all` is every row of the split; `majority` the rows whose top label
holds more than half of the votes, where the data set says which these are. With
the output below the checkpoint's folder, fer-pll push puts the figures on the
model card.

The data set need not be the one that the model was trained on: classes are
matched by name. Rows of a class that the model does not know are left out, and
so, in the choice between classes, are those that the data set does not have.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import fer_pll_cli

from ..data.dataset import load_dataset, numpy_column
from ..hub.card import METRICS_NAME, weights_digest
from ..inference.loading import load_weights
from ..inference.predictions import predict_logits
from ..labels.expressions import canonical_name
from ..metrics.classification import classification_report
from ..plots.confusion_matrix import plot_confusion_matrix
from ..plots.curves import plot_training_curves

EPILOG = """\
examples:
  fer-pll evaluate runs/finetune data/ferplus --split validation \\
      --out runs/finetune/evaluation
  fer-pll evaluate runs/finetune data/rafdb --split test --out runs/on-rafdb
"""


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
    metrics = classification_report(probabilities, labels)
    metrics["per_class_recall"] = dict(zip(names, metrics["per_class_recall"], strict=True))
    return {"rows": len(labels), **metrics}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll evaluate", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or Hub name of a classifier")
    parser.add_argument("data", help="folder written by fer-pll prepare")
    parser.add_argument("--split", default="validation", help="split to judge on (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: CHECKPOINT/evaluation-SPLIT)")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU, where there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    dataset = load_dataset(args.data, args.split)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_weights(AutoModelForImageClassification, args.checkpoint).to(device).eval()
    image_processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    of_model = [canonical_name(model.config.id2label[i]) for i in range(model.config.num_labels)]
    of_data = [canonical_name(name) for name in dataset.features["label"].names]
    names = shared_classes(of_model, of_data)
    probabilities = predict_logits(model, image_processor, dataset, args.batch_size).softmax(dim=1).numpy()
    given = numpy_column(dataset, "label")
    labels = np.array([names.index(name) if name in names else -1 for name in of_data] + [-1])[given]  # -1 stays -1

    out = Path(args.out or Path(args.checkpoint) / f"evaluation-{args.split}")
    out.mkdir(parents=True, exist_ok=True)
    predictions = pd.DataFrame(probabilities, columns=of_model)
    predictions.insert(0, "row_id", dataset["row_id"][:])
    predictions.insert(1, "label", [of_data[label] if label >= 0 else "" for label in given])
    predictions.insert(2, "predicted", [of_model[label] for label in probabilities.argmax(axis=1)])
    predictions.to_csv(out / "predictions.csv", index=False, float_format="%.6f")

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
    (out / METRICS_NAME).write_text(json.dumps(report, indent=2) + "\n")
    for name, metrics in results.items():
        title = f"{args.split}, protocol {name}: {metrics['accuracy']:.1%} of {metrics['rows']:,} pictures"
        plot_confusion_matrix(metrics["confusion_matrix"], names, out / f"confusion_matrix_{name}.png", title)
    state = Path(args.checkpoint) / "trainer_state.json"
    if state.is_file():
        plot_training_curves(json.loads(state.read_text())["log_history"], out / "training_curves.png")

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
    fer_pll_cli.run(main)
