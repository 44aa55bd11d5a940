"""From files that a stranger has to a model and pictures to look at: real processes, no option beyond paths.

300 drawn faces with the votes of ten annotators, as each of the three tables that `fer-pll prepare votes` reads, and
as a folder for each class.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_pll.data.dataset import load_dataset, numpy_column
from fer_pll.data.sources.synthetic.dataset import drawn_faces
from fer_pll.labels.expressions import EXPRESSIONS

ROWS = 300
FORMS = ("votes", "answers", "candidates", "folder")


def fer_pll(*argv: object, cwd: Path) -> str:
    """What a process of the command line printed."""
    command = [sys.executable, "-m", "fer_pll_cli", *map(str, argv)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_faces(folder: Path, form: str) -> list[str]:
    """The files of one form. Returns the words that `fer-pll prepare` is called with for them."""
    table = []
    for number, face in enumerate(drawn_faces("train", range(ROWS), image_size=48, variation=0.1, contested=0.1)):
        votes = np.array(face.columns["votes"])
        name = EXPRESSIONS[votes.argmax()]
        path = Path("faces") / (name if form == "folder" else "") / f"{number:03}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(face.data())  # PNG
        if form == "votes":
            table.append({"path": path, **dict(zip(EXPRESSIONS, votes, strict=True))})
        elif form == "candidates":
            chosen = [each for each, number in zip(EXPRESSIONS, votes, strict=True) if number >= 2]
            table.append({"path": path, "candidates": "|".join(chosen or [name])})
        elif form == "answers":
            said = [each for each, number in zip(EXPRESSIONS, votes, strict=True) for _ in range(number)]
            table += [{"path": path, "annotator": f"a{who}", "label": each} for who, each in enumerate(said)]
    if form == "folder":
        return ["folder", "faces"]
    write_table(folder / "table.csv", table)
    return ["votes", "table.csv"]


@pytest.mark.timeout(3600)
@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_four_commands_lead_to_a_model_and_to_pictures(tmp_path, form):
    files = write_faces(tmp_path, form)
    said = fer_pll("prepare", *files, "--out", "data/mine", cwd=tmp_path)
    data = load_dataset(tmp_path / "data" / "mine")
    assert sum(len(rows) for rows in data.values()) == ROWS
    assert "happiness     " in said and "happiness                0" not in said  # classes are counted, however

    said = fer_pll("pretrain", "--data", "data/mine", "--output_dir", "runs/pretrain", cwd=tmp_path)
    assert "'loss'" in said and "saved in runs/pretrain" in said
    assert "next: fer-pll finetune --data DATA --init_from runs/pretrain" in said
    assert list((tmp_path / "runs" / "pretrain" / "pictures").glob("*.png"))

    finetune = ("finetune", "--data", "data/mine", "--init_from", "runs/pretrain", "--output_dir", "runs/mine")
    said = fer_pll(*finetune, cwd=tmp_path)
    has_validation = "validation" in data
    assert ("--validation-share 0.1" in said) != has_validation
    assert "'loss'" in said and "saved in runs/mine" in said and "next: fer-pll" in said
    run = tmp_path / "runs" / "mine"
    for picture in ("candidate_sets.png", "training_curves.png"):
        with Image.open(run / picture) as image:
            assert min(image.size) > 300
    assert "revised_fraction" in said
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    ambiguous = numpy_column(data["train"], "candidates").sum(axis=1) > 1 if form == "candidates" else np.ones(1)
    if ambiguous.any():
        assert max(entry.get("revised_fraction", 0) for entry in log) > 0.5  # a short training revises too

    split = "validation" if has_validation else "train"
    said = fer_pll("evaluate", "runs/mine", "data/mine", "--split", split, cwd=tmp_path)
    report = json.loads((run / f"evaluation-{split}" / "metrics.json").read_text())
    if form == "candidates":
        chance = numpy_column(data[split], "candidates").mean()
        assert report["candidates"]["accuracy"] > 1.5 * chance and report["unlabeled_rows"] == len(data[split])
        assert "among the candidates" in said
    else:
        metrics = report["protocols"]["all"]
        largest = np.bincount(numpy_column(data[split], "label")).max() / len(data[split])
        assert metrics["accuracy"] > largest  # of always the same class
        assert metrics["mean_class_accuracy"] > 1.5 / len(EXPRESSIONS)
        assert (run / f"evaluation-{split}" / "confusion_matrix_all.png").is_file()

    said = fer_pll("audit", "runs/mine", "--out", "audit", cwd=tmp_path)
    assert "audit.html" in said and "no row was revised" not in said
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "/9j/" in page  # images: how the base64 of a JPEG begins
    assert len(page) > 100_000
