"""Stochastic depth (Huang et al., 2016)."""

import torch


def drop_path(residual: torch.Tensor, rate: float) -> torch.Tensor:
    """Zero a sample's whole branch with probability `rate`, scale the others by 1 / (1 - rate)."""
    keep = torch.rand(residual.shape[0], *[1] * (residual.dim() - 1), device=residual.device) >= rate
    return residual * keep / (1 - rate)
