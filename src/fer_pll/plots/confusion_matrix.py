"""Figure of a confusion matrix."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from .style import INK, MUTED, drawing, shown


def plot_confusion_matrix(
    matrix: ArrayLike, class_names: Sequence[str], path: str | os.PathLike, title: str = "Confusion matrix"
) -> None:
    """Write a confusion matrix as PNG: each cell holds its share of the row (also its color) and its count.

    Args:
        matrix: (K, K) counts, row = reference label, column = predicted label.
        class_names: K names.
        path: PNG file to write.
        title: heading.
    """
    matrix = np.asarray(matrix)
    num_classes, class_names = len(class_names), shown(class_names)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"a confusion matrix of {num_classes} class names must be square, got shape {matrix.shape}")
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)

    side = 2.2 + 0.78 * num_classes
    with drawing(
        path, dpi=150, figsize=(side + 0.9, side), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    ) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(matrix.shape):
            if matrix[row, column] or row == column:
                style: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "color": "white" if share[row, column] > 0.55 else INK,
                }
                weight = "bold" if row == column else "normal"
                axes.text(column, row - 0.13, f"{share[row, column]:.0%}", fontsize=11, fontweight=weight, **style)
                axes.text(column, row + 0.22, f"{matrix[row, column]:,}", fontsize=8, **style)
        axes.set_xticks(range(num_classes), class_names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(
            range(num_classes), [f"{name}\nn = {n:,}" for name, n in zip(class_names, rows[:, 0], strict=True)]
        )
        axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted", color=MUTED)
        axes.set_ylabel("reference", color=MUTED)
        axes.set_title(title, color=INK, fontsize=13, pad=12)
        colorbar = figure.colorbar(image, shrink=0.6, aspect=30, format=PercentFormatter(1, decimals=0))
        colorbar.outline.set_visible(False)
        colorbar.ax.tick_params(length=0, labelcolor=MUTED)
