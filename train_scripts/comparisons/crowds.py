"""What others make of annotators' answers: Dawid-Skene, GLAD and MACE of crowd-kit, and CROWDLAB of cleanlab."""

import numpy as np

CROWD_MODELS = {"Dawid-Skene": {}, "GLAD": {}, "MACE": {"n_restarts": 1}}
"""Models of crowd-kit by their title, with settings other than its own. MACE draws every start with the same seed, so
that more than one start brings nothing."""


def answers_of_votes(votes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Answers (N, A) int64 that have these votes, -1 for none; A is the largest number of votes in a row.

    Counts do not say who voted. So each row's votes are dealt to A annotators at random, and an annotator is a mixture
    of all who ever voted: all are equally good, and what a method learns about single annotators is their mean.

    Args:
        votes: (N, K), whole numbers >= 0.
        seed: of the draw.
    """
    votes = np.asarray(votes)
    total = votes.sum(axis=1)
    answers = np.full((len(votes), total.max()), -1)
    answers[np.arange(answers.shape[1]) < total[:, None]] = np.tile(np.arange(votes.shape[1]), len(votes)).repeat(
        votes.ravel()
    )
    return np.random.default_rng(seed).permuted(answers, axis=1)


def crowd_posterior(model: str, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """Probability of each label, float64 (N, K), from answers alone, by one of `CROWD_MODELS`.

    Args:
        model: its title.
        answers: (N, A), -1 for none; every row has one.
        num_classes: K.
    """
    import pandas as pd
    from crowdkit.aggregation import classification

    rows, annotators = np.nonzero(answers >= 0)
    table = pd.DataFrame({"task": rows, "worker": annotators, "label": answers[rows, annotators]})
    aggregator = getattr(classification, model.replace("-", ""))(**CROWD_MODELS[model])
    probabilities = aggregator.fit_predict_proba(table)
    # The columns are the labels that somebody gave, in no particular order.
    return probabilities.reindex(index=range(len(answers)), columns=range(num_classes), fill_value=0.0).to_numpy()


def crowdlab(answers: np.ndarray, probabilities: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CROWDLAB's quality of each given label, (N,) in [0, 1], and its consensus label (N,) int64.

    The quality is that of the answer of an annotator who gave this label (cleanlab's `detailed_label_quality`).

    Args:
        answers: (N, A), -1 for none; some row has two.
        probabilities: (N, K), out of fold.
        given: (N,) labels, each the answer of some annotator to its row.
    """
    from cleanlab.multiannotator import get_label_quality_multiannotator

    found = get_label_quality_multiannotator(
        np.where(answers >= 0, answers, np.nan), probabilities, return_annotator_stats=False, verbose=False
    )
    quality = found["detailed_label_quality"].to_numpy()
    who = (answers == given[:, None]).argmax(axis=1)
    return quality[np.arange(len(given)), who], found["label_quality"]["consensus_label"].to_numpy()
