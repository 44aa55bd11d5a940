"""Benchmark of one part of fer-pll against the library that a user would otherwise take, in one run."""

import argparse
import inspect
import json
import os
import platform
from pathlib import Path

from . import (
    checkpoints,
    copies,
    data,
    explanations,
    finetune,
    hog,
    imports,
    inference,
    photographs,
    pretrain,
    robustness,
    start,
    stream,
    table,
)

EPILOG = """\
examples:
  # HOG targets against scikit-image, on one thread and on all, with the largest difference between the two
  python train_scripts/benchmark.py hog

  # a pre-training step against transformers' ViTMAEForPreTraining: the tiny model; ViT-B/16 in bfloat16
  python train_scripts/benchmark.py pretrain
  python train_scripts/benchmark.py pretrain --scale base --bf16 --batch-size 64

  # a fine-tuning step against transformers' ViTForImageClassification, and our trainer against transformers' Trainer
  python train_scripts/benchmark.py finetune
  python train_scripts/benchmark.py finetune --scale base --repeats 3

  # a forward in torch and in onnxruntime (float32 and int8) against transformers' ViTForImageClassification
  python train_scripts/benchmark.py inference
  python train_scripts/benchmark.py inference --scale base --repeats 10

  # a forward of the checkpoints in the package beside each other, in torch and in onnxruntime
  python train_scripts/benchmark.py checkpoints --threads 1

  # the CPU time of `import fer_pll` against that of the classes of transformers that it builds on
  python train_scripts/benchmark.py imports

  # from the start of Python to the first prediction of the checkpoint in the package
  python train_scripts/benchmark.py start

  # reading, augmenting and collating images, against the same by hand with Pillow, and against a training step
  python train_scripts/benchmark.py data
  python train_scripts/benchmark.py data --scale base --repeats 3

  # a stream of 100,000 images against that of datasets: speed, memory, and resuming in the middle
  python train_scripts/benchmark.py stream

  # memory of the confidence table, and time of a look-up and a revision, from ten thousand to ten million rows
  python train_scripts/benchmark.py table

  # accuracy of the checkpoint in the package on other crops, JPEG, contrast and light
  python train_scripts/benchmark.py robustness --data data/ferplus

  # which planted copies of images are found, and the time among 440,000 images
  python train_scripts/benchmark.py copies --data data/ferplus --images 440000

  # photographs and frames of videos a second, from the file to the expressions, beside fer, deepface and face-api
  python train_scripts/benchmark.py photographs --threads 1 --face-api FOLDER

Both sides take turns within one run and the median counts, so that other work on the machine slows both alike. The
last line of the output is one JSON object: benchmark, ratios, targets (of the ratios that have one) and machine.
`benchmark.py NAME --help` lists the options and the ratios of one benchmark.
"""

# A new benchmark is a module and an entry here. The module has `add_options(parser)` and `measure(args)`, which
# returns a `Result` and whose docstring is the help text.
BENCHMARKS = {
    "hog": hog,
    "pretrain": pretrain,
    "finetune": finetune,
    "inference": inference,
    "checkpoints": checkpoints,
    "imports": imports,
    "start": start,
    "data": data,
    "stream": stream,
    "table": table,
    "robustness": robustness,
    "copies": copies,
    "photographs": photographs,
    "explanations": explanations,
}


def cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(args, peer):
    """A description of the machine and of the versions that the figures depend on, without the machine's name."""
    import torch

    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        with cpuinfo.open() as lines:
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
        "--threads",
        type=int,
        default=cores(),
        metavar="N",
        help=f"threads where the benchmark does not say one (default: all cores, {cores()})",
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True, help=" or ".join(BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        benchmark.add_options(
            names.add_parser(
                name,
                parents=[common],
                description=inspect.getdoc(benchmark.measure),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    result = BENCHMARKS[args.name].measure(args)
    widths = [max(map(len, column)) for column in zip(*result.table, strict=True)]
    for first, *cells in result.table:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)))
    summary = {"benchmark": args.name, "ratios": result.ratios, "targets": result.targets}
    print(json.dumps(summary | {"machine": machine(args, result.peer)}))
