"""Shards of data sets of images (Parquet files, tar files, folders of images), read without a copy.

A shard is on this machine, on a server or on the Hub. It is read from its beginning to its end. Images stay encoded
until training needs them.
"""

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, load_dataset_builder
from datasets.utils.file_utils import xopen

from ...io.errors import DataError
from ...io.images import IMAGE_ENDINGS, MAX_BYTES, ImageError, is_image_name
from ..dataset import is_prepared, load_dataset

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGES_PER_SHARD = 1024  # for folders and prepared sets, which have no shards of their own
_PARQUET_ROWS = 64  # that memory holds at a time
_LONGEST_NAME = 2**20  # bytes of the names of a file in an archive
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)

Row = tuple[int, str, bytes | str | ImageError]
"""An image: its number in the shard, its `row_id`, and the contents or the path of its file, or why there is none."""


class Shard(Protocol):
    """A part of a data set: `name` says where it is, and `rows(start)` reads its images from number `start` on."""

    @property
    def name(self) -> str: ...

    def rows(self, start: int = 0) -> Iterator[Row]: ...


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file with a column of images, as `datasets` writes it. Row groups before `start` are not read."""

    name: str

    def rows(self, start: int = 0) -> Iterator[Row]:
        with xopen(self.name, "rb") as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            column = _image_column(file.schema_arrow)
            last = 0
            for group in range(file.num_row_groups):
                first, last = last, last + file.metadata.row_group(group).num_rows
                if last <= start:
                    continue
                number = first
                try:
                    for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[column]):
                        for cell in batch.column(0).to_pylist():
                            if number >= start:
                                yield number, f"{self.name}:{number}", _contents(cell)
                            number += 1
                except Exception as error:  # from pyarrow and servers; the other row groups may be whole
                    reason = ImageError(f"rows {number} to {last - 1} cannot be read ({_in_one_line(error)})")
                    yield max(number, start), f"{self.name}:{number}", reason


def _image_column(schema: pa.Schema) -> str:
    features = Features.from_arrow_schema(schema)
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not columns:
        columns = [field.name for field in schema if pa.types.is_binary(field.type) or _holds_bytes(field.type)]
    if len(columns) > 1 and "image" in columns:
        columns = ["image"]
    if len(columns) != 1:
        raise ValueError(
            f"{len(columns)} columns hold images, of {', '.join(schema.names)}: name the one to train on `image`"
        )
    return columns[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _contents(cell: dict | bytes | None) -> bytes | ImageError:
    contents = cell["bytes"] if isinstance(cell, dict) else cell
    return ImageError("the row holds no image") if contents is None else contents


class _StrictTarInfo(tarfile.TarInfo):
    """Raises where an archive is damaged, which `tarfile` would take for its end, and where names fill the memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        if not (self.isreg() or self.type in _EMPTY) and self.size > _LONGEST_NAME:  # names and attributes, read whole
            raise tarfile.ReadError(f"{self.size:,} bytes of names, at byte {archive.offset}")
        return super()._proc_member(archive)  # type: ignore[misc]  # typeshed lacks it

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, at byte {archive.offset}") from error


@dataclass(frozen=True)
class TarShard:
    """A tar file of images, compressed or not: a shard of a WebDataset, or a packed folder.

    As in a WebDataset, files with the same name up to its first dot belong together. The first image among them
    counts. Other files are skipped.
    """

    name: str

    def rows(self, start: int = 0) -> Iterator[Row]:
        number, key = 0, None
        with (
            xopen(self.name, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo) as archive,
        ):
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                if not member.isfile() or not is_image_name(file) or (folder, file.split(".")[0]) == key:
                    continue
                key = folder, file.split(".")[0]
                if number >= start:
                    row_id = f"{self.name}:{number} ({member.name})"
                    contents = archive.extractfile(member)
                    assert contents is not None  # as for every regular file
                    if member.size > MAX_BYTES:
                        reason = f"{member.size // 2**20} MiB, more than {MAX_BYTES // 2**20} MiB: too large an image"
                        yield number, row_id, ImageError(reason)
                    else:
                        yield number, row_id, contents.read()
                number += 1
                archive.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it; tarfile keeps them all


@dataclass(frozen=True)
class FolderShard:
    """A part of the image files of a folder."""

    name: str
    files: tuple[str, ...]

    def rows(self, start: int = 0) -> Iterator[Row]:
        for number, file in enumerate(self.files[start:], start):
            yield number, file, file


