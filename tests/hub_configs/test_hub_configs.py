"""The shipped configurations load, fit together and hold the values of their source."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from fer_pll import FerPllTrainingArguments
from fer_pll.data import EXPRESSIONS
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.images import check_image_processor
from fer_pll.training.pretraining import pretraining_model
from fer_pll.training.settings import parse_settings

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "hub_configs"
VIT_BASE = CONFIGS / "fer-pll-vit-base-ferplus"
SCRIPTS = {
    "pretrain": ("PreTrainingScript", FerPllPreTrainingArguments),
    "finetune": ("ClassificationScript", FerPllTrainingArguments),
}
OBJECTIVES = ("hog", "maskfeat", "mae", "simmim", "moco")
PRETRAINING = [f"fer-pll-{size}-{objective}" for size in ("tiny", "vit-base") for objective in OBJECTIVES]
PRETRAINING.append("fer-pll-vit-base-hog-table1")
CLASSIFIERS = ["fer-pll-tiny-ferplus", "fer-pll-vit-base-ferplus"]


@pytest.fixture(scope="module")
def script_classes():
    """The scripts' own settings, beside those of the trainers."""
    return {
        name: runpy.run_path(str(ROOT / "train_scripts" / f"{name}.py"))[class_name]
        for name, (class_name, _) in SCRIPTS.items()
    }


@pytest.fixture
def settings(script_classes, tmp_path):
    """`settings(folder, name)`: what a script runs with, where the command line only says where."""

    def parse(folder: Path, name: str):
        classes = (script_classes[name], SCRIPTS[name][1])
        argv = ["--config", str(folder), "--data", "unused", "--output_dir", str(tmp_path), "--use_cpu"]
        return parse_settings(classes, f"{name}.yaml", "", argv)

    return parse


def test_every_folder_is_complete():
    common = {"config.json", "preprocessor_config.json"}
    expected = {name: common | {"pretrain.yaml"} for name in PRETRAINING}
    expected |= {name: common | {"finetune.yaml"} for name in CLASSIFIERS}
    found = {folder.name: {path.name for path in folder.iterdir()} for folder in CONFIGS.iterdir()}
    assert found == expected


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_config(name, settings):
    """Every key of the YAML is a setting, and nothing in it contradicts the model's config."""
    config = AutoConfig.from_pretrained(CONFIGS / name)
    _, args = settings(CONFIGS / name, "pretrain")
    assert args.learning_rate > 0 and args.mask_ratio in (None, config.mask_ratio)
    with torch.device("meta"):
        model = pretraining_model(config, args)
    check_image_processor(model, AutoImageProcessor.from_pretrained(CONFIGS / name))
    assert config.architectures == (["FerPllModel"] if name.endswith("moco") else [type(model).__name__])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_config(name, settings):
    config = AutoConfig.from_pretrained(CONFIGS / name)
    assert config.id2label == dict(enumerate(EXPRESSIONS))  # in FER+'s order
    assert config.label2id == {name: i for i, name in enumerate(EXPRESSIONS)}
    _, args = settings(CONFIGS / name, "finetune")
    assert args.learning_rate > 0
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    check_image_processor(model, AutoImageProcessor.from_pretrained(CONFIGS / name))
    assert model.classifier.out_features == len(EXPRESSIONS)


@pytest.mark.parametrize("size", ["tiny", "vit-base"])
def test_the_rivals_have_the_same_encoder(size):
    configs = [AutoConfig.from_pretrained(CONFIGS / name) for name in PRETRAINING if f"-{size}-" in name]
    configs.append(AutoConfig.from_pretrained(CONFIGS / f"fer-pll-{size}-ferplus"))
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    for name in (*sizes, "num_channels", "image_mean", "image_std", "position_embedding_type"):
        assert len({str(getattr(config, name)) for config in configs}) == 1, name


@pytest.mark.parametrize(
    ("objective", "switches"),
    [
        ("hog", ("hog", "visible", "l2", "random", "central")),
        ("hog-table1", ("hog", "visible", "l2", "random", "central")),
        ("maskfeat", ("hog", "token", "l2", "blocks", "sobel")),
        ("mae", ("normalized_pixels", "visible", "l2", "random", "central")),
        ("simmim", ("pixels", "token", "l1", "random", "central")),
    ],
)
def test_objectives(objective, switches):
    for size in ("tiny", "vit-base"):
        if f"fer-pll-{size}-{objective}" in PRETRAINING:
            config = AutoConfig.from_pretrained(CONFIGS / f"fer-pll-{size}-{objective}")
            found = (config.pretraining_target, config.mask_style, config.pretraining_loss, config.mask_shape)
            assert (*found, config.hog_gradient) == switches


