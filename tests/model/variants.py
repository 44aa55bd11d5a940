"""Models of ours in all their parts, tiny, and what they answer: for tests of weights in another place or form."""

import torch
from transformers import PreTrainedModel

from fer_pll import FerPllForImageClassification, FerPllForPreTraining
from tiny import tiny_config

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_channels": 1,
}
VARIANTS = {
    "classifier": (FerPllForImageClassification, {}),
    "linear": (FerPllForImageClassification, {"add_query_decoder": False}),
    "learned positions": (FerPllForImageClassification, {"position_embedding_type": "learned"}),
    "another backbone": (FerPllForImageClassification, {"backbone_config": RESNET}),
    "pre-training": (FerPllForPreTraining, {}),
    "token style": (FerPllForPreTraining, {"mask_style": "token"}),
}
PIXELS = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


def make_variant(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class, changes = VARIANTS[name]
    return model_class(tiny_config(**changes)).eval()


def logits(model: PreTrainedModel, gradients: bool = False) -> torch.Tensor:
    given = {"noise": NOISE} if isinstance(model, FerPllForPreTraining) else {}
    with torch.set_grad_enabled(gradients):
        return model(pixel_values=PIXELS, **given).logits.detach()
