"""Histograms of oriented gradients of 8-bit images, batched (paper, section 3.2; Dalal and Triggs)."""

import math
from functools import cache

import torch
from torch import nn

NUM_DIFFERENCES = 511  # a central difference of two 8-bit values lies in -255..255


def gradient_table(orientations: int, device: torch.device) -> torch.Tensor:
    """Contribution of one pixel to the histogram of its cell, for every gradient that an 8-bit image can have.

    Row `|511 g_row + g_col|` holds the magnitude of (g_row, g_col) in the column of its orientation bin and zeros
    elsewhere. Bin k holds the directions from `k * 180 / orientations` degrees up to, not including, the next bin's.
    A direction and its opposite share a bin, hence a row.

    Returns:
        float32 (255 * 511 + 256, orientations).
    """
    shifted = torch.arange(255 * NUM_DIFFERENCES + 256, device="cpu") + 255
    g_row = (shifted // NUM_DIFFERENCES).double()  # 0..255
    g_col = (shifted % NUM_DIFFERENCES - 255).double()  # -255..255
    degrees = torch.atan2(g_row, g_col).rad2deg()  # 0 <= degrees < 180
    # Multiples of 45 degrees can lie on the edge between two bins and belong to the upper one: the nudge keeps
    # rounding errors from deciding otherwise. All other gradients are much further away from every edge.
    bins = ((degrees + 1e-9) * (orientations / 180)).long()
    magnitude = (g_row.square() + g_col.square()).sqrt().float()
    return torch.where(bins[:, None] == torch.arange(orientations, device="cpu"), magnitude[:, None], 0.0).to(device)


_kept_gradient_table = cache(gradient_table)


@torch.compiler.assume_constant_result  # torch.compile takes the finished table and does not compile its computation
def cached_gradient_table(orientations: int, device: torch.device) -> torch.Tensor:
    return _kept_gradient_table(orientations, device)


def cell_histograms(channel: torch.Tensor, cell_size: int, table: torch.Tensor) -> torch.Tensor:
    """Sum the `gradient_table` rows of the pixels of each cell.

    Args:
        channel: 0..255, floats are rounded, (B, H, W).
        cell_size: pixels per side of a cell.
        table: of `gradient_table`.

    Returns:
        float32 (B, H / cell_size, W / cell_size, orientations).
    """
    batch, height, width = channel.shape
    if channel.is_floating_point():
        channel = channel.round().clamp_(0, 255)
    channel = channel.to(torch.int16)  # half the memory traffic of int32
    row = torch.zeros(channel.shape, dtype=torch.int32, device=channel.device)  # of the table, (B, H, W)
    row[:, 1:-1] = channel[:, 2:] - channel[:, :-2]
    row *= NUM_DIFFERENCES
    row[:, :, 1:-1] += channel[:, :, 2:] - channel[:, :, :-2]
    row.abs_()
    # Along each row of pixels first, since these lie next to each other, then over the rows of pixels.
    sums = nn.functional.embedding_bag(row.view(-1, cell_size), table, mode="sum")
    return sums.view(batch, height // cell_size, cell_size, width // cell_size, -1).sum(dim=2)


def sobel_histograms(pixels: torch.Tensor, cell_size: int, orientations: int) -> torch.Tensor:
    """Cell histograms by the definition of MaskFeat (Wei et al., 2022).

    Sobel gradients of the image continued by reflection; the angle is measured from the vertical, atan2(g_col,
    g_row).

    Args:
        pixels: float (B, C, H, W).

    Returns:
        float32 (B, C, H / cell_size, W / cell_size, orientations), sums over the cells.
    """
    batch, channels, height, width = pixels.shape
    smooth = torch.tensor([1.0, 2.0, 1.0], device=pixels.device)
    difference = torch.tensor([1.0, 0.0, -1.0], device=pixels.device)
    kernels = torch.stack([smooth.outer(difference), difference.outer(smooth)])[:, None]  # (2, 1, 3, 3)
    padded = nn.functional.pad(pixels.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    g_col, g_row = nn.functional.conv2d(padded, kernels).unbind(1)  # (B * C, H, W) each
    magnitude = torch.hypot(g_col, g_row)
    bins = (torch.atan2(g_col, g_row) * (orientations / math.pi)).floor().long() % orientations
    cell = torch.arange(height * width, device=pixels.device).view(height, width)
    cell = cell // width // cell_size * (width // cell_size) + cell % width // cell_size  # (H, W), number of the cell
    sums = torch.zeros(batch * channels, height * width // cell_size**2 * orientations, device=pixels.device)
    sums.scatter_add_(1, (cell * orientations + bins).flatten(1), magnitude.flatten(1))
    return sums.view(batch, channels, height // cell_size, width // cell_size, orientations)


@torch.no_grad()
def hog_targets(
    pixels: torch.Tensor, cell_size: int = 8, orientations: int = 9, gradient: str = "central"
) -> torch.Tensor:
    """HOG of each channel with every cell's histogram L2-normalized on its own.

    Equals `skimage.feature.hog(channel, orientations, pixels_per_cell=(cell_size, cell_size), cells_per_block=(1, 1),
    block_norm="L2", feature_vector=False)` channel by channel: central differences with zero at the border, unsigned
    orientations, hard bins, mean over the cell, `v / sqrt(|v|^2 + 1e-10)`. `gradient="sobel"` is MaskFeat's definition
    instead, see `sobel_histograms`, with `v / max(|v|, 1e-12)`.

    Args:
        pixels: (B, C, H, W), any dtype, values 0..255. HOG is defined on 8-bit images: floats are rounded, because
            a gradient that should be exactly zero and is not falls into another bin.
        cell_size: pixels per side of a cell; divides H and W.
        orientations: number of bins over 180 degrees.
        gradient: `"central"` or `"sobel"`.

    Returns:
        float32 (B, C, H / cell_size, W / cell_size, orientations).

    Raises:
        ValueError: where H or W is not divisible by `cell_size`.
    """
    height, width = pixels.shape[2:]
    if height % cell_size or width % cell_size:
        raise ValueError(f"cell_size={cell_size} does not divide images of {height} x {width} pixels.")
    if gradient == "sobel":
        pixels = pixels.float().round().clamp(0, 255)
        return nn.functional.normalize(sobel_histograms(pixels, cell_size, orientations), dim=-1)
    # Export runs this function on tensors without values; they must not enter the cache.
    make_table = gradient_table if torch.compiler.is_exporting() else cached_gradient_table
    table = make_table(orientations, pixels.device)
    # One channel at a time: quicker than all at once, whose memory would not stay in the processor's cache.
    histograms = [cell_histograms(channel, cell_size, table) for channel in pixels.unbind(1)]
    cells = torch.stack(histograms, dim=1)  # (B, C, rows, cols, orientations)
    # Sums instead of means over the cell_size^2 pixels: the constant grows with them.
    return cells / torch.sqrt(cells.square().sum(-1, keepdim=True) + 1e-10 * cell_size**4)


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
