"""Prepare a data set of faces for training.

Turns the files of a data set into a prepared set that the other commands read:
checked, cropped images with labels, votes or candidate sets. An interrupted
command continues when you run it again.
"""

import argparse
import sys
from collections.abc import Sequence

import datasets
from datasets import DatasetDict

import fer_pll_cli

from ..data.copies import DROP_COPIES
from ..data.dataset import numpy_column
from ..data.prepare import prepare
from ..data.provenance import Provenance
from ..data.sources import SOURCES

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

  # RAF-DB: the folder `basic` with EmoLabel and Image
  fer-pll prepare rafdb path/to/basic --out data/rafdb

  # AffectNet: training.csv, validation.csv and Manually_Annotated_Images, or
  # train_set and val_set
  fer-pll prepare affectnet path/to/affectnet --classes 7 --out data/affectnet7

  # votes of your own: path and a column of votes for each class, or path,
  # annotator, label in a row for each answer, or path and candidates
  fer-pll prepare votes path/to/votes.csv --out data/mine --validation-share 0.1

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
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="share of the training rows that becomes a split `held_out`, for the temperature of `fer-pll calibrate`",
    )
    return common


def summary(dataset: DatasetDict) -> str:
    """A table of the number of rows by split and class, and the sources of the rows."""
    splits = list(dataset)
    lines = [("", *splits), ("rows", *(len(dataset[split]) for split in splits))]
    labels = {split: numpy_column(dataset[split], "label") for split in splits}
    for number, name in enumerate(dataset[splits[0]].features["label"].names):
        lines.append((f"  {name}", *(int((labels[split] == number).sum()) for split in splits)))
    if "majority" in dataset[splits[0]].column_names:
        lines.append(("in majority", *(int(numpy_column(dataset[split], "majority").sum()) for split in splits)))
    table = [f"{first:<14}" + "".join(f"{cell:>12}" for cell in cells) for first, *cells in lines]
    sources = (Provenance.from_dataset(rows) for rows in dataset.values())
    return "\n".join(table + [source.sentence() for source in sources if source is not None])


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(make_parser().parse_args(argv))
    if not sys.stderr.isatty():  # in a log file, each update of a bar would be a line
        datasets.disable_progress_bars()
    said: list[str] = []
    try:
        dataset = prepare(**options, report=said.append)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues with the images that are left") from None
    print("\n".join([summary(dataset), *said, f"saved in {options['out']}"]))


if __name__ == "__main__":
    fer_pll_cli.run(main)
