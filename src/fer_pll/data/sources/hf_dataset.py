"""Data sets of `datasets`, from the Hub or from disk: images with labels, votes or candidate sets."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value, load_dataset, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE

from ...io.errors import DataError
from ...labels.expressions import EXPRESSIONS, canonical_name, in_order_of_expressions, misspelled
from ..dataset import check_own_files, is_prepared
from ..image_writer import ImageRecord
from ..provenance import Provenance
from .base import Opened, Source, add_classes_argument, parse_classes
from .image_folder import SPLIT_OF_FOLDER
from .votes import whole_number

LABEL_COLUMNS = ("label", "labels", "expression", "emotion")


@dataclass(frozen=True)
class Columns:
    """The columns of a data set, by their content. A column that is None is found by name and type.

    Args:
        image: a `datasets` Image, or the bytes of image files.
        label: a ClassLabel, names, or numbers that count the classes from 0.
        votes: a list of K votes, or several columns, each named after a class, with the votes for it.
        candidates: a list of K booleans, of names or of numbers, or names with `|` between them.
        row_id: names of the rows, each of them once. Without it, `row_id` is like `train[17]`, counted from 0.
        answers: a list of what each annotator chose: names, or numbers as of `label`; -1 or nothing where they did not
            answer.
    """

    image: str | None = None
    label: str | None = None
    votes: str | Sequence[str] | None = None
    candidates: str | None = None
    row_id: str | None = None
    answers: str | None = None


def open_dataset(
    source: str | Path, config: str | None = None, revision: str | None = None
) -> dict[str, Dataset | IterableDataset]:
    """The splits of a data set, without reading its images.

    Args:
        source: a folder written by `save_to_disk`, or a folder of Parquet or Arrow files or of images, which is read
            in place, without a copy in the cache of `datasets`. Nothing outside of the folder is read, and nothing is
            downloaded. Any other name is downloaded from the Hub.
        config, revision: those of a data set on the Hub that has several.

    Returns:
        rows by split: train, validation, test.

    Raises:
        DataError: there is no such data set, it cannot be opened, or it has a split of another name.
    """
    path = Path(source)
    if path.is_file():
        raise DataError(f"{path} is a file: name the folder that holds it (a table of paths is for `votes`)")
    try:
        if is_prepared(path):  # or saved alike
            found = load_from_disk(path)
            for rows in found.values() if isinstance(found, Mapping) else [found]:
                check_own_files(path, rows)
        elif path.is_dir():
            _check_card(path)
            found = load_dataset(str(path), name=config, streaming=True)
        else:
            found = load_dataset(str(source), name=config, revision=revision)
    except DataError:
        raise
    except Exception as error:  # of `datasets` and all that it reads with
        raise DataError(
            f"{source} is not a data set that can be opened ({type(error).__name__}: {error}): name a folder, or a "
            "data set on the Hub, and --config where it has several"
        ) from error
    splits: dict[str, Dataset | IterableDataset] = {}
    for name, rows in found.items() if isinstance(found, Mapping) else [("train", found)]:
        split = SPLIT_OF_FOLDER.get(str(name).lower())
        if split is None or split in splits:
            raise DataError(
                f"{source} has the splits {', '.join(map(str, found))}, which should be train, validation and test, "
                "or some of these: rename them and save it with save_to_disk"
            )
        splits[split] = rows
    return splits


def _check_card(folder: Path) -> None:
    """Checks that the configurations of a local folder name files in it only: other names may be addresses."""
    for name in ("README.md", ".huggingface.yaml"):
        file = folder / name
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if name == "README.md":
            parts = re.split(r"^---[ \t]*$", text.lstrip("\ufeff"), maxsplit=2, flags=re.MULTILINE)
            text = parts[1] if len(parts) == 3 else ""
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise DataError(f"{file}: its YAML cannot be read ({' '.join(str(error).split())}): correct it") from error
        configs = content.get("configs") if isinstance(content, dict) else None
        for config in configs if isinstance(configs, list) else ():
            for key in ("data_files", "data_dir"):
                for pattern in _texts(config.get(key)) if isinstance(config, dict) else ():
                    outside = PurePosixPath(pattern).is_absolute() or ".." in re.split(r"[/\\]", pattern)
                    if outside or ":" in pattern or pattern.startswith("~"):
                        raise DataError(
                            f"{file}: {key} names {pattern!r}, which does not lie in the folder: put the files there "
                            "and correct it"
                        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def list_dataset(
    source: str | Path,
    columns: Columns | None = None,
    class_names: Sequence[str] | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> Opened:
    """Lists the rows of a data set.

    Its classes are `class_names`, else the names of its ClassLabel, else the expressions of FER+. Names may be
    capitalized, or synonyms (`expressions.SYNONYMS`). Lists of votes or candidates are in the order of the names of
    the ClassLabel, where there is one, else in the order of the classes. Where a value is missing, malformed or of
    another class, the row has a `problem` that names the column. Votes for another class do not count.

    Args:
        source, config, revision: see `open_dataset`.
        columns: the columns to read.
        class_names: names of the classes, in the order of the model's outputs.

    Returns:
        see `Opened`. `label` is the first top of the votes where there is no column for it.

    Raises:
        DataError: as `open_dataset`; also where a column is missing or has the wrong type, where numbered classes have
            no names, and where two names are the same class. Also while the rows are read: one cannot be read.
    """
    opened = open_dataset(source, config, revision)
    features = next(iter(opened.values())).features or Features()
    for split, rows in opened.items():
        if rows.features and set(rows.features) != set(features):
            raise DataError(f"{source}: split {split} has other columns than {next(iter(opened))}: give all the same")
    columns = find_columns(str(source), features, columns or Columns(), class_names)
    of_source = features[columns.label].names if _is_class_label(features.get(columns.label)) else None
    if class_names is None:
        class_names = in_order_of_expressions(map(canonical_name, of_source or EXPRESSIONS))
    class_names = [canonical_name(name) for name in class_names]
    of_source = [canonical_name(name) for name in of_source or class_names]
    for names in (of_source, class_names):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{source}: two of its classes are {twice}: {', '.join(names)}; join them")
    for name in columns.votes if isinstance(columns.votes, tuple) else ():
        if canonical_name(name) not in (*class_names, *of_source, *EXPRESSIONS):
            raise DataError(f"{source}: the column {name!r} of --votes is none of {', '.join(class_names)}: rename it")
    root = Path(source) if Path(source).exists() else None
    reader = _Reader(columns, class_names, of_source, root)
    splits = {split: _list_rows(str(source), split, rows, reader) for split, rows in opened.items()}
    counts = {split: len(rows) for split, rows in opened.items() if isinstance(rows, Dataset)}
    found = [name for name in ("votes", "answers", "candidates") if getattr(columns, name) is not None]
    hub_id = None if Path(source).exists() else str(source)
    license = next(iter(opened.values())).info.license
    provenance = Provenance(source=HfDataset.name, hub_id=hub_id, license=license or None)
    read_as = f"a data set of `datasets` ({', '.join(filter(None, (columns.image, columns.label, *found)))})"
    if "answers" in found and "votes" not in found:
        found.append("votes")  # the answers are counted
    return Opened(class_names, splits, found, provenance, counts=counts, read_as=read_as, root=root)


def find_columns(source: str, features: Features, columns: Columns, class_names: Sequence[str] | None) -> Columns:
    """Fills in the columns that name and type can tell, and checks all of them.

    Raises:
        DataError: a column is missing or has the wrong type; no column or several hold images; there are neither
            labels nor votes nor candidates; labels are numbers and nothing names their classes; or a column beside
            those of votes looks like a misspelled class.
    """

    def check(option: str, name: str, fits: Callable[[Any], bool], kind: str) -> str:
        if name not in features:
            raise DataError(f"{source} has no column {name!r} for --{option}; it has {', '.join(features)}")
        if not fits(features[name]):
            raise DataError(f"{source}: column {name!r} is {features[name]}, but --{option} needs {kind}")
        return name

    def only(option: str, names: list[str]) -> str:
        if len(names) != 1:
            several = f"several columns for it ({', '.join(names)})" if names else "none"
            raise DataError(
                f"{source} has the columns {', '.join(features) or 'of no name'}; of these, --{option} has {several}: "
                f"name one with --{option}" + (" (a table of paths is for `votes`)" if option == "image" else "")
            )
        return names[0]

    image = columns.image or only("image", [name for name, feature in features.items() if _is_image(feature)])
    check("image", image, _is_image, "images: an Image, or bytes")
    label = columns.label or next((name for name in LABEL_COLUMNS if _is_label(features.get(name))), None)
    if label is None:
        label = next((name for name, feature in features.items() if _is_class_label(feature)), None)
    if label is not None:
        check("label", label, _is_label, "a ClassLabel, names or whole numbers")
        if _is_number(features[label]) and class_names is None:
            raise DataError(f"{source}: column {label!r} has numbers; name their classes from 0 with --classes")

    votes = columns.votes or ("votes" if _is_list(features.get("votes")) else None)
    if votes is None:
        known = list(map(canonical_name, class_names or EXPRESSIONS))
        numbers = [name for name, feature in features.items() if _is_number(feature)]
        named = {name: canonical_name(name) for name in numbers if canonical_name(name) in known}
        votes = list(named) if len(named) > 1 else None
        for name in numbers if votes else ():
            meant = None if name in named else misspelled(name, known)
            if meant is not None and meant not in named.values():
                raise DataError(
                    f"{source}: the column {name!r} has numbers, but is no class: rename it if {meant!r} is meant, "
                    "else name the columns with --votes"
                )
    votes = votes.split(",") if isinstance(votes, str) else votes
    if votes is not None and len(votes) == 1:
        votes = check("votes", votes[0], _is_list, "a list, or several columns with commas between them")
    elif votes is not None:
        votes = tuple(check("votes", name, _is_number, "numbers") for name in votes)

    candidates = columns.candidates or ("candidates" if "candidates" in features else None)
    if candidates is not None:
        check("candidates", candidates, lambda feature: _is_list(feature) or _is_text(feature), "lists or names")
    row_id = columns.row_id or ("row_id" if "row_id" in features else None)
    if row_id is not None:
        check("row-id", row_id, lambda feature: _is_text(feature) or _is_number(feature), "texts or numbers")
    answers, known_classes = columns.answers, class_names is not None or _is_class_label(features.get(label))
    if answers is not None:
        check("answers", answers, _is_list_of_answers, "lists of names or whole numbers")
        if not known_classes and not _is_text(features[answers].feature):
            raise DataError(f"{source}: column {answers!r} has numbers; name their classes from 0 with --classes")
    elif known_classes and _is_list_of_answers(features.get("answers")) and not _is_text(features["answers"].feature):
        answers = "answers"  # as prepared sets have it; texts under that name may be anything
    if label is None and votes is None and candidates is None and answers is None:
        raise DataError(
            f"{source} has the columns {', '.join(features)}, none of which is known to hold labels, votes, answers "
            "or candidates: name one with --label, --votes, --answers or --candidates"
        )
    return Columns(image, label, votes, candidates, row_id, answers)


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, ClassLabel)


def _is_number(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float"))


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and "string" in feature.dtype


def _is_label(feature: Any) -> bool:
    return _is_class_label(feature) or _is_text(feature) or _is_number(feature)


def _is_list(feature: Any) -> bool:
    """A list of numbers or texts; lists of images would be opened."""
    return isinstance(feature, List) and isinstance(feature.feature, Value | ClassLabel)


def _is_list_of_answers(feature: Any) -> bool:
    return _is_list(feature) and (_is_text(feature.feature) or getattr(feature.feature, "dtype", "")[:3] == "int")


def _is_image(feature: Any) -> bool:
    if isinstance(feature, Mapping):  # an Image that lost its type on the way, as in pandas
        feature = feature.get("bytes")
    return isinstance(feature, Image) or (isinstance(feature, Value) and "binary" in feature.dtype)


def _list_rows(source: str, split: str, rows: Dataset | IterableDataset, reader: "_Reader") -> Iterator[ImageRecord]:
    if isinstance((rows.features or {}).get(reader.columns.image), Image):
        rows = rows.cast_column(reader.columns.image, Image(decode=False))
    wanted = reader.columns
    needed = [wanted.image, wanted.label, wanted.answers, wanted.candidates, wanted.row_id]
    needed += [wanted.votes] if isinstance(wanted.votes, str) else wanted.votes or []
    rows = rows.select_columns([name for name in dict.fromkeys(needed) if name is not None])
    seen: set[str] = set()
    for number, row in _each(source, split, rows):
        place = f"{split}[{number}]"
        row_id = place
        if wanted.row_id is not None:
            row_id = str(row[wanted.row_id])
            if row_id in seen:
                raise DataError(f"{source}, {place}: {wanted.row_id} {row_id!r} is there twice: number the rows again")
            seen.add(row_id)
        yield reader.read(row, row_id)


def _each(source: str, split: str, rows: Dataset | IterableDataset) -> Iterator[tuple[int, dict[str, Any]]]:
    number = -1
    try:
        for number, row in enumerate(rows):
            yield number, row
    except Exception as error:  # of the many readers of `datasets`
        raise DataError(
            f"{source} cannot be read from {split}[{number + 1}] on ({type(error).__name__}: {error}): "
            "get the data set again"
        ) from error


class _Problem(ValueError):
    """Why a row cannot be used; the message names the column."""


class _Reader:
    """Reads rows: from `columns`, to `class_names`, where `of_source` are the classes that the data set lists.

    An image is the contents of a file, or a path in `root`, the folder of the data set.
    """

    def __init__(
        self, columns: Columns, class_names: list[str], of_source: list[str], root: Path | None = None
    ) -> None:
        self.roots = [root] if root is not None else [Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
        self.columns = columns
        self.class_names = class_names
        self.of_source = of_source
        self.annotators: int | None = None  # as many as the first row has

    def read(self, row: dict[str, Any], row_id: str) -> ImageRecord:
        wanted, problem = self.columns, None
        values: dict[str, Any] = {"label": -1}
        assert wanted.image is not None  # `find_columns` has filled it in
        image = row[wanted.image]
        image = image if isinstance(image, Mapping) else {"bytes": image, "path": None}
        path, data = image.get("path"), image.get("bytes")
        try:
            if not (path or data):
                raise _Problem(f"column {wanted.image!r} is empty: remove the row")
            if path and not data:
                path = self._inside(wanted.image, path)
            if wanted.label is not None:
                values["label"] = self._label(wanted.label, row[wanted.label])
                if values["label"] < 0 and wanted.votes is wanted.answers is wanted.candidates is None:
                    raise _Problem(f"column {wanted.label!r} is {row[wanted.label]!r}, which is not a label")
            if wanted.answers is not None:
                values["answers"] = self._answers(wanted.answers, row[wanted.answers])
                values["votes"] = [values["answers"].count(label) for label in range(len(self.class_names))]
            if wanted.votes is not None:
                values["votes"] = self._votes(wanted.votes, row)
            if "votes" in values:
                if not any(values["votes"]):
                    raise _Problem(f"has no votes for {', '.join(self.class_names)}: remove the row or add some")
                if wanted.label is None:
                    values["label"] = max(range(len(self.class_names)), key=values["votes"].__getitem__)
            if wanted.candidates is not None:
                values["candidates"] = self._candidates(wanted.candidates, row[wanted.candidates])
                if values["label"] >= 0 and not values["candidates"][values["label"]]:
                    raise _Problem(
                        f"column {wanted.candidates!r} is {row[wanted.candidates]!r}, without the label "
                        f"{self.class_names[values['label']]!r}: correct one of them"
                    )
        except _Problem as error:
            problem = str(error)
        return ImageRecord(Path(path or row_id), row_id, values, problem=problem, data=data or None)

    def _inside(self, column: str, path: str) -> str:
        """The place of an image that a row names; relative to the folder of the data set."""
        place = os.path.abspath(self.roots[0] / path)  # noqa: PTH100  # links are the user's own
        if not any(
            Path(place).is_relative_to(base) for root in self.roots for base in (root.absolute(), root.resolve())
        ):
            raise _Problem(f"column {column!r} names {path!r}, which is no file of the data set: remove the row")
        return place

    def _label(self, column: str, value: Any) -> int:
        """Number of the class, or -1 where it is not known."""
        if isinstance(value, str):
            name = canonical_name(value)
        elif value is None or value == -1:
            return -1
        elif value % 1 == 0 and 0 <= value < len(self.of_source):
            name = self.of_source[int(value)]
        else:
            raise _Problem(
                f"column {column!r} is {value!r}, but the classes are numbered to {len(self.of_source) - 1}"
            )
        if name not in self.class_names:
            raise _Problem(f"column {column!r} is {value!r}, which is not one of {', '.join(self.class_names)}")
        return self.class_names.index(name)

    def _votes(self, columns: str | Sequence[str], row: dict[str, Any]) -> list[int]:
        if isinstance(columns, str):
            entries = self._list(columns, row[columns])
            given = {name: (f"column {columns!r}", entry) for name, entry in zip(self.of_source, entries, strict=True)}
        else:
            given = {canonical_name(column): (f"column {column!r}", row[column]) for column in columns}
        votes = [0] * len(self.class_names)
        for name, (where, value) in given.items():
            if name in self.class_names:
                try:
                    votes[self.class_names.index(name)] = whole_number(where, name, value)
                except DataError as error:
                    raise _Problem(str(error)) from error
        return votes

    def _answers(self, column: str, value: Any) -> list[int]:
        answers = [-1 if entry == "" else self._label(column, entry) for entry in value or ()]
        self.annotators = len(answers) if self.annotators is None else self.annotators
        if len(answers) != self.annotators:
            raise _Problem(
                f"column {column!r} has {len(answers)} entries, but {self.annotators} in the first row: give each row "
                "one for each annotator"
            )
        return answers

    def _candidates(self, column: str, value: Any) -> list[bool]:
        entries = value.split("|") if isinstance(value, str) else value
        if entries and all(isinstance(entry, bool) for entry in entries):
            self._list(column, entries)
            entries = [name for name, entry in zip(self.of_source, entries, strict=True) if entry]
        candidates = [False] * len(self.class_names)
        for entry in entries or ():
            label = self._label(column, entry)
            if label >= 0:
                candidates[label] = True
        if not any(candidates):
            raise _Problem(f"column {column!r} is {value!r}, an empty candidate set: remove the row or add some")
        return candidates

    def _list(self, column: str, value: Any) -> list[Any]:
        if value is None or len(value) != len(self.of_source):
            length = "nothing" if value is None else f"{len(value)} entries"
            raise _Problem(f"column {column!r} has {length} for {len(self.of_source)} classes: {value!r}")
        return value


class HfDataset(Source):
    name = "dataset"
    summary = "any data set of `datasets`, from disk or from the Hub"
    validation_share = 0.1

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "source",
            help="folder written by save_to_disk, folder with Parquet or Arrow files or images as `datasets` reads "
            "them, or a name on the Hub",
        )
        parser.add_argument("--config", metavar="NAME", help="configuration, where the data set has several")
        parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub (default: main)")
        for option, what in {
            "image": "the images (default: the only column of images)",
            "label": "one label for each image (default: label, labels, expression or emotion, else the first "
            "ClassLabel)",
            "candidates": "candidate sets: booleans, names, or names with | between them (default: candidates, if "
            "any)",
            "answers": "lists of what each annotator chose, names or numbers, -1 for nothing (default: answers, if "
            "it has numbers)",
            "row-id": "the names of the rows (default: row_id, if any, else the row's number)",
        }.items():
            parser.add_argument(f"--{option}", metavar="COLUMN", help=f"column with {what}")
        parser.add_argument(
            "--votes",
            metavar="COLUMN[,COLUMN...]",
            help="column with a list of votes, one for each class; or columns named after the classes, each with the "
            "votes for its class (default: votes, if any, or the columns with such names)",
        )
        add_classes_argument(parser, "those that the label names, else the eight expressions of FER+")

    def open(self, options: argparse.Namespace) -> Opened:
        columns = Columns(
            options.image, options.label, options.votes, options.candidates, options.row_id, options.answers
        )
        classes = parse_classes(options.classes)
        return list_dataset(options.source, columns, classes, options.config, options.revision)
