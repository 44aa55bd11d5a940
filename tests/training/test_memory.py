"""A run's memory stays as it is: over images of the monitor, over checkpoints, and over a hundred thousand rows."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from transformers import TrainerCallback

from tiny import make_dataset, make_images, make_pretrainer, make_trainer, tiny_config, tiny_processor

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]
MIB = 2**20


def own_memory() -> int:
    """Bytes of this process that are no files: other load on the machine does not change them."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


class Measured(TrainerCallback):
    """Notes the memory after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, *args, **kwargs) -> None:
        self.seen.append(own_memory())

    def growth(self, first: int) -> float:
        """MiB from a step, counted from 1, to the last one. The median of five, since buffers come and go."""
        return (np.median(self.seen[-5:]) - np.median(self.seen[first - 1 : first + 4])) / MIB


def trained(trainer) -> Measured:
    measured = Measured()
    trainer.add_callback(measured)
    trainer.train()
    return measured


@pytest.fixture
def settings() -> dict:
    return {"report_to": "none", "logging_steps": 50, "per_device_train_batch_size": 8}


def test_thirty_images_of_the_monitor(tmp_path, settings):
    data = make_dataset(64).select_columns("image")
    trainer = make_pretrainer(
        tmp_path, tiny_config(), tiny_processor(), data, max_steps=40, picture_steps=1, **settings
    )
    measured = trained(trainer)
    assert len(list(trainer.run_folder.images.glob("*.png"))) == 40
    assert measured.growth(first=6) < 40  # they were 5 MiB each


@pytest.mark.parametrize("loss", ["pll", "pico"])
def test_thirty_checkpoints(tmp_path, settings, loss):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "average_decay": 0.5}
    trainer = make_trainer(
        tmp_path, tiny_config(), tiny_processor(), make_dataset(64), max_steps=40, loss=loss, **saving, **settings
    )
    measured = trained(trainer)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-40"]
    assert measured.growth(first=6) < 15


def test_a_hundred_thousand_rows(tmp_path, settings):
    """Prepared rows on the disk, as a run has them: what was read is not kept."""
    few = make_dataset(1000)
    files = []
    for image in make_images(np.array(few["label"]), seed=0):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    columns = {name: few[name][:] for name in few.column_names if name not in ("image", "row_id")}
    columns = {"image": files, **columns}
    many = {name: values * 100 for name, values in columns.items()}
    many["row_id"] = [f"row:{number}" for number in range(100_000)]
    features = few.features
    Dataset.from_dict({name: many[name] for name in features}, features=features).save_to_disk(str(tmp_path / "data"))
    del many
    trainer = make_trainer(
        tmp_path / "run",
        tiny_config(),
        tiny_processor(),
        load_from_disk(str(tmp_path / "data")),
        num_train_epochs=1,
        **settings | {"per_device_train_batch_size": 500},
    )
    measured = trained(trainer)
    assert len(measured.seen) == 200 and trainer.table.confidence.shape[0] == 100_000
    assert measured.growth(first=20) < 40  # the decoded images alone have 25 MiB, their files 100 B each
