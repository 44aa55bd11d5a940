"""Image files that the benchmarks make."""

import io

from .common import photo_crops


def encode(pixels, kind):
    """(C, H, W) to the bytes of an image file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def decode(data):
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded_images(scale, count):
    """Image files as FER+ (tiny) and RAF-DB (base) have them."""
    size, channels, kind = {"tiny": (48, 1, "PNG"), "base": (100, 3, "JPEG")}[scale]
    return [encode(pixels, kind) for pixels in photo_crops(count, size, channels)]
