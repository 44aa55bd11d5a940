"""The description of face crops, `face_crop` in a preprocessor_config.json."""

from typing import Any

from .preprocessing import MAX_SIDE, is_number, is_side


def check_face_crop(face_crop: Any) -> dict[str, Any]:
    """Check the description of a crop, and convert it to the present spelling.

    Args:
        face_crop: `name` (text), `template` (five (x, y) in shares of the crop's side: left and right eye, nose, left
            and right corner of the mouth, as seen in the image), `size` (pixels, at most 1024), `color` ("gray" or
            "rgb") and `margin` (share of the side that is added on each side). Earlier checkpoints have `colour`
            ("grey" or "rgb") instead of `color`.

    Returns:
        A new dictionary with the keys named above.

    Raises:
        ValueError: `face_crop` does not describe a crop; the message names the key at fault.
    """

    keys = ("name", "template", "size", "color", "margin")
    if isinstance(face_crop, dict) and "colour" in face_crop and "color" not in face_crop:
        face_crop = dict(face_crop)
        colour = face_crop.pop("colour")
        face_crop["color"] = "gray" if colour == "grey" else colour
    if not isinstance(face_crop, dict) or set(face_crop) != set(keys):
        given = ", ".join(map(str, face_crop)) if isinstance(face_crop, dict) else repr(face_crop)
        raise ValueError(f"face_crop must have exactly the keys {', '.join(keys)}; it has: {given or 'none'}.")
    name, template, size, color, margin = (face_crop[key] for key in keys)
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
    if not is_side(size, MAX_SIDE // 2):
        raise ValueError(
            f"face_crop['size']={size!r}: give the side of the crop in whole pixels, at most {MAX_SIDE // 2}."
        )
    if color not in ("gray", "rgb"):
        raise ValueError(f"face_crop['color']={color!r}: choose 'gray' or 'rgb'.")
    if not (is_number(margin) and 0 <= margin <= 4):
        raise ValueError(f"face_crop['margin']={margin!r}: give a share of the side between 0 and 4.")
    return {key: face_crop[key] for key in keys}
