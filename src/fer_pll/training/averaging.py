"""Exponential moving average of the weights, which is evaluated and saved in the place of the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..io.stored import read_tensors
from .arguments import FerPllTrainingArguments
from .checkpoint_mixin import CheckpointMixin
from .checkpoints import ANOTHER
from .run_folder import RunFolder


class WeightAverage:
    """Moving average of a model's parameters and floating-point buffers.

    After step t = 1, 2, ... average <- m * average + (1 - m) * weights with m = min(decay, (1 + t) / (10 + t)), so
    that the random weights of the start are soon forgotten (Polyak and Juditsky, 1992; the warm-up as in TensorFlow's
    ExponentialMovingAverage).

    Args:
        model: the model that trains; its state at this moment is where the average starts.
        decay: the largest m, 0 <= decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average = {name: weight.clone() for name, weight in self.weights().items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters and floating-point buffers by name; the tensors are the model's own."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())  # each once, also if tied
        return {name: tensor.data for name, tensor in tensors.items() if tensor.is_floating_point()}

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        momentum = min(self.decay, (1 + step) / (10 + step))
        weights = self.weights()
        torch._foreach_lerp_(list(self.average.values()), [weights[name] for name in self.average], 1 - momentum)

    def exchange(self) -> None:
        """Exchange the model's weights and the average, in place: optimizer and model keep their tensors."""
        for name, weight in self.weights().items():
            kept = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)


class AveragingCallback(TrainerCallback):
    """Takes the weights of each optimizer step into the average."""

    def __init__(self, trainer: "AveragingMixin") -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if args.average_decay > 0:
            self.trainer.begin_average()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step + 1)


class AveragingMixin(CheckpointMixin):
    """With `average_decay`, evaluations, checkpoints and the final model have the average of the weights.

    `model.safetensors` of a checkpoint is the average: it is what others load. The weights that training goes on from
    lie beside it.
    """

    args: FerPllTrainingArguments
    average: WeightAverage | None = None  # while training
    _last_weights: Path | None = None  # of the checkpoint that the run goes on from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.average_decay > 0 and self.is_fsdp_enabled:
            raise ValueError("average_decay needs the whole model in each process: set it to 0 with FSDP.")
        self.add_callback(AveragingCallback(self))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has the averaged weights, if there are any."""
        if self.average is None:
            yield
            return
        self.average.exchange()
        try:
            yield
        finally:
            self.average.exchange()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            output = super().train(*args, **kwargs)
            if self.average is not None:  # no other checkpoint was loaded as the best one
                self.average.exchange()
        finally:
            self.average = self._last_weights = None
        return output

    def begin_average(self) -> None:
        """Let the average start where the model is; in a resumed run, give the model its last weights after that.

        Called once all of a checkpoint is loaded: a method may keep averaged parts of the model in a file of its own.
        """
        self.average = WeightAverage(self.model, self.args.average_decay)
        if self._last_weights is not None:
            self.model.load_state_dict(read_tensors(self._last_weights, ANOTHER), strict=False)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self.averaged():
            return super().evaluation_loop(*args, **kwargs)

    def check_checkpoint(self, checkpoint: str) -> None:
        super().check_checkpoint(checkpoint)
        if (self.args.average_decay > 0) != RunFolder(checkpoint).last_weights.is_file():
            now = "with" if self.args.average_decay > 0 else "without"
            before = "without" if now == "with" else "with"
            raise ValueError(
                f"{checkpoint} was written {before} --average_decay: resume the run {before} it, not {now}."
            )

    def save_with_checkpoint(self, checkpoint: str) -> None:
        super().save_with_checkpoint(checkpoint)
        if self.average is not None:  # `_save_checkpoint` has exchanged them
            weights = {name: weight.contiguous() for name, weight in self.average.average.items()}
            save_file(weights, RunFolder(checkpoint).last_weights)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.averaged():
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.average_decay > 0:
            self._last_weights = RunFolder(resume_from_checkpoint).last_weights

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.average = None  # the checkpoint's weights are averages already
