"""Checkpoints that load where the package is not installed."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)
from transformers.dynamic_module_utils import get_imports

import fer_pll.model
from fer_pll import FerPllConfig, FerPllForImageClassification, FerPllForPreTraining, FerPllImageProcessor, FerPllModel
from hub.stranger import run_stranger
from tiny import tiny_config, tiny_processor

CODE_FILES = {
    "configuration_fer_pll.py",
    "configuration_fer_pll_resnet.py",
    "drop_path.py",
    "feature_tokens.py",
    "hog.py",
    "masking.py",
    "modeling_fer_pll.py",
    "modeling_fer_pll_resnet.py",
    "uniformity.py",
}
CROP = {
    "name": "test",
    "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]],
    "size": 16,
    "color": "gray",
    "margin": 0.1,
}
AUTO_MAP = {
    "AutoConfig": "configuration_fer_pll.FerPllConfig",
    "AutoModel": "modeling_fer_pll.FerPllModel",
    "AutoModelForPreTraining": "modeling_fer_pll.FerPllForPreTraining",
    "AutoModelForMaskedImageModeling": "modeling_fer_pll.FerPllForPreTraining",
    "AutoModelForImageClassification": "modeling_fer_pll.FerPllForImageClassification",
    "AutoBackbone": "modeling_fer_pll.FerPllBackbone",
}

# Writes what the checkpoints answer to FOLDER/answers, and saves all of them a second time to FOLDER/again.
STRANGER = """
import json
import sys
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, pipeline
)

folder = Path(sys.argv[1])
image = Image.open(folder / "face.png")
noise = load_file(folder / "noise.safetensors")["noise"]
trust = {"trust_remote_code": True}
classifier, pretrained = folder / "classifier", folder / "pretrained"

config = AutoConfig.from_pretrained(classifier, **trust)
image_processor = AutoImageProcessor.from_pretrained(classifier, **trust)
model = AutoModelForImageClassification.from_pretrained(classifier, **trust)
encoder = AutoModel.from_pretrained(classifier, **trust)
pretraining_model = AutoModelForPreTraining.from_pretrained(pretrained, **trust)
for thing in (config, image_processor, model, encoder, pretraining_model):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
inputs = image_processor(image, return_tensors="pt")
with torch.no_grad():
    answers = {
        "pixel_values": inputs["pixel_values"],
        "logits": model(**inputs).logits,
        "query_states": encoder(**inputs).query_states,
        "predictions": pretraining_model(**inputs, noise=noise).logits,
        "loss": pretraining_model(**inputs, noise=noise).loss,
    }
save_file({name: tensor.contiguous() for name, tensor in answers.items()}, folder / "answers.safetensors")
classify = pipeline("image-classification", model=str(classifier), **trust)
(folder / "pipeline.json").write_text(json.dumps(classify(str(folder / "face.png"), top_k=None)))
assert "fer_pll" not in sys.modules

