"""Checkpoints that load where the package is not installed."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import skimage.data
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
from fer_pll import (
    FacialExpressionPipeline,
    FerPllConfig,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllImageProcessor,
    FerPllModel,
    load_default,
    load_recognizer,
)
from fer_pll.model.face_alignment import FaceCrop
from fer_pll.model.pipeline_fer_pll import TASK, PhotographPipeline
from hub.stranger import run_stranger
from tiny import tiny_config, tiny_processor

CODE_FILES = {
    "configuration_fer_pll.py",
    "configuration_fer_pll_resnet.py",
    "drop_path.py",
    "face_alignment.py",
    "face_answers.py",
    "face_crop.py",
    "face_detection.py",
    "feature_tokens.py",
    "hog.py",
    "masking.py",
    "missing_extra.py",
    "modeling_fer_pll.py",
    "modeling_fer_pll_resnet.py",
    "pipeline_fer_pll.py",
    "preprocessing.py",
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
        "image_processing_fer_pll.py",
    }


def test_auto_maps_name_every_class(folder):
    assert auto_map(folder / "classifier") == auto_map(folder / "pretrained") == AUTO_MAP
    image_processor = {"AutoImageProcessor": "image_processing_fer_pll.FerPllImageProcessor"}
    assert auto_map(folder / "classifier", "preprocessor_config.json") == image_processor


def test_a_classifier_names_its_pipeline_and_nothing_else_does(models, folder, tmp_path):
    named = json.loads((folder / "classifier" / "config.json").read_text())["custom_pipelines"]
    assert named == {TASK: {"impl": "pipeline_fer_pll.PhotographPipeline", "pt": ["AutoModelForImageClassification"]}}
    assert "custom_pipelines" not in json.loads((folder / "pretrained" / "config.json").read_text())
    models[0].fer_pll.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("tasks", [5, ["task"], {"task": "impl"}, "text"])
def test_custom_pipelines_of_another_kind_are_refused(tasks):
    with pytest.raises(ValueError, match=r"custom_pipelines=.*give the `impl` and `pt` of each task"):
        FerPllConfig(custom_pipelines=tasks)


@pytest.mark.parametrize("name", sorted(CODE_FILES | {"image_processing_fer_pll.py"}))
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


# Writes what the checkpoint, and a copy of it that the pipeline saved, answer for photographs.
PHOTOGRAPHS = """
import json
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from transformers import pipeline

folder = Path(sys.argv[1])
photo = folder / "photo.png"
pixels = np.asarray(Image.open(photo))
recognize = pipeline(model=str(folder / "model"), trust_remote_code=True, device="cpu")
assert type(recognize).__module__.startswith("transformers_modules."), type(recognize)
recognize.model.config.to_json_string()  # transformers leaves classes in what it reads
answers = {"path": recognize(photo), "array": recognize(pixels)}
answers["several"] = recognize([str(photo), pixels[:9]], top_k=2)
turned = Image.fromarray(np.rot90(pixels))
exif = turned.getexif()
exif[0x0112] = 6
turned.save(folder / "turned.jpg", quality=100, exif=exif)
answers["turned"] = recognize(str(folder / "turned.jpg"), detector="retinaface", min_face=40, batch_size=2)
by_task = pipeline("facial-expression-recognition", model=str(folder / "model"), trust_remote_code=True, device="cpu")
answers["by task"] = by_task(Image.open(photo))
answers["wider"] = by_task(str(photo), crop={**by_task.image_processor.face_crop, "margin": 0.3})
by_task.save_pretrained(folder / "again")
again = pipeline(model=str(folder / "again"), trust_remote_code=True, device="cpu")
answers["again"] = again(str(photo))
for problem, options in (("top_k=0", {"top_k": 0}), ("min_face=1.5", {"min_face": 1.5}), ("face_crop", {"crop": {}})):
    try:
        recognize(str(photo), **options)
    except ValueError as error:
        assert problem in str(error), error
    else:
        sys.exit(f"{options} was taken")
sys.modules["onnxruntime"] = None
try:
    pipeline(model=str(folder / "model"), trust_remote_code=True, device="cpu")(str(photo))
except ValueError as error:
    answers["without onnxruntime"] = str(error)
assert "fer_pll" not in sys.modules
(folder / "answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """The package's own checkpoint as others get it, and a photograph."""
    folder = tmp_path_factory.mktemp("photographs")
    for part in load_default():
        part.save_pretrained(folder / "model")
    Image.fromarray(skimage.data.astronaut()).save(folder / "photo.png")
    return folder


def test_a_stranger_recognizes_faces_in_photographs(photographs):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(photographs / "hf_home"),
        "HF_MODULES_CACHE": str(photographs / "hf_modules"),
    }
    run_stranger(PHOTOGRAPHS, photographs, environment=environment, cwd=photographs)
    answers = json.loads((photographs / "answers.json").read_text())
    ours = load_recognizer(device="cpu")
    photo, turned = (str(photographs / name) for name in ("photo.png", "turned.jpg"))
    expected = ours(photo)
    assert len(expected) == 1 and expected[0]["expressions"][0]["label"] == "happiness"
    for name in ("path", "array", "by task", "again"):
        assert answers[name] == alike(expected), name
    assert answers["several"] == [alike([expected[0] | {"expressions": expected[0]["expressions"][:2]}]), []]
    assert len(answers["turned"]) == 1 and answers["turned"] == alike(ours(turned, min_face=40))
    crop = FaceCrop.from_dict({**ours.image_processor.face_crop, "margin": 0.3}, "this")
    assert answers["wider"] == alike(ours(photo, crop=crop)) != expected
    assert "pip install 'fer-pll[faces]'" in answers["without onnxruntime"]
    assert files(photographs / "again") == files(photographs / "model")


def alike(faces: list[dict]) -> list[dict]:
    """The same faces, with what sums in another order change in the last digits of the scores."""
    scores = [[pytest.approx(each["score"], abs=1e-6) for each in face["expressions"]] for face in faces]
    return [
        face | {"expressions": [each | {"score": score} for each, score in zip(face["expressions"], own, strict=True)]}
        for face, own in zip(faces, scores, strict=True)
    ]


@pytest.mark.parametrize(
    ("task", "trust_remote_code"), [(None, None), (None, True), *((TASK, each) for each in (None, True, False))]
)
def test_where_the_package_is_imported_its_own_pipeline_is_used(photographs, task, trust_remote_code):
    model = str(photographs / "model")
    recognize = pipeline(task, model=model, trust_remote_code=trust_remote_code, device="cpu")
    assert type(recognize) is FacialExpressionPipeline
    assert type(recognize.model) is FerPllForImageClassification
    classify = pipeline("image-classification", model=model, trust_remote_code=trust_remote_code, device="cpu")
    assert not isinstance(classify, PhotographPipeline)


def test_what_the_packages_pipeline_saves_names_the_one_that_travels(photographs, tmp_path):
    load_recognizer(str(photographs / "model")).save_pretrained(tmp_path)
    assert files(tmp_path) == files(photographs / "model")
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"][TASK]["impl"].startswith("pipeline_")
