"""Every loss and revision rule on drawn faces, with several seeds: the table in train_scripts/README.md.

    python train_scripts/compare_methods.py --out runs/compare-methods

For each seed, draws faces and votes, pre-trains once and trains every method from there with the same settings.
Accuracy is on new faces, judged by the expression that was drawn; label recovery is the share of the training faces
whose largest confidence at the end stands at it. Results that are there already are not made again, so the same
command goes on where it was cut off. The last lines printed are the table.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean, stdev

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from transformers import set_seed
from transformers.utils import logging

from fer_pll import FerPllConfig, FerPllForImageClassification, FerPllImageProcessor
from fer_pll.commands.demo import SIZES, TRAINING, judge_by_truth, pretrain
from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.sources.synthetic.dataset import load_synthetic
from fer_pll.training.arguments import FerPllTrainingArguments
from fer_pll.training.trainer import FerPllTrainer

# (name in the table, settings beyond the common ones)
METHODS = {
    "softmax": {"loss": "softmax"},
    "soft votes": {"loss": "soft_votes"},
    "PLL, none": {"revision": "none"},
    "PLL, paper": {"revision": "paper"},
    "PLL, paper, reversible": {"revision": "paper", "reversible": True},
    "PLL, normalized": {"revision": "normalized", "revision_threshold": 0.5},
    "PRODEN (PLL, soft)": {"loss": "proden"},
    "RC (PLL, soft after the step)": {"loss": "rc"},
    "CC": {"loss": "cc"},
    "CC, soft": {"loss": "cc", "revision": "soft"},
    "LW": {"loss": "lw"},
    "LWC": {"loss": "lwc"},
    "PiCO": {"loss": "pico"},
    "CRPLL": {"loss": "crpll"},
}
COMMON = {"confidence_init": "votes", "revision_threshold": 0.2, "uniform_weight": 0.1, "light": 0.1}


def train(settings: dict, epochs: int, seed: int, data, pretrained: Path, image_processor, out: Path) -> dict:
    """Train one method; accuracy on the validation faces and label recovery on the training faces."""
    set_seed(seed)
    args = FerPllTrainingArguments(
        output_dir=str(out),
        num_train_epochs=epochs,
        per_device_eval_batch_size=250,
        logging_steps=10_000,
        revision_warmup_epochs=0.4 * epochs,
        seed=seed,
        disable_tqdm=not sys.stderr.isatty(),
        **(TRAINING | COMMON | settings),
    )
    model = FerPllForImageClassification.from_pretrained(pretrained)
    trainer = FerPllTrainer(model, args, processing_class=image_processor, train_dataset=data["train"])
    trainer.train()
    metrics = trainer.predict(judge_by_truth(data["validation"])).metrics
    return {
        "accuracy": metrics["test_accuracy"],
        "mean_class_accuracy": metrics["test_mean_class_accuracy"],
        "label_recovery": trainer.table.summary()["label_recovery"],
    }


def run_seed(seed: int, args: argparse.Namespace, out: Path) -> None:
    results_file = out / f"seed-{seed}.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    if set(METHODS) <= set(results):
        return
    data = load_synthetic(args.num_train, 1000, 0, seed=seed, variation=0.2, num_proc=os.cpu_count() or 1)
    data["train"] = add_candidates(data["train"])
    config = FerPllConfig(**SIZES)
    config._attn_implementation = "eager"  # quicker than SDPA on a CPU for so few tokens
    image_processor = FerPllImageProcessor(
        num_channels=1, size={"height": 48, "width": 48}, image_mean=config.image_mean, image_std=config.image_std
    )
    pretrained = out / f"pretrained-{seed}"
    if not (pretrained / "model.safetensors").is_file():
        print(f"seed {seed}: pre-training", flush=True)
        pretrain(config, image_processor, data["train"].select_columns("image"), pretrained, seed)
    for name, settings in METHODS.items():
        if name not in results:
            print(f"seed {seed}: {name}", flush=True)
            folder = out / "training"
            results[name] = train(settings, args.epochs, seed, data, pretrained, image_processor, folder)
            results_file.write_text(json.dumps(results, indent=2) + "\n")


def table(results: list[dict]) -> str:
    """Markdown, percent, mean ± standard deviation over the seeds."""
    lines = ["| loss, revision | accuracy | mean class accuracy | label recovery |", "|---|---|---|---|"]
    for name in METHODS:
        cells = []
        for figure in ("accuracy", "mean_class_accuracy", "label_recovery"):
            values = [100 * result[name][figure] for result in results]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 .. N-1 (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=2000, help="training faces (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (default: %(default)s)")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    for seed in range(args.seeds):
        run_seed(seed, args, out)
    print(table([json.loads((out / f"seed-{seed}.json").read_text()) for seed in range(args.seeds)]))


if __name__ == "__main__":
    main()
