"""`FerMetrics`: our metrics for users of the library `evaluate`.

Nothing else imports that library: the import takes seconds, and a script named evaluate.py hides it.
"""

import datasets

import evaluate

from .classification import classification_report


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
        return classification_report(predictions, references)
