"""Temperatures: the best one, folded in for all who use the checkpoint, and told on its card."""

import json

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from transformers import AutoModelForImageClassification, pipeline

from fer_pll import FerPllForImageClassification
from fer_pll.commands import calibrate
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.data.splits import HELD_OUT, hold_out
from fer_pll.hub.card import folder_card
from fer_pll.io.errors import DataError
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.metrics.calibration import LIMITS, fit_temperature, fold_balance, fold_temperature
from fer_pll.metrics.classification import expected_calibration_error
from tiny import CLASSES, make_dataset


def drawn(temperature: float, rows: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times those that the labels are drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(rows, 5))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_by_comes_back(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2))
def test_no_temperature_makes_the_labels_more_likely(seed, other):
    logits, labels = drawn(1.0, rows=30, seed=seed)
    best = fit_temperature(logits, labels)

    def loss(temperature):
        return -log_softmax(logits / temperature, axis=1)[np.arange(30), labels].mean()

    assert LIMITS[0] <= best <= LIMITS[1]
    assert loss(best) <= loss(np.clip(best * other, *LIMITS)) + 1e-9


def test_labels_that_are_always_right_end_at_the_limit():
    logits = np.eye(3)[[0, 1, 2]]
    assert fit_temperature(logits, np.array([0, 1, 2])) == pytest.approx(LIMITS[0], rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "said"), [([], "at least 1"), ([0], "at least 1"), ([0, 3], r"0\.\.2"), ([0, -1], "not defined")]
)
def test_labels_that_fit_no_logits_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        fit_temperature(np.zeros((2, 3)), np.array(labels, dtype=int))


def test_a_folded_temperature_divides_the_logits(toy_config):
    torch.manual_seed(0)
    model = FerPllForImageClassification(toy_config).eval()
    torch.nn.init.normal_(model.classifier.bias)
    images = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        before = model(images).logits
        fold_temperature(model, 2.0)
        fold_temperature(model, 1.5)
        torch.testing.assert_close(model(images).logits, before / 3)


def test_a_folded_balance_takes_the_frequency_of_the_classes_out(toy_config):
    torch.manual_seed(0)
    model = FerPllForImageClassification(toy_config).eval()
    images, shares = torch.randn(4, 1, 16, 16), [0.6, 0.2, 0.15, 0.05]
    with torch.no_grad():
        before = model(images).logits
        fold_balance(model, shares, 1.0)
        after = model(images).logits
        with pytest.raises(ValueError, match="class 2 has no share"):
            fold_balance(model, [0.5, 0.5, 0, 0], 1.0)
    # p(k | x) / share(k), up to what is the same for all classes
    expected = before.softmax(dim=1) / torch.tensor(shares)
    torch.testing.assert_close(after.softmax(dim=1), expected / expected.sum(dim=1, keepdim=True))


def test_held_out_rows_are_no_training_rows():
    data = DatasetDict(train=make_dataset(48), validation=make_dataset(8, seed=1))
    parts = hold_out(data, 0.25, seed=3)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 36, "validation": 8, HELD_OUT: 12}
    ids = {name: parts[name]["row_id"][:] for name in ("train", HELD_OUT)}
    assert sorted(ids["train"] + ids[HELD_OUT]) == sorted(data["train"]["row_id"][:])
    assert ids["train"] == [row for row in data["train"]["row_id"] if row in set(ids["train"])]
    assert hold_out(data, 0.25, seed=3)[HELD_OUT]["row_id"][:] == ids[HELD_OUT]
    for share in (0.0, 0.001, 1.0):
        with pytest.raises(DataError, match=f"--hold-out {share} of 48"):
            hold_out(data, share)


def test_calibrate_saves_a_checkpoint_whose_probabilities_are_right(toy_config, toy_processor, tmp_path, capsys):
    torch.manual_seed(0)
    model = FerPllForImageClassification(toy_config)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    model.save_pretrained(tmp_path / "model")
    toy_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training.json").write_text(json.dumps({"data": "Toys", "settings": {"loss": "pll"}}))
    rows = make_dataset(96)
    with torch.no_grad():  # three of four labels as the model has them
        said = model.eval()(**toy_processor(rows["image"][:], return_tensors="pt")).logits.argmax(dim=1).numpy()
    labels = np.where(np.arange(96) % 4 == 0, rows["label"][:], said)
    rows = rows.remove_columns("label").add_column("label", labels, feature=rows.features["label"])
    save_dataset(hold_out(DatasetDict(train=rows), 0.5), tmp_path / "data")
    command = [str(tmp_path / "model"), str(tmp_path / "data"), "--out", str(tmp_path / "calibrated"), "--half"]
    calibrate.main(command)

    record = json.loads((tmp_path / "calibrated" / "training.json").read_text())
    calibration = record["calibration"]
    assert record["data"] == "Toys" and calibration["rows"] == 48
    assert LIMITS[0] < calibration["temperature"] < LIMITS[1]
    assert f"temperature {calibration['temperature']:.3f}" in capsys.readouterr().out
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "calibrated", trust_remote_code=False)
    assert saved.dtype == torch.float32
    size = (tmp_path / "calibrated" / "model.safetensors").stat().st_size
    assert size < 0.6 * (tmp_path / "model" / "model.safetensors").stat().st_size

    rows = load_dataset(tmp_path / "data", HELD_OUT)
    answers = {}
    for name in ("model", "calibrated"):
        classify = pipeline("image-classification", model=str(tmp_path / name), trust_remote_code=False)
        answers[name] = [{each["label"]: each["score"] for each in answer} for answer in classify(rows["image"][:])]
    before, after = (np.array([[row[label] for label in CLASSES] for row in answers[name]]) for name in answers)
    expected = softmax(np.log(before) / calibration["temperature"], axis=1)
    np.testing.assert_allclose(after, expected, atol=5e-3)  # float16
    labels = np.array(rows["label"][:])
    for shares, when in ((before, "before"), (after, "after")):
        error = expected_calibration_error(shares, labels)
        assert error == pytest.approx(calibration[f"ece_{when}"], abs=5e-3)
    picked = [np.log(shares[np.arange(48), labels]).mean() for shares in (before, after)]
    assert picked[1] > picked[0]
    card = str(folder_card(tmp_path / "calibrated", "someone/toy"))
    assert f"the temperature {calibration['temperature']:.3f}, fitted on 48 images" in card

    confidence = ConfidenceTable.from_candidates(np.array([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=bool), CLASSES, "toys")
    confidence.save(tmp_path / "model" / "confidence.safetensors")
    calibrate.main([*command[:3], str(tmp_path / "balanced"), "--balance", "0.5"])
    balanced = AutoModelForImageClassification.from_pretrained(tmp_path / "balanced", trust_remote_code=False)
    bias = (
        balanced.classifier.bias
        * json.loads((tmp_path / "balanced" / "training.json").read_text())["calibration"]["temperature"]
    )
    torch.testing.assert_close(bias, torch.full((4,), -0.5 * np.log(0.25)).float())  # alike for all: equal shares
    assert "lowered by 0.5 times the logarithm" in str(folder_card(tmp_path / "balanced", "someone/toy"))

    with pytest.raises(ValueError, match="holds files already"):
        calibrate.main(command)
    with pytest.raises(ValueError, match="no split 'held_out'"):
        save_dataset(DatasetDict(train=make_dataset(8)), tmp_path / "other")
        calibrate.main([command[0], str(tmp_path / "other"), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
