"""The demo as its users run it: a process of its own, without network."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from fer_pll import FerPllForImageClassification
from fer_pll.commands.demo import NUM_TRAIN, majority_recovery, run_demo

PAIRS = product(("training_curves", "confusion_matrix"), ("majority", "candidates"))
FIGURES = ["gallery.png"] + [f"{figure}_{model}.png" for figure, model in PAIRS]


def test_majority_recovery_shares_ties():
    votes = np.array([[5, 3, 2], [5, 5, 0], [4, 3, 3], [1, 1, 1]])
    truth = np.array([0, 1, 2, 0])
    assert majority_recovery(votes, truth) == pytest.approx((1 + 1 / 2 + 0 + 1 / 3) / 4)


def test_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="already holds files"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_demo_shows_that_candidate_sets_help(tmp_path):
    out = tmp_path / "demo"
    command = [Path(sys.executable).with_name("fer-pll"), "demo", "--out", out]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "trust_remote_code" not in run.stdout + run.stderr  # nothing to answer
    assert "'loss'" not in run.stdout and "100%|" in run.stderr  # bars, and no log lines between them
    figures = {}
    for title in ("the majority label", "candidate sets, revised"):
        row = re.search(rf"^{title} +([\d.]+)% +([\d.]+)% +([\d.]+)%$", run.stdout, re.MULTILINE)
        figures[title] = [float(figure) for figure in row.groups()]
    accuracy, _, recovery = zip(*figures.values(), strict=True)
    assert accuracy[0] > 60  # no straw man
    assert accuracy[1] > accuracy[0]  # by 4 to 7 points with each of three seeds (README)
    assert recovery[1] > recovery[0] + 2

    for figure in FIGURES:
        Image.open(out / figure).verify()
    FerPllForImageClassification.from_pretrained(out / "candidates")
    revised = load_from_disk(str(out / "revised_data"))
    assert len(revised) == NUM_TRAIN and {"confidence", "revised_epoch", "candidates"} <= set(revised.column_names)
