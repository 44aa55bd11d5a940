"""An endless stream of images, for data that are larger than the disk: shuffled, shared out, and exactly resumable.

The order depends on the seed only, and every place in it has a short name (`Position`) that travels with the images. A
run that notes the position of the last image it used continues with the next one, even where workers had read far
ahead. To get back there, it reads at most one shard and one shuffle buffer again, and decodes nothing.

`datasets` can name a place too (`IterableDataset.state_dict`), but not one inside its shuffle buffer. Its
`split_dataset_by_node` needs a number of shards that the processes divide; otherwise each process reads everything.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import DatasetInfo
from datasets.utils.file_utils import xopen
from PIL import Image

from ...io.errors import DataError
from ...io.images import MAX_BYTES, ImageError, decode_image, open_image
from ..dataset import Unreadable
from .shards import Shard, find_shards, read_shard

_MANY_SHARDS = 8  # per reader; with so many, readers take whole shards even where the shares are not equal


class Position(NamedTuple):
    """A place in the stream of one reader."""

    visit: int = 0
    """number of the shard, in the reader's endless series of shards, where the shuffle buffer begins"""
    row: int = 0
    """number in that shard of the first image of the buffer"""
    offset: int = 0
    """images of the buffer that are already used"""


class _Entry(NamedTuple):
    epoch: int
    visit: int
    row: int
    shard: int
    row_id: str
    stored: bytes | str | ImageError


