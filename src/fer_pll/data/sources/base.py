"""The contract of a data source: one object that knows the files of a data set, but not how a prepared set is stored.

A source yields records, and `data.prepare` crops, checks and writes them. To add a data set, write a file beside this
one that defines a `Source`, and name it in `SOURCES` of `__init__.py`.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...io.errors import DataError
from ...labels.expressions import canonical_name
from ..image_writer import Crop, ImageRecord
from ..provenance import Provenance

ON_REQUEST = "given by its authors on request, for non-commercial research; its images may not be passed on."
"""License of the data sets that their authors hand out themselves."""


@dataclass(frozen=True)
class Opened:
    """The contents of a data set, as a source lists them.

    Args:
        class_names: K names, in the order of the model's outputs.
        splits: records by split (train, validation, test). They are read once; their order must always be the same.
        columns: the columns of `data.dataset.OPTIONAL_COLUMNS` that the records have. All records have `label`.
        provenance: what all splits have in common; `prepare` adds the split and its rows.
        dropped: for each split, the number of rows that are not among the records, by reason.
        counts: the number of records by split, where it is known but the splits are not lists.
        crop: the crop of each image, unless the user asks for another one.
        read_as: what the files were taken for, e.g. "Kaggle's FER2013 (icml_face_data.csv)".
        root: the folder of the images. A file in it that is a link to one elsewhere is left out, unless the user asks
            for it; linked folders are followed.
        has_copies: whether images may be copies of each other, see `data.copies`; False for drawn ones, which are all
            alike.
    """

    class_names: Sequence[str]
    splits: Mapping[str, Iterable[ImageRecord]]
    columns: Sequence[str] = ()
    provenance: Provenance = field(default_factory=Provenance)
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    crop: Crop | None = None
    read_as: str | None = None
    root: Path | None = None
    has_copies: bool = True


class Source(ABC):
    """A kind of data set: a published one with its own files, or a layout for users' data.

    Attributes:
        name: NAME in `fer-pll prepare NAME` and `fer_pll.prepare(NAME)`.
        summary: one line for the help.
        validation_share: share of the training rows that becomes `validation` where the data have no such split.
            Layouts for users' data have one; published data keep the splits that their results are compared on.
    """

    name: str
    summary: str
    validation_share: float = 0.0

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of this source. A positional argument `source` says where the files are."""

    @abstractmethod
    def open(self, options: argparse.Namespace) -> Opened:
        """Look at the files and list their records. An error in a single row can be the `problem` of its record.

        Args:
            options: the options that `add_arguments` declares.

        Raises:
            DataError: the files are missing or malformed; the message names the place.
        """

    def options(self, **values: Any) -> argparse.Namespace:
        """The options of `add_arguments`: the given `values`, and defaults for the others.

        Raises:
            DataError: this source does not have an option, a required one has no value, or a value is not one of the
                choices.
        """
        parser = argparse.ArgumentParser(add_help=False)
        self.add_arguments(parser)
        actions = {action.dest: action for action in parser._actions}
        for name, value in values.items():
            if name not in actions:
                raise DataError(f"{self.name} has no option {name!r}; it has {', '.join(actions)}")
            choices = actions[name].choices
            if choices is not None and value not in choices:
                raise DataError(f"{self.name}: {name}={value!r} is not known: choose {' or '.join(map(str, choices))}")
        options = {name: action.default for name, action in actions.items()} | values
        for name, action in actions.items():
            if action.required and options[name] is None:
                raise DataError(f"{self.name} needs {name!r}: {action.help}")
        return argparse.Namespace(**options)


def add_classes_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--classes`; `default` says in words what the classes are without it."""
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help=f"the classes, in the order of the model's outputs (default: {default})",
    )


def parse_classes(classes: str | Sequence[str] | None) -> list[str] | None:
    """The names in `--classes` by their canonical spelling; `None` where there are none.

    Raises:
        DataError: a name is empty, no text or there twice.
    """
    if not classes:
        return None
    names = [canonical_name(name) for name in (classes.split(",") if isinstance(classes, str) else classes)]
    fault = fault_of_classes(names)
    if fault is not None:
        raise DataError(f"--classes has {fault}: give each class one name, with commas between them")
    return names


def fault_of_classes(names: Sequence[str]) -> str | None:
    """What is wrong with names of classes, by their canonical spelling; `None` where nothing is."""
    if "" in names:
        return "an empty name"
    for name in names:
        if not is_text(name):
            return f"the name {name!r}, which is no text"
        if names.count(name) > 1:
            return f"{name!r} twice (or a synonym of it)"
    return None


def is_text(text: str) -> bool:
    """Whether a file can hold a text: halves of characters (lone surrogates) are none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
