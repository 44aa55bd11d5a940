"""Markdown tables of results."""

from collections.abc import Callable
from statistics import mean, stdev

from .runs import Row

NONE = "\N{EN DASH}"  # the text of a cell without a value
# A column of a table is a function that takes its value out of a result.
Column = Callable[[dict], float | None]
COLUMNS: dict[str, Column] = {
    "all": lambda result: result["all"]["accuracy"],
    "majority": lambda result: result["majority"]["accuracy"],
    "mean class": lambda result: result["all"]["mean_class_accuracy"],
    "label recovery": lambda result: result["label_recovery"],
}
COVERAGE: dict[str, Column] = {
    "label in the set": lambda result: result["coverage"]["label_inside"],
    "votes in the set": lambda result: result["coverage"]["votes_inside"],
}


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation in percent."""
    if not values or any(value is None for value in values):
        return NONE
    return f"{100 * mean(values):z.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def last_row_ahead_by(results: list[list[dict]]) -> list[str]:
    """For each row, the accuracy (protocol all) of the last row minus its own: mean and deviation over the seeds.

    Runs of one seed may share the pre-trained encoder and the drawn votes. The difference is free of their effects.
    """
    accuracies = [{result["settings"]["seed"]: COLUMNS["all"](result) for result in found} for found in results]
    final = accuracies[-1]
    return [spread([final[seed] - row[seed] for seed in row if seed in final]) for row in accuracies[:-1]] + [NONE]


def markdown(rows: list[Row], results: list[list[dict]], columns: dict[str, Column]) -> str:
    """A table with one line per row. `results` has the results of each row's seeds. Empty columns are left out."""
    cells = {title: [spread([value(result) for result in row]) for row in results] for title, value in columns.items()}
    cells["last row ahead by"] = last_row_ahead_by(results)
    cells["the paper"] = [row.published or NONE for row in rows]
    columns = {title: column for title, column in cells.items() if set(column) != {NONE}}
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for number, (row, found) in enumerate(zip(rows, results, strict=True)):
        values = " | ".join(column[number] for column in columns.values())
        lines.append(f"| {row.title} | {len(found)} | {values} |")
    return "\n".join(lines)
