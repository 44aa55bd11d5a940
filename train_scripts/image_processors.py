"""Write the preprocessor_config.json of every configuration, so that none is written by hand.

    python train_scripts/image_processors.py

Sizes and normalization come from the config.json in the same folder, the crop from the data set that the
configuration trains on. A test compares the files with the output of this script.
"""

import json
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
HUB_CONFIGS = SCRIPTS.parent / "hub_configs"
FERPLUS = {
    "name": "FER+",
    "template": [[0.319, 0.396], [0.693, 0.393], [0.51, 0.593], [0.35, 0.761], [0.656, 0.757]],
    "size": 48,
    "color": "gray",
    "margin": 0.0,
}
# These are for data sets with other crops, or for any. `fer-pll measure-crop` measures them.
WITHOUT_CROP = ("rafdb", "affectnet7", "affectnet8", "fer-pll-tiny")
# Other networks, whose config.json has no image size. They take that of the configuration that they are compared with.
SAME_IMAGES = {
    "convnext": "fer-pll-tiny-ferplus",
    "resnet18": "fer-pll-tiny-ferplus",
    "resnet18-224": "fer-pll-vit-base-ferplus",
}


def folders() -> list[Path]:
    """The folders of all configurations."""
    return sorted(path.parent for root in (HUB_CONFIGS, SCRIPTS / "configs") for path in root.glob("*/config.json"))


def image_processor(folder: Path) -> str:
    """The text of a folder's preprocessor_config.json."""
    same = HUB_CONFIGS / SAME_IMAGES[folder.name] if folder.name in SAME_IMAGES else folder
    config = json.loads((same / "config.json").read_text())
    side = config["image_size"]
    settings = {
        "image_processor_type": "FerPllImageProcessor",
        "num_channels": config["num_channels"],
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config["image_mean"],
        "image_std": config["image_std"],
    }
    if not folder.name.endswith(WITHOUT_CROP):
        settings["face_crop"] = FERPLUS
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in settings.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    for folder in folders():
        (folder / "preprocessor_config.json").write_text(image_processor(folder))


if __name__ == "__main__":
    main()
