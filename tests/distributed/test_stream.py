"""Two real processes on the CPU that share a stream of images."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import toy_streaming
from toy_streaming import encoded, write_folder, write_shards

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

DDP = Path(__file__).parents[2] / "train_scripts" / "accelerate" / "ddp.yaml"
SHARED = {"shards": 48, "rows": 48 + 5}  # images, in 4 and in 5 shards


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[dict]]:
    out = tmp_path_factory.mktemp("two")
    four = str(write_shards(out / "four"))
    write_folder(out / "one", encoded(5, 9))
    settings = {"per_device_train_batch_size": 6, "max_steps": 16, "save_steps": 7}
    scenarios = {
        "shards": [[four], settings, None],
        "rows": [[four, str(out / "one")], settings, None],
        "resumed": [[four], settings, str(out / "shards" / "checkpoint-7")],
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(DDP)]
    command += [toy_streaming.__file__, str(out), json.dumps(scenarios)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on with a new pass" not in done.stdout + done.stderr
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in (0, 1)] for name in scenarios}


@pytest.mark.parametrize("name", SHARED)
def test_every_image_comes_once_in_a_pass(results, name):
    first, second = (result["seen"] for result in results[name])
    seen = Counter((epoch, index) for epoch, index, _ in first + second)
    assert len(first) == len(second) == 16 * 6
    assert set(seen.values()) == {1}
    for epoch in (0, 1):
        assert sum(of_pass == epoch for of_pass, _ in seen) == SHARED[name]
    assert {index for epoch, index in seen if epoch == 0} == {index for epoch, index in seen if epoch == 1}
    # By shards, each process has two of the four in a pass; by rows, it has a part of every shard.
    of_first = {index >> 32 for epoch, index, _ in first if epoch == 0}
    of_second = {index >> 32 for epoch, index, _ in second if epoch == 0}
    assert (of_first & of_second == set()) == (name == "shards")


def test_both_processes_have_the_same_weights(results):
    for weight, other in zip(*(result["weights"].values() for result in results["shards"]), strict=True):
        assert torch.equal(weight, other)


def test_each_process_goes_on_with_its_very_next_image(results):
    for whole, resumed in zip(results["shards"], results["resumed"], strict=True):
        assert resumed["seen"] == whole["seen"][7 * 6 :]
        for name, weight in whole["weights"].items():
            assert torch.equal(weight, resumed["weights"][name]), name
