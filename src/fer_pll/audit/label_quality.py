"""Label quality: labels that look wrong, and what they should be, from annotators' votes and a model's predictions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln
from sklearn.metrics import average_precision_score

_CLARITY = 4  # exponent of a row's largest probability; says how much the row tells about errors
_ROUNDS = 12  # with more, the weights of the classes follow the chance of small sets
_CONCENTRATIONS = (0.25, 0.5, 1, 2, 4, 8, 16, 64, 1024)
_TEMPERATURES = np.geomspace(0.25, 2, 13)
_EVEN_ERRORS = np.geomspace(1, 1e6, 25)


class LabelPosterior(NamedTuple):
    """Result of `posterior_given_predictions` for N rows, K classes."""

    posterior: np.ndarray  # (N, K) float64, rows sum to 1: probability that a class is the row's true label
    confusion: np.ndarray  # (K, K) float64: row = true class, column = what an annotator says, rows sum to 1
    concentration: float  # how independently annotators err, see `posterior_given_predictions`
    temperature: float  # of the predictions: below 1, the model was less certain than it might be


def suspicion(posterior: ArrayLike, given: ArrayLike) -> np.ndarray:
    """Suspicion that a given label is wrong: 1 - its probability, (N,), from 0 to 1.

    The posterior is the probability of being the true label, so this is the probability of an error. Looking through
    the rows in this order finds wrong labels soonest. Posteriors come from `training_posterior` or, better, from
    `posterior_given_predictions` with out-of-fold predictions, because a run has seen the labels that it judges.

    Args:
        posterior: (N, K), rows sum to 1.
        given: (N,) labels, 0 .. K-1.
    """
    posterior = np.asarray(posterior, dtype=np.float64)
    return 1 - np.take_along_axis(posterior, np.asarray(given)[:, None], axis=1)[:, 0]


def believed_labels(posterior: ArrayLike, given: ArrayLike) -> np.ndarray:
    """The most probable label (N,) int64; the given label where none is more probable."""
    posterior, given = np.asarray(posterior), np.asarray(given)
    kept = np.take_along_axis(posterior, given[:, None], axis=1)[:, 0] >= posterior.max(axis=1)
    return np.where(kept, given, posterior.argmax(axis=1))


def training_posterior(confidence: ArrayLike, votes: ArrayLike) -> np.ndarray:
    """Posterior of each class (N, K) that a run leaves: 0.9 times its confidence + 0.1 times the shares of the votes.

    Confidences that were decided are 0 or 1 (Eq. 5 of the paper). Among rows that were decided alike, a row is more
    suspicious if fewer annotators chose its label. A row with one candidate keeps its label: a run never doubts it.

    Args:
        confidence: (N, K), rows sum to 1.
        votes: (N, K), >= 0, no row all zero.
    """
    confidence, votes = np.asarray(confidence, dtype=np.float64), np.asarray(votes, dtype=np.float64)
    return 0.9 * confidence + 0.1 * votes / votes.sum(axis=1, keepdims=True)


def posterior_given_predictions(probabilities: ArrayLike, votes: ArrayLike) -> LabelPosterior:
    """The probability that each class is the true label of a row, given its votes and its image.

        q_ik  proportional to  w_k p_ik^(1/T) * DirichletMultinomial(votes_i; s A_k)

    p are the predictions of a model that has not seen the row's votes. A_k is what annotators say about faces of class
    k. This is the model of Dawid and Skene (1979), with the prediction in place of the class prior. All annotators of
    a face see the same face, so their errors are correlated. The concentration s says how much: where it is large,
    they are independent; where it is near 0, only their first vote counts. Confident learning (Northcutt et al., 2021)
    judges a label by p alone. Here, overruling a label that many chose takes more than overruling one that a single
    annotator chose, and a confusion that is common among annotators is more credible than a rare one.

    Where each row has a single label, a model that learned labels with errors predicts such errors: it is less certain
    of the true label than it could be, and predicts rare classes, to which errors add most, too often. The temperature
    T and the class weights w correct this (Guo et al., 2017, call such a correction vector scaling). For a face that
    the model finds ambiguous, a label other than the predicted one may well be right. So a row counts with the fourth
    power of its largest probability; otherwise ambiguity between two classes would be learned as a confusion by the
    annotators. With several votes, T, w and the weight of a row are 1: an uncertain prediction then also says that
    annotators disagree about the face, and the votes themselves say how often annotators err.

    A, s, T and w maximize the likelihood of the votes, by expectation maximization. A is shrunk towards errors without
    preference, see `_shrunken_confusion`.

    Args:
        probabilities: p, (N, K), rows sum to 1.
        votes: (N, K), whole numbers; where each row has one label, a one at that label.
    """
    votes = np.asarray(votes, dtype=np.int64)
    shares = votes / votes.sum(axis=1, keepdims=True)
    log_prediction = np.log(np.asarray(probabilities, dtype=np.float64).clip(1e-9))
    temperature, log_weight = 1.0, np.zeros(votes.shape[1])
    single = votes.sum(axis=1).max() == 1
    prior = _log_softmax(log_prediction)
    posterior = _softmax(prior + 2 * shares)  # at the start, annotators are mostly right
    for number in range(_ROUNDS):
        clarity = np.exp(prior.max(axis=1)) ** _CLARITY if single else np.ones(len(votes))
        confusion = _shrunken_confusion((clarity[:, None] * posterior).T @ shares)
        if number % 3 == 0:
            fits = [clarity @ _logsumexp(prior + _log_likelihood(votes, confusion, s)) for s in _CONCENTRATIONS]
            concentration = float(_CONCENTRATIONS[np.argmax(fits)])
        likelihood = _log_likelihood(votes, confusion, concentration)
        if single:
            if number % 3 == 0:
                scaled = [_log_softmax(log_prediction / t + log_weight) for t in _TEMPERATURES]
                fits = [clarity @ _logsumexp(log_prior + likelihood) for log_prior in scaled]
                temperature = float(_TEMPERATURES[np.argmax(fits)])
            expected = clarity @ _softmax(log_prediction / temperature + log_weight)
            log_weight += np.log((clarity @ posterior).clip(1e-9) / expected.clip(1e-9))
            prior = _log_softmax(log_prediction / temperature + log_weight)
        posterior = _softmax(prior + likelihood)
    return LabelPosterior(posterior, confusion, concentration, temperature)


def _log_likelihood(votes: np.ndarray, confusion: np.ndarray, concentration: float) -> np.ndarray:
    """log DirichletMultinomial(votes_i; s A_k), (N, K), less the multinomial coefficient, the same for all k."""
    # Gamma(a + v) / Gamma(a) = a (a + 1) ... (a + v - 1)
    total = votes.sum(axis=1)
    steps = np.arange(total.max())
    rising = np.log(concentration * confusion + steps[:, None, None]).cumsum(axis=0)  # (votes, class, said)
    rising = np.concatenate([np.zeros_like(rising[:1]), rising])
    likelihood = -np.concatenate([[0], np.log(concentration + steps).cumsum()])[total][:, None]
    return likelihood + sum(rising[votes[:, said], :, said] for said in range(votes.shape[1]))


def annotator_confusion(posterior: ArrayLike, votes: ArrayLike) -> np.ndarray:
    """What annotators say about the faces of each class, (K, K) float64: row = class by the posterior, column = vote.

    A row sums to 1, or to 0 where no face can show its class.

    Args:
        posterior: (N, K), rows sum to 1.
        votes: (N, K), >= 0.
    """
    counts = np.asarray(posterior, dtype=np.float64).T @ np.asarray(votes, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def _shrunken_confusion(counts: np.ndarray) -> np.ndarray:
    """What annotators say about the faces of each class, (K, K), where the votes c_kj (K, K) are few or uncertain.

        A_kk = (c_kk + n r) / (c_k + n)
        A_kj = (1 - A_kk) (c_kj + m / (K-1)) / (e_k + m),  j other than k,  e_k = c_k - c_kk

    c_k are the votes for faces of class k, n is their mean over the classes, and r is the share of all votes that are
    right. Without n, a class that the model hardly ever predicts would be explained away. m is a number of errors
    without preference for a class. It maximizes the likelihood of the errors c_kj as draws from
    DirichletMultinomial(e_k; m / (K-1)). It is large where annotators err at random, and small where each class has
    its own few classes that it is mistaken for.
    """
    num_classes = len(counts)
    diagonal = np.eye(num_classes, dtype=bool)
    total = counts.sum(axis=1)
    right = (counts[diagonal] + total.mean() * counts.trace() / counts.sum()) / (total + total.mean())
    errors = counts[~diagonal].reshape(num_classes, num_classes - 1)
    each = _EVEN_ERRORS[:, None, None] / (num_classes - 1)
    evidence = (gammaln(errors + each) - gammaln(each)).sum(axis=(1, 2))
    evidence += (gammaln(_EVEN_ERRORS[:, None]) - gammaln(errors.sum(axis=1) + _EVEN_ERRORS[:, None])).sum(axis=1)
    errors = errors + each[np.argmax(evidence)]
    confusion = np.empty_like(counts)
    confusion[diagonal] = right
    confusion[~diagonal] = ((1 - right)[:, None] * errors / errors.sum(axis=1, keepdims=True)).ravel()
    return confusion.clip(1e-9)


def evaluate_suspicion(score: ArrayLike, wrong: ArrayLike) -> dict[str, float]:
    """How well a score finds the rows with a wrong label, where that is known.

    Args:
        score: (N,), larger = more suspicious.
        wrong: (N,) bool.

    Returns:
        `average_precision`, and `precision_at_wrong`: with W wrong rows, the share of them among the W most suspicious
        rows, which is also their recall.
    """
    score, wrong = np.asarray(score), np.asarray(wrong, dtype=bool)
    first = np.argsort(-score, kind="stable")[: wrong.sum()]
    return {
        "average_precision": float(average_precision_score(wrong, score)),
        "precision_at_wrong": float(wrong[first].mean()),
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - _logsumexp(logits)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
