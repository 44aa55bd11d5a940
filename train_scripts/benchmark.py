"""Measures one part of fer-pll beside the library that a user would otherwise take, in the same run."""

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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

  # a fine-tuning step beside transformers' ViTForImageClassification, and what the trainer adds to transformers' own
  python train_scripts/benchmark.py finetune
  python train_scripts/benchmark.py finetune --scale base --repeats 3

  # a forward in torch and in onnxruntime (float32 and int8) beside transformers' ViTForImageClassification
  python train_scripts/benchmark.py inference
  python train_scripts/benchmark.py inference --scale base --repeats 10

  # from the start of Python to the first prediction of the checkpoint in the package
  python train_scripts/benchmark.py start

  # reading, augmenting and collating pictures beside the same written by hand with Pillow, and beside the training
  python train_scripts/benchmark.py data
  python train_scripts/benchmark.py data --scale base --repeats 3

  # a stream of a hundred thousand pictures beside that of datasets: speed, memory, and going on in the middle
  python train_scripts/benchmark.py stream

  # memory of the confidence table and time of a look-up and revision, from ten thousand to ten million rows
  python train_scripts/benchmark.py table

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
    """Median seconds of each function; every round calls all of them, in alternating order, after one for warm-up.

    A function that returns a float has taken the seconds itself.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name in list(functions)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            taken = functions[name]()
            if turn:
                seconds[name].append(taken if isinstance(taken, float) else time.perf_counter() - start)
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


def model_options(parser):
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
    memory = {side: peak_memory_of_child(side, args) for side in ("ours", "theirs")}

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    models, steps, flops = {}, {}, {}
    for side in ("ours", "theirs"):
        flops[side] = matrix_flops(side, args)
        models[side], inputs, steps[side] = make_step(side, args)

    side_length = 8192 if torch.cuda.is_available() else 2048
    matrix = torch.randn(
        side_length, side_length, device=device(), dtype=torch.bfloat16 if args.bf16 else torch.float32
    )
    others = {
        "targets": synchronized(lambda: models["ours"].targets(**inputs)),
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


def settings_of(args):
    return ", ".join(
        [args.scale, f"batch {args.batch_size}", "bfloat16" if args.bf16 else "float32", args.attn_implementation]
    )


def row(title, values, form, target=None):
    """Cells: title, ours, theirs, ours over theirs, and the most that this may be."""
    cells = [format(values[side], form) for side in ("ours", "theirs")]
    return (title, *cells, f"{values['ours'] / values['theirs']:.3f}", f"<= {target:g}" if target else "")


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


def measure_finetune(args):
    """A step of fine-tuning (forward, backward, AdamW) beside transformers' ViTForImageClassification, and
    FerPllTrainer beside transformers' Trainer.

    The peer of the model has the same encoder, attention and precision, and a linear layer on the class token in the
    place of the query decoder. Both trainers train FerPllForImageClassification, on the same rows.
    ratios, each at most the target: time and peak memory of our model's step over theirs; trainer, time of a step in
    FerPllTrainer (revision of the confidences and loss of the label queries included) over one in Trainer.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]
    memory = {side: peak_memory_of_child(side, args) for side in ("ours", "theirs")}

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    models, steps, flops = {}, {}, {}
    for side in ("ours", "theirs"):
        flops[side] = matrix_flops(side, args)
        models[side], _, steps[side] = make_step(side, args)
    seconds = take_turns(steps, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        trainer_seconds = take_turns(make_trainings(args, folder), args.repeats)
    ratios = {
        "time": seconds["ours"] / seconds["theirs"],
        "memory": memory["ours"] / memory["theirs"],
        "trainer": trainer_seconds["ours"] / trainer_seconds["theirs"],
    }
    targets = {"trainer": 1.03}
    if args.scale == "base":
        # The query decoder's weights, with gradients and moments, weigh less the more pictures a step has.
        targets |= {"time": 1.05, "memory": 1.05 if args.batch_size >= 64 else 1.12}
    table = [
        (settings_of(args), "fer-pll", "transformers", "ratio", "target"),
        *step_rows(args, models, seconds, memory, flops, targets),
        row("step in the trainer, ms", {s: t * 1e3 for s, t in trainer_seconds.items()}, ".1f", targets["trainer"]),
    ]
    return Result(table, ratios, targets, f"transformers {transformers.__version__}")


STEPS = 2  # of a training in one turn: few, so that the turns lie close together


def make_trainings(args, folder):
    """Functions that train for `STEPS` steps with FerPllTrainer (`ours`) and Trainer, and return seconds per step.

    Neither side reads pictures, nor does anything but training between two steps. The pixels are there already, and
    Trainer's collator does with them what FerPllTrainer does after collation: what is left to differ is the trainer.
    """
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from fer_pll import FerPllConfig, FerPllImageProcessor, FerPllTrainer, FerPllTrainingArguments
    from fer_pll.training.settings import config_folder

    config_name = config_folder(SCALES[args.scale][0])
    config = FerPllConfig.from_pretrained(config_name, attn_implementation=args.attn_implementation)
    num_rows = STEPS * args.batch_size
    pixels = torch.from_numpy(photo_crops(num_rows, config.image_size, config.num_channels))
    labels = np.arange(num_rows) % config.num_labels
    classes = np.eye(config.num_labels, dtype=bool)
    dataset = Dataset.from_dict(
        {
            "index": np.arange(num_rows),
            "row_id": [str(row) for row in range(num_rows)],
            "candidates": classes[labels] | classes[labels - 1],
            "label": labels,
        }
    )
    settings = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch_size,
        "lr_scheduler_type": "cosine",
        "bf16": args.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,  # Trainer's batches are on the GPU already
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_steps": STEPS,
        "report_to": "none",
        "disable_tqdm": True,
    }
    our_settings = FerPllTrainingArguments(**settings)
    augmentation = our_settings.augmentation()
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
    mean, std = mean.to(device()), std.to(device())

    def collate(rows):
        index = torch.tensor([row["index"] for row in rows])
        return {"pixel_values": pixels[index], "index": index, "labels": torch.tensor([row["label"] for row in rows])}

    def collate_augmented(rows):
        batch = collate(rows)
        augmented = augmentation(batch["pixel_values"].to(device()), batch["index"], epoch=0)
        return {"pixel_values": (augmented.float() - mean) / std, "labels": batch["labels"]}

    class Clock(TrainerCallback):
        """Takes the time from before the first batch to the end of the last step; starting a training is no step."""

        def on_train_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            synchronize()
            self.seconds = time.perf_counter() - self.start

    def training(trainer):
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)

        def train():
            trainer.train()
            return clock.seconds / STEPS

        return train

    ours = FerPllTrainer(
        make_classifier("ours", config),
        our_settings,
        processing_class=FerPllImageProcessor.from_pretrained(config_name),
        train_dataset=dataset,
        data_collator=collate,
    )
    theirs = Trainer(
        make_classifier("ours", config),
        TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=collate_augmented,
    )
    return {"ours": training(ours), "theirs": training(theirs)}


