"""FER+: the faces of FER2013 with the votes of ten annotators for each (Barsoum et al. 2016, arXiv:1608.01041)."""

import argparse
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from tqdm.auto import tqdm

from ...io.errors import DataError
from ...io.images import FORMATS
from ...io.tables import read_columns, read_csv
from ...labels.expressions import EXPRESSIONS
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source

PROTOCOLS = ("all", "majority")
LICENSE = "the votes are under the MIT license; the images (FER2013) carry no license that lets anyone pass them on."
SIDE = 48
"""Height and width of an image in pixels."""

_IMAGES_CSV, _VOTES_CSV, _LABELS_CSV = "fer2013.csv", "fer2013new.csv", "label.csv"
IMAGE_TABLES = (_IMAGES_CSV, "icml_face_data.csv", "fer2013/fer2013.csv")
"""Kaggle's table of FER2013, as the downloads name it."""

_ENTRIES = (*EXPRESSIONS, "unknown", "NF")
_SPLITS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
_FOLDERS = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
_BYTES = {str(value): value for value in range(256)}


class Row(NamedTuple):
    """One annotated image: its split, the place of its votes, and its ten counts (eight expressions, unknown, NF)."""

    split: str
    row_id: str
    votes: tuple[int, ...]


def list_ferplus(source: str | Path, protocol: str = "all", drop_duplicates: bool = True) -> Opened:
    """Lists the rows of FER+, in either layout that people have.

    - A folder with Kaggle's `fer2013.csv` (or `icml_face_data.csv`, the same rows) and Microsoft's `fer2013new.csv`;
      row i of one belongs to row i of the other. (The number in `fer0012345.png` is not the row: rows without a face
      have no number.)
    - The folders `FER2013Train`, `FER2013Valid`, `FER2013Test`, as FERPlus's `generate_training_data.py` writes
      them: images and a `label.csv` each, with or without the column of face boxes and a first line of names. A row
      whose image is missing or of another kind has a `problem`. (Three names belong to two
      Training rows each. That script writes one image over the other, so both rows have the second one.)

    Training becomes `train`, PublicTest (FER2013Valid) `validation`, and PrivateTest (FER2013Test) `test`; not all of
    them need be there. Everything is checked before the first record is listed. The files are read row by row: memory
    never holds all pixels together.

    Args:
        source: The folder.
        protocol: Which rows are kept, as in `protocol_masks`: `"all"` or `"majority"`.
        drop_duplicates: Remove from `train` every row whose image is also, pixel for pixel, that of a validation or
            test row. Of the rows of `train` that share an image, keep the first only. Validation and test never
            change. Measured on the 28,389 `all` rows of the real Training split with PublicTest as the only evaluation
            split: 337 copies of PublicTest images (one of them the black image of a row without a face) and 1,149
            repeats go, 26,903 stay.

    Returns:
        records with the image's PNG (gray, 48 x 48), a `row_id` (`"fer2013new.csv:17"`: file and line, counted from
        1), `votes` (eight counts in the order of `EXPRESSIONS`), `label` (the first top of the eight) and `majority`
        (whether the row is in the `majority` protocol). `dropped` says how many rows were dropped, and why.

    Raises:
        DataError: a file or column is missing, the files do not belong together, or a row is malformed. The message
            names file and line.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol {protocol!r} is not known: choose {' or '.join(PROTOCOLS)}")
    layout = _open_layout(Path(source))
    rows = layout.rows
    in_all, in_majority = protocol_masks(np.array([row.votes for row in rows]))
    kept = in_all if protocol == "all" else in_majority

    # One digest of 16 bytes for each image. This pass also checks every row of pixels before anything is written.
    digests = [
        None if isinstance(pixels, DataError) else hashlib.blake2b(pixels, digest_size=16).digest()
        for _, pixels in tqdm(layout.images(range(len(rows))), "Checking FER+", len(rows), unit="row", disable=None)
    ]
    in_evaluation = {digest for row, digest in zip(rows, digests, strict=True) if digest and row.split != "train"}

    splits, counts, dropped = {}, {}, {}
    for split in _SPLITS.values():
        members = [i for i, row in enumerate(rows) if row.split == split]
        if not members:
            continue
        positions = [i for i in members if kept[i]]
        reasons = {f"not in protocol {protocol}": len(members) - len(positions)}
        if split == "train" and drop_duplicates:
            fresh = [i for i in positions if digests[i] not in in_evaluation]
            first = {digests[i] or i: i for i in reversed(fresh)}
            reasons["copy of a validation or test image"] = len(positions) - len(fresh)
            reasons["copy of an earlier training image"] = len(fresh) - len(first)
            positions = sorted(first.values())
        if not positions:
            raise DataError(f"{source}: no {split} row is left; dropped: {_name_counts(reasons)}")
        splits[split] = _records(layout, positions, in_majority)
        counts[split], dropped[split] = len(positions), reasons
    provenance = Provenance("FER+", FerPlus.name, protocol=protocol, license=LICENSE)
    columns = ("votes", "majority")
    return Opened(
        EXPRESSIONS, splits, columns, provenance, dropped, counts, read_as=layout.read_as, root=layout.source
    )


def protocol_masks(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the protocols `all` and `majority`.

    A row is in `all` when its top entry of the ten, the first of ties, is one of the eight expressions. It is in
    `majority` (the rule of the FER+ authors) when, after entries with a single vote are set to zero, one expression
    holds more than half of what is left. `majority` is a subset of `all`.

    Args:
        votes: Integers of shape (N, 10): the eight `EXPRESSIONS`, unknown, NF (no face).

    Returns:
        Two bool arrays of shape (N,): in `all`, in `majority`.
    """
    num_classes = len(EXPRESSIONS)
    in_all = votes.argmax(axis=1) < num_classes
    left = np.where(votes == 1, 0, votes)
    in_majority = (2 * left.max(axis=1) > left.sum(axis=1)) & (left.argmax(axis=1) < num_classes)
    return in_all, in_majority


