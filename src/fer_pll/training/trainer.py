"""Training with candidate sets: a Trainer that carries the confidences of its data set (paper, Algorithm 1)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from ..evaluation.metrics import label_recovery
from ..labels.candidates import dataset_fingerprint
from ..labels.confidence import ConfidenceTable, warn_if_threshold_cannot_fire
from ..labels.losses import pll_loss
from ..model import FerPllImageProcessor
from ..model.uniformity import uniformity_loss
from .arguments import FerPllTrainingArguments
from .images import ImageTrainer

CONFIDENCE_NAME = "confidence.safetensors"


def numpy_column(dataset: Dataset, name: str) -> np.ndarray:
    """A whole column as an array, without decoding the pictures."""
    return dataset.select_columns(name).with_format("numpy")[name][:]


def start_table(dataset: Dataset, class_names: list[str], confidence_init: str) -> ConfidenceTable:
    """The confidences that a training begins with.

    Args:
        dataset: the training set with `index`, `row_id`, `candidates` and, for `confidence_init="votes"`, `votes`.
        class_names: of the model, in the order of its outputs.
        confidence_init: `"uniform"` or `"votes"`.

    Raises:
        ValueError: for a missing column, another number of classes than the model's, an empty candidate set, or an
            `index` that is not 0 .. N-1 with every row once.
    """
    for column in ("index", "row_id", "candidates"):
        if column not in dataset.column_names:
            hint = " (add them with labels.candidates.from_votes)" if column == "candidates" else ""
            raise ValueError(f"The training set has no column {column!r}{hint}; it has {dataset.column_names}.")
    candidates = numpy_column(dataset, "candidates")
    if candidates.ndim != 2 or candidates.shape[1] != len(class_names):
        raise ValueError(
            f"The candidate sets have {candidates.shape[-1]} classes, the model has {len(class_names)} "
            f"({', '.join(class_names)}): the config's id2label and the data set must name the same classes."
        )
    index = numpy_column(dataset, "index")
    if not np.array_equal(np.sort(index), np.arange(len(index))):
        missing = np.setdiff1d(np.arange(len(index)), index)
        raise ValueError(
            f"The column `index` must hold every number from 0 to {len(index) - 1} once; "
            f"{len(missing)} are missing, the first is {missing[0]}. Number the rows again after filtering."
        )
    order = np.argsort(index)
    candidates = candidates[order]
    votes = numpy_column(dataset, "votes")[order] if confidence_init == "votes" else None
    row_ids = dataset.select_columns("row_id")["row_id"][:]
    fingerprint = dataset_fingerprint(class_names, [row_ids[i] for i in order], candidates)
    return ConfidenceTable.from_candidates(candidates, class_names, fingerprint, confidence_init, votes)


def fer_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Sample accuracy, mean class accuracy, recall per class and calibration error of an evaluation, offline."""
    from ..evaluation.fer_metrics import FerMetrics  # `evaluate` takes seconds to import

    logits = torch.from_numpy(prediction.predictions).float()
    metrics = FerMetrics().compute(predictions=logits.softmax(dim=1).numpy(), references=prediction.label_ids)
    return {name: metrics[name] for name in ("accuracy", "mean_class_accuracy", "ece")}


