"""A pre-training step against transformers' ViTMAEForPreTraining."""

from .common import Result, device, row, synchronized, take_turns
from .training_step import SCALES, make_sides, settings_of, step_rows
from .training_step import add_options as add_options_of_step


def add_options(parser):
    add_options_of_step(parser, ("tiny", "base"))


def measure(args):
    """A step of pre-training (forward with HOG targets, backward, AdamW) against transformers' ViTMAEForPreTraining.

    The peer has the same encoder, decoder, mask ratio, attention and precision, and predicts pixels.
    ratios: time and memory, time and peak memory of ours over theirs (both at most the target); hog_share, the share
    of the targets in the time of our step (at most the target); flops_share and flops_share_peer, the achieved speed
    of matrix products over the measured peak.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]
    models, inputs, steps, flops, memory = make_sides(args)

    import torch
    import transformers

    side_length = 8192 if torch.cuda.is_available() else 2048
    matrix = torch.randn(
        side_length, side_length, device=device(), dtype=torch.bfloat16 if args.bf16 else torch.float32
    )
    others = {
        "targets": synchronized(lambda: models["ours"].targets(**inputs["ours"])),
        "product": synchronized(lambda: matrix @ matrix),
    }
    seconds = take_turns(steps | others, args.repeats)
    peak = 2 * side_length**3 / seconds["product"]
    speed = {side: flops[side] / seconds[side] for side in steps}
    ratios = {
        "time": seconds["ours"] / seconds["theirs"],
        "memory": memory["ours"] / memory["theirs"],
        "hog_share": seconds["targets"] / seconds["ours"],
        "flops_share": speed["ours"] / peak,
        "flops_share_peer": speed["theirs"] / peak,
    }
    targets = {"time": 1.0}
    if args.scale == "tiny":
        targets["hog_share"] = 0.03

    table = [
        (settings_of(args), "fer-pll", "ViTMAE", "ratio", "target"),
        *step_rows(args, models, seconds, memory, flops, targets),
        row("achieved, GFLOP/s", {side: speed[side] / 1e9 for side in speed}, ".1f"),
        row(f"share of peak ({peak / 1e9:.0f} GFLOP/s), %", {s: 100 * speed[s] / peak for s in speed}, ".1f"),
        (
            "HOG targets, % of the step",
            f"{100 * ratios['hog_share']:.2f}",
            "",
            "",
            f"<= {100 * targets['hog_share']:g}" if "hog_share" in targets else "",
        ),
    ]
    return Result(table, ratios, targets, f"transformers {transformers.__version__}")