class ImageStream(torch.utils.data.IterableDataset):
    """The images of several sources, without end, pass after pass. Each image comes once in a pass.

    Every DataLoader worker of every process is a *reader*. In each pass the shards come in a new order. The readers
    take turns at the shards, also across the ends of passes, so that none waits for another and none gets ahead. Where
    there are few shards and the shares would not be equal, each reader reads all of them and keeps every n-th row.
    Consecutive images are shuffled in blocks of `buffer_size`. The next block is read while one is used, so that
    memory holds about one buffer of encoded images per reader.

    Yields dicts with

    - `image`: RGB, by the rules of `io.images`; `row_id`: the place of the image;
    - `index`: int64, the same in every pass, unique over all sources (shard times 2^32 plus row); `epoch`: the pass;
    - `reader`: number of the reader; `position`: the `Position` after this image;
    - `unreadable`: the images that were left out just before it (`Unreadable`).

    Args:
        sources: see `find_shards`; together they are one data set.
        buffer_size: images that are shuffled together.
        seed: seed of the order.
        rank, world_size: number of this process, and number of processes in the run.

    Raises:
        DataError: a source is not there or is named twice. Also while reading: no image can be read in a whole pass.
    """

    column_names = ("image", "index", "row_id")

    def __init__(
        self, sources: Sequence[str], buffer_size: int = 4096, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.shards: list[Shard] = [shard for source in sources for shard in find_shards(source)]
        names = [shard.name for shard in self.shards]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise DataError(f"--data names {twice} twice: name each source once")
        if buffer_size < 1:
            raise DataError(f"--shuffle_buffer {buffer_size}: must be at least 1")
        self.buffer_size = buffer_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.info = DatasetInfo(description="images of " + ", ".join(sources))
        self.start_at({})

    @property
    def fingerprint(self) -> str:
        """A digest of the shards and of everything else that the order depends on."""
        names = "\n".join(shard.name for shard in self.shards)
        return hashlib.sha256(f"{self.seed}\n{self.buffer_size}\n{names}".encode()).hexdigest()

    def start_at(self, positions: dict[int, Position], first_worker: int = 0, epoch: int = 0) -> None:
        """Sets where the next iteration begins.

        Args:
            positions: positions by reader.
            first_worker: the worker of this process that gives the first batch.
            epoch: the pass with which readers without a position begin.
        """
        self.positions = positions
        self.first_worker = first_worker
        self.first_epoch = epoch

    def shares_shards(self, readers: int) -> bool:
        """Whether each of so many readers takes whole shards (otherwise it takes a part of every shard)."""
        return len(self.shards) % readers == 0 or len(self.shards) >= _MANY_SHARDS * readers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        worker_id, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # A DataLoader asks its workers in turn, from the first. After an interruption, the first turn is another's.
        reader = self.rank * workers + (worker_id + self.first_worker) % workers
        readers = self.world_size * workers
        yield from self._images(reader, readers)

    def _images(self, reader: int, readers: int) -> Iterator[dict[str, Any]]:
        left_out: list[Unreadable] = []  # since the last image
        first_epoch = 0  # of these
        for entry, position in self._shuffled(reader, readers):
            try:
                image = _open(entry)
            except ImageError as error:
                reason = str(error).removeprefix(f"{entry.row_id}: ")
                first_epoch = first_epoch if left_out else entry.epoch
                left_out.append(Unreadable(entry.row_id, self.shards[entry.shard].name, reason))
                if entry.epoch > first_epoch + 1:
                    raise DataError(
                        f"no image can be read in a whole pass; the last: {entry.row_id}: {reason}"
                    ) from error
                continue
            yield {
                "image": image,
                "index": (entry.shard << 32) + entry.row,
                "row_id": entry.row_id,
                "epoch": entry.epoch,
                "reader": reader,
                "position": position,
                "unreadable": left_out,
            }
            left_out = []

    def _shuffled(self, reader: int, readers: int) -> Iterator[tuple[_Entry, Position]]:
        start = self.positions.get(reader) or Position(self._first_visit(reader, readers))
        blocks = self._blocks(self._entries(reader, readers, start))
        block = next(filter(None, blocks))
        used = start.offset
        while True:
            visit, row = block[0].visit, block[0].row
            order = np.random.default_rng((self.seed, reader, visit, row)).permutation(len(block))
            block = [block[i] for i in reversed(order)]  # used from the end and popped, to free memory
            following = None
            for offset in range(1, len(order) + 1):
                following = following or next(blocks)  # reads one image
                entry = block.pop()
                if offset > used:
                    yield entry, Position(visit, row, offset)
            used = 0
            block = following or next(filter(None, blocks))

    def _blocks(self, entries: Iterator[_Entry]) -> Iterator[list[_Entry] | None]:
        """Blocks of `buffer_size` images, fewer at the end of a pass, and `None` after each image that is read."""
        block: list[_Entry] = []
        for entry in entries:
            if block and (len(block) == self.buffer_size or entry.epoch != block[0].epoch):
                yield block
                block = []
            block.append(entry)
            yield None

    def _entries(self, reader: int, readers: int, start: Position) -> Iterator[_Entry]:
        whole = self.shares_shards(readers)
        first_row = start.row
        for visit in itertools.count(start.visit):
            epoch, shard = self._visited(reader, readers, visit)
            for row, row_id, stored in read_shard(self.shards[shard], first_row):
                # The visit shifts the rows, so that the first readers do not always get the remainder.
                if whole or (row + visit) % readers == reader:
                    yield _Entry(epoch, visit, row, shard, row_id, stored)
            first_row = 0

    def _visited(self, reader: int, readers: int, visit: int) -> tuple[int, int]:
        """The pass and the number of the shard that a reader visits."""
        place = reader + visit * readers if self.shares_shards(readers) else visit
        epoch, place = divmod(place, len(self.shards))
        return epoch, int(np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))[place])

    def _first_visit(self, reader: int, readers: int) -> int:
        """A reader's first visit in the pass to begin with."""
        place = self.first_epoch * len(self.shards)
        return max(0, math.ceil((place - reader) / readers)) if self.shares_shards(readers) else place


def _open(entry: _Entry) -> Image.Image:
    image = entry.stored
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, bytes):
        return decode_image(image, entry.row_id)
    if "://" not in image:
        return open_image(image)
    try:
        with xopen(image, "rb") as stream:
            contents = stream.read(MAX_BYTES + 1)
        if len(contents) > MAX_BYTES:
            raise ImageError(f"{image}: more than {MAX_BYTES // 2**20} MiB: too large an image")
        return decode_image(contents, image)
    except ImageError:
        raise
    except Exception as error:  # from servers of all kinds
        raise ImageError(f"{image}: cannot be read ({type(error).__name__}: {error})") from error
