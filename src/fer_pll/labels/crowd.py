"""True labels estimated from annotators' answers, where good annotators count for more than bad ones."""

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
