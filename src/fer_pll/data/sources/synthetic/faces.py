"""Faces drawn from facial action units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image as PILImage
from PIL import ImageChops, ImageDraw, ImageFilter

from ....io.errors import DataError

SMALLEST = 24
ACTION_UNITS = {
    "AU1": "inner brow raiser",
    "AU2": "outer brow raiser",
    "AU4": "brow lowerer",
    "AU5": "upper lid raiser",
    "AU6": "cheek raiser",
    "AU7": "lid tightener",
    "AU9": "nose wrinkler",
    "AU10": "upper lip raiser",
    "AU12": "lip corner puller",
    "AU14": "dimpler",
    "AU15": "lip corner depressor",
    "AU17": "chin raiser",
    "AU20": "lip stretcher",
    "AU23": "lip tightener",
    "AU25": "lips part",
    "AU26": "jaw drop",
    "R12": "lip corner puller, right side only",
    "R14": "dimpler, right side only",
}
"""The action units that `draw_face` knows, each with an intensity from 0 (absent) to 1 (as strong as it gets)."""


EXPRESSION_ACTION_UNITS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happiness": {"AU6": 0.9, "AU12": 1.0, "AU25": 0.8},
    "surprise": {"AU1": 1.0, "AU2": 1.0, "AU5": 0.8, "AU25": 0.5, "AU26": 1.0},
    "sadness": {"AU1": 1.0, "AU4": 0.7, "AU15": 1.0, "AU17": 0.5},
    "anger": {"AU4": 1.0, "AU5": 0.6, "AU7": 0.7, "AU23": 1.0},
    "disgust": {"AU9": 1.0, "AU10": 0.8, "AU15": 0.6, "AU17": 0.4, "AU7": 0.5},
    "fear": {"AU1": 1.0, "AU2": 0.6, "AU4": 0.7, "AU5": 1.0, "AU20": 1.0, "AU25": 0.6, "AU26": 0.3},
    "contempt": {"R12": 0.9, "R14": 1.0},
}
"""Expression -> intensities of its action units, the prototypes of the FACS literature (happiness = 6 + 12 ...)."""


@dataclass(frozen=True)
class Identity:
    """One person: proportions relative to 1, offsets in 48ths of the image's side, grays from 0 to 255."""

    face_width: float = 1.0
    jaw_width: float = 1.0
    chin: float = 0.0
    eye_distance: float = 0.0
    eye_size: float = 1.0
    eye_tilt: float = 0.0
    brow_height: float = 0.0
    brow_tilt: float = 0.0
    brow_thickness: float = 1.0
    nose_length: float = 0.0
    nose_width: float = 1.0
    mouth_height: float = 0.0
    mouth_width: float = 1.0
    mouth_curve: float = 0.0
    lip_fullness: float = 1.0
    age: float = 0.3
    skin: float = 185.0
    hair: float = 50.0
    iris: float = 60.0
    hairline: float = 0.0
    parting: float = 0.0
    long_hair: bool = False
    beard: float = 0.0
    glasses: bool = False

    @classmethod
    def sample(cls, rng: np.random.Generator, variation: float = 1.0) -> "Identity":
        """A random person. `variation` scales the distance of people from the average."""
        normal = (variation * rng.standard_normal(16)).tolist()
        uniform = rng.random(6)
        long_hair = bool(uniform[1] < 0.45)
        uniform = (0.5 + variation * (uniform - 0.5)).tolist()
        skin = 100 + 100 * uniform[0] ** 0.7
        return cls(
            face_width=1 + 0.05 * normal[0],
            jaw_width=1 + 0.07 * normal[1],
            chin=0.9 * normal[2],
            eye_distance=0.45 * normal[3],
            eye_size=1 + 0.10 * normal[4],
            eye_tilt=0.25 * normal[5],
            brow_height=0.45 * normal[6],
            brow_tilt=0.35 * normal[7],
            brow_thickness=math.exp(0.25 * normal[8]),
            nose_length=0.6 * normal[9],
            nose_width=1 + 0.12 * normal[10],
            mouth_height=0.5 * normal[11],
            mouth_width=1 + 0.08 * normal[12],
            mouth_curve=0.35 * normal[13],
            lip_fullness=math.exp(0.2 * normal[14]),
            age=uniform[2],
            skin=skin,
            hair=min(15 + 190 * uniform[3] ** 2, skin - 20),
            iris=35 + 60 * uniform[4],
            hairline=1.3 * normal[15],
            parting=10 * (uniform[5] - 0.5),
            long_hair=long_hair,
            beard=0.0 if long_hair or rng.random() < 1 - 0.4 * variation else rng.random(),
            glasses=bool(rng.random() < 0.15 * variation),
        )


