"""Train a classifier on candidate sets (paper, sections 3.1 and 3.3).

    python train_scripts/finetune.py --config fer-pll-tiny-ferplus --data data/ferplus \
        --pretrained runs/pretrain --output_dir runs/finetune

Settings come from hub_configs/<config>/finetune.yaml; every one of them can be given on the command line. `--loss
softmax` is the usual training on the most voted label, to compare with; `--loss` and `--revision` choose other
methods. Runs under `accelerate launch` as well (train_scripts/accelerate has configurations). A run that was cut off
goes on with `--resume_from_checkpoint last`. Writes the model, its card, the confidences,
candidate_sets.png (what the candidate sets look like, printed as well) and training_curves.png.
"""

import os
import sys
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from transformers import set_seed

from fer_pll import FerPllTrainer, FerPllTrainingArguments
from fer_pll.data.prepared import load_prepared
from fer_pll.evaluation.candidates import CandidateSummary
from fer_pll.evaluation.plots import plot_candidate_sets, plot_training_curves
from fer_pll.training.classification import ClassificationScript
from fer_pll.training.settings import check_output_folder, parse_settings, start_run


def build() -> tuple[FerPllTrainer, ClassificationScript]:
    """Everything before the first step; what is wrong with the input shows here."""
    # parse
    script, args = parse_settings((ClassificationScript, FerPllTrainingArguments), "finetune.yaml", __doc__)
    check_output_folder(args)
    set_seed(args.seed)

    # data
    data = load_prepared(script.data)
    train_dataset = script.add_candidates(data["train"], args.seed)

    # trainer
    return script.make_trainer(args, train_dataset, data.get("validation")), script


def main() -> None:
    try:
        trainer, script = build()
        args = trainer.args
        if args.resume_from_checkpoint is not None:
            trainer.check_checkpoint(args.resume_from_checkpoint)
    except ValueError as error:
        sys.exit(f"error: {error}")
    start_run(args, script)
    if args.should_save:
        made_from_votes = "votes" in trainer.train_dataset.column_names
        summary = CandidateSummary.of(trainer.table, script.max_candidates if made_from_votes else None)
        print(summary, flush=True)
        plot_candidate_sets(summary, Path(args.output_dir) / "candidate_sets.png")
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # save
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    trainer.save_confidence()
    if args.should_save and any("loss" in log for log in trainer.state.log_history):
        plot_training_curves(trainer.state.log_history, Path(args.output_dir) / "training_curves.png")
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