class FerPllTrainer(ImageTrainer):
    """Trains an image classifier on candidate sets and finds the true label inside them while it trains.

    Each step follows Algorithm 1: uniformity loss of the label queries, revision of the batch's confidences from the
    current logits, PLL loss with the revised confidences. The batch carries row numbers only; the confidences are
    looked up in the live table when the loss is computed, because what a DataLoader worker reads is stale.

    Args:
        model: an image classifier; its `config.id2label` names the classes of the candidate sets.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image`, `index`, `row_id` and `candidates`; `true_label`, where known, is only used
            to log label recovery.
        eval_dataset: rows with `image`, `index` and `label`.

    Attributes:
        table: the live `ConfidenceTable`.

    Raises:
        ValueError: where data set and model do not fit (see `start_table`).
    """

    args: FerPllTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: FerPllTrainingArguments,
        processing_class: FerPllImageProcessor,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        **kwargs: Any,
    ):
        class_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.table = start_table(train_dataset, class_names, args.confidence_init)
        if args.revision == "paper":
            warn_if_threshold_cannot_fire(self.table.confidence, args.revision_threshold)
        self.true_labels = None
        if "true_label" in train_dataset.column_names:
            self.true_labels = numpy_column(train_dataset, "true_label")[
                numpy_column(train_dataset, "index").argsort()
            ]
        kwargs.setdefault("compute_metrics", fer_metrics)
        super().__init__(
            model,
            args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        self.table.to(args.device)
        self._ambiguous_rows = int((self.table.candidates.sum(dim=1) > 1).sum())
        self._margins = torch.zeros(2, device=args.device)  # sum and number since the last log

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        index, labels = inputs.pop("index"), inputs.pop("labels", None)
        outputs = model(**inputs)
        if not model.training:  # indices of another data set
            loss = torch.nn.functional.cross_entropy(outputs.logits.float(), labels)
            return (loss, outputs) if return_outputs else loss

        self.revise(index, outputs.logits)
        loss = pll_loss(outputs.logits, self.table.lookup(index))
        queries = getattr(self.accelerator.unwrap_model(model), "label_queries", None)
        if self.args.uniform_weight > 0 and queries is not None:
            loss = loss + self.args.uniform_weight * uniformity_loss(queries, self.args.uniform_temperature)
        return (loss, outputs) if return_outputs else loss

    def revise(self, index: torch.Tensor, logits: torch.Tensor) -> None:
        """Revise the rows that all processes have just seen, so that every process holds the same table."""
        if self.args.revision == "none" or (self.state.epoch or 0) < self.args.revision_warmup_epochs:
            return
        index, logits = self.accelerator.gather((index, logits.detach()))
        revision = self.table.revise(index, logits, self.args.revision_threshold, self.current_epoch)
        margins = revision.margin[revision.ambiguous]
        self._margins += torch.stack([margins.sum(), margins.new_tensor(len(margins))])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, not an evaluation
            logs["revised_fraction"] = int((self.table.revised_epoch >= 0).sum()) / max(self._ambiguous_rows, 1)
            logs["confidence_entropy"] = self.table.entropy().mean().item()
            if self._margins[1] > 0:
                logs["mean_margin"] = (self._margins[0] / self._margins[1]).item()
                self._margins.zero_()
            if self.true_labels is not None:
                logs["label_recovery"] = label_recovery(self.table.confidence.cpu().numpy(), self.true_labels)
        super().log(logs, start_time)

    def evaluation_results(self) -> dict[str, dict[str, float]]:
        evaluations = [log for log in self.state.log_history if "eval_accuracy" in log]
        if not evaluations:
            return {}
        names = ("accuracy", "mean_class_accuracy", "ece")
        return {"the evaluation set, at the last epoch": {name: evaluations[-1][f"eval_{name}"] for name in names}}

    def revised_dataset(self) -> Dataset:
        """The training set with the columns `confidence` (K floats) and `revised_epoch` (-1: never) as of now."""
        index = numpy_column(self.train_dataset, "index")
        columns = {
            "confidence": list(self.table.confidence.cpu().numpy()[index]),
            "revised_epoch": self.table.revised_epoch.cpu().numpy()[index],
        }
        dataset = self.train_dataset.remove_columns([c for c in columns if c in self.train_dataset.column_names])
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        return dataset

    def save_confidence(self, folder: str | None = None) -> None:
        """Write the table to `folder` (the output folder where not given) as `confidence.safetensors`."""
        if self.args.should_save:
            self.table.save(Path(folder or self.args.output_dir) / CONFIDENCE_NAME)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Before everything else: pushing and rotation of old checkpoints happen inside.
        self.save_confidence(str(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint) / CONFIDENCE_NAME
            if not path.is_file():
                raise ValueError(f"{checkpoint} holds no {CONFIDENCE_NAME}: it is no checkpoint of FerPllTrainer.")
            table = ConfidenceTable.load(path, self.table.class_names, self.table.fingerprint)
            self.table = table.to(self.args.device)
