"""A loss that becomes NaN ends a training, with its state saved and its rows named."""

import json
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fer_pll.training.checkpoints import NonFiniteLossError, last_checkpoint
from tiny import make_dataset, make_pretrainer, make_trainer

HUGE = 2e38  # weights become finite numbers whose products are not


@pytest.fixture
def named_images() -> Dataset:
    return make_dataset(48).select_columns(["image", "row_id"])


class Spoiler(TrainerCallback):
    """Multiplies weights before a step, as a learning rate that is much too high would."""

    def __init__(self, step: int, factor: float):
        self.step, self.factor = step, factor

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                model.fer_pll.layers[0].mlp.fc1.weight.mul_(self.factor)


def stop(trainer, step: int, factor: float) -> tuple[str, dict]:
    trainer.add_callback(Spoiler(step, factor))
    with pytest.raises(NonFiniteLossError) as stopped:
        trainer.train()
    report = json.loads((Path(trainer.args.output_dir) / "non_finite_loss.json").read_text())
    return str(stopped.value), report


def test_pre_training_can_go_on_from_before_the_step(tmp_path, toy_config, toy_processor, named_images):
    """Finite weights can overflow: what the step began with is a checkpoint."""
    trainer = make_pretrainer(tmp_path, toy_config, toy_processor, named_images, seed=3)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.append([row["row_id"] for row in rows]) or collate(rows)
    message, report = stop(trainer, 4, HUGE)
    assert report == {"step": 4, "epoch": 1.0, "checkpoint": str(tmp_path / "checkpoint-3"), "rows": seen[3]}
    assert "step 4" in message and seen[3][0] in message and "checkpoint-3. Go on" in message
    assert last_checkpoint(tmp_path) == report["checkpoint"]
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    # No step was taken with gradients that are not finite, none is lost.
    optimizer = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt")
    assert all(state["step"] == 3 and state["exp_avg"].isfinite().all() for state in optimizer["state"].values())

    again = make_pretrainer(tmp_path, toy_config, toy_processor, named_images, seed=3)
    with pytest.raises(NonFiniteLossError):
        again.train(resume_from_checkpoint=report["checkpoint"])
    weights["fer_pll.layers.0.mlp.fc1.weight"] /= HUGE
    save_file(weights, tmp_path / "checkpoint-3" / "model.safetensors", {"format": "pt"})
    (tmp_path / "checkpoint-3" / "checksums.json").unlink()  # of the weights as they were written
    again.train(resume_from_checkpoint=report["checkpoint"])
    assert again.state.global_step == 6


def test_weights_that_are_not_finite_do_not_become_a_checkpoint(tmp_path, toy_config, toy_processor, named_images):
    trainer = make_pretrainer(tmp_path, toy_config, toy_processor, named_images, save_strategy="steps", save_steps=2)
    message, report = stop(trainer, 4, float("nan"))
    assert "The weights are not finite either; the last checkpoint is" in message
    assert report["checkpoint"] == str(tmp_path / "checkpoint-2") and not (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize(("loss", "saved"), [("proden", True), ("pico", False)])
def test_fine_tuning_saves_nothing_that_is_not_finite(tmp_path, toy_config, toy_processor, toy_train, loss, saved):
    """No revision rule takes NaN into the confidences. The prototypes of PiCO have moved when the loss is known."""
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, loss=loss, save_strategy="epoch")
    message, report = stop(trainer, 5, HUGE)
    assert report["step"] == 5 and len(report["rows"]) == 16 and report["rows"][0].startswith("row:")
    assert ("not finite either" in message) == (not saved)
    assert last_checkpoint(tmp_path) == report["checkpoint"] == str(tmp_path / f"checkpoint-{4 if saved else 3}")
    assert trainer.table.confidence.isfinite().all()


class Breaker(TrainerCallback):
    """Breaks a weight after a step, as an update of the optimizer can although the loss was finite."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.label_queries[0, 0] = torch.nan


@pytest.mark.parametrize(("step", "ending"), [(4, "the last checkpoint is .*checkpoint-2"), (6, "checkpoint-4")])
def test_weights_that_a_last_step_broke_are_not_saved(tmp_path, toy_config, toy_processor, toy_train, step, ending):
    """Neither in a checkpoint, step 4, nor at the end of the run, step 6."""
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "max_steps": 6}
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings)
    trainer.add_callback(Breaker(step))
    with pytest.raises(NonFiniteLossError, match=f"not finite after step {step}, so they are not saved; .*{ending}"):
        trainer.train()
    assert not (tmp_path / f"checkpoint-{step}").exists()


def test_without_a_checkpoint_the_advice_is_to_start_again(tmp_path, toy_config, toy_processor, toy_train):
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, save_strategy="no", max_steps=3)
    trainer.add_callback(Breaker(3))
    with pytest.raises(NonFiniteLossError, match=r"there is no checkpoint\. Start again with --overwrite"):
        trainer.train()


def test_the_log_says_how_many_images_a_second(tmp_path, toy_config, toy_processor, named_images):
    trainer = make_pretrainer(tmp_path, toy_config, toy_processor, named_images)
    start = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - start
    logs = [log for log in trainer.state.log_history if "loss" in log]
    seconds = sum(16 / log["images_per_second"] for log in logs)
    assert 0.3 * took < seconds < 1.02 * took  # rounded
    assert all({"loss", "learning_rate", "grad_norm", "epoch"} <= log.keys() for log in logs)
