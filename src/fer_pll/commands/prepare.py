"""Prepare a data set of faces for training.

Turns the files of a data set into a prepared set that the other commands read:
checked, cropped images with labels, votes or candidate sets. An interrupted
command continues when you run it again.
"""

import argparse
import sys
from collections.abc import Sequence

import datasets
import numpy as np
from datasets import DatasetDict

import fer_pll_cli

from ..data.copies import DROP_COPIES
from ..data.dataset import numpy_column
from ..data.prepare import prepare
from ..data.provenance import Provenance
from ..data.sources import SOURCES
from ..io.terminal import printable_lines, say

EPILOG = """\
examples:
  # FER+: fer2013.csv (Kaggle) and fer2013new.csv (Microsoft FERPlus) in one
  # folder, or the folders FER2013Train, FER2013Valid, FER2013Test with images
  # and a label.csv each
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus

  # FER+, only the rows that the FER+ authors keep
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus-majority \\
      --protocol majority

  # FER+, as if two annotators had been asked: how many of the ten annotators'
  # labels does training recover?
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus-two-votes \\
      --draw-votes 2 --drop-copies none

  # FER2013 with its single labels: Kaggle's table or folders
  fer-pll prepare fer2013 path/to/fer2013 --out data/fer2013

  # RAF-DB: the folder `basic` with EmoLabel and Image, or folders 1 to 7
  fer-pll prepare rafdb path/to/basic --out data/rafdb

  # AffectNet: training.csv, validation.csv and Manually_Annotated_Images, or
  # train_set and val_set
  fer-pll prepare affectnet path/to/affectnet --classes 7 --out data/affectnet7

  # votes of your own: path and a column of votes for each class, or path,
  # annotator, label in a row for each answer, or path and candidates
  fer-pll prepare votes path/to/votes.csv --out data/mine

  # a folder of images for each class, SPLIT/CLASS/image or CLASS/image
  fer-pll prepare folder path/to/images --out data/mine

  # a data set in the format of `datasets`: saved by save_to_disk, a folder of
  # Parquet files, or a name on the Hub
  fer-pll prepare dataset path/to/set --out data/mine --label emotion

  # any of them, corrected by the marks that you made on the page of
  # `fer-pll audit`
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus-corrected \\
      --corrections marks.csv

  # drawn faces with simulated annotators: no files needed
  fer-pll prepare synthetic --out data/synthetic --num-train 8000

`fer-pll prepare NAME --help` lists the options of one data set.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser, with a subparser for each source in `data.sources.SOURCES`."""
    parser = argparse.ArgumentParser(
        prog="fer-pll prepare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = _common_options()
    names = parser.add_subparsers(title="data sets", dest="name", metavar="NAME", required=True)
    for name, source in SOURCES.items():
        source.add_arguments(
            names.add_parser(name, help=source.summary, description=f"Prepare {source.summary}.", parents=[common])
        )
    return parser


def _common_options() -> argparse.ArgumentParser:
    """The options that `fer_pll.prepare` has for every source."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("options of all data sets")
    group.add_argument("--out", required=True, metavar="DIR", help="folder of the prepared set; must not exist yet")
    group.add_argument("--overwrite", action="store_true", help="replace the prepared set in DIR")
    group.add_argument(
        "--num-proc",
        type=int,
        metavar="N",
        help="processes that read or draw (default: all cores, or one where there is little to do)",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="stop at an image that cannot be used (default: leave it out and list it in DIR/unreadable.csv)",
    )
    group.add_argument(
        "--crop",
        metavar="MODEL",
        help="crop the faces of photographs as MODEL (a checkpoint or a name in hub_configs) needs them, by the "
        "landmarks in the data or those of a detector (default: keep the images, or the face boxes in the data, as "
        "they are)",
    )
    group.add_argument(
        "--detector",
        default="retinaface",
        help="for data without landmarks: retinaface (default), yunet, or yunet:MODEL.onnx; needs the extra `faces`",
    )
    group.add_argument(
        "--drop-copies",
        choices=DROP_COPIES,
        default="exact",
        help="training rows to leave out: exact = those with the pixels of a validation or test image, or of an "
        "earlier training image (default); near = also those whose image is another one compressed again, resized, "
        "mirrored, slightly cropped, brighter or darker; none. All are listed in DIR/copies.csv",
    )
    group.add_argument(
        "--draw-votes",
        type=int,
        metavar="N",
        help="keep N votes of each training row, drawn without replacement; the winner of all votes, if it is "
        "unique, becomes the row's true_label, so that a run shows how many true labels it recovers",
    )
    group.add_argument("--draw-seed", type=int, default=0, metavar="SEED", help="of --draw-votes (default: 0)")
    group.add_argument(
        "--corrections", metavar="FILE", help="marks.csv of `fer-pll audit`: relabel and drop rows as marked"
    )
    group.add_argument(
        "--validation-share",
        type=float,
        metavar="SHARE",
        help="share of each class's training rows that becomes the split `validation`, where the data have none; 0 "
        "for none (default: 0.1 for votes, folder and dataset; 0 for published data, which keep their splits)",
    )
    group.add_argument("--split-seed", type=int, default=0, metavar="SEED", help="of --validation-share (default: 0)")
    group.add_argument(
        "--follow-links",
        action="store_true",
        help="also read image files that are links to files outside of the folder of the images (default: leave them "
        "out; linked folders are read in any case)",
    )
    group.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="share of the training rows that becomes a split `held_out`, for the temperature of `fer-pll calibrate`",
    )
    return common


def class_counts(dataset: DatasetDict) -> tuple[dict[str, list[int]], str | None]:
    """The number of rows of each class in each split, and a line that says how they are counted, where it must.

    By label, or by candidates where a set of candidates has rows without a label.
    """
    names = next(iter(dataset.values())).features["label"].names
    labels = [numpy_column(rows, "label") for rows in dataset.values()]
    without = sum(int((each < 0).sum()) for each in labels)
    if without and all("candidates" in rows.column_names for rows in dataset.values()):
        by_class = [numpy_column(rows, "candidates").sum(axis=0) for rows in dataset.values()]
        counted: str | None = f"counted: the rows with the class among their candidates; {without} rows have no label"
    else:
        by_class = [np.bincount(each[each >= 0], minlength=len(names)) for each in labels]
        counted = f"{without} rows have no label" if without else None
    return {name: [int(each[k]) for each in by_class] for k, name in enumerate(names)}, counted


def summary(dataset: DatasetDict) -> str:
    """A table of the number of rows by split and class, and the sources of the rows.

    Where rows have candidates and no label, a class counts the rows that have it among their candidates.
    """
    splits = list(dataset)
    lines = [("", *splits), ("rows", *(len(dataset[split]) for split in splits))]
    counts, counted = class_counts(dataset)
    lines += [(f"  {name}", *numbers) for name, numbers in counts.items()]
    if "majority" in dataset[splits[0]].column_names:
        lines.append(("in majority", *(int(numpy_column(dataset[split], "majority").sum()) for split in splits)))
    width = max(14, *(len(first) + 2 for first, *_ in lines))
    table = [f"{first:<{width}}" + "".join(f"{cell:>12}" for cell in cells) for first, *cells in lines]
    table += [counted] if counted else []
    sources = (Provenance.from_dataset(rows) for rows in dataset.values())
    return printable_lines(table + [source.sentence() for source in sources if source is not None])


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(make_parser().parse_args(argv))
    if not sys.stderr.isatty():  # in a log file, each update of a bar would be a line
        datasets.disable_progress_bars()
    said: list[str] = []
    try:
        dataset = prepare(**options, report=said.append)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues with the images that are left") from None
    say(*summary(dataset).split("\n"), *said, f"saved in {options['out']}")
    fer_pll_cli.next_command("finetune", "--data", options["out"], "--output_dir", "runs/finetune")


if __name__ == "__main__":
    fer_pll_cli.run(main)
