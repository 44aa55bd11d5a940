"""Figure of a label audit: believed labels, and classes that annotators confuse."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from .style import FAINT, INK, MUTED, drawing, shown


def plot_audit(
    counts: ArrayLike, annotators: ArrayLike, class_names: Sequence[str], path: str | os.PathLike, source: str
) -> None:
    """Write a label audit as PNG: which labels it doubts in favor of which, and what annotators say
    of which face.

    Args:
        counts: (K, K) rows, row = given label, column = believed label; the diagonal is not drawn.
        annotators: (K, K) shares of votes, row = estimated class of the face, column = class that annotators name.
        class_names: K names.
        path: PNG file to write.
        source: what judged the rows, for the heading.
    """
    counts, annotators = np.array(counts), np.asarray(annotators)
    rows = counts.sum()
    np.fill_diagonal(counts, 0)
    num_classes, class_names = len(class_names), shown(class_names)
    side = 1.6 + 0.62 * num_classes
    with drawing(
        path, dpi=110, figsize=(2 * side + 1, side + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.15)
    ) as figure:
        figure.suptitle(f"{rows:,} rows, judged by {source}", color=MUTED, fontsize=10)
        panels = (
            ("Rows whose believed label is another", counts, counts.max(), "{:,}", "believed label", "given label"),
            ("Share of the votes", annotators, 1.0, "{:.0%}", "annotators say", "the face shows"),
        )
        for axes, (title, values, most, text, columns_are, rows_are) in zip(
            figure.subplots(1, 2), panels, strict=True
        ):
            share = values / max(most, 1e-9)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for row, column in np.ndindex(values.shape):
                if text.format(values[row, column]).strip("0%"):
                    color = "white" if share[row, column] > 0.55 else INK
                    label = text.format(values[row, column])
                    axes.text(column, row, label, ha="center", va="center", color=color, fontsize=9)
            axes.set_xticks(range(num_classes), class_names, rotation=40, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(num_classes), class_names)
            axes.tick_params(length=0, labelcolor=INK)
            axes.spines[:].set_color(FAINT)
            axes.set_xlabel(columns_are, color=MUTED)
            axes.set_ylabel(rows_are, color=MUTED)
            axes.set_title(title, color=INK, fontsize=12, pad=10)
            if not values.any():
                note = "no row" if values is counts else "no votes"
                axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=14)
