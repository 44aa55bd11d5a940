"""Networks of others under the label queries (`--backbone`): their configuration, images and weights.

A source is the folder or Hub name of any checkpoint whose kind transformers has as a backbone, with or without a head,
or of timm. ViT and ViTMAE have no backbone in transformers, but our own encoder can hold them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils.hub import cached_file

from ..io.errors import DataError, MissingExtra
from ..io.pretrained import PROCESSOR_FILE, config_content, load_image_processor, load_model, load_model_config
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor

OURS = (FerPllConfig.model_type, "vit", "vit_mae")
"""The kinds that become our own encoder."""

NOT_OF_THE_NETWORK = {"architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type"}
"""Settings of a checkpoint that say nothing about its features."""


@dataclass
class Images:
    """What images a network was trained on: side in pixels, channels, normalization of pixels scaled to 0..1."""

    size: int
    num_channels: int
    image_mean: list[float]
    image_std: list[float]
    resample: int

    @classmethod
    def from_processor(cls, processor: Any, num_channels: int) -> "Images":
        """What an image processor of ours or of transformers makes for a network of so many channels."""
        mean, std = [0.0] * num_channels, [1.0] * num_channels
        if processor.do_normalize:
            # Pixels 0..255 times the factor are normalized; ours are in 0..1.
            scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
            mean, std = ([value / scale for value in values] for values in (processor.image_mean, processor.image_std))
        # The size after the center crop, if there is one.
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        sides = [size[name] for name in ("height", "shortest_edge", "longest_edge") if size.get(name)]
        return cls(sides[0], num_channels, mean, std, int(processor.resample))

    def processor(self, face_crop: dict[str, Any] | None = None) -> FerPllImageProcessor:
        """An image processor that makes such images. The whole image is resized: the face fills it already."""
        return FerPllImageProcessor(
            num_channels=self.num_channels,
            size={"height": self.size, "width": self.size},
            image_mean=self.image_mean,
            image_std=self.image_std,
            resample=self.resample,
            face_crop=face_crop,
        )


def is_timm(settings: dict[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return "architecture" in settings and "pretrained_cfg" in settings


def read_settings(source: str) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        ValueError: there is none, or it does not say what kind of network it is of.
    """
    settings = config_content(source)
    if not is_timm(settings) and settings.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"its config.json has the model_type {settings.get('model_type')!r}, which nobody knows here."
        )
    return settings


def read_config(source: str, features: list[str] | None = None) -> PreTrainedConfig:
    """The configuration of a checkpoint's backbone, without what belongs to its head.

    Args:
        source: folder or Hub name.
        features: the stages whose maps are wanted, by name or number; by default those that it names, or the last.

    Raises:
        ValueError: there is no such checkpoint, transformers has no backbone of its kind, or no stage of that name.
    """
    settings = read_settings(source)
    indices = [int(each) for each in features] if features and all(each.isdigit() for each in features) else None
    if is_timm(settings):
        if features and indices is None:
            raise ValueError("the stages of a network of timm have no names: give numbers, such as 3 4.")
        return TimmBackboneConfig.from_dict(
            {
                "backbone": settings["architecture"],
                "num_channels": settings["pretrained_cfg"]["input_size"][0],
                "out_indices": indices or [-1],
            }
        )
    config = load_model_config(source)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        kinds = sorted(MODEL_FOR_BACKBONE_MAPPING_NAMES)
        raise ValueError(
            f"transformers has no backbone for {config.model_type!r}. It has some for {', '.join(kinds)}; and ViT and "
            "ViTMAE can be used, too."
        )
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_OF_THE_NETWORK}
    config = type(config).from_dict(kept)
    config._name_or_path = ""  # it would be a path of this machine
    if indices is not None:
        config.out_indices = indices
    elif features:
        config.out_features = features
    return config


def read_images(source: str) -> Images | None:
    """What a checkpoint's image processor makes; `None` if it has none, or if that is not known."""
    settings = read_settings(source)
    if is_timm(settings):
        trained = settings["pretrained_cfg"]
        interpolation = getattr(Image.Resampling, trained["interpolation"].upper())
        channels, size, _ = trained["input_size"]
        return Images(size, channels, list(trained["mean"]), list(trained["std"]), int(interpolation))
    if Path(source).is_dir() and not Path(source, PROCESSOR_FILE).is_file():
        return None
    try:
        processor = load_image_processor(source)
    except DataError:
        if Path(source).is_dir():
            raise
        return None
    return Images.from_processor(processor, settings.get("num_channels", 3))


def is_feature_norm(name: str) -> bool:
    """Whether a weight of a backbone is of a norm on its feature maps, which a classifier of the same kind lacks."""
    return re.match(r"(hidden_states_norms|layernorm|norm)\.", name) is not None


