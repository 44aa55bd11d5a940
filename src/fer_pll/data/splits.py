"""Splits of prepared sets: rows held out, and votes drawn as if fewer annotators had been asked."""

import hashlib
from dataclasses import replace

import numpy as np
from datasets import Dataset, DatasetDict, Image

from ..io.errors import DataError
from ..labels.candidates import draw_votes
from ..labels.crowd import keep_answers
from .dataset import HELD_OUT, numpy_column
from .provenance import Provenance


def hold_out(dataset: DatasetDict, share: float, seed: int = 0) -> DatasetDict:
    """The data set with the split `HELD_OUT`, drawn from `train`, whose other rows keep their order.

    Args:
        dataset: a prepared set with a split `train`.
        share: share of the rows of `train`, rounded to whole rows.
        seed: seed of the draw.

    Raises:
        DataError: one of the two parts would have no rows.
    """
    train = dataset["train"]
    number = round(share * len(train))
    if not 0 < number < len(train):
        raise DataError(
            f"--hold-out {share} of {len(train)} training rows: both parts need rows, so choose a share such as 0.05"
        )
    held_out = np.zeros(len(train), dtype=bool)
    held_out[np.random.default_rng(seed).permutation(len(train))[:number]] = True
    return _part(dataset, HELD_OUT, held_out, seed)


def _part(dataset: DatasetDict, split: str, drawn: np.ndarray, seed: int) -> DatasetDict:
    """The data set with the drawn rows (N,) of `train` as a split of their own."""
    train = dataset["train"]
    parts = {"train": train.select(np.flatnonzero(~drawn)), split: train.select(np.flatnonzero(drawn))}
    provenance = Provenance.from_dataset(train)
    if provenance is not None:
        for name, part in parts.items():
            draw = {"of": "train", "rows": len(part), "seed": seed}
            replace(provenance, split=name, held_out=draw).attach(part)
    return DatasetDict(parts | {name: rows for name, rows in dataset.items() if name != "train"})


def draw_validation(dataset: DatasetDict, share: float, seed: int = 0) -> DatasetDict:
    """The data set with the split `validation`, drawn from `train`, whose other rows keep their order.

    Each class gives the same share of its rows, rounded, and at least one row is drawn. The order of the draw depends
    on the seed and the contents of the images only: rows that are added later change little, and exact copies with the
    same label stay together.

    Args:
        dataset: a prepared set with a split `train`.
        share: share of the rows of `train`.
        seed: seed of the draw.

    Raises:
        DataError: one of the two parts would have no rows.
    """
    train = dataset["train"]
    images = train.select_columns("image").cast_column("image", Image(decode=False))
    keys = [
        hashlib.blake2b(row["image"]["bytes"], digest_size=16, salt=str(seed).encode()[:16]).digest() for row in images
    ]
    labels = numpy_column(train, "label")
    classes = sorted(set(labels.tolist()), key=lambda label: -(labels == label).sum())
    drawn = np.zeros(len(train), dtype=bool)
    for label in classes:
        members = sorted(np.flatnonzero(labels == label).tolist(), key=keys.__getitem__)
        number = max(round(share * len(members)), label == classes[0])
        last = keys[members[number - 1]] if number else b""
        drawn[[row for row in members if keys[row] <= last]] = True
    if not 0 < drawn.sum() < len(train):
        raise DataError(
            f"--validation-share {share} of {len(train)} training rows: both parts need rows, so choose a share such "
            "as 0.1, or 0 for no validation split"
        )
    return _part(dataset, "validation", drawn, seed)


def keep_drawn_votes(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    """The data set as if only `number` annotators had been asked, to see how many lost labels training recovers.

    `votes` becomes the draw that `labels.candidates.draw_votes` makes from it, and `label` the first top of that draw.
    Of `answers`, those of annotators who were drawn stay (`labels.crowd.keep_answers`).
    A set without `true_label` gets one: the winner of all votes, or -1 where several labels share the top.

    Raises:
        DataError: there are no votes, or `number` is less than 1.
    """
    if "votes" not in dataset.column_names:
        raise DataError(f"--draw-votes {number}: the data set has no votes; it has {', '.join(dataset.column_names)}")
    votes = numpy_column(dataset, "votes")
    label = dataset.features["label"]
    drawn = draw_votes(votes, number, seed)
    unique = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    columns = {"votes": (list(drawn), dataset.features["votes"]), "label": (drawn.argmax(axis=1), label)}
    if "true_label" not in dataset.column_names:
        columns["true_label"] = (np.where(unique, votes.argmax(axis=1), -1), label)
    if "answers" in dataset.column_names:
        kept = keep_answers(numpy_column(dataset, "answers"), drawn, seed)
        columns["answers"] = (list(kept), dataset.features["answers"])
    for name, (values, feature) in columns.items():
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, values, feature=feature)
    provenance = Provenance.from_dataset(dataset) or Provenance()
    replace(provenance, drawn_votes={"number": number, "seed": seed}).attach(dataset)
    return dataset
