"""Small real data and models for the tests: 16 px gray images whose brightness pattern tells the class."""

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from datasets.features import ClassLabel
from PIL import Image as PILImage
from transformers import set_seed

from fer_pll import (
    FerPllConfig,
    FerPllForImageClassification,
    FerPllImageProcessor,
    FerPllTrainer,
    FerPllTrainingArguments,
)

CLASSES = ["left", "right", "top", "bottom"]


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


def make_trainer(tmp_path, config, processor, train, validation=None, **settings) -> FerPllTrainer:
    """A trainer of a small model for a few quick steps."""
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "revision_threshold": 0.1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = FerPllTrainingArguments(output_dir=str(tmp_path), **(defaults | settings))
    set_seed(args.seed)
    model = FerPllForImageClassification(config)
    return FerPllTrainer(model, args, processing_class=processor, train_dataset=train, eval_dataset=validation)


@pytest.fixture(scope="session")
def toy_train() -> Dataset:
    return make_dataset(48, seed=0)


@pytest.fixture(scope="session")
def toy_validation() -> Dataset:
    return make_dataset(24, seed=1)


@pytest.fixture
def toy_config() -> FerPllConfig:
    return FerPllConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        num_channels=1,
        hog_cell_size=4,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        image_std=[0.25],
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )


@pytest.fixture
def toy_processor() -> FerPllImageProcessor:
    return FerPllImageProcessor(num_channels=1, size={"height": 16, "width": 16}, image_std=[0.25])
