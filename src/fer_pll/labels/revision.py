"""The rules that revise confidences during training (paper, Eq. 4 and 5)."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# -- Revision rules. Each is a response v(C, Y, z), and either what Eq. 5 makes of it or the response itself.


def paper_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v = C * sigmoid(z), Eq. 4 of the paper; (B, K), zero outside the candidates."""
    return confidence * torch.sigmoid(logits.detach().float())


def normalized_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v_k = exp(z_k) / sum_{j: C_j > 0} exp(z_j) where C_k > 0, else 0; (B, K), rows sum to 1.

    Unlike Eq. 4 it does not change when all logits of a row shift together.
    """
    return _restricted_softmax(logits, confidence > 0)


def soft_response(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """v_k = exp(z_k) / sum_{j in Y} exp(z_j) where k in Y, else 0; (B, K), rows sum to 1."""
    return _restricted_softmax(logits, candidates)


def _restricted_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    return logits.detach().float().masked_fill(~allowed, float("-inf")).softmax(dim=1)


def response_margin(response: Tensor) -> Tensor:
    """v_(1) - v_(2) of Eq. 5, (B,): how far the leading candidate leads; NaN where the response holds NaN."""
    largest, second = response.topk(2, dim=1).values.unbind(dim=1)
    return largest - second


def decide(confidence: Tensor, response: Tensor, threshold: float) -> Tensor:
    """Eq. 5 of the paper: the leading candidate takes all as soon as it leads by more than a threshold.

        C' = one-hot(argmax v) if v_(1) - v_(2) > threshold else C

    All other entries of a decided row become zero, as the sentence below Eq. 5 says and its formula leaves out. Of
    equal leaders the first class leads, but their margin is 0, which never exceeds the threshold.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"revision_threshold must lie in [0, 1), got {threshold}")
    one_hot = torch.zeros_like(confidence).scatter_(1, response.argmax(dim=1, keepdim=True), 1.0)
    return torch.where((response_margin(response) > threshold)[:, None], one_hot, confidence)


def revise_paper(confidence: Tensor, candidates: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """Eq. 4 and 5 of the paper.

        v = C * sigmoid(z);   C' = one-hot(argmax v) if v_(1) - v_(2) > threshold else C

    The margin is at most max C, that is 1/|Y| for uniform confidences. A one-hot row stays as it is for good. A row
    whose logits hold NaN stays as it is.

    Args:
        confidence: C, float32 (B, K), rows >= 0 with sum 1, zero outside the candidates.
        candidates: Y, bool (B, K).
        logits: z, (B, K), any float type; used detached and in float32, also under autocast.
        threshold: 0 <= threshold < 1.

    Returns:
        C' (B, K) float32.
    """
    return decide(confidence, paper_response(confidence, candidates, logits), threshold)


def revise_normalized(confidence: Tensor, candidates: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """Eq. 5 on probabilities: the model's softmax over the labels that are left.

        v_k = exp(z_k) / sum_{j: C_j > 0} exp(z_j);   C' = one-hot(argmax v) if v_(1) - v_(2) > threshold else C

    Arguments and result as `revise_paper`.
    """
    return decide(confidence, normalized_response(confidence, candidates, logits), threshold)


def revise_soft(confidence: Tensor, candidates: Tensor, logits: Tensor, momentum: float = 0.0) -> Tensor:
    """The model's softmax over the candidates: the update of RC (Feng et al., 2020) and PRODEN (Lv et al., 2020).

        v_k = exp(z_k) / sum_{j in Y} exp(z_j) where k in Y, else 0;   C' = m C + (1 - m) v

    It belongs after the loss of the visit. Before it, the gradient of `pll_loss` would be that of `cc_loss`. A row
    whose logits hold NaN stays as it is. Arguments and result as `revise_paper`, and `momentum`, m, 0 in RC and
    PRODEN: above it the confidences are a mean over epochs (temporal ensembling, Laine and Aila, 2017).
    """
    response = soft_response(confidence, candidates, logits)
    moved = response if momentum == 0 else momentum * confidence + (1 - momentum) * response
    return torch.where(response.isnan().any(dim=1, keepdim=True), confidence, moved)


def revise_none(confidence: Tensor, candidates: Tensor, logits: Tensor) -> Tensor:
    """C' = C. Arguments and result as `revise_paper`."""
    return confidence


class RevisionRule(NamedTuple):
    """A rule as `ConfidenceTable.revise` applies it."""

    revise: Callable[..., Tensor]  # (C, Y, z) -> C', all (B, K); with its setting, where the rule has one
    response: Callable[[Tensor, Tensor, Tensor], Tensor] | None  # (C, Y, z) -> v, for the margin; None: no revision
    setting: Literal["threshold", "momentum"] | None
    after_loss: bool  # the loss of a visit sees the confidence that the row's previous visit left

    @property
    def has_threshold(self) -> bool:
        """Whether the rule decides, by Eq. 5."""
        return self.setting == "threshold"


REVISION_RULES = {
    "paper": RevisionRule(revise_paper, paper_response, "threshold", after_loss=False),
    "normalized": RevisionRule(revise_normalized, normalized_response, "threshold", after_loss=False),
    "soft": RevisionRule(revise_soft, soft_response, "momentum", after_loss=True),
    "none": RevisionRule(revise_none, None, None, after_loss=False),
}
"""The rules by name. A new one is a function, its response and an entry here."""


def maximum_margin(confidence: Tensor) -> Tensor:
    """Upper bound (N,) of the margin of Eq. 5 for each row of confidences (N, K): 1/|Y| where they are uniform.

    v_(1) - v_(2) = C_(1) sigmoid(z_1) - v_(2) <= max C, since 0 <= sigmoid <= 1.
    """
    return confidence.amax(dim=1)


def uniform_confidence(candidates: Tensor) -> Tensor:
    """C_i = Y_i / |Y_i| (section 3.3.2 of the paper), float32 (B, K), of candidate sets (B, K) bool."""
    return candidates.float() / candidates.sum(dim=1, keepdim=True)
