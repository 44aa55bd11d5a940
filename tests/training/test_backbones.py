"""Fine-tuning on checkpoints of others: `--backbone`, frozen encoders, learning rates that fall by stage."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextImageProcessorPil,
    PreTrainedModel,
    ResNetForImageClassification,
)

import fer_pll_cli
from backbones import FEATURES, IMAGENET, OURS, SIDE, SOURCES, queries_on, save_source
from fer_pll import (
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllImageProcessor,
    FerPllTrainingArguments,
)
from fer_pll.data.dataset import save_dataset
from fer_pll.training.backbones import read_config, read_images
from fer_pll.training.config import load_config
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.initialization import initialize
from fer_pll.training.param_groups import depths, parameter_groups
from hub.fake_hub import FakeHub
from timm_alone import import_timm
from tiny import CLASSES, make_dataset, make_trainer, tiny_config


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, PreTrainedModel]]:
    """Folders with checkpoints of transformers' classifiers, and the classifiers."""
    root = tmp_path_factory.mktemp("sources")
    return {name: (str(root / name), save_source(name, root / name)) for name in SOURCES}


def make_model(folder: str, tmp_path: Path, **options) -> tuple[PreTrainedModel, FerPllImageProcessor]:
    args = FerPllTrainingArguments(str(tmp_path), use_cpu=True, drop_path_rate=options.pop("drop_path_rate", None))
    torch.manual_seed(1)
    options = {"config": "fer-pll-resnet18", "data": "unused", "backbone": folder} | options
    model, image_processor = FineTuningOptions(**options).make_model(args, CLASSES)
    return model.eval(), image_processor


def faces() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_features_are_those_of_the_source_from_the_image_on(name, sources, tmp_path, capsys):
    folder, source = sources[name]
    model, image_processor = make_model(folder, tmp_path)
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.image_size == SIDE
    theirs = AutoImageProcessor.from_pretrained(folder)(faces(), return_tensors="pt").pixel_values
    ours = image_processor(faces(), return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    expected = FEATURES[name](source, theirs)
    outputs = model.fer_pll(ours)
    if name == "vit":  # our own encoder can hold it
        assert model.config.backbone_config is None
        found = outputs.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, expected.shape[2:])
    else:
        (found,) = model.fer_pll.backbone(ours).feature_maps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    printed = capsys.readouterr().out
    assert f"Weights from {folder} ({name})" in printed and "new: " in printed and "classifier (2)" in printed
    assert folder not in model.config.to_json_string() and "LABEL_9" not in model.config.to_json_string()


def test_random_weights_other_sizes_and_several_stages(sources, tmp_path, capsys):
    folder, source = sources["resnet"]
    model, image_processor = make_model(
        folder, tmp_path, backbone_weights="random", image_size=48, backbone_features=["stage1", "stage2"]
    )
    assert image_processor.size == {"height": 48, "width": 48} and model.config.image_size == 48
    assert list(image_processor.image_mean) == IMAGENET["image_mean"] and image_processor.num_channels == 3
    stem = model.fer_pll.backbone.embedder.embedder.convolution.weight
    assert not torch.equal(stem, source.resnet.embedder.embedder.convolution.weight)
    assert model.fer_pll(torch.zeros(1, 3, 48, 48)).last_hidden_state.shape == (1, 12 * 12 + 6 * 6, 256)
    assert "Weights from" not in capsys.readouterr().out
    model, _ = make_model(folder, tmp_path, backbone_features=["0", "2"])
    assert model.config.backbone_config.out_features == ["stem", "stage2"]
    model, _ = make_model(sources["convnext"][0], tmp_path, drop_path_rate=0.2)
    assert model.config.backbone_config.drop_path_rate == 0.2


