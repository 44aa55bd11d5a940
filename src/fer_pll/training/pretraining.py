"""Masked-image pre-training of the encoder (paper, section 3.2)."""

from typing import Any

import torch

from .arguments import FerPllPreTrainingArguments
from .streaming import StreamTrainer


class FerPllPreTrainer(StreamTrainer):
    """Pre-trains `FerPllForPreTraining` on the pictures of prepared data sets or of a stream; labels are never read.

    Args:
        model: a `FerPllForPreTraining`.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image` and `index`, or a `PictureStream`.
    """

    args: FerPllPreTrainingArguments

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        outputs = model(pixel_values=inputs["pixel_values"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss
