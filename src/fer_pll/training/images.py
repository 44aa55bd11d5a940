"""What both trainings share: batches of 8-bit pixels that are augmented and normalised on the device, and the card."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel, Trainer

from ..data.transforms import PixelCollator
from ..hub.card import model_card
from ..labels.confidence import ConfidenceTable
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .arguments import ImageTrainingArguments
from .checkpoints import (
    begin_checkpoint,
    check_checkpoint,
    last_checkpoint,
    warn_if_processes_differ,
    write_processes,
)
from .optimization import parameter_groups
from .settings import SETTINGS_NAME


def check_image_processor(model: PreTrainedModel, image_processor: BaseImageProcessor) -> None:
    """Raise `ValueError` where an image processor does not make the pictures that a fer-pll model was configured for.

    Other models do not say what pictures they take, or say it themselves when they see them.
    """
    if not isinstance(model, FerPllPreTrainedModel):
        return
    for name in ("image_mean", "image_std", "num_channels"):
        of_model, of_processor = getattr(model.config, name), getattr(image_processor, name)
        if name != "num_channels":
            of_model, of_processor = list(of_model), list(of_processor)
        if of_model != of_processor:
            raise ValueError(
                f"{name} is {of_model} in the model's config.json and {of_processor} in preprocessor_config.json: "
                "make them equal, the HOG targets are computed from the de-normalised pictures."
            )
    size, image_size = image_processor.size, model.config.image_size
    if (size.height, size.width) != (image_size, image_size):
        raise ValueError(
            f"The model takes {image_size} x {image_size} pixels (config.json), the image processor makes "
            f"{size.height} x {size.width} (preprocessor_config.json): make them equal."
        )


class ImageTrainer(Trainer):
    """A Trainer over prepared data sets (columns `image` and `index`).

    The collator yields 8-bit pixels; `_prepare_inputs` augments (in training) and normalises them on the device.
    Random numbers are keyed by (seed, epoch, index).
    """

    args: ImageTrainingArguments
    processing_class: BaseImageProcessor
    table: ConfidenceTable | None = None  # the confidences, where a training has any
    num_views = 1  # how many times each picture is augmented in training

    def __init__(self, model: PreTrainedModel, args: ImageTrainingArguments, **kwargs: Any):
        image_processor = kwargs["processing_class"]
        check_image_processor(model, image_processor)
        kwargs.setdefault("data_collator", PixelCollator(image_processor))
        super().__init__(model, args, **kwargs)
        # Our losses are means over the micro-batch; Trainer divides them by the accumulation steps.
        self.loss_is_scaled_for_ga = False
        self.augmentation = args.augmentation()
        mean, std = image_processor.image_mean, image_processor.image_std
        self._mean = torch.tensor(mean, device=args.device).view(-1, 1, 1) * 255
        self._std = torch.tensor(std, device=args.device).view(-1, 1, 1) * 255

    @property
    def current_epoch(self) -> int:
        """Number of the running epoch, from 0; the same after an interruption."""
        return int(self.state.epoch or 0)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        if self.model.training:
            views = (
                self.augmentation(pixels, inputs["index"], self.current_epoch, view) for view in range(self.num_views)
            )
            pixels = torch.cat(list(views))  # (V * B, C, H, W), all pictures of a view together
        inputs["pixel_values"] = (pixels.float() - self._mean) / self._std
        return inputs

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        # Trainer knows two groups; layer-wise learning rates need one for each depth.
        if self.optimizer is None:
            model = model or self.model
            groups = parameter_groups(model, self.args.learning_rate, self.args.weight_decay, self.args.layer_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    @property
    def processes(self) -> dict[str, int]:
        """What must stay the same for a resumed training to go on bit for bit."""
        return {
            "world_size": self.args.world_size,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
        }

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise `ValueError` where this training cannot go on from a checkpoint. Changes nothing."""
        check_checkpoint(checkpoint)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} yet.")
        if resume_from_checkpoint:
            self.check_checkpoint(resume_from_checkpoint)
            warn_if_processes_differ(resume_from_checkpoint, self.processes)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def save_with_checkpoint(self, checkpoint: str) -> None:
        """Write what a checkpoint holds besides Trainer's own files; called on the process that saves."""
        write_processes(checkpoint, self.processes)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Before everything else: Trainer pushes, deletes old checkpoints and marks this one complete inside.
        if self.args.should_save:
            checkpoint = str(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
            begin_checkpoint(checkpoint)
            self.save_with_checkpoint(checkpoint)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state of the trainer, written next, says that nothing is missing

    def evaluation_results(self) -> dict[str, dict[str, float]]:
        """Metrics for the model card, by what was evaluated; none where nothing was."""
        return {}

    def create_model_card(self, model_name: str | None = None, license: str | None = None, **options: Any) -> None:
        # Trainer's own card says nothing of candidate sets, crops and limits, and is written over ours at every push.
        if not self.is_world_process_zero():
            return
        if not isinstance(self.accelerator.unwrap_model(self.model), FerPllPreTrainedModel):
            return super().create_model_card(model_name=model_name, license=license, **options)
        folder = Path(self.args.output_dir)
        settings = self.args.to_dict()
        if (folder / SETTINGS_NAME).is_file():  # what the script was told as well, such as max_candidates
            settings |= json.loads((folder / SETTINGS_NAME).read_text())["script"]
        from_votes, from_labels = (
            ("max_candidates", "min_votes", "ties"),
            ("flip_probability", "set_size", "transition"),
        )
        for name in from_labels if "votes" in self.train_dataset.column_names else from_votes:
            settings.pop(name, None)  # candidate sets were not made that way
        card = model_card(
            self.accelerator.unwrap_model(self.model),
            model_id=self.hub_model_id or model_name or folder.name,
            data=self.train_dataset.info.description or None,
            settings=settings,
            table=self.table,
            metrics=self.evaluation_results(),
            license=license,
            face_crop=getattr(self.processing_class, "face_crop", None),
        )
        card.save(folder / "README.md")
