"""Methods whose loss needs no more than logits, confidences, candidate sets, votes or labels."""

from torch import Tensor

from ...labels.losses import cc_loss, lw_loss, pll_loss, softmax_loss
from .base import Batch, Method


class Softmax(Method):
    """Cross-entropy with the given label."""

    columns = ("labels",)

    def loss(self, batch: Batch) -> Tensor:
        return softmax_loss(batch.logits[0], batch.columns["labels"])


class SoftVotes(Method):
    """Cross-entropy with the shares of all votes, those outside the candidate set as well."""

    columns = ("votes",)

    def loss(self, batch: Batch) -> Tensor:
        votes = batch.columns["votes"].float()
        return pll_loss(batch.logits[0], votes / votes.sum(dim=1, keepdim=True))


class PLL(Method):
    """The paper's: cross-entropy with the confidences, revised before the loss (Eq. 2, 4 and 5)."""

    revision = "paper"

    def loss(self, batch: Batch) -> Tensor:
        return pll_loss(batch.logits[0], self.table.lookup(batch.index))


class PRODEN(PLL):
    """Cross-entropy with the softmax over the candidates that the row's previous visit left (Lv et al., 2020)."""

    revision = "soft"
    revisions = ("soft",)


class CC(Method):
    """Classifier-consistent (Feng et al., 2020)."""

    def loss(self, batch: Batch) -> Tensor:
        return cc_loss(batch.logits[0], self.table.candidates[batch.index])


class LW(Method):
    """Leveraged weighted, with sigmoid losses (Wen et al., 2021)."""

    def loss(self, batch: Batch) -> Tensor:
        return lw_loss(batch.logits[0], self.table.candidates[batch.index])


class LWC(Method):
    """Leveraged weighted, with cross-entropy losses (Wen et al., 2021)."""

    def loss(self, batch: Batch) -> Tensor:
        return lw_loss(batch.logits[0], self.table.candidates[batch.index], surrogate="cross_entropy")
