"""The contract of a data source: one object that knows the files of a data set, and nothing of how they are stored.

A source yields records; `data.prepare` crops, checks and writes them. To add a data set, write a file beside this one
that defines a `Source`, and name it in `SOURCES` of `__init__.py`.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...io.errors import DataError
from ...labels.expressions import canonical_name
from ..image_writer import Crop, ImageRecord
from ..provenance import Provenance

ON_REQUEST = "given by its authors on request, for non-commercial research; its images may not be passed on."
"""License of the data sets that their authors give away themselves."""


@dataclass(frozen=True)
class Opened:
    """What a source lists.

    Args:
        class_names: K names, in the order of the model's outputs.
        splits: records by split (train, validation, test), to be read once, in an order that is always the same.
        columns: the optional columns that the records have, of `data.dataset.OPTIONAL_COLUMNS`; `label` they all have.
        provenance: what is known of all splits; `prepare` adds the split and its rows.
        dropped: by split, rows that are not among the records, by reason.
        counts: by split, the number of records, where the splits are no lists and it is known.
        crop: what is made of each image unless the user wants another crop.
    """

    class_names: Sequence[str]
    splits: Mapping[str, Iterable[ImageRecord]]
    columns: Sequence[str] = ()
    provenance: Provenance = field(default_factory=Provenance)
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    crop: Crop | None = None


class Source(ABC):
    """A kind of data set: a published one with files of its own, or a layout for users' data.

    Attributes:
        name: of `fer-pll prepare NAME` and `fer_pll.prepare(NAME)`.
        summary: one line for the help.
    """

    name: str
    summary: str

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of this source. A positional argument `source` says where the files are."""

    @abstractmethod
    def open(self, options: argparse.Namespace) -> Opened:
        """Look at the files and list their records. What is wrong with a single row can be its `problem`.

        Args:
            options: what `add_arguments` declares.

        Raises:
            DataError: the files are missing or malformed; the message names the place.
        """

    def options(self, **values: Any) -> argparse.Namespace:
        """The options of `add_arguments` with their defaults, but for the `values` given.

        Raises:
            DataError: for an option that this source does not have or that lacks a value, and a value that is none of
                its choices.
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
    """Add `--classes`; `default` says in words which ones they are without it."""
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help=f"the classes, in the order of the model's outputs (default: {default})",
    )


def parse_classes(classes: str | Sequence[str] | None) -> list[str] | None:
    """The names of `--classes` as we write them; `None` where there are none."""
    if not classes:
        return None
    return [canonical_name(name) for name in (classes.split(",") if isinstance(classes, str) else classes)]
