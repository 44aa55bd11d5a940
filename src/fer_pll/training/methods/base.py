"""What the trainer asks of a method, and what it tells it of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from torch import Tensor

from ...labels.confidence_table import ConfidenceTable
from ...labels.revision import REVISION_RULES

if TYPE_CHECKING:
    from ..arguments import FerPllTrainingArguments


@dataclass
class Batch:
    """A micro-batch of B rows as a method sees it, K classes, V views of each picture."""

    logits: Tensor  # (trained views, B, K); with class_balance="logit_adjustment" they are adjusted
    pixel_values: Tensor  # (V, B, C, H, W), normalised
    index: Tensor  # (B,) int64, rows of the table
    revisable: Tensor  # (B,) bool, False for a row that this step has seen before
    columns: dict[str, Tensor]  # those that the method asked for: `labels` (B,), `votes` (B, K)
    epoch: float  # that have passed
    model: torch.nn.Module


class Method:
    """A loss with the rule by which it revises confidences (paper, Algorithm 1). A subclass gives at least `loss`.

    Class attributes say what the method needs of the trainer.
    """

    revision: str = "none"
    """The rule that makes the method what its authors published."""
    revisions: tuple[str, ...] = tuple(REVISION_RULES)
    """The rules that it can be combined with. One that is not in `REVISION_RULES` is the method's own `revise`."""
    num_views: int = 1
    """How many times each picture is augmented, V."""
    trained_views: int = 1
    """How many of the views, from the first, go through the model with gradient."""
    columns: tuple[str, ...] = ()
    """What the method needs in `Batch.columns`: `labels`, `votes`, the training set's `label` and `votes`."""

    def __init__(self, model: torch.nn.Module, table: ConfidenceTable, args: "FerPllTrainingArguments"):
        """Called before the trainer wraps the model, so that a method can add parameters to it."""
        self.table = table
        self.args = args
        self.log_prior: Tensor | None = None  # (K,), where logits are adjusted
        self.margins = torch.zeros(2, device=args.device)  # sum and number of the margins since the last log

    @property
    def revises_after_loss(self) -> bool:
        """Whether the loss of a visit sees the confidences that the row's previous visit left."""
        return REVISION_RULES[self.args.revision].after_loss

    def loss(self, batch: Batch) -> Tensor:
        """Loss of each row, (B,) float32."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Tensor:
        """Revise the batch's rows and give the loss of each, (B,) float32, in the order that the rule asks for."""
        revising = batch.epoch >= self.args.revision_warmup_epochs
        if revising and not self.revises_after_loss:
            self.revise(batch)
        losses = self.loss(batch)
        if revising and self.revises_after_loss:
            self.revise(batch)
        return losses

    def revise(self, batch: Batch) -> None:
        """Revise the batch's rows."""
        self.revise_by_rule(batch, batch.logits[0])

    def revise_by_rule(self, batch: Batch, logits: Tensor) -> None:
        """Apply `args.revision` with logits (B, K) to all processes' rows; every one ends with the same table."""
        if self.args.revision == "none":
            return
        index, logits = self.gather_revisable(batch, logits.detach())
        revision = self.table.revise(
            index,
            logits,
            self.args.revision_threshold,
            int(batch.epoch),
            rule=self.args.revision,
            reversible=self.args.reversible,
            momentum=self.args.revision_momentum,
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
