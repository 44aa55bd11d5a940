"""A run resumed from a checkpoint whose files are damaged or hostile: one error that names them, and no code runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fer_pll.io.errors import DataError
from tiny import make_dataset, make_pretrainer, make_trainer, tiny_config, tiny_processor

HTML = b"<!DOCTYPE html><html>404</html>"


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def trainer(output: Path, **settings):
    # PiCO has a state of its own, in method.pt.
    return make_trainer(
        output,
        tiny_config(),
        tiny_processor(),
        make_dataset(32),
        report_to="none",
        max_steps=2,
        loss="pico",
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    trainer(output, save_strategy="steps", save_steps=1).train()
    # Checkpoints of earlier versions, and hostile ones, have no checksums that tell of the damage.
    (output / "checkpoint-1" / "checksums.json").unlink()
    return output / "checkpoint-1"


@pytest.fixture
def checkpoint(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "checkpoint-1")
    return tmp_path / "checkpoint-1"


def resume(checkpoint: Path, **settings) -> None:
    resumed = trainer(checkpoint.parent / "again", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))


def test_a_whole_checkpoint_resumes(checkpoint):
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {*FILES, "trainer_state.json", "config.json"}
    resume(checkpoint)


FILES = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "method.pt"),
    *("model.safetensors", "confidence.safetensors"),
)


@pytest.mark.parametrize("damage", ["cut", "html", "empty", "ones"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_before_a_step_is_taken(checkpoint, name, damage):
    content = (checkpoint / name).read_bytes()
    changed = {"cut": content[: len(content) // 2], "html": HTML, "empty": b"", "ones": b"\xff" * 500}[damage]
    (checkpoint / name).write_bytes(changed)
    with pytest.raises(DataError, match=f"{name}.*(resume from another|use an earlier|again)"):
        trainer(checkpoint.parent / "again").check_checkpoint(str(checkpoint))
    with pytest.raises(DataError, match=name):
        resume(checkpoint)


@pytest.mark.parametrize("name", FILES[:4])
def test_no_code_in_a_state_runs(checkpoint, tmp_path, name):
    torch.save({"state": Evil(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(DataError, match=name):
        resume(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", FILES[:4])
@pytest.mark.parametrize(
    "content", [{}, [], 5, "x", None, {"state": {}, "param_groups": []}, torch.zeros(3)], ids=repr
)
def test_a_state_of_something_else_is_named(checkpoint, name, content):
    torch.save(content, checkpoint / name)
    try:
        resume(checkpoint)
    except DataError as error:
        assert name in str(error) or f"{Path(name).stem}" in str(error)
    else:
        assert name == "scheduler.pt", "it takes what it knows from any dictionary"
        assert isinstance(content, dict)


@pytest.mark.parametrize(
    "change",
    [
        *({"global_step": value} for value in ("x", None, -1, 1.5, [1])),
        *({"epoch": value} for value in ("x", -1, float("nan"), [])),
        *({"log_history": value} for value in (5, None, [5], {})),
        *({"stateful_callbacks": value} for value in (5, [], {"TrainerControl": 5})),
        *({"train_batch_size": value} for value in ("x", None, [])),
        *({"max_steps": "x"}, {"save_steps": "x"}, {"best_model_checkpoint": 5}, {"nobody knows": 1}),
    ],
    ids=str,
)
def test_a_log_with_impossible_values_is_named(checkpoint, change):
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=r"trainer_state\.json"):
        trainer(checkpoint.parent / "again").check_checkpoint(str(checkpoint))


@pytest.mark.parametrize("value", [{"args": 5}, {"args": {}, "attributes": 5}, {"args": {"x": 1}, "attributes": {}}])
def test_states_of_callbacks_that_do_not_fit_are_named(checkpoint, value):
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["TrainerControl"] = value
    file.write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"trainer_state\.json"):
        resume(checkpoint, restore_callback_states_from_checkpoint=True)


@pytest.mark.parametrize("content", ["[]", "null", "5", '"x"', "{"])
@pytest.mark.parametrize("name", ["trainer_state.json", "config.json", "processes.json"])
def test_json_of_another_type_is_named(checkpoint, name, content):
    (checkpoint / name).write_text(content)
    said = "half-written" if name == "trainer_state.json" and content == "{" else name
    with pytest.raises(ValueError, match=said):
        resume(checkpoint)


def test_weights_of_another_model_are_named(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(3, 5)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="its weights"):
        resume(checkpoint)


@pytest.mark.parametrize("content", ["[]", "{}", '{"batches": "x"}', "null", "{"])
def test_the_place_in_a_stream_is_checked(tmp_path, content):
    from fer_pll.data.streaming.stream import ImageStream
    from toy_streaming import write_shards

    shards = write_shards(tmp_path / "shards")
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "report_to": "none"}

    def stream(args):
        return ImageStream([str(shards)], args.shuffle_buffer, args.seed, args.process_index, args.world_size)

    make_pretrainer(tmp_path / "run", tiny_config(), tiny_processor(), stream, **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "stream_0.json").write_text(content)
    (checkpoint / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"stream_0\.json"):
        make_pretrainer(tmp_path / "again", tiny_config(), tiny_processor(), stream, **settings).train(
            resume_from_checkpoint=str(checkpoint)
        )
