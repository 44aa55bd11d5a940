"""Two processes with a disk each, as on two machines, and a signal that reaches one of two processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toy_training
from fer_pll.training.signals import STATUS_TO_REQUEUE

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SETTINGS = {
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 6,
    "num_train_epochs": 3,
    "revision": "soft",
}
CHECKPOINT = "run/checkpoint-6"


def start(folder: Path, rank: int, port: int, settings: dict, local_rank: int | None = None) -> subprocess.Popen:
    """One of two processes, in its own working folder: `run` is another folder in each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if local_rank is not None:
        environment["LOCAL_RANK"] = local_rank
    command = [sys.executable, toy_training.__file__, ".", json.dumps({"run": [50, settings]})]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in environment.items()} | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two(folders: list[Path], settings: dict) -> list[tuple[int, str]]:
    """Exit status and output of each of two processes. In one folder they share a machine."""
    port, shared = free_port(), folders[0] == folders[1]
    running = [start(folder, rank, port, settings, rank if shared else None) for rank, folder in enumerate(folders)]
    return [(process.returncode, output) for process in running for output in [process.communicate(timeout=280)[0]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, list[Path]]:
    """Whole runs with one folder for both, and with one for each."""
    root = tmp_path_factory.mktemp("machines")
    found = {"shared": [root / "both"] * 2, "separate": [root / "first", root / "second"]}
    for folders in found.values():
        for status, output in two(folders, SETTINGS):
            assert status == 0, output
    return found


def result(folder: Path, rank: int) -> dict:
    return torch.load(folder / f"run-{rank}.pt", weights_only=False)


def test_with_a_disk_for_each_the_run_is_that_with_a_shared_one(trained):
    for rank, folder in enumerate(trained["separate"]):
        assert torch.equal(result(folder, rank)["table"], result(trained["shared"][0], rank)["table"])


def test_a_resumed_run_brings_the_checkpoint_to_the_other_machine(trained, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in trained["separate"]]
    assert not (folders[1] / CHECKPOINT / "model.safetensors").exists()  # only the main process writes it
    for status, output in two(folders, SETTINGS | {"resume": CHECKPOINT}):
        assert status == 0, output
    for name in ("model.safetensors", "confidence.safetensors", "optimizer.pt", "trainer_state.json"):
        assert (folders[1] / CHECKPOINT / name).read_bytes() == (folders[0] / CHECKPOINT / name).read_bytes()
    for rank, folder in enumerate(folders):
        whole, resumed = result(trained["separate"][rank], rank), result(folder, rank)
        assert torch.equal(resumed["table"], whole["table"])
        assert all(torch.equal(resumed["weights"][name], weight) for name, weight in whole["weights"].items())


def test_a_machine_that_has_lost_its_random_state_is_named(trained, tmp_path):
    folders = [shutil.copytree(trained["separate"][0], tmp_path / "first"), tmp_path / "new"]
    for status, output in two(folders, SETTINGS | {"resume": CHECKPOINT}):
        assert status != 0
        assert "process 1 on" in output and "cannot see its own random state" in output


def test_a_signal_to_one_process_stops_both_after_the_same_step(trained, tmp_path):
    port = free_port()
    settings = SETTINGS | {"save_strategy": "no", "signal_at": [1, 4]}
    running = [start(tmp_path, rank, port, settings, rank) for rank in (0, 1)]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [STATUS_TO_REQUEUE] * 2, outputs
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert all(f"It is saved in run/{checkpoint.name}" in output for output in outputs)
    for status, output in two([tmp_path] * 2, SETTINGS | {"save_strategy": "no", "resume": f"run/{checkpoint.name}"}):
        assert status == 0, output
    for rank in (0, 1):
        assert torch.equal(result(tmp_path, rank)["table"], result(trained["shared"][0], rank)["table"])
