"""Train a classifier on candidate sets.

During training it learns which label of each candidate set is the true one
(paper, sections 3.1 and 3.3). --loss and --revision choose other methods. For
comparison, --loss cross_entropy trains on the most voted label, as usual.

The model gets the classes of the data. Sizes of the model and settings come
from the configuration (--config; fer-pll-tiny by default) and its
finetune.yaml. --settings FILE.yaml overrides them, and the command line
overrides both. The output folder gets the model, its card, its checkpoints, the
revised confidences, and figures of the candidate sets and of the training
curves.
"""

from collections.abc import Sequence

from transformers import set_seed

import fer_pll_cli

from ..data.dataset import find_split, load_dataset
from ..io.terminal import say
from ..labels.candidate_summary import CandidateSummary
from ..plots.candidate_sets import plot_candidate_sets
from ..plots.curves import plot_training_curves
from ..training.arguments import FerPllTrainingArguments
from ..training.config import check_output_folder, start_run, stopping_in_one_line
from ..training.finetuning import FineTuningOptions
from ..training.settings_parser import SettingsParser
from ..training.trainer import FerPllTrainer

EPILOG = """\
examples:
  fer-pll finetune --data data/mine --output_dir runs/mine

  fer-pll finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --init_from runs/pretrain --output_dir runs/finetune

  # continue an interrupted run
  fer-pll finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --init_from runs/pretrain --output_dir runs/finetune \\
      --resume_from_checkpoint last

  # push the model at the end of the run; the token is that of hf auth login,
  # or HF_TOKEN
  fer-pll finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus \\
      --output_dir runs/finetune --push_to_hub --hub_model_id YOUR-NAME/faces

  # two GPUs
  accelerate launch --multi_gpu --num_processes 2 -m fer_pll.commands.finetune \\
      --config fer-pll-vit-base-ferplus --data data/ferplus \\
      --output_dir runs/finetune
"""


def make_parser() -> SettingsParser:
    classes = (FineTuningOptions, FerPllTrainingArguments)
    return SettingsParser(classes, "finetune.yaml", prog="fer-pll finetune", description=__doc__, epilog=EPILOG)


def build(argv: Sequence[str] | None = None) -> tuple[FerPllTrainer, FineTuningOptions]:
    """Everything before the first step. Errors in the input show here."""
    options, args = make_parser().parse_settings(argv)
    check_output_folder(args)
    set_seed(args.seed)
    data = load_dataset(options.data)
    train_dataset = options.add_candidates(find_split(data, "train", options.data), args.seed)
    return options.make_trainer(args, train_dataset, data.get("validation")), options


def main(argv: Sequence[str] | None = None) -> None:
    trainer, options = build(argv)
    args = trainer.args
    if args.resume_from_checkpoint is not None:
        trainer.check_checkpoint(args.resume_from_checkpoint)
    trainer.check_optimizer()
    start_run(args, options)
    if args.should_save:
        summary = CandidateSummary.from_table(trainer.table, options.max_candidates, trainer.method.rule)
        say(summary)
        plot_candidate_sets(summary, trainer.run_folder.candidate_sets)
    with stopping_in_one_line(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    trainer.merge_adapters()
    # Everything is on disk before anything is pushed.
    trainer.save_state()
    trainer.save_confidence()
    if args.should_save and any("loss" in log for log in trainer.state.log_history):
        plot_training_curves(trainer.state.log_history, trainer.run_folder.training_curves)
    trainer.save_model()  # with --push_to_hub it pushes as well
    trainer.create_model_card()
    if args.should_save:
        run = trainer.run_folder
        say(f"saved in {run.path}: model, card (README.md), confidences, {run.training_curves.name}")
        if trainer.eval_dataset is not None:
            fer_pll_cli.next_command("evaluate", run.path, options.data)
        else:
            fer_pll_cli.next_command("audit", run.path, "--out", "audit")


if __name__ == "__main__":
    fer_pll_cli.run(main)
