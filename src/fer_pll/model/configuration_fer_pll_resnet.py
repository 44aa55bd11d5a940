"""Configuration of a small residual network for small images, a backbone for the label queries."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin


@strict
class FerPllResNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Sizes of a plain residual network (He et al., 2016). transformers' ResNet shrinks an image to a quarter before its
    first stage, which leaves 2 x 2 cells of a face of 48 pixels; here the strides are settings. The defaults make
    6 x 6 cells of it, with 1.6 million parameters.

    Args:
        num_channels (`int`, defaults to 1): 1 for gray images, 3 for color.
        standardize_images (`bool`, defaults to `False`): subtract from each image the mean of its pixels and divide it
            by their standard deviation, so that light and contrast do not have to be learned away.
        stem_size (`int`, defaults to 32): channels of the first convolution.
        stem_stride (`int`, defaults to 1): 1 or 2.
        hidden_sizes (`list[int]`, defaults to `[48, 96, 192]`): channels of each stage.
        depths (`list[int]`, defaults to `[2, 2, 2]`): residual blocks of each stage, two 3x3 convolutions in each.
        strides (`list[int]`, defaults to 2 for each stage): of each stage's first block.
        hidden_act (`str`, defaults to `"relu"`).
        squeeze_ratio (`float`, defaults to 0): width of the squeeze-and-excitation in each block (Hu et al., 2018), as
            a share of its channels; 0 for none.
        drop_path_rate (`float`, defaults to 0): stochastic depth of the last block; grows linearly from 0 at the
            first.
        out_features, out_indices: as in transformers' backbones; the stages are `stem`, `stage1`, `stage2`, ...

    Raises:
        StrictDataclassError: of `huggingface_hub`; a value has a wrong type or lies outside its range.
    """

    model_type = "fer_pll_resnet"

    num_channels: int = 1
    standardize_images: bool = False
    stem_size: int = 32
    stem_stride: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 192)
    depths: list[int] | tuple[int, ...] = (2, 2, 2)
    strides: list[int] | tuple[int, ...] | None = None
    hidden_act: str = "relu"
    squeeze_ratio: float | int = 0.0
    drop_path_rate: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        self.strides = list(self.strides or [2] * len(self.depths))
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def validate_stages(self) -> None:
        """Raise `ValueError` if the stages' settings do not fit each other, or a value is out of its range."""
        assert self.strides is not None  # see __post_init__
        if not self.depths or not len(self.hidden_sizes) == len(self.depths) == len(self.strides):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes}, depths={self.depths} and strides={self.strides} need one value "
                "for each stage."
            )
        if min(self.num_channels, self.stem_size, *self.hidden_sizes, *self.depths) < 1:
            raise ValueError("num_channels, stem_size, hidden_sizes and depths must be at least 1.")
        if not {self.stem_stride, *self.strides} <= {1, 2}:
            raise ValueError(f"stem_stride={self.stem_stride} and strides={self.strides} must be 1 or 2.")
        if not (0 <= self.squeeze_ratio <= 1 and 0 <= self.drop_path_rate < 1):
            raise ValueError("squeeze_ratio must lie in [0, 1], drop_path_rate in [0, 1).")


FerPllResNetConfig.register_for_auto_class()

__all__ = ["FerPllResNetConfig"]
