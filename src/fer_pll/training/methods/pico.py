"""PiCO, contrastive label disambiguation (Wang et al., 2022)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import pll_loss, supervised_contrastive_loss
from ...labels.revision import RevisionRule, describe_each_visit
from .base import Batch, MethodOptions
from .network import Taps
from .prototypes import PrototypeMethod


def _describe(settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
    return describe_each_visit(settings, candidate_sets, "they move towards the candidate whose prototype is nearest")


class PiCO(PrototypeMethod):
    """Class prototypes, in a space shaped by a contrastive loss, decide between the candidates.

        loss: -sum_k C_k log p_k + 0.5 * supervised contrastive(q; k and the queue)
        C' = phi C + (1 - phi) one-hot(argmax_{k in Y} q . mu_k), before the loss
        mu_c = unit(m mu_c + (1 - m) q) for the rows with predicted candidate c

    q is the embedding of the first view, see `PrototypeMethod`. k is that of the second view, by a copy of the model
    that follows slowly (momentum encoder).

    After the warm-up, a row is revised once all its candidates have prototypes. Each process compares
    its rows with its own keys and the common queue, so the contrastive loss depends on the number of processes.
    """

    name = "pico"
    summary = (
        "the cross-entropy with the confidences and, with half the weight, a supervised contrastive loss "
        "(PiCO, Wang et al., 2022)"
    )
    revision = RevisionRule("prototype", "towards the candidate whose prototype is nearest", describe=_describe)
    revisions = ("prototype",)
    num_views = 2
    head_name = "contrastive_head"
    QUEUE = 8192
    MOMENTUM = 0.999  # of the momentum encoder
    CONTRASTIVE_WEIGHT = 0.5

    @dataclass(frozen=True)
    class Settings:
        contrastive_temperature: OnCard[float] = field(
            default=0.07, metadata={"help": "Temperature of the contrastive loss."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, contrastive_temperature="(0, inf)")

    def __init__(self, model: PreTrainedModel, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        key_model: nn.Module = copy.deepcopy(model)
        key_model.to(self.device)  # type: ignore[arg-type]  # transformers' wrapper of it lost its self
        self.key_model = key_model.requires_grad_(False).train()
        self.key_taps = Taps(self.key_model, self.name, features=True)
        self.queue = torch.zeros(self.QUEUE, self.DIM, device=self.device)
        self.queue_labels = torch.zeros(self.QUEUE, dtype=torch.int64, device=self.device)
        self.queued = 0  # how many keys have entered the queue so far

    def step(self, batch: Batch) -> Tensor:
        queries = self.embed(self.model, None if batch.features is None else batch.features[0])
        labels = self.predicted_candidates(batch)
        for slow, fast in zip(self.key_model.modules(), self.model.modules(), strict=True):
            slow.training = fast.training  # a frozen encoder is evaluated
        with torch.no_grad():
            self.key_model(pixel_values=batch.pixel_values[1])
            keys = self.embed(self.key_model, self.key_taps.take()[0])
        if batch.revising:
            self.move_confidences(batch, queries.detach())
        filled = min(self.queued, self.QUEUE)
        contrastive = supervised_contrastive_loss(
            queries,
            labels,
            torch.cat([keys, self.queue[:filled]]),
            torch.cat([labels, self.queue_labels[:filled]]),
            self.settings.contrastive_temperature,
        )
        self.remember(batch, queries.detach(), keys, labels)
        return pll_loss(batch.logits[0], self.table.lookup(batch.index)) + self.CONTRASTIVE_WEIGHT * contrastive

    @torch.no_grad()
    def move_confidences(self, batch: Batch, queries: Tensor) -> None:
        index, queries = self.gather_revisable(batch, queries)
        candidates = self.table.candidates[index]
        similarity = (queries @ self.prototypes.T).masked_fill(~candidates, float("-inf"))
        ready = ~(candidates & ~self.prototypes.any(dim=1)).any(dim=1)
        self.move_towards(batch, index[ready], similarity.argmax(dim=1)[ready])

    @torch.no_grad()
    def remember(self, batch: Batch, queries: Tensor, keys: Tensor, labels: Tensor) -> None:
        """Move the prototypes and fill the queue with the rows of all processes, in the same order on each."""
        _, queries, keys, labels = self.gather_revisable(batch, queries, keys, labels)
        self.move_prototypes(queries, labels)
        places = (self.queued + torch.arange(len(keys), device=keys.device)) % self.QUEUE
        self.queue[places], self.queue_labels[places] = keys, labels
        self.queued += len(keys)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        for slow, fast in zip(self.key_model.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - self.MOMENTUM)
        for copied, buffer in zip(self.key_model.buffers(), self.model.buffers(), strict=True):
            copied.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "key_model": self.key_model.state_dict(),
            "queue": self.queue,
            "queue_labels": self.queue_labels,
            "queued": self.queued,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.key_model.load_state_dict(state["key_model"])
        self.queue, self.queue_labels = state["queue"], state["queue_labels"]
        self.queued = state["queued"]
