"""Training with candidate sets: a Trainer that holds and revises confidences (paper, Algorithm 1)."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, List, Value
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..data.collator import PixelCollator
from ..data.dataset import numpy_column
from ..data.row_ids import row_ids
from ..hub.card_settings import card_settings
from ..hub.files import CARD_NAME
from ..io.stored import read_torch, reading
from ..labels.candidates import dataset_fingerprint
from ..labels.confidence_table import ConfidenceTable, first_occurrences, warn_if_threshold_cannot_fire
from ..labels.revision import RevisionRule
from ..metrics.classification import classification_report
from ..model.face_answers import class_names as class_names_of
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.uniformity import uniformity_loss
from .arguments import FerPllTrainingArguments
from .averaging import AveragingMixin
from .base_trainer import ImageTrainer, check_arguments, first_model
from .checkpoints import ANOTHER, saving_model
from .idle_revision import idle_rule, idle_warmup, warmup_is_over
from .lora import is_adapted
from .methods import METHODS, Batch, Method, MethodOptions
from .numbered_rows import NumberedRows
from .param_groups import encoder_modules
from .run_folder import RunFolder
from .sampling import ClassBalancedSampler, class_prior
from .teachers import Distillation

logger = logging.getLogger(__name__)

ConfidenceInit = Literal["uniform", "votes", "column"]

METRICS_OF_LABELS = ("loss", "accuracy", "mean_class_accuracy", "ece")
"""Metrics of an evaluation that need rows with a label."""
CANDIDATE_ACCURACY = "candidate_accuracy"
"""Share of the rows whose predicted label is one of their candidates."""


def default_confidence_init(dataset: Dataset) -> ConfidenceInit:
    """What a training set can give first confidences by: votes, else the column `confidence`, else nothing.

    Votes count only where every candidate set holds one.
    """
    if "votes" in dataset.column_names:
        inside = numpy_column(dataset, "votes") * numpy_column(dataset, "candidates")
        if inside.any(axis=1).all():
            return "votes"
    return "column" if "confidence" in dataset.column_names else "uniform"


def check_training_set(dataset: Any, class_names: list[str], confidence_init: ConfidenceInit | None = None) -> None:
    """Raise `ValueError` if a training set does not fit a model with these classes. Reads no image.

    Arguments as in `start_table`.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"train_dataset is a {type(dataset).__module__}.{type(dataset).__name__}, but the confidences need rows "
            "with a number: give a datasets.Dataset, which Dataset.from_list and Dataset.from_generator make."
        )
    if "image" not in dataset.column_names:
        raise ValueError(f"The training set has no column 'image'; it has {dataset.column_names}.")
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The training set has a transform (set_transform or with_transform), which would also change the columns "
            "that the trainer reads. Take it off with reset_format(), and augment by the settings crop_scale, "
            "rotation, flip, light, jpeg and erase."
        )
    if "candidates" not in dataset.column_names:
        raise ValueError(
            "The training set has no column 'candidates' (add them with labels.candidates.from_votes); it has "
            f"{dataset.column_names}."
        )
    if len(dataset) == 0:
        raise ValueError("The training set has no rows.")
    candidates = numpy_column(dataset.select([0]), "candidates")
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
        others = [name for name, column in starts.items() if column in dataset.column_names]
        raise ValueError(
            f"confidence_init={confidence_init!r} needs the column {starts[confidence_init]!r}; the training set has "
            f"{dataset.column_names}: choose {' or '.join([*others, 'uniform'])}, or leave it out."
        )


def start_table(
    dataset: Dataset,
    class_names: list[str],
    confidence_init: ConfidenceInit | None = None,
    votes_temperature: float = 1.0,
) -> ConfidenceTable:
    """The confidences at the start of a run, in the order of the data set.

    Args:
        dataset: the training set with `candidates` and, for `confidence_init="votes"`, `votes`.
        class_names: the model's classes, in the order of its outputs.
        confidence_init: `"uniform"`, `"votes"` or `"column"`; by default `default_confidence_init`.
        votes_temperature: see `ConfidenceTable.from_candidates`.

    Raises:
        ValueError: a column is missing, the classes are not the model's, or a candidate set is empty.
    """
    check_training_set(dataset, class_names, confidence_init)
    candidates = numpy_column(dataset, "candidates")
    confidence_init = confidence_init or default_confidence_init(dataset)
    if votes_temperature != 1 and confidence_init != "votes":
        raise ValueError(
            f"votes_temperature={votes_temperature} needs votes; the first confidences are {confidence_init}."
        )
    return ConfidenceTable.from_candidates(
        candidates,
        class_names,
        dataset_fingerprint(class_names, row_ids(dataset), candidates),
        confidence_init,
        votes=numpy_column(dataset, "votes") if confidence_init == "votes" else None,
        confidence=numpy_column(dataset, "confidence") if confidence_init == "column" else None,
        votes_temperature=votes_temperature,
    )


