"""AffectNet: one label for each image, with a face box and landmarks (Mollahosseini, Hasani and Mahoor, 2017)."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...io.errors import DataError
from ...io.tables import decimal, read_columns
from ...labels.expressions import EXPRESSIONS
from ..cropping import CropToBox
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import ON_REQUEST, Opened, Source

EXPRESSIONS_OF_LABEL = {
    0: "neutral",
    1: "happiness",
    2: "sadness",
    3: "surprise",
    4: "fear",
    5: "disgust",
    6: "anger",
    7: "contempt",
}
"""The labels 8 to 10 mean none, uncertain and no face."""
NUM_LABELS = 11
NUM_LANDMARKS = 68

_TABLES = {"training.csv": "train", "validation.csv": "validation"}
_IMAGES = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
_FOLDERS = {"train_set": "train", "val_set": "validation"}
_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
)


def affectnet_classes(num_classes: int) -> tuple[str, ...]:
    """The expressions of AffectNet-8, or of AffectNet-7, which has no contempt, in the order of FER+."""
    if num_classes not in (7, 8):
        raise DataError(f"AffectNet has 7 or 8 expressions, not {num_classes}")
    return EXPRESSIONS[:num_classes]


def list_affectnet(source: str | Path, num_classes: int = 8) -> dict[str, Iterator[ImageRecord]]:
    """Lists the annotated images, in either layout that people have.

    - `training.csv` and `validation.csv`, with the images in `Manually_Annotated_Images`;
    - `train_set` and `val_set`, with `images/0.jpg`, `annotations/0_exp.npy` and `annotations/0_lnd.npy`.

    Rows without an expression (none, uncertain, no face) are left out, and with `num_classes=7` those of contempt too.

    Args:
        source: the folder.
        num_classes: 8, or 7.

    Returns:
        one iterator for each split, so that memory need not hold 440,000 rows. `landmarks` are five points, made from
        the 68. The first layout also has the face's `box`. A row with a malformed box or landmarks has a `problem`;
        in the second layout, so has one with a malformed file.

    Raises:
        DataError: the folder has neither layout. Also while the rows are read: a table is malformed, or an expression
            in it is not a number from 0 to 10.
    """
    label_of_expression = {name: label for label, name in EXPRESSIONS_OF_LABEL.items()}
    labels = [label_of_expression[name] for name in affectnet_classes(num_classes)]
    source = Path(source)
    tables = {split: source / name for name, split in _TABLES.items() if (source / name).is_file()}
    if tables:
        images = next((source / name for name in _IMAGES if (source / name).is_dir()), None)
        if images is None:
            raise DataError(f"{source} has {tables.popitem()[1].name}, but no folder {_IMAGES[0]}: put it there")
        return {split: _list_table(table, images, labels) for split, table in tables.items()}
    folders = {split: source / name for name, split in _FOLDERS.items() if (source / name).is_dir()}
    if not folders:
        raise DataError(
            f"{source} is not AffectNet: it has neither {', '.join(_TABLES)} nor the folders {', '.join(_FOLDERS)}"
        )
    for folder in folders.values():
        for name in ("images", "annotations"):
            if not (folder / name).is_dir():
                raise DataError(f"{folder} has no folder {name}: get it again")
    return {split: _list_folder(folder, labels) for split, folder in folders.items()}


def five_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Left eye, right eye, nose tip, left and right corner of the mouth, as seen in the image.

    Args:
        landmarks: (68, 2), in the order of the iBUG 300-W annotation: 36-41 and 42-47 go around the eyes, 30 is the
            tip of the nose, 48 and 54 are the corners of the mouth.

    Returns:
        (5, 2).
    """
    eyes = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    return np.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def _list_table(table: Path, images: Path, labels: list[int]) -> Iterator[ImageRecord]:
    for line, (name, *box, landmarks, expression) in read_columns(table, _COLUMNS):
        label = _parse_label(f"{table}:{line}", expression)
        if label not in labels:
            continue
        path = PurePosixPath(name.replace("\\", "/"))
        problem, points, face = None, None, None
        if ".." in path.parts or path.is_absolute():
            problem = f"{name} leads out of {images.name}: correct the path"
        else:
            try:
                points = _parse_landmarks([number for number in landmarks.split(";") if number.strip()])
                left, top, width, height = map(_finite, box)
                face = left, top, width, height
            except ValueError as error:
                problem = f"{error}: correct the row or get {table.name} again"
        yield ImageRecord(images / path, f"{table.name}:{line}", {"label": labels.index(label)}, face, points, problem)


