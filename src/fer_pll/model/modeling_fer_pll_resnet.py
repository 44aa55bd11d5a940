"""A small residual network for small images: convolutions with batch norm, and strides that are settings.

Shapes in comments: B images, C channels, h x w cells.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_fer_pll_resnet import FerPllResNetConfig
from .drop_path import drop_path


def standardized(pixel_values: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) with mean 0 and variance 1 each: (x - m) / sqrt(v + 0.05^2), over all channels and pixels.

    An image without any contrast becomes 0; 0.05 is little beside the contrast of a face in normalized pixels.
    """
    centered = pixel_values - pixel_values.mean(dim=(1, 2, 3), keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(dim=(1, 2, 3), keepdim=True) + 0.05**2)


class FerPllResNetLastNorm(nn.BatchNorm2d):
    """The last norm of a block: its weights start at 0."""


class FerPllResNetConvolution(nn.Module):
    """Convolution without bias, and batch norm."""

    def __init__(
        self, in_size: int, out_size: int, kernel_size: int = 3, stride: int = 1, is_last: bool = False
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.convolution = nn.Conv2d(in_size, out_size, kernel_size, stride=stride, padding=padding, bias=False)
        self.norm = (FerPllResNetLastNorm if is_last else nn.BatchNorm2d)(out_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(hidden_states))


class FerPllResNetSqueeze(nn.Module):
    """Squeeze-and-excitation: each channel times a gate between 0 and 1, from the means of all channels."""

    def __init__(self, size: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, squeezed)
        self.fc2 = nn.Linear(squeezed, size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gates = self.fc2(self.fc1(hidden_states.mean(dim=(2, 3))).relu()).sigmoid()  # (B, C)
        return hidden_states * gates[..., None, None]


class FerPllResNetBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, (B, C, h, w) -> (B, size, h / stride, w / stride)."""

    def __init__(
        self, config: FerPllResNetConfig, in_size: int, size: int, stride: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.conv1 = FerPllResNetConvolution(in_size, size, stride=stride)
        self.conv2 = FerPllResNetConvolution(size, size, is_last=True)
        squeezed = round(config.squeeze_ratio * size)
        self.squeeze = FerPllResNetSqueeze(size, max(squeezed, 1)) if config.squeeze_ratio else None
        keeps_shape = (in_size, stride) == (size, 1)
        self.shortcut = None if keeps_shape else FerPllResNetConvolution(in_size, size, kernel_size=1, stride=stride)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        branch = self.conv2(self.activation_fn(self.conv1(hidden_states)))
        if self.squeeze is not None:
            branch = self.squeeze(branch)
        if self.training and self.drop_path_rate > 0:
            branch = drop_path(branch, self.drop_path_rate)
        shortcut = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        return self.activation_fn(shortcut + branch)


class FerPllResNetBackbone(BackboneMixin, PreTrainedModel):
    """The network as a backbone of transformers: the feature maps of the stages in `config.out_features`."""

    config: FerPllResNetConfig
    config_class = FerPllResNetConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # transformers' own models have tuples, too
    has_attentions = False
    _no_split_modules = ["FerPllResNetBlock"]  # noqa: RUF012  # no ClassVar there

    def __init__(self, config: FerPllResNetConfig) -> None:
        super().__init__(config)
        assert config.strides is not None  # see __post_init__
        sizes = [config.stem_size, *config.hidden_sizes]
        self.num_features = sizes
        self.stem = FerPllResNetConvolution(config.num_channels, config.stem_size, stride=config.stem_stride)
        self.activation_fn = ACT2FN[config.hidden_act]
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    FerPllResNetBlock(config, size if number else in_size, size, 1 if number else stride, next(rates))
                    for number in range(depth)
                )
            )
            for in_size, size, depth, stride in zip(
                sizes, config.hidden_sizes, config.depths, config.strides, strict=False
            )
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialization. The last norm of each block starts at 0, and the block so as its shortcut."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            (init.zeros_ if isinstance(module, FerPllResNetLastNorm) else init.ones_)(module.weight)
            init.zeros_(module.bias)
            for name, value in (("running_mean", init.zeros_), ("running_var", init.ones_)):
                value(module.get_buffer(name))
            init.zeros_(module.get_buffer("num_batches_tracked"))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BackboneOutput:
        """Feature maps of images.

        Args:
            pixel_values: (B, C, H, W).
            output_hidden_states: whether to return the maps of all stages as well, the stem's first.
        """
        pixel_values = pixel_values.to(self.stem.convolution.weight.dtype)
        if self.config.standardize_images:
            pixel_values = standardized(pixel_values)
        maps = [self.activation_fn(self.stem(pixel_values))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BackboneOutput(
            feature_maps=tuple(
                each for name, each in zip(self.stage_names, maps, strict=True) if name in self.out_features
            ),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


FerPllResNetBackbone.register_for_auto_class("AutoBackbone")

__all__ = ["FerPllResNetBackbone"]
