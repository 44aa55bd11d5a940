"""Image writer: reads, checks and crops images and writes them as the rows of a prepared split.

Several workers share the work, memory is bounded, and an interrupted call can be continued.
"""

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, NamedSplit, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image as PILImage
from tqdm.auto import tqdm

from ..io.atomic import whole_file, write_json
from ..io.errors import DataError, naming_a_full_disk
from ..io.images import MAX_BYTES, ImageError, open_image, pixels_only
from .dataset import Unreadable

ROWS_PER_SHARD = 512
"""Rows that one worker holds at a time, and so the most that an interruption costs; fewer in small splits."""

BYTES_PER_SHARD = 64 * 2**20
"""A shard also ends where the images that come as bytes exceed this size."""

_FEWEST_ROWS = 32  # of a shard: less is not worth a file and a message to another process
_SHARDS = 16  # of a small split, so that several workers have a share in it

JPEG_QUALITY = 95  # of images that are not stored as they came
_JPEG_SIDE = 65_500  # pixels, of libjpeg


class ImageRecord(NamedTuple):
    """An image as a data source lists it."""

    path: Path
    row_id: str
    columns: dict[str, Any]  # those beside `image` and `row_id`
    box: tuple[float, float, float, float] | None = None  # of the face: left, top, width, height in pixels
    landmarks: tuple[float, ...] | None = None  # x, y, x, y ... in pixels
    problem: str | None = None  # why the row cannot be used, where that is already known
    # The bytes of the image's file, where it does not lie at `path`, or a function that makes them. It runs in the
    # workers, so it must be picklable, and its repr must say which image it makes.
    data: bytes | Callable[[], bytes] | None = None


Crop = Callable[[PILImage.Image, ImageRecord], PILImage.Image]
"""Makes the face from a whole image, or raises DataError. It runs in the workers, so it must be picklable. Its repr
says what it does, so that shards of another crop are not used again."""

Written = tuple[Path, list[Unreadable], int]  # a shard, the rows left out of it, and the rows that went to it
Run = Callable[[Iterator["_Job"]], Iterator[Written]]


@contextmanager
def workers(num_proc: int) -> Iterator[Run]:
    """The processes that write the shards of `write_split`: this one or, for `num_proc` > 1, so many others.

    Raises:
        DataError: `num_proc` is less than 1.
    """
    if num_proc < 1:
        raise DataError(f"num_proc is {num_proc}; give the number of processes, 1 or more")
    if num_proc == 1:
        yield partial(map, _write_shard)
        return
    from fer_pll_cli import leave_out_transformers  # workers do not need it, and its import takes seconds

    with ProcessPoolExecutor(num_proc, get_context("spawn"), initializer=leave_out_transformers) as pool:
        yield partial(_run, pool, 2 * num_proc)


