"""Figures of the tables, as PNG. Each function here is, or makes, the `figure` of a `tables.Table`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_pll.data.dataset import numpy_column
from fer_pll.plots.confusion_matrix import plot_confusion_matrix
from fer_pll.plots.curves import plot_curves
from fer_pll.plots.gallery import plot_gallery
from fer_pll.training.run_folder import RunFolder

from .experiments import Experiments
from .report import COLUMNS, spread
from .runs import Row


@dataclass(frozen=True)
class Drawing:
    """The data of a figure.

    title: title of the table.
    rows, results: rows of the table, and the results of each row's seeds.
    experiments: source of the results.
    stem: start of the paths of the PNG files.
    """

    title: str
    rows: list[Row]
    results: list[list[dict]]
    experiments: Experiments
    stem: Path

    def path(self, name: str = "") -> Path:
        return self.stem.with_name(f"{self.stem.name}-{name}.png" if name else f"{self.stem.name}.png")


Figure = Callable[[Drawing], list[Path]]


def over_epochs(curve: str) -> Figure:
    """One of `results.CURVES` over the epochs, one line per row. None where short runs logged it at no step."""

    def draw(drawing: Drawing) -> list[Path]:
        curves = {
            row.title: [drawing.experiments.curve(row.run, result["settings"]["seed"], curve) for result in found]
            for row, found in zip(drawing.rows, drawing.results, strict=True)
        }
        unlogged = [name for name, seeds in curves.items() if not any(seeds)]
        if unlogged:
            print(f"not in the figure, as no {curve} was logged (see --logging_strategy): {', '.join(unlogged)}")
        if len(unlogged) == len(curves):
            return []
        plot_curves(curves, drawing.path(), drawing.title, "epoch", "share of the rows")
        return [drawing.path()]

    return draw


def over_rows(axis: str) -> Figure:
    """Mean accuracy of the seeds over the rows. The titles of the rows are the numbers on the axis."""

    def draw(drawing: Drawing) -> list[Path]:
        points = [
            [(float(row.title), COLUMNS["all"](result)) for result in found]
            for row, found in zip(drawing.rows, drawing.results, strict=True)
        ]
        plot_curves({"accuracy, protocol all": points}, drawing.path(), drawing.title, axis, "accuracy")
        return [drawing.path()]

    return draw


def confusion_matrices(drawing: Drawing) -> list[Path]:
    """One figure per row: the sum of the confusion matrices of its seeds."""
    paths = []
    for row, found in zip(drawing.rows, drawing.results, strict=True):
        matrix = sum(np.array(result["all"]["confusion_matrix"]) for result in found)
        paths.append(drawing.path(row.title.replace(" ", "-")))
        heading = f"{row.title}: mean class accuracy {spread([COLUMNS['mean class'](r) for r in found])} %"
        plot_confusion_matrix(matrix, found[0]["classes"], paths[-1], heading)
    return paths


def galleries(drawing: Drawing) -> list[Path]:
    """Images whose majority label was overruled most clearly, and images for which one candidate was chosen."""
    run, experiments = drawing.rows[0].run, drawing.experiments
    seed = experiments.args.seeds[0]
    if not RunFolder(experiments.run_folder(run, seed)).confidence.is_file():
        print("no galleries: they need the run's folder, which is missing, and a data set with votes.")
        return []
    table, rows = experiments.confidences(run, seed)
    if "votes" not in rows.column_names:
        print("no galleries: the data set has no votes.")
        return []
    votes, confidence = numpy_column(rows, "votes"), table.confidence.numpy()
    candidates, number = table.candidates.numpy(), np.arange(len(rows))
    found, majority = confidence.argmax(axis=1), votes.argmax(axis=1)
    overruled = confidence[number, found] - confidence[number, majority]
    decided = (candidates.sum(axis=1) > 1) & (confidence.max(axis=1) > 0.99) & (found == majority)
    paths = []
    for name, chosen in (
        ("overruled", [row for row in np.argsort(-overruled)[:18] if overruled[row] > 0]),
        ("decided", np.random.default_rng(0).permutation(np.flatnonzero(decided))[:18]),
    ):
        if len(chosen):
            paths.append(drawing.path(name))
            part = rows.select(chosen)
            names = rows.features["label"].names
            plot_gallery(part["image"][:], votes[chosen], candidates[chosen], confidence[chosen], names, paths[-1])
    return paths
