"""What a model's name means: one rule for folders, the package's own model and the Hub, and no waiting for a typo."""

import socket
from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification

from fer_pll import FerPllForImageClassification
from fer_pll.hub.push import published_files
from fer_pll.io.errors import DataError
from fer_pll.io.names import check_folder, find_checkpoint, is_onnx_folder
from fer_pll.io.pretrained import load_model
from fer_pll.io.shipped import DEFAULT_CHECKPOINT, DEFAULT_NAME
from tiny import tiny_config


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A current folder with `runs/pretrain`, and no way to reach any server."""
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    (tmp_path / "photo.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def connect(*_args, **_options):
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return tmp_path


def test_the_packages_own_name_is_its_folder_and_a_folder_of_that_name_goes_first(work):
    assert find_checkpoint(DEFAULT_NAME) == find_checkpoint(Path(DEFAULT_NAME)) == DEFAULT_CHECKPOINT
    (work / DEFAULT_NAME).mkdir()
    assert find_checkpoint(DEFAULT_NAME) == DEFAULT_NAME


def test_folders(work, monkeypatch):
    monkeypatch.setenv("HOME", str(work))
    for name in ("runs/pretrain", "./runs/pretrain/", str(work / "runs" / "pretrain"), "~/runs/pretrain"):
        assert Path(find_checkpoint(name)).resolve() == work / "runs" / "pretrain"


@pytest.mark.parametrize(
    "name",
    [
        "runs/pretrane",  # its parent is there
        "runs/pretrain/checkpoint-3",
        "./nope",
        "../nope",
        "/nope/model",
        "~/nope",
        "a/b/c",
        "nope",
        "",
        "runs\\nope",
        "C:\\models\\nope",
        "./",
        ".hidden/model",
        "who/what?",
        "who/-model",
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_what_can_be_no_name_on_the_hub_is_not_looked_up(name, offline, work, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    if name in ("", "./"):  # the current folder
        assert find_checkpoint(name) == "."
        return
    with pytest.raises(DataError, match="there is no such folder") as raised:
        find_checkpoint(name)
    assert str(raised.value).startswith(name) and "\n" not in str(raised.value)


def test_a_typo_gets_a_suggestion(work):
    with pytest.raises(DataError, match=r"did you mean runs/pretrain\?"):
        find_checkpoint("runs/pretrane")


def test_a_file_is_no_model(work):
    with pytest.raises(DataError, match=r"photo\.jpg is a file"):
        find_checkpoint("photo.jpg")


def test_a_name_on_the_hub(work, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert find_checkpoint("someone/model") == "someone/model"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"someone/model: .*HF_HUB_OFFLINE.* in its cache"):
        find_checkpoint("someone/model")


def test_the_names_of_configs_count_where_only_the_crop_is_needed(work):
    assert Path(find_checkpoint("fer-pll-vit-base-ferplus", configs=True), "config.json").is_file()
    with pytest.raises(DataError, match="fer-pll-vit-base-ferplus: there is no such folder"):
        find_checkpoint("fer-pll-vit-base-ferplus")


def test_folders_that_are_no_checkpoint(work):
    check_folder("someone/model")
    check_folder(DEFAULT_CHECKPOINT)
    with pytest.raises(DataError, match=r"runs has no config.json.*name the folder of a checkpoint"):
        check_folder("runs")
    (work / "runs" / "pretrain" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"such as runs/pretrain"):
        check_folder("runs")
    (work / "runs" / "pretrain" / "model.onnx").write_bytes(b"x")
    assert is_onnx_folder(work / "runs" / "pretrain")
    with pytest.raises(DataError, match="exported model"):
        check_folder("runs/pretrain")
    (work / "runs" / "pretrain" / "model.safetensors").write_bytes(b"x")
    assert not is_onnx_folder(work / "runs" / "pretrain")


@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "someone/else"}', "[]", ""])
@pytest.mark.parametrize("model_class", [AutoModelForImageClassification, FerPllForImageClassification])
def test_adapters_in_a_folder_are_not_loaded_and_name_no_other_weights(work, content, model_class, monkeypatch):
    FerPllForImageClassification(tiny_config()).save_pretrained(work / "model")
    load_model(model_class, "model")
    (work / "model" / "adapter_config.json").write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for config in (None, tiny_config()):
        with pytest.raises(DataError, match=r"model holds adapters \(adapter_config\.json\)"):
            load_model(model_class, "model", config=config)
    with pytest.raises(DataError, match=r"model holds adapters"):
        published_files("model")
