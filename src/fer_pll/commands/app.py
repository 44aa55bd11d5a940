"""Show a page to try a model on: photographs, a webcam, videos.

Opens at an address of this machine, which other machines cannot reach. Images
stay here: the page asks no other host for anything. Boxes, all probabilities,
the crop that the model saw and, where asked for, heat maps that say why.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..inference.app import HOST, serve
from ..io.shipped import DEFAULT_NAME
from .options import AtLeast

EPILOG = """\
examples:
  fer-pll app
  fer-pll app --model runs/finetune
  fer-pll app --model runs/finetune-onnx --port 8000

The page needs: pip install 'fer-pll[app]'

On the page another model can be named, a folder or a name on the Hub, unless
--host lets other machines in: they get the models of this command line alone.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll app", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="folders or Hub names of trained models, or folders that `fer-pll export` wrote, to choose from "
        f"(default: {DEFAULT_NAME}, part of the package, which is always there)",
    )
    parser.add_argument(
        "--host", default=HOST, help="address to listen at; 0.0.0.0 lets other machines in (default: %(default)s)"
    )
    parser.add_argument("--port", type=AtLeast(1), help="port (default: the first free one from 7860 on)")
    parser.add_argument("--detector", default="retinaface", help="as for fer-pll predict (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    models = list(dict.fromkeys([*args.model, DEFAULT_NAME]))
    serve(models, args.host, args.port, args.host in (HOST, "localhost", "::1"), args.detector)


if __name__ == "__main__":
    fer_pll_cli.run(main)
