"""Losses of partial label learning (paper, Tables 4 and 5).

Each takes logits z (B, K) of any float type and what is known about the labels, and returns the loss of each row, (B,)
float32; p = softmax(z). All are computed in float32 or wider, also under autocast.
"""

from collections.abc import Callable
from functools import wraps
from typing import Literal

import torch
from torch import Tensor


def _in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(loss)
    def computed(logits: Tensor, *args, **kwargs) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits if logits.dtype == torch.float64 else logits.float(), *args, **kwargs)

    return computed


@_in_full_precision
def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with one label per row: `-log p_y`.

    Args:
        labels: y, (B,) int64; the loss of a row with -1 (undefined) is 0.
    """
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")


@_in_full_precision
def pll_loss(logits: Tensor, confidence: Tensor) -> Tensor:
    """Eq. 2 of the paper, cross-entropy against the confidences: `-sum_k C_k log p_k`.

    With one-hot confidences this is the usual cross-entropy, with vote shares the soft-label one.

    Args:
        confidence: C, (B, K), rows sum to 1.
    """
    return -(confidence * logits.log_softmax(dim=1)).sum(dim=1)


@_in_full_precision
def cc_loss(logits: Tensor, candidates: Tensor) -> Tensor:
    """Classifier-consistent loss (Feng et al., 2020): `-log sum_{k in Y} p_k`.

    Args:
        candidates: Y, (B, K) bool.
    """
    return logits.logsumexp(dim=1) - logits.masked_fill(~candidates, float("-inf")).logsumexp(dim=1)


@_in_full_precision
def lw_loss(
    logits: Tensor,
    candidates: Tensor,
    leverage: float = 1.0,
    surrogate: Literal["sigmoid", "cross_entropy"] = "sigmoid",
) -> Tensor:
    """Leveraged weighted loss (Wen et al., 2021): `sum_{k in Y} w_k s(z_k) + beta sum_{k not in Y} w_k s(-z_k)`.

    The weights w are p, renormalized inside and outside Y separately; no gradient flows through them. LW has
    s(z) = sigmoid(-z); LWC has `-log p_k` inside Y and `-log(1 - p_k)` outside in place of s.

    Args:
        candidates: Y, (B, K) bool.
        leverage: beta, weight of the labels outside the candidate set.
        surrogate: "sigmoid" (LW) or "cross_entropy" (LWC).
    """
    outside = ~candidates
    weights = torch.where(
        candidates, _softmax_inside(logits.detach(), candidates), leverage * _softmax_inside(logits.detach(), outside)
    )
    if surrogate == "sigmoid":
        losses = torch.sigmoid(torch.where(candidates, -logits, logits))
    else:
        log_p = logits.log_softmax(dim=1)
        losses = -torch.where(candidates, log_p, log_one_minus_p(logits))
    return (weights * losses).sum(dim=1)


def _softmax_inside(logits: Tensor, inside: Tensor) -> Tensor:
    """Softmax over the True entries of each row, 0 elsewhere; all 0 where there is none."""
    return logits.masked_fill(~inside, float("-inf")).softmax(dim=1).nan_to_num(0.0)


def log_one_minus_p(logits: Tensor) -> Tensor:
    """log(1 - p), (B, K), without cancellation: the log-sum-exp of all other logits minus that of all."""
    num_classes = logits.shape[1]
    itself = torch.eye(num_classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].expand(-1, num_classes, -1).masked_fill(itself, float("-inf")).logsumexp(dim=2)
    return others - logits.logsumexp(dim=1, keepdim=True)


@_in_full_precision
def complement_loss(logits: Tensor, candidates: Tensor) -> Tensor:
    """`-sum_{k not in Y} log(1 - p_k)`: no probability to labels that nobody chose (Wu et al., 2022, CRPLL).

    Args:
        candidates: Y, (B, K) bool.
    """
    return -log_one_minus_p(logits).masked_fill(candidates, 0.0).sum(dim=1)


@_in_full_precision
def kl_loss(logits: Tensor, confidence: Tensor) -> Tensor:
    """`KL(C || p) = sum_k C_k (log C_k - log p_k)` (Wu et al., 2022, CRPLL).

    Args:
        confidence: C, (B, K), rows sum to 1.
    """
    return pll_loss(logits, confidence) - torch.special.entr(confidence).sum(dim=1)


def supervised_contrastive_loss(
    queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, temperature: float
) -> Tensor:
    """Supervised contrastive loss of each query (Khosla et al., 2020; Wang et al., 2022, PiCO):

        -1/|P(q)| sum_{k+ in P(q)} log(exp(q . k+ / tau) / sum_k exp(q . k / tau))

    where P(q) are the keys with the label of q; the loss of a query without such a key is 0.

    Args:
        queries: (B, D), unit vectors.
        labels: (B,) int64.
        keys: (M, D), unit vectors.
        key_labels: (M,) int64.
        temperature: tau > 0.
    """
    with torch.autocast(queries.device.type, enabled=False):
        log_share = (queries.float() @ keys.float().T / temperature).log_softmax(dim=1)  # (B, M)
        positive = labels[:, None] == key_labels[None]
        return -(log_share * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
