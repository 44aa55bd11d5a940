"""FSDP2 with the shipped launch configuration, on two processes of the CPU: against DDP, resumed, and saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import sharded_on_cpu
import toy_training
from fer_pll.data.dataset import save_dataset
from hub.stranger import run_stranger
from tiny import make_dataset, tiny_config, tiny_processor

ACCELERATE = Path(__file__).parents[2] / "train_scripts" / "accelerate"
STATE_DICTS = ["FULL_STATE_DICT", "SHARDED_STATE_DICT"]
ROWS = 50
SETTINGS = {
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 6,
    "num_train_epochs": 3,
    "revision": "soft",
    "drop_path_rate": 0.2,
}
STRANGER = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    logits = model(**load_file("pixels.safetensors")).logits
save_file({"logits": logits}, "logits.safetensors")
assert "fer_pll" not in sys.modules
"""


def launch(out: Path, *command: object, state_dict: str | None = None, fails: bool = False) -> str:
    """What two processes print. With a type of state dict they shard, as `fsdp.yaml` says; else they are DDP's."""
    options = ["--config_file", ACCELERATE / ("fsdp.yaml" if state_dict else "ddp.yaml")]
    if state_dict:
        options += ["--fsdp_state_dict_type", state_dict, sharded_on_cpu.__file__]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *command]
    out.mkdir(exist_ok=True)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1200, cwd=out)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(out: Path, scenarios: dict, state_dict: str | None = None) -> dict[str, list[dict]]:
    """Results of both processes, by scenario."""
    scenarios = {name: [ROWS, settings] for name, settings in scenarios.items()}
    launch(out, toy_training.__file__, out, json.dumps(scenarios), state_dict=state_dict)
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in (0, 1)] for name in scenarios}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def ddp(root) -> dict:
    """The same training without sharding. Drop path draws other numbers for each process, the same in both."""
    return train(root / "ddp", {"run": SETTINGS})["run"][0]


@pytest.fixture(scope="module", params=STATE_DICTS)
def sharded(request, root) -> tuple[str, Path, list[dict]]:
    """Type of the state dict, output folder and results of a training."""
    out = root / request.param
    return request.param, out / "run", train(out, {"run": SETTINGS | {"save": True}}, request.param)["run"]


pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_it_learns_what_ddp_learns(ddp, sharded):
    _, _, (first, second) = sharded
    assert first["sharded"] and not ddp["sharded"]
    assert len(first["losses"]) == len(ddp["losses"]) == 12
    assert first["losses"] == pytest.approx(ddp["losses"], rel=0, abs=1e-6)
    assert torch.equal(first["revised_epoch"], ddp["revised_epoch"])
    torch.testing.assert_close(first["tables"], ddp["tables"], rtol=0, atol=1e-6)
    assert torch.equal(first["tables"], second["tables"])
    for name, weight in ddp["weights"].items():
        if not name.endswith("k_proj.bias"):  # its gradient is rounding only, which AdamW makes large
            torch.testing.assert_close(first["weights"][name], weight, rtol=0, atol=1e-4)


def test_a_resumed_run_ends_where_the_whole_one_does_and_a_broken_step_is_not_saved(sharded, tmp_path):
    state_dict, folder, (whole, _) = sharded
    resume = str(folder / "checkpoint-6")
    broken = SETTINGS | {"break_at": 3, "save_strategy": "no"}
    results = train(tmp_path, {"resumed": SETTINGS | {"resume": resume}, "broken": broken}, state_dict)
    for resumed in results["resumed"]:
        assert torch.equal(resumed["table"], whole["table"])
        assert torch.equal(resumed["revised_epoch"], whole["revised_epoch"])
        assert all(torch.equal(resumed["weights"][name], weight) for name, weight in whole["weights"].items())
    for rank in results["broken"]:
        assert "The loss of step 3 is not finite" in rank["error"]
        assert "The state before the step is in" in rank["error"] and "checkpoint-2" in rank["error"]


