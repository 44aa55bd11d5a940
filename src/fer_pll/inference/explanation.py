"""Why a face got its expressions: what each probability owes to each part of the crop.

Parts of the crop are hidden, and the model is asked again. That needs nothing but its answers, so it is the same for
every network, with torch and with onnxruntime. The attention of the label queries costs nothing, but is less faithful
to the model: "Explanations" in train_scripts/RESULTS.md has both beside each other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

GRID = 8
"""Rows and columns of a heat map."""

WINDOW = 2
"""Side of what is hidden at a time, in cells of the grid."""

_AT_ONCE = 27  # images with a hidden part that go through the model together
_STRONGEST = 0.5  # of a color over the crop
_LEAST = 0.5  # effect on the log-odds that gets the full color; weaker maps stay pale
_FOR, _AGAINST = (214, 40, 40), (38, 92, 200)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of probabilities of any shape, within the range that float32 tells apart from 0 and 1."""
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)


def heat_maps(probabilities: Callable[[list[Image.Image]], np.ndarray], crop: Image.Image) -> np.ndarray:
    """How much each part of a face crop speaks for each class.

    A window of `WINDOW` x `WINDOW` cells moves over the crop cell by cell, also over its edges, and is filled with the
    crop's mean color. A cell's value is the mean, over the windows that cover it, of what the class's log-odds lose
    (Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014, for log-odds): above 0 where the
    cell speaks for the class, below 0 where it speaks against it. A window's effect is shared by its cells.

    Args:
        probabilities: the classifier: from B crops to their class probabilities (B, K).
        crop: gray or RGB, as the classifier takes it.

    Returns:
        float32 (K, `GRID`, `GRID`), in nats.
    """
    image = crop if crop.mode in ("L", "RGB") else crop.convert("RGB")
    mean = np.asarray(image, dtype=np.float64).mean(axis=(0, 1)).round().astype(int).tolist()
    fill = mean if image.mode == "L" else tuple(mean)
    places = [(row, column) for row in range(1 - WINDOW, GRID) for column in range(1 - WINDOW, GRID)]
    hidden = []
    for row, column in places:
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + WINDOW, GRID), min(column + WINDOW, GRID)
        x, y = image.width / GRID, image.height / GRID
        changed = image.copy()
        changed.paste(fill, (round(left * x), round(top * y), round(right * x), round(bottom * y)))
        hidden.append(changed)
    answers = [probabilities([image])]
    answers += [probabilities(hidden[k : k + _AT_ONCE]) for k in range(0, len(hidden), _AT_ONCE)]
    odds = log_odds(np.concatenate(answers))
    lost = odds[0] - odds[1:]  # (windows, K)
    maps, windows = np.zeros((odds.shape[1], GRID, GRID)), np.zeros((GRID, GRID))
    for (row, column), effect in zip(places, lost, strict=True):
        cells = np.s_[max(row, 0) : row + WINDOW, max(column, 0) : column + WINDOW]
        windows[cells] += 1
        maps[:, cells[0], cells[1]] += effect[:, None, None] / windows[cells].size
    return (maps / windows).astype(np.float32)


def explain(
    probabilities: Callable[[list[Image.Image]], np.ndarray], crop: Image.Image, classes: Sequence[str]
) -> dict[str, Any]:
    """What an answer about a face gets from `explain=True`: `crop`, and `heat_maps` by class, see `heat_maps`."""
    return {"crop": crop, "heat_maps": dict(zip(classes, heat_maps(probabilities, crop), strict=True))}


def draw_heat_map(crop: Image.Image, heat_map: np.ndarray, side: int = 192) -> Image.Image:
    """A face crop with a heat map over it, RGB (`side` x `side`).

    Red speaks for the class, blue against it. The color is full for the strongest part of the map.

    Args:
        crop: the face.
        heat_map: (h, w) of `heat_maps`.
        side: in pixels.
    """
    face = np.asarray(crop.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    smooth = Image.fromarray(np.asarray(heat_map, dtype=np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(smooth)[..., None] / max(float(np.abs(heat_map).max()), _LEAST)
    color = np.where(values > 0, np.array(_FOR, np.float32), np.array(_AGAINST, np.float32))
    share = np.clip(np.abs(values), 0, 1) * _STRONGEST
    gray = face.mean(axis=2, keepdims=True)  # so that all color is the map's
    return Image.fromarray((gray * (1 - share) + color * share).round().astype(np.uint8))


def draw_explanation(face: dict[str, Any], top: int = 3, side: int = 192) -> Image.Image:
    """A figure that says why: the crop that the model saw, and the heat maps of the best expressions, side by side.

    Args:
        face: an answer of the task `facial-expression-recognition`, asked for with `explain=True`.
        top: number of expressions.
        side: of each picture in pixels.

    Raises:
        ValueError: the answer has no heat maps.
    """
    if "heat_maps" not in face:
        raise ValueError("this face has no heat maps: ask for them with explain=True")
    from PIL import ImageDraw  # not above: `import fer_pll` needs none of it

    crop, best = face["crop"], face["expressions"][:top]
    pictures = [("what the model saw", crop.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))]
    for each in best:
        picture = draw_heat_map(crop, face["heat_maps"][each["label"]], side)
        pictures.append((f"{each['label']} {each['score']:.0%}", picture))
    size = max(10, side // 13)
    gap, line = size // 2, 2 * size
    figure = Image.new("RGB", (len(pictures) * (side + gap) + gap, side + 2 * line), "white")
    draw = ImageDraw.Draw(figure)
    for number, (title, picture) in enumerate(pictures):
        left = gap + number * (side + gap)
        draw.text((left, line // 2), title, fill="black", font_size=size, anchor="lm")
        figure.paste(picture, (left, line))
    left = gap
    for text, color in (("red speaks for it,", _FOR), ("blue against it", _AGAINST)):
        draw.text((left, line * 3 // 2 + side), text, fill=color, font_size=size, anchor="lm")
        left += round(draw.textlength(text + " ", font_size=size))
    return figure
