"""EAC, erasing attention consistency (Zhang et al., Learn From All: Erasing Attention Consistency for Noisy Label
Facial Expression Recognition, 2022)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cross_entropy_loss
from .base import Batch, MethodOptions
from .given_labels import GivenLabelMethod
from .network import last_linear


def attention_maps(maps: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps, float32 (B, K, h, w): `M_k(a, b) = sum_c W_{kc} F_c(a, b)` (Zhou et al., 2016).

    Args:
        maps: F, (B, C, h, w).
        weight: W, (K, C), of the classifier.
    """
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("kc,bchw->bkhw", weight.float(), maps.float())


class EAC(GivenLabelMethod):
    """Wants an image and its mirror image to be judged by the same places, while only the image has a label.

        loss_i = -log p_{i, y_i} + lambda * mean_{k, a, b} (M_k - mirrored M'_k)^2

    M are the class activation maps of the image, M' those of its mirror image, through which gradient flows as well.
    Only the image enters the cross-entropy. A network that memorizes a wrong label looks at one part of the face; that
    breaks the consistency, so consistency keeps it from memorizing.

    The erasing is augmentation: `erase` (the authors': in half of the images). Mirroring in the augmentation (`flip`)
    does no harm: the two images of a row stay mirror images of each other.

    The maps are exact where the classifier is a linear layer on the mean of the map. With a class token, or a norm
    after the mean, they are the classifier's weights at each place. Label queries have no such map, so a model with
    a query decoder is refused.
    """

    name = "eac"
    summary = (
        "the cross-entropy with the given label, and the squared difference between the class activation maps of an "
        "image and of its mirror image (EAC, Zhang et al., 2022)"
    )
    uses_maps = True
    mirrored = True

    @dataclass(frozen=True)
    class Settings:
        attention_weight: OnCard[float] = field(
            default=5.0, metadata={"help": "Weight of the consistency of the activation maps, lambda."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, attention_weight="[0, inf)")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        if getattr(model, "label_queries", None) is not None:
            raise ValueError(
                "loss='eac' needs a classifier on the mean of the feature map: choose --add_query_decoder false, or "
                "another loss."
            )

    def loss(self, batch: Batch) -> Tensor:
        assert batch.maps is not None
        weight = last_linear(self.model, self.name).weight
        if weight.shape[1] != batch.maps.shape[2]:
            raise ValueError(
                f"loss='eac': the classifier takes {weight.shape[1]} values, but the encoder's last map has "
                f"{batch.maps.shape[2]} channels: choose another network or loss."
            )
        image, mirror = (attention_maps(maps, weight) for maps in batch.maps)
        difference = (image - mirror.flip(-1)).square().mean(dim=(1, 2, 3))
        labels = batch.columns["labels"]
        return cross_entropy_loss(batch.logits[0], labels) + self.settings.attention_weight * difference