def _records(
    layout: "_CsvLayout | _FolderLayout", positions: list[int], in_majority: np.ndarray
) -> Iterator[ImageRecord]:
    for position, pixels in layout.images(positions):
        row = layout.rows[position]
        votes = list(row.votes[: len(EXPRESSIONS)])
        columns = {"label": votes.index(max(votes)), "votes": votes, "majority": bool(in_majority[position])}
        path = layout.path(position)
        if isinstance(pixels, DataError):
            yield ImageRecord(path, row.row_id, columns, problem=str(pixels))
        else:
            yield ImageRecord(path, row.row_id, columns, data=png_of(pixels))


def png_of(pixels: bytes) -> bytes:
    """The PNG file of `SIDE` x `SIDE` gray pixels."""
    png = io.BytesIO()
    PILImage.frombytes("L", (SIDE, SIDE), pixels).save(png, "PNG")
    return png.getvalue()


def find_image_table(source: Path) -> Path | None:
    """Kaggle's table of FER2013 in a folder."""
    return next((source / name for name in IMAGE_TABLES if (source / name).is_file()), None)


def _open_layout(source: Path) -> "_CsvLayout | _FolderLayout":
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: name the folder with {_IMAGES_CSV} and {_VOTES_CSV}")
    images, votes = find_image_table(source), (source / _VOTES_CSV).is_file()
    if images is not None and votes:
        return _CsvLayout(source, images)
    if any((source / name).is_dir() for name in _FOLDERS):
        return _FolderLayout(source)
    if images is not None:
        raise DataError(
            f"{source} has no {_VOTES_CSV}: put the votes of Microsoft's FERPlus beside {images.name}, or use "
            "`fer-pll prepare fer2013` for the single labels of Kaggle's FER2013"
        )
    if votes:
        raise DataError(f"{source} has no {_IMAGES_CSV}: put the images of Kaggle's FER2013 beside {_VOTES_CSV}")
    raise DataError(
        f"{source} is not FER+: it has neither {_IMAGES_CSV} and {_VOTES_CSV} nor a folder {', '.join(_FOLDERS)}"
    )


