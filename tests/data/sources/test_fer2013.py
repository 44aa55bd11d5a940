"""FER2013 with its single labels, in the forms that Kaggle has."""

import numpy as np
import pytest
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import load_dataset
from fer_pll.data.sources.fer2013 import CLASSES, list_fer2013
from fer_pll.io.errors import DataError

USAGES = ["Training", "Training", "PublicTest", "PrivateTest"]
HEADERS = {
    "fer2013.csv": ("emotion", "pixels", "Usage"),
    "icml_face_data.csv": ("emotion", " Usage", " pixels"),
    "fer2013/fer2013.csv": ("emotion", "pixels", "Usage"),
}
FOLDERS = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


def pixels_of(number):
    return np.random.default_rng(number).integers(0, 256, (48, 48), dtype=np.uint8)


def write_table(folder, name="fer2013.csv", emotions=(0, 6, 3, 5)):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(HEADERS[name])]
    for number, (emotion, usage) in enumerate(zip(emotions, USAGES, strict=True)):
        cells = {"emotion": str(emotion), "Usage": usage, "pixels": " ".join(map(str, pixels_of(number).reshape(-1)))}
        lines.append(",".join(cells[column.strip()] for column in HEADERS[name]))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("whole_path", [False, True])
@pytest.mark.parametrize("name", HEADERS)
def test_every_form_of_the_table(tmp_path, capsys, name, whole_path):
    file = write_table(tmp_path / "kaggle", name)
    source = file if whole_path else tmp_path / "kaggle"
    main(["fer2013", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1"])
    dataset = load_dataset(tmp_path / "set")
    assert dataset["train"].features["label"].names == list(CLASSES)
    found = {split: [CLASSES[label] for label in rows["label"]] for split, rows in dataset.items()}
    assert found == {"train": ["anger", "neutral"], "validation": ["happiness"], "test": ["surprise"]}
    assert dataset["validation"]["row_id"][:] == [f"{file.name}:4"]
    assert np.array_equal(np.asarray(dataset["test"]["image"][0]), pixels_of(3))
    assert f"read as Kaggle's FER2013 (the table {file.name})" in capsys.readouterr().out


@pytest.mark.parametrize("above", ["", "archive"])
def test_folders_of_classes(tmp_path, above):
    for split in ("train", "test"):
        for number, name in enumerate(FOLDERS):
            folder = tmp_path / "kaggle" / above / split / name
            folder.mkdir(parents=True)
            PILImage.fromarray(pixels_of(number)).save(folder / f"{split}_{number}.jpg")
    opened = list_fer2013(tmp_path / "kaggle")
    assert list(opened.splits) == ["train", "test"] and opened.class_names == CLASSES
    names = {row.path.parent.name: CLASSES[row.columns["label"]] for row in opened.splits["train"]}
    expected = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
    assert names == dict(zip(FOLDERS, expected, strict=True))
    # published splits stay as they are
    options = ["--drop-copies", "none", "--num-proc", "1"]
    main(["fer2013", str(tmp_path / "kaggle"), "--out", str(tmp_path / "set"), *options])
    assert {split: len(rows) for split, rows in load_dataset(tmp_path / "set").items()} == {"train": 7, "test": 7}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n6,", "\n7,", r"fer2013.csv:3: emotion '7' is not one of 0 to 6"),
        ("\n6,", "\nsad,", r"fer2013.csv:3: emotion 'sad'"),
        ("PublicTest", "Validation", r"fer2013.csv:4: Usage 'Validation' is not known"),
        ("\n6,", "\n6,1 ", r"fer2013.csv:3 has 2305 pixels"),
        ("emotion", "label", r"fer2013.csv has no column emotion"),
    ],
)
def test_a_malformed_table_is_named_by_its_line(tmp_path, old, new, message):
    file = write_table(tmp_path)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        main(["fer2013", str(file), "--out", str(tmp_path / "set"), "--num-proc", "1"])


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is not FER2013: it has neither fer2013.csv or icml_face_data.csv"):
        list_fer2013(tmp_path)
    with pytest.raises(DataError, match="is neither a folder nor a file"):
        list_fer2013(tmp_path / "nowhere")
    (tmp_path / "train" / "bored").mkdir(parents=True)
    PILImage.new("L", (48, 48)).save(tmp_path / "train" / "bored" / "a.png")
    with pytest.raises(DataError, match="the folder 'bored' is none of the classes neutral, happiness"):
        list_fer2013(tmp_path)
