"""What annotators' answers say of the true labels, when good annotators count for more than bad ones."""

from collections.abc import Sequence

import numpy as np

from ..io.errors import MissingExtra


def dawid_skene_posterior(
    rows: Sequence[int], annotators: Sequence[str], labels: Sequence[int], num_rows: int, num_classes: int
) -> np.ndarray:
    """Probability of each label given all answers, by crowd-kit's `DawidSkene`.

    The model (Dawid and Skene, 1979) gives each annotator a confusion matrix, found together with the true labels by
    expectation maximization from the majority's labels. It judges annotators by how they agree with the others: of one
    with few answers it knows little, and annotators who err alike deceive it.

    Args:
        rows, annotators, labels: of each answer: the row it is for, who gave it, and the label, 0 ... K-1. Every row
            has at least one.
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
    # Its columns are the labels that somebody gave, in no order.
    return probabilities.reindex(index=range(num_rows), columns=range(num_classes), fill_value=0.0).to_numpy()
