"""Time and memory of fine-tuning at several batch sizes (Section 4.2.2 of the paper)."""

import json
import os
import subprocess
import sys

from fer_pll.data.dataset import load_dataset

from .experiments import Experiments

BATCHES, STEPS = (72, 128, 256), 6


def measure_cost(experiments: Experiments) -> str:
    """A table of the time of an epoch and the peak memory at three batch sizes, each in a fresh process."""
    args = experiments.args
    rows = len(load_dataset(experiments.data(None, 0), "train"))
    lines = ["| batch | seconds a step | minutes an epoch | peak memory, GiB |", "|---|---|---|---|"]
    for batch in BATCHES:
        folder = experiments.folder / f"cost-{batch}"
        command = [sys.executable, "-m", "fer_pll.commands.finetune", "--config", experiments.backbone_config("vit")]
        command += ["--data", experiments.data(None, 0), "--output_dir", folder, "--overwrite", "true"]
        command += ["--max_steps", STEPS, "--per_device_train_batch_size", batch, "--logging_steps", 1]
        command += ["--eval_strategy", "no", "--save_strategy", "no", *args.options]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise ValueError(f"the run with batch size {batch} failed; see its message above.")
        state = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        seconds = next(log["train_runtime"] for log in state if "train_runtime" in log) / STEPS
        memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
        lines.append(f"| {batch} | {seconds:.2f} | {seconds * rows / batch / 60:.1f} | {memory:.2f} |")
    return "\n".join(lines)
