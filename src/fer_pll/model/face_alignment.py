"""Face alignment: from a photograph and five landmarks to a crop like those that a model was trained on.

Coordinates are continuous and in pixels: x points right, y down. The corner of the first pixel is (0, 0), its center
(0.5, 0.5), so coordinates scale with the image. The landmarks are, as seen in the image: left eye, right eye, nose
tip, left and right corner of the mouth.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from .face_crop import check_face_crop

_LONGEST_SIDE = 3000
"""Pixels of the grid that a crop is interpolated on, per side; a photograph with more in a face is reduced first."""

LANDMARKS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")


@dataclass(frozen=True)
class FaceCrop:
    """How a model's training images show a face; saved as `face_crop` in the image processor's config.

    Args:
        name: of the images, e.g. `"FER+"`.
        template: five (x, y), the landmarks in shares of the crop's side.
        size: side of the crop in pixels. It may be less than the model's input: a model trained on enlarged images of
            48 pixels must see other images enlarged from 48 pixels as well.
        color: `"gray"` or `"rgb"`.
        margin: how far the crop extends beyond the template's square on each side, in shares of that square's side.

    Raises:
        ValueError: a value is invalid; the message names it.
    """

    name: str
    template: tuple[tuple[float, float], ...]
    size: int
    color: str
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_face_crop(asdict(self))

    @classmethod
    def from_image_processor(cls, image_processor: Any, source: str = "This image processor") -> "FaceCrop":
        """The crop of an image processor; `source` names the image processor in the error if it has no crop."""
        return cls.from_dict(getattr(image_processor, "face_crop", None), source)

    @classmethod
    def from_dict(cls, face_crop: dict[str, Any] | None, source: str) -> "FaceCrop":
        """The crop from `face_crop` in the preprocessor_config.json of `source`."""
        if face_crop is None:
            raise ValueError(
                f"{source} does not say how its faces are cropped (`face_crop` in preprocessor_config.json): name a "
                "checkpoint that does as `crop` (--crop), e.g. fer-pll-tiny-ferplus if it was trained on FER+."
            )
        face_crop = check_face_crop(face_crop)
        template = tuple((float(x), float(y)) for x, y in face_crop["template"])
        return cls(**face_crop | {"template": template})

    @property
    def landmarks(self) -> np.ndarray:
        """Places of the landmarks in the crop, in pixels, (5, 2)."""
        return (np.array(self.template) + self.margin) / (1 + 2 * self.margin) * self.size


def similarity_transform(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The rotation, scale and translation, without reflection, that best map `points` to `template`.

    The least-squares solution of Umeyama (1991). With points of the plane as complex numbers p and q, rotation and
    scale are a single factor, and the problem is linear: factor = sum(conj(p) q) / sum(|p|^2), both centered.

    Args:
        points, template: (N, 2), N >= 2.

    Returns:
        float64 (2, 3): `matrix @ (x, y, 1)` is the point's place in the template.

    Raises:
        ValueError: shapes differ, values are not finite, or all points of one array are the same.
    """
    points, template = np.asarray(points, dtype=np.float64), np.asarray(template, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or points.shape != template.shape:
        raise ValueError(f"points {points.shape} and template {template.shape} must both be (N, 2) with N >= 2")
    if not (np.isfinite(points).all() and np.isfinite(template).all()):
        raise ValueError("points and template must be finite numbers")
    p, q = (array[:, 0] + 1j * array[:, 1] for array in (points, template))
    p_mean, q_mean = p.mean(), q.mean()
    p, q = p - p_mean, q - q_mean
    extent = np.vdot(p, p).real
    factor = np.vdot(p, q) / extent if extent > 0 else 0  # vdot conjugates its first argument
    if factor == 0:
        raise ValueError("points or template lie all in one place: they tell neither scale nor rotation")
    offset = q_mean - factor * p_mean
    return np.array([[factor.real, -factor.imag, offset.real], [factor.imag, factor.real, offset.imag]])


def face_transform(size: tuple[int, int], landmarks: np.ndarray, crop: FaceCrop) -> np.ndarray:
    """The transform from an image to a crop, float64 (2, 3), see `similarity_transform`.

    Args:
        size: width and height of the image.
        landmarks: (5, 2), pixels of the image.

    Raises:
        ValueError: as `similarity_transform`; landmarks lie more than a hundred sides outside of the image, or the
            crop would be so large: these are landmarks of another image, or of no face.
    """
    to_crop = similarity_transform(landmarks, crop.landmarks)
    longest = max(size)
    outside = np.maximum(-np.asarray(landmarks), np.asarray(landmarks) - np.array(size)).max()
    side = crop.size / math.hypot(*to_crop[:, 0])  # of the crop, in the image
    if max(outside, side) > 100 * longest:
        raise ValueError(
            f"the landmarks lie far outside of the image ({size[0]} x {size[1]} pixels), or do not form a face"
        )
    return to_crop


def align_face(image: Image.Image, landmarks: np.ndarray, crop: FaceCrop, quick: bool = False) -> Image.Image:
    """Cuts a face out of a photograph as `crop` describes.

    The photograph is interpolated once (bicubic). If it has more pixels than the crop, the interpolation uses a grid
    fine enough to skip no pixel, and each pixel of the crop is the mean of the square it covers: no aliasing. If that
    grid had more than 3000 x 3000 points, the photograph is first reduced by a whole number, each pixel the mean of a
    square. Parts of the crop outside the photograph repeat its edge.

    Args:
        image: RGB or gray, 8 bits.
        landmarks: (5, 2), pixels of `image`.
        quick: reduce the photograph by the whole number below its scale, then interpolate it bilinearly at the
            crop's pixels only: a fifth of the time, and slightly coarser. For looking at a face, not for the model.

    Returns:
        The crop: a square of `crop.size` pixels, mode L for gray, else RGB.

    Raises:
        ValueError: as `face_transform`.
    """
    to_crop = face_transform(image.size, landmarks, crop)
    reduction = math.ceil(crop.size / math.hypot(*to_crop[:, 0]) / _LONGEST_SIDE)
    if reduction > 1:
        image, landmarks = image.reduce(reduction), np.asarray(landmarks) / reduction
        to_crop = similarity_transform(landmarks, crop.landmarks)
    to_image = np.linalg.inv(to_crop[:, :2])
    origin = -to_image @ to_crop[:, 2]  # of the crop, in the image
    scale = math.hypot(*to_image[:, 0])
    finer = 1 if quick else max(1, math.ceil(scale - 1e-6))  # samples per side of a pixel of the crop

    # The part of the photograph that the crop touches, with two pixels around for the interpolation.
    corners = origin + crop.size * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ to_image.T
    left, top = np.floor(corners.min(axis=0)).astype(int) - 2
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 2
    mode = "L" if crop.color == "gray" else "RGB"
    if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
        part = image.crop((left, top, right, bottom))
        part = part if part.mode == mode else part.convert(mode)
    else:
        columns = np.arange(left, right).clip(0, image.width - 1)
        rows = np.arange(top, bottom).clip(0, image.height - 1)
        inside = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        pixels = np.asarray(inside.convert(mode))
        part = Image.fromarray(pixels[(rows - rows[0])[:, None], columns - columns[0]])
    coarser = max(1, math.floor(scale + 1e-6)) if quick else 1
    if coarser > 1:
        part = part.reduce(coarser)

    (a, b), (d, e) = to_image / finer / coarser
    c, f = (origin - (left, top)) / coarser
    side = crop.size * finer
    resampling = Image.Resampling.BILINEAR if quick else Image.Resampling.BICUBIC
    fine = part.transform((side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), resampling)
    return fine.reduce(finer) if finer > 1 else fine
