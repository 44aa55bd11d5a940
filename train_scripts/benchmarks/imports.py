"""The CPU time of `import fer_pll`, beside that of the classes of transformers that it builds on."""

import os
import resource
import subprocess
import sys
from functools import partial

from .common import Result, row, take_turns

IMPORTS = {
    "theirs": """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, PreTrainedModel, pipeline
from transformers.image_processing_backends import PilBackend
""",
    "ours": "import fer_pll",
    "first use": "from fer_pll import FaceCrop, FacialExpressionPipeline, FerPllForImageClassification, load_default",
}


def add_options(parser):
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each side (default: 7)")


def cpu_seconds(code):
    """User and system time of a new Python that runs `code`, in seconds; waiting for the disk does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(args):
    """CPU time of `import fer_pll`, and of importing what predicts, against importing the classes of transformers that
    they build on: the Auto classes, PreTrainedModel, pipeline and the Pillow image processor. Every turn has a new
    process.

    ratios: import and first_use, CPU time of ours over the peer's; at most the targets.
    """
    import transformers

    seconds = take_turns({name: partial(cpu_seconds, code) for name, code in IMPORTS.items()}, args.repeats)
    ratios = {}
    table = [("", "fer-pll", "transformers", "ratio", "target")]
    for title, name, ours in (("import", "import", "ours"), ("what predicts", "first_use", "first use")):
        sides = {"ours": seconds[ours], "theirs": seconds["theirs"]}
        table.append(row(f"{title}, CPU s", sides, ".2f", 1.1))
        ratios[name] = sides["ours"] / sides["theirs"]
    return Result(table, ratios, dict.fromkeys(ratios, 1.1), f"transformers {transformers.__version__}")
