"""Inputs of `fer-pll predict`: images and videos, given as files, folders, patterns and URLs, opened one by one.

Cameras too. Times of frames are those that the video has (PTS), so they are right where the rate varies.
"""

import glob
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..io.download import download, is_url
from ..io.errors import DataError, MissingExtra
from ..io.images import MAX_BYTES, ImageError, check_size, is_image_name, max_pixels, open_image

# fmt: off
VIDEOS = frozenset((
    ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
))
# fmt: on
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,flv,matroska,webm,mpegts,mpeg,mpegvideo,m4v,ogg,asf"
"""The formats, by FFmpeg's names, that are opened. None of them is a list of other files or addresses."""


class Shown(NamedTuple):
    """An image, a frame of a video, or the reason why there is none."""

    file: Path | str  # a URL is text
    frame: int | None  # number in its video, from 0
    image: Image.Image | None
    problem: str | None = None
    time: float | None = None  # of a frame, in seconds since the first


def list_files(sources: Iterable[str]) -> list[Path | str]:
    """The files and URLs that the sources name, each once: in the order of the sources, sorted within a folder.

    Folders are searched to any depth for names that end like an image or a video. A file that is itself a source is
    taken whatever its name. A pattern may hold `*`, `?`, `[...]` and `**`. A source that begins with `http://` or
    `https://` is a URL.

    Raises:
        ValueError: a source is not there, is no regular file, or holds nothing that could be an image or a video.
    """
    files: dict[Path | str, None] = {}
    for source in sources:
        if not source:
            raise ValueError("the name of an image is empty: name a file, a folder or a pattern")
        path = Path(source)
        found: list[Any]
        if is_url(source):
            found = [source]
        elif _holds(path.is_dir):
            found = [entry for entry in sorted(path.rglob("*")) if entry.is_file() and _is_known(entry)]
            if not found:
                raise ValueError(f"{source}: no images or videos in this folder")
        elif _holds(path.is_file):
            found = [path]
        elif _holds(path.exists):
            raise ValueError(f"{source}: this is no regular file, but a device or a pipe")
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


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # too long, or NUL in it
        return False


def is_video(source: Any) -> bool:
    """Whether a path or URL ends like a video."""
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return False
    try:
        name = urlsplit(source).path if is_url(source) else source
    except ValueError:  # no URL at all
        return False
    return PurePosixPath(name).suffix.lower() in VIDEOS


def _is_known(file: Path) -> bool:
    return is_image_name(file.name) or (file.suffix.lower() in VIDEOS and not file.name.startswith("."))


def show(file: Path | str, every: int = 1, timeout: float | None = 30) -> Iterator[Shown]:
    """Open a file or URL: an image, or the frames 0, `every`, 2 `every` ... of a video, one by one.

    What cannot be read is shown as a problem; in a video, it comes after the frames that could be read.

    Args:
        file: a path is never taken for a URL; text that begins with `http://` or `https://` is one.
        every: see above.
        timeout: seconds to wait for each answer of a server.

    Raises:
        MissingExtra: the file needs a package that is not installed.
    """
    number = None
    try:
        if not is_video(file):
            yield Shown(file, None, open_image(file, timeout))
            return
        with io.BytesIO(download(str(file), MAX_BYTES, timeout)) if is_url(file) else _regular(file) as stream:
            for number, time, image in _frames(stream, str(file), every):
                yield Shown(file, number, image, time=time)
        if number is None:
            yield Shown(file, None, None, "no images in this file")
    except MissingExtra:
        raise
    except (ImageError, DataError) as error:
        message = str(error).removeprefix(f"{os.fspath(file)}: ")
        yield Shown(file, None, None, message if number is None else f"cannot be read after frame {number}: {message}")


def _regular(file: Path | str) -> BinaryIO:
    """The open file. FFmpeg would take some names for addresses, so it gets the contents and never the name.

    Raises:
        ImageError: it cannot be opened, or is a pipe or device, which could wait without end.
    """
    try:
        if Path(file).is_file():
            return Path(file).open("rb")
        reason = "there is no such file"
    except (OSError, ValueError) as error:
        reason = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    raise ImageError(f"{file}: {reason}")


