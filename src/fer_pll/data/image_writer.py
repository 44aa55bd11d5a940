"""Picture files to the rows of a prepared split: several workers, bounded memory, and a run that can be cut off."""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image as PILImage
from tqdm.auto import tqdm

from ..io.atomic import write_json
from ..io.errors import DataError, naming_a_full_disk
from ..io.images import PictureError, open_picture
from .dataset import Unreadable

ROWS_PER_SHARD = 512
"""Rows that one worker holds at a time, and that an interruption can cost."""

BYTES_PER_SHARD = 64 * 2**20
"""A shard ends also where the pictures that come as bytes become more than this."""

JPEG_QUALITY = 95  # of pictures that are not stored as they came


class ListedPicture(NamedTuple):
    """A picture as a data set lists it."""

    path: Path
    row_id: str
    columns: dict[str, Any]  # of the row beside `image`, `index` and `row_id`
    box: tuple[float, float, float, float] | None = None  # of the face: left, top, width, height in pixels
    landmarks: tuple[float, ...] | None = None  # x and y by turns, in pixels
    problem: str | None = None  # why the row cannot be used, where that is known already
    data: bytes | None = None  # of the picture's file, where it does not lie at `path`


Crop = Callable[[PILImage.Image, ListedPicture], PILImage.Image]
"""From a whole picture to the face in it, or DataError where that cannot be. It runs in the workers, so it must be
picklable; its repr says what it does, so that shards made otherwise are not used again."""


def write_split(
    pictures: Iterable[ListedPicture],
    features: Features,
    folder: str | Path,
    num_pictures: int | None = None,
    crop: Crop | None = None,
    num_proc: int = 1,
    strict: bool = False,
    description: str = "pictures",
) -> tuple[Dataset, list[Unreadable]]:
    """Read, check and crop listed pictures, and write them into shards of `ROWS_PER_SHARD` rows.

    What memory holds does not grow with the number of pictures. Shards that an interrupted call left are used again
    where they hold the same rows, whole. A picture that needs no change keeps the bytes of its file.

    Args:
        pictures: in their order; they must come in the same order again for shards to be used again.
        features: of the result; those of `ListedPicture.columns` and `image`, `index`, `row_id`.
        folder: for the shards. The data set reads from there until it is saved elsewhere.
        num_pictures: for the progress bar.
        crop: what is made of each picture. Its errors are reported as those of reading.
        num_proc: processes that read.
        strict: raise at the first picture that cannot be used.
        description: of the progress bar.

    Returns:
        the rows, with `index` from 0, and the pictures left out.

    Raises:
        DataError: with `strict`, at the first such picture; also where none is left.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({name: feature for name, feature in features.items() if name != "index"})
    shards, unreadable = [], []
    progress = tqdm(desc=description, total=num_pictures, unit="picture", disable=None)
    with progress:
        for shard, left_out, num_rows in _run(_jobs(pictures, features, folder, crop), num_proc):
            shards.append(shard)
            unreadable += left_out
            progress.update(num_rows)
            if strict and left_out:
                raise DataError(f"{left_out[0].row_id}: {left_out[0].reason}")
    if not shards:
        raise DataError(f"no {description} listed")
    dataset = concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])
    if not len(dataset):
        raise DataError(f"none of {len(unreadable)} {description} can be used; the first: {unreadable[0].reason}")
    return dataset.add_column("index", np.arange(len(dataset)), feature=Value("int64")), unreadable


class _Job(NamedTuple):
    pictures: list[ListedPicture]
    features: Features
    shard: Path
    crop: Crop | None


def _jobs(pictures: Iterable[ListedPicture], features: Features, folder: Path, crop: Crop | None) -> Iterator[_Job]:
    numbers = count()
    part, size = [], 0
    for picture in pictures:
        part.append(picture)
        size += len(picture.data or b"")
        if len(part) == ROWS_PER_SHARD or size > BYTES_PER_SHARD:
            yield _Job(part, features, folder / f"{next(numbers):06}.arrow", crop)
            part, size = [], 0
    if part:
        yield _Job(part, features, folder / f"{next(numbers):06}.arrow", crop)


def _run(jobs: Iterator[_Job], num_proc: int) -> Iterator[tuple[Path, list[Unreadable], int]]:
    """Results in the order of the jobs; a few jobs more than there are processes exist at a time."""
    if num_proc == 1:
        yield from map(_write_shard, jobs)
        return
    with ProcessPoolExecutor(num_proc, get_context("spawn")) as pool:
        pending = deque(pool.submit(_write_shard, job) for job in islice(jobs, 2 * num_proc))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(_write_shard, job) for job in islice(jobs, 1))
        finally:
            for future in pending:
                future.cancel()


def _write_shard(job: _Job) -> tuple[Path, list[Unreadable], int]:
    report = job.shard.with_suffix(".json")
    key = _key(job)
    try:
        done = json.loads(report.read_text())
        if done["key"] == key:
            return job.shard, [Unreadable(*row) for row in done["unreadable"]], len(job.pictures)
    except (OSError, ValueError):
        pass
    report.unlink(missing_ok=True)  # written last, it says that the shard beside it is whole
    with naming_a_full_disk(job.shard):
        unreadable = _write_pictures(job)
        write_json(report, {"key": key, "unreadable": unreadable}, indent=None)
    return job.shard, unreadable, len(job.pictures)


def _write_pictures(job: _Job) -> list[Unreadable]:
    unreadable = []
    with ArrowWriter(path=str(job.shard), features=job.features, writer_batch_size=64) as writer:
        for picture in job.pictures:
            try:
                if picture.problem:
                    raise DataError(picture.problem)
                image = _read(picture, job.crop)
            except (DataError, PictureError) as error:
                unreadable.append(Unreadable(picture.row_id, str(picture.path), str(error)))
            else:
                writer.write({"image": {"bytes": image, "path": None}, "row_id": picture.row_id, **picture.columns})
        writer.finalize()
    return unreadable


def _key(job: _Job) -> str:
    """Changes with whatever the shard is made of: rows, files by size and time, features, crop."""
    rows = [(*picture._replace(data=None), _state_of_file(picture)) for picture in job.pictures]
    return hashlib.sha256(f"{rows}\n{job.features}\n{job.crop!r}".encode()).hexdigest()


def _state_of_file(picture: ListedPicture) -> str | tuple[int, int] | None:
    if picture.data is not None:
        return hashlib.sha256(picture.data).hexdigest()
    try:
        status = os.stat(picture.path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _read(picture: ListedPicture, crop: Crop | None) -> bytes:
    opened = open_picture(picture.path if picture.data is None else picture.data)
    cropped = opened if crop is None else crop(opened, picture)
    if cropped is opened:
        data = picture.path.read_bytes() if picture.data is None else picture.data
        with PILImage.open(io.BytesIO(data)) as stored:
            upright = stored.getexif().get(0x0112, 1) == 1
            plain = stored.mode in ("L", "RGB") and not stored.has_transparency_data
            if stored.format in ("JPEG", "PNG") and plain and upright:
                return data
    buffer = io.BytesIO()
    cropped.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
