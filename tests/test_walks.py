"""The walks of CONTRIBUTING.md: each is made in a copy of the repository, from the page as it stands, and runs."""

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from fer_pll.data.sources.synthetic.dataset import drawn_faces
from fer_pll.labels.expressions import EXPRESSIONS
from test_docs import run, write_ferplus

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def walks() -> dict[str, list[re.Match]]:
    """The steps of each walk, by its title."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Walks")[2].partition("\n## ")[0]
    found = {title: list(STEP.finditer(text)) for title, text in re.findall(r"### (.+)\n((?:(?!###).*\n)*)", section)}
    assert section.count("```") == 2 * sum(map(len, found.values()))
    return found


def edit(file: Path, diff: str) -> None:
    """Apply the hunks of a diff, which `@@` separates; each must fit in one place."""
    for hunk in diff.split("@@\n"):
        lines = [(line[:1], line[1:]) for line in hunk.splitlines(keepends=True)]
        old, new = ("".join(text for kind, text in lines if kind in kinds) for kinds in (" -", " +"))
        text = file.read_text()
        assert text.count(old) == 1, f"{file}: {text.count(old)} places for\n{old}"
        file.write_text(text.replace(old, new))


def test_every_kind_of_the_table_has_its_walk():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Walks")[2].partition("###")[0]
    kinds = set(re.findall(r"^\| (an? [\w ]+?) \|", table, re.MULTILINE))
    others = {"a format that is read", "a model of another shape to transformers' shared tests"}
    assert {title.lower() for title in walks()} == kinds - others


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository, with faces and FER+'s files beside it."""
    folder = tmp_path_factory.mktemp("walks") / "checkout"
    folder.mkdir()
    for name in ("src", "train_scripts", "hub_configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("model_card.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    faces = folder / "path" / "to" / "faces"
    faces.mkdir(parents=True)
    for number, face in enumerate(drawn_faces("train", range(60), image_size=48)):
        name = EXPRESSIONS[face.columns["label"]]
        Image.open(io.BytesIO(face.data())).save(faces / f"{name}_{number:03}.png")
    write_ferplus(folder / "path" / "to" / "ferplus")
    run(["fer-pll", "prepare", "ferplus", "path/to/ferplus", "--out", "data/ferplus"], folder, folder / "src")
    return folder


def take(step: re.Match, folder: Path) -> None:
    """Write the file of a step, or edit it."""
    file = folder / step["file"]
    if step["language"] == "diff":
        edit(file, step["code"])
    else:
        assert not file.exists(), f"{file} is there already"
        file.write_text(step["code"])


def test_each_file_of_a_walk_fits_the_code(tmp_path):
    """What the long test below does first: without the commands, it takes no time."""
    for name in ("src", "train_scripts", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    steps = [step for steps in walks().values() for step in steps if step["file"] is not None]
    assert steps
    for step in steps:
        take(step, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_walk_adds_what_it_says(copy):
    printed = {}
    for title, steps in walks().items():
        printed[title] = ""
        for step in steps:
            if step["file"] is None:
                command = ["bash", "-euo", "pipefail", "-c"] if step["language"] == "sh" else [sys.executable, "-c"]
                printed[title] += run([*command, step["code"]], copy, copy / "src")
            else:
                take(step, copy)
    counts = dict(re.findall(r"(\w+): (\d+)", printed["A command"]))
    assert list(counts) == list(EXPRESSIONS) and 0 < sum(map(int, counts.values())) < 60
    for name, loss, rule in (("power", "power_error", "soft"), ("halfway", "pll", "halfway")):
        card = (copy / "runs" / name / "README.md").read_text()
        assert f"| `loss` | {loss} |" in card and f"| `revision` | {rule} |" in card
    assert "| `error_power` | 0.5 |" in (copy / "runs/power/README.md").read_text()
    assert "convnext" in (copy / "runs/network/config.json").read_text()
    assert '"benchmark": "crops"' in printed["A benchmark"]
    (figure,) = (copy / "runs/waiting").rglob("waiting.png")
    assert figure.stat().st_size > 10_000
    # What holds the house together holds for what was added, too.
    run([sys.executable, "-m", "ruff", "check", "src", "train_scripts"], copy, copy / "src")
    run([sys.executable, "-m", "ruff", "format", "--check", "src", "train_scripts"], copy, copy / "src")
    run([sys.executable, "-m", "pytest", "-q", "tests/test_layers.py"], copy, copy / "src")
