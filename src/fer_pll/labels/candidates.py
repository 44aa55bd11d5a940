"""Candidate label sets: which labels of a row may be the true one, as a boolean matrix (rows, classes)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

_FINGERPRINT_ROWS = 65_536  # row ids turned into JSON at a time; the fingerprint is the same for any number


def check_votes(votes: ArrayLike) -> np.ndarray:
    """Annotators' votes as float64 (N, K).

    Raises ValueError naming the first row with a missing, non-finite or negative entry, or without any vote.
    """
    try:
        votes = np.asarray(votes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"votes must be a table of numbers, one row of K votes per sample: {error}") from error
    if votes.ndim != 2:
        raise ValueError(f"votes must have shape (rows, classes), got {votes.shape}")
    _refuse_rows(~np.isfinite(votes).all(axis=1), votes, "votes", "holds NaN or infinity; mend or drop it")
    _refuse_rows((votes < 0).any(axis=1), votes, "votes", "holds a negative number of votes; mend or drop it")
    _refuse_rows(~votes.any(axis=1), votes, "votes", "holds no vote at all; drop it")
    return votes


def from_votes(
    votes: ArrayLike, max_candidates: int = 2, min_votes: float = 1, ties: Literal["keep", "drop"] = "keep"
) -> np.ndarray:
    """Candidate sets from annotators' votes: the most voted labels of each row (sections 3.1 and 4.5 of the paper).

    Args:
        votes: (N, K), votes (or shares of votes) for each class, >= 0.
        max_candidates: size of a candidate set, 1 ... K; called K in section 4.5.
        min_votes: votes that a label needs to be a candidate, > 0.
        ties: what happens to labels with as many votes as the last one that fits. "keep" takes all of them, so that
            the true label is not lost by chance; a set can then exceed `max_candidates`. "drop" fills the set up to
            `max_candidates` in class order and drops the rest, so that no set exceeds it.

    Returns:
        (N, K) bool, at least one True per row.

    Raises:
        ValueError: for votes refused by `check_votes`, for a row in which no label has `min_votes`, and for settings
            outside their ranges.
    """
    votes = check_votes(votes)
    num_classes = votes.shape[1]
    if not isinstance(max_candidates, Integral) or not 1 <= max_candidates <= num_classes:
        raise ValueError(f"max_candidates must be a whole number from 1 to {num_classes}, got {max_candidates!r}")
    if not 0 < min_votes < np.inf:
        raise ValueError(f"min_votes must be a positive number, got {min_votes!r}")
    enough = votes >= min_votes
    _refuse_rows(
        ~enough.any(axis=1), votes, "votes", f"has no label with min_votes={min_votes}; lower min_votes or drop it"
    )
    ranking = np.argsort(-votes, axis=1, kind="stable")[:, :max_candidates]
    if ties == "keep":
        top = votes >= np.take_along_axis(votes, ranking[:, -1:], axis=1)
    elif ties == "drop":
        top = np.zeros(votes.shape, dtype=bool)
        np.put_along_axis(top, ranking, True, axis=1)
    else:
        raise ValueError(f'ties must be "keep" or "drop", got {ties!r}')
    return top & enough


def draw_votes(votes: ArrayLike, number: int, seed: int = 0) -> np.ndarray:
    """`number` votes of each row, drawn without replacement, as if fewer annotators had been asked.

    Args:
        votes: (N, K), whole numbers >= 0. A row with fewer than `number` votes keeps all it has.
        number: votes to keep, >= 1.
        seed: of the draw; a row's draw depends on the rows before it.

    Returns:
        (N, K) int64.

    Raises:
        ValueError: for votes refused by `check_votes`, for votes that are no whole numbers, for `number` below 1.
    """
    votes = check_votes(votes)
    _refuse_rows((votes % 1 != 0).any(axis=1), votes, "votes", "holds a part of a vote; only whole votes can be drawn")
    if not isinstance(number, Integral) or number < 1:
        raise ValueError(f"the number of votes to draw must be a whole number from 1, got {number!r}")
    votes = votes.astype(np.int64)
    generator = np.random.default_rng(seed)
    drawn = [generator.multivariate_hypergeometric(row, min(number, row.sum()), method="count") for row in votes]
    return np.stack(drawn)


def check_labels(labels: ArrayLike, num_classes: int) -> np.ndarray:
    """One given label per row as int64 (N,). Raises ValueError naming the first row that is not in 0 ... K-1."""
    given = np.asarray(labels)
    if given.ndim != 1:
        raise ValueError(f"labels must have shape (rows,), one label per row, got {given.shape}")
    if given.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers from 0 to {num_classes - 1}, got {given.dtype}")
    outside = (given < 0) | (given >= num_classes)
    _refuse_rows(outside, given[:, None], "labels", f"lies outside 0 ... {num_classes - 1}; correct or drop it")
    return given.astype(np.int64)


def from_labels(
    labels: ArrayLike,
    num_classes: int,
    flip_probability: float = 0.1,
    transition: ArrayLike | None = None,
    set_size: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Candidate sets that hold one given label per row (section 4.2 of the paper, after LW).

    Other labels join it in one of three ways:

    - uniform: each with `flip_probability` q, so that a set has 1 + q (K - 1) labels on average;
    - class-dependent: label j joins the given label i with `transition[i, j]`;
    - `set_size` k: exactly k - 1 others, all equally likely (section 4.5).

    Args:
        labels: (N,) whole numbers from 0 to K-1.
        num_classes: K.
        flip_probability: q, 0 <= q < 1; unused with `transition` or `set_size`.
        transition: (K, K), entries from 0 to 1; its diagonal is ignored.
        set_size: k, 1 ... K.
        seed: of the draw. A row's draw depends on its place, not on the rows after it.

    Returns:
        (N, K) bool.

    Raises:
        ValueError: for labels refused by `check_labels`, settings outside their ranges, and both of `transition` and
            `set_size`.
    """
    labels = check_labels(labels, num_classes)
    if transition is not None and set_size is not None:
        raise ValueError("transition and set_size are two ways to draw candidates; give one of them")
    given = np.zeros((len(labels), num_classes), dtype=bool)
    given[np.arange(len(labels)), labels] = True
    draws = np.random.default_rng(seed).random(given.shape)
    if set_size is not None:
        if not isinstance(set_size, Integral) or not 1 <= set_size <= num_classes:
            raise ValueError(f"set_size must be a whole number from 1 to {num_classes}, got {set_size!r}")
        draws[given] = -1  # before all others
        chosen = np.zeros_like(given)
        np.put_along_axis(chosen, draws.argsort(axis=1)[:, :set_size], True, axis=1)
        return chosen
    if transition is None:
        if not 0 <= flip_probability < 1:
            raise ValueError(f"flip_probability must lie in [0, 1), got {flip_probability!r}")
        return given | (draws < flip_probability)
    transition = np.asarray(transition, dtype=np.float64)
    if transition.shape != (num_classes, num_classes):
        raise ValueError(
            f"transition must have shape ({num_classes}, {num_classes}), a row per given label, got {transition.shape}"
        )
    if not ((transition >= 0) & (transition <= 1)).all():
        row = int(np.flatnonzero(~((transition >= 0) & (transition <= 1)).all(axis=1))[0])
        raise ValueError(f"transition row {row} holds a value that is no probability: {transition[row].tolist()}")
    return given | (draws < transition[labels])


