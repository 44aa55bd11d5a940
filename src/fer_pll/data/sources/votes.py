"""Tables of votes: for each image, or for each answer, what annotators chose."""

import argparse
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from ...io.errors import DataError, name_some
from ...io.tables import column_names, read_rows
from ...labels.candidates import from_posterior
from ...labels.crowd import dawid_skene_posterior
from ...labels.expressions import EXPRESSIONS, canonical_name, misspelled
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source, add_classes_argument, is_text, parse_classes

SPLITS = ("train", "validation", "test")
ANSWER_COLUMNS = ("path", "annotator", "label")
MOST_VOTES = 2**31 - 1
"""Largest number of votes that a prepared set holds."""

OWN_COLUMNS = (*ANSWER_COLUMNS, "candidates", "split")
"""Columns of a table that are never votes for a class of that name."""


def list_votes(
    file: str | Path,
    root: str | Path | None = None,
    class_names: Sequence[str] = EXPRESSIONS,
    coverage: float | None = None,
    annotators: Sequence[str] | None = None,
) -> dict[str, list[ImageRecord]]:
    """Lists the images of a table of votes: CSV (or with tabs or semicolons), JSON lines or Parquet.

    The table has one of five forms:

    - one row for each image: `path`, and a column for each class, by its name, with the number of votes. Classes
      without a column have no votes, nor have those that a row of JSON lines leaves out, if it has others;
    - one row for each answer: `path`, `annotator`, `label` (a class name);
    - one row for each image: `path`, and a column for each of `annotators`, with the class name that they chose, or
      nothing;
    - candidate sets: `path` and `candidates` (class names with `|` between them), and `label` where it is known;
    - a single label for each image: `path` and `label` (a class name).

    Names of classes may be capitalized, or synonyms (see `expressions.SYNONYMS`). A column `split` says train,
    validation or test; rows without it are train.

    Args:
        file: the table.
        root: folder that the paths start from; the folder of the table where not given. No path may lead out of it by
            `..`, or begin elsewhere. Folders in it may be links.
        class_names: K names.
        coverage: weigh the answers by the quality of their annotators (`labels.crowd.dawid_skene_posterior`), over all
            splits together. `candidates` are then the most probable labels that hold this share of the probability,
            `confidence` has their probabilities, and `label` is the most probable label.
        annotators: the columns of a table that has one for each annotator.

    Returns:
        records by split, with `votes` and `label` (the first top of the votes), or with `candidates` and `label` (-1
        where it is not known), or with `label` alone. Where the table says who gave which answer, they have `answers`
        as well: for each of all annotators, sorted by name, the class, or -1 where they did not answer for this image.
        An image without any vote or candidate has a `problem`.

    Raises:
        DataError: `read_rows` refuses the table, a column is missing, a name is not a class, votes are not whole
            numbers >= 0, a column of votes looks like a misspelled class, a label is not among the candidates, an
            image is listed twice, an annotator has two answers for an image, a path leads out of `root`, or a split is
            unknown. The message names file and row.
    """
    return _list_votes(file, root, class_names, coverage, annotators)[0]


