"""Checkpoints prove themselves: each file x each damage is passed over or refused; rotation goes by steps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from fer_pll.io.errors import DataError
from fer_pll.training.checkpoints import (
    begin_checkpoint,
    check_checkpoint,
    find_damage,
    last_checkpoint,
    rotate,
    save_error,
    seal,
)
from fer_pll.training.config import LOCK, check_output_folder, start_run
from tiny import make_dataset, make_pretrainer, make_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two checkpoints, at steps 2 and 4."""
    from tiny import tiny_config, tiny_processor

    folder = tmp_path_factory.mktemp("run")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "average_decay": 0.5, "loss": "rc"}
    make_trainer(folder, tiny_config(), tiny_processor(), make_dataset(40), make_dataset(8), **settings).train()
    return folder


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoint-4").iterdir())


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "bit": lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 64])
    + content[len(content) // 2 + 1 :],
    "zeros": lambda content: bytes(len(content)),
    "deleted": None,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_with_any_damaged_file_is_passed_over_and_refused_by_name(run, tmp_path, caplog, damage):
    names = files(run)
    expected = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "last_weights.safetensors"}
    assert expected <= set(names)
    for name in names:
        folder = tmp_path / f"{name}-{damage}"
        shutil.copytree(run, folder)
        path = folder / "checkpoint-4" / name
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        caplog.clear()
        if (name, damage) == ("checksums.json", "deleted"):  # as written by an earlier version
            assert last_checkpoint(folder) == str(folder / "checkpoint-4")
            continue
        assert last_checkpoint(folder) == str(folder / "checkpoint-2"), name
        assert "checkpoint-4 is passed over" in caplog.text
        with pytest.raises(ValueError, match="checkpoint-4"):
            check_checkpoint(folder / "checkpoint-4")
        if name not in ("checksums.json", "trainer_state.json"):
            assert name in find_damage(folder / "checkpoint-4")


def test_a_whole_checkpoint_is_taken(run):
    assert find_damage(run / "checkpoint-4") is None
    check_checkpoint(run / "checkpoint-4")


def test_without_checksums_a_missing_optimizer_is_still_found(run, tmp_path):
    folder = shutil.copytree(run / "checkpoint-4", tmp_path / "checkpoint-4")
    (folder / "checksums.json").unlink()
    (folder / "optimizer.pt").unlink()
    assert "optimizer" in find_damage(folder)


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.iterdir())


def test_rotation_goes_by_steps_whatever_the_clock_says(tmp_path):
    make_checkpoints(tmp_path, 7, 14, 21, 100)
    for step in (7, 14):
        os.utime(tmp_path / f"checkpoint-{step}", (2e9, 2e9))
    rotate(tmp_path, 100, 2, None)
    assert steps(tmp_path) == [21, 100]


def test_rotation_keeps_the_best_and_leaves_later_steps_alone(tmp_path):
    make_checkpoints(tmp_path, 7, 14, 21, 28)
    rotate(tmp_path, 21, 1, str(tmp_path / "checkpoint-7"))
    assert steps(tmp_path) == [7, 21, 28]
    rotate(tmp_path, 21, None, None)
    assert steps(tmp_path) == [7, 21, 28]


def test_a_run_with_the_clock_set_back_keeps_its_newest_checkpoints(tmp_path, toy_config, toy_processor):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_checkpoints(tmp_path, 1, 2)
    trainer = make_trainer(tmp_path, toy_config, toy_processor, make_dataset(40), **settings)
    for step in (1, 2):
        os.utime(tmp_path / f"checkpoint-{step}", (2e9, 2e9))
    trainer.train()
    assert {5, 6} == {int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert trainer.args.save_total_limit == 2


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(28, "No space left on device"), "make room"),
        (OSError(30, "Read-only file system"), "make it writable"),
        (PermissionError(13, "Permission denied"), "permissions"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 177408 vs 177300"), "make room"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "Another process"),
    ],
)
def test_the_advice_fits_the_cause(tmp_path, error, advice):
    message = str(save_error(tmp_path / "checkpoint-3", error))
    assert advice in message and "checkpoint-3" in message
    assert ("make room" in message) == (advice == "make room")


def arguments(folder: Path, resume: str | None = None, overwrite: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        output_dir=str(folder),
        resume_from_checkpoint=resume,
        overwrite=overwrite,
        world_size=1,
        should_save=True,
        to_dict=dict,
    )


