"""`fer_pll.prepare`: makes a prepared set on disk from the files of a data set, as its users have them."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from os import cpu_count
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..faces.alignment import FaceCrop
from ..io.errors import DataError
from .corrections import apply_corrections, read_corrections
from .cropping import CropToTemplate
from .dataset import (
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
    name: str,
    source: str | Path | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    strict: bool = False,
    num_proc: int | None = None,
    crop: str | None = None,
    detector: str = "retinaface",
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
        name: one of `data.sources.SOURCES`: ferplus, fer2013, rafdb, affectnet, votes, folder, dataset, synthetic.
        source: where the files of the data set are; synthetic needs none.
        out: folder of the prepared set. It must not exist yet, or be empty.
        overwrite: replace the prepared set that is in `out`.
        strict: stop at the first image that cannot be used. Without it, such images are left out and listed in
            `unreadable.csv`.
        num_proc: processes that read or draw. Where not given: all cores, or this process alone where there are so few
            images that starting others takes longer.
        crop: crop the faces of photographs as this model (a checkpoint or a name in hub_configs) wants them.
        detector: `retinaface`, `yunet` or `yunet:MODEL.onnx`; used with `crop` where the data have no landmarks.
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
    if name not in SOURCES:
        raise DataError(f"there is no data source {name!r}: choose {', '.join(SOURCES)}")
    values = options if source is None else {"source": source, **options}
    parsed = SOURCES[name].options(**values)
    check_output_folder(out, overwrite)
    if corrections is not None:
        read_corrections(corrections)  # errors in the file show before the images are read
    if draw_votes is not None and draw_votes < 1:
        raise DataError(f"--draw-votes {draw_votes}: give a number from 1 up")
    face_crop = None if crop is None else CropToTemplate(FaceCrop.from_pretrained(crop), detector)
    opened = SOURCES[name].open(parsed)
    if draw_votes is not None and "votes" not in opened.columns:
        raise DataError(f"--draw-votes {draw_votes}: {name} has no votes here")
    if face_crop is not None:
        opened = replace(opened, crop=face_crop)

    if validation_share is None:
        validation_share = 0.0 if "validation" in opened.splits else SOURCES[name].validation_share
    elif not 0 <= validation_share < 1:
        raise DataError(f"--validation-share {validation_share}: give a share from 0 to less than 1")
    if validation_share and ("validation" in opened.splits or "train" not in opened.splits):
        there = "a validation split already" if "validation" in opened.splits else "no training split"
        raise DataError(f"--validation-share {validation_share}: the data have {there}; leave it out")

    said = [] if opened.read_as is None else [f"read as {opened.read_as}"]
    dataset, unreadable = _write(opened, out, num_proc, strict, follow_links)
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
        said.append(corrected)
    if hold_out is not None:
        dataset = hold_out_rows(dataset, hold_out)
    save_dataset(dataset, out, overwrite, unreadable)
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
    opened: Opened, out: str | Path, num_proc: int | None, strict: bool, follow_links: bool
) -> tuple[DatasetDict, list[Unreadable]]:
    """The records of all splits as data sets with their provenance, and the images that were left out."""
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
    with workers(num_proc) as run:
        for split, records in opened.splits.items():
            dataset[split], unreadable = write_split(
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
            dropped = {**opened.dropped.get(split, {}), "that could not be used": len(unreadable)}
            replace(opened.provenance, split=split, kept=len(dataset[split]), dropped=dropped).attach(dataset[split])
    return dataset, left_out
