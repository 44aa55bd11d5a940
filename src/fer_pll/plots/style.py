"""Colors and axes that all figures share.

Figures are made without pyplot, so that nothing is shown, shared or left open.
"""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee4"
BLUE, ORANGE, GREEN, RED = "#2066a8", "#d97b1c", "#2e8540", "#b8322a"


def style_axes(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.margins(y=0.08)
