"""The folder that a run writes to: the names of its files, and the run read back from them."""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer import TRAINER_STATE_NAME

from ..data.dataset import REPORT, load_dataset
from ..data.row_ids import row_ids
from ..hub.card import read_evaluations
from ..hub.files import ADAPTER_FOLDER, CARD_NAME, TRAINING_NAME
from ..io.stored import read_json
from ..labels.candidates import dataset_fingerprint
from ..labels.confidence_table import ConfidenceTable


class RunFolder:
    """The output folder of a pre-training or fine-tuning run, or a checkpoint in it.

    The attributes are paths. Not every run has all of these files.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path = Path(path)
        # settings, and the record of the run
        self.settings_file = path / "settings.json"
        self.training = path / TRAINING_NAME
        self.card = path / CARD_NAME
        self.trainer_state = path / TRAINER_STATE_NAME  # the log; a checkpoint's last file to be written
        # results beside the files of the model
        self.confidence = path / "confidence.safetensors"
        self.method = path / "method.pt"  # the state of a method, to resume it
        self.checksums = path / "checksums.json"  # of all other files of a checkpoint
        self.last_weights = path / "last_weights.safetensors"  # of a checkpoint whose model is an average
        self.adapter = path / ADAPTER_FOLDER  # of the adapters that the model was merged with
        self.processes = path / "processes.json"  # how many wrote a checkpoint
        self.images_seen = path / "images.json"  # which images a pre-training goes through, if it has no stream
        # figures
        self.candidate_sets = path / "candidate_sets.png"
        self.training_curves = path / "training_curves.png"
        self.images = path / "pictures"  # predictions in pre-training, by step
        # problems
        self.non_finite_loss = path / "non_finite_loss.json"
        # cross-validation
        self.out_of_fold = path / "out_of_fold"  # of an audit, in the folder of the run
        self.out_of_fold_predictions = path / "out_of_fold.safetensors"

    def checkpoint(self, step: int) -> "RunFolder":
        """The checkpoint of a step."""
        return RunFolder(self.path / f"checkpoint-{step}")

    def fold(self, number: int, num_folds: int) -> Path:
        """Predictions for one of several folds, counted from 1."""
        return self.path / f"fold-{number}-of-{num_folds}.safetensors"

    def stream(self, process: int | str) -> Path:
        """How far a process has read its stream. `"*"` gives the pattern for all of them."""
        return self.path / f"stream_{process}.json"

    def unreadable(self, process: int) -> Path:
        """The list of what a process could not read in a stream."""
        name = Path(REPORT)
        return self.path / (f"{name.stem}-{process}{name.suffix}" if process else name)

    def evaluation(self, split: str) -> Path:
        """Default folder of an evaluation on a split."""
        return self.path / f"evaluation-{split}"

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Reports of evaluations of exactly these weights, see `hub.card.read_evaluations`."""
        return read_evaluations(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run: `script` (data, model) and `arguments` (of the trainer).

        Raises:
            ValueError: the file is missing or damaged.
        """
        if not self.settings_file.is_file():
            raise ValueError(
                f"{self.path} has no {self.settings_file.name}, which `fer-pll finetune` writes: train it with that."
            )
        settings = read_json(
            self.settings_file,
            {"script": {"data?": (str, list), "init_from?": (str, type(None))}, "arguments": dict},
            "it is not what `fer-pll finetune` writes; train the run again",
        )
        return {"script": settings["script"], "arguments": settings["arguments"]}

    def table_and_rows(self, data: str | Path | None = None) -> tuple[ConfidenceTable, Dataset]:
        """The run's confidences and the N rows of its training set, in the same order.

        Args:
            data: folder of the prepared data set; by default the one in the run's settings.

        Raises:
            ValueError: confidences or data set are missing, or the data set is not the run's.
        """
        if not self.confidence.is_file():
            raise ValueError(
                f"{self.path} holds no {self.confidence.name}: name the output folder of `fer-pll finetune`, once its "
                "run has ended."
            )
        if data is None:
            data = self.settings["script"].get("data") if self.settings_file.is_file() else None
            if not isinstance(data, str) or not Path(data).is_dir():
                which = f"the data set of {self.path}, {data}, is not there"
                where = which if data else f"{self.path} does not say what data it had"
                raise ValueError(f"{where}: name its folder with --data.")
        table = ConfidenceTable.load(self.confidence)
        return table, training_rows(table, data, str(self.path))


def training_rows(table: ConfidenceTable, data: str | Path, whose: str) -> Dataset:
    """The N rows that belong to a table of confidences, in its order.

    Args:
        table: the confidences.
        data: folder of the prepared data set.
        whose: the run that the table belongs to, for the message.

    Raises:
        ValueError: the table belongs to another data set.
    """
    rows = load_dataset(data, "train")
    names = rows.features["label"].names
    same = tuple(names) == table.class_names and len(rows) == len(table)
    if not same or dataset_fingerprint(names, row_ids(rows), table.candidates.numpy()) != table.fingerprint:
        raise ValueError(
            f"{data} is not the data set that {whose} was trained on: {len(rows):,} rows of {', '.join(names)}; the "
            f"run has {len(table):,} of {', '.join(table.class_names)}, with other classes, row_ids or another order. "
            "Name the right one, or train again."
        )
    return rows
