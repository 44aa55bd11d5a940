"""PaPi, partial labels with a guided prototypical classifier (Xia et al., Towards Effective Visual Representations for
Partial-Label Learning, 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.losses import kl_loss, pll_loss
from ...labels.revision import RevisionRule, describe_each_visit, soft_response
from .base import Batch
from .prototypes import PrototypeMethod


def _describe(settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
    return describe_each_visit(settings, candidate_sets, "they move towards the most probable candidate")


class PaPi(PrototypeMethod):
    """The classifier guides class prototypes, not the other way round as in PiCO; nothing is contrasted.

        s = softmax of the first view inside Y, without gradient;  q_k(x) = softmax_k(z(x) . mu_k / tau)
        x' = a x_i + (1 - a) x_j,  s' = a s_i + (1 - a) s_j,  a ~ Beta(5, 5), j in a random other order of the batch
        loss = -mean over both views of sum_k C_k log p_k + lambda * (KL(s || q(strong view)) + KL(s' || q(x')))
        C' = phi C + (1 - phi) one-hot(argmax_{k in Y} p_k), before the loss
        mu_c = unit(m mu_c + (1 - m) z) for the rows with predicted candidate c, after the loss

    z are the embeddings of `PrototypeMethod`. Classes that look alike have prototypes that are near each other: s says
    how near, because it is spread over the candidates that the image resembles. A class that was not predicted yet is
    as far from every image as what is orthogonal to it. lambda rises to its value in the first tenth of the training.

    Our reading: the images that are mixed are the first views, which the model sees once more; the prototypes follow
    the first views; a is one number for each micro-batch. tau, Beta and the ramp are ours. Each process mixes the rows
    of its own micro-batch; the prototypes are those of all processes.
    """

    name = "papi"
    summary = (
        "the cross-entropy of two views with the confidences, and the divergence of similarities to class prototypes, "
        "also of mixed images, from the probabilities inside the candidate set (PaPi, Xia et al., 2023)"
    )
    revision = RevisionRule("classifier", "towards the most probable candidate", describe=_describe)
    revisions = ("classifier",)
    num_views = trained_views = 2
    strong_views = 1
    head_name = "prototype_head"
    BETA = 5.0
    RAMP = 0.1

    @dataclass(frozen=True)
    class Settings:
        prototype_weight: OnCard[float] = field(
            default=1.0, metadata={"help": "Weight of the divergence of the similarities to the prototypes, lambda."}
        )
        prototype_temperature: OnCard[float] = field(
            default=0.3, metadata={"help": "Temperature of the similarities to the prototypes, tau."}
        )

        def __post_init__(self) -> None:
            check_ranges(self, prototype_weight="[0, inf)", prototype_temperature="(0, inf)")

    def step(self, batch: Batch) -> Tensor:
        share = float(torch.distributions.Beta(self.BETA, self.BETA).sample())
        return self.mixed_step(batch, share, torch.randperm(len(batch.index), device=self.device))

    def mixed_step(self, batch: Batch, share: float, other: Tensor) -> Tensor:
        """Revise, and loss (B,) of the rows, each mixed with the row `other` (B,), of which it keeps `share`."""
        assert batch.features is not None
        labels = self.predicted_candidates(batch)
        if batch.revising:
            self.move_towards(batch, *self.gather_revisable(batch, labels))
        confidence = self.table.lookup(batch.index)
        losses = (pll_loss(batch.logits[0], confidence) + pll_loss(batch.logits[1], confidence)) / 2

        guide = soft_response(confidence, self.table.candidates[batch.index], batch.logits[0])
        first, strong = (self.embed(self.model, features) for features in batch.features)
        batch.model(pixel_values=share * batch.pixel_values[0] + (1 - share) * batch.pixel_values[0][other])
        mixed = self.embed(self.model, self.taps.take()[0])
        aligned = kl_loss(self.similarities(strong), guide)
        aligned = aligned + kl_loss(self.similarities(mixed), share * guide + (1 - share) * guide[other])

        _, first, labels = self.gather_revisable(batch, first.detach(), labels)
        self.move_prototypes(first, labels)
        return losses + self.settings.prototype_weight * min(batch.progress / self.RAMP, 1.0) * aligned

    def similarities(self, embeddings: Tensor) -> Tensor:
        """z . mu_k / tau, (B, K), of embeddings (B, DIM)."""
        with torch.autocast(self.device.type, enabled=False):
            # A copy, because the prototypes move before the gradient is computed.
            return embeddings @ self.prototypes.T.clone() / self.settings.prototype_temperature