def from_predictions(
    probabilities: ArrayLike, labels: ArrayLike | None = None, max_candidates: int = 2, keep_given: bool = True
) -> np.ndarray:
    """Candidate sets from a model's predictions: the most probable labels of each row (section 3.1 of the paper).

    Predictions for rows that the model was trained on repeat the given labels; out-of-fold ones tell more.

    Args:
        probabilities: (N, K), >= 0.
        labels: (N,) the given labels, if there are any.
        max_candidates: size of each set, 1 ... K. Among equally probable labels the first in class order comes in.
        keep_given: the given label is always in the set; if necessary it replaces the least probable one.

    Returns:
        (N, K) bool, exactly `max_candidates` True per row.

    Raises:
        ValueError: for probabilities that are missing, not finite, negative or all zero, labels refused by
            `check_labels`, and settings outside their ranges.
    """
    probabilities = _check_probabilities(probabilities)
    num_classes = probabilities.shape[1]
    if not isinstance(max_candidates, Integral) or not 1 <= max_candidates <= num_classes:
        raise ValueError(f"max_candidates must be a whole number from 1 to {num_classes}, got {max_candidates!r}")
    order = -probabilities
    if labels is not None and keep_given:
        labels = check_labels(labels, num_classes)
        if len(labels) != len(order):
            raise ValueError(f"{len(labels)} labels do not match {len(order)} rows of probabilities")
        order[np.arange(len(order)), labels] = -np.inf
    chosen = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(chosen, order.argsort(axis=1, kind="stable")[:, :max_candidates], True, axis=1)
    return chosen


