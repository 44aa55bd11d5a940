"""CRPLL, consistency regularization for partial labels (Wu et al., 2022)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...labels.losses import complement_loss, kl_loss
from .base import Batch, Method


class CRPLL(Method):
    """Pulls three views of an image towards the same confidences, and away from the labels outside the candidate set.

        lambda * sum_v KL(C || p_v) - sum_{k not in Y} log(1 - p_{1,k}),   lambda = min(epoch / 100, 1)
        C' proportional to Y * (prod_v p_v)^(1/V), after the loss

    The second term is taken on the first view.
    """

    name = "crpll"
    summary = (
        "the divergence of three views of the image from its confidences, and the improbability of the labels outside "
        "its candidate set (CRPLL, Wu et al., 2022)"
    )
    revision = "soft"
    revisions = ("soft",)
    num_views = trained_views = 3
    RAMP_EPOCHS = 100

    def loss(self, batch: Batch) -> Tensor:
        confidence = self.table.lookup(batch.index)
        weight = min(batch.epoch / self.RAMP_EPOCHS, 1.0)
        consistency = sum(kl_loss(logits, confidence) for logits in batch.logits)
        return weight * consistency + complement_loss(batch.logits[0], self.table.candidates[batch.index])

    def revise(self, batch: Batch) -> None:
        # The geometric mean of the views' p, renormalized, is the softmax of their mean log p.
        self.revise_by_rule(batch, batch.logits.detach().float().log_softmax(dim=2).mean(dim=0))

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        return f"{super().revision_sentence(settings, candidate_sets)} That softmax is of the three views' mean."