@dataclass(frozen=True)
class PreparedShard:
    """The training images `first` to `last` - 1 of a prepared set."""

    folder: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.folder}[{self.first}:{self.last}]"

    def rows(self, start: int = 0) -> Iterator[Row]:
        images = _encoded_images(self.folder)
        for number in range(start, self.last - self.first):
            row = images[self.first + number]
            yield number, row["row_id"], _contents(row["image"])


@lru_cache(maxsize=8)
def _encoded_images(folder: str) -> Dataset:
    return load_dataset(folder, "train").select_columns(["image", "row_id"]).cast_column("image", Image(decode=False))


def read_shard(shard: Shard, start: int = 0) -> Iterator[Row]:
    """The rows of a shard. Where it cannot be read to its end, the last row says so."""
    number = start - 1
    try:
        for row in shard.rows(start):
            number = row[0]
            yield row
        if number < 0:
            yield 0, shard.name, ImageError("there are no images in it")
    except Exception as error:  # from file systems, servers, pyarrow, tarfile and decompressors
        what = "it" if number < 0 else f"the rest, from row {number + 1},"
        yield number + 1, shard.name, ImageError(f"{what} cannot be read ({_in_one_line(error)})")


def find_shards(source: str) -> list[Shard]:
    """The shards of a source of images, in the order of their names.

    Args:
        source: one of

            - a folder written by fer-pll prepare: its split `train`;
            - a folder with Parquet files, tar files or images, at any depth;
            - such a file, or a pattern of such files (`*`, `?`, `[...]`, `**` and `{000..127}`), on this machine or at
              an address that fsspec understands (`https://`, `hf://datasets/...`, `s3://`);
            - the name of a data set on the Hub: its split `train`.

    Raises:
        DataError: nothing is there, or no file is an image or a shard.
    """
    here = Path(source) if "://" not in source else None  # an address may be too long for a file's name
    if here is not None and is_prepared(here):
        rows = len(load_dataset(source, "train"))
        starts = range(0, rows, IMAGES_PER_SHARD)
        return [PreparedShard(source, start, min(start + IMAGES_PER_SHARD, rows)) for start in starts]
    if here is not None and here.is_dir():
        files = sorted(
            os.path.join(folder, name)  # noqa: PTH118  # Path would drop the ./ that the user wrote
            for folder, _, names in os.walk(source)
            for name in names
        )
    elif here is None or glob.has_magic(source) or "{" in source or here.is_file():
        files = [file for pattern in _numbered(source) for file in _matching(pattern)]
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        files = _hub_files(source)
    else:
        raise DataError(f"--data {source}: there is no such file or folder")
    shards: list[Shard] = [ParquetShard(file) for file in files if _address(file).endswith(".parquet")]
    shards += [TarShard(file) for file in files if _address(file).endswith(TAR_ENDINGS)]
    images = [file for file in files if is_image_name(Path(_address(file)).name)]
    for start in range(0, len(images), IMAGES_PER_SHARD):
        part = tuple(images[start : start + IMAGES_PER_SHARD])
        shards.append(FolderShard(f"{part[0]} to {part[-1]}", part))
    if not shards:
        raise DataError(
            f"--data {source}: no Parquet files, no tar files and no images "
            f"({', '.join(sorted(IMAGE_ENDINGS))}) among {len(files)} files"
        )
    return shards


def _address(file: str) -> str:
    """The file's name in lower case, without the query of a signed link."""
    return file.split("?")[0].lower() if "://" in file else file.lower()


def _numbered(pattern: str) -> Sequence[str]:
    """`{000..127}` written out."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in _numbered(pattern.replace(match[0], number, 1))]


def _matching(pattern: str) -> list[str]:
    if not glob.has_magic(pattern.split("?")[0] if "://" in pattern else pattern):
        return [pattern]
    file_system, path = fsspec.url_to_fs(pattern)
    try:
        found = sorted(file_system.glob(path))
    except Exception as error:  # from servers and file systems of all kinds
        raise DataError(f"--data {pattern}: cannot be listed ({_in_one_line(error)})") from error
    if not found:
        raise DataError(f"--data {pattern}: no file matches this pattern")
    return [file_system.unstrip_protocol(name) for name in found] if "://" in pattern else found


def _hub_files(name: str) -> list[str]:
    try:
        files = load_dataset_builder(name).config.data_files
    except Exception as error:  # from the Hub, the network and the data set
        raise DataError(
            f"--data {name}: there is no such folder here, and no such data set on the Hub ({_in_one_line(error)})"
        ) from error
    if "train" not in (files or {}):
        raise DataError(f"--data {name}: the data set has no split `train`; name its files, hf://datasets/{name}/...")
    return list(files["train"])


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