def load_weights_of_backbone(source: str, config: PreTrainedConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Pre-trained weights by their names in the backbone, and the names of those that the checkpoint has not.

    Args:
        source: folder or Hub name.
        config: of the backbone, see `read_config`. It must describe the checkpoint's network.

    Raises:
        MissingExtra: it needs timm.
        ValueError: the weights are of another network.
    """
    own = read_config(source)
    free = {"out_features", "out_indices", "stage_names", "drop_path_rate", "transformers_version", "_name_or_path"}
    of_source, wanted = own.to_dict(), config.to_dict()
    different = [
        f"{name} {of_source[name]}, not {wanted.get(name)}"
        for name in sorted(of_source.keys() - free - NOT_OF_THE_NETWORK)
        if of_source[name] != wanted.get(name)
    ]
    if different:
        raise ValueError(f"these weights need another backbone_config in config.json: {'; '.join(different)}.")
    if isinstance(config, TimmBackboneConfig):
        file = cached_file(source, "model.safetensors")
        with needs_timm():
            from transformers import TimmBackbone  # it imports timm

            model: PreTrainedModel = TimmBackbone(config, pretrained=True, pretrained_cfg_overlay={"file": file})
        return model.state_dict(), []
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    model, random = load_model(backbone_class, source, partly=True, config=config, dtype=torch.float32)
    essential = sorted(name for name in random if not is_feature_norm(name))
    if essential:
        raise ValueError(
            f"{len(essential)} weights of the backbone are missing or not of the size that its config.json says, the "
            f"first is {essential[0]}: these are weights of another architecture."
        )
    return model.state_dict(), sorted(random)


@contextmanager
def needs_timm() -> Iterator[None]:
    """Turns a failed import of timm, or of the torchvision that it needs, into a `MissingExtra`."""
    try:
        yield
    except ImportError as error:
        missing = [name for name in ("timm", "torchvision") if find_spec(name) is None]
        raise MissingExtra(
            f"A network of timm needs {' and '.join(missing) or 'timm and torchvision'} ({str(error).strip()}): pip "
            "install timm torchvision, the latter as it belongs to your torch."
        ) from error


def configure(source: str, base: FerPllConfig, images: Images, features: list[str] | None = None) -> FerPllConfig:
    """The configuration of a model of ours whose encoder is a checkpoint's network.

    Args:
        source: folder or Hub name.
        base: has the sizes of the label queries and the classes.
        images: what the model is to be trained on.
        features: the stages whose maps the label queries attend to, see `read_config`.

    Raises:
        ValueError: see `read_config`.
    """
    kind = read_settings(source).get("model_type")
    settings = base.to_dict()
    if kind == FerPllConfig.model_type:
        of_source = load_model_config(source, FerPllConfig).to_dict()
        settings = of_source | {name: settings[name] for name in ("id2label", "label2id")}
    elif kind in OURS:
        own = load_model_config(source)
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        settings |= {name: getattr(own, name) for name in (*names, "hidden_act", "layer_norm_eps", "qkv_bias")}
        settings |= {"backbone_config": None, "stem": "patch", "mask_unit_size": None}
        if own.patch_size % base.hog_cell_size:
            settings["hog_cell_size"] = own.patch_size  # only pre-training would use it
    if kind in OURS:
        if features:
            raise ValueError("its label queries attend to the last block: leave out --backbone_features.")
    else:
        settings["backbone_config"] = read_config(source, features)
    return FerPllConfig.from_dict(
        settings
        | {
            "image_size": images.size,
            "num_channels": images.num_channels,
            "image_mean": images.image_mean,
            "image_std": images.image_std,
        }
    )


def has_other_network(source: str, config: FerPllConfig) -> bool:
    """Whether a checkpoint is one of ours whose encoder is another kind of network than that of `config`."""
    content = config_content(source)
    kind = (content.get("backbone_config") or {}).get("model_type")
    wanted = getattr(config.backbone_config, "model_type", None)
    return content.get("model_type") == FerPllConfig.model_type and kind != wanted


def load_classifier(source: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """A plain classifier of transformers with a checkpoint's weights, and the names of those that are new.

    Args:
        source: folder or Hub name of a checkpoint of the same kind, with or without a head.
        config: of the classifier. Its classes may be others.

    Raises:
        ValueError: the weights are of another network.
    """
    model, new = load_model(AutoModelForImageClassification, source, partly=True, config=config, dtype=torch.float32)
    prefix = f"{model.base_model_prefix}."
    essential = [name for name in new if name.startswith(prefix) and not is_feature_norm(name.removeprefix(prefix))]
    essential = [name for name in essential if "pooler" not in name]
    if essential:
        raise ValueError(
            f"{len(essential)} weights of the network are missing or not of the size that --config says, the first is "
            f"{essential[0]}: these are weights of another architecture."
        )
    return model, new


def set_drop_path(config: PreTrainedConfig, rate: float | None) -> None:
    """Set the stochastic depth of a network; `ValueError` if it has none, or of a bad rate."""
    network = getattr(config, "backbone_config", None) or config
    if rate is None:
        return
    if not hasattr(network, "drop_path_rate"):
        raise ValueError(f"drop_path_rate={rate}: a {network.model_type} has no stochastic depth, leave it out.")
    network.drop_path_rate = rate
    network.validate()
