"""Tiny networks of transformers and timm with random weights, as checkpoints that label queries can stand on."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmBackboneConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from fer_pll import FerPllConfig, FerPllResNetConfig
from tiny import CLASSES

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIDE = 32
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}

SOURCES: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "resnet": (ResNetForImageClassification, ResNetConfig(embedding_size=8, layer_type="basic", **_STAGES)),
    "convnext": (ConvNextForImageClassification, ConvNextConfig(num_stages=2, **_STAGES)),
    "convnextv2": (ConvNextV2ForImageClassification, ConvNextV2Config(num_stages=2, **_STAGES)),
    "swin": (
        SwinForImageClassification,
        SwinConfig(image_size=SIDE, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
    ),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config(mlp_ratio=2, layerscale_value=0.5, **_BLOCKS)),
    "dinov2_with_registers": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=3, **_BLOCKS),
    ),
    "beit": (BeitForImageClassification, BeitConfig(intermediate_size=32, use_relative_position_bias=True, **_BLOCKS)),
    "vit": (ViTForImageClassification, ViTConfig(intermediate_size=32, **_BLOCKS)),
}

FEATURES: dict[str, Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]] = {
    "resnet": lambda model, x: model.resnet(x).last_hidden_state,
    "convnext": lambda model, x: _normed(model.convnext(x).last_hidden_state, 1e-6),
    "convnextv2": lambda model, x: _normed(model.convnextv2(x).last_hidden_state, 1e-6),
    "swin": lambda model, x: _normed(model.swin(x, output_hidden_states=True).reshaped_hidden_states[-1], 1e-5),
    "dinov2": lambda model, x: _map(model.dinov2(x).last_hidden_state[:, 1:]),
    "dinov2_with_registers": lambda model, x: _map(model.dinov2_with_registers(x).last_hidden_state[:, 4:]),
    "beit": lambda model, x: _map(model.beit(x, output_hidden_states=True).hidden_states[-1][:, 1:]),
    "vit": lambda model, x: _map(model.vit(x).last_hidden_state[:, 1:]),
}
"""The last feature map (B, C, h, w), computed from the source's own output."""


def _normed(feature_map: torch.Tensor, eps: float) -> torch.Tensor:
    """With the norm that a backbone adds to it, at its first values."""
    tokens = feature_map.movedim(1, -1)
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=eps).movedim(-1, 1)


def _map(tokens: torch.Tensor) -> torch.Tensor:
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def save_source(name: str, folder: Path) -> PreTrainedModel:
    """A classifier of ten classes in a folder, as on the Hub; no weight has the value of a new model."""
    model_class, config = SOURCES[name]
    torch.manual_seed(0)
    model = model_class(type(config).from_dict(config.to_dict() | {"num_labels": 10})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_convert_rgb=True, **IMAGENET).save_pretrained(folder)
    return model


def timm_config(architecture: str, **settings) -> TimmBackboneConfig:
    return TimmBackboneConfig.from_dict({"backbone": architecture, "out_indices": [2, 3]} | settings)


OURS = FerPllResNetConfig(
    hidden_sizes=[8, 16],
    depths=[1, 1],
    stem_size=8,
    squeeze_ratio=0.25,
    drop_path_rate=0.1,
    num_channels=3,
    standardize_images=True,
)


def queries_on(backbone_config: PreTrainedConfig | dict, **settings) -> FerPllConfig:
    """Narrow label queries on a backbone."""
    defaults = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIDE,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: number for number, name in enumerate(CLASSES)},
    }
    return FerPllConfig(backbone_config=backbone_config, **defaults | settings)
