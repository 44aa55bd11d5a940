"""Pre-train the encoder on pictures alone: predict the HOG descriptors of masked patches (paper, section 3.2).

    python train_scripts/pretrain.py --config fer-pll-tiny-hog --data data/ferplus --output_dir runs/pretrain

`-maskfeat`, `-mae`, `-simmim` and `-moco` in the place of `-hog` are the pre-trainings that the paper compares with.
Settings come from hub_configs/<config>/pretrain.yaml; every one of them can be given on the command line. Runs under
`accelerate launch` as well.

Pictures that are too many for the disk are read as a stream, from shards here, on a server or on the Hub:

    python train_scripts/pretrain.py --config fer-pll-vit-base-hog --data 'https://host/faces-{000..127}.tar' \\
        --data user/faces --data more/faces --max_steps 100000 --save_steps 1000 --output_dir runs/pretrain
"""

import sys
from dataclasses import dataclass, field
from functools import partial

from transformers import set_seed
from transformers.trainer_utils import SaveStrategy

from fer_pll.data.dataset import is_prepared, load_pictures, load_prepared
from fer_pll.data.streaming.stream import PictureStream
from fer_pll.hub.push import PushError
from fer_pll.io.errors import DataError
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.checkpoints import NonFiniteLossError, SaveError
from fer_pll.training.config import check_output_folder, load_config, parse_settings, start_run
from fer_pll.training.initialization import initialize
from fer_pll.training.linear_probe import LinearProbe
from fer_pll.training.pretraining import FerPllPreTrainer, pretraining_model


@dataclass
class PreTrainingScript:
    config: str = field(metadata={"help": "Name in hub_configs, or a folder with config.json and pretrain.yaml."})
    data: list[str] = field(
        metadata={
            "action": "extend",
            "help": "What to train on, once or several times, all as one set; of each the split `train`. Folders "
            "written by prepare_data.py; or, read as a stream: folders with Parquet files, tar files (WebDataset) or "
            "pictures at any depth; patterns of such files, here or at an address ('shards/*.parquet', "
            "'https://host/faces-{000..127}.tar', 'hf://datasets/user/name/*.tar'); names of data sets on the Hub.",
        }
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read folders written by prepare_data.py as a stream too. A stream counts steps, not epochs: give "
            "--max_steps and --save_steps. It is best cut into at least as many shards as there are processes times "
            "--dataloader_num_workers. See also --shuffle_buffer and --on_bad_data."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: a checkpoint of ours, ViT (DINO is one) or ViTMAE; folder or Hub name. "
            "Default: random weights."
        },
    )
    probe: str | None = field(
        default=None,
        metadata={
            "help": "Folder written by prepare_data.py, with labels. With each checkpoint a linear classifier is "
            "trained on features of at most 3,000 pictures of its `train`, to see whether they get better; logged as "
            "probe_accuracy."
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
    if script.streaming or not all(is_prepared(source) for source in script.data):
        train_dataset = PictureStream(script.data, args.shuffle_buffer, args.seed, args.process_index, args.world_size)
        if args.save_strategy == "epoch":  # which a stream does not have
            args.save_strategy = SaveStrategy.STEPS
    else:
        train_dataset = load_pictures(script.data)
    config, image_processor = load_config(script.config, mask_ratio=args.mask_ratio)
    model, initialization = initialize(partial(pretraining_model, args=args), config, script.init_from)
    if args.objective == "moco":
        model.start_alike()
    if initialization is not None and args.should_log:
        print(initialization, flush=True)
    model.set_attn_implementation(script.attn_implementation)

    probe = None
    if script.probe is not None:
        probe = LinearProbe(load_prepared(script.probe, "train"), image_processor)

    # trainer
    trainer = FerPllPreTrainer(model, args, processing_class=image_processor, train_dataset=train_dataset, probe=probe)
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
    except (DataError, NonFiniteLossError, SaveError) as error:
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
