"""Histograms of oriented gradients of 8-bit pictures, batched (paper, section 3.2; Dalal and Triggs)."""

import math
from functools import cache

import torch

NUM_GRADIENTS = 511  # a central difference of two 8-bit values lies in -255..255


@cache
def gradient_table(orientations: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitude (float32) and orientation bin (int64) of every pair of 8-bit central differences, each (511 * 511,).

    The entry of (g_row, g_col) stands at `(g_row + 255) * 511 + g_col + 255`. There are so few pairs that looking them
    up is exact, and several times quicker than an arctangent per pixel.
    """
    steps = torch.arange(-255, 256, dtype=torch.float64)
    g_row, g_col = steps[:, None], steps[None, :]
    degrees = torch.rad2deg(torch.atan2(g_row, g_col)).remainder(180)
    # Bin k holds k * width <= degrees < (k + 1) * width. A direction and its opposite share a bin, and -0.0 degrees
    # (which `remainder` may round up to 180) is 0.
    bins = torch.div(degrees, 180 / orientations, rounding_mode="floor").long().remainder(orientations)
    magnitude = torch.hypot(g_row, g_col).float()
    return magnitude.flatten().to(device), bins.flatten().to(device)


@torch.no_grad()
def hog_targets(pixels: torch.Tensor, cell_size: int = 8, orientations: int = 9) -> torch.Tensor:
    """HOG of each channel with every cell's histogram L2-normalised on its own.

    Equals `skimage.feature.hog(channel, orientations, pixels_per_cell=(cell_size, cell_size), cells_per_block=(1, 1),
    block_norm="L2", feature_vector=False)` channel by channel: central differences with zero at the border, unsigned
    orientations, hard bins, mean over the cell, `v / sqrt(|v|^2 + 1e-10)`.

    Args:
        pixels: (B, C, H, W), any dtype, values 0..255. HOG is defined on 8-bit pictures: floats are rounded, because
            a gradient that should be exactly zero and is not falls into another bin.
        cell_size: pixels per side of a cell; divides H and W.
        orientations: number of bins over 180 degrees.

    Returns:
        float32 (B, C, H / cell_size, W / cell_size, orientations).

    Raises:
        ValueError: where H or W is not divisible by `cell_size`.
    """
    batch, channels, height, width = pixels.shape
    if height % cell_size or width % cell_size:
        raise ValueError(f"cell_size={cell_size} does not divide pictures of {height} x {width} pixels.")
    if pixels.is_floating_point():
        pixels = pixels.float().round().clamp(0, 255)
    pixels = pixels.to(torch.int32)

    magnitude, bins = gradient_table(orientations, pixels.device)
    gradient = torch.full_like(pixels, 255 * NUM_GRADIENTS + 255)  # (B, C, H, W), place in the table
    gradient[..., 1:-1, :] += (pixels[..., 2:, :] - pixels[..., :-2, :]) * NUM_GRADIENTS
    gradient[..., :, 1:-1] += pixels[..., :, 2:] - pixels[..., :, :-2]
    gradient = gradient.flatten()

    rows, cols = height // cell_size, width // cell_size
    cell = torch.arange(batch * channels * rows * cols, device=pixels.device) * orientations
    cell = cell.view(-1, rows, 1, cols, 1).expand(-1, rows, cell_size, cols, cell_size).flatten()
    histogram = torch.zeros(batch * channels * rows * cols * orientations, device=pixels.device)
    histogram.scatter_add_(0, cell + bins[gradient], magnitude[gradient])
    histogram = histogram.view(batch, channels, rows, cols, orientations) / cell_size**2
    return histogram / torch.sqrt(histogram.square().sum(-1, keepdim=True) + 1e-10)


def patchify_cells(cells: torch.Tensor, cells_per_patch: int) -> torch.Tensor:
    """Group HOG cells by image patch.

    Args:
        cells: (B, C, rows, cols, orientations), as `hog_targets` returns them.
        cells_per_patch: cells per side of a patch.

    Returns:
        (B, L, cells_per_patch^2 * orientations * C), patches in row-major order.
    """
    batch, channels, rows, cols, orientations = cells.shape
    n = cells_per_patch
    cells = cells.view(batch, channels, rows // n, n, cols // n, n, orientations)
    cells = cells.permute(0, 2, 4, 3, 5, 6, 1)  # (B, patch row, patch col, n, n, orientations, C)
    return cells.reshape(batch, (rows // n) * (cols // n), math.prod(cells.shape[3:]))
