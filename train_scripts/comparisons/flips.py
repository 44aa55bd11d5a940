"""Training labels made wrong on purpose."""

import numpy as np
from datasets import Dataset

from fer_pll.audit.label_quality import annotator_confusion
from fer_pll.data.dataset import numpy_column

from .beliefs import votes_of


def flip_labels(dataset: Dataset, share: float, as_votes: bool = False, seed: int = 0) -> Dataset:
    """The rows with the most voted label instead of votes, and a share of the labels made wrong.

    Where `true_label` is missing, it becomes the winner of the votes, or -1 if several labels share the top. Rows
    without votes count as rows with one vote, for their label.

    Args:
        dataset: N rows with `votes`, or with a `label` each.
        share: of the labels, 0 .. 1.
        as_votes: flip the rows of a class as often, and to the same classes, as annotators do. Otherwise every row and
            every other class is equally likely.
        seed: seed of the draw.
    """
    feature = dataset.features["label"]
    votes = votes_of(dataset)
    unique = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    winner = votes.argmax(axis=1)
    truth = numpy_column(dataset, "true_label") if "true_label" in dataset.column_names else np.full(len(votes), -1)
    truth = np.where((truth < 0) & unique, winner, truth)
    label = np.where(truth >= 0, truth, winner)
    classes = np.eye(votes.shape[1])
    flips = annotator_confusion(classes[label[unique]], votes[unique]) if as_votes else np.ones_like(classes)
    np.fill_diagonal(flips, 0)
    rate = flips.sum(axis=1)[label]
    generator = np.random.default_rng(seed)
    for row in generator.choice(len(label), round(share * len(label)), replace=False, p=rate / rate.sum()):
        others = flips[label[row]]
        label[row] = generator.choice(len(classes), p=others / others.sum())
    dataset = dataset.select_columns(["image", "row_id"])
    return dataset.add_column("label", label, feature=feature).add_column("true_label", truth, feature=feature)