def device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize():
    """Wait until the GPU, if there is one, has done its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synchronized(function):
    """`function` that also waits until the GPU has done its work."""

    def call():
        function()
        synchronize()

    return call


# Sizes of an encoder and its input, which have the same names in transformers' configurations.
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
    from transformers import ViTConfig, ViTForImageClassification

    from fer_pll import FerPllForImageClassification

    if side == "ours":
        return FerPllForImageClassification(config)
    return ViTForImageClassification(like(config, ViTConfig, [*ENCODER, "num_labels"]))


def like(config, config_class, names):
    # The attention is set before the model is built: ViTMAE's decoder has a copy of the configuration, out of the
    # reach of `set_attn_implementation`.
    values = {name: getattr(config, name) for name in names}
    return config_class(**values, attn_implementation=config._attn_implementation)


def make_step(side, args, attn_implementation=None):
    """Model of `ours` or `theirs`, its inputs (normalised pictures and, where it classifies, labels), and a function
    that makes one training step.
    """
    import torch

    from fer_pll import FerPllConfig
    from fer_pll.training.settings import config_folder

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


def matrix_flops(side, args):
    """FLOP of the matrix products of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    # Counted with eager attention: the counter knows no fused attention of the CPU.
    step = make_step(side, args, attn_implementation="eager")[-1]
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def fresh_process():
    """A pool of one new process, for measuring memory: it gives back at once what is freed.

    By default glibc keeps some of it. That would count as taken, by chance more or less, and what is taken next would
    come out of it unseen.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    return ProcessPoolExecutor(1, get_context("spawn"))


def peak_memory_of_child(side, args):
    """Bytes of `peak_memory`. To be called while this process is small: a child's peak would start from ours."""
    with fresh_process() as child:
        return child.submit(peak_memory, side, args).result()


def peak_memory(side, args):
    """In a fresh process: bytes that model, optimiser and three steps take at most, of memory or of a GPU's memory."""
    import resource

    import psutil
    import torch
    from transformers import ViTForImageClassification, ViTMAEForPreTraining  # noqa: F401  (now, so as not to count)

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


