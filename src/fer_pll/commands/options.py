"""What several commands share: options and numbers on the command line, and quiet libraries."""

import argparse
import os


class AtLeast:
    """The `type` of an option that takes a whole number: others end the command before it begins, with status 2."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < self.least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {self.least} up")
        return number


def add_safe_csv(parser: argparse.ArgumentParser) -> None:
    """The option of every command that writes a CSV table with names in it: files', rows', classes'."""
    parser.add_argument(
        "--safe-csv",
        action="store_true",
        help="in a CSV table, put an apostrophe before text that begins like a formula (=, +, -, @), which a "
        "spreadsheet would run; other programs see the apostrophe",
    )


def quiet_transformers() -> None:
    """Leave out what transformers says about loading and saving, which the commands say in their own words.

    Downloads keep their progress bars. TRANSFORMERS_VERBOSITY, where it is set, shows everything again.
    """
    if "TRANSFORMERS_VERBOSITY" in os.environ:
        return
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # predict can do without them
    from transformers.utils import logging

    downloads_are_shown = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads_are_shown:
        enable_progress_bars()
