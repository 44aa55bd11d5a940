"""Annotators' confusions with a trace regularizer (Tanno et al., Learning From Noisy Labels By Regularized Estimation
Of Annotator Confusion, 2019)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from .base import Batch
from .crowd import CrowdMethod, Matrices


class AnnotatorConfusion(CrowdMethod):
    """A confusion matrix for each annotator, as unreliable as the answers allow.

        loss_i = mean over the answers y_i^r of -log sum_k p_{ik} A^r_{k, y_i^r} + lambda * mean_r trace(A^r)

    A^r_{kj} is the probability that annotator r says j of a face of class k: the softmax of each row of a parameter,
    at first 0.9 on the diagonal. Answers alone determine only the products of A and p. The smallest trace among the
    explanations gives the true matrices if annotators are on average more often right than not, in each class.

    Our reading: the mean of the traces where the paper has their sum, so that lambda does not depend on the number of
    annotators; softmax rows where the authors normalize softplus.
    """

    name = "annotator_confusion"
    summary = (
        "the cross-entropy with each annotator's answers, through a confusion matrix for each annotator whose trace "
        "is kept small (Tanno et al., 2019)"
    )
    DIAGONAL = 0.9

    @dataclass(frozen=True)
    class Settings:
        trace_weight: OnCard[float] = field(
            default=0.01, metadata={"help": "Weight of the mean trace of the confusion matrices, lambda."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, trace_weight="[0, inf)")

    def first_matrix(self, num_classes: int) -> Tensor:
        lead = math.log(self.DIAGONAL / (1 - self.DIAGONAL) * (num_classes - 1))
        return lead * torch.eye(num_classes, device=self.device)

    def confusions(self) -> Tensor:
        """What each annotator says about the faces of each class, (A, K, K): row = class, column = answer."""
        assert isinstance(self.head, Matrices)
        return self.head.annotators.softmax(dim=2)

    def log_answers(self, logits: Tensor) -> Tensor:
        assert isinstance(self.head, Matrices)
        log_p = logits.log_softmax(dim=1)[:, None, :, None]  # (B, 1, K, 1)
        return (log_p + self.head.annotators.log_softmax(dim=2)).logsumexp(dim=2)

    def loss(self, batch: Batch) -> Tensor:
        trace = self.confusions().diagonal(dim1=1, dim2=2).sum(dim=1).mean()
        return super().loss(batch) + self.settings.trace_weight * trace
