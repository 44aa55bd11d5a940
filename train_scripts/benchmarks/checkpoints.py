"""A forward of the checkpoints in the package, each in torch and in onnxruntime, side by side."""

import tempfile
from functools import partial
from pathlib import Path

from .common import Result, take_turns
from .inference import add_turns, processor_seconds


def add_options(parser):
    add_turns(parser)


def measure(args):
    """A forward of each checkpoint in the package, in torch and, exported, in onnxruntime (float32 and int8).

    The input is pixel_values. With --threads 1 the benchmark measures processor time, so other work on the machine
    does not count.

    ratios, each at least the target: torch_N, onnx_N and int8_N, time of fer-pll-tiny-vit-ferplus over that of
    fer-pll-tiny-ferplus with N images.
    """
    import onnxruntime
    import torch

    import fer_pll
    from fer_pll.inference.onnx_export import write_model
    from fer_pll.io.shipped import CHECKPOINTS, DEFAULT_NAME, VIT_NAME
    from fer_pll.model.face_detection import open_session

    torch.set_num_threads(args.threads)
    models, sessions = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CHECKPOINTS:
            models[name], _ = fer_pll.load_default(name)
            models[name].set_attn_implementation("eager")  # as `fer-pll export` does, and quickest for few tokens
            for runtime, dtype in (("onnx", "float32"), ("int8", "int8")):
                path = Path(folder, f"{name}-{runtime}.onnx")
                write_model(models[name], path, dtype)
                sessions[name, runtime] = open_session(str(path), "This benchmark", "onnx", args.threads)

    table, ratios = [("", "torch", "onnx", "int8")], {}
    for batch_size in args.batch_sizes:
        config = models[DEFAULT_NAME].config
        pixel_values = torch.randn(batch_size, config.num_channels, config.image_size, config.image_size)
        inputs = {"pixel_values": pixel_values.numpy()}
        sides = {(name, "torch"): partial(model, pixel_values) for name, model in models.items()}
        sides |= {side: partial(session.run, None, inputs) for side, session in sessions.items()}
        if args.threads == 1:
            sides = {side: partial(processor_seconds, forward) for side, forward in sides.items()}
        with torch.inference_mode():
            seconds = take_turns(sides, args.repeats if batch_size == 1 else max(3, args.repeats // 10))
        for name in CHECKPOINTS:
            taken = (f"{seconds[name, runtime] * 1e3:.2f}" for runtime in ("torch", "onnx", "int8"))
            table.append((f"{name}, batch {batch_size}, ms", *taken))
        for runtime in ("torch", "onnx", "int8"):
            ratios[f"{runtime}_{batch_size}"] = seconds[VIT_NAME, runtime] / seconds[DEFAULT_NAME, runtime]
    return Result(table, ratios, dict.fromkeys(ratios, 1.0), f"{VIT_NAME}, onnxruntime {onnxruntime.__version__}")
