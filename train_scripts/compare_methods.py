"""Every loss and revision rule on drawn faces, with several seeds: the table in train_scripts/BENCHMARKS.md.

    python train_scripts/compare_methods.py --out runs/compare-methods

For each seed, the script draws faces and votes, pre-trains once, and fine-tunes with every method from there with the
same settings. The true label of a face is the expression that was drawn. Accuracy is that on new faces. Label recovery
is the share of the training faces whose largest final confidence is that of the true label. The script does not repeat
results that exist, so the same command continues an interrupted one. The last lines of the output are the table.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from transformers import set_seed
from transformers.utils import logging

from fer_pll import FerPllConfig, FerPllForImageClassification, FerPllImageProcessor
from fer_pll.commands.demo import SIZES, TRAINING, judge_by_truth, pretrain
from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.prepare import prepare
from fer_pll.training.arguments import FerPllTrainingArguments
from fer_pll.training.trainer import FerPllTrainer

# Settings beyond the common ones, by the name in the table.
METHODS = {
    "softmax": {"loss": "cross_entropy"},
    "soft votes": {"loss": "soft_votes"},
    "PLL, none": {"revision": "none"},
    "PLL, paper": {"revision": "margin"},
    "PLL, paper, reversible": {"revision": "margin", "reversible": True},
    "PLL, normalized": {"revision": "margin_softmax", "revision_threshold": 0.5},
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
    """Train one method. Returns accuracies on the validation faces and label recovery on the training faces."""
    set_seed(seed)
    args = FerPllTrainingArguments(
        output_dir=str(out),
        num_train_epochs=epochs,
        per_device_eval_batch_size=250,
        logging_steps=10_000,
        revision_warmup=0.4,
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
    sizes = {"num_train": args.num_train, "num_validation": 1000, "num_test": 0}
    data = prepare("synthetic", out=out / f"data-{seed}", overwrite=True, seed=seed, variation=0.2, **sizes)
    data["train"] = add_candidates(data["train"])
    config = FerPllConfig(**SIZES)
    config._attn_implementation = "eager"  # faster than SDPA on a CPU for so few tokens
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
    """A Markdown table in percent, mean ± standard deviation over the seeds."""
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
    parser.add_argument("--epochs", type=int, default=10, help="of each run (default: %(default)s)")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    for seed in range(args.seeds):
        run_seed(seed, args, out)
    print(table([json.loads((out / f"seed-{seed}.json").read_text()) for seed in range(args.seeds)]))


if __name__ == "__main__":
    main()
