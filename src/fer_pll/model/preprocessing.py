"""The settings in a preprocessor_config.json that say how an image becomes `pixel_values`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_SIDE = 2048
"""The longest side of a model's images, in pixels. A crop of a face has at most half of it."""


def scale_16_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 16 bits, any shape, as uint8: 65535 becomes 255, the others are rounded to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_side(value: Any, longest: int = MAX_SIDE) -> bool:
    """Whether it is a whole number of pixels from 1 to `longest`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= longest


def check_preprocessing(settings: Mapping[str, Any], where: str = "") -> None:
    """Check the sizes and numbers among an image processor's settings; those that are not there are not missed.

    Args:
        settings: `size` and `crop_size` (sides in pixels by name, or one side), `rescale_factor`, `image_mean`,
            `image_std`, `num_channels`, `resample`; others are passed over. None stands for the default.
        where: begins each message.

    Raises:
        ValueError: a value is impossible, or larger than `MAX_SIDE`; the message names the key.
    """
    for key in ("size", "crop_size"):
        size = settings.get(key)
        sides = {} if size is None else dict(size) if not isinstance(size, (int, float, str, list)) else {"side": size}
        for name, side in sides.items():
            if side is not None and not (name.endswith("pixels") or is_side(side)):
                raise ValueError(f"{where}{key}: {name}={side!r}: sides are whole numbers of pixels, 1 to {MAX_SIDE}.")
    channels, factor = settings.get("num_channels"), settings.get("rescale_factor")
    if channels is not None and channels not in (1, 3):
        raise ValueError(f"{where}num_channels={channels}: images have 1 (gray) or 3 (RGB) channels.")
    if factor is not None and not (is_number(factor) and factor > 0):
        raise ValueError(f"{where}rescale_factor={factor!r}: give a number above 0, such as {1 / 255:.6f}.")
    for key in ("image_mean", "image_std"):
        values = settings.get(key)
        if values is None:
            continue
        given = values if isinstance(values, (list, tuple)) else [values]
        if not (all(map(is_number, given)) and (key == "image_mean" or all(value > 0 for value in given))):
            above = " above 0" if key == "image_std" else ""
            raise ValueError(f"{where}{key}={values!r}: give a finite number{above} for each channel.")
        if channels is not None and len(given) != channels:
            raise ValueError(f"{where}{key}={values!r}: give one value for each of {channels} channels.")
    resample = settings.get("resample")
    if resample is not None and resample not in range(6):
        raise ValueError(f"{where}resample={resample!r}: Pillow's filters have the numbers 0 to 5.")