def _frames(stream: BinaryIO, name: str, every: int) -> Iterator[tuple[int, float, Image.Image]]:
    """Number, time and image of the frames of a file.

    Raises:
        ImageError: what comes next cannot be read.
        MissingExtra: PyAV is not installed.
    """
    # FFmpeg refuses larger frames before it asks for memory. It counts some columns and rows around them.
    limit = {"max_pixels": str(max_pixels() + max_pixels() // 8 + 2**17)}
    options = {**limit, "format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    yield from _decoded(stream, name, every, limit, options=options, metadata_errors="ignore")


def _decoded(
    source: BinaryIO | str, name: str, every: int, limit: dict[str, str], **opening: Any
) -> Iterator[tuple[int, float, Image.Image]]:
    try:
        import av
    except ImportError as error:
        raise MissingExtra(f"{name}: videos need PyAV: pip install 'fer-pll[faces]'") from error
    try:
        with av.open(source, "r", **opening) as container:
            if not container.streams.video:
                return
            video = container.streams.video[0]
            if video.codec_context is None:
                raise ImageError(f"{name}: its frames are in a format that FFmpeg does not know")
            video.codec_context.options = limit
            clock = _Clock(video.average_rate)
            for number, frame in enumerate(container.decode(video)):
                time = clock(frame.time)
                if number % every == 0:
                    check_size(frame.width, frame.height, name)
                    # Phones store how they were held; PyAV gives that in degrees, counterclockwise.
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield number, time, Image.fromarray(pixels)
    except ImageError:
        raise
    except av.error.ArgumentError as error:
        raise ImageError(f"{name}: damaged, or frames of more than {max_pixels():,} pixels ({error})") from error
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:  # UnicodeDecodeError is a ValueError
        raise ImageError(f"{name}: {error}") from error


class _Clock:
    """The times of frames: those that they have, since the first. They never go back.

    A frame without a time comes one average frame after the one before; where the rate is not known, 25 a second.
    """

    def __init__(self, average_rate: Any) -> None:
        self._step = 1 / float(average_rate) if average_rate else 0.04
        self._first: float | None = None
        self._last = -self._step

    def __call__(self, stored: float | None) -> float:
        if stored is None:
            time = self._last + self._step
        else:
            if self._first is None:
                self._first = stored - max(0.0, self._last + self._step)
            time = stored - self._first
        self._last = max(time, self._last, 0.0)
        return self._last


_CAMERAS = {"linux": ("video4linux2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""By platform, the input device of FFmpeg and the name of a camera there."""


def show_camera(number: int, every: int = 1) -> Iterator[Shown]:
    """The frames of a camera, without end; those that come while the last one is in work are passed over.

    So the frames are never late, however slow the work. `frame` counts those that were passed over too. `file` is
    `camera-NUMBER`.

    Args:
        number: of the camera, from 0.
        every: use one of so many frames.

    Raises:
        ImageError: there is no such camera, or it gives no images.
        MissingExtra: PyAV is not installed.
    """
    name = f"camera-{number}"
    if sys.platform not in _CAMERAS:
        raise ImageError(f"{name}: cameras are read on Linux and macOS only; record a file and give that")
    device, place = _CAMERAS[sys.platform]
    yield from _show_device(place.format(number), device, name, every)


def _show_device(place: str, device: str, name: str, every: int) -> Iterator[Shown]:
    empty = True
    try:
        for number, time, image in newest(_decoded(place, name, every, {}, format=device)):
            empty = False
            yield Shown(name, number, image, time=time)
    except ImageError as error:
        advice = "check that the camera is there, that you may read it, and that no other program has it"
        raise ImageError(f"{error}: {advice}") from error
    if empty:
        raise ImageError(f"{name}: {place} gives no images; try another number")


def newest(items: Iterator[Any]) -> Iterator[Any]:
    """What an iterator gives, read by a thread of its own: the newest that is there, each once, and the last always.

    Raises:
        what the iterator raises, after what it gave before.
    """
    changed = threading.Condition()
    waiting: list[Any] = []
    ended: list[BaseException | None] = []
    left = False

    def read() -> None:
        error = None
        try:
            for item in items:
                with changed:
                    waiting[:] = [item]
                    changed.notify()
                    if left:
                        return
        except Exception as raised:
            error = raised
        finally:
            with changed:
                ended.append(error)
                changed.notify()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                while not (waiting or ended):
                    changed.wait(0.5)  # Ctrl-C is noticed between waits
                item = waiting.pop() if waiting else None
            if item is None:
                break
            yield item
        if ended[0] is not None:
            raise ended[0]
    finally:
        left = True
        thread.join(1)  # it ends at the next item; a camera that gives none is left alone
