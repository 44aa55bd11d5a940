"""SoLar, Sinkhorn label refinery for imbalanced partial labels (Wang et al., 2022)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import pll_loss
from ...labels.revision import soft_response
from .base import Batch, Method, MethodOptions


@torch.no_grad()
def sinkhorn(inside: Tensor, prior: Tensor, sharpness: float, iterations: int = 50) -> Tensor:
    """What the classes are weighted with so that they get given shares of the rows: v, (K,) float64.

    `Q = diag(u) P^lambda diag(v)`, where u and v make the rows of Q sum to 1 and its columns to `M r_k`: the entropic
    optimal transport from rows to classes at the cost -log P (Cuturi, 2013). See `refined_labels`.

    Args:
        inside: P, (M, K) >= 0, the probabilities inside the candidate sets, 0 outside. Each row has one above 0.
        prior: r, (K,), sum 1. A class that no row may have gets nothing.
        sharpness: lambda.
        iterations: how often columns and rows are scaled.
    """
    powers = _powers(inside, sharpness)
    rows = torch.ones(len(powers), dtype=torch.float64, device=powers.device)
    for _ in range(iterations):
        columns = len(powers) * prior.double() / (rows @ powers).clamp(min=1e-300)
        rows = 1 / (powers @ columns).clamp(min=1e-300)
    return columns


@torch.no_grad()
def refined_labels(inside: Tensor, weights: Tensor, sharpness: float) -> Tensor:
    """The rows of Q, `P^lambda v` with sum 1, (B, K), for weights (K,) of `sinkhorn`."""
    weighted = _powers(inside, sharpness) * weights
    return (weighted / weighted.sum(dim=1, keepdim=True)).to(inside.dtype)


def _powers(inside: Tensor, sharpness: float) -> Tensor:
    # The scale of a row does not matter to Q, but small powers would vanish.
    return (inside.double() / inside.double().amax(dim=1, keepdim=True)) ** sharpness


def small_losses(labels: Tensor, losses: Tensor, prior: Tensor, share: float) -> Tensor:
    """The rows of each class with the smallest losses, (B,) bool: `ceil(share r_k B)` of class k, one at least.

    Args:
        labels: (B,) int64.
        losses: (B,).
        prior: r, (K,).
        share: rho.
    """
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for k in labels.unique().tolist():
        members = (labels == k).nonzero()[:, 0]
        number = max(math.ceil(share * float(prior[k]) * len(labels)), 1)
        chosen[members[losses[members].argsort(stable=True)[:number]]] = True
    return chosen


class SoLar(Method):
    """Pseudo-labels whose classes have the shares that the classes have, for candidate sets of unequal classes.

        Q = Sinkhorn labels of the batch and the last 8192 rows: near p inside Y, with the class shares r
        reliable: of each class (argmax q) the ceil(rho r_k B) rows with the smallest -sum_k q_k log p_k, and those
                  with sum_k q_k p_k > 0.99
        loss = eta * mean over the reliable rows of -sum_k q_k (log p_k + log p_k(strong view))
               + (1 - eta) * mean over the others of -sum_k C_k log p_k
        C' = softmax inside Y, after the loss (the rule `soft`)
        r = (1 - mu) r + mu * shares of the labels that were most probable inside Y in the last epoch

    Without the class shares, rows of rare classes are given to frequent ones. eta rises from 0 to 0.9 and rho from
    0.2 to 0.8 in the first twentieth of the training (the authors': 50 of 1000 epochs). While a run does not revise
    yet (the warm-up, or the first epoch), the loss is that of the others for all rows.

    Our reading: r starts as the mean of the first confidences and is counted on the predictions of the training
    itself. The authors estimate it by a shorter training first, and go over all rows after each epoch. The mixup of
    reliable rows is left out: a mixed image has no row in the confidence table. Each process chooses among the rows
    of its own micro-batch; Q is that of all processes.
    """

    name = "solar"
    summary = (
        "the cross-entropy with pseudo-labels whose classes have the estimated class shares, for reliable images, and "
        "with the confidences for the others (SoLar, Wang et al., 2022)"
    )
    revision = "soft"
    revisions = ("soft",)
    num_views = trained_views = 2
    strong_views = 1
    QUEUE = 8192
    SHARPNESS = 3.0
    SURE = 0.99
    ETA = 0.9
    RHO = (0.2, 0.8)

    @dataclass(frozen=True)
    class Settings:
        prior_step: OnCard[float] = field(
            default=0.1, metadata={"help": "How far each epoch moves the class shares, mu."}
        )
        solar_ramp: OnCard[float] = field(
            default=0.05, metadata={"help": "Share of the training in which reliable images gain their weight."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, prior_step="(0, 1]", solar_ramp="(0, 1]")

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        num_classes = len(table.class_names)
        total = torch.stack([table.confidence[part].double().sum(dim=0) for part in table.chunks()]).sum(dim=0)
        self.prior = (total / len(table)).float()
        self.counts = torch.zeros(num_classes, device=self.device)
        self.epoch = 0
        self.queue = torch.zeros(self.QUEUE, num_classes, device=self.device)
        self.queued = 0  # how many rows have entered the queue so far

    def loss(self, batch: Batch) -> Tensor:
        logits = batch.logits.float()
        if int(batch.epoch) != self.epoch:
            self.new_epoch(int(batch.epoch))
        candidates = self.table.candidates[batch.index]
        inside = torch.where(candidates, logits[0].detach().softmax(dim=1), 0.0)
        # Their scale does not matter to Q. The softmax inside the set never vanishes, however sure of another class.
        labels = self.refine(batch, soft_response(inside, candidates, logits[0]))
        others = pll_loss(logits[0], self.table.lookup(batch.index))
        if not batch.revising or batch.epoch < 1:
            return others
        losses = pll_loss(logits[0], labels)
        ramp = min(batch.progress / self.settings.solar_ramp, 1.0)
        rho = self.RHO[0] + (self.RHO[1] - self.RHO[0]) * ramp
        reliable = small_losses(labels.argmax(dim=1), losses.detach(), self.prior, rho)
        reliable |= (labels * inside).sum(dim=1) > self.SURE
        eta, number = self.ETA * ramp, reliable.sum()
        consistent = losses + pll_loss(logits[1], labels)
        # Scaled so that the mean over the rows is the weighted sum of both groups' means.
        return torch.where(
            reliable,
            eta * len(labels) / number.clamp(min=1) * consistent,
            (1 - eta) * len(labels) / (len(labels) - number).clamp(min=1) * others,
        )

    @torch.no_grad()
    def refine(self, batch: Batch, inside: Tensor) -> Tensor:
        """Sinkhorn labels (B, K) of this process's rows; fills the queue with the rows of all processes."""
        index, everywhere = self.gather_revisable(batch, inside)
        self.counts += everywhere.argmax(dim=1).bincount(minlength=len(self.counts))
        filled = self.queue[: min(self.queued, self.QUEUE)]
        weights = sinkhorn(torch.cat([filled, everywhere]), self.prior, self.SHARPNESS)
        places = (self.queued + torch.arange(len(index), device=index.device)) % self.QUEUE
        self.queue[places] = everywhere
        self.queued += len(index)
        return refined_labels(inside, weights, self.SHARPNESS)

    def new_epoch(self, epoch: int) -> None:
        """Move the class shares by what the last epoch predicted."""
        if self.counts.sum() > 0:
            self.prior = torch.lerp(self.prior, self.counts / self.counts.sum(), self.settings.prior_step)
        self.counts = torch.zeros_like(self.counts)
        self.epoch = epoch

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        return f"{super().revision_sentence(settings, candidate_sets)} They are the labels of unreliable images."

    def state_dict(self) -> dict[str, Any]:
        names = ("prior", "counts", "epoch", "queue", "queued")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
