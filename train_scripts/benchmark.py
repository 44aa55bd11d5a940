"""Measures one part of fer-pll beside the library that a user would otherwise take, in the same run."""

import argparse
import inspect
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

EPILOG = """\
examples:
  # HOG targets beside scikit-image, on one thread and on all, with the largest difference between the two
  python train_scripts/benchmark.py hog

  # a pre-training step of the tiny model beside transformers' ViTMAEForPreTraining; of ViT-B/16 in bfloat16
  python train_scripts/benchmark.py pretrain
  python train_scripts/benchmark.py pretrain --scale base --bf16 --batch-size 64

Both sides take turns within one run and the median counts, so that other work on the machine hits both alike. The
last line of the output is one JSON object: benchmark, ratios, targets (of those ratios that have one) and machine.
`benchmark.py NAME --help` lists the options and the ratios of one benchmark.
"""


@dataclass
class Result:
    """What a benchmark found.

    table: rows of cells to print, the header first.
    ratios: measured, by name.
    targets: what a ratio should reach or, as the benchmark's help says, stay below.
    peer: library and version on the other side.
    """

    table: list[tuple[str, ...]]
    ratios: dict[str, float]
    targets: dict[str, float]
    peer: str


def take_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function; every round calls all of them, in alternating order, after one for warm-up."""
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name in list(functions)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            functions[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def photo_crops(batch_size: int, image_size: int, channels: int):
    """Random crops of scikit-image's portrait of an astronaut, uint8 (B, C, H, W) numpy array."""
    import numpy as np
    from skimage import data

    photo = data.astronaut().transpose(2, 0, 1)[:channels]  # (C, 512, 512)
    repeat = -(-image_size // 512) + 1
    photo = np.tile(photo, (1, repeat, repeat))
    corners = np.random.default_rng(0).integers(0, 512, (batch_size, 2))
    return np.stack([photo[:, top : top + image_size, left : left + image_size] for top, left in corners])


def hog_options(parser):
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures (default: 64)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PX", help="side in pixels (default: 224)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each side (default: 7)")


def measure_hog(args):
    """HOG targets beside skimage.feature.hog.

    ratios: scikit-image's time over ours, for one_thread (both on one thread) and all_threads (scikit-image: a pool of
    as many processes, its pictures already there), pictures being crops of a photo; the same on one thread for
    white noise, which is the worst case, and for the tiny size (48 x 48, one channel, cell 4); largest_difference
    between the two in any value.
    """
    import numpy as np
    import skimage
    import torch

    from fer_pll.model.hog import hog_targets

    def ours(pixels, cell_size, threads):
        torch.set_num_threads(threads)
        return hog_targets(pixels, cell_size)

    photos = photo_crops(args.batch_size, args.image_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, photos.shape, dtype=np.uint8)
    tiny = photo_crops(args.batch_size, 48, 1)
    size = f"{args.image_size} x {args.image_size} x 3"
    cases = {
        "one_thread": (f"{size}, one thread", photos, 8, 1),
        "all_threads": (f"{size}, {args.threads} threads / processes", photos, 8, args.threads),
        "one_thread_noise": (f"{size}, noise, one thread", noise, 8, 1),
        "one_thread_tiny": ("48 x 48 x 1, one thread", tiny, 4, 1),
    }
    targets = {"one_thread": 20.0, "all_threads": 20.0, "largest_difference": 1e-6}
    ratios, difference = {}, 0.0
    table = [(f"ms per picture, batch {args.batch_size}", "fer-pll", "scikit-image", "ratio", "target", "difference")]
    workers = ProcessPoolExecutor(
        args.threads, get_context("spawn"), initializer=keep_pictures, initargs=(photos, args.threads)
    )
    with workers:
        for name, (title, pictures, cell_size, threads) in cases.items():
            pixels = torch.from_numpy(pictures)
            sides = {"ours": lambda pixels=pixels, cell=cell_size, n=threads: ours(pixels, cell, n)}
            if name == "all_threads":
                sides["theirs"] = lambda: list(workers.map(skimage_hog_of_share, range(args.threads)))
            else:
                sides["theirs"] = lambda pictures=pictures, cell=cell_size: skimage_hog(pictures, cell)
            seconds = take_turns(sides, args.repeats)
            apart = np.abs(sides["ours"]().numpy() - skimage_hog(pictures, cell_size)).max().item()
            difference = max(difference, apart)
            ratios[name] = seconds["theirs"] / seconds["ours"]
            each = [f"{seconds[side] / args.batch_size * 1e3:.3f}" for side in ("ours", "theirs")]
            target = f">= {targets[name]:g}x" if name in targets else ""
            table.append((title, *each, f"{ratios[name]:.1f}x", target, f"{apart:.1e}"))
    ratios["largest_difference"] = difference
    if difference > targets["largest_difference"]:
        raise ValueError(f"the HOG of fer-pll and of scikit-image differ by {difference:.1e}, more than 1e-6.")
    return Result(table, ratios, targets, f"scikit-image {skimage.__version__}")


def skimage_hog(pictures, cell_size):
    """(B, C, H, W) to (B, C, rows, cols, 9), float64."""
    import numpy as np
    from skimage.feature import hog

    options = {"pixels_per_cell": (cell_size, cell_size), "cells_per_block": (1, 1), "block_norm": "L2"}
    channels = pictures.reshape(-1, *pictures.shape[2:])
    cells = np.stack([hog(channel, 9, feature_vector=False, **options)[:, :, 0, 0] for channel in channels])
    return cells.reshape(*pictures.shape[:2], *cells.shape[1:])


def keep_pictures(pictures, shares):
    """In a process of the pool: keep the pictures, so that sending them is not what is timed."""
    global pictures_by_share
    pictures_by_share = [pictures[share::shares] for share in range(shares)]


def skimage_hog_of_share(share):
    if len(pictures_by_share[share]):
        skimage_hog(pictures_by_share[share], 8)


SCALES = {"tiny": ("fer-pll-tiny-ferplus", 64), "base": ("fer-pll-vit-base-ferplus", 8)}  # configuration, batch size


def pretrain_options(parser):
    parser.add_argument(
        "--scale", choices=list(SCALES), default="tiny", help="model sizes, of hub_configs: tiny (default) or base"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures (default: 64 at tiny, 8 at base)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="turns of each side (default: 9)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on both sides (default: float32)")
    parser.add_argument(
        "--attn-implementation",
        default="sdpa",
        help="of both sides: sdpa (default), eager or flash_attention_2. On a CPU, eager is quicker for few tokens in "
        "bfloat16",
    )


def measure_pretrain(args):
    """A step of pre-training (forward with HOG targets, backward, AdamW) beside transformers' ViTMAEForPreTraining.

    The peer has the same encoder, decoder, mask ratio, attention and precision, and predicts pixels.
    ratios: time of ours over theirs and peak memory of ours over theirs (both at most the target); hog_share, the
    share of our step that making the targets takes (at most the target); flops_share and flops_share_peer, achieved
    over measured peak of matrix products.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]
    # First, while this process is small: a child's peak memory would start from ours.
    memory = {}
    for side in ("ours", "theirs"):
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            memory[side] = child.submit(peak_memory, side, args).result()

    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(args.threads)
    models, steps, flops = {}, {}, {}
    for side in ("ours", "theirs"):
        # Counted with eager attention: the counter knows no fused attention of the CPU.
        eager_step = make_step(side, args, attn_implementation="eager")[-1]
        with FlopCounterMode(display=False) as counter:
            eager_step()
        flops[side] = counter.get_total_flops()
        models[side], pixel_values, steps[side] = make_step(side, args)

    side_length = 8192 if torch.cuda.is_available() else 2048
    matrix = torch.randn(
        side_length, side_length, device=device(), dtype=torch.bfloat16 if args.bf16 else torch.float32
    )
    others = {
        "targets": synchronized(lambda: models["ours"].targets(pixel_values)),
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

    def row(title, unit, values, form, name=None):
        ratio = f"{values['ours'] / values['theirs']:.3f}"
        target = f"<= {targets[name]:g}" if name in targets else ""
        return (f"{title}, {unit}", *(format(values[side], form) for side in ("ours", "theirs")), ratio, target)

    precision = "bfloat16" if args.bf16 else "float32"
    parameters = {side: sum(p.numel() for p in models[side].parameters()) / 1e6 for side in models}
    table = [
        (f"{args.scale}, batch {args.batch_size}, {precision}, {args.attn_implementation}",)
        + ("fer-pll", "ViTMAE", "ratio", "target"),
        row("step", "ms", {side: seconds[side] * 1e3 for side in steps}, ".1f", "time"),
        row("speed", "images/s", {side: args.batch_size / seconds[side] for side in steps}, ".1f"),
        row("peak memory", "MiB", {side: memory[side] / 2**20 for side in memory}, ".0f"),
        row("parameters", "millions", parameters, ".2f"),
        row("matrix products", "GFLOP per step", {side: flops[side] / 1e9 for side in flops}, ".2f"),
        row("achieved", "GFLOP/s", {side: speed[side] / 1e9 for side in speed}, ".1f"),
        row(f"share of peak ({peak / 1e9:.0f} GFLOP/s)", "%", {s: 100 * speed[s] / peak for s in speed}, ".1f"),
        (
            "HOG targets, % of the step",
            f"{100 * ratios['hog_share']:.2f}",
            "",
            "",
            f"<= {100 * targets['hog_share']:g}" if "hog_share" in targets else "",
        ),
    ]
    return Result(table, ratios, targets, f"transformers {transformers.__version__}")


def device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronized(function):
    """`function` that also waits until the GPU has done its work."""
    import torch

    def call():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


def make_step(side, args, attn_implementation=None):
    """Model of `ours` or `theirs`, normalised pictures (B, C, H, W), and a function that makes one training step."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from fer_pll import FerPllConfig, FerPllForPreTraining
    from fer_pll.training.settings import config_folder

    torch.manual_seed(0)
    # Set before the model is built: ViTMAE's decoder has a copy of the configuration, out of the reach of
    # `set_attn_implementation`.
    attention = {"attn_implementation": attn_implementation or args.attn_implementation}
    config = FerPllConfig.from_pretrained(config_folder(SCALES[args.scale][0]), **attention)
    if side == "ours":
        model = FerPllForPreTraining(config)
    else:
        sizes = "hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
        names = [*sizes, *(f"decoder_{name}" for name in sizes), "image_size", "patch_size", "num_channels"]
        names += ["mask_ratio", "hidden_act", "layer_norm_eps", "qkv_bias"]
        model = ViTMAEForPreTraining(ViTMAEConfig(**{name: getattr(config, name) for name in names}, **attention))
    model.to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    pixels = torch.from_numpy(photo_crops(args.batch_size, config.image_size, config.num_channels))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
    pixel_values = ((pixels / 255 - mean) / std).to(device())

    def step():
        optimizer.zero_grad()
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=args.bf16):
            loss = model(pixel_values).loss
        loss.backward()
        optimizer.step()

    return model, pixel_values, synchronized(step)


