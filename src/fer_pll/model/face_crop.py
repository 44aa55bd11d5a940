"""What `face_crop` in a preprocessor_config.json may say."""

import math
from typing import Any


def check_face_crop(face_crop: Any) -> None:
    """Raise `ValueError` where `face_crop` is no description of a crop; the message names the key at fault.

    Args:
        face_crop: `name` (text), `template` (five (x, y) in shares of the crop's side: left and right eye, nose, left
            and right corner of the mouth, as seen in the picture), `size` (pixels), `colour` ("grey" or "rgb") and
            `margin` (share of the side that is added on each side).
    """

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    keys = ("name", "template", "size", "colour", "margin")
    if not isinstance(face_crop, dict) or set(face_crop) != set(keys):
        given = ", ".join(map(str, face_crop)) if isinstance(face_crop, dict) else repr(face_crop)
        raise ValueError(f"face_crop must have exactly the keys {', '.join(keys)}; it has: {given or 'none'}.")
    name, template, size, colour, margin = (face_crop[key] for key in keys)
    if not (isinstance(name, str) and name):
        raise ValueError(f"face_crop['name']={name!r}: say whose crop it is, e.g. 'FER+'.")
    if not (
        isinstance(template, (list, tuple))
        and len(template) == 5
        and all(isinstance(p, (list, tuple)) and len(p) == 2 and all(map(is_number, p)) for p in template)
        and all(0 <= value <= 1 for point in template for value in point)
        and len({tuple(point) for point in template}) == 5
    ):
        raise ValueError(
            f"face_crop['template']={template!r}: give five different (x, y) between 0 and 1, in shares of the side."
        )
    if not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        raise ValueError(f"face_crop['size']={size!r}: give the side of the crop in whole pixels.")
    if colour not in ("grey", "rgb"):
        raise ValueError(f"face_crop['colour']={colour!r}: choose 'grey' or 'rgb'.")
    if not (is_number(margin) and 0 <= margin <= 4):
        raise ValueError(f"face_crop['margin']={margin!r}: give a share of the side between 0 and 4.")
