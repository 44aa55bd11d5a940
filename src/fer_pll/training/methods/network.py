"""What methods need of a network besides its logits: features, feature maps, and layers of their own in it."""

from collections.abc import Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import unwrap_peft_model

SECOND_NETWORK = "second_network"
"""`Method.head_name` of a network that is trained along as the model is: with its rates by depth, frozen like it."""


def last_linear(model: nn.Module, method: str) -> nn.Linear:
    """The linear layer that gives a model's logits.

    Raises:
        ValueError: there is none. The message names the method that needs it.
    """
    linear = [m for m in getattr(model, "classifier", nn.Identity()).modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f"loss={method!r} needs a model whose `classifier` is or holds a linear layer.")
    return linear[-1]


def pooled(features: Tensor) -> Tensor:
    """One vector for each image, float32 (B, d), from features (B, d), or (B, K, d) from label queries."""
    return (features.mean(dim=1) if features.ndim == 3 else features).float()


def classify(model: nn.Module, features: Tensor) -> Tensor:
    """Logits (B, K) of features as they enter the classifier: (B, d), or (B, K, d) from label queries."""
    classifier: Any = unwrap_peft_model(model).classifier
    dtype = next(classifier.parameters()).dtype
    logits = classifier(features.to(dtype))
    return logits.diagonal(dim1=1, dim2=2) if logits.ndim == 3 else logits


def add_head(model: nn.Module, name: str, head: nn.Module, method: str) -> None:
    """Make `head` a part of the model, `model.NAME`, that is trained with it, but neither saved nor published with it.

    A forward in training adds zero times its parameters to the logits: DDP then knows that they take part in the step,
    even if they are called outside of the model's forward, or not at all in this step.

    Raises:
        ValueError: the model has adapters.
    """
    if unwrap_peft_model(model) is not model:
        raise ValueError(
            f"loss={method!r} trains a head that would not be saved with adapters (LoRA): choose another."
        )
    model.add_module(name, head)
    ignored: Any = [f"{name}.{key}" for key in head.state_dict()]
    model._keys_to_ignore_on_save = ignored
    model.register_forward_hook(partial(_tie_head, name))


def _tie_head(name: str, model: nn.Module, inputs: Any, output: Any) -> Any:
    if model.training and torch.is_grad_enabled():
        nothing = torch.stack([0.0 * parameter.sum() for parameter in getattr(model, name).parameters()]).sum()
        output.logits = output.logits + nothing.to(output.logits.dtype)
    return output


class Taps:
    """Keeps features and feature map of the last forward in training mode.

    Args:
        model: an image classifier of transformers.
        method: the method that needs them, for errors.
        features: whether to keep what enters `model.classifier`.
        maps: whether to keep what the encoder ends with.

    Raises:
        ValueError: the model has no linear classifier.
    """

    def __init__(self, model: nn.Module, method: str, features: bool = False, maps: bool = False) -> None:
        self.method = method
        self.features: Tensor | None = None
        self.maps: Tensor | None = None
        if features or maps:
            last_linear(unwrap_peft_model(model), method)
        if features:
            unwrap_peft_model(model).get_submodule("classifier").register_forward_pre_hook(self._keep_features)
        if maps:
            base: Any = unwrap_peft_model(model).base_model
            tokens = getattr(base, "feature_tokens", None)  # of another backbone under our label queries
            if tokens is None:
                base.register_forward_hook(self._keep_map)
            else:
                tokens.register_forward_hook(self._keep_last_stage)

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Features (B, d) or (B, K, d) and map (B, C, h, w) of the last forward; they are forgotten here."""
        kept = self.features, self.maps
        self.features = self.maps = None
        return kept

    def _keep_features(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            features = inputs[0]
            self.features = features.flatten(1) if features.ndim == 4 else features  # convolutional, (B, d, 1, 1)

    def _keep_map(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self.maps = last_map(output, getattr(module, "config", None), self.method)

    def _keep_last_stage(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if module.training:
            self.maps = last_stage(output, inputs[0])


def last_stage(tokens: Tensor, feature_maps: Sequence[Tensor]) -> Tensor:
    """The map (B, d, h, w) of the last stage, from the tokens (B, L, d) of all stages, one after the other."""
    height, width = feature_maps[-1].shape[2:]
    return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def last_map(output: Any, config: Any, method: str) -> Tensor:
    """The map (B, C, h, w) that an encoder's output ends with: its tokens in their places, without class token.

    Raises:
        ValueError: the output has no such map.
    """
    states = getattr(output, "last_hidden_state", None)
    if states is not None and states.ndim == 4:
        return states
    if states is not None and states.ndim == 3:
        number = states.shape[1]
        for others in (1 + getattr(config, "num_register_tokens", 0), 0):
            side = isqrt(max(number - others, 0))
            if side and side * side == number - others:
                return states[:, others:].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        f"loss={method!r} needs a network whose encoder ends with a feature map or a square grid of tokens: choose "
        "another network or loss."
    )