def number_of_annotators(dataset: Dataset, num_classes: int) -> int:
    """A of the column `answers`, (N, A): the label that each annotator gave, -1 for none. 0 without that column.

    Raises:
        ValueError: rows have different numbers of answers, or an answer is no class.
    """
    if "answers" not in dataset.column_names:
        return 0
    answers = dataset.with_format(None)["answers"][:]
    if len({len(row) for row in answers}) > 1:
        raise ValueError(
            "The column 'answers' has rows of different lengths: give each row one number for each annotator, -1 "
            "where one said nothing."
        )
    table = np.array(answers)  # (N, A)
    wrong = ((table < -1) | (table >= num_classes)).any(axis=1)
    if wrong.any():
        number = int(wrong.argmax())
        raise ValueError(
            f"The column 'answers' has {answers[number]} in row {number}: answers are classes, 0 .. "
            f"{num_classes - 1}, or -1."
        )
    return table.shape[1]


def make_method(
    model: PreTrainedModel,
    table: ConfidenceTable,
    args: FerPllTrainingArguments,
    method: str | Callable[[PreTrainedModel, ConfidenceTable, MethodOptions], Method] | None = None,
    revision: str | RevisionRule | None = None,
    num_annotators: int = 0,
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
            reversible=args.reversible,
            settings=args.method_settings if make is of_args else {},
            num_annotators=num_annotators,
        ),
    )


