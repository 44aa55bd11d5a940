"""The trainings that faults are done to: seconds long, with everything on that a resumed run could lose."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 12,
    "hog_cell_size": 6,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "query_decoder_num_hidden_layers": 1,
    "mask_ratio": 0.5,
}
NUM_TRAIN, NUM_VALIDATION = 64, 16
BATCH_SIZE, SAVE_STEPS, STEPS = 8, 4, 16
SHIPPED = Path(__file__).parents[2] / "hub_configs" / "fer-pll-tiny"

_COMMON = (
    *(
        "--per_device_train_batch_size",
        BATCH_SIZE,
        "--learning_rate",
        3e-3,
        "--warmup_steps",
        2,
        "--save_total_limit",
        3,
        "--rotation",
        10,
    ),
    *("--crop_scale", 0.7, "--flip", "true", "--light", 0.2, "--logging_steps", 1, "--save_strategy", "steps"),
    *("--save_steps", SAVE_STEPS, "--use_cpu", "true", "--disable_tqdm", "true"),
    *("--report_to", "none", "--init_from", "none"),
)
_FINETUNE = ("--num_train_epochs", 2, "--drop_path_rate", 0.2)
_SOFT = ("--loss", "pll", "--revision", "soft", "--revision_momentum", 0.8)
_STATE = (
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
    "processes.json",
    "checksums.json",
)
_MODEL = ("model.safetensors", "config.json")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        command: of fer-pll.
        options: beside those of the data and the output folder.
        data: name in the folder of the data.
        files: that a checkpoint of one process has.
    """

    command: str
    options: tuple[object, ...]
    files: tuple[str, ...]
    data: str = "faces"

    def argv(self, root: Path, output: Path, *more: object) -> list[object]:
        """The words after `fer-pll` that train in a folder, with the data and the configuration in `root`."""
        places = ("--config", root / "config", "--data", root / self.data, "--output_dir", output)
        return [self.command, *places, *_COMMON, *self.options, *more]


_WRITTEN = (*_STATE, *_MODEL, "preprocessor_config.json", "rng_state.pth")
JOBS = {
    # The table changes with every step, so a step too many or too few shows.
    "finetune": Job(
        "finetune",
        (*_FINETUNE, *_SOFT, "--eval_strategy", "steps", "--eval_steps", 7),
        (*_WRITTEN, "confidence.safetensors"),
    ),
    "workers": Job(
        "finetune",
        (*_FINETUNE, *_SOFT, "--eval_strategy", "no", "--dataloader_num_workers", 2),
        (*_WRITTEN, "confidence.safetensors"),
    ),
    "paper": Job(
        "finetune",
        (*_FINETUNE, "--eval_strategy", "no", "--revision", "margin", "--revision_threshold", 0.02),
        (*_WRITTEN, "confidence.safetensors"),
    ),
    # A method with a state of its own, and an average of the weights.
    "pico": Job(
        "finetune",
        (*_FINETUNE, "--eval_strategy", "no", "--loss", "pico", "--average_decay", 0.5),
        (*_WRITTEN, "confidence.safetensors", "method.pt", "last_weights.safetensors"),
    ),
    "pretrain": Job(
        "pretrain", ("--num_train_epochs", 2, "--picture_steps", 0), (*_WRITTEN, "images.json")
    ),
    "stream": Job(
        "pretrain",
        ("--max_steps", STEPS, "--picture_steps", 0, "--dataloader_num_workers", 2, "--shuffle_buffer", 10),
        (*_WRITTEN, "stream_0.json"),
        data="shards",
    ),
}  # fmt: skip


def write_config(root: Path) -> None:
    """The folder of the model's configuration, for `--config`."""
    folder = root / "config"
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((SHIPPED / "config.json").read_text()) | SIZES
    processor = json.loads((SHIPPED / "preprocessor_config.json").read_text())
    processor["size"] = {"height": SIZES["image_size"], "width": SIZES["image_size"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def prepare_argv(out: Path, seed: int = 0) -> list[object]:
    """The words after `fer-pll` that draw the faces."""
    sizes = ("--num-train", NUM_TRAIN, "--num-validation", NUM_VALIDATION, "--num-test", 0, "--image-size", 24)
    return ["prepare", "synthetic", "--out", out, "--seed", seed, "--num-proc", 1, *sizes]


def write_shards(root: Path) -> None:
    """The images of the prepared set as four tar files."""
    from datasets import Image, load_from_disk

    images = load_from_disk(str(root / "faces"))["train"].cast_column("image", Image(decode=False))["image"]
    folder = root / "shards"
    folder.mkdir(exist_ok=True)
    for number in range(4):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for place, image in list(enumerate(images))[number::4]:
                member = tarfile.TarInfo(f"{place:04}.png")
                member.size = len(image["bytes"])
                archive.addfile(member, io.BytesIO(image["bytes"]))
