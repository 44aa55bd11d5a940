"""Folders of images, one for each class."""

import pytest
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import load_dataset
from fer_pll.data.sources.image_folder import list_image_folder
from fer_pll.io.errors import DataError


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (8, 8), 5).save(path)


def names_of(rows, names):
    return {row.row_id: names[row.columns["label"]] for row in rows}


def test_with_splits(tmp_path):
    for path in (
        "Train/Happy/b.png",
        "Train/Happy/a.JPG",
        "Train/sad/more/c.png",
        "val/happiness/d.png",
        "test/Fear/e.webp",
    ):
        image(tmp_path / path)
    (tmp_path / "Train" / "Happy" / "notes.txt").write_text("no image")
    image(tmp_path / "Train" / "Happy" / ".hidden.png")
    splits, names = list_image_folder(tmp_path)
    assert names == ["happiness", "sadness", "fear"]  # FER+'s order
    assert names_of(splits["train"], names) == {
        "Train/Happy/a.JPG": "happiness",
        "Train/Happy/b.png": "happiness",
        "Train/sad/more/c.png": "sadness",
    }
    assert names_of(splits["validation"], names) == {"val/happiness/d.png": "happiness"}
    assert names_of(splits["test"], names) == {"test/Fear/e.webp": "fear"}


def test_without_splits_and_with_own_classes(tmp_path):
    for path in ("bored/1.png", "Awake/2.png", "empty-not/3.txt.png"):
        image(tmp_path / path)
    (tmp_path / ".cache").mkdir()
    splits, names = list_image_folder(tmp_path)
    assert list(splits) == ["train"] and names == ["awake", "bored", "empty-not"]
    assert [row.row_id for row in splits["train"]] == ["Awake/2.png", "bored/1.png", "empty-not/3.txt.png"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "holds no images"),
        (["happy/readme.md"], "holds no images"),
        (["a.png", "happy/b.png"], "a.png lies in no folder of a class"),
        (["train/a.png", "train/happy/b.png"], "a.png lies in no folder of a class"),
        (["train/happy/a.png", "extra/happy/b.png"], r"holds splits \(train\) and other folders \(extra\)"),
        (["happy/a.png", "joy/b.png"], "are both happiness"),
        (["val/happy/a.png", "valid/happy/b.png"], "two folders for the split validation"),
    ],
)
def test_other_layouts_are_refused(tmp_path, paths, message):
    for path in paths:
        image(tmp_path / path) if not path.endswith(".md") else (tmp_path / "happy").mkdir()
    with pytest.raises(DataError, match=message):
        list_image_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        list_image_folder(tmp_path / "nowhere")


def test_prepare_data_folder(tmp_path):
    for path in ("pictures/train/happy/a.png", "pictures/train/sad/b.png", "pictures/val/happy/c.png"):
        image(tmp_path / path)
    PILImage.new("L", (8, 8), 6).save(tmp_path / "pictures/train/sad/b.png")
    PILImage.new("L", (8, 8), 7).save(tmp_path / "pictures/val/happy/c.png")
    main(["folder", str(tmp_path / "pictures"), "--out", str(tmp_path / "set"), "--num-proc", "1"])
    dataset = load_dataset(tmp_path / "set")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 2, "validation": 1}
    assert dataset["train"].features["label"].names == ["happiness", "sadness"]
