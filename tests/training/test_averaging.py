"""The moving average of the weights: its formula, what is evaluated and saved, and an exact resume."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from fer_pll import FerPllForImageClassification
from fer_pll.training.averaging import WeightAverage
from tiny import make_dataset, make_trainer

DECAY = 0.8


def test_the_average_is_that_of_the_formula_also_for_buffers_and_tied_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied: must not be averaged twice
    average = WeightAverage(model, 0.6)
    expected = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
    for step in range(1, 12):
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.data.add_(torch.randn_like(tensor))
        average.update(step)
        momentum = min(0.6, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = momentum * expected[name] + (1 - momentum) * tensor.double()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.exchange()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-5, rtol=1e-5)
    average.exchange()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


class Naive(TrainerCallback):
    """Keeps every step's weights."""

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.steps = []
        self.on_step_end(args, state, control, model)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def average(self, decay: float) -> dict[str, torch.Tensor]:
        result = {name: p.double() for name, p in self.steps[0].items()}
        for step, weights in enumerate(self.steps[1:], start=1):
            momentum = min(decay, (1 + step) / (10 + step))
            result = {name: momentum * result[name] + (1 - momentum) * p.double() for name, p in weights.items()}
        return result


@pytest.fixture
def averaged(tmp_path, toy_config, toy_processor, toy_validation):
    def make(folder="run", rows=50, **settings):
        return make_trainer(
            tmp_path / folder,
            toy_config,
            toy_processor,
            make_dataset(rows),
            toy_validation,
            average_decay=DECAY,
            **settings,
        )

    return make


def test_evaluations_checkpoints_and_the_final_model_have_the_average(averaged):
    trainer, naive = averaged(save_strategy="epoch", eval_strategy="epoch"), Naive()
    trainer.add_callback(naive)
    trainer.train()
    expected, last = naive.average(DECAY), naive.steps[-1]
    state = dict(trainer.model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(state[name], last[name]) for name in last)

    checkpoint = trainer.run_folder.checkpoint(trainer.state.global_step)
    saved = dict(FerPllForImageClassification.from_pretrained(checkpoint.path).named_parameters())
    assert all(torch.equal(saved[name], state[name]) for name in saved)
    going_on = load_file(checkpoint.last_weights)
    assert all(torch.equal(going_on[name], last[name]) for name in last)
    logged = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log][-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged, abs=1e-6)


def test_training_itself_is_that_without_an_average(averaged, tmp_path, toy_config, toy_processor, toy_validation):
    trainer, naive = averaged(eval_strategy="epoch"), Naive()
    trainer.add_callback(naive)
    trainer.train()
    plain = make_trainer(
        tmp_path / "plain", toy_config, toy_processor, make_dataset(50), toy_validation, eval_strategy="epoch"
    )
    plain.train()
    assert all(torch.equal(naive.steps[-1][name], p) for name, p in plain.model.named_parameters())
    assert torch.equal(trainer.table.confidence, plain.table.confidence)


@pytest.mark.parametrize("loss", ["pll", "pico"])  # pico keeps a part of the model in a file of its own
def test_a_resumed_run_ends_bit_for_bit_like_the_whole_one(averaged, loss):
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch", "loss": loss}
    whole = averaged("whole", **settings)
    whole.train()
    resumed = averaged("resumed", **settings)
    resumed.train(resume_from_checkpoint=str(whole.run_folder.checkpoint(3).path))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert torch.equal(whole.table.confidence, resumed.table.confidence)


def test_the_best_model_is_an_average_and_is_not_averaged_again(averaged):
    trainer = averaged(
        save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss"
    )
    trainer.train()
    best = FerPllForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    for (name, one), other in zip(trainer.model.state_dict().items(), best.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("before", [True, False])
def test_a_checkpoint_of_the_other_kind_is_refused(averaged, tmp_path, toy_config, toy_processor, before):
    plain = make_trainer(tmp_path / "plain", toy_config, toy_processor, make_dataset(50), save_strategy="epoch")
    first, second = (averaged(save_strategy="epoch"), plain) if before else (plain, averaged())
    first.train()
    checkpoint = str(first.run_folder.checkpoint(first.state.global_step).path)
    with pytest.raises(ValueError, match="average_decay"):
        second.train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_decay_outside_of_its_range_is_refused(averaged, tmp_path, toy_config, toy_processor, value):
    with pytest.raises(ValueError, match="average_decay"):
        make_trainer(tmp_path, toy_config, toy_processor, make_dataset(10), average_decay=value)