again = folder / "again"
model.save_pretrained(again / "classifier")
image_processor.save_pretrained(again / "classifier")
pretraining_model.save_pretrained(again / "pretrained")
# Parts and relatives that this process has not loaded through an Auto class.
model.fer_pll.save_pretrained(again / "encoder")
module = sys.modules[type(model).__module__]
module.FerPllForPreTraining.from_pretrained(pretrained).save_pretrained(again / "pretrained-by-class")
"""


def ask_stranger(folder: Path) -> dict[str, torch.Tensor]:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf_home"),
        "HF_MODULES_CACHE": str(folder / "hf_modules"),
    }
    run_stranger(STRANGER, folder, environment=environment, cwd=folder)
    return load_file(folder / "answers.safetensors")


@pytest.fixture(scope="module")
def models() -> tuple[FerPllForImageClassification, FerPllForPreTraining, FerPllImageProcessor]:
    """With a classifier far from its initialization, so that different logits could not be taken for equal ones."""
    labels = ["neutral", "happiness", "surprise", "sadness"]
    config = tiny_config(labels, image_mean=[0.4], image_std=[0.3])
    torch.manual_seed(0)
    classifier, pretrained = FerPllForImageClassification(config).eval(), FerPllForPreTraining(config).eval()
    torch.nn.init.normal_(classifier.classifier.weight)
    return classifier, pretrained, tiny_processor(config, face_crop=CROP)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> Path:
    """Checkpoints saved in one place and moved to another, an image, and masking noise."""
    classifier, pretrained, image_processor = models
    written = tmp_path_factory.mktemp("written")
    classifier.save_pretrained(written / "classifier")
    image_processor.save_pretrained(written / "classifier")
    pretrained.save_pretrained(written / "pretrained")
    folder = tmp_path_factory.mktemp("moved")
    for name in ("classifier", "pretrained"):
        (written / name).rename(folder / name)
    Image.linear_gradient("L").resize((40, 30)).save(folder / "face.png")
    save_file({"noise": torch.rand(1, 4)}, folder / "noise.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(models, folder) -> dict[str, torch.Tensor]:
    """What the saving process itself answers."""
    classifier, pretrained, image_processor = models
    inputs = image_processor(Image.open(folder / "face.png"), return_tensors="pt")
    noise = load_file(folder / "noise.safetensors")["noise"]
    with torch.no_grad():
        outputs, predictions = classifier(**inputs), pretrained(**inputs, noise=noise)
    return {
        "pixel_values": inputs["pixel_values"],
        "logits": outputs.logits,
        "query_states": outputs.query_states,
        "predictions": predictions.logits,
        "loss": predictions.loss,
    }


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, torch.Tensor]:
    return ask_stranger(folder)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def auto_map(folder: Path, name: str = "config.json") -> dict[str, str]:
    return json.loads((folder / name).read_text())["auto_map"]


def test_saved_files(folder):
    weights = {"config.json", "model.safetensors"}
    assert files(folder / "pretrained") == CODE_FILES | weights
    assert files(folder / "classifier") == CODE_FILES | weights | {
        "preprocessor_config.json",
        "face_crop.py",
        "preprocessing.py",
        "image_processing_fer_pll.py",
    }


def test_auto_maps_name_every_class(folder):
    assert auto_map(folder / "classifier") == auto_map(folder / "pretrained") == AUTO_MAP
    image_processor = {"AutoImageProcessor": "image_processing_fer_pll.FerPllImageProcessor"}
    assert auto_map(folder / "classifier", "preprocessor_config.json") == image_processor


@pytest.mark.parametrize(
    "name", sorted(CODE_FILES | {"face_crop.py", "preprocessing.py", "image_processing_fer_pll.py"})
)
def test_code_needs_nothing_that_transformers_does_not(name):
    imports = set(get_imports(Path(fer_pll.model.__file__).with_name(name))) - set(sys.stdlib_module_names)
    assert imports <= {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}


def test_stranger_gets_equal_answers(answers, expected, models, folder):
    assert expected["logits"].std() > 0.1
    torch.testing.assert_close(answers, expected, atol=1e-6, rtol=0)
    saved_again = json.loads((folder / "again" / "classifier" / "preprocessor_config.json").read_text())
    assert saved_again["face_crop"] == CROP
    id2label = models[0].config.id2label
    by_label = {id2label[k]: p for k, p in enumerate(expected["logits"][0].softmax(dim=0).tolist())}
    from_pipeline = json.loads((folder / "pipeline.json").read_text())
    assert {answer["label"]: answer["score"] for answer in from_pipeline} == pytest.approx(by_label, abs=1e-6)


def test_what_a_stranger_saves_again_is_whole(answers, expected, folder):
    again = folder / "again"
    for name in ("classifier", "pretrained"):
        assert files(again / name) == files(folder / name)
        assert auto_map(again / name) == AUTO_MAP
    for name in ("encoder", "pretrained-by-class"):
        assert files(again / name) == files(folder / "pretrained")
        assert auto_map(again / name) == AUTO_MAP
    for name in ("face.png", "noise.safetensors"):
        shutil.copy(folder / name, again / name)
    torch.testing.assert_close(ask_stranger(again), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("saved_by", ["us", "stranger"])
def test_where_the_package_is_installed_its_own_classes_are_used(
    saved_by, trust_remote_code, answers, expected, folder
):
    if saved_by == "stranger":
        folder = folder / "again"
    options = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder / "classifier", **options)
    image_processor = AutoImageProcessor.from_pretrained(folder / "classifier", **options)
    model = AutoModelForImageClassification.from_pretrained(folder / "classifier", **options)
    encoder = AutoModel.from_pretrained(folder / "classifier", **options)
    pretrained = AutoModelForPreTraining.from_pretrained(folder / "pretrained", **options)
    assert [type(one) for one in (config, image_processor, model, encoder, pretrained)] == [
        FerPllConfig,
        FerPllImageProcessor,
        FerPllForImageClassification,
        FerPllModel,
        FerPllForPreTraining,
    ]
    with torch.no_grad():
        logits = model(pixel_values=expected["pixel_values"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-6, rtol=0)


def test_pipeline_where_the_package_is_installed(folder, expected):
    classify = pipeline("image-classification", model=str(folder / "classifier"), trust_remote_code=False)
    assert type(classify.model) is FerPllForImageClassification
    best = classify(str(folder / "face.png"))[0]
    assert best["score"] == pytest.approx(expected["logits"].softmax(dim=1).max().item(), abs=1e-6)


def test_saving_twice_into_one_folder(models, tmp_path):
    classifier, _, image_processor = models
    other = FerPllForImageClassification(classifier.config)
    for model in (other, classifier):
        model.save_pretrained(tmp_path)
        image_processor.save_pretrained(tmp_path)
        classifier.config.save_pretrained(tmp_path)
    assert files(tmp_path) == CODE_FILES | {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "face_crop.py",
        "preprocessing.py",
        "image_processing_fer_pll.py",
    }
    assert auto_map(tmp_path) == AUTO_MAP
    loaded = FerPllForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.label_queries, classifier.label_queries)


def test_a_users_subclass_is_saved_with_its_own_file(models, tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "from fer_pll import FerPllForImageClassification\n\n\nclass Theirs(FerPllForImageClassification):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from their_model import Theirs

    config = FerPllConfig.from_dict({k: v for k, v in models[0].config.to_dict().items() if k != "auto_map"})
    Theirs(config).save_pretrained(tmp_path / "saved")
    assert auto_map(tmp_path / "saved") == {
        "AutoConfig": "configuration_fer_pll.FerPllConfig",
        "AutoModelForImageClassification": "their_model.Theirs",
    }
    assert {"their_model.py", "configuration_fer_pll.py"} <= files(tmp_path / "saved")
