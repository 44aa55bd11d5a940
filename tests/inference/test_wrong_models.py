"""Never an answer from the wrong thing: each way to an answer, each folder that cannot give one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

import fer_pll
import fer_pll_cli
from fer_pll import FerPllForImageClassification, FerPllForPreTraining
from fer_pll.hub.push import published_files
from fer_pll.inference.onnx_export import export_onnx
from fer_pll.inference.pipeline import TASK
from fer_pll.io.shipped import DEFAULT_NAME
from fer_pll.training.calibrated import calibrate
from fer_pll.training.evaluation import evaluate
from fer_pll.training.initialization import initialize
from tiny import CLASSES, make_dataset, tiny_config, tiny_processor

CROP = {"name": "FER+", "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]],
        "size": 16, "color": "gray", "margin": 0.0}  # fmt: skip


def save_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    FerPllForImageClassification(tiny_config()).save_pretrained(folder)
    tiny_processor(face_crop=CROP).save_pretrained(folder)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights["classifier.bias"].fill_(value)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a photo, a prepared data set, a sound checkpoint, and one wrong folder of each kind."""
    place = tmp_path_factory.mktemp("models")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)).save(place / "photo.png")
    rows = make_dataset(12)
    DatasetDict({"validation": rows, "held_out": rows}).save_to_disk(place / "data")
    good = save_checkpoint(place / "good")
    FerPllForPreTraining(tiny_config()).save_pretrained(place / "pretrain")
    tiny_processor(face_crop=CROP).save_pretrained(place / "pretrain")
    for name, change in {
        "nan": fill(float("nan")),
        "infinite": fill(float("-inf")),
        "headless": lambda weights: weights.pop("classifier.weight"),
        "other-size": lambda weights: weights.update({"classifier.weight": torch.zeros(5, 9)}),
    }.items():
        shutil.copytree(good, place / name)
        change_weights(place / name, change)
    shutil.copytree(good, place / "cut-off")
    content = (good / "model.safetensors").read_bytes()
    (place / "cut-off" / "model.safetensors").write_bytes(content[: len(content) // 2])
    shutil.copytree(good, place / "pickled")
    (place / "pickled" / "model.safetensors").unlink()
    torch.save({}, place / "pickled" / "pytorch_model.bin")
    export_onnx(str(good), place / "exported")
    (place / "photos").mkdir()
    (place / "photos" / "notes.txt").write_text("not a model")
    shutil.copytree(good, place / "run" / "checkpoint-40")
    return place


# What the message names, for each wrong folder.
WRONG = {
    "pretrain": "not a trained classifier",
    "headless": "classifier.weight",
    "other-size": "classifier.weight",
    "nan": "classifier.bias hold NaN or infinite numbers",
    "infinite": "classifier.bias hold NaN or infinite numbers",
    "cut-off": "model.safetensors",
    "pickled": "Pickles",
    "exported": "exported model",
    "photos": "photos has no config.json",
    "run": "checkpoint-40",
    "nope": "there is no such folder",
}


def command(*argv: object) -> Callable[[Path, str], object]:
    """Runs a command with MODEL, DATA and OUT filled in; its error line as a `ValueError`."""

    def run(place: Path, model: str) -> None:
        names = {
            "MODEL": model,
            "DATA": str(place / "data"),
            "OUT": str(place / "out"),
            "PHOTO": str(place / "photo.png"),
        }
        assert fer_pll_cli.main([names.get(str(each), str(each)) for each in argv]) == 1

    return run


# Each way to an answer. Commands print the error; everything else raises it.
WAYS: dict[str, Callable[[Path, str], object]] = {
    "recognizer": lambda place, model: fer_pll.load_recognizer(model, device="cpu"),
    "pipeline": lambda place, model: pipeline(TASK, model=model, trust_remote_code=False, device="cpu"),
    "evaluate": lambda place, model: evaluate(model, place / "data", out=place / "out"),
    "calibrate": lambda place, model: calibrate(model, place / "data", place / "out"),
    "export": lambda place, model: export_onnx(model, place / "out"),
    "predict": command("predict", "PHOTO", "--model", "MODEL"),
    "predict crops": command("predict", "PHOTO", "--model", "MODEL", "--cropped"),
    "predict with torch": command("predict", "PHOTO", "--model", "MODEL", "--backend", "torch"),
    "fer-pll evaluate": command("evaluate", "MODEL", "DATA", "--out", "OUT"),
    "fer-pll export": command("export", "MODEL", "--out", "OUT"),
    "fer-pll calibrate": command("calibrate", "MODEL", "DATA", "--out", "OUT"),
    "push": lambda place, model: published_files(model),
    "init_from": lambda place, model: initialize(FerPllForImageClassification, tiny_config(), model),
}
# Pre-trained encoders may be pushed and are what --init_from is for; it gives new heads where they are missing.
FINE = {
    ("push", "pretrain"), ("push", "headless"), ("push", "other-size"), ("push", "nope"),
    ("init_from", "pretrain"), ("init_from", "headless"), ("init_from", "other-size"),
    ("predict", "exported"), ("predict crops", "exported"),
}  # fmt: skip


@pytest.mark.parametrize("model", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_an_error_and_no_answer(way, model, place, capfd, monkeypatch):
    if (way, model) in FINE:
        pytest.skip("this is right")
    name = str(place / model)
    expected = WRONG[model]
    if way == "push" and model in ("photos", "run"):
        expected = "has no config.json"
    if way == "pipeline" and model in ("photos", "run", "nope"):
        expected = "config.json|model_type|photos|run|nope"  # transformers reads the config before it asks us
    if WAYS[way].__name__ == "run":
        WAYS[way](place, name)
        output = capfd.readouterr()
        (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert expected in line and "Traceback" not in output.err
        assert "photo.png: face" not in output.out
    else:
        with pytest.raises((ValueError, OSError), match=expected):
            WAYS[way](place, name)
    assert not (place / "out").exists()


def test_the_sound_one_answers_in_every_way(place, tmp_path):
    model = str(place / "good")
    assert fer_pll.load_recognizer(model).model.config.id2label[0] == CLASSES[0]
    assert pipeline(TASK, model=model, trust_remote_code=False).model.training is False
    assert evaluate(model, place / "data", out=tmp_path / "e")["protocols"]["all"]["rows"] == 12
    assert calibrate(model, place / "data", tmp_path / "c")["rows"] == 12
    assert "model.safetensors" in published_files(model)
    photo = str(place / "photo.png")
    assert fer_pll_cli.main(["predict", photo, "--model", model, "--cropped"]) == 0
    assert fer_pll_cli.main(["predict", photo, "--model", str(place / "exported"), "--cropped"]) == 0


def test_the_packages_own_name_works_wherever_a_model_is_named(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fer_pll.load_recognizer(DEFAULT_NAME).model.config.num_labels == 8
    photo = str(place / "photo.png")
    assert fer_pll_cli.main(["predict", photo, "--cropped", "--model", DEFAULT_NAME]) == 0
    assert fer_pll_cli.main(["predict", photo, "--model", str(place / "good"), "--crop", DEFAULT_NAME]) == 0
    folder, _ = export_onnx(DEFAULT_NAME)
    assert folder == tmp_path / f"{DEFAULT_NAME}-onnx"
    rows = make_dataset(8)
    names = ["happiness", "anger", "fear", "sadness"]
    features = rows.features.copy()
    features["label"] = features["label"].__class__(names=names)
    DatasetDict({"validation": rows.cast(features)}).save_to_disk(tmp_path / "data")
    report = evaluate(DEFAULT_NAME, tmp_path / "data")
    assert report["classes"] == ["happiness", "sadness", "anger", "fear"]
    assert (tmp_path / f"evaluation-{DEFAULT_NAME}-validation" / "metrics.json").is_file()
    config = fer_pll.FerPllConfig.from_pretrained(fer_pll.load_default()[0].name_or_path)
    _, origin = initialize(FerPllForImageClassification, config, DEFAULT_NAME)
    assert str(origin).startswith(f"Weights from {DEFAULT_NAME} (fer_pll)") and origin.new == []


def test_a_model_that_answers_nan_is_an_error(place, tmp_path):
    """The weights are finite, their products are not."""
    shutil.copytree(place / "good", tmp_path / "model")
    change_weights(tmp_path / "model", lambda weights: [each.fill_(3e38) for each in weights.values()])
    with pytest.raises(ValueError, match=r"NaN or infinity for 12 of 12 rows"):
        evaluate(tmp_path / "model", place / "data", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (
        fer_pll_cli.main(["predict", str(place / "photo.png"), "--model", str(tmp_path / "model"), "--cropped"]) == 1
    )
    from skimage.data import astronaut

    with pytest.raises(ValueError, match="NaN"):
        fer_pll.load_recognizer(tmp_path / "model")(astronaut())


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense", "meta:3x"])
def test_a_device_that_is_not_there_is_one_line(device, place, capsys, tmp_path):
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"device {device}: torch cannot use it"):
        fer_pll.load_recognizer(str(place / "good"), device=device)
    with pytest.raises(ValueError, match=f"device {device}: torch cannot use it"):
        pipeline(TASK, model=str(place / "good"), trust_remote_code=False, device=device)
    for argv in (
        ["predict", str(place / "photo.png"), "--model", str(place / "good")],
        ["evaluate", str(place / "good"), str(place / "data"), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert fer_pll_cli.main([*argv, "--device", device]) == 1
        assert f"error: device {device}: torch cannot use it" in capsys.readouterr().err


def test_a_crop_from_nowhere_is_said_at_once(place, monkeypatch):
    # Where the Hub is not switched off, its library tries to reach it for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for crop in ("nope", str(place / "nope"), str(place / "photos"), "someone/model"):
        with pytest.raises(ValueError, match=crop.rpartition("/")[2]):
            pipeline(TASK, model=str(place / "good"), trust_remote_code=False, crop=crop)
