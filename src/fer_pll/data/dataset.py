"""Prepared data sets on disk: saving (whole or not at all) and loading (with errors that say what is wrong)."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_from_disk,
)
from PIL import Image as PILImage

from ..io.atomic import check_local, check_writable, whole_folder
from ..io.errors import DataError, name_some, naming_a_full_disk
from ..io.images import ImageError, decode_as_stored
from ..io.stored import reading

COLUMNS = ("image", "row_id", "label")
"""The columns that every prepared set has."""

OPTIONAL_COLUMNS = ("votes", "answers", "candidates", "confidence", "majority", "true_label")
"""The columns that a source may add."""

REPORT = "unreadable.csv"
"""File in a prepared set that lists the images that were left out, and why."""

COPIES = "copies.csv"
"""File in a prepared set that lists which images are copies of which, and whether they were left out."""

HELD_OUT = "held_out"
"""Split of training rows that are not trained on. Calibration is fitted on them after the run."""

_MAKES_SPLIT = {HELD_OUT: "--hold-out 0.05", "validation": "--validation-share 0.1"}  # options of fer-pll prepare

_DICT_FILE = "dataset_dict.json"
_ROWS_FILE = "state.json"


def prepared_features(class_names: Sequence[str], columns: Sequence[str] = ()) -> Features:
    """Features of `COLUMNS` and of some of `OPTIONAL_COLUMNS`, for K classes.

    `answers` has a number for each annotator: the class that they chose, or -1 where they said nothing.
    """
    label = ClassLabel(names=list(class_names))
    of_each_class = {"votes": "int32", "candidates": "bool", "confidence": "float32"}
    optional = {name: List(Value(kind), length=len(class_names)) for name, kind in of_each_class.items()}
    optional |= {"answers": List(Value("int16")), "majority": Value("bool"), "true_label": label}
    features = {"image": Image(), "row_id": Value("string"), "label": label}
    return Features(features | {name: optional[name] for name in OPTIONAL_COLUMNS if name in columns})


class Unreadable(NamedTuple):
    """An image that was left out, and why."""

    row_id: str
    path: str
    reason: str


def check_output_folder(path: str | Path, overwrite: bool = False) -> None:
    """Checks that a prepared set may be saved at `path`.

    It may where nothing is there yet. With `overwrite` it may also replace a prepared set, and nothing else: a folder
    that holds other files is never deleted.

    Raises:
        DataError: `path` is a file, cannot be written, holds something while `overwrite` is off, or
            holds something that is not a prepared set.
    """
    check_local(path)
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file: name a folder that does not exist yet")
    place = path.resolve()
    check_writable(place.parent if place.exists() else place)  # the set is made beside its place, and renamed
    entries = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if not entries:
        return
    if not overwrite:
        raise DataError(
            f"{path} already holds {name_some(entries)}: choose another folder, or --overwrite to replace it"
        )
    ours = {_DICT_FILE, REPORT, COPIES, "train", "validation", "test", HELD_OUT}
    foreign = [name for name in entries if name not in ours]
    if foreign or _DICT_FILE not in entries:
        raise DataError(
            f"{path} holds {name_some(foreign or entries)}, which does not belong to a prepared data set, so it is "
            "not replaced: choose another folder, or move those files away yourself"
        )


def save_dataset(
    dataset: DatasetDict,
    path: str | Path,
    overwrite: bool = False,
    unreadable: Sequence[Unreadable] = (),
    copies: Sequence[NamedTuple] = (),
) -> None:
    """Saves `dataset` at `path`, whole or not at all (see `io.atomic.whole_folder`).

    `REPORT` lists the images that were left out, where there are any, and `COPIES` the copies.

    Raises:
        DataError: as `check_output_folder`.
    """
    check_output_folder(path, overwrite)
    with naming_a_full_disk(Path(path)), whole_folder(path, overwrite) as folder:
        dataset.save_to_disk(folder)
        for name, rows in ((REPORT, unreadable), (COPIES, copies)):
            if rows:
                _write_report(rows, folder / name)


def shards_folder(path: str | Path) -> Path:
    """The hidden folder beside a set that holds its parts until it is whole. A repeated run finds them there."""
    path = Path(path).resolve()
    folder = path.parent / f".{path.name}.shards"
    if folder.is_symlink():
        raise DataError(f"{folder} is a symbolic link, which is not followed: remove it")
    return folder


def _write_report(rows: Sequence[NamedTuple], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)


def is_prepared(path: str | Path) -> bool:
    """Whether a folder is a prepared set (which may be damaged)."""
    return any((Path(path) / name).is_file() for name in (_DICT_FILE, _ROWS_FILE))


def load_dataset(path: str | Path, split: str | None = None) -> DatasetDict | Dataset:
    """Reads a prepared set back: all its splits, or the one named `split`. Rows saved alone are the split `train`.

    Sets that an earlier version prepared have a column `index`; it is left out, because the trainer numbers the rows.

    Raises:
        DataError: the folder does not exist, is not a prepared set, is damaged, lacks one of `COLUMNS`, has no split
            of that name, or does not hold its images itself.
    """
    path = Path(path)
    how = "prepare one with `fer-pll prepare` (--help shows how)"
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: name the folder of a prepared data set, or {how}")
    if not is_prepared(path):
        raise DataError(f"{path} is not a prepared data set (it has no {_DICT_FILE}): {how}")
    with reading(path, "it is damaged; prepare it again"):
        dataset = load_from_disk(path)
        if isinstance(dataset, Dataset):  # `Dataset.save_to_disk` wrote it, as of `FerPllTrainer.revised_dataset`
            dataset = DatasetDict(train=dataset)
        for rows in dataset.values():
            check_columns(rows)
    for name, rows in dataset.items():
        missing = [column for column in COLUMNS if column not in rows.column_names]
        if missing:
            raise DataError(f"{path}: split {name!r} has no column {name_some(missing)}: {how}")
        check_own_files(path, rows)
        _check_images(path, name, rows)
        rows.info.features["image"] = StoredImage(f"{path}: an image of split {name!r}")
        if "index" in rows.column_names:
            dataset[name] = rows.remove_columns("index")
    return dataset if split is None else find_split(dataset, split, path)


def find_split(dataset: DatasetDict, split: str, path: str | Path) -> Dataset:
    """One split of a prepared set.

    Raises:
        DataError: it is not there; the message names the folder `path` and the splits that are there.
    """
    if split not in dataset:
        make = _MAKES_SPLIT.get(split)
        raise DataError(
            f"{path} has no split {split!r}, it has {name_some(list(dataset))}: name one of these with --split"
            + (f", or prepare the set again with {make}" if make else "")
        )
    return dataset[split]


class StoredImage(Image):
    """The images of a prepared set, opened by the rules of `io.images`: its formats and limit of pixels.

    It is saved as, and is equal to, an `Image` of `datasets`.

    Args:
        name: of the images, in messages.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None  # type: ignore[assignment]  # as `Image`

    def decode_example(self, value: dict[str, Any], token_per_repo_id: Any = None) -> PILImage.Image:
        try:
            return decode_as_stored(value["bytes"], self.name)
        except ImageError as error:
            raise DataError(f"{error}: prepare the set again") from error


