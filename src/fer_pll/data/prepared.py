"""Prepared data sets on disk: saved whole or not at all, and read back with errors that say what is wrong."""

import csv
import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_from_disk,
)

from ..labels.candidates import draw_votes, from_labels, from_votes

COLUMNS = ("image", "index", "row_id", "label")
"""The columns that every prepared set has; a loader may add more (`votes`, `candidates`, `majority`, `true_label`)."""

REPORT = "unreadable.csv"
"""File in a prepared set: the pictures that were left out, and why."""

HELD_OUT = "held_out"
"""Split of training rows that are not trained on: what is fitted after the training is fitted on them."""

_DICT_FILE = "dataset_dict.json"


def prepared_features(
    class_names: Sequence[str], votes: bool = False, candidates: bool = False, confidence: bool = False
) -> Features:
    """Features of `COLUMNS` and, if asked for, of `votes`, `candidates` and `confidence`."""
    features = {
        "image": Image(),
        "index": Value("int64"),
        "row_id": Value("string"),
        "label": ClassLabel(names=list(class_names)),
    }
    if votes:
        features["votes"] = List(Value("int32"), length=len(class_names))
    if candidates:
        features["candidates"] = List(Value("bool"), length=len(class_names))
    if confidence:
        features["confidence"] = List(Value("float32"), length=len(class_names))
    return Features(features)


class DataError(ValueError):
    """Files, folders or options that cannot be used as they are; the message names the place and says what to do."""


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turns the error of a disk, quota or file that can grow no more into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path} cannot be written ({error}): make room, then give the same command again; what is whole is used"
        ) from error


class Unreadable(NamedTuple):
    """A picture that was left out, and why."""

    row_id: str
    path: str
    reason: str


