"""Figures as PNG files: metrics, trainings, candidate sets, label audits, what pre-training predicts.

Figures are made without pyplot, so that nothing is shown, shared or left open.
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from .candidates import CandidateSummary
from .suspicion import STRUCK_OUT

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee4"
BLUE, ORANGE, GREEN, RED = "#2066a8", "#d97b1c", "#2e8540", "#b8322a"

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


def plot_confusion_matrix(
    matrix: ArrayLike, class_names: Sequence[str], path: str | os.PathLike, title: str = "Confusion matrix"
) -> None:
    """Write a confusion matrix as PNG: each cell holds its share of the row (also its colour) and its count.

    Args:
        matrix: (K, K) counts, row = reference label, column = predicted label.
        class_names: K names.
        path: PNG file to write.
        title: heading.
    """
    matrix = np.asarray(matrix)
    num_classes = len(class_names)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"a confusion matrix of {num_classes} class names must be square, got shape {matrix.shape}")
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)

    side = 2.2 + 0.78 * num_classes
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        if matrix[row, column] or row == column:
            style = {"ha": "center", "va": "center", "color": "white" if share[row, column] > 0.55 else INK}
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
    figure.savefig(path, dpi=150)


def plot_training_curves(log_history: Iterable[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Write the curves of a training run as PNG, one panel per quantity that was logged.

    Args:
        log_history: as in transformers' `trainer_state.json`. Drawn over `epoch` where present: loss, eval_loss,
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
    figure = Figure(figsize=(0.4 + 4.2 * columns, 0.2 + 3.0 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for position, (title, is_share, names) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, position)
        for (key, name), colour in zip(names.items(), (BLUE, ORANGE), strict=False):
            if len(curves[key]):
                marker = "o" if len(curves[key]) <= 30 else None
                axes.plot(*curves[key].T, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=name)
        _style(axes)
        axes.set_title(title, color=INK, fontsize=11, loc="left", fontweight="bold")
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if len(axes.lines) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        axes.set_xlim(0, last_epoch)
        if position > len(panels) - columns:
            axes.set_xlabel("epoch", color=MUTED)
    figure.savefig(path, dpi=150)


def plot_candidate_sets(summary: CandidateSummary, path: str | os.PathLike) -> None:
    """Write the candidate sets of a training as PNG: rows by the size of the set, and what is in the sets by class."""
    num_classes = len(summary.class_names)
    figure = Figure(figsize=(11, 1.6 + 0.36 * num_classes), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    by_size, by_class = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for axes in (by_size, by_class):
        _style(axes)
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
    by_class.set_yticks(places, summary.class_names)
    by_class.invert_yaxis()
    by_class.set_title("Rows that have the class as a candidate", color=INK)
    by_class.legend(frameon=False, labelcolor=INK)
    for numbers in (by_size.yaxis, by_class.xaxis):
        numbers.grid(True, color=FAINT, linewidth=0.8)
        numbers.set_major_locator(MaxNLocator(nbins=4, integer=True))
        numbers.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=150)


def plot_curves(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    path: str | os.PathLike,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Write curves of several trainings as PNG: the mean over the seeds, and a band from the lowest to the highest.

    Args:
        curves: for each name in the legend, one curve for each seed: points (x, share), the same x for all seeds.
        path: PNG file to write.
        title, x_label, y_label: what is drawn.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, seeds) in zip(itertools.cycle((BLUE, ORANGE, GREEN, RED, MUTED)), curves.items()):
        points = np.array([list(curve) for curve in seeds], dtype=float)  # (seeds, points, 2)
        x, y = points[0, :, 0], points[:, :, 1]
        axes.plot(x, y.mean(axis=0), color=colour, linewidth=2, marker="o", markersize=4, label=name)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.set_title(title, color=INK, fontsize=12, pad=10)
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel(y_label, color=MUTED)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True, color=FAINT, linewidth=0.8)
    axes.legend(frameon=False)
    _style(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    figure.savefig(path, dpi=150)


def plot_audit(
    counts: ArrayLike, annotators: ArrayLike, class_names: Sequence[str], path: str | os.PathLike, source: str
) -> None:
    """Write a label audit as PNG: which labels it corrects to which, and what annotators say of which face.

    Args:
        counts: (K, K) rows, row = given label, column = corrected label; the diagonal is not drawn.
        annotators: (K, K) shares of votes, row = class that the face is believed to show, column = what they say.
        class_names: K names.
        path: PNG file to write.
        source: what the rows were judged by, for the heading.
    """
    counts, annotators = np.array(counts), np.asarray(annotators)
    rows = counts.sum()
    np.fill_diagonal(counts, 0)
    num_classes = len(class_names)
    side = 1.6 + 0.62 * num_classes
    figure = Figure(figsize=(2 * side + 1, side + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2, h_pad=0.15)
    figure.suptitle(f"{rows:,} rows, judged by {source}", color=MUTED, fontsize=10)
    panels = (
        ("Rows that get another label", counts, counts.max(), "{:,}", "corrected label", "given label"),
        ("Share of the votes", annotators, 1.0, "{:.0%}", "annotators say", "the face shows"),
    )
    for axes, (title, values, most, text, columns_are, rows_are) in zip(figure.subplots(1, 2), panels, strict=True):
        share = values / max(most, 1e-9)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(values.shape):
            if text.format(values[row, column]).strip("0%"):
                colour = "white" if share[row, column] > 0.55 else INK
                label = text.format(values[row, column])
                axes.text(column, row, label, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(num_classes), class_names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), class_names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_color(FAINT)
        axes.set_xlabel(columns_are, color=MUTED)
        axes.set_ylabel(rows_are, color=MUTED)
        axes.set_title(title, color=INK, fontsize=12, pad=10)
    figure.savefig(path, dpi=110)


def plot_gallery(
    images: Sequence,
    votes: ArrayLike,
    candidates: ArrayLike,
    confidence: ArrayLike,
    class_names: Sequence[str],
    path: str | os.PathLike,
    true_labels: ArrayLike | None = None,
) -> None:
    """Write pictures with their votes and candidate sets as PNG, ruled-out labels struck through (paper, Figure 7).

    A candidate is struck through when its confidence is below 1 %.

    Args:
        images: N pictures, PIL or arrays (H, W) or (H, W, 3), 8 bit.
        votes: (N, K) votes of the annotators, drawn as bars; those of candidates in blue.
        candidates: (N, K) bool, the initial candidate sets.
        confidence: (N, K), as revised.
        class_names: K names.
        path: PNG file to write.
        true_labels: (N,) labels to print beneath, -1 = unknown.
    """
    votes, candidates, confidence = np.asarray(votes), np.asarray(candidates, dtype=bool), np.asarray(confidence)
    shape = (len(images), len(class_names))
    if not len(images) or not votes.shape == candidates.shape == confidence.shape == shape:
        raise ValueError(
            f"{shape[0]} images and {shape[1]} class names need votes, candidates and confidence of shape {shape},"
            f" got {votes.shape}, {candidates.shape}, {confidence.shape}"
        )
    # inches; a card is, from the top: picture, heading and bars of the votes, heading and lines of the candidates
    card_width, margin, picture, heading, bar, line = 2.1, 0.14, 1.82, 0.26, 0.15, 0.19
    names = 0.1 + 0.058 * max(map(len, class_names))
    bars = bar * len(class_names)
    lines = int(candidates.sum(axis=1).max()) + (true_labels is not None)
    card_height = picture + bars + line * lines + 2 * heading
    columns = min(len(images), 6)
    rows = -(-len(images) // columns)
    width, height = columns * card_width + margin, rows * (card_height + 2 * margin)
    inner = card_width - 2 * margin
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)  # gives the figure the renderer that measures the text to strike through

    def add_axes(left: float, top: float, axes_width: float, axes_height: float) -> Axes:
        bottom = height - top - axes_height
        return figure.add_axes((left / width, bottom / height, axes_width / width, axes_height / height))

    def add_heading(left: float, bottom: float, text: str) -> None:
        style = {"fontsize": 6.5, "color": MUTED, "style": "italic"}
        figure.text(left / width, 1 - (bottom - 0.06) / height, text, **style)

    for number, image in enumerate(images):
        left = margin + number % columns * card_width
        top = margin + number // columns * (card_height + 2 * margin)
        axes = add_axes(left, top, inner, picture)
        axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()

        top += picture + heading
        add_heading(left, top, "votes")
        axes = add_axes(left + names, top, inner - names - 0.2, bars)
        _draw_votes(axes, votes[number], candidates[number], class_names)

        top += bars + heading
        add_heading(left, top, "candidates and confidence")
        axes = add_axes(left, top, inner, line * lines)
        axes.set(xlim=(0, 1), ylim=(lines, 0))
        axes.set_axis_off()
        _draw_candidates(axes, candidates[number], confidence[number], class_names)
        if true_labels is not None:
            truth = int(true_labels[number])
            colour = MUTED if truth < 0 else GREEN if truth == confidence[number].argmax() else RED
            text = f"truth: {class_names[truth] if truth >= 0 else 'unknown'}"
            axes.text(0, candidates[number].sum() + 0.5, text, fontsize=7.5, va="center", color=colour)
    figure.savefig(path)


def hog_strokes(cells: ArrayLike, side: int = 12, sobel: bool = False) -> np.ndarray:
    """HOG as a picture: in each cell one stroke for each orientation, along the edge, as bright as the bin is full.

    As `skimage.feature.hog(visualize=True)` draws it, with smooth strokes, for cells too small to be drawn in.

    Args:
        cells: (..., rows, columns, orientations), L2-normalised; negative values count as zero.
        side: of a cell in the picture, in pixels.
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
    picture = np.einsum("...rco,oyx->...rycx", cells, strokes)
    return picture.reshape(*batch, rows * side, columns * side).clip(max=1)


