"""faults.py: it finds what it is to find, goes on where it was cut off, and a share of it ends without a failure."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from train_scripts.campaign import main as campaign
from train_scripts.campaign.cells import EQUAL, FAILED, all_cells
from train_scripts.campaign.compare import differences

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "faults.py"


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run with the kinds of files that are compared."""
    checkpoint = tmp_path / "run" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    weights = {"w": torch.tensor([1.0, float("nan"), -0.0]), "b": torch.ones(2, dtype=torch.bfloat16)}
    for folder in (checkpoint, checkpoint.parent):
        save_file(weights, folder / "model.safetensors")
    state = {"state": {0: {"step": torch.tensor(8.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(state, checkpoint / "optimizer.pt")
    torch.save(
        {"python": (3, (1, 2, 3), None), "cpu": torch.arange(5, dtype=torch.uint8)}, checkpoint / "rng_state.pth"
    )
    log = [{"loss": 1.0, "step": 8}, {"eval_loss": 2.0, "eval_runtime": 0.5, "step": 8}]
    trainer_state = {"global_step": 8, "max_steps": 8, "epoch": 1.0, "log_history": log}
    (checkpoint / "trainer_state.json").write_text(json.dumps(trainer_state))
    return checkpoint.parent


def change_weight(run: Path) -> str:
    from safetensors.torch import load_file

    weights = load_file(run / "checkpoint-8" / "model.safetensors")
    weights["w"][2] = 0.0  # from -0.0: another bit, the same number
    save_file(weights, run / "checkpoint-8" / "model.safetensors")
    return "checkpoint-8/model.safetensors: w"


def change_optimizer(run: Path) -> str:
    state = torch.load(run / "checkpoint-8" / "optimizer.pt")
    state["state"][0]["exp_avg"][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    torch.save(state, run / "checkpoint-8" / "optimizer.pt")
    return "checkpoint-8/optimizer.pt: .state.0.exp_avg"


def change_random(run: Path) -> str:
    torch.save({"python": (3, (1, 2, 4), None), "cpu": torch.arange(5, dtype=torch.uint8)},
               run / "checkpoint-8" / "rng_state.pth")  # fmt: skip
    return "checkpoint-8/rng_state.pth: .python[1][2]"


def change_evaluation(run: Path) -> str:
    file = run / "checkpoint-8" / "trainer_state.json"
    file.write_text(file.read_text().replace('"eval_loss": 2.0', '"eval_loss": 2.5'))
    return "checkpoint-8/trainer_state.json: evaluations"


def lose_file(run: Path) -> str:
    (run / "model.safetensors").unlink()
    return "model.safetensors is missing"


@pytest.mark.parametrize("change", [change_weight, change_optimizer, change_random, change_evaluation, lose_file])
def test_every_difference_is_seen_and_named(run, tmp_path, change):
    other = shutil.copytree(run, tmp_path / "other")
    file = other / "checkpoint-8" / "trainer_state.json"
    file.write_text(file.read_text().replace('"eval_runtime": 0.5', '"eval_runtime": 0.7'))  # a time is no result
    assert differences(run, other) == []
    expected = change(other)
    assert differences(run, other) == [expected]


def test_a_run_that_ended_earlier_differs(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "checkpoint-8").rename(other / "checkpoint-4")
    assert differences(run, other) == ["the last checkpoint is checkpoint-4, not checkpoint-8"]


def test_the_cells_cover_what_they_must():
    names = [cell.name for cell in all_cells()]
    assert len(names) == len(set(names))
    assert {cell.group for cell in all_cells()} == set(campaign.GROUPS)
    for file in ("model.safetensors", "optimizer.pt", "confidence.safetensors", "rng_state.pth", "stream_0.json"):
        for damage in ("cut", "empty", "deleted", "one bit", "zeros"):
            assert f"damage/{file}/{damage}" in names
    with pytest.raises(ValueError, match="no cell has such a name"):
        campaign.chosen(["kill/nothing"])


def test_a_line_of_the_results_that_was_cut_off_is_left_out(tmp_path):
    line = json.dumps({"cell": "kill/finetune/random", "result": FAILED, "detail": "a | b", "kills": 3, "seed": 0})
    later = line.replace(FAILED, EQUAL)
    (tmp_path / "results.jsonl").write_text(f"{line}\n{later}\n{line[:20]}")
    results = campaign.read_results(tmp_path / "results.jsonl")
    assert results["kill/finetune/random"]["result"] == EQUAL
    with pytest.raises(ValueError, match=r"--seed 1: .* has results of seed 0"):
        campaign.main(["--out", str(tmp_path), "--seed", "1", "--cells", "kill/finetune/random"])
    text = campaign.table(results, 0)
    assert "1 of" in text and "with 3 times SIGKILL" in text and "| finetune/random | equal | a \\| b |" in text


def faults(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


SHARE = (
    *("kill/finetune/saving", "damage/optimizer.pt/one bit", "signal/TERM/finetune", "disk/quota/pretrain"),
    *("two runs/later", "killed rank/1/training", "other data/pretrain"),
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_share_of_the_campaign(tmp_path):
    out, table = tmp_path / "out", tmp_path / "FAULTS.md"
    first = faults("--out", out, "--cells", *SHARE[:4])
    assert first.returncode == 0, first.stdout + first.stderr
    done = (out / "results.jsonl").read_text()
    second = faults("--out", out, "--cells", *SHARE, "--table", table, "--jobs", 2)
    assert second.returncode == 0, second.stdout + second.stderr
    assert (out / "results.jsonl").read_text().startswith(done)  # it went on
    results = campaign.read_results(out / "results.jsonl")
    assert results.keys() == set(SHARE) and len((out / "results.jsonl").read_text().splitlines()) == len(SHARE)
    assert results["kill/finetune/saving"]["kills"] == 3
    assert f"{len(SHARE)} of {len(all_cells())} cells" in table.read_text()
    assert re.search(r"\| optimizer\.pt/one bit \| clear error, then equal \|", table.read_text())