def check_columns(rows: Dataset) -> None:
    """Check that the columns of a data set with labels fit each other. No image is read.

    Raises:
        ValueError: labels have no names, or are no numbers of classes; another column has not a value for each class;
            or `answers` has not a class, or -1, for each annotator.
        ArrowInvalid: the places of the values in the file are damaged.
    """
    rows.data.table.validate(full=True)
    label = rows.features.get("label")
    if label is None:
        return
    if not isinstance(label, ClassLabel):
        raise ValueError("its labels have no names")
    for name, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            if not all(isinstance(each, str) for each in feature.names):
                raise ValueError(f"the name of a class of {name} is no text")
            column = rows.data.table.column(name)
            ends = pc.min_max(column).as_py() if pa.types.is_integer(column.type) and not column.null_count else {}
            if len(rows) and not (ends and -1 <= ends["min"] <= ends["max"] < len(feature.names)):
                raise ValueError(f"{name} has a value that is no number of a class")
    for name in ("votes", "candidates", "confidence"):
        if name in rows.features and len(rows):
            column = rows.data.table.column(name)
            ends = pc.min_max(pc.list_value_length(column)).as_py() if not column.null_count else None
            if ends != {"min": len(label.names), "max": len(label.names)}:
                raise ValueError(f"{name} has not a value for each of {len(label.names)} classes")
    if "answers" in rows.features and len(rows):
        _check_answers(rows.data.table.column("answers"), len(label.names))


def _check_answers(column: pa.ChunkedArray, num_classes: int) -> None:
    lengths = pc.min_max(pc.list_value_length(column)).as_py()
    if column.null_count or lengths["min"] != lengths["max"]:
        raise ValueError("answers has rows of different lengths, but needs a number for each annotator")
    given = pc.list_flatten(column)
    ends = pc.min_max(given).as_py() if pa.types.is_integer(given.type) and not given.null_count else {}
    if len(given) and not (ends and -1 <= ends["min"] <= ends["max"] < num_classes):
        raise ValueError(f"answers has a value that is neither -1 nor one of {num_classes} classes")


def check_own_files(path: str | Path, dataset: Dataset) -> None:
    """Checks that a set reads no file outside of its folder; `state.json` could name any.

    Raises:
        DataError: it does.
    """
    for file in dataset.cache_files:
        if not Path(file["filename"]).resolve().is_relative_to(Path(path).resolve()):
            raise DataError(f"{path} names {file['filename']}, which lies outside of it: it is damaged; get it again")


def _check_images(path: Path, split: str, rows: Dataset) -> None:
    """Checks that the images lie in the set; `datasets` would open paths, and addresses, that stand in their place."""
    if not (isinstance(rows.features["image"], Image) and rows.features["image"].decode):
        raise DataError(
            f"{path}: the column 'image' of split {split!r} is {rows.features['image']}, which does not hold images: "
            "prepare the set again"
        )
    holds = pc.is_valid(pc.struct_field(rows.data.column("image"), "bytes"))
    missing = len(holds) - (pc.sum(holds).as_py() or 0)
    if missing:
        first = rows.data.column("row_id")[pc.index(holds, False).as_py()]
        raise DataError(
            f"{path}: {missing} rows of split {split!r} hold no image, the first is {first}: prepare it again"
        )


def load_images(paths: Sequence[str | Path]) -> Dataset:
    """The training images of several prepared sets as one set with the columns `image` and `row_id`.

    Raises:
        DataError: as `load_dataset`.
    """
    return concatenate_datasets([load_dataset(path, "train").select_columns(["image", "row_id"]) for path in paths])


def numpy_column(dataset: Dataset, name: str) -> np.ndarray:
    """A whole column as an array, without decoding the images."""
    return dataset.select_columns(name).with_format("numpy")[name][:]
