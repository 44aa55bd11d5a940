"""From the feature maps of any backbone to the tokens that label queries attend to.

Shapes in comments: B images, h x w cells of a map, L cells of all maps together, d width of the queries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_BACKBONE_MAPPING_NAMES

from .configuration_fer_pll import FerPllConfig
from .configuration_fer_pll_resnet import FerPllResNetConfig
from .modeling_fer_pll_resnet import FerPllResNetBackbone


def make_backbone(config: FerPllConfig) -> PreTrainedModel:
    """The backbone of `config.backbone_config`, with random weights.

    Raises:
        ValueError: transformers has no backbone of this kind.
        ImportError: it needs a package that is not installed, such as timm.
    """
    assert isinstance(config.backbone_config, PreTrainedConfig)  # see its __post_init__
    # Ours is not registered where this file came with a checkpoint, and there its class may have been loaded twice.
    if config.backbone_config.model_type == FerPllResNetConfig.model_type:
        backbone_class: Any = FerPllResNetBackbone
    else:
        backbone_class = MODEL_FOR_BACKBONE_MAPPING.get(type(config.backbone_config), None)
        if backbone_class is None:
            kinds = ", ".join(sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES))
            raise ValueError(
                f"backbone_config: transformers has no backbone for {config.backbone_config.model_type!r}; it has "
                f"some for {kinds}."
            )
    if not backbone_class.has_attentions:  # what was chosen for the label queries would be refused
        config.backbone_config._attn_implementation = None
    config.backbone_config.return_dict = True  # tuples are for the callers of the whole model
    return backbone_class._from_config(config.backbone_config)


def grid_positions(
    height: int, width: int, cells: tuple[float, float], dim: int, device: torch.device
) -> torch.Tensor:
    """Fixed 2D sine-cosine positions of the centers of height x width cells, float32 (height * width, dim).

    As MAE's: a quarter of the channels each for sin(column), cos(column), sin(row), cos(row), in row-major order. A
    map of the size `cells` counts its columns and rows from 0 on; one of another size has the same corners, so maps of
    several sizes agree on where things are.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4))
    axes = []
    for size, reference, shape in ((width, cells[1], (1, width, -1)), (height, cells[0], (height, 1, -1))):
        center = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (reference / size) - 0.5
        angle = center[:, None] * frequency
        axes.append(torch.cat([angle.sin(), angle.cos()], dim=1).view(shape).expand(height, width, -1))
    return torch.cat(axes, dim=2).flatten(0, 1)


class FerPllFeatureTokens(nn.Module):
    """Projects feature maps to the width of the queries, and adds where each cell is and which stage it is of.

    A linear layer and a LayerNorm for each stage; the latter, because backbones leave their maps at any scale.

    Args:
        config: has the width, and the image size that positions are counted for.
        channels: of each map.
    """

    def __init__(self, config: FerPllConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.projections = nn.ModuleList(nn.Linear(size, config.hidden_size) for size in channels)
        self.layernorms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in channels)
        several = len(channels) > 1
        self.stage_embeddings = nn.Parameter(torch.zeros(len(channels), config.hidden_size)) if several else None

    def forward(self, feature_maps: Sequence[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
        """Tokens (B, L, d), stage after stage, each in row-major order.

        Args:
            feature_maps: (B, C, h, w) each.
            image_size: height and width of the images in pixels.
        """
        # Columns and rows of the first map, had the image the size that the model is configured for.
        height, width = feature_maps[0].shape[2:]
        cells = height * self.image_size / image_size[0], width * self.image_size / image_size[1]
        tokens = []
        for number, feature_map in enumerate(feature_maps):
            stage = self.layernorms[number](self.projections[number](feature_map.flatten(2).transpose(1, 2)))
            height, width = feature_map.shape[2:]
            positions = grid_positions(height, width, cells, stage.shape[-1], stage.device)
            if self.stage_embeddings is not None:
                positions = positions + self.stage_embeddings[number]
            tokens.append(stage + positions.to(stage.dtype))
        return torch.cat(tokens, dim=1)