def _list_votes(
    file: str | Path,
    root: str | Path | None,
    class_names: Sequence[str],
    coverage: float | None,
    annotators: Sequence[str] | None,
) -> tuple[dict[str, list[ImageRecord]], list[str]]:
    """What `list_votes` returns, and the columns of the table that were passed over."""
    file = Path(file)
    root = Path(root) if root is not None else file.parent
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name the one that the paths of {file} start from")
    class_names = [canonical_name(name) for name in class_names]
    if len(class_names) < 2:
        raise DataError(f"--classes {','.join(class_names)}: annotators choose among at least two classes")
    names = column_names(file)
    answers = "annotator" in names and "label" in names
    annotators = list(annotators or ())
    classes = {
        name: class_names.index(canonical_name(name))
        for name in names
        if canonical_name(name) in class_names and name not in (*OWN_COLUMNS, *annotators)
    }
    sets = "candidates" in names
    labels = "label" in names and not (answers or annotators or classes or sets)
    if "path" not in names or not (answers or annotators or classes or sets or labels):
        raise DataError(
            f"{file} has the columns {', '.join(names)}; it needs {', '.join(ANSWER_COLUMNS)}; or path and "
            f"candidates; or path and a column for each class ({', '.join(class_names)}); or path and columns that "
            "--annotators names; or path and label"
        )
    unfit = next((name for name in annotators if name not in names or name in ("path", "split")), None)
    if unfit is not None or len(set(annotators)) < len(annotators):
        fault = "names a column twice" if unfit is None else f"names {unfit!r}, which is no annotator's column"
        raise DataError(f"--annotators {','.join(annotators)} {fault}; {file} has {', '.join(names)}")
    if answers + bool(annotators) + bool(classes) + sets > 1:
        raise DataError(
            f"{file} has more than one of annotator, candidates, columns of annotators ({', '.join(annotators)}), and "
            f"columns of classes ({', '.join(classes)}): keep one of them"
        )
    taken = next((name for name in class_names if name in OWN_COLUMNS), None) if classes else None
    if taken is not None:
        raise DataError(
            f"{file}: a class named {taken!r} cannot have a column of votes, because the column {taken!r} means "
            "something else: give the class another name, or write a row for each answer"
        )
    barred = next((name for name in class_names if "|" in name), None) if sets else None
    if barred is not None:
        raise DataError(f"{file}: the class {barred!r} has a | in it, which separates candidates: rename the class")
    if len(set(classes.values())) < len(classes):
        raise DataError(f"{file}: two of the columns {', '.join(classes)} are the same class: join them")

    if coverage is not None and not (answers or annotators):
        raise DataError(
            f"{file} does not say who gave which answer, so annotators cannot be weighed: it needs the columns "
            f"{', '.join(ANSWER_COLUMNS)}, or columns that --annotators names"
        )
    rows = _from_root(read_rows(file), root)
    if answers:
        read: Sequence[str] = ANSWER_COLUMNS
        listed = _count_answers(file, _answers_in_rows(file, rows, class_names), class_names, coverage)
    elif annotators:
        read = annotators
        listed = _count_answers(file, _answers_in_columns(file, rows, class_names, annotators), class_names, coverage)
    elif sets:
        read = ("candidates", "label")
        listed = _read_sets(file, rows, class_names)
    elif labels:
        read = ("label",)
        listed = _read_labels(file, rows, class_names)
    else:
        read = list(classes)
        near = {name: misspelled(name, class_names) for name in names if name not in (*OWN_COLUMNS, *classes)}
        suspects = {name: meant for name, meant in near.items() if meant is not None}
        listed = _read_counts(file, rows, class_names, classes, suspects)
    passed_over = [name for name in names if name not in ("path", "split", *read)]
    splits: dict[str, list[ImageRecord]] = {name: [] for name in SPLITS}
    for place, path, given, columns in listed:
        image = _resolve(file, place, root, path)
        split = given or "train"
        if split not in SPLITS:
            raise DataError(f"{file.parent / place}: split {split!r} is not one of {', '.join(SPLITS)}")
        name, entries = next(iter(columns.items()))
        problem = None if labels or any(entries) else f"has no {name} at all: remove the row or add some"
        splits[split].append(ImageRecord(image, place, columns, problem=problem))
    return {name: images for name, images in splits.items() if images}, passed_over


def _read_counts(
    file: Path,
    rows: Iterator[tuple[str, dict[str, Any]]],
    class_names: list[str],
    classes: dict[str, int],
    suspects: dict[str, str],
) -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """(place, path, split, columns) of each row of a table that has the votes for an image in a row.

    Where a row has votes in a column of `suspects`, and no column for the class that its name looks like, it is an
    error.
    """
    for place, path, row in _one_row_each(file, rows):
        where = file.parent / place
        here = {column: label for column, label in classes.items() if column in row}  # JSON may leave out zeros
        for column, meant in suspects.items():
            absent = column in row and class_names.index(meant) not in here.values()
            if absent and _is_whole_number(row[column]):
                raise DataError(
                    f"{where}: the column {column!r} has votes, but is no class: rename it if {meant!r} is meant, "
                    "else remove it"
                )
        votes = np.zeros(len(class_names), dtype=np.int32)
        for column, label in (here or classes).items():
            votes[label] = whole_number(where, column, row.get(column))
        yield place, path, _split(row), _columns_of(votes)


def _read_sets(
    file: Path, rows: Iterator[tuple[str, dict[str, Any]]], class_names: list[str]
) -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """(place, path, split, columns) of each row of a table of candidate sets."""
    for place, path, row in _one_row_each(file, rows):
        where = file.parent / place
        names = [name for name in str(row.get("candidates") or "").split("|") if name.strip()]
        candidates = np.zeros(len(class_names), dtype=bool)
        candidates[[_class(where, name, class_names) for name in names]] = True
        given = str(row.get("label") or "").strip()
        label = _class(where, given, class_names) if given else -1
        if names and given and not candidates[label]:
            raise DataError(
                f"{where}: the label {given!r} is not among the candidates {'|'.join(names)}: correct one of them"
            )
        yield place, path, _split(row), {"candidates": candidates.tolist(), "label": label}


def _read_labels(
    file: Path, rows: Iterator[tuple[str, dict[str, Any]]], class_names: list[str]
) -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """(place, path, split, columns) of each row of a table that has one label for each image."""
    for place, path, row in _one_row_each(file, rows):
        where = file.parent / place
        yield place, path, _split(row), {"label": _class(where, _text(where, row, "label"), class_names)}