@pytest.mark.parametrize("name", ["resnet", "dinov2", "vit"])
@torch.no_grad()
def test_a_plain_classifier_has_the_network_of_the_source_and_new_classes(name, sources, tmp_path, capsys):
    folder, source = sources[name]
    model, image_processor = make_model(folder, tmp_path, architecture="plain")
    assert type(model) is type(source) and model.config.id2label == dict(enumerate(CLASSES))
    pixels = image_processor(faces(), return_tensors="pt").pixel_values
    for one, other in zip(model.base_model(pixels).to_tuple(), source.base_model(pixels).to_tuple(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert model(pixels).logits.shape == (3, 4)
    assert "new: classifier" in capsys.readouterr().out
    model, _ = make_model(folder, tmp_path, architecture="plain", backbone_weights="random")
    assert not torch.equal(model(pixels).logits, source(pixels).logits[:, :4])


@torch.no_grad()
def test_a_configuration_of_transformers_takes_weights_too(sources, tmp_path):
    folder, source = sources["resnet"]
    config = tmp_path / "config"
    config.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (config / file).write_text((Path(folder) / file).read_text())
    FerPllImageProcessor(size={"height": SIDE, "width": SIDE}, **IMAGENET).save_pretrained(config)
    model, _ = make_model(None, tmp_path, config=str(config), init_from=folder)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model.base_model(pixels)[1], source.base_model(pixels)[1])
    FerPllImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(config)
    with pytest.raises(ValueError, match=r"--init_from .* is for pixels with mean \[0.485"):
        make_model(None, tmp_path, config=str(config), init_from=folder)


@torch.no_grad()
@pytest.mark.parametrize("start", ["backbone", "init_from", "init_from and its config"])
def test_a_run_of_ours_on_a_backbone_is_gone_on_with(start, sources, tmp_path):
    """Whichever option names it: the kind of network comes with a checkpoint of ours."""
    model, image_processor = make_model(sources["swin"][0], tmp_path)
    torch.nn.init.normal_(model.classifier.weight)
    for saved in (model, image_processor):
        saved.save_pretrained(tmp_path / "run")
    pixels = image_processor(faces(), return_tensors="pt").pixel_values
    run = str(tmp_path / "run")
    named = {"backbone": None, start.partition(" ")[0]: run}
    for config in [run] if "config" in start else ["fer-pll-resnet18", "fer-pll-tiny"]:
        again, processor = make_model(None, tmp_path, config=config, **named)
        assert torch.equal(again(pixels).logits, model(pixels).logits)
        assert processor.size == image_processor.size and processor.image_mean == image_processor.image_mean
    if "config" not in start:
        linear, _ = make_model(None, tmp_path, add_query_decoder=False, **named)
        assert not linear.config.add_query_decoder


def test_a_run_of_our_encoder_is_gone_on_with_whatever_the_config_has(tmp_path):
    config = tiny_config()
    model = FerPllForImageClassification(config)
    side = {"height": config.image_size, "width": config.image_size}
    processor = FerPllImageProcessor(
        num_channels=config.num_channels, size=side, image_mean=config.image_mean, image_std=config.image_std
    )
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "run")
    again, _ = make_model(None, tmp_path, config="fer-pll-resnet18", init_from=str(tmp_path / "run"))
    assert again.config.backbone_config is None
    name = "fer_pll.layers.0.mlp.fc2.weight"
    assert torch.equal(again.state_dict()[name], model.state_dict()[name])


def test_what_images_a_checkpoint_was_trained_on(tmp_path):
    def images_of(processor) -> tuple:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
        processor.save_pretrained(tmp_path)
        images = read_images(str(tmp_path))
        return images.size, images.num_channels, images.image_mean, images.image_std, images.resample

    mean, std = IMAGENET["image_mean"], IMAGENET["image_std"]
    convnext = ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875, resample=3, **IMAGENET)
    assert images_of(convnext) == (224, 3, mean, std, 3)
    cropping = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=2, **IMAGENET
    )
    assert images_of(cropping) == (224, 3, mean, std, 2)
    unscaled = BitImageProcessorPil(crop_size=64, do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3)
    assert images_of(unscaled)[2:4] == ([0.5] * 3, [0.2] * 3)
    assert images_of(BitImageProcessorPil(crop_size=64, do_normalize=False))[2:4] == ([0.0] * 3, [1.0] * 3)
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_images(str(tmp_path)) is None


