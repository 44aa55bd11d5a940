"""Folders of images, one for each class."""

import pytest
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import REPORT, load_dataset
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
    for folder in (".cache", "nothing", "notes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes" / "read.me").write_text("no image, no class")
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


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_numbers_are_no_names_of_classes(tmp_path, splits):
    for split in splits:
        for number in ("1", "2", "10"):
            image(tmp_path / split / number / "a.png")
    with pytest.raises(DataError, match=r"are numbers \(1, 10, 2\): name their classes .* with --classes .* rafdb"):
        list_image_folder(tmp_path)
    rows, names = list_image_folder(tmp_path, ["bored", "awake", "asleep"])
    found = {row.path.parent.name: names[row.columns["label"]] for row in rows["train"]}
    assert found == {"1": "bored", "2": "awake", "10": "asleep"}
    rows, names = list_image_folder(tmp_path, ["1", "2", "10"])
    assert {row.path.parent.name: names[row.columns["label"]] for row in rows["train"]} == {n: n for n in names}
    with pytest.raises(DataError, match=r"3 folders of numbers \(1, 10, 2\), but --classes has 2 names"):
        list_image_folder(tmp_path, ["bored", "awake"])


@pytest.mark.parametrize("below", ["happy/a.png", "train/happy/a.png", "archive/train/happy/a.png", "faces/1.png"])
def test_a_single_class_is_asked_about(tmp_path, below):
    image(tmp_path / below)
    with pytest.raises(DataError, match=r"has a single class, '\w+': name the folder whose folders are the classes"):
        list_image_folder(tmp_path)


def test_a_single_class_goes_on_when_the_user_says_so(tmp_path):
    image(tmp_path / "in" / "happy" / "a.png")
    main(["folder", str(tmp_path / "in"), "--out", str(tmp_path / "set"), "--num-proc", "1", "--classes", "happy"])
    assert load_dataset(tmp_path / "set", "train").features["label"].names == ["happiness"]


def test_classes_give_the_order_and_may_have_no_images(tmp_path):
    for name in ("bored", "awake"):
        image(tmp_path / name / "a.png")
    rows, names = list_image_folder(tmp_path, ["bored", "asleep", "awake"])
    assert names == ["bored", "asleep", "awake"]
    assert [(row.row_id, row.columns["label"]) for row in rows["train"]] == [("awake/a.png", 2), ("bored/a.png", 0)]
    with pytest.raises(
        DataError, match="the folder 'awake' is none of the classes bored, asleep: add it to --classes"
    ):
        list_image_folder(tmp_path, ["bored", "asleep"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [("happy,joy", "'happiness' twice"), ("a,,b", "an empty name"), ("a, ", "an empty name"), ("a,A", "'a' twice")],
)
@pytest.mark.parametrize("source", ["folder", "votes", "dataset"])
def test_classes_that_are_no_names(tmp_path, source, classes, message):
    with pytest.raises(DataError, match=f"--classes has {message}"):
        main([source, str(tmp_path), "--out", str(tmp_path / "set"), "--classes", classes])


@pytest.mark.parametrize("link", ["", "happy", "happy/more", "train"])
def test_linked_folders_are_read(tmp_path, link):
    """The usual arrangement of a lab: the images lie on another disk."""
    source = tmp_path / "source"
    split = "train" if link == "train" else ""
    for path in ("happy/more/a.png", "sad/b.png"):
        image(source / split / path)
    place = source / link
    place.rename(tmp_path / "disk")
    place.symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(source) if link == "happy" else None
    arguments = ["folder", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"]
    main([*arguments, "--drop-copies", "none"])
    rows = load_dataset(tmp_path / "set", "train")["row_id"][:]
    assert [name for name in rows if "loop" not in name] == sorted(
        f"{split}/{path}".strip("/") for path in ("happy/more/a.png", "sad/b.png")
    )
    assert not (tmp_path / "set" / REPORT).exists()


@pytest.mark.parametrize("name", [".DS_Store", "__MACOSX"])
def test_what_systems_leave_is_no_class(tmp_path, name):
    for path in ("happy/a.png", "sad/b.png", f"{name}/happy/._a.png"):
        image(tmp_path / path)
    assert list_image_folder(tmp_path)[1] == ["happiness", "sadness"]


def test_prepare_data_folder(tmp_path):
    for path in ("pictures/train/happy/a.png", "pictures/train/sad/b.png", "pictures/val/happy/c.png"):
        image(tmp_path / path)
    PILImage.new("L", (8, 8), 6).save(tmp_path / "pictures/train/sad/b.png")
    PILImage.new("L", (8, 8), 7).save(tmp_path / "pictures/val/happy/c.png")
    options = ["--drop-copies", "none", "--num-proc", "1"]
    main(["folder", str(tmp_path / "pictures"), "--out", str(tmp_path / "set"), *options])
    dataset = load_dataset(tmp_path / "set")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 2, "validation": 1}
    assert dataset["train"].features["label"].names == ["happiness", "sadness"]
