"""Pre-training of the encoder on pictures alone (paper, section 3.2)."""

from typing import Any

import torch

from ..model import FerPllConfig, FerPllForPreTraining
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .arguments import FerPllPreTrainingArguments
from .moco import FerPllForMomentumContrast
from .streaming import StreamTrainer


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
        train_dataset: rows with `image` and `index`, or a `PictureStream`.
    """

    args: FerPllPreTrainingArguments

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
        outputs = model(pixel_values=inputs["pixel_values"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss
