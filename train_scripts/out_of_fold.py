"""Predict every training picture by a model that has not seen it (cross-validation).

    python train_scripts/out_of_fold.py --config fer-pll-tiny-ferplus --data data/ferplus \
        --init_from runs/pretrain --output_dir runs/out-of-fold --loss soft_votes --folds 5

Takes the settings of finetune.py and trains once per fold on the rows of all others. Writes out_of_fold.safetensors:
`probabilities` (rows, classes) and `index`. Where the rows have a `true_label`, prints the label recovery of the most
probable candidate, to compare with that of the confidences of a training. Folds that are done are kept: the same
command goes on where it was cut off.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import set_seed

from fer_pll import FerPllTrainer, FerPllTrainingArguments
from fer_pll.data.prepared import load_prepared
from fer_pll.evaluation.metrics import label_recovery
from fer_pll.training.classification import ClassificationScript
from fer_pll.training.settings import parse_settings
from fer_pll.training.trainer import numpy_column


@dataclass
class OutOfFoldScript(ClassificationScript):
    folds: int = field(default=5, metadata={"help": "Parts of `train`; each is predicted from the others."})


def predict_fold(script, args, dataset, held_out: np.ndarray) -> torch.Tensor:
    """Train on the rows outside `held_out` (N,) bool, predict those inside: probabilities (n, K) float32."""
    set_seed(args.seed)
    model, image_processor = script.make_model(args)
    train = dataset.select(np.flatnonzero(~held_out))
    train = train.remove_columns("index").add_column("index", np.arange(len(train)))
    trainer = FerPllTrainer(model, args, processing_class=image_processor, train_dataset=train)
    trainer.train()
    prediction = trainer.predict(dataset.select(np.flatnonzero(held_out)))
    return torch.from_numpy(prediction.predictions).float().softmax(dim=1)


def main() -> None:
    try:
        script, args = parse_settings((OutOfFoldScript, FerPllTrainingArguments), "finetune.yaml", __doc__)
        args.save_strategy = args.eval_strategy = "no"
        dataset = script.add_candidates(load_prepared(script.data, "train"), args.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    fold_of_row = np.random.default_rng(args.seed).permutation(len(dataset)) % script.folds
    parts = []
    for fold in range(script.folds):
        path = out / f"fold-{fold}-of-{script.folds}.safetensors"
        if not path.is_file():
            print(f"fold {fold + 1} of {script.folds}", flush=True)
            save_file({"probabilities": predict_fold(script, args, dataset, fold_of_row == fold)}, path)
        parts.append(load_file(path)["probabilities"])
    probabilities = torch.empty(len(dataset), parts[0].shape[1])
    for fold, part in enumerate(parts):
        probabilities[torch.from_numpy(fold_of_row == fold)] = part
    index = torch.from_numpy(numpy_column(dataset, "index"))
    save_file({"probabilities": probabilities, "index": index}, out / "out_of_fold.safetensors")
    if "true_label" in dataset.column_names:
        inside = np.where(numpy_column(dataset, "candidates"), probabilities.numpy(), 0)
        recovery = label_recovery(inside, numpy_column(dataset, "true_label"))
        print(f"label recovery of the most probable candidate, out of fold: {recovery:.1%}")
    print(f"written to {out / 'out_of_fold.safetensors'}")


if __name__ == "__main__":
    main()
