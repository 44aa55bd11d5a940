import json
import math
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk

from fer_pll import (
    ConfidenceTable,
    FerPllForImageClassification,
    FerPllImageProcessor,
    FerPllTrainingArguments,
)
from fer_pll.labels.losses import pll_loss
from fer_pll.training.numbered_rows import NumberedRows
from fer_pll.training.pretraining import FerPllPreTrainer
from fer_pll.training.trainer import start_table
from siblings import siblings
from tiny import CLASSES, make_dataset, make_pretrainer, make_trainer


def first_rows(dataset: Dataset, number: int) -> list[dict]:
    """As the training's DataLoader reads them."""
    return NumberedRows(dataset).__getitems__(range(number))


def test_pll_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    confidence = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    loss = pll_loss(logits, confidence).mean()
    p = np.exp(logits.detach().numpy())
    p /= p.sum(axis=1, keepdims=True)
    assert loss.item() == pytest.approx(-(0.5 * np.log(p[0, 0] * p[0, 1]) + np.log(p[1, 2])) / 2, rel=1e-6)
    loss.backward()
    assert np.allclose(logits.grad.numpy(), (p - confidence.numpy()) / 2, atol=1e-6)


def test_training_learns_moves_every_parameter_and_logs_the_table(
    tmp_path, toy_config, toy_processor, toy_train, toy_validation
):
    trainer = make_trainer(
        tmp_path,
        toy_config,
        toy_processor,
        make_dataset(480),
        toy_validation,
        num_train_epochs=12,
        revision_warmup_epochs=6,
        logging_steps=15,
        flip=False,
        eval_strategy="epoch",
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    still = [n for n, p in trainer.model.named_parameters() if p.requires_grad and torch.equal(before[n], p)]
    # The bias of a key adds the same number to all scores of a query, so softmax gives it no gradient.
    assert [n for n in still if not n.endswith("k_proj.bias")] == []

    training_logs = [log for log in trainer.state.log_history if "loss" in log]
    assert {"revised_fraction", "confidence_entropy", "label_recovery"} <= training_logs[-1].keys()
    assert any("mean_margin" in log for log in training_logs)
    assert training_logs[-1]["revised_fraction"] > training_logs[0]["revised_fraction"]
    assert training_logs[-1]["confidence_entropy"] < training_logs[0]["confidence_entropy"]
    assert training_logs[-1]["label_recovery"] > training_logs[0]["label_recovery"] + 0.2
    evaluation = [log for log in trainer.state.log_history if "eval_accuracy" in log][-1]
    assert evaluation["eval_accuracy"] > 0.8
    assert {"eval_mean_class_accuracy", "eval_ece", "eval_loss"} <= evaluation.keys()


def test_a_step_revises_before_the_loss(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(
        tmp_path, toy_config, toy_processor, toy_train, revision_threshold=0.0, uniform_weight=0.0, flip=False
    )
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(first_rows(toy_train, 8)))
    with torch.no_grad():
        logits = trainer.model(batch["pixel_values"]).logits
        loss = trainer.compute_loss(trainer.model, dict(batch))
    start = torch.tensor(np.array(toy_train["candidates"][:8])).float()
    leader = (start * logits.sigmoid()).argmax(dim=1)  # threshold 0: every ambiguous row takes its leader
    expected = -logits.log_softmax(dim=1)[torch.arange(8), leader].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(trainer.table.labels()[:8], leader)


def test_warm_up_and_none_leave_the_table_alone(tmp_path, toy_config, toy_processor, toy_train):
    for settings in ({"revision": "none"}, {"revision_warmup_epochs": 5}):
        trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings)
        start = trainer.table.confidence.clone()
        trainer.train()
        assert torch.equal(trainer.table.confidence, start)


@pytest.mark.parametrize("uniform_weight", [0.0, 1.0])
def test_the_uniformity_term_is_added_with_its_weight(tmp_path, toy_config, toy_processor, toy_train, uniform_weight):
    trainer = make_trainer(
        tmp_path, toy_config, toy_processor, toy_train, revision="none", uniform_weight=uniform_weight, flip=False
    )
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(first_rows(toy_train, 8)))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        pll = pll_loss(trainer.model(batch["pixel_values"]).logits, trainer.table.lookup(batch["index"])).mean()
    at_simplex = 0.1 * np.log(3) - 1 / 3  # tau log(K - 1) - 1 / (K - 1), where the queries start
    assert (loss - pll).item() == pytest.approx(uniform_weight * at_simplex, abs=1e-5)


def test_batches_are_normalized_as_the_image_processor_does(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train)
    trainer.model.eval()
    rows = first_rows(toy_train, 4)
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    expected = toy_processor([row["image"] for row in rows], return_tensors="pt").pixel_values
    assert torch.allclose(batch["pixel_values"], expected, atol=1e-6)


