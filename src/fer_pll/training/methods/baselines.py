"""Baselines without candidate sets."""

from torch import Tensor

from ...labels.losses import cross_entropy_loss, pll_loss
from .base import Batch, Method


class CrossEntropy(Method):
    """Cross-entropy with the given label."""

    name = "cross_entropy"
    summary = "the cross-entropy with the given label"
    uses_candidates = False
    columns = ("labels",)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy_loss(batch.logits[0], batch.columns["labels"])


class SoftVotes(Method):
    """Cross-entropy with the shares of all votes, including those outside the candidate set."""

    name = "soft_votes"
    summary = "the cross-entropy with the shares of all votes"
    uses_candidates = False
    columns = ("votes",)

    def loss(self, batch: Batch) -> Tensor:
        votes = batch.columns["votes"].float()
        return pll_loss(batch.logits[0], votes / votes.sum(dim=1, keepdim=True))
