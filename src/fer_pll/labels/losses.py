"""Losses of partial label learning. Each takes logits and what is known of the labels, and gives a scalar mean."""

import torch
from torch import Tensor


def pll_loss(logits: Tensor, confidence: Tensor) -> Tensor:
    """Eq. 2 of the paper: cross-entropy against the confidences, `-sum_k C_k log softmax(z)_k`, mean over the batch.

    With one-hot confidences this is the usual cross-entropy, with vote shares the soft-label one.

    Args:
        logits: z, (B, K), any float type; the loss is computed in float32, also under autocast.
        confidence: C, (B, K), rows sum to 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return -(confidence * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
