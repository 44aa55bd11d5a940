"""Results of a label audit: how doubtful the label of each row is, and which label is more probable."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from datasets import Dataset

from ..data.dataset import numpy_column
from ..data.row_ids import row_ids
from ..io.terminal import printable_lines
from ..labels.confidence_table import STRUCK_OUT, ConfidenceTable
from ..metrics.classification import accuracy, confusion_matrix
from .label_quality import (
    annotator_confusion,
    believed_labels,
    posterior_given_predictions,
    suspicion,
    training_posterior,
)

_PAIRS = 10  # listed in the summary


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """What is known about the labels of N rows, K classes.

    Args:
        table: the confidences that a run left, with its candidate sets.
        row_ids: N strings.
        votes: (N, K), >= 0: what annotators chose. Where there are no votes, a one for the label; where there is no
            label either, a one for each initial candidate.
        from_votes: whether `votes` are what annotators chose.
        given: (N,) the labels to judge: the column `label`; where it is undefined, the most voted class.
        posterior: (N, K) float64, see `suspicion`.
        num_folds: folds of the cross-validation that the posterior comes from; 0 where it comes from the table.
        true_labels: (N,), -1 = unknown; `None` where none is known.
    """

    table: ConfidenceTable
    row_ids: Sequence[str]
    votes: np.ndarray
    from_votes: bool
    given: np.ndarray
    posterior: np.ndarray
    num_folds: int
    true_labels: np.ndarray | None

    @classmethod
    def from_run_rows(
        cls, dataset: Dataset, table: ConfidenceTable, probabilities: np.ndarray | None = None, num_folds: int = 0
    ) -> Self:
        """From the rows of a run and the confidences that it left.

        Args:
            dataset: N rows, in the order of the table.
            table: the confidences.
            probabilities: out-of-fold predictions (N, K) for the rows, where there are any.
            num_folds: of these predictions.
        """
        candidates = table.candidates.numpy()
        given = numpy_column(dataset, "label").astype(np.int64)
        from_votes = "votes" in dataset.column_names
        if from_votes:
            votes = numpy_column(dataset, "votes")
            votes = np.where(votes.sum(axis=1, keepdims=True) > 0, votes, candidates)  # nobody voted: as without votes
        else:
            votes = np.where((given >= 0)[:, None], np.arange(candidates.shape[1]) == given[:, None], candidates)
        given = np.where(given >= 0, given, votes.argmax(axis=1))
        if probabilities is None:
            posterior = training_posterior(table.confidence.numpy(), votes)
        else:
            posterior = posterior_given_predictions(probabilities, votes).posterior
        truth = numpy_column(dataset, "true_label") if "true_label" in dataset.column_names else None
        return cls(table, row_ids(dataset)[:], votes.astype(np.int64), from_votes, given, posterior, num_folds, truth)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.table.class_names

    @cached_property
    def score(self) -> np.ndarray:
        """Suspicion of each row, (N,), see `suspicion`."""
        return suspicion(self.posterior, self.given)

    @cached_property
    def believed(self) -> np.ndarray:
        """The most probable label, (N,) int64."""
        return believed_labels(self.posterior, self.given)

    @cached_property
    def struck_out(self) -> np.ndarray:
        """(N, K) bool: candidates at the start that have no confidence at the end."""
        return self.table.candidates.numpy() & (self.table.confidence.numpy() < STRUCK_OUT)

    @cached_property
    def order(self) -> np.ndarray:
        """The rows, the most suspicious first; equally suspicious rows keep their order."""
        return np.argsort(-self.score, kind="stable")

    @property
    def source(self) -> str:
        """What judges the rows, in words."""
        if self.num_folds:
            return f"models that have not seen them ({self.num_folds} folds)"
        return "the confidences that their training left"

    def counts(self) -> np.ndarray:
        """Rows by class pair, (K, K) int64: row = given label, column = believed."""
        return confusion_matrix(self.believed, self.given, len(self.class_names))

    def pairs(self) -> list[tuple[int, int, int, float]]:
        """(given, believed, rows, mean suspicion) of the class pairs that differ, the most frequent first."""
        counts = self.counts()
        np.fill_diagonal(counts, 0)
        pairs = sorted(zip(*np.nonzero(counts), strict=True), key=lambda pair: -counts[pair])
        means = {pair: self.score[(self.given == pair[0]) & (self.believed == pair[1])].mean() for pair in pairs}
        return [(int(a), int(b), int(counts[a, b]), float(means[a, b])) for a, b in pairs]

    def annotators(self) -> np.ndarray:
        """What annotators say about the faces that probably show each class, (K, K), see `annotator_confusion`."""
        return annotator_confusion(self.posterior, self.votes)

    def __str__(self) -> str:
        """The summary for the console."""
        names, pairs = self.class_names, self.pairs()
        width = max(map(len, (*names, "believed")))
        differ = sum(rows for _, _, rows, _ in pairs)
        number = len(self.given)
        lines = [
            f"{number:,} rows, judged by {self.source}",
            f"{differ:,} ({differ / number:.1%}) are believed to have another label than the given one",
        ]
        if not self.num_folds:
            revised = int((self.table.revised_epoch >= 0).sum())
            if not revised:
                lines.append(
                    "no row was revised in the training, so its confidences are still those that it began with: they "
                    "say nothing about wrong labels. Train longer, with an earlier or easier revision "
                    "(--revision_warmup, --revision_threshold), or let --cross-validate judge the rows"
                )
            alone = int((self.table.candidates.sum(dim=1) == 1).sum())
            lines.append(
                f"{alone:,} rows have one candidate, which a run never doubts: --cross-validate judges them too"
            )
        if self.true_labels is not None and (known := self.true_labels >= 0).any():
            truth = self.true_labels[known]
            before, after = accuracy(self.given[known], truth), accuracy(self.believed[known], truth)
            known_labels = f"({len(truth):,} known labels)"
            lines.append(f"label recovery: {before:.1%} as given, {after:.1%} as believed {known_labels}")
        if pairs:
            lines += ["", f"{'given':<{width}}    {'believed':<{width}} {'rows':>8}  mean suspicion"]
        for given, believed, rows, score in pairs[:_PAIRS]:
            lines.append(f"{names[given]:<{width}} -> {names[believed]:<{width}} {rows:>8,}  {score:.2f}")
        if len(pairs) > _PAIRS:
            lines.append(f"and {len(pairs) - _PAIRS} more pairs")
        if self.from_votes:
            shares = self.annotators()
            np.fill_diagonal(shares, 0)
            lines += ["", f"{'the face shows':<{max(width, 14)}}    {'annotators say':<{width}}  share of their votes"]
            for place in np.argsort(-shares, axis=None, kind="stable")[:_PAIRS]:
                shown, said = np.unravel_index(place, shares.shape)
                lines.append(
                    f"{names[shown]:<{max(width, 14)}} -> {names[said]:<{max(width, 14)}}  {shares[shown, said]:.1%}"
                )
        return printable_lines(lines)

    def columns(self) -> dict[str, type]:
        """The columns of the table, with their types.

        `candidates` and `struck_out` are names with `|` between them; a `|` or backslash in a name has a backslash
        before it. `believed` is the most probable label: only a model says so.
        """
        columns = {"row_id": str, "index": int, "suspicion": float, "given": str, "believed": str}
        columns |= {"candidates": str, "struck_out": str, "revised_epoch": int}
        if self.true_labels is not None:
            columns["true_label"] = str
        for kind, number in self._numbers():
            columns |= {f"{kind}_{name}": int if number.dtype.kind == "i" else float for name in self.class_names}
        return columns

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the table, the most suspicious first."""
        names, epochs = np.array(self.class_names), self.table.revised_epoch.tolist()
        candidates = self.table.candidates.numpy()
        for i in self.order.tolist():
            row = {"row_id": self.row_ids[i], "index": i, "suspicion": round(float(self.score[i]), 6)}
            row |= {"given": str(names[self.given[i]]), "believed": str(names[self.believed[i]])}
            row |= {"candidates": _joined(names[candidates[i]]), "struck_out": _joined(names[self.struck_out[i]])}
            row["revised_epoch"] = epochs[i] if epochs[i] >= 0 else None
            if self.true_labels is not None:
                row["true_label"] = str(names[self.true_labels[i]]) if self.true_labels[i] >= 0 else None
            for kind, numbers in self._numbers():
                values = numbers[i].round(6).tolist()
                row |= {f"{kind}_{name}": value for name, value in zip(self.class_names, values, strict=True)}
            yield row

    def _numbers(self) -> list[tuple[str, np.ndarray]]:
        """The groups of columns that the table has for each class."""
        numbers = [("votes", self.votes)] if self.from_votes else []
        numbers.append(("confidence", self.table.confidence.double().numpy()))
        return [*numbers, ("belief", self.posterior)] if self.num_folds else numbers


def _joined(names: Iterable[str]) -> str:
    return "|".join(name.replace("\\", "\\\\").replace("|", "\\|") for name in names)
