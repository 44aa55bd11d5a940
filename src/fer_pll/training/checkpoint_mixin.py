"""Safety of long runs: whole checkpoints, exact resuming, and a stop before NaN spreads."""

from contextlib import nullcontext
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput, unwrap_peft_model

from ..io.atomic import write_json
from ..io.errors import DataError
from ..io.pretrained import share_weights
from ..io.stored import reading
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .checkpoints import (
    ANOTHER,
    NonFiniteLossError,
    begin_checkpoint,
    bring_checkpoint,
    check_checkpoint,
    is_complete,
    last_checkpoint,
    rotate,
    saving,
    saving_model,
    seal,
    warn_if_processes_differ,
    write_processes,
)
from .initialization import check_settings_taken_over
from .lora import check_adapters, is_adapted, save_base
from .processes import decided_by_main
from .run_trainer import RunTrainer
from .sharding import SHARDED, check_shared_folder, check_state_dict_type, own_class, prepare_sharding, state_dict_type
from .signals import RunInterrupted, StopSignals


class StopCallback(TrainerCallback):
    """Saves and stops after the step in which a signal reached one of the processes."""

    def __init__(self, trainer: "CheckpointMixin") -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size == 1:  # several processes agree in the next step, see `training_step`
            self.trainer._stopped_by = self.trainer._signals.received
        if self.trainer._stopped_by:
            control.should_save = control.should_training_stop = True