@dataclass(frozen=True)
class View:
    """How the image was taken: angles in radians, shifts and blur in 48ths of the side, noise in gray levels."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    light: tuple[float, float] = (0.15, -0.15)
    contrast: float = 1.0
    brightness: float = 0.0
    background: float = 120.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0

    @classmethod
    def sample(cls, rng: np.random.Generator, variation: float = 1.0) -> "View":
        """A random view. `variation` scales the distance of views from a frontal image in even light."""
        normal = (variation * rng.standard_normal(10)).tolist()
        uniform = rng.random(5)
        mirrored = bool(uniform[0] < 0.5)
        uniform = (0.5 + variation * (uniform - 0.5)).tolist()
        return cls(
            yaw=0.10 * normal[0],
            pitch=0.05 * normal[1],
            roll=0.07 * normal[2],
            scale=math.exp(0.05 * normal[3]),
            shift=(0.8 * normal[4], 0.8 * normal[5]),
            mirrored=mirrored,
            light=(0.25 * normal[6], 0.15 * normal[7] - 0.1),
            contrast=0.75 + 0.45 * uniform[1],
            brightness=14 * normal[8],
            background=20 + 220 * uniform[2],
            blur=0.6 * uniform[3],
            noise=1 + 7 * uniform[4],
            noise_seed=int(rng.integers(2**32)),
        )


@cache
def _spline_basis(controls: int, steps: int = 6) -> np.ndarray:
    """Catmull-Rom weights (points, controls): a smooth curve through the control points is one matrix product."""
    u = np.linspace(0, 1, steps, endpoint=False)[:, None]
    segment = 0.5 * np.hstack([-u + 2 * u**2 - u**3, 2 - 5 * u**2 + 3 * u**3, u + 4 * u**2 - 3 * u**3, u**3 - u**2])
    basis = np.zeros(((controls - 1) * steps + 1, controls))
    for span in range(controls - 1):
        for tap in range(4):
            control = min(max(span + tap - 1, 0), controls - 1)
            basis[span * steps : (span + 1) * steps, control] += segment[:, tap]
    basis[-1, -1] = 1
    return basis


def _curve(*points: tuple[float, float]) -> np.ndarray:
    return _spline_basis(len(points)) @ np.array(points, dtype=float)


def _mirror(points: np.ndarray) -> np.ndarray:
    """The other side of the face, in reverse order, so that a half and its mirror image join to one outline."""
    return points[::-1] * (-1, 1)


_CIRCLE = np.stack([np.cos(np.arange(20) * np.pi / 10), np.sin(np.arange(20) * np.pi / 10)], axis=1)
_CENTER = np.array([24.0, 19.0])  # where the point between the eyes lies in an unshifted image, in 48ths of the side
_PIVOT = np.array([0.0, 5.0])  # the middle of the face; the head is rounded about it with the radii 19 and 28
_RADII_SQUARED = np.array([19.0, 28.0]) ** 2


class _Canvas:
    """A gray image that is drawn on in face coordinates.

    Face coordinates have their origin midway between the eyes, x to the right and y downwards, in 48ths of the
    image's side; the mouth lies near y = 18. `depth` points lie on the rounded front of the head and move when the
    head turns; the others are its outline, which keeps its place.
    """

    def __init__(self, size: int, view: View, fill: float) -> None:
        self.image = PILImage.new("L", (size, size), int(fill))
        self.pen = ImageDraw.Draw(self.image)
        self.unit = size / 48
        self.view = view
        cos, sin = math.cos(view.roll), math.sin(view.roll)
        self.linear = np.array([[cos, sin], [-sin, cos]]) * (view.scale * self.unit)
        self.origin = (_CENTER + view.shift) * self.unit
        self.turned = np.array([[math.cos(view.yaw)], [math.cos(view.pitch)]]) * self.linear
        self.bulging = np.array([[math.sin(view.yaw)], [math.sin(view.pitch)]]) * self.linear
        self.turned_origin = _PIVOT @ self.linear + self.origin

    def place(self, points: np.ndarray, depth: bool = True) -> list[float]:
        """Pixel coordinates x, y, x, y ... of (points, 2) face coordinates."""
        if depth:
            points = points - _PIVOT
            bulge = np.sqrt(np.maximum(_RADII_SQUARED - points * points, 0))
            placed = points @ self.turned + bulge @ self.bulging + self.turned_origin
        else:
            placed = points @ self.linear + self.origin
        return placed.ravel().tolist()

    def polygon(self, points: np.ndarray, fill: float, depth: bool = True) -> None:
        self.pen.polygon(self.place(points, depth), fill=int(fill))

    def line(self, points: np.ndarray, fill: float, width: float, depth: bool = True) -> None:
        width = max(1, round(width * self.view.scale * self.unit))
        self.pen.line(self.place(points, depth), fill=int(fill), width=width, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: float, depth: bool = True) -> None:
        self.polygon(_CIRCLE * (rx, ry) + (x, y), fill, depth)


def _pull(au: Mapping[str, float], side: int) -> tuple[float, float]:
    """Lip corner puller and dimpler on one side of the image; the person's right is the image's left (-1)."""
    if side > 0:
        return au["AU12"], au["AU14"]
    return min(au["AU12"] + au["R12"], 1.0), min(au["AU14"] + au["R14"], 1.0)


def _head_outline(person: Identity, au: Mapping[str, float]) -> np.ndarray:
    width, jaw, chin = person.face_width, person.face_width * person.jaw_width, person.chin + 3.2 * au["AU26"]
    half = _curve(
        (0, -21),
        (10 * width, -19),
        (15.5 * width, -11.5),
        (16.6 * width, -1),
        (15.6 * jaw, 9),
        (12.8 * jaw, 18 + 0.6 * chin),
        (7 * jaw, 25.3 + chin),
        (0, 27.5 + chin),
    )
    return np.vstack([half, _mirror(half)])


def _draw_head(canvas: _Canvas, person: Identity, outline: np.ndarray) -> None:
    """Hair behind the head, shoulders, neck, ears and the bare head."""
    width, jaw, skin = person.face_width, person.jaw_width, person.skin
    if person.long_hair:
        half = _curve((0, -24), (13, -21), (20, -10), (20.5 * width, 8), (21, 24), (19, 40))
        canvas.polygon(np.vstack([half, _mirror(half)]), person.hair, depth=False)
    canvas.polygon(_curve((-30, 50), (-24, 36), (-9, 29), (9, 29), (24, 36), (30, 50)), person.hair * 0.6 + 50, False)
    neck = 9.5 * jaw
    canvas.polygon(np.array([(-neck, 14), (neck, 14), (neck + 1, 33), (0, 38), (-neck - 1, 33)]), 0.62 * skin, False)
    for side in (-1, 1):
        canvas.ellipse(side * 16.8 * width, 3, 2.3, 4.6, 0.78 * skin, depth=False)
    canvas.polygon(outline, skin, depth=False)


def _draw_relief(
    canvas: _Canvas, person: Identity, au: Mapping[str, float], outline: np.ndarray, corners: np.ndarray
) -> None:
    """Soft light and shadow on the skin: cheeks, eye sockets, nose bridge, beard, and the folds that action units cut.

    Two small canvases around mid-gray hold broad forms and folds. They are blurred and added to the image.
    """
    broad = _Canvas(canvas.image.width // 2, canvas.view, 128)
    folds = _Canvas(canvas.image.width // 2, canvas.view, 128)
    tone = person.skin / 190

    def shade(level: float) -> float:  # level in gray values on light skin
        return 128 + level * tone

    broad.polygon(outline, shade(-26), depth=False)
    broad.polygon(outline * (0.86, 0.94), shade(4), depth=False)
    raised = au["AU6"]
    for side in (-1, 1):
        broad.ellipse(side * 8.2, -1.4, 5, 3.2, shade(-22))
        broad.ellipse(side * (9.2 + 0.5 * raised), 8.5 - 1.8 * raised, 4.2, 3.4, shade(18 + 14 * raised))
        broad.ellipse(side * 2.3, 4.5, 0.9, 4.5, shade(-16 - 8 * au["AU9"]))
    broad.ellipse(0, 4 + 0.5 * person.nose_length, 1.1, 5.5, shade(26))
    broad.ellipse(0, 22.6 + 0.8 * au["AU26"], 3.5, 0.9, shade(-20))
    broad.ellipse(0, 25 + person.chin + 2.4 * au["AU26"], 3.2, 1.6, shade(14))
    broad.ellipse(0, -12, 8, 3.5, shade(12))
    if person.beard:
        beard = person.beard * (person.hair - person.skin) * 0.75
        chin = person.chin + 3.2 * au["AU26"]
        half = _curve((3, 13.2), (8, 15), (14.5, 8), (14, 18 + chin), (8, 27 + chin), (0, 30 + chin))
        broad.polygon(np.vstack([half, _mirror(half)]), 128 + beard)

    nose = 10 + person.nose_length
    for side, (corner_x, corner_y) in zip((-1, 1), corners, strict=True):
        smile, dimple = _pull(au, side)
        # nasolabial fold: from the wing of the nose around the corner of the mouth
        depth = 14 + 16 * person.age + 34 * smile + 26 * au["AU10"] + 20 * au["AU9"]
        bulge = 2.2 + 1.2 * smile + 0.8 * au["AU10"]
        fold = _curve(
            (side * (3.9 * person.nose_width), nose - 1.8 - 1.6 * au["AU9"]),
            (side * (abs(corner_x) * 0.55 + bulge + 1.4), (nose + corner_y) / 2 - 0.8),
            (corner_x + side * (2.2 + 0.4 * bulge), corner_y + 0.2 - 1.2 * smile - 2.2 * au["AU15"]),
        )
        folds.line(fold, shade(-depth), 0.9)
        if dimple:
            hook = _curve((-0.4, -1.9), (0.9, -0.4), (0.5, 1.6)) * (side, 1) + (corner_x + side * 1.0, corner_y)
            folds.line(hook, shade(-105 * dimple), 1.0)
        if au["AU15"]:
            folds.line(
                _curve((corner_x + side * 0.3, corner_y), (corner_x + side * 0.9, corner_y + 2.6)),
                shade(-55 * au["AU15"]),
                0.9,
            )
        if raised:  # bag below the eye and crow's feet
            bag = _curve((side * 4.8, 3.2), (side * 8.6, 4.2 - 0.5 * raised), (side * 12.4, 2.2))
            folds.line(bag, shade(-52 * raised), 0.9)
            for y in (-0.6, 0.8):
                folds.line(np.array([(side * 13.2, y), (side * 15.4, 1.8 * y)]), shade(-40 * raised), 0.6)
        if au["AU4"]:  # vertical lines between the brows
            folds.line(np.array([(side * 1.5, -6.6), (side * 1.1, -3)]), shade(-75 * au["AU4"]), 0.8)
        if au["AU9"]:  # lines across the root and down the side of the nose
            folds.line(np.array([(side * 0.2, -1.2), (side * 2.6, 0.4)]), shade(-85 * au["AU9"]), 0.8)
            folds.line(np.array([(side * 0.4, 1.2), (side * 2.9, 3.2)]), shade(-85 * au["AU9"]), 0.8)
    if au["AU1"]:  # lines across the forehead, over its whole width only with the outer brows up
        reach = 5 + 5 * au["AU2"]
        for y in (-10.4, -12.6):
            line = _curve((-reach, y + 0.9 * (1 - au["AU4"])), (0, y), (reach, y + 0.9 * (1 - au["AU4"])))
            folds.line(line, shade(-(34 + 24 * person.age) * au["AU1"]), 0.7)
    if au["AU17"]:
        folds.ellipse(0, 24.2 + person.chin, 3.2, 0.9, shade(-45 * au["AU17"]))

    relief = ImageChops.add(
        broad.image.filter(ImageFilter.GaussianBlur(1.5 * broad.unit)),
        folds.image.filter(ImageFilter.GaussianBlur(0.35 * folds.unit)),
        offset=-128,
    ).resize(canvas.image.size, PILImage.Resampling.BILINEAR)
    face = PILImage.new("L", canvas.image.size, 0)
    ImageDraw.Draw(face).polygon(canvas.place(outline, depth=False), fill=255)
    canvas.image.paste(ImageChops.add(canvas.image, relief, offset=-128), mask=face)


def _draw_eyes(canvas: _Canvas, person: Identity, au: Mapping[str, float]) -> None:
    upper = 1.75 * person.eye_size + 1.5 * au["AU5"] - 0.6 * au["AU7"] - 0.35 * au["AU6"] - 0.35 * au["AU9"]
    lower = 1.25 * person.eye_size + 0.2 * au["AU5"] - 0.6 * au["AU7"] - 0.75 * au["AU6"] - 0.3 * au["AU9"]
    # brows raised and drawn together pull the inner corners of the lids up with them
    slope = person.eye_tilt - 0.55 * au["AU1"] * au["AU4"]
    for side in (-1, 1):
        x = side * (8.4 + person.eye_distance)
        t = np.linspace(-1, 1, 11)
        arch = 1 - t**2
        lid_x = x + side * 3.7 * person.eye_size * t
        top = np.stack([lid_x, -max(upper, 0.3) * arch**0.75 - slope * t], axis=1)
        bottom = np.stack([lid_x, max(lower, 0.1) * arch - slope * t], axis=1)
        eye = np.vstack([top, bottom[::-1]])

        white = min(person.skin + 45, 245)
        opening = PILImage.new("L", canvas.image.size, 0)
        ImageDraw.Draw(opening).polygon(canvas.place(eye), fill=255)
        ball = _Canvas(canvas.image.width, canvas.view, white)
        ball.ellipse(x, -0.2, 2.0, 2.0, person.iris)
        ball.ellipse(x, -0.2, 1.0, 1.0, 12)
        ball.ellipse(x - 0.7, -0.9, 0.45, 0.45, 240)
        canvas.image.paste(ball.image, mask=opening)

        canvas.line(top, min(40, 0.4 * person.skin), 0.75)
        canvas.line(bottom, 0.62 * person.skin, 0.35)
        crease = top - (0, 1.3 - 0.5 * au["AU5"])
        canvas.line(crease[2:-1], 0.68 * person.skin, 0.4)


def _draw_brows(canvas: _Canvas, person: Identity, au: Mapping[str, float]) -> None:
    oblique = au["AU1"] * au["AU4"]  # raised and drawn together: the inner ends stay up
    inner = -2.3 * au["AU1"] + 2.4 * au["AU4"] - 1.6 * oblique + 0.9 * au["AU9"]
    middle = -1.3 * au["AU1"] - 1.9 * au["AU2"] + 1.5 * au["AU4"] + 0.5 * au["AU9"]
    outer = 0.5 * au["AU1"] - 2.7 * au["AU2"] + 0.5 * au["AU4"] + 0.3 * au["AU6"]
    together = 1.3 * au["AU4"] + 0.4 * au["AU9"]
    thick = 0.85 * person.brow_thickness
    height = -5.0 - person.brow_height
    tone = 0.75 * min(person.hair, person.skin - 40) + 0.1 * person.skin
    for side in (-1, 1):
        spread = person.eye_distance
        ridge = (
            (side * (3.8 + spread - together), height + 0.3 + inner - person.brow_tilt),
            (side * (8.4 + spread - 0.5 * together), height - 1.0 + middle),
            (side * (13.2 + spread), height + 0.6 + outer + person.brow_tilt),
        )
        upper = _curve(*((px, py - dy) for (px, py), dy in zip(ridge, (thick, thick, 0.2), strict=True)))
        lower = _curve(*((px, py + dy) for (px, py), dy in zip(ridge, (thick, 0.7 * thick, 0.3), strict=True)))
        canvas.polygon(np.vstack([upper, lower[::-1]]), tone)


def _draw_nose(canvas: _Canvas, person: Identity, au: Mapping[str, float]) -> None:
    lift = 1.5 * au["AU9"] + 0.4 * au["AU10"]
    tip = 10 + person.nose_length - 0.6 * lift
    wide = person.nose_width * (1 + 0.12 * au["AU9"] + 0.08 * au["AU12"])
    for side in (-1, 1):
        wing = _curve((2.6, -3.0), (3.7, -1.4), (3.5, 0.2), (2.6, 0.5)) * (side * wide, 1) + (0, tip - lift)
        canvas.line(wing, 0.66 * person.skin, 0.55)
        canvas.ellipse(side * 1.7 * wide, tip + 0.2 - 0.6 * lift, 0.95, 0.55, 0.3 * person.skin)
    canvas.line(_curve((-1.2, tip + 0.7), (0, tip + 1.1), (1.2, tip + 0.7)), 0.7 * person.skin, 0.4)


def mouth_corners(person: Identity, action_units: Mapping[str, float]) -> np.ndarray:
    """Positions of the mouth's corners before the view is applied: (2, 2) floats, (x, y) of the corner at the left of
    the image, then of the right one, in 48ths of the image's side from the point between the eyes, y downwards."""
    au = dict.fromkeys(ACTION_UNITS, 0.0) | dict(action_units)
    corners = []
    for side in (-1, 1):
        smile, dimple = _pull(au, side)
        reach = 6.6 * person.mouth_width + 2.2 * smile + 0.9 * dimple + 2.6 * au["AU20"]
        reach -= 1.0 * au["AU23"] + 1.3 * au["AU26"] + 0.3 * au["AU15"]
        height = 18.2 + person.mouth_height - person.mouth_curve + 0.7 * au["AU26"]
        height += 2.6 * au["AU15"] + 0.6 * au["AU20"] - 2.9 * smile - 0.2 * dimple
        corners.append((side * reach, height))
    return np.array(corners)


