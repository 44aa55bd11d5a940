"""RAF-DB, basic expressions: one label for each image (Li, Deng and Du, 2017)."""

import argparse
from pathlib import Path

from ...io.errors import DataError
from ...labels.expressions import EXPRESSIONS
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import ON_REQUEST, Opened, Source

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
IMAGES = {"aligned": "Image/aligned/{}_aligned.jpg", "original": "Image/original/{}.jpg"}


def list_rafdb(source: str | Path, images: str = "aligned") -> dict[str, list[ImageRecord]]:
    """Lists the images of the partition file: 12,271 images of `train` and 3,068 of `test`.

    Args:
        source: the folder `basic`, or the one that holds it.
        images: `"aligned"` (faces of 100 x 100 pixels) or `"original"` (photographs).

    Returns:
        records by split, in the order of the file. `row_id` is `"list_patition_label.txt:17"`, with the line counted
        from 1.

    Raises:
        DataError: the folder or the file is missing, or a line is malformed. The message names the line.
    """
    if images not in IMAGES:
        raise DataError(f"images={images!r} is not known: choose {' or '.join(IMAGES)}")
    source = Path(source)
    root = next((folder for folder in (source, source / "basic") if (folder / LIST).is_file()), None)
    if root is None:
        raise DataError(f"{source} has no {LIST}: name RAF-DB's folder `basic`, or the one that holds it")
    file = root / LIST
    splits: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    seen: dict[str, int] = {}
    for line, text in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        name, _, label = text.strip().partition(" ")
        stem, _, ending = name.rpartition(".")
        split = stem.partition("_")[0]
        if split not in splits or ending != "jpg" or not label.strip().isdigit() or "/" in name or "\\" in name:
            raise DataError(f"{file}:{line} is {text!r}, but lines are like 'train_00001.jpg 5': get the file again")
        if int(label) not in EXPRESSIONS_OF_LABEL:
            raise DataError(f"{file}:{line}: label {label.strip()} is not one of 1 to 7: get the file again")
        if name in seen:
            raise DataError(f"{file}:{line} lists {name} again, after line {seen[name]}: remove one of them")
        seen[name] = line
        columns = {"label": CLASSES.index(EXPRESSIONS_OF_LABEL[int(label)])}
        path = root / IMAGES[images].format(stem)
        splits[split].append(ImageRecord(path, f"{file.name}:{line}", columns))
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{file} lists no images: get it again")
    return splits


class RafDb(Source):
    name = "rafdb"
    summary = "RAF-DB, basic expressions: the folder `basic`"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", help="RAF-DB's folder `basic`, with EmoLabel and Image")
        parser.add_argument(
            "--pictures",
            choices=tuple(IMAGES),
            default="aligned",
            help="aligned = the cropped faces of 100 x 100 pixels (default); original = the photographs",
        )

    def open(self, options: argparse.Namespace) -> Opened:
        provenance = Provenance("RAF-DB", self.name, license=ON_REQUEST)
        return Opened(CLASSES, list_rafdb(options.source, options.pictures), provenance=provenance)
