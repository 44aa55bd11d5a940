"""docs/guides/own-votes.md: its Python, run as it stands there, from votes in an array to a model on the Hub."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from hub.fake_hub import FakeHub

ROOT = Path(__file__).parents[1]

BEFORE = """
import io
import numpy as np
import pandas as pd
from PIL import Image
from fer_pll.data.sources.synthetic.dataset import drawn_faces
from fer_pll.labels.expressions import EXPRESSIONS

faces = list(drawn_faces("train", range(100), contested=0.1))
images = [np.asarray(Image.open(io.BytesIO(face.data()))) for face in faces]
votes = pd.DataFrame([face.columns["votes"] for face in faces], columns=EXPRESSIONS)[list(reversed(EXPRESSIONS))]
class_names = None
images[7] = images[1]
repo = "someone/faces"
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "own-votes.md").read_text(), re.DOTALL)


def test_the_document_holds_one_program_of_twenty_lines():
    (block,) = blocks()
    assert len([line for line in block.splitlines() if line.strip()]) <= 20


@pytest.mark.long
@pytest.mark.parametrize("frame", [True, False], ids=["data frame", "array"])
def test_from_votes_to_a_model_on_the_hub(tmp_path, frame):
    before = BEFORE if frame else BEFORE + "class_names, votes = list(votes.columns), votes.to_numpy()\n"
    after = "\nprint(report['protocols']['all'])\nassert report['protocols']['all']['accuracy'] > 0.3\n"
    with FakeHub() as hub:
        environment = hub.environment(tmp_path, "hf_token", OMP_NUM_THREADS="1")
        program = [sys.executable, "-c", before + blocks()[0] + after]
        run = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        pushed = hub.repos["someone/faces"]
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training.json"}
    assert files | {"evaluation-validation/metrics.json"} <= pushed.keys()
    data = load_from_disk(tmp_path / "data" / "mine")
    assert len(data["validation"]) == 20 and len(data["train"]) in (79, 80)  # one of two equal images, unless apart
    assert (tmp_path / "data" / "mine" / "copies.csv").read_text().count("exact") == 1
    assert (tmp_path / "audit" / "audit.html").is_file()
