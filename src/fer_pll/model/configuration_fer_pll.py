"""Configuration of the fer-pll models."""

import copy
from collections import Counter
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .configuration_fer_pll_resnet import FerPllResNetConfig

TASK = "facial-expression-recognition"

RETIRED = {
    "query_self_attention": (False, "its label queries attend to each other, which this version cannot compute"),
    "finetuning_mask_ratio": (0, "predictions do not depend on it: set it to 0 in config.json to train without it"),
    "hog_window_size": (0, "only pre-training depended on it: set it to 0 in config.json to use the weights"),
}
"""Settings of earlier versions: the value that changes nothing, and the message for any other value."""

LARGEST = {
    "image_size": 2048,
    "patch_size": 512,
    "num_channels": 16,
    "hidden_size": 8192,
    "intermediate_size": 32768,
    "num_hidden_layers": 128,
    "num_attention_heads": 256,
    "decoder_hidden_size": 8192,
    "decoder_intermediate_size": 32768,
    "decoder_num_hidden_layers": 128,
    "decoder_num_attention_heads": 256,
    "query_decoder_num_hidden_layers": 128,
    "hog_orientations": 360,
}
"""The largest sizes: a config.json, which may be anybody's, takes no more memory than the largest models need."""

MAX_CLASSES = 10_000
MAX_PATCHES = 2**16
MAX_BLOCK_VALUES = 4_000_000_000
"""The most values that the weights of all blocks may have together, about."""


def check_bounds(settings: dict[str, Any]) -> None:
    """Raise `ValueError` for sizes beyond `LARGEST` or `MAX_CLASSES`, before anything of such a size is made."""
    names = settings.get("id2label")
    sizes = settings | {"id2label": len(names) if isinstance(names, (dict, list)) else 0}
    for name, largest in {**LARGEST, "num_labels": MAX_CLASSES, "id2label": MAX_CLASSES}.items():
        if isinstance(sizes.get(name), int) and sizes[name] > largest:
            raise ValueError(f"{name}={sizes[name]} is too large: at most {largest}.")


def drop_retired(settings: dict[str, Any]) -> None:
    """Remove from `settings` those that earlier versions wrote and this version does not have.

    `calibration_temperature` is removed whatever its value: it was only a record, which training.json holds as well.

    Raises:
        ValueError: with a setting's value the model would compute something else; the message names the setting.
    """
    settings.pop("calibration_temperature", None)
    for name, (unused, consequence) in RETIRED.items():
        if (value := settings.pop(name, unused)) != unused:
            raise ValueError(f"{name}={value} is a setting of earlier versions of fer-pll: {consequence}.")


