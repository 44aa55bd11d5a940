"""The `fer-pll` command.

This module lies outside the package and imports nothing but the standard library, because `import fer_pll` loads
transformers and torch, which takes seconds: each sub-command imports what it needs when it runs.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec

DESCRIPTION = """\
Facial expression recognition from candidate label sets.

Annotators disagree about faces. fer-pll keeps every label that they may mean,
and looks for the true one while it trains.
"""

EPILOG = """\
examples:
  fer-pll demo                    the whole method on drawn faces, in minutes
  fer-pll demo --out runs/demo    the same, with the results in runs/demo
  fer-pll predict photos --out faces.csv
                                  the faces in a folder, and their expressions
  fer-pll export runs/finetune    the same model for onnxruntime, without torch
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
        from fer_pll.commands.demo import run_demo

        run_demo(options.out, options.seed)

    parser.set_defaults(run=run)


PREDICT = """\
Find the faces in pictures and videos and say what they express.

Each face is cropped as the pictures were that the model was trained on; the
checkpoint knows how. Pictures that are such crops already: --cropped.
"""

PREDICT_EPILOG = """\
examples:
  fer-pll predict photo.jpg
  fer-pll predict photos "more/*.png" --model runs/finetune --out faces.csv
  fer-pll predict talk.mp4 --every 25 --model runs/finetune --out talk.parquet
  fer-pll predict photos --model runs/finetune --save-pictures marked
  fer-pll predict crops --cropped --model runs/finetune --out crops.jsonl
  fer-pll predict photos --backend onnx --model runs/finetune-onnx

The table has one row for each face: file, frame (of a video), face (from 0),
the box x, y, width, height in pixels, the detector's score, expression, p_CLASS
for every class, and problem. A picture without a face and a file that cannot be
read have a row that says so under problem. Without --out, faces are printed.

Ctrl-C ends it; the rows so far are then in NAME.partial.csv. A table gets its
own name only when it is whole.

--backend onnx runs what `fer-pll export` wrote. It loads NumPy, Pillow and
onnxruntime, neither torch nor transformers, and so starts within a second.

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
    parser.add_argument(
        "--model", help="folder or Hub name of a trained model (default: fer-pll-tiny-ferplus, part of the package)"
    )
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), default="torch", help="what runs the model (default: %(default)s)"
    )
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
        if options.backend == "onnx":
            leave_out_transformers()
        from fer_pll.inference.predict import predict

        arguments = {name: value for name, value in vars(options).items() if name != "run"}
        return 0 if predict(**arguments) else 130  # 128 + SIGINT, as shells have it

    parser.set_defaults(run=run)


def leave_out_transformers() -> None:
    """Let modules of `fer_pll` be imported without the package's `__init__`, which loads transformers and torch.

    What runs an exported model needs neither. Nothing changes where the package is imported already.
    """
    if "fer_pll" not in sys.modules:
        sys.modules["fer_pll"] = module_from_spec(find_spec("fer_pll"))


EXPORT = """\
Write a trained classifier as an ONNX file, for onnxruntime.

The folder that it goes to then does without torch and transformers:
`fer-pll predict --backend onnx` runs it.
"""

EXPORT_EPILOG = """\
examples:
  fer-pll export runs/finetune
  fer-pll export runs/finetune --dtype int8 --data data/ferplus
  fer-pll predict photos --backend onnx --model runs/finetune-onnx

The folder holds model.onnx, which takes `pixel_values`, float32 (batch,
channels, height, width), any batch, and gives `logits`; config.json with the
names of the classes; preprocessor_config.json with what makes pixel_values of a
picture, and how a face is cropped.

Before the folder is there, its answers are compared with those of torch, from
the picture on, on drawn faces and on pictures of --data. Logits that differ by
more than 0.0001 end the export. int8 rounds weights and activations to 8 bits:
there, the most likely class must be the same for 98 of 100 pictures.

Needs: pip install 'fer-pll[onnx]'
"""


def add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a trained classifier as an ONNX file, to be used without torch",
        description=EXPORT,
        epilog=EXPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub name of a trained classifier")
    parser.add_argument(
        "--dtype", choices=("float32", "int8"), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared data set: compare on 500 pictures of its split validation as well"
    )
    parser.add_argument("--out", metavar="DIR", help="new folder (default: CHECKPOINT-onnx, or CHECKPOINT-onnx-int8)")

    def run(options: argparse.Namespace) -> None:
        from fer_pll.inference.onnx_export import export_onnx

        folder, closeness = export_onnx(options.checkpoint, options.out, options.dtype, options.data)
        print(f"written to {folder}: {closeness}")

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
        from fer_pll.audit.report import run_audit

        arguments = {name: value for name, value in vars(options).items() if name not in ("run", "folder")}
        run_audit(options.folder, **arguments)

    parser.set_defaults(run=run)


# A new sub-command is one more function like `add_demo`, named here. It imports `fer_pll` inside `run` only.
COMMANDS = (add_demo, add_predict, add_export, add_audit)


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
