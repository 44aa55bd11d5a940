"""Class centers in the space of features (Wen et al., A Discriminative Feature Learning Approach for Deep Face
Recognition, 2016): what the methods with a center loss share."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


class CenterMethod(GivenLabelMethod):
    """Keeps a center for each class, which moves towards the rows of its class after each loss:

        c_k = c_k - alpha * sum_{i: y_i = k} a_i (c_k - x_i) / (1 + n_k)

    n_k is the number of rows of class k in the batch of all processes, of which each counts once. Centers start at
    zero; the authors' are random.
    """

    uses_features = True

    @dataclass(frozen=True)
    class Settings:
        center_weight: OnCard[float] = field(
            default=0.01, metadata={"help": "Weight of the distance from the centers, lambda."}
        )
        center_step: OnCard[float] = field(
            default=0.5, metadata={"help": "How far a step moves the centers, alpha; 0 .. 1."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, center_weight="[0, inf)", center_step="[0, 1]")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        self.width = last_linear(model, self.name).in_features
        self.centers = torch.zeros(len(table.class_names), self.width, device=self.device)

    @torch.no_grad()
    def move_centers(self, batch: Batch, features: Tensor, attention: Tensor, labels: Tensor) -> None:
        """Move the centers by the rows of all processes.

        Args:
            batch: the rows.
            features: x, (B, d).
            attention: a, (B, d), how much each dimension of each row counts.
            labels: (B,).
        """
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
