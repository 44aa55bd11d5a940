"""RAF-DB in small, and the real partition file where FER_PLL_RAFDB_LIST names it."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import REPORT, load_dataset, shards_folder
from fer_pll.data.provenance import Provenance
from fer_pll.data.sources.base import ON_REQUEST
from fer_pll.data.sources.rafdb import CLASSES, list_rafdb
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

LINES = ["train_00001.jpg 5", "train_00002.jpg 1", "test_0001.jpg 7", "train_00003.jpg 4"]


@pytest.fixture
def basic(tmp_path):
    """The folder `basic` with four images in both forms."""
    root = tmp_path / "basic"
    for folder in ("EmoLabel", "Image/aligned", "Image/original"):
        (root / folder).mkdir(parents=True)
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(LINES) + "\n")
    for number, line in enumerate(LINES):
        stem = line.split(".")[0]
        PILImage.new("RGB", (100, 100), (20 * number, 0, 0)).save(root / "Image" / "aligned" / f"{stem}_aligned.jpg")
        PILImage.new("RGB", (300, 200), (number, 0, 0)).save(root / "Image" / "original" / f"{stem}.jpg")
    return root


@pytest.mark.parametrize(("images", "size"), [("aligned", (100, 100)), ("original", (300, 200))])
def test_both_forms_are_listed_with_the_names_of_ferplus(basic, images, size):
    for source in (basic, basic.parent):
        splits = list_rafdb(source, images)
        assert list(splits) == ["train", "test"]
        names = [CLASSES[row.columns["label"]] for row in splits["train"]]
        assert names == ["sadness", "surprise", "happiness"]
        assert splits["test"][0].row_id == "list_patition_label.txt:3"
        assert CLASSES[splits["test"][0].columns["label"]] == "neutral"
        for row in splits["train"] + splits["test"]:
            with PILImage.open(row.path) as image:
                assert image.size == size
    assert EXPRESSIONS[:7] == CLASSES


def test_prepare_data_writes_the_set_and_a_report(basic, tmp_path, capsys):
    (basic / "Image" / "aligned" / "train_00002_aligned.jpg").write_bytes(b"")
    out = tmp_path / "set"
    main(["rafdb", str(basic), "--out", str(out), "--num-proc", "2"])
    dataset = load_dataset(out)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 2, "test": 1}
    assert "votes" not in dataset["train"].column_names
    assert dataset["train"].features["label"].names == list(CLASSES)
    report = (out / REPORT).read_text().splitlines()
    assert len(report) == 2 and report[1].startswith("list_patition_label.txt:2,") and "the file is empty" in report[1]
    printed = capsys.readouterr().out
    assert "1 images could not be used" in printed and "train_00002_aligned.jpg: the file is empty" in printed
    assert "RAF-DB train: 2 of 3 rows; dropped: 1 that could not be used" in printed
    assert Provenance.from_dataset(dataset["test"]) == Provenance(
        "RAF-DB", "rafdb", "test", kept=1, dropped={"that could not be used": 0}, license=ON_REQUEST
    )
    assert not shards_folder(out).exists()

    # the set can be replaced, and stopping at the first unreadable image leaves it as it is
    with pytest.raises(DataError, match=r"^list_patition_label.txt:2: "):
        main(["rafdb", str(basic), "--out", str(out), "--overwrite", "--strict", "--num-proc", "1"])
    assert len(load_dataset(out, "train")) == 2
    PILImage.new("RGB", (100, 100), "white").save(basic / "Image" / "aligned" / "train_00002_aligned.jpg")
    main(["rafdb", str(basic), "--out", str(out), "--overwrite", "--num-proc", "1"])
    assert len(load_dataset(out, "train")) == 3 and not (out / REPORT).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train_00001.jpg;5\n", r"list_patition_label.txt:1 is 'train_00001.jpg;5', but lines are like"),
        ("train_00001.jpg 5\ntrain_00002.jpg 8\n", "txt:2: label 8 is not one of 1 to 7"),
        ("train_00001.jpg 0\n", "label 0"),
        ("train_00001.jpg -1\n", "lines are like"),
        ("train_00001.jpg\n", "lines are like"),
        ("valid_00001.jpg 1\n", "lines are like"),
        ("train_00001.png 1\n", "lines are like"),
        ("train_/../../secret.jpg 1\n", "lines are like"),
        ("train_00001.jpg 5\ntrain_00001.jpg 4\n", "txt:2 lists train_00001.jpg again, after line 1"),
        ("\n\n", "lists no images"),
    ],
)
def test_a_malformed_list_is_named_by_its_line(basic, content, message):
    (basic / "EmoLabel" / "list_patition_label.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        list_rafdb(basic)


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(basic):
    file = basic / "EmoLabel" / "list_patition_label.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())
    assert len(list_rafdb(basic)["train"]) == 3


@pytest.mark.parametrize("more", [" 0.93", "\t1 2 3", " male 20-29"])
def test_further_columns_are_passed_over(basic, more):
    file = basic / "EmoLabel" / "list_patition_label.txt"
    expected = list_rafdb(basic)
    file.write_text("".join(f"{line}{more}\n" for line in LINES))
    assert list_rafdb(basic) == expected


NAMES = {"train_00001": 5, "train_00002": 1, "train_00003": 4, "test_0001": 7}  # as in LINES


def write_folders(root, splits=True, folders=True, tables=True):
    """Kaggle's copies of RAF-DB."""
    for stem, label in NAMES.items():
        split = stem.partition("_")[0]
        folder = root / (split if splits else "") / (str(label) if folders else "")
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (100, 100), (label, 0, 0)).save(folder / f"{stem}_aligned.jpg")
        if tables:
            with (root / f"{split}_labels.csv").open("a") as file:
                print("image,label" if not file.tell() else "", end="\n" if not file.tell() else "", file=file)
                print(f"{stem}_aligned.jpg,{label}", file=file)
    return root


