"""Candidate sets for the rows of a prepared set."""

import logging
from typing import Literal

import numpy as np
from datasets import Dataset

from ..io.errors import DataError
from ..labels.candidates import from_labels, from_votes
from .dataset import numpy_column

logger = logging.getLogger(__name__)


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
    column `label` by `labels.candidates.from_labels`. The options are those of these two functions, with two
    differences, so that settings made for one data set serve another: numbers of candidates above the number of
    classes mean all classes, and where no label of a row has `min_votes`, its most voted labels need no more than they
    have. A warning in the log counts these rows.

    Raises:
        DataError: `transition` is given, but the set has votes or candidates; or a row has neither votes, candidates
            nor a label.
    """
    own = next((column for column in ("candidates", "votes") if column in dataset.column_names), None)
    if transition is not None and own is not None:
        raise DataError(f"the data have {own} of their own, so no transition is drawn: leave --transition out")
    if "candidates" in dataset.column_names:
        return dataset
    if "votes" in dataset.column_names:
        votes = numpy_column(dataset, "votes")
        max_candidates = min(max_candidates, votes.shape[1])
        highest = votes.max(axis=1, keepdims=True)
        few = (highest > 0) & (highest < min_votes)
        if few.any():
            logger.warning(
                "%s of %s rows have no label with min_votes %g: their most voted labels are their candidates.",
                f"{few.sum():,}",
                f"{len(votes):,}",
                min_votes,
            )
        # Where votes are few, only the most voted labels count, and they count as enough.
        counted = np.where(few, (votes == highest) * np.ceil(min_votes), votes)
        candidates = from_votes(counted, max_candidates=max_candidates, min_votes=min_votes, ties=ties)
    else:
        labels = numpy_column(dataset, "label")
        num_classes = dataset.features["label"].num_classes
        unlabeled = int((labels < 0).sum())
        if unlabeled:
            raise DataError(
                f"{unlabeled:,} of {len(labels):,} training rows have neither votes, candidates nor a label (-1): "
                "label them, or leave them out"
            )
        set_size = None if set_size is None else min(set_size, num_classes)
        candidates = from_labels(labels, num_classes, flip_probability, transition, set_size, seed)
    return dataset.add_column("candidates", list(candidates))