def _one_row_each(file: Path, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, path, row), after checking that no image comes twice."""
    seen: dict[str, str] = {}
    for place, row in rows:
        path = _path(file.parent / place, row)
        if path in seen:
            raise DataError(f"{file.parent / place} lists {path} again, after {seen[path]}: join the two rows")
        seen[path] = place
        yield place, path, row


def _columns_of(votes: np.ndarray) -> dict[str, Any]:
    return {"votes": votes.tolist(), "label": int(votes.argmax())}


def _class(where: Path, name: str, class_names: list[str]) -> int:
    if canonical_name(name) not in class_names:
        raise DataError(
            f"{where}: label {name!r} is not one of the classes {', '.join(class_names)}: correct it, or name "
            "the classes with --classes"
        )
    return class_names.index(canonical_name(name))


class _Answer(NamedTuple):
    """What an annotator said of an image; a row of a table without any answer has one without annotator."""

    place: str
    path: str
    split: str | None
    annotator: str | None
    label: int


def _answers_in_rows(
    file: Path, rows: Iterator[tuple[str, dict[str, Any]]], class_names: list[str]
) -> Iterator[_Answer]:
    """The answers of a table that has a row for each."""
    for place, row in rows:
        where = file.parent / place
        path, annotator = _path(where, row), _text(where, row, "annotator")
        yield _Answer(place, path, _split(row), annotator, _class(where, _text(where, row, "label"), class_names))


def _answers_in_columns(
    file: Path, rows: Iterator[tuple[str, dict[str, Any]]], class_names: list[str], annotators: Sequence[str]
) -> Iterator[_Answer]:
    """The answers of a table that has a column for each annotator. An empty cell is no answer."""
    for place, path, row in _one_row_each(file, rows):
        where = file.parent / place
        given = {name: str(row[name]).strip() for name in annotators if row.get(name) is not None}
        said = {name: text for name, text in given.items() if text}
        for name, text in said.items():
            yield _Answer(place, path, _split(row), name, _class(where, text, class_names))
        if not said:
            yield _Answer(place, path, _split(row), None, -1)


def _count_answers(
    file: Path, given: Iterator[_Answer], class_names: list[str], coverage: float | None
) -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """(place, path, split, columns) of each image that was answered for."""
    images: dict[str, tuple[str, str | None, dict[str, int]]] = {}  # the last: labels by annotator
    answered: dict[tuple[str, str], str] = {}
    for place, path, split, annotator, label in given:
        where = file.parent / place
        first = images.setdefault(path, (place, split, {}))
        if first[1] != split:
            raise DataError(
                f"{where}: {path} is in split {split}, but {first[0]} has it in {first[1]}: correct one of them"
            )
        if annotator is None:
            continue
        if annotator in first[2]:
            raise DataError(
                f"{where}: annotator {annotator} already answered for {path}, in {answered[path, annotator]}: "
                "remove one of the answers"
            )
        first[2][annotator] = label
        answered[path, annotator] = place
    annotators = sorted({annotator for _, _, said in images.values() for annotator in said})
    columns = []
    for _, _, said in images.values():
        votes = np.bincount(list(said.values()), minlength=len(class_names)) if said else np.zeros(len(class_names))
        columns.append(_columns_of(votes.astype(int)) | {"answers": [said.get(name, -1) for name in annotators]})
    if coverage is not None:
        _weigh_annotators(columns, [said for _, _, said in images.values()], coverage)
    for (path, (place, split, _)), values in zip(images.items(), columns, strict=True):
        yield place, path, split, values


def _weigh_annotators(columns: list[dict[str, Any]], said: list[dict[str, int]], coverage: float) -> None:
    """Sets `label`, `candidates` and `confidence` in the images' columns, as `list_votes` says of `coverage`.

    Args:
        columns: of each image.
        said: for each image, labels by annotator. Those of an image without any stay all zero.
        coverage: see `list_votes`.
    """
    answered = [row for row, answers in enumerate(said) if answers]
    if not answered:
        return
    given = [(number, who, label) for number, row in enumerate(answered) for who, label in said[row].items()]
    rows, annotators, labels = zip(*given, strict=True)
    shape = len(columns), len(columns[0]["votes"])
    posterior, candidates = np.zeros(shape), np.zeros(shape, dtype=bool)
    posterior[answered] = dawid_skene_posterior(rows, annotators, labels, len(answered), shape[1])
    candidates[answered] = from_posterior(posterior[answered], coverage)
    confidence = np.where(candidates, posterior, 0)
    confidence[answered] /= confidence[answered].sum(axis=1, keepdims=True)
    for row, values in enumerate(columns):
        values["label"] = int(posterior[row].argmax())
        values["candidates"] = candidates[row].tolist()
        values["confidence"] = confidence[row].tolist()


def _text(where: Path, row: dict[str, Any], column: str) -> str:
    text = _cell(where, row, column)
    if not is_text(text):
        raise DataError(f"{where}: {column} is {text!r}, which is no text: correct the row")
    return text


def _cell(where: Path, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None or not str(value).strip():
        raise DataError(f"{where} has no {column}: fill it in or remove the row")
    return str(value).strip()


def _from_root(rows: Iterator[tuple[str, dict[str, Any]]], root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows; absolute paths into the folder start from it, as the others do, so that one image is one text."""
    starts = (Path(os.path.normpath(root.absolute())), root.resolve())
    for place, row in rows:
        image = Path(str(row.get("path") or "").strip())
        if image.is_absolute():
            image = Path(os.path.normpath(image))
            start = next((start for start in starts if image.is_relative_to(start)), None)
            yield place, row if start is None else row | {"path": image.relative_to(start).as_posix()}
        else:
            yield place, row


