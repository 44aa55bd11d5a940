"""DACL, deep attentive center loss (Farzaneh and Qi, 2021)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


def sparse_center_loss(features: Tensor, attention: Tensor, centers: Tensor) -> Tensor:
    """`1/2 sum_j a_ij (x_ij - c_{y_i, j})^2` of each row, (B,).

    Args:
        features: x, (B, d).
        attention: a, (B, d), 0 .. 1.
        centers: those of the rows' classes, (B, d).
    """
    return (attention * (features - centers).square()).sum(dim=1) / 2


class DACL(GivenLabelMethod):
    """Pulls the features of a class to its center, in the dimensions that a small network finds worth it.

        loss_i = -log p_{i, y_i} + lambda / 2 * sum_j a_ij (x_ij - c_{y_i, j})^2
        c_k = c_k - alpha * sum_{i: y_i = k} a_i (c_k - x_i) / (1 + n_k), after the loss

    x is what enters the model's classifier (the mean over label queries), n_k the number of rows of class k in the
    batch of all processes, of which each counts once. The attention a_i is a network of three layers and, for each
    dimension, a sigmoid; it is no part of the published model. A sigmoid is the authors' softmax over two outputs.

    Our reading: the attention looks at the mean of the feature map, x, where the authors look at the flattened map, so
    it does not depend on the size of the images; and it has layer norms where they have batch norms. Centers start at
    zero; theirs are random.
    """

    name = "dacl"
    summary = (
        "the cross-entropy with the given label, and the distance of the features from their class's center in the "
        "dimensions that an attention chooses (DACL, Farzaneh and Qi, 2021)"
    )
    uses_features = True
    CODE = 64

    @dataclass(frozen=True)
    class Settings:
        center_weight: OnCard[float] = field(
            default=0.01, metadata={"help": "Weight of the distance from the centers, lambda."}
        )
        center_step: OnCard[float] = field(
            default=0.5, metadata={"help": "How far a step moves the centers, alpha; 0 .. 1."}
        )

        def __post_init__(self) -> None:
            if self.center_weight < 0:
                raise ValueError(f"center_weight={self.center_weight} must not be negative.")
            if not 0 <= self.center_step <= 1:
                raise ValueError(f"center_step={self.center_step} must lie in [0, 1].")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        width = last_linear(model, self.name).in_features
        self.add_head(
            nn.Sequential(
                nn.Linear(width, width),
                nn.LayerNorm(width),
                nn.ReLU(),
                nn.Linear(width, self.CODE),
                nn.LayerNorm(self.CODE),
                nn.Tanh(),
                nn.Linear(self.CODE, width),
                nn.Sigmoid(),
            )
        )
        self.centers = torch.zeros(len(table.class_names), width, device=self.device)

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None and self.head is not None
        features, labels = self.pooled(batch.features[0]), batch.columns["labels"]
        attention = self.head(features)
        distance = sparse_center_loss(features, attention, self.centers[labels])
        self.move_centers(batch, features.detach(), attention.detach(), labels)
        return cross_entropy_loss(batch.logits[0], labels) + self.settings.center_weight * distance

    @torch.no_grad()
    def move_centers(self, batch: Batch, features: Tensor, attention: Tensor, labels: Tensor) -> None:
        """Move the centers by the rows of all processes."""
        _, features, attention, labels = self.gather_revisable(batch, features, attention, labels)
        pulls = attention * (self.centers[labels] - features)
        total = torch.zeros_like(self.centers).index_add_(0, labels, pulls)
        number = labels.bincount(minlength=len(self.centers))[:, None]
        self.centers = self.centers - self.settings.center_step * total / (1 + number)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"centers": self.centers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.centers = state["centers"]
