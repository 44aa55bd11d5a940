"""Monitoring of pre-training: images of the predictions, and a linear probe of the features."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback

from ..model.modeling_fer_pll import FerPllForPreTraining
from ..plots.pretraining import hog_strokes, plot_predictions
from .base_trainer import ImageTrainer
from .linear_probe import LinearProbe

logger = logging.getLogger(__name__)

NUM_IMAGES = 6
STEPS_BETWEEN = 50
"""With checkpoints that follow each other sooner than that, only some of them have a picture."""


class PreTrainingMonitor(TrainerCallback):
    """Draws predictions and probes features while a model is pre-trained.

    Works on the main process alone, with random numbers of its own. It does not change the run.

    Args:
        trainer: its first batch gives the images to draw.
        picture_steps: draw every so many steps; 0: never; `None`: with each checkpoint that is `STEPS_BETWEEN` steps
            after the last picture, and at the end.
        probe: runs at the start, with each checkpoint and at the end; logged as `probe_accuracy`.
    """

    def __init__(self, trainer: ImageTrainer, picture_steps: int | None, probe: LinearProbe | None) -> None:
        self.trainer = trainer
        self.picture_steps = picture_steps
        self.probe = probe
        self.images: torch.Tensor | None = None  # normalized (B, C, H, W)
        self.last_look = -1  # the step
        self.last_picture = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and state.global_step == 0:
            self.run_probe()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and self.picture_steps and state.global_step % self.picture_steps == 0:
            self.draw()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        trained = self.images is not None
        if state.is_world_process_zero and trained and self.last_look != state.global_step:
            self.look()

    def look(self) -> None:
        """Draw and probe, as for each checkpoint."""
        self.last_look = self.trainer.state.global_step
        state = self.trainer.state
        ends = state.global_step >= state.max_steps
        if self.picture_steps is None and (ends or state.global_step - self.last_picture >= STEPS_BETWEEN):
            self.last_picture = state.global_step
            self.draw()
        self.run_probe()

    @contextmanager
    def evaluating(self) -> Iterator[PreTrainedModel]:
        """The model in evaluation mode. Random numbers are the same each time, and the run's own are not used up."""
        model, device = self.trainer.model, self.trainer.args.device
        was_training = model.training
        python, numpy = random.getstate(), np.random.get_state()
        model.eval()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            set_seed(0)
            with self.trainer.accelerator.autocast():
                yield model
        random.setstate(python)
        np.random.set_state(numpy)
        model.train(was_training)

    def run_probe(self) -> None:
        if self.probe is None:
            return
        device = self.trainer.args.device
        with self.evaluating() as model:
            accuracy = self.probe.accuracy(
                lambda pixels: model.base_model(pixels.to(device)).last_hidden_state[:, 1:].mean(dim=1),
                self.trainer.args.eval_batch_size,
            )
        self.trainer.log({"probe_accuracy": accuracy})

    def draw(self) -> None:
        """Write an image of the model's predictions to the run's folder, and to TensorBoard if that is in use."""
        pixel_values = self.images
        with self.evaluating() as model:
            assert isinstance(model, FerPllForPreTraining) and pixel_values is not None  # after the first step
            outputs = model(pixel_values=pixel_values)
            targets = model.targets(pixel_values)
        grid = [side // model.config.patch_size for side in pixel_values.shape[2:]]
        step = self.trainer.state.global_step
        path = self.trainer.run_folder.images / f"step-{step:07}.png"
        images = (
            model.to_pixels(pixel_values).permute(0, 2, 3, 1).div(255).clamp(0, 1).cpu().numpy(),
            outputs.mask.unflatten(1, grid).cpu().numpy(),
            as_images(model, targets, pixel_values),
            as_images(model, outputs.logits.float(), pixel_values),
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            plot_predictions(*images, path, title=f"step {step:,}: loss {outputs.loss:.4f} on these images")
        except OSError as error:  # a full disk: no reason to end the run
            path.unlink(missing_ok=True)
            logger.warning("%s could not be written: %s", path, error)
            return
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("predictions", np.asarray(Image.open(path)), step, dataformats="HWC")


def as_images(model: FerPllForPreTraining, values: torch.Tensor, pixel_values: torch.Tensor) -> np.ndarray:
    """Targets, or predictions of them, as images: HOG as strokes, pixels as they are.

    Args:
        model: the model that made them.
        values: (B, L, values per patch).
        pixel_values: the images, (B, C, H, W).

    Returns:
        (B, height, width, channels), 0..1. HOG has one channel: the mean over the images' channels.
    """
    config, patch = model.config, model.config.patch_size
    batch, channels, height, width = pixel_values.shape
    rows, columns = height // patch, width // patch
    if config.pretraining_target == "hog":
        n = patch // config.hog_cell_size
        cells = values.view(batch, rows, columns, n, n, config.hog_orientations, channels).mean(dim=-1)
        cells = cells.transpose(2, 3).reshape(batch, rows * n, columns * n, config.hog_orientations)
        return hog_strokes(cells.cpu().numpy(), sobel=config.hog_gradient == "sobel")[..., None]
    values = values.view(batch, rows, columns, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    if config.pretraining_target == "normalized_pixels":
        own = pixel_values.float().view(batch, channels, rows, patch, columns, patch)
        variance, mean = torch.var_mean(own, dim=(1, 3, 5), keepdim=True)
        values = values * (variance + 1e-6).sqrt() + mean
    pixels = model.to_pixels(values.reshape(pixel_values.shape))
    return pixels.permute(0, 2, 3, 1).div(255).clamp(0, 1).cpu().numpy()
