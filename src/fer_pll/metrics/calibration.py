"""Post-hoc calibration: temperature scaling and logit adjustment, folded into the classifier.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks"): the softmax probabilities of a
trained network are usually too confident; after training with soft labels they are not confident enough. One number
repairs most of that: the logits are divided by the temperature that makes the labels of rows outside the training set
most likely. The most likely class stays the same. The temperature is folded into the output rows of the classifier, so
everyone who uses the checkpoint gets it.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import chi2

from ..model.modeling_fer_pll import FerPllForImageClassification

LIMITS = 0.05, 20.0
"""Range of the temperature. There is no best one if the logits are always right, or unrelated to the labels."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """T in `LIMITS` that minimizes the mean of -log softmax(logits / T)[label].

    Args:
        logits: (N, K).
        labels: (N,) of rows that the model was not trained on.

    Raises:
        ValueError: there are no rows, the number of labels differs, or a label is not a class.
    """
    logits, labels = _check(logits, labels)

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits / np.exp(log_temperature), labels)

    # Convex in 1 / T, so there is one minimum.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded", options={"xatol": 1e-6}).x))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -log softmax(logits)[label], in nats: what `fit_temperature` minimizes.

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        ValueError: as `fit_temperature`.
    """
    logits, labels = _check(logits, labels)
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def differs_from_one(nll_before: float, nll_after: float, rows: int) -> bool:
    """Whether the labels tell a fitted temperature from 1: likelihood-ratio test of one parameter (Wilks 1938), 5 %.

    Args:
        nll_before, nll_after: mean negative log-likelihood of the rows with the temperature 1 and with the fitted one.
        rows: how many.
    """
    return bool(2 * rows * (nll_before - nll_after) > chi2.ppf(0.95, 1))


def _check(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be (N, K) and (N,), N at least 1")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}; leave out rows whose label is not defined")
    return logits, labels


@torch.no_grad()
def fold_temperature(model: FerPllForImageClassification, temperature: float) -> None:
    """Divide the model's logits by a temperature permanently, in all its output rows <w_k, h> + b_k."""
    model.classifier.weight.div_(temperature)
    model.classifier.bias.div_(temperature)


@torch.no_grad()
def fold_balance(model: FerPllForImageClassification, shares: ArrayLike, strength: float) -> None:
    """Lower the model's logits by `strength * log(shares)` permanently, so that it names rare classes more often.

    Logit adjustment after training (Menon et al. 2021, "Long-tail learning via logit adjustment"): with 1 the model
    answers as if all classes were equally frequent, which favors the mean class accuracy; 0 changes nothing.

    Args:
        shares: (K,) of the classes in the training set, all positive.
        strength: tau >= 0.

    Raises:
        ValueError: a class has no share.
    """
    shares = torch.as_tensor(shares, dtype=torch.float64)
    if (shares <= 0).any():
        raise ValueError(f"class {int((shares <= 0).nonzero()[0])} has no share in the training: nothing balances it.")
    model.classifier.bias.sub_(strength * shares.log().to(model.classifier.bias))
