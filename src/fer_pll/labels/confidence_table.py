"""Per-sample confidences over the candidate labels, and the rules that revise them during training."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io.atomic import whole_file
from ..io.errors import DataError
from ..io.stored import reading, sort_header
from .candidates import check_candidates, check_votes
from .revision import RevisionRule, find_rule, response_margin, uniform_confidence

FORMAT_VERSION = "1"
_CHUNK_ROWS = 65_536  # loops over all rows take so many at a time, which avoids a second table in memory

STRUCK_OUT = 0.01
"""A candidate with a confidence below this counts as struck out."""


class Revision(NamedTuple):
    """What one call of `ConfidenceTable.revise` did to the B rows of its batch.

    Of an index that occurs twice in the batch the first occurrence counts; its repetitions are neither `revised` nor
    `ambiguous`. Take statistics over the ambiguous rows: a decided row has nothing left to revise.
    """

    revised: Tensor  # (B,) bool: the row's confidence changed
    margin: Tensor  # (B,) float32: v_(1) - v_(2) of Eq. 5
    ambiguous: Tensor  # (B,) bool: the row had more than one label left to choose from


def warn_if_threshold_cannot_fire(
    table: "ConfidenceTable", rule: str | RevisionRule, threshold: float | None = None, reversible: bool = False
) -> None:
    """Warn, with the numbers, about ambiguous rows whose margin can never exceed the threshold of Eq. 5.

    Args:
        table: as the run starts.
        rule: name in `REVISION_RULES`, or a rule; a rule without a `bound` gives no warning.
        threshold: of the rule; its default if not given.
        reversible: whether rows are revised from their initial candidates.
    """
    rule = find_rule(rule)
    if rule.bound is None or rule.setting is None:
        return
    threshold = rule.setting.value({rule.setting.name: threshold})
    num_classes = len(table.class_names)
    rows, dead = torch.zeros(2, num_classes + 1, dtype=torch.int64).unbind()
    highest = torch.zeros(num_classes + 1)
    for part in table.chunks():
        confidence = uniform_confidence(table.candidates[part]) if reversible else table.confidence[part]
        set_size, bound = confidence.count_nonzero(dim=1).cpu(), rule.bound(confidence).cpu()
        cannot = bound <= threshold
        rows += set_size.bincount(minlength=num_classes + 1)
        dead += set_size[cannot].bincount(minlength=num_classes + 1)
        highest.scatter_reduce_(0, set_size[cannot], bound[cannot], "amax")
    rows[:2] = dead[:2] = 0  # with one label there is nothing to revise
    if not dead.any():
        return
    lines = [
        f"{int(dead[size]):,} of {int(rows[size]):,} rows with {size} candidates"
        f" (margins stay below {highest[size]:.3f})"
        for size in dead.nonzero()[:, 0].tolist()
    ]
    warnings.warn(
        f"{rule.setting.name} {threshold:g} can never fire for {int(dead.sum()):,} of {int(rows.sum()):,} ambiguous"
        " rows: " + "; ".join(lines) + ". Choose a lower threshold if these rows are to be revised.",
        stacklevel=2,
    )


@dataclass(eq=False)
class ConfidenceTable:
    """The confidence vectors C_i of all N training rows, looked up and revised by row index.

    Invariants: rows are >= 0, sum to 1 and are zero outside the candidate set. The time of a look-up or a revision
    depends on the batch, not on N. The time of `summary` is constant, because `write` keeps its figures up to date.
    The table takes 5 K + 4 bytes a row; loops over all rows work in parts.
    """

    confidence: Tensor  # (N, K) float32
    candidates: Tensor  # (N, K) bool
    revised_epoch: Tensor  # (N,) int32: the last epoch that revised the row, -1 = never
    class_names: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        self.true_labels: Tensor | None = None
        self._count()

    @classmethod
    def from_candidates(
        cls,
        candidates: Iterable[ArrayLike],
        class_names: Sequence[str],
        fingerprint: str,
        confidence_init: Literal["uniform", "votes", "column"] = "uniform",
        votes: ArrayLike | None = None,
        confidence: ArrayLike | None = None,
        votes_temperature: float = 1.0,
    ) -> Self:
        """The table at the start of a run.

        Args:
            candidates: (N, K) bool, see `candidates.check_candidates`.
            class_names: K names.
            fingerprint: of the data set, see `candidates.dataset_fingerprint`.
            confidence_init: "uniform" is C_i = Y_i / |Y_i| (section 3.3.2); "votes" is each candidate's share of the
                votes inside the candidate set; "column" is `confidence`, as an earlier run left it.
            votes: (N, K), used by "votes" only. A candidate without a vote then has confidence 0 for the whole run.
            confidence: (N, K), used by "column" only: rows >= 0 with sum 1, zero outside the candidates.
            votes_temperature: T > 0, used by "votes" only: the shares v_i become v_i^(1/T) / sum_j v_j^(1/T). Below 1
                they lean to the label with most votes (the sharpening of MixMatch, Berthelot et al., 2019, Eq. 7).
        """
        allowed = torch.tensor(check_candidates(candidates, len(class_names)))
        weights: np.ndarray | None = None
        if confidence_init == "votes":
            if votes is None:
                raise ValueError('confidence_init="votes" needs the votes; pass them or use confidence_init="uniform"')
            weights = check_votes(votes)
            if votes_temperature != 1 and weights.shape == allowed.shape:
                weights = np.where(allowed.numpy(), weights, 0)
                most = weights.max(axis=1, keepdims=True)
                weights = (weights / np.where(most > 0, most, 1)) ** (1 / votes_temperature)
        elif confidence_init == "column":
            if confidence is None:
                raise ValueError('confidence_init="column" needs confidences; pass them or use another start')
            weights = check_confidence(confidence, allowed)
        elif confidence_init != "uniform":
            raise ValueError(f'confidence_init must be "uniform", "votes" or "column", got {confidence_init!r}')
        if weights is not None and weights.shape != allowed.shape:
            raise ValueError(
                f"{confidence_init} of shape {tuple(weights.shape)} do not match candidates of shape"
                f" {tuple(allowed.shape)}"
            )
        start = torch.empty(allowed.shape)
        for part in _chunks(len(allowed)):
            inside = allowed[part].float()
            if weights is not None:
                inside *= torch.from_numpy(weights[part])
            total = inside.sum(dim=1, keepdim=True)
            if not total.all():
                row = part.start + int((total[:, 0] == 0).nonzero()[0])
                raise ValueError(f'row {row}: no candidate has a vote; drop the row or use confidence_init="uniform"')
            start[part] = inside if confidence_init == "column" else inside / total  # a column keeps its exact bits
        return cls(
            confidence=start,
            candidates=allowed,
            revised_epoch=torch.full((len(allowed),), -1, dtype=torch.int32),
            class_names=tuple(class_names),
            fingerprint=fingerprint,
        )

    def __len__(self) -> int:
        return len(self.confidence)

    def chunks(self) -> Iterator[slice]:
        """Slices that cover all rows, in parts that need little memory."""
        return _chunks(len(self))

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors, in place; returns the table."""
        for name in ("confidence", "candidates", "revised_epoch", "true_labels", "_totals"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).to(device))
        return self

    def set_true_labels(self, true_labels: ArrayLike | None) -> None:
        """Make `summary` report the label recovery. True labels (N,), -1 = unknown; nothing else uses them."""
        if true_labels is not None:
            true_labels = torch.as_tensor(true_labels, device=self.confidence.device).to(torch.int16)
        self.true_labels = true_labels
        self._count()

    def lookup(self, index: Tensor) -> Tensor:
        """Confidences (B, K) float32 of the rows `index` (B,) int64. Raises IndexError outside 0 ... N-1."""
        if index.numel() and not (index.min() >= 0 and index.max() < len(self)):
            outside = index[(index < 0) | (index >= len(self))][0]
            raise IndexError(
                f"row index {int(outside)} lies outside the confidence table of {len(self)} rows;"
                " the table belongs to another data set"
            )
        return self.confidence[index]

    @torch.no_grad()
    def revise(
        self,
        index: Tensor,
        logits: Tensor,
        epoch: int,
        rule: str | RevisionRule = "margin",
        value: float | None = None,
        reversible: bool = False,
    ) -> Revision:
        """Revise the rows of a batch from the model's current logits (Algorithm 1 of the paper).

        Args:
            index: (B,) int64, rows of the table. Of an index that occurs twice the first occurrence counts, so that
                samples repeated to fill up a batch revise nothing.
            logits: (B, K), detached here.
            epoch: written to `revised_epoch` of the rows that change.
            rule: name in `REVISION_RULES`, or a rule.
            value: of the rule's setting; its default if not given.
            reversible: revise from the initial candidates, C = Y / |Y|, instead of the last C, so that no decision is
                final.

        Raises:
            IndexError: an index lies outside the table.
            ValueError: logits of another shape, an unknown rule, or a value outside its range.
        """
        rule = find_rule(rule)
        confidence = self.lookup(index)
        if logits.shape != confidence.shape:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} do not match {tuple(confidence.shape)} confidences"
            )
        candidates = self.candidates[index]
        labels_left = confidence if rule.final and not reversible else candidates
        ambiguous = first_occurrences(index) & (labels_left.count_nonzero(dim=1) > 1)
        if rule.response is None:
            return Revision(torch.zeros_like(ambiguous), torch.full_like(confidence[:, 0], torch.nan), ambiguous)
        before = uniform_confidence(candidates) if reversible else confidence
        proposal, response = rule.revise(before, candidates, logits, value)
        margin = response_margin(response)
        # A row whose logits hold NaN stays unchanged, also with `reversible`.
        revised = ambiguous & (proposal != confidence).any(dim=1) & ~margin.isnan()
        self.write(index[revised], proposal[revised], epoch)
        return Revision(revised, margin, ambiguous)

    @torch.no_grad()
    def write(self, index: Tensor, confidence: Tensor, epoch: int) -> None:
        """Replace the confidences of the rows `index` (B,), each of which occurs once, by others (B, K).

        The caller keeps the invariants. `revised_epoch` of the rows becomes `epoch`.
        """
        self._totals -= self._totals_of(index)
        self.confidence[index] = confidence
        self.revised_epoch[index] = epoch
        self._totals += self._totals_of(index)

    def summary(self) -> dict[str, float]:
        """Progress of the disambiguation, in time that does not depend on N.

        `revised_fraction`: of the rows with more than one candidate, the share that was ever revised.
        `confidence_entropy`: mean entropy of all rows in nats. `label_recovery`, if true labels were set: see
        `metrics.classification.label_recovery`.
        """
        revised, entropy, recovered = self._totals.clamp(min=0).tolist()  # a sum of zeros may round to below zero
        figures = {"revised_fraction": revised / max(self.num_ambiguous, 1), "confidence_entropy": entropy / len(self)}
        if self.true_labels is not None:
            figures["label_recovery"] = recovered / max(self._num_known, 1)
        return figures

    def _totals_of(self, rows: Tensor | slice) -> Tensor:
        """(3,) float64: for some rows, how many were revised, the sum of entropies, how many labels are right."""
        confidence = self.confidence[rows]
        totals = [(self.revised_epoch[rows] >= 0).sum(), torch.special.entr(confidence.double()).sum()]
        if self.true_labels is None:
            totals.append(torch.zeros_like(totals[0]))
        else:
            totals.append((confidence.argmax(dim=1) == self.true_labels[rows]).sum())
        return torch.stack([total.double() for total in totals])

    def _count(self) -> None:
        self._totals = torch.zeros(3, dtype=torch.float64, device=self.confidence.device)
        self.num_ambiguous = self._num_known = 0
        for part in self.chunks():
            self._totals += self._totals_of(part)
            self.num_ambiguous += int((self.candidates[part].sum(dim=1) > 1).sum())
            if self.true_labels is not None:
                self._num_known += int((self.true_labels[part] >= 0).sum())

    def entropy(self) -> Tensor:
        """Entropy of each row in nats, (N,) float32: 0 for a one-hot row, log|Y| for a uniform one."""
        return torch.cat([torch.special.entr(self.confidence[part]).sum(dim=1) for part in self.chunks()])

    def labels(self) -> Tensor:
        """Label with the largest confidence of each row, (N,) int64; among equals, the first in class order."""
        return self.confidence.argmax(dim=1)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all (see `io.atomic.whole_file`).

        Class names, fingerprint and format version are in the file's metadata.
        """
        tensors = {name: getattr(self, name) for name in ("confidence", "candidates", "revised_epoch")}
        metadata = {
            "format_version": FORMAT_VERSION,
            "class_names": json.dumps(self.class_names),
            "fingerprint": self.fingerprint,
        }
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished, metadata)
            sort_header(unfinished)

    @classmethod
    def check(cls, path: str | os.PathLike, class_names: Sequence[str], fingerprint: str) -> None:
        """Raise the errors of `load` if a file does not belong to a data set; reads the file's header only."""
        with _open_table(path) as (_, names, of_data):
            _check_belongs(path, names, of_data, class_names, fingerprint)

    @classmethod
    def load(
        cls, path: str | os.PathLike, class_names: Sequence[str] | None = None, fingerprint: str | None = None
    ) -> Self:
        """Read a table written by `save`, bit for bit.

        Args:
            path: the file.
            class_names: of the data set for the table; if not given, those in the file are accepted.
            fingerprint: of that data set; if not given, that in the file is accepted.

        Raises:
            DataError: there is no such file, it is damaged, is no confidence table, or belongs to other class names or
                other data.
        """
        with _open_table(path) as (file, names, of_data):
            _check_belongs(path, names, of_data, class_names, fingerprint)
            tensors = {name: _read_tensor(file, name) for name in _TENSORS}
            for part in _chunks(len(tensors["confidence"])):
                if not (tensors["confidence"][part] >= 0).all():  # NaN is not either
                    raise ValueError("a confidence is negative or NaN")
        return cls(**tensors, class_names=names, fingerprint=of_data)


