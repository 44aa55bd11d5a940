"""Shards of small images, and a pre-training on them, for tests that need processes of their own.

python toy_streaming.py OUT SCENARIOS, where SCENARIOS is JSON: {name: [data, settings, checkpoint]}; each process
writes what it saw to OUT/NAME-rank.pt.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value

import fer_pll_cli
from fer_pll.data.streaming.stream import ImageStream
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.pretraining import FerPllPreTrainer
from tiny import make_images, make_pretrainer, tiny_config, tiny_processor

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "max_steps": 12,
    "save_steps": 3,
    "save_strategy": "steps",
    "crop_scale": 0.7,
    "shuffle_buffer": 10,
}


def encoded(count: int, seed: int) -> list[bytes]:
    """PNG files of 16 px images, all different."""
    files = []
    for image in make_images(np.arange(count) % 4, seed):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


def write_parquet(path: Path, files: list[bytes]) -> None:
    """In row groups of eight."""
    columns = {"face": [{"bytes": file, "path": None} for file in files], "note": ["x"] * len(files)}
    Dataset.from_dict(columns, features=Features(face=Image(), note=Value("string"))).to_parquet(
        path, batch_size=8, write_page_checksum=True
    )


def write_tar(path: Path, files: list[bytes], mode: str = "w") -> None:
    """As a WebDataset, with a mask and a description beside each image."""
    with tarfile.open(path, mode) as archive:
        for number, file in enumerate(files):
            for ending, contents in (("png", file), ("mask.png", b"no image"), ("json", b"{}")):
                member = tarfile.TarInfo(f"faces/{number:04}.{ending}")
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))


def write_folder(folder: Path, files: list[bytes]) -> None:
    for number, file in enumerate(files):
        path = folder / f"{number % 3}" / "deep" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)


def write_shards(folder: Path) -> Path:
    """Four shards: two Parquet files, a tar file, a folder; 20 + 9 + 12 + 7 images."""
    folder.mkdir(parents=True)
    write_parquet(folder / "a.parquet", encoded(20, 1))
    write_parquet(folder / "b.parquet", encoded(9, 2))
    write_tar(folder / "c.tar", encoded(12, 3))
    write_folder(folder / "pictures", encoded(7, 4))
    return folder


class WatchedTrainer(FerPllPreTrainer):
    """Notes pass, index and pixels, as augmented, of each image that is trained on."""

    def _prepare_inputs(self, inputs):
        epochs = inputs["epoch"].tolist()
        inputs = super()._prepare_inputs(inputs)
        sums = inputs["pixel_values"].flatten(1).sum(dim=1).tolist()
        self.seen += zip(epochs, inputs["index"].tolist(), sums, strict=True)
        return inputs


def make_stream_trainer(folder: Path, data: list[str], settings: dict) -> WatchedTrainer:
    def stream(args: FerPllPreTrainingArguments) -> ImageStream:
        return ImageStream(data, args.shuffle_buffer, args.seed, args.process_index, args.world_size)

    settings = DEFAULTS | settings
    trainer = make_pretrainer(
        folder, tiny_config(), tiny_processor(), stream, trainer_class=WatchedTrainer, **settings
    )
    trainer.seen = []
    return trainer


def run(folder: Path, data: list[str], settings: dict, resume: str | None = None, callbacks: tuple = ()) -> dict:
    """Pre-train, and return what was seen, the losses and the weights."""
    trainer = make_stream_trainer(folder, data, settings)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "seen": trainer.seen,
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "epochs": [log["epoch"] for log in trainer.state.log_history if "loss" in log],
        "weights": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
    }


def main() -> None:
    out, scenarios = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, (data, settings, resume) in scenarios.items():
        result = run(out / name, data, settings, resume)
        torch.save(result, out / f"{name}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
    fer_pll_cli.end_process(0)
