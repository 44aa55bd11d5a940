"""Turn a data set of faces into a prepared set.

The data set is in the files that its users have, or drawn; the prepared set is
what the other commands read.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

import fer_pll_cli

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
      --draw-votes 2 --keep-duplicates

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

  # any of them, corrected by the marks made on the page of fer-pll audit
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus-corrected \\
      --corrections marks.csv

  # drawn faces with simulated annotators: no files needed
  fer-pll prepare synthetic --out data/synthetic --num-train 8000

fer-pll prepare NAME --help lists the options of one data set.
"""


# One function per data set: it adds the options to the parser and returns the function that makes from the parsed
# options the set, and the list of the pictures that were left out. A new data set is one more function and one more
# entry in DATA_SETS.
def ferplus(parser):
    parser.add_argument("source", help="folder with fer2013.csv and fer2013new.csv, or with FER2013Train and so on")
    parser.add_argument(
        "--protocol",
        choices=("all", "majority"),
        default="all",
        help="rows kept: all = the most voted of the ten entries is one of the eight expressions (default); "
        "majority = without single votes, an expression holds more than half of the votes",
    )
    parser.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep training rows whose picture is also a validation or test picture, or an earlier training picture",
    )

    parser.add_argument(
        "--draw-votes",
        type=int,
        metavar="N",
        help="leave the training rows N votes each, drawn without replacement; the winner of all votes, where it is "
        "unique, becomes their true_label, so that training shows how many true labels it recovers",
    )
    parser.add_argument("--draw-seed", type=int, default=0, metavar="SEED", help="of --draw-votes (default: 0)")

    def load(args):
        from ..data.sources.ferplus import load_ferplus
        from ..data.splits import keep_drawn_votes

        dataset = load_ferplus(args.source, args.protocol, not args.keep_duplicates)
        if args.draw_votes is not None:
            dataset["train"] = keep_drawn_votes(dataset["train"], args.draw_votes, args.draw_seed)
        return dataset, []

    return load


def synthetic(parser):
    for split, rows in (("train", 8000), ("validation", 2000), ("test", 2000)):
        parser.add_argument(
            f"--num-{split}", type=int, default=rows, metavar="N", help=f"{split} rows (default: {rows})"
        )
    parser.add_argument("--image-size", type=int, default=48, metavar="PX", help="side in pixels (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="seed of faces and votes (default: 0)")
    parser.add_argument(
        "--variation",
        type=float,
        default=1.0,
        metavar="V",
        help="how much people, poses and light differ, from 0 (hardly) to 1, like the web (default)",
    )
    parser.add_argument(
        "--contested",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="share of the pictures whose annotators are misled to a wrong expression, 0 to 1 (default: 0.3)",
    )
    parser.add_argument(
        "--num-proc",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that draw (default: all cores)",
    )

    def load(args):
        from ..data.sources.synthetic.dataset import load_synthetic

        dataset = load_synthetic(
            args.num_train,
            args.num_validation,
            args.num_test,
            image_size=args.image_size,
            seed=args.seed,
            variation=args.variation,
            contested=args.contested,
            num_proc=args.num_proc,
        )
        return dataset, []

    return load


def rafdb(parser):
    parser.add_argument("source", help="RAF-DB's folder `basic`, with EmoLabel and Image")
    parser.add_argument(
        "--pictures",
        choices=("aligned", "original"),
        default="aligned",
        help="aligned = the cropped faces of 100 x 100 pixels (default); original = the photographs",
    )
    picture_options(parser)

    def load(args):
        from ..data.dataset import prepared_features
        from ..data.sources.rafdb import CLASSES, LICENSE, list_rafdb

        splits, features = list_rafdb(args.source, args.pictures), prepared_features(CLASSES)
        return read_pictures(splits, features, args, name="RAF-DB", license=LICENSE)

    return load


def affectnet(parser):
    parser.add_argument(
        "source", help="folder with training.csv and validation.csv, or with the folders train_set and val_set"
    )
    parser.add_argument(
        "--classes", type=int, choices=(7, 8), default=8, help="8 expressions (default), or 7 without contempt"
    )
    picture_options(parser)

    def load(args):
        from ..data.cropping import CropToBox
        from ..data.dataset import prepared_features
        from ..data.sources.affectnet import LICENSE, affectnet_classes, list_affectnet

        splits = list_affectnet(args.source, args.classes)
        features, name = prepared_features(affectnet_classes(args.classes)), f"AffectNet-{args.classes}"
        return read_pictures(splits, features, args, CropToBox(), name=name, license=LICENSE)

    return load


def votes(parser):
    parser.add_argument(
        "table",
        help="CSV, TSV, JSON lines or Parquet: path and a column of votes for each class; or path, annotator, label; "
        "or path and candidates (class names with | between them)",
    )
    parser.add_argument("--root", metavar="DIR", help="folder that the paths start from (default: the table's)")
    classes_option(parser, "the eight expressions of FER+")
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.0,
        metavar="S",
        help="share of the pictures without a `split` that becomes the validation set (default: 0)",
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="SEED", help="of that draw (default: 0)")
    parser.add_argument(
        "--weigh-annotators",
        nargs="?",
        type=float,
        const=0.95,
        metavar="SHARE",
        help="where there is a row for each answer: candidates are the most probable labels that hold SHARE (default: "
        "0.95) of the probability when good annotators count for more (Dawid-Skene); train with --confidence_init "
        "column to start from the probabilities. Needs the extra `crowd`",
    )
    picture_options(parser)

    def load(args):
        from ..data.dataset import prepared_features
        from ..data.sources.votes import list_votes
        from ..labels.expressions import EXPRESSIONS

        names = class_names(args) or EXPRESSIONS
        splits = list_votes(
            args.table, args.root, names, args.validation_share, args.split_seed, args.weigh_annotators
        )
        columns = next(iter(splits.values()))[0].columns
        optional = {name: name in columns for name in ("votes", "candidates", "confidence")}
        features = prepared_features(names, **optional)
        return read_pictures(splits, features, args)

    return load


