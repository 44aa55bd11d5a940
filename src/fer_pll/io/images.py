"""Opening images as 8-bit RGB: files, URLs, Pillow images and arrays, in every mode that photographs have."""

import io
import os
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

_SCHEMES = ("http://", "https://", "data:")
_MAX_DOWNLOAD = 200 * 2**20  # bytes


class ImageError(ValueError):
    """An image is not usable; the message names the image and says why."""


def open_image(source: Any, timeout: float | None = 30) -> Image.Image:
    """Opens an image, upright and as RGB.

    - The EXIF orientation is applied. A file with several frames (GIF, TIFF) gives its first.
    - Transparent pixels become white, as on most pages that show such images. Gray, black and white, palette, CMYK
      and Lab images are converted; color profiles are not applied.
    - 16-bit values are scaled to 8 bits: 65535 becomes 255. Floating point values are refused: their scale is unknown.
    - Truncated files, and decompression bombs (more than `PIL.Image.MAX_IMAGE_PIXELS` pixels), are refused.

    Args:
        source: a path, a URL (`http`, `https`, `data`), the bytes of an image file, a Pillow image, or an array or
            tensor of (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA as uint8, uint16 or bool.
        timeout: seconds to wait for a server.

    Raises:
        ImageError: the image cannot be opened or has no known meaning; the message names the file.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the image")
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if isinstance(name, str) and name.startswith(_SCHEMES):
            name = name if len(name) < 100 else name[:80] + "..."
            return _decode(io.BytesIO(_download(os.fspath(source), name, timeout)), name)
        if not Path(name).is_file():
            raise ImageError(f"{name}: there is no such file")
        if not Path(name).stat().st_size:
            raise ImageError(f"{name}: the file is empty")
        return _decode(name, name)
    return _to_rgb(_from_array(source), "the image")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Opens the contents of an image file, as `open_image` does.

    Args:
        data: the file's bytes.
        name: name of the image in messages.

    Raises:
        ImageError: as `open_image`.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    return _decode(io.BytesIO(data), name)


def _decode(file: str | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _to_rgb(image, name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, perhaps a decompression bomb; if you trust it, "
            "make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise any kind of exception on broken files
        raise ImageError(f"{name}: cannot be read, perhaps truncated or damaged ({error})") from error


def _download(url: str, name: str, timeout: float | None) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "fer-pll"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read(_MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise ImageError(f"{name}: cannot be downloaded ({error})") from error
    if len(content) > _MAX_DOWNLOAD:
        raise ImageError(f"{name}: more than {_MAX_DOWNLOAD // 2**20} MiB; download it yourself and give its path")
    return content


def _from_array(source: Any) -> Image.Image:
    array = np.asarray(source)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ImageError(
            f"the image: a {type(source).__name__} of shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4), a "
            "Pillow image, a path or a URL"
        )
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"the image: values of type {array.dtype} have no known scale; give uint8 from 0 to 255")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if type(image) is Image.Image and image.mode == "RGB" and not image.has_transparency_data:
        return image  # already as this function returns images: no copy needed
    if image.mode.startswith("I"):  # 16 bits; Pillow opens some of these as 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: values beyond 16 bits have no known scale; save it with 8 or 16 bits")
        image = Image.fromarray(_to_8_bits(values))
    elif image.mode == "F":
        raise ImageError(f"{name}: floating point values have no known scale; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255, rounded to the nearest
