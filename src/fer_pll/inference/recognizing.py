"""From images and frames to faces and their expressions, one after the other, the same with torch and without it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..faces.tracking import FaceTracker
from ..io.images import max_pixels
from ..model.face_alignment import FaceCrop, align_face
from ..model.face_answers import describe_face, rank_expressions
from ..model.face_detection import Detector, Face, find_faces
from .explanation import explain as explain_face
from .media import Shown
from .video import SMOOTHING, Smoother

Answer = tuple[Shown, list[dict[str, Any]]]
"""Something that was shown, and the faces in it; none where there is no image."""


class Classifier(NamedTuple):
    """A loaded model: names of its K classes, and what gives probabilities, float64 (B, K), for B face crops."""

    classes: list[str]
    probabilities: Callable[[list[Image.Image]], np.ndarray]


@dataclass
class Finder:
    """The faces of what is shown, cut out. Those of a video are followed, see `fer_pll.faces.tracking`.

    Args:
        detector: see `fer_pll.model.face_detection`.
        crop: how the model's training images show a face.
    """

    detector: Detector
    crop: FaceCrop
    _tracker: FaceTracker | None = field(default=None, init=False)
    _video: tuple[Path | str, int] | None = field(default=None, init=False)

    def __call__(self, shown: Shown) -> list[tuple[Face | None, Image.Image]]:
        assert shown.image is not None
        faces: list[Any]
        if shown.frame is None or shown.time is None:
            faces = find_faces(shown.image, self.detector)
        else:
            if _begins(shown, self._video) or self._tracker is None:
                self._tracker = FaceTracker(self.detector)
            self._video = (shown.file, shown.frame)
            faces = self._tracker(shown.image, shown.time)
        return [(face, align_face(shown.image, face.landmarks, self.crop)) for face in faces]


def _begins(shown: Shown, before: tuple[Path | str, int] | None) -> bool:
    """Whether a frame is the first of its video, given file and number of the frame before."""
    return before is None or shown.file != before[0] or (shown.frame or 0) <= before[1]


def recognize_faces(
    shown: Iterable[Shown],
    find: Callable[[Shown], list[tuple[Face | None, Image.Image]]],
    classifier: Classifier,
    batch_size: int = 16,
    smooth: float = SMOOTHING,
    top_k: int | None = None,
    explain: bool = False,
) -> Iterator[Answer]:
    """Everything that is shown, in order, with its faces as `describe_face` gives them.

    Up to `batch_size` faces, of several images, go through the model together. So many images are held at most, and
    fewer if they have more than `max_pixels()` together.

    Args:
        shown: images, frames and problems.
        find: the faces in an image with their crops, such as a `Finder`; None in place of a face where the image is
            the crop.
        classifier: the model.
        batch_size: see above.
        smooth: for videos, see `Smoother`.
        top_k: give this many expressions of each face, the best; default: all.
        explain: add to each face what `inference.explanation.explain` says of it.
    """
    waiting: deque[tuple[Shown, list[Face | None]]] = deque()
    crops: list[Image.Image] = []
    pixels = 0
    describe = _Describer(classifier.classes, smooth, top_k)

    def answers() -> Iterator[Answer]:
        nonlocal pixels
        rows = [row for k in range(0, len(crops), batch_size) for row in _rows(classifier, crops[k : k + batch_size])]
        places = iter(zip(rows, list(crops), strict=True))
        crops.clear()
        pixels = 0
        while waiting:
            image, faces = waiting.popleft()
            described = []
            for face in faces:
                row, crop = next(places)
                described.append(describe(image, face, row))
                if explain:
                    described[-1] |= explain_face(classifier.probabilities, crop, classifier.classes)
            yield image, described

    for each in shown:
        found = find(each) if each.image is not None else []
        waiting.append((each, [face for face, _ in found]))
        crops += [crop for _, crop in found]
        pixels += each.image.width * each.image.height if each.image is not None else 0
        del each, found  # an image is let go once it is answered
        if len(crops) >= batch_size or len(waiting) >= batch_size or pixels >= max_pixels():
            yield from answers()
    yield from answers()


def _rows(classifier: Classifier, crops: list[Image.Image]) -> Iterable[np.ndarray]:
    return classifier.probabilities(crops) if crops else ()


class _Describer:
    """Answers about faces; those of a video are smoothed, and have `person` and `raw`, the answers for the frame."""

    def __init__(self, classes: list[str], smooth: float, top_k: int | None) -> None:
        self._classes, self._seconds, self._top_k = classes, smooth, top_k
        self._smoother = Smoother(smooth)
        self._video: tuple[Path | str, int] | None = None

    def __call__(self, shown: Shown, face: Face | None, probabilities: np.ndarray) -> dict[str, Any]:
        if face is None:
            return {"box": None, "score": None, "expressions": rank_expressions(probabilities.tolist(), self._classes)}
        person = getattr(face, "person", None)
        if person is None:
            return describe_face(face, probabilities.tolist(), self._classes, self._top_k)
        assert shown.time is not None and shown.frame is not None
        if self._video is not None and self._video != (shown.file, shown.frame) and _begins(shown, self._video):
            self._smoother = Smoother(self._seconds)
        self._video = (shown.file, shown.frame)
        smoothed = self._smoother(person, shown.time, probabilities)
        answer = describe_face(face, smoothed.tolist(), self._classes, self._top_k)
        return answer | {
            "person": person,
            "raw": rank_expressions(probabilities.tolist(), self._classes)[: self._top_k],
        }
