"""The shipped configurations load, fit together and hold the values of their source."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from fer_pll.commands import finetune, pretrain
from fer_pll.io.shipped import BACKBONE_CONFIG, CHECKPOINTS, DEFAULT_CONFIG, DEFAULT_NAME, VIT_NAME, shipped_config
from fer_pll.labels.expressions import EXPRESSIONS
from fer_pll.training.base_trainer import check_image_processor
from fer_pll.training.pretraining import pretraining_model
from train_scripts.comparisons.tables import TABLES
from train_scripts.default_checkpoint import TEACHER
from train_scripts.image_processors import folders, image_processor

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "hub_configs"
SETTINGS = ROOT / "train_scripts" / "settings"
VIT_BASE = CONFIGS / "fer-pll-vit-base-ferplus"
OBJECTIVES = ("hog", "maskfeat", "mae", "simmim", "moco")
PRETRAINING = [f"fer-pll-{size}-{objective}" for size in ("tiny", "vit-base") for objective in OBJECTIVES]
PRETRAINING.append("fer-pll-vit-base-hog-table1")
DATA_SETS = ("ferplus", "rafdb", "affectnet7", "affectnet8")
DEFAULT = "fer-pll-tiny"  # for data of one's own, with the sizes of VIT_NAME
CLASSIFIERS = [
    DEFAULT,
    *CHECKPOINTS,
    TEACHER,
    "fer-pll-tiny-ferplus-quick",
    BACKBONE_CONFIG,
    *(f"fer-pll-vit-base-{data}" for data in DATA_SETS),
]


@pytest.fixture
def settings(tmp_path):
    """`settings(folder, name)`: what a command runs with, where the command line only says where."""

    def parse(folder: Path, name: str, *options: str):
        argv = ["--config", str(folder), "--data", "unused", "--output_dir", str(tmp_path), "--use_cpu", *options]
        return {"pretrain": pretrain, "finetune": finetune}[name].make_parser().parse_settings(argv)

    return parse


def test_every_folder_is_complete():
    common = {"config.json", "preprocessor_config.json"}
    expected = {name: common | {"pretrain.yaml"} for name in PRETRAINING}
    expected |= {name: common | {"finetune.yaml"} for name in CLASSIFIERS}
    for name in (DEFAULT, VIT_NAME):
        expected[name] |= {"pretrain.yaml"}
    found = {folder.name: {path.name for path in folder.iterdir()} for folder in CONFIGS.iterdir()}
    assert found == expected


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_the_image_processor_is_made_from_the_config_and_the_crop_of_the_data_set(folder):
    written = (folder / "preprocessor_config.json").read_text()
    assert written == image_processor(folder), "run python train_scripts/image_processors.py"


def test_image_processors_are_made_for_every_config_and_have_four_contents():
    own = ROOT / "train_scripts" / "configs"
    assert set(folders()) == {*CONFIGS.iterdir(), *own.iterdir()}
    assert len({image_processor(folder) for folder in folders()}) == 4


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_recipe_of_a_checkpoint_in_the_package_is_the_config_of_its_name(checkpoint):
    both = (CHECKPOINTS[checkpoint], CONFIGS / checkpoint)
    packaged, recipe = (AutoConfig.from_pretrained(folder).to_dict() for folder in both)
    for network in (packaged.get("backbone_config"), recipe.get("backbone_config")):
        if network is not None:
            del network["dtype"]
    of_training = {"calibration_temperature", "drop_path_rate", "dtype", "problem_type", "_name_or_path"}
    for name in set(packaged) - of_training:
        assert packaged[name] == recipe[name], name
    packaged, recipe = (AutoImageProcessor.from_pretrained(folder).to_dict() for folder in both)
    assert packaged == recipe


def test_the_default_takes_the_weights_of_the_checkpoints_in_the_package(settings):
    """Fine-tuning the best of them, whatever network it has; pre-training the ViT, which alone can be pre-trained."""
    assert shipped_config(DEFAULT_CONFIG) == CONFIGS / DEFAULT
    default, recipe = (json.loads((CONFIGS / name / "config.json").read_text()) for name in (DEFAULT, VIT_NAME))
    assert default == recipe
    assert settings(CONFIGS / DEFAULT, "finetune")[0].init_from == DEFAULT_NAME
    assert settings(CONFIGS / DEFAULT, "pretrain")[0].init_from == VIT_NAME


@pytest.mark.parametrize("name", [*PRETRAINING, DEFAULT, VIT_NAME])
def test_pretraining_config(name, settings):
    """Every key of the YAML is a setting, and nothing in it contradicts the model's config."""
    config = AutoConfig.from_pretrained(CONFIGS / name)
    _, args = settings(CONFIGS / name, "pretrain")
    assert args.learning_rate > 0 and args.mask_ratio in (None, config.mask_ratio)
    with torch.device("meta"):
        model = pretraining_model(config, args)
    check_image_processor(model, AutoImageProcessor.from_pretrained(CONFIGS / name))
    if name not in (DEFAULT, VIT_NAME):  # whose config.json is that of the classifier
        assert config.architectures == (["FerPllModel"] if name.endswith("moco") else [type(model).__name__])


