"""Predict each training image with a model that has not seen it.

This is cross-validation: it takes the settings of fer-pll finetune and, for
each fold, trains on the rows of all others. Writes out_of_fold.safetensors with
`probabilities` (rows, classes). Where the rows have a `true_label`, prints the
label recovery of the most probable candidate, to compare with that of a run's
confidences.

Finished folds are kept: the same command continues an interrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import fer_pll_cli

from ..audit.out_of_fold import out_of_fold
from ..data.dataset import load_dataset, numpy_column
from ..io.atomic import check_writable, whole_file
from ..io.terminal import say
from ..metrics.classification import label_recovery
from ..training.arguments import FerPllTrainingArguments
from ..training.finetuning import FineTuningOptions
from ..training.run_folder import RunFolder
from ..training.settings_parser import SettingsParser

EPILOG = """\
example:
  fer-pll out-of-fold --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --init_from runs/pretrain --output_dir runs/out-of-fold \\
      --loss soft_votes --folds 5
"""


@dataclass
class OutOfFoldOptions(FineTuningOptions):
    folds: int = field(
        default=5, metadata={"help": "Number of parts of `train`; each is predicted by a model trained on the others."}
    )


def make_parser() -> SettingsParser:
    classes = (OutOfFoldOptions, FerPllTrainingArguments)
    return SettingsParser(classes, "finetune.yaml", prog="fer-pll out-of-fold", description=__doc__, epilog=EPILOG)


def main(argv: Sequence[str] | None = None) -> None:
    options, args = make_parser().parse_settings(argv)
    args.save_strategy = args.eval_strategy = "no"
    dataset = options.add_candidates(load_dataset(options.data, "train"), args.seed)
    out = Path(args.output_dir)
    check_writable(out)
    settings = {"script": vars(options), "arguments": args.to_dict()}
    probabilities = out_of_fold(
        dataset, lambda rows: options.for_fold().make_trainer(args, rows), options.folds, out, settings, args.seed
    )
    predictions = RunFolder(out).out_of_fold_predictions
    with whole_file(predictions) as unfinished:
        save_file({"probabilities": torch.from_numpy(probabilities)}, unfinished)
    if "true_label" in dataset.column_names:
        inside = np.where(numpy_column(dataset, "candidates"), probabilities, 0)
        recovery = label_recovery(inside, numpy_column(dataset, "true_label"))
        say(f"label recovery of the most probable candidate, out of fold: {recovery:.1%}")
    say(f"written to {predictions}")
    fer_pll_cli.next_command("audit", "RUN", "--cross-validate", options.folds, "--out", "audit")


if __name__ == "__main__":
    fer_pll_cli.run(main)
