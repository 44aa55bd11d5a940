"""Pre-training on a stream: killed with SIGKILL and resumed, damaged data, a full disk."""

import csv
import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import toy_streaming
from fer_pll.io.errors import DataError
from fer_pll.training.checkpoints import SaveError, last_checkpoint
from killed_processes import kill_at_random_moments, leave, result_of
from siblings import siblings
from toy_streaming import encoded, write_shards, write_tar

SETTINGS = {
    # 12 steps of 2 x 8 of 48 images: four passes
    "none": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
    "workers": {
        "dataloader_num_workers": 2,
        "dataloader_multiprocessing_context": "fork",  # the processes here would have each worker import everything
        "per_device_train_batch_size": 16,
    },
}


class Killer(TrainerCallback):
    """Kills its own process before the optimizer step `step`."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(TrainerCallback):
    """From step 5 on, no file may grow beyond 50 kB; that of the model would."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 5:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def train(folder: str, data: list[str], settings: dict, callbacks: tuple = ()) -> None:
    torch.set_num_threads(1)
    resume = last_checkpoint(folder)
    try:
        result = toy_streaming.run(Path(folder), data, settings, resume, callbacks)
    except SaveError as error:
        Path(folder, "error.txt").write_text(str(error))
        os._exit(3)
    leave(result, folder)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "fer_pll", "fer_pll.training.pretraining", "fer_pll.data.streaming.stream"]
    )
    return context


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("stream")
    write_tar(folder / "whole.tar", encoded(6, 11))
    (folder / "damaged.tar").write_bytes((folder / "whole.tar").read_bytes()[:8000])
    return [str(write_shards(folder / "shards")), str(folder / "damaged.tar")]


def start(processes, *args):
    process = processes.Process(target=train, args=[str(arg) if isinstance(arg, Path) else arg for arg in args])
    process.start()
    return process


def finish(processes, *args) -> dict:
    return result_of(start(processes, *args), args[0])


@pytest.fixture(scope="module")
def whole(processes, shards, tmp_path_factory) -> dict[str, dict]:
    return {
        name: finish(processes, tmp_path_factory.mktemp(name), shards, settings) for name, settings in SETTINGS.items()
    }


def assert_same_bits(whole: dict, resumed: dict) -> None:
    assert (
        resumed["seen"] == whole["seen"][len(whole["seen"]) - len(resumed["seen"]) :]
    )  # the same images, augmented alike
    assert resumed["losses"] == whole["losses"] and resumed["epochs"] == whole["epochs"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name


@pytest.mark.parametrize("name", siblings(*SETTINGS))
def test_a_killed_stream_goes_on_with_the_very_next_image(processes, shards, tmp_path, whole, name):
    """Killed in step 8, it goes on behind checkpoint 6, when one of the workers was just being asked."""
    process = start(processes, tmp_path, shards, SETTINGS[name], (Killer(8),))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    resumed = finish(processes, tmp_path, shards, SETTINGS[name])
    assert len(resumed["seen"]) == 6 * 16 and len(whole[name]["seen"]) == 12 * 16
    assert_same_bits(whole[name], resumed)
    # What could not be read is listed once, although both runs and several passes came by it.
    with (tmp_path / "unreadable.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [shards[1]]
    assert "the rest, from row" in rows[0]["reason"]


def test_what_was_seen(whole):
    """An image is augmented in another way in each pass, and comes once in each."""
    seen = whole["none"]["seen"]
    assert len({(epoch, index) for epoch, index, _ in seen}) == len(seen)
    assert max(epoch for epoch, _, _ in seen) == 3
    pixels = {}
    for _, index, total in seen:
        pixels.setdefault(index, set()).add(total)
    assert max(map(len, pixels.values())) > 1
    assert whole["none"]["epochs"][-1] == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_kills_in_a_row_at_random_moments(processes, shards, tmp_path):
    settings = SETTINGS["workers"] | {"max_steps": 120, "save_total_limit": 2}  # so that it takes longer than to begin
    whole = finish(processes, tmp_path / "whole", shards, settings)
    kill_at_random_moments(
        lambda folder: start(processes, folder, shards, settings),
        tmp_path,
        10,
        lambda result: assert_same_bits(whole, result),
    )


def test_a_checkpoint_that_does_not_fit_on_the_disk(processes, shards, tmp_path, whole):
    process = start(processes, tmp_path, shards, SETTINGS["none"], (FullDisk(),))
    process.join()
    assert process.exitcode == 3
    message = (tmp_path / "error.txt").read_text()
    assert message.startswith(f"{tmp_path}/checkpoint-6 could not be written")
    assert "MiB are free there: make room" in message
    assert f"go on from {tmp_path}/checkpoint-3, which is whole: --resume_from_checkpoint last" in message
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert_same_bits(whole["none"], finish(processes, tmp_path, shards, SETTINGS["none"]))


@pytest.fixture(scope="module")
def checkpoint(shards, tmp_path_factory) -> Path:
    """Of step 3, the last of three."""
    folder = tmp_path_factory.mktemp("short")
    toy_streaming.run(folder, shards, {"max_steps": 3})
    return folder / "checkpoint-3"


def test_a_run_that_is_at_its_end_is_not_trained_further(shards, checkpoint, tmp_path):
    """As after a kill between the last checkpoint and the end."""
    result = toy_streaming.run(tmp_path, shards, {"max_steps": 3}, str(checkpoint))
    assert result["seen"] == [] and len(result["losses"]) == 3
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in result["weights"].items())


@pytest.mark.parametrize("change", [{"shuffle_buffer": 9}, {"dataloader_num_workers": 2}, {"seed": 3}, "data"])
def test_with_other_data_or_workers_a_new_pass_begins(shards, checkpoint, tmp_path, caplog, change):
    data, settings = (shards[:1], {}) if change == "data" else (shards, change)
    folder = tmp_path / "run"
    shutil.copytree(checkpoint.parent, folder)
    result = toy_streaming.run(folder, data, {"max_steps": 4} | settings, str(folder / "checkpoint-3"))
    assert "goes on with a new pass" in caplog.text
    assert {epoch for epoch, _, _ in result["seen"]} == {1}


def test_bad_data_can_stop_the_training(shards, tmp_path, caplog):
    with pytest.raises(DataError, match=r"damaged.tar: the rest, from row \d.*--on_bad_data skip"):
        toy_streaming.run(tmp_path, shards, {"on_bad_data": "stop"})
    assert "damaged.tar" in (tmp_path / "unreadable.csv").read_text()
    with pytest.raises(DataError, match=r"damaged.tar"):  # although it is listed already
        toy_streaming.run(tmp_path, shards, {"on_bad_data": "stop"})
    assert len(toy_streaming.run(tmp_path, shards[:1], {"on_bad_data": "stop"})["losses"]) == 12


def test_what_cannot_be_read_is_counted_in_the_log(shards, tmp_path, caplog):
    trainer = toy_streaming.make_stream_trainer(tmp_path, shards, {"max_steps": 8})
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["pass"] for log in logs][-1] == 1 and logs[-1]["unreadable"] == 1
    assert "is left out, and listed in" in caplog.text


def test_a_stream_needs_a_number_of_steps(shards, tmp_path):
    with pytest.raises(ValueError, match="--max_steps: needed"):
        toy_streaming.make_stream_trainer(tmp_path, shards, {"max_steps": -1})


def test_positions_in_a_checkpoint_can_be_read(checkpoint):
    state = json.loads((checkpoint / "stream_0.json").read_text())
    assert state["batches"] == 3 and state["workers"] == 1 and state["pass"] == 0
    assert list(state["positions"]) == ["0"]
