"""Paths of the files that come with the package: inside it in a wheel, at the top of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

DEFAULT_NAME = "fer-pll-tiny-ferplus"
"""The classifier that is taken by default: the best."""

VIT_NAME = "fer-pll-tiny-vit-ferplus"
"""The classifier with the ViT encoder, which was pre-trained on HOG."""

CHECKPOINTS = {name: str(_PACKAGE / "checkpoints" / name) for name in (DEFAULT_NAME, VIT_NAME)}
"""Folders of the classifiers for the eight expressions of FER+, by name; their README.md are their model cards."""

DEFAULT_CHECKPOINT = CHECKPOINTS[DEFAULT_NAME]

DEFAULT_CONFIG = "fer-pll-tiny"
"""The name in `hub_configs` that training takes by default: for one's own data, with the sizes of `VIT_NAME`."""

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