class _CsvLayout:
    """`fer2013.csv` (images) beside `fer2013new.csv` (votes)."""

    def __init__(self, source: Path, image_file: Path) -> None:
        self.source = source
        self.image_file = image_file
        self.read_as = f"FER+ (images of {image_file.name}, votes of {_VOTES_CSV})"
        self.rows: list[Row] = []
        votes_file = source / _VOTES_CSV
        for line, (usage, *counts) in read_columns(votes_file, ("Usage", *_ENTRIES)):
            row_id = f"{_VOTES_CSV}:{line}"
            split = parse_usage(f"{votes_file}:{line}", usage)
            self.rows.append(Row(split, row_id, _parse_votes(f"{votes_file}:{line}", counts)))
        # Counting accepts any file as lines of text, so first make sure that it is the right kind of file.
        next(read_columns(self.image_file, ("pixels", "Usage")), None)
        num_images = _count_rows(self.image_file)
        if num_images != len(self.rows):
            raise DataError(
                f"{self.image_file} has {num_images} rows and {votes_file} has {len(self.rows)}, but row i of one "
                "belongs to row i of the other: one of them is cut off or of another edition; get both again"
            )
        if not self.rows:
            raise DataError(f"{votes_file} has no rows: get it again")

    def path(self, position: int) -> Path:
        return self.image_file

    def images(self, positions: Iterable[int]) -> Iterator[tuple[int, bytes | DataError]]:
        """Yields (position, 2,304 pixel bytes) for ascending row positions, and skips other rows unparsed."""
        wanted = iter(positions)
        next_position = next(wanted, None)
        for position, (line, (pixels, usage)) in enumerate(read_columns(self.image_file, ("pixels", "Usage"))):
            if position != next_position:
                continue
            next_position = next(wanted, None)
            place = f"{self.image_file}:{line}"
            row = self.rows[position]
            if parse_usage(place, usage) != row.split:
                raise DataError(
                    f"{place} is a {usage.strip()} row, but its row of votes, {row.row_id}, is of another split: the "
                    "files are of different editions or a row is missing; get both again"
                )
            yield position, parse_pixels(place, pixels)


