"""LW, leveraged weighted (Wen et al., 2021)."""

from torch import Tensor

from ...labels.losses import lw_loss
from .base import Batch, Method


class LW(Method):
    """Leveraged weighted, with sigmoid losses."""

    name = "lw"
    summary = "the leveraged weighted loss with sigmoid losses (Wen et al., 2021)"

    def loss(self, batch: Batch) -> Tensor:
        return lw_loss(batch.logits[0], self.table.candidates[batch.index])


class LWC(Method):
    """Leveraged weighted, with cross-entropy losses."""

    name = "lwc"
    summary = "the leveraged weighted loss with cross-entropy losses (Wen et al., 2021)"

    def loss(self, batch: Batch) -> Tensor:
        return lw_loss(batch.logits[0], self.table.candidates[batch.index], surrogate="cross_entropy")