def folder(parser):
    parser.add_argument("source", help="folder with train, validation and test, or with a folder for each class")
    picture_options(parser)

    def load(args):
        from ..data.dataset import prepared_features
        from ..data.sources.image_folder import list_image_folder

        splits, names = list_image_folder(args.source)
        return read_pictures(splits, prepared_features(names), args)

    return load


def dataset(parser):
    parser.add_argument(
        "source",
        help="folder written by save_to_disk, or with Parquet or Arrow files or pictures as `datasets` reads them; "
        "else a name on the Hub",
    )
    parser.add_argument("--config", metavar="NAME", help="configuration, where the data set has several")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub (default: main)")
    for option, what in {
        "image": "the pictures (default: the only column of pictures)",
        "label": "one label a picture (default: label, labels, expression or emotion, else the first ClassLabel)",
        "candidates": "candidate sets: booleans, names, or names with | between them (default: candidates, if any)",
        "row-id": "where each row comes from (default: row_id, if any, else the row's number)",
    }.items():
        parser.add_argument(f"--{option}", metavar="COLUMN", help=f"column with {what}")
    parser.add_argument(
        "--votes",
        metavar="COLUMN[,COLUMN...]",
        help="column with a list of votes, one for each class, or columns named after the classes with the votes for "
        "each (default: votes, if any, or the columns so named)",
    )
    classes_option(parser, "those that the label names, else the eight expressions of FER+")
    picture_options(parser)

    def load(args):
        from ..data.dataset import prepared_features
        from ..data.sources.hf_dataset import Columns, list_dataset

        columns = Columns(args.image, args.label, args.votes, args.candidates, args.row_id)
        listed = list_dataset(args.source, columns, class_names(args), args.config, args.revision)
        features = prepared_features(listed.class_names, votes=listed.votes, candidates=listed.candidates)
        return read_pictures(listed.splits, features, args)

    return load


DATA_SETS = {
    "ferplus": ferplus,
    "rafdb": rafdb,
    "affectnet": affectnet,
    "votes": votes,
    "folder": folder,
    "dataset": dataset,
    "synthetic": synthetic,
}


def classes_option(parser, default):
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help=f"the classes, in the order of the model's outputs (default: {default})",
    )


def class_names(args):
    """The names of --classes as we write them, or None."""
    from ..labels.expressions import canonical_name

    return list(map(canonical_name, args.classes.split(","))) if args.classes else None


def picture_options(parser):
    """Options of the data sets that list picture files."""
    parser.add_argument(
        "--num-proc",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that read (default: all cores)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at a picture that cannot be read (default: leave it out and list it in DIR/unreadable.csv)",
    )
    parser.add_argument(
        "--crop",
        metavar="MODEL",
        help="crop the faces of photographs as MODEL (a checkpoint or a name in hub_configs) wants them, by the "
        "landmarks in the data or those of a detector (default: the pictures, or the face boxes in the data, as they "
        "are)",
    )
    parser.add_argument(
        "--detector",
        default="retinaface",
        help="where the data have no landmarks: retinaface (default), yunet, or yunet:MODEL.onnx; needs the extra "
        "`faces`",
    )