def inference_options(parser):
    parser.add_argument(
        "--scale", choices=list(SCALES), default="tiny", help="model sizes, of hub_configs: tiny (default) or base"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=50,
        metavar="N",
        help="turns of each side with one picture; a tenth of that, but three, with more (default: 50)",
    )
    parser.add_argument(
        "--batch-sizes", type=row_counts, default="1,32", metavar="N,N,...", help="pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--attn-implementation", default="sdpa", help="of both sides in torch: sdpa (default) or eager"
    )
    parser.add_argument(
        "--face-api",
        metavar="DIR",
        help="beside face-api as well: a folder in which `npm install @vladmandic/face-api @tensorflow/tfjs "
        "@tensorflow/tfjs-backend-wasm` was run",
    )


def measure_inference(args):
    """A forward of the classifier in torch and, exported, in onnxruntime (float32 and int8), beside transformers'
    ViTForImageClassification of the same encoder, on the CPU in float32.

    The pictures are pixel_values already. The weights are random, which does not change the time. With --threads 1 the
    time is that of the processor: what else runs on the machine does not count then.

    With one picture, other packages as well: `fer` where it and ai-edge-litert are installed, and face-api in Node
    (WebAssembly) with --face-api. Of each only the expression network is timed, without finding the face, on random
    pixels of its own size: 64 x 64 grey and 112 x 112 in colour. They are other networks, with other accuracies.

    ratios, each at least the target: torch_N, time of the peer over ours in torch with N pictures; onnx_N and int8_N,
    time of ours in torch over ours in onnxruntime. Without a target: fer_1 and face-api_1, as torch_1.
    """
    from importlib.metadata import version
    from importlib.util import find_spec
    from pathlib import Path

    import onnxruntime
    import torch
    import transformers

    from fer_pll import FerPllConfig
    from fer_pll.faces.detection import open_session
    from fer_pll.hub.export import write_model
    from fer_pll.training.settings import config_folder

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = FerPllConfig.from_pretrained(
        config_folder(SCALES[args.scale][0]), attn_implementation=args.attn_implementation
    )
    models = {side: make_classifier(side, config).eval() for side in ("ours", "theirs")}
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        models["ours"].set_attn_implementation("eager")  # as `fer-pll export` does
        for name, dtype in (("onnx", "float32"), ("int8", "int8")):
            path = Path(folder, f"{name}.onnx")
            write_model(models["ours"], path, dtype)
            sessions[name] = open_session(str(path), "This benchmark", "onnx", args.threads)
        models["ours"].set_attn_implementation(args.attn_implementation)

    others = ["fer"] if find_spec("fer") and find_spec("ai_edge_litert") else []
    others += ["face-api"] if args.face_api else []
    table = [(f"{args.scale}, float32, {args.attn_implementation}", "torch", "onnx", "int8", "ViT", *others)]
    ratios = {}
    peers = [f"transformers {transformers.__version__}", f"onnxruntime {onnxruntime.__version__}"]
    for batch_size in args.batch_sizes:
        repeats = args.repeats if batch_size == 1 else max(3, args.repeats // 10)
        pixel_values = torch.randn(batch_size, config.num_channels, config.image_size, config.image_size)
        inputs = {"pixel_values": pixel_values.numpy()}
        sides = {side: partial(model, pixel_values) for side, model in models.items()}
        sides |= {name: partial(session.run, None, inputs) for name, session in sessions.items()}
        if batch_size == 1 and "fer" in others:
            peers.append(f"fer {version('fer')}")
            sides["fer"] = fer_network(args.threads)
        if args.threads == 1:
            sides = {side: partial(processor_seconds, forward) for side, forward in sides.items()}
        with torch.inference_mode(), ExitStack() as stack:
            if batch_size == 1 and args.face_api:
                sides["face-api"], number = stack.enter_context(face_api_network(args.face_api, args.threads))
                peers.append(f"face-api {number}")
            seconds = take_turns(sides, repeats)
        ratios[f"torch_{batch_size}"] = seconds["theirs"] / seconds["ours"]
        ratios |= {f"{name}_{batch_size}": seconds["ours"] / seconds[name] for name in sessions}
        ratios |= {f"{name}_1": seconds[name] / seconds["ours"] for name in others if name in seconds}
        ordered = [seconds[side] for side in ("ours", "onnx", "int8", "theirs", *others) if side in seconds]
        blank = ("",) * (4 + len(others) - len(ordered))
        table.append((f"batch {batch_size}, ms", *(f"{taken * 1e3:.2f}" for taken in ordered), *blank))
        table.append((f"batch {batch_size}, images/s", *(f"{batch_size / taken:.1f}" for taken in ordered), *blank))
        table.append(
            (f"batch {batch_size}, torch's time over it", *(f"{ordered[0] / taken:.2f}" for taken in ordered), *blank)
        )
    targets = {"torch_1": 0.85, "torch_32": 0.85, "onnx_1": 1.3, "int8_1": 2.0}
    if args.scale == "base":
        targets = {"torch_1": 0.95, "torch_32": 0.95}
    return Result(table, ratios, {name: targets[name] for name in targets if name in ratios}, ", ".join(peers))


def fer_network(threads):
    """Of the package `fer`: LiteRT on the file that it takes by default, which it does by way of TensorFlow."""
    from importlib.util import find_spec
    from pathlib import Path

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    path = Path(find_spec("fer").origin).with_name("data") / "emotion_model_quantized.tflite"
    network = Interpreter(str(path), num_threads=threads)
    network.allocate_tensors()
    (face_place,), (answer_place,) = network.get_input_details(), network.get_output_details()
    face = np.random.default_rng(0).uniform(-1, 1, face_place["shape"]).astype(np.float32)

    def forward():
        network.set_tensor(face_place["index"], face)
        network.invoke()
        return network.get_tensor(answer_place["index"])

    return forward


@contextmanager
def face_api_network(folder, threads):
    """Of face-api, in a process of Node that lives as long as the context; and the version."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "face_api.cjs")
    command = ["node", script, folder, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        version = node.stdout.readline().strip()
        if not version:
            raise ValueError(f"--face-api: node has ended, see above; {folder} needs the packages of --help.")

        def forward():
            print(file=node.stdin, flush=True)
            return json.loads(node.stdout.readline())["processor" if threads == 1 else "clock"]

        yield forward, version


def processor_seconds(function):
    start = time.thread_time()
    function()
    return time.thread_time() - start


FIRST_PREDICTION = {
    "ours": """
import fer_pll
from PIL import Image
model, image_processor = fer_pll.load_default()
print(model(**image_processor(Image.new("L", (48, 48)), return_tensors="pt")).logits.argmax())
""",
    "theirs": """
import sys
import torch
from transformers import ViTForImageClassification
print(ViTForImageClassification.from_pretrained(sys.argv[1]).eval()(torch.zeros(1, 1, 48, 48)).logits.argmax())
""",
}


def start_options(parser):
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each side (default: 7)")


def measure_start(args):
    """From the start of Python to the first prediction: fer_pll.load_default() beside transformers'
    ViTForImageClassification with the same encoder from a folder, each time in a process of its own.

    ratios: start, seconds of ours over the peer's; at most the target.
    """
    import transformers

    import fer_pll

    config = fer_pll.load_default()[0].config
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}

    def first_prediction(side):
        command = [sys.executable, "-c", FIRST_PREDICTION[side], folder]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    with tempfile.TemporaryDirectory() as folder:
        make_classifier("theirs", config).save_pretrained(folder)
        seconds = take_turns({side: partial(first_prediction, side) for side in FIRST_PREDICTION}, args.repeats)
    table = [("", "fer-pll", "ViT", "ratio", "target"), row("first prediction, s", seconds, ".2f", 1.5)]
    ratios = {"start": seconds["ours"] / seconds["theirs"]}
    return Result(table, ratios, {"start": 1.5}, f"transformers {transformers.__version__}")


def row_counts(text):
    return sorted(int(count) for count in text.split(","))


def table_options(parser):
    parser.add_argument(
        "--rows",
        type=row_counts,
        default="10000,100000,1000000,10000000",
        metavar="N,N,...",
        help="sizes of the table (default: %(default)s)",
    )
    parser.add_argument("--classes", type=int, default=8, metavar="K", help="labels (default: 8)")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows of a step (default: 256)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of each size (default: 5)")


def measure_table(args):
    """The confidence table at several numbers of rows, beside itself: no library has one.

    A step is look-up, revision and summary of a random batch. What building (from candidate sets that are there),
    saving and loading take at most beyond the table is anonymous memory of a fresh process, read from outside every
    half millisecond. Pages of the file that loading maps do not count: the system drops them when memory runs short.
    Saving ends when the disk has confirmed; loading is of a file that the system has in its cache.
    ratios, each at most the target: at the most rows, bytes_per_row of the table and MiB beyond it (build_mib,
    save_mib, load_mib); step_growth, time of a step at the most rows over that at the fewest.
    """
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        beyond = memory_beyond_table(args, folder)
        tables = {count: build_table(draw_candidates(count, args.classes)) for count in args.rows}
        paths = {count: table_path(folder, count) for count in args.rows}
        steps = take_turns({n: lambda n=n: seconds_of_table_step(tables[n], args) for n in args.rows}, args.repeats)
        saving = take_turns({n: lambda n=n: tables[n].save(paths[n]) for n in args.rows}, args.repeats)
        loading = take_turns({n: lambda n=n: load_table(paths[n], args.classes) for n in args.rows}, args.repeats)
    fewest, most = args.rows[0], args.rows[-1]
    bytes_per_row = {n: size_of(tables[n]) / n for n in args.rows}
    growth = {n: steps[n] / steps[fewest] for n in args.rows}
    ratios = {"bytes_per_row": bytes_per_row[most]}
    ratios |= {f"{action}_mib": values[most] for action, values in beyond.items()}
    ratios["step_growth"] = growth[most]
    targets = {"bytes_per_row": 4 * args.classes + 16.0, "build_mib": 32.0, "save_mib": 32.0, "load_mib": 32.0}
    targets["step_growth"] = 1.5

    def row_of(title, values, form, name=None):
        target = f"<= {targets[name]:g}" if name else ""
        return (title, *(format(values[n], form) for n in args.rows), target)

    table = [
        (f"rows, {args.classes} classes", *(f"{n:,}" for n in args.rows), "target"),
        row_of("table, bytes per row", bytes_per_row, ".1f", "bytes_per_row"),
        row_of("table, MiB", {n: size_of(tables[n]) / 2**20 for n in args.rows}, ".1f"),
        *(row_of(f"{action}, MiB beyond it", beyond[action], ".1f", f"{action}_mib") for action in beyond),
        row_of("save, s", saving, ".3f"),
        row_of("load, s", loading, ".3f"),
        row_of(f"step of {args.batch_size} rows, ms", {n: steps[n] * 1e3 for n in args.rows}, ".3f"),
        row_of("step, over that of the fewest rows", growth, ".2f", "step_growth"),
    ]
    return Result(table, ratios, targets, "none")


def draw_candidates(count, classes):
    """Candidate sets (count, classes), numpy bool: a random third of the classes, and one so that none is empty."""
    import numpy as np

    candidates = np.random.default_rng(0).integers(0, 3, (count, classes), dtype=np.uint8) == 0
    for label in range(classes):
        candidates[label::classes, label] = True
    return candidates


def table_path(folder, count):
    return os.path.join(folder, f"{count}.safetensors")


def class_names(classes):
    return [str(label) for label in range(classes)]


def build_table(candidates):
    from fer_pll.labels.confidence import ConfidenceTable

    return ConfidenceTable.from_candidates(candidates, class_names(candidates.shape[1]), "fingerprint")


def load_table(path, classes):
    from fer_pll.labels.confidence import ConfidenceTable

    return ConfidenceTable.load(path, class_names(classes), "fingerprint")


def size_of(table):
    """Bytes of all tensors of a table."""
    import torch

    return sum(value.nbytes for value in vars(table).values() if isinstance(value, torch.Tensor))


def seconds_of_table_step(table, args):
    """Seconds of a step with a batch, mean of a hundred."""
    import torch

    logits = torch.randn(args.batch_size, args.classes)
    # Rows never seen before, or a big table's would come from the processor's cache like a small one's.
    batches = torch.randint(len(table), (100, args.batch_size)).unbind()
    start = time.perf_counter()
    for index in batches:
        table.lookup(index)
        # This rule writes a row at every visit; after the paper's, which decides a row once, small tables would
        # soon have less to do.
        table.revise(index, logits, threshold=0.2, epoch=0, rule="soft")
        table.summary()
    return (time.perf_counter() - start) / len(batches)


def memory_beyond_table(args, folder):
    """Most MiB that building, saving and loading take beyond the table, by action and number of rows."""
    beyond = {"build": {}, "save": {}, "load": {}}
    with fresh_process() as child:
        for count in [args.rows[0], *args.rows]:  # twice, as what the process loads once does not count
            path = table_path(folder, count)
            child.submit(keep_candidates, count, args.classes, args.threads).result()
            rise = {
                "build": memory_rise(child, build_kept_table),
                "save": memory_rise(child, save_kept_table, path),
                "load": memory_rise(child, load_kept_table, path),
            }
            size = child.submit(size_of_kept_table).result()
            for action in beyond:
                # Not below zero, as with tables so small that they come from memory that the process has already.
                beyond[action][count] = max(0, rise[action] - (0 if action == "save" else size)) / 2**20
    return beyond


def memory_rise(child, function, *args):
    """Bytes by which the anonymous memory of a process rises at most while it calls a function.

    Read from this process, because a thread of the other would not run while the function holds its GIL.
    """
    import psutil

    process = psutil.Process(child.submit(os.getpid).result())

    def anonymous():
        memory = process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)  # on Linux: what is mapped from files

    before = most = anonymous()
    call = child.submit(function, *args)
    while not call.done():
        most = max(most, anonymous())
        time.sleep(0.0005)
    call.result()
    return max(most, anonymous()) - before


def keep_candidates(count, classes, threads):
    """In the process whose memory is read, as all that follow: keep what the next functions need."""
    import torch

    global kept_candidates
    torch.set_num_threads(threads)
    kept_candidates = draw_candidates(count, classes)


def build_kept_table():
    global kept_table
    kept_table = build_table(kept_candidates)


def save_kept_table(path):
    kept_table.save(path)


def load_kept_table(path):
    global kept_table
    kept_table = load_table(path, kept_candidates.shape[1])


def size_of_kept_table():
    return size_of(kept_table)


ASTRONAUT_LANDMARKS = ((203, 111), (245, 110), (227, 133), (207, 156), (246, 155))
"""Eyes, nose and corners of the mouth in scikit-image's portrait, in pixels; near enough for timing."""


def measure_data(args):
    """What a batch costs until the model has it (rows of a prepared data set, decoding, resizing, augmentation as in
    finetune.yaml, normalisation), beside the same written by hand with Pillow and NumPy, and beside the training.

    Pictures are 48 x 48 grey PNG at tiny, 100 x 100 colour JPEG at base. By hand they are bytes in a list already, and
    pass through Pillow one by one. Aligning, which prepare_data.py does once, is of a photograph of 512 x 512 by five
    landmarks; by hand without protection against aliasing.
    ratios, each at least the target: images/s of ours over by hand on one core, for loader and align; over_training,
    images/s of the loader with a worker on each core over those of a step of our model, pre-training or fine-tuning,
    whichever is quicker. At base augmentation is for a GPU: loader has no target there.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]

    import numpy as np
    import PIL
    import torch
    import yaml

    from fer_pll.data.transforms import BatchAugmentation
    from fer_pll.faces.alignment import FaceCrop, align_face
    from fer_pll.training.settings import config_folder

    folder = config_folder(SCALES[args.scale][0])
    settings = yaml.safe_load((folder / "finetune.yaml").read_text())
    settings = {name: settings[name] for name in vars(BatchAugmentation()) if name in settings}
    pictures = encoded_pictures(args.scale, BATCHES * args.batch_size)
    crop = FaceCrop.from_pretrained(str(folder))
    photo, landmarks = encode(photo_crops(1, 512, 3)[0], "JPEG"), np.array(ASTRONAUT_LANDMARKS)

    torch.set_num_threads(1)
    sides = {
        "loader": lambda: load_batches(loader(pictures, folder, args.batch_size, 0), folder, settings),
        "loader by hand": lambda: load_by_hand(pictures, folder, args.batch_size, settings),
        "align": lambda: [align_face(decode(photo), landmarks, crop) for _ in range(BATCHES)],
        "align by hand": lambda: [align_by_hand(decode(photo), landmarks, crop) for _ in range(BATCHES)],
    }
    seconds = take_turns(sides, args.repeats)
    torch.set_num_threads(args.threads)
    workers = loader(pictures, folder, args.batch_size, args.threads)
    steps = {
        name: make_step("ours", argparse.Namespace(**vars(args) | {"name": name}))[-1]
        for name in ("pretrain", "finetune")
    }
    seconds |= take_turns({"loader, all cores": lambda: load_batches(workers, folder, settings)} | steps, args.repeats)
    counts = dict.fromkeys(seconds, len(pictures)) | {"align": BATCHES, "align by hand": BATCHES}
    counts |= dict.fromkeys(steps, args.batch_size)
    speed = {name: counts[name] / seconds[name] for name in seconds}
    ratios = {name: speed[name] / speed[f"{name} by hand"] for name in ("loader", "align")}
    whole = speed["loader, all cores"]
    ratios["over_training"] = whole / max(speed[name] for name in steps)
    targets = {"over_training": 2.0}
    if args.scale == "tiny":
        targets["loader"] = 1.0

    def row_of(title, ours, theirs, name):
        target = f">= {targets[name]:g}x" if name in targets else ""
        return (title, f"{ours:,.1f}", f"{theirs:,.1f}", f"{ours / theirs:.2f}x", target)

    table = [
        (f"images/s, {settings_of(args)}", "fer-pll", "other", "ratio", "target"),
        row_of("load | by hand, one core", speed["loader"], speed["loader by hand"], "loader"),
        row_of("open and align | by hand, one core", speed["align"], speed["align by hand"], "align"),
        *(
            row_of(f"load | step of {step}, {args.threads} cores", whole, speed[step], "over_training")
            for step in steps
        ),
    ]
    return Result(table, ratios, targets, f"Pillow {PIL.__version__}")


BATCHES = 16  # that a loader gives in one turn, and photographs that are aligned


def encode(pixels, kind):
    """(C, H, W) to the bytes of a picture file."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def decode(data):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded_pictures(scale, count):
    """Picture files as FER+ (tiny) and RAF-DB (base) have them."""
    size, channels, kind = {"tiny": (48, 1, "PNG"), "base": (100, 3, "JPEG")}[scale]
    return [encode(pixels, kind) for pixels in photo_crops(count, size, channels)]


def loader(pictures, folder, batch_size, workers):
    """The batches of a prepared data set in random order, as the trainers read them."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from fer_pll import FerPllImageProcessor
    from fer_pll.data import EXPRESSIONS
    from fer_pll.data.prepared import prepared_features
    from fer_pll.data.transforms import PixelCollator

    rows = range(len(pictures))
    columns = {
        "image": [{"bytes": data, "path": None} for data in pictures],
        "index": rows,
        "row_id": [str(row) for row in rows],
        "label": [row % len(EXPRESSIONS) for row in rows],
        "votes": [[1] * len(EXPRESSIONS)] * len(pictures),
    }
    return DataLoader(
        Dataset.from_dict(columns, prepared_features(EXPRESSIONS, votes=True)),
        batch_size,
        shuffle=True,
        collate_fn=PixelCollator(FerPllImageProcessor.from_pretrained(folder)),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def load_batches(batches, folder, settings):
    """An epoch of a loader, with what the trainers do to its batches before the model sees them."""
    import torch

    from fer_pll import FerPllConfig
    from fer_pll.data.transforms import BatchAugmentation

    config = FerPllConfig.from_pretrained(folder)
    mean, std = (
        255 * torch.tensor(values, device=device()).view(-1, 1, 1) for values in (config.image_mean, config.image_std)
    )
    augmentation = BatchAugmentation(**settings)
    for batch in batches:
        pixels = augmentation(batch["pixel_values"].to(device()), batch["index"], epoch=0)
        (pixels - mean) / std
    synchronize()


def load_by_hand(pictures, folder, batch_size, settings):
    """The same as a user of Pillow writes it: every picture on its own, with Pillow's functions."""
    import numpy as np
    import torch

    from fer_pll import FerPllConfig

    config = FerPllConfig.from_pretrained(folder)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (config.image_mean, config.image_std))
    order = np.random.default_rng(0).permutation(len(pictures))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [augment_by_hand(pictures[row], config, settings) for row in rows]
        torch.from_numpy((np.stack(batch) - mean) / std).to(device())
    synchronize()


