"""Publishing a run: the card of its model, and pushes to the Hub."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..data.provenance import Provenance
from ..hub.card import model_card, training_record
from ..hub.push import published_files, push_errors, push_files
from ..io.atomic import whole_file, write_json, write_text
from ..labels.confidence_table import ConfidenceTable
from ..model.modeling_fer_pll import FerPllPreTrainedModel
from .methods import Method
from .run_trainer import RunTrainer

logger = logging.getLogger(__name__)


class PublishingMixin(RunTrainer):
    """Writes our card instead of Trainer's, and pushes only the files that belong on the Hub.

    Trainer pushes everything in the output folder, pickles and settings with paths included, and everything in a
    checkpoint except the code.
    """

    table: ConfidenceTable | None = None  # the confidences, if the run has any
    method: Method | None = None  # of learning from candidate sets, if there is one
    data_settings: Mapping[str, Any] = {}  # of the candidate sets, for the card
    push_in_progress: Any  # in Trainer's types None, and its jobs a single one

    @cached_property
    def _hub(self) -> HfApi:
        """The client for pushes in the background, which follow each other."""
        return HfApi()

    def evaluation_results(self) -> dict[str, dict[str, float]]:
        """Metrics for the model card, by the name of the evaluation."""
        return {}

    def compute_record(self) -> dict[str, Any]:
        """Hardware and versions of the run and, unless it was resumed, its duration in hours."""
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
        """The model that the card describes: ours, or the part of it that is saved in the end."""
        return self.accelerator.unwrap_model(self.model)

    def card_settings(self) -> dict[str, Any]:
        """The settings on the card. No path of the machine is among them."""
        return self.args.card_settings() | dict(self.data_settings)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        *args: Any,
        **options: Any,
    ) -> None:
        """Write `training.json`, and the card made from it, to the output folder."""
        # Trainer's card says nothing about candidate sets, crops and limits, and each push would put it over ours.
        if not self.is_world_process_zero():
            return
        model = self.published_model
        if not isinstance(model, FerPllPreTrainedModel):
            return super().create_model_card(language, license, tags, model_name, *args, **options)
        run = self.run_folder
        script = run.settings["script"] if run.settings_file.is_file() else {}
        training = training_record(
            self.card_settings(),
            data=None if self.train_dataset is None else Provenance.from_dataset(self.train_dataset),
            table=self.table,
            method=self.method,
            metrics=self.evaluation_results(),
            compute=self.compute_record(),
            init_from=script.get("init_from"),
        )
        write_json(run.training, training)
        card = model_card(
            model,
            model_id=self.hub_model_id or model_name or run.path.name,
            training=training,
            evaluations=run.evaluations(),
            license=license,
            face_crop=getattr(self.processing_class, "face_crop", None),
        )
        write_text(run.card, str(card))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        with push_errors(self.args.hub_model_id or self.run_folder.path.name):
            super().init_hf_repo(token, private)

    def push_to_hub(  # type: ignore[override]  # Trainer's returns a Future too, against its annotation
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card_options: Any,
    ) -> CommitInfo | Future | None:
        """Save the model and push the files that belong on the Hub (see `published_files`).

        Arguments as in `Trainer.push_to_hub`; `card_options` go to `create_model_card`.

        Raises:
            PushError: the push failed. The output folder is whole, and can be pushed again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card_options)
        self._finish_current_push()
        future = self._push(self.run_folder.path, commit_message, token=token, revision=revision)
        return future.result() if blocking else future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        in_progress = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if in_progress and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output = self.run_folder.path
        for name in published_files(checkpoint_folder):
            with whole_file(output / name) as unfinished:
                shutil.copy(Path(checkpoint_folder) / name, unfinished)
        self.create_model_card()
        # From a copy: the next checkpoint may replace the files before this push has ended.
        copy = tempfile.TemporaryDirectory(dir=output, prefix=".push-")
        for name in published_files(output):
            (Path(copy.name) / name).parent.mkdir(exist_ok=True)
            shutil.copy(output / name, Path(copy.name) / name)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push(copy.name, message)]
        jobs[0].add_done_callback(lambda job: copy.cleanup())
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            path_in_repo = "last-checkpoint" if last else Path(checkpoint_folder).name
            jobs.append(self._push(checkpoint_folder, f"{message}, checkpoint", path_in_repo))
        for job in jobs:
            job.add_done_callback(_warn_of_failed_push)
        if in_progress:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]  # a list, see `jobs=None` there

    def _push(
        self,
        folder: str | Path,
        commit_message: str | None,
        path_in_repo: str = "",
        token: str | None = None,
        revision: str | None = None,
    ) -> Future:
        """Push a folder in the background: with `path_in_repo` all files to resume from, else the published ones."""
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
    """Warn only: the run goes on, and the next push brings these files too."""
    if job.exception() is not None:
        logger.warning("A checkpoint was not pushed, training goes on. %s", job.exception())
