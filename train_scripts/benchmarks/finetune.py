"""A fine-tuning step and the trainer, against those of transformers."""

import tempfile
import time

from .common import Result, device, photo_crops, row, synchronize, take_turns
from .training_step import SCALES, add_options, make_classifier, make_sides, settings_of, step_rows

__all__ = ["add_options", "measure"]


def measure(args):
    """A step of fine-tuning (forward, backward, AdamW) against transformers' ViTForImageClassification or
    ResNetForImageClassification, and FerPllTrainer against transformers' Trainer.

    The peer of the model has the same encoder, attention and precision, and a linear layer on the class token, or on
    the mean of the map, instead of the query decoder. Both trainers train FerPllForImageClassification on the same
    rows.
    ratios, each at most the target: time and peak memory of our model's step over theirs; trainer, time of a step in
    FerPllTrainer (revision of the confidences and loss of the label queries included) over one in Trainer.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]
    models, _, steps, flops, memory = make_sides(args)

    import transformers

    seconds = take_turns(steps, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        trainer_seconds = take_turns(make_trainings(args, folder), args.repeats)
    ratios = {
        "time": seconds["ours"] / seconds["theirs"],
        "memory": memory["ours"] / memory["theirs"],
        "trainer": trainer_seconds["ours"] / trainer_seconds["theirs"],
    }
    targets = {"trainer": 1.03}
    if args.scale != "tiny":
        # The memory of the query decoder's weights, gradients and moments matters less at larger batch sizes.
        targets |= {"time": 1.05, "memory": 1.05 if args.batch_size >= 64 else 1.12}
    table = [
        (settings_of(args), "fer-pll", "transformers", "ratio", "target"),
        *step_rows(args, models, seconds, memory, flops, targets),
        row("step in the trainer, ms", {s: t * 1e3 for s, t in trainer_seconds.items()}, ".1f", targets["trainer"]),
    ]
    return Result(table, ratios, targets, f"transformers {transformers.__version__}")


STEPS = 2  # of a run in one turn: few, so that the turns lie close together


def make_trainings(args, folder):
    """Functions that train for `STEPS` steps with FerPllTrainer (`ours`) and Trainer, and return seconds per step.

    Neither side reads images, evaluates or saves. The pixels are in memory already, and Trainer's collator augments
    and normalizes them as FerPllTrainer does after collation. So only the trainers differ.
    """
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from fer_pll import FerPllConfig, FerPllImageProcessor, FerPllTrainer, FerPllTrainingArguments
    from fer_pll.training.config import config_folder

    config_name = config_folder(SCALES[args.scale][0])
    config = FerPllConfig.from_pretrained(config_name, attn_implementation=args.attn_implementation)
    num_rows = STEPS * args.batch_size
    pixels = torch.from_numpy(photo_crops(num_rows, config.image_size, config.num_channels))
    labels = np.arange(num_rows) % config.num_labels
    classes = np.eye(config.num_labels, dtype=bool)
    dataset = Dataset.from_dict(
        {
            "index": np.arange(num_rows),
            "image": np.arange(num_rows),  # the collator has the pixels
            "row_id": [str(row) for row in range(num_rows)],
            "candidates": classes[labels] | classes[labels - 1],
            "label": labels,
        }
    )
    settings = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch_size,
        "lr_scheduler_type": "cosine",
        "bf16": args.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,  # Trainer's batches are on the GPU already
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_steps": STEPS,
        "report_to": "none",
        "disable_tqdm": True,
    }
    our_settings = FerPllTrainingArguments(**settings)
    augmentation = our_settings.augmentation()
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
    mean, std = mean.to(device()), std.to(device())

    def collate(rows):
        index = torch.tensor([row["index"] for row in rows])
        return {"pixel_values": pixels[index], "index": index, "labels": torch.tensor([row["label"] for row in rows])}

    def collate_augmented(rows):
        batch = collate(rows)
        augmented = augmentation(batch["pixel_values"].to(device()), batch["index"], epoch=0)
        return {"pixel_values": (augmented.float() - mean) / std, "labels": batch["labels"]}

    class Clock(TrainerCallback):
        """Measures the time from before the first batch to the end of the last step, without the start of the run."""

        def on_train_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            synchronize()
            self.seconds = time.perf_counter() - self.start

    def training(trainer):
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)

        def train():
            trainer.train()
            return clock.seconds / STEPS

        return train

    ours = FerPllTrainer(
        make_classifier("ours", config),
        our_settings,
        processing_class=FerPllImageProcessor.from_pretrained(config_name),
        train_dataset=dataset,
        data_collator=collate,
    )
    theirs = Trainer(
        make_classifier("ours", config),
        TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=collate_augmented,
    )
    return {"ours": training(ours), "theirs": training(theirs)}
