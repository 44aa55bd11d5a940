"""FER2013: the faces of FER+ with one label each, as Kaggle gives them (Goodfellow et al. 2013, arXiv:1307.0414)."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ...io.errors import DataError
from ...io.tables import read_columns
from ...labels.expressions import EXPRESSIONS
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source
from .ferplus import IMAGE_TABLES, find_image_table, parse_pixels, parse_usage, png_of
from .image_folder import list_image_folder

LICENSE = "the images carry no license that lets anyone pass them on."
EXPRESSIONS_OF_LABEL = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
"""The labels 0 to 6 of the column `emotion`."""
CLASSES = EXPRESSIONS[:7]
"""The seven expressions in the order of FER+, which has contempt as the eighth."""


def list_fer2013(source: str | Path) -> Opened:
    """Lists the images of FER2013, in any of the forms that Kaggle has.

    - The table `fer2013.csv` or `icml_face_data.csv` (columns `emotion`, `pixels` and `Usage`, in any order), or a
      folder with it. Training becomes `train`, PublicTest `validation`, and PrivateTest `test`.
    - The folders `train` and `test` with a folder for each class (`angry`, `disgust` and so on), or a folder that
      holds these.

    Returns:
        records with `label`; those of a table have PNG images (gray, 48 x 48) and a `row_id` like
        `"fer2013.csv:17"`, with the line counted from 1.

    Raises:
        DataError: neither is there, or a row or folder is malformed. The message names file and line.
    """
    source = Path(source)
    table = source if source.is_file() else find_image_table(source)
    provenance = Provenance("FER2013", Fer2013.name, license=LICENSE)
    if table is not None:
        counts: dict[str, int] = {}
        for line, (usage,) in read_columns(table, ("Usage",)):
            split = parse_usage(f"{table}:{line}", usage)
            counts[split] = counts.get(split, 0) + 1
        if not counts:
            raise DataError(f"{table} has no rows: get it again")
        counts = {split: counts[split] for split in ("train", "validation", "test") if split in counts}
        splits = {split: _rows(table, split) for split in counts}
        read_as = f"Kaggle's FER2013 (the table {table.name})"
        return Opened(CLASSES, splits, (), provenance, counts=counts, read_as=read_as)
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder nor a file: name the folder of Kaggle's FER2013")
    below = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    root = below[0] if len(below) == 1 and not (source / "train").is_dir() else source
    if not (root / "train").is_dir():
        raise DataError(
            f"{source} is not FER2013: it has neither {' or '.join(IMAGE_TABLES)} nor the folders train and test"
        )
    listed, _ = list_image_folder(root, CLASSES)
    return Opened(
        CLASSES, listed, (), provenance, read_as=f"Kaggle's FER2013 (folders {', '.join(listed)})", root=root
    )


def _rows(table: Path, split: str) -> Iterator[ImageRecord]:
    for line, (emotion, pixels, usage) in read_columns(table, ("emotion", "pixels", "Usage")):
        place = f"{table}:{line}"
        if parse_usage(place, usage) != split:
            continue
        if emotion.strip() not in map(str, range(len(EXPRESSIONS_OF_LABEL))):
            raise DataError(f"{place}: emotion {emotion!r} is not one of 0 to 6: get the file again")
        label = CLASSES.index(EXPRESSIONS_OF_LABEL[int(emotion)])
        data = png_of(parse_pixels(place, pixels))
        yield ImageRecord(table, f"{table.name}:{line}", {"label": label}, data=data)


class Fer2013(Source):
    name = "fer2013"
    summary = "FER2013 with its single labels: Kaggle's table or folders"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source", help="fer2013.csv or icml_face_data.csv, or the folder with it, or with train and test"
        )

    def open(self, options: argparse.Namespace) -> Opened:
        return list_fer2013(options.source)
