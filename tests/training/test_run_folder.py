"""What lies where in the folder of a run, and that its parts belong together."""

import json

import pytest
import torch
from datasets import DatasetDict

from fer_pll.data.dataset import save_dataset
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.run_folder import RunFolder
from tiny import make_trainer


@pytest.fixture
def run(tmp_path, toy_config, toy_processor, toy_train) -> RunFolder:
    save_dataset(DatasetDict(train=toy_train), tmp_path / "data")
    trainer = make_trainer(tmp_path / "run", toy_config, toy_processor, toy_train, loss="pico", save_strategy="epoch")
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    trainer.save_confidence()
    trainer.create_model_card()
    return trainer.run_folder


def test_every_file_that_a_training_leaves_has_its_name(run):
    for path in (run.confidence, run.trainer_state, run.training, run.card):
        assert path.parent == run.path and path.is_file()
    checkpoint = run.checkpoint(6)
    for path in (checkpoint.confidence, checkpoint.method, checkpoint.processes, checkpoint.trainer_state):
        assert path.parent == run.path / "checkpoint-6" and path.is_file()
    assert run.evaluations() == {}
    names = [path.name for path in vars(run).values()]
    assert len(set(names)) == len(names)
    assert [run.unreadable(process).name for process in (0, 1)] == ["unreadable.csv", "unreadable-1.csv"]


def test_table_and_rows_are_joined_by_the_settings(run, tmp_path, toy_train):
    table, rows = RunFolder(run.path).table_and_rows(tmp_path / "data")
    run.settings_file.write_text(json.dumps({"script": {"data": str(tmp_path / "data")}, "arguments": {}}))
    assert run.settings == {"script": {"data": str(tmp_path / "data")}, "arguments": {}}
    again, same = run.table_and_rows()
    assert torch.equal(again.confidence, table.confidence)
    assert rows["row_id"][:] == same["row_id"][:] == toy_train["row_id"][:]


@pytest.mark.parametrize("content", [None, "half {", "[]", '{"script": {}}', '{"script": 1, "arguments": {}}'])
def test_settings_that_are_missing_or_damaged_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    said = (
        "has no settings.json"
        if content is None
        else r"settings.json.*it is not what `fer-pll finetune` writes; train the run again"
    )
    with pytest.raises(ValueError, match=said):
        _ = RunFolder(tmp_path).settings
    with pytest.raises(ValueError, match=said):
        FineTuningOptions.from_run(tmp_path)