def from_posterior(probabilities: ArrayLike, coverage: float = 0.95) -> np.ndarray:
    """Candidate sets from the probability that each label is the true one, e.g. of `crowd.dawid_skene_posterior`.

    Args:
        probabilities: (N, K), >= 0.
        coverage: least share of the probability in a set, 0 < coverage <= 1; labels without probability stay out.
            The paper's sets of two hold 95 % of FER+'s votes (section 4.5).

    Returns:
        (N, K) bool: the fewest most probable labels that hold this share. Among equally probable labels the first in
        class order comes in.

    Raises:
        ValueError: for probabilities that are missing, not finite, negative or all zero, and for another coverage.
    """
    probabilities = _check_probabilities(probabilities)
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage!r}")
    ranking = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, ranking, axis=1)
    before = ranked.cumsum(axis=1) - ranked  # sum over the more probable labels
    needed = before < coverage * ranked.sum(axis=1, keepdims=True) * (1 - 1e-12)
    chosen = np.zeros(probabilities.shape, dtype=bool)
    np.put_along_axis(chosen, ranking, needed & (ranked > 0), axis=1)
    return chosen


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities must have shape (rows, classes), got {probabilities.shape}")
    sound = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1) & probabilities.any(axis=1)
    _refuse_rows(~sound, probabilities, "probabilities", "is no distribution; predict it again or drop it")
    return probabilities


def check_candidates(candidates: Iterable[ArrayLike], num_classes: int) -> np.ndarray:
    """A user's own candidate sets, booleans or 0 / 1, as bool (N, num_classes).

    Raises ValueError naming the first row that has another length, other values, or no candidate.
    """
    if not isinstance(candidates, np.ndarray) or candidates.dtype == object:  # rows may differ in length
        rows = list(candidates)
        for row, entries in enumerate(rows):
            if np.size(entries) != num_classes:
                raise ValueError(
                    f"candidates row {row} has {np.size(entries)} entries, but there are {num_classes} classes;"
                    " give one entry per class"
                )
        candidates = np.array(rows)
    if candidates.ndim != 2 or candidates.shape[1] != num_classes:
        raise ValueError(
            f"candidates must have shape (rows, {num_classes}), one entry per class, got {candidates.shape}"
        )
    if candidates.dtype != bool:
        binary = ((candidates == 0) | (candidates == 1)).all(axis=1)
        _refuse_rows(~binary, candidates, "candidates", "must be booleans or 0 / 1")
        candidates = candidates.astype(bool)
    _refuse_rows(
        ~candidates.any(axis=1), candidates, "candidates", "is an empty candidate set; give it a label or drop the row"
    )
    return candidates


def dataset_fingerprint(class_names: Sequence[str], row_ids: Sequence[str], candidates: Iterable[ArrayLike]) -> str:
    """SHA-256 (hex) of the data that confidences belong to: class names, row ids and candidate sets in row order.

    Unlike `datasets.Dataset._fingerprint` it survives saving, reloading and transforms. The hash covers the JSON of
    the class names, one line of JSON per row id, and the (N, K) candidates as bytes 0 / 1, row by row.

    Args:
        class_names: K names.
        row_ids: N strings, in any container that gives a list when sliced.
        candidates: (N, K), see `check_candidates`.
    """
    candidates = check_candidates(candidates, len(class_names))
    if len(row_ids) != len(candidates):
        raise ValueError(f"{len(row_ids)} row_ids do not match {len(candidates)} rows of candidates")
    sha256 = hashlib.sha256(json.dumps(list(class_names)).encode() + b"\n")
    for start in range(0, len(row_ids), _FINGERPRINT_ROWS):
        chunk = list(row_ids[start : start + _FINGERPRINT_ROWS])
        if not all(isinstance(row_id, str) for row_id in chunk):
            row = next(i for i, row_id in enumerate(chunk, start) if not isinstance(row_id, str))
            raise ValueError(f"row_ids row {row} is {row_ids[row]!r}; row ids must be strings")
        sha256.update(json.dumps(chunk, separators=("\n", ":"))[1:-1].encode() + b"\n")
    sha256.update(np.ascontiguousarray(candidates).reshape(-1).data)
    return sha256.hexdigest()


def _refuse_rows(refused: ArrayLike, table: np.ndarray, name: str, reason: str) -> None:
    rows = np.flatnonzero(refused)
    if rows.size:
        shown = ", ".join(f"{entry:g}" for entry in table[rows[0]])
        raise ValueError(f"{name} row {rows[0]} ({shown}) {reason} ({rows.size} such rows of {len(table)}, from 0)")
