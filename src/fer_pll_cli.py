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
  fer-pll demo --help             what one command does, and its options

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


# A new sub-command is one more function like `add_demo`, named here. It imports `fer_pll` inside `run` only.
COMMANDS = (add_demo,)


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
        as one line). A command line that cannot be parsed exits with status 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv or ["--help"])
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
