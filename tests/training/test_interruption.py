"""Trainings that are killed with SIGKILL, in processes of their own, and resumed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import TrainerState

import toy_training
from fer_pll.training.checkpoints import last_checkpoint
from killed_processes import kill_at_random_moments, leave, result_of

ROWS = 50
SETTINGS = {
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 3,  # not at the end of an epoch, which is 4 steps
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(path: Path) -> None:
    """Leave the first half of a file, then die."""
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    die()


class Killer(TrainerCallback):
    """Kills its own process in the second checkpoint's neighborhood."""

    def __init__(self, moment: str):
        self.moment = moment
        self.step = 0
        saves = {"model.safetensors": (PreTrainedModel, "save_pretrained"), "optimizer.pt": (torch, "save")}
        saves["trainer_state.json"] = (TrainerState, "save_to_json")
        if moment in saves:
            owner, name = saves[moment]
            original = getattr(owner, name)

            def save(*args, **kwargs):
                result = original(*args, **kwargs)
                path = next((Path(arg) for arg in args if isinstance(arg, str)), None)
                path = path / moment if path is not None and path.is_dir() else path
                if self.step >= 6 and path is not None and path.name == moment and "checkpoint-" in str(path):
                    half_written(path)
                return result

            setattr(owner, name, save)

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.step = state.global_step + 1
        if self.moment == "step" and self.step == 6:
            die()

    def on_prediction_step(self, args, state, control, **kwargs) -> None:
        if self.moment == "evaluation" and state.global_step == 8:
            die()


def train(folder: str, resume: str | None, moment: str | None, loss: str) -> None:
    torch.set_num_threads(1)
    callbacks = [Killer(moment)] if moment else []
    result = toy_training.run(Path(folder), ROWS, SETTINGS | {"loss": loss, "resume": resume, "callbacks": callbacks})
    leave(result, folder)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    # What takes long to import; a preload does not find the modules of the tests.
    context.set_forkserver_preload(["pytest", "fer_pll", "fer_pll.training.trainer"])
    return context


def start(processes, folder: Path, moment: str | None = None, loss: str = "pll"):
    folder.mkdir(exist_ok=True)
    process = processes.Process(target=train, args=(str(folder), last_checkpoint(folder), moment, loss))
    process.start()
    return process


def run_to_the_end(processes, folder: Path, loss: str = "pll") -> dict:
    return result_of(start(processes, folder, loss=loss), folder)


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory) -> dict:
    result = run_to_the_end(processes, tmp_path_factory.mktemp("whole"))
    assert (result["revised_epoch"] >= 0).float().mean() > 0.1  # otherwise nothing could be lost
    return result


def assert_same_bits(one: dict, other: dict) -> None:
    assert torch.equal(one["table"].view(torch.int32), other["table"].view(torch.int32))
    assert torch.equal(one["revised_epoch"], other["revised_epoch"])
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name
    assert one["losses"] == other["losses"] and one["eval_loss"] == other["eval_loss"]


@pytest.mark.parametrize(
    ("moment", "resumes_at", "half"),
    [
        ("step", 3, False),
        pytest.param("evaluation", 6, False, marks=pytest.mark.long),
        pytest.param("model.safetensors", 3, True, marks=pytest.mark.long),
        pytest.param("optimizer.pt", 3, True, marks=pytest.mark.long),
        pytest.param("trainer_state.json", 3, True, marks=pytest.mark.long),
    ],
)
def test_a_killed_training_ends_bit_for_bit_like_the_whole_one(
    processes, tmp_path, uninterrupted, caplog, moment, resumes_at, half
):
    process = start(processes, tmp_path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "checkpoint-6").is_dir() == (resumes_at == 6 or half)
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{resumes_at}")
    assert half == ("checkpoint-6 is passed over: it is half-written" in caplog.text)
    assert_same_bits(uninterrupted, run_to_the_end(processes, tmp_path))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("loss", ["pll", "rc"])
def test_twenty_kills_in_a_row_at_random_moments(processes, tmp_path, loss):
    whole = run_to_the_end(processes, tmp_path / "whole", loss)
    kill_at_random_moments(
        lambda folder: start(processes, folder, loss=loss),
        tmp_path,
        20,
        lambda result: assert_same_bits(whole, result),
    )
