"""Masks for masked image modeling."""

import math

import torch


def random_masking(noise: torch.Tensor, mask_ratio: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hide the patches with the highest noise (MAE).

    Args:
        noise: (B, L).
        mask_ratio: share to hide; `int(L * (1 - mask_ratio))` patches stay visible.

    Returns:
        ids_keep (B, V), mask (B, L) with 1 where hidden, ids_restore (B, L).
    """
    num_visible = int(noise.shape[1] * (1 - mask_ratio))
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :num_visible], (ids_restore >= num_visible).float(), ids_restore


def given_masking(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hide given patches.

    Args:
        mask: (B, L), nonzero where hidden, as often in each row.

    Returns:
        as `random_masking`; the visible patches keep their order.

    Raises:
        ValueError: the rows hide different numbers of patches, or all of them.
    """
    mask = (mask != 0).float()
    visible = mask.shape[1] - mask.sum(dim=1).long()
    num_visible = int(visible[0])
    if (visible != num_visible).any() or num_visible == 0:
        raise ValueError(
            f"The mask leaves {int(visible.min())} to {int(visible.max())} of {mask.shape[1]} patches visible: where "
            "hidden patches are dropped (mask_style='visible'), it must leave as many in each image, and at least one."
        )
    ids_shuffle = mask.argsort(dim=1, stable=True)
    return ids_shuffle[:, :num_visible], mask, ids_shuffle.argsort(dim=1)


def unit_masking(noise: torch.Tensor, mask_ratio: float, grid: tuple[int, int], unit: int) -> torch.Tensor:
    """Hide squares of unit x unit patches, those with the highest noise (SimMIM; Xie et al., 2022).

    Args:
        noise: (B, number of squares), row by row.
        mask_ratio: share of the squares to hide.
        grid: patches per column and row of the image; `unit` divides both.
        unit: patches per side of a square.

    Returns:
        (B, L), 1 where hidden.
    """
    mask = random_masking(noise, mask_ratio)[1].unflatten(1, (grid[0] // unit, grid[1] // unit))
    return mask.repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2).flatten(1)


def blockwise_masking(
    batch: int, grid: tuple[int, int], mask_ratio: float, device: torch.device | None = None
) -> torch.Tensor:
    """Hide rectangles of patches until a share of them is hidden (BEiT, algorithm 1; Bao et al., 2022; MaskFeat).

    The area of a rectangle lies between 16 of 196 patches (the same share of another grid) and the number of patches
    that may still be hidden; its aspect ratio lies between 0.3 and 1 / 0.3. A rectangle is left out if it reaches the
    image's full height or width, or hides nothing new or too much. Ten such rectangles in a row end the search. So the
    hidden share is at most `mask_ratio`, mostly a little less.

    Args:
        batch: number of images, B.
        grid: patches per column and row, H x W.
        mask_ratio: largest share to hide.

    Returns:
        float (B, H * W), 1 where hidden.
    """
    height, width = grid
    most, smallest = int(height * width * mask_ratio), max(1, round(height * width * 16 / 196))
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    mask = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    failures = torch.zeros(batch, dtype=torch.long, device=device)
    while True:
        left = most - mask.sum(dim=(1, 2))
        searching = (left > 0) & (failures < 10)
        if not searching.any():
            return mask.flatten(1).float()
        area, aspect, top, side = torch.rand(4, batch, device=device)
        area = smallest + (left - smallest) * area
        aspect = torch.exp(math.log(0.3) * (1 - 2 * aspect))
        tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        top, side = (top * (height - tall + 1)).long(), (side * (width - wide + 1)).long()
        in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        in_columns = (columns >= side[:, None]) & (columns < (side + wide)[:, None])
        block = in_rows[:, :, None] & in_columns[:, None, :]
        new = (block & ~mask).sum(dim=(1, 2))
        accepted = searching & (tall < height) & (wide < width) & (new > 0) & (new <= left)
        mask |= block & accepted[:, None, None]
        failures = torch.where(accepted, 0, failures + 1)
