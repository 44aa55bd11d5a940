"""What JPEG compression does to a batch of images, on the device that holds it and without a file."""

import math

import torch
from torch import nn

# Quantization of the coefficients at quality 50: ITU-T T.81 (1992), tables K.1 and K.2, row by row.
_OF_GRAY = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_OF_COLOR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
# Y, Cb, Cr of R, G, B (JFIF 1.02).
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg_compressed(pixels: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Images as they look after compression in blocks of 8 x 8 pixels, with the tables that libjpeg scales.

    Colors are compressed at full resolution (4:4:4).

    Args:
        pixels: (B, 1, H, W) gray or (B, 3, H, W) RGB, whole values 0..255.
        quality: (B,), 1..100.

    Returns:
        float32, whole values 0..255, of the shape of `pixels`; also under autocast.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        return _compressed(pixels.float(), quality)


def _compressed(pixels: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    (channels, height, width), device = pixels.shape[1:], pixels.device
    tables = torch.tensor([_OF_GRAY, _OF_COLOR, _OF_COLOR][:channels], dtype=torch.float32, device=device)
    quality = quality.to(device, torch.float32).view(-1, 1, 1, 1)
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    steps = ((tables * percent + 50) / 100).floor().clamp(1, 255)[:, :, None, :, None]  # (B, C, 1, 8, 1, 8)

    values = pixels - 128
    if channels == 3:
        to_ycbcr = torch.tensor(_YCBCR, device=device)
        # 128 is off R, G and B, and so off Y, whose weights have the sum 1; Cb and Cr, with the sum 0, lie around 0.
        values = torch.einsum("dc,bchw->bdhw", to_ycbcr, values).round()
    values = nn.functional.pad(values, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = values.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (B, C, h, 8, w, 8)
    cosines = _cosines().to(device)
    coefficients = torch.einsum("ui,bchiwj,vj->bchuwv", cosines, blocks, cosines)
    whole = coefficients / steps
    whole = (whole.abs() + 0.5001).floor().copysign(whole)  # halves away from 0, as libjpeg does
    coefficients = whole * steps
    values = torch.einsum("ui,bchuwv,vj->bchiwj", cosines, coefficients, cosines).flatten(4).flatten(2, 3)
    values = values[:, :, :height, :width].round()
    if channels == 3:
        values = torch.einsum("dc,bchw->bdhw", to_ycbcr.inverse(), values)
    return (values + 128).round().clamp(0, 255)


def _cosines() -> torch.Tensor:
    """The discrete cosine transform of 8 values as a matrix: orthonormal, a row for each frequency."""
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * frequency * (place + 0.5)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
