"""Propose candidate sets for images without labels, by teachers.

A set holds the fewest most probable classes that together have the share
--coverage of the teachers' probability, so that a sure prediction gives one
candidate and an unsure one several. `fer-pll finetune` finds the true label in
these sets as in those of annotators. The new set has the candidates and, as
confidences, the probabilities on them. With --join it also has all rows and
splits of a labeled set, so that both train one model; images that are in one
of its splits already, with the same pixels, are left out.
"""

import argparse
from collections.abc import Sequence

import fer_pll_cli

from ..data.dataset import check_output_folder, save_dataset
from ..io.atomic import check_apart
from ..io.terminal import say
from ..training.proposals import propose
from .options import AtLeast, quiet_transformers

EPILOG = """\
example:
  fer-pll finetune --data data/ferplus --output_dir runs/teacher
  fer-pll propose data/faces --teacher runs/teacher --join data/ferplus \\
      --out data/ferplus-and-faces
  fer-pll finetune --data data/ferplus-and-faces --confidence_init column \\
      --teacher runs/teacher --output_dir runs/student
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll propose", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="folder written by fer-pll prepare; labels of its split train are not used")
    parser.add_argument(
        "--teacher",
        nargs="+",
        required=True,
        metavar="CHECKPOINT",
        help="trained classifiers: folders, fer-pll-tiny-ferplus (in the package) or Hub names",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for the prepared set")
    parser.add_argument("--join", metavar="DIR", help="labeled set whose rows and splits the new set has as well")
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of the probability that a candidate set holds (default: %(default)s)",
    )
    parser.add_argument(
        "--least",
        type=float,
        default=0.0,
        metavar="P",
        help="leave out images whose most probable class has less than P (default: %(default)s)",
    )
    parser.add_argument(
        "--max-candidates", type=AtLeast(1), default=2, metavar="N", help="of --join's votes (default: 2)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU, where there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared set in --out")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    quiet_transformers()
    check_apart(args.out, filter(None, (args.images, args.join)))
    check_output_folder(args.out, args.overwrite)
    made = propose(args.images, args.teacher, args.join, args.coverage, args.least, args.max_candidates, args.device)
    save_dataset(made.dataset, args.out, args.overwrite)
    sizes = ", ".join(f"{count:,} of {size}" for size, count in made.set_sizes.items())
    if made.copies:
        say(f"{made.copies:,} images are in {args.join} already and were left out")
    say(f"{made.proposed:,} images have candidate sets now ({sizes}), {made.left_out:,} were left out as too unsure")
    say(f"saved in {args.out}")
    fer_pll_cli.next_command("finetune", "--data", args.out, "--output_dir", "runs/student")


if __name__ == "__main__":
    fer_pll_cli.run(main)
