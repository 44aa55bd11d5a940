"""Candidate sets for images without labels, from the predictions of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data.candidate_sets import add_candidates
from ..data.copies import have_copies
from ..data.dataset import find_split, load_dataset, numpy_column, prepared_features
from ..data.provenance import Provenance
from ..inference.loading import check_device
from ..io.pretrained import load_model_config
from ..io.ranges import check_range
from ..labels.candidates import from_posterior
from ..labels.confidence_table import ConfidenceTable
from ..model.face_answers import class_names
from .teachers import Teacher


@dataclass(frozen=True)
class Proposals:
    """A prepared set with proposed candidate sets.

    Attributes:
        dataset: `train` has the proposed rows, after those of a joined set; other splits are the joined set's.
        proposed: rows with a proposed candidate set.
        left_out: images that were too unsure.
        copies: images that were left out, because the joined set has their pixels.
        set_sizes: number of proposed rows by the size of their candidate set.
    """

    dataset: DatasetDict
    proposed: int
    left_out: int
    copies: int
    set_sizes: dict[int, int]


def propose(
    images: str | Path,
    teachers: Sequence[str],
    join: str | Path | None = None,
    coverage: float = 0.9,
    least: float = 0.0,
    max_candidates: int = 2,
    device: str | None = None,
) -> Proposals:
    """Candidate sets from teachers' predictions, see `labels.candidates.from_posterior`.

    The confidence of a candidate is its share of the probability on the set; on the rows of `join` its share of the
    votes, or equal where there are none. Predictions are the mean over the teachers, each image and its mirror image.

    Args:
        images: folder of a prepared set, whose split `train` gets candidate sets.
        teachers: classifiers with the same classes: folders, `fer-pll-tiny-ferplus` (in the package) or Hub names.
        join: folder of a labeled prepared set that is put before. Images with the pixels of an image in one of its
            splits are left out.
        coverage: share of the probability in a candidate set, 0 < coverage <= 1.
        least: images whose most probable class has less are left out, 0 <= least < 1.
        max_candidates: size of the candidate sets from the votes of `join`.
        device: of the teachers; by default the GPU, if there is one.

    Raises:
        ValueError: teachers and sets do not have the same classes, the joined set has all the images, or no image is
            sure enough.
    """
    check_range("--least", least, "[0, 1)")
    check_range("--coverage", coverage, "(0, 1]")
    check_device(device)
    unlabeled = load_dataset(images, "train")
    rows = unlabeled.select_columns(["image", "row_id"])
    labeled = load_dataset(join) if join is not None else None
    copies = 0
    if labeled is not None:
        names = find_split(labeled, "train", str(join)).features["label"].names
        known = have_copies(rows, labeled.values())
        if known.all():
            raise ValueError(f"--join {join} has all images of {images} already: propose for images that it lacks.")
        copies = int(known.sum())
        rows = rows.select(np.flatnonzero(~known))
    else:
        names = class_names(load_model_config(teachers[0]))
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = [Teacher.load(checkpoint, names, on) for checkpoint in teachers]
    probabilities = torch.stack([teacher.probabilities_of(rows) for teacher in asked]).mean(dim=0).double().numpy()
    sure = probabilities.max(axis=1) >= least
    if not sure.any():
        raise ValueError(
            f"--least {least}: no image of {images} is that sure; the surest has {probabilities.max():.2f}."
        )
    chosen = np.flatnonzero(sure)
    candidates = from_posterior(probabilities[chosen], coverage)
    proposed = _with_columns(rows.select(chosen), names, candidates, probabilities[chosen] * candidates)
    before = Provenance.from_dataset(unlabeled)
    Provenance(
        name=f"{Path(images).resolve().name if before is None else before.title()} with proposed candidate sets",
        split="train",
        kept=len(chosen),
        dropped={"that the teachers were too unsure of": int((~sure).sum()), "copies of a joined image": copies},
        license=None if before is None else before.terms(),
    ).attach(proposed)
    splits = {"train": proposed}
    if labeled is not None:
        first = add_candidates(labeled["train"], max_candidates=max_candidates)
        votes = numpy_column(first, "votes") if "votes" in first.column_names else None
        table = ConfidenceTable.from_candidates(
            numpy_column(first, "candidates"), names, "", "uniform" if votes is None else "votes", votes=votes
        )
        known = _with_columns(first, names, table.candidates.numpy(), table.confidence.numpy(), first["label"])
        splits = dict(labeled) | {"train": concatenate_datasets([known, proposed])}
    sizes, counts = np.unique(candidates.sum(axis=1), return_counts=True)
    set_sizes = {int(size): int(count) for size, count in zip(sizes, counts, strict=True)}
    return Proposals(DatasetDict(splits), len(chosen), int((~sure).sum()), copies, set_sizes)


def _with_columns(
    rows: Dataset, names: list[str], candidates: np.ndarray, weights: np.ndarray, labels: Sequence[int] | None = None
) -> Dataset:
    """`rows` with the label (-1 where there is none), candidates (N, K), and weights (N, K) as confidences."""
    features = prepared_features(names, ["candidates", "confidence"])
    confidence = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    given = np.full(len(rows), -1) if labels is None else np.asarray(labels)
    kept = rows.select_columns(["image", "row_id"])
    for name, values in (("label", given), ("candidates", candidates), ("confidence", confidence)):
        kept = kept.add_column(name, list(values), feature=features[name])
    return kept