def check_output_folder(path: str | Path, overwrite: bool = False) -> None:
    """Checks that a prepared set may be saved at `path`: nothing is there, or a prepared set that may be replaced.

    `overwrite` replaces a prepared set and nothing else: a folder that holds other files is never deleted.

    Raises:
        DataError: `path` is a file, holds something while `overwrite` is off, or holds something that is not a
            prepared set.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file: name a folder that does not exist yet")
    entries = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if not entries:
        return
    if not overwrite:
        raise DataError(
            f"{path} already holds {_name_some(entries)}: choose another folder, or --overwrite to replace it"
        )
    ours = {_DICT_FILE, REPORT, "train", "validation", "test", HELD_OUT}
    foreign = [name for name in entries if name not in ours]
    if foreign or _DICT_FILE not in entries:
        raise DataError(
            f"{path} holds {_name_some(foreign or entries)}, which is no part of a prepared data set, so it is not "
            "replaced: choose another folder, or move those files away yourself"
        )


def save_prepared(
    dataset: DatasetDict, path: str | Path, overwrite: bool = False, unreadable: Sequence[Unreadable] = ()
) -> None:
    """Saves `dataset` at `path` so that the folder is there whole or not at all.

    The set is written into a temporary folder beside `path` and renamed when complete. With `overwrite` the former
    set is moved aside just before and deleted just after, so that a failure at any moment loses neither. Pictures
    that were left out are listed in `REPORT`, where there are any.

    Raises:
        DataError: as `check_output_folder`.
    """
    check_output_folder(path, overwrite)
    target = Path(path).resolve()  # through a symbolic link: the rename must stay on one file system
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    new, former = workspace / "new", workspace / "former"
    try:
        with naming_a_full_disk(target):
            dataset.save_to_disk(new)
            if unreadable:
                _write_report(unreadable, new / REPORT)
        if target.exists():
            target.rename(former)
        try:
            new.rename(target)
        except BaseException:
            if former.exists():
                former.rename(target)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def shards_folder(path: str | Path) -> Path:
    """Where the parts of a set lie until it is whole: beside it, hidden; a repeated run finds them again."""
    path = Path(path).resolve()
    return path.parent / f".{path.name}.shards"


def _write_report(unreadable: Sequence[Unreadable], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Unreadable._fields)
        writer.writerows(unreadable)


def is_prepared(path: str | Path) -> bool:
    """Whether a folder is a prepared set (which may be damaged)."""
    return (Path(path) / _DICT_FILE).is_file()


def load_prepared(path: str | Path, split: str | None = None) -> DatasetDict | Dataset:
    """Reads a prepared set back: all its splits, or the one named `split`.

    Raises:
        DataError: the folder does not exist, is not a prepared set, is damaged, lacks one of `COLUMNS`, or has no
            split of that name.
    """
    path = Path(path)
    how = "prepare one with train_scripts/prepare_data.py (--help shows how)"
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: name the folder of a prepared data set, or {how}")
    if not is_prepared(path):
        raise DataError(f"{path} is not a prepared data set (it has no {_DICT_FILE}): {how}")
    try:
        dataset = load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:  # of JSON and Arrow files that are missing, cut off or altered
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged; prepare it again"
        ) from error
    for name, rows in dataset.items():
        missing = [column for column in COLUMNS if column not in rows.column_names]
        if missing:
            raise DataError(f"{path}: split {name!r} has no column {_name_some(missing)}: {how}")
    if split is None:
        return dataset
    if split not in dataset:
        raise DataError(f"{path} has no split {split!r}, it has {_name_some(list(dataset))}")
    return dataset[split]


def load_pictures(paths: Sequence[str | Path]) -> Dataset:
    """The training pictures of several prepared sets as one: `image`, `row_id`, and an `index` of the union.

    Raises:
        DataError: as `load_prepared`.
    """
    parts = [load_prepared(path, "train") for path in paths]
    union = concatenate_datasets([part.select_columns(["image", "row_id"]) for part in parts])
    union.info.description = "; ".join(part.info.description for part in parts)
    return union.add_column("index", np.arange(len(union)), feature=Value("int64"))


def add_candidates(
    dataset: Dataset,
    max_candidates: int = 2,
    min_votes: int = 1,
    ties: str = "keep",
    flip_probability: float = 0.1,
    set_size: int | None = None,
    transition: np.ndarray | None = None,
    seed: int = 0,
) -> Dataset:
    """Adds the column `candidates` (K bools per row), unless the set has one of its own.

    From the column `votes` by `labels.candidates.from_votes` where there is one, else from the column `label` by
    `labels.candidates.from_labels`; the options are theirs.

    Raises:
        DataError: `transition` is given where there are votes or candidates.
    """
    own = next((column for column in ("candidates", "votes") if column in dataset.column_names), None)
    if transition is not None and own is not None:
        raise DataError(f"the data have {own} of their own, so no transition is drawn: leave --transition out")
    if "candidates" in dataset.column_names:
        return dataset
    if "votes" in dataset.column_names:
        votes = dataset.select_columns("votes").with_format("numpy")["votes"][:]
        candidates = from_votes(votes, max_candidates=max_candidates, min_votes=min_votes, ties=ties)
    else:
        labels = np.array(dataset["label"][:])
        num_classes = dataset.features["label"].num_classes
        candidates = from_labels(labels, num_classes, flip_probability, transition, set_size, seed)
    return dataset.add_column("candidates", list(candidates))


def hold_out(dataset: DatasetDict, share: float, seed: int = 0) -> DatasetDict:
    """The data set with the split `HELD_OUT`, drawn from `train`, whose other rows keep their order.

    Args:
        dataset: with a split `train`.
        share: of the rows of `train`, rounded to whole rows.
        seed: of the draw.

    Raises:
        DataError: no rows would be left, or none held out.
    """
    train = dataset["train"]
    number = round(share * len(train))
    if not 0 < number < len(train):
        raise DataError(f"--hold-out {share} of {len(train)} training rows: both parts need rows, choose such as 0.05")
    held_out = np.zeros(len(train), dtype=bool)
    held_out[np.random.default_rng(seed).permutation(len(train))[:number]] = True
    parts = {}
    for split, rows in (("train", ~held_out), (HELD_OUT, held_out)):
        part = train.select(np.flatnonzero(rows)).remove_columns("index")
        parts[split] = part.add_column("index", np.arange(len(part)), feature=train.features["index"])
        if train.info.description:
            parts[split].info.description = f"{train.info.description}; {split}: {len(part)} of them (seed {seed})"
    return DatasetDict(dataset | parts)


def keep_drawn_votes(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    """The data set as if `number` annotators had been asked, to see how many of the lost labels training recovers.

    `votes` becomes what `labels.candidates.draw_votes` draws from it, `label` the first top of that. `true_label`,
    where there is none yet, is the winner of all votes, or -1 where several labels share the top.
    """
    votes = dataset.select_columns("votes").with_format("numpy")["votes"][:]
    label = dataset.features["label"]
    drawn = draw_votes(votes, number, seed)
    unique = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    columns = {"votes": (list(drawn), dataset.features["votes"]), "label": (drawn.argmax(axis=1), label)}
    if "true_label" not in dataset.column_names:
        columns["true_label"] = (np.where(unique, votes.argmax(axis=1), -1), label)
    for name, (values, feature) in columns.items():
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, values, feature=feature)
    dataset.info.description = f"{dataset.info.description}; {number} votes drawn for each row (seed {seed})"
    return dataset


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
