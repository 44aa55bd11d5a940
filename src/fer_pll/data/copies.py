"""Copies of images in a data set: the same pixels, or the same photograph in another shape.

The other shapes are those in which copies come about: compressed again, resized, mirrored, brighter or darker, cropped
a little. A copy of an evaluation image among the training images makes every figure of the evaluation too good.

How near copies are found:

1. Each image is reduced to a gray thumbnail of 24 x 24 pixels. Its low frequencies (the 120 with a radius below 12 of
   its discrete cosine transform, without the mean) are multiplied by their radius. That takes away what all faces have
   in common, because the power of photographs falls with the frequency. Scaled to length 1, they describe the image.
   Brightness and contrast do not change them, and mirroring changes the sign of every other one.
2. Descriptions are sorted into clusters, and each is compared with those in the clusters nearest to it, also mirrored
   and enlarged by a twentieth. Pairs with a cosine above `_CANDIDATE` are candidates.
3. For each candidate, one thumbnail and then the other is cropped at 18 places by up to a tenth. The largest cosine of
   all is the pair's similarity. From `SIMILAR` on they are copies.

`train_scripts/benchmark.py copies` measures what is found, and how long it takes.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage
from scipy.fft import dct

from ..io.errors import DataError
from ..io.images import ImageError, open_image
from ..io.terminal import printable
from .row_ids import row_ids

SIMILAR = 0.9
"""Smallest similarity of copies. Chosen on FER+, by looking at pairs: 140 drawn from all above are the same
photograph, as are all but about two of 140 from 0.9 to 0.915; of those between 0.84 and 0.86 half are not."""

DROP_COPIES = ("exact", "near", "none")
"""Which copies are left out of the training split."""

_SIDE = 24
_FREQUENCIES = 12
_CANDIDATE = 0.7
_FLAT = 2.0  # standard deviation of a thumbnail, in gray levels, below which it shows nothing to compare
_ENLARGED = (0.95, 0.5, 0.5)
_CROPS = [(size, top, left) for size in (0.95, 0.9) for top in (0, 0.5, 1) for left in (0, 0.5, 1)]
_CLUSTER = 256  # descriptions
_PROBES = 8  # clusters that a description is compared with
_MOST = 8  # copies that are listed of a row: the most similar in evaluation, and the most similar in training
_BLOCK = 4096
_BUFFER = 4_000_000  # candidates, before they are reduced to `_MOST` of a row


class Copy(NamedTuple):
    """A row whose image is a copy of another row's image.

    Args:
        row_id, split: the copy: of the two the one in training, else the later one.
        copy_of, copy_of_split: the other row.
        kind: `exact` (the same size and the same pixels, once decoded), `near` or `mirrored`.
        distance: 1 - similarity, 0 for the same pixels.
    """

    row_id: str
    split: str
    copy_of: str
    copy_of_split: str
    kind: str
    distance: float


@dataclass(frozen=True)
class Fingerprints:
    """What copies of N images are found by.

    Args:
        row_ids: N names.
        digests: uint8 (N, 16), equal for equal pixels.
        thumbnails: uint8 (N, 24, 24), gray.
        is_row: bool (N,); False for images that rows are compared with, but that are no rows of the set.
    """

    row_ids: Sequence[str]
    digests: np.ndarray
    thumbnails: np.ndarray
    is_row: np.ndarray

    @classmethod
    def of_images(cls, images: Sequence[tuple[str, "Fingerprint", bool]]) -> "Fingerprints":
        """From (row_id, fingerprint, is_row) of each image."""
        return cls(
            [row_id for row_id, _, _ in images],
            np.frombuffer(b"".join(each.digest for _, each, _ in images), np.uint8).reshape(-1, 16),
            np.frombuffer(b"".join(each.thumbnail for _, each, _ in images), np.uint8).reshape(-1, _SIDE, _SIDE),
            np.array([is_row for _, _, is_row in images], dtype=bool),
        )

    def save(self, path: Path) -> None:
        """Write them to an .npz file."""
        with path.open("wb") as stream:
            np.savez(
                stream,
                row_ids=np.array(self.row_ids, dtype=str),
                digests=self.digests,
                thumbnails=self.thumbnails,
                is_row=self.is_row,
            )

    @classmethod
    def load(cls, path: Path) -> "Fingerprints":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["row_ids"].tolist(), stored["digests"], stored["thumbnails"], stored["is_row"])


class Fingerprint(NamedTuple):
    """What copies of one image are found by: 16 bytes of a digest of its pixels, and 24 * 24 bytes of a thumbnail."""

    digest: bytes
    thumbnail: bytes


def fingerprint(image: PILImage.Image) -> Fingerprint:
    """The fingerprint of an image as `open_image` returns it (RGB)."""
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    thumbnail = image.convert("L").resize((_SIDE, _SIDE), PILImage.Resampling.BILINEAR)
    return Fingerprint(digest.digest(), thumbnail.tobytes())


def find_copies(dataset: Dataset | Mapping[str, Dataset]) -> list[Copy]:
    """The copies among the images of a data set, within its splits and across them.

    A row has one entry for the first row with the same pixels. Among the first rows, each has entries for its most
    similar copies, at most eight in the evaluation splits and eight in `train`. Images without any contrast have exact
    copies only. An image that cannot be read is left out, with a warning.

    For N images, memory is about 2 kB times N, and the time less than that of reading them.

    Args:
        dataset: splits by name, or one split, which is then named `train`. They need a column `image`. Rows are named
            by `data.row_ids.row_ids`. All splits but `train` are for evaluation.

    Returns:
        the copies, ready for `pandas.DataFrame(copies)`; those in evaluation splits first.

    Raises:
        DataError: `dataset` is none, or a split has no column `image`.
    """
    splits = {"train": dataset} if isinstance(dataset, Dataset) else dataset
    if not (isinstance(splits, Mapping) and all(isinstance(rows, Dataset) for rows in splits.values())):
        raise DataError(f"dataset is {str(dataset)[:80]!r}: give data sets, as load_dataset returns them")
    return Copies.among({split: [_fingerprints(rows, split)] for split, rows in splits.items()}).listed()


def have_copies(rows: Dataset, others: Iterable[Dataset]) -> np.ndarray:
    """Which images, bool (N,), have the very pixels of an image of other splits. Unreadable images have none."""
    known = {found.digest for other in others for _, found in _read(other) if isinstance(found, Fingerprint)}
    return np.array([isinstance(found, Fingerprint) and found.digest in known for _, found in _read(rows)], dtype=bool)


def _fingerprints(rows: Dataset, split: str) -> Fingerprints:
    if "image" not in rows.column_names:
        raise DataError(f"split {split!r} has no column 'image'; it has {', '.join(rows.column_names)}")
    found, problems = [], []
    for row_id, print_or_problem in _read(rows):
        if isinstance(print_or_problem, Fingerprint):
            found.append((row_id, print_or_problem, True))
        else:
            problems.append(f"{row_id}: {print_or_problem}")
    if problems:
        warnings.warn(
            f"{len(problems)} images of {split} cannot be compared; the first: {printable(problems[0])}", stacklevel=3
        )
    return Fingerprints.of_images(found)


def _read(rows: Dataset) -> Iterator[tuple[str, Fingerprint | ImageError]]:
    """The name of each row, and the fingerprint of its image, or why it cannot be read."""
    images = rows.select_columns("image").with_format(None)
    if isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image(decode=False))
    for row_id, row in zip(row_ids(rows), images, strict=True):
        image = row["image"]
        try:
            if isinstance(image, dict):
                image = image["path"] if image["bytes"] is None else image["bytes"]
            yield row_id, fingerprint(open_image(image))
        except ImageError as error:
            yield row_id, error


@dataclass(frozen=True)
class Copies:
    """Pairs of copies among N images, which are numbered with those for evaluation first.

    Args:
        names: (split, row_id) of each image.
        evaluation: number of images for evaluation; numbers from there on are training images.
        is_row: bool (N,), see `Fingerprints`.
        original: int (N,): for each image, the first with the same pixels; often itself.
        pairs: int (P, 2): (copy, the earlier image that it is a near copy of), in ascending order.
        mirrored: bool (P,).
        similarity: float (P,), 0 to 1.
    """

    names: Sequence[tuple[str, str]]
    evaluation: int
    is_row: np.ndarray
    original: np.ndarray
    pairs: np.ndarray
    mirrored: np.ndarray
    similarity: np.ndarray

    @classmethod
    def among(cls, splits: Mapping[str, Iterable[Fingerprints]]) -> "Copies":
        """Finds the copies among the images of all splits, whose fingerprints come in parts.

        Every split but `train` is for evaluation.
        """
        names: list[tuple[str, str]] = []
        first: dict[bytes, int] = {}
        original: list[int] = []
        is_row: list[bool] = []
        thumbnails = bytearray()  # it grows without a second copy
        evaluation = 0
        for split in sorted(splits, key=lambda split: split == "train"):
            for part in splits[split]:
                names += [(split, row_id) for row_id in part.row_ids]
                for digest in part.digests:
                    original.append(first.setdefault(digest.tobytes(), len(original)))
                is_row += part.is_row.tolist()
                thumbnails += part.thumbnails.tobytes()
            evaluation = evaluation if split == "train" else len(names)
        del first
        originals = np.array(original, dtype=np.int64)
        unique = np.flatnonzero(originals == np.arange(len(originals)))
        images = np.frombuffer(thumbnails, np.uint8).reshape(-1, _SIDE, _SIDE)
        if len(unique) < len(images):
            images = images[unique]
            del thumbnails
        pairs, mirrored, similarity = _near_copies(images, int((unique < evaluation).sum()))
        return cls(names, evaluation, np.array(is_row, dtype=bool), originals, unique[pairs], mirrored, similarity)

    def listed(self) -> list[Copy]:
        """All pairs, in the order of the copies."""
        found = [(i, j, "exact", 0.0) for i, j in enumerate(self.original.tolist()) if i != j]
        for (i, j), mirrored, similarity in zip(
            self.pairs.tolist(), self.mirrored.tolist(), self.similarity.tolist(), strict=True
        ):
            found.append((i, j, "mirrored" if mirrored else "near", round(max(1 - similarity, 0), 4)))
        found.sort(key=lambda pair: (pair[0], pair[3], pair[1]))
        named = (((i, *self.names[i]), (j, *self.names[j]), kind, distance) for i, j, kind, distance in found)
        return [
            Copy(row_id, split, copy_of, copy_of_split, kind, distance)
            for (_, split, row_id), (_, copy_of_split, copy_of), kind, distance in named
        ]

    def of_training(self, which: str = "near") -> dict[str, np.ndarray]:
        """The training rows that are copies, by reason: bool (number of training rows,). No row is in two.

        An image that repeats an earlier training image counts only where that one is itself none of these: what stays
        has no copies in training beyond those that `pairs` leaves out.

        Args:
            which: one of `DROP_COPIES`: `none` gives nothing, `exact` two reasons, `near` two more.
        """
        if which == "none":
            return {}
        start, original = self.evaluation, self.original[self.evaluation :]
        reasons = {
            "copy of a validation or test image": original < start,
            "copy of an earlier training image": (original >= start) & (original != start + np.arange(len(original))),
        }
        if which == "near":
            leaks, repeats = np.zeros(len(original), dtype=bool), np.zeros(len(original), dtype=bool)
            in_training = self.pairs[self.pairs[:, 0] >= start] - start
            leaks[in_training[in_training[:, 1] < 0, 0]] = True
            gone = leaks.copy()
            for copy, other in in_training[in_training[:, 1] >= 0].tolist():
                if not (gone[copy] or gone[other]):
                    gone[copy] = repeats[copy] = True
            reasons["near copy of a validation or test image"] = leaks
            reasons["near copy of an earlier training image"] = repeats
        return {reason: images[self.is_row[start:]] for reason, images in reasons.items()}


def _near_copies(thumbnails: np.ndarray, evaluation: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near copies among thumbnails (N, 24, 24), of which the first `evaluation` are for evaluation.

    Returns:
        pairs (P, 2) of a number and a lower one, in ascending order; mirrored (P,); similarity (P,).
    """
    plain = _describe(thumbnails)
    blocks = range(0, len(thumbnails), _BLOCK)
    contrast = [thumbnails[start : start + _BLOCK].std(axis=(1, 2)) for start in blocks]
    with_contrast = np.flatnonzero(np.concatenate([[], *contrast]) >= _FLAT)
    for_evaluation = with_contrast[with_contrast < evaluation]
    training = with_contrast[with_contrast >= evaluation]
    keys = np.union1d(
        _candidates(plain, thumbnails, with_contrast, for_evaluation),
        _candidates(plain, thumbnails, with_contrast, training),
    )
    pairs, mirrored = _pairs_of(keys, len(thumbnails))
    similarity = _similarity(plain, thumbnails, pairs, mirrored)
    # A pair of symmetric faces can be a candidate both as it is and mirrored: the more similar one counts.
    keep = similarity >= SIMILAR
    pairs, mirrored, similarity = pairs[keep], mirrored[keep], similarity[keep]
    order = np.lexsort((-similarity, pairs[:, 1], pairs[:, 0]))
    pairs, mirrored, similarity = pairs[order], mirrored[order], similarity[order]
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[first], mirrored[first], similarity[first]


