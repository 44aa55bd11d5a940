"""CroSel, cross selection of confident pseudo-labels (Tian et al., CroSel: Cross Selection of Confident Pseudo Labels
for Partial-Label Learning, 2024)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...hub.card_settings import OnCard
from ...io.ranges import check_ranges
from ...labels.confidence_table import ConfidenceTable
from ...labels.losses import cc_loss, cross_entropy_loss, pll_loss
from ...labels.revision import soft_response
from .base import Batch, Method, MethodOptions
from .network import SECOND_NETWORK, last_linear


class CroSel(Method):
    """Two networks, each of which chooses the rows whose labels the other one believes.

        selected by network b: its prediction (1) lies in Y, (2) was the same at the row's last t visits, and (3) had
                               there a mean probability above gamma
        t_i = one-hot(prediction of b) if selected, else (mean of both networks' p inside Y)^(1/T), normalized
        loss of network a = mean over the selected rows of -log p_a(prediction of b)
                            + lambda (1 - share of selected rows) * -sum_k t'_k log p_a,k(x')
        x' = s x_i + (1 - s) x_j,  t' = s t_i + (1 - s) t_j,  s = max(b, 1 - b), b ~ Beta(0.75, 0.75)
        until a share of the training, and the warm-up, are over: -log sum_{k in Y} p_k (CC) of each network
        loss = sum over both networks
        C' = mean of both networks' p inside Y (the rule `soft`), which the loss does not use

    The first network is the model; the second one has a classifier of its own, drawn anew, and begins as a copy
    otherwise. It is trained along, costs as much again in time and memory, and is no part of the published model.

    Our reading: visits of the training itself stand in the place of a pass over all rows after each epoch, so the
    predictions of the last t visits are those of augmented views. Selection is done, and its share is counted, in each
    micro-batch. The images that are mixed (co-mix) are strongly augmented, with row j in a random other order of the
    batch; T = 1/2, b and max are those of MixMatch (Berthelot et al., 2019). t and gamma are the paper's, lambda is
    ours. The authors begin to select after 10 of 200 epochs. Shorter trainings need a larger share: until a network is
    right about most rows, few are selected, and CC teaches it more than sharpened guesses. The second network computes
    in float32 where the first one computes in less on a GPU.
    """

    name = "crosel"
    summary = (
        "for two networks, the cross-entropy with labels that the other one was sure of at several visits, and that "
        "of mixed images with such labels and sharpened predictions (CroSel, Tian et al., 2024)"
    )
    revision = "soft"
    revisions = ("soft",)
    num_views = 2
    strong_views = 1
    head_name = SECOND_NETWORK
    SHARPEN = 0.5
    BETA = 0.75

    @dataclass(frozen=True)
    class Settings:
        selection_visits: OnCard[int] = field(
            default=3, metadata={"help": "Visits at which the prediction of a selected image was the same, t."}
        )
        selection_threshold: OnCard[float] = field(
            default=0.9, metadata={"help": "Mean probability that selects an image, gamma."}
        )
        selection_after: OnCard[float] = field(
            default=0.25, metadata={"help": "Share of the training before images are selected."}
        )
        comix_weight: OnCard[float] = field(
            default=1.0, metadata={"help": "Weight of the loss of the mixed images, lambda."}
        )

        def __post_init__(self) -> None:
            check_ranges(
                self,
                selection_visits="[1, inf)",
                selection_threshold="[0, 1)",
                selection_after="[0, 1)",
                comix_weight="[0, inf)",
            )

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        second = copy.deepcopy(model)
        last_linear(second, self.name).reset_parameters()
        self.add_head(second)
        places = 2, len(table), self.settings.selection_visits
        self.predicted = torch.full(places, -1, dtype=torch.int16, device=self.device)  # -1: no visit yet
        self.probability = torch.zeros(places, device=self.device)

    def step(self, batch: Batch) -> Tensor:
        share = float(torch.distributions.Beta(self.BETA, self.BETA).sample())
        share = max(share, 1 - share)
        return self.mixed_step(batch, share, torch.randperm(len(batch.index), device=self.device))

    def mixed_step(self, batch: Batch, share: float, other: Tensor) -> Tensor:
        """Revise, and loss (B,) of the rows, each mixed with the row `other` (B,), of which it keeps `share`."""
        assert self.head is not None
        logits = [batch.logits[0], self.adjust(self.head(pixel_values=batch.pixel_values[0]).logits)]
        candidates = self.table.candidates[batch.index]
        log_p = torch.stack([each.detach().float().log_softmax(dim=1) for each in logits])  # (2, B, K)
        log_mean = log_p.logsumexp(dim=0)  # but for a constant
        selected, labels = self.select(batch.index)
        self.remember(batch, log_p)
        if batch.revising:
            self.revise_by_rule(batch, log_mean)
        if not batch.revising or batch.progress < self.settings.selection_after:
            return cc_loss(logits[0], candidates) + cc_loss(logits[1], candidates)

        guess = soft_response(log_mean, candidates, log_mean / self.SHARPEN)
        mixed = share * batch.pixel_values[1] + (1 - share) * batch.pixel_values[1][other]
        losses = torch.zeros_like(log_p[0, :, 0])
        for own, network in enumerate((batch.model, self.head)):
            chosen, label = selected[1 - own], labels[1 - own]
            one_hot = nn.functional.one_hot(label.clamp(min=0), log_p.shape[2])
            target = torch.where(chosen[:, None], one_hot, guess)
            # Scaled so that its mean over the rows is that over the selected ones.
            sure = torch.where(chosen, cross_entropy_loss(logits[own], label), 0.0)
            losses = losses + sure * (len(label) / chosen.sum().clamp(min=1))
            of_mixed = self.adjust(network(pixel_values=mixed).logits)
            weight = self.settings.comix_weight * (1 - chosen.float().mean())
            losses = losses + weight * pll_loss(of_mixed, share * target + (1 - share) * target[other])
        return losses

    def select(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the rows (B,) each network selects, (2, B) bool, and what it predicted last, (2, B) int64."""
        predicted = self.predicted[:, index].long()  # (2, B, t)
        labels = predicted[:, :, -1]
        inside = self.table.candidates[index].expand(2, -1, -1).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        steady = (predicted == labels[:, :, None]).all(dim=2) & (labels >= 0)
        sure = self.probability[:, index].mean(dim=2) > self.settings.selection_threshold
        return inside & steady & sure, labels

    def remember(self, batch: Batch, log_p: Tensor) -> None:
        """Note the predictions, log p (2, B, K), of the rows of all processes; the oldest are forgotten."""
        index, log_p = self.gather_revisable(batch, log_p.transpose(0, 1))
        largest, label = log_p.transpose(0, 1).max(dim=2)
        for memory, new in ((self.predicted, label), (self.probability, largest.exp())):
            memory[:, index] = torch.cat([memory[:, index, 1:], new[:, :, None].to(memory.dtype)], dim=2)

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str:
        sentence = super().revision_sentence(settings, candidate_sets)
        return f"{sentence} That softmax is of both networks' mean. The loss did not use these."

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"predicted": self.predicted, "probability": self.probability}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.predicted, self.probability = state["predicted"], state["probability"]
