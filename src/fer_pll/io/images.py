"""Opening images as 8-bit RGB: files, URLs, Pillow images and arrays, in every mode that photographs have.

This is the only module that opens image files of others. It keeps to a list of formats, so that no helper program
starts, and to a limit of pixels, so that a small file cannot fill the memory.
"""

import io
import os
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..model.preprocessing import scale_16_bits
from .download import download, is_url
from .errors import DataError, MissingExtra

MAX_PIXELS = 50_000_000
"""Pixels that an image, a frame or a crop may have. The environment variable FER_PLL_MAX_PIXELS sets another limit."""

MAX_BYTES = 200 * 2**20
"""Bytes that are read of a download, or of a file in an archive."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
"""The formats that are opened, beside HEIC, by their names in Pillow."""

IMAGE_ENDINGS = {".jpg", ".jpeg", ".jp2", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp", ".avif"}
IMAGE_ENDINGS |= {".heic", ".heif"}
"""Endings, in lower case, by which images are found in folders and archives."""

_BAND = 2**20  # pixels that are converted at a time
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class ImageError(ValueError):
    """An image is not usable; the message names the image and says why."""


def max_pixels() -> int:
    """The limit that holds: FER_PLL_MAX_PIXELS or, without it, `MAX_PIXELS`.

    Raises:
        ValueError: the variable is not a whole number from 1 up.
    """
    given = os.environ.get("FER_PLL_MAX_PIXELS", "").strip()
    if not given:
        return MAX_PIXELS
    if not (given.isascii() and given.isdigit() and int(given)):
        raise ValueError(f"FER_PLL_MAX_PIXELS is {given!r}: give a whole number of pixels from 1 up, or unset it")
    return int(given)


def check_size(width: float, height: float, name: str, copies: int = 1) -> None:
    """Checks a size against the limit of pixels, before memory is asked for.

    Args:
        width, height: in pixels.
        name: of the image in messages.
        copies: how many times the memory of other images this one takes; its limit is so much lower.

    Raises:
        ImageError: it has more pixels than `max_pixels()`.
    """
    limit = max_pixels() // copies
    if not width * height <= limit:  # NaN is refused too
        raise _too_large(name, f"{width:.0f} x {height:.0f} is more than", limit)


def _too_large(name: str, what: str, limit: int) -> ImageError:
    return ImageError(
        f"{name}: {what} {limit:,} pixels, perhaps a decompression bomb; if you trust it, make it smaller or set the "
        "environment variable FER_PLL_MAX_PIXELS to a higher limit"
    )


def open_image(source: Any, timeout: float | None = 30) -> Image.Image:
    """Opens an image, upright and as RGB.

    - The EXIF orientation is applied. A file with several frames (GIF, TIFF) gives its first. What files hold beside
      the pixels (EXIF, XMP, comments, color profiles) is left behind.
    - Transparent pixels become white, as on most pages that show such images. Gray, black and white, palette, CMYK
      and Lab images are converted; color profiles are not applied.
    - 16-bit values are scaled to 8 bits: 65535 becomes 255. In arrays, floating point values from 0 to 1 become 0 to
      255. Other values have no known scale and are refused.
    - Truncated files are refused, and files of more than `max_pixels()` pixels (half of them for WebP, AVIF and HEIC
      with transparency, a third for JPEG 2000, whose decoders hold more copies). Up to that limit memory grows by no
      more than four times the size of the RGB image.

    Args:
        source: a path, a URL (`http`, `https`, `data`), the bytes of an image file, a Pillow image, or an array or
            tensor: (H, W), or 1 (gray), 3 (RGB) or 4 (RGBA) channels, first or last, of uint8, uint16, bool, or
            floating point numbers from 0 to 1.
        timeout: seconds to wait for a server.

    Raises:
        ImageError: the image cannot be opened or has no known meaning; the message names the file.
        MissingExtra: it is HEIC, and pillow-heif is not installed.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if isinstance(source, bytes):
        return decode_image(source, "the image")
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if is_url(name) or (isinstance(name, str) and name.startswith("data:")):
            short = name if len(name) < 100 else name[:80] + "..."
            return decode_image(_fetch(name, short, timeout), short)
        try:
            size = Path(name).stat().st_size if Path(name).is_file() else None
        except (OSError, ValueError) as error:  # too long, or NUL in it
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{name[:200]}: cannot be opened ({reason})") from error
        if size is None:
            raise ImageError(f"{name}: there is no such file")
        if size == 0:
            raise ImageError(f"{name}: the file is empty")
        return _decode(name, name)
    return _to_rgb(_from_array(source), "the image")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Opens the contents of an image file, as `open_image` does.

    Args:
        data: the file's bytes.
        name: name of the image in messages.

    Raises:
        ImageError, MissingExtra: as `open_image`.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    return _decode(io.BytesIO(data), name)


