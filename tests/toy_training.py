"""A training on the toy data, for tests that need processes of their own. Each writes what it saw to OUT/NAME-rank.pt.

python toy_training.py OUT SCENARIOS, where SCENARIOS is JSON: {name: [rows, settings]}. "{rank}" in OUT stands for the
number of the process: each then has a disk of its own.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

import fer_pll_cli
from backbones import SOURCES, queries_on
from fer_pll import FerPllImageProcessor, FerPllTrainer
from fer_pll.training.checkpoints import NonFiniteLossError
from fer_pll.training.signals import RunInterrupted
from tiny import make_dataset, make_trainer, tiny_config, tiny_processor

DEFAULTS = {
    "num_train_epochs": 4,
    "revision_threshold": 0.05,
    "crop_scale": 0.7,
    "light": 0.2,
    "uniform_weight": 0.5,
}


class Watcher(TrainerCallback):
    """Notes the table of this process after each step."""

    def __init__(self, trainer: FerPllTrainer):
        self.trainer = trainer
        self.tables = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.tables.append(self.trainer.table.confidence.clone())


class SignalSender(TrainerCallback):
    """Sends SIGUSR1 to the process `rank` itself, in the middle of step `step`."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1 and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGUSR1)


class WatchedTrainer(FerPllTrainer):
    """Notes which rows each micro-batch holds, which of them count and which may be revised."""

    def get_batch_samples(self, *args):
        batches, number = super().get_batch_samples(*args)
        self.seen.append([{key: batch[key].tolist() for key in ("index", "counts", "revisable")} for batch in batches])
        return batches, number

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        broken = model.training and self.state.global_step + 1 == self.break_at
        return loss * float("nan") if broken else loss


def run(folder: Path, rows: int, settings: dict) -> dict:
    """Train, and return losses, gradient norms, the table after every step, and what training ended with."""
    settings = DEFAULTS | settings
    resume, callbacks = settings.pop("resume", None), settings.pop("callbacks", [])
    save, break_at = settings.pop("save", False), settings.pop("break_at", None)
    callbacks = [*callbacks, *([SignalSender(*settings.pop("signal_at"))] if "signal_at" in settings else [])]
    data = make_dataset(rows), make_dataset(24, seed=1)
    config, processor = tiny_config(drop_path_rate=settings.pop("drop_path_rate", 0.0)), tiny_processor()
    if backbone := settings.pop("backbone", None):
        config = queries_on(SOURCES[backbone][1])
        processor = FerPllImageProcessor(size={"height": config.image_size, "width": config.image_size})
    trainer = make_trainer(folder, config, processor, *data, trainer_class=WatchedTrainer, **settings)
    trainer.seen, trainer.break_at = [], break_at
    watcher = Watcher(trainer)
    for callback in [watcher, *callbacks]:
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except NonFiniteLossError as error:
        if break_at is None:
            raise
        return {"error": str(error)}
    if save:
        trainer.save_model()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "world_size": trainer.args.world_size,
        "sharded": isinstance(model, FSDPModule),
        "losses": [log["loss"] for log in logs],
        "grad_norms": [log["grad_norm"] for log in logs],
        "seen": trainer.seen,
        "tables": torch.stack(watcher.tables) if watcher.tables else None,
        "table": trainer.table.confidence,
        "revised_epoch": trainer.table.revised_epoch,
        "eval_loss": trainer.evaluate()["eval_loss"],
        "weights": {name: whole(p.detach()).clone() for name, p in model.named_parameters()},
        "state": {k: v for k, v in trainer.method.state_dict().items() if not isinstance(v, dict)},
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, of which FSDP2 has a part on each process. All of them call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main() -> None:
    out, scenarios = Path(sys.argv[1].format(rank=os.environ.get("RANK"))), json.loads(sys.argv[2])
    for name, (rows, settings) in scenarios.items():
        result = run(out / name, rows, settings)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    try:
        main()
    except RunInterrupted as interrupt:
        print(interrupt)
        fer_pll_cli.end_process(interrupt.status)
    fer_pll_cli.end_process(0)
