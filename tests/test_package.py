"""The wheel works outside the checkout, and importing the package costs no more than what it builds on."""

import ast
import csv
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import trove_classifiers
from packaging.requirements import Requirement
from PIL import Image
from readme_renderer import markdown

import fer_pll
from fer_pll.labels.expressions import EXPRESSIONS
from hub.fake_hub import FakeHub
from tiny import tiny_config, tiny_processor

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

from fer_pll.io.shipped import shipped
from fer_pll.training.config import config_folder
folder = config_folder("fer-pll-tiny-vit-ferplus")
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
    "template": str(shipped("model_card.md")),
    "classes": [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in classes],
    "public": [name for name in fer_pll.__all__ if getattr(fer_pll, name) is not None],
}))
"""

# A training as the README's, and its pushes.
PUSH = """
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
import fer_pll

assert fer_pll.__file__.startswith(__import__("sys").argv[1])
names = ["left", "right"]
train = Dataset.from_dict(
    {
        "image": [PILImage.new("L", (16, 16), shade) for shade in (0, 255)],
        "index": [0, 1],
        "row_id": ["a", "b"],
        "label": [0, 1],
        "candidates": [[True, True], [False, True]],
    },
    features=Features(
        image=Image(), index=Value("int64"), row_id=Value("string"), label=ClassLabel(names=names),
        candidates=List(Value("bool"), length=2),
    ),
)
config = fer_pll.FerPllConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
    num_channels=1, hog_cell_size=4, id2label=dict(enumerate(names)),
)
image_processor = fer_pll.FerPllImageProcessor(num_channels=1, size={"height": 16, "width": 16})
args = fer_pll.FerPllTrainingArguments("run", max_steps=1, push_to_hub=True, hub_model_id="someone/trained")
trainer = fer_pll.FerPllTrainer(
    fer_pll.FerPllForImageClassification(config),
    args,
    processing_class=image_processor,
    train_dataset=train,
)
trainer.train()
trainer.push_to_hub()
trainer.model.push_to_hub("someone/by-hand")
image_processor.push_to_hub("someone/by-hand")
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


def test_the_readme_on_pypi_has_no_link_to_a_file_that_is_not_there(wheel):
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", wheel], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    page = markdown.render(text.partition("\n\n")[2])  # None where there is no renderer, which twine lets pass
    assert page.count("<img") == 1 and page.count("<table") >= 3 and "flowchart" not in page
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20 and all(link.startswith(("https://", "#")) for link in links)
    for link in links:
        if "/OWNER/fer-pll/" in link:
            assert (ROOT / re.split("/main/", link)[1].split("#")[0]).exists(), link


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file()
        and (
            path.suffix in (".py", ".pyi", ".html", ".js", ".txt")
            or path.name == "py.typed"
            or "checkpoints" in path.parts
        )
    }
    configs = {f"fer_pll/{path.relative_to(ROOT)}" for path in (ROOT / "hub_configs").glob("*/*")}
    assert {
        "fer_pll_cli.py",
        "fer_pll/py.typed",
        "fer_pll/data/sources/ferplus.py",
        "fer_pll/audit/page.html",
        "fer_pll/commands/help/finetune.txt",
    } <= sources
    metadata = f"fer_pll-{fer_pll.__version__}.dist-info/"
    content = {name for name in names if not name.startswith(metadata)}
    assert content == sources | configs | {"fer_pll/model_card.md"}
    assert f"{metadata}licenses/LICENSE" in names


def test_what_the_package_imports_is_what_it_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {Requirement(line).name.lower().replace("_", "-") for line in asked}
    names.add("opencv-python-headless")  # of the extra faces, see pyproject.toml
    installed = packages_distributions()
    missing = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
            for top in tops - {"fer_pll", "fer_pll_cli"}:
                distributions = installed.get(top, [top])
                if names.isdisjoint(name.lower().replace("_", "-") for name in distributions):
                    missing.add((top, file.name))
    assert missing == set()


def test_classifiers_are_those_of_pypi_and_name_this_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = project["classifiers"]
    assert set(given) <= trove_classifiers.classifiers and given == sorted(given)
    assert "Programming Language :: Python :: {}.{}".format(*sys.version_info) in given
    # With an SPDX expression as `license`, PyPI takes no classifier for it.
    assert project["license"] == "Apache-2.0" and not [each for each in given if each.startswith("License ::")]


def test_one_version():
    assert fer_pll.__version__ == version("fer-pll")


