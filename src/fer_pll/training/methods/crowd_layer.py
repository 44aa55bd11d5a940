"""Crowd layer (Rodrigues and Pereira, Deep Learning from Crowds, 2018)."""

import torch
from torch import Tensor

from .crowd import CrowdMethod, Matrices


class CrowdLayer(CrowdMethod):
    """A linear layer for each annotator on top of the probabilities, learned along.

        loss_i = mean over the answers y_i^r of -log softmax(W_r p_i)_{y_i^r}

    The W_r start as identities and are free (the paper's variant MW). The published model has p alone.
    """

    name = "crowd_layer"
    summary = (
        "the cross-entropy with each annotator's answers, through a matrix for each annotator on top of the "
        "probabilities (crowd layer, Rodrigues and Pereira, 2018)"
    )

    def first_matrix(self, num_classes: int) -> Tensor:
        return torch.eye(num_classes, device=self.device)

    def log_answers(self, logits: Tensor) -> Tensor:
        assert isinstance(self.head, Matrices)
        return torch.einsum("ajk,bk->baj", self.head.annotators, logits.softmax(dim=1)).log_softmax(dim=2)
