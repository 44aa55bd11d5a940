"""The `fer-pll` command.

This module lies outside the package and imports nothing but the standard library, because `import fer_pll` loads
transformers and torch, which takes seconds: each sub-command imports what it needs when it runs.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

DESCRIPTION = """\
Facial expression recognition from candidate label sets.

Annotators disagree about faces. fer-pll keeps every label that they may mean,
and looks for the true one while it trains.
"""

EPILOG = """\
examples:
  fer-pll demo                    the whole method on drawn faces, in minutes
  fer-pll demo --out runs/demo    the same, with the results in runs/demo
  fer-pll predict photos --model runs/finetune --out faces.csv
                                  the faces in a folder, and their expressions
  fer-pll audit runs/finetune --out audit
                                  which labels of the training set look wrong
  fer-pll predict --help          what one command does, and its options

To train on real data, such as FER+, use the scripts in train_scripts/ of the
repository; its README.md shows how.
"""

DEMO = """\
Show the whole method at work. Needs no data, no network and no GPU.

Draws faces and lets simulated annotators vote on them, pre-trains on the
pictures alone, then trains one model on the majority label and one on
candidate sets. Prints how well both do, and how many of the true labels a
majority vote and the revised confidences recover.
"""

DEMO_EPILOG = """\
example:
  fer-pll demo --out runs/demo --seed 1

The folder then holds the data, the checkpoints (for from_pretrained and
pipeline) and the figures.
"""


def add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="show the whole method at work on drawn faces",
        description=DEMO,
        epilog=DEMO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        default="fer-pll-demo",
        metavar="DIR",
        help="new or empty folder for everything that the demo leaves (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the faces, the votes and the trainings (default: %(default)s)"
    )

    def run(options: argparse.Namespace) -> None:
        from fer_pll.demo import run_demo

        run_demo(options.out, options.seed)

    parser.set_defaults(run=run)


PREDICT = """\
Find the faces in pictures and videos and say what they express.

Each face is cropped as the pictures were that the model was trained on; the
checkpoint knows how. Pictures that are such crops already: --cropped.
"""

PREDICT_EPILOG = """\
examples:
  fer-pll predict photo.jpg --model runs/finetune
  fer-pll predict photos "more/*.png" --model runs/finetune --out faces.csv
  fer-pll predict talk.mp4 --every 25 --model runs/finetune --out talk.parquet
  fer-pll predict photos --model runs/finetune --save-pictures marked
  fer-pll predict crops --cropped --model runs/finetune --out crops.jsonl

The table has one row for each face: file, frame (of a video), face (from 0),
the box x, y, width, height in pixels, the detector's score, expression, p_CLASS
for every class, and problem. A picture without a face and a file that cannot be
read have a row that says so under problem. Without --out, faces are printed.

Ctrl-C ends it; the rows so far are then in NAME.partial.csv. A table gets its
own name only when it is whole.

The detectors need: pip install 'fer-pll[faces]'
"""


def add_predict(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="find faces in pictures and videos, and their expressions",
        description=PREDICT,
        epilog=PREDICT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="picture, video, folder, or pattern in quotes")
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument("--out", metavar="TABLE", help="table to write: .csv, .jsonl or .parquet")
    parser.add_argument("--save-pictures", metavar="DIR", help="new folder for the pictures with their faces marked")
    parser.add_argument("--overwrite", action="store_true", help="replace TABLE, and write into a DIR that has files")
    parser.add_argument("--cropped", action="store_true", help="each picture is a face crop: look for no faces")
    parser.add_argument(
        "--crop", metavar="MODEL", help="crop as for MODEL, where --model does not say how (e.g. fer-pll-tiny-ferplus)"
    )
    parser.add_argument(
        "--detector",
        default="retinaface",
        help="retinaface (works offline), yunet, or yunet:MODEL.onnx (default: %(default)s)",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="every Nth frame of a video (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="faces at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU, where there is one)")

    def run(options: argparse.Namespace) -> int:
        from fer_pll.faces.predict import predict

        arguments = {name: value for name, value in vars(options).items() if name != "run"}
        return 0 if predict(**arguments) else 130  # 128 + SIGINT, as shells have it

    parser.set_defaults(run=run)


AUDIT = """\
Find the labels of a training set that look wrong.

RUN is what finetune.py left: its confidences know which candidates were struck
out, when, and in favour of what. Writes to DIR a table of all rows, the most
suspicious first (audit.csv), a figure (audit.png), and a page to look through
them and mark them (audit.html; one file, opens in any browser).
"""

AUDIT_EPILOG = """\
examples:
  fer-pll audit runs/finetune --out audit
  fer-pll audit runs/finetune --out audit --cross-validate 5
  fer-pll audit fer-pll-demo/candidates --data fer-pll-demo/data --out audit

A training has seen the labels that it judges, and never doubts the only
candidate of a row. --cross-validate trains N models with the settings of RUN,
each on the rows outside its fold, and finds more. It takes N trainings; those
that are done are kept in RUN, so that the same command goes on after Ctrl-C.

What was marked on the page is applied by
  python train_scripts/prepare_data.py ... --corrections marks.csv
"""


def add_audit(commands) -> None:
    parser = commands.add_parser(
        "audit",
        help="find the labels of a training set that look wrong",
        description=AUDIT,
        epilog=AUDIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of finetune.py, or a checkpoint in it")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table, figure and page")
    parser.add_argument("--data", metavar="DIR", help="prepared data set (default: the one in RUN's settings)")
    parser.add_argument(
        "--cross-validate", type=int, metavar="N", dest="num_folds", help="judge by N models, each of a fold's others"
    )
    parser.add_argument(
        "--table", metavar="FILE", help="table to write: .csv, .jsonl or .parquet (default: audit.csv in --out)"
    )
    parser.add_argument(
        "--page-rows", type=int, default=30_000, metavar="N", help="rows on the page (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier audit")

    def run(options: argparse.Namespace) -> None:
        from fer_pll.evaluation.audit import run_audit

        arguments = {name: value for name, value in vars(options).items() if name not in ("run", "folder")}
        run_audit(options.folder, **arguments)

    parser.set_defaults(run=run)


# A new sub-command is one more function like `add_demo`, named here. It imports `fer_pll` inside `run` only.
COMMANDS = (add_demo, add_predict, add_audit)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `fer-pll`; what it parses holds the function to call as `run`."""
    parser = argparse.ArgumentParser(
        prog="fer-pll",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fer-pll {version('fer-pll')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (`sys.argv[1:]` where not given); without one, print the help.

    Returns:
        the exit status: 0, or 1 where the command met what its user can put right (`ValueError`, `OSError`; printed
        as one line), or 130 where Ctrl-C ended it. A command line that cannot be parsed exits with status 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv or ["--help"])
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
