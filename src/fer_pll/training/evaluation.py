"""Evaluation of a checkpoint on a prepared data set: metrics for each protocol, predictions, figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForImageClassification

from ..data.dataset import load_dataset, numpy_column
from ..data.provenance import Provenance
from ..data.row_ids import row_ids
from ..hub.card import weights_digest
from ..hub.files import CONFUSION_MATRIX_NAME, METRICS_NAME, PREDICTIONS_NAME
from ..inference.loading import check_device
from ..inference.predictions import predict_logits
from ..io.atomic import check_writable, whole_file, write_json
from ..io.names import find_checkpoint
from ..io.pretrained import load_image_processor, load_model
from ..io.stored import read_json
from ..io.tables import without_formula
from ..labels.expressions import canonical_name
from ..metrics.classification import classification_report
from ..plots.confusion_matrix import plot_confusion_matrix
from ..plots.curves import plot_training_curves
from .run_folder import RunFolder


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    split: str = "validation",
    out: str | Path | None = None,
    batch_size: int = 256,
    device: str | None = None,
    safe_csv: bool = False,
) -> dict[str, Any]:
    """Evaluate a classifier on one split of a prepared data set.

    Classes are matched by name. Rows of a class that the model does not know are left out, and rows without a label.
    Where it is judged, the model chooses between the classes that the data set has. Where rows have candidates, it is
    also counted how often that choice is one of them.

    predictions.csv has what the model says among all its classes: `predicted`, and a column for each class, named like
    it, or `p_CLASS` where a class is named like one of the columns `row_id`, `label` and `predicted`.

    Args:
        checkpoint: folder of a classifier, `fer-pll-tiny-ferplus` (in the package) or Hub name.
        data: folder of the prepared data set.
        split: the split to evaluate on.
        out: folder for metrics.json, predictions.csv and figures; by default see `default_out`.
        batch_size: images at a time.
        device: `"cpu"`, `"cuda"`, ...; by default the GPU, if there is one.
        safe_csv: see `TableWriter`.

    Returns:
        the contents of metrics.json: `data` (provenance), `split`, `classes` (K names), `rows_left_out`,
        `unlabeled_rows` (how many of these have no label), `protocols` and, if the data set has candidates,
        `candidates`: `rows` with a candidate that the model knows, and `accuracy`, the share of these whose prediction
        is a candidate. `protocols` has `all`, if a row has a label, and `majority`, if the data set has votes: the
        rows that its column of that name says or, without one, those with more than half of the votes on one class, if
        these are not all. Each has `rows`, `accuracy`, `mean_class_accuracy`, `ece` (shares), `per_class_recall` by
        name, `confusion_matrix` (K x K).

    Raises:
        ValueError: data or checkpoint cannot be read, the checkpoint is not a trained classifier, they have fewer than
            two classes in common, or `out` cannot be written.
    """
    check_device(device)
    folder = Path(out or default_out(checkpoint, split))
    check_writable(folder)
    checkpoint = find_checkpoint(checkpoint)
    dataset = load_dataset(data, split)
    model: Any = load_model(AutoModelForImageClassification, checkpoint)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    image_processor = load_image_processor(checkpoint)
    of_model = [canonical_name(model.config.id2label[i]) for i in range(model.config.num_labels)]
    of_data = [canonical_name(name) for name in dataset.features["label"].names]
    names = shared_classes(of_model, of_data)
    logits = predict_logits(model, image_processor, dataset, batch_size)
    probabilities = logits.softmax(dim=1).numpy()
    given = numpy_column(dataset, "label")
    labels = np.array([names.index(name) if name in names else -1 for name in of_data] + [-1])[given]  # -1 stays -1
    defined = labels >= 0
    candidates = None
    if "candidates" in dataset.column_names:
        all_candidates = numpy_column(dataset, "candidates").astype(bool)
        candidates = all_candidates[:, [of_data.index(name) for name in names]]  # (N, shared classes)
    if not defined.any() and (candidates is None or not candidates.any()):
        reason = "has a label" if (given < 0).all() else "is of a class that the checkpoint knows"
        raise ValueError(f"{data}: no row of the split {split!r} {reason}, so there is nothing to compare with.")

    said = {
        "row_id": row_ids(dataset)[:],
        "label": [of_data[label] if label >= 0 else "" for label in given],
        "predicted": [of_model[label] for label in probabilities.argmax(axis=1)],
    }
    columns = of_model if said.keys().isdisjoint(of_model) else [f"p_{name}" for name in of_model]
    if safe_csv:
        said = {column: [without_formula(text) for text in texts] for column, texts in said.items()}
        columns = [without_formula(column) for column in columns]
    predictions = pd.concat([pd.DataFrame(said), pd.DataFrame(probabilities, columns=columns)], axis=1)
    with whole_file(folder / PREDICTIONS_NAME) as unfinished:
        predictions.to_csv(unfinished, index=False, float_format="%.6f")

    shared = logits[:, [of_model.index(name) for name in names]].softmax(dim=1).numpy()
    protocols = {"all": defined}
    if "majority" in dataset.column_names:
        protocols["majority"] = defined & numpy_column(dataset, "majority")
    elif "votes" in dataset.column_names:
        votes = numpy_column(dataset, "votes")
        majority = defined & (2 * votes.max(axis=1) > votes.sum(axis=1))
        if not np.array_equal(majority, defined):  # else it would say the same again
            protocols["majority"] = majority
    results = {
        name: protocol_metrics(shared[rows], labels[rows], names) for name, rows in protocols.items() if rows.any()
    }
    provenance = Provenance.from_dataset(dataset) or Provenance(split=split)
    if not (provenance.name or provenance.hub_id or provenance.parts):
        provenance = replace(provenance, name=Path(data).resolve().name)
    # For the model card, which is published: no paths, and a digest of the weights that were evaluated.
    report = {
        "weights": weights_digest(checkpoint),
        "data": provenance.to_dict(),
        "split": split,
        "classes": names,
        "classes_of_the_data_only": [name for name in of_data if name not in names],
        "classes_of_the_model_only": [name for name in of_model if name not in names],
        "rows_left_out": int((~defined).sum()),
        "unlabeled_rows": int((given < 0).sum()),
        "protocols": results,
    }
    if candidates is not None and candidates.any():
        judged = candidates.any(axis=1)
        inside = candidates[np.arange(len(candidates)), shared.argmax(axis=1)]
        report["candidates"] = {"rows": int(judged.sum()), "accuracy": float(inside[judged].mean())}
    write_json(folder / METRICS_NAME, report)
    for name, metrics in results.items():
        title = f"{split}, protocol {name}: {metrics['accuracy']:.1%} of {metrics['rows']:,} images"
        plot_confusion_matrix(metrics["confusion_matrix"], names, folder / CONFUSION_MATRIX_NAME.format(name), title)
    state = RunFolder(checkpoint).trainer_state
    if state.is_file():
        plot_training_curves(
            read_json(state, {"log_history": [{str: object}]})["log_history"], RunFolder(folder).training_curves
        )
    return report


def default_out(checkpoint: str | Path, split: str) -> Path:
    """Where an evaluation goes: `evaluation-SPLIT` in the checkpoint's folder, where its model card finds it.

    For a model that is no folder of the user's it is `evaluation-NAME-SPLIT` in the current folder.
    """
    if Path(checkpoint).is_dir():
        return RunFolder(checkpoint).evaluation(split)
    return Path(f"evaluation-{Path(checkpoint).name}-{split}")


def shared_classes(of_model: list[str], of_data: list[str]) -> list[str]:
    """Names of the classes that model and data share, in the order of the model.

    Raises:
        ValueError: there are fewer than two.
    """
    shared = [name for name in of_model if name in of_data]
    if len(shared) < 2:
        raise ValueError(
            f"The checkpoint has the classes {', '.join(of_model)}; the data set has {', '.join(of_data)}: "
            "evaluation needs two in common. Use the same names in the config's id2label and in the data set."
        )
    return shared


def protocol_metrics(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, Any]:
    """All metrics of one protocol, ready for JSON.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,), all defined.
        names: K names.
    """
    metrics: dict[str, Any] = dict(classification_report(probabilities, labels))
    metrics["per_class_recall"] = dict(zip(names, metrics["per_class_recall"], strict=True))
    return {"rows": len(labels), **metrics}