def decode_as_stored(data: bytes, name: str) -> Image.Image:
    """Opens the contents of an image file, upright, but in the mode that it is stored in, such as gray.

    Args:
        data, name: see `decode_image`.

    Raises:
        ImageError, MissingExtra: as `open_image`.
    """
    return _decode(io.BytesIO(data), name, convert=False)


def pixels_only(data: bytes) -> bytes | None:
    """A JPEG or PNG file that needs no change to be opened, without what it holds beside its pixels.

    Left out are EXIF (with the place where a photograph was taken), XMP, color profiles, comments, thumbnails, and
    whatever follows the image. The pixels stay as they are, bit for bit: nothing is decoded.

    Returns:
        the file, or `None` where it is of another format, is neither gray nor RGB, has transparency, lies on its side,
        or is not built as files of its format are.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            plain = image.mode in ("L", "RGB") and not image.has_transparency_data and _orientation(image) == 1
            if not plain or image.format not in ("JPEG", "PNG"):
                return None
            return _jpeg_pixels(data) if image.format == "JPEG" else _png_pixels(data)
    except Exception:  # of Pillow's readers of metadata; the caller stores the image anew
        return None


def _jpeg_pixels(data: bytes) -> bytes | None:
    """The segments that decoders need. JFIF and Adobe say how the colors are stored."""
    kept, place = [data[:2]], 2
    while True:
        if data[place] != 0xFF:
            return None
        while data[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker = data[place + 1]
        if marker == 0xD9:  # the end
            return b"".join([*kept, b"\xff\xd9"])
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + length
        if length < 2 or end > len(data):
            return None
        content = data[place + 4 : end]
        if marker == 0xE0 and content.startswith(b"JFIF\0"):
            content = content[:12] + b"\0\0"  # without a thumbnail
            kept.append(b"\xff\xe0" + (len(content) + 2).to_bytes(2, "big") + content)
        elif marker == 0xEE and content.startswith(b"Adobe"):
            content = content[:12]
            kept.append(b"\xff\xee" + (len(content) + 2).to_bytes(2, "big") + content)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[place:end])
        place = end
        if marker == 0xDA:  # what follows a scan's header is coded pixels, up to the next marker
            while True:
                place = data.index(b"\xff", place)
                if data[place + 1] != 0 and not 0xD0 <= data[place + 1] <= 0xD7:
                    break
                place += 2
            kept.append(data[end:place])


def _png_pixels(data: bytes) -> bytes | None:
    """The chunks that decoders need."""
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(data[place:end])
        if kind == b"IEND":
            return b"".join(kept) if end <= len(data) else None
        place = end
    return None


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image, by its ending. Hidden files are not."""
    return Path(name).suffix.lower() in IMAGE_ENDINGS and not name.startswith(".")