def plot_predictions(
    images: ArrayLike,
    mask: ArrayLike,
    targets: ArrayLike,
    predictions: ArrayLike,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Write what a pre-training predicts as PNG: pictures, what it sees of them, targets and predictions in rows.

    Args:
        images: (N, H, W, 1 or 3), 0..1.
        mask: (N, rows, columns), 1 where a patch is hidden.
        targets, predictions: as pictures of any size, (N, height, width, 1 or 3), 0..1. Of the predictions the hidden
            patches are drawn; around them, dark, the target.
        path: PNG file to write.
        title: heading.
    """
    mask, targets = np.asarray(mask, dtype=bool), np.asarray(targets)
    stages = {
        "picture": images,
        "visible": np.where(_enlarge(mask, images), 0.5, images),
        "target": targets,
        "prediction": np.where(_enlarge(mask, targets), predictions, 0.35 * targets),
    }
    figure = Figure(figsize=(0.4 + 1.75 * len(mask), 0.6 + 1.75 * len(stages)), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=11)
    for axes, (name, pictures) in zip(figure.subplots(len(stages)), stages.items(), strict=True):
        gap = np.shape(pictures)[2] // 24 + 1
        row = np.pad(pictures, [(0, 0), (0, 0), (0, gap), (0, 0)], constant_values=1)
        axes.imshow(np.concatenate(row, axis=1)[:, :-gap], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, color=MUTED)
    figure.savefig(path, dpi=110)


def _enlarge(mask: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(N, rows, columns) to the size of pictures, (N, H, W, 1)."""
    _, height, width, _ = np.shape(pictures)
    return mask.repeat(height // mask.shape[1], axis=1).repeat(width // mask.shape[2], axis=2)[..., None]


def _draw_votes(axes: Axes, votes: np.ndarray, candidates: np.ndarray, class_names: Sequence[str]) -> None:
    colours = [BLUE if candidate else MUTED for candidate in candidates]
    places = range(len(class_names))
    axes.barh(places, votes, color=colours, height=0.72)
    for place in np.flatnonzero(votes):
        style = {"va": "center_baseline", "fontsize": 6.5, "color": colours[place]}
        axes.annotate(f"{votes[place]:g}", (votes[place], place), (2, 0), textcoords="offset points", **style)
    axes.set(xlim=(0, max(votes.max(), 1)), ylim=(len(class_names) - 0.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks(places, class_names, fontsize=7)
    for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
        text.set_color(colour)
    axes.tick_params(length=0, pad=3)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)


def _draw_candidates(axes: Axes, candidates: np.ndarray, confidence: np.ndarray, class_names: Sequence[str]) -> None:
    for place, label in enumerate(np.flatnonzero(candidates)):
        struck = confidence[label] < STRUCK_OUT
        weight = "bold" if label == confidence.argmax() else "normal"
        style = {"y": place + 0.5, "fontsize": 8.5, "va": "center", "color": MUTED if struck else BLUE}
        name = axes.text(x=0, s=class_names[label], fontweight=weight, **style)
        axes.text(x=1, s=f"{confidence[label]:.2f}", ha="right", **style)
        if struck:
            box = name.get_window_extent(axes.figure.canvas.get_renderer()).transformed(axes.transData.inverted())
            axes.add_line(Line2D((box.x0 - 0.01, box.x1 + 0.01), [place + 0.5] * 2, color=RED, linewidth=1.2))


def _style(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.margins(y=0.08)
