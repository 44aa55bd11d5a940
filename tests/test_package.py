"""The wheel works outside the checkout, and importing the package costs no more than what it builds on."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import fer_pll

ROOT = Path(__file__).parents[1]

# Runs where the wheel is installed, away from the checkout; prints one JSON object.
INSPECT = """
import json, sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers import AutoModelForImageClassification, AutoModelForPreTraining
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_backends import PilBackend
before = set(sys.modules)
import fer_pll
added = sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)

from fer_pll.hub.card import template_path
from fer_pll.training.settings import config_folder
folder = config_folder("fer-pll-tiny-ferplus")
config = AutoConfig.from_pretrained(folder)
classes = [type(config), type(AutoImageProcessor.from_pretrained(folder))]
classes += [type(auto.from_config(config)) for auto in
            (AutoModel, AutoModelForImageClassification, AutoModelForPreTraining)]
print(json.dumps({
    "added": added,
    "package": fer_pll.__file__,
    "version": fer_pll.__version__,
    "config_folder": str(folder),
    "settings": sorted(path.name for path in folder.iterdir()),
    "template": str(template_path()),
    "classes": [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in classes],
    "lazy": [getattr(fer_pll, name).__name__ for name in fer_pll.__all__],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """An environment for subprocesses that finds the installed wheel before the checkout; also a folder outside it."""
    site = tmp_path_factory.mktemp("outside") / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([*command, "--disable-pip-version-check"], check=True)
    return site, {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.suffix in (".py", ".html") or path.name == "py.typed"
    }
    configs = {f"fer_pll/{path.relative_to(ROOT)}" for path in (ROOT / "hub_configs").glob("*/*")}
    assert {
        "fer_pll_cli.py",
        "fer_pll/py.typed",
        "fer_pll/data/ferplus.py",
        "fer_pll/evaluation/audit_page.html",
    } <= sources
    metadata = f"fer_pll-{fer_pll.__version__}.dist-info/"
    content = {name for name in names if not name.startswith(metadata)}
    assert content == sources | configs | {"fer_pll/model_card.md"}
    assert f"{metadata}licenses/LICENSE" in names


def test_one_version():
    assert fer_pll.__version__ == version("fer-pll")


def test_installed_wheel_works_outside_the_checkout(outside):
    site, environment = outside
    run = subprocess.run(
        [sys.executable, "-c", INSPECT], cwd=site.parent, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    package = site / "fer_pll"
    assert found["package"] == str(package / "__init__.py")
    assert found["version"] == fer_pll.__version__
    assert found["config_folder"] == str(package / "hub_configs" / "fer-pll-tiny-ferplus")
    assert found["settings"] == ["config.json", "finetune.yaml", "preprocessor_config.json", "pretrain.yaml"]
    assert found["template"] == str(package / "model_card.md")
    assert found["classes"] == [
        "fer_pll.FerPllConfig",
        "fer_pll.FerPllImageProcessor",
        "fer_pll.FerPllModel",
        "fer_pll.FerPllForImageClassification",
        "fer_pll.FerPllForPreTraining",
    ]
    assert found["lazy"] == fer_pll.__all__
    # What `import fer_pll` brings in beyond transformers' classes: datasets, evaluate, matplotlib ... come when used.
    # (transformers' pipelines import its tokenizers.)
    assert set(found["added"]) <= {"fer_pll", "transformers", "tokenizers"}


def test_installed_command(outside):
    site, environment = outside
    run = subprocess.run(
        [site / "bin" / "fer-pll", "--version"], cwd=site.parent, env=environment, capture_output=True, text=True
    )
    assert run.stdout == f"fer-pll {fer_pll.__version__}\n", run.stderr
