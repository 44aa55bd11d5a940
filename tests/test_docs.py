"""The README and the pages of docs: their commands are understood, their code runs, and nothing public is missing."""

import argparse
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import astronaut

import fer_pll
from commands.test_strangers_path import write_faces
from data.sources.test_ferplus import write_csv
from fer_pll.data.sources.synthetic.dataset import drawn_faces

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
RUN = {"sh", "python"}


def blocks(page: str) -> list[re.Match]:
    return list(BLOCK.finditer((ROOT / page).read_text()))


def commands(page: str) -> list[list[str]]:
    """The words of each call of fer-pll in the code of a page."""
    lines = [
        line
        for block in blocks(page)
        if block["language"] == "sh"
        for line in block["code"].replace("\\\n", "").splitlines()
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fer-pll ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page):
    """By the parser that it would have: no option that is gone, none that is missing."""
    for name, *words in commands(page):
        module = import_module(f"fer_pll.commands.{name.replace('-', '_')}")
        parser = module.make_parser()
        sources = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = sources[0][words[0]] if sources else parser
        known = {option for action in parser._actions for option in action.option_strings}
        options = {word for word in words if word.startswith("--")}
        assert options <= known, f"{page}: fer-pll {name} has no {options - known}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_has_a_language_and_what_is_not_run_is_named(page):
    text = (ROOT / page).read_text()
    assert text.count("```") == 2 * len(blocks(page))
    for block in blocks(page):
        assert block["language"] in RUN | {"json", "mermaid"}
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", block["why"] or ""):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {line.split(".")[-1] for line in pages.splitlines() if line.startswith("::: ")}
    registries = {"METHODS", "REVISION_RULES"}  # concepts/methods.md lists what is in them
    assert set(fer_pll.__all__) - documented == registries | {"__version__"} & set(fer_pll.__all__)


def write_files(folder: Path) -> None:
    """What the pages speak of: photographs, votes, the files of FER+."""
    (folder / "photos").mkdir()
    for path in (folder / "group.jpg", folder / "face.png", folder / "photos" / "astronaut.jpg"):
        Image.fromarray(astronaut()).save(path)
    av = pytest.importorskip("av")
    with av.open(str(folder / "talk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 512
        for _ in range(26):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(astronaut(), format="rgb24")))
        container.mux(stream.encode())
    mine = folder / "path" / "to"
    mine.mkdir(parents=True)
    write_faces(mine, "votes")
    (mine / "table.csv").rename(mine / "votes.csv")
    write_ferplus(mine / "ferplus")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with the files that the pages speak of, and a finished run."""
    folder = tmp_path_factory.mktemp("docs")
    write_files(folder)
    for line in (
        "prepare ferplus path/to/ferplus --out data/ferplus",
        "finetune --config fer-pll-tiny-ferplus-quick --data data/ferplus --num_train_epochs 2"
        " --output_dir runs/finetune",
        "prepare votes path/to/votes.csv --out data/mine",
        "finetune --data data/mine --output_dir runs/mine --num_train_epochs 2",
    ):
        run(["fer-pll", *line.split()], folder)
    return folder


def write_ferplus(folder: Path) -> None:
    """The two files of FER+, of drawn faces."""
    folder.mkdir()
    rows = []
    for number, face in enumerate(drawn_faces("train", range(120), image_size=48)):
        usage = ("Training", "Training", "PublicTest", "PrivateTest")[number % 4]
        pixels = Image.open(io.BytesIO(face.data())).convert("L").tobytes()
        rows.append((usage, f"fer{number:07}.png", [*face.columns["votes"], 0, 0], pixels))
    write_csv(folder, rows)


def run(command: list[str], folder: Path, source: Path = ROOT / "src") -> str:
    """What a command prints, run in a folder with the package of `source`."""
    paths = [str(source), *(path for path in sys.path if Path(path) != ROOT / "src")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b["language"] in RUN and not b["why"] for b in blocks(page))]
)
def test_the_code_of_a_page_runs_from_top_to_bottom(workspace, tmp_path, page):
    run(["cp", "-r", f"{workspace}/.", str(tmp_path)], tmp_path)
    for words in commands(page):
        for option, path in itertools.pairwise(words):
            if option in ("--out", "--output_dir"):  # the page makes it itself
                run(["rm", "-rf", path], tmp_path)
    for block in blocks(page):
        if block["language"] == "sh" and not block["why"]:
            run(["bash", "-euo", "pipefail", "-c", block["code"]], tmp_path)
        elif block["language"] == "python" and not block["why"]:
            run([sys.executable, "-c", block["code"]], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_first_ten_minutes_of_a_newcomer(tmp_path):
    """A clean checkout, the environment that `make demo` makes in it, then the README's code as it stands there."""
    clone = tmp_path / "clone"
    made_here = shutil.ignore_patterns(".git", ".venv", "build", "runs", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, clone, ignore=made_here)
    (readme,) = re.findall(r"## Install\n.*?(?=## Train on FER)", (clone / "README.md").read_text(), re.DOTALL)
    demo, _, *code = BLOCK.finditer(readme)
    assert demo["code"] == "make demo\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(clone / ".venv" / "bin"), environment["PATH"]])
    write_files(clone)
    for block in (demo, *code):
        shell = ["bash", "-euo", "pipefail", "-c"] if block["language"] == "sh" else ["python", "-c"]
        done = subprocess.run([*shell, block["code"]], cwd=clone, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{block['code']}\n{(done.stdout + done.stderr)[-4000:]}"
    for made in ("runs/demo/gallery.png", "faces.csv", "marked", "runs/mine/model.safetensors", "audit/audit.html"):
        assert (clone / made).exists()


COPYLEFT = ("libavcodec", "libx264", "libx265", "libheif", "libde265")


def test_the_page_about_licenses_names_what_the_wheels_bundle():
    """What lies in the wheels that are installed here, no less and no more."""
    table = (ROOT / "docs/licenses.md").read_text().partition("## Weights")[0]
    rows = re.findall(r"^\| (?:`([\w-]+)`[^|]*)?\|([^|]+)\|", table, re.MULTILINE)
    said: dict[str, str] = {}
    for wheel, bundles in rows:
        last = wheel or last  # noqa: F821  # a row without a name goes on with the one above
        said[last] = said.get(last, "") + bundles
    headless = said.pop("opencv-python")
    for wheel, bundles in {**said, "opencv-python-headless": headless}.items():
        try:
            names = {Path(str(file)).name.partition("-")[0] for file in files(wheel) or ()}
        except PackageNotFoundError:
            pytest.skip(f"{wheel} is not installed")
        assert names & set(COPYLEFT) == {name for name in COPYLEFT if name in bundles}, wheel


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


EVERY_PAGE = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", ".github/**/*.md", "docs/**/*.md", "train_scripts/**/*.md", "tests/**/*.md", "src/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "model_card.md"  # a template; its cards are among those of src
)


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_no_link_of_the_repository_is_broken(page):
    """Of pages as GitHub shows them; `make docs` checks its own."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{page}: {target}"
