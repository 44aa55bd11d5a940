"""Low-rank adapters (Hu et al., 2022, "LoRA"): the encoder's weights stay, and each learns a small change.

peft does it, an optional package. It freezes the encoder and adds to the map of each of its linear layers, W x, a map
of low rank, (alpha / rank) B A x. What is not pre-trained, label queries and classifier, learns as a whole.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from ..io.atomic import write_json
from ..io.errors import MissingExtra
from ..io.names import ADAPTER_FILE
from ..io.stored import read_json
from .checkpoints import ANOTHER
from .param_groups import encoder_modules

BASE_NAME = "adapter_base.json"  # in a checkpoint
_LAYERS = ([str], str, type(None))
_SETTINGS = {"r": int, "lora_alpha": float, "target_modules": _LAYERS, "modules_to_save": _LAYERS}


def add_adapters(
    model: PreTrainedModel, rank: int = 8, alpha: float | None = None, targets: list[str] | None = None
) -> Any:
    """A `peft.PeftModel` around a classifier, in which only adapters and all outside the encoder learn.

    Args:
        model: with the weights that stay.
        rank: of the change of each weight.
        alpha: the change is scaled by alpha / rank; twice the rank where not given.
        targets: names of the layers that get an adapter, or ends of their names. By default all linear layers of the
            encoder or, in a convolutional network without any, all its convolutions.

    Raises:
        MissingExtra: peft is not installed.
        ValueError: rank or alpha is not positive, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("--lora needs peft: pip install 'fer-pll[lora]'") from error
    alpha = 2 * rank if alpha is None else alpha
    if rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(f"lora_rank={rank} must be at least 1, lora_alpha={alpha} positive.")
    encoder = {id(each) for module in encoder_modules(model) for each in module.modules()}
    inside = {name: each for name, each in model.named_modules() if id(each) in encoder}
    chosen = [name for name, each in inside.items() if isinstance(each, nn.Linear)] or [
        name for name, each in inside.items() if isinstance(each, nn.Conv2d) and each.groups == 1
    ]
    if targets is not None:
        layers = [name for name, each in inside.items() if isinstance(each, (nn.Linear, nn.Conv2d))]
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                ends = sorted({name.rsplit(".", 1)[-1] for name in layers})
                raise ValueError(f"lora_targets: the encoder has no layer {target!r}. It has {', '.join(ends)}.")
        chosen = [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)]
    # Batch norms count in training whether they are frozen or not, so their statistics must be saved as well.
    whole = [name for name, each in inside.items() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank: it may be a fraction
            target_modules=chosen,
            modules_to_save=[*whole, *_outside(model, encoder)],
        ),
    )


def _outside(model: nn.Module, encoder: set[int], prefix: str = "") -> list[str]:
    """Names of the largest modules that have parameters, and none of the encoder's modules in them."""
    names = []
    for name, module in model.named_children():
        if id(module) in encoder or not any(True for _ in module.parameters()):
            continue
        if any(id(each) in encoder for each in module.modules()):
            names += _outside(module, encoder, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a `peft.PeftModel`. Does not import peft."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights that adapters are added to, those that do not learn, in hexadecimal."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad and ".original_module." not in name:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_base(model: nn.Module, checkpoint: str | Path) -> None:
    """Write beside the adapters of a checkpoint what they are added to: configuration and fingerprint."""
    unwrap_peft_model(model).config.save_pretrained(checkpoint)
    write_json(Path(checkpoint) / BASE_NAME, {"sha256": fingerprint(model)})


def check_adapters(model: nn.Module, checkpoint: str | Path) -> None:
    """Raise `ValueError` if a model and a checkpoint do not have the same adapters on the same weights, or none."""
    option, path = f"--resume_from_checkpoint {checkpoint}", Path(checkpoint) / ADAPTER_FILE
    if path.is_file() != is_adapted(model):
        has = "has adapters: give --lora" if path.is_file() else "has no adapters: leave out --lora"
        raise ValueError(f"{option}: the run {has}, as when it was started.")
    if not path.is_file():
        return
    then, now = read_json(path, _SETTINGS, ANOTHER), vars(model.peft_config["default"])  # type: ignore[arg-type,index]
    for option_name, name in (("lora_rank", "r"), ("lora_alpha", "lora_alpha")):
        if then[name] != now[name]:
            raise ValueError(f"{option}: {option_name} was {then[name]} and is {now[name]}: give the same.")
    if any(_names(then[name]) != _names(now[name]) for name in ("target_modules", "modules_to_save")):
        raise ValueError(f"{option}: the run's adapters are on other layers: give the same --lora_targets.")
    base = Path(checkpoint) / BASE_NAME
    if not base.is_file() or read_json(base, {"sha256": str}, ANOTHER)["sha256"] != fingerprint(model):
        raise ValueError(
            f"{option}: its adapters belong to other weights. Give the --config and --init_from or --backbone that "
            "the run was started with."
        )


def _names(layers: str | Iterable[str] | None) -> set[str]:
    """peft takes names, a regular expression, or nothing."""
    return {layers} if isinstance(layers, str) else set(layers or ())