@pytest.mark.parametrize(
    "name", ["resnet18-queries", "small-resnet", "convnext", "convnext-queries", "tiny-conv-stem"]
)
def test_configs_of_comparisons(name, settings):
    """They are trained alike, and their networks are about as large as RESULTS.md says."""
    folder = ROOT / "train_scripts" / "configs" / name
    config = AutoConfig.from_pretrained(folder)
    _, args = settings(folder, "finetune")
    _, of_resnet = settings(folder.parent / "resnet18", "finetune")
    if name != "tiny-conv-stem":
        assert args.to_dict() | {"logging_dir": None} == of_resnet.to_dict() | {"logging_dir": None}
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    check_image_processor(model, AutoImageProcessor.from_pretrained(folder))
    if name in ("small-resnet", "convnext", "convnext-queries"):
        network = model.base_model
        assert 1.4e6 < getattr(network, "backbone", network).num_parameters() < 1.7e6
    with torch.no_grad():
        model = AutoModelForImageClassification.from_config(config).eval()
        assert model(torch.zeros(1, 1, 48, 48)).logits.shape == (1, 8)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_config(name, settings):
    config = AutoConfig.from_pretrained(CONFIGS / name)
    classes = EXPRESSIONS[:7] if name.endswith(("rafdb", "affectnet7")) else EXPRESSIONS  # in FER+'s order
    assert config.id2label == dict(enumerate(classes))
    assert config.label2id == {name: i for i, name in enumerate(classes)}
    _, args = settings(CONFIGS / name, "finetune")
    assert args.learning_rate > 0
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    image_processor = AutoImageProcessor.from_pretrained(CONFIGS / name)
    check_image_processor(model, image_processor)
    assert model.classifier.out_features == len(classes)
    if image_processor.face_crop is None:
        assert "fer-pll measure-crop" in (CONFIGS / name / "finetune.yaml").read_text()  # says how to find it
    else:
        assert image_processor.face_crop["name"] == "FER+"


@pytest.mark.parametrize("size", ["tiny", "vit-base"])
def test_the_rivals_have_the_same_encoder(size):
    configs = [AutoConfig.from_pretrained(CONFIGS / name) for name in PRETRAINING if f"-{size}-" in name]
    name = {"tiny": "fer-pll-tiny-ferplus-quick", "vit-base": "fer-pll-vit-base-ferplus"}[size]
    configs.append(AutoConfig.from_pretrained(CONFIGS / name))
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
    assert tiny.num_hog_values == 36  # the same for gray


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if "vit-base" in name])
def test_vit_base_is_vit_b_16(name):
    config = AutoConfig.from_pretrained(CONFIGS / name)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.image_size, config.patch_size, config.intermediate_size) == (224, 16, 3072)
    assert config.decoder_num_hidden_layers == 2  # section 4.2.1
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


@pytest.mark.parametrize(
    ("name", "epochs"), [("rafdb", 100), ("ferplus", 100), ("affectnet7", 25), ("affectnet8", 25)]
)
def test_vit_base_fine_tunes_as_in_table_3(settings, name, epochs):
    script, args = settings(CONFIGS / f"fer-pll-vit-base-{name}", "finetune")
    assert 2 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 320  # on its two GPUs
    assert args.learning_rate == 1e-4
    assert args.num_train_epochs == epochs
    assert args.weight_decay == 0.05
    assert args.optim.startswith("adamw")
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.95)
    # Section 4.5: two candidates, from the votes where there are any.
    assert script.max_candidates == 2 and script.set_size == (None if name == "ferplus" else 2)
    assert args.confidence_init == "uniform"  # section 3.3.2
    assert (args.loss, args.revision) == ("pll", "margin")  # Eq. 2, 4 and 5
    assert args.uniform_temperature == 0.001  # Table 8
    # MaskFeat's fine-tuning of ViT-B
    assert (args.layer_decay, args.drop_path_rate) == (0.65, 0.1)
    assert args.get_warmup_steps(epochs * 80) == epochs * 16  # 20 of 100 epochs


# Row of the paper's table: loss, query decoder, uniformity loss, revision.
ROWS = {
    "cross-entropy": ("cross_entropy", False, False, "none"),
    "pll": ("pll", False, False, "none"),
    "decoder": ("pll", True, False, "none"),
    "decoder-uniform": ("pll", True, True, "none"),
    "decoder-revision": ("pll", True, False, "margin"),
    "full": ("pll", True, True, "margin"),
}


def test_every_file_of_settings_is_known_and_used():
    found = {path.stem for path in SETTINGS.glob("*.yaml")}
    assert set(ROWS) <= found
    assert found == {row.run.settings for table in TABLES.values() for row in table.rows}


@pytest.mark.parametrize("row", ROWS)
def test_ablations_change_what_their_row_says_and_nothing_else(settings, row):
    folder = CONFIGS / "fer-pll-vit-base-rafdb"
    script, args = settings(folder, "finetune", "--settings", str(SETTINGS / f"{row}.yaml"))
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
