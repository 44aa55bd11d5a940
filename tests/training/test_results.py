"""What a training leaves to its user: the revised data set, the best model's table, logs for TensorBoard."""

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_pll import ConfidenceTable
from fer_pll.commands.finetune import build
from fer_pll.data.dataset import load_dataset
from tiny import CLASSES, make_dataset, make_trainer

ADDED = ["confidence", "revised_epoch", "initial_candidates"]


@pytest.fixture
def trained(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(tmp_path / "first", toy_config, toy_processor, toy_train, revision_threshold=0.05)
    trainer.train()
    assert 0 < (trainer.table.revised_epoch >= 0).sum() < 48
    return trainer


def test_the_revised_data_set_adds_three_columns_and_keeps_the_others(trained, toy_train):
    revised = trained.revised_dataset()
    assert revised.column_names == [*toy_train.column_names, *ADDED]
    for name in toy_train.column_names:
        assert revised.features[name] == toy_train.features[name]
    assert revised["candidates"][:] == revised["initial_candidates"][:] == toy_train["candidates"][:]
    confidence = np.array(revised["confidence"][:], dtype=np.float32)
    assert np.array_equal(confidence, trained.table.confidence.numpy())


def test_it_round_trips_through_save_to_disk_and_parquet(tmp_path, trained):
    revised = trained.revised_dataset()
    revised.save_to_disk(tmp_path / "disk")
    revised.to_parquet(tmp_path / "revised.parquet")
    for again in (load_from_disk(tmp_path / "disk"), Dataset.from_parquet(str(tmp_path / "revised.parquet"))):
        assert again.features == revised.features
        for name in ADDED:
            assert again[name][:] == revised[name][:]


def test_it_is_read_back_as_a_prepared_set(tmp_path, trained):
    revised = trained.revised_dataset()
    revised.save_to_disk(tmp_path / "revised")
    again = load_dataset(tmp_path / "revised")
    assert list(again) == ["train"] and again["train"]["confidence"][:] == revised["confidence"][:]
    argv = ["--config", "fer-pll-tiny", "--data", tmp_path / "revised", "--output_dir", tmp_path / "next"]
    trainer, _ = build([str(each) for each in (*argv, "--confidence_init", "column", "--use_cpu", "true")])
    assert torch.equal(trainer.table.confidence, trained.table.confidence)


@pytest.mark.parametrize("way", ["disk", "parquet"])
def test_another_training_starts_from_it(tmp_path, trained, toy_config, toy_processor, way):
    revised = trained.revised_dataset()
    if way == "disk":
        revised.save_to_disk(tmp_path / "disk")
        again = load_from_disk(tmp_path / "disk")
    else:
        revised.to_parquet(tmp_path / "revised.parquet")
        again = Dataset.from_parquet(str(tmp_path / "revised.parquet"))
    second = make_trainer(tmp_path / "second", toy_config, toy_processor, again, confidence_init="column")
    assert torch.equal(second.table.confidence, trained.table.confidence)
    assert (second.table.revised_epoch == -1).all()
    second.train()
    third = second.revised_dataset()
    assert third["initial_candidates"][:] == revised["initial_candidates"][:]
    decided = trained.table.confidence.max(dim=1).values == 1
    assert torch.equal(second.table.confidence[decided], trained.table.confidence[decided])


def test_confidences_that_do_not_fit_their_candidates_are_refused(tmp_path, trained, toy_config, toy_processor):
    revised = trained.revised_dataset()
    outside = revised.remove_columns("confidence").add_column("confidence", [[0.25] * 4] * 48)
    with pytest.raises(ValueError, match=r"confidence row 0 .* zero outside the row's candidates"):
        make_trainer(tmp_path, toy_config, toy_processor, outside, confidence_init="column")
    with pytest.raises(ValueError, match="needs the column 'confidence'"):
        make_trainer(
            tmp_path, toy_config, toy_processor, revised.remove_columns("confidence"), confidence_init="column"
        )


def test_with_load_best_model_at_end_it_is_the_table_of_the_model_that_is_loaded(
    tmp_path, toy_config, toy_processor, toy_train, toy_validation
):
    trainer = make_trainer(
        tmp_path,
        toy_config,
        toy_processor,
        toy_train,
        toy_validation,
        num_train_epochs=6,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        flip=False,
        revision_threshold=0.05,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-18")
    saved, last = (
        ConfidenceTable.load(f"{folder}/confidence.safetensors", CLASSES, trainer.table.fingerprint)
        for folder in (best, tmp_path / "checkpoint-18")
    )
    assert not torch.equal(saved.confidence, last.confidence)
    for revised, table in ((trainer.revised_dataset(), saved), (trainer.revised_dataset(last=True), last)):
        assert np.array_equal(np.float32(revised["confidence"][:]), table.confidence.numpy())
        assert revised["revised_epoch"][:] == table.revised_epoch.tolist()
    trainer.save_confidence()
    stored = ConfidenceTable.load(tmp_path / "confidence.safetensors", CLASSES, trainer.table.fingerprint)
    assert torch.equal(stored.confidence, saved.confidence)


def test_tensorboard_gets_the_figures_of_the_table(tmp_path, monkeypatch, toy_config, toy_processor, toy_train):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(
        tmp_path, toy_config, toy_processor, toy_train, revision_threshold=0.05, report_to=["tensorboard"]
    )
    trainer.train()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    for name in ("revised_fraction", "mean_margin", "confidence_entropy", "label_recovery"):
        reported = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert reported == pytest.approx({log["step"]: log[name] for log in logged if name in log}, rel=1e-6)
        assert len(reported) > 3


def test_what_is_logged_is_what_the_table_holds(trained):
    table, log = trained.table, [log for log in trained.state.log_history if "loss" in log][-1]
    ambiguous = table.candidates.sum(dim=1) > 1
    assert log["revised_fraction"] == int((table.revised_epoch >= 0).sum()) / int(ambiguous.sum())
    assert log["confidence_entropy"] == pytest.approx(table.entropy().mean().item(), abs=1e-6)
    truth = torch.tensor(trained.train_dataset["true_label"][:])
    assert log["label_recovery"] == (table.labels() == truth).double().mean().item()


def test_a_class_order_that_is_not_the_models_is_refused(tmp_path, toy_config, toy_processor, toy_train):
    names = ["right", "left", "top", "bottom"]
    toy_config.id2label = dict(enumerate(names))
    toy_config.label2id = {name: i for i, name in enumerate(names)}
    with pytest.raises(ValueError, match="classes are left, right, top, bottom; the model's are right, left"):
        make_trainer(tmp_path, toy_config, toy_processor, toy_train)


def test_a_table_of_another_data_set_is_refused_before_anything_is_written(
    tmp_path, toy_config, toy_processor, toy_train
):
    make_trainer(tmp_path, toy_config, toy_processor, toy_train, save_strategy="epoch").train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = make_trainer(tmp_path, toy_config, toy_processor, make_dataset(48, seed=7), save_strategy="epoch")
    with pytest.raises(ValueError, match="fingerprint"):
        other.check_checkpoint(str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="fingerprint"):
        other.train(resume_from_checkpoint=True)
    pico = make_trainer(tmp_path, toy_config, toy_processor, toy_train, loss="pico")
    with pytest.raises(ValueError, match="another loss than 'pico'"):
        pico.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