def test_the_saved_model_is_ours_and_a_stranger_loads_it(sharded, tmp_path):
    _, folder, (whole, _) = sharded
    for saved in (folder, folder / "checkpoint-6"):
        assert not list(saved.glob("_fsdp*"))
        config = json.loads((saved / "config.json").read_text())
        assert config["architectures"] == ["FerPllForImageClassification"]
        ours = "modeling_fer_pll.FerPllForImageClassification"
        assert config["auto_map"]["AutoModelForImageClassification"] == ours
        code = ("modeling_fer_pll.py", "configuration_fer_pll.py", "hog.py", "masking.py")
        assert all((saved / name).is_file() for name in code)
    weights = load_file(folder / "model.safetensors")
    assert set(weights) >= set(whole["weights"])
    assert all(torch.equal(weights[name], weight) for name, weight in whole["weights"].items())
    pixels = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    save_file({"pixel_values": pixels}, tmp_path / "pixels.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run_stranger(STRANGER, folder, environment=environment, cwd=tmp_path)
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(folder)(pixels).logits
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], expected, rtol=0, atol=1e-6)


def test_a_checkpoint_of_another_kind_is_refused(ddp, sharded, root, tmp_path):
    state_dict, _, _ = sharded
    scenario = {"run": [ROWS, SETTINGS | {"resume": str(root / "ddp" / "run" / "checkpoint-6")}]}
    said = launch(tmp_path, toy_training.__file__, tmp_path, json.dumps(scenario), state_dict=state_dict, fails=True)
    assert f"was written without FSDP, and this run is with FSDP and {state_dict}" in said


@pytest.fixture(scope="module")
def workspace(root) -> Path:
    """A data set and a configuration for the commands."""
    folder = root / "workspace"
    tiny_config().save_pretrained(folder / "config")
    tiny_processor().save_pretrained(folder / "config")
    settings = "num_train_epochs: 2\nper_device_train_batch_size: 8\nlearning_rate: 3.0e-3\nsave_strategy: steps\n"
    (folder / "config" / "finetune.yaml").write_text(settings + "save_steps: 3\neval_strategy: epoch\n")
    (folder / "config" / "pretrain.yaml").write_text(settings + "save_steps: 3\n")
    save_dataset(DatasetDict({"train": make_dataset(48), "validation": make_dataset(16, 1)}), folder / "data")
    return folder


@pytest.mark.parametrize("state_dict", STATE_DICTS)
def test_the_commands_run_and_go_on(workspace, state_dict, tmp_path):
    common = ["--config", workspace / "config", "--data", workspace / "data", "--resume_from_checkpoint", "auto"]
    pretrained, tuned = tmp_path / "pretrained", tmp_path / "tuned"
    options = [*common, "--picture_steps", 0, "--output_dir", pretrained]
    launch(tmp_path, "fer_pll.commands.pretrain", *options, state_dict=state_dict)
    assert set(load_file(pretrained / "model.safetensors")) == set(
        load_file(pretrained / "checkpoint-6/model.safetensors")
    )
    options = [*common, "--init_from", pretrained, "--output_dir", tuned]
    for best in ([], ["--load_best_model_at_end", "--save_strategy", "epoch", "--num_train_epochs", 3]):
        said = launch(tmp_path, "fer_pll.commands.finetune", *options, *best, state_dict=state_dict)
        assert "saved in" in said
    assert json.loads((tuned / "trainer_state.json").read_text())["global_step"] == 9
    for name in ("README.md", "confidence.safetensors", "training.json", "model.safetensors"):
        assert (tuned / name).is_file()


def test_parts_of_a_checkpoint_need_a_folder_that_all_see(tmp_path):
    scenario = json.dumps({"run": [ROWS, SETTINGS]})
    said = launch(
        tmp_path, toy_training.__file__, tmp_path / "{rank}", scenario, state_dict=STATE_DICTS[1], fails=True
    )
    assert "process 1 on" in said and "cannot see the folder of the main process" in said
    assert not list(tmp_path.rglob(".partial-*"))


def test_losses_that_need_the_whole_model_are_refused(workspace, tmp_path):
    common = ["--config", workspace / "config", "--data", workspace / "data", "--output_dir", tmp_path / "run"]
    for options, message in (
        (["--loss", "pico"], "loss='pico' needs the whole model in each process"),
        (["--average_decay", 0.9], "average_decay needs the whole model in each process"),
        (
            ["--lora", "--config", "fer-pll-tiny", "--init_from", "fer-pll-tiny-ferplus"],
            "Adapters (LoRA) need the whole model in each process",
        ),
    ):
        said = launch(tmp_path, "fer_pll.commands.finetune", *common, *options, state_dict=STATE_DICTS[0], fails=True)
        assert f"error: {message}" in said  # in one line; the traceback below it is the launcher's