def _decode(file: str | io.BytesIO, name: str, convert: bool = True) -> Image.Image:
    limit = max_pixels()
    if limit > MAX_PIXELS:  # the user asked for it: Pillow has a limit of its own
        Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS or limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            formats = FORMATS + (("HEIF",) if _is_heic(file, name) else ())
            with Image.open(file, formats=formats) as image:
                check_size(*image.size, name, _copies(image))
                image.load()
                turn = _UPRIGHT.get(_orientation(image))
                taken = _without_alpha(image, name) if convert else image
            del image  # before it is turned, which takes another copy
    except (ImageError, MissingExtra):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "more than", min(limit, Image.MAX_IMAGE_PIXELS or limit)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a format that is read ({', '.join(FORMATS)}, HEIC)") from error
    except Exception as error:  # Pillow's decoders raise any kind of exception on broken files
        raise ImageError(f"{name}: cannot be read, perhaps truncated or damaged ({error})") from error
    return taken if turn is None else taken.transpose(turn)


def _copies(image: Image.Image) -> int:
    """How many times the memory of a JPEG file of that size the decoder needs, as measured and rounded up."""
    heif = 2 if image.mode == "RGBA" else 1
    return {"JPEG2000": 3, "WEBP": 2, "AVIF": 2, "HEIF": heif}.get(image.format or "", 1)


def _is_heic(file: str | io.BytesIO, name: str) -> bool:
    """Whether a file is HEIC. If so, Pillow can open it afterwards."""
    if isinstance(file, io.BytesIO):
        start = file.getvalue()[:12]
    else:
        with Path(file).open("rb") as stream:
            start = stream.read(12)
    if start[4:8] != b"ftyp" or start[8:] not in _HEIC_BRANDS:
        return False
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise MissingExtra(f"{name}: HEIC images need pillow-heif: pip install 'fer-pll[faces]'") from error
    register_heif_opener()
    return True


def _fetch(url: str, name: str, timeout: float | None) -> bytes:
    try:
        if is_url(url):
            return download(url, MAX_BYTES, timeout)
        with urllib.request.urlopen(url) as answer:  # data: nothing leaves the machine
            return answer.read()
    except DataError as error:
        raise ImageError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: is no data URL ({error})") from error


def _from_array(source: Any) -> Image.Image:
    if callable(getattr(source, "detach", None)):  # a tensor of torch
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    array = np.asarray(source)
    channels = (1, 3, 4)
    first, last = (array.ndim == 3 and array.shape[axis] in channels for axis in (0, 2))
    if first and last:
        raise ImageError(
            f"the image: an array of shape {array.shape} may have its channels first or last; give a Pillow image"
        )
    if not (array.ndim == 2 or first or last) or 0 in array.shape:
        raise ImageError(
            f"the image: an object of type {type(source).__name__}, shape {array.shape}; give (H, W), or 1, 3 or 4 "
            "channels first or last, a Pillow image, a path or a URL"
        )
    if first:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.uint16:
        array = scale_16_bits(array)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN is refused too
            raise ImageError(
                f"the image: floating point values from {low:g} to {high:g} have no known scale; give 0 to 1, or "
                "uint8 from 0 to 255"
            )
        array = (array * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"the image: values of type {array.dtype} have no known scale; give uint8 from 0 to 255")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image of a caller, which stays as it is, upright and as RGB."""
    turn = _UPRIGHT.get(_orientation(image))
    plain = type(image) is Image.Image and image.mode == "RGB" and not image.has_transparency_data
    if not plain:
        image = _without_alpha(image, name)
    elif turn is None:
        return image  # already as this function returns images: no copy needed
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image with the pixels only. It is made in bands, so that no other copy of the whole is needed."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_convert(image.crop(box), name), box)
    return rgb


def _convert(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow opens some of these as 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: values beyond 16 bits have no known scale; save it with 8 or 16 bits")
        image = Image.fromarray(scale_16_bits(values))
    elif image.mode == "F":
        raise ImageError(f"{name}: floating point values have no known scale; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
