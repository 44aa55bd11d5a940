"""From results to Markdown and figures."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from comparisons.experiments import Experiments
from comparisons.tables import TABLES, Row, Run
from fer_pll.data.dataset import numpy_column
from fer_pll.plots.confusion_matrix import plot_confusion_matrix
from fer_pll.plots.curves import plot_curves
from fer_pll.plots.gallery import plot_gallery
from fer_pll.training.run_folder import RunFolder

# Columns of the tables: title, and how to take the value out of a result.
COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "all": lambda result: result["protocols"]["all"]["accuracy"],
    "majority": lambda result: result["protocols"].get("majority", {}).get("accuracy"),
    "mean class": lambda result: result["protocols"]["all"]["mean_class_accuracy"],
    "label recovery": lambda result: last(result["curves"]["label_recovery"]),
}
COVERAGE: dict[str, Callable[[dict], float | None]] = {
    "label in the set": lambda result: result["coverage"]["label_inside"],
    "votes in the set": lambda result: result["coverage"]["votes_inside"],
}


def last(curve: list[list[float]]) -> float | None:
    return curve[-1][1] if curve else None


def spread(values: list[float | None]) -> str:
    """Percent, mean and standard deviation."""
    if not values or any(value is None for value in values):
        return "–"
    return f"{100 * mean(values):z.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def last_row_ahead_by(results: list[list[dict]]) -> list[str]:
    """For each row: accuracy (protocol all) of the last row minus its own, seed by seed, mean and deviation.

    Runs of one seed may share the pre-trained encoder and the draw of votes, whose effects the difference is free of.
    """
    accuracies = [{result["settings"]["seed"]: COLUMNS["all"](result) for result in found} for found in results]
    final = accuracies[-1]
    return [spread([final[seed] - row[seed] for seed in row if seed in final]) for row in accuracies[:-1]] + ["–"]


def markdown(rows: list[Row], results: list[list[dict]], columns: dict[str, Callable]) -> str:
    """A table with a line for each row; `results` has the runs of its seeds. Columns without values are left out."""
    cells = {title: [spread([value(result) for result in row]) for row in results] for title, value in columns.items()}
    cells["last row ahead by"] = last_row_ahead_by(results)
    cells["the paper"] = [row.published or "–" for row in rows]
    columns = {title: column for title, column in cells.items() if set(column) != {"–"}}
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for number, (row, found) in enumerate(zip(rows, results, strict=True)):
        values = " | ".join(column[number] for column in columns.values())
        lines.append(f"| {row.title} | {len(found)} | {values} |")
    return "\n".join(lines)


def draw(table: str, rows: list[Row], results: list[list[dict]], experiments: Experiments, stem: Path) -> list[Path]:
    """The figures of a table, as PNG."""
    title = TABLES[table][0]
    if table in ("figure4", "figure5"):
        curve = "eval_accuracy" if table == "figure4" else "label_recovery"
        curves = {row.title: [r["curves"][curve] for r in found] for row, found in zip(rows, results, strict=True)}
        path = stem.with_name(f"{stem.name}.png")
        plot_curves(curves, path, title, "epoch", "share of the rows")
        return [path]
    if table in ("figure6", "section4.5"):
        points = [[[float(row.title), COLUMNS["all"](result)] for row, found in zip(rows, results, strict=True)
                   for result in found[seed : seed + 1]] for seed in range(len(results[0]))]  # fmt: skip
        path = stem.with_name(f"{stem.name}.png")
        plot_curves({"accuracy, protocol all": points}, path, title, rows_axis(table), "accuracy")
        return [path]
    if table == "figure10":
        paths = []
        for row, found in zip(rows, results, strict=True):
            matrix = sum(np.array(result["protocols"]["all"]["confusion_matrix"]) for result in found)
            paths.append(stem.with_name(f"{stem.name}-{row.title.replace(' ', '-')}.png"))
            heading = f"{row.title}: mean class accuracy {spread([COLUMNS['mean class'](r) for r in found])} %"
            plot_confusion_matrix(matrix, found[0]["classes"], paths[-1], heading)
        return paths
    if table == "figure7":
        return galleries(rows[0].run, experiments, stem)
    return []


def rows_axis(table: str) -> str:
    return "threshold of the margin (Eq. 5)" if table == "figure6" else "labels in a candidate set"


def galleries(run: Run, experiments: Experiments, stem: Path) -> list[Path]:
    """Rows whose majority label training overruled most clearly, and rows of which it chose one of the candidates."""
    seed = experiments.args.seeds[0]
    if not RunFolder(experiments.run_folder(run, seed)).confidence.is_file():
        print("no galleries: they need the folder of the run, which is not here (and data sets with votes).")
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
            paths.append(stem.with_name(f"{stem.name}-{name}.png"))
            part = rows.select(chosen)
            names = rows.features["label"].names
            plot_gallery(part["image"][:], votes[chosen], candidates[chosen], confidence[chosen], names, paths[-1])
    return paths
