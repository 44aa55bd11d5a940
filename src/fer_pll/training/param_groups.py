"""Parameter groups: no weight decay for some parameters, and learning rates that fall towards the input."""

import re
from typing import Any

from torch import nn

from .methods.network import SECOND_NETWORK

# Not matrices of a linear map: nothing speaks for pulling them towards zero.
NO_DECAY = (
    "cls_token",
    "mask_token",
    "register_tokens",
    "position_embeddings",
    "relative_position_bias_table",
    "label_queries",
    "stage_embeddings",
    "method_head.annotators",
)


def stage_names(network: nn.Module) -> list[str]:
    """The modules that a network computes one after another: its stages or, where it has none, its blocks.

    These are the modules of the first `ModuleList` with as many entries as the network's configuration has stages or
    blocks; for a network of timm, those that it takes feature maps from.

    Args:
        network: a backbone or model of transformers.

    Returns:
        the beginnings of their parameters' names, as regular expressions, in order.

    Raises:
        ValueError: there are no such modules.
    """
    config: Any = network.config
    names = getattr(config, "stage_names", None) or []
    if config.model_type == "timm_backbone":
        # Where timm takes a network apart, stages.0 is called stages_0.
        return [f"_backbone.{name}.".replace(".", "[._]") for name in names]
    number = len(names) - 1 if names else getattr(config, "num_hidden_layers", None)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return [re.escape(f"{name}.{place}.") for place in range(len(module))]
    raise ValueError(
        f"layer_decay: the stages of a {type(network).__name__} are not known, so its learning rates cannot differ by "
        "stage; use 1."
    )


def depths(model: nn.Module) -> dict[str, int]:
    """Depth of each parameter: 0 before the first stage, 1, 2, ... for the stages, one more for all above.

    Raises:
        ValueError: the model's stages are not known.
    """
    network, prefix = model, ""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "backbone" and hasattr(module, "config"):
            network, prefix = module, f"{name}."
            break
    names = [name for name, _ in model.named_parameters()]
    places = [
        [place for place, name in enumerate(names) if re.match(re.escape(prefix) + stage, name)]
        for stage in stage_names(network)
    ]
    places = [each for each in places if each]  # timm also takes maps from modules without parameters
    found = {
        name: 0 if place < places[0][0] else 1 + sum(place > each[-1] for each in places)
        for place, name in enumerate(names)
    }
    return found | {
        f"{SECOND_NETWORK}.{name}": depth for name, depth in found.items() if f"{SECOND_NETWORK}.{name}" in found
    }


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Parameter groups for an optimizer.

    Args:
        model: its parameters without gradient are left out.
        learning_rate: of everything above the encoder; a block, or stage of blocks, at depth i of n gets
            `learning_rate * layer_decay ** (n + 1 - i)` (Clark et al., ELECTRA; the MAE and MaskFeat recipes).
        weight_decay: of weight matrices; biases, norms, tokens, positions and label queries get none.
        layer_decay: factor per block or stage; 1 switches it off.

    Returns:
        one group for each pair of depth and weight decay (with or without), with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: `layer_decay` is not 1 and the model's stages are not known.
    """
    depth_of = depths(model) if layer_decay != 1.0 else {}
    top = max(depth_of.values(), default=0)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of.get(name, top)
        decays = parameter.ndim > 1 and not name.endswith(NO_DECAY)
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (top - depth),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def encoder_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a classifier that others may have pre-trained: all but what turns features into classes."""
    second = getattr(model, SECOND_NETWORK, None)
    others = [] if second is None else encoder_modules(second)
    base: Any = getattr(model, "base_model", model)
    if hasattr(base, "backbone"):
        return [base.backbone, *others]
    return [module for name, module in base.named_children() if name != "query_decoder"] + others