@pytest.mark.parametrize("accumulation", siblings(2, 4))
def test_gradient_accumulation_changes_nothing(tmp_path, toy_config, toy_processor, toy_train, accumulation):
    runs = {}
    for steps in (1, accumulation):
        trainer = make_trainer(
            tmp_path,
            toy_config,
            toy_processor,
            toy_train,
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
            crop_scale=0.7,
            uniform_weight=0.5,
        )
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        runs[steps] = ([log["loss"] for log in logs], [log["grad_norm"] for log in logs], trainer.table.confidence)
    assert runs[1][0] == pytest.approx(runs[accumulation][0], rel=1e-4)
    assert runs[1][1] == pytest.approx(runs[accumulation][1], rel=1e-3)
    assert torch.equal(runs[1][2], runs[accumulation][2])


def test_a_resumed_run_ends_bit_for_bit_like_the_whole_one(tmp_path, toy_config, toy_processor, toy_train):
    settings = {"num_train_epochs": 4, "save_strategy": "epoch", "crop_scale": 0.7, "drop_path_rate": 0.2}
    toy_config.drop_path_rate = 0.2
    whole = make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings)
    whole.train()
    assert (tmp_path / "checkpoint-6" / "confidence.safetensors").is_file()
    resumed = make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(whole.table.confidence, resumed.table.confidence)
    assert torch.equal(whole.table.revised_epoch, resumed.table.revised_epoch)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_resuming_with_another_data_set_is_refused(tmp_path, toy_config, toy_processor, toy_train):
    make_trainer(tmp_path, toy_config, toy_processor, toy_train, save_strategy="epoch").train()
    other = make_trainer(tmp_path, toy_config, toy_processor, make_dataset(48, seed=7), save_strategy="epoch")
    with pytest.raises(ValueError, match="fingerprint"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_revised_data_set_round_trips(tmp_path, toy_config, toy_processor, toy_train):
    shuffled = toy_train.shuffle(seed=1)
    trainer = make_trainer(tmp_path, toy_config, toy_processor, shuffled, num_train_epochs=5)
    trainer.train()
    revised = trainer.revised_dataset()
    revised.save_to_disk(tmp_path / "revised")
    again = load_from_disk(tmp_path / "revised")
    table = trainer.table
    for place, (row, trained_on) in enumerate(zip(again, shuffled, strict=True)):
        assert row["row_id"] == trained_on["row_id"] and row["candidates"] == trained_on["candidates"]
        assert np.array_equal(np.float32(row["confidence"]), table.confidence[place].numpy())
        assert row["revised_epoch"] == table.revised_epoch[place]
    trainer.save_confidence()
    loaded = ConfidenceTable.load(tmp_path / "confidence.safetensors", CLASSES, table.fingerprint)
    assert torch.equal(loaded.confidence, table.confidence)


def test_the_table_has_the_order_of_the_rows_and_tells_them_apart(toy_train):
    table = start_table(toy_train, CLASSES, "votes")
    order = np.random.default_rng(3).permutation(len(toy_train))
    shuffled = start_table(toy_train.select(order), CLASSES, "votes")
    assert table.fingerprint != shuffled.fingerprint
    assert torch.equal(table.confidence[order], shuffled.confidence)
    assert torch.equal(table.candidates[order], shuffled.candidates)


def with_column(dataset: Dataset, name: str, values: list) -> Dataset:
    return dataset.remove_columns(name).add_column(name, values)


def test_data_that_does_not_fit_is_refused_before_training(tmp_path, toy_config, toy_processor, toy_train):
    def refused(dataset, match, **settings):
        with pytest.raises(ValueError, match=match):
            make_trainer(tmp_path / "run", toy_config, toy_processor, dataset, **settings)
        assert not (tmp_path / "run" / "confidence.safetensors").exists()

    refused(toy_train.remove_columns("candidates"), "no column 'candidates'")
    empty = [[False] * 4, *toy_train["candidates"][1:]]
    refused(with_column(toy_train, "candidates", empty), "row 0")
    refused(toy_train.remove_columns("votes"), "votes", confidence_init="votes")
    toy_config.id2label = {0: "left", 1: "right"}
    toy_config.label2id = {"left": 0, "right": 1}
    refused(toy_train, "4 classes, the model has 2")


def test_a_processor_that_does_not_match_the_model_is_refused(tmp_path, toy_config, toy_train):
    with pytest.raises(ValueError, match=r"image_std is .*config.json and .*preprocessor_config.json"):
        wrong = FerPllImageProcessor(num_channels=1, size={"height": 16, "width": 16}, image_std=[0.5])
        make_trainer(tmp_path, toy_config, wrong, toy_train)
    with pytest.raises(ValueError, match=r"16 x 16 pixels .*32 x 32"):
        wrong = FerPllImageProcessor(num_channels=1, size={"height": 32, "width": 32}, image_std=[0.25])
        make_trainer(tmp_path, toy_config, wrong, toy_train)


def test_a_threshold_that_cannot_fire_is_warned_about(tmp_path, toy_config, toy_processor, toy_train):
    with pytest.warns(UserWarning, match="can never fire"):
        make_trainer(tmp_path, toy_config, toy_processor, toy_train, revision_threshold=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_trainer(tmp_path, toy_config, toy_processor, toy_train, revision_threshold=0.2)


@pytest.mark.parametrize(("capability", "warnings_expected"), [("AVX2", 1), ("AVX512", 0)])
def test_a_cpu_that_is_slow_in_bfloat16_is_warned_about(tmp_path, monkeypatch, capability, warnings_expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True)
        FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert sum("--bf16 false" in str(warning.message) for warning in caught) == warnings_expected


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hub_token": "hf_secret"}, "HF_TOKEN"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"revision": "guess"}, "margin, margin_softmax, soft, none"),
        ({"revision_threshold": 1.0}, r"\[0, 1\)"),
        ({"loss": "guess"}, "loss='guess': choose one of cross_entropy, soft_votes, pll"),
        ({"class_balance": "guess"}, "none, sampler, logit_adjustment"),
        ({"revision_momentum": 1.0}, r"\[0, 1\)"),
        ({"loss": "pico", "method_settings": {"contrastive_temperature": 0.0}}, "contrastive_temperature=0.0 must be"),
        ({"loss": "pico", "method_settings": {"contrastive_temperature": "hot"}}, "contrastive_temperature': 'hot'"),
        ({"method_settings": {"contrastive_temperature": 0.1}}, "contrastive_temperature is no setting of loss='pll'"),
        ({"confidence_init": "random"}, "uniform, votes, column"),
        ({"crop_scale": 0.0}, "crop_scale"),
        ({"crop_ratio": 0.5}, "crop_ratio"),
        ({"crop_scale": 0.0}, r"crop_scale=0.0 must lie in \(0, 1\]"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 must lie in \(0, 1\]"),
        ({"erase": 1.5}, r"erase=1.5 must lie in \[0, 1\]"),
        ({"jpeg": 30}, r"jpeg=30 must lie in \[0, 1\]"),
        ({"erase": -1e-12}, r"erase=-1e-12 must lie in \[0, 1\]"),
        ({"light": -0.1}, r"light=-0.1 must lie in \[0, 1\]"),
        ({"uniform_temperature": 0.0}, "uniform_temperature"),
        ({"rotation": math.nan}, r"rotation=nan must lie in \[0, 180\]"),
        ({"rotation": -1}, r"rotation=-1 must lie in \[0, 180\]"),
        ({"crop_ratio": math.nan}, "crop_ratio=nan must be"),
        ({"crop_scale_max": math.inf}, "crop_scale_max=inf must be finite"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must not be negative"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be finite"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must not be negative"),
        ({"weight_decay": math.nan}, "weight_decay=nan must be finite"),
        ({"adam_beta1": 1.0}, r"adam_beta1=1.0 must lie in \[0, 1\)"),
        ({"adam_epsilon": 0.0}, "adam_epsilon=0.0 must be positive"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must not be negative"),
        ({"warmup_steps": math.nan}, "warmup_steps=nan must be finite"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size=0 must be at least 1"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps=-1 must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must not be negative"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be positive"),
        ({"num_train_epochs": math.nan}, "num_train_epochs=nan must be finite"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must lie in"),
        ({"unfreeze_after": math.nan}, "unfreeze_after=nan must be positive"),
        ({"uniform_weight": math.nan}, "uniform_weight=nan must not be negative"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 must lie in \[0, 1\)"),
        ({"loss": "dacl", "method_settings": {"center_weight": math.nan}}, "center_weight=nan must not be negative"),
        ({"loss": "mcr", "method_settings": {"instance_weight": math.inf}}, "instance_weight=inf must be finite"),
        ({"class_balance": "sampler", "train_sampling_strategy": "sequential"}, "train_sampling_strategy=sequential"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config: split_batches=True is refused"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config: dispatch_batches=True is refused"),
        ({"accelerator_config": {"even_batches": False}}, "accelerator_config: even_batches=False is refused"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize("mask_style", ["visible", "token"])
def test_pretraining_lowers_the_loss_and_resumes_exactly(tmp_path, toy_config, toy_processor, toy_train, mask_style):
    toy_config.mask_style = mask_style
    images = toy_train.select_columns("image")

    def make() -> FerPllPreTrainer:
        settings = {"num_train_epochs": 6, "crop_scale": 0.8, "logging_steps": 3, "save_strategy": "epoch"}
        return make_pretrainer(tmp_path, toy_config, toy_processor, images, **settings)

    whole = make()
    before = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    whole.train()
    losses = [log["loss"] for log in whole.state.log_history if "loss" in log]
    assert losses[-1] < 0.8 * losses[0]
    still = [n for n, p in whole.model.named_parameters() if p.requires_grad and torch.equal(before[n], p)]
    assert [n for n in still if not n.endswith("k_proj.bias")] == []

    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_saved_state_tells_the_whole_story(tmp_path, toy_config, toy_processor, toy_train, toy_validation):
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, toy_validation, eval_strategy="epoch")
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any("eval_accuracy" in entry for entry in log)
    assert FerPllForImageClassification.from_pretrained(tmp_path).config.id2label == dict(enumerate(CLASSES))
    assert FerPllImageProcessor.from_pretrained(tmp_path).num_channels == 1
