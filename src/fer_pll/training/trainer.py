"""Training with candidate sets: a Trainer that holds and revises confidences (paper, Algorithm 1)."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, List, Value
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from ..data.collator import PixelCollator
from ..data.dataset import numpy_column
from ..data.row_ids import row_ids
from ..hub.card_settings import card_settings
from ..io.stored import read_torch, reading
from ..labels.candidates import dataset_fingerprint
from ..labels.confidence_table import ConfidenceTable, first_occurrences, warn_if_threshold_cannot_fire
from ..labels.revision import RevisionRule
from ..metrics.classification import classification_report
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.uniformity import uniformity_loss
from .arguments import FerPllTrainingArguments
from .base_trainer import ImageTrainer
from .checkpoints import ANOTHER
from .methods import METHODS, Batch, Method, MethodOptions
from .run_folder import RunFolder
from .sampling import ClassBalancedSampler, class_prior


def start_table(
    dataset: Dataset, class_names: list[str], confidence_init: Literal["uniform", "votes", "column"]
) -> ConfidenceTable:
    """The confidences at the start of a run, in the order of the data set.

    Args:
        dataset: the training set with `candidates` and, for `confidence_init="votes"`, `votes`.
        class_names: the model's classes, in the order of its outputs.
        confidence_init: `"uniform"`, `"votes"` or `"column"`.

    Raises:
        ValueError: a column is missing, the classes are not the model's, or a candidate set is empty.
    """
    if "candidates" not in dataset.column_names:
        raise ValueError(
            "The training set has no column 'candidates' (add them with labels.candidates.from_votes); it has "
            f"{dataset.column_names}."
        )
    candidates = numpy_column(dataset, "candidates")
    if candidates.ndim != 2 or candidates.shape[1] != len(class_names):
        raise ValueError(
            f"The candidate sets have {candidates.shape[-1]} classes, the model has {len(class_names)} "
            f"({', '.join(class_names)}): the config's id2label and the data set must name the same classes."
        )
    label = dataset.features.get("label")
    if isinstance(label, ClassLabel) and label.names != class_names:
        raise ValueError(
            f"The data set's classes are {', '.join(label.names)}; the model's are {', '.join(class_names)}: the "
            "config's id2label must name the same classes in the same order."
        )
    starts = {"votes": "votes", "column": "confidence"}
    if confidence_init in starts and starts[confidence_init] not in dataset.column_names:
        raise ValueError(
            f"confidence_init={confidence_init!r} needs the column {starts[confidence_init]!r}; the training set has "
            f"{dataset.column_names}."
        )
    return ConfidenceTable.from_candidates(
        candidates,
        class_names,
        dataset_fingerprint(class_names, row_ids(dataset), candidates),
        confidence_init,
        votes=numpy_column(dataset, "votes") if confidence_init == "votes" else None,
        confidence=numpy_column(dataset, "confidence") if confidence_init == "column" else None,
    )


def make_method(
    model: PreTrainedModel,
    table: ConfidenceTable,
    args: FerPllTrainingArguments,
    method: str | Callable[[PreTrainedModel, ConfidenceTable, MethodOptions], Method] | None = None,
    revision: str | RevisionRule | None = None,
) -> Method:
    """The method that a run learns by, see `FerPllTrainer`.

    Raises:
        ValueError: the method is unknown, or the rule or a setting does not go with it.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}, or give a subclass of Method.")
    of_args = METHODS[args.loss]
    make = of_args if method is None else METHODS[method] if isinstance(method, str) else method
    if revision is None and (make is of_args or args.revision_is_chosen):
        revision = args.revision
    return make(
        model,
        table,
        MethodOptions(
            revision=revision,
            revision_settings={name: value for name, value in vars(args).items() if name.startswith("revision_")},
            warmup_epochs=args.revision_warmup_epochs,
            reversible=args.reversible,
            num_epochs=args.num_train_epochs,
            settings=args.method_settings if make is of_args else {},
        ),
    )