def _draw_mouth(canvas: _Canvas, person: Identity, au: Mapping[str, float], corners: np.ndarray) -> None:
    (left, left_y), (right, right_y) = corners
    seam = 18.2 + person.mouth_height - 0.7 * au["AU17"] - 0.5 * au["AU12"]
    opening = 2.1 * au["AU25"] * (1 - 0.5 * au["AU26"]) + 6.8 * au["AU26"]
    inner_top = seam - 0.25 * opening - 1.0 * au["AU10"] - 0.5 * au["AU9"] - 0.3 * au["AU12"] * au["AU25"]
    inner_bottom = max(seam + 0.75 * opening, inner_top)
    thin = 1 - 0.65 * au["AU23"]
    upper_lip = 1.75 * person.lip_fullness * thin * (1 - 0.25 * au["AU12"]) * (1 - 0.2 * au["AU10"])
    lower_lip = 2.3 * person.lip_fullness * thin * (1 - 0.15 * au["AU12"]) * (1 + 0.25 * au["AU17"])

    def arc(middle: float, flat: float) -> np.ndarray:
        """From corner to corner through `middle`; `flat` is how close to the middle's height the quarters stay."""
        quarter = [(0.58 * x, flat * middle + (1 - flat) * y) for x, y in corners]
        return _curve((left, left_y), quarter[0], (0, middle), quarter[1], (right, right_y))

    round_mouth = 0.62 + 0.2 * au["AU26"]
    square = au["AU20"] * 0.15
    inner_upper = arc(inner_top, round_mouth)
    inner_lower = arc(inner_bottom, round_mouth + square)
    top = inner_top - upper_lip
    bow = 0.35 * upper_lip
    peak = 0.26 * (right - left) / 2
    outer_upper = _curve(
        (left, left_y),
        (0.6 * left, 0.62 * (top + bow) + 0.38 * left_y),
        (-peak, top),
        (0, top + bow),
        (peak, top),
        (0.6 * right, 0.62 * (top + bow) + 0.38 * right_y),
        (right, right_y),
    )
    outer_lower = arc(inner_bottom + lower_lip, 0.72 + 0.1 * au["AU26"])

    lip = 0.72 * person.skin
    canvas.polygon(np.vstack([outer_upper, inner_upper[::-1]]), 0.86 * lip)
    canvas.polygon(np.vstack([outer_lower, inner_lower[::-1]]), lip)
    shine = arc(inner_bottom + 0.55 * lower_lip, 0.72)[8:-8]
    canvas.line(shine, min(1.2 * lip, 235), 0.5 * thin)
    if opening > 0.3:
        canvas.polygon(np.vstack([inner_upper, inner_lower[::-1]]), 0.14 * person.skin)
        teeth = min(opening, 2.0) * min(1.0, au["AU12"] + 0.8 * au["AU20"] + 0.8 * au["AU10"] + 0.35 * au["AU26"])
        if teeth > 0.3:
            edge = inner_upper + np.minimum(teeth, inner_lower[:, 1:] - inner_upper[:, 1:]) * (0, 1)
            canvas.polygon(np.vstack([inner_upper, edge[::-1]]), min(person.skin + 60, 240))
    else:
        canvas.line(inner_upper, 0.3 * person.skin, 0.6)
    for x, y in corners:
        canvas.ellipse(x * 0.99, y, 0.5, 0.45, 0.4 * person.skin)