def _list_folder(folder: Path, labels: list[int]) -> Iterator[ImageRecord]:
    annotations = folder / "annotations"
    numbers = sorted(
        int(found[1]) for path in annotations.iterdir() if (found := re.fullmatch(r"(\d+)_exp.npy", path.name))
    )
    if not numbers:
        raise DataError(f"{annotations} has no file like 0_exp.npy: get it again")
    for number in numbers:
        problem, points, label = None, None, labels[0]
        file = annotations / f"{number}_exp.npy"
        try:
            label = _parse_label(str(file), " ".join(map(str, _load(file))))
            if label not in labels:
                continue
            file = annotations / f"{number}_lnd.npy"
            points = _parse_landmarks(_load(file))
        except DataError as error:
            problem = str(error)
        except ValueError as error:
            problem = f"{file}: {error}; get it again"
        columns = {"label": labels.index(label)}
        yield ImageRecord(
            folder / "images" / f"{number}.jpg", f"{folder.name}/{number}", columns, None, points, problem
        )


def _load(file: Path) -> list[Any]:
    """The numbers or texts in a NumPy file, in one row."""
    try:
        array = np.load(file, mmap_mode="r")  # refuses pickles, which could run code, and sizes that the file lacks
        if isinstance(array, np.ndarray) and array.dtype.kind in "biufUS" and array.size <= 2 * NUM_LANDMARKS:
            return array.ravel().tolist()  # text with numbers that are no characters ends here
    except Exception as error:  # of NumPy's readers, which parse the header as Python, and of zip files
        raise DataError(f"{file} is missing or is not a NumPy array ({error}): get it again") from error
    raise DataError(f"{file} is not a NumPy array of at most {2 * NUM_LANDMARKS} numbers: get it again")


def _parse_label(place: str, text: str) -> int:
    try:
        label = int(decimal(text))
    except (ValueError, OverflowError):
        label = -1
    if not 0 <= label < NUM_LABELS:
        raise DataError(f"{place}: expression {text!r} is not a number from 0 to {NUM_LABELS - 1}: get the file again")
    return label


def _parse_landmarks(numbers: list[Any]) -> tuple[float, ...]:
    if len(numbers) != 2 * NUM_LANDMARKS:
        raise ValueError(f"{len(numbers)} coordinates of landmarks where 2 x {NUM_LANDMARKS} should be")
    values = np.array([_finite(number) for number in numbers]).reshape(NUM_LANDMARKS, 2)
    return tuple(five_landmarks(values).reshape(-1).round(3).tolist())


def _finite(number: str | float) -> float:
    value = decimal(str(number))
    if not np.isfinite(value):
        raise ValueError(f"{number!r} is not a position")
    return value


class AffectNet(Source):
    name = "affectnet"
    summary = "AffectNet: the annotated images, in either layout"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source", help="folder with training.csv and validation.csv, or with the folders train_set and val_set"
        )
        parser.add_argument(
            "--classes", type=int, choices=(7, 8), default=8, help="8 expressions (default), or 7 without contempt"
        )

    def open(self, options: argparse.Namespace) -> Opened:
        source = Path(options.source)
        found = [name for name in (*_TABLES, *_FOLDERS) if (source / name).exists()]
        return Opened(
            affectnet_classes(options.classes),
            list_affectnet(source, options.classes),
            provenance=Provenance(f"AffectNet-{options.classes}", self.name, license=ON_REQUEST),
            crop=CropToBox(),
            read_as=f"AffectNet-{options.classes} ({', '.join(found)})",
            root=source,
        )