def write_split(
    records: Iterable[ImageRecord],
    features: Features,
    folder: str | Path,
    num_records: int | None = None,
    crop: Crop | None = None,
    run: Run | None = None,
    strict: bool = False,
    split: str = "train",
) -> tuple[Dataset, list[Unreadable]]:
    """Reads (or makes), checks and crops the images of records, and writes them into shards of `ROWS_PER_SHARD` rows.

    Memory does not grow with the number of images. A shard that an interrupted call left is used again where it holds
    the same rows. An image that needs no change keeps its pixels as they are stored; nothing else of a file is kept.

    Args:
        records: the rows. A repeated call must give them in the same order for shards to be used again.
        features: features of the result: those of `ImageRecord.columns`, and `image` and `row_id`.
        folder: folder for the shards. The data set reads from there until it is saved elsewhere.
        num_records: number of records, for the progress bar and for the size of the shards.
        crop: makes the face from each image. Its errors are reported like errors of reading.
        run: see `workers`; this process where not given.
        strict: raise at the first image that cannot be used.
        split: name of the split.

    Returns:
        the rows, and the images left out.

    Raises:
        DataError: with `strict`, an image cannot be used; without it, none can.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows_per_shard = ROWS_PER_SHARD
    if num_records is not None:
        rows_per_shard = min(rows_per_shard, max(_FEWEST_ROWS, -(-num_records // _SHARDS)))
    jobs = _jobs(records, features, folder, crop, rows_per_shard)
    shards: list[Path] = []
    unreadable: list[Unreadable] = []
    progress = tqdm(desc=f"{split} images", total=num_records, unit="image", disable=None)
    with progress:
        for shard, left_out, num_rows in (run or partial(map, _write_shard))(jobs):
            shards.append(shard)
            unreadable += left_out
            progress.update(num_rows)
            if strict and left_out:
                raise DataError(f"{left_out[0].row_id}: {left_out[0].reason}")
    if not shards:
        raise DataError(f"no {split} images listed")
    parts = [Dataset.from_file(str(shard)) for shard in shards]
    dataset = concatenate_datasets(parts, split=NamedSplit(split))
    if not len(dataset):
        raise DataError(f"none of {len(unreadable)} {split} images can be used; the first: {unreadable[0].reason}")
    return dataset, unreadable


class _Job(NamedTuple):
    records: list[ImageRecord]
    features: Features
    shard: Path
    crop: Crop | None


def _jobs(
    records: Iterable[ImageRecord], features: Features, folder: Path, crop: Crop | None, rows_per_shard: int
) -> Iterator[_Job]:
    numbers = count()
    part, size = [], 0
    for record in records:
        part.append(record)
        size += len(record.data) if isinstance(record.data, bytes) else 0
        if len(part) == rows_per_shard or size > BYTES_PER_SHARD:
            yield _Job(part, features, folder / f"{next(numbers):06}.arrow", crop)
            part, size = [], 0
    if part:
        yield _Job(part, features, folder / f"{next(numbers):06}.arrow", crop)


def _run(pool: ProcessPoolExecutor, most: int, jobs: Iterator[_Job]) -> Iterator[Written]:
    """Results in the order of the jobs. At most `most` jobs exist at a time. A single job is done in this process."""
    first = list(islice(jobs, 2))
    if len(first) < 2:
        yield from map(_write_shard, first)
        return
    jobs = chain(first, jobs)
    pending = deque(pool.submit(_write_shard, job) for job in islice(jobs, most))
    try:
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(_write_shard, job) for job in islice(jobs, 1))
    finally:
        for future in pending:
            future.cancel()


def _write_shard(job: _Job) -> Written:
    report = job.shard.with_suffix(".json")
    key = _key(job)
    try:
        done = json.loads(report.read_text())
        if done["key"] == key:
            return job.shard, [Unreadable(*row) for row in done["unreadable"]], len(job.records)
    except (OSError, ValueError):
        pass
    report.unlink(missing_ok=True)  # written last, it says what the shard beside it was made of
    with naming_a_full_disk(job.shard):
        unreadable = _write_images(job)
        write_json(report, {"key": key, "unreadable": unreadable}, indent=None)
    return job.shard, unreadable, len(job.records)


def _write_images(job: _Job) -> list[Unreadable]:
    unreadable = []
    with (
        whole_file(job.shard) as unfinished,
        ArrowWriter(path=str(unfinished), features=job.features, writer_batch_size=64) as writer,
    ):
        for record in job.records:
            try:
                if record.problem:
                    raise DataError(record.problem)
                _check_row_id(record.row_id)
                image = _read(record, job.crop)
            except (DataError, ImageError) as error:
                unreadable.append(_unreadable(record, str(error)))
            else:
                writer.write({"image": {"bytes": image, "path": None}, "row_id": record.row_id, **record.columns})
        writer.finalize()
    return unreadable


def _key(job: _Job) -> str:
    """A digest of everything the shard is made of: rows, files by size and time, features, crop."""
    rows = [(*record._replace(data=None), _state_of_image(record)) for record in job.records]
    return hashlib.sha256(f"{rows}\n{job.features}\n{job.crop!r}".encode()).hexdigest()


def _state_of_image(record: ImageRecord) -> str | tuple[int, int] | None:
    if record.data is not None:
        return repr(record.data) if callable(record.data) else hashlib.sha256(record.data).hexdigest()
    try:
        status = record.path.stat()
    except (OSError, ValueError):  # no such file, or no name of a file
        return None
    return status.st_size, status.st_mtime_ns


def _read(record: ImageRecord, crop: Crop | None) -> bytes:
    data = record.data() if callable(record.data) else record.data
    opened = open_image(record.path if data is None else data)
    cropped = opened if crop is None else crop(opened, record)
    if cropped is opened and (data is not None or record.path.stat().st_size <= MAX_BYTES):
        stored = pixels_only(record.path.read_bytes() if data is None else data)
        if stored is not None:
            return stored
    if max(cropped.size) > _JPEG_SIDE:
        raise ImageError(
            f"{record.path}: {cropped.width} x {cropped.height} pixels, but a JPEG file holds {_JPEG_SIDE:,} to a "
            "side: cut it or make it smaller"
        )
    buffer = io.BytesIO()
    cropped.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _unreadable(record: ImageRecord, reason: str) -> Unreadable:
    """The row of the report. Characters that a terminal or a table would not take are written as escapes."""
    texts = (record.row_id, str(record.path), reason)
    return Unreadable(*("".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in texts))


def _check_row_id(row_id: str) -> None:
    try:
        row_id.encode()
    except UnicodeEncodeError:
        raise DataError("its name is not UTF-8, as the names of rows must be: rename it") from None