def _draw_hair(canvas: _Canvas, person: Identity) -> None:
    """Hair in front of the head, and glasses."""
    width, line = person.face_width, -13.0 + person.hairline
    crown = _curve((-17.6 * width, -2), (-17.8 * width, -14), (-10, -22.5), (0, -24), (10, -22.5), (17.8 * width, -14))
    crown = np.vstack([crown, (17.6 * width, -2)])
    fringe = _curve(
        (16.2 * width, -3),
        (13.5 * width, line + 2.5),
        (person.parting + 4, line - 0.4),
        (person.parting, line - 1.6),
        (person.parting - 4, line - 0.4),
        (-13.5 * width, line + 2.5),
        (-16.2 * width, -3),
    )
    canvas.polygon(np.vstack([crown, fringe]), person.hair, depth=False)
    for strand in (0.25, 0.5, 0.75):
        x = (strand - 0.5) * 26
        canvas.line(_curve((person.parting, -23), (x, -20), (1.15 * x, line)), person.hair + 14, 0.4, depth=False)
    if person.long_hair:
        for side in (-1, 1):
            lock = _curve((15, -8), (17.2, 2), (17.5, 14), (16, 30), (22, 34), (20.5, 8), (18, -9)) * (side * width, 1)
            canvas.polygon(lock, person.hair, depth=False)
    if person.glasses:
        for side in (-1, 1):
            x = side * (8.2 + person.eye_distance)
            canvas.line(np.vstack([_CIRCLE, _CIRCLE[:1]]) * (5.1, 4.1) + (x, 0.4), 35, 0.6)
            canvas.line(np.array([(side * 13.2, -0.6), (side * 16.6, -1.2)]), 35, 0.6)
        canvas.line(_curve((-3.2, -0.2), (0, -0.9), (3.2, -0.2)), 35, 0.6)


