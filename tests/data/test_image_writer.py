"""Records of images to the rows of a prepared split."""

import io
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data import image_writer as image_writer
from fer_pll.data.dataset import load_dataset
from fer_pll.data.image_writer import ImageRecord, workers, write_split
from fer_pll.io.errors import DataError
from fer_pll.io.images import open_image

FEATURES = Features({"image": Image(), "row_id": Value("string"), "label": ClassLabel(names=["a", "b"])})


def listed(folder, count=5, broken=()):
    rows = []
    for number in range(count):
        path = folder / f"{number}.png"
        if number in broken:
            path.write_bytes(b"no image")
        else:
            PILImage.new("L", (6, 6), number).save(path)
        rows.append(ImageRecord(path, f"list.txt:{number + 1}", {"label": number % 2}))
    return rows


@pytest.mark.parametrize("num_proc", [1, 2])
def test_rows_come_in_their_order_and_unreadable_ones_are_reported(tmp_path, monkeypatch, num_proc):
    monkeypatch.setattr(image_writer, "ROWS_PER_SHARD", 2)
    rows = listed(tmp_path, 7, broken=(0, 2, 3))  # one shard with nothing in it
    with workers(num_proc) as run:
        dataset, unreadable = write_split(rows, FEATURES, tmp_path / "shards", run=run)
    assert [image.getpixel((0, 0)) for image in dataset["image"]] == [1, 4, 5, 6]
    assert dataset["row_id"][:] == ["list.txt:2", "list.txt:5", "list.txt:6", "list.txt:7"]
    assert dataset["label"][:] == [1, 0, 1, 0]
    assert dataset.features == FEATURES
    assert [row.row_id for row in unreadable] == ["list.txt:1", "list.txt:3", "list.txt:4"]
    assert all("not an image" in row.reason and row.path in row.reason for row in unreadable)


def test_strict_stops_at_the_first(tmp_path):
    with pytest.raises(DataError, match=r"list.txt:4: .*3.png: not an image"):
        write_split(listed(tmp_path, 5, broken=(3, 4)), FEATURES, tmp_path / "shards", strict=True)


def test_nothing_to_use_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no train images listed"):
        write_split([], FEATURES, tmp_path / "shards")
    with pytest.raises(DataError, match=r"none of 2 train images can be used; the first: .*0.png"):
        write_split(listed(tmp_path, 2, broken=(0, 1)), FEATURES, tmp_path / "shards")


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(image_writer, "ROWS_PER_SHARD", 2)
    rows, shards = listed(tmp_path, 8, broken=(1,)), tmp_path / "shards"

    opened = []
    monkeypatch.setattr(image_writer, "open_image", lambda path: opened.append(path.name) or open_image(path))

    def until(stop):
        for number, row in enumerate(rows):
            if number == stop:
                raise Interrupted
            yield row

    with pytest.raises(Interrupted):
        write_split(until(5), FEATURES, shards)
    assert opened == ["0.png", "1.png", "2.png", "3.png"]
    (shards / "000001.json").write_text('{"key"')  # half-written: the shard is not taken for whole
    opened.clear()
    dataset, unreadable = write_split(rows, FEATURES, shards)
    assert opened == [f"{number}.png" for number in range(2, 8)]
    assert [row.row_id for row in unreadable] == ["list.txt:2"]
    again, _ = write_split(rows, FEATURES, tmp_path / "afresh")
    assert dataset.to_dict() == again.to_dict()


@dataclass
class Middle:
    """A crop of the middle."""

    side: int

    def __call__(self, image, listed):
        if listed.box is None:
            raise DataError("has no face box")
        return image.crop((1, 1, 1 + self.side, 1 + self.side))


def test_shards_of_other_rows_files_or_crops_are_not_used(tmp_path, monkeypatch):
    rows, shards = listed(tmp_path, 3), tmp_path / "shards"
    write_split(rows, FEATURES, shards)
    rows[1] = rows[1]._replace(columns={"label": 0})
    assert write_split(rows, FEATURES, shards)[0]["label"][:] == [0, 0, 0]
    PILImage.new("L", (6, 6), 99).save(rows[0].path)
    assert write_split(rows, FEATURES, shards)[0]["image"][0].getpixel((0, 0)) == 99
    boxed = [row._replace(box=(0, 0, 4, 4)) for row in rows]
    for side in (4, 2):
        assert write_split(boxed, FEATURES, shards, crop=Middle(side))[0]["image"][0].size == (side, side)
    dataset, unreadable = write_split([*boxed[:2], rows[2]], FEATURES, shards, crop=Middle(2))
    assert len(dataset) == 2 and unreadable[0].reason == "has no face box"


