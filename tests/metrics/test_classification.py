import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fer_pll.metrics.classification import (
    accuracy,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    label_recovery,
    mean_class_accuracy,
    per_class_recall,
)

NUM_CLASSES = 5
labels = arrays(np.int64, 20, elements=st.integers(0, NUM_CLASSES - 1))


@given(predictions=labels, references=labels)
def test_agrees_with_sklearn(predictions, references):
    classes = list(range(NUM_CLASSES))
    expected = sklearn.metrics.confusion_matrix(references, predictions, labels=classes)
    assert (confusion_matrix(predictions, references, NUM_CLASSES) == expected).all()
    assert accuracy(predictions, references) == sklearn.metrics.accuracy_score(references, predictions)
    present = np.unique(references)
    recall = sklearn.metrics.recall_score(references, predictions, labels=present, average=None, zero_division=0)
    ours = per_class_recall(predictions, references, NUM_CLASSES)
    np.testing.assert_allclose(ours[present], recall)
    assert np.isnan(np.delete(ours, present)).all()
    assert mean_class_accuracy(predictions, references) == pytest.approx(recall.mean())
    if set(predictions) <= set(references) and len(present) > 1:
        expected = sklearn.metrics.balanced_accuracy_score(references, predictions)
        assert mean_class_accuracy(predictions, references) == pytest.approx(expected)


def test_by_hand():
    references, predictions = [0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 0, 2]
    assert accuracy(predictions, references) == 0.5
    assert mean_class_accuracy(predictions, references) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    np.testing.assert_equal(per_class_recall(predictions, references, 4), [2 / 3, 0.5, np.nan, 0])
    assert confusion_matrix(predictions, references, 4).tolist() == [
        [2, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 1, 0],
    ]


def test_ece_by_hand():
    # bins of width 1/15: .95 and .99 fall into the last, .60 into ((8)/15, 9/15], .61 into (9/15, 10/15]
    probabilities = [[0.95, 0.05], [0.01, 0.99], [0.60, 0.40], [0.39, 0.61]]
    references = [0, 0, 0, 1]  # right, wrong, right, right
    expected = (abs(1 - 1.94) + abs(1 - 0.60) + abs(1 - 0.61)) / 4
    assert expected_calibration_error(probabilities, references) == pytest.approx(expected)
    # one bin: |3 right - sum of p| / 4
    assert expected_calibration_error(probabilities, references, num_bins=1) == pytest.approx(abs(3 - 3.15) / 4)


@pytest.mark.parametrize(("references", "expected"), [([0, 0, 0, 1], 0.0), ([0, 0, 0, 0], 0.25), ([1, 1, 1, 1], 0.75)])
def test_ece_of_a_constant_prediction(references, expected):
    assert expected_calibration_error([[0.75, 0.25]] * 4, references) == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
def test_ece_agrees_with_a_loop_over_bins(seed):
    generator = np.random.default_rng(seed)
    probabilities, references = generator.dirichlet(np.ones(4), size=60), generator.integers(4, size=60)
    largest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == references
    expected = 0.0
    for b in range(15):
        inside = (largest > b / 15) & (largest <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - largest[inside].mean())
    assert expected_calibration_error(probabilities, references) == pytest.approx(expected)


def test_ece_puts_the_upper_edge_into_the_bin():
    # .4 = 6/15 belongs to (5/15, 6/15] with .39, apart from .41: (.4 + .39) right together, .41 wrong
    probabilities = [[0.4, 0.3, 0.3], [0.39, 0.31, 0.3], [0.41, 0.3, 0.29]]
    assert expected_calibration_error(probabilities, [0, 0, 1]) == pytest.approx((2 - 0.79 + 0.41) / 3)


@pytest.mark.parametrize("row", [[2.0, -1.0], [3.0, 1.0], [float("nan"), 0.5]])
def test_ece_refuses_logits(row):
    with pytest.raises(ValueError, match="probabilities row 1 is no probability distribution"):
        expected_calibration_error([[0.5, 0.5], row], [0, 1])