def _develop(image: PILImage.Image, view: View, image_size: int) -> np.ndarray:
    """Makes the image from the supersampled drawing: light, contrast, blur, noise, 8 bits."""
    if view.mirrored:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    image = image.reduce(image.width // image_size)
    if view.blur:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * image_size / 48))
    ramp = np.linspace(-1, 1, image_size, dtype=np.float32)
    light = 1 + view.light[0] * ramp[None, :] + view.light[1] * ramp[:, None]
    pixels = (np.asarray(image, dtype=np.float32) * light - 128) * view.contrast + 128 + view.brightness
    if view.noise:
        noise = np.random.default_rng(view.noise_seed).standard_normal(pixels.shape, dtype=np.float32)
        pixels += view.noise * noise
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def draw_face(
    action_units: Mapping[str, float], person: Identity, view: View | None = None, image_size: int = 48
) -> np.ndarray:
    """Draw one face.

    Args:
        action_units: intensity in 0..1 of each action unit that is active; names of `ACTION_UNITS`.
        person: the person who shows the face.
        view: the way the image is taken; by default from the front, in even light and without noise.
        image_size: side of the square image in pixels, at least 24.

    Returns:
        (image_size, image_size) uint8, gray.

    Raises:
        DataError: an action unit is unknown, an intensity is outside 0..1, or `image_size` is below 24.
    """
    for name, intensity in action_units.items():
        if name not in ACTION_UNITS:
            raise DataError(f"unknown action unit {name!r}; known are {', '.join(ACTION_UNITS)}")
        if not 0 <= intensity <= 1:
            raise DataError(f"the intensity of {name} is {intensity}; give a number from 0 to 1")
    if image_size < SMALLEST:
        raise DataError(f"image_size is {image_size}; a face needs at least {SMALLEST} pixels")
    au = dict.fromkeys(ACTION_UNITS, 0.0) | dict(action_units)
    view = view or View()
    supersampling = 2 * max(1, round(96 / image_size))  # even: the relief is drawn at half the size
    canvas = _Canvas(image_size * supersampling, view, view.background)
    outline = _head_outline(person, au)
    corners = mouth_corners(person, au)
    _draw_head(canvas, person, outline)
    _draw_relief(canvas, person, au, outline, corners)
    _draw_nose(canvas, person, au)
    _draw_mouth(canvas, person, au, corners)
    _draw_eyes(canvas, person, au)
    _draw_brows(canvas, person, au)
    _draw_hair(canvas, person)
    return _develop(canvas.image, view, image_size)
