"""A training step of our models, and of transformers' with the same encoder: options, time, memory and FLOP."""

import sys

from .common import device, fresh_process, photo_crops, row, synchronized

# Configuration and batch size.
SCALES = {
    "tiny": ("fer-pll-tiny-ferplus-quick", 64),
    "base": ("fer-pll-vit-base-ferplus", 8),
    "resnet18": ("fer-pll-resnet18", 8),  # classifiers only
}


def add_scale(parser, scales=tuple(SCALES)):
    parser.add_argument(
        "--scale",
        choices=scales,
        default="tiny",
        help=f"model sizes, of hub_configs: {' or '.join(scales)} (default: %(default)s)",
    )


def add_options(parser, scales=tuple(SCALES)):
    add_scale(parser, scales)
    parser.add_argument("--batch-size", type=int, metavar="N", help="images (default: 64 at tiny, else 8)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="turns of each side (default: 9)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on both sides (default: float32)")
    parser.add_argument(
        "--attn-implementation",
        default="sdpa",
        help="of both sides: sdpa (default), eager or flash_attention_2. On a CPU, eager is faster for few tokens in "
        "bfloat16",
    )


def settings_of(args):
    return ", ".join(
        [args.scale, f"batch {args.batch_size}", "bfloat16" if args.bf16 else "float32", args.attn_implementation]
    )


def step_rows(args, models, seconds, memory, flops, targets):
    sides = ("ours", "theirs")
    parameters = {side: sum(p.numel() for p in models[side].parameters()) for side in sides}
    return [
        row("step, ms", {side: seconds[side] * 1e3 for side in sides}, ".1f", targets.get("time")),
        row("speed, images/s", {side: args.batch_size / seconds[side] for side in sides}, ".1f"),
        row("peak memory, MiB", {side: memory[side] / 2**20 for side in sides}, ".0f", targets.get("memory")),
        row("parameters, millions", {side: parameters[side] / 1e6 for side in sides}, ".2f"),
        row("matrix products, GFLOP per step", {side: flops[side] / 1e9 for side in sides}, ".2f"),
    ]


# Sizes of an encoder and its input. They have the same names in transformers' configurations.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ENCODER = (*SIZES, "image_size", "patch_size", "num_channels", "hidden_act", "layer_norm_eps", "qkv_bias")


def make_pretraining_model(side, config):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from fer_pll import FerPllForPreTraining

    if side == "ours":
        return FerPllForPreTraining(config)
    names = [*ENCODER, *(f"decoder_{name}" for name in SIZES), "mask_ratio"]
    return ViTMAEForPreTraining(like(config, ViTMAEConfig, names))


def make_classifier(side, config):
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    from fer_pll import FerPllForImageClassification

    if side == "ours":
        return FerPllForImageClassification(config)
    if config.backbone_config is not None:
        network = type(config.backbone_config).from_dict(
            config.backbone_config.to_dict() | {"id2label": config.id2label}
        )
        return AutoModelForImageClassification.from_config(network)
    return ViTForImageClassification(like(config, ViTConfig, [*ENCODER, "num_labels"]))


def like(config, config_class, names):
    # The attention is set before the model is built: `set_attn_implementation` does not reach the copy of the
    # configuration in ViTMAE's decoder.
    values = {name: getattr(config, name) for name in names}
    return config_class(**values, attn_implementation=config._attn_implementation)


def make_step(side, args, attn_implementation=None):
    """The model of `ours` or `theirs`, its inputs (normalized images, and labels for a classifier), and a function
    that does one training step.
    """
    import torch

    from fer_pll import FerPllConfig
    from fer_pll.training.config import config_folder

    torch.manual_seed(0)
    config = FerPllConfig.from_pretrained(
        config_folder(SCALES[args.scale][0]), attn_implementation=attn_implementation or args.attn_implementation
    )
    make_model = {"pretrain": make_pretraining_model, "finetune": make_classifier}[args.name]
    model = make_model(side, config).to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    pixels = torch.from_numpy(photo_crops(args.batch_size, config.image_size, config.num_channels))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
    inputs = {"pixel_values": ((pixels / 255 - mean) / std).to(device())}
    if args.name == "finetune":
        inputs["labels"] = torch.arange(args.batch_size, device=device()) % config.num_labels

    def step():
        optimizer.zero_grad()
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=args.bf16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()

    return model, inputs, synchronized(step)


def make_sides(args):
    """Models, inputs, steps (see `make_step`), FLOP and peak memory of a step, each by `ours` and `theirs`."""
    sides = ("ours", "theirs")
    memory = {side: peak_memory_of_child(side, args) for side in sides}  # first, while this process is small

    import torch

    torch.set_num_threads(args.threads)
    flops = {side: matrix_flops(side, args) for side in sides}
    made = {side: make_step(side, args) for side in sides}
    models, inputs, steps = ({side: made[side][i] for side in sides} for i in range(3))
    return models, inputs, steps, flops, memory


def matrix_flops(side, args):
    """FLOP of the matrix products of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    # With eager attention, because the counter does not know the fused attention of the CPU.
    step = make_step(side, args, attn_implementation="eager")[-1]
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_memory_of_child(side, args):
    """Bytes of `peak_memory`. Call it while this process is small: the peak of a child would start from ours."""
    with fresh_process() as child:
        return child.submit(peak_memory, side, args).result()


def peak_memory(side, args):
    """Peak bytes of model, optimizer and three steps, in memory or in a GPU's; to be called in a fresh process."""
    import resource

    import psutil
    import torch
    from transformers import ViTForImageClassification, ViTMAEForPreTraining  # noqa: F401  (now, so as not to count)

    import fer_pll.training.config  # noqa: F401

    torch.set_num_threads(args.threads)
    before = psutil.Process().memory_info().rss
    step = make_step(side, args)[-1]
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
