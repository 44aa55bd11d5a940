"""Train a classifier on candidate sets (paper, sections 3.1 and 3.3).

    python train_scripts/finetune.py --config fer-pll-tiny-ferplus --data data/ferplus \
        --pretrained runs/pretrain --output_dir runs/finetune

Settings come from hub_configs/<config>/finetune.yaml; every one of them can be given on the command line. `--loss
softmax` is the usual training on the most voted label, to compare with; `--loss` and `--revision` choose other
methods. Runs under `accelerate launch` as well (train_scripts/accelerate has configurations). A run that was cut off
goes on with `--resume_from_checkpoint last`. Writes the model, its card, the confidences and training_curves.png.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

from transformers import set_seed

from fer_pll import (
    FerPllConfig,
    FerPllForImageClassification,
    FerPllImageProcessor,
    FerPllTrainer,
    FerPllTrainingArguments,
)
from fer_pll.data.prepared import add_candidates, load_prepared
from fer_pll.evaluation.plots import plot_training_curves
from fer_pll.training.settings import check_output_folder, config_folder, parse_settings, start_run


@dataclass
class TrainingScript:
    config: str = field(metadata={"help": "Name in hub_configs, or a folder with config.json and finetune.yaml."})
    data: str = field(
        metadata={"help": "Folder written by prepare_data.py; trains on `train`, judges by `validation`."}
    )
    pretrained: str | None = field(
        default=None, metadata={"help": "Checkpoint of pretrain.py, folder or Hub name. Default: random weights."}
    )
    max_candidates: int = field(default=2, metadata={"help": "Labels with the most votes that become candidates."})
    min_votes: int = field(default=1, metadata={"help": "Votes that a candidate needs."})
    ties: str = field(default="keep", metadata={"help": "Labels tied at the cut: keep or drop."})
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is quicker for few tokens in bf16."},
    )


def build() -> tuple[FerPllTrainer, TrainingScript]:
    """Everything before the first step; what is wrong with the input shows here."""
    # parse
    script, args = parse_settings((TrainingScript, FerPllTrainingArguments), "finetune.yaml", __doc__)
    check_output_folder(args)
    set_seed(args.seed)

    # data
    data = load_prepared(script.data)
    train_dataset = add_candidates(data["train"], script.max_candidates, script.min_votes, script.ties)
    folder = config_folder(script.config)
    image_processor = FerPllImageProcessor.from_pretrained(folder)
    config = FerPllConfig.from_pretrained(folder)
    if args.drop_path_rate is not None:
        config.drop_path_rate = args.drop_path_rate
    if script.pretrained is None:
        model = FerPllForImageClassification(config)
    else:
        model = FerPllForImageClassification.from_pretrained(script.pretrained, config=config)
    model.set_attn_implementation(script.attn_implementation)

    # trainer
    trainer = FerPllTrainer(
        model,
        args,
        processing_class=image_processor,
        train_dataset=train_dataset,
        eval_dataset=data.get("validation"),
    )
    return trainer, script


def main() -> None:
    try:
        trainer, script = build()
        args = trainer.args
        if args.resume_from_checkpoint is not None:
            trainer.check_checkpoint(args.resume_from_checkpoint)
    except ValueError as error:
        sys.exit(f"error: {error}")
    start_run(args, script)
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
