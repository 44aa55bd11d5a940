"""Class prototypes in a space of embeddings (Wang et al., PiCO, 2022): what the methods with prototypes share."""

from typing import Any

import torch
from torch import Tensor, nn

from ...labels.confidence_table import ConfidenceTable
from ...labels.revision import response_margin
from .base import Batch, Method, MethodOptions
from .network import last_linear


class PrototypeMethod(Method):
    """Keeps a unit vector for each class, and moves confidences step by step towards a candidate.

        mu_c = unit(m mu_c + (1 - m) z), one row after the other, for the rows with predicted candidate c
        C' = phi C + (1 - phi) one-hot(chosen candidate)

    A small network makes the embeddings z from the input of the model's `classifier`; it is trained too, but is no
    part of the published checkpoint. A class that was not predicted yet has the prototype 0. phi falls from 0.95 to
    0.8 over the run.
    """

    uses_features = True
    DIM = 128
    PROTOTYPE_MOMENTUM = 0.99
    PHI = (0.95, 0.8)

    def __init__(self, model: nn.Module, table: ConfidenceTable, options: MethodOptions) -> None:
        super().__init__(model, table, options)
        width = last_linear(model, self.name).in_features
        self.add_head(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.DIM)))
        self.prototypes = torch.zeros(len(table.class_names), self.DIM, device=self.device)

    def embed(self, encoder: nn.Module, features: Tensor | None) -> Tensor:
        """Unit vectors (B, DIM) from what enters the encoder's classifier, (B, d) or (B, K, d)."""
        assert features is not None  # see `uses_features`
        return nn.functional.normalize(getattr(encoder, self.head_name)(self.pooled(features)).float(), dim=1)

    def predicted_candidates(self, batch: Batch) -> Tensor:
        """The most probable candidate of each row, (B,), in the first view."""
        candidates = self.table.candidates[batch.index]
        return batch.logits[0].detach().masked_fill(~candidates, float("-inf")).argmax(dim=1)

    @torch.no_grad()
    def move_towards(self, batch: Batch, index: Tensor, chosen: Tensor) -> None:
        """Move the confidences of rows with more than one candidate, the same rows on all processes.

        Args:
            batch: of this step.
            index: (B',) int64, rows of the table, each once.
            chosen: (B',) int64, the candidate that each moves towards.
        """
        ambiguous = self.table.candidates[index].sum(dim=1) > 1
        index, chosen = index[ambiguous], chosen[ambiguous]
        phi = self.PHI[0] + (self.PHI[1] - self.PHI[0]) * batch.progress
        one_hot = nn.functional.one_hot(chosen, len(self.prototypes))
        confidence = phi * self.table.lookup(index) + (1 - phi) * one_hot
        self.table.write(index, confidence, int(batch.epoch))
        self.margins += torch.stack([response_margin(confidence).sum(), confidence.new_tensor(len(index))])

    @torch.no_grad()
    def move_prototypes(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the prototypes by embeddings (B', DIM) of the rows of all processes, with predicted labels (B',)."""
        for embedding, label in zip(embeddings, labels.tolist(), strict=True):
            moved = self.PROTOTYPE_MOMENTUM * self.prototypes[label] + (1 - self.PROTOTYPE_MOMENTUM) * embedding
            self.prototypes[label] = nn.functional.normalize(moved, dim=0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"prototypes": self.prototypes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.prototypes = state["prototypes"]