class _FolderLayout:
    """`FER2013Train`, `FER2013Valid`, `FER2013Test`: images and a `label.csv` each."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.rows: list[Row] = []
        self.image_files: list[Path] = []
        found = [folder for folder in _FOLDERS if (source / folder).is_dir()]
        self.read_as = f"FER+ (the folders {', '.join(found)})"
        for folder in found:
            split, file = _FOLDERS[folder], source / folder / _LABELS_CSV
            num_before = len(self.rows)
            for line, (name, *cells) in read_csv(file):
                if line == 1 and _is_header(cells):
                    continue
                # Newer versions of generate_training_data.py leave the face box out.
                if len(cells) not in (len(_ENTRIES), len(_ENTRIES) + 1):
                    raise DataError(
                        f"{file}:{line} has {1 + len(cells)} columns where an image name, a face box (or none) and "
                        f"{len(_ENTRIES)} counts should be: the file is cut off or damaged; get it again"
                    )
                votes = _parse_votes(f"{file}:{line}", cells[-len(_ENTRIES) :])
                self.rows.append(Row(split, f"{folder}/{_LABELS_CSV}:{line}", votes))
                self.image_files.append(source / folder / name.strip())
            if len(self.rows) == num_before:
                raise DataError(f"{file} has no rows: get it again")

    def path(self, position: int) -> Path:
        return self.image_files[position]

    def images(self, positions: Iterable[int]) -> Iterator[tuple[int, bytes | DataError]]:
        """Yields (position, 2,304 pixel bytes, or why there are none) for each row position."""
        for position in positions:
            try:
                pixels: bytes | DataError = _read_image(self.image_files[position], self.rows[position].row_id)
            except DataError as error:
                pixels = error
            yield position, pixels


def _is_header(cells: list[str]) -> bool:
    """Whether a first line names the columns: some of its last cells are words, as no count is."""
    return any(cell.strip().lower() in map(str.lower, _ENTRIES) for cell in cells)


def _count_rows(file: Path) -> int:
    """Counts the lines below the first, without blank ones and without splitting them."""
    with file.open("rb") as stream:
        return max(sum(not line.isspace() for line in stream) - 1, 0)


def parse_usage(place: str, usage: str) -> str:
    usage = usage.strip()
    if usage not in _SPLITS:
        raise DataError(
            f"{place}: Usage {usage!r} is not known, it is one of {', '.join(_SPLITS)}: get the file again"
        )
    return _SPLITS[usage]


def _parse_votes(place: str, counts: list[str]) -> tuple[int, ...]:
    for name, count in zip(_ENTRIES, counts, strict=True):
        if not (count.strip().isascii() and count.strip().isdigit() and len(count.strip()) < 10):
            raise DataError(
                f"{place}: the votes for {name!r} are {count!r}, but votes are whole numbers from 0 up: correct the "
                "row or get the file again"
            )
    votes = tuple(map(int, counts))
    if sum(votes) == 0:
        raise DataError(f"{place} has no vote at all: correct the row or get the file again")
    return votes


def parse_pixels(place: str, text: str) -> bytes:
    try:
        pixels = bytes(map(_BYTES.__getitem__, text.split()))
    except KeyError as error:
        raise DataError(
            f"{place}: pixel {error.args[0]!r} is not a whole number from 0 to 255: get the file again"
        ) from None
    if len(pixels) != SIDE * SIDE:
        raise DataError(
            f"{place} has {len(pixels)} pixels where {SIDE} x {SIDE} = {SIDE * SIDE} should be: the file is cut "
            "off or damaged; get it again"
        )
    return pixels


def _read_image(file: Path, row_id: str) -> bytes:
    if file.parent.name not in _FOLDERS or not file.is_file():
        raise DataError(
            f"{file} is missing, but {row_id} lists it: write the images with FERPlus's generate_training_data.py"
        )
    try:
        with PILImage.open(file, formats=FORMATS) as image:
            size, mode = image.size, image.mode
            pixels = image.tobytes() if size == (SIDE, SIDE) and mode == "L" else b""
    except Exception as error:  # Pillow raises any kind, depending on the broken byte
        raise DataError(f"{file} (listed in {row_id}) is not a readable image: {error}; get it again") from error
    if size != (SIDE, SIDE) or mode != "L":
        raise DataError(
            f"{file} (listed in {row_id}) is {size[0]} x {size[1]}, mode {mode}, where {SIDE} x {SIDE} gray pixels "
            "(mode L) should be: use the images that FERPlus's generate_training_data.py writes"
        )
    return pixels


def _name_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


class FerPlus(Source):
    name = "ferplus"
    summary = "FER+: the images of FER2013 with ten votes each"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source", help="folder with fer2013.csv and fer2013new.csv, or with FER2013Train and so on"
        )
        parser.add_argument(
            "--protocol",
            choices=PROTOCOLS,
            default="all",
            help="rows to keep: all = the most voted of the ten entries is one of the eight expressions (default); "
            "majority = an expression holds more than half of the votes, where single votes do not count",
        )
        parser.add_argument(
            "--keep-duplicates",
            action="store_true",
            help="keep training rows whose image is also a validation or test image, or an earlier training image",
        )

    def open(self, options: argparse.Namespace) -> Opened:
        return list_ferplus(options.source, options.protocol, not options.keep_duplicates)
