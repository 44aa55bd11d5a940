"""The interface between the trainer and a method: `Method`, `MethodOptions` and `Batch`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor, nn

from ...labels.confidence_table import ConfidenceTable
from ...labels.revision import REVISION_RULES, RevisionRule
from .network import Taps, add_head, classify, pooled


@dataclass
class Batch:
    """A micro-batch of B rows as a method sees it, K classes, V views of each image.

    T are the views that the model sees with gradient: `Method.trained_views` and, with `Method.mirrored`, as many
    again."""

    logits: Tensor  # (T, B, K); with class_balance="logit_adjustment" they are adjusted
    pixel_values: Tensor  # (V, B, C, H, W), normalized
    index: Tensor  # (B,) int64, rows of the table
    revisable: Tensor  # (B,) bool, False for a row that appeared earlier in this step
    columns: dict[str, Tensor]  # those that `Method.columns` names: `labels` (B,), `votes` (B, K), `answers` (B, A)
    epoch: float  # epochs since the start, with a fraction
    progress: float  # share of the training that is done, 0 .. 1
    revising: bool  # whether the warm-up is over: only then are confidences revised
    model: torch.nn.Module
    features: Tensor | None = None  # (T, B, d), or (T, B, K, d) from label queries: what enters the classifier
    maps: Tensor | None = None  # (T, B, C, h, w): the encoder's last feature map


@dataclass(frozen=True)
class MethodOptions:
    """A run's settings for its method.

    Args:
        revision: rule, or its name; `None` for the method's own choice.
        revision_settings: settings of the rules by name, e.g. `{"revision_threshold": 0.2}`.
        reversible: revise from the initial candidates at each visit.
        settings: the method's own settings by name, see `Method.Settings`.
        num_annotators: A of the training set's column `answers`; 0 without one.
    """

    revision: str | RevisionRule | None = None
    revision_settings: Mapping[str, float] = field(default_factory=dict)
    reversible: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_annotators: int = 0


class Method:
    """A loss with the rule by which it revises confidences (paper, Algorithm 1).

    A subclass defines at least `name`, `summary` and `loss`. Class attributes say what the method is and what it needs
    from the trainer.
    """

    name: str
    """Its name for `--loss` and on the model card."""
    summary: str
    """What is minimized, for `--help` and the card, where it follows "The loss is". No period at the end."""

    @dataclass(frozen=True)
    class Settings:
        """The method's own settings. Each is an option of the command line and a key of the YAML files.

        A field has a default and a `help` in its metadata, and is marked `OnCard` if the card shows it.
        `__post_init__` checks the values and raises a `ValueError` that names the setting."""

    revision: str | RevisionRule = "none"
    """The rule that its authors published: a name, or the rule itself if no other method has it."""
    revisions: tuple[str, ...] | None = None
    """The rules that it can be combined with; `None`: all."""
    uses_candidates: bool = True
    """Whether the loss depends on candidate sets or confidences."""
    num_views: int = 1
    """How many times each image is augmented, V."""
    trained_views: int = 1
    """How many of the views, counted from the first, go through the model with gradient."""
    mirrored: bool = False
    """Whether the model sees each trained view a second time, mirrored. In the batch these follow the trained views,
    in the same order."""
    strong_views: int = 0
    """How many of the views, counted from the last, are augmented strongly; see `BatchAugmentation.stronger`."""
    uses_features: bool = False
    """Whether it needs `Batch.features`."""
    uses_maps: bool = False
    """Whether it needs `Batch.maps`."""
    shardable: bool = True
    """Whether it can train a model whose parameters are sharded over the processes (FSDP2)."""
    columns: tuple[str, ...] = ()
    """The columns it needs in `Batch.columns`: `labels` (the training set's `label`), `votes`, and `answers` (what
    each annotator said, -1 for nothing)."""
    uses_unlabeled: bool = False
    """Whether rows may lack a label (-1) although `columns` names `labels`."""
    head: nn.Module | None = None
    """Layers of its own, see `add_head`."""
    head_name: str = "method_head"
    """Their name in the model."""

    def __init__(self, model: torch.nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        """The trainer calls this before it wraps the model, so that a method can add parameters to it.

        Raises:
            ValueError: the rule does not go with the method, or a setting is unknown or out of its range.
        """
        self.table = table
        self.options = options
        self.rule = self.find_rule(options.revision)
        self.rule_value = self.rule.value(options.revision_settings)
        if options.reversible and self.rule.response is None and self.rule.name != "none":
            raise ValueError(
                f"reversible has no effect with revision={self.rule.name!r}, which always goes on from the last "
                "confidences: leave it out."
            )
        self.settings = self.make_settings(options.settings)
        self.device = table.confidence.device
        self.log_prior: Tensor | None = None  # (K,), where logits are adjusted
        self.margins = torch.zeros(2, device=self.device)  # sum and number of the margins since the last log
        self.model = model
        self.taps = Taps(model, self.name, self.uses_features, self.uses_maps)

    @classmethod
    def find_rule(cls, revision: str | RevisionRule | None = None) -> RevisionRule:
        """The rule of that name, the rule itself, or the method's own choice.

        Raises:
            ValueError: the rule does not go with the method; the message lists those that do.
        """
        revision = cls.revision if revision is None else revision
        own = {} if isinstance(cls.revision, str) else {cls.revision.name: cls.revision}
        rules = REVISION_RULES | own
        if isinstance(revision, RevisionRule):
            rules, revision = rules | {revision.name: revision}, revision.name
        allowed = tuple(rules) if cls.revisions is None else cls.revisions
        if revision not in allowed:
            raise ValueError(
                f"revision={revision!r} does not go with loss={cls.name!r}: choose one of {', '.join(allowed)}, or "
                "leave it out."
            )
        return rules[revision]

    @classmethod
    def make_settings(cls, settings: Mapping[str, Any]) -> Any:
        """The method's `Settings` with these values; `ValueError` for an unknown setting or a bad value."""
        known = [each.name for each in fields(cls.Settings)]
        for name in settings:
            if name not in known:
                raise ValueError(
                    f"{name} is no setting of loss={cls.name!r}, which has {', '.join(known) or 'none of its own'}."
                )
        try:
            return cls.Settings(**settings)
        except TypeError as error:
            raise ValueError(f"{dict(settings)} are no settings of loss={cls.name!r}: {error}") from error

    def add_head(self, head: nn.Module) -> None:
        """Give the method layers or parameters of its own, as `self.head`.

        They join the model, so that the optimizer trains them, DDP averages their gradients and the average of the
        weights has them. Checkpoints hold them beside the model (`state_dict`); the published model is without them.
        The method then trains no sharded model, because its layers are called outside of the model's forward.

        Raises:
            ValueError: the model has adapters (LoRA), with which they would not be saved.
        """
        self.head, self.shardable = head.to(self.device), False
        add_head(self.model, self.head_name, self.head, self.name)

    def classify(self, features: Tensor) -> Tensor:
        """Adjusted logits (B, K) of features (B, d), or (B, K, d) from label queries, by the model's classifier."""
        logits = classify(self.model, features)
        self.taps.take()  # the features of this call are no input of the next one
        return self.adjust(logits)

    @staticmethod
    def pooled(features: Tensor) -> Tensor:
        """One vector for each image, float32 (B, d), from features (B, d), or (B, K, d) from label queries."""
        return pooled(features)

    def sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        """What a model card says about the loss, in a sentence that follows one about the candidate sets.

        Args:
            settings: the run's settings on the card, the method's own among them.
            candidate_sets: numbers of the confidence table: `rows`, `ambiguous`, `revised`.
        """
        if not self.uses_candidates:
            return f"The loss did not use them: it is {self.summary}."
        return f"The loss is {self.summary}."

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str | None:
        """What a model card says about the revision; `None` if the loss uses no confidences and none were revised."""
        sentence = self.rule.sentence(settings, candidate_sets)
        if self.uses_candidates:
            return sentence
        return None if self.rule.response is None else f"{sentence} The loss did not use these either."

    def loss(self, batch: Batch) -> Tensor:
        """Loss of each row, (B,) float32."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Tensor:
        """Revise the batch's rows and return the loss of each, (B,) float32. The rule decides which comes first."""
        if batch.revising and not self.rule.after_loss:
            self.revise(batch)
        losses = self.loss(batch)
        if batch.revising and self.rule.after_loss:
            self.revise(batch)
        return losses

    def revise(self, batch: Batch) -> None:
        """Revise the batch's rows."""
        self.revise_by_rule(batch, batch.logits[0])

    def revise_by_rule(self, batch: Batch, logits: Tensor) -> None:
        """Apply the rule with logits (B, K) to the rows of all processes. All of them end with the same table."""
        if self.rule.response is None:
            return
        index, logits = self.gather_revisable(batch, logits.detach())
        revision = self.table.revise(
            index, logits, int(batch.epoch), self.rule, self.rule_value, self.options.reversible
        )
        margins = revision.margin[revision.ambiguous]
        self.margins += torch.stack([margins.sum(), margins.new_tensor(len(margins))])

    def gather_revisable(self, batch: Batch, *values: Tensor) -> tuple[Tensor, ...]:
        """`batch.index` and values (B, ...) of the rows to revise. Gathered from all processes, the same on each."""
        gathered = gather([tensor.contiguous() for tensor in (batch.revisable, batch.index, *values)])
        return tuple(tensor[gathered[0]] for tensor in gathered[1:])

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits (..., K) for the loss: under logit adjustment, plus the log prior (Menon et al., 2021)."""
        return logits if self.log_prior is None else logits.float() + self.log_prior

    def after_optimizer_step(self) -> None:
        """The trainer calls this after each step of the optimizer, before it logs or saves."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and table: tensors and plain values."""
        return {} if self.head is None else {"head": self.head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if self.head is not None:
            self.head.load_state_dict(state["head"])