def test_label_recovery_over_rows_with_a_known_label():
    confidence = [[0, 1, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [1, 0, 0], [0, 0, 1]]
    assert label_recovery(confidence, [1, 0, 2, -1, 2]) == 0.75
    with pytest.raises(ValueError, match="no rows to score"):
        label_recovery(confidence, [-1] * 5)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 1, 1], [0, -1, -1], r"references row 1 is -1, an undefined label; leave such rows out \(2 of 3\)"),
        ([0, -1, 1], [0, 1, 1], "predictions row 1 is -1"),
        ([0, 1], [0, 1, 1], r"predictions \(2,\) and references \(3,\)"),
        ([], [], "no rows to score"),
        ([[0.1, 0.9]], [[0, 1]], r"must be \(N,\) labels"),
        ([0.0, 1.0], [0, 1], "predictions must be integer labels, got float64"),
    ],
)
def test_bad_labels_are_refused(predictions, references, message):
    for metric in (accuracy, mean_class_accuracy):
        with pytest.raises(ValueError, match=message):
            metric(predictions, references)
    for metric in (confusion_matrix, per_class_recall):
        with pytest.raises(ValueError, match=message):
            metric(predictions, references, 2)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match="label 2 is not below num_classes=2"):
        confusion_matrix([0, 2], [0, 1], 2)


OFFLINE = """
import sys
import fer_pll.commands.evaluate, fer_pll.training.trainer
assert "evaluate" not in sys.modules  # it takes seconds, and train_scripts/evaluate.py hides it: for FerMetrics only
import datasets, evaluate, json, numpy as np, socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = refuse
from fer_pll.metrics.fer_metrics import FerMetrics

generator = np.random.default_rng(0)
probabilities = generator.dirichlet(np.ones(4), size=90).astype(np.float32)
references = generator.integers(3, size=90)

class Rows(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=FerMetrics()._info().features)
    def _compute(self, predictions, references):
        return {"rows": len(references), "accuracy": -1.0}

results = {"at once": FerMetrics().compute(predictions=probabilities, references=references)}
metric, combined = FerMetrics(), evaluate.combine([FerMetrics(), Rows()])
for repetition in range(2):
    for start in range(0, 90, 32):
        batch = {"predictions": probabilities[start:start + 32], "references": references[start:start + 32]}
        metric.add_batch(**batch)
        combined.add_batch(**batch)
    results[f"in batches {repetition}"] = metric.compute()
    results[f"combined {repetition}"] = combined.compute()
try:
    metric.compute(predictions=probabilities[:2], references=[0, -1])
except ValueError as error:
    results["undefined"] = str(error)
results["after an error"] = metric.compute(predictions=probabilities, references=references)
np.savez(sys.argv[1] + ".npz", probabilities=probabilities, references=references)
json.dump(results, open(sys.argv[1], "w"), allow_nan=False)
"""


def test_fer_metrics_offline(tmp_path):
    """In a process of its own: no network, an empty Hugging Face cache."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "results.json"
    subprocess.run([sys.executable, "-c", OFFLINE, str(out)], env=environment, check=True)
    results = json.loads(out.read_text())
    inputs = np.load(f"{out}.npz")
    probabilities, references = inputs["probabilities"], inputs["references"]
    predictions = probabilities.argmax(axis=1)

    metrics = results["at once"]
    assert metrics["accuracy"] == sklearn.metrics.accuracy_score(references, predictions)
    recall = sklearn.metrics.recall_score(references, predictions, labels=[0, 1, 2], average=None)
    assert metrics["per_class_recall"][:3] == pytest.approx(recall.tolist()) and metrics["per_class_recall"][3] is None
    assert metrics["mean_class_accuracy"] == pytest.approx(recall.mean())
    matrix = sklearn.metrics.confusion_matrix(references, predictions, labels=range(4))
    assert metrics["confusion_matrix"] == matrix.tolist()
    assert metrics["ece"] == pytest.approx(expected_calibration_error(probabilities, references))
    assert classification_report(probabilities, references) == metrics
    assert set(metrics) == {"accuracy", "mean_class_accuracy", "ece", "per_class_recall", "confusion_matrix"}

    for repetition in range(2):
        assert results[f"in batches {repetition}"] == metrics
        combined = results[f"combined {repetition}"]
        assert combined["rows"] == 90 and combined["ece"] == metrics["ece"]
        assert combined["fer_metrics_accuracy"] == metrics["accuracy"]  # both have one: evaluate adds the names
    assert "references row 1 is -1" in results["undefined"]
    assert results["after an error"] == metrics
