"""Label corrections: the file that the page of `fer-pll audit` writes, applied to a prepared data set."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict

from ..io.errors import DataError
from ..io.tables import read_columns
from ..io.terminal import printable_lines
from .dataset import numpy_column
from .provenance import Provenance

COLUMNS = ["row_id", "mark", "label"]
MARKS = ("keep", "relabel", "drop")
_LABEL_COLUMNS = ("label", "votes", "answers", "candidates", "confidence", "majority")
"""The columns that a relabeled row changes."""


class Correction(NamedTuple):
    """A line of the file."""

    line: int
    row_id: str
    mark: str
    label: str  # class name; empty unless `mark` is "relabel"


def read_corrections(path: str | Path) -> list[Correction]:
    """Reads a CSV file with the columns `row_id`, `mark` (keep, relabel or drop) and `label`, in any order.

    A spreadsheet may have saved it: see `io.tables.read_csv`. Other columns are passed over.

    Raises:
        DataError: the file cannot be read or lacks a column; a mark is unknown; a relabel has no label, or another
            mark has one; a row_id is there twice. The message names the line.
    """
    corrections: list[Correction] = []
    lines: dict[str, int] = {}  # by row_id
    for line, (row_id, *cells) in read_columns(Path(path), COLUMNS):
        where, (mark, label) = f"{path}, line {line}", map(str.strip, cells)
        if mark not in MARKS:
            raise DataError(f"{where}: mark {mark!r} of row {row_id!r} is not one of {', '.join(MARKS)}")
        if (mark == "relabel") != bool(label):
            needs = "needs a label" if mark == "relabel" else f"takes no label, found {label!r}"
            raise DataError(f"{where}: {mark} of row {row_id!r} {needs}")
        if row_id in lines:
            raise DataError(f"{where}: row {row_id!r} is already in line {lines[row_id]}: keep one of them")
        lines[row_id] = line
        corrections.append(Correction(line, row_id, mark, label))
    return corrections


def apply_corrections(dataset: DatasetDict, path: str | Path) -> tuple[DatasetDict, str]:
    """The data set with the corrections of a file, and a report of what changed.

    A relabeled row gets the new class as its `label`. All its `votes` and `answers` become that class, and where the
    set has `candidates`, it is the only one; it has all the `confidence`. The row counts as `majority`. A dropped row
    is left out. `true_label` stays.

    Args:
        dataset: all splits of a prepared set; row ids are looked for in each.
        path: see `read_corrections`.

    Raises:
        DataError: as `read_corrections`; also where no row or several rows have a row_id, where the set does not have
            a class, and where a split would be left empty.
    """
    corrections = read_corrections(path)
    names = next(iter(dataset.values())).features["label"].names
    places = _find(dataset, {correction.row_id for correction in corrections})
    for correction in corrections:
        where = f"{path}, line {correction.line}: row {correction.row_id!r}"
        found = places.get(correction.row_id, [])
        if len(found) != 1:
            count = "is not in the data set" if not found else f"is in the data set {len(found)} times"
            raise DataError(
                f"{where} {count}: the corrections belong to other data, or to a set prepared with other options"
            )
        if correction.label and correction.label not in names:
            raise DataError(f"{where}: {correction.label!r} is not a class of the data set; it has {', '.join(names)}")

    corrected, changes = DatasetDict(), Counter[tuple[str, str]]()
    for split, rows in dataset.items():
        here = [(places[c.row_id][0][1], c) for c in corrections if places[c.row_id][0][0] == split]
        relabeled = {row: names.index(c.label) for row, c in here if c.mark == "relabel"}
        dropped = [row for row, c in here if c.mark == "drop"]
        if len(dropped) == len(rows) > 0:
            raise DataError(f"{path}: every row of the split {split!r} is dropped: keep some")
        before = numpy_column(rows, "label")
        for row, label in relabeled.items():
            changes[names[before[row]] if before[row] >= 0 else "no label", names[label]] += 1
        corrected[split] = _correct(rows, relabeled, dropped)
        if relabeled or dropped:
            provenance = Provenance.from_dataset(rows) or Provenance(split=split)
            note = {"file": Path(path).name, "relabeled": len(relabeled), "dropped": len(dropped)}
            replace(provenance, corrections=[*provenance.corrections, note]).attach(corrected[split])

    marks = Counter(correction.mark for correction in corrections)
    lines = [f"{path}: {marks['relabel']} relabeled, {marks['drop']} dropped, {marks['keep']} kept as they are"]
    lines += [f"  {before} -> {after}  {rows}" for (before, after), rows in changes.most_common()]
    return corrected, printable_lines(lines)


def _find(dataset: DatasetDict, row_ids: set[str]) -> dict[str, list[tuple[str, int]]]:
    """The places, (split, row), of the rows that have one of the row ids."""
    places: dict[str, list[tuple[str, int]]] = {}
    for split, rows in dataset.items():
        for row, row_id in enumerate(rows.select_columns("row_id")["row_id"][:]):
            if row_id in row_ids:
                places.setdefault(row_id, []).append((split, row))
    return places


def _correct(rows: Dataset, relabeled: dict[int, int], dropped: list[int]) -> Dataset:
    """A split with new labels, by row, and without the dropped rows."""
    if not relabeled and not dropped:
        return rows
    present = [name for name in _LABEL_COLUMNS if name in rows.column_names]
    columns = {name: numpy_column(rows, name).copy() for name in present}
    for row, label in relabeled.items():
        columns["label"][row] = label
        if "votes" in columns:
            total = columns["votes"][row].sum()
            columns["votes"][row] = 0
            columns["votes"][row, label] = total
        if "answers" in columns:
            columns["answers"][row][columns["answers"][row] >= 0] = label
        for name in ("candidates", "confidence"):
            if name in columns:
                columns[name][row] = np.arange(columns[name].shape[1]) == label
        if "majority" in columns:
            columns["majority"][row] = True
    order, features = rows.column_names, rows.features
    for name, values in columns.items():
        column = values if values.ndim == 1 else list(values)
        rows = rows.remove_columns(name).add_column(name, column, feature=features[name])
    return rows.select_columns(order).select(np.setdiff1d(np.arange(len(rows)), dropped))
