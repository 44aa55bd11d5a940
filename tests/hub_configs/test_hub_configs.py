"""The shipped configurations load, fit together and hold the values of their source."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining

from fer_pll import FerPllTrainingArguments
from fer_pll.data import EXPRESSIONS
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.images import check_image_processor
from fer_pll.training.settings import parse_settings

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("hub_configs/*/config.json"))
VIT_BASE = ROOT / "hub_configs" / "fer-pll-vit-base-ferplus"
SETTINGS = {
    "pretrain": ("PreTrainingScript", FerPllPreTrainingArguments),
    "finetune": ("ClassificationScript", FerPllTrainingArguments),
}


@pytest.fixture(scope="module")
def script_classes():
    """The scripts' own settings, beside those of the trainers."""
    return {
        name: runpy.run_path(str(ROOT / "train_scripts" / f"{name}.py"))[class_name]
        for name, (class_name, _) in SETTINGS.items()
    }


@pytest.fixture
def settings(script_classes, tmp_path):
    """`settings(folder, name)`: what a script runs with, where the command line only says where."""

    def parse(folder: Path, name: str):
        classes = (script_classes[name], SETTINGS[name][1])
        argv = ["--config", str(folder), "--data", "unused", "--output_dir", str(tmp_path), "--use_cpu"]
        return parse_settings(classes, f"{name}.yaml", "", argv)

    return parse


def test_every_folder_is_complete():
    files = {"config.json", "preprocessor_config.json", "pretrain.yaml", "finetune.yaml"}
    assert [folder.name for folder in FOLDERS] == ["fer-pll-tiny-ferplus", "fer-pll-vit-base-ferplus"]
    for folder in (ROOT / "hub_configs").iterdir():
        assert {path.name for path in folder.iterdir()} == files


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
class TestEveryConfig:
    def test_model_and_image_processor_fit(self, folder):
        config = AutoConfig.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder)
        with torch.device("meta"):
            classifier = AutoModelForImageClassification.from_config(config)
            pretraining = AutoModelForPreTraining.from_config(config)
        assert classifier.classifier.out_features == len(EXPRESSIONS)
        for model in (classifier, pretraining):
            check_image_processor(model, image_processor)

    def test_classes_are_those_of_ferplus_in_its_order(self, folder):
        config = AutoConfig.from_pretrained(folder)
        assert config.id2label == dict(enumerate(EXPRESSIONS))
        assert config.label2id == {name: i for i, name in enumerate(EXPRESSIONS)}

    @pytest.mark.parametrize("name", SETTINGS)
    def test_every_key_is_a_setting_of_the_script(self, folder, name, settings):
        _, args = settings(folder, name)
        assert args.learning_rate > 0

    def test_settings_do_not_contradict_the_config(self, folder, settings):
        assert settings(folder, "pretrain")[1].mask_ratio in (None, AutoConfig.from_pretrained(folder).mask_ratio)


def test_hog_values_per_patch():
    vit_base, tiny = (AutoConfig.from_pretrained(ROOT / "hub_configs" / name) for name in (VIT_BASE, FOLDERS[0]))
    assert vit_base.num_hog_values == 108  # section 3.2: 2 x 2 cells x 9 orientations x RGB
    assert tiny.num_hog_values == 36  # the same for grey


def test_vit_base_is_vit_b_16():
    config = AutoConfig.from_pretrained(VIT_BASE)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.image_size, config.patch_size, config.intermediate_size) == (224, 16, 3072)
    assert config.decoder_num_hidden_layers == 2  # section 4.2.1
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    encoder = sum(parameter.numel() for parameter in model.fer_pll.layers.parameters())
    assert encoder == 12 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)


def test_vit_base_pretrains_as_in_section_4_2(settings):
    _, args = settings(VIT_BASE, "pretrain")
    assert 4 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 192  # on its four GPUs
    assert args.learning_rate == 2e-4
    assert args.num_train_epochs == 600
    assert args.mask_ratio == 0.4
    assert args.weight_decay == 0.05
    assert args.optim.startswith("adamw")
    assert args.get_warmup_steps(600 * 150) == pytest.approx(40 * 150, abs=5)
    assert (args.crop_scale, args.flip, args.light, args.rotation, args.erase) == (0.5, True, 0, 0, 0)


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