def test_refusals_name_option_and_checkpoint(sources, tmp_path):
    folder, _ = sources["resnet"]

    def refused(source: str | None = folder, **options) -> str:
        with pytest.raises(ValueError) as error:
            make_model(source, tmp_path, **options)
        return str(error.value)

    missing = refused(str(tmp_path / "nothing"))
    assert missing.startswith(f"--backbone {tmp_path / 'nothing'}: there is no such folder")
    clip = tmp_path / "clip"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(clip)
    assert "transformers has no backbone for 'clip_vision_model'. It has some for beit, bit," in refused(str(clip))
    assert "out_features must be a subset" in refused(backbone_features=["stage7"])
    assert "--init_from and --backbone are two checkpoints" in refused(init_from=folder)
    assert "--image_size goes with --backbone" in refused(None, image_size=32)
    assert "--architecture plain needs a --backbone" in refused(None, architecture="plain")
    assert "--add_query_decoder" in refused(architecture="plain", add_query_decoder=True)
    assert "a resnet has no stochastic depth" in refused(drop_path_rate=0.1)
    assert "leave out --backbone_features" in refused(sources["vit"][0], backbone_features=["stage1"])
    own = refused(None, config="fer-pll-tiny-ferplus-quick", init_from=folder)
    assert own.startswith(f"--init_from {folder}: our encoder cannot hold a model of the kind 'resnet'")

    run = tmp_path / "run"
    FerPllForImageClassification(tiny_config()).save_pretrained(run)
    FerPllForImageClassification(queries_on(OURS)).save_pretrained(run)
    with pytest.raises(ValueError, match=r"another network as its encoder.*Pre-training is of the ViT"):
        initialize(FerPllForPreTraining, load_config("fer-pll-tiny")[0], str(run))
    assert "need another backbone_config in config.json: depths [1, 1], not [2, 2, 2, 2]" in refused(
        None, config="fer-pll-resnet18", init_from=folder
    )


def test_damaged_and_foreign_weights_are_refused(sources, tmp_path):
    folder, _ = sources["resnet"]
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((Path(folder) / file).read_bytes())
    for architecture in ("label_queries", "plain"):

        def refusal_of(weights: dict | bytes, architecture=architecture) -> str:
            if isinstance(weights, bytes):
                (tmp_path / "model.safetensors").write_bytes(weights)
            else:
                save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
            with pytest.raises(ValueError, match=f"^--backbone {tmp_path}: ") as refused:
                make_model(str(tmp_path), tmp_path, architecture=architecture)
            return str(refused.value)

        weights = load_file(Path(folder) / "model.safetensors")
        assert "weights of another architecture" in refusal_of(
            load_file(Path(sources["vit"][0]) / "model.safetensors")
        )
        some = {name: weight for name, weight in weights.items() if "stages.1" not in name}
        assert "encoder.stages.1." in refusal_of(some)
        norms = {name: weight for name, weight in weights.items() if "normalization" not in name}
        assert "normalization" in refusal_of(norms)  # a batch norm is no norm on a feature map
        refusal_of((Path(folder) / "model.safetensors").read_bytes()[:2000])


