"""What the trainer asks of a method, and what it tells it of the training and of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor

from ...labels.confidence_table import ConfidenceTable
from ...labels.revision import REVISION_RULES, RevisionRule


@dataclass
class Batch:
    """A micro-batch of B rows as a method sees it, K classes, V views of each image."""

    logits: Tensor  # (trained views, B, K); with class_balance="logit_adjustment" they are adjusted
    pixel_values: Tensor  # (V, B, C, H, W), normalized
    index: Tensor  # (B,) int64, rows of the table
    revisable: Tensor  # (B,) bool, False for a row that this step has seen before
    columns: dict[str, Tensor]  # those that the method asked for: `labels` (B,), `votes` (B, K)
    epoch: float  # that have passed
    model: torch.nn.Module


@dataclass(frozen=True)
class MethodOptions:
    """What the trainer tells a method of the training.

    Args:
        revision: rule, or its name; `None` for the method's own choice.
        revision_settings: numbers of the rules by their names, e.g. `{"revision_threshold": 0.2}`.
        warmup_epochs: before the first revision.
        reversible: revise from the initial candidates at each visit.
        num_epochs: of the training.
        settings: the method's own, by name, see `Method.Settings`.
    """

    revision: str | RevisionRule | None = None
    revision_settings: Mapping[str, float] = field(default_factory=dict)
    warmup_epochs: float = 0.0
    reversible: bool = False
    num_epochs: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


class Method:
    """A loss with the rule by which it revises confidences (paper, Algorithm 1). A subclass gives at least `name`,
    `summary` and `loss`.

    Class attributes say what the method is and what it needs of the trainer.
    """

    name: str
    """What `--loss` and the model card call it."""
    summary: str
    """What is minimized, for `--help` and the card, where it follows "The loss is"; without a period."""

    @dataclass(frozen=True)
    class Settings:
        """The method's own settings: fields with a default, a `help` in their metadata, marked `OnCard` where they
        are to be told, checked in `__post_init__` by a `ValueError` that names them. Each is an option of the command
        line and a key of the YAML files."""

    revision: str | RevisionRule = "none"
    """The rule that makes the method what its authors published; a rule of the method's own as an object."""
    revisions: tuple[str, ...] | None = None
    """The rules that it can be combined with; `None`: any."""
    uses_candidates: bool = True
    """Whether the loss depends on candidate sets or confidences."""
    num_views: int = 1
    """How many times each image is augmented, V."""
    trained_views: int = 1
    """How many of the views, from the first, go through the model with gradient."""
    columns: tuple[str, ...] = ()
    """What the method needs in `Batch.columns`: `labels`, `votes`, the training set's `label` and `votes`."""

    def __init__(self, model: torch.nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        """Called before the trainer wraps the model, so that a method can add parameters to it.

        Raises:
            ValueError: for a rule that does not go with the method, or a setting that it does not have or that is
                out of its range.
        """
        self.table = table
        self.options = options
        self.rule = self.find_rule(options.revision)
        self.rule_value = self.rule.value(options.revision_settings)
        self.settings = self.make_settings(options.settings)
        self.device = table.confidence.device
        self.log_prior: Tensor | None = None  # (K,), where logits are adjusted
        self.margins = torch.zeros(2, device=self.device)  # sum and number of the margins since the last log

    @classmethod
    def find_rule(cls, revision: str | RevisionRule | None = None) -> RevisionRule:
        """The rule of that name, or the rule itself, or the method's own choice.

        Raises:
            ValueError: it does not go with the method; the message has those that do.
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
        """The method's `Settings` with these values; `ValueError` naming one that it does not have, or cannot be."""
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

    def sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        """What a model card says of the loss, in a sentence that follows one about the candidate sets.

        Args:
            settings: of the training that a card shows, the method's own among them.
            candidate_sets: numbers of the confidence table: `rows`, `ambiguous`, `revised`.
        """
        if not self.uses_candidates:
            return f"The loss did not use them: it is {self.summary}."
        return f"The loss is {self.summary}."

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str | None:
        """What a model card says of the revision; `None` where the loss uses no confidences and none were revised."""
        sentence = self.rule.sentence(settings, candidate_sets)
        if self.uses_candidates:
            return sentence
        return None if self.rule.response is None else f"{sentence} The loss did not use these either."

    def loss(self, batch: Batch) -> Tensor:
        """Loss of each row, (B,) float32."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Tensor:
        """Revise the batch's rows and give the loss of each, (B,) float32, in the order that the rule asks for."""
        revising = batch.epoch >= self.options.warmup_epochs
        if revising and not self.rule.after_loss:
            self.revise(batch)
        losses = self.loss(batch)
        if revising and self.rule.after_loss:
            self.revise(batch)
        return losses

    def revise(self, batch: Batch) -> None:
        """Revise the batch's rows."""
        self.revise_by_rule(batch, batch.logits[0])

    def revise_by_rule(self, batch: Batch, logits: Tensor) -> None:
        """Apply the rule with logits (B, K) to all processes' rows; every one ends with the same table."""
        if self.rule.response is None:
            return
        index, logits = self.gather_revisable(batch, logits.detach())
        revision = self.table.revise(
            index, logits, int(batch.epoch), self.rule, self.rule_value, self.options.reversible
        )
        margins = revision.margin[revision.ambiguous]
        self.margins += torch.stack([margins.sum(), margins.new_tensor(len(margins))])

    def gather_revisable(self, batch: Batch, *values: Tensor) -> tuple[Tensor, ...]:
        """`batch.index` and values (B, ...) of the rows to revise, of all processes, the same on each."""
        gathered = gather([tensor.contiguous() for tensor in (batch.revisable, batch.index, *values)])
        return tuple(tensor[gathered[0]] for tensor in gathered[1:])

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits (..., K) as the loss sees them: plus log prior under logit adjustment (Menon et al., 2021)."""
        return logits if self.log_prior is None else logits.float() + self.log_prior

    def after_optimizer_step(self) -> None:
        """Called when the weights have moved, before anything is logged or saved."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides weights and table: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
