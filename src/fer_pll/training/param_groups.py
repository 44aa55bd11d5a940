"""Parameter groups: no weight decay for some parameters, and learning rates that fall towards the input."""

import re

from torch import nn

from ..model.modeling_fer_pll import FerPllPreTrainedModel

# Not matrices of a linear map: nothing speaks for pulling them towards zero.
NO_DECAY = ("cls_token", "mask_token", "position_embeddings", "label_queries")


def layer_depth(name: str, num_layers: int) -> int:
    """Depth of a parameter in the encoder: 0 for the embeddings, i + 1 for block i, num_layers + 1 for all above."""
    if ".embeddings." in f".{name}":
        return 0
    block = re.search(r"(?:^|\.)fer_pll\.layers\.(\d+)\.", name)
    return int(block.group(1)) + 1 if block else num_layers + 1


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Parameter groups for an optimizer.

    Args:
        model: its parameters without gradient are left out.
        learning_rate: of everything above the encoder; a block at depth i of n gets
            `learning_rate * layer_decay ** (n + 1 - i)` (Clark et al., ELECTRA; the MAE and MaskFeat recipes).
        weight_decay: of weight matrices; biases, norms, tokens, positions and label queries get none.
        layer_decay: factor per block; 1 switches it off.

    Returns:
        one group for each pair of depth and weight decay (with or without), with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: `layer_decay` is not 1 and the model is not ours, so that its layers are unknown.
    """
    if isinstance(model, FerPllPreTrainedModel):
        num_layers = model.config.num_hidden_layers
    elif layer_decay == 1.0:
        num_layers = 0
    else:
        raise ValueError(f"layer_decay={layer_decay} is for the models of fer-pll; use 1 with {type(model).__name__}.")
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = layer_depth(name, num_layers)
        decays = parameter.ndim > 1 and not name.endswith(NO_DECAY)
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_layers + 1 - depth),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
