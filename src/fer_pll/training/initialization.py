"""Models that start from other weights (`--init_from`, `--backbone`): a checkpoint of ours or of transformers.

A model with a `backbone_config` takes a checkpoint of that kind of network (see `backbones`). Our own encoder takes
those of transformers' ViT (which DINO, and DeiT without distillation, are stored as) and ViTMAE: they have its modules
under the same names. They differ in two things: the normalization of pixels and the number of patches. Both are
converted, so that our encoder computes the same for an image as the source.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ViTMAEModel, ViTModel

from ..io.errors import MissingExtra
from ..io.names import find_checkpoint
from ..io.pretrained import load_image_processor, load_model, load_model_config, make_model
from ..io.terminal import printable_lines
from ..labels.expressions import canonical_name
from ..model.configuration_fer_pll import FerPllConfig
from ..model.face_answers import class_names
from ..model.modeling_fer_pll import (
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllPreTrainedModel,
    interpolate_positions,
)
from .backbones import is_feature_norm, load_weights_of_backbone, needs_timm, read_images, read_settings

Model = TypeVar("Model", bound=FerPllPreTrainedModel)

PREFIX = f"{FerPllPreTrainedModel.base_model_prefix}."
POSITIONS = f"{PREFIX}embeddings.position_embeddings"
PROJECTION = f"{PREFIX}embeddings.patch_embeddings.projection"

NATIVE = {"vit": ViTModel, "vit_mae": ViTMAEModel}

# Models that people may try, and why our encoder cannot hold them.
REFUSED = {
    "deit": "it has a distillation token (DeiT without one is stored as ViT, and can be used)",
    "dinov2": "it has LayerScale",
    "dinov2_with_registers": "it has LayerScale and register tokens",
    "dinov3_vit": "it has rotary positions, LayerScale and register tokens",
    "beit": "it has relative positions and LayerScale",
}

# Sizes of the weights. config.json must have the same.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
SIZES_OF_DECODER = ("hidden_size", "num_attention_heads", "intermediate_size")

# Settings that change what the same weights compute, so they are taken over with the weights.
TAKEN_OVER = ("hidden_act", "layer_norm_eps", "qkv_bias")


class Source(NamedTuple):
    """A checkpoint in memory.

    config: its own, or that of the model that takes its backbone.

    kind: its `model_type`.
    weights: by their names in our model.
    image_mean, image_std: its normalization of pixels on a scale of 0..1, for each channel.
    learned_positions: whether its positions were trained.
    """

    kind: str
    config: PreTrainedConfig
    weights: dict[str, torch.Tensor]
    image_mean: list[float]
    image_std: list[float]
    learned_positions: bool

    @property
    def config_of_backbone(self) -> PreTrainedConfig | None:
        return getattr(self.config, "backbone_config", None)


@dataclass
class Initialization:
    """The origin of a model's weights, for printing.

    source: folder or Hub name, and the kind of model there.
    taken, new: names of the weights that came from there, and of the random ones.
    num_values: how many numbers were taken.
    changes: the changes that made weights and model fit each other, in words.
    """

    source: str
    taken: list[str]
    new: list[str]
    num_values: int
    changes: list[str]

    def __str__(self) -> str:
        lines = [f"taken: {_parts(self.taken)}; {self.num_values:,} values", *self.changes, f"new: {_parts(self.new)}"]
        return printable_lines([f"Weights from {self.source}", *(f"  {line}" for line in lines)])


def _parts(names: list[str]) -> str:
    """The modules of some weights, and how many each has: `fer_pll.layers (96), classifier (2)`."""
    counts = Counter(".".join(name.split(".")[: 1 + name.startswith(PREFIX)]) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"


def initialize(
    build: Callable[[FerPllConfig], Model], config: FerPllConfig, init_from: str | None, option: str = "--init_from"
) -> tuple[Model, Initialization | None]:
    """A model with the encoder of another checkpoint. Weights that the checkpoint lacks are random.

    A checkpoint of ours gives all weights that both have in the same size, decoders included. Label queries and
    classifier are only taken if the classes are the same, by name; their rows then take the order of `config`.

    Args:
        build: makes the model with random weights, such as one of our classes.
        config: of the model. It takes the settings in `TAKEN_OVER` from the checkpoint, and learns positions if the
            checkpoint did.
        init_from: folder or Hub name of a checkpoint of fer-pll, ViT or ViTMAE, or, if `config` has a
            `backbone_config`, of fer-pll or of that kind of network; or the name of a checkpoint in the package.
            `None` or `"none"` for random weights.
        option: that named the checkpoint, for messages.

    Returns:
        the model, and the origin of its weights.

    Raises:
        ValueError: there is no such checkpoint, our encoder cannot hold it, or `config` does not fit it.
        MissingExtra: the backbone needs a package that is not installed.
    """
    if init_from is None or init_from == "none":
        with needs_timm():
            return make_model(build, config), None
    given = init_from
    with naming(option, given), needs_timm():
        init_from = find_checkpoint(given)
        source = read_source(init_from, config)
        check_sizes(source, config)
        changes = take_settings_over(source, config) + fit_weights(source, config)
        model = make_model(build, config)
        names = {name: tensor.shape for name, tensor in model.state_dict().items()}
        weights = {name: tensor for name, tensor in source.weights.items() if tensor.shape == names.get(name)}
        new = [name for name in names if name not in weights]
        check_encoder_is_whole(new)
    # Assigned, not copied: memory never holds the encoder twice.
    model.load_state_dict(weights, strict=False, assign=True)
    return model, Initialization(
        source=f"{given} ({source.kind})",
        taken=[name for name in names if name in weights],
        new=new,
        num_values=sum(tensor.numel() for tensor in weights.values()),
        changes=changes,
    )


@contextmanager
def naming(option: str, source: str) -> Iterator[None]:
    """Turns any error about a checkpoint into a `ValueError` that begins with the option that named it."""
    try:
        yield
    except MissingExtra:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {source}: {str(error).removeprefix(f'{source}: ')}") from error


def read_source(init_from: str, for_config: FerPllConfig) -> Source:
    """Load a checkpoint in its own class, which alone knows the names of the weights in its files.

    Raises:
        ValueError: our encoder, or the backbone of `for_config`, cannot hold it.
        OSError: there is no such checkpoint, or it has no image processor.
    """
    if (
        for_config.backbone_config is not None
        and read_settings(init_from).get("model_type") != FerPllConfig.model_type
    ):
        return read_backbone_source(init_from, for_config)
    config = load_model_config(init_from)
    kind = config.model_type
    if kind == FerPllConfig.model_type:
        prefix, mean, std = "", config.image_mean, config.image_std
        is_classifier = FerPllForImageClassification.__name__ in (config.architectures or ())
        model, random = _load(FerPllForImageClassification if is_classifier else FerPllForPreTraining, init_from)
        learned = config.position_embedding_type == "learned"
    elif kind in NATIVE:
        prefix = PREFIX
        processor = load_image_processor(init_from)
        mean, std = processor.image_mean, processor.image_std
        if not processor.do_normalize:
            mean, std = [0.0] * config.num_channels, [1.0] * config.num_channels
        model, random = _load(NATIVE[kind], init_from)
        learned = kind != "vit_mae"
    else:
        raise ValueError(
            f"our encoder cannot hold a model of the kind {kind!r}: {REFUSED.get(kind, 'it is another network')}. "
            "Take a checkpoint of fer-pll, ViT (DINO is one) or ViTMAE."
        )
    check_encoder_is_whole([f"{prefix}{name}" for name in random])
    weights = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items() if name not in random}
    return Source(kind, config, weights, list(mean), list(std), learned)


def read_backbone_source(init_from: str, for_config: FerPllConfig) -> Source:
    """Load the weights of the backbone of `for_config`. The norms on its feature maps may be missing."""
    images, backbone_config = read_images(init_from), for_config.backbone_config
    assert isinstance(backbone_config, PreTrainedConfig)
    if images is None:
        mean, std = list(for_config.image_mean or ()), list(for_config.image_std or ())
    else:
        mean, std = images.image_mean, images.image_std
    weights, missing = load_weights_of_backbone(init_from, backbone_config)
    weights = {f"{PREFIX}backbone.{name}": tensor for name, tensor in weights.items() if name not in missing}
    return Source(backbone_config.model_type, for_config, weights, mean, std, False)


def check_encoder_is_whole(random: list[str]) -> None:
    """Raise `ValueError` if any of these weights, which a checkpoint could not give, belongs to the encoder."""
    modules = tuple(f"{PREFIX}{module}." for module in ("embeddings", "layers", "layernorm", "backbone"))
    missing = [name for name in random if name.startswith(modules) and not name.endswith("mask_token")]
    missing = [name for name in missing if not is_feature_norm(name.removeprefix(f"{PREFIX}backbone."))]
    if missing:
        raise ValueError(
            f"{len(missing)} weights of the encoder are missing or not of the size that its config.json says, the "
            f"first is {missing[0].removeprefix(PREFIX)}: these are weights of another architecture."
        )


def check_sizes(source: Source, config: FerPllConfig) -> None:
    """Raise `ValueError` if weights and configuration do not fit each other. The message says what to change."""
    if (source.config_of_backbone is None) != (config.backbone_config is None):
        has = "another network as its encoder" if config.backbone_config is None else "the ViT encoder of fer-pll"
        raise ValueError(f"this checkpoint has {has}, the model's configuration has not. Pre-training is of the ViT.")
    if config.backbone_config is not None:
        check_backbone(source, config)
    sizes = SIZES if config.backbone_config is None else SIZES_OF_DECODER
    needed = {name: getattr(source.config, name) for name in sizes}
    if getattr(source.config, "stem", "patch") != config.stem:
        needed["stem"] = getattr(source.config, "stem", "patch")
    if source.config.num_channels != 3:  # weights for color serve gray images as well
        needed["num_channels"] = source.config.num_channels
    different = [f"{name} {value}, not {getattr(config, name)}" for name, value in needed.items()
                 if getattr(config, name) != value]  # fmt: skip
    if different:
        raise ValueError(f"these weights need other sizes in config.json: {'; '.join(different)}.")


def check_backbone(source: Source, config: FerPllConfig) -> None:
    """Raise `ValueError` if a source has another kind of backbone or another normalization.

    The latter cannot be converted: around an image, convolutions see zeros, which are another color then.
    """
    kinds = [each.backbone_config.model_type for each in (source.config, config)]  # type: ignore[union-attr]
    if kinds[0] != kinds[1]:
        raise ValueError(f"this checkpoint has a backbone of the kind {kinds[0]!r}, --config one of {kinds[1]!r}.")
    if (source.image_mean, source.image_std) != (config.image_mean, config.image_std):
        raise ValueError(
            f"these weights are for pixels with mean {source.image_mean} and deviation {source.image_std}, --config "
            f"has {config.image_mean} and {config.image_std}: give the checkpoint as --backbone, or make them equal "
            "in config.json and preprocessor_config.json."
        )


def take_settings_over(source: Source, config: FerPllConfig) -> list[str]:
    """Give `config` the settings that the weights depend on. Returns the changes, in words."""
    settings = {name: getattr(source.config, name) for name in TAKEN_OVER}
    if source.learned_positions:
        settings["position_embedding_type"] = "learned"
    changes = []
    for name, value in settings.items():
        if getattr(config, name) != value:
            changes.append(f"taken with them: {name} {value} (config.json has {getattr(config, name)})")
            setattr(config, name, value)
    return changes


def check_settings_taken_over(config: FerPllConfig, checkpoint: str) -> None:
    """Raise `ValueError` if a resumed model would compute something else with a checkpoint's weights.

    A model that took over settings with its first weights has to take them over again when it is resumed.
    """
    before = load_model_config(checkpoint, FerPllConfig)
    different = [
        f"{name} was {getattr(before, name)} and is {getattr(config, name)}"
        for name in (*TAKEN_OVER, "position_embedding_type")
        if getattr(before, name) != getattr(config, name)
    ]
    if different:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {', '.join(different)}. Give the --config and --init_from that "
            "the run was started with."
        )


def fit_weights(source: Source, config: FerPllConfig) -> list[str]:
    """Convert the source's weights to the images and classes of `config`. Returns the changes, in words."""
    change = fit_classes(source, config)
    weights, changes = source.weights, [] if change is None else [change]
    if config.backbone_config is not None:
        return changes
    num_patches, grid = weights[POSITIONS].shape[1] - 1, config.grid_size
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"these weights are for images that are not square ({num_patches} patches).")
    if side != grid:
        weights[POSITIONS] = interpolate_positions(weights[POSITIONS], grid, grid)
        changes.append(f"interpolated: positions of {side} x {side} patches to {grid} x {grid}")
    if (source.image_mean, source.image_std) != (config.image_mean, config.image_std):
        if config.stem == "conv":
            raise ValueError(
                f"these weights are for pixels with mean {source.image_mean} and deviation {source.image_std}: with "
                "stem='conv', config.json and preprocessor_config.json must have the same."
            )
        fit_projection(source, config)
        changes.append(
            f"fitted, exactly: patch projection of pixels with mean {source.image_mean} and deviation "
            f"{source.image_std} to {config.image_mean} and {config.image_std}"
        )
    return changes


