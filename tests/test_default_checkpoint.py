"""The checkpoints that come with the package: complete, as their cards say, and of use at once."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from transformers import pipeline

import fer_pll
import fer_pll_cli
from fer_pll.data.sources.synthetic.dataset import Drawing
from fer_pll.hub.card import folder_card, read_evaluations
from fer_pll.io.errors import DataError
from fer_pll.io.shipped import CHECKPOINTS, DEFAULT_NAME, VIT_NAME
from fer_pll.labels.expressions import EXPRESSIONS

ROOT = Path(__file__).parents[1]
FILES = {
    "README.md",
    "config.json",
    "evaluation/confusion_matrix_all.png",
    "evaluation/confusion_matrix_majority.png",
    "evaluation/metrics.json",
    "model.safetensors",
    "preprocessor_config.json",
    "training.json",
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_is_complete_and_small(name):
    assert files_of(Path(CHECKPOINTS[name])) == FILES
    assert Path(CHECKPOINTS[name], "model.safetensors").stat().st_size <= 8_000_000


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_is_ready_to_predict(name):
    model, image_processor = fer_pll.load_default(name)
    assert not model.training and model.dtype == torch.float32
    assert list(model.config.id2label.values()) == list(EXPRESSIONS)
    assert image_processor.face_crop["name"] == "FER+"
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8))
    with torch.no_grad():
        probabilities = model(**image_processor(crop, return_tensors="pt")).logits.softmax(dim=1)[0]
    classify = pipeline("image-classification", model=CHECKPOINTS[name], trust_remote_code=False)
    said = {answer["label"]: answer["score"] for answer in classify(crop, top_k=8)}
    assert said == pytest.approx(dict(zip(EXPRESSIONS, probabilities.tolist(), strict=True)), abs=1e-6)


LOGITS = {
    DEFAULT_NAME: [
        [2.799423, -1.174947, 2.699332, -1.818550, -2.352366, -1.999779, 1.980533, -0.328351],
        [2.349084, -2.560802, 0.559266, 0.844815, -4.856426, -3.145595, -0.041085, -0.719897],
        [1.128847, -6.712082, 0.470968, 0.969319, -1.916774, -0.969923, 2.107461, 0.068414],
        [-0.588436, 2.041989, 6.825734, -4.930981, -2.344593, -2.570492, 2.575587, -2.004608],
    ],
    VIT_NAME: [
        [2.381242, 0.765376, 1.496372, 0.055979, -3.945979, -3.531584, -0.221818, 1.005989],
        [3.356513, -3.465632, 2.547290, -0.767144, -4.387341, -4.155022, -2.603154, -0.991103],
        [3.493561, -5.503231, 1.230812, 1.808133, -2.960345, -2.525063, 1.284559, -0.805723],
        [0.197330, -0.419050, 5.936619, -4.050691, -2.312010, -2.940752, 0.945487, -2.974013],
    ],
}
"""Of version 0.1.0, on four drawn faces."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_its_logits_stay_the_same(name):
    model, image_processor = fer_pll.load_default(name)
    faces = [Image.open(io.BytesIO(Drawing("test", number)())) for number in range(4)]
    with torch.no_grad():
        logits = model(**image_processor(faces, return_tensors="pt")).logits
    # Across processors the order of the sums differs: relative to the largest logits.
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name]), rtol=1e-5, atol=1e-5)


def test_the_astronaut_is_happy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.fromarray(astronaut()).save(tmp_path / "astronaut.png")
    assert fer_pll_cli.main(["predict", str(tmp_path / "astronaut.png"), "--out", str(tmp_path / "faces.csv")]) == 0
    with (tmp_path / "faces.csv").open(newline="") as file:
        (face,) = csv.DictReader(file)
    assert face["expression"] == "happiness"
    assert sum(float(face[f"p_{name}"]) for name in EXPRESSIONS) == pytest.approx(1, abs=1e-5)


FIRST_SNIPPET = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
OF_ONE_FACE = """
import fer_pll
from PIL import Image
model, image_processor = fer_pll.load_default()
print(model(**image_processor(Image.open("group.jpg"), return_tensors="pt")).logits.shape)
"""


