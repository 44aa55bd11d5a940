"""Splits of prepared sets: rows held out, and votes drawn as if fewer annotators had been asked."""

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
)

from ..io.errors import DataError
from ..labels.candidates import draw_votes

HELD_OUT = "held_out"
"""Split of training rows that are not trained on: what is fitted after the training is fitted on them."""


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
