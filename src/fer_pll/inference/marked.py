"""Images and videos with their faces marked, timelines, explanations: folders that `fer-pll predict` fills."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageDraw

from ..io.atomic import check_local, whole_file
from ..io.download import is_url
from ..io.errors import DataError, MissingExtra
from .explanation import draw_explanation
from .media import Shown
from .video import Timeline

_LONGEST_NAME = 200  # bytes
_TIME_BASE = Fraction(1, 60_000)  # seconds; frames of every usual rate are whole numbers of it, also those of 29.97


class _Folder:
    """A folder for results, named after what was shown. A name that is taken gets a number.

    Raises:
        ValueError: it is a file, or holds files while `overwrite` is off.
    """

    what = "results"

    def __init__(self, path: str, overwrite: bool) -> None:
        check_local(path)
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{path} is a file: name a folder for the {self.what}")
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise ValueError(f"{path} is not empty: choose another folder, or --overwrite to write into it")
        self.path.mkdir(parents=True, exist_ok=True)
        self._taken: set[str] = set()

    @property
    def files(self) -> int:
        """How many names were given."""
        return len(self._taken)

    def _new(self, file: Path | str, ending: str, frame: int | None = None) -> Path:
        path = urlsplit(str(file)).path if is_url(file) else os.fspath(file)
        stem = PurePosixPath(Path(path).as_posix()).stem or "image"
        if len(name := os.fsencode(stem)) > _LONGEST_NAME:  # a file system takes 255 bytes, with what is added to it
            stem = name[:_LONGEST_NAME].decode("utf-8", "ignore")
        stem = stem if frame is None else f"{stem}-{frame:06}"
        free, number = stem, 1
        while free.casefold() in self._taken:  # some file systems do not tell A from a
            number += 1
            free = f"{stem}-{number}"
        self._taken.add(free.casefold())
        return self.path / f"{free}{ending}"


class ImageFolder(_Folder):
    """A folder for images with marked faces."""

    what = "images"

    def save(self, shown: Shown, faces: list[dict[str, Any]]) -> str | None:
        """Save an image with its faces marked; the reason, where its format cannot hold it.

        Raises:
            OSError: nothing can be written there.
        """
        assert shown.image is not None  # it has faces
        image = marked(shown.image, faces)
        try:
            with whole_file(self._new(shown.file, ".jpg", shown.frame)) as unfinished:
                image.save(unfinished, "JPEG", quality=92)
        except OSError as error:
            if error.errno is not None:  # of the system: a full disk, a folder that is gone
                raise
            return f"the marked image cannot be saved as JPEG ({error}; {image.width} x {image.height} pixels)"
        return None


class ExplanationFolder(_Folder):
    """A folder for figures that say why a face got its expressions, a PNG each."""

    what = "explanations"

    def save(self, shown: Shown, faces: list[dict[str, Any]]) -> None:
        """Save the figures of faces that were asked for with `explain`.

        Raises:
            OSError: nothing can be written there.
        """
        for face in faces:
            with whole_file(self._new(shown.file, ".png", shown.frame)) as unfinished:
                draw_explanation(face).save(unfinished, "PNG")


class VideoFolder(_Folder):
    """A folder for videos with marked faces: MP4, H.264, without sound, each frame at the time that it had.

    Raises:
        MissingExtra: PyAV is not installed.
    """

    what = "videos"

    def __init__(self, path: str, overwrite: bool) -> None:
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise MissingExtra("--save-video needs PyAV: pip install 'fer-pll[faces]'") from error
        super().__init__(path, overwrite)
        self._video: _Video | None = None

    def add(self, shown: Shown, faces: list[dict[str, Any]]) -> None:
        """Add a frame; that of another video ends the last one. What is no frame is passed over.

        Raises:
            OSError: nothing can be written there.
            DataError: the frame cannot be encoded.
        """
        if shown.image is None or shown.time is None or shown.frame is None:
            return
        if self._video is not None and (self._video.file != shown.file or shown.frame <= self._video.frame):
            self.close(whole=True)
        if self._video is None:
            self._video = _Video(shown.file, self._new(shown.file, ".mp4"), shown.image.size)
        self._video.frame = shown.frame
        self._video.write(marked(shown.image, faces), shown.time)

    def close(self, whole: bool) -> None:
        """End the video that is being written; one that is not whole is removed."""
        if self._video is not None:
            self._video.close(whole)
        self._video = None


class _Video:
    """One video that is being written. It gets its name when it is complete."""

    def __init__(self, file: Path | str, path: Path, size: tuple[int, int]) -> None:
        import av

        self.file, self.frame = file, -1
        self._size = (size[0] + size[0] % 2, size[1] + size[1] % 2)  # H.264 has a color for each two pixels
        self._last = -1
        self._stack = ExitStack()
        try:
            unfinished = self._stack.enter_context(whole_file(path))
            # FFmpeg would take some names for addresses, so it gets the file and never the name.
            target = self._stack.enter_context(unfinished.open("r+b"))
            self._container = self._stack.enter_context(av.open(target, "w", format="mp4"))
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            options = {"preset": "veryfast", "crf": "23"} if codec == "libx264" else {"b": "8M"}
            stream: Any = self._container.add_stream(codec, options=options)
            stream.width, stream.height = self._size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = stream.time_base = _TIME_BASE
            self._stream = stream
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise

    def write(self, image: Image.Image, time: float) -> None:
        import av

        pixels = np.asarray(image)
        if image.size != self._size:
            width, height = self._size
            if (width - image.width, height - image.height) in ((0, 1), (1, 0), (1, 1)):
                pixels = np.pad(pixels, ((0, height - image.height), (0, width - image.width), (0, 0)), "edge")
            else:  # its size has changed
                pixels = np.asarray(image.resize(self._size))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._last = max(self._last + 1, round(time / _TIME_BASE))
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        import av

        try:
            self._container.mux(self._stream.encode(frame))
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and error.errno in range(1, 200):
                raise OSError(error.errno, error.strerror, str(self.file)) from error
            raise DataError(f"{self.file}: its marked video cannot be written ({error})") from error

    def close(self, whole: bool) -> None:
        if whole:
            try:
                self._mux(None)
            except BaseException as error:
                self._stack.__exit__(type(error), error, error.__traceback__)
                raise
            self._stack.close()
        else:
            stopped = InterruptedError("cut off")
            with suppress(InterruptedError):
                self._stack.__exit__(InterruptedError, stopped, None)


class TimelineFolder(_Folder):
    """A folder for timelines of videos, one PNG each, see `fer_pll.plots.timeline`.

    Args:
        classes: names of the K classes.
    """

    what = "timelines"

    def __init__(self, path: str, overwrite: bool, classes: Sequence[str]) -> None:
        super().__init__(path, overwrite)
        self._classes = list(classes)
        self._video: tuple[Path | str, int] | None = None
        self._timeline = Timeline(classes)

    def add(self, shown: Shown, faces: list[dict[str, Any]]) -> None:
        """Add the faces of a frame; that of another video ends the last one. What is no frame is passed over.

        Raises:
            OSError: nothing can be written there.
        """
        if shown.time is None or shown.frame is None:
            return
        if self._video is not None and (self._video[0] != shown.file or shown.frame <= self._video[1]):
            self.close()
        self._video = (shown.file, shown.frame)
        for face in faces:
            smoothed, raw = ({each["label"]: each["score"] for each in face[kind]} for kind in ("expressions", "raw"))
            self._timeline.add(
                face["person"], shown.time, [smoothed[name] for name in self._classes],
                [raw[name] for name in self._classes],
            )  # fmt: skip

    def close(self) -> None:
        """Draw the timeline of the video that was shown last, where it had faces."""
        if self._video is not None and self._timeline.persons:
            from ..plots.timeline import plot_timeline  # not above: matplotlib takes a second

            plot_timeline(self._timeline, self._new(self._video[0], ".png"))
        self._video, self._timeline = None, Timeline(self._classes)


def marked(image: Image.Image, faces: list[dict[str, Any]]) -> Image.Image:
    """A copy of an image (RGB) with boxes, landmarks and the best expression of each face."""
    image = image.copy()
    image.info = {}  # a comment would be saved
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 400))
    for face in faces:
        best = face["expressions"][0]
        left, top = 0, 0
        if (box := face["box"]) is not None:
            left, top = box["xmin"], box["ymin"]
            draw.rectangle((left, top, box["xmax"], box["ymax"]), outline="yellow", width=line)
            for x, y in face["landmarks"]:
                draw.ellipse((x - line, y - line, x + line, y + line), fill="cyan")
        text, size = f"{best['label']} {best['score']:.0%}", max(10, 6 * line)
        if "person" in face:
            text = f"{face['person']}: {text}"
        area = draw.textbbox((left, max(0, top - 1.3 * size)), text, font_size=size)
        draw.rectangle(area, fill="black")
        draw.text((left, max(0, top - 1.3 * size)), text, fill="yellow", font_size=size)
    return image
