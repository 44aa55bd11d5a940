"""The least of test_processes.py, which takes minutes: two real processes against one."""

import pytest
import torch

import toy_training
from distributed.test_processes import DDP, SCENARIOS, halved, launch

NAMES = ("paper", "rc")


def test_two_processes_learn_what_one_learns(tmp_path):
    launcher = ["accelerate.commands.launch", "--config_file", str(DDP)]
    launch(launcher, tmp_path, {name: halved(SCENARIOS[name]) for name in NAMES})
    for name in NAMES:
        one = toy_training.run(tmp_path / name, *SCENARIOS[name])
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert first["world_size"] == 2 and (one["revised_epoch"] >= 0).any()
        assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
        torch.testing.assert_close(first["tables"], one["tables"], rtol=0, atol=1e-5)
        assert torch.equal(first["tables"], second["tables"])
