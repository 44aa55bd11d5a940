"""Figure of the candidate sets of a training set."""

import os

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..labels.candidate_summary import CandidateSummary
from .style import BLUE, FAINT, INK, MUTED, ORANGE, drawing, shown, style_axes


def plot_candidate_sets(summary: CandidateSummary, path: str | os.PathLike) -> None:
    """Write the candidate sets of a run as PNG: number of rows by the size of the set, and by class."""
    num_classes = len(summary.class_names)
    with drawing(
        path, dpi=150, figsize=(11, 1.6 + 0.36 * num_classes), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    ) as figure:
        by_size, by_class = figure.subplots(1, 2, width_ratios=(1, 1.4))
        for axes in (by_size, by_class):
            style_axes(axes)
            axes.grid(False)

        sizes = np.flatnonzero(summary.rows)
        by_size.bar(range(len(sizes)), summary.rows[sizes], color=BLUE, width=0.7)
        total = summary.rows.sum()
        for place, size in enumerate(sizes):
            by_size.text(
                place, summary.rows[size], f"{summary.rows[size] / total:.1%}", ha="center", va="bottom", color=INK
            )
        by_size.set_xticks(range(len(sizes)), sizes)
        by_size.set_xlabel("labels in the candidate set", color=MUTED)
        by_size.set_title("Rows", color=INK)
        by_size.margins(y=0.12)

        places = range(num_classes)
        by_class.barh(places, summary.alone, color=BLUE, label="the only candidate")
        by_class.barh(places, summary.among, left=summary.alone, color=ORANGE, label="among several")
        by_class.set_yticks(places, shown(summary.class_names))
        by_class.invert_yaxis()
        by_class.set_title("Rows that have the class as a candidate", color=INK)
        by_class.legend(frameon=False, labelcolor=INK)
        for numbers in (by_size.yaxis, by_class.xaxis):
            numbers.grid(True, color=FAINT, linewidth=0.8)
            numbers.set_major_locator(MaxNLocator(nbins=4, integer=True))
            numbers.set_major_formatter("{x:,.0f}")
