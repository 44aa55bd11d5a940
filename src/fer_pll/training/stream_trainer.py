"""Pre-training on a stream of images: it counts steps, and resumes at exactly the next image."""

import csv
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from ..data.dataset import Unreadable
from ..data.row_ids import row_ids
from ..data.streaming.stream import ImageStream, Position
from ..io.atomic import write_json
from ..io.errors import DataError
from ..io.stored import read_json, reading
from .arguments import FerPllPreTrainingArguments
from .base_trainer import ImageTrainer
from .checkpoints import ANOTHER
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

_STATE = {"batches": int, "pass": int, "positions": {str: [int]}, "workers": int}


class StreamTrainer(ImageTrainer):
    """An `ImageTrainer` whose `train_dataset` may be an `ImageStream`.

    For Trainer, a stream is one long epoch of `max_steps` steps. With each checkpoint, every process writes how far
    its readers had come at the last image that was trained on, and goes on there after an interruption. Trainer alone
    would read and decode everything before it again. Images that cannot be read are listed in `unreadable.csv` in the
    output folder (`unreadable-1.csv` by process 1, and so on).
    """

    args: FerPllPreTrainingArguments

    def __init__(self, model: PreTrainedModel, args: FerPllPreTrainingArguments, **kwargs: Any) -> None:
        dataset = kwargs["train_dataset"]
        if not isinstance(dataset, Dataset | ImageStream | None):
            raise ValueError(
                f"train_dataset is a {type(dataset).__module__}.{type(dataset).__name__}: give a datasets.Dataset "
                "with the column `image`, or an ImageStream."
            )
        self.stream = dataset if isinstance(dataset, ImageStream) else None
        if self.stream is not None:
            if args.max_steps <= 0:
                raise ValueError("--max_steps: needed, because a stream does not know how many images it has.")
            args.ignore_data_skip = True  # the stream itself goes to its place
        super().__init__(model, args, **kwargs)
        if self.stream is not None:
            self.add_callback(_EpochOfAStream())
            self._positions: dict[int, Position] = {}
            self._batches = 0  # that this process has trained on
            self._pass = 0

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.stream is not None:
            self._report = _Report(self.run_folder.unreadable(self.args.process_index))
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        if self.stream is None:
            return super().get_train_dataloader()
        # Not prepared by accelerate: the stream divides itself among processes, and none ends before the others.
        args = self.args
        return torch.utils.data.DataLoader(
            self.stream,
            batch_size=self._train_batch_size,
            collate_fn=_StreamCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
            generator=torch.Generator(),  # for the workers' seeds, else drawn from the run's numbers
        )

    def set_initial_training_values(self, *args: Any) -> tuple[int, int, int, int, int, int | None, int]:
        # Trainer allows a stream any number of epochs, and would train a finished run for one more step.
        values = super().set_initial_training_values(*args)
        return values if self.stream is None else (1, *values[1:])

    def get_batch_samples(self, *args: Any) -> tuple[list, torch.Tensor | int | None]:
        batches, number = super().get_batch_samples(*args)
        if self.stream is not None:
            for batch in batches:
                self._positions[batch.pop("reader")] = batch.pop("position")
                self._batches += 1
                self._pass = int(batch["epoch"].max())
                unreadable = batch.pop("unreadable")
                self._report.add(unreadable)
                if unreadable and self.args.on_bad_data == "stop":
                    raise DataError(
                        f"{unreadable[0].row_id}: {unreadable[0].reason}. Repair it, or leave out what cannot be read "
                        "(--on_bad_data skip), and go on with --resume_from_checkpoint last."
                    )
        return batches, number

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.stream is not None and "loss" in logs:
            logs["pass"] = self._pass
            if self._report.known:
                logs["unreadable"] = len(self._report.known)
        super().log(logs, start_time)

    def _images(self) -> dict[str, Any]:
        """Which data set this is: its rows, and a digest of a hundred of them."""
        dataset: Any = self.train_dataset
        rows = len(dataset)
        some = row_ids(dataset.select_columns("image").select(range(0, rows, -(-rows // 100) or 1)))
        return {"rows": rows, "sha256": hashlib.sha256("\n".join(some).encode()).hexdigest()}

    def save_with_checkpoint(self, checkpoint: str) -> None:
        super().save_with_checkpoint(checkpoint)
        if isinstance(self.train_dataset, Dataset):
            write_json(RunFolder(checkpoint).images_seen, self._images())

    def check_checkpoint(self, checkpoint: str) -> None:
        super().check_checkpoint(checkpoint)
        file = RunFolder(checkpoint).images_seen  # checkpoints of earlier versions have none
        if not file.is_file() or not isinstance(self.train_dataset, Dataset):
            return
        before = read_json(file, {"rows": int, "sha256": str}, ANOTHER)
        if before != self._images():
            raise DataError(
                f"{checkpoint} is of a run on other images ({before['rows']:,} of them; --data has "
                f"{len(self.train_dataset):,}): resume it with the data that it had, or begin a new run from its "
                "weights (--init_from, with another --output_dir)"
            )

    def _must_stay(self, stream: ImageStream) -> dict[str, Any]:
        """What must be the same for the positions of a checkpoint to hold."""
        return {
            "stream": stream.fingerprint,
            "world_size": self.args.world_size,
            "workers": max(1, self.args.dataloader_num_workers),
        }

    def _save_rng_state(self, output_dir: str) -> None:
        if self.stream is not None:
            progress = {"batches": self._batches, "pass": self._pass, "positions": self._positions}
            state = self._must_stay(self.stream) | progress
            path = RunFolder(output_dir).stream(self.args.process_index)
            path.parent.mkdir(parents=True, exist_ok=True)  # on other machines, Trainer makes it only later
            write_json(path, state)
        super()._save_rng_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.stream is not None and checkpoint is not None:
            self._go_to(self.stream, checkpoint)

    def _go_to(self, stream: ImageStream, checkpoint: str) -> None:
        """Set the stream to where it was at a checkpoint."""
        run = RunFolder(checkpoint)
        states = {path.name: read_json(path, _STATE, ANOTHER) for path in run.path.glob(run.stream("*").name)}
        state = states.get(run.stream(self.args.process_index).name, {})
        if all(state.get(name) == value for name, value in self._must_stay(stream).items()):
            with reading(run.stream(self.args.process_index), ANOTHER):
                self._positions = {int(reader): Position(*place) for reader, place in state["positions"].items()}
            self._batches, self._pass = state["batches"], state["pass"]
            stream.start_at(self._positions, first_worker=self._batches % state["workers"])
            return
        self._pass = max((state["pass"] + 1 for state in states.values()), default=0)
        stream.start_at({}, epoch=self._pass)
        logger.warning(
            "%s was written with other images, another shuffling, or other processes or workers: the run goes on with "
            "a new pass over the images.",
            checkpoint,
        )


@dataclass
class _StreamCollator:
    """Makes a batch of a stream's rows. Adds each image's pass, and how far the reader is."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self.collator(rows) | {
            "epoch": torch.tensor([row["epoch"] for row in rows]),
            "reader": rows[-1]["reader"],
            "position": rows[-1]["position"],
            "unreadable": [problem for row in rows for problem in row["unreadable"]],
        }


class _EpochOfAStream(TrainerCallback):
    """Sets `state.epoch` to the share of the steps that are done. Trainer alone would restart it on resuming."""

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        state.epoch = state.global_step / state.max_steps


class _Report:
    """The list of what could not be read: each shard and image once, over all passes and interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[tuple[str, ...]] = set()
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as stream:
                self.known = {tuple(row[:2]) for row in islice(csv.reader(stream), 1, None)}

    def add(self, problems: Iterable[Unreadable]) -> None:
        """Append the problems that are not in the list yet. Warn of the first one."""
        new = [problem for problem in problems if problem[:2] not in self.known]
        if not new:
            return
        begun = self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(new if begun else [Unreadable._fields, *new])
        if not begun:
            logger.warning(
                "%s: %s. It is left out, and listed in %s like everything else that cannot be read.",
                new[0].row_id,
                new[0].reason,
                self.path,
            )
        self.known.update(problem[:2] for problem in new)
