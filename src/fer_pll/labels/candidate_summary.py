"""Sizes and contents of the candidate sets at the start of a run."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from ..io.terminal import printable_lines
from .confidence_table import ConfidenceTable
from .revision import RevisionRule, find_rule


@dataclass(frozen=True, eq=False)
class CandidateSummary:
    """Sizes of the candidate sets, and what they hold; K classes.

    Args:
        class_names: K names.
        rows: (K + 1,) rows by the size of their set; the first is 0.
        margins: (K + 1,) by the size, the largest margin of Eq. 5 that a row could reach with its first confidences. A
            threshold that is not below it never fires. NaN where there is no such row, or the rule has no bound.
        alone: (K,) rows that have the class as their only candidate.
        among: (K,) rows that have the class as one of several candidates.
        share: (K,) share of each class in the first confidences.
        ties: rows with more than `max_candidates` labels, because the last ones tie; `None` where votes did not make
            the sets.
    """

    class_names: tuple[str, ...]
    rows: np.ndarray
    margins: np.ndarray
    alone: np.ndarray
    among: np.ndarray
    share: np.ndarray
    ties: int | None

    @classmethod
    def from_table(
        cls, table: ConfidenceTable, max_candidates: int | None = None, rule: str | RevisionRule = "margin"
    ) -> Self:
        """Summarize a confidence table at the start of a run.

        Args:
            table: as the run starts.
            max_candidates: as it was given when the sets were made from votes; else `None`.
            rule: name of the revision rule, or the rule; it gives the margins.
        """
        bound = find_rule(rule).bound
        num_classes = len(table.class_names)
        rows = torch.zeros(num_classes + 1, dtype=torch.int64)
        margins = torch.full((num_classes + 1,), -torch.inf)
        alone, among = torch.zeros(2, num_classes, dtype=torch.int64).unbind()
        share = torch.zeros(num_classes, dtype=torch.float64)
        for part in table.chunks():
            candidates, confidence = table.candidates[part].cpu(), table.confidence[part].cpu()
            sizes = candidates.sum(dim=1)
            rows += sizes.bincount(minlength=num_classes + 1)
            if bound is not None:
                margins.scatter_reduce_(0, sizes, bound(confidence), "amax")
            alone += candidates[sizes == 1].sum(dim=0)
            among += candidates[sizes > 1].sum(dim=0)
            share += confidence.double().sum(dim=0)
        margins[margins == -torch.inf] = torch.nan
        return cls(
            class_names=table.class_names,
            rows=rows.numpy(),
            margins=margins.numpy(),
            alone=alone.numpy(),
            among=among.numpy(),
            share=(share / len(table)).numpy(),
            ties=None if max_candidates is None else int(rows[max_candidates + 1 :].sum()),
        )

    def __str__(self) -> str:
        """A table for the console."""
        total = self.rows.sum()
        sizes = np.arange(len(self.rows))
        lines = [
            f"{total:,} candidate sets of {(sizes * self.rows).sum() / total:.2f} labels on average; "
            f"{self.rows[1] / total:.1%} have one label only"
            + (f", {self.ties:,} are larger because of ties" if self.ties else ""),
            f"{'labels':>10} {'rows':>10}  {'share':>6}"
            + ("" if np.isnan(self.margins).all() else "  margin stays below"),
        ]
        for size in np.flatnonzero(self.rows):
            margin = "" if size == 1 or np.isnan(self.margins[size]) else f"{self.margins[size]:.3f}"
            lines.append(f"{size:>10} {self.rows[size]:>10,}  {self.rows[size] / total:6.1%}  {margin}".rstrip())
        width = max(10, *map(len, self.class_names))
        lines.append(f"{'class':>{width}} {'alone':>10} {'among several':>14}  share of the confidences")
        for name, alone, among, share in zip(self.class_names, self.alone, self.among, self.share, strict=True):
            lines.append(f"{name:>{width}} {alone:>10,} {among:>14,}  {share:.1%}")
        return printable_lines(lines)
