"""Show the whole method on drawn faces.

Draws faces and lets simulated annotators vote on them, pre-trains on the
images alone, then trains one model on majority labels and one on candidate
sets. Prints how well both do, and how many true labels the majority vote and
the revised confidences recover.

Needs no data, no network and no GPU. Takes minutes on two cores.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import ProgressCallback, Trainer, pipeline, set_seed
from transformers.utils import logging

import fer_pll_cli

from ..data.candidate_sets import add_candidates
from ..data.dataset import numpy_column
from ..data.prepare import prepare
from ..io.atomic import check_writable
from ..io.pretrained import load_image_processor, load_model
from ..io.terminal import say
from ..labels.expressions import EXPRESSIONS
from ..metrics.classification import confusion_matrix, label_recovery
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification, FerPllForPreTraining
from ..plots.confusion_matrix import plot_confusion_matrix
from ..plots.curves import plot_training_curves
from ..plots.gallery import plot_gallery
from ..training.arguments import FerPllPreTrainingArguments, FerPllTrainingArguments
from ..training.pretraining import FerPllPreTrainer
from ..training.trainer import FerPllTrainer
from .options import AtLeast

EPILOG = """\
example:
  fer-pll demo --out runs/demo --seed 1

The folder then holds the data, the checkpoints (for from_pretrained and
pipeline) and the figures.
"""

# Small, but enough to show the method: studio-like faces, patches that give 16 tokens an image, and a crowd whose
# majority is wrong so often that the gain exceeds the difference between two runs.
NUM_TRAIN, NUM_VALIDATION = 4000, 1000
VARIATION = 0.2
CONTESTED = 0.5
PRETRAINING_EPOCHS, EPOCHS = 8, 12

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "image_size": 48,
    "patch_size": 12,
    "num_channels": 1,
    "hog_cell_size": 4,
    "mask_ratio": 0.5,
    "decoder_hidden_size": 64,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 256,
    "image_std": [0.25],
    "id2label": dict(enumerate(EXPRESSIONS)),
    "label2id": {name: i for i, name in enumerate(EXPRESSIONS)},
}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "learning_rate": 2e-3,
    "adam_beta2": 0.95,
    "weight_decay": 0.05,
    "warmup_steps": 0.1,
    "save_strategy": "no",
}


class ProgressBar(ProgressCallback):
    """A progress bar without log lines: the results at the end say more."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


def show_progress_only(trainer: Trainer) -> None:
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressBar)


def judge_by_truth(dataset: Dataset) -> Dataset:
    """The same rows, with the drawn expression as their label."""
    return dataset.remove_columns("label").rename_column("true_label", "label")


def majority_recovery(votes: np.ndarray, true_labels: np.ndarray) -> float:
    """Share of the rows whose most voted label is the true one. Of t tied labels each counts 1 / t.

    This is the expected share when ties are broken at random.
    """
    leaders = votes == votes.max(axis=1, keepdims=True)
    return float((leaders[np.arange(len(votes)), true_labels] / leaders.sum(axis=1)).mean())


def pretrain(
    config: FerPllConfig, image_processor: FerPllImageProcessor, train: Dataset, out: Path, seed: int
) -> Path:
    set_seed(seed)
    args = FerPllPreTrainingArguments(
        output_dir=str(out),
        num_train_epochs=PRETRAINING_EPOCHS,
        logging_steps=20,
        seed=seed,
        disable_tqdm=False,  # otherwise Trainer prints each log line, because other messages are off
        **TRAINING,
    )
    trainer = FerPllPreTrainer(
        FerPllForPreTraining(config), args, processing_class=image_processor, train_dataset=train
    )
    show_progress_only(trainer)
    trainer.train()
    trainer.save_model()
    return out


