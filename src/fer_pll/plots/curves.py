"""Figures of the curves of runs."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, RED, drawing, style_axes

# title of a panel, whether it is a share of rows, and the curves in it: key of the log -> name in the legend
_PANELS = (
    ("Loss", False, {"loss": "training", "eval_loss": "evaluation"}),
    ("Evaluation accuracy", True, {"eval_accuracy": "accuracy", "eval_mean_class_accuracy": "mean class accuracy"}),
    ("Learning rate", False, {"learning_rate": "learning rate"}),
    ("Revised rows", True, {"revised_fraction": "revised rows"}),
    ("Mean margin", False, {"mean_margin": "mean margin"}),
    ("Mean entropy of the confidences (nats)", False, {"confidence_entropy": "mean entropy"}),
    ("Label recovery", True, {"label_recovery": "label recovery"}),
    ("Probe of the features", True, {"probe_accuracy": "accuracy"}),
)


def plot_training_curves(log_history: Iterable[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Write the curves of a training run as PNG, one panel per quantity that was logged.

    Args:
        log_history: as in transformers' `trainer_state.json`. Drawn over `epoch` if present: loss, eval_loss,
            eval_accuracy, eval_mean_class_accuracy, learning_rate, revised_fraction, mean_margin, confidence_entropy,
            label_recovery, probe_accuracy.
        path: PNG file to write.

    Raises:
        ValueError: the log holds none of these.
    """
    log_history = list(log_history)
    curves = {
        key: np.array([(entry["epoch"], entry[key]) for entry in log_history if key in entry]).reshape(-1, 2)
        for _, _, keys in _PANELS
        for key in keys
    }
    panels = [panel for panel in _PANELS if any(len(curves[key]) for key in panel[2])]
    if not panels:
        raise ValueError(f"log_history holds nothing to draw; it needs entries with one of {', '.join(curves)}")
    last_epoch = max(curve[:, 0].max() for curve in curves.values() if len(curve)) * 1.02
    columns = min(len(panels), 3 if len(panels) <= 6 else 4)
    rows = -(-len(panels) // columns)
    with drawing(
        path,
        dpi=150,
        figsize=(0.4 + 4.2 * columns, 0.2 + 3.0 * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    ) as figure:
        for position, (title, is_share, names) in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, position)
            for (key, name), color in zip(names.items(), (BLUE, ORANGE), strict=False):
                if len(curves[key]):
                    marker = "o" if len(curves[key]) <= 30 else None
                    axes.plot(*curves[key].T, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=name)
            style_axes(axes)
            axes.set_title(title, color=INK, fontsize=11, loc="left", fontweight="bold")
            if is_share:
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            if len(axes.lines) > 1:
                axes.legend(frameon=False, labelcolor=INK, fontsize=9)
            axes.set_xlim(0, last_epoch)
            if position > len(panels) - columns:
                axes.set_xlabel("epoch", color=MUTED)


def plot_curves(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    path: str | os.PathLike,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Write curves of several runs as PNG: the mean over the seeds, and a band from the lowest to the highest.

    Args:
        curves: for each name in the legend, one curve for each seed: points (x, share). The mean and the band at an x
            are those of the seeds that have it. A name whose curves have no points is left out.
        path: PNG file to write.
        title, x_label, y_label: texts of the figure.

    Raises:
        ValueError: no curve has a point.
    """
    shares: dict[str, dict[float, list[float]]] = {}
    for name, seeds in curves.items():
        for x, share in itertools.chain.from_iterable(seeds):
            shares.setdefault(name, {}).setdefault(x, []).append(share)
    if not shares:
        raise ValueError(f"{title}: there is nothing to draw, no curve has a point")
    with drawing(path, dpi=150, figsize=(7.2, 4.2), layout="constrained") as figure:
        axes = figure.add_subplot()
        for color, (name, at) in zip(itertools.cycle((BLUE, ORANGE, GREEN, RED, MUTED)), shares.items()):
            xs = sorted(at)
            axes.plot(xs, [np.mean(at[x]) for x in xs], color=color, linewidth=2, marker="o", markersize=4, label=name)
            low, high = [min(at[x]) for x in xs], [max(at[x]) for x in xs]
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_title(title, color=INK, fontsize=12, pad=10)
        axes.set_xlabel(x_label, color=MUTED)
        axes.set_ylabel(y_label, color=MUTED)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, color=FAINT, linewidth=0.8)
        axes.legend(frameon=False)
        style_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
