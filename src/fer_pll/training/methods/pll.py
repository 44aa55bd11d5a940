"""The paper's method."""

from torch import Tensor

from ...labels.losses import pll_loss
from .base import Batch, Method


class PLL(Method):
    """Cross-entropy with the confidences, revised before the loss (Eq. 2, 4 and 5)."""

    name = "pll"
    summary = "the cross-entropy with the confidences (Eq. 2 of the paper)"
    revision = "margin"

    def loss(self, batch: Batch) -> Tensor:
        return pll_loss(batch.logits[0], self.table.lookup(batch.index))
