"""Candidate sets for the rows of a prepared set."""

from typing import Literal

import numpy as np
from datasets import Dataset

from ..io.errors import DataError
from ..labels.candidates import from_labels, from_votes
from .dataset import numpy_column


def add_candidates(
    dataset: Dataset,
    max_candidates: int = 2,
    min_votes: int = 1,
    ties: Literal["keep", "drop"] = "keep",
    flip_probability: float = 0.1,
    set_size: int | None = None,
    transition: np.ndarray | None = None,
    seed: int = 0,
) -> Dataset:
    """Adds the column `candidates` (K bools per row), unless the set already has one.

    A set with a column `votes` gets its candidates by `labels.candidates.from_votes`; any other set gets them from the
    column `label` by `labels.candidates.from_labels`. The options are those of these two functions.

    Raises:
        DataError: `transition` is given, but the set has votes or candidates.
    """
    own = next((column for column in ("candidates", "votes") if column in dataset.column_names), None)
    if transition is not None and own is not None:
        raise DataError(f"the data have {own} of their own, so no transition is drawn: leave --transition out")
    if "candidates" in dataset.column_names:
        return dataset
    if "votes" in dataset.column_names:
        votes = numpy_column(dataset, "votes")
        candidates = from_votes(votes, max_candidates=max_candidates, min_votes=min_votes, ties=ties)
    else:
        labels = numpy_column(dataset, "label")
        num_classes = dataset.features["label"].num_classes
        candidates = from_labels(labels, num_classes, flip_probability, transition, set_size, seed)
    return dataset.add_column("candidates", list(candidates))
