"""Where the checkpoint lies that comes with the package."""

from pathlib import Path

DEFAULT_CHECKPOINT = str(Path(__file__).with_name("checkpoints") / "fer-pll-tiny-ferplus")
"""Folder of a classifier of the eight expressions of FER+; its README.md is its card."""
