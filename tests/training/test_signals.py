"""Signals stop a run after a step, with a checkpoint of that step that it goes on from bit for bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import toy_training
from fer_pll.training.checkpoints import last_checkpoint
from fer_pll.training.signals import STATUS_TO_REQUEUE, RunInterrupted, StopSignals
from killed_processes import leave, result_of
from siblings import siblings

ROWS = 50
SETTINGS = {"per_device_train_batch_size": 16, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 4}


class Sender(TrainerCallback):
    """Sends its own process a signal in the middle of step 6."""

    def __init__(self, number: int):
        self.number = number

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), self.number)


def train(folder: str, resume: str | None, number: int, workers: int) -> None:
    torch.set_num_threads(1)
    settings = SETTINGS | {"dataloader_num_workers": workers, "resume": resume, "revision": "soft"}
    try:
        settings["callbacks"] = [Sender(number)] if number else []
        leave(toy_training.run(Path(folder), ROWS, settings), folder)
    except RunInterrupted as interrupt:
        Path(folder, "message.txt").write_text(str(interrupt))
        sys.exit(interrupt.status)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "fer_pll", "fer_pll.training.trainer"])
    return context


def start(processes, folder: Path, number: int = 0, workers: int = 0):
    folder.mkdir(exist_ok=True)
    process = processes.Process(target=train, args=(str(folder), last_checkpoint(folder), number, workers))
    process.start()
    return process


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    return result_of(start(processes, folder), folder)


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    siblings(
        (signal.SIGTERM, STATUS_TO_REQUEUE, 0),
        (signal.SIGUSR1, STATUS_TO_REQUEUE, 0),
        (signal.SIGINT, 130, 0),
        (signal.SIGTERM, STATUS_TO_REQUEUE, 2),
    ),
)
def test_the_run_is_saved_after_the_step_and_goes_on_bit_for_bit(
    processes, tmp_path, uninterrupted, number, status, workers
):
    process = start(processes, tmp_path, number, workers)
    process.join()
    assert process.exitcode == status
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")  # the step that it was in
    message = (tmp_path / "message.txt").read_text()
    assert "after step 6 of 16" in message and "checkpoint-6" in message and "last" in message
    resumed = result_of(start(processes, tmp_path), tmp_path)
    assert torch.equal(resumed["table"].view(torch.int32), uninterrupted["table"].view(torch.int32))
    assert torch.equal(resumed["revised_epoch"], uninterrupted["revised_epoch"])
    for name, weight in uninterrupted["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name


CATCHING = """
import os, signal, sys, time
from fer_pll.training.signals import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    while not signals.received:
        time.sleep(0.01)
    print("received", flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", siblings(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
def test_a_second_signal_ends_the_process_at_once(number):
    process = subprocess.Popen(
        [sys.executable, "-c", CATCHING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "received\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number or (number == signal.SIGINT and "KeyboardInterrupt" in errors)
    assert f"{signal.Signals(number).name}: the run saves and stops" in errors


def test_what_torchrun_passes_on_is_no_second_signal(monkeypatch):
    """Slurm signals torchrun and its processes, and torchrun then signals these as well."""
    from fer_pll.training import signals as module

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopSignals() as signals:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
        assert signals.received == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert signals.received == signal.SIGUSR1
        monkeypatch.setattr(module, "PASSED_ON", 0.0)
        with pytest.raises(KeyboardInterrupt):  # what SIGINT does by default
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_child_process_ends_at_sigterm_as_without_the_context():
    reading, writing = os.pipe()
    with StopSignals() as signals:
        child = os.fork()
        if child == 0:
            os.write(writing, b"ready")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 5)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert signals.received == 0


def test_handlers_from_before_are_put_back():
    before = [signal.getsignal(number) for number in StopSignals.NUMBERS]
    with StopSignals():
        assert [signal.getsignal(number) for number in StopSignals.NUMBERS] != before
    assert [signal.getsignal(number) for number in StopSignals.NUMBERS] == before
