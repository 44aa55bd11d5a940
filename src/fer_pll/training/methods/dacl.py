"""DACL, deep attentive center loss (Farzaneh and Qi, 2021)."""

from torch import Tensor, nn

from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .centers import CenterMethod


def sparse_center_loss(features: Tensor, attention: Tensor, centers: Tensor) -> Tensor:
    """`1/2 sum_j a_ij (x_ij - c_{y_i, j})^2` of each row, (B,).

    Args:
        features: x, (B, d).
        attention: a, (B, d), 0 .. 1.
        centers: those of the rows' classes, (B, d).
    """
    return (attention * (features - centers).square()).sum(dim=1) / 2


class DACL(CenterMethod):
    """Pulls the features of a class to its center, in the dimensions that a small network finds worth it.

        loss_i = -log p_{i, y_i} + lambda / 2 * sum_j a_ij (x_ij - c_{y_i, j})^2

    x is what enters the model's classifier (the mean over label queries). The attention a_i is a network of three
    layers and, for each dimension, a sigmoid; it is no part of the published model. A sigmoid is the authors' softmax
    over two outputs. `CenterMethod` says how centers move.

    Our reading: the attention looks at the mean of the feature map, x, where the authors look at the flattened map, so
    it does not depend on the size of the images; and it has layer norms where they have batch norms.
    """

    name = "dacl"
    summary = (
        "the cross-entropy with the given label, and the distance of the features from their class's center in the "
        "dimensions that an attention chooses (DACL, Farzaneh and Qi, 2021)"
    )
    CODE = 64

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        width = self.width
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

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None and self.head is not None
        features, labels = self.pooled(batch.features[0]), batch.columns["labels"]
        attention = self.head(features)
        distance = sparse_center_loss(features, attention, self.centers[labels])
        self.move_centers(batch, features.detach(), attention.detach(), labels)
        return cross_entropy_loss(batch.logits[0], labels) + self.settings.center_weight * distance
