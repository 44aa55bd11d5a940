"""Predict every training picture by a model that has not seen it (cross-validation).

    python train_scripts/out_of_fold.py --config fer-pll-tiny-ferplus --data data/ferplus \
        --init_from runs/pretrain --output_dir runs/out-of-fold --loss soft_votes --folds 5

Takes the settings of finetune.py and trains once per fold on the rows of all others. Writes out_of_fold.safetensors:
`probabilities` (rows, classes), in the order of `train`. Where the rows have a `true_label`, prints the label recovery
of the most probable candidate, to compare with that of the confidences of a training. Folds that are done are kept:
the same command goes on where it was cut off.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import numpy as np
import torch
from safetensors.torch import save_file

from fer_pll import FerPllTrainingArguments
from fer_pll.audit.out_of_fold import out_of_fold
from fer_pll.data.dataset import load_prepared, numpy_column
from fer_pll.io.atomic import whole_file
from fer_pll.metrics.classification import label_recovery
from fer_pll.training.config import parse_settings
from fer_pll.training.finetuning import ClassificationScript
from fer_pll.training.run_folder import RunFolder


@dataclass
class OutOfFoldScript(ClassificationScript):
    folds: int = field(default=5, metadata={"help": "Parts of `train`; each is predicted from the others."})


def main(argv: list[str] | None = None) -> None:
    try:
        script, args = parse_settings((OutOfFoldScript, FerPllTrainingArguments), "finetune.yaml", __doc__, argv)
        args.save_strategy = args.eval_strategy = "no"
        dataset = script.add_candidates(load_prepared(script.data, "train"), args.seed)
        out = Path(args.output_dir)
        settings = {"script": vars(script), "arguments": args.to_dict()}
        probabilities = out_of_fold(
            dataset, lambda rows: script.make_trainer(args, rows), script.folds, out, settings, args.seed
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    predictions = RunFolder(out).out_of_fold_predictions
    with whole_file(predictions) as unfinished:
        save_file({"probabilities": torch.from_numpy(probabilities)}, unfinished)
    if "true_label" in dataset.column_names:
        inside = np.where(numpy_column(dataset, "candidates"), probabilities, 0)
        recovery = label_recovery(inside, numpy_column(dataset, "true_label"))
        print(f"label recovery of the most probable candidate, out of fold: {recovery:.1%}")
    print(f"written to {predictions}")


if __name__ == "__main__":
    main()