def read_pictures(splits, features, args, crop=None, name=None, license=""):
    """Listed pictures by split to the data set, and the pictures that were left out; --crop goes before `crop`.

    `name` and `license`, of a data set that is known, end up on the cards of models trained on it.
    """
    from datasets import DatasetDict

    from ..data.dataset import shards_folder
    from ..data.image_writer import write_split

    if args.crop is not None:
        from ..data.cropping import CropToTemplate
        from ..faces.alignment import FaceCrop

        crop = CropToTemplate(FaceCrop.from_pretrained(args.crop), args.detector)

    dataset, left_out = DatasetDict(), []
    for split, pictures in splits.items():
        dataset[split], unreadable = write_split(
            pictures,
            features,
            shards_folder(args.out) / split,
            num_pictures=len(pictures) if isinstance(pictures, list) else None,
            crop=crop,
            num_proc=args.num_proc,
            strict=args.strict,
            description=f"{split} pictures",
        )
        left_out += unreadable
        if name is not None:
            dataset[split].info.description = f"{name} {split}: {len(dataset[split])} pictures"
            dataset[split].info.license = license
    return dataset, left_out


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", required=True, metavar="DIR", help="folder of the prepared set; must not exist yet")
    common.add_argument("--overwrite", action="store_true", help="replace the prepared set that is in DIR")
    common.add_argument(
        "--corrections", metavar="FILE", help="marks.csv of `fer-pll audit`: relabel and drop the rows marked so"
    )
    common.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="share of the training rows for a split `held_out`, on which fer-pll calibrate fits its temperature",
    )
    parser = argparse.ArgumentParser(
        "fer-pll prepare", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True, help=" or ".join(DATA_SETS))
    for name, add_options in DATA_SETS.items():
        subparser = names.add_parser(name, parents=[common])
        subparser.set_defaults(load=add_options(subparser))
    return parser


def summary(dataset):
    """A table of the rows per split and class, and what was dropped."""
    splits = list(dataset)
    lines = [("", *splits), ("rows", *(len(dataset[split]) for split in splits))]
    labels = {split: dataset[split]["label"][:] for split in splits}
    for number, name in enumerate(dataset[splits[0]].features["label"].names):
        lines.append((f"  {name}", *(labels[split].count(number) for split in splits)))
    if "majority" in dataset[splits[0]].column_names:
        lines.append(("in majority", *(sum(dataset[split]["majority"][:]) for split in splits)))
    table = [f"{first:<14}" + "".join(f"{cell:>12}" for cell in cells) for first, *cells in lines]
    return "\n".join(table + [rows.info.description for rows in dataset.values() if rows.info.description])


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)

    import datasets

    from ..data.corrections import apply_corrections, read_corrections
    from ..data.dataset import REPORT, check_output_folder, save_prepared, shards_folder
    from ..data.splits import hold_out

    if not sys.stderr.isatty():  # in a log file each update of a bar would be a line
        datasets.disable_progress_bars()
    check_output_folder(args.out, args.overwrite)
    corrected = None
    if args.corrections is not None:
        read_corrections(args.corrections)  # what is wrong with the file shows before the pictures are read
    try:
        dataset, unreadable = args.load(args)
        if args.corrections is not None:
            dataset, corrected = apply_corrections(dataset, args.corrections)
        if args.hold_out is not None:
            dataset = hold_out(dataset, args.hold_out)
        save_prepared(dataset, args.out, args.overwrite, unreadable)
    except KeyboardInterrupt as interrupt:
        message = "interrupted; the same command goes on with the images that are left"
        raise KeyboardInterrupt(message) from interrupt
    shutil.rmtree(shards_folder(args.out), ignore_errors=True)
    print(summary(dataset))
    if corrected:
        print(corrected)
    if unreadable:
        print(f"{len(unreadable)} pictures could not be used, see {os.path.join(args.out, REPORT)}; the first:")
        print(f"  {unreadable[0].row_id}: {unreadable[0].reason}")
    print(f"saved in {args.out}")


if __name__ == "__main__":
    fer_pll_cli.run(main)