@pytest.mark.parametrize("above", ["", "DATASET", "archive", "basic"])
@pytest.mark.parametrize(
    "form",
    [
        {"tables": True},
        {"tables": False},
        {"folders": False, "tables": True},
        {"splits": False, "tables": False},
    ],
    ids=str,
)
def test_folders_of_classes(tmp_path, capsys, above, form):
    write_folders(tmp_path / "rafdb" / above, **form)
    splits = list_rafdb(tmp_path / "rafdb")
    found = {row.path.name[: -len("_aligned.jpg")]: row for rows in splits.values() for row in rows}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "test": 1}
    names = {stem: CLASSES[row.columns["label"]] for stem, row in found.items()}
    expected = {"train_00001": "sadness", "train_00002": "surprise", "train_00003": "happiness"}
    assert names == expected | {"test_0001": "neutral"}
    assert all(row.path.is_file() for row in found.values())
    assert len({row.row_id for row in found.values()}) == 4
    main(
        ["rafdb", str(tmp_path / "rafdb"), "--out", str(tmp_path / "set"), "--drop-copies", "none", "--num-proc", "1"]
    )
    assert len(load_dataset(tmp_path / "set", "train")) == 3  # its authors' splits stay as they are
    assert "read as RAF-DB (" in capsys.readouterr().out


def test_a_table_and_a_folder_that_disagree_are_named(tmp_path):
    root = write_folders(tmp_path / "DATASET")
    table = root / "train_labels.csv"
    table.write_text(table.read_text().replace("train_00002_aligned.jpg,1", "train_00002_aligned.jpg,3"))
    with pytest.raises(
        DataError, match=r"train_labels.csv:3 gives train_00002_aligned.jpg another label than its fol"
    ):
        list_rafdb(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.jpg,1", r"train_labels.csv:5: '../secret.jpg' is not the name of an image"),
        ("a.jpg,9", r"train_labels.csv:5: label 9 is not one of 1 to 7"),
        ("a.jpg,happy", r"train_labels.csv:5: label happy is not one of 1 to 7"),
        ("a.jpg", r"train_labels.csv:5 has 1 columns where 2 should be"),
    ],
)
def test_a_malformed_table_is_named_by_its_line(tmp_path, line, message):
    root = write_folders(tmp_path / "DATASET")
    with (root / "train_labels.csv").open("a") as file:
        print(line, file=file)
    with pytest.raises(DataError, match=message):
        list_rafdb(root)


def test_an_image_that_a_table_lists_and_no_folder_has_is_left_out(tmp_path):
    root = write_folders(tmp_path / "DATASET")
    (root / "train" / "1" / "train_00002_aligned.jpg").unlink()
    options = ["--drop-copies", "none", "--num-proc", "1"]
    main(["rafdb", str(root), "--out", str(tmp_path / "set"), *options])
    report = (tmp_path / "set" / REPORT).read_text()
    assert "train_00002_aligned.jpg: there is no such file" in report
    assert len(load_dataset(tmp_path / "set", "train")) == 2


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no EmoLabel/list_patition_label.txt"):
        list_rafdb(tmp_path)
    with pytest.raises(DataError, match="choose aligned or original"):
        list_rafdb(tmp_path, "raw")


@pytest.mark.skipif("FER_PLL_RAFDB_LIST" not in os.environ, reason="set it to the real list_patition_label.txt")
def test_the_real_list_has_the_published_class_counts(tmp_path):
    (tmp_path / "EmoLabel").mkdir()
    text = Path(os.environ["FER_PLL_RAFDB_LIST"]).read_text()
    (tmp_path / "EmoLabel" / "list_patition_label.txt").write_text(text)
    splits = list_rafdb(tmp_path)
    published = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    for split, counts in (
        ("train", (1290, 281, 717, 4772, 1982, 705, 2524)),
        ("test", (329, 74, 160, 1185, 478, 162, 680)),
    ):
        found = Counter(CLASSES[row.columns["label"]] for row in splits[split])
        assert tuple(found[name] for name in published) == counts
