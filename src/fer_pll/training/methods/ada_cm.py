"""Ada-CM, adaptive confidence margins (Li et al., Towards Semi-Supervised Deep Facial Expression Recognition with An
Adaptive Confidence Margin, 2022)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod


def two_view_contrastive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of n rows in two views, (n,): mean of both views' `-log softmax` of the other view among all the
    2n - 1 other vectors (Chen et al., 2020).

    Args:
        first, second: unit vectors (n, d).
        temperature: tau.
    """
    vectors = torch.cat([first, second])
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    log_share = (vectors @ vectors.T / temperature).masked_fill(itself, float("-inf")).log_softmax(dim=1)
    number = torch.arange(len(first), device=vectors.device)
    return -(log_share[number, number + len(first)] + log_share[number + len(first), number]) / 2


class AdaCM(GivenLabelMethod):
    """Learns from faces without a label as well: by pseudo-labels where it is sure, by contrast where it is not.

        rows with a label: -log p(weak view)_y
        rows without: p = mean of the softmax of two weak views, c = argmax p
          max p >= T_c: -log p(strong view)_c
          else: SimCLR's loss of the two weak views' features among such rows
        loss = 0.5 * mean over the rows with a label + mean over the rows without of the second, where it applies
               + 0.1 * mean of the third, of each micro-batch
        T_k = max(0.8, 0.97 m_k / (1 + exp(-epochs done))), m_k = mean max p of the rows with label k that were
              predicted right in the last epoch; 0.8 without such rows, and in the first epoch

    A row without a label has `label` -1 and all classes as its candidates.

    Our reading: m is measured on the weak views of the training itself, where the authors go over the labeled rows
    once more with a moving average of the weights (`average_decay` gives that average, for evaluation). Batches hold
    rows as the data set has them, not as many with a label as without; the means make up for that. Each process
    contrasts the rows of its own micro-batch.
    """

    name = "ada_cm"
    summary = (
        "the cross-entropy with the given label or, for images without one, with sure predictions for a strongly "
        "changed view, and a contrastive loss of the unsure ones (Ada-CM, Li et al., 2022)"
    )
    uses_unlabeled = True
    uses_features = True
    num_views = trained_views = 3
    strong_views = 1
    FIRST_MARGIN = 0.8
    MARGIN_SCALE = 0.97
    TEMPERATURE = 0.07

    @dataclass(frozen=True)
    class Settings:
        labeled_weight: OnCard[float] = field(
            default=0.5, metadata={"help": "Weight of the loss of the images with a label."}
        )
        pseudo_weight: OnCard[float] = field(
            default=1.0, metadata={"help": "Weight of the loss of the pseudo-labels."}
        )
        unsure_weight: OnCard[float] = field(
            default=0.1, metadata={"help": "Weight of the contrastive loss of the unsure images."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, labeled_weight="[0, inf)", pseudo_weight="[0, inf)", unsure_weight="[0, inf)")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        num_classes = len(table.class_names)
        self.class_margins = torch.full((num_classes,), self.FIRST_MARGIN, device=self.device)
        self.seen = torch.zeros(2, num_classes, device=self.device)  # sum and number of max p in this epoch
        self.epoch = 0

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        if int(batch.epoch) != self.epoch:
            self.new_epoch(int(batch.epoch))
        labels, settings = batch.columns["labels"], self.settings
        labeled = labels >= 0
        probabilities = batch.logits[:2].detach().float().softmax(dim=2).mean(dim=0)
        largest, predicted = probabilities.max(dim=1)
        self.watch(batch, largest, predicted, labels)
        sure = ~labeled & (largest >= self.class_margins[predicted])
        unsure = ~labeled & ~sure

        def share(losses: Tensor, rows: Tensor, of: Tensor) -> Tensor:
            """Losses of `rows` whose mean over the batch is their sum divided by the number of rows in `of`."""
            return torch.where(rows, losses, 0.0) * (len(labels) / of.sum().clamp(min=1))

        total = settings.labeled_weight * share(cross_entropy_loss(batch.logits[0], labels), labeled, labeled)
        pseudo = cross_entropy_loss(batch.logits[2], predicted)
        total = total + settings.pseudo_weight * share(pseudo, sure, ~labeled)
        if unsure.any():
            first, second = (nn.functional.normalize(self.pooled(each[unsure]), dim=1) for each in batch.features[:2])
            contrast = torch.zeros_like(total)
            contrast[unsure] = two_view_contrastive(first, second, self.TEMPERATURE)
            total = total + settings.unsure_weight * share(contrast, unsure, unsure)
        return total

    def watch(self, batch: Batch, largest: Tensor, predicted: Tensor, labels: Tensor) -> None:
        """Take in the right predictions (B,) of the rows with a label, of all processes."""
        _, largest, predicted, labels = self.gather_revisable(batch, largest, predicted, labels)
        right = labels == predicted
        self.seen[0].index_add_(0, labels[right], largest[right])
        self.seen[1].index_add_(0, labels[right], torch.ones_like(largest[right]))

    def new_epoch(self, epoch: int) -> None:
        """The margins of the epoch `epoch`, counted from 0, by what was seen in the one before."""
        mean = self.seen[0] / self.seen[1].clamp(min=1)  # 0 without rows
        scaled = self.MARGIN_SCALE * mean / (1 + math.exp(-epoch))
        self.class_margins = scaled.clamp(min=self.FIRST_MARGIN)
        self.seen = torch.zeros_like(self.seen)
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"class_margins": self.class_margins, "seen": self.seen, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.class_margins, self.seen, self.epoch = state["class_margins"], state["seen"], state["epoch"]