@pytest.mark.parametrize("program", [FIRST_SNIPPET, OF_ONE_FACE], ids=["README", "load_default"])
def test_the_first_lines_that_anyone_runs_add_no_words_of_libraries(program, tmp_path):
    """A process of its own, because libraries warn once; no bar for weights, no report, no warning."""
    av = pytest.importorskip("av")
    Image.fromarray(astronaut()).save(tmp_path / "group.jpg")
    with av.open(str(tmp_path / "talk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 512
        for _ in range(26):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(astronaut(), format="rgb24")))
        container.mux(stream.encode())
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "happiness" in run.stdout if program is FIRST_SNIPPET else "torch.Size([1, 8])" in run.stdout


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_card_and_readme_say_what_was_measured_of_these_weights(name):
    folder = Path(CHECKPOINTS[name])
    (report,) = read_evaluations(folder).values()  # of other weights it would not be read
    card = (folder / "README.md").read_text()
    assert card == str(folder_card(folder, name, license="apache-2.0", packaged=True))
    assert report["protocols"]["all"]["rows"] == 3553 and report["split"] == "validation"
    temperature = json.loads((folder / "training.json").read_text())["calibration"]["temperature"]
    assert f"the temperature {temperature:.3f}, fitted on" in card
    assert "load_default()" in card if name == DEFAULT_NAME else f'load_default("{name}")' in card
    readme = (ROOT / "README.md").read_text()
    for metrics in report["protocols"].values():
        figures = f"{metrics['accuracy']:.1%} | {metrics['mean_class_accuracy']:.1%}".replace("%", " %")
        assert figures in card and figures in readme


def test_other_names_are_refused():
    with pytest.raises(DataError, match="tiny: the package has fer-pll-tiny-ferplus and fer-pll-tiny-vit-ferplus"):
        fer_pll.load_default("tiny")


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_made_in_one_command_that_goes_on(name, tmp_path):
    pretrained = name == VIT_NAME
    rng = np.random.default_rng(0)
    rows = [(usage, image) for usage, count in (("Training", 64), ("PublicTest", 16)) for image in range(count)]
    (tmp_path / "raw").mkdir()
    with (
        (tmp_path / "raw" / "fer2013.csv").open("w") as images,
        (tmp_path / "raw" / "fer2013new.csv").open("w") as votes,
    ):
        print("emotion,pixels,Usage", file=images)
        print("Usage,Image name," + ",".join((*EXPRESSIONS, "unknown", "NF")), file=votes)
        for usage, number in rows:
            print(f"0,{' '.join(map(str, rng.integers(0, 256, 48 * 48)))},{usage}", file=images)
            counts = np.zeros(8, dtype=int)
            counts[rng.permutation(8)[:2]] = 8 - number % 4, 2 + number % 4  # one in four is no majority
            print(",".join([usage, f"{usage}{number}.png", *map(str, counts), "0", "0"]), file=votes)
    command = [sys.executable, ROOT / "train_scripts" / "default_checkpoint.py", tmp_path / "raw"]
    command += [
        "--name",
        name,
        "--out",
        tmp_path / "out",
        "--to",
        tmp_path / "packaged",
        "--",
        "--num_train_epochs",
        "1",
    ]

    def run() -> str:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    said = run()
    for step in ("prepare", "finetune", "calibrate", "evaluate"):
        assert f"$ fer-pll {step} " in said
    assert ("$ fer-pll pretrain " in said) == pretrained
    said = run()
    assert "fer-pll pretrain" not in said and "fer-pll finetune" not in said
    assert files_of(tmp_path / "packaged") == FILES
    config = json.loads((tmp_path / "packaged" / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines"} & config.keys()  # whose code is the package's
    weights = (tmp_path / "packaged" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "finetune" / "README.md").unlink()  # as if it had been cut off at the end
    said = run()
    assert "fer-pll finetune" in said and "--resume_from_checkpoint last" in said and "fer-pll pretrain" not in said
    assert (tmp_path / "packaged" / "model.safetensors").read_bytes() == weights
