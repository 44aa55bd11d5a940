"""Metrics of facial expression recognition, in numpy. `FerMetrics` offers them as an `evaluate.Metric`.

`classification_report` computes all of them at once.

Every reference label must be defined: -1 is refused, because whoever leaves rows out should know how many.
"""

import numpy as np
from numpy.typing import ArrayLike


def classification_report(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float | list]:
    """All metrics of a classifier, as plain Python values that JSON can hold.

    Args:
        probabilities: (N, K), rows sum to 1; used in float32.
        labels: (N,) reference labels, 0 ... K-1.

    Returns:
        accuracy, mean_class_accuracy and ece (floats in 0 ... 1), per_class_recall (K values, None for a class without
        rows) and confusion_matrix (K lists of K counts: row = reference, column = prediction).

    Raises:
        ValueError: a label is undefined (-1) or not below K, a row is not a distribution, or there are no rows.
    """
    probabilities = np.asarray(probabilities, dtype=np.float32)
    predictions, num_classes = probabilities.argmax(axis=1), probabilities.shape[1]
    recall = per_class_recall(predictions, labels, num_classes)
    return {
        "accuracy": accuracy(predictions, labels),
        "mean_class_accuracy": mean_class_accuracy(predictions, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class_recall": [None if np.isnan(value) else float(value) for value in recall],
        "confusion_matrix": confusion_matrix(predictions, labels, num_classes).tolist(),
    }


def accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Share of rows whose predicted label (N,) is the reference label (N,)."""
    predictions, references = _check_labels(predictions, references)
    return float((predictions == references).mean())


def mean_class_accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Mean recall over the classes that occur among the references; labels are (N,) each."""
    predictions, references = _check_labels(predictions, references)
    num_classes = int(max(predictions.max(), references.max())) + 1
    return float(np.nanmean(per_class_recall(predictions, references, num_classes)))


def per_class_recall(predictions: ArrayLike, references: ArrayLike, num_classes: int) -> np.ndarray:
    """Share of each class's rows with a correct prediction, (num_classes,) float64; NaN for a class without rows."""
    matrix = confusion_matrix(predictions, references, num_classes)
    rows = matrix.sum(axis=1)
    return np.divide(matrix.diagonal(), rows, out=np.full(num_classes, np.nan), where=rows > 0)


def confusion_matrix(predictions: ArrayLike, references: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes) int64: row = reference label, column = predicted label."""
    predictions, references = _check_labels(predictions, references)
    if max(predictions.max(), references.max()) >= num_classes:
        raise ValueError(f"label {max(predictions.max(), references.max())} is not below num_classes={num_classes}")
    return np.bincount(references * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)


def expected_calibration_error(probabilities: ArrayLike, references: ArrayLike, num_bins: int = 15) -> float:
    """Expected calibration error of the predicted label (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    The largest probability p of each row falls into one of `num_bins` bins of equal width, ((b-1)/num_bins,
    b/num_bins]. The error is sum_b n_b/N * |accuracy of bin b - mean p of bin b|.

    Args:
        probabilities: (N, K), rows sum to 1.
        references: (N,) labels.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    total = probabilities.sum(axis=1)
    # softmax in bfloat16 misses 1 by up to about 1e-2
    wrong = np.flatnonzero(~((probabilities >= 0).all(axis=1) & (np.abs(total - 1) < 2e-2)))
    if wrong.size:
        raise ValueError(
            f"probabilities row {wrong[0]} is no probability distribution (sum {total[wrong[0]]:g});"
            " pass softmax probabilities, not logits"
        )
    predictions, references = _check_labels(probabilities.argmax(axis=1), references)
    largest = probabilities.max(axis=1)
    bins = np.digitize(largest, np.arange(1, num_bins) / num_bins, right=True)
    gap = np.bincount(bins, weights=(predictions == references) - largest)  # n_b * (accuracy - mean p)
    return float(np.abs(gap).sum() / len(references))


def label_recovery(confidence: ArrayLike, true_labels: ArrayLike) -> float:
    """Share of rows whose largest confidence is that of the true label, among rows with a known true label.

    Among equal confidences the first in class order counts, as in `ConfidenceTable.labels`. So the class order decides
    whether a tied row counts as recovered.

    Args:
        confidence: (N, K).
        true_labels: (N,), -1 = unknown.

    Raises ValueError if no true label is known.
    """
    confidence, true_labels = np.asarray(confidence), np.asarray(true_labels)
    known = true_labels >= 0
    return accuracy(confidence[known].argmax(axis=1), true_labels[known])


def _check_labels(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 1 or predictions.shape != references.shape:
        raise ValueError(f"predictions {predictions.shape} and references {references.shape} must be (N,) labels")
    if not len(references):
        raise ValueError("there are no rows to score")
    for name, labels in (("predictions", predictions), ("references", references)):
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integer labels, got {labels.dtype}")
        undefined = np.flatnonzero(labels < 0)
        if undefined.size:
            raise ValueError(
                f"{name} row {undefined[0]} is {labels[undefined[0]]}, an undefined label; leave such rows out"
                f" ({undefined.size} of {len(labels)})"
            )
    return predictions.astype(np.int64), references.astype(np.int64)
