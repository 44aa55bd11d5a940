"""Paths of the files that come with the package: inside it in a wheel, at the top of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

DEFAULT_CHECKPOINT = str(_PACKAGE / "checkpoints" / "fer-pll-tiny-ferplus")
"""Folder of a classifier for the eight expressions of FER+; its README.md is its model card."""

DEFAULT_CONFIG = "fer-pll-tiny"
"""The name in `hub_configs` that training takes by default: for one's own data, as small as `DEFAULT_CHECKPOINT`."""

BACKBONE_CONFIG = "fer-pll-resnet18"
"""The name in `hub_configs` that fine-tuning takes by default with `--backbone`: for pre-trained networks."""


def shipped(name: str) -> Path:
    """Path of `hub_configs` or `model_card.md`."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parents[1] / name


def shipped_names() -> list[str]:
    """The names in `hub_configs`, sorted."""
    return sorted(path.parent.name for path in shipped("hub_configs").glob("*/config.json"))


def shipped_config(name: str) -> Path | None:
    """Folder of that name in `hub_configs`; `None` where there is none."""
    folder = shipped("hub_configs") / name
    return folder if (folder / "config.json").is_file() else None
