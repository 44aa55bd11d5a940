"""RUL, relative uncertainty learning (Zhang, Wang and Deng, 2021)."""

import torch
from torch import Tensor, nn

from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


class RUL(GivenLabelMethod):
    """Mixes the features of two images by their uncertainties; both labels must be read from the mixture.

        s_i = w . x_i, uncertainty exp(s_i)
        x_ij = (exp(s_i) x_i + exp(s_j) x_j) / (exp(s_i) + exp(s_j))
        loss_i = (-log p(x_ij)_{y_i} - log p(x_ij)_{y_j}) / 2

    j is a random other order of the batch. The label of an unclear image can be read from the mixture only if that
    image has the larger share, so the shares become uncertainties. They need no label of their own: only those of two
    images are compared.

    Our reading: x is what enters the model's classifier, so that the published model is the model itself; the authors
    have a branch of 64 values in between. With label queries, the states of each query are mixed, and s comes from
    their mean. Each process mixes the rows of its own micro-batch. Unmixed images enter no loss.
    """

    name = "rul"
    summary = (
        "the cross-entropy of mixed features with both given labels, where the more uncertain image has the larger "
        "share of the mixture (RUL, Zhang et al., 2021)"
    )
    uses_features = True

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        head = nn.Linear(last_linear(model, self.name).in_features, 1, bias=False)  # a bias would cancel out
        nn.init.zeros_(head.weight)  # at first, halves are mixed
        self.add_head(head)

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        other = torch.randperm(len(batch.index), device=self.device)
        return self.mixed_loss(batch.features[0], batch.columns["labels"], other)

    def mixed_loss(self, features: Tensor, labels: Tensor, other: Tensor) -> Tensor:
        """Loss (B,) of the rows, each mixed with the row `other` (B,).

        Args:
            features: (B, d), or (B, K, d) from label queries.
            labels: (B,) int64.
            other: (B,) int64.
        """
        assert self.head is not None
        log_uncertainty = self.head(self.pooled(features))[:, 0]
        share = (log_uncertainty - log_uncertainty[other]).sigmoid()
        share = share.view(-1, *[1] * (features.ndim - 1))
        mixture = share * features.float() + (1 - share) * features[other].float()
        logits = self.classify(mixture)
        return (cross_entropy_loss(logits, labels) + cross_entropy_loss(logits, labels[other])) / 2
