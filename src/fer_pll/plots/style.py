"""Colors and axes that all figures share.

Figures are made without pyplot, so that nothing is shown, shared or left open.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..io.atomic import whole_file

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee4"
BLUE, ORANGE, GREEN, RED = "#2066a8", "#d97b1c", "#2e8540", "#b8322a"


@contextmanager
def drawing(path: str | os.PathLike, dpi: int, **options: Any) -> Iterator[Figure]:
    """Yields a new figure; at the end of the block it is written to `path` as PNG, whole or not at all.

    Texts are drawn as they are: class names come from the data, and `$` in them begins no formula.

    Args:
        path: file to write, see `io.atomic.whole_file`.
        dpi: dots per inch.
        options: of `matplotlib.figure.Figure`, such as `figsize` and `layout`.
    """
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        figure = Figure(dpi=dpi, **options)
        yield figure
        with whole_file(path) as unfinished:
            figure.savefig(unfinished, format="png")
    # The parts of a figure refer to each other, and Python looks for such circles seldom: a run would grow.
    gc.collect()


def shown(class_names: Sequence[str]) -> list[str]:
    """The names as figures show them: in one line, at most 24 characters, without characters that have no shape."""
    plain = ["".join(each if each.isprintable() else " " for each in name) for name in class_names]
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in plain]


def style_axes(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.margins(y=0.08)
