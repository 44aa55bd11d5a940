"""The time from the start of Python to the first prediction."""

import os
import subprocess
import sys
import tempfile
from functools import partial

from .common import Result, row, take_turns
from .training_step import make_classifier

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


def add_options(parser):
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each side (default: 7)")


def measure(args):
    """The time from the start of Python to the first prediction: fer_pll.load_default() against transformers'
    ViTForImageClassification from a folder, with the encoder of fer-pll-tiny-vit-ferplus. Every turn has a new
    process.

    ratios: start, seconds of ours over the peer's; at most the target.
    """
    import transformers

    import fer_pll
    from fer_pll.io.shipped import VIT_NAME

    config = fer_pll.load_default(VIT_NAME)[0].config
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