def test_public_names_are_what_type_checkers_see():
    """`__init__.pyi` is the list; what it says of a name is true, and known before its module is imported."""
    stub = (ROOT / "src/fer_pll/__init__.pyi").read_text()
    listed = {name: module for module, name in re.findall(r"^from (\S+) import \w+ as (\w+)", stub, re.MULTILINE)}
    assert fer_pll.__all__ == sorted(listed) and set(fer_pll.__all__) <= set(dir(fer_pll))
    for name, module in listed.items():
        value = getattr(fer_pll, name)
        assert value is getattr(fer_pll, name)
        where = getattr(value, "__module__", None)
        assert where is None or where.startswith("fer_pll" + module), name
    with pytest.raises(AttributeError, match="module 'fer_pll' has no attribute 'FerPllTrainr'"):
        fer_pll.FerPllTrainr  # noqa: B018


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
    assert found["config_folder"] == str(package / "hub_configs" / "fer-pll-tiny-vit-ferplus")
    assert found["settings"] == ["config.json", "finetune.yaml", "preprocessor_config.json", "pretrain.yaml"]
    assert found["template"] == str(package / "model_card.md")
    assert found["classes"] == [
        "fer_pll.FerPllConfig",
        "fer_pll.FerPllImageProcessor",
        "fer_pll.FerPllModel",
        "fer_pll.FerPllForImageClassification",
        "fer_pll.FerPllForPreTraining",
    ]
    assert found["public"] == fer_pll.__all__
    # What `import fer_pll` brings in beyond transformers' classes: datasets, evaluate, matplotlib ... come when used.
    # (transformers' pipelines import its tokenizers.)
    assert set(found["added"]) <= {"fer_pll", "transformers", "tokenizers"}


IMPORTS = """
import json, sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, PreTrainedModel, pipeline
from transformers.image_processing_backends import PilBackend
theirs = set(sys.modules)
import fer_pll
imported = set(sys.modules) - theirs
model, image_processor = fer_pll.load_default()
recognize = fer_pll.FacialExpressionPipeline(model=model, image_processor=image_processor)
from PIL import Image
assert recognize(Image.new("L", (48, 48)), detector=lambda image: []) == []
used = set(sys.modules) - theirs - imported
print(json.dumps([sorted(imported), sorted(used)]))
"""
HEAVY = (
    "accelerate", "datasets", "evaluate", "matplotlib", "onnxruntime", "pandas", "peft", "pyarrow", "scipy", "skimage",
    "sklearn", "sympy", "torchvision", "torch._dynamo", "transformers.trainer", "transformers.generation",
)  # fmt: skip


def test_the_import_and_the_first_use_bring_in_nothing_heavy():
    """`train_scripts/benchmark.py imports` has the times; what could make them longer is not there at all."""
    run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    imported, used = json.loads(run.stdout.splitlines()[-1])
    for modules in (imported, used):
        assert not [name for name in modules if name.startswith(HEAVY)]
    others = [name for name in imported if name.partition(".")[0] not in {"fer_pll", *sys.stdlib_module_names}]
    assert len(others) < 10, others  # two of transformers
    for kind in ("training", "data", "audit", "commands", "plots", "metrics"):
        assert f"fer_pll.{kind}" not in {*imported, *used}


def test_installed_command(outside):
    site, environment = outside
    run = subprocess.run(
        [site / "bin" / "fer-pll", "--version"], cwd=site.parent, env=environment, capture_output=True, text=True
    )
    assert run.stdout == f"fer-pll {fer_pll.__version__}\n", run.stderr


