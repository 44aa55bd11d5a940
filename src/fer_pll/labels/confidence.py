"""Per-sample confidences over the candidate labels, and the rules that revise them during training."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .candidates import check_candidates, check_votes

FORMAT_VERSION = "1"


class Revision(NamedTuple):
    """What one call of `ConfidenceTable.revise` did to the B rows of its batch.

    An index that stands twice in the batch counts where it stands first; its repetitions are neither `revised` nor
    `ambiguous`. Take statistics over the ambiguous rows: a one-hot row has nothing left to revise.
    """

    revised: Tensor  # (B,) bool: the row's confidence changed
    margin: Tensor  # (B,) float32: v_(1) - v_(2) of Eq. 5
    ambiguous: Tensor  # (B,) bool: the row had more than one label with confidence > 0 before


def revise_paper(confidence: Tensor, logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 5 of the paper: the leading candidate takes all as soon as it leads by more than a threshold.

        v = C * sigmoid(z);   C' = one-hot(argmax v) if v_(1) - v_(2) > threshold else C

    All other entries of a revised row become zero, as the sentence below Eq. 5 says and its formula leaves out. The
    margin is at most max C, that is 1/|Y| for uniform confidences. Of equal leaders the first class leads, but their
    margin is 0, which never exceeds the threshold. A row whose logits hold NaN stays as it is, with margin NaN.

    Args:
        confidence: C, float32 (B, K), rows >= 0 with sum 1.
        logits: z, (B, K), any float type; used detached and in float32, also under autocast.
        threshold: 0 <= threshold < 1.

    Returns:
        C' (B, K) float32 and the margins (B,) float32.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"revision_threshold must lie in [0, 1), got {threshold}")
    response = confidence * torch.sigmoid(logits.detach().float())
    largest, second = response.topk(2, dim=1).values.unbind(dim=1)
    margin = largest - second
    one_hot = torch.zeros_like(confidence).scatter_(1, response.argmax(dim=1, keepdim=True), 1.0)
    return torch.where((margin > threshold)[:, None], one_hot, confidence), margin


def maximum_margin(confidence: Tensor) -> Tensor:
    """Upper bound (N,) of the margin of Eq. 5 for each row of confidences (N, K): 1/|Y| where they are uniform.

    v_(1) - v_(2) = C_(1) sigmoid(z_1) - v_(2) <= max C, since 0 <= sigmoid <= 1.
    """
    return confidence.amax(dim=1)


def warn_if_threshold_cannot_fire(confidence: Tensor, threshold: float) -> None:
    """Warn, with the numbers, about ambiguous rows whose margin can never exceed the threshold of Eq. 5.

    Args:
        confidence: (N, K), as training begins.
        threshold: revision_threshold of the rule `paper`.
    """
    set_size = confidence.count_nonzero(dim=1)
    bound = maximum_margin(confidence)
    dead = (set_size > 1) & (bound <= threshold)
    if not dead.any():
        return
    lines = []
    for size in set_size[dead].unique().tolist():
        rows = set_size == size
        lines.append(
            f"{int((dead & rows).sum()):,} of {int(rows.sum()):,} rows with {size} candidates"
            f" (margins stay below {bound[dead & rows].max():.3f})"
        )
    total, ambiguous = int(dead.sum()), int((set_size > 1).sum())
    warnings.warn(
        f"revision_threshold {threshold:g} can never fire for {total:,} of {ambiguous:,} ambiguous rows: "
        + "; ".join(lines)
        + ". Choose a lower threshold if these rows are to be revised.",
        stacklevel=2,
    )


@dataclass(eq=False)
class ConfidenceTable:
    """The confidence vectors C_i of all N training rows, looked up and revised by row index.

    Invariants: rows are >= 0, sum to 1 and are zero outside the candidate set. A look-up or a revision takes time
    proportional to the batch, whatever N.
    """

    confidence: Tensor  # (N, K) float32
    candidates: Tensor  # (N, K) bool
    revised_epoch: Tensor  # (N,) int32: the epoch that revised the row last, -1 = never
    class_names: tuple[str, ...]
    fingerprint: str

    @classmethod
    def from_candidates(
        cls,
        candidates: ArrayLike,
        class_names: Sequence[str],
        fingerprint: str,
        confidence_init: Literal["uniform", "votes"] = "uniform",
        votes: ArrayLike | None = None,
    ) -> Self:
        """The table at the start of training.

        Args:
            candidates: (N, K) bool, see `candidates.check_candidates`.
            class_names: K names.
            fingerprint: of the data set, see `candidates.dataset_fingerprint`.
            confidence_init: "uniform" is C_i = Y_i / |Y_i| (section 3.3.2); "votes" is the shares of the votes that
                fall inside the candidate set.
            votes: (N, K), used by "votes" only. A candidate without a vote has confidence 0 then, for good.
        """
        allowed = torch.tensor(check_candidates(candidates, len(class_names)))
        weights = allowed.float()
        if confidence_init == "votes":
            if votes is None:
                raise ValueError('confidence_init="votes" needs the votes; pass them or use confidence_init="uniform"')
            votes = torch.from_numpy(check_votes(votes))
            if votes.shape != allowed.shape:
                raise ValueError(
                    f"votes of shape {tuple(votes.shape)} do not match candidates of shape {tuple(allowed.shape)}"
                )
            weights *= votes
        elif confidence_init != "uniform":
            raise ValueError(f'confidence_init must be "uniform" or "votes", got {confidence_init!r}')
        total = weights.sum(dim=1, keepdim=True)
        if not total.all():
            row = int((total[:, 0] == 0).nonzero()[0])
            raise ValueError(f'row {row}: no candidate has a vote; drop the row or use confidence_init="uniform"')
        return cls(
            confidence=weights / total,
            candidates=allowed,
            revised_epoch=torch.full((len(allowed),), -1, dtype=torch.int32),
            class_names=tuple(class_names),
            fingerprint=fingerprint,
        )

    def __len__(self) -> int:
        return len(self.confidence)

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors, in place; returns the table."""
        self.confidence = self.confidence.to(device)
        self.candidates = self.candidates.to(device)
        self.revised_epoch = self.revised_epoch.to(device)
        return self

    def lookup(self, index: Tensor) -> Tensor:
        """Confidences (B, K) float32 of the rows `index` (B,) int64. Raises IndexError outside 0 ... N-1."""
        if index.numel() and not (0 <= index.min() and index.max() < len(self)):
            outside = index[(index < 0) | (index >= len(self))][0]
            raise IndexError(
                f"row index {int(outside)} lies outside the confidence table of {len(self)} rows;"
                " the table and the column `index` belong to different data sets"
            )
        return self.confidence[index]

    @torch.no_grad()
    def revise(self, index: Tensor, logits: Tensor, threshold: float, epoch: int) -> Revision:
        """Revise the rows of a batch from the model's current logits by `revise_paper` (Algorithm 1 of the paper).

        Args:
            index: (B,) int64, rows of the table. Of an index that occurs twice the first occurrence counts, so that
                samples repeated to fill up a batch revise nothing.
            logits: (B, K), detached here.
            threshold: revision_threshold, 0 <= threshold < 1.
            epoch: written to `revised_epoch` of the rows that change.
        """
        confidence = self.lookup(index)
        if logits.shape != confidence.shape:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} do not match {tuple(confidence.shape)} confidences"
            )
        proposal, margin = revise_paper(confidence, logits, threshold)
        ambiguous = _first_occurrences(index) & (confidence.count_nonzero(dim=1) > 1)
        revised = ambiguous & (proposal != confidence).any(dim=1)
        self.confidence[index[revised]] = proposal[revised]
        self.revised_epoch[index[revised]] = epoch
        return Revision(revised, margin, ambiguous)

    def entropy(self) -> Tensor:
        """Entropy of each row in nats, (N,) float32: 0 for a one-hot row, log|Y| for a uniform one."""
        return torch.special.entr(self.confidence).sum(dim=1)

    def labels(self) -> Tensor:
        """Label of the largest confidence of each row, (N,) int64; of equal ones the first in class order."""
        return self.confidence.argmax(dim=1)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file at once or not at all: a process killed meanwhile leaves the former file as it was.

        Class names, fingerprint and format version are in the file's metadata.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".tmp")
        save_file(
            {
                "confidence": self.confidence,
                "candidates": self.candidates,
                "revised_epoch": self.revised_epoch,
            },
            unfinished,
            metadata={
                "format_version": FORMAT_VERSION,
                "class_names": json.dumps(self.class_names),
                "fingerprint": self.fingerprint,
            },
        )
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike, class_names: Sequence[str], fingerprint: str) -> Self:
        """Read a table written by `save`, bit for bit.

        Args:
            path: the file.
            class_names: of the data set that the table is to be used with.
            fingerprint: of that data set.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, is no confidence table, or belongs to other class names or other data.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # cloned, for a tensor mapped from the file would change with it
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or no safetensors file ({error}); use an earlier checkpoint"
            ) from error
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{path} is not a confidence table of format version {FORMAT_VERSION}: {metadata}")
        saved_names = tuple(json.loads(metadata["class_names"]))
        if saved_names != tuple(class_names):
            raise ValueError(
                f"class names differ: {path} holds {saved_names}, the data set {tuple(class_names)};"
                " use the data set that the table was trained on, with its class order, or start a new table"
            )
        if metadata["fingerprint"] != fingerprint:
            raise ValueError(
                f"data set fingerprints differ: {path} holds {metadata['fingerprint']}, the data set {fingerprint}:"
                " rows, their order or their candidate sets are not the same;"
                " use the data set that the table was trained on, or start a new table"
            )
        return cls(**tensors, class_names=saved_names, fingerprint=fingerprint)


def _first_occurrences(index: Tensor) -> Tensor:
    """(B,) bool: False where the same value stands further left."""
    values, order = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[order[1:]] = values[1:] != values[:-1]
    return first
