"""Judge a checkpoint on a prepared data set.

    python train_scripts/evaluate.py runs/finetune data/ferplus --split validation --out runs/finetune/evaluation

Writes metrics.json (for each protocol: sample accuracy, mean class accuracy, recall per class, confusion matrix and
calibration error), a confusion matrix per protocol and, where the checkpoint comes from our trainer, its training
curves. Protocols: `all` is every row of the split; `majority` the rows whose top label holds more than half of the
votes, where the data set says which these are.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification

import fer_pll  # noqa: F401  (registers the models with the Auto classes)
from fer_pll.data.prepared import load_prepared
from fer_pll.evaluation.fer_metrics import FerMetrics
from fer_pll.evaluation.plots import plot_confusion_matrix, plot_training_curves
from fer_pll.training.trainer import numpy_column


def class_names(model: torch.nn.Module, dataset: Dataset) -> list[str]:
    """Names of the model's classes, after checking that the labels of the data set are the same."""
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if names != dataset.features["label"].names:
        known = ", ".join(dataset.features["label"].names)
        raise ValueError(f"The checkpoint has the classes {', '.join(names)}; the data set has {known}.")
    return names


@torch.inference_mode()
def predict(model: torch.nn.Module, image_processor, dataset: Dataset, batch_size: int) -> np.ndarray:
    """Class probabilities, float32 (N, K)."""
    probabilities = []
    for rows in tqdm(dataset.select_columns("image").iter(batch_size), "evaluate", -(-len(dataset) // batch_size)):
        inputs = image_processor(rows["image"], return_tensors="pt").to(model.device)
        probabilities.append(model(**inputs).logits.float().softmax(dim=1).cpu().numpy())
    return np.concatenate(probabilities)


def judge(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> dict:
    """All metrics of one protocol, ready for JSON."""
    metrics = FerMetrics().compute(predictions=probabilities, references=labels)
    metrics["per_class_recall"] = dict(zip(names, metrics["per_class_recall"], strict=True))
    return {"rows": len(labels), **metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name of a classifier")
    parser.add_argument("data", help="folder written by prepare_data.py")
    parser.add_argument("--split", default="validation", help="split to judge on (default: %(default)s)")
    parser.add_argument("--out", help="output folder (default: CHECKPOINT/evaluation-SPLIT)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    dataset = load_prepared(args.data, args.split)
    model = AutoModelForImageClassification.from_pretrained(args.checkpoint).to(args.device).eval()
    image_processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    names = class_names(model, dataset)
    labels = numpy_column(dataset, "label")
    probabilities = predict(model, image_processor, dataset, args.batch_size)

    defined = labels >= 0
    protocols = {"all": defined}
    if "majority" in dataset.column_names:
        protocols["majority"] = defined & numpy_column(dataset, "majority")
    results = {name: judge(probabilities[rows], labels[rows], names) for name, rows in protocols.items()}

    out = Path(args.out or Path(args.checkpoint) / f"evaluation-{args.split}")
    out.mkdir(parents=True, exist_ok=True)
    report = {"checkpoint": args.checkpoint, "data": args.data, "split": args.split, "protocols": results}
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, metrics in results.items():
        title = f"{args.split}, protocol {name}: {metrics['accuracy']:.1%} of {metrics['rows']:,} pictures"
        plot_confusion_matrix(metrics["confusion_matrix"], names, out / f"confusion_matrix_{name}.png", title)
    state = Path(args.checkpoint) / "trainer_state.json"
    if state.is_file():
        plot_training_curves(json.loads(state.read_text())["log_history"], out / "training_curves.png")

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
