"""Class-balanced sampling."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from ..labels.confidence_table import ConfidenceTable


def class_prior(table: ConfidenceTable) -> torch.Tensor:
    """Share of each class, estimated as the mean of the confidences, (K,) float64."""
    total = torch.zeros(len(table.class_names), dtype=torch.float64)
    for part in table.chunks():
        total += table.confidence[part].double().sum(dim=0).cpu()
    return total / len(table)


class ClassBalancedSampler(Sampler[int]):
    """Draws N of N rows with replacement; by default each class has the same expected share of the confidences.

    Row i has weight `sum_k C_ik / prior_k^power`: class k gets a share in proportion to `prior_k^(1 - power)`. The
    weights come from the confidences at the start of the run, so that a resumed epoch has the draws of the interrupted
    one. The draws depend only on (seed, epoch), so they are the same on all processes.

    Before `first_epoch` each row comes once, in the order that Trainer would have them in: features are learned from
    all rows alike, and only then the rare classes come more often (deferred re-sampling: Cao et al., 2019).

    Args:
        table: the confidences at the start.
        seed: of the run.
        power: 1 for equal shares, 1/2 for the square roots of the shares, 0 for the shares of the rows themselves.
    """

    def __init__(self, table: ConfidenceTable, seed: int, power: float = 1.0) -> None:
        inverse = (class_prior(table) ** -power).nan_to_num(posinf=0.0)
        weights = torch.cat([table.confidence[part].cpu().double() @ inverse for part in table.chunks()])
        self.cumulative = weights.numpy().cumsum()
        self.seed = seed
        self.epoch = self.first_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cumulative)

    def __iter__(self) -> Iterator[int]:
        if self.epoch < self.first_epoch:  # as accelerate's SeedableRandomSampler
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            return iter(torch.randperm(len(self), generator=generator).tolist())
        draws = np.random.default_rng((self.seed, self.epoch)).random(len(self)) * self.cumulative[-1]
        rows = self.cumulative.searchsorted(draws, side="right").clip(max=len(self) - 1)
        return iter(rows.tolist())