def test_a_network_of_timm(tmp_path):
    import_timm()
    import timm

    torch.manual_seed(0)
    source = timm.create_model("mobilenetv3_small_050", num_classes=10).eval()
    settings = {
        "architecture": "mobilenetv3_small_050",
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.4] * 3, "std": [0.2] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(source.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    model, image_processor = make_model(str(tmp_path), tmp_path, backbone_features=["2", "4"])
    assert image_processor.size == {"height": 64, "width": 64} and list(image_processor.image_mean) == [0.4] * 3
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_intermediates(pixels, indices=[2, 4], intermediates_only=True)
        for one, other in zip(model.fer_pll.backbone(pixels).feature_maps, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="have no names: give numbers"):
        make_model(str(tmp_path), tmp_path, backbone_features=["blocks.1"])
    with pytest.raises(ValueError, match="a network of timm is used with the label queries only"):
        make_model(str(tmp_path), tmp_path, architecture="plain")


def test_without_torchvision_a_network_of_timm_says_what_it_needs(tmp_path):
    pytest.importorskip("timm")
    code = (
        "import json, sys; from pathlib import Path; sys.modules['torchvision'] = None\n"
        "from fer_pll.training.finetuning import FineTuningOptions; from fer_pll import FerPllTrainingArguments\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "cfg = {'input_size': [3, 64, 64], 'interpolation': 'bicubic', 'mean': [.4] * 3, 'std': [.2] * 3}\n"
        "(folder / 'config.json').write_text(json.dumps({'architecture': 'resnet10t', 'pretrained_cfg': cfg}))\n"
        "args = FerPllTrainingArguments(str(folder), use_cpu=True)\n"
        "options = FineTuningOptions(config='fer-pll-resnet18', data='', backbone=str(folder), "
        "backbone_weights='random')\n"
        "try: options.make_model(args, ['a', 'b'])\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra A network of timm needs" in done.stdout, done.stdout + done.stderr
    assert "pip install timm torchvision" in done.stdout


def test_from_the_hub_by_name(sources, tmp_path):
    folder, source = sources["resnet"]
    code = (
        "import sys, torch; from fer_pll.training.finetuning import FineTuningOptions\n"
        "from fer_pll import FerPllTrainingArguments; from safetensors.torch import save_file\n"
        "args = FerPllTrainingArguments(sys.argv[1], use_cpu=True)\n"
        "options = FineTuningOptions(config='fer-pll-resnet18', data='', backbone='someone/tiny-resnet')\n"
        "model, processor = options.make_model(args, ['a', 'b', 'c'])\n"
        "state = {name: tensor.contiguous() for name, tensor in model.fer_pll.backbone.state_dict().items()}\n"
        "save_file(state, sys.argv[1] + '/weights.safetensors'); print(processor.size.height)\n"
    )
    with FakeHub() as hub:
        files = hub.repos["someone/tiny-resnet"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        weights = files["model.safetensors"]
        hub.objects["someone/tiny-resnet"][sha256(weights).hexdigest()] = weights
        environment = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="0")
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(SIDE)
    loaded = load_file(tmp_path / "weights.safetensors")
    expected = source.resnet.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "stem", "first", "last"),
    [
        ("resnet", "embedder.embedder", "encoder.stages.0", "encoder.stages.1"),
        ("convnext", "embeddings", "encoder.stages.0", "encoder.stages.1"),
        ("swin", "swin.embeddings", "swin.encoder.layers.0", "swin.encoder.layers.1"),
        ("dinov2", "embeddings", "encoder.layer.0", "encoder.layer.1"),
        ("beit", "beit.embeddings", "beit.layers.0", "beit.layers.1"),
        ("ours", "stem", "stages.0", "stages.1"),
    ],
)
def test_depths_of_stages_and_blocks(name, stem, first, last):
    config = OURS if name == "ours" else SOURCES[name][1]
    model = FerPllForImageClassification(queries_on(config))
    found = depths(model)
    expected = {stem: 0, first: 1, last: 2}
    for module, depth in expected.items():
        of_module = {found[each] for each in found if each.startswith(f"fer_pll.backbone.{module}.")}
        assert of_module == {depth}, module
    above = [each for each in found if not each.startswith("fer_pll.backbone.")]
    assert {found[each] for each in above} == {3}
    rates = {group["lr"] for group in parameter_groups(model, 1.0, 0.1, layer_decay=0.5)}
    assert rates == {0.125, 0.25, 0.5, 1.0}


@pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
def test_depths_in_plain_classifiers(name):
    model_class, config = SOURCES[name]
    model = model_class(config)
    found = depths(model)
    assert {depth for each, depth in found.items() if "embed" in each} == {0}
    assert {depth for each, depth in found.items() if each.startswith("classifier")} == {3}
    assert set(found.values()) == {0, 1, 2, 3}


def trainer_on(tmp_path: Path, config, **settings):
    processor = FerPllImageProcessor(num_channels=3, size={"height": SIDE, "width": SIDE})
    settings = {"learning_rate": 3e-3, "num_train_epochs": 4} | settings
    return make_trainer(tmp_path, config, processor, make_dataset(32), **settings)