def _path(where: Path, row: dict[str, Any]) -> str:
    """The image's path in one spelling for each file. Tables from Windows separate folders by backslashes."""
    return posixpath.normpath(_cell(where, row, "path").replace("\\", "/"))


def _split(row: dict[str, Any]) -> str | None:
    value = row.get("split")
    return None if value is None or not str(value).strip() else str(value).strip().lower()


def whole_number(where: str | Path, column: str, value: Any) -> int:
    """A number of votes. Raises DataError, naming place and column, where it is not a whole number from 0 up."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    if isinstance(value, str):
        if re.fullmatch(r"[1-9]\d{0,2}[.,]000", text):
            raise DataError(
                f"{where}: the votes for {column!r} are {value!r}, which is {text[:-4]} to some and {text[:-4]}000 to "
                "others: write the number without a separator"
            )
        text = re.sub(r"[.,]0*$", "", text)  # as spreadsheets may write it
    if not (text.isascii() and text.isdigit()):
        raise DataError(
            f"{where}: the votes for {column!r} are {value!r}, but votes are whole numbers from 0 up: correct the row"
        )
    if len(text) > 10 or int(text) > MOST_VOTES:
        raise DataError(f"{where}: {text} votes for {column!r} are too many to be true: correct the row")
    return int(text)


def _is_whole_number(value: Any) -> bool:
    try:
        whole_number("", "", value)
    except DataError:
        return False
    return True


def _resolve(file: Path, place: str, root: Path, path: str) -> Path:
    """The image's path, after checking that the table does not lead out of the folder. Links are the user's own."""
    if path.startswith(("/", "../")) or path == ".." or PureWindowsPath(path).drive:
        raise DataError(
            f"{file.parent / place}: {path} lies outside of {root}: correct the path, or name with --root a folder "
            "that holds all images"
        )
    return root / path


class Votes(Source):
    name = "votes"
    summary = "a table of votes or candidate sets, beside the images"
    validation_share = 0.1

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source",
            metavar="table",
            help="CSV, TSV, JSON lines or Parquet: path and a column of votes for each class; or path, annotator, "
            "label; or path and --annotators; or path and candidates (class names with | between them); or path and "
            "label",
        )
        parser.add_argument("--root", metavar="DIR", help="folder that the paths start from (default: the table's)")
        add_classes_argument(parser, "the eight expressions of FER+")
        parser.add_argument(
            "--annotators",
            metavar="COLUMN,COLUMN,...",
            help="columns of the table with the class that each annotator chose, or nothing",
        )
        parser.add_argument(
            "--weigh-annotators",
            nargs="?",
            type=float,
            const=0.95,
            metavar="SHARE",
            help="for a table that says who gave which answer: let good annotators count for more (Dawid-Skene). "
            "Candidates are the most probable labels that hold SHARE (default: 0.95) of the probability. Train with "
            "--confidence_init column to start from the probabilities. Needs the extra `crowd`",
        )

    def open(self, options: argparse.Namespace) -> Opened:
        names = parse_classes(options.classes) or EXPRESSIONS
        annotators = options.annotators
        splits, passed_over = _list_votes(
            options.source,
            options.root,
            names,
            options.weigh_annotators,
            [name.strip() for name in annotators.split(",")] if isinstance(annotators, str) else annotators,
        )
        first = next(iter(splits.values()))[0].columns
        columns = tuple(first)
        form = {"candidates": "candidate sets", "label": "labels"}.get(columns[0], "votes")
        form += f" of {len(first['answers'])} annotators" if "answers" in first else ""
        rest = f", passing over the columns {name_some(passed_over)}" if passed_over else ""
        return Opened(
            names,
            splits,
            columns,
            provenance=Provenance(source=self.name),
            read_as=f"a table of {form} ({Path(options.source).name}){rest}",
            root=Path(options.root or Path(options.source).parent),
        )
