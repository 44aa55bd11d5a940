"""SCN, self-cure network (Wang et al., Suppressing Uncertainties for Large-Scale Facial Expression Recognition,
2020)."""

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
from .network import last_linear


def high_group(importance: Tensor, share: float) -> Tensor:
    """The rows that belong to the more important `share` of a batch, (B,) bool, from importances (B,)."""
    order = importance.argsort(descending=True, stable=True)
    high = torch.zeros_like(importance, dtype=torch.bool)
    high[order[: round(share * len(importance))]] = True
    return high


def rank_loss(importance: Tensor, high: Tensor, margin: float) -> Tensor:
    """`max(0, margin - (mean of the high group - mean of the others))`, a number; 0 where a group is empty.

    Args:
        importance: (B,).
        high: (B,) bool.
        margin: delta_1.
    """
    if high.all() or not high.any():
        return importance.new_zeros(())
    return (margin - (importance[high].mean() - importance[~high].mean())).clamp(min=0)


class SCN(GivenLabelMethod):
    """Weighs each row by a learned importance, ranks the importances in a batch, and relabels unimportant rows.

        alpha_i = sigmoid(w . x_i + b)
        loss_i = (1 - gamma) * -log softmax(alpha_i z_i)_{y_i} + gamma * rank
        rank = max(0, delta_1 - (mean alpha of the high group - mean alpha of the low group))
        y_i' = argmax p_i if max p_i - p_{i, y_i} > delta_2, for the rows of the low group; p_i = softmax(alpha_i z_i)

    x is what enters the model's classifier (the mean over label queries), z the logits. The high group is the share
    beta of the batch with the largest alpha. The new label holds from the row's next visit on.

    Our reading: relabeling begins after a share of the training, not at a fixed epoch (the authors': epoch 10 of 40).
    It is restricted to the low group, as the paper says; the public code compares all rows. Each process ranks the
    rows of its own micro-batch, so the result depends on their size. The layer of the importances is no part of the
    published model: alpha is positive, so it changes no predicted label.
    """

    name = "scn"
    summary = (
        "the cross-entropy with the given label, weighted by a learned importance that is ranked in each batch; "
        "labels of unimportant images are replaced by clear predictions (SCN, Wang et al., 2020)"
    )
    uses_features = True

    @dataclass(frozen=True)
    class Settings:
        rank_weight: OnCard[float] = field(
            default=0.5, metadata={"help": "Share of the loss that ranks the importances, gamma."}
        )
        rank_margin: OnCard[float] = field(
            default=0.15, metadata={"help": "Margin between the mean importances of the two groups, delta_1."}
        )
        important_share: OnCard[float] = field(
            default=0.7, metadata={"help": "Share of a batch that is the group of the important images, beta."}
        )
        relabel_margin: OnCard[float] = field(
            default=0.2,
            metadata={"help": "Lead of the largest probability over the label's that replaces the label, delta_2."},
        )
        relabel_after: OnCard[float] = field(
            default=0.25, metadata={"help": "Share of the training before labels are replaced; 1: never."}
        )

        def __post_init__(self) -> None:
            shares = ("rank_weight", "important_share", "relabel_margin", "relabel_after")
            check_ranges(self, rank_margin="[0, inf)", **dict.fromkeys(shares, "[0, 1]"))

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        self.add_head(nn.Linear(last_linear(model, self.name).in_features, 1))
        self.relabeled = torch.full((len(table),), -1, dtype=torch.int64, device=self.device)  # -1: as given

    def labels(self, batch: Batch) -> Tensor:
        """The labels (B,) that hold now."""
        new = self.relabeled[batch.index]
        return torch.where(new < 0, batch.columns["labels"], new)

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None and self.head is not None
        settings, labels = self.settings, self.labels(batch)
        importance = self.head(self.pooled(batch.features[0]))[:, 0].sigmoid()
        logits = importance[:, None] * batch.logits[0].float()
        high = high_group(importance.detach(), settings.important_share)
        if batch.progress >= settings.relabel_after and settings.relabel_after < 1:
            self.relabel(batch, logits.detach().softmax(dim=1), labels, high)
        rank = rank_loss(importance, high, settings.rank_margin)
        return (1 - settings.rank_weight) * cross_entropy_loss(logits, labels) + settings.rank_weight * rank

    def relabel(self, batch: Batch, probabilities: Tensor, labels: Tensor, high: Tensor) -> None:
        """Replace labels (B,) of the low group, on all processes."""
        largest, predicted = probabilities.max(dim=1)
        given = probabilities.gather(1, labels[:, None])[:, 0]
        doubted = ~high & (largest - given > self.settings.relabel_margin)
        index, doubted, predicted = self.gather_revisable(batch, doubted, predicted)
        self.relabeled[index[doubted]] = predicted[doubted]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"relabeled": self.relabeled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.relabeled = state["relabeled"]
