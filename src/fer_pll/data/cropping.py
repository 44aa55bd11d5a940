"""Crops for `write_split`: the face in an image, by the annotations of the data set or by a detector."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..io.errors import DataError
from ..model.face_alignment import FaceCrop, align_face
from ..model.face_detection import Detector, find_faces, load_detector
from .image_writer import ImageRecord


@dataclass(frozen=True)
class CropToBox:
    """Cuts out the face's box. An image without a box is taken for a face crop.

    Args:
        max_side: a crop with a longer side is reduced to this many pixels.
    """

    max_side: int = 224

    def __call__(self, image: Image.Image, record: ImageRecord) -> Image.Image:
        if record.box is None:
            return image
        left, top, width, height = record.box
        corners = (max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height))
        left, top, right, bottom = map(round, corners)
        if right - left < 2 or bottom - top < 2:
            raise DataError(
                f"{record.path}: the face box {tuple(record.box)} lies outside of the image "
                f"({image.width} x {image.height}): correct the row"
            )
        face = image.crop((left, top, right, bottom))
        face.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        return face


@dataclass(frozen=True)
class CropToTemplate:
    """Moves the face's landmarks to those of a crop, see `model.face_alignment`.

    The landmarks are those of the data set. Where it has none, a detector finds those of the largest face.
    """

    crop: FaceCrop
    detector: str = "retinaface"

    @cached_property
    def _detector(self) -> Detector:  # made in the worker that needs it
        return load_detector(self.detector)

    def __call__(self, image: Image.Image, record: ImageRecord) -> Image.Image:
        if record.landmarks is not None:
            landmarks = np.reshape(record.landmarks, (5, 2))
        else:
            faces = find_faces(image, self._detector)
            if not faces:
                raise DataError(f"{record.path}: no face found; if it is a face crop already, prepare without --crop")
            landmarks = max(faces, key=lambda face: np.prod(face.box[2:] - face.box[:2])).landmarks
        try:
            return align_face(image, landmarks, self.crop)
        except ValueError as error:
            raise DataError(f"{record.path}: {error}") from error
