"""Find the faces in images and videos, and name their expressions.

Each face is cropped like the training images of the model; the checkpoint says
how. If your images are such crops already, use --cropped.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..inference.predict import predict
from ..inference.video import SMOOTHING
from .options import AtLeast, add_safe_csv

EPILOG = """\
examples:
  fer-pll predict photo.jpg
  fer-pll predict photos "more/*.png" --model runs/finetune --out faces.csv
  fer-pll predict talk.mp4 --out talk.csv --save-timelines charts
  fer-pll predict talk.mp4 --save-video marked
  fer-pll predict talk.mp4 --every 25 --model runs/finetune --out talk.parquet
  fer-pll predict --camera 0 --model runs/finetune-onnx
  fer-pll predict stadium.jpg --min-face 40
  fer-pll predict photos --model runs/finetune --save-pictures marked
  fer-pll predict photo.jpg --explain why
  fer-pll predict crops --cropped --model runs/finetune --out crops.jsonl
  fer-pll predict https://example.org/group.jpg
  fer-pll predict photos --model runs/finetune-onnx

The table has one row for each face: file, frame (of a video), face (from 0),
the box x, y, width, height in pixels, the detector's score, expression, p_CLASS
for every class, and problem. An image without a face and a file that cannot be
read have a row that says so under problem. Without --out, faces are printed.

The faces of a video are followed: the table has also time (seconds since the
first frame), person (from 0; who is away for up to a second keeps the number),
and raw_CLASS, what the frame alone gave, where p_CLASS is smoothed over time.

Ctrl-C stops the command. The rows so far are then in NAME.partial.csv: a table
gets its own name only when it is complete.

A folder that `fer-pll export` wrote runs with NumPy, Pillow and onnxruntime,
without torch and transformers, so it starts within a second.

The detectors need: pip install 'fer-pll[faces]'
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll predict", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="image, video, folder, pattern in quotes, or URL (http, https)"
    )
    parser.add_argument(
        "--model", help="folder or Hub name of a trained model (default: fer-pll-tiny-ferplus, part of the package)"
    )
    parser.add_argument("--backend", choices=("torch", "onnx"), help="what runs the model (default: what it is for)")
    parser.add_argument("--out", metavar="TABLE", help="table to write: .csv, .jsonl or .parquet")
    add_safe_csv(parser)
    parser.add_argument("--save-pictures", metavar="DIR", help="new folder for the images with their faces marked")
    parser.add_argument("--save-video", metavar="DIR", help="new folder for the videos with their faces marked (MP4)")
    parser.add_argument(
        "--save-timelines", metavar="DIR", help="new folder for a chart of each video: expressions over time (PNG)"
    )
    parser.add_argument(
        "--explain",
        metavar="DIR",
        dest="save_explanations",
        help="new folder for a PNG of each face: heat maps of what speaks for its expressions, and what against them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TABLE, and write into a DIR that has files")
    parser.add_argument("--camera", type=AtLeast(0), metavar="N", help="watch camera N (from 0) until Ctrl-C")
    crops = parser.add_mutually_exclusive_group()
    crops.add_argument("--cropped", action="store_true", help="each image is a face crop: do not look for faces")
    crops.add_argument(
        "--crop", metavar="MODEL", help="crop as for MODEL if --model does not say how (e.g. fer-pll-tiny-ferplus)"
    )
    parser.add_argument(
        "--detector",
        default="retinaface",
        help="retinaface (works offline), yunet, or yunet:MODEL.onnx (default: %(default)s)",
    )
    parser.add_argument(
        "--every", type=AtLeast(1), default=1, metavar="N", help="every Nth frame of a video (default: %(default)s)"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=SMOOTHING,
        metavar="SECONDS",
        help="time over which the answers of a video are smoothed; 0: not at all (default: %(default)s)",
    )
    parser.add_argument(
        "--min-face",
        type=AtLeast(14),
        metavar="N",
        help="find faces down to N pixels in big images too, in tiles; 40 pixels in 24 megapixels take 13 searches "
        "instead of one (default: faces of at least 2 %% of the longer side)",
    )
    parser.add_argument(
        "--batch-size", type=AtLeast(1), default=16, metavar="N", help="faces at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU, where there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.sources and args.camera is None:
        parser.error("name images or videos, or a camera with --camera N")
    whole = predict(**vars(args))
    return 0 if whole else 130  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    fer_pll_cli.run(main)
