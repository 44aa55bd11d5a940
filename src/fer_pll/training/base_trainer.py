"""What both trainings share: 8-bit pixels augmented and normalised on the device, the card, and pushes to the Hub."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, HfApi
from transformers import BaseImageProcessor, PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..data.collator import PixelCollator
from ..data.provenance import Provenance
from ..hub.card import CARD_NAME, TRAINING_NAME, model_card, read_evaluations, training_record
from ..hub.push import published_files, push_errors, push_files
from ..labels.confidence_table import ConfidenceTable
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .arguments import ImageTrainingArguments
from .checkpoints import (
    begin_checkpoint,
    check_checkpoint,
    is_complete,
    last_checkpoint,
    saving,
    warn_if_processes_differ,
    write_processes,
)
from .config import SETTINGS_NAME
from .initialization import check_settings_taken_over
from .methods import Method
from .param_groups import parameter_groups

logger = logging.getLogger(__name__)


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


NON_FINITE_NAME = "non_finite_loss.json"


class NonFiniteLossError(ValueError):
    """The loss is NaN or infinite; the message says at which step and rows, and where the training can go on."""


class ImageTrainer(Trainer):
    """A Trainer over prepared data sets (columns `image` and `index`).

    The collator yields 8-bit pixels; `_prepare_inputs` augments (in training) and normalises them on the device.
    Random numbers are keyed by (seed, epoch, index). Logs have `images_per_second`: pictures trained on since the log
    before, on all processes, over the time that passed.
    """

    args: ImageTrainingArguments
    processing_class: BaseImageProcessor
    table: ConfidenceTable | None = None  # the confidences, where a training has any
    _resumed = False
    num_views = 1  # how many times each picture is augmented in training
    method: Method | None = None  # of learning from candidate sets, likewise
    data_settings: Mapping[str, Any] = {}  # how the training set was made, for the card

    def __init__(self, model: PreTrainedModel, args: ImageTrainingArguments, **kwargs: Any):
        image_processor = kwargs["processing_class"]
        check_image_processor(model, image_processor)
        kwargs.setdefault("data_collator", PixelCollator(image_processor))
        super().__init__(model, args, **kwargs)
        # Our losses are means over the micro-batch; Trainer divides them by the accumulation steps.
        self.loss_is_scaled_for_ga = False
        self.augmentation = args.augmentation()
        mean, std = image_processor.image_mean, image_processor.image_std
        self._hub = HfApi()  # its pushes in the background follow each other
        self._mean = torch.tensor(mean, device=args.device).view(-1, 1, 1) * 255
        self._std = torch.tensor(std, device=args.device).view(-1, 1, 1) * 255
        self._images_since, self._last_log = 0, time.perf_counter()

    @property
    def current_epoch(self) -> int:
        """Number of the running epoch, from 0; the same after an interruption."""
        return int(self.state.epoch or 0)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        epoch = inputs.pop("epoch", self.current_epoch)  # a stream knows in which pass over the data each picture is
        if self.model.training:
            views = (self.augmentation(pixels, inputs["index"], epoch, view) for view in range(self.num_views))
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
        if isinstance(self.model, FerPllPreTrainedModel):
            check_settings_taken_over(self.model.config, checkpoint)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} yet.")
        if resume_from_checkpoint:
            self.check_checkpoint(resume_from_checkpoint)
            warn_if_processes_differ(resume_from_checkpoint, self.processes)
        self._resumed = bool(resume_from_checkpoint)
        self._images_since, self._last_log = 0, time.perf_counter()
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._images_since += len(inputs["index"])
        # Of all processes, so that they stop together. Nothing was changed by this step yet.
        if not self.accelerator.gather(loss.isfinite().view(1)).all():
            self._stop_at(loss, inputs)
        return loss

    def _stop_at(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Save what this step began with, write down its rows, and raise `NonFiniteLossError`."""
        folder, step = Path(self.args.output_dir), self.state.global_step
        names = inputs["row_id"] if "row_id" in inputs else inputs["index"].tolist()
        rows = gather_object([] if loss.isfinite() else list(names))
        if self.state_is_finite():
            checkpoint = str(folder / f"checkpoint-{step}")
            if not is_complete(checkpoint):
                self._save_checkpoint(self.model, trial=None)
            state = f"What the step began with is in {checkpoint}"
        else:  # an earlier step broke it, with a loss that was still finite
            checkpoint = last_checkpoint(folder)
            state = f"The weights are not finite either; the last checkpoint is {checkpoint}"
        report = {"step": step + 1, "epoch": self.state.epoch, "checkpoint": checkpoint, "rows": rows}
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NON_FINITE_NAME).write_text(json.dumps(report, indent=2) + "\n")
        raise NonFiniteLossError(
            f"The loss of step {step + 1} is not finite. It was computed from {len(rows)} rows, {rows[0]} among them; "
            f"{folder / NON_FINITE_NAME} lists them. {state}. Go on with --resume_from_checkpoint last and a lower "
            "--learning_rate or without bf16 and fp16, if it is not the rows' fault."
        )

    def state_is_finite(self) -> bool:
        """Whether what a checkpoint would hold can be trained on."""
        return all(bool(weight.isfinite().all()) for weight in self.model.state_dict().values())

    def save_with_checkpoint(self, checkpoint: str) -> None:
        """Write what a checkpoint holds besides Trainer's own files; called on the process that saves."""
        write_processes(checkpoint, self.processes)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Before everything else: Trainer pushes, deletes old checkpoints and marks this one complete inside.
        checkpoint = str(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        with saving(checkpoint):
            if self.args.should_save:
                begin_checkpoint(checkpoint)
                self.save_with_checkpoint(checkpoint)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state of the trainer, written next, says that nothing is missing

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, not an evaluation
            now = time.perf_counter()
            logs["images_per_second"] = round(self._images_since * self.args.world_size / (now - self._last_log), 1)
            self._images_since, self._last_log = 0, now
        super().log(logs, start_time)

    def evaluation_results(self) -> dict[str, dict[str, float]]:
        """Metrics for the model card, by what was evaluated; none where nothing was."""
        return {}

    def compute_record(self) -> dict[str, Any]:
        """What the training ran on and, unless it is the rest of one that was cut off, for how long."""
        on_gpu = self.args.device.type == "cuda"
        record = {
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({torch.get_num_threads()} threads)",
            "processes": self.args.world_size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        runtimes = [log["train_runtime"] for log in self.state.log_history if "train_runtime" in log]
        if runtimes and not self._resumed:
            record["hours"] = runtimes[-1] / 3600
        return record

    @property
    def published_model(self) -> PreTrainedModel:
        """What the card is about: the model, unless only a part of it is saved in the end."""
        return self.accelerator.unwrap_model(self.model)

    def card_settings(self) -> dict[str, Any]:
        """The settings that the card shows: no path of the machine is among them."""
        return self.args.card_settings() | self.data_settings

    def create_model_card(self, model_name: str | None = None, license: str | None = None, **options: Any) -> None:
        """Write `training.json`, and the card made from it, to the output folder."""
        # Trainer's own card says nothing of candidate sets, crops and limits, and is written over ours at every push.
        if not self.is_world_process_zero():
            return
        model = self.published_model
        if not isinstance(model, FerPllPreTrainedModel):
            return super().create_model_card(model_name=model_name, license=license, **options)
        folder = Path(self.args.output_dir)
        script = {}
        if (folder / SETTINGS_NAME).is_file():
            script = json.loads((folder / SETTINGS_NAME).read_text())["script"]
        training = training_record(
            self.card_settings(),
            data=Provenance.from_dataset(self.train_dataset),
            table=self.table,
            method=self.method,
            metrics=self.evaluation_results(),
            compute=self.compute_record(),
            init_from=script.get("init_from"),
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRAINING_NAME).write_text(json.dumps(training, indent=2) + "\n")
        card = model_card(
            model,
            model_id=self.hub_model_id or model_name or folder.name,
            training=training,
            evaluations=read_evaluations(folder),
            license=license,
            face_crop=getattr(self.processing_class, "face_crop", None),
        )
        card.save(folder / CARD_NAME)

    # Trainer pushes whatever lies in the output folder, pickles and settings with paths included, and from a
    # checkpoint everything but the code.

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        with push_errors(self.args.hub_model_id or Path(self.args.output_dir).name):
            super().init_hf_repo(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card_options: Any,
    ) -> CommitInfo | Future | None:
        """Save the model and push what of the output folder belongs on the Hub (see `published_files`).

        Arguments as of `Trainer.push_to_hub`; `card_options` go to `create_model_card`.

        Raises:
            PushError: the push did not come through; the output folder is whole, and can be pushed again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card_options)
        self._finish_current_push()
        future = self._push(self.args.output_dir, commit_message, token=token, revision=revision)
        return future.result() if blocking else future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        in_progress = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if in_progress and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # From a copy: the checkpoint may be deleted while it is still on its way.
        for name in published_files(checkpoint_folder):
            shutil.copy(Path(checkpoint_folder) / name, Path(self.args.output_dir) / name)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push(self.args.output_dir, message)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            path_in_repo = "last-checkpoint" if last else Path(checkpoint_folder).name
            jobs.append(self._push(checkpoint_folder, f"{message}, checkpoint", path_in_repo))
        for job in jobs:
            job.add_done_callback(_warn_of_failed_push)
        if in_progress:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _push(
        self,
        folder: str,
        commit_message: str | None,
        path_in_repo: str = "",
        token: str | None = None,
        revision: str | None = None,
    ) -> Future:
        """Push a folder in the background, one after the other: to `path_in_repo` all that a training resumes from."""
        if path_in_repo:
            files = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
            files = [name for name in files if name != TRAINING_ARGS_NAME]
        else:
            files = published_files(folder)
        return self._hub.run_as_future(
            push_files,
            folder,
            files,
            self.hub_model_id,
            path_in_repo=path_in_repo,
            commit_message=commit_message or "End of training",
            token=token,
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
        )


def _warn_of_failed_push(job: Future) -> None:
    """Training goes on, and the next push brings what this one should have brought."""
    if job.exception() is not None:
        logger.warning("A checkpoint was not pushed, training goes on. %s", job.exception())
