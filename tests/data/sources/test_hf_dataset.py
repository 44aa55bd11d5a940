"""Data sets in the format of `datasets`, as their users have them on disk."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data import image_writer as image_writer
from fer_pll.data.dataset import REPORT, load_dataset
from fer_pll.data.sources.hf_dataset import Columns, list_dataset
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

NAMES = ["Sad", "Happy", "neutral"]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("L", (6, 6), number).save(buffer, "PNG")
    return buffer.getvalue()


def make(labels=(0, 1, 2, 1), label=None, **columns) -> Dataset:
    """Rows whose images have their number as their gray value."""
    features = {"image": Image(), "label": label or ClassLabel(names=NAMES)}
    values = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(len(labels))], "label": list(labels)}
    for name, (column, feature) in columns.items():
        values[name], features[name] = column, feature
    return Dataset.from_dict(values, Features(features))


def rows_of(listed, split="train"):
    return list(listed.splits[split])


def values_of(listed, column, split="train"):
    return [row.columns[column] for row in rows_of(listed, split)]


@pytest.fixture
def save(tmp_path):
    """A function that saves a data set as `kind` and returns the folder."""

    def save(dataset, kind="disk"):
        folder = tmp_path / "source"
        if kind == "disk":
            dataset.save_to_disk(folder)
            return folder
        folder.mkdir()
        for split, rows in (dataset if isinstance(dataset, DatasetDict) else {"train": dataset}).items():
            if kind == "parquet":
                rows.to_parquet(folder / f"{split}.parquet")
            elif kind == "pandas":  # knows nothing of Image and ClassLabel
                rows.with_format("pandas").cast_column("image", Image(decode=False))[:].to_parquet(
                    folder / f"{split}.parquet"
                )
            else:
                rows.save_to_disk(tmp_path / split)
                next((tmp_path / split).glob("*.arrow")).rename(folder / f"{split}.arrow")
        return folder

    return save


@pytest.mark.parametrize("kind", ["disk", "parquet", "arrow"])
def test_every_kind_on_disk_is_prepared(save, tmp_path, kind, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = save(DatasetDict(train=make(), validation=make((2, 2))), kind)
    main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1", "--drop-copies", "none"])
    prepared = load_dataset(tmp_path / "set")
    assert prepared["train"].features["label"].names == ["neutral", "happiness", "sadness"]
    assert prepared["train"]["label"][:] == [2, 1, 0, 1] and prepared["validation"]["label"][:] == [0, 0]
    assert [image.getpixel((0, 0)) for image in prepared["train"]["image"]] == [0, 1, 2, 3]
    assert prepared["train"]["row_id"][:] == ["train[0]", "train[1]", "train[2]", "train[3]"]
    stored = prepared["train"].cast_column("image", Image(decode=False))[1]["image"]["bytes"]
    assert stored == png(1)  # as it came


def test_a_folder_of_images_is_read_where_it_lies(tmp_path):
    for split in ("train", "test"):
        for name in ("happy", "sad"):
            (tmp_path / "source" / split / name).mkdir(parents=True)
            PILImage.new("L", (6, 6), 50).save(tmp_path / "source" / split / name / "ü.png")
    listed = list_dataset(tmp_path / "source")
    assert listed.class_names == ["happiness", "sadness"]
    rows = rows_of(listed, "test")
    assert [(row.path.relative_to(tmp_path).as_posix(), row.columns["label"], row.data) for row in rows] == [
        ("source/test/happy/ü.png", 0, None),
        ("source/test/sad/ü.png", 1, None),
    ]


def test_a_prepared_set_comes_back_as_it_was(save, tmp_path):
    """Its columns are found by their names and types alone."""
    columns = {
        "row_id": (["a", "b"], Value("string")),
        "votes": ([[0, 3, 1], [2, 2, 0]], List(Value("int32"), length=3)),
        "candidates": ([[False, True, True], [True, True, False]], List(Value("bool"), length=3)),
    }
    names = ["neutral", "happiness", "sadness"]
    dataset = make((1, -1), ClassLabel(names=names), **columns)
    source = save(DatasetDict(train=dataset))
    main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"])
    prepared = load_dataset(tmp_path / "set", "train")
    assert prepared.features["label"].names == names
    for name in ("label", "row_id", "votes", "candidates"):
        assert prepared[name][:] == dataset[name][:]


def test_names_and_votes_in_columns_of_their_own(save):
    votes = {"Happy": ([6, 0], Value("int8")), "fear": ([1.0, 2.0], Value("float32")), "age": ([31, 9], Value("int8"))}
    dataset = make((0, 0), **votes).remove_columns("label")
    listed = list_dataset(save(dataset))
    assert listed.class_names == list(EXPRESSIONS) and listed.columns == ["votes"]
    rows = rows_of(listed)
    assert [{EXPRESSIONS[k]: n for k, n in enumerate(row.columns["votes"]) if n} for row in rows] == [
        {"happiness": 6, "fear": 1},
        {"fear": 2},
    ]
    assert [EXPRESSIONS[row.columns["label"]] for row in rows] == ["happiness", "fear"]


def test_lists_are_in_the_order_of_the_class_label(save):
    columns = {
        "votes": ([[5, 0, 1]], List(Value("int64"))),
        "sets": ([["happy", "Sad"]], List(Value("string"))),
        "numbers": ([[0, 2]], List(Value("int64"))),
        "joined": (["neutral|happiness"], Value("string")),
    }
    source = save(make((1,), **columns))
    listed = list_dataset(source, Columns(candidates="sets"))
    assert listed.class_names == ["neutral", "happiness", "sadness"]
    (row,) = rows_of(listed)
    assert row.columns == {"label": 1, "votes": [1, 0, 5], "candidates": [False, True, True]}
    assert values_of(list_dataset(source, Columns(candidates="numbers")), "candidates") == [[True, False, True]]
    assert values_of(list_dataset(source, Columns(candidates="joined")), "candidates") == [[True, True, False]]
    some = list_dataset(source, Columns(candidates="sets"), ["sadness", "happiness"])  # another order, and one less
    (row,) = rows_of(some)
    assert row.columns == {"label": 1, "votes": [5, 0], "candidates": [True, True]}


def test_names_and_numbers_as_labels(save):
    source = save(make(("happy", "Surprised"), Value("string")))
    assert values_of(list_dataset(source), "label") == [1, 2]


def test_numbers_take_their_names_from_the_option(save):
    source = save(make((1, 0), Value("int64")))
    assert values_of(list_dataset(source, class_names=["fear", "joy"]), "label") == [1, 0]
    with pytest.raises(DataError, match="column 'label' has numbers; name their classes from 0 with --classes"):
        list_dataset(source)


def test_pandas_loses_types_but_not_images(save):
    source = save(make(("happy", "sad"), Value("string")), "pandas")
    rows = rows_of(list_dataset(source))
    assert [row.data for row in rows] == [png(0), png(1)] and [row.columns["label"] for row in rows] == [1, 3]


@pytest.mark.parametrize(
    ("labels", "feature", "columns", "reason"),
    [
        ((-1,), None, {}, "column 'label' is -1, which is not a label"),
        ((None,), None, {}, "column 'label' is None, which is not a label"),
        (("bored",), Value("string"), {}, "column 'label' is 'bored', which is not one of neutral, happiness"),
        ((0,), None, {"votes": ([[1, 2]], List(Value("int64")))}, "column 'votes' has 2 entries for 3 classes"),
        ((0,), None, {"votes": ([None], List(Value("int64")))}, "column 'votes' has nothing for 3 classes"),
        ((0,), None, {"votes": ([[0, 0, 0]], List(Value("int64")))}, "has no votes for neutral, happiness, sadness"),
        (
            (0,),
            None,
            {"votes": ([[0.5, 1, 1]], List(Value("float64")))},
            "column 'votes': the votes for 'sadness' are",
        ),
        (
            (0,),
            None,
            {"votes": ([[1, -1, 1]], List(Value("int64")))},
            "column 'votes': the votes for 'happiness' are -1",
        ),
        ((0,), None, {"votes": ([[float("nan"), 1, 1]], List(Value("float64")))}, "the votes for 'sadness' are nan"),
        (
            (0,),
            None,
            {"candidates": ([[False] * 3], List(Value("bool")))},
            "'candidates' is .*, an empty candidate set",
        ),
        ((0,), None, {"candidates": ([[True] * 2], List(Value("bool")))}, "column 'candidates' has 2 entries for 3"),
        ((0,), None, {"candidates": (["happy|bored"], Value("string"))}, "column 'candidates' is 'bored', which is"),
        (
            (0,),
            None,
            {"candidates": ([[7]], List(Value("int64")))},
            "'candidates' is 7, but the classes are numbered to 2",
        ),
    ],
)
def test_a_row_that_cannot_be_used_says_which_column(save, labels, feature, columns, reason):
    (row,) = rows_of(list_dataset(save(make(labels, feature, **columns))))
    assert row.row_id == "train[0]"
    with pytest.raises(DataError, match=reason):
        raise DataError(row.problem)


def test_bad_images_and_rows_are_reported_and_the_rest_is_prepared(save, tmp_path, capsys):
    rows = [{"bytes": data, "path": None} for data in (png(0), b"", b"no image", png(3)[:-30], png(4))]
    features = Features(image=Image(), label=ClassLabel(names=NAMES))
    source = save(Dataset.from_dict({"image": rows, "label": [0, 0, 0, 0, -1]}, features))
    main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1"])
    assert len(load_dataset(tmp_path / "set", "train")) == 1
    report = (tmp_path / "set" / REPORT).read_text().splitlines()
    assert [line.split(",")[0] for line in report] == ["row_id", *(f"train[{n}]" for n in range(1, 5))]
    assert "column 'image' is empty" in report[1] and "not an image" in report[2] and "truncated" in report[3]
    assert "4 images could not be used" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"^train\[1\]: column 'image' is empty"):
        main(["dataset", str(source), "--out", str(tmp_path / "strict"), "--strict", "--num-proc", "1"])


def text(*values):
    return list(values), Value("string")


@pytest.mark.parametrize(
    ("columns", "class_names", "reason"),
    [
        (Columns(image="photo"), None, "no column 'photo' for --image; it has image, label, other, note"),
        (Columns(image="note"), None, "column 'note' is .*, but --image needs images"),
        (Columns(), None, r"--image has several columns for it \(image, other\): name one with --image"),
        (Columns(image="image", label="other"), None, "column 'other' is .*, but --label needs a ClassLabel"),
        (Columns(image="image", votes="note"), None, "column 'note' is .*, but --votes needs a list, or several"),
        (Columns(image="image", votes="label,note"), None, "'label' is .*, but --votes needs numbers"),
        (Columns(image="image", row_id="other"), None, "column 'other' is .*, but --row-id needs texts or numbers"),
        (Columns(image="image"), ["joy", "happy"], "two of its classes are happiness: happiness, happiness"),
    ],
)
def test_columns_of_no_use_are_named(save, columns, class_names, reason):
    source = save(make((0, 1), other=([png(8)] * 2, Value("binary")), note=text("x", "y")))
    with pytest.raises(DataError, match=reason):
        list_dataset(source, columns, class_names)


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        (None, "the column 'happyness' has numbers, but is no class: rename it if 'happiness' is meant"),
        ("neutral,fear,happyness", "the column 'happyness' of --votes is none of"),
    ],
)
def test_votes_for_a_misspelled_class_are_named(save, votes, reason):
    counts = {name: ([1, 0], Value("int64")) for name in ("neutral", "fear", "happyness", "age")}
    with pytest.raises(DataError, match=reason):
        list_dataset(save(make((0, 1), **counts)), Columns(votes=votes))


def test_nothing_to_learn_from(save):
    with pytest.raises(DataError, match="has the columns image, none of which is known to hold labels, votes"):
        list_dataset(save(make().remove_columns("label")))


def test_a_row_id_stands_once(save):
    listed = list_dataset(save(make((0, 1, 2), name=text("a", "b", "a"))), Columns(row_id="name"))
    with pytest.raises(DataError, match=r"train\[2\]: name 'a' is there twice"):
        rows_of(listed)


def test_splits_of_other_names(save):
    with pytest.raises(DataError, match="has the splits fold1, fold2, which should be train, validation and test"):
        list_dataset(save(DatasetDict(fold1=make(), fold2=make())))


def test_classes_that_are_one(save):
    with pytest.raises(DataError, match="two of its classes are happiness: happiness, happiness"):
        list_dataset(save(make((0, 1), ClassLabel(names=["joy", "Happy"]))))


def test_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is not a data set that can be opened"):
        list_dataset(tmp_path / "empty")
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.parquet is a file: name the folder"):
        list_dataset(tmp_path / "a.parquet")


def test_a_damaged_file_is_an_error_with_its_place(save, tmp_path):
    source = save(make(tuple(range(3)) * 400), "parquet")
    file = next(source.glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[200:4000] = bytes(3800)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot be read from train\[.*get the data set again"):
        main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1"])
    assert not (tmp_path / "set").exists()


def test_an_interrupted_run_goes_on_and_shards_are_bounded(save, monkeypatch, tmp_path):
    monkeypatch.setattr(image_writer, "BYTES_PER_SHARD", 3 * len(png(99)))  # ends with the image beyond
    source = save(make(tuple(range(3)) * 4))

    def write():
        listed = list_dataset(source)
        features = Features(image=Image(), row_id=Value("string"), label=Value("int64"))
        return image_writer.write_split(listed.splits["train"], features, tmp_path / "shards")[0]

    assert len(write()) == 12
    assert len(list((tmp_path / "shards").glob("*.arrow"))) == 3
    opened = []
    open_image = image_writer.open_image
    monkeypatch.setattr(image_writer, "open_image", lambda data: opened.append(data) or open_image(data))
    (tmp_path / "shards" / "000001.json").unlink()
    assert [np.asarray(image)[0, 0] for image in write()["image"]] == list(range(12))
    assert opened == [png(n) for n in range(4, 8)]
