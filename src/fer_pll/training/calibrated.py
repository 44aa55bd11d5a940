"""Calibration of a trained classifier, saved as a new checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from ..data.dataset import load_dataset, numpy_column
from ..data.splits import HELD_OUT
from ..hub.card import training_record
from ..inference.predictions import predict_logits
from ..io.atomic import check_writable, whole_folder, write_json
from ..io.names import find_checkpoint
from ..io.pretrained import load_image_processor, load_model, share_weights
from ..io.ranges import check_range
from ..io.stored import read_json
from ..labels.confidence_table import ConfidenceTable
from ..metrics.calibration import fit_temperature, fold_balance, fold_temperature, negative_log_likelihood
from ..metrics.classification import expected_calibration_error
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from .run_folder import RunFolder


def calibrate(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    split: str = HELD_OUT,
    balance: float = 0.0,
    half: bool = False,
) -> dict[str, Any]:
    """Fit a temperature on rows that a classifier was not trained on, and fold it into the output layer.

    Args:
        checkpoint: output folder of `fer-pll finetune`.
        data: folder of a prepared data set with the model's classes.
        out: new folder for the calibrated checkpoint.
        split: the split to fit the temperature on.
        balance: tau >= 0. Each class's logit is first lowered by tau times the log of the class's share in the run's
            confidences, see `metrics.calibration.fold_balance`.
        half: save the weights in float16; they are still loaded as float32.

    Returns:
        `balance`, `rows` (how many have a label), `temperature`, and on these rows the mean negative log-likelihood of
        the labels, which the temperature minimizes (`nll_before`, `nll_after`), and the calibration error, a share
        (`ece_before`, `ece_after`). `before` is with the temperature 1, after the balance.

    Raises:
        ValueError: checkpoint or data cannot be read, their classes differ, no row has a label, or `out` holds files
            or cannot be written.
    """
    out = Path(out)
    check_range("--balance", balance, "[0, 100]")
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} holds files already: choose another folder.")

    checkpoint = find_checkpoint(checkpoint)
    dataset = load_dataset(data, split)
    model = load_model(FerPllForImageClassification, checkpoint, dtype=torch.float32).eval()
    image_processor = load_image_processor(checkpoint, FerPllImageProcessor)
    names, of_model = dataset.features["label"].names, list(model.config.id2label.values())
    if names != of_model:
        raise ValueError(f"{data} has the classes {', '.join(names)}, the model {', '.join(of_model)}.")
    labels = numpy_column(dataset, "label")
    if not (labels >= 0).any():
        raise ValueError(f"{data}: no row of split {split!r} has a label to calibrate on.")
    dataset, labels = dataset.select((labels >= 0).nonzero()[0]), labels[labels >= 0]

    run = RunFolder(checkpoint)
    if balance:
        confidence = ConfidenceTable.load(run.confidence, names).confidence
        fold_balance(model, confidence.double().mean(dim=0), balance)
    logits = predict_logits(model, image_processor, dataset)
    temperature = fit_temperature(logits, labels)
    measured = {}
    for when, divisor in (("before", 1.0), ("after", temperature)):
        measured[f"nll_{when}"] = negative_log_likelihood(logits / divisor, labels)
        measured[f"ece_{when}"] = expected_calibration_error((logits / divisor).softmax(dim=1), labels)
    fold_temperature(model, temperature)
    if half:
        model.half()
    calibration = {
        "balance": balance,
        "rows": len(labels),
        "temperature": temperature,
        **measured,
    }
    record = read_json(run.training) if run.training.is_file() else training_record({})
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        share_weights(folder)
        image_processor.save_pretrained(folder)
        config = read_json(folder / CONFIG_NAME)
        write_json(folder / CONFIG_NAME, config | {"dtype": "float32"})  # what from_pretrained loads the weights as
        write_json(RunFolder(folder).training, record | {"calibration": calibration})
    return calibration
