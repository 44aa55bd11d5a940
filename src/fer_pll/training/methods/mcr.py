"""Label-free consistency, after MCR (Tan, Xia and Song, Mining label-free consistency regularization for noisy facial
expression recognition, 2025)."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.losses import cross_entropy_loss, pll_loss
from .base import Batch
from .given_labels import GivenLabelMethod


def instance_consistency(first: Tensor, second: Tensor) -> Tensor:
    """`1 - x_i . x'_i` of unit vectors (B, d), (B,)."""
    return 1 - (first * second).sum(dim=1)


def distance_consistency(first: Tensor, second: Tensor) -> Tensor:
    """`mean_j (x_i . x_j - x'_i . x'_j)^2` of unit vectors (B, d), (B,)."""
    return (first @ first.T - second @ second.T).square().mean(dim=1)


def neighbor_targets(features: Tensor, probabilities: Tensor, number: int, temperature: float) -> Tensor:
    """Mean of the predictions for the nearest other rows of the batch, (B, K), by the softmax of their `cos / tau`.

    Args:
        features: unit vectors (B, d).
        probabilities: (B, K).
        number: of neighbors; fewer where the batch has no more.
        temperature: tau.
    """
    similarity = features @ features.T
    similarity.fill_diagonal_(float("-inf"))
    nearest = similarity.topk(min(number, len(features) - 1), dim=1)
    weights = (nearest.values / temperature).softmax(dim=1)
    return (weights[:, :, None] * probabilities[nearest.indices]).sum(dim=1)


class MCR(GivenLabelMethod):
    """Cross-entropy, and three consistencies of two views of a batch that look at no label.

        loss_i = -log p_{i, y_i} + w_1 (1 - x_i . x'_i) + w_2 mean_j (x_i . x_j - x'_i . x'_j)^2
                 + w_3 * -sum_k q_ik log p'_ik
        q_i = mean of p_j over the nearest rows j of the first view, weighted by the softmax of x_i . x_j / tau

    x and x' are the unit vectors of what enters the model's classifier (the mean over label queries) in the two views;
    no gradient flows through q. The mirroring and cropping of the augmentation make the views.

    The paper names the three: of each instance's embedding, of the distances between pairs, of neighbors. The forms,
    weights and temperature here are ours. Each process compares the rows of its own micro-batch.
    """

    name = "mcr"
    summary = (
        "the cross-entropy with the given label, and the consistency of two views in their features, in the distances "
        "of pairs and with the predictions for neighbors (after MCR, Tan et al., 2025)"
    )
    uses_features = True
    num_views = trained_views = 2
    NEIGHBORS = 4
    TEMPERATURE = 0.1

    @dataclass(frozen=True)
    class Settings:
        instance_weight: OnCard[float] = field(
            default=0.5, metadata={"help": "Weight of the consistency of each image's features, w_1."}
        )
        distance_weight: OnCard[float] = field(
            default=1.0, metadata={"help": "Weight of the consistency of the distances of pairs, w_2."}
        )
        agreement_weight: OnCard[float] = field(
            default=0.5, metadata={"help": "Weight of the consistency with the neighbors' predictions, w_3."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, instance_weight="[0, inf)", distance_weight="[0, inf)", agreement_weight="[0, inf)")

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        settings = self.settings
        first, second = (nn.functional.normalize(self.pooled(each), dim=1) for each in batch.features)
        total = cross_entropy_loss(batch.logits[0], batch.columns["labels"])
        total = total + settings.instance_weight * instance_consistency(first, second)
        total = total + settings.distance_weight * distance_consistency(first, second)
        if len(first) > 1:
            probabilities = batch.logits[0].detach().float().softmax(dim=1)
            near = neighbor_targets(first.detach(), probabilities, self.NEIGHBORS, self.TEMPERATURE)
            total = total + settings.agreement_weight * pll_loss(batch.logits[1], near)
        return total
