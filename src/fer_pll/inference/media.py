"""Inputs of `fer-pll predict`: images and videos, given as files, folders and patterns, opened one by one."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..io.images import ImageError, open_image

# fmt: off
VIDEOS = frozenset((
    ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
))
# fmt: on


class Shown(NamedTuple):
    """An image, a frame of a video, or the reason why there is none."""

    file: Path
    frame: int | None  # number in its video, from 0
    image: Image.Image | None
    problem: str | None = None


def list_files(sources: Iterable[str]) -> list[Path]:
    """The files that the sources name, each once: in the order of the sources, sorted within a folder or pattern.

    Folders are searched to any depth for names that end like an image or a video. A file that is itself a source is
    taken whatever its name. A pattern may hold `*`, `?`, `[...]` and `**`.

    Raises:
        ValueError: a source is not there, or holds nothing that could be an image or a video.
    """
    files: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = [entry for entry in sorted(path.rglob("*")) if entry.is_file() and _is_known(entry)]
            if not found:
                raise ValueError(f"{source}: no images or videos in this folder")
        elif path.exists():
            found = [path]
        elif glob.has_magic(source):
            # Path.glob takes no absolute patterns, and finds hidden files.
            found = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
            found = [entry for entry in found if entry.is_file() and _is_known(entry)]
            if not found:
                raise ValueError(f"{source}: no image or video fits this pattern")
        else:
            raise ValueError(f"{source}: there is no such file or folder")
        files.update(dict.fromkeys(found))
    return list(files)


def _is_known(file: Path) -> bool:
    ending = file.suffix.lower()
    return not file.name.startswith(".") and (ending in VIDEOS or ending in Image.registered_extensions())


def show(file: Path, every: int = 1) -> Iterator[Shown]:
    """Open a file: an image, or the frames 0, `every`, 2 `every` ... of a video, one by one.

    What cannot be read is shown as a problem; in a video, it comes after the frames that could be read.

    Raises:
        ValueError: the file is a video, and PyAV is not installed.
    """
    if file.suffix.lower() in VIDEOS:
        yield from _frames(file, every)
        return
    try:
        yield Shown(file, None, open_image(file))
    except ImageError as error:
        yield Shown(file, None, None, str(error).removeprefix(f"{os.fspath(file)}: "))


def _frames(file: Path, every: int) -> Iterator[Shown]:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{file}: videos need PyAV: pip install 'fer-pll[faces]'") from error
    number = 0
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ImageError("no images in this file")
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    # Phones store how they were held; PyAV gives that in degrees, counterclockwise.
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield Shown(file, number, Image.fromarray(pixels))
    except (av.error.FFmpegError, ImageError, OSError) as error:
        yield Shown(file, None, None, f"cannot be read after frame {number}: {error}" if number else str(error))
