"""Out-of-fold predictions: each training row is predicted by a model that has not seen it (cross-validation)."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import set_seed

from ..data.dataset import numpy_column
from ..data.row_ids import row_ids
from ..io.atomic import whole_file
from ..io.errors import DataError
from ..io.stored import reading
from ..io.terminal import say
from ..labels.candidates import dataset_fingerprint
from ..training.run_folder import RunFolder
from ..training.trainer import FerPllTrainer


def out_of_fold(
    dataset: Dataset,
    make_trainer: Callable[[Dataset], FerPllTrainer],
    num_folds: int,
    folder: str | Path,
    settings: Mapping[str, Any],
    seed: int = 0,
) -> np.ndarray:
    """For each fold, train on the rows of all other folds and predict the fold's own rows.

    Args:
        dataset: N training rows with `image`, `label` and `candidates`.
        make_trainer: returns a new trainer for the rows that it is given.
        num_folds: number of parts that the rows are split into at random, 2 .. N.
        folder: gets a file for each finished fold; a fold that has a file already is not trained again.
        settings: all that the runs depend on, ready for JSON; each fold's file keeps a hash of it.
        seed: of the split, and of each run.

    Returns:
        class probabilities (N, K) float32, in the order of `dataset`.

    Raises:
        ValueError: an impossible number of folds, or a file made with other rows, candidate sets or settings.
    """
    if not 2 <= num_folds <= len(dataset):
        raise ValueError(f"{num_folds} folds of {len(dataset)} rows: choose a number from 2 to the number of rows.")
    names = dataset.features["label"].names
    made_from = {
        "data": dataset_fingerprint(names, row_ids(dataset), numpy_column(dataset, "candidates")),
        "settings": sha256(json.dumps([dict(settings), seed], sort_keys=True, default=str).encode()).hexdigest(),
    }
    paths = [RunFolder(folder).fold(fold + 1, num_folds) for fold in range(num_folds)]
    fold_of_row = np.random.default_rng(seed).permutation(len(dataset)) % num_folds
    shapes = [(int((fold_of_row == fold).sum()), len(names)) for fold in range(num_folds)]
    for path, shape in zip(paths, shapes, strict=True):
        if path.is_file():
            _read_fold(path, made_from, shape)  # an unusable file shows before hours of training
    probabilities = np.empty((len(dataset), len(names)), dtype=np.float32)
    for fold, path in enumerate(paths):
        held_out = fold_of_row == fold
        if not path.is_file():
            say(f"fold {fold + 1} of {num_folds}")
            set_seed(seed)
            try:
                predicted = _predict_fold(dataset, make_trainer, held_out)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped in fold {fold + 1} of {num_folds}; finished folds are kept in {folder}: the same "
                    "command goes on with this one"
                ) from None
            with whole_file(path) as unfinished:
                save_file({"probabilities": torch.from_numpy(predicted)}, unfinished, metadata=made_from)
        probabilities[held_out] = _read_fold(path, made_from, shapes[fold])
    return probabilities


def _predict_fold(
    dataset: Dataset, make_trainer: Callable[[Dataset], FerPllTrainer], held_out: np.ndarray
) -> np.ndarray:
    """Train on the rows outside `held_out` (N,) bool, predict those inside: probabilities (n, K) float32."""
    trainer = make_trainer(dataset.select(np.flatnonzero(~held_out)))
    trainer.train()
    trainer.compute_metrics = None
    # Trainer computes a loss too, which needs defined labels.
    inside = dataset.select(np.flatnonzero(held_out)).select_columns("image")
    logits = trainer.predict(inside.add_column("label", np.zeros(len(inside), dtype=int))).predictions
    return torch.from_numpy(logits).float().softmax(dim=1).numpy()


def _read_fold(path: Path, made_from: dict[str, str], shape: tuple[int, int]) -> np.ndarray:
    with reading(path, "delete it, and the fold is trained again"), safe_open(path, framework="np") as file:
        for name, digest in made_from.items():
            if (file.metadata() or {}).get(name) != digest:
                raise DataError(
                    f"{path} was made with other {name}: delete the folder {path.parent}, or choose another."
                )
        probabilities = file.get_tensor("probabilities")
        if probabilities.shape != shape or not np.isfinite(probabilities).all():
            raise ValueError(f"its probabilities are not finite, or not of shape {shape}")
        return probabilities
