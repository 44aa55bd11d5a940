"""What a first round of training, out of fold, lets one believe of the labels, and rows for a second one."""

from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, List, Value
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from fer_pll.audit.label_quality import posterior_given_predictions
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.labels.candidates import from_posterior


def true_label(predictions: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The probability (N, K) that a class is a row's true label, see `posterior_given_predictions`."""
    return posterior_given_predictions(predictions, votes).posterior


def expected_shares(predictions: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The shares (N, K) that the votes of many annotators of a row are expected to have.

        q_ik = (v_ik + s p_ik) / (n_i + s),  n_i = sum_k v_ik

    the mean of a Dirichlet distribution with parameters s p_i, once the votes v_i are known. The votes stay, as
    evidence, and s says how many votes a prediction p is worth: it makes the votes, which the models behind p have not
    seen, most probable.
    """
    predictions = predictions.clip(1e-6)
    predictions = predictions / predictions.sum(axis=1, keepdims=True)
    total = votes.sum(axis=1, keepdims=True)

    def unlikely(log_worth: float) -> float:  # - log Dirichlet-multinomial, less what does not depend on s
        alpha = np.exp(log_worth) * predictions
        of_votes = (gammaln(alpha + votes) - gammaln(alpha)).sum()
        return -(of_votes - (gammaln(np.exp(log_worth) + total) - gammaln(np.exp(log_worth))).sum())

    worth = np.exp(minimize_scalar(unlikely, bounds=(-3, 7), method="bounded").x)
    return (votes + worth * predictions) / (total + worth)


BELIEFS = {"label": true_label, "shares": expected_shares}


def believed_rows(data: str | Path, predictions: np.ndarray, folder: Path, belief: str = "label") -> None:
    """Write the data set `data` to `folder`, with what is believed of its training rows.

    Args:
        data: folder of a prepared set.
        predictions: (N, K), rows sum to 1: of the training rows, by models that have not seen them.
        folder: to be written.
        belief: a key of `BELIEFS`.
    """
    splits = load_dataset(data)
    believed = BELIEFS[belief](predictions, votes_of(splits["train"]))
    save_dataset(DatasetDict(splits | {"train": believe(splits["train"], believed)}), folder)


def votes_of(rows: Dataset) -> np.ndarray:
    """The votes (N, K), whole numbers, of N rows; where they have none, the label is the only one."""
    if "votes" in rows.column_names:
        return numpy_column(rows, "votes")
    return np.eye(rows.features["label"].num_classes, dtype=int)[numpy_column(rows, "label")]


def believe(dataset: Dataset, belief: np.ndarray) -> Dataset:
    """The rows with a belief (N, K) as `confidence`, and the classes that hold 95 % of it as `candidates`."""
    candidates = from_posterior(belief)
    confidence = np.where(candidates, belief, 0)
    confidence /= confidence.sum(axis=1, keepdims=True)
    size = belief.shape[1]
    dataset = dataset.add_column("candidates", list(candidates), feature=List(Value("bool"), length=size))
    return dataset.add_column("confidence", list(confidence), feature=List(Value("float32"), length=size))
