"""RC, risk-consistent (Feng et al., 2020)."""

import torch

from ...labels.confidence_table import ConfidenceTable
from .base import Batch, MethodOptions
from .pll import PLL


class RC(PLL):
    """As PRODEN, but the confidences come from an extra forward after the optimizer's step.

    That forward is in evaluation mode: without dropout, and without moving the statistics of batch norms.
    """

    name = "rc"
    summary = (
        "the cross-entropy with the confidences, revised by the logits of an extra forward after each step "
        "(risk-consistent, Feng et al., 2020)"
    )
    revision = "soft"
    revisions = ("soft",)

    def __init__(self, model: torch.nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        self.seen: list[Batch] = []  # micro-batches since the last step of the optimizer

    def revise(self, batch: Batch) -> None:
        self.seen.append(batch)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        for batch in self.seen:
            batch.model.eval()
            logits = self.adjust(batch.model(pixel_values=batch.pixel_values[0]).logits)
            batch.model.train()
            self.revise_by_rule(batch, logits)
        self.seen.clear()
