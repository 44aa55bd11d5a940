"""Images and votes in memory: arrays, tensors, data frames, as a program has them."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...io.errors import DataError
from ...io.images import ImageError, open_image
from ...io.ranges import check_whole, is_share
from ...labels.expressions import canonical_name, in_order_of_expressions
from ..image_writer import ImageRecord
from .base import Opened, fault_of_classes, is_text
from .votes import MOST_VOTES


def from_arrays(
    images: Sequence[Any],
    votes: Any = None,
    class_names: Sequence[str] | None = None,
    row_ids: Sequence[str] | None = None,
    validation_share: float = 0.0,
    seed: int = 0,
    answers: Any = None,
) -> Opened:
    """Images in memory with their votes, to be prepared by `fer_pll.prepare(from_arrays(...), out=...)`.

    Args:
        images: N images of a face each, of any kind that `io.images.open_image` opens: arrays, Pillow images, paths.
        votes: (N, K) whole numbers: how many annotators chose each class for each image. An array, a data frame, or
            lists. A row without any vote is left out and listed in `unreadable.csv`.
        class_names: K names; the columns of the data frame where not given. The prepared set has them in the order of
            FER+'s expressions, where all are among these.
        row_ids: N names of the rows; `row:0`, `row:1` and so on where not given.
        validation_share: share of the rows, drawn at random, for a split `validation`.
        seed: seed of that draw.
        answers: in the place of votes, where it is known who gave which: (N, A), for each annotator the number of a
            class, from 0 in the order of class_names, or -1 for none. The votes are counted.

    Raises:
        DataError: the numbers of images, votes, classes or names differ; votes are not whole numbers from 0 to
            `MOST_VOTES`; answers are no numbers of classes; a name of a class or row is no text or there twice; there
            is only one class; the share or the seed is out of range; or one of the two splits would have no rows.
    """
    if not is_share(validation_share):
        raise DataError(f"validation_share {validation_share!r}: give a share from 0 to less than 1")
    check_whole("seed", seed)
    if class_names is None and not isinstance(votes, pd.DataFrame):
        raise DataError("class_names are needed where votes are not a data frame, whose columns name the classes")
    names = [canonical_name(str(name)) for name in (votes.columns if class_names is None else class_names)]
    if (votes is None) == (answers is None):
        raise DataError("give either votes, or answers, which votes are counted from")
    said = None if answers is None else _answers(answers, len(images), len(names))
    counts = np.asarray(votes) if said is None else (said[:, :, None] == np.arange(len(names))).sum(axis=1)
    if counts.shape != (len(images), len(names)):
        raise DataError(
            f"votes have the shape {counts.shape}, but {len(images)} images and {len(names)} classes need "
            f"({len(images)}, {len(names)})"
        )
    fault = fault_of_classes(names)
    if fault is not None:
        raise DataError(f"class_names has {fault}: give each class a name of its own, and join the votes of synonyms")
    rows = [f"row:{number}" for number in range(len(images))] if row_ids is None else list(map(str, row_ids))
    if len(rows) != len(images) or len(set(rows)) < len(rows):
        raise DataError(f"{len(images)} images need as many row_ids, each once; there are {len(set(rows))}")
    if len(names) < 2:
        raise DataError(f"class_names has only {', '.join(names)}: annotators choose among at least two classes")
    unfit = next((name for name in rows if not is_text(name)), None)
    if unfit is not None:
        raise DataError(f"row_ids has {unfit!r}, which is no text: give the row another name")
    whole = counts if counts.dtype.kind in "iuf" else np.full(counts.shape, np.nan)
    if counts.dtype.kind == "O":
        with suppress(TypeError, ValueError, OverflowError):
            whole = counts.astype(float)
    wrong = np.argwhere(~((whole >= 0) & (whole <= MOST_VOTES) & (whole == np.floor(whole))))
    if len(wrong):
        row, label = wrong[0]
        raise DataError(
            f"{rows[row]}: the votes for {names[label]!r} are {counts[row, label]!r}, but votes are whole numbers "
            f"from 0 to {MOST_VOTES}: correct the row"
        )
    ordered = in_order_of_expressions(names)
    whole = whole[:, [names.index(name) for name in ordered]]
    if said is not None:
        said = np.where(said >= 0, np.array([ordered.index(name) for name in names])[said], -1)
    drawn = np.zeros(len(images), dtype=bool)
    drawn[np.random.default_rng(seed).permutation(len(images))[: round(validation_share * len(images))]] = True
    if drawn.all() or (validation_share and not drawn.any()):
        raise DataError(f"validation_share {validation_share} of {len(images)} rows: both parts need rows, try 0.1")
    parts = {"train": np.flatnonzero(~drawn), "validation": np.flatnonzero(drawn)}
    splits = {split: _Records(images, whole, said, rows, part.tolist()) for split, part in parts.items() if len(part)}
    return Opened(ordered, splits, ("votes",) if said is None else ("votes", "answers"))


def _answers(answers: Any, num_images: int, num_classes: int) -> np.ndarray:
    """Answers (N, A) as int64, after checking them."""
    said = np.asarray(answers)
    if said.ndim != 2 or len(said) != num_images:
        raise DataError(
            f"answers have the shape {said.shape}, but {num_images} images need ({num_images}, annotators)"
        )
    fits = said.dtype.kind in "iu" and (said >= -1) & (said < num_classes)
    wrong = np.argwhere(~np.broadcast_to(fits, said.shape))
    if len(wrong):
        row, annotator = wrong[0]
        raise DataError(
            f"the answer of annotator {annotator} for image {row} is {said[row, annotator]}, but answers are whole "
            f"numbers from 0 to {num_classes - 1}, or -1 for none"
        )
    return said.astype(np.int64)


class _Records(Sequence[ImageRecord]):
    """The records of some rows, each made when it is asked for."""

    def __init__(
        self,
        images: Sequence[Any],
        votes: np.ndarray,
        answers: np.ndarray | None,
        row_ids: list[str],
        rows: list[int],
    ) -> None:
        self.images, self.votes, self.answers, self.row_ids, self.rows = images, votes, answers, row_ids, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: Any) -> Any:
        row = self.rows[place]
        image, votes = self.images[row], self.votes[row].astype(int).tolist()
        columns = {"votes": votes, "label": votes.index(max(votes))}
        if self.answers is not None:
            columns["answers"] = self.answers[row].tolist()
        problem = None if any(votes) else "has no votes at all: remove the row or add some"
        if isinstance(image, (str, os.PathLike)):
            return ImageRecord(Path(image), self.row_ids[row], columns, problem=problem)
        data = None
        try:
            data = _png(image)
        except ImageError as error:
            problem = str(error)
        return ImageRecord(Path(self.row_ids[row]), self.row_ids[row], columns, problem=problem, data=data)


def _png(image: Any) -> bytes:
    opened = open_image(image)
    channels = opened.split()
    gray = all(channel.tobytes() == channels[0].tobytes() for channel in channels)
    file = io.BytesIO()
    (channels[0] if gray else opened).save(file, "PNG")
    return file.getvalue()
