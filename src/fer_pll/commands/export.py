"""Export a classifier to ONNX, for onnxruntime or a web page.

`fer-pll predict --backend onnx` runs the exported folder without torch and
transformers. --layout web writes a page that finds faces and names their
expressions in the browser, on any static host; images never leave it.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..inference.onnx_export import export_onnx
from ..inference.web_export import export_web
from ..io.terminal import say
from .options import quiet_transformers

EPILOG = """\
examples:
  fer-pll export runs/finetune
  fer-pll export runs/finetune --dtype int8 --data data/ferplus
  fer-pll predict photos --backend onnx --model runs/finetune-onnx
  npm pack onnxruntime-web@1.30.0
  fer-pll export runs/finetune --layout web --runtime onnxruntime-web-1.30.0.tgz

The folder holds model.onnx, which takes `pixel_values`, float32 (batch,
channels, height, width), with any batch size, and gives `logits`; config.json
with the names of the classes; and preprocessor_config.json, which says how an
image becomes pixel_values and how a face is cropped.

Before the folder appears, the export is compared with torch, from the image on,
on drawn faces and on images of --data. Logits that differ by more than 0.0001
end the export. int8 rounds weights and activations to 8 bits; there the most
likely class must be the same for 98 of 100 images.

The page needs onnxruntime-web, which is no Python package: npm pack fetches it
as one file (33 MB; no installation), and --runtime takes the two files out of
it that the page loads (14 MB). From then on nothing needs the network. The
folder has the model in float32 and int8, and transformers.js loads it too.

Needs: pip install 'fer-pll[onnx]' (--layout web: 'fer-pll[faces,onnx]')
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
        "--layout",
        choices=("onnxruntime", "web"),
        default="onnxruntime",
        help="what the folder is for (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime",
        metavar="FILE",
        help="--layout web: what `npm pack onnxruntime-web` fetched, or the folder that npm installed it to",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "int8"), help="of the weights (default: float32; --layout web has both)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared data set: compare on 500 images of its split `validation` too"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="new folder (default: CHECKPOINT-onnx, CHECKPOINT-onnx-int8 or CHECKPOINT-web)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    quiet_transformers()
    if args.layout == "web":
        if args.dtype is not None:
            raise ValueError(f"--dtype {args.dtype}: --layout web has both types; leave it out")
        folder, closeness = export_web(args.checkpoint, args.runtime, args.out, args.data)
        say(f"written to {folder}: {closeness}", f"try it: python -m http.server --directory {folder}")
        return
    if args.runtime is not None:
        raise ValueError(f"--runtime {args.runtime} is for --layout web")
    folder, closeness = export_onnx(args.checkpoint, args.out, args.dtype or "float32", args.data)
    say(f"written to {folder}: {closeness}")
    fer_pll_cli.next_command("predict", "PHOTO.jpg", "--backend", "onnx", "--model", folder)


if __name__ == "__main__":
    fer_pll_cli.run(main)
