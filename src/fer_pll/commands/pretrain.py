"""Pre-train an encoder on faces without labels.

It learns to predict the HOG descriptors of masked patches (paper, section 3.2).
The configurations with -maskfeat, -mae, -simmim and -moco in place of -hog are
the pre-training methods that the paper compares with.

Settings come from the configuration (--config; fer-pll-tiny by default)
and its pretrain.yaml. The command line overrides them. The output folder gets
the encoder, its card and its checkpoints, for --init_from of fer-pll finetune.
"""

from collections.abc import Sequence

from transformers import set_seed

import fer_pll_cli

from ..io.shipped import DEFAULT_CONFIG
from ..io.terminal import say
from ..training.arguments import FerPllPreTrainingArguments
from ..training.config import check_output_folder, start_run, stopping_in_one_line
from ..training.pretraining import FerPllPreTrainer, PreTrainingOptions
from ..training.settings_parser import SettingsParser

EPILOG = """\
examples:
  fer-pll pretrain --data data/mine --output_dir runs/pretrain

  fer-pll pretrain --config fer-pll-tiny-hog --data data/ferplus \\
      --output_dir runs/pretrain

  # continue an interrupted run
  fer-pll pretrain --config fer-pll-tiny-hog --data data/ferplus \\
      --output_dir runs/pretrain --resume_from_checkpoint last

  # more images than fit on the disk: local shards, on a server or on the Hub
  fer-pll pretrain --config fer-pll-vit-base-hog \\
      --data 'https://host/faces-{000..127}.tar' --data user/faces \\
      --max_steps 100000 --save_steps 1000 --output_dir runs/pretrain

  # four GPUs
  accelerate launch --multi_gpu --num_processes 4 -m fer_pll.commands.pretrain \\
      --config fer-pll-vit-base-hog --data data/ferplus \\
      --output_dir runs/pretrain
"""


def make_parser() -> SettingsParser:
    classes = (PreTrainingOptions, FerPllPreTrainingArguments)
    return SettingsParser(classes, "pretrain.yaml", prog="fer-pll pretrain", description=__doc__, epilog=EPILOG)


def build(argv: Sequence[str] | None = None) -> tuple[FerPllPreTrainer, PreTrainingOptions]:
    """Everything before the first step. Errors in the input show here."""
    options, args = make_parser().parse_settings(argv)
    check_output_folder(args)
    set_seed(args.seed)
    return options.make_trainer(args), options


def main(argv: Sequence[str] | None = None) -> None:
    trainer, options = build(argv)
    args = trainer.args
    if args.resume_from_checkpoint is not None:
        trainer.check_checkpoint(args.resume_from_checkpoint)
    trainer.check_optimizer()
    start_run(args, options)
    with stopping_in_one_line(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # Everything is on disk before anything is pushed.
    trainer.save_state()
    trainer.save_model()  # with --push_to_hub it pushes as well
    trainer.create_model_card()
    if args.should_save:
        run = trainer.run_folder
        config = () if options.config == DEFAULT_CONFIG else ("--config", "NAME")  # of a classifier of the same sizes
        say(f"saved in {run.path}: encoder, card (README.md)" + (", pictures/" if run.images.is_dir() else ""))
        start = ("--data", "DATA", "--init_from", run.path, "--output_dir", "runs/finetune")
        fer_pll_cli.next_command("finetune", *config, *start)


if __name__ == "__main__":
    fer_pll_cli.run(main)