@strict
class FerPllConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Sizes and switches of the encoder, the HOG pre-training head and the query decoder. The defaults give ViT-B/16 at
    224 pixels with the paper's pre-training settings (section 4.2).

    Another encoder:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*): a network of transformers' `AutoBackbone` in place
            of the encoder below; a dictionary names it in `model_type`. Its `out_features` are the feature maps that
            the label queries attend to, by default the last. `hidden_size`, `num_attention_heads` and
            `intermediate_size` then are those of the query decoder, `num_channels` is the backbone's, and `patch_size`
            and pre-training have no meaning.

    Encoder:
        hidden_size (`int`, defaults to 768): width d of the encoder and of the query decoder.
        num_hidden_layers (`int`, defaults to 12): transformer blocks of the encoder.
        num_attention_heads (`int`, defaults to 12): attention heads in every block, query decoder included.
        intermediate_size (`int`, defaults to 3072): hidden width of every MLP.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLPs.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0).
        drop_path_rate (`float`, defaults to 0): stochastic depth of the last block; grows linearly from 0 at the
            first.
        initializer_range (`float`, defaults to 0.02): standard deviation of the class and mask tokens and of learned
            positions.
        layer_norm_eps (`float`, defaults to 1e-6).
        qkv_bias (`bool`, defaults to `True`).
        image_size, patch_size (`int`, default to 224 and 16): in pixels; the patch must divide the image.
        num_channels (`int`, defaults to 3): 1 for gray images.
        stem (`"patch"` or `"conv"`): how pixels become tokens: one linear map of each patch, or 3x3 convolutions. In
            masked pre-training they see zeros, the mean color, in place of hidden pixels.
        position_embedding_type (`"sincos"` or `"learned"`): fixed 2D sine-cosine positions, or trained ones.

    Pre-training (paper, sections 3.2 and 4.2):
        mask_ratio (`float`, defaults to 0.4): share of hidden patches.
        mask_style (`"visible"` or `"token"`): `"visible"` encodes the visible patches only and predicts the others
            with a small decoder that is thrown away afterwards; `"token"` replaces the embedding of each hidden patch
            by a mask token and encodes the full sequence, with a linear head.
        mask_shape (`"random"` or `"blocks"`): single patches, or rectangles of them (BEiT, MaskFeat; with `"token"`).
            For rectangles, `mask_ratio` is the largest share.
        mask_unit_size (`int`, defaults to `patch_size`): side in pixels of the squares that random masks are made of
            (SimMIM has 32; with `"token"`).
        pretraining_target (`"hog"`, `"pixels"` or `"normalized_pixels"`): what the model predicts for a hidden
            patch. The last are the pixels minus their mean, divided by their standard deviation (MAE).
        pretraining_loss (`"l2"` or `"l1"`): mean squared or mean absolute error.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`,
            default to 512, 2, 8 and 2048): the decoder of `"visible"`.
        hog_cell_size, hog_orientations (`int`, default to 8 and 9): pixels per HOG cell side and orientation bins; the
            cell must divide the patch.
        hog_gradient (`"central"` or `"sobel"`): scikit-image's definition of HOG, or MaskFeat's.
        image_mean, image_std (`list[float]`): per channel, of pixels scaled to 0..1; how to undo the normalization of
            `pixel_values`, since HOG is defined on 8-bit images. Must equal the image processor's.

    Classification (paper, section 3.3):
        add_query_decoder (`bool`, defaults to `True`): one learnable query per class and cross-attention to the patch
            tokens; otherwise a linear layer on the mean of the patch tokens.
        query_decoder_num_hidden_layers (`int`, defaults to 2).

    As a backbone of other models (`FerPllBackbone`):
        out_features, out_indices: as in transformers' backbones; the stages are `stem`, `stage1`, `stage2`, ..., one
            for each block.

    Raises:
        StrictDataclassError: of `huggingface_hub`; a value has a wrong type or lies outside its range, or sizes do not
            fit each other.
        ValueError: a setting of an earlier version has a value that this version cannot follow.
    """

    model_type = "fer_pll"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "query_states",
        "hidden_states",
        "attentions",
        "cross_attentions",
    ]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True)
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    stem: Literal["patch", "conv"] = "patch"
    position_embedding_type: Literal["sincos", "learned"] = "sincos"

    mask_ratio: float | int = 0.4
    mask_style: Literal["visible", "token"] = "visible"
    mask_shape: Literal["random", "blocks"] = "random"
    mask_unit_size: int | None = None
    pretraining_target: Literal["hog", "pixels", "normalized_pixels"] = "hog"
    pretraining_loss: Literal["l2", "l1"] = "l2"
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int = 8
    decoder_intermediate_size: int = 2048
    hog_cell_size: int = 8
    hog_orientations: int = 9
    hog_gradient: Literal["central", "sobel"] = "central"
    image_mean: list[float] | tuple[float, ...] | None = None
    image_std: list[float] | tuple[float, ...] | None = None

    add_query_decoder: bool = True
    query_decoder_num_hidden_layers: int = 2
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    # Float `labels` would make transformers guess a multi-label problem, and the pipeline would apply a sigmoid. None,
    # transformers' default, means the same here.
    problem_type: Literal["single_label_classification"] | None = "single_label_classification"

    def __post_init__(self, **kwargs: Any) -> None:
        drop_retired(kwargs)
        check_bounds(vars(self) | kwargs)
        if isinstance(self.backbone_config, dict):
            kind: Any = self.backbone_config.get("model_type")
            # Ours is not registered where this file came with a checkpoint.
            is_ours = kind == FerPllResNetConfig.model_type
            if not is_ours and kind not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config: transformers knows no model_type {kind!r}; name a kind of backbone, such as "
                    "'resnet'."
                )
            config_class = FerPllResNetConfig if is_ours else CONFIG_MAPPING[kind]
            self.backbone_config = config_class.from_dict(self.backbone_config)
        self.num_channels = getattr(self.backbone_config, "num_channels", self.num_channels)
        # Left open if not given: which block is the last depends on `num_hidden_layers`, which may still be changed.
        stages = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in stages.values()):
            self.set_output_features_output_indices(**stages)
        self.image_mean = list(self.image_mean or [0.5] * self.num_channels)
        self.image_std = list(self.image_std or [0.5] * self.num_channels)
        self.mask_unit_size = self.mask_unit_size or self.patch_size
        self.problem_type = self.problem_type or "single_label_classification"
        super().__post_init__(**kwargs)

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """By task, what `pipeline(..., trust_remote_code=True)` makes of a checkpoint: its `impl`, a class in a file
        beside the weights, and `pt`, classes of transformers that load the model; empty where there is none.

        A copy, because transformers writes into it. Where the package has registered its own task, the code beside the
        weights is not asked for.
        """
        kept = copy.deepcopy(vars(self).get("custom_pipelines", {}))
        return _OursIsRegistered(kept) if __name__.endswith(".model.configuration_fer_pll") else kept

    @custom_pipelines.setter
    def custom_pipelines(self, tasks: dict[str, dict[str, Any]] | None) -> None:
        if not (tasks is None or (isinstance(tasks, dict) and all(isinstance(each, dict) for each in tasks.values()))):
            raise ValueError(f"custom_pipelines={tasks!r}: give the `impl` and `pt` of each task, or leave it out.")
        vars(self).pop("custom_pipelines", None)
        if tasks:
            vars(self)["custom_pipelines"] = copy.deepcopy(dict(tasks))

    @property
    def stage_names(self) -> list[str]:
        """What `out_features` can name: the stem, and one stage for each block of the encoder."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    def to_dict(self) -> dict[str, Any]:
        settings = super().to_dict()
        if settings["out_features"] is None:
            del settings["out_features"], settings["out_indices"]
        return settings

    @property
    def grid_size(self) -> int:
        """Patches per side of the image."""
        return self.image_size // self.patch_size

    @property
    def stem_strides(self) -> list[int]:
        """Strides of the convolutions of `stem="conv"`: the prime factors of the patch size, if they are 2 and 3."""
        strides, rest = [], self.patch_size
        for stride in (2, 3):
            while rest % stride == 0:
                strides.append(stride)
                rest //= stride
        return strides if rest == 1 else []

    @property
    def patches_per_mask_unit(self) -> int:
        """Patches per side of the squares that random masks are made of."""
        return (self.mask_unit_size or self.patch_size) // self.patch_size

    @property
    def num_hog_values(self) -> int:
        """HOG values per patch: cells in the patch x orientations x channels (108 at 16 / 8 / 9 / 3)."""
        return (self.patch_size // self.hog_cell_size) ** 2 * self.hog_orientations * self.num_channels

    @property
    def num_target_values(self) -> int:
        """Number of values that pre-training predicts per patch."""
        return self.num_hog_values if self.pretraining_target == "hog" else self.patch_size**2 * self.num_channels

    def validate_sizes(self) -> None:
        """Raise `ValueError` if image, patch, cell, widths and masks do not fit each other."""
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "image_size",
            "patch_size",
            "num_channels",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
            "hog_cell_size",
            "hog_orientations",
            "mask_unit_size",
            "query_decoder_num_hidden_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for before, prefix in (("", ""), ("decoder_", "decoder_"), ("", "query_decoder_")):
            width, inner = (getattr(self, f"{before}{name}") for name in ("hidden_size", "intermediate_size"))
            layers = getattr(self, f"{prefix}num_hidden_layers")
            if layers * (4 * width**2 + 2 * width * inner) > MAX_BLOCK_VALUES:
                raise ValueError(
                    f"{prefix}num_hidden_layers={layers} blocks of {before}hidden_size={width} and "
                    f"{before}intermediate_size={inner} are too large: at most {MAX_BLOCK_VALUES:,} values."
                )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}."
            )
        if self.hidden_size % 4 and (self.position_embedding_type == "sincos" or self.backbone_config is not None):
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by 4 for sine-cosine positions.")
        if self.backbone_config is None:
            self._check_patches()

    def _check_patches(self) -> None:
        """Raise `ValueError` if image, patch, cell and masks, and the pre-training decoder, do not fit each other."""
        if self.grid_size**2 > MAX_PATCHES:
            raise ValueError(
                f"image_size={self.image_size} with patch_size={self.patch_size} gives {self.grid_size**2} patches: "
                f"at most {MAX_PATCHES}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}: choose an image size "
                f"such as {max(self.image_size // self.patch_size, 1) * self.patch_size}."
            )
        if self.stem == "conv" and (not self.stem_strides or self.hidden_size % 2 ** (len(self.stem_strides) - 1)):
            raise ValueError(
                f"stem='conv' needs a patch_size of factors 2 and 3, such as 8 or 16, and a hidden_size that can be "
                f"halved for each but one of them; they are {self.patch_size} and {self.hidden_size}."
            )
        if self.patch_size % self.hog_cell_size:
            raise ValueError(
                f"hog_cell_size={self.hog_cell_size} does not divide patch_size={self.patch_size}: every patch must "
                "hold whole HOG cells."
            )
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"decoder_hidden_size={self.decoder_hidden_size} is not divisible by decoder_num_attention_heads="
                f"{self.decoder_num_attention_heads}."
            )
        if self.decoder_hidden_size % 4:  # its positions are sine-cosine always
            raise ValueError(
                f"decoder_hidden_size={self.decoder_hidden_size} must be divisible by 4 for sine-cosine positions."
            )
        num_patches = self.grid_size**2
        if not 0 < int(num_patches * (1 - self.mask_ratio)) < num_patches:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} of {num_patches} patches: pre-training needs at least one visible and "
                "one hidden patch."
            )
        assert self.mask_unit_size is not None  # see __post_init__
        if self.mask_unit_size % self.patch_size or self.image_size % self.mask_unit_size:
            raise ValueError(
                f"mask_unit_size={self.mask_unit_size} must be a multiple of patch_size={self.patch_size} and divide "
                f"image_size={self.image_size}."
            )
        num_units = (self.image_size // self.mask_unit_size) ** 2
        if not 0 < int(num_units * (1 - self.mask_ratio)) < num_units:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} of {num_units} squares of mask_unit_size={self.mask_unit_size}: "
                "pre-training needs at least one visible and one hidden square."
            )

    def validate_pretraining(self) -> None:
        """Raise `ValueError` for options of pre-training that contradict each other."""
        if (
            self.backbone_config is None
            and self.mask_style == "visible"
            and (self.mask_shape, self.mask_unit_size) != ("random", self.patch_size)
        ):
            raise ValueError(
                f"mask_shape={self.mask_shape!r} with mask_unit_size={self.mask_unit_size} needs mask_style='token': "
                "'visible' hides single patches, as many in each image."
            )

    def validate_classes(self) -> None:
        """Raise `ValueError` if `id2label` does not name the classes, each another, by their numbers from 0 on."""
        numbers = sorted(self.id2label or ())
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"id2label has {len(numbers)} keys from {numbers[0]} to {numbers[-1]}: number the classes from 0 to "
                f"{len(numbers) - 1}, as the logits are."
            )
        if twice := [name for name, count in Counter((self.id2label or {}).values()).items() if count > 1]:
            raise ValueError(f"id2label has {twice[0]!r} for several classes: give each a name of its own.")

    def validate_ratios(self) -> None:
        """Raise `ValueError` for a ratio outside [0, 1)."""
        for name in ("mask_ratio", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")

    def validate_image_statistics(self) -> None:
        """Raise `ValueError` if mean or standard deviation have another number of channels."""
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs one value for each of {self.num_channels} channels."
                )


class _OursIsRegistered(dict):
    """Custom pipelines of which transformers learns the names of the tasks, but takes ours from its own registry."""

    def __contains__(self, task: object) -> bool:
        return task != TASK and super().__contains__(task)


FerPllConfig.register_for_auto_class()

__all__ = ["FerPllConfig"]