def fer_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, mean class accuracy and calibration error of an evaluation."""
    logits = torch.from_numpy(prediction.predictions).float()
    metrics: dict[str, Any] = classification_report(logits.softmax(dim=1).numpy(), prediction.label_ids)
    return {name: metrics[name] for name in ("accuracy", "mean_class_accuracy", "ece")}


class StepCallback(TrainerCallback):
    """Calls the trainer at two moments that Trainer has no method for."""

    def __init__(self, trainer: "FerPllTrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        self.trainer.steps_per_epoch = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        # Trainer does the same, but on several processes it does not reach our sampler when it skips to the middle
        # of an epoch: the epoch would go on in the order of the first epoch.
        if self.trainer.balanced_sampler is not None:
            self.trainer.balanced_sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.trainer.method.after_optimizer_step()


class FerPllTrainer(ImageTrainer):
    """Trains an image classifier on candidate sets, and finds the true label in each set while it trains.

    Each step follows Algorithm 1: uniformity loss of the label queries, revision of the batch's confidences from the
    current logits, loss with the revised confidences. `args.loss` and `args.revision` choose other methods. A batch
    has row numbers only. The loss looks the confidences up in the live table, because what a DataLoader worker has
    read is stale.

    Each process holds the whole table, and after each step all tables are the same. Every row counts once in an
    epoch: rows that fill up the last batch have no weight and revise nothing. The loss of a step is the mean over the
    rows of all processes and micro-batches; apart from rounding, it does not depend on how many there are.

    Args:
        model: an image classifier of transformers; its `config.id2label` names the classes of the candidate sets. The
            uniformity loss applies if the model has `label_queries`.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image` and `candidates`, in the same order when a run is resumed. A column `row_id`
            names them. A column `true_label` is only used to log label recovery.
        eval_dataset: rows with `image` and `label`.
        method: replaces `args.loss`: a name in `METHODS`, a subclass of `Method`, or a function that makes a method
            from model, table and `MethodOptions`. It revises by its own rule, unless `args.revision` was given.
        revision: replaces `args.revision`: a name in `REVISION_RULES`, or a rule.

    Attributes:
        table: the live `ConfidenceTable`, in the order of the data set; after a run with `load_best_model_at_end`,
            the table of the best model.
        last_table: the table after the last step.
        method: the `Method` that trains.

    Raises:
        ValueError: data set and model do not fit each other (see `start_table`), or method and rule do not.
    """

    args: FerPllTrainingArguments
    table: ConfidenceTable  # optional only in the base class, as is the method
    method: Method
    train_dataset: Dataset

    def __init__(
        self,
        model: PreTrainedModel,
        args: FerPllTrainingArguments,
        processing_class: FerPllImageProcessor,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        method: str | Callable[[PreTrainedModel, ConfidenceTable, MethodOptions], Method] | None = None,
        revision: str | RevisionRule | None = None,
        **kwargs: Any,
    ) -> None:
        id2label: dict[int, str] = model.config.id2label  # type: ignore[assignment]  # int keys once loaded
        class_names = [id2label[i] for i in range(len(id2label))]
        self.table = start_table(train_dataset, class_names, args.confidence_init)
        if "true_label" in train_dataset.column_names:
            self.table.set_true_labels(numpy_column(train_dataset, "true_label"))
        self.table.to(args.device)
        self.balanced_sampler = None
        if args.class_balance == "sampler":
            self.balanced_sampler = ClassBalancedSampler(self.table, args.seed)
        self.method = make_method(model, self.table, args, method, revision)
        warn_if_threshold_cannot_fire(self.table, self.method.rule, self.method.rule_value, args.reversible)
        missing = {"labels": "label", "votes": "votes"}
        for column in (missing[name] for name in self.method.columns):
            if column not in train_dataset.column_names:
                raise ValueError(
                    f"loss={self.method.name!r} needs the column {column!r}: add it, or choose another loss."
                )
        if args.class_balance == "logit_adjustment":
            prior = class_prior(self.table).clamp(min=1 / len(self.table))
            self.method.log_prior = prior.log().float().to(args.device)
        self.num_views = self.method.num_views
        kwargs.setdefault("data_collator", PixelCollator(processing_class, votes="votes" in self.method.columns))
        kwargs.setdefault("compute_metrics", fer_metrics)
        super().__init__(
            model,
            args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        self.loss_is_scaled_for_ga = True  # by `compute_loss`
        self.last_table = self.table
        self.steps_per_epoch = 1  # of the optimizer; known once training starts
        self.add_callback(StepCallback(self))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of a step, and the number of their rows on all processes.

        Each micro-batch gets `counts`, (B,) bool: False where accelerate repeats a row to fill up the epoch's last
        batch; and `revisable`, (B,) bool: True where a row appears for the first time in this step, on any process.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        sizes = [len(batch["index"]) for batch in batches]
        counts = torch.ones(sum(sizes), dtype=torch.bool, device=device)
        rank, global_batch = self.args.process_index, self._train_batch_size * self.args.world_size
        remainder = len(self.train_dataset) % global_batch
        # Not accelerate's `gradient_state.remainder`: that is lost when a resumed epoch skips to its middle.
        if remainder and self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last:
            # The first processes have the epoch's last rows; the rows after them repeat the epoch's first ones.
            place = torch.arange(sizes[-1], device=device) + rank * self._train_batch_size
            counts[len(counts) - sizes[-1] :] = place < remainder
        index = torch.cat([batch["index"].to(device) for batch in batches])
        # The order in which a single process would see them: by micro-batch, then by process.
        step = torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])
        everywhere = self.accelerator.gather(torch.stack([index, step, counts.long()], dim=1))  # (W * sum, 3)
        order = everywhere[:, 1].argsort(stable=True)
        counting = order[everywhere[order, 2] == 1]
        revisable = torch.zeros(len(everywhere), dtype=torch.bool, device=device)
        revisable[counting] = first_occurrences(everywhere[counting, 0])
        mine = revisable[rank * len(index) : (rank + 1) * len(index)]
        for batch, batch_counts, batch_revisable in zip(batches, counts.split(sizes), mine.split(sizes), strict=True):
            batch["counts"], batch["revisable"] = batch_counts, batch_revisable
        return batches, everywhere[:, 2].sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        pixel_values = inputs["pixel_values"]
        if not model.training:
            outputs = model(pixel_values=pixel_values)
            loss = torch.nn.functional.cross_entropy(outputs.logits.float(), inputs["labels"])
            return (loss, outputs) if return_outputs else loss

        index = inputs["index"]
        size = len(index)
        outputs = model(pixel_values=pixel_values[: size * self.method.trained_views])
        everything = torch.ones_like(index, dtype=torch.bool)  # outside of `train`
        batch = Batch(
            logits=self.method.adjust(outputs.logits).unflatten(0, (-1, size)),
            pixel_values=pixel_values.unflatten(0, (-1, size)),
            index=index,
            revisable=inputs.get("revisable", everything),
            columns={name: inputs[name] for name in self.method.columns},
            epoch=self.state.global_step / self.steps_per_epoch,
            model=self.accelerator.unwrap_model(model),
        )
        losses = self.method.step(batch)  # (B,)
        queries = getattr(batch.model, "label_queries", None)
        if self.args.uniform_weight > 0 and queries is not None:
            uniformity = uniformity_loss(queries, self.args.uniform_temperature, self.args.uniform_literal)
            losses = losses + self.args.uniform_weight * uniformity
        if num_items_in_batch is None:
            loss = losses.mean()
        else:  # gradients are averaged over processes and added over micro-batches
            loss = (losses * inputs["counts"]).sum() * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.balanced_sampler or super()._get_train_sampler(train_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a training log, not an evaluation
            logs.update(self.table.summary())
            total, number = self.method.margins.tolist()
            if number > 0:
                logs["mean_margin"] = total / number
                self.method.margins.zero_()
        super().log(logs, start_time)

    def evaluation_results(self) -> dict[str, dict[str, float]]:
        evaluations = [log for log in self.state.log_history if "eval_accuracy" in log]
        if not evaluations:
            return {}
        names = ("accuracy", "mean_class_accuracy", "ece")
        return {"the evaluation set, at the last epoch": {name: evaluations[-1][f"eval_{name}"] for name in names}}

    def card_settings(self) -> dict[str, Any]:
        settings, rule = super().card_settings(), self.method.rule
        settings |= {"loss": self.method.name, "revision": rule.name} | card_settings(self.method.settings)
        return settings if rule.setting is None else settings | {rule.setting.name: self.method.rule_value}

    def revised_dataset(self, last: bool = False) -> Dataset:
        """The training set with the labels that the run arrived at.

        Adds `confidence` (K floats), `revised_epoch` (-1: never) and `initial_candidates` (K bools): the candidate
        sets of this run, or of the first run if the set already comes from one. Another run can train on it and go on
        from these confidences, with `confidence_init="column"`.

        Args:
            last: take the confidences after the last step, even if `load_best_model_at_end` loaded another model.
        """
        table = self.last_table if last else self.table
        num_classes = len(table.class_names)
        columns = {
            "confidence": (table.confidence, List(Value("float32"), length=num_classes)),
            "revised_epoch": (table.revised_epoch, Value("int32")),
            "initial_candidates": (table.candidates, List(Value("bool"), length=num_classes)),
        }
        dataset = self.train_dataset
        if "initial_candidates" in dataset.column_names:
            del columns["initial_candidates"]
        dataset = dataset.remove_columns([name for name in columns if name in dataset.column_names])
        for name, (tensor, feature) in columns.items():
            values = tensor.cpu().numpy()
            column = values if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(values.ravel(), num_classes)
            dataset = dataset.add_column(name, column, feature=feature)
        return dataset

    def save_confidence(self, folder: str | None = None) -> None:
        """Write the table as `confidence.safetensors` to `folder`, by default the output folder."""
        if self.args.should_save:
            run = self.run_folder if folder is None else RunFolder(folder)
            self.table.save(run.confidence)

    def check_checkpoint(self, checkpoint: str) -> None:
        super().check_checkpoint(checkpoint)
        run = RunFolder(checkpoint)
        if not run.confidence.is_file():
            raise ValueError(f"{checkpoint} holds no {run.confidence.name}: it is no checkpoint of FerPllTrainer.")
        ConfidenceTable.check(run.confidence, self.table.class_names, self.table.fingerprint)
        if bool(self.method.state_dict()) != run.method.is_file():
            raise ValueError(
                f"{checkpoint} was written with another loss than {self.method.name!r}: resume the run with its own."
            )

    def state_is_finite(self) -> bool:
        tensors = [value for value in self.method.state_dict().values() if isinstance(value, torch.Tensor)]
        return super().state_is_finite() and all(bool(tensor.isfinite().all()) for tensor in tensors)

    def save_with_checkpoint(self, checkpoint: str) -> None:
        super().save_with_checkpoint(checkpoint)
        self.save_confidence(checkpoint)
        state = self.method.state_dict()
        if state:
            torch.save(state, RunFolder(checkpoint).method)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_table(checkpoint)
            self.last_table = self.table
            if self.method.state_dict():
                path = RunFolder(checkpoint).method
                state = read_torch(path, ANOTHER, map_location=self.args.device)
                with reading(path, ANOTHER):
                    self.method.load_state_dict(state)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None  # Trainer calls this where there is one
        self._load_table(self.state.best_model_checkpoint)

    def _load_table(self, checkpoint: str) -> None:
        path, true_labels = RunFolder(checkpoint).confidence, self.table.true_labels
        table = ConfidenceTable.load(path, self.table.class_names, self.table.fingerprint).to(self.args.device)
        table.set_true_labels(true_labels)
        self.table = self.method.table = table
