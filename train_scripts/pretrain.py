"""Pre-train the encoder on pictures alone: predict the HOG descriptors of masked patches (paper, section 3.2).

    python train_scripts/pretrain.py --config fer-pll-tiny-hog --data data/ferplus --output_dir runs/pretrain

`-maskfeat`, `-mae`, `-simmim` and `-moco` in the place of `-hog` are the pre-trainings that the paper compares with.
Settings come from hub_configs/<config>/pretrain.yaml; every one of them can be given on the command line. Runs under
`accelerate launch` as well.
"""

import sys
from dataclasses import dataclass, field
from functools import partial

from transformers import set_seed

from fer_pll.data.prepared import load_prepared
from fer_pll.hub.push import PushError
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.images import NonFiniteLossError
from fer_pll.training.initialization import initialize
from fer_pll.training.pretraining import FerPllPreTrainer, pretraining_model
from fer_pll.training.settings import check_output_folder, load_config, parse_settings, start_run


@dataclass
class PreTrainingScript:
    config: str = field(metadata={"help": "Name in hub_configs, or a folder with config.json and pretrain.yaml."})
    data: str = field(metadata={"help": "Folder written by prepare_data.py; only the pictures of `train` are used."})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: a checkpoint of ours, ViT (DINO is one) or ViTMAE; folder or Hub name. "
            "Default: random weights."
        },
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager or flash_attention_2. On a CPU, eager is quicker for few tokens in bf16."},
    )


def build(argv: list[str] | None = None) -> tuple[FerPllPreTrainer, PreTrainingScript]:
    """Everything before the first step; what is wrong with the input shows here."""
    # parse
    script, args = parse_settings((PreTrainingScript, FerPllPreTrainingArguments), "pretrain.yaml", __doc__, argv)
    check_output_folder(args)
    set_seed(args.seed)

    # data
    train_dataset = load_prepared(script.data, "train").select_columns(["image", "index", "row_id"])
    config, image_processor = load_config(script.config, mask_ratio=args.mask_ratio)
    model, initialization = initialize(partial(pretraining_model, args=args), config, script.init_from)
    if args.objective == "moco":
        model.start_alike()
    if initialization is not None and args.should_log:
        print(initialization, flush=True)
    model.set_attn_implementation(script.attn_implementation)

    # trainer
    trainer = FerPllPreTrainer(model, args, processing_class=image_processor, train_dataset=train_dataset)
    return trainer, script


def main(argv: list[str] | None = None) -> None:
    try:
        trainer, script = build(argv)
        args = trainer.args
        if args.resume_from_checkpoint is not None:
            trainer.check_checkpoint(args.resume_from_checkpoint)
    except (ValueError, PushError) as error:
        sys.exit(f"error: {error}")
    start_run(args, script)
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except NonFiniteLossError as error:
        sys.exit(f"error: {error}")

    # save; everything is on disk before anything is pushed
    trainer.save_state()
    try:
        trainer.save_model()  # with --push_to_hub it pushes as well
    except PushError as error:
        sys.exit(f"error: {error}")
    trainer.create_model_card()


if __name__ == "__main__":
    main()
