"""Measure where the faces of a data set lie in its images.

Finds the five landmarks in a sample of the images and prints, for each, the
median place and the interquartile range (IQR), in pixels and in shares of the
side. Then it prints the entry `face_crop` for the preprocessor_config.json of a
model trained on these images.

A detector finds no faces in images as small as FER+'s: --enlarge enlarges them
first. Each image is put on a canvas of 1.5 times its side.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

import fer_pll_cli

from ..data.dataset import load_dataset
from ..io.images import max_pixels
from ..io.terminal import say
from ..model.face_alignment import LANDMARKS
from ..model.face_detection import find_faces, load_detector
from .options import AtLeast

EPILOG = """\
example:
  fer-pll measure-crop data/ferplus --enlarge 4 --count 2000 --name FER+

Needs: pip install 'fer-pll[faces]'
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll measure-crop",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="folder written by fer-pll prepare; its images are square and of one size")
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument(
        "--count", type=AtLeast(1), default=2000, metavar="N", help="images to look at (default: %(default)s)"
    )
    parser.add_argument(
        "--enlarge", type=AtLeast(1), default=1, metavar="N", help="enlarge N times before detection (default: 1)"
    )
    parser.add_argument("--detector", default="retinaface", help="as of fer-pll predict (default: %(default)s)")
    parser.add_argument("--name", help="of the crop, e.g. FER+ (default: the folder's)")
    parser.add_argument("--seed", type=AtLeast(0), default=0, help="of the sample (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    dataset = load_dataset(args.data, args.split)
    rows = np.random.default_rng(args.seed).permutation(len(dataset))[: args.count]
    sides = {dataset[0]["image"].width, dataset[0]["image"].height}
    most = max(1, int((max_pixels() / 2.25) ** 0.5 / max(sides)))  # the canvas has 2.25 times the pixels
    if args.enlarge > most:
        raise ValueError(f"--enlarge {args.enlarge}: images of {max(sides)} pixels can be made {most} times as large")
    detector = load_detector(args.detector)
    found, modes = [], set()
    for row in tqdm(rows.tolist(), "measure", unit="image", disable=None):
        image = dataset[row]["image"]
        sides |= {image.width, image.height}
        if len(sides) > 1:
            raise ValueError(f"{dataset[row]['row_id']}: {image.size} pixels; all images must have one square size")
        modes.add(image.mode)
        (side,) = sides
        corner = side * args.enlarge // 4
        canvas = Image.new("RGB", (side * args.enlarge + 2 * corner,) * 2, (128, 128, 128))
        canvas.paste(image.resize((side * args.enlarge,) * 2, Image.Resampling.BICUBIC), (corner, corner))
        faces = find_faces(canvas, detector)
        if faces:
            found.append((faces[0].landmarks - corner) / (side * args.enlarge))
    if not found:
        raise ValueError(f"no face was found in {len(rows)} images: try --enlarge 4")

    low, median, high = np.percentile(found, (25, 50, 75), axis=0)  # (5, 2) each
    say(f"a face was found in {len(found)} of {len(rows)} images of {side} x {side} pixels")
    say(f"{'':20} {'median (px)':>14} {'IQR (px)':>12} {'median (share)':>16}")
    for name, at, spread in zip(LANDMARKS, median, high - low, strict=True):
        x, y = at * side
        say(f"{name:20} {x:7.2f}{y:7.2f} {spread[0] * side:6.2f}{spread[1] * side:6.2f} {at[0]:9.4f}{at[1]:7.4f}")
    name, color = args.name or Path(args.data).name, "gray" if modes == {"L"} else "rgb"
    contract = {"name": name, "template": median.round(3).tolist(), "size": side, "color": color, "margin": 0.0}
    say("next: put this into the preprocessor_config.json of the model's --config, then fer-pll finetune")
    say(json.dumps({"face_crop": contract}))


if __name__ == "__main__":
    fer_pll_cli.run(main)
