"""Figure of the predictions of masked image modeling."""

import os

import numpy as np
from numpy.typing import ArrayLike
from skimage.util import montage

from .style import INK, MUTED, drawing


def hog_strokes(cells: ArrayLike, side: int = 12, sobel: bool = False) -> np.ndarray:
    """HOG as an image: in each cell one stroke per orientation, along the edge; its brightness is the bin's value.

    Like the image of `skimage.feature.hog(visualize=True)`, but with smooth strokes and cells of any size.

    Args:
        cells: (..., rows, columns, orientations), L2-normalized; negative values count as zero.
        side: of a cell in the image, in pixels.
        sobel: whether angles are measured from the vertical, as in MaskFeat's definition.

    Returns:
        (..., rows * side, columns * side), 0..1.
    """
    cells = np.asarray(cells).clip(min=0)
    *batch, rows, columns, orientations = cells.shape
    angle = np.pi * (np.arange(orientations) + 0.5) / orientations  # of the gradient, in the middle of the bin
    down, right = (np.cos(angle), np.sin(angle)) if sobel else (np.sin(angle), np.cos(angle))
    place = np.arange(side) - (side - 1) / 2
    across = np.multiply.outer(down, place)[:, :, None] + np.multiply.outer(right, place)[:, None]  # (O, side, side)
    along = np.multiply.outer(right, place)[:, :, None] - np.multiply.outer(down, place)[:, None]
    strokes = (side / 24 + 0.5 - abs(across)).clip(0, 1) * (side / 2 - abs(along)).clip(0, 1)
    image = np.einsum("...rco,oyx->...rycx", cells, strokes)
    return image.reshape(*batch, rows * side, columns * side).clip(max=1)


def plot_predictions(
    images: ArrayLike,
    mask: ArrayLike,
    targets: ArrayLike,
    predictions: ArrayLike,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Write predictions of pre-training as PNG, in rows: images, their visible parts, targets and predictions.

    Args:
        images: (N, H, W, 1 or 3), 0..1.
        mask: (N, rows, columns), 1 where a patch is hidden.
        targets, predictions: as images of any size, (N, height, width, 1 or 3), 0..1. The hidden patches of the
            predictions are drawn, surrounded by a darker target.
        path: PNG file to write.
        title: heading.
    """
    mask, images, targets = np.asarray(mask, dtype=bool), np.asarray(images), np.asarray(targets)
    stages = {
        "image": images,
        "visible": np.where(_enlarge(mask, images), 0.5, images),
        "target": targets,
        "prediction": np.where(_enlarge(mask, targets), predictions, 0.35 * targets),
    }
    with drawing(
        path, dpi=110, figsize=(0.4 + 1.75 * len(mask), 0.6 + 1.75 * len(stages)), layout="constrained"
    ) as figure:
        figure.suptitle(title, color=INK, fontsize=11)
        for axes, (name, row_images) in zip(figure.subplots(len(stages)), stages.items(), strict=True):
            _, _, width, channels = np.shape(row_images)
            gap = width // 24 + 1
            row = montage(row_images, [1] * channels, grid_shape=(1, len(mask)), padding_width=gap, channel_axis=3)
            row = row[gap:-gap, gap:-gap]
            axes.imshow(row, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_ylabel(name, color=MUTED)


def _enlarge(mask: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Enlarge (N, rows, columns) to the size of the images, (N, H, W, 1)."""
    _, height, width, _ = np.shape(images)
    return mask.repeat(height // mask.shape[1], axis=1).repeat(width // mask.shape[2], axis=2)[..., None]