_ADVICE = "use an earlier checkpoint, or train the run again"
_TENSORS = {"confidence": torch.float32, "candidates": torch.bool, "revised_epoch": torch.int32}


@contextmanager
def _open_table(path: str | os.PathLike) -> Iterator[tuple[safe_open, tuple[str, ...], str]]:
    """The open file of a table, its class names and its fingerprint, once they and all shapes are known to be right.

    Raises:
        DataError: they are not, or the file is no safetensors file, or the code in the block cannot read it.
    """
    with reading(path, _ADVICE), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path} is not a confidence table of format version {FORMAT_VERSION}: {metadata}")
        names = json.loads(metadata["class_names"])
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names are no list of names")
        if set(file.keys()) != set(_TENSORS):
            raise ValueError(f"it holds {', '.join(sorted(file.keys()))} where {', '.join(_TENSORS)} should be")
        num_rows = (file.get_slice("revised_epoch").get_shape() or [0])[0]
        for name, kind in _TENSORS.items():
            stored = file.get_slice(name)
            right = [num_rows] if name == "revised_epoch" else [num_rows, len(names)]
            if stored.get_shape() != right or not num_rows or stored[:1].dtype != kind:
                found = f"{stored.get_dtype()} of shape {stored.get_shape()}"
                raise ValueError(f"{name} is {found} where {kind} of shape {right} should be")
        yield file, tuple(names), metadata["fingerprint"]


