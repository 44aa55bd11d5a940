"""Weights of transformers' own models, random but not at their initial values, in ours."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    set_seed,
)

from fer_pll import (
    FerPllConfig,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllImageProcessor,
    FerPllTrainer,
    FerPllTrainingArguments,
)
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.initialization import initialize
from fer_pll.training.pretraining import pretraining_model
from tiny import CLASSES, tiny_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 8}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save_source(model: PreTrainedModel, folder: Path, statistics: dict | None) -> str:
    """A checkpoint as on the Hub, in which no weight has a value that a new model might have as well."""
    set_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not (isinstance(model, ViTMAEForPreTraining) and "pos" in name):  # MAE's positions are what they are
                parameter.copy_(0.15 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    if statistics is not None:
        size = {"height": model.config.image_size, "width": model.config.image_size}
        ViTImageProcessorPil(size=size, do_convert_rgb=True, **statistics).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """Folders: a classifier, a bare model with other settings (as DINO is stored), MAE with its decoder."""
    folder = tmp_path_factory.mktemp("sources")
    unusual = {"layer_norm_eps": 1e-3, "hidden_act": "quick_gelu", "qkv_bias": False}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    models = {
        "ViT": (ViTForImageClassification(ViTConfig(image_size=32, **SIZES)), HALF),
        "DINO": (ViTModel(ViTConfig(image_size=32, **SIZES, **unusual)), IMAGENET),
        "MAE": (ViTMAEForPreTraining(ViTMAEConfig(image_size=32, **SIZES, **decoder)), IMAGENET),
    }
    return {name: save_source(*entry[:1], folder / name, entry[1]) for name, entry in models.items()}


def load_native(folder: str) -> PreTrainedModel:
    """The source as its own class reads it, with every patch visible."""
    if folder.endswith("MAE"):
        return ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    return ViTModel.from_pretrained(folder).eval()


def make_config(image_size: int = 32, num_channels: int = 3, **settings) -> FerPllConfig:
    sizes = SIZES | {"image_size": image_size, "num_channels": num_channels, "hog_cell_size": 8, "image_std": None}
    return tiny_config(**sizes | settings)


def make_processor(config: FerPllConfig) -> FerPllImageProcessor:
    size = {"height": config.image_size, "width": config.image_size}
    return FerPllImageProcessor(
        num_channels=config.num_channels, size=size, image_mean=config.image_mean, image_std=config.image_std
    )


def make_faces(image_size: int, num_channels: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shape = (3, image_size, image_size, 3) if num_channels == 3 else (3, image_size, image_size)
    return [Image.fromarray(pixels) for pixels in rng.integers(0, 256, shape, dtype=np.uint8)]


@torch.no_grad()
def states_of_source(folder: str, config: FerPllConfig) -> list[torch.Tensor]:
    """What the source makes of the images: the states after each block and after the last norm."""
    processor = AutoImageProcessor.from_pretrained(folder, do_resize=False)
    pixels = processor(make_faces(config.image_size, config.num_channels), return_tensors="pt").pixel_values
    model = load_native(folder)
    # MAE shuffles the patches even if it hides none.
    noise = {"noise": torch.arange(config.grid_size**2.0).expand(3, -1)} if folder.endswith("MAE") else {}
    outputs = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True, **noise)
    return [*outputs.hidden_states, outputs.last_hidden_state]


@torch.no_grad()
def states_of(model: PreTrainedModel) -> list[torch.Tensor]:
    config = model.config
    pixels = make_processor(config)(make_faces(config.image_size, config.num_channels), return_tensors="pt")
    outputs = model.eval().base_model(**pixels, output_hidden_states=True)
    return [*outputs.hidden_states, outputs.last_hidden_state]


def assert_equal_states(model: PreTrainedModel, expected: list[torch.Tensor]) -> None:
    states = states_of(model)
    assert len(states) == len(expected) == 4
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["ViT", "DINO", "MAE"])
@pytest.mark.parametrize("image_size", [32, 48])
@pytest.mark.parametrize("num_channels", [3, 1])
def test_hidden_states_are_those_of_the_source(sources, tmp_path, source, image_size, num_channels):
    """Other positions, other normalization, gray images: the same states, also after saving and loading."""
    statistics = {"image_mean": [0.3, 0.5, 0.6][:num_channels], "image_std": [0.25, 0.3, 0.2][:num_channels]}
    config = make_config(image_size, num_channels, **statistics)
    model, _ = initialize(FerPllForImageClassification, config, sources[source])
    expected = states_of_source(sources[source], config)
    assert_equal_states(model, expected)
    assert model.config.position_embedding_type == ("sincos" if source == "MAE" else "learned")
    model.save_pretrained(tmp_path)
    assert_equal_states(FerPllForImageClassification.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize("source", ["ViT", "MAE"])
@pytest.mark.parametrize("mask_style", ["visible", "token"])
def test_pre_training_starts_from_the_source_too(sources, source, mask_style):
    config = make_config(mask_style=mask_style)
    model, _ = initialize(FerPllForPreTraining, config, sources[source])
    assert_equal_states(model, states_of_source(sources[source], config))
    assert model(torch.randn(2, 3, 32, 32)).loss.isfinite()


def test_equal_statistics_leave_every_bit_of_the_weights(sources):
    model, _ = initialize(FerPllForPreTraining, make_config(**HALF), sources["ViT"])
    ours, theirs = model.fer_pll.state_dict(), load_native(sources["ViT"]).state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_positions_that_the_source_had_fixed_may_be_trained(sources):
    config = make_config(position_embedding_type="learned", **IMAGENET)
    model, initialization = initialize(FerPllForPreTraining, config, sources["MAE"])
    assert_equal_states(model, states_of_source(sources["MAE"], config))
    assert model.fer_pll.embeddings.position_embeddings.requires_grad
    assert not any("position" in change for change in initialization.changes)


def test_the_report_says_what_was_taken_changed_and_is_new(sources):
    _, initialization = initialize(FerPllForImageClassification, make_config(48, 1), sources["DINO"])
    assert str(initialization).splitlines() == [
        f"Weights from {sources['DINO']} (vit)",
        # without biases of queries, keys and values
        "  taken: fer_pll.embeddings (4), fer_pll.layers (26), fer_pll.layernorm (2); 18,176 values",
        "  taken with them: hidden_act quick_gelu (config.json has gelu)",
        "  taken with them: layer_norm_eps 0.001 (config.json has 1e-06)",
        "  taken with them: qkv_bias False (config.json has True)",
        "  taken with them: position_embedding_type learned (config.json has sincos)",
        "  interpolated: positions of 4 x 4 patches to 6 x 6",
        "  fitted, exactly: patch projection of pixels with mean [0.485, 0.456, 0.406] and deviation "
        "[0.229, 0.224, 0.225] to [0.5] and [0.5]",
        "  new: fer_pll.query_decoder (29), classifier (2)",
    ]


def test_loading_says_nothing_else(sources, capfd):
    initialize(FerPllForImageClassification, make_config(), sources["ViT"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", ["DINO", "MAE"])
def test_a_resumed_training_ends_like_the_whole_one(sources, tmp_path, toy_train, source):
    """Resuming loads weights by name and passes over those that it does not know."""

    def trainer(init_from: str | None) -> FerPllTrainer:
        set_seed(0)
        config = make_config(16, 1)
        model, _ = initialize(FerPllForImageClassification, config, init_from)
        args = FerPllTrainingArguments(
            str(tmp_path), num_train_epochs=2, save_strategy="epoch", learning_rate=1e-3, disable_tqdm=True
        )
        return FerPllTrainer(model, args, processing_class=make_processor(config), train_dataset=toy_train)

    whole = trainer(sources[source])
    started = {name: weight.clone() for name, weight in whole.model.state_dict().items()}
    whole.train()
    resumed = trainer(sources[source])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    kept = {name for name, weight in started.items() if torch.equal(weight, whole.model.state_dict()[name])}
    assert kept == ({"fer_pll.embeddings.position_embeddings"} if source == "MAE" else set())
    if source == "DINO":  # its settings came from its own configuration
        with pytest.raises(
            ValueError, match=r"layer_norm_eps was 0.001 and is 1e-06.*Give the --config and --init_from"
        ):
            trainer(None).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> dict[str, str]:
    """Our own checkpoints of both kinds, not at their initial values."""
    folder = tmp_path_factory.mktemp("ours")
    config = make_config(**HALF)
    models = {"pre-training": FerPllForPreTraining(config), "classifier": FerPllForImageClassification(config)}
    return {name: save_source(model, folder / name, None) for name, model in models.items()}


def taken_and_new(model_class: type[PreTrainedModel], config: FerPllConfig, folder: str) -> tuple[set, set]:
    """Modules that came from our own checkpoint, after checking that they did, and those that did not."""
    model, initialization = initialize(model_class, config, folder)
    theirs = load_file(Path(folder) / "model.safetensors")
    for name in initialization.taken:
        if "position" not in name and "projection" not in name:
            assert torch.equal(model.state_dict()[name], theirs[name]), name
    return tuple({name.rsplit(".", 1)[0] for name in names} for names in (initialization.taken, initialization.new))


def test_our_own_checkpoints_give_all_that_both_have(ours):
    taken, new = taken_and_new(FerPllForPreTraining, make_config(**HALF), ours["pre-training"])
    assert "decoder.layers.1.mlp.fc2" in taken and not new
    taken, new = taken_and_new(FerPllForImageClassification, make_config(**HALF), ours["classifier"])
    assert {"classifier", "fer_pll.query_decoder"} <= taken and not new
    taken, new = taken_and_new(FerPllForImageClassification, make_config(**HALF), ours["pre-training"])
    assert all("query_decoder" in name or name == "classifier" for name in new) and "classifier" in new
    taken, new = taken_and_new(FerPllForPreTraining, make_config(**HALF, mask_style="token"), ours["pre-training"])
    assert new == {"fer_pll.embeddings", "head"}  # the mask token

    other_classes = {"id2label": {0: "calm", 1: "tense"}, "label2id": {"calm": 0, "tense": 1}}
    taken, new = taken_and_new(FerPllForImageClassification, make_config(**HALF, **other_classes), ours["classifier"])
    assert new == {"fer_pll.query_decoder", "classifier"} and "fer_pll.query_decoder.layernorm" in taken
    reordered = {
        "id2label": dict(enumerate(CLASSES[::-1])),
        "label2id": {name: i for i, name in enumerate(CLASSES[::-1])},
    }
    model, initialization = initialize(
        FerPllForImageClassification, make_config(**HALF, **reordered), ours["classifier"]
    )
    theirs = load_file(Path(ours["classifier"]) / "model.safetensors")
    assert not initialization.new
    for name in ("classifier.weight", "classifier.bias", "fer_pll.query_decoder.label_queries"):
        assert torch.equal(model.state_dict()[name], theirs[name].flip(0)), name
    assert "classes in another order: the rows of" in str(initialization)
    small = {"decoder_hidden_size": 32, "hog_cell_size": 4}
    assert (
        "decoder.embed" in taken_and_new(FerPllForPreTraining, make_config(**HALF, **small), ours["pre-training"])[1]
    )


@torch.no_grad()
@pytest.mark.parametrize("num_channels", [3, 1])
def test_our_own_checkpoint_at_another_size(ours, num_channels):
    source = FerPllForPreTraining.from_pretrained(ours["pre-training"]).fer_pll
    config = make_config(48, num_channels, image_mean=[0.4] * num_channels)
    model, _ = initialize(FerPllForPreTraining, config, ours["pre-training"])
    processor = FerPllImageProcessor(size={"height": 48, "width": 48}, **HALF)
    pixels = processor(make_faces(48, num_channels), return_tensors="pt").pixel_values
    outputs = source(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    assert_equal_states(model, [*outputs.hidden_states, outputs.last_hidden_state])


@torch.no_grad()
def test_momentum_contrast_begins_with_two_equal_encoders(ours, tmp_path):
    args = FerPllPreTrainingArguments(str(tmp_path), objective="moco", queue_size=8, use_cpu=True)
    build = partial(pretraining_model, args=args)
    model, _ = initialize(build, make_config(**HALF), ours["pre-training"])
    model.start_alike()
    source = FerPllForPreTraining.from_pretrained(ours["pre-training"])
    for encoder in (model.fer_pll, model.key_encoder):
        assert all(
            torch.equal(weight, source.fer_pll.state_dict()[name]) for name, weight in encoder.state_dict().items()
        )
    assert not any(parameter.requires_grad for parameter in model.key_encoder.parameters())

    # What is kept of it is the encoder alone; a checkpoint holds the other one as well.
    for folder, saved in ((tmp_path / "encoder", model.fer_pll), (tmp_path / "checkpoint", model)):
        saved.save_pretrained(folder)
        again, initialization = initialize(FerPllForImageClassification, make_config(**HALF), str(folder))
        assert_equal_states(again, states_of(model))
        assert all("query_decoder" in name or "classifier" in name for name in initialization.new)


def refusal(config: FerPllConfig, folder: str | Path) -> str:
    with pytest.raises(ValueError, match=f"^--init_from {folder}: ") as refused:
        initialize(FerPllForPreTraining, config, str(folder))
    return str(refused.value)


def test_what_the_encoder_cannot_hold_is_refused_with_the_reason(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    for model, reason in (
        (DeiTModel(DeiTConfig(**small)), "distillation token"),
        (Dinov2Model(Dinov2Config(**small)), "LayerScale"),
        (ResNetModel(ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)), "'resnet': it is another network"),
    ):
        model.save_pretrained(tmp_path)
        assert reason in (message := refusal(make_config(), tmp_path)) and "Take a checkpoint of fer-pll" in message


def test_other_sizes_are_refused_with_what_to_change(sources, tmp_path):
    config = make_config(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    assert refusal(config, sources["ViT"]).endswith(
        "need other sizes in config.json: hidden_size 32, not 64; num_hidden_layers 2, not 3; "
        "num_attention_heads 2, not 4; intermediate_size 48, not 64."
    )
    assert "patch_size 8, not 16" in refusal(make_config(patch_size=16), sources["MAE"])
    # With other heads the same weights would fit, and compute something else.
    assert "num_attention_heads 2, not 4" in refusal(make_config(num_attention_heads=4), sources["ViT"])
    FerPllForPreTraining(make_config(num_channels=1)).save_pretrained(tmp_path)
    assert "num_channels 1, not 3" in refusal(make_config(), tmp_path)


def test_a_checkpoint_that_is_not_what_it_says_is_refused(sources, tmp_path):
    source = Path(sources["ViT"])
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    assert "model.safetensors" in refusal(make_config(), tmp_path)  # no weights
    weights = load_file(source / "model.safetensors")

    def refusal_of(weights: dict) -> str:
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        return refusal(make_config(), tmp_path)

    resnet = ResNetModel(ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)).state_dict()
    assert "38 weights of the encoder are missing" in refusal_of(resnet)
    some = {name: weight for name, weight in weights.items() if "layer.1" not in name}
    assert "first is layers.1." in refusal_of(some)
    wide = {
        name: torch.cat([weight, weight]) if "intermediate" in name else weight for name, weight in weights.items()
    }
    assert "another architecture" in refusal_of(wide)
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:5000])
    assert "--init_from" in refusal(make_config(), tmp_path)  # cut off

    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refusal(make_config(), tmp_path)  # nothing says how pixels are normalized
    assert "there is no such folder" in refusal(make_config(), tmp_path / "nothing")