def _radius() -> np.ndarray:
    rows, columns = np.mgrid[:_FREQUENCIES, :_FREQUENCIES]
    return np.hypot(rows, columns)


_USED = (_radius() > 0) & (_radius() < _FREQUENCIES)
_WEIGHTS = _radius()[_USED].astype(np.float32)
_SIGNS = np.where(np.mgrid[:_FREQUENCIES, :_FREQUENCIES][1][_USED] % 2, -1, 1).astype(np.float32)
_SIGNS = np.stack([np.ones_like(_SIGNS), _SIGNS])  # of a description as it is, and of the mirrored one
_COSINES = dct(np.eye(_SIDE), axis=0, norm="ortho")[:_FREQUENCIES]


def _describe(thumbnails: np.ndarray, crop: tuple[float, float, float] = (1, 0, 0)) -> np.ndarray:
    """Descriptions, float32 (N, D) of length 1, of thumbnails (N, 24, 24).

    `crop` is the size of the part that is described, and its place between top and bottom, and left and right: from 0
    to 1.
    """
    size, *places = crop
    rows, columns = ((_COSINES @ _resampling(size, place)).astype(np.float32) for place in places)
    described = np.empty((len(thumbnails), len(_WEIGHTS)), dtype=np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        block = rows @ thumbnails[start : start + _BLOCK].astype(np.float32) @ columns.T
        block = block[:, _USED] * _WEIGHTS
        length = np.linalg.norm(block, axis=1, keepdims=True)
        described[start : start + _BLOCK] = block / np.maximum(length, 1e-6)
    return described


def _resampling(size: float, place: float) -> np.ndarray:
    """(24, 24): linear interpolation of a part of a line of 24 pixels to 24 pixels."""
    positions = (np.arange(_SIDE) + 0.5) * size - 0.5 + place * (1 - size) * _SIDE
    positions = positions.clip(0, _SIDE - 1)
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(_SIDE)), 0)


