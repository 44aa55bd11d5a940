"""Splits of prepared sets: rows held out, and votes drawn as if fewer annotators had been asked."""

from dataclasses import replace

import numpy as np
from datasets import Dataset, DatasetDict

from ..io.errors import DataError
from ..labels.candidates import draw_votes
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
    parts = {"train": train.select(np.flatnonzero(~held_out)), HELD_OUT: train.select(np.flatnonzero(held_out))}
    provenance = Provenance.from_dataset(train)
    if provenance is not None:
        for split, part in parts.items():
            draw = {"of": "train", "rows": len(part), "seed": seed}
            replace(provenance, split=split, held_out=draw).attach(part)
    return DatasetDict(dataset | parts)


def keep_drawn_votes(dataset: Dataset, number: int, seed: int = 0) -> Dataset:
    """The data set as if only `number` annotators had been asked, to see how many lost labels training recovers.

    `votes` becomes the draw that `labels.candidates.draw_votes` makes from it, and `label` the first top of that draw.
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
    for name, (values, feature) in columns.items():
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, values, feature=feature)
    provenance = Provenance.from_dataset(dataset) or Provenance()
    replace(provenance, drawn_votes={"number": number, "seed": seed}).attach(dataset)
    return dataset
