"""Answers of annotators: true labels estimated from them, and answers drawn as if fewer had been asked."""

from collections.abc import Sequence

import numpy as np

from ..io.errors import MissingExtra


def dawid_skene_posterior(
    rows: Sequence[int], annotators: Sequence[str], labels: Sequence[int], num_rows: int, num_classes: int
) -> np.ndarray:
    """Probability of each label given all answers, from crowd-kit's `DawidSkene`.

    The model (Dawid and Skene, 1979) gives each annotator a confusion matrix. Expectation maximization finds these
    matrices together with the true labels, starting from the majority's labels. The model judges annotators by their
    agreement with the others: it knows little about an annotator with few answers, and annotators who make the same
    mistakes deceive it.

    Args:
        rows, annotators, labels: for each answer, the row, the annotator, and the label, 0 ... K-1. Every row has at
            least one answer.
        num_rows: N.
        num_classes: K.

    Returns:
        float64 (N, K), each row with sum 1.

    Raises:
        MissingExtra: crowd-kit is not installed.
    """
    try:
        from crowdkit.aggregation.classification import DawidSkene
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{error.name} is not installed: weighing annotators needs pip install 'fer-pll[crowd]'"
        ) from error
    import pandas as pd

    answers = pd.DataFrame({"task": rows, "worker": annotators, "label": labels})
    probabilities = DawidSkene().fit_predict_proba(answers)
    # The columns are the labels that somebody gave, in no particular order.
    return probabilities.reindex(index=range(num_rows), columns=range(num_classes), fill_value=0.0).to_numpy()


def keep_answers(answers: np.ndarray, votes: np.ndarray, seed: int = 0) -> np.ndarray:
    """The answers without those that were not drawn, (N, A): of each class as many as there are votes for it.

    Which of the annotators who chose a class are kept is drawn at random. So votes that were drawn without replacement
    become a draw of annotators without replacement. A class with fewer answers than votes keeps all of them.

    Args:
        answers: (N, A), -1 for none.
        votes: (N, K), whole numbers >= 0.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(answers.shape[1]), (len(answers), 1)), axis=1)
    shuffled = np.take_along_axis(answers, order, axis=1)
    rank = np.zeros_like(shuffled)  # among the answers of the same class
    for label in range(votes.shape[1]):
        same = shuffled == label
        rank[same] = (same.cumsum(axis=1) - 1)[same]
    most = np.take_along_axis(votes, shuffled.clip(min=0), axis=1)
    kept = np.empty_like(answers)
    np.put_along_axis(kept, order, np.where(rank < most, shuffled, -1).astype(answers.dtype), axis=1)
    return kept
