"""RAF-DB, basic expressions: one label for each image (Li, Deng and Du, 2017)."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from ...io.errors import DataError
from ...io.tables import read_columns
from ...labels.expressions import EXPRESSIONS
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import ON_REQUEST, Opened, Source
from .image_folder import images_below

LIST = "EmoLabel/list_patition_label.txt"  # its authors spell it so
EXPRESSIONS_OF_LABEL = {
    1: "surprise",
    2: "fear",
    3: "disgust",
    4: "happiness",
    5: "sadness",
    6: "anger",
    7: "neutral",
}
CLASSES = EXPRESSIONS[:7]
"""The seven expressions in the order of FER+, which has contempt as the eighth."""
_SPLITS = {"train": "train_labels.csv", "test": "test_labels.csv"}  # with the tables of Kaggle's copy
IMAGES = {"aligned": "Image/aligned/{}_aligned.jpg", "original": "Image/original/{}.jpg"}


def list_rafdb(source: str | Path, images: str = "aligned") -> dict[str, list[ImageRecord]]:
    """Lists the images of RAF-DB, in either layout that people have: 12,271 of `train` and 3,068 of `test`.

    - The folder `basic` as its authors give it, with `EmoLabel/list_patition_label.txt` and `Image`. The columns of
      the list after the label are passed over.
    - Folders of classes, `1` (surprise) to `7` (neutral), in `train` and `test`, as on Kaggle. `train_labels.csv` and
      `test_labels.csv` may lie beside these; then the images may also lie in `train` and `test` themselves.

    Args:
        source: the folder, or one that holds it (as `basic`, `DATASET`, or its only folder).
        images: `"aligned"` (faces of 100 x 100 pixels) or `"original"` (photographs), where the folder has both.

    Returns:
        records by split, in the order of the list or of the paths. `row_id` is `"list_patition_label.txt:17"`, with
        the line counted from 1, or the path.

    Raises:
        DataError: the folder or the file is missing, a line is malformed, or a table and a folder give an image two
            labels. The message names the line.
    """
    return _open(Path(source), images)[1]


def _open(source: Path, images: str) -> tuple[str, dict[str, list[ImageRecord]]]:
    """What the files are, and their records."""
    if images not in IMAGES:
        raise DataError(f"images={images!r} is not known: choose {' or '.join(IMAGES)}")
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: name RAF-DB's folder `basic`, or the one that holds it")
    below = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    roots = [source, *(path for path in below if path.name in ("basic", "DATASET") or len(below) == 1)]
    for root in roots:
        if (root / LIST).is_file():
            return f"RAF-DB ({LIST}, {images} images)", _read_list(root, images)
    for root in roots:
        splits = {split: root / split for split in _SPLITS if (root / split).is_dir()}
        if splits and (_holds_classes(splits.values()) or any((root / table).is_file() for table in _SPLITS.values())):
            found = {split: _read_folder(root, folder, _SPLITS[split]) for split, folder in splits.items()}
            return f"RAF-DB (the folders {' and '.join(found)} of {root.name})", _not_empty(root, found)
        if _holds_classes([root]):
            return "RAF-DB (folders of classes)", _not_empty(root, _by_name(_read_folder(root, root, None)))
    raise DataError(
        f"{source} has no {LIST}, and no folders train and test with folders 1 to 7: name RAF-DB's folder `basic`, or "
        "the one that holds it"
    )


def _holds_classes(folders: Iterable[Path]) -> bool:
    return all(any((folder / str(label)).is_dir() for label in EXPRESSIONS_OF_LABEL) for folder in folders)


def _not_empty(root: Path, splits: dict[str, list[ImageRecord]]) -> dict[str, list[ImageRecord]]:
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{root} holds no images: get it again")
    return splits


def _read_list(root: Path, images: str) -> dict[str, list[ImageRecord]]:
    file = root / LIST
    splits: dict[str, list[ImageRecord]] = {split: [] for split in _SPLITS}
    seen: dict[str, int] = {}
    for line, text in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        name, label, *_ = [*text.split(), ""]
        stem, _, ending = name.rpartition(".")
        split = stem.partition("_")[0]
        if split not in splits or ending != "jpg" or "/" in name or "\\" in name or not label.isdigit():
            raise DataError(f"{file}:{line} is {text!r}, but lines are like 'train_00001.jpg 5': get the file again")
        if name in seen:
            raise DataError(f"{file}:{line} lists {name} again, after line {seen[name]}: remove one of them")
        seen[name] = line
        path = root / IMAGES[images].format(stem)
        splits[split].append(ImageRecord(path, f"{file.name}:{line}", _columns(f"{file}:{line}", label)))
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{file} lists no images: get it again")
    return splits


def _columns(place: str, label: str) -> dict[str, int]:
    if not (label.isascii() and label.isdigit()) or int(label) not in EXPRESSIONS_OF_LABEL:
        raise DataError(f"{place}: label {label} is not one of 1 to 7: get the file again")
    return {"label": CLASSES.index(EXPRESSIONS_OF_LABEL[int(label)])}


def _read_folder(root: Path, folder: Path, table: str | None) -> list[ImageRecord]:
    """The images of a split, by the folders of the classes and, where there is one, by the table beside them."""
    labels: dict[str, tuple[str, dict[str, int]]] = {}  # place and columns by name
    if table is not None and (root / table).is_file():
        for line, (name, label) in read_columns(root / table, ("image", "label")):
            labels[name.strip()] = f"{root / table}:{line}", _columns(f"{root / table}:{line}", label.strip())
    rows: dict[str, ImageRecord] = {}
    for label in map(str, EXPRESSIONS_OF_LABEL):
        for path in sorted(images_below(folder / label)):
            columns = _columns(str(path), label)
            place, by_table = labels.pop(path.name, (None, columns))
            if by_table != columns:
                raise DataError(f"{place} gives {path.name} another label than its folder {label}: get the data again")
            row_id = path.relative_to(root).as_posix()
            rows[row_id] = ImageRecord(path, row_id, columns)
    for name, (place, columns) in labels.items():  # not in a folder of a class
        if "/" in name or "\\" in name:
            raise DataError(f"{place}: {name!r} is not the name of an image: get the file again")
        path = folder / name
        row_id = path.relative_to(root).as_posix()
        rows[row_id] = ImageRecord(path, row_id, columns)
    return list(rows.values())


def _by_name(rows: list[ImageRecord]) -> dict[str, list[ImageRecord]]:
    """Splits by the names of the images, which begin with train or test; others are train."""
    splits: dict[str, list[ImageRecord]] = {split: [] for split in _SPLITS}
    for row in rows:
        splits["test" if row.path.name.startswith("test_") else "train"].append(row)
    return splits


class RafDb(Source):
    name = "rafdb"
    summary = "RAF-DB, basic expressions: the folder `basic`, or folders 1 to 7"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source",
            help="RAF-DB's folder `basic`, with EmoLabel and Image; or train and test with folders 1 to 7; or the "
            "folder that holds one of these",
        )
        parser.add_argument(
            "--pictures",
            choices=tuple(IMAGES),
            default="aligned",
            help="aligned = the cropped faces of 100 x 100 pixels (default); original = the photographs",
        )

    def open(self, options: argparse.Namespace) -> Opened:
        provenance = Provenance("RAF-DB", self.name, license=ON_REQUEST)
        read_as, splits = _open(Path(options.source), options.pictures)
        return Opened(CLASSES, splits, provenance=provenance, read_as=read_as, root=Path(options.source))
