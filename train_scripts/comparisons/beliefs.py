"""What a first round of training, out of fold, lets one believe of the labels, and rows for a second one."""

from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, List, Value

from fer_pll.audit.label_quality import posterior_given_predictions
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.labels.candidates import from_posterior


def believed_rows(data: str | Path, predictions: np.ndarray, folder: Path) -> None:
    """Write the data set `data` to `folder`, with what is believed of the labels of its training rows.

    Args:
        predictions: (N, K), of the training rows by models that have not seen them.
    """
    splits = load_dataset(data)
    belief = posterior_given_predictions(predictions, votes_of(splits["train"])).posterior
    save_dataset(DatasetDict(splits | {"train": believe(splits["train"], belief)}), folder)


def votes_of(rows: Dataset) -> np.ndarray:
    """The votes (N, K) of rows; where they have none, the label is the only one."""
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