def _check_belongs(
    path: str | os.PathLike,
    saved_names: tuple[str, ...],
    saved_fingerprint: str,
    class_names: Sequence[str] | None,
    fingerprint: str | None,
) -> None:
    if class_names is not None and saved_names != tuple(class_names):
        raise DataError(
            f"class names differ: {path} holds {saved_names}, the data set {tuple(class_names)};"
            " use the data set that the table was trained on, with its class order, or start a new table"
        )
    if fingerprint is not None and saved_fingerprint != fingerprint:
        raise DataError(
            f"data set fingerprints differ: {path} holds {saved_fingerprint}, the data set {fingerprint}:"
            " rows, their order or their candidate sets are not the same;"
            " use the data set that the table was trained on, or start a new table"
        )


def _read_tensor(file: safe_open, name: str) -> Tensor:
    """A tensor of the file, copied part by part: a tensor mapped from the file would change with the file."""
    stored = file.get_slice(name)
    shape = stored.get_shape()
    tensor = torch.empty(shape, dtype=stored[:1].dtype)
    for part in _chunks(shape[0]):
        tensor[part] = stored[part.start : part.stop]
    return tensor


def check_confidence(confidence: ArrayLike, candidates: Tensor) -> np.ndarray:
    """Confidences as float32 (N, K).

    Raises ValueError naming the first row that is negative, is not a distribution, or is not zero outside its
    candidates.
    """
    confidence = np.asarray(confidence, dtype=np.float32)
    if confidence.shape != tuple(candidates.shape):
        return confidence  # the caller reports the shape
    for part in _chunks(len(confidence)):
        rows, allowed = confidence[part], candidates[part].numpy()
        sound = (rows >= 0).all(axis=1) & (abs(rows.sum(axis=1) - 1) < 1e-4) & ~(rows * ~allowed).any(axis=1)
        if not sound.all():
            row = part.start + int(np.flatnonzero(~sound)[0])
            raise ValueError(
                f"confidence row {row} ({', '.join(f'{entry:g}' for entry in confidence[row])}) must be >= 0, sum to 1"
                " and be zero outside the row's candidates; use the confidences that belong to these candidate sets"
            )
    return confidence


def _chunks(num_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK_ROWS, num_rows)) for start in range(0, num_rows, _CHUNK_ROWS))


def first_occurrences(index: Tensor) -> Tensor:
    """(B,) bool: False where the same value occurs further left."""
    values, order = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[order[1:]] = values[1:] != values[:-1]
    return first
