"""Figure of faces with their votes and confidences."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ..labels.confidence_table import STRUCK_OUT
from .style import BLUE, FAINT, GREEN, MUTED, RED, drawing, shown


def plot_gallery(
    images: Sequence,
    votes: ArrayLike,
    candidates: ArrayLike,
    confidence: ArrayLike,
    class_names: Sequence[str],
    path: str | os.PathLike,
    true_labels: ArrayLike | None = None,
) -> None:
    """Write images with their votes and candidate sets as PNG, ruled-out labels struck through (paper, Figure 7).

    A candidate is struck through when its confidence is below 1 %.

    Args:
        images: N images, PIL or arrays (H, W) or (H, W, 3), 8 bit.
        votes: (N, K) votes of the annotators, drawn as bars; votes for candidates are blue.
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
    class_names = shown(class_names)
    # inches; a card holds, from the top: image, heading and bars of the votes, heading and lines of the candidates
    card_width, margin, side, heading, bar, line = 2.1, 0.14, 1.82, 0.26, 0.15, 0.19
    names = min(0.1 + 0.058 * max(map(len, class_names)), 1.2)
    bars = bar * len(class_names)
    lines = int(candidates.sum(axis=1).max()) + (true_labels is not None)
    card_height = side + bars + line * lines + 2 * heading
    columns = min(len(images), 6)
    rows = -(-len(images) // columns)
    width, height = columns * card_width + margin, rows * (card_height + 2 * margin)
    inner = card_width - 2 * margin
    with drawing(path, dpi=150, figsize=(width, height)) as figure:
        FigureCanvasAgg(figure)  # gives the figure the renderer that measures the text to strike through

        def add_axes(left: float, top: float, axes_width: float, axes_height: float) -> Axes:
            bottom = height - top - axes_height
            return figure.add_axes((left / width, bottom / height, axes_width / width, axes_height / height))

        def add_heading(left: float, bottom: float, text: str) -> None:
            figure.text(left / width, 1 - (bottom - 0.06) / height, text, fontsize=6.5, color=MUTED, style="italic")

        for number, image in enumerate(images):
            left = margin + number % columns * card_width
            top = margin + number // columns * (card_height + 2 * margin)
            axes = add_axes(left, top, inner, side)
            axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()

            top += side + heading
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
                truth = int(np.asarray(true_labels)[number])
                color = MUTED if truth < 0 else GREEN if truth == confidence[number].argmax() else RED
                text = f"truth: {class_names[truth] if truth >= 0 else 'unknown'}"
                axes.text(0, candidates[number].sum() + 0.5, text, fontsize=7.5, va="center", color=color)


def _draw_votes(axes: Axes, votes: np.ndarray, candidates: np.ndarray, class_names: Sequence[str]) -> None:
    colors = [BLUE if candidate else MUTED for candidate in candidates]
    places = range(len(class_names))
    axes.barh(places, votes, color=colors, height=0.72)
    for place in np.flatnonzero(votes):
        axes.annotate(
            f"{votes[place]:g}",
            (votes[place], place),
            (2, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=6.5,
            color=colors[place],
        )
    axes.set(xlim=(0, max(votes.max(), 1)), ylim=(len(class_names) - 0.5, -0.5))
    axes.set_xticks([])
    axes.set_yticks(places, class_names, fontsize=7)
    for text, color in zip(axes.get_yticklabels(), colors, strict=True):
        text.set_color(color)
    axes.tick_params(length=0, pad=3)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)


def _draw_candidates(axes: Axes, candidates: np.ndarray, confidence: np.ndarray, class_names: Sequence[str]) -> None:
    for place, label in enumerate(np.flatnonzero(candidates)):
        struck = confidence[label] < STRUCK_OUT
        weight = "bold" if label == confidence.argmax() else "normal"
        style: dict[str, Any] = {"y": place + 0.5, "fontsize": 8.5, "va": "center", "color": MUTED if struck else BLUE}
        name = axes.text(x=0, s=class_names[int(label)], fontweight=weight, **style)
        axes.text(x=1, s=f"{confidence[label]:.2f}", ha="right", **style)
        if struck:
            box = name.get_window_extent().transformed(axes.transData.inverted())
            axes.add_line(Line2D((box.x0 - 0.01, box.x1 + 0.01), [place + 0.5] * 2, color=RED, linewidth=1.2))