@pytest.mark.parametrize("plain", [False, True])
def test_a_frozen_backbone_stays_as_it_is_with_its_statistics(tmp_path, plain):
    config = SOURCES["resnet"][1]
    config = type(config).from_dict(config.to_dict() | {"id2label": dict(enumerate(CLASSES))})
    trainer = trainer_on(tmp_path, config if plain else queries_on(OURS), freeze_backbone=True)
    encoder = trainer.model.resnet if plain else trainer.model.fer_pll.backbone
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    head = trainer.model.classifier[1].weight if plain else trainer.model.classifier.weight
    head_before = head.detach().clone()
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert not torch.equal(head, head_before)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_backbone_is_trained_after_some_epochs_and_a_resumed_run_keeps_count(tmp_path):
    settings = {"unfreeze_after": 1.5, "save_strategy": "steps", "save_steps": 1, "layer_decay": 0.9}
    whole = trainer_on(tmp_path / "whole", queries_on(OURS), **settings)  # 2 steps an epoch
    first = {name: tensor.clone() for name, tensor in whole.model.fer_pll.backbone.state_dict().items()}
    whole.train()

    def changed(step: int) -> set[str]:
        weights = load_file(tmp_path / "whole" / f"checkpoint-{step}" / "model.safetensors")
        return {name for name in first if not torch.equal(first[name], weights[f"fer_pll.backbone.{name}"])}

    assert changed(3) == set()
    assert {"stem.convolution.weight", "stem.norm.running_mean"} <= changed(4)
    resumed = trainer_on(tmp_path / "resumed", queries_on(OURS), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("loss", ["rc", "pico", "crpll", "lw", "cross_entropy"])
def test_every_loss_learns_on_a_backbone(tmp_path, loss):
    trainer = trainer_on(tmp_path, queries_on(OURS), loss=loss, num_train_epochs=2)
    before = trainer.model.fer_pll.backbone.stem.convolution.weight.detach().clone()
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert np.isfinite(losses).all()
    assert not torch.equal(before, trainer.model.fer_pll.backbone.stem.convolution.weight)


def test_convolutions_train_with_the_channels_last_in_memory(tmp_path):
    """Which files and answers do not show."""
    trainer = trainer_on(tmp_path / "run", queries_on(OURS), num_train_epochs=1)
    convolutions = [module.weight for module in trainer.model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions
    trainer.train()
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    trainer.save_model()
    again = FerPllForImageClassification.from_pretrained(tmp_path / "run").eval()
    assert all(weight.is_contiguous() for weight in again.parameters())
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = trainer.model.eval()(pixels).logits
        torch.testing.assert_close(again(pixels).logits, expected, rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_or_says_that_it_does_nothing(tmp_path):
    config = queries_on(SOURCES["dinov2"][1])
    weights = []
    for folder, on in (("without", False), ("with", True)):
        trainer = trainer_on(tmp_path / folder, config, gradient_checkpointing=on, num_train_epochs=1)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="a FerPllResNetBackbone keeps all that it computed"):
        trainer_on(tmp_path, queries_on(OURS), gradient_checkpointing=True)


@pytest.mark.long
def test_every_command_on_a_backbone(sources, tmp_path, capsys):
    """From prepared rows to answers, with a network of convolutions in the place of the encoder."""
    folder, _ = sources["resnet"]
    data = DatasetDict({"train": make_dataset(48), "validation": make_dataset(16, seed=1)})
    save_dataset(data, tmp_path / "data")

    def run(*argv: object, expect: int = 0) -> str:
        capsys.readouterr()
        status = fer_pll_cli.main([str(part) for part in argv])
        said = capsys.readouterr()
        assert status == expect, said.out + said.err
        return said.out + said.err

    common = ("--data", tmp_path / "data", "--per_device_train_batch_size", 16, "--dataloader_num_workers", 0)
    common += ("--num_train_epochs", 2, "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no")
    model, plain = tmp_path / "run", tmp_path / "plain"
    run("finetune", "--backbone", folder, *common, "--output_dir", model)
    run("finetune", "--backbone", folder, "--architecture", "plain", *common, "--output_dir", plain)
    for each in (model, plain):
        assert "accuracy" in run("evaluate", each, tmp_path / "data")
        loaded = AutoModelForImageClassification.from_pretrained(each)
        expected = ResNetForImageClassification if each == plain else FerPllForImageClassification
        assert type(loaded) is expected
    card = (model / "README.md").read_text()
    assert "A network of the kind resnet (feature maps: stage2), projected to a width of 256, followed by" in card
    run("calibrate", model, tmp_path / "data", "--split", "validation", "--out", tmp_path / "calibrated")
    assert "judged by" in run("audit", model, "--out", tmp_path / "audit")
    Image.new("L", (40, 40), 128).save(tmp_path / "face.png")
    run("predict", "--model", model, "--cropped", tmp_path / "face.png", "--out", tmp_path / "answers.csv")
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert answers[[f"p_{name}" for name in CLASSES]].sum(axis=1).tolist() == pytest.approx([1.0], abs=1e-4)
    again = run("finetune", "--backbone", model, *common, "--output_dir", tmp_path / "again")
    assert "new: nothing" in again


def test_configurations_are_read_without_the_head(sources):
    config = read_config(sources["dinov2"][0])
    assert config.out_features == ["stage2"] and config.layerscale_value == 0.5
    assert config.num_labels == 2 and config._name_or_path == ""