def fit_classes(source: Source, config: FerPllConfig) -> str | None:
    """Give the rows of label queries and classifier the classes of `config`, or drop them where those are others.

    Names are compared as `canonical_name` writes them. Returns the change, in words; `None` for none.
    """
    rows = [name for name in source.weights if name.endswith("label_queries") or name.startswith("classifier.")]
    of_source, of_model = class_names(source.config), class_names(config)
    before, now = ([canonical_name(name) for name in names] for names in (of_source, of_model))
    if not rows or before == now:
        return None
    if sorted(before) == sorted(now) and len(set(now)) == len(now):
        order = torch.tensor([before.index(name) for name in now])
        for name in rows:
            source.weights[name] = source.weights[name][order]
        return f"classes in another order: the rows of {', '.join(rows)} were moved with their classes"
    for name in rows:
        del source.weights[name]
    return (
        f"other classes: {', '.join(rows)} are new, for {', '.join(of_model)}; the checkpoint has "
        f"{', '.join(of_source)}"
    )


def fit_projection(source: Source, config: FerPllConfig) -> None:
    """Convert the patch projection to our normalization: for the same image it gives the same result.

    The source sees a pixel p (0..1) as (p - m) / s, our model sees it as y = (p - m') / s'. So the source's value is
    (s' / s) y + (m' - m) / s for each channel. This map is linear, and so is the projection. For a source with color,
    the three channels of a gray image are the same pixels, so their weights add up.
    """
    mean, std, our_mean, our_std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (source.image_mean, source.image_std, config.image_mean, config.image_std)
    )
    weight, bias = (source.weights[f"{PROJECTION}.{name}"].double() for name in ("weight", "bias"))
    bias = bias + (weight * ((our_mean - mean) / std)).sum(dim=(1, 2, 3))
    weight = weight * (our_std / std)  # (d, C, patch, patch)
    if config.num_channels < weight.shape[1]:
        weight = weight.sum(dim=1, keepdim=True)
    source.weights[f"{PROJECTION}.weight"], source.weights[f"{PROJECTION}.bias"] = weight.float(), bias.float()


def _load(model_class: type[PreTrainedModel], name: str) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32, and the names of its random weights, for which the files have none that fit."""
    model, random = load_model(model_class, name, partly=True, dtype=torch.float32)
    return model, [key for key in model.state_dict() if key in random]