def test_images_that_need_no_change_keep_their_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(tmp_path / "a.jpg", quality=60)
    PILImage.new("RGBA", (12, 8), (10, 20, 30, 40)).save(tmp_path / "b.png")
    rows = [ImageRecord(tmp_path / name, name, {"label": 0}) for name in ("a.jpg", "b.png")]
    dataset, _ = write_split(rows, FEATURES, tmp_path / "shards")
    stored = dataset.cast_column("image", Image(decode=False))["image"]
    assert stored[0]["bytes"] == (tmp_path / "a.jpg").read_bytes()
    assert stored[1]["bytes"][:3] == b"\xff\xd8\xff" and dataset["image"][1].mode == "RGB"


def test_a_shard_is_whole_only_when_its_report_is_there(tmp_path, monkeypatch):
    rows, shards = listed(tmp_path, 2), tmp_path / "shards"
    write_split(rows, FEATURES, shards)
    report = json.loads((shards / "000000.json").read_text())
    assert set(report) == {"key", "unreadable"} and not list(shards.glob(".partial*"))
    (shards / "000000.json").unlink()
    (shards / "000000.arrow").write_bytes((shards / "000000.arrow").read_bytes()[:50])  # as a kill leaves it
    assert len(write_split(rows, FEATURES, shards)[0]) == 2


@pytest.mark.parametrize(("limit", "file"), [(9_000, "000000.arrow"), (40_000, "set")], ids=["shard", "prepared set"])
def test_a_full_disk_is_named_and_nothing_half_written_is_used(tmp_path, monkeypatch, limit, file):
    """A limit on the size of files stands for the disk: writing fails in the middle in the same way."""
    monkeypatch.setattr(image_writer, "ROWS_PER_SHARD", 4)
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "happy").mkdir(parents=True)
    for number in range(16):
        noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(tmp_path / "in" / "happy" / f"{number:02}.png")
    command = ["folder", str(tmp_path / "in"), "--out", str(tmp_path / "set"), "--num-proc", "1"]
    command += ["--classes", "happy", "--validation-share", "0"]
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        with pytest.raises(DataError, match=f"{file} cannot be written .*make room"):
            main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.shards", "in"]
    main(command)
    images = load_dataset(tmp_path / "set", "train").cast_column("image", Image(decode=False))["image"]
    stored = [image["bytes"] for image in images]
    assert stored == [path.read_bytes() for path in sorted((tmp_path / "in" / "happy").iterdir())]


def test_a_row_with_a_problem_is_reported_without_being_read(tmp_path):
    rows = listed(tmp_path, 3)
    rows[1] = rows[1]._replace(path=tmp_path / "never.png", problem="has no vote at all")
    dataset, unreadable = write_split(rows, FEATURES, tmp_path / "shards")
    assert len(dataset) == 2 and unreadable == [("list.txt:2", str(tmp_path / "never.png"), "has no vote at all")]


@dataclass(frozen=True)
class Gray:
    """Makes an image file where it is called, and notes in which process."""

    level: int
    notes: Path

    def __call__(self):
        (self.notes / f"{self.level}-{os.getpid()}").touch()
        file = io.BytesIO()
        PILImage.new("L", (5, 5), self.level).save(file, "PNG")
        return file.getvalue()


def test_images_that_are_made_are_made_in_the_workers_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(image_writer, "ROWS_PER_SHARD", 2)
    (tmp_path / "notes").mkdir()
    rows = [ImageRecord(Path(str(n)), str(n), {"label": 0}, data=Gray(n, tmp_path / "notes")) for n in range(5)]
    with workers(2) as run:
        dataset, unreadable = write_split(rows, FEATURES, tmp_path / "shards", run=run)
    assert [np.asarray(image)[0, 0] for image in dataset["image"]] == list(range(5)) and unreadable == []
    made = [path.name for path in (tmp_path / "notes").iterdir()]
    assert len(made) == 5 and not any(name.endswith(f"-{os.getpid()}") for name in made)
    write_split(rows, FEATURES, tmp_path / "shards")  # the shards are whole
    assert len(list((tmp_path / "notes").iterdir())) == 5
    rows[0] = rows[0]._replace(data=Gray(9, tmp_path / "notes"))
    assert np.asarray(write_split(rows, FEATURES, tmp_path / "shards")[0]["image"][0])[0, 0] == 9


def test_a_small_split_is_shared_out_among_the_workers(tmp_path):
    write_split(listed(tmp_path, 70), FEATURES, tmp_path / "shards", num_records=70)
    assert len(list((tmp_path / "shards").glob("*.arrow"))) == 3


def test_no_worker_is_an_error():
    with pytest.raises(DataError, match="num_proc is 0"), workers(0):
        pass