def peak_memory(side, args):
    """In a fresh process: bytes that model, optimiser and three steps take at most, of memory or of a GPU's memory."""
    import resource

    import psutil
    import torch
    from transformers import ViTMAEForPreTraining  # noqa: F401  (imported now, so that it does not count)

    import fer_pll.training.settings  # noqa: F401

    torch.set_num_threads(args.threads)
    before = psutil.Process().memory_info().rss
    step = make_step(side, args)[-1]
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


# A new benchmark is a function that adds its options to a parser, a function that measures and returns a Result (its
# docstring is the help), and an entry here.
BENCHMARKS = {"hog": (hog_options, measure_hog), "pretrain": (pretrain_options, measure_pretrain)}


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(args, peer):
    """What the figures depend on, without the machine's name."""
    import torch

    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu or platform.machine(),
        "cores": cores(),
        "threads": args.threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peer": peer,
    }


def parse_args(argv):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threads", type=int, default=cores(), metavar="N", help=f"where not one (default: all cores, {cores()})"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True, help=" or ".join(BENCHMARKS))
    for name, (add_options, measure) in BENCHMARKS.items():
        add_options(
            names.add_parser(
                name,
                parents=[common],
                description=inspect.getdoc(measure),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    measure = BENCHMARKS[args.name][1]
    try:
        result = measure(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    widths = [max(map(len, column)) for column in zip(*result.table, strict=True)]
    for first, *cells in result.table:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)))
    summary = {"benchmark": args.name, "ratios": result.ratios, "targets": result.targets}
    print(json.dumps(summary | {"machine": machine(args, result.peer)}))


if __name__ == "__main__":
    main()
