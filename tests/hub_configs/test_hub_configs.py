"""The shipped configurations load, fit together and hold the values of their source."""

import runpy
from dataclasses import fields
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
EXPERIMENTS = ROOT / "train_scripts" / "experiments"
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

    def parse(folder: Path, name: str, *options: str):
        classes = (script_classes[name], SETTINGS[name][1])
        argv = ["--config", str(folder), "--data", "unused", "--output_dir", str(tmp_path), "--use_cpu", *options]
        return parse_settings(classes, f"{name}.yaml", "", argv)

    return parse


def yaml_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def test_every_folder_is_complete():
    assert [folder.name for folder in FOLDERS] == [
        "fer-pll-tiny-ferplus",
        "fer-pll-vit-base-affectnet7",
        "fer-pll-vit-base-affectnet8",
        "fer-pll-vit-base-ferplus",
        "fer-pll-vit-base-rafdb",
    ]
    for folder in (ROOT / "hub_configs").iterdir():
        files = {path.name for path in folder.iterdir()}
        settings = {f"{name}.yaml" for name in SETTINGS} & files
        assert settings and files == {"config.json", "preprocessor_config.json"} | settings


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
class TestEveryConfig:
    def test_model_and_image_processor_fit(self, folder):
        config = AutoConfig.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder)
        with torch.device("meta"):
            classifier = AutoModelForImageClassification.from_config(config)
            pretraining = AutoModelForPreTraining.from_config(config)
        assert classifier.classifier.out_features == config.num_labels
        for model in (classifier, pretraining):
            check_image_processor(model, image_processor)

    def test_classes_are_those_of_ferplus_in_its_order(self, folder):
        config = AutoConfig.from_pretrained(folder)
        classes = EXPRESSIONS[:7] if folder.name.endswith(("rafdb", "affectnet7")) else EXPRESSIONS
        assert config.id2label == dict(enumerate(classes))
        assert config.label2id == {name: i for i, name in enumerate(classes)}

    def test_every_key_is_a_setting_of_the_script(self, folder, settings):
        for name in yaml_names(folder):
            _, args = settings(folder, name)
            assert args.learning_rate > 0
            mask_ratio = getattr(args, "mask_ratio", None)
            assert mask_ratio in (None, AutoConfig.from_pretrained(folder).mask_ratio)

    def test_a_crop_is_named_or_said_to_be_unknown(self, folder):
        crop = AutoImageProcessor.from_pretrained(folder).face_crop
        if crop is None:
            assert "measure_crop.py" in (folder / "finetune.yaml").read_text()
        else:
            assert crop["name"] == "FER+"


def test_hog_values_per_patch():
    vit_base, tiny = (AutoConfig.from_pretrained(ROOT / "hub_configs" / name) for name in (VIT_BASE, FOLDERS[0]))
    assert vit_base.num_hog_values == 108  # section 3.2: 2 x 2 cells x 9 orientations x RGB
    assert tiny.num_hog_values == 36  # the same for grey


VIT_BASE_FOLDERS = [folder for folder in FOLDERS if "vit-base" in folder.name]


@pytest.mark.parametrize("folder", VIT_BASE_FOLDERS, ids=lambda folder: folder.name)
def test_vit_base_is_vit_b_16(folder):
    config = AutoConfig.from_pretrained(folder)
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


@pytest.mark.parametrize(
    ("name", "epochs"), [("rafdb", 100), ("ferplus", 100), ("affectnet7", 25), ("affectnet8", 25)]
)
def test_vit_base_fine_tunes_as_in_table_3(settings, name, epochs):
    script, args = settings(ROOT / "hub_configs" / f"fer-pll-vit-base-{name}", "finetune")
    assert 2 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 320  # on its two GPUs
    assert args.learning_rate == 1e-4
    assert args.num_train_epochs == epochs
    assert args.weight_decay == 0.05
    assert args.optim.startswith("adamw")
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.95)
    # Section 4.5: two candidates, from the votes where there are any.
    assert script.max_candidates == 2 and script.set_size == (None if name == "ferplus" else 2)
    assert args.confidence_init == "uniform"  # section 3.3.2
    assert (args.loss, args.revision) == ("pll", "paper")  # Eq. 2, 4 and 5
    assert args.uniform_temperature == 0.001  # Table 8
    # MaskFeat's fine-tuning of ViT-B
    assert (args.layer_decay, args.drop_path_rate) == (0.65, 0.1)
    assert args.get_warmup_steps(epochs * 80) == epochs * 16  # 20 of 100 epochs


# Row of the paper's table: loss, query decoder, uniformity loss, revision.
ROWS = {
    "table5/softmax": ("softmax", False, False, "none"),
    "table5/pll": ("pll", False, False, "none"),
    "table7/decoder": ("pll", True, False, "none"),
    "table7/decoder-uniform": ("pll", True, True, "none"),
    "table7/decoder-revision": ("pll", True, False, "paper"),
    "table7/all": ("pll", True, True, "paper"),
}


def test_every_ablation_is_known():
    found = {path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in EXPERIMENTS.glob("table[57]/*")}
    assert found == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_ablations_change_what_their_row_says_and_nothing_else(settings, row):
    folder = ROOT / "hub_configs" / "fer-pll-vit-base-rafdb"
    script, args = settings(folder, "finetune", "--settings", str(EXPERIMENTS / f"{row}.yaml"))
    decoder = script.add_query_decoder
    assert (args.loss, decoder, args.uniform_weight > 0, args.revision) == ROWS[row]
    changed = {"add_query_decoder", "settings", "loss", "revision", "uniform_weight"}
    for before, after in zip(settings(folder, "finetune"), (script, args), strict=True):
        names = {field.name for field in fields(after)}
        assert {name for name in names if getattr(before, name) != getattr(after, name)} <= changed
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, add_query_decoder=decoder)
        model = AutoModelForImageClassification.from_config(config)
    assert (model.fer_pll.query_decoder is not None) == decoder
