"""Transition tables: the probability that annotators take one class for another, by the names of the classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..io.errors import DataError
from ..io.tables import decimal, read_columns
from ..labels.expressions import canonical_name


def read_transition(file: str | Path, class_names: Sequence[str]) -> np.ndarray:
    """A class-dependent transition matrix for `labels.candidates.from_labels`, from a CSV file.

    The first line names the classes, after a first cell that does not matter. Each other line has the name of the
    given label, then for each class the probability that it becomes a candidate beside that label:

        given,neutral,happiness,sadness
        neutral,,0.05,0.3
        happiness,0.1,,0
        sadness,0.3,0,

    Every class has a line and a column, in any order. Names may be capitalized, or synonyms (`expressions.SYNONYMS`).
    The cell of a class beside itself is ignored.

    Args:
        file: the table.
        class_names: K names.

    Returns:
        (K, K) float64, in the order of `class_names`.

    Raises:
        DataError: the file is missing or malformed, a class is missing, unknown or there twice, or a cell is not a
            probability. The message names file, line and class.
    """
    file = Path(file)
    names = [canonical_name(name) for name in class_names]
    rows = read_columns(file)
    columns = _check_names(f"{file}:1", [canonical_name(name) for name in next(rows)[1][1:]], names)
    matrix, given = np.zeros((len(names), len(names))), []
    for line, (name, *cells) in rows:
        if canonical_name(name) not in names or canonical_name(name) in given:
            raise DataError(
                f"{file}:{line}: {name!r} is not one of the classes {', '.join(names)}, or already has a line: "
                "correct it"
            )
        given.append(canonical_name(name))
        row = names.index(given[-1])
        for column, cell in zip(columns, cells, strict=True):
            if column != row:
                matrix[row, column] = _probability(f"{file}:{line}", name, names[column], cell)
    _check_names(str(file), given, names)
    return matrix


def _check_names(where: str, given: list[str], names: list[str]) -> list[int]:
    """Places of the given names among the classes, after checking that each class is there once."""
    twice = [name for name in given if given.count(name) > 1]
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    for found, what in ((twice, "is there twice"), (unknown, "is not a class"), (missing, "is missing")):
        if found:
            raise DataError(f"{where}: {found[0]!r} {what}; give a line and a column to each of {', '.join(names)}")
    return [names.index(name) for name in given]


def _probability(where: str, given: str, other: str, cell: str) -> float:
    try:
        value = decimal(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # NaN is refused too
        raise DataError(f"{where}: {cell!r}, for {other} beside {given}, is not a probability from 0 to 1: correct it")
    return value