def finetune(
    pretrained: Path,
    image_processor: FerPllImageProcessor,
    train: Dataset,
    validation: Dataset,
    out: Path,
    revision: str,
    seed: int,
) -> FerPllTrainer:
    set_seed(seed)
    args = FerPllTrainingArguments(
        output_dir=str(out),
        num_train_epochs=EPOCHS,
        per_device_eval_batch_size=250,
        logging_steps=31,
        eval_strategy="epoch",
        confidence_init="votes",
        revision=revision,
        revision_threshold=0.2,
        revision_warmup=4 / EPOCHS,
        uniform_weight=0.1,
        light=0.1,
        seed=seed,
        disable_tqdm=False,  # otherwise Trainer prints each log line, because other messages are off
        **TRAINING,
    )
    model, _ = load_model(FerPllForImageClassification, pretrained, partly=True)
    trainer = FerPllTrainer(
        model, args, processing_class=image_processor, train_dataset=train, eval_dataset=judge_by_truth(validation)
    )
    show_progress_only(trainer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    trainer.save_confidence()
    return trainer


def run_demo(output_dir: str, seed: int = 0) -> None:
    """Draw faces, pre-train, fine-tune on majority labels and on candidate sets, compare, save, reload.

    Args:
        output_dir: a new or empty folder; gets the data, both checkpoints and the figures.
        seed: of the faces, the votes and the runs.

    Raises:
        ValueError: the folder already holds files, or cannot be written.
    """
    out = Path(output_dir)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} already holds files: choose another folder with --out, or remove it.")
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # for loading and saving, which take no time here

    say(f"1/5  Drawing {NUM_TRAIN:,} faces and letting ten annotators vote on each ...")
    data = prepare(
        "synthetic",
        out=out / "data",
        num_train=NUM_TRAIN,
        num_validation=NUM_VALIDATION,
        num_test=0,
        seed=seed,
        variation=VARIATION,
        contested=CONTESTED,
    )
    train, validation = data["train"], data["validation"]
    config = FerPllConfig(**SIZES)
    config._attn_implementation = "eager"  # faster than SDPA on a CPU for so few tokens
    image_processor = FerPllImageProcessor(
        num_channels=1, size={"height": 48, "width": 48}, image_mean=config.image_mean, image_std=config.image_std
    )

    say("2/5  Pre-training: predicting the HOG descriptors of hidden patches (no labels) ...")
    pretrained = pretrain(config, image_processor, train.select_columns("image"), out / "pretrained", seed)

    say("3/5  Fine-tuning on the majority label ...")
    majority = finetune(
        pretrained,
        image_processor,
        add_candidates(train, max_candidates=1, ties="drop"),
        validation,
        out / "majority",
        "none",
        seed,
    )
    say("4/5  Fine-tuning on candidate sets, revising the confidences ...")
    candidate_sets = add_candidates(train, max_candidates=2)
    ours = finetune(pretrained, image_processor, candidate_sets, validation, out / "candidates", "margin", seed)

    say("5/5  Comparing, drawing, loading the checkpoint again ...")
    truth = numpy_column(train, "true_label")
    votes = numpy_column(train, "votes")
    results = {}
    for name, trainer in (("majority", majority), ("candidates", ours)):
        prediction = trainer.predict(judge_by_truth(validation))
        assert prediction.metrics is not None  # the rows have labels
        results[name] = prediction.metrics
        predicted = np.asarray(prediction.predictions).argmax(axis=1)
        matrix = confusion_matrix(predicted, np.asarray(prediction.label_ids), len(EXPRESSIONS))
        title = f"{name}: {prediction.metrics['test_accuracy']:.1%}"
        plot_confusion_matrix(matrix, EXPRESSIONS, out / f"confusion_matrix_{name}.png", title)
        plot_training_curves(trainer.state.log_history, out / f"training_curves_{name}.png")
    table = ours.table
    assert table is not None
    revised = ours.revised_dataset()
    revised.save_to_disk(out / "revised_data")
    # Six faces whose revised label is not what most annotators said, and six where it is.
    leads = votes == votes.max(axis=1, keepdims=True)
    revised_label = table.labels().cpu().numpy()
    overruled = ~leads[np.arange(NUM_TRAIN), revised_label]
    doubtful = (numpy_column(revised, "candidates").sum(axis=1) > 1) & (numpy_column(revised, "revised_epoch") >= 0)
    shown = np.concatenate([np.flatnonzero(doubtful & choice)[:6] for choice in (overruled, ~overruled)])
    rows = revised.select(shown)
    plot_gallery(
        rows["image"][:],
        numpy_column(rows, "votes"),
        numpy_column(rows, "candidates"),
        numpy_column(rows, "confidence"),
        EXPRESSIONS,
        out / "gallery.png",
        numpy_column(rows, "true_label"),
    )
    face = validation[0]
    checkpoint = out / "candidates"
    classify = pipeline(
        "image-classification",
        load_model(FerPllForImageClassification, checkpoint),
        image_processor=load_image_processor(checkpoint),
        device="cpu",
    )
    best = classify(face["image"])[0]

    recovery = {
        "majority": majority_recovery(votes, truth),
        "candidates": label_recovery(table.confidence.cpu().numpy(), truth),
    }
    say(
        "", f"{NUM_VALIDATION:,} new faces, judged by the expression that was drawn; {NUM_TRAIN:,} training faces:", ""
    )
    say(f"{'trained on':32} {'accuracy':>9} {'mean class':>11} {'label recovery':>15}")
    for name, title in (
        ("majority", "the majority label"),
        ("candidates", "candidate sets, revised"),
    ):
        metrics = results[name]
        figures = f"{metrics['test_accuracy']:9.1%} {metrics['test_mean_class_accuracy']:11.1%}"
        say(f"{title:32} {figures} {recovery[name]:15.1%}")
    say(
        "",
        "Label recovery: share of the training faces whose label is the drawn expression, by majority vote (ties at "
        "random) and by the revised confidences.",
        f"Loaded again with pipeline('image-classification'): a drawn face of "
        f"{EXPRESSIONS[face['true_label']]} -> {best['label']} ({best['score']:.0%}).",
        "",
    )
    for path, what in (
        ("candidates", "the checkpoint: from_pretrained, pipeline"),
        ("revised_data", "the training set with its revised confidences"),
        ("gallery.png", "faces where the model overruled the annotators, and where it did not"),
        ("training_curves_candidates.png", "loss, accuracy, share revised, margin, label recovery"),
        ("confusion_matrix_candidates.png", "which expressions are confused"),
    ):
        say(f"  {out / path}  {what}")
    say("", f"Done in {time.perf_counter() - started:.0f} s.")
    fer_pll_cli.next_command("audit", out / "candidates", "--data", out / "data", "--out", out / "audit")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fer-pll demo", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        default="fer-pll-demo",
        metavar="DIR",
        help="new or empty folder for everything that the demo writes (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=AtLeast(0), default=0, help="of the faces, the votes and the runs (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    run_demo(args.out, args.seed)


if __name__ == "__main__":
    fer_pll_cli.run(main)