class CheckpointMixin(RunTrainer):
    """Writes checkpoints that can be trusted, refuses to resume from others, and stops at a NaN or infinite loss.

    A signal stops the run after the step that it is at, with a checkpoint of that step, see `StopSignals`.
    """

    _signals = StopSignals()
    _stopped_by = 0  # the signal that one of the processes got, known to all of them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prepare_sharding(self.accelerator, self.model, self.args)
        self.add_callback(StopCallback(self))

    @property
    def processes(self) -> dict[str, int]:
        """Numbers that must stay the same for a resumed run to go on bit for bit."""
        return {
            "world_size": self.args.world_size,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
        }

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise `ValueError` if this run cannot go on from a checkpoint. Brings it to machines with another disk.

        All processes call it together.
        """
        bring_checkpoint(self.args, checkpoint)
        check_checkpoint(checkpoint)
        check_state_dict_type(checkpoint, state_dict_type(self.accelerator))
        if isinstance(model := unwrap_peft_model(self.model), FerPllPreTrainedModel):
            check_settings_taken_over(model.config, checkpoint)
        check_adapters(self.model, checkpoint)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if state_dict_type(self.accelerator) == SHARDED:
            check_shared_folder(self.args)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = decided_by_main(self.args, lambda: last_checkpoint(self.run_folder.path))
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.run_folder.path} yet.")
        if resume_from_checkpoint:
            self.check_checkpoint(resume_from_checkpoint)
            warn_if_processes_differ(resume_from_checkpoint, self.processes)
        self._resumed = bool(resume_from_checkpoint)
        self._stopped_by = 0
        with StopSignals() as self._signals:
            output = super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)
        self._check_weights()
        if self._stopped_by and self.state.global_step < self.state.max_steps:
            checkpoint = self.run_folder.checkpoint(self.state.global_step).path
            raise RunInterrupted(
                f"{Signals(self._stopped_by).name} has stopped the run after step {self.state.global_step} of "
                f"{self.state.max_steps}. It is saved in {checkpoint}; the same command goes on from there with "
                "--resume_from_checkpoint last.",
                self._stopped_by,
            )
        return output

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Of all processes, so that they stop together. This step has changed no weight yet.
        here = torch.tensor([not loss.isfinite(), self._signals.received], device=loss.device)
        broken, signal = self.accelerator.gather(here.view(1, 2)).amax(dim=0).tolist()
        if broken:
            self._stop_at(loss, inputs)
        self._stopped_by = self._stopped_by or signal
        return loss

    def _stop_at(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Save the weights before this step, write down its rows, and raise `NonFiniteLossError`.

        A method may have revised the step's rows, and moved what it keeps, before the loss was known.
        """
        step = self.state.global_step
        names = inputs["row_id"] if "row_id" in inputs else inputs["index"].tolist()
        rows = gather_object([] if loss.isfinite() else list(names))
        checkpoint: str | None
        if self.state_is_finite():
            checkpoint = str(self.run_folder.checkpoint(step).path)
            if not is_complete(checkpoint):
                self._save_checkpoint(self.model, trial=None)
            state = f"The state before the step is in {checkpoint}"
        else:  # an earlier step broke the weights, with a loss that was still finite
            checkpoint = last_checkpoint(self.run_folder.path)
            state = f"The weights are not finite either; {_last(checkpoint)}"
        report = self.run_folder.non_finite_loss
        if self.args.should_save:
            write_json(report, {"step": step + 1, "epoch": self.state.epoch, "checkpoint": checkpoint, "rows": rows})
        raise NonFiniteLossError(
            f"The loss of step {step + 1} is not finite. It was computed from {len(rows)} rows, {rows[0]} among them; "
            f"{report} lists them. {state}. {_go_on(checkpoint)} and a lower --learning_rate or without bf16 and "
            "fp16, if it is not the rows' fault. Confidences, where there are any, may have been revised by this step."
        )

    def _check_weights(self) -> None:
        """Raise `NonFiniteLossError` if a step, whose loss was finite, has left weights that are not."""
        here = torch.tensor([not self.state_is_finite()], device=self.args.device)
        if self.accelerator.gather(here).any():
            checkpoint = last_checkpoint(self.run_folder.path)
            raise NonFiniteLossError(
                f"The weights are not finite after step {self.state.global_step}, so they are not saved; "
                f"{_last(checkpoint)}. {_go_on(checkpoint)} and a lower --learning_rate or a larger --adam_epsilon."
            )

    def state_is_finite(self) -> bool:
        """Whether a checkpoint written now could be trained on."""
        return all(bool(weight.isfinite().all()) for weight in self.model.state_dict().values())

    def save_with_checkpoint(self, checkpoint: str) -> None:
        """Write our own files of a checkpoint. Called on the process that saves."""
        write_processes(checkpoint, self.processes)
        if is_adapted(self.model):
            save_base(self.model, checkpoint)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._check_weights()
        # Ours come first: inside, Trainer marks the checkpoint complete, deletes old ones and pushes.
        checkpoint = str(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        with saving(checkpoint):
            if self.args.should_save:
                begin_checkpoint(checkpoint)
                self.save_with_checkpoint(checkpoint)
            self.accelerator.wait_for_everyone()
            # Trainer would delete others and push before the checkpoint is sealed.
            limit, pushes = self.args.save_total_limit, self.args.push_to_hub
            self.args.save_total_limit, self.args.push_to_hub = None, False
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit, self.args.push_to_hub = limit, pushes
        if self.args.should_save:
            seal(checkpoint)
            rotate(self._get_output_dir(trial), self.state.global_step, limit, self.state.best_model_checkpoint)
        # A launcher ends all processes once one has ended with an error, as after a signal. Until here, none may.
        self.accelerator.wait_for_everyone()
        if pushes:
            self._push_from_checkpoint(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with reading(f"{resume_from_checkpoint} (its weights)", ANOTHER):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(f"{checkpoint} (its optimizer.pt and scheduler.pt)", ANOTHER):
            try:
                super()._load_optimizer_and_scheduler(checkpoint)
            except ValueError as error:
                if "parameter group" not in str(error):
                    raise
                raise DataError(
                    f"{checkpoint}: its optimizer has other groups of parameters: resume with the layer_decay, "
                    "freeze_backbone and weight_decay that the run began with"
                ) from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(f"{checkpoint} (its rng_state*.pth)", ANOTHER):
            super()._load_rng_state(checkpoint)

    def _load_callback_state(self) -> None:
        with reading("trainer_state.json (its stateful_callbacks)", ANOTHER):
            super()._load_callback_state()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if state_dict_type(self.accelerator) == SHARDED:  # then Trainer saves none
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.run_folder.path)
        with saving_model(folder) if folder == self.run_folder.path else nullcontext():  # a checkpoint has `saving`
            with own_class(self.model):
                super()._save(output_dir, state_dict)
            if self.args.should_save:
                share_weights(folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the trainer's state is written next, and marks the checkpoint complete


def _last(checkpoint: str | None) -> str:
    return f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"


def _go_on(checkpoint: str | None) -> str:
    return "Go on with --resume_from_checkpoint last" if checkpoint else "Start again with --overwrite"
