"""`fer_pll.prepare`: makes a prepared set on disk from the files of a data set, as its users have them."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..faces.crops import load_crop
from ..io.atomic import check_apart
from ..io.errors import DataError
from ..io.ranges import check_whole, is_share
from .copies import DROP_COPIES, Copies, Copy, Fingerprints
from .corrections import apply_corrections, read_corrections
from .cropping import CropToTemplate
from .dataset import (
    COPIES,
    REPORT,
    Unreadable,
    check_output_folder,
    load_dataset,
    prepared_features,
    save_dataset,
    shards_folder,
)
from .image_writer import ImageRecord, workers, write_split
from .sources import SOURCES, Opened
from .splits import draw_validation, keep_drawn_votes
from .splits import hold_out as hold_out_rows

_FEW = 1000  # images that one process reads or draws before other processes have started


def prepare(
    name: str | Opened,
    source: str | Path | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    strict: bool = False,
    num_proc: int | None = None,
    crop: str | None = None,
    detector: str = "retinaface",
    drop_copies: str = "exact",
    draw_votes: int | None = None,
    draw_seed: int = 0,
    corrections: str | Path | None = None,
    validation_share: float | None = None,
    split_seed: int = 0,
    hold_out: float | None = None,
    follow_links: bool = False,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> DatasetDict:
    """Prepare a data set: read its files, check and crop its images, and save what training needs.

    The set is saved whole or not at all. An interrupted call leaves its work beside `out`, and the same call continues
    from there.

    Args:
        name: one of `data.sources.SOURCES`: ferplus, fer2013, rafdb, affectnet, votes, folder, dataset, synthetic; or
            data in memory, as `from_arrays` returns them.
        source: where the files of the data set are; synthetic needs none.
        out: folder of the prepared set. It must not exist yet, or be empty.
        overwrite: replace the prepared set that is in `out`.
        strict: stop at the first image that cannot be used. Without it, such images are left out and listed in
            `unreadable.csv`.
        num_proc: processes that read or draw. Where not given: all cores, or this process alone where there are so few
            images that starting others takes longer.
        crop: crop the faces of photographs as this model (a checkpoint or a name in hub_configs) wants them.
        detector: `retinaface`, `yunet` or `yunet:MODEL.onnx`; used with `crop` where the data have no landmarks.
        drop_copies: training rows to leave out: `exact`, those with the very pixels of a validation or test image, and
            all but the first of those with the same pixels; `near`, also those whose image is nearly that of another
            row; `none`. All copies are listed in `copies.csv`. Validation and test never change. `data.copies` says
            what copies are.
        draw_votes: number of votes that each training row keeps, see `splits.keep_drawn_votes`.
        draw_seed: seed of that draw.
        corrections: marks.csv of `fer-pll audit`: relabel and drop the rows marked so.
        validation_share: share of the training rows of each class for a split `validation`, where the data have none;
            0 for none. Where not given: 0.1 for layouts of users' data (votes, folder, dataset), 0 for published data,
            whose splits are those that results are compared on.
        split_seed: seed of that draw.
        hold_out: share of the training rows for a split `held_out`.
        follow_links: also read image files that are links to files outside of the folder of the images. Without it
            they are left out; linked folders are read in any case.
        report: called with a line of text for each thing that was changed or left out.
        options: the options of the source, as `fer-pll prepare NAME --help` lists them, with underscores.

    Returns:
        the prepared set, as `load_dataset(out)` gives it.

    Raises:
        DataError: a name or option is unknown, files are missing or malformed, or the folder is in use. A prepared set
            in `out` stays as it was.
    """
    values = options if source is None else {"source": source, **options}
    if isinstance(name, Opened):
        if values:
            raise DataError(f"data in memory have no option {next(iter(values))!r}")
    elif name not in SOURCES:
        raise DataError(f"there is no data source {name!r}: choose {', '.join(SOURCES)}")
    else:
        parsed = SOURCES[name].options(**values)
    if source is not None:
        check_apart(out, [source])
    check_output_folder(out, overwrite)
    if corrections is not None:
        read_corrections(corrections)  # errors in the file show before the images are read
    if drop_copies not in DROP_COPIES:
        raise DataError(f"--drop-copies {drop_copies}: choose {', '.join(DROP_COPIES)}")
    for option, number, least in (
        ("--draw-votes", draw_votes, 1),
        ("--draw-seed", draw_seed, 0),
        ("--split-seed", split_seed, 0),
        ("--num-proc", num_proc, 1),
    ):
        if number is not None:
            check_whole(option, number, least)
    if validation_share is not None and not is_share(validation_share):
        raise DataError(f"--validation-share {validation_share!r}: give a share from 0 to less than 1")
    if hold_out is not None and not (is_share(hold_out) and hold_out > 0):
        raise DataError(f"--hold-out {hold_out!r}: give a share above 0 and below 1, such as 0.05")
    face_crop = None if crop is None else CropToTemplate(load_crop(crop), detector)
    opened = name if isinstance(name, Opened) else SOURCES[name].open(parsed)
    if draw_votes is not None and "votes" not in opened.columns:
        raise DataError(
            f"--draw-votes {draw_votes}: {name if isinstance(name, str) else 'the data'} has no votes here"
        )
    if draw_votes is not None and "candidates" in opened.columns:
        raise DataError(
            f"--draw-votes {draw_votes}: the candidates come from all votes, so a draw would not change them: leave "
            "out one of the two (--weigh-annotators makes candidates)"
        )
    if face_crop is not None:
        opened = replace(opened, crop=face_crop)

    if validation_share is None:
        of_source = SOURCES[name].validation_share if isinstance(name, str) else 0.0
        validation_share = 0.0 if "validation" in opened.splits else of_source
    if validation_share and ("validation" in opened.splits or "train" not in opened.splits):
        there = "a validation split already" if "validation" in opened.splits else "no training split"
        raise DataError(f"--validation-share {validation_share}: the data have {there}; leave it out")

    said = [] if opened.read_as is None else [f"read as {opened.read_as}"]
    dataset, unreadable, copies = _write(opened, out, num_proc, strict, follow_links, drop_copies)
    if validation_share and len(dataset["train"]) > 1:
        rows = len(dataset["train"])
        dataset = draw_validation(dataset, validation_share, split_seed)
        said.append(
            f"validation: {len(dataset['validation'])} of {rows} training rows, {validation_share:g} of each class "
            "(--validation-share sets another share, 0 none)"
        )
    if draw_votes is not None:
        dataset["train"] = keep_drawn_votes(dataset["train"], draw_votes, draw_seed)
    if corrections is not None:
        dataset, corrected = apply_corrections(dataset, corrections)
        said += corrected.split("\n")
    if hold_out is not None:
        dataset = hold_out_rows(dataset, hold_out)
    listed = _in_their_splits(
        copies.listed(), {split: dataset[split] for split in dataset if split not in opened.splits}
    )
    said += _tell_copies(listed, dataset, Path(out) / COPIES)
    save_dataset(dataset, out, overwrite, unreadable, listed)
    shutil.rmtree(shards_folder(out), ignore_errors=True)
    if unreadable:
        first = unreadable[0]
        said.append(f"{len(unreadable)} images could not be used, see {Path(out) / REPORT}; the first:")
        said.append(f"  {first.row_id}: {first.reason}")
    for line in said:
        if report is not None:
            report(line)
    return load_dataset(out)


def _without_links(records: Iterable[ImageRecord], root: Path) -> Iterator[ImageRecord]:
    """The records; one whose file is a link that leads out of `root` has a `problem`."""
    inside = root.resolve()
    for record in records:
        path, problem = record.path, record.problem
        if problem is None and _is_link(path) and path.is_file():
            target = path.resolve()
            if not (target.is_relative_to(inside) or target.is_relative_to(path.parent.resolve())):
                problem = f"{path}: a link that leads out of {root}: copy the file, or say --follow-links"
        yield record._replace(problem=problem)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):  # no name of a file; reading says so
        return False


def _write(
    opened: Opened, out: str | Path, num_proc: int | None, strict: bool, follow_links: bool, drop_copies: str
) -> tuple[DatasetDict, list[Unreadable], Copies]:
    """The records of all splits as data sets with their provenance, the images that were left out, and the copies."""
    features = prepared_features(opened.class_names, opened.columns)
    counts = {
        split: opened.counts.get(split, len(records) if isinstance(records, Sized) else None)
        for split, records in opened.splits.items()
    }
    if num_proc is None:
        known = [count for count in counts.values() if count is not None]
        few = opened.crop is None and len(known) == len(counts) and sum(known) < _FEW
        num_proc = 1 if few else cpu_count() or 1
    dataset, left_out = DatasetDict(), []
    prints: dict[str, Iterable[Fingerprints]] = {}
    dropped: dict[str, dict[str, int]] = {}
    with workers(num_proc) as run:
        for split, records in opened.splits.items():
            dataset[split], unreadable, files = write_split(
                records if opened.root is None or follow_links else _without_links(records, opened.root),
                features,
                shards_folder(out) / split,
                num_records=counts[split],
                crop=opened.crop,
                run=run,
                strict=strict,
                split=split,
            )
            left_out += unreadable
            prints[split] = map(Fingerprints.load, files)
            dropped[split] = {**opened.dropped.get(split, {}), "that could not be used": len(unreadable)}
    copies = Copies.among(prints if opened.has_copies else {})
    if "train" in dataset and opened.has_copies:
        gone = copies.of_training(drop_copies)
        keep = ~np.logical_or.reduce([np.zeros(len(dataset["train"]), dtype=bool), *gone.values()])
        dropped["train"] |= {reason: int(rows.sum()) for reason, rows in gone.items()}
        if not keep.any():
            reasons = ", ".join(f"{rows} {reason}" for reason, rows in dropped["train"].items() if rows)
            raise DataError(f"no train row is left; dropped: {reasons}; --drop-copies none keeps the copies")
        if not keep.all():
            dataset["train"] = dataset["train"].select(np.flatnonzero(keep))
    for split, rows in dataset.items():
        replace(opened.provenance, split=split, kept=len(rows), dropped=dropped[split]).attach(rows)
    return dataset, left_out, copies


def _in_their_splits(copies: list[Copy], drawn: dict[str, Dataset]) -> list[Copy]:
    """The same, with the splits that were drawn from `train` since; the copy stays that of the two in `train`."""
    moved = {row_id: split for split, rows in drawn.items() for row_id in rows["row_id"]}
    found = []
    for copy in copies:
        split, copy_of_split = (
            moved.get(row_id, split) if split == "train" else split
            for row_id, split in ((copy.row_id, copy.split), (copy.copy_of, copy.copy_of_split))
        )
        if copy_of_split == "train" and split != "train":
            found.append(copy._replace(row_id=copy.copy_of, split="train", copy_of=copy.row_id, copy_of_split=split))
        else:
            found.append(copy._replace(split=split, copy_of_split=copy_of_split))
    return found


def _tell_copies(copies: list[Copy], dataset: DatasetDict, file: Path) -> list[str]:
    """Lines about the copies: where they are listed, and which leaks stay in the training split."""
    said = [f"{len(copies)} copies of images among all splits, see {file}"] if copies else []
    rows = set(dataset["train"]["row_id"]) if copies and "train" in dataset else set()
    leaks: dict[bool, set[str]] = {True: set(), False: set()}  # by whether they are exact
    for copy in copies:
        if copy.split == "train" and copy.copy_of_split != "train" and copy.row_id in rows:
            leaks[copy.kind == "exact"].add(copy.row_id)
    exact, near = len(leaks[True]), len(leaks[False] - leaks[True])
    if exact or near:
        said.append(
            f"of the training images {exact} are copies and {near} near copies of images to evaluate on: "
            "--drop-copies near leaves them out"
        )
    return said
