"""Export a trained classifier to ONNX, for onnxruntime.

`fer-pll predict --backend onnx` runs the exported folder without torch and
transformers.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..inference.onnx_export import export_onnx
from ..io.terminal import say
from .options import quiet_transformers

EPILOG = """\
examples:
  fer-pll export runs/finetune
  fer-pll export runs/finetune --dtype int8 --data data/ferplus
  fer-pll predict photos --backend onnx --model runs/finetune-onnx

The folder holds model.onnx, which takes `pixel_values`, float32 (batch,
channels, height, width), with any batch size, and gives `logits`; config.json
with the names of the classes; and preprocessor_config.json, which says how an
image becomes pixel_values and how a face is cropped.

Before the folder appears, the export is compared with torch, from the image on,
on drawn faces and on images of --data. Logits that differ by more than 0.0001
end the export. int8 rounds weights and activations to 8 bits; there the most
likely class must be the same for 98 of 100 images.

Needs: pip install 'fer-pll[onnx]'
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll export", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="trained classifier: folder, fer-pll-tiny-ferplus, or Hub name",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "int8"), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared data set: compare on 500 images of its split `validation` too"
    )
    parser.add_argument("--out", metavar="DIR", help="new folder (default: CHECKPOINT-onnx, or CHECKPOINT-onnx-int8)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    quiet_transformers()
    folder, closeness = export_onnx(args.checkpoint, args.out, args.dtype, args.data)
    say(f"written to {folder}: {closeness}")
    fer_pll_cli.next_command("predict", "PHOTO.jpg", "--backend", "onnx", "--model", folder)


if __name__ == "__main__":
    fer_pll_cli.run(main)
