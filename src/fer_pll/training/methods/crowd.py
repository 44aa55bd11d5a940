"""Annotators learned along with the classifier, from what each of them said: what both methods of this kind share."""

import torch
from torch import Tensor, nn

from ...labels.confidence_table import ConfidenceTable
from .base import Batch, Method, MethodOptions


class Matrices(nn.Module):
    """A (A, K, K) parameter: one matrix for each annotator."""

    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.annotators = nn.Parameter(matrices)


class CrowdMethod(Method):
    """Says what each annotator would answer, and compares that with what they did answer.

    Rows need `answers` (A numbers: the label that each annotator gave, -1 for none). Where there is no such column but
    `votes`, which do not say who voted, all annotators share one matrix.

    The loss of a row is the mean over its answers; the authors add them up. So each row counts once, and a learning
    rate means the same for two annotators and for ten. A row without an answer has loss 0.
    """

    uses_candidates = False
    columns = ("votes",)
    revisions = ("none",)

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        if options.num_annotators:
            self.columns = ("answers",)
        matrix = self.first_matrix(len(table.class_names))
        self.add_head(Matrices(matrix.expand(max(options.num_annotators, 1), -1, -1).clone()))

    def first_matrix(self, num_classes: int) -> Tensor:
        """The parameter of each annotator at the start, (K, K)."""
        raise NotImplementedError

    def log_answers(self, logits: Tensor) -> Tensor:
        """log probability of each answer of each annotator, (B, A, K), from logits (B, K)."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            log_answers = self.log_answers(batch.logits[0].float())
        if "votes" in batch.columns:
            counts = batch.columns["votes"].float()[:, None]
        else:
            answers = batch.columns["answers"]
            counts = nn.functional.one_hot(answers.clamp(min=0), log_answers.shape[2]) * (answers >= 0)[:, :, None]
        total = counts.sum(dim=(1, 2))
        return -(counts * log_answers).sum(dim=(1, 2)) / total.where(total > 0, 1)
