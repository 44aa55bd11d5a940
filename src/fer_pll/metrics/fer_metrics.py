"""`FerMetrics`, apart from metrics.py because `import evaluate` takes seconds."""

import datasets
import numpy as np

import evaluate

from . import classification as metrics


class FerMetrics(evaluate.Metric):
    """All metrics of an expression classifier, as an `evaluate.Metric` that needs no network: `FerMetrics()`.

    Predictions are class probabilities (N, K), references labels (N,); an undefined label (-1) is refused.
    `compute` returns accuracy, mean_class_accuracy and ece (floats in 0 ... 1), per_class_recall (K values, None for
    a class without rows) and confusion_matrix (K lists of K counts: row = reference, column = prediction), all as
    plain Python values that JSON can hold.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, mean class accuracy, recall, confusion matrix and calibration of a classifier.",
            citation="",
            inputs_description=self.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float | list]:
        probabilities = np.asarray(predictions, dtype=np.float32)
        labels, num_classes = probabilities.argmax(axis=1), probabilities.shape[1]
        recall = metrics.per_class_recall(labels, references, num_classes)
        return {
            "accuracy": metrics.accuracy(labels, references),
            "mean_class_accuracy": metrics.mean_class_accuracy(labels, references),
            "ece": metrics.expected_calibration_error(probabilities, references),
            "per_class_recall": [None if np.isnan(value) else float(value) for value in recall],
            "confusion_matrix": metrics.confusion_matrix(labels, references, num_classes).tolist(),
        }
