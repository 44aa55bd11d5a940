import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from fer_pll import FerPllConfig


def test_defaults_are_vit_base_at_224_pixels():
    config = FerPllConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert config.grid_size == 14
    assert config.image_mean == config.image_std == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("patch_size", "hog_cell_size", "hog_orientations", "num_channels", "expected"),
    [(16, 8, 9, 3, 108), (16, 8, 9, 1, 36), (8, 4, 9, 1, 36), (16, 16, 9, 3, 27), (16, 4, 6, 1, 96)],
)
def test_number_of_hog_values(patch_size, hog_cell_size, hog_orientations, num_channels, expected):
    config = FerPllConfig(
        image_size=48,
        patch_size=patch_size,
        hog_cell_size=hog_cell_size,
        hog_orientations=hog_orientations,
        num_channels=num_channels,
    )
    assert config.num_hog_values == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 50}, "image_size=50 is not divisible by patch_size=16: choose an image size such as 48"),
        ({"image_size": 8}, "image_size=8 is not divisible by patch_size=16: choose an image size such as 16"),
        ({"hog_cell_size": 5}, "hog_cell_size=5 does not divide patch_size=16"),
        ({"hog_cell_size": 32}, "hog_cell_size=32 does not divide patch_size=16"),
        ({"num_attention_heads": 7}, "hidden_size=768 is not divisible by num_attention_heads=7"),
        (
            {"decoder_num_attention_heads": 3},
            "decoder_hidden_size=512 is not divisible by decoder_num_attention_heads=3",
        ),
        ({"hidden_size": 18, "num_attention_heads": 2}, "hidden_size=18 must be divisible by 4"),
        (
            {"decoder_hidden_size": 18, "decoder_num_attention_heads": 2, "position_embedding_type": "learned"},
            "decoder_hidden_size=18 must be divisible by 4",
        ),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"num_attention_heads": -1}, "num_attention_heads=-1 must be at least 1"),
        ({"mask_style": "block"}, r"'mask_style' expected one of \('visible', 'token'\), got block"),
        ({"position_embedding_type": "rope"}, r"'position_embedding_type' expected one of \('sincos', 'learned'\)"),
        ({"problem_type": "multi_label_classification"}, "'problem_type' expected one of"),
        ({"mask_ratio": 1}, r"mask_ratio=1 must lie in \[0, 1\)"),
        ({"mask_ratio": 0}, "mask_ratio=0 of 196 patches: pre-training needs at least one visible and one hidden"),
        ({"mask_ratio": 0.9, "image_size": 32}, "mask_ratio=0.9 of 4 patches"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 must lie in \[0, 1\)"),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\] needs one value for each of 3 channels"),
        ({"num_channels": 1, "image_std": [0.2, 0.2, 0.2]}, "image_std=.* needs one value for each of 1 channels"),
        ({"hidden_size": "768"}, "'hidden_size' expected int"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        FerPllConfig(**changes)


def test_an_unknown_option_is_refused_on_assignment_too():
    config = FerPllConfig()
    with pytest.raises(StrictDataclassError, match="mask_style"):
        config.mask_style = "block"


def test_a_config_that_stopped_fitting_is_not_saved(tmp_path):
    config = FerPllConfig()
    config.image_size = 50
    with pytest.raises(StrictDataclassError, match="image_size=50"):
        config.save_pretrained(tmp_path)


def test_learned_positions_need_no_multiple_of_four():
    assert FerPllConfig(hidden_size=18, num_attention_heads=2, position_embedding_type="learned").hidden_size == 18


def test_round_trip(tmp_path):
    names = ["neutral", "happiness", "surprise"]
    config = FerPllConfig(
        image_size=48,
        patch_size=8,
        num_channels=1,
        hog_cell_size=4,
        image_mean=[0.4],
        image_std=[0.3],
        mask_style="token",
        mask_ratio=0.75,
        position_embedding_type="learned",
        add_query_decoder=False,
        drop_path_rate=0.1,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FerPllConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_labels == 3 and loaded.id2label == dict(enumerate(names))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "fer_pll"


def test_three_classes_do_not_make_a_multi_label_problem():
    assert FerPllConfig(num_labels=3).problem_type == "single_label_classification"


def test_settings_of_earlier_versions_are_dropped_where_they_change_nothing(tmp_path):
    config = FerPllConfig(num_labels=3)
    retired = {"query_self_attention": False, "finetuning_mask_ratio": 0.0, "hog_window_size": 0}
    old = config.to_dict() | retired | {"calibration_temperature": 0.89}
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert not any(hasattr(loaded, name) for name in (*retired, "calibration_temperature"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"query_self_attention": True}, "query_self_attention=True .* this version cannot compute"),
        ({"finetuning_mask_ratio": 0.4}, "finetuning_mask_ratio=0.4 .* set it to 0 in config.json"),
        ({"hog_window_size": 16}, "hog_window_size=16 .* set it to 0 in config.json"),
    ],
)
def test_settings_of_earlier_versions_that_would_change_something_are_refused(setting, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FerPllConfig().to_dict() | setting))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("numbers", [(1, 2), ("0", "2"), (-1, 0)])
def test_classes_are_numbered_from_0_on(numbers):
    with pytest.raises(StrictDataclassError, match=r"id2label has 2 keys from .* number the classes from 0 to 1"):
        FerPllConfig(id2label=dict(zip(numbers, "ab", strict=True)))
    assert FerPllConfig(id2label={"1": "b", "0": "a"}).id2label == {0: "a", 1: "b"}


def test_classes_have_names_of_their_own():
    """Answers are by name: of two classes with one name, a table would have lost one."""
    with pytest.raises(StrictDataclassError, match="id2label has 'a' for several classes"):
        FerPllConfig(id2label={0: "a", 1: "b", 2: "a"})