def fer_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, mean class accuracy and calibration error of the rows that have a label (from 0 up).

    The logits are the first of several predictions. With `eval_do_concat_batches` off, there is a list of batches.
    """
    labels, predictions = _whole(prediction.label_ids), _whole(prediction.predictions)
    if not (labels >= 0).any():
        return {}
    logits = torch.from_numpy(predictions[labels >= 0]).float()
    metrics: dict[str, Any] = classification_report(logits.softmax(dim=1).numpy(), labels[labels >= 0])
    return {name: metrics[name] for name in METRICS_OF_LABELS if name != "loss"}


def _whole(values: Any) -> np.ndarray:
    """One array of what Trainer collects: an array, a tuple whose first part counts, or a list of those by batch."""
    if isinstance(values, list):
        return np.concatenate([_whole(batch) for batch in values])
    return np.asarray(values[0] if isinstance(values, tuple) else values)


def check_evaluation_set(dataset: Any, class_names: list[str]) -> None:
    """Raise `ValueError` if an evaluation would fail or count wrong: another class order, no images.

    A dictionary of sets is checked set by set. Other containers than `datasets.Dataset` are left to Trainer.
    """
    for name, rows in (dataset if isinstance(dataset, dict) else {"": dataset}).items():
        if not isinstance(rows, Dataset):
            continue
        which = f"The evaluation set {name}".rstrip()
        if "image" not in rows.column_names and rows.format["type"] != "custom":
            raise ValueError(f"{which} has no column 'image'; it has {rows.column_names}.")
        label = rows.features.get("label")
        if isinstance(label, ClassLabel) and label.names != class_names:
            raise ValueError(
                f"{which} has the classes {', '.join(label.names)}; the model has {', '.join(class_names)}: they must "
                "be the same, in the same order."
            )
        if "labels" in rows.column_names and label is None and rows.format["type"] != "custom":
            raise ValueError(f"{which} has a column 'labels' and none named 'label': rename it.")
        if "candidates" in rows.column_names and len(rows) > 0:
            size = len(rows.with_format(None).select_columns("candidates")[0]["candidates"])
            if size != len(class_names):
                raise ValueError(f"{which} has candidate sets of {size} classes, the model has {len(class_names)}.")


def check_best_metric(args: FerPllTrainingArguments, dataset: Any) -> None:
    """Make sure that the default evaluation gives `args.metric_for_best_model`, before the first step.

    Where no row of the evaluation set has a label, `CANDIDATE_ACCURACY` takes the place of a metric that needs one.

    Raises:
        ValueError: the metric is unknown, or the set has neither labels nor candidates.
    """
    if args.metric_for_best_model is None or not isinstance(dataset, Dataset) or "label" not in dataset.column_names:
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    known = [*METRICS_OF_LABELS, CANDIDATE_ACCURACY]
    if metric not in known:
        raise ValueError(f"metric_for_best_model={args.metric_for_best_model!r}: choose one of {', '.join(known)}.")
    has_candidates = "candidates" in dataset.column_names
    if metric == CANDIDATE_ACCURACY and not has_candidates:
        raise ValueError(f"metric_for_best_model={metric!r}: the evaluation set has no column 'candidates'.")
    if metric == CANDIDATE_ACCURACY or (numpy_column(dataset, "label") >= 0).any():
        return
    if not has_candidates:
        raise ValueError(
            f"metric_for_best_model={metric!r}: no row of the evaluation set has a label. Give it labels or "
            "candidates, or train without load_best_model_at_end."
        )
    logger.warning(
        "No row of the evaluation set has a label: the best model is the one with the highest %s, not %s.",
        CANDIDATE_ACCURACY,
        metric,
    )
    args.metric_for_best_model, args.greater_is_better = CANDIDATE_ACCURACY, True


class StepCallback(TrainerCallback):
    """Calls the trainer at moments that Trainer has no method for."""

    def __init__(self, trainer: "FerPllTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.warn_if_nothing_is_revised()
        if self.trainer.balanced_sampler is not None:
            epochs = state.max_steps / self.trainer.steps_per_epoch
            # The first whole number from there on; products of decimals come out a little above it.
            self.trainer.balanced_sampler.first_epoch = math.ceil(round(args.sampler_after * epochs, 9))

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        # Trainer does the same, but on several processes it does not reach our sampler when it skips to the middle
        # of an epoch: the epoch would go on in the order of the first epoch.
        if self.trainer.balanced_sampler is not None:
            self.trainer.balanced_sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.trainer.method.after_optimizer_step()


class FerPllTrainer(AveragingMixin, ImageTrainer):
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
            uniformity loss applies if the model has `label_queries`. `None` with `model_init`.
        args: settings.
        processing_class: the checkpoint's image processor.
        train_dataset: rows with `image` and `candidates`, in the same order when a run is resumed. A column `row_id`
            names them. A column `true_label` is only used to log label recovery. `None`: only to evaluate and predict.
        eval_dataset: rows with `image` and `label`. Rows without a label (-1) are left out of loss and accuracy, and
            counted (`unlabeled_rows`). Where there is a column `candidates`, `candidate_accuracy` is the share of all
            rows whose predicted label is one of their candidates.
        method: replaces `args.loss`: a name in `METHODS`, a subclass of `Method`, or a function that makes a method
            from model, table and `MethodOptions`. It revises by its own rule, unless `args.revision` was given.
        revision: replaces `args.revision`: a name in `REVISION_RULES`, or a rule.
        distillation: teachers to learn from as well.
        model_init: makes the model, with the trial of a hyper-parameter search if it takes an argument. Then each
            training, and each trial, starts with a new model, new confidences and a new method.

    Attributes:
        table: the live `ConfidenceTable`, in the order of the data set; after a run with `load_best_model_at_end`,
            the table of the best model.
        last_table: the table after the last step.
        method: the `Method` that trains.

    Raises:
        ValueError: data set and model do not fit each other (see `start_table`), or method and rule do not.
    """

    args: FerPllTrainingArguments
    table: ConfidenceTable  # optional only in the base class, as is the method; unset without a training set
    method: Method
    train_dataset: Dataset
    balanced_sampler: ClassBalancedSampler | None = None

    def __init__(
        self,
        model: PreTrainedModel | None,
        args: FerPllTrainingArguments,
        processing_class: FerPllImageProcessor,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        method: str | Callable[[PreTrainedModel, ConfidenceTable, MethodOptions], Method] | None = None,
        revision: str | RevisionRule | None = None,
        distillation: Distillation | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(args, FerPllTrainingArguments)
        model = first_model(model, model_init, args.seed, kwargs.get("optimizers", ()))
        class_names = class_names_of(model.config)
        if kwargs.get("compute_metrics") is None:
            check_best_metric(args, eval_dataset)
        check_evaluation_set(eval_dataset, class_names)
        self._method, self._revision = method, revision
        collator = PixelCollator(processing_class)
        kwargs["data_collator"] = kwargs.get("data_collator") or collator
        kwargs["compute_metrics"] = kwargs.get("compute_metrics") or fer_metrics
        if train_dataset is not None:
            self._start(model, args, train_dataset)
            collator.columns = self.method.columns
        super().__init__(
            model,
            args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if train_dataset is not None and self.is_fsdp_enabled and not self.method.shardable:
            raise ValueError(
                f"loss={self.method.name!r} needs the whole model in each process: choose another loss, or train it "
                "without FSDP."
            )
        self.distillation = distillation
        self.model_init = model_init  # type: ignore[assignment]  # as in the base class
        self.loss_is_scaled_for_ga = True  # by `compute_loss`
        self.steps_per_epoch = 1  # of the optimizer; known once training starts
        if train_dataset is not None:
            self.add_callback(StepCallback(self))

    def _start(self, model: PreTrainedModel, args: FerPllTrainingArguments, dataset: Dataset) -> None:
        """Make the confidences and the method of a new model."""
        check_training_set(dataset, class_names_of(model.config), args.confidence_init)
        self.confidence_init = args.confidence_init or default_confidence_init(dataset)
        self.table = self.last_table = start_table(
            dataset, class_names_of(model.config), self.confidence_init, args.votes_temperature
        )
        if "true_label" in dataset.column_names:
            self.table.set_true_labels(numpy_column(dataset, "true_label"))
        self.table.to(args.device)
        self.balanced_sampler = None
        if args.class_balance == "sampler":
            seed = args.seed if args.data_seed is None else args.data_seed
            self.balanced_sampler = ClassBalancedSampler(self.table, seed, args.sampler_power)
        annotators = number_of_annotators(dataset, len(self.table.class_names))
        self.method = make_method(model, self.table, args, self._method, self._revision, annotators)
        warn_if_threshold_cannot_fire(self.table, self.method.rule, self.method.rule_value, args.reversible)
        for column in ("label" if name == "labels" else name for name in self.method.columns):
            if column not in dataset.column_names:
                raise ValueError(
                    f"loss={self.method.name!r} needs the column {column!r}: add it, or choose another loss."
                )
        if "labels" in self.method.columns and not self.method.uses_unlabeled:
            unlabeled = int((numpy_column(dataset, "label") < 0).sum())
            if unlabeled:
                raise ValueError(
                    f"loss={self.method.name!r} learns from the column 'label', which is undefined (-1) in "
                    f"{unlabeled:,} of {len(dataset):,} training rows: choose a loss of candidates, such as pll."
                )
        if args.class_balance == "logit_adjustment":
            prior = class_prior(self.table).clamp(min=1 / len(self.table))
            self.method.log_prior = prior.log().float().to(args.device)
        self.num_views, self.strong_views = self.method.num_views, self.method.strong_views

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)  # gives `args` the values of the trial
        if self.model_init is not None and self.train_dataset is not None:
            self.args.take_method(of_another=True)  # a trial may choose another loss
            self._start(self.model, self.args, self.train_dataset)
            if isinstance(self.data_collator, PixelCollator):
                self.data_collator.columns = self.method.columns

    def warn_if_nothing_is_revised(self) -> None:
        """Warn, with the numbers, if warm-up or rule let no confidence of this training be revised."""
        if self.method.rule.name == "none":
            return
        args = self.args
        reason = idle_rule(self.table, self.method.rule) or idle_warmup(
            self.state.max_steps, self.steps_per_epoch, args.revision_warmup, args.revision_warmup_epochs
        )
        if reason is not None and args.should_log:
            warnings.warn(f"No confidence is revised in this training: {reason}.", stacklevel=2)

    def get_train_dataloader(self) -> DataLoader:
        dataloader = super().get_train_dataloader()
        self.steps_per_epoch = -(-len(dataloader) // self.args.gradient_accumulation_steps)
        return dataloader

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

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether the encoder does not learn in the current step."""
        after = self.args.unfreeze_after
        if after is None:
            return self.args.freeze_backbone
        return self.state.global_step < round(after * self.steps_per_epoch, 9)

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.args.freeze_backbone and self.args.unfreeze_after is None:
            for module in encoder_modules(model or self.model):
                module.requires_grad_(False)
        return super().create_optimizer(model)

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.args.unfreeze_after is None:
            return super().training_step(model, *args, **kwargs)
        # The optimizer leaves parameters without gradient as they are. With several processes, DDP needs the gradients
        # of all that were to be trained when it began, so they are dropped only now.
        frozen, encoder = self.encoder_is_frozen, encoder_modules(self.model)
        if self.args.world_size == 1:
            for module in encoder:
                module.requires_grad_(not frozen)
        loss = super().training_step(model, *args, **kwargs)
        if frozen:
            for module in encoder:
                module.zero_grad(set_to_none=True)
        return loss

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
            logits, labels = outputs.logits.float(), inputs["labels"]
            if (labels >= 0).all():
                loss = torch.nn.functional.cross_entropy(logits, labels)
            else:  # the mean over all rows; `evaluation_loop` makes it one over those with a label
                total = torch.nn.functional.cross_entropy(
                    logits, labels.clamp(min=-1), ignore_index=-1, reduction="sum"
                )
                loss = total / len(labels)
            return (loss, outputs) if return_outputs else loss

        if self.encoder_is_frozen:  # its batch norms keep their statistics, and nothing is dropped
            for module in encoder_modules(self.model):
                module.eval()
        index = inputs["index"]
        size = len(index)
        trained = pixel_values[: size * self.method.trained_views]
        if self.method.mirrored:
            trained = torch.cat([trained, trained.flip(-1)])
        outputs = model(pixel_values=trained)
        features, maps = self.method.taps.take()
        everything = torch.ones_like(index, dtype=torch.bool)  # outside of `train`
        batch = Batch(
            logits=self.method.adjust(outputs.logits).unflatten(0, (-1, size)),
            pixel_values=pixel_values.unflatten(0, (-1, size)),
            index=index,
            revisable=inputs.get("revisable", everything),
            columns={name: inputs[name] for name in self.method.columns},
            epoch=self.state.global_step / self.steps_per_epoch,
            progress=self.progress,
            revising=warmup_is_over(
                self.state.global_step,
                self.state.max_steps,
                self.steps_per_epoch,
                self.args.revision_warmup,
                self.args.revision_warmup_epochs,
            ),
            model=self.accelerator.unwrap_model(model),
            features=None if features is None else features.unflatten(0, (-1, size)),
            maps=None if maps is None else maps.unflatten(0, (-1, size)),
        )
        losses = self.method.step(batch)  # (B,)
        if self.distillation is not None:
            seen = pixel_values[:size] * self._std + self._mean
            losses = self.distillation.blend(losses, outputs.logits[:size], seen, index)
        queries = getattr(batch.model, "label_queries", None)
        if self.args.uniform_weight > 0 and queries is not None:
            uniformity = uniformity_loss(queries, self.args.uniform_temperature, self.args.uniform_literal)
            losses = losses + self.args.uniform_weight * uniformity
        if num_items_in_batch is None:
            loss = losses.mean()
        else:  # gradients are averaged over processes and added over micro-batches
            loss = (losses * inputs["counts"]).sum() * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 .. 1."""
        return min(self.state.global_step / self.state.max_steps, 1.0) if self.state.max_steps else 0.0

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._check_given(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        self._check_given(test_dataset)
        return super().predict(test_dataset, *args, **kwargs)

    def _check_given(self, dataset: Any) -> None:
        if isinstance(dataset, (Dataset, dict)):
            check_evaluation_set(dataset, class_names_of(self.model.config))

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        rows = dataloader.dataset.dataset if isinstance(dataloader.dataset, NumberedRows) else None
        labels = np.asarray(output.label_ids) if isinstance(output.label_ids, np.ndarray) else None
        if rows is not None and "label" in rows.column_names and rows.format["type"] != "custom":
            labels = numpy_column(rows, "label")
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics: dict[str, float] = output.metrics  # type: ignore[assignment]  # never `None`
        if labels is not None and (labels < 0).any():
            unlabeled, loss = int((labels < 0).sum()), f"{prefix}_loss"
            metrics[f"{prefix}_unlabeled_rows"] = unlabeled
            if unlabeled == len(labels):
                metrics.pop(loss, None)
            elif loss in metrics:
                metrics[loss] *= len(labels) / (len(labels) - unlabeled)
        logits = None if self.preprocess_logits_for_metrics is not None else output.predictions
        if rows is not None and "candidates" in rows.column_names and logits is not None:
            candidates = numpy_column(rows, "candidates").astype(bool)
            inside = candidates[np.arange(len(candidates)), _whole(logits).argmax(axis=1)]
            metrics[f"{prefix}_{CANDIDATE_ACCURACY}"] = float(inside.mean())
        return output

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
        settings |= {"loss": self.method.name, "revision": rule.name, "confidence_init": self.confidence_init}
        settings |= card_settings(self.method.settings)
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

    def merge_adapters(self) -> None:
        """Add the adapters to the weights. They are kept in `adapter`, in the output folder.

        A model without adapters stays as it is.
        """
        if not is_adapted(self.model):
            return
        adapted: Any = self.model
        if self.args.should_save:
            with saving_model(self.run_folder.path):
                adapted.save_pretrained(self.run_folder.adapter)
            (self.run_folder.adapter / CARD_NAME).unlink(missing_ok=True)  # peft's, which says nothing
        self.model = self.model_wrapped = self.callback_handler.model = adapted.merge_and_unload()

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
                with reading(path, ANOTHER), self.averaged():  # as when it was written: a method's head is averaged
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
