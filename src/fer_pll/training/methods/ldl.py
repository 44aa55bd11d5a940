"""Label distributions from neighbors, after LDL-ALSG (Chen et al., Label Distribution Learning on Auxiliary Label
Space Graphs for Facial Expression Recognition, 2020) and FSLDL (Shin et al., 2024)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import pll_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


def neighbor_distribution(
    queries: Tensor, keys: Tensor, distributions: Tensor, excluded: Tensor, number: int, temperature: float
) -> Tensor:
    """Mean of the nearest keys' distributions, (B, K), weighted by the softmax of `cos / tau` among them.

    Args:
        queries: unit vectors (B, d).
        keys: unit vectors (M, d), M > number.
        distributions: (M, K), of the keys.
        excluded: (B, M) bool, keys that are no neighbors, at most M - number in each row.
        number: of neighbors.
        temperature: tau.
    """
    nearest = (queries @ keys.T).masked_fill(excluded, float("-inf")).topk(number, dim=1)
    weights = (nearest.values / temperature).softmax(dim=1)
    return (weights[:, :, None] * distributions[nearest.indices]).sum(dim=1)


class NeighborLDL(GivenLabelMethod):
    """Mixes the given label with what the model says about the images that look alike.

        D_i = (1 - lambda) one-hot(y_i) + lambda sum_{j in N(i)} s_ij p_j
        loss_i = -sum_k D_ik log p_ik,  s_ij = softmax over N(i) of cos(x_i, x_j) / tau

    x is what enters the model's classifier (the mean over label queries). N(i) are the nearest of the last 8192 rows
    of all processes; x_j and p_j are those of their visit. A row is no neighbor of itself. Until there are enough
    rows, D is the given label.

    This is the idea that both papers share, that like faces have like label distributions, not either paper to the
    letter: LDL-ALSG finds neighbors in the space of an auxiliary task (landmarks or action units) and pulls the
    predictions of neighbors together; FSLDL learns the distributions of each face. Both need what a set of images and
    labels does not have.
    """

    name = "ldl"
    summary = (
        "the cross-entropy with a label distribution, a mixture of the given label and of the predictions for the "
        "images with the nearest features (after LDL-ALSG, Chen et al., 2020)"
    )
    uses_features = True
    QUEUE = 8192

    @dataclass(frozen=True)
    class Settings:
        neighbors: OnCard[int] = field(default=8, metadata={"help": "Number of the nearest images."})
        neighbor_share: OnCard[float] = field(
            default=0.3, metadata={"help": "Share of the neighbors in the label distribution, lambda."}
        )
        neighbor_temperature: OnCard[float] = field(
            default=0.1, metadata={"help": "Temperature of the neighbors' weights, tau."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, neighbors="[1, inf)", neighbor_share="[0, 1]", neighbor_temperature="(0, inf)")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        width = last_linear(model, self.name).in_features
        self.keys = torch.zeros(self.QUEUE, width, device=self.device)
        self.predictions = torch.zeros(self.QUEUE, len(table.class_names), device=self.device)
        self.rows = torch.full((self.QUEUE,), -1, dtype=torch.int64, device=self.device)
        self.queued = 0  # how many rows have entered the queue so far

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        logits = batch.logits[0].float()
        features = nn.functional.normalize(self.pooled(batch.features[0]).detach(), dim=1)
        distribution = self.distribution(features, batch.index, batch.columns["labels"])
        self.remember(batch, features, logits.detach().softmax(dim=1))
        return pll_loss(logits, distribution)

    def distribution(self, features: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """D (B, K), from unit features (B, d), row numbers (B,) and labels (B,)."""
        given = nn.functional.one_hot(labels, self.predictions.shape[1]).float()
        filled = min(self.queued, self.QUEUE)
        own = self.rows[None, :filled] == index[:, None]
        number = self.settings.neighbors
        # A row may stand in the queue once for each epoch that the queue holds.
        if filled - int(own.sum(dim=1).amax()) < number:
            return given
        near = neighbor_distribution(
            features, self.keys[:filled], self.predictions[:filled], own, number, self.settings.neighbor_temperature
        )
        return torch.lerp(given, near, self.settings.neighbor_share)

    def remember(self, batch: Batch, features: Tensor, probabilities: Tensor) -> None:
        """Fill the queue with the rows of all processes, in the same order on each."""
        index, features, probabilities = self.gather_revisable(batch, features, probabilities)
        places = (self.queued + torch.arange(len(index), device=index.device)) % self.QUEUE
        self.keys[places], self.predictions[places], self.rows[places] = features, probabilities, index
        self.queued += len(index)

    def state_dict(self) -> dict[str, Any]:
        return {"keys": self.keys, "predictions": self.predictions, "rows": self.rows, "queued": self.queued}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keys, self.predictions, self.rows = state["keys"], state["predictions"], state["rows"]
        self.queued = state["queued"]
