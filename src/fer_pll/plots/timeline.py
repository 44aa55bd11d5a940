"""Timeline of a video: the expressions of each person over time."""

import os
from typing import Protocol

import numpy as np

from .style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, RED, drawing, shown, style_axes

_MOST_PERSONS = 12
_COLORS = (BLUE, ORANGE, GREEN, RED, "#6b4c9a", "#8c6d46", "#c2579b", "#3a9ca6", "#a3a12c", INK)
_GAP = 1.5  # steps: more than that between two sights leaves a gap in the line


class _Timeline(Protocol):
    classes: list[str]
    step: float

    @property
    def persons(self) -> list[int]: ...
    def frames(self, person: int) -> int: ...
    def of(self, person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


def plot_timeline(timeline: _Timeline, path: str | os.PathLike) -> list[int]:
    """Draws a panel for each person: smoothed probabilities as lines, those of the frames alone as fine lines behind
    them, and the best expression as a band below.

    Classes that never reach a tenth are left out. The twelve persons who were seen in most frames are drawn.

    Args:
        timeline: an `inference.video.Timeline` with at least one person.
        path: PNG to write, see `drawing`.

    Returns:
        the persons that are drawn.
    """
    most = sorted(timeline.persons, key=lambda person: (-timeline.frames(person), person))[:_MOST_PERSONS]
    persons = sorted(most)
    series = {person: timeline.of(person) for person in persons}
    end = max(float(times[-1]) + timeline.step / 2 for times, _, _ in series.values())
    names = shown(timeline.classes)
    highest = np.max([smoothed.max(axis=0) for _, smoothed, _ in series.values()], axis=0)
    drawn = [k for k in range(len(names)) if highest[k] >= 0.1] or [int(highest.argmax())]
    colors = {k: _COLORS[k % len(_COLORS)] for k in range(len(names))}
    size = (10, 0.7 + 1.9 * len(persons))
    with drawing(path, dpi=120, figsize=size, layout="constrained") as figure:
        panels = figure.subplots(len(persons), 1, sharex=True, squeeze=False)[:, 0]
        for axes, person in zip(panels, persons, strict=True):
            style_axes(axes)
            times, smoothed, raw = series[person]
            apart = np.flatnonzero(np.diff(times) > _rate(times, timeline.step)) + 1
            for part in np.split(np.arange(len(times)), apart):
                for k in drawn:
                    marker = {"marker": "."} if len(part) == 1 else {}
                    axes.plot(times[part], raw[part, k], color=colors[k], linewidth=0.6, alpha=0.4)
                    axes.plot(times[part], smoothed[part, k], color=colors[k], linewidth=1.6, **marker)
                edges = np.append(times[part], times[part][-1] + timeline.step)
                best = smoothed[part].argmax(axis=1)
                for k in np.unique(best):
                    spans = [(edges[i], edges[i + 1] - edges[i]) for i in np.flatnonzero(best == k)]
                    axes.broken_barh(spans, (-0.14, 0.08), facecolors=colors[int(k)], linewidth=0)
            axes.set_ylim(-0.16, 1.02)
            axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axes.set_xlim(0, end)
            axes.set_ylabel(f"person {person}", color=INK, fontsize=9)
            axes.axhline(0, color=FAINT, linewidth=0.8)
        panels[-1].set_xlabel("seconds", color=MUTED, fontsize=9)
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=colors[k], linewidth=2, label=names[k]) for k in drawn]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(8, len(drawn)), frameon=False, fontsize=9)
    return persons


def _rate(times: np.ndarray, step: float) -> float:
    """Seconds between two sights from which on a line is broken: three times the usual, and half a second at least."""
    usual = float(np.median(np.diff(times))) if len(times) > 1 else step
    return max(0.5, _GAP * step, 3 * usual)