def augment_by_hand(data, config, settings):
    """A picture file to float32 (C, H, W) in 0..1, with the random changes of `BatchAugmentation`."""
    import io
    import math
    import random

    import numpy as np
    from PIL import Image, ImageEnhance, ImageOps

    picture = Image.open(io.BytesIO(data)).convert("L" if config.num_channels == 1 else "RGB")
    area, ratio = random.uniform(settings.get("crop_scale", 1), 1), settings.get("crop_ratio", 1)
    stretch = math.exp(random.uniform(-0.5, 0.5) * math.log(ratio))
    width, height = (min(1, math.sqrt(area) * s) * picture.width for s in (stretch, 1 / stretch))
    left, top = random.uniform(0, picture.width - width), random.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    picture = picture.resize((config.image_size, config.image_size), Image.Resampling.BILINEAR, box)
    if settings.get("rotation"):
        picture = picture.rotate(random.uniform(-1, 1) * settings["rotation"], Image.Resampling.BILINEAR)
    if settings.get("flip", True) and random.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if settings.get("light"):
        for enhance in (ImageEnhance.Contrast, ImageEnhance.Brightness):
            picture = enhance(picture).enhance(1 + random.uniform(-1, 1) * settings["light"])
    pixels = np.asarray(picture, dtype=np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if random.random() < settings.get("erase", 0):
        side = int(math.sqrt(random.uniform(0.02, 0.2)) * config.image_size)
        x, y = (random.randint(0, config.image_size - side) for _ in range(2))
        pixels = pixels.copy()
        pixels[:, y : y + side, x : x + side] = pixels.mean(axis=(1, 2), keepdims=True)
    return pixels


def align_by_hand(picture, landmarks, crop):
    """The least-squares similarity transform, then Pillow's."""
    import numpy as np
    from PIL import Image

    # x' = a x - b y + c, y' = b x + a y + d, from the crop to the picture
    x, y = crop.landmarks.T
    zero, one = np.zeros(5), np.ones(5)
    equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(equations, landmarks.T.reshape(-1), rcond=None)[0]
    picture = picture.convert("L" if crop.colour == "grey" else "RGB")
    size, matrix = (crop.size, crop.size), (a, -b, c, b, a, d)
    return picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def stream_options(parser):
    parser.add_argument("--pictures", type=int, default=100_000, metavar="N", help="in all (default: 100,000)")
    parser.add_argument("--shards", type=int, default=20, metavar="N", help="Parquet files (default: 20)")
    parser.add_argument("--buffer", type=int, default=4096, metavar="N", help="shuffle buffer (default: 4096)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="passes of each side (default: 3)")


def measure_stream(args):
    """A pass over Parquet shards of 48 x 48 PNG, shuffled and decoded in one process, beside that of datasets.

    Each side has a fresh process. Going on in the middle of the pass: ours reads again, undecoded, a part of a shard
    and a buffer; the other is transformers' Trainer, which iterates over all that came before.
    ratios: speed, pictures per second of ours over datasets'; memory, what the process takes at most during the pass,
    ours over datasets'; resume, Trainer's time to the next picture over ours.
    """
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        with fresh_process() as child:
            child.submit(write_shards, folder, args.pictures, args.shards).result()
        runs = {"ours": [], "theirs": []}
        for turn in range(args.repeats):
            for side in list(runs)[:: 1 if turn % 2 else -1]:
                with fresh_process() as child:
                    runs[side].append(child.submit(pass_of_stream, side, folder, args).result())
    seconds, memory, resume = (
        {side: median(run[i] for run in results) for side, results in runs.items()} for i in range(3)
    )
    ratios = {
        "speed": seconds["theirs"] / seconds["ours"],
        "memory": memory["ours"] / memory["theirs"],
        "resume": resume["theirs"] / resume["ours"],
    }
    speed = {side: args.pictures / seconds[side] for side in seconds}

    def row_of(title, values, form, ratio):
        return (title, format(values["ours"], form), format(values["theirs"], form), f"{ratio:.2f}x")

    table = [
        (f"{args.pictures:,} pictures, {args.shards} shards, buffer {args.buffer}", "fer-pll", "datasets", "ratio"),
        row_of("images/s", speed, ",.0f", ratios["speed"]),
        row_of("peak memory of a pass, MiB", memory, ".1f", ratios["memory"]),
        row_of("going on in the middle, s", resume, ".2f", ratios["resume"]),
    ]
    return Result(table, ratios, {}, f"datasets {datasets.__version__}")


def write_shards(folder, count, shards):
    from datasets import Dataset, Features, Image

    pictures = encoded_pictures("tiny", 1000)
    for shard in range(shards):
        numbers = range(count * shard // shards, count * (shard + 1) // shards)
        rows = {"image": [{"bytes": pictures[number % 1000], "path": None} for number in numbers]}
        Dataset.from_dict(rows, features=Features(image=Image())).to_parquet(f"{folder}/{shard:05}.parquet")


def pass_of_stream(side, folder, args):
    """In a fresh process: seconds of a pass, MiB that it takes at most, seconds to the picture behind the middle."""
    import resource

    import psutil
    from datasets import load_dataset

    from fer_pll.data.streaming import PictureStream

    def ours():
        return PictureStream([folder], args.buffer)

    def theirs():
        files = f"{folder}/*.parquet"
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
        return (row["image"].convert("RGB") for row in stream.shuffle(seed=0, buffer_size=args.buffer))

    next(iter(ours() if side == "ours" else theirs()))  # imports what is imported late
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    stream = ours() if side == "ours" else theirs()
    for count, picture in enumerate(stream, 1):
        if count == args.pictures // 2:
            middle, to_middle = picture, time.perf_counter() - start
        if count == args.pictures:
            break
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    memory = max(most - before, resource.getpagesize()) / 2**20  # of few pictures nothing shows
    if side == "theirs":
        return seconds, memory, to_middle
    start = time.perf_counter()
    stream = ours()
    stream.start_at({0: middle["position"]})
    next(iter(stream))
    return seconds, memory, time.perf_counter() - start


# A new benchmark is a function that adds its options to a parser, a function that measures and returns a Result (its
# docstring is the help), and an entry here.
BENCHMARKS = {
    "hog": (hog_options, measure_hog),
    "pretrain": (model_options, measure_pretrain),
    "finetune": (model_options, measure_finetune),
    "inference": (inference_options, measure_inference),
    "start": (start_options, measure_start),
    "data": (model_options, measure_data),
    "stream": (stream_options, measure_stream),
    "table": (table_options, measure_table),
}


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