def _candidates(plain: np.ndarray, thumbnails: np.ndarray, queries: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Keys, for `_pairs_of`, of the pairs of a query and a member whose descriptions are alike."""
    if not (len(queries) and len(members)):
        return np.zeros(0, dtype=np.int64)
    centers = _centers(plain, members)
    clusters = _nearest(plain, members, centers, 1)[:, 0]
    order = np.argsort(clusters, kind="stable")
    members, ends = members[order], np.bincount(clusters, minlength=len(centers)).cumsum()
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number = 0
    for crop in (None, _ENLARGED):
        described = plain if crop is None else _describe(thumbnails, crop)
        for mirrored in (0, 1):
            signs = _SIGNS[mirrored]
            probed = _nearest(described, queries, centers * signs, min(_PROBES, len(centers)))
            asking = np.argsort(probed.ravel(), kind="stable") // probed.shape[1]
            last = np.bincount(probed.ravel(), minlength=len(centers)).cumsum()
            for cluster in range(len(centers)):
                inside = members[slice(ends[cluster - 1] if cluster else 0, ends[cluster])]
                asked = asking[slice(last[cluster - 1] if cluster else 0, last[cluster])]
                for start in range(0, len(asked), _BLOCK):
                    block = queries[asked[start : start + _BLOCK]]
                    cosines = described[block] @ (plain[inside] * signs).T
                    alike = cosines > _CANDIDATE
                    if (
                        alike.sum() > len(block) * (_MOST + 1) and len(inside) > _MOST + 1
                    ):  # one may be the query itself
                        alike &= cosines >= np.partition(cosines, -_MOST - 1, axis=1)[:, -_MOST - 1, None]
                    query, member = np.nonzero(alike)
                    cosine = cosines[query, member]
                    query, member = block[query], inside[member]
                    other = query != member
                    found.append((query[other], (2 * member + mirrored)[other], cosine[other]))
                    number += len(query)
                    if number > _BUFFER:
                        found = [_most_similar(*map(np.concatenate, zip(*found, strict=True)))]
                        number = len(found[0][0])
    query, member, _ = _most_similar(*map(np.concatenate, zip(*found, strict=True)))
    member, turned = member // 2, member % 2
    high, low = np.maximum(query, member), np.minimum(query, member)
    return np.unique((high * len(thumbnails) + low) * 2 + turned)


def _pairs_of(keys: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of a number and a lower one, and whether they are mirrored, from their keys."""
    pairs, mirrored = keys // 2, keys % 2
    return np.stack([pairs // number, pairs % number], axis=1), mirrored.astype(bool)


def _most_similar(
    query: np.ndarray, member: np.ndarray, cosine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once, and of each query no more than `_MOST` pairs: those of the largest cosines."""
    order = np.lexsort((-cosine, member, query))
    query, member, cosine = query[order], member[order], cosine[order]
    new = np.ones(len(query), dtype=bool)
    new[1:] = (query[1:] != query[:-1]) | (member[1:] != member[:-1])
    query, member, cosine = query[new], member[new], cosine[new]
    order = np.lexsort((-cosine, query))
    query, member, cosine = query[order], member[order], cosine[order]
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]]) if len(query) else np.zeros(0, dtype=int)
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(np.r_[starts, len(query)]))
    keep = rank < _MOST
    return query[keep], member[keep], cosine[keep]


def _centers(described: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Centers (C, D) of clusters of about `_CLUSTER` of some rows: k-means on a sample, the same each time."""
    number = max(1, len(rows) // _CLUSTER)
    rng = np.random.default_rng(0)
    sample = described[np.sort(rng.permutation(rows)[: 32 * number])]
    centers = sample[rng.permutation(len(sample))[:number]]
    for _ in range(4):
        clusters = _nearest(sample, np.arange(len(sample)), centers, 1)[:, 0]
        sums = np.zeros_like(centers)
        np.add.at(sums, clusters, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(length > 1e-6, sums / np.maximum(length, 1e-6), centers)
    return centers


def _nearest(described: np.ndarray, rows: np.ndarray, centers: np.ndarray, number: int) -> np.ndarray:
    """The numbers (R, `number`) of the centers nearest to R rows."""
    nearest = np.empty((len(rows), number), dtype=np.int32)
    for start in range(0, len(rows), _BLOCK):
        cosines = described[rows[start : start + _BLOCK]] @ centers.T
        if number == 1:
            nearest[start : start + _BLOCK, 0] = cosines.argmax(axis=1)
        elif number == len(centers):
            nearest[start : start + _BLOCK] = np.arange(number)
        else:
            nearest[start : start + _BLOCK] = np.argpartition(-cosines, number, axis=1)[:, :number]
    return nearest


def _similarity(plain: np.ndarray, thumbnails: np.ndarray, pairs: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Similarities (P,) of pairs (P, 2): the largest cosine over the crops of either image."""
    best = np.empty(len(pairs), dtype=np.float32)
    for chosen in _blocks(np.arange(len(pairs))):
        left, right = pairs[chosen].T
        signs = _SIGNS[mirrored[chosen].astype(int)]
        best[chosen] = (plain[left] * plain[right] * signs).sum(axis=1)
    for cropped, whole in ((0, 1), (1, 0)):
        for chosen in _blocks(np.argsort(pairs[:, cropped], kind="stable")):
            rows, place = np.unique(pairs[chosen, cropped], return_inverse=True)
            others = plain[pairs[chosen, whole]] * _SIGNS[mirrored[chosen].astype(int)]
            for crop in _CROPS:
                cosines = (_describe(thumbnails[rows], crop)[place] * others).sum(axis=1)
                best[chosen] = np.maximum(best[chosen], cosines)
    return best


def _blocks(order: np.ndarray) -> Iterator[np.ndarray]:
    return (order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK))
