"""Write the texts that `fer-pll NAME --help` prints, from the parsers (`make help-texts`).

They are checked in and part of the package, so that help needs no imports of the command itself.
"""

import argparse
import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from unittest.mock import patch

from fer_pll_cli import COMMANDS, HELP, module_name

WIDTH = 80

TEXT = """\
usage: fer-pll COMMAND ...

Facial expression recognition from candidate label sets.

Annotators disagree about faces. fer-pll keeps every label that they may mean,
and looks for the true one while it trains.

commands:
{commands}

options:
  -h, --help            show this text and exit
  --version             show the version and exit

examples:
  fer-pll demo                    the whole method on drawn faces, in minutes
  fer-pll predict photos --out faces.csv
                                  the faces in a folder, and their expressions
  fer-pll prepare ferplus path/to/ferplus --out data/ferplus
  fer-pll pretrain --config fer-pll-tiny-hog --data data/ferplus \\
      --output_dir runs/pretrain
  fer-pll finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --init_from runs/pretrain --output_dir runs/finetune
  fer-pll evaluate runs/finetune data/ferplus
  fer-pll audit runs/finetune --out audit
                                  which labels of the training set look wrong
  fer-pll export runs/finetune    the same model for onnxruntime, without torch
  fer-pll predict --help          what one command does, and its options
"""


def help_texts() -> Iterator[tuple[str, str]]:
    """Name of each file, without .txt, and its text. They are the same on every machine."""
    summaries = []
    for command in COMMANDS:
        module = import_module(module_name(command))
        description = inspect.getdoc(module)
        assert description is not None, f"{module.__name__} has no docstring"
        summary = description.splitlines()[0].rstrip(".")
        summaries.append(f"  {command:13} {summary[0].lower()}{summary[1:]}")
        with patch.dict(os.environ, COLUMNS=str(WIDTH + 2), NO_COLOR="1"):  # argparse leaves two columns free
            parser = module.make_parser()
            yield command, parser.format_help()
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    for name, subparser in action.choices.items():
                        yield f"{command}-{name}", subparser.format_help()
    yield "fer-pll", TEXT.format(commands="\n".join(summaries))


if __name__ == "__main__":
    HELP.mkdir(exist_ok=True)
    texts = dict(help_texts())
    for path in HELP.glob("*.txt"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        (HELP / f"{name}.txt").write_text(text, encoding="utf-8")