def test_hog_values_per_patch():
    vit_base, tiny = (AutoConfig.from_pretrained(CONFIGS / f"fer-pll-{size}-hog") for size in ("vit-base", "tiny"))
    assert vit_base.num_hog_values == 108  # section 3.2: 2 x 2 cells x 9 orientations x RGB
    assert tiny.num_hog_values == 36  # the same for grey


def test_vit_base_is_vit_b_16():
    config = AutoConfig.from_pretrained(VIT_BASE)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.image_size, config.patch_size, config.intermediate_size) == (224, 16, 3072)
    assert AutoConfig.from_pretrained(CONFIGS / "fer-pll-vit-base-hog").decoder_num_hidden_layers == 2  # section 4.2.1
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    encoder = sum(parameter.numel() for parameter in model.fer_pll.layers.parameters())
    assert encoder == 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)


def test_vit_base_pretrains_as_in_section_4_2(settings):
    _, args = settings(CONFIGS / "fer-pll-vit-base-hog", "pretrain")
    assert 4 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 192  # on its four GPUs
    assert args.learning_rate == 2e-4
    assert args.num_train_epochs == 600
    assert args.mask_ratio == 0.4
    assert args.weight_decay == 0.05
    assert args.optim.startswith("adamw")
    assert args.get_warmup_steps(600 * 150) == pytest.approx(40 * 150, abs=5)
    assert (args.crop_scale, args.flip, args.light, args.rotation, args.erase) == (0.5, True, 0, 0, 0)


@pytest.mark.parametrize(
    ("objective", "batch", "base_rate", "rate_for", "warmup", "decay", "ratio", "epochs", "betas"),
    [
        ("hog-table1", 1024, 2.5e-5, 256, 40, 0.05, 0.85, 600, (0.9, 0.999)),
        ("maskfeat", 1024, 2.5e-5, 256, 40, 0.05, 0.85, 600, (0.9, 0.999)),
        ("mae", 1024, 1.5e-4, 256, 40, 0.05, 0.85, 600, (0.9, 0.95)),
        ("simmim", 1024, 1.5e-4, 512, 40, 0.05, 0.75, 800, (0.9, 0.95)),
        ("moco", 256, 0.03, 256, 0, 1e-4, None, 200, None),
    ],
)
def test_rivals_pretrain_as_in_tables_1_and_2(
    objective, batch, base_rate, rate_for, warmup, decay, ratio, epochs, betas, settings
):
    _, args = settings(CONFIGS / f"fer-pll-vit-base-{objective}", "pretrain")
    assert 4 * args.per_device_train_batch_size * args.gradient_accumulation_steps == batch  # on four GPUs
    assert args.learning_rate == pytest.approx(base_rate * batch / rate_for)
    assert args.get_warmup_steps(epochs * 100) == pytest.approx(warmup * 100, abs=5)
    assert (args.weight_decay, args.num_train_epochs, args.mask_ratio) == (decay, epochs, ratio)
    if betas is None:
        assert (args.objective, args.optim, args.optim_args) == ("moco", "sgd", "momentum=0.9")
    else:
        assert (args.objective, args.adam_beta1, args.adam_beta2) == ("masked", *betas)
        assert args.optim.startswith("adamw")


def test_vit_base_fine_tunes_as_in_table_3(settings):
    script, args = settings(VIT_BASE, "finetune")
    assert 2 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 320  # on its two GPUs
    assert args.learning_rate == 1e-4
    assert args.num_train_epochs == 100
    assert args.weight_decay == 0.05
    assert args.optim.startswith("adamw")
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.95)
    assert script.max_candidates == 2  # section 4.5
    assert args.confidence_init == "uniform"  # section 3.3.2
    assert args.uniform_temperature == 0.001  # Table 8
    # MaskFeat's fine-tuning of ViT-B
    assert (args.layer_decay, args.drop_path_rate) == (0.65, 0.1)
    assert args.get_warmup_steps(100 * 80) == 20 * 80
