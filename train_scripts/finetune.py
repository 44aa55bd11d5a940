"""Train a classifier on candidate sets (paper, sections 3.1 and 3.3).

    python train_scripts/finetune.py --config fer-pll-tiny-ferplus --data data/ferplus \
        --init_from runs/pretrain --output_dir runs/finetune

Settings come from hub_configs/<config>/finetune.yaml; those of `--settings FILE.yaml` win over them, and the command
line over both. `--loss softmax` is the usual training on the most voted label, to compare with; `--loss` and
`--revision` choose other methods. Runs under `accelerate launch` as well (train_scripts/accelerate has
configurations). A run that was cut off goes on with `--resume_from_checkpoint last`. Writes the model, its card, the
confidences, candidate_sets.png (what the candidate sets look like, printed as well) and training_curves.png; with
`--push_to_hub` the model goes to the Hub as well, by the token in HF_TOKEN or that of `hf auth login`.
"""

import os
import sys

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from transformers import set_seed

from fer_pll import FerPllTrainer, FerPllTrainingArguments
from fer_pll.data.dataset import load_prepared
from fer_pll.hub.push import PushError
from fer_pll.labels.candidate_summary import CandidateSummary
from fer_pll.plots.candidate_sets import plot_candidate_sets
from fer_pll.plots.curves import plot_training_curves
from fer_pll.training.checkpoints import NonFiniteLossError, SaveError
from fer_pll.training.config import check_output_folder, parse_settings, start_run
from fer_pll.training.finetuning import ClassificationScript


def build(argv: list[str] | None = None) -> tuple[FerPllTrainer, ClassificationScript]:
    """Everything before the first step; what is wrong with the input shows here."""
    # parse
    script, args = parse_settings((ClassificationScript, FerPllTrainingArguments), "finetune.yaml", __doc__, argv)
    check_output_folder(args)
    set_seed(args.seed)

    # data
    data = load_prepared(script.data)
    train_dataset = script.add_candidates(data["train"], args.seed)

    # trainer
    return script.make_trainer(args, train_dataset, data.get("validation")), script


def main(argv: list[str] | None = None) -> None:
    try:
        trainer, script = build(argv)
        args = trainer.args
        if args.resume_from_checkpoint is not None:
            trainer.check_checkpoint(args.resume_from_checkpoint)
    except (ValueError, PushError) as error:
        sys.exit(f"error: {error}")
    start_run(args, script)
    if args.should_save:
        summary = CandidateSummary.of(trainer.table, script.max_candidates)
        print(summary, flush=True)
        plot_candidate_sets(summary, trainer.run_folder.candidate_sets)
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except (NonFiniteLossError, SaveError) as error:
        sys.exit(f"error: {error}")

    # save; everything is on disk before anything is pushed
    trainer.save_state()
    trainer.save_confidence()
    if args.should_save and any("loss" in log for log in trainer.state.log_history):
        plot_training_curves(trainer.state.log_history, trainer.run_folder.training_curves)
    try:
        trainer.save_model()  # with --push_to_hub it pushes as well
    except PushError as error:
        sys.exit(f"error: {error}")
    trainer.create_model_card()


if __name__ == "__main__":
    main()
