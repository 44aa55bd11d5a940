"""DDA, discriminant distribution-agnostic loss (Farzaneh and Qi, 2020)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.losses import cross_entropy_loss
from .base import Batch
from .centers import CenterMethod


def squared_distances(features: Tensor, centers: Tensor) -> Tensor:
    """`||x_i - c_k||^2`, (B, K), from features (B, d) and centers (K, d)."""
    return (features[:, None] - centers).square().sum(dim=2)


class DDA(CenterMethod):
    """Pulls the features of a class to its center, and pushes them from the other classes' centers.

        loss_i = -log p_{i, y_i} + lambda / 2 * d_{i, y_i} - gamma / 2 * log softmax(-d_i)_{y_i}
        d_ik = ||x_i - c_k||^2

    x is what enters the model's classifier (the mean over label queries). The last term separates the classes whatever
    their sizes: a rare class's center is as far from the others as a frequent one's. `CenterMethod` says how centers
    move.

    Our reading: the public code divides the last term by the batch size twice, with gamma 3. Here it is divided once,
    and gamma is what is left of that at a batch of 64. No gradient of the last term moves the centers.
    """

    name = "dda"
    summary = (
        "the cross-entropy with the given label, the distance of the features from their class's center, and the "
        "cross-entropy of the distances from all centers (DDA, Farzaneh and Qi, 2020)"
    )

    @dataclass(frozen=True)
    class Settings(CenterMethod.Settings):
        discriminant_weight: OnCard[float] = field(
            default=0.05, metadata={"help": "Weight of the cross-entropy of the distances, gamma."}
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            check_ranges(self, discriminant_weight="[0, inf)")

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        features, labels, settings = self.pooled(batch.features[0]), batch.columns["labels"], self.settings
        distances = squared_distances(features, self.centers)
        total = cross_entropy_loss(batch.logits[0], labels)
        total = total + settings.center_weight / 2 * distances.gather(1, labels[:, None])[:, 0]
        total = total + settings.discriminant_weight / 2 * cross_entropy_loss(-distances, labels)
        self.move_centers(batch, features.detach(), torch.ones_like(features), labels)
        return total
