"""`fer-pll push --space`: its files against a Hub of our own, and the Space itself, which starts and answers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage.data import astronaut

import fer_pll_cli
from fer_pll import load_recognizer
from fer_pll.hub.push import published_files
from fer_pll.io.shipped import DEFAULT_CHECKPOINT
from gradio_beside import ask, environment, served
from hub.fake_hub import FakeHub

TOKEN = "hf_aTokenThatMustNotBeFoundInAnyFile"

# Prints the probabilities that a page gives for the largest face of a photograph, with the only model that it has.
PREDICT = """
import json, sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
bars = client.predict(handle_file(sys.argv[2]), sys.argv[3], api_name="/photograph")[2]
print(json.dumps({each["label"]: each["confidence"] for each in bars["confidences"]}))
"""

# Every requirement of the file is what this process has. Markers and extras are for pip.
CHECK = """
import sys
from importlib.metadata import version
for line in open(sys.argv[1]).read().splitlines():
    if not line.startswith("-"):
        name, _, wanted = line.partition("==")
        assert version(name.partition("[")[0]).partition("+")[0] == wanted, line
        print(name)
"""


def test_a_name_is_needed(capsys):
    for words, said in (
        ([], "name the repository"),
        (["--space", "me/page", "--keep-card"], "go with a repository"),
        (["--space", "me/page", "--with-confidences", "data"], "go with a repository"),
    ):
        with pytest.raises(SystemExit):
            fer_pll_cli.main(["push", DEFAULT_CHECKPOINT, *words])
        assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    Image.fromarray(astronaut()).save(folder / "astronaut.png")
    shutil.copytree(DEFAULT_CHECKPOINT, folder / "checkpoint")
    return folder


def push(hub: FakeHub, folder: Path, *words: str) -> str:
    network = hub.environment(folder / "pushing", TOKEN)
    env = network | {"PYTHONPATH": environment()["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "fer_pll_cli", "push", str(folder / "checkpoint"), *words],
        env=env, capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def fetched(hub: FakeHub, space: str, out: Path) -> Path:
    """The folder that the Hub builds a Space from."""
    for name, content in hub.repos[f"spaces/{space}"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
        assert TOKEN.encode() not in content
    return out


def front_matter(space: Path) -> dict:
    return yaml.safe_load((space / "README.md").read_text().split("---")[1])


def check(address: str, photograph: Path, model: str) -> None:
    expected = load_recognizer(DEFAULT_CHECKPOINT, device="cpu")(photograph)[0]["expressions"]
    answer = json.loads(ask(PREDICT, address, photograph, model))
    assert answer == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-6)


@pytest.mark.long
def test_a_space_with_the_files_of_the_model(hub, folder):
    said = push(hub, folder, "--space", "someone/with-files", "--license", "mit")
    assert f"{hub.endpoint}/spaces/someone/with-files" in said
    space = fetched(hub, "someone/with-files", folder / "with-files")
    own = {"README.md", "app.py", "requirements.txt", "packages.txt"}
    model = {f"model/{name}" for name in published_files(DEFAULT_CHECKPOINT)}
    assert set(hub.repos["spaces/someone/with-files"]) == own | model
    assert len(hub.commits["spaces/someone/with-files"]) == 1
    settings = front_matter(space)
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and settings["license"] == "mit"
    assert f"gradio=={settings['sdk_version']}" in (space / "requirements.txt").read_text().splitlines()
    names = ask(CHECK, space / "requirements.txt").split()
    assert {"fer-pll[app]", "gradio", "torch", "transformers"} <= set(names)
    with served("app.py", log=folder / "log", cwd=space) as address:
        check(address, folder / "astronaut.png", str(space / "model"))


@pytest.mark.long
def test_a_space_that_loads_the_repository_beside_it(hub, folder):
    push(hub, folder, "someone/tiny", "--space", "someone/beside")
    space = fetched(hub, "someone/beside", folder / "beside")
    assert "model.safetensors" in hub.repos["someone/tiny"]
    assert not any(name.startswith("model/") for name in hub.repos["spaces/someone/beside"])
    assert front_matter(space)["models"] == ["someone/tiny"]
    network = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    with served("app.py", log=folder / "log-beside", cwd=space, **network) as address:
        check(address, folder / "astronaut.png", "someone/tiny")

    push(hub, folder, "someone/hidden", "--space", "someone/private", "--private")  # it has no token to read the other
    assert "model/model.safetensors" in hub.repos["spaces/someone/private"]
