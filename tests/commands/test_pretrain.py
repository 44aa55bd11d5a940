"""What `fer-pll pretrain` makes of --data; everything before the first step, in this process."""

import pytest
from datasets import Dataset, DatasetDict

from fer_pll.commands import pretrain
from fer_pll.data.dataset import save_dataset
from fer_pll.data.streaming.stream import ImageStream
from fer_pll.io.errors import DataError
from tiny import make_dataset
from toy_streaming import encoded, write_tar


@pytest.fixture
def build(tmp_path, monkeypatch):
    for name in ("one", "two"):
        save_dataset(DatasetDict(train=make_dataset(20)), tmp_path / name)
    write_tar(tmp_path / "faces.tar", encoded(5, 0))
    monkeypatch.chdir(tmp_path)

    def build(*options):
        return pretrain.build(["--config", "fer-pll-tiny-hog", "--output_dir", "run", *options])[0]

    return build


def test_prepared_sets_are_one_data_set_with_epochs(build):
    trainer = build("--data", "one", "--data", "two")
    assert isinstance(trainer.train_dataset, Dataset)
    assert len(trainer.train_dataset) == 40
    rows = trainer.get_train_dataloader().dataset
    assert [rows[i]["index"] for i in range(40)] == list(range(40))
    assert len(build("--data", "one", "two").train_dataset) == 40


def test_other_sources_are_a_stream(build):
    options = ("--max_steps", "7", "--shuffle_buffer", "3", "--seed", "5")
    trainer = build("--data", "one", "--data", "*.tar", *options)
    stream = trainer.train_dataset
    assert isinstance(stream, ImageStream)
    assert (len(stream.shards), stream.buffer_size, stream.seed) == (2, 3, 5)
    assert trainer.args.save_strategy == "steps"  # the YAML file says epoch
    assert isinstance(build("--data", "one", "--streaming", "--max_steps", "7").train_dataset, ImageStream)


def test_mistakes_are_named(build, capsys):
    with pytest.raises(ValueError, match="--max_steps: needed"):
        build("--data", "faces.tar")
    with pytest.raises(DataError, match="none/none/none: there is no such file or folder"):
        build("--data", "none/none/none", "--max_steps", "7")
    with pytest.raises(SystemExit):
        build("--data", "one", "--on_bad_data", "warn")
    assert "invalid choice: warn (choose from skip, stop)" in capsys.readouterr().err.replace("'", "")
