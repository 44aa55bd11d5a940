"""A training on the toy data, for tests that need processes of their own. Each writes what it saw to OUT/NAME-rank.pt.

python toy_training.py OUT SCENARIOS, where SCENARIOS is JSON: {name: [rows, settings]}.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from conftest import CLASSES, make_dataset
from fer_pll import (
    FerPllConfig,
    FerPllForImageClassification,
    FerPllImageProcessor,
    FerPllTrainer,
    FerPllTrainingArguments,
)

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 1,
    "hog_cell_size": 4,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "image_std": [0.25],
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: i for i, name in enumerate(CLASSES)},
}
DEFAULTS = {
    "num_train_epochs": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "revision_threshold": 0.05,
    "crop_scale": 0.7,
    "light": 0.2,
    "uniform_weight": 0.5,
    "disable_tqdm": True,
    "use_cpu": True,
}


class Watcher(TrainerCallback):
    """Notes the table of this process after each step."""

    def __init__(self, trainer: FerPllTrainer):
        self.trainer = trainer
        self.tables = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.tables.append(self.trainer.table.confidence.clone())


class WatchedTrainer(FerPllTrainer):
    """Notes which rows each micro-batch holds, which of them count and which may be revised."""

    def get_batch_samples(self, *args):
        batches, number = super().get_batch_samples(*args)
        self.seen.append([{key: batch[key].tolist() for key in ("index", "counts", "revisable")} for batch in batches])
        return batches, number


def run(folder: Path, rows: int, settings: dict) -> dict:
    """Train, and return losses, gradient norms, the table after every step, and what training ended with."""
    settings = DEFAULTS | settings
    resume, callbacks = settings.pop("resume", None), settings.pop("callbacks", [])
    args = FerPllTrainingArguments(output_dir=str(folder), **settings)
    set_seed(args.seed)
    trainer = WatchedTrainer(
        FerPllForImageClassification(FerPllConfig(**CONFIG)),
        args,
        processing_class=FerPllImageProcessor(num_channels=1, size={"height": 16, "width": 16}, image_std=[0.25]),
        train_dataset=make_dataset(rows),
        eval_dataset=make_dataset(24, seed=1),
    )
    trainer.seen = []
    watcher = Watcher(trainer)
    for callback in [watcher, *callbacks]:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "world_size": args.world_size,
        "losses": [log["loss"] for log in logs],
        "grad_norms": [log["grad_norm"] for log in logs],
        "seen": trainer.seen,
        "tables": torch.stack(watcher.tables) if watcher.tables else None,
        "table": trainer.table.confidence,
        "revised_epoch": trainer.table.revised_epoch,
        "eval_loss": trainer.evaluate()["eval_loss"],
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
    }


def main() -> None:
    out, scenarios = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, (rows, settings) in scenarios.items():
        result = run(out / name, rows, settings)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main()
