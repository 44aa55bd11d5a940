"""Pre-training of the encoder on pictures alone (paper, section 3.2)."""

from typing import Any

import torch

from ..model import FerPllConfig, FerPllForPreTraining
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .arguments import FerPllPreTrainingArguments
from .callbacks import NUM_PICTURES, PreTrainingMonitor
from .linear_probe import LinearProbe
from .moco import FerPllForMomentumContrast
from .stream_trainer import StreamTrainer


def pretraining_model(config: FerPllConfig, args: FerPllPreTrainingArguments) -> FerPllPreTrainedModel:
    """The model that `args.objective` trains, with random weights."""
    if args.objective == "moco":
        return FerPllForMomentumContrast(config, args.queue_size, args.contrastive_temperature, args.encoder_momentum)
    return FerPllForPreTraining(config)


class FerPllPreTrainer(StreamTrainer):
    """Pre-trains an encoder on the pictures of prepared data sets or of a stream; labels are never read.

    Args:
        model: a `FerPllForPreTraining` or `FerPllForMomentumContrast`, see `pretraining_model`.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image`, or a `PictureStream`.
        probe: tells how good the features are, see `PreTrainingMonitor`.
    """

    args: FerPllPreTrainingArguments

    def __init__(
        self,
        model: FerPllPreTrainedModel,
        args: FerPllPreTrainingArguments,
        probe: LinearProbe | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if not whole and (probe is not None or args.picture_steps):
            raise ValueError(
                "--probe and --picture_steps need the whole model on one process: not with FSDP, DeepSpeed."
            )
        draws = whole and args.objective == "masked"
        self.monitor = PreTrainingMonitor(self, args.picture_steps if draws else 0, probe)
        self.add_callback(self.monitor)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            self.monitor.look()  # before: the log that is saved has it
        super()._save_checkpoint(model, trial)

    @property
    def num_views(self) -> int:
        return 2 if self.args.objective == "moco" else 1

    @property
    def published_model(self) -> FerPllPreTrainedModel:
        model = super().published_model
        return model.fer_pll if self.args.objective == "moco" else model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Key encoder and queue are for resuming; what is published is the encoder.
        if output_dir is None and self.args.objective == "moco":
            if self.args.should_save:
                self.published_model.save_pretrained(self.args.output_dir)
                self.processing_class.save_pretrained(self.args.output_dir)
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save")
        else:
            super().save_model(output_dir, _internal_call)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        if self.monitor.pictures is None:
            self.monitor.pictures = inputs["pixel_values"][:NUM_PICTURES]
        outputs = model(pixel_values=inputs["pixel_values"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss
