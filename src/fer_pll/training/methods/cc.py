"""CC, classifier-consistent (Feng et al., 2020)."""

from torch import Tensor

from ...labels.losses import cc_loss
from .base import Batch, Method


class CC(Method):
    """Minus the logarithm of the candidates' summed probability."""

    name = "cc"
    summary = "minus the logarithm of the candidates' summed probability (classifier-consistent, Feng et al., 2020)"

    def loss(self, batch: Batch) -> Tensor:
        return cc_loss(batch.logits[0], self.table.candidates[batch.index])
