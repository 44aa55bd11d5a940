"""Label queries spread evenly over the hypersphere (paper, section 3.3.1, Eq. 3)."""

import torch
from torch import nn


def simplex_queries(num_classes: int, dim: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Unit vectors whose pairwise cosines are all -1 / (K - 1): the optimum of the uniformity loss, in closed form.

    `sqrt(K / (K - 1)) * (I - 11^T / K) U^T` with a random orthonormal U (d, K) is a regular simplex in a random
    orientation. It is what the paper calls the optimal positions "computed before training" (section 3.3.1).

    Args:
        num_classes: K >= 2.
        dim: d >= K - 1, the fewest dimensions in which the simplex exists.
        generator: source of the random orientation.

    Returns:
        float32 (K, d).

    Raises:
        ValueError: no such simplex exists.
    """
    if num_classes < 2 or dim < num_classes - 1:
        raise ValueError(f"{num_classes} label queries in {dim} dimensions: needs at least 2 classes and d >= K - 1.")
    # Coordinates of the simplex in its own K - 1 dimensional space: an orthonormal basis of the complement of the
    # all-ones vector.
    ones = torch.ones(num_classes, 1, dtype=torch.float64, device="cpu")
    complement = torch.linalg.qr(ones, mode="complete").Q[:, 1:]  # (K, K-1)
    gaussian = torch.randn(dim, num_classes - 1, generator=generator, dtype=torch.float64, device="cpu")
    orientation = torch.linalg.qr(gaussian).Q  # (d, K-1)
    return ((num_classes / (num_classes - 1)) ** 0.5 * complement @ orientation.T).float()


def uniformity_loss(queries: torch.Tensor, temperature: float, literal: bool = False) -> torch.Tensor:
    """How far the label queries are from an even spread over the hypersphere (Eq. 3).

    Ours leaves out the pair of a query with itself and scales by the temperature:
    `tau * mean_i logsumexp_{j != i}(cos(t_i, t_j) / tau)`. Its minimum, tau * log(K - 1) - 1 / (K - 1), is reached
    when all pairwise cosines are -1 / (K - 1).

    The literal Eq. 3, `mean_i logsumexp_j(cos(t_i, t_j) / tau)`, contains the self term 1 / tau, which dominates at
    the paper's temperatures: at tau <= 0.01 the value is 1 / tau and the gradient vanishes. It is kept for the
    ablation.

    Args:
        queries: (K, d), any dtype and length; cosines are taken in float32 with autocast off.
        temperature: tau > 0.
        literal: use the formula as printed.

    Returns:
        float32 scalar.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"uniform_temperature={temperature} must be greater than 0.")
    with torch.autocast(queries.device.type, enabled=False):
        directions = nn.functional.normalize(queries.float(), dim=-1)
        similarity = directions @ directions.T / temperature  # (K, K)
        if literal:
            return similarity.logsumexp(dim=-1).mean()
        own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        return temperature * similarity.masked_fill(own, -torch.inf).logsumexp(dim=-1).mean()