def test_pushes_from_the_installed_wheel_are_complete(outside, tmp_path):
    site, environment = outside
    with FakeHub() as hub:
        environment = {**hub.environment(tmp_path / "home", "hf_token"), "PYTHONPATH": environment["PYTHONPATH"]}
        run = subprocess.run(
            [sys.executable, "-c", PUSH, site], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert run.returncode == 0, run.stderr
    code = {path.name for path in (ROOT / "src/fer_pll/model").glob("*.py")} - {"__init__.py"}
    files = code | {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {repo: set(files) for repo, files in hub.repos.items()} == {
        "someone/trained": files | {"training.json"},
        "someone/by-hand": files,
    }
    for pushed in hub.repos.values():
        assert "## Limits and responsible use" in pushed["README.md"].decode()
        for name in code:
            assert pushed[name] == (ROOT / "src/fer_pll/model" / name).read_bytes()


@pytest.mark.long
@pytest.mark.timeout(900)  # ten processes, each of which loads torch
def test_the_wheel_is_the_program(outside, tmp_path):
    """From nothing to a model on the Hub, with the wheel alone, in an empty folder, by commands."""
    site, environment = outside
    program = [sys.executable, str(site / "bin" / "fer-pll")]  # the script's first line names pip's Python
    folder = tmp_path / "empty"
    (folder / "tiny").mkdir(parents=True)
    config = tiny_config(EXPRESSIONS, hidden_size=16, num_hidden_layers=1, intermediate_size=32, image_size=32)
    config.to_json_file(folder / "tiny" / "config.json")
    tiny_processor(config).save_pretrained(folder / "tiny")
    environment = environment | {"HF_HOME": str(tmp_path / "home")}

    def fer_pll(command: str, **variables: str) -> str:
        run = subprocess.run(
            [*program, *command.split()], cwd=folder, env=environment | variables, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{command}: {run.stdout[-2000:]}{run.stderr[-4000:]}"
        return run.stdout

    training = "--max_steps 2 --per_device_train_batch_size 16 --logging_steps 1 --save_strategy no --use_cpu"
    fer_pll(
        "prepare synthetic --out data --num-train 48 --num-validation 16 --num-test 0 --image-size 32 --hold-out 0.25"
    )
    fer_pll(f"pretrain --config tiny --data data --output_dir pretrained {training}")
    fer_pll(f"finetune --config tiny --data data --init_from pretrained --output_dir run {training}")
    assert "accuracy" in fer_pll("evaluate run data --out run/evaluation --device cpu")
    assert "temperature" in fer_pll("calibrate run data --out calibrated")
    fer_pll("audit run --out audit")
    fer_pll("export calibrated --out onnx")
    Image.linear_gradient("L").resize((32, 32)).save(folder / "face.png")
    for model in ("calibrated", "onnx --backend onnx"):
        assert ": 1 face\n" in fer_pll(f"predict face.png --cropped --model {model} --out faces.csv --overwrite")
        (face,) = csv.DictReader((folder / "faces.csv").open())
        assert face["expression"] in EXPRESSIONS
    with FakeHub() as hub:
        variables = hub.environment(tmp_path / "home", "hf_token", HF_HUB_OFFLINE="0", PYTHONPATH=str(site))
        pushed = fer_pll("push run someone/faces --with-confidences data", **variables)
    assert "pushed" in pushed
    card = hub.repos["someone/faces"]["README.md"].decode()
    assert {"model.safetensors", "modeling_fer_pll.py", "evaluation/metrics.json"} <= set(hub.repos["someone/faces"])
    assert "someone/faces" in card and "datasets/someone/faces-confidences" in hub.repos
    assert {path.name for path in folder.iterdir()} == {
        "tiny", "data", "pretrained", "run", "calibrated", "audit", "onnx", "face.png", "faces.csv",
    }  # fmt: skip


def test_the_limits_that_the_security_page_gives_are_those_of_the_code():
    text = (ROOT / "SECURITY.md").read_text()
    table = text.partition("## Limits")[2].partition("##")[0]
    found = {}
    for name in re.findall(r"`(fer_pll\.[\w.]+)`", table):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, constant = name.rpartition(".")
            found[constant] = getattr(importlib.import_module(module), constant)
    sizes = importlib.import_module("fer_pll.model.configuration_fer_pll")
    assert f"{found['MAX_PIXELS']:,};" in table and "`FER_PLL_MAX_PIXELS`" in table
    assert f"{found['MAX_BYTES'] // 2**20} MiB; 30 s" in table and f"{30 * found['OVERALL']} s in all" in table
    formats = table.partition("| formats of images | ")[2].split(" | ")[0].upper().replace(" ", "").split(",")
    assert set(formats) == {*found["FORMATS"], "HEIC"}
    assert f"sides of {found['MAX_SIDE']:,} pixels, {found['MAX_PATCHES']:,} patches" in table
    assert f"a side of {found['MAX_SIDE'] // 2:,} pixels" in table
    layers, width = sizes.LARGEST["num_hidden_layers"], sizes.LARGEST["hidden_size"]
    assert f"{layers} layers, width {width:,}, {sizes.MAX_CLASSES:,} classes, {sizes.MAX_BLOCK_VALUES:,}" in table
    assert f"{found['MAX_JSON_BYTES'] // 2**20} MiB |" in table
    assert {"OPERATORS", "OVERALL"} <= set(found)