def test_auto_starts_then_goes_on_and_takes_an_interrupted_start_for_none(run, tmp_path):
    args = arguments(tmp_path / "new", "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint is None
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text("{}")
    args = arguments(tmp_path / "begun", "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint is None
    args = arguments(run, "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint == str(run / "checkpoint-4")


def begin_again(run: Path, folder: Path) -> Path:
    """A run that was killed after all files of its first checkpoint were there, and before it was sealed."""
    folder.mkdir()
    for name in ("settings.json", ".partial-candidate_sets.png"):
        (folder / name).write_text("{}")
    begin_checkpoint(folder / "checkpoint-2")
    for path in (run / "checkpoint-2").iterdir():
        if path.name != "checksums.json":
            shutil.copy(path, folder / "checkpoint-2")
    return folder


def test_a_resumed_run_with_other_groups_of_parameters_is_told_which_settings_make_them(
    tmp_path, toy_config, toy_processor, toy_train
):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings).train()
    again = make_trainer(tmp_path, toy_config, toy_processor, toy_train, layer_decay=0.7, **settings)
    with pytest.raises(DataError, match=r"checkpoint-1: its optimizer has other groups .*the layer_decay"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_auto_starts_again_where_the_first_checkpoint_was_not_finished(run, tmp_path):
    folder = begin_again(run, tmp_path / "killed")
    assert "half-written" in find_damage(folder / "checkpoint-2")
    args = arguments(folder, "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint is None
    with pytest.raises(ValueError, match="none of the checkpoints"):
        check_output_folder(arguments(folder, "last"))
    with pytest.raises(ValueError, match="already holds files"):
        check_output_folder(arguments(folder))
    (folder / "checkpoint-4").mkdir()  # killed before the first file
    args = arguments(folder, "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint is None
    seal(folder / "checkpoint-2")
    args = arguments(folder, "auto")
    check_output_folder(args)
    assert args.resume_from_checkpoint == str(folder / "checkpoint-2")


def test_a_checkpoint_that_is_written_anew_is_not_whole_before_its_end(run, tmp_path):
    folder = shutil.copytree(run / "checkpoint-4", tmp_path / "checkpoint-4")
    begin_checkpoint(folder)
    shutil.copy(run / "checkpoint-4" / "trainer_state.json", folder)
    assert last_checkpoint(tmp_path) is None
    seal(folder)
    assert last_checkpoint(tmp_path) == str(folder)


def test_auto_does_not_start_over_other_files_or_damaged_checkpoints(run, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="already holds files"):
        check_output_folder(arguments(tmp_path, "auto"))
    folder = shutil.copytree(run, tmp_path / "damaged")
    for step in (2, 4):
        (folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="none of the checkpoints"):
        check_output_folder(arguments(folder, "auto"))


def test_a_pretraining_is_not_resumed_with_other_images(tmp_path, toy_config, toy_processor):
    def pretrainer(name: str, data):
        settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": "none"}
        images = data.select_columns("image")
        return make_pretrainer(tmp_path / name, toy_config, toy_processor, images, **settings)

    data = make_dataset(24)
    pretrainer("run", data).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    pretrainer("same", data).check_checkpoint(checkpoint)
    for name, other in {
        "others": make_dataset(24, seed=1),
        "fewer": data.select(range(23)),
        "another order": data.select(range(23, -1, -1)),
    }.items():
        with pytest.raises(DataError, match=r"checkpoint-1 is of a run on other images.*--init_from"):
            pretrainer(name, other).check_checkpoint(checkpoint)
    for name in ("images.json", "checksums.json"):  # as written by an earlier version
        (tmp_path / "run" / "checkpoint-1" / name).unlink()
    pretrainer("earlier", make_dataset(24, seed=1)).check_checkpoint(checkpoint)


HOLDING = """
import sys
from types import SimpleNamespace
from fer_pll.training.config import start_run
args = SimpleNamespace(output_dir=sys.argv[1], resume_from_checkpoint=None, overwrite=False, world_size=1,
                       should_save=True, to_dict=dict)
start_run(args, SimpleNamespace())
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=rf"another run \(process {first.pid} on .*\) writes to it"):
        start_run(arguments(tmp_path), SimpleNamespace())
    first.kill()  # a dead process keeps no lock
    first.wait()
    args = arguments(tmp_path, overwrite=True)
    check_output_folder(args)
    start_run(args, SimpleNamespace())
    assert (tmp_path / LOCK).exists()


def test_the_jit_checkpoint_of_transformers_is_refused(tmp_path, toy_config, toy_processor):
    assert "enable_jit_checkpoint" in TrainingArguments.__dataclass_fields__
    with pytest.raises(ValueError, match="enable_jit_checkpoint"):
        make_trainer(tmp_path, toy_config, toy_processor, make_dataset(10), enable_jit_checkpoint=True)


@pytest.mark.long
def test_the_file_of_the_table_is_the_same_for_the_same_content(run, tmp_path):
    from fer_pll import ConfidenceTable

    table = ConfidenceTable.load(run / "checkpoint-4" / "confidence.safetensors")
    code = "import sys; from fer_pll import ConfidenceTable as T; T.load(sys.argv[1]).save(sys.argv[2])"
    contents = set()
    for number in range(4):
        out = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", code, run / "checkpoint-4" / "confidence.safetensors", out], check=True)
        contents.add(out.read_bytes())
    assert len(contents) == 1
    assert torch.equal(ConfidenceTable.load(tmp_path / "0.safetensors").confidence, table.confidence)
