"""Tiny data, models and trainers for the tests: 16 px gray images whose brightness pattern tells the class."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from datasets.features import ClassLabel
from PIL import Image as PILImage
from torch.utils.data import IterableDataset
from transformers import AutoModelForImageClassification, PreTrainedConfig, set_seed

from fer_pll import FerPllConfig, FerPllImageProcessor, FerPllTrainer, FerPllTrainingArguments
from fer_pll.data.dataset import save_dataset
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.methods import Batch
from fer_pll.training.pretraining import FerPllPreTrainer, pretraining_model

CLASSES = ["left", "right", "top", "bottom"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
CROP = {
    "name": "toy",
    "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]],
    "size": 16,
    "color": "gray",
    "margin": 0.1,
}
"""A `face_crop` of an image processor."""
QUICK = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def tiny_config(labels: Sequence[str] = CLASSES, **changes) -> FerPllConfig:
    """Four patches, two layers of width 32."""
    defaults = {
        **SIZES,
        "image_size": 16,
        "patch_size": 8,
        "num_channels": 1,
        "hog_cell_size": 4,
        "image_std": [0.25] * changes.get("num_channels", 1),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    return FerPllConfig(**defaults | changes)


def tiny_processor(config: FerPllConfig | None = None, **changes) -> FerPllImageProcessor:
    """The image processor that fits a configuration, by default `tiny_config()`."""
    config = config or tiny_config()
    settings = {
        "num_channels": config.num_channels,
        "size": {"height": config.image_size, "width": config.image_size},
        "image_mean": config.image_mean,
        "image_std": config.image_std,
    }
    return FerPllImageProcessor(**settings | changes)


def make_images(labels: np.ndarray, seed: int) -> list[PILImage.Image]:
    """A bright half per class on noise."""
    rng = np.random.default_rng(seed)
    images = []
    for label in labels:
        pixels = rng.integers(0, 60, (16, 16))
        half = [np.s_[:, :8], np.s_[:, 8:], np.s_[:8], np.s_[8:]][label]
        pixels[half] += 100
        images.append(PILImage.fromarray(pixels.astype(np.uint8)))
    return images


def make_dataset(num_rows: int, seed: int = 0) -> Dataset:
    """Prepared rows with candidate sets of one or two labels that hold the true one."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), num_rows)
    candidates = np.eye(len(CLASSES), dtype=bool)[truth]
    candidates[np.arange(num_rows), rng.integers(0, len(CLASSES), num_rows)] = True
    votes = candidates * 3 + np.eye(len(CLASSES), dtype=int)[truth]
    label = ClassLabel(names=CLASSES)
    features = Features(
        image=Image(),
        row_id=Value("string"),
        votes=List(Value("int32"), length=4),
        label=label,
        true_label=label,
        candidates=List(Value("bool"), length=4),
    )
    columns = {
        "image": make_images(truth, seed),
        "row_id": [f"row:{i}" for i in range(num_rows)],
        "votes": votes.tolist(),
        "label": truth.tolist(),
        "true_label": truth.tolist(),
        "candidates": candidates.tolist(),
    }
    return Dataset.from_dict(columns, features=features)


def write_training(folder: Path, settings: str) -> Path:
    """What the commands need to fine-tune: `config` with a configuration and its settings (YAML), and `data`."""
    tiny_config(drop_path_rate=0.2).save_pretrained(folder / "config")
    tiny_processor().save_pretrained(folder / "config")
    (folder / "config" / "finetune.yaml").write_text(settings)
    save_dataset(DatasetDict({"train": make_dataset(48)}), folder / "data")
    return folder


def make_batch(model, logits, epoch=0.0, progress=0.0, revising=True, features=None, maps=None, **columns) -> Batch:
    """The first rows of a table with given logits (views, B, K), as a method sees them; without pixels."""
    size = logits.shape[1]
    return Batch(
        logits=logits,
        pixel_values=torch.empty(len(logits), size, 0),
        index=torch.arange(size),
        revisable=torch.ones(size, dtype=torch.bool),
        columns=columns,
        epoch=epoch,
        progress=progress,
        revising=revising,
        model=model,
        features=features,
        maps=maps,
    )


def make_trainer(
    output_dir: str | Path,
    config: PreTrainedConfig,
    processor,
    train: Dataset,
    validation: Dataset | None = None,
    *,
    trainer_class: Callable[..., FerPllTrainer] = FerPllTrainer,
    **settings,
) -> FerPllTrainer:
    """A trainer of a new model for a few quick steps.

    `settings` are training arguments. What the trainer itself takes comes with `trainer_class`, as a `partial`.
    """
    defaults = {"revision_threshold": 0.1, "confidence_init": "uniform"}  # the paper's
    args = FerPllTrainingArguments(str(output_dir), **QUICK | defaults | settings)
    set_seed(args.seed)
    model = AutoModelForImageClassification.from_config(config)
    return trainer_class(model, args, processing_class=processor, train_dataset=train, eval_dataset=validation)


def make_pretrainer(
    output_dir: str | Path,
    config: FerPllConfig,
    processor: FerPllImageProcessor,
    train: Dataset | Callable[[FerPllPreTrainingArguments], IterableDataset],
    *,
    trainer_class: Callable[..., FerPllPreTrainer] = FerPllPreTrainer,
    **settings,
) -> FerPllPreTrainer:
    """The same for pre-training with the objective that the settings name. A stream is made from the arguments."""
    args = FerPllPreTrainingArguments(str(output_dir), **QUICK | settings)
    set_seed(args.seed)
    model = pretraining_model(config, args)
    data = train(args) if callable(train) else train
    return trainer_class(model, args, processing_class=processor, train_dataset=data)


def count_answers(answers: np.ndarray, num_classes: int) -> np.ndarray:
    """How many annotators chose each class, int64 (N, K), from answers (N, A), -1 for none."""
    return (answers[:, :, None] == np.arange(num_classes)).sum(axis=1)
