"""Training on one's own data: classes, first confidences and warm-up come from what there is; nothing fails late."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file

import fer_pll_cli
from fer_pll import FerPllForImageClassification, FerPllTrainingArguments
from fer_pll.commands import finetune, prepare, pretrain
from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.dataset import save_dataset
from fer_pll.data.provenance import Provenance
from fer_pll.io.shipped import CHECKPOINTS, DEFAULT_NAME
from fer_pll.labels.candidates import from_votes
from fer_pll.training.config import check_output_folder
from fer_pll.training.idle_revision import warmup_is_over
from fer_pll.training.initialization import initialize
from fer_pll.training.trainer import default_confidence_init, start_table
from siblings import siblings
from tiny import CLASSES, make_dataset, make_trainer, tiny_config, tiny_processor


def renamed(dataset: Dataset, names: list[str]) -> Dataset:
    """The rows with other names for their classes, in the same order; `true_label` goes."""
    dataset = dataset.remove_columns("true_label")
    return dataset.cast(Features(dataset.features | {"label": ClassLabel(names=names)}))


def with_labels(dataset: Dataset, labels: list[int]) -> Dataset:
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def candidate_rows(number: int, seed: int = 0) -> Dataset:
    """As a table of paths and candidates gives them: no votes, no label."""
    rows = make_dataset(number, seed).remove_columns(["votes", "true_label"])
    return with_labels(rows, [-1] * number)


@pytest.fixture
def config(tmp_path):
    """A tiny configuration with eight classes that are not those of the data."""
    folder = tmp_path / "config"
    tiny_config(labels=[f"class {i}" for i in range(8)]).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "finetune.yaml").write_text(
        "num_train_epochs: 2\nper_device_train_batch_size: 16\nlearning_rate: 3.0e-3\neval_strategy: epoch\n"
        "revision: soft\nlogging_steps: 50\nmax_candidates: 6\nmin_votes: 1\n"
    )
    (folder / "pretrain.yaml").write_text("num_train_epochs: 2\nper_device_train_batch_size: 16\nlogging_steps: 50\n")
    return folder


@pytest.fixture
def command(tmp_path, config, capfd):
    """`command(name, data, out, *options)`: the status and what was said. `data` are the splits."""

    def run(name, data, out, *options, status=0):
        folder = tmp_path / f"data-{out}"
        save_dataset(DatasetDict(data), folder)
        argv = [name, "--config", config, "--data", folder, "--output_dir", tmp_path / out, "--use_cpu", *options]
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert fer_pll_cli.main([str(part) for part in argv]) == status
        return "\n".join([*capfd.readouterr(), *(str(each.message) for each in caught)])

    return run


# Classes


def test_the_model_has_the_classes_of_the_data(tmp_path, command):
    names = ["calm", "tense", "bored", "glad"]
    said = command("finetune", {"train": renamed(make_dataset(48), names)}, "run", "--num_train_epochs", "1")
    model = FerPllForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == dict(enumerate(names)) and model.config.label2id["glad"] == 3
    assert model.classifier.weight.shape[0] == model.label_queries.shape[0] == 4
    assert "saved in" in said and re.search(r"next: fer-pll audit \S+/run --out audit", said)


def test_weights_of_another_classifier_keep_their_rows_by_name_or_lose_them(tmp_path, command):
    first = renamed(make_dataset(48), ["happy", "sad", "angry", "bored"])
    command("finetune", {"train": first}, "first", "--num_train_epochs", "1")
    before = load_file(tmp_path / "first" / "model.safetensors")
    start = ("--init_from", str(tmp_path / "first"), "--max_steps", "1", "--learning_rate", "1e-9")
    start += ("--weight_decay", "0")
    rows = ("classifier.weight", "classifier.bias", "fer_pll.query_decoder.label_queries")

    # The same classes, one by a synonym, in another order.
    moved = renamed(make_dataset(48), ["bored", "anger", "happiness", "sad"])
    said = command("finetune", {"train": moved}, "moved", *start)
    assert "classes in another order: the rows of" in said
    after = load_file(tmp_path / "moved" / "model.safetensors")
    for name in rows:
        torch.testing.assert_close(after[name], before[name][[3, 2, 0, 1]], atol=1e-6, rtol=0, msg=name)

    # Others: even those with a known name get new rows, because the queries belong together.
    others = renamed(make_dataset(48), ["calm", "sad", "angry", "bored"])
    said = command("finetune", {"train": others}, "others", *start)
    lines = [line for line in said.splitlines() if "other classes: " in line]
    assert len(lines) == 1 and "are new, for calm, sad, angry, bored; the checkpoint has happy, sad" in lines[0]
    after = load_file(tmp_path / "others" / "model.safetensors")
    assert not any(torch.allclose(after[name], before[name], atol=1e-4) for name in rows[::2])
    queries = torch.nn.functional.normalize(after[rows[2]], dim=1)
    torch.testing.assert_close(queries @ queries.T, torch.eye(4) * 4 / 3 - 1 / 3, atol=1e-4, rtol=0)  # a new simplex
    encoder = "fer_pll.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(after[encoder], before[encoder], atol=1e-6, rtol=0)


def test_the_number_of_candidates_and_votes_fits_itself_to_the_data(caplog):
    votes = np.array([[1, 1, 0], [5, 2, 0], [1, 0, 0], [0, 2, 1]])
    features = Features(votes=List(Value("int32"), length=3), label=ClassLabel(names=list("abc")))
    rows = Dataset.from_dict({"votes": votes.tolist(), "label": [0, 0, 0, 1]}, features=features)
    found = np.array(add_candidates(rows, max_candidates=4, min_votes=2)["candidates"][:])
    assert found.tolist() == [[True, True, False], [True, True, False], [True, False, False], [False, True, False]]
    assert "2 of 4 rows have no label with min_votes 2" in caplog.text
    many = add_candidates(rows.select([1, 3]), max_candidates=2, min_votes=2)["candidates"][:]
    assert np.array_equal(many, from_votes(votes[[1, 3]], 2, 2))  # where there are enough, nothing changes


def test_training_rows_without_any_label_are_refused_by_the_loss_that_needs_it(tmp_path, command):
    plain = candidate_rows(48).remove_columns("candidates")
    said = command("finetune", {"train": plain}, "run", status=1)
    assert "error: 48 of 48 training rows have neither votes, candidates nor a label (-1)" in said
    said = command("finetune", {"train": candidate_rows(48)}, "other", "--loss", "cross_entropy", status=1)
    assert "undefined (-1) in 48 of 48 training rows" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "other" / "model.safetensors").exists()


# No validation split


def test_a_set_without_a_validation_split_trains_and_hears_how_to_get_one(tmp_path, command):
    best = ("--load_best_model_at_end", "true", "--save_strategy", "epoch")
    said = command("finetune", {"train": make_dataset(48)}, "run", *best)
    assert "has no split 'validation'" in said and "--validation-share 0.1" in said
    assert "eval_strategy" not in said and "eval_dataset" not in said
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "without evaluation" not in command(
        "finetune", {"train": make_dataset(48), "validation": make_dataset(16, seed=1)}, "with", "--max_steps", "1"
    )


def test_a_set_without_a_training_split_is_one_line(command):
    said = command("finetune", {"validation": make_dataset(16)}, "run", status=1)
    assert said.splitlines()[-1].startswith("error: ") and "has no split 'train', it has validation" in said


# First confidences


def test_the_first_confidences_are_by_default_what_the_data_have(toy_train):
    confidence = start_table(toy_train, CLASSES, "votes").confidence.numpy()
    with_column = toy_train.remove_columns("votes").add_column("confidence", list(confidence))
    assert default_confidence_init(toy_train) == "votes"
    assert default_confidence_init(with_column) == "column"
    assert default_confidence_init(with_column.remove_columns("confidence")) == "uniform"
    outside = [[0, 0, 0, 5] if not row[3] else [5, 0, 0, 0] if not row[0] else [0, 5, 0, 0]
               for row in toy_train["candidates"]]  # fmt: skip
    none_inside = toy_train.remove_columns("votes").add_column("votes", outside)
    assert default_confidence_init(none_inside) == "uniform"  # such votes say nothing about these candidates
    for rows, init in ((toy_train, "votes"), (with_column, "column")):
        assert torch.equal(start_table(rows, CLASSES).confidence, start_table(rows, CLASSES, init).confidence)


def test_a_start_that_cannot_be_served_names_the_others(toy_train):
    without = toy_train.remove_columns("votes")
    with pytest.raises(ValueError, match=r"'votes' needs the column 'votes'.*: choose uniform, or leave it out"):
        start_table(without, CLASSES, "votes")
    with pytest.raises(ValueError, match=r"needs the column 'confidence'.*: choose votes or uniform, or leave it out"):
        start_table(toy_train, CLASSES, "column")


def test_the_card_names_the_start_that_was_chosen(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, confidence_init=None)
    assert trainer.args.confidence_init is None and trainer.card_settings()["confidence_init"] == "votes"
    args = FerPllTrainingArguments.from_settings(json.loads(json.dumps(trainer.args.to_dict())))
    assert args.confidence_init is None


# Warm-up


@pytest.mark.parametrize("epochs", [2, 4])
def test_the_warm_up_is_a_share_of_any_training(tmp_path, toy_config, toy_processor, toy_train, epochs):
    def first_revision(**settings):
        trainer = make_trainer(
            tmp_path, toy_config, toy_processor, toy_train, num_train_epochs=epochs, revision="soft", **settings
        )
        steps, step = [], trainer.method.step

        def observed(batch):
            if batch.revising:
                steps.append(trainer.state.global_step)
            return step(batch)

        trainer.method.step = observed
        trainer.train()
        return steps[0], trainer.table.confidence

    share = first_revision(revision_warmup=0.5)
    assert share[0] == 3 * epochs / 2
    in_epochs = first_revision(revision_warmup_epochs=epochs / 2)
    assert in_epochs[0] == share[0] and torch.equal(in_epochs[1], share[1])
    assert first_revision(revision_warmup=0.5, max_steps=4)[0] == 2
    assert first_revision()[0] == 0


def test_a_third_of_the_training_is_a_number_of_epochs_step_by_step():
    """The settings of fer-pll-tiny-ferplus-quick: 0.3333 of 12 epochs are 4 of them, also with many steps each."""
    for steps in (3, 222, 889):
        over = [warmup_is_over(step, 12 * steps, steps, 0.3333, None) for step in range(12 * steps)]
        assert over.index(True) == 4 * steps
        assert [warmup_is_over(step, 12 * steps, steps, None, 4) for step in range(12 * steps)] == over


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"revision_warmup": 0.5, "revision_warmup_epochs": 1}, "two ways to set the same: give one"),
        ({"revision_warmup": 4}, r"revision_warmup=4 is a share of the training: it must lie in \[0, 1\]"),
        ({"revision_warmup_epochs": -1}, "must not be negative"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        FerPllTrainingArguments(str(tmp_path), use_cpu=True, **settings)


def test_either_way_to_set_the_warm_up_replaces_the_other_of_a_lower_place(tmp_path, config):
    def parse(*options, yaml="", settings=""):
        (config / "finetune.yaml").write_text(yaml)
        (tmp_path / "settings.yaml").write_text(settings)
        argv = ["--config", config, "--data", "d", "--output_dir", "run", "--use_cpu", *options]
        argv += ["--settings", tmp_path / "settings.yaml"]
        args = finetune.make_parser().parse_settings([str(part) for part in argv])[1]
        return args.revision_warmup, args.revision_warmup_epochs

    assert parse() == (0.0, None)
    assert parse(yaml="revision_warmup_epochs: 4\n") == (None, 4)
    assert parse("--revision_warmup", "0.2", yaml="revision_warmup_epochs: 4\n") == (0.2, None)
    assert parse("--revision_warmup_epochs", "3", yaml="revision_warmup: 0.5\n") == (None, 3)
    assert parse(yaml="revision_warmup: 0.5\n", settings="revision_warmup_epochs: 2\n") == (None, 2)
    assert parse("--revision_warmup", "0", yaml="revision_warmup: 0.5\n", settings="revision_warmup_epochs: 2\n") == (
        0,
        None,
    )
    with pytest.raises(ValueError, match="two ways to set the same"):
        parse("--revision_warmup", "0.2", "--revision_warmup_epochs", "3")


def test_settings_of_a_run_before_the_share_are_read(tmp_path):
    before = FerPllTrainingArguments(str(tmp_path), use_cpu=True).to_dict()
    del before["revision_warmup"]
    args = FerPllTrainingArguments.from_settings(
        before | {"revision_warmup_epochs": 4.0, "confidence_init": "uniform"}
    )
    assert (args.revision_warmup, args.revision_warmup_epochs) == (None, 4.0)
    assert args.card_settings()["revision_warmup_epochs"] == 4.0


AUDITED = [
    (
        ("--revision_warmup_epochs", "4"),
        "the warm-up (revision_warmup_epochs 4) takes all of the training, which has 2 epochs (6 steps)",
    ),
    (("--revision_warmup", "1"), "the warm-up (revision_warmup 1) takes all of the training"),
    (("--revision", "none"), "the rule is none (--revision none)"),
    (
        ("--revision", "margin", "--revision_threshold", "0.99"),
        "no candidate led by more than revision_threshold 0.99",
    ),
    ((), None),
]


@pytest.mark.parametrize(("options", "reason"), siblings(*AUDITED))
def test_a_run_that_revises_nothing_says_so_and_its_audit_too(tmp_path, command, capfd, options, reason):
    said = command("finetune", {"train": make_dataset(48)}, "run", *options)
    warned = "No confidence is revised in this training: " in said
    assert warned == (reason is not None and "warm-up" in reason)
    if warned:
        assert f"training: {reason}" in said
    if "0.99" in options:
        assert "can never fire for" in said
    assert fer_pll_cli.main(["audit", str(tmp_path / "run"), "--out", str(tmp_path / "audit")]) == 0
    said = capfd.readouterr().out
    if reason is None:
        assert "no row was revised" not in said
    else:
        assert f"no row was revised in this run, because {reason}" in said


def test_sets_of_one_candidate_leave_nothing_to_revise(command):
    rows = make_dataset(48)
    rows = rows.remove_columns("candidates").add_column("candidates", list(np.eye(4, dtype=bool)[rows["label"][:]]))
    said = command("finetune", {"train": rows}, "run", "--max_steps", "1")
    assert "is revised in this training: each of the 48 rows has one candidate, so there is nothing to choose" in said


# Rows without a label


@pytest.mark.parametrize("batch", [7, 24])
def test_rows_without_a_label_are_left_out_of_loss_and_accuracy_and_counted(
    tmp_path, toy_config, toy_processor, toy_train, toy_validation, batch
):
    labels = np.where(np.arange(24) % 3 == 0, -1, toy_validation["label"][:])
    trainer = make_trainer(
        tmp_path,
        toy_config,
        toy_processor,
        toy_train,
        with_labels(toy_validation, labels.tolist()),
        per_device_eval_batch_size=batch,
    )
    metrics = trainer.evaluate()
    logits = torch.from_numpy(trainer.predict(toy_validation).predictions)
    labeled = torch.from_numpy(labels) >= 0
    target = torch.from_numpy(labels)[labeled]
    expected = torch.nn.functional.cross_entropy(logits[labeled], target).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx((logits[labeled].argmax(1) == target).double().mean().item())
    assert metrics["eval_unlabeled_rows"] == 8
    inside = np.array(toy_validation["candidates"][:])[np.arange(24), logits.argmax(1)]
    assert metrics["eval_candidate_accuracy"] == pytest.approx(inside.mean())
    assert "eval_unlabeled_rows" not in trainer.evaluate(toy_validation)


def test_a_table_of_candidates_trains_is_judged_by_them_and_keeps_the_best_model(tmp_path, command, caplog):
    data = {"train": candidate_rows(48), "validation": candidate_rows(24, seed=1)}
    best = ("--load_best_model_at_end", "true", "--save_strategy", "epoch", "--num_train_epochs", "4")
    command("finetune", data, "run", *best)
    assert "the best model is the one with the highest candidate_accuracy, not loss" in caplog.text
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    evaluations = [entry for entry in log["log_history"] if "eval_candidate_accuracy" in entry]
    assert len(evaluations) == 4 and all(entry["eval_unlabeled_rows"] == 24 for entry in evaluations)
    assert not any("eval_loss" in entry or "eval_accuracy" in entry for entry in evaluations)
    assert log["best_metric"] == max(entry["eval_candidate_accuracy"] for entry in evaluations)

    argv = ["evaluate", str(tmp_path / "run"), str(tmp_path / "data-run"), "--device", "cpu"]
    assert fer_pll_cli.main(argv) == 0
    report = json.loads((tmp_path / "run" / "evaluation-validation" / "metrics.json").read_text())
    assert report["protocols"] == {} and report["unlabeled_rows"] == 24
    assert report["candidates"]["rows"] == 24
    assert report["candidates"]["accuracy"] == pytest.approx(log["best_metric"])
    assert fer_pll_cli.main(["audit", str(tmp_path / "run"), "--out", str(tmp_path / "audit")]) == 0


def test_rows_with_neither_label_nor_candidates_are_no_reason_to_crash(tmp_path, command, capfd):
    nothing = candidate_rows(24, seed=1).remove_columns("candidates")
    data = {"train": candidate_rows(48), "validation": nothing}
    command("finetune", data, "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    said = command("finetune", data, "best", "--load_best_model_at_end", "--save_strategy", "epoch", status=1)
    assert "error: metric_for_best_model='loss': no row of the evaluation set has a label" in said
    argv = ["evaluate", str(tmp_path / "run"), str(tmp_path / "data-run"), "--device", "cpu"]
    assert fer_pll_cli.main(argv) == 1
    assert "no row of the split 'validation' has a label" in capfd.readouterr().err


def test_the_summary_of_a_table_of_candidates_counts_its_classes():
    rows = candidate_rows(12)
    said = prepare.summary(DatasetDict(train=rows, validation=make_dataset(5, seed=1)))
    counts = np.array(rows["candidates"][:]).sum(axis=0)
    others = np.array(make_dataset(5, seed=1)["candidates"][:]).sum(axis=0)
    lines = [line.split() for line in said.splitlines()]
    assert "counted: the rows with the class among their candidates; 12 rows have no label" in said.splitlines()
    for name, *numbers in zip(CLASSES, counts, others, strict=True):
        assert [name, *map(str, numbers)] in lines
    assert "candidates" not in prepare.summary(DatasetDict(train=make_dataset(12)))


# Manners


def test_an_output_folder_is_asked_for(capsys):
    for parser in (finetune.make_parser(), pretrain.make_parser()):
        with pytest.raises(SystemExit) as stop:
            parser.parse_settings(["--data", "d"])
        assert stop.value.code == 2
        assert "the following arguments are required: --output_dir" in capsys.readouterr().err


def test_a_config_need_not_be_known():
    options, args = finetune.make_parser().parse_settings(["--data", "d", "--output_dir", "run", "--use_cpu"])
    assert (options.config, options.init_from) == ("fer-pll-tiny", "fer-pll-tiny-ferplus")
    assert args.revision_warmup == 0.5
    options, args = pretrain.make_parser().parse_settings(["--data", "d", "--output_dir", "run", "--use_cpu"])
    assert (options.config, options.init_from) == ("fer-pll-tiny", "fer-pll-tiny-vit-ferplus")


@pytest.mark.parametrize("start", [None, "fer-pll-tiny-vit-ferplus"])
def test_the_default_starts_from_weights_in_the_package_with_the_classes_of_the_data(
    start, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = ["--data", "d", "--output_dir", "run", "--use_cpu", *(("--init_from", start) if start else ())]
    options, args = finetune.make_parser().parse_settings(argv)
    model, image_processor = options.make_model(args, ["calm", "tense"])
    theirs = load_file(Path(CHECKPOINTS[start or DEFAULT_NAME]) / "model.safetensors")
    ours = {name: tensor for name, tensor in model.state_dict().items() if name in theirs}
    different = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name].to(tensor.dtype))}
    assert different == {"fer_pll.query_decoder.label_queries", "classifier.weight", "classifier.bias"}
    assert len(ours) == len(theirs) == len(model.state_dict()) and model.classifier.out_features == 2
    assert "other classes: " in capsys.readouterr().out and image_processor.face_crop is None
    assert initialize(FerPllForImageClassification, model.config, "none")[1] is None


def test_data_of_fer_plus_are_not_judged_in_silence_by_weights_that_saw_them(tmp_path, toy_train, caplog):
    options = finetune.make_parser().parse_settings(["--data", "d", "--output_dir", str(tmp_path / "r"), "--use_cpu"])
    rows = toy_train.select(range(8))
    options[0].make_trainer(options[1], rows)
    assert "has seen these rows" not in caplog.text
    Provenance(source="ferplus").attach(rows)
    options[0].make_trainer(options[1], rows)
    assert "fer-pll-tiny-ferplus was trained on FER+, so it has seen these rows" in caplog.text


def test_losses_and_curves_are_there_for_a_short_run(tmp_path, command):
    data = {"train": make_dataset(48), "validation": make_dataset(16, seed=1)}
    said = command("finetune", data, "run")  # six steps, and logging_steps is 50
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [3, 6]
    assert (tmp_path / "run" / "training_curves.png").is_file() and "training_curves.png" in said
    said = command("pretrain", {"train": make_dataset(48)}, "encoder", "--max_steps", "4")
    log = json.loads((tmp_path / "encoder" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [3, 4]
    assert "saved in" in said and "next: fer-pll finetune" in said


def test_losses_are_logged_as_before_where_epochs_are_long(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, num_train_epochs=3, logging_steps=3)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6, 9]
    quiet = make_trainer(tmp_path, toy_config, toy_processor, toy_train, logging_strategy="no")
    quiet.train()
    assert not any("loss" in entry for entry in quiet.state.log_history)


@pytest.mark.parametrize("name", siblings("finetune", "pretrain"))
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_read(tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    for folder in ("/proc/x", tmp_path / "file", tmp_path / "file" / "run"):
        argv = [name, "--data", "there-is-none", "--output_dir", str(folder), "--use_cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "fer_pll_cli", *argv], capture_output=True, text=True, env=os.environ
        ) if folder == "/proc/x" else None  # fmt: skip
        if done is not None:
            assert done.returncode == 1
            said = done.stderr.strip().splitlines()
            assert len(said) == 1 and said[0].startswith(f"error: {folder} cannot be written")
            assert "Traceback" not in done.stderr
        args = FerPllTrainingArguments(str(folder), use_cpu=True)
        with pytest.raises(ValueError, match=f"{folder} cannot be (written|a folder, because .* is a file)"):
            check_output_folder(args)


def test_the_check_of_the_folder_leaves_no_trace(tmp_path):
    check_output_folder(FerPllTrainingArguments(str(tmp_path / "a" / "b"), use_cpu=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("saved", [True, False])
def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path, config, saved):
    save_dataset(DatasetDict(train=make_dataset(480)), tmp_path / "data")
    argv = ["finetune", "--config", config, "--data", tmp_path / "data", "--output_dir", tmp_path / "run", "--use_cpu"]
    argv += ["--num_train_epochs", 1000, "--logging_steps", 1, "--save_total_limit", 1]
    argv += ["--save_strategy", "steps" if saved else "no", "--save_steps", 5, "--dataloader_num_workers", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "fer_pll_cli", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C goes to all processes of a terminal
    )
    try:
        steps = 0
        for line in process.stdout:
            steps += "'loss'" in line
            if steps >= 12:
                break
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130, errors[-3000:]
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    way = r"It is saved in (\S+/run/checkpoint-\1); the same command goes on from there"
    way = rf"SIGINT has stopped the run after step (\d+) of 30000\. {way} with --resume_from_checkpoint last\."
    told = re.fullmatch(way, last)
    assert told and Path(told[2], "model.safetensors").is_file(), last  # also where the run saves none by itself
