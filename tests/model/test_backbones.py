"""Label queries on networks of others, and our encoder under heads of others."""

import json
import os
from copy import deepcopy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    ResNetConfig,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from accelerate import cpu_offload
from backbones import OURS, SIDE, SOURCES, queries_on, timm_config
from fer_pll import (
    FerPllBackbone,
    FerPllConfig,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllImageProcessor,
    FerPllModel,
    FerPllResNetBackbone,
    FerPllResNetConfig,
)
from fer_pll.inference.onnx_export import write_model
from fer_pll.model.feature_tokens import grid_positions
from fer_pll.model.modeling_fer_pll import sincos_positions
from fer_pll.model.modeling_fer_pll_resnet import standardized
from hub.stranger import run_stranger
from timm_alone import import_timm
from tiny import make_dataset, make_trainer, tiny_config

TIMM = ("mobilenetv3_small_050", "efficientnet_lite0")
NAMES = [name for name in SOURCES if name != "vit"]
ALL = [*NAMES, "ours", *TIMM]


def backbone_config(name: str):
    if name == "ours":
        return OURS
    if name in TIMM:
        import_timm()
        return timm_config(name)
    config = deepcopy(SOURCES[name][1])
    config.out_features = config.stage_names[-2:]
    return config


def make_model(name: str, **settings) -> FerPllForImageClassification:
    torch.manual_seed(0)
    model = FerPllForImageClassification(queries_on(backbone_config(name), **settings)).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.2)  # so that logits differ clearly
    return model


def images(number: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(number, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def faces() -> list[Image.Image]:
    return [Image.fromarray(each) for each in np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)]


PROCESSOR = FerPllImageProcessor(num_channels=3, size={"height": SIDE, "width": SIDE})


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_tokens_are_the_projected_cells_of_all_stages_and_queries_see_each(name):
    model = make_model(name)
    pixels = images()
    outputs = model.fer_pll(pixels)
    network = model.fer_pll.backbone
    maps = network(pixels).feature_maps
    assert len(model.fer_pll.feature_tokens.projections) == len(maps) >= 1
    assert [each.shape[1] for each in maps] == list(network.channels)
    cells = sum(each.shape[2] * each.shape[3] for each in maps)
    assert outputs.last_hidden_state.shape == (2, cells, 16)
    assert outputs.query_states.shape == (2, 4, 16)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1))
    assert not torch.equal(*model(pixels).logits)


@pytest.mark.parametrize("name", ["resnet", "dinov2", "ours"])
def test_features_of_a_batch_are_those_of_its_images(name):
    """transformers takes batches apart by the name of an output, and knows few that hold several tensors."""
    extract = pipeline("image-feature-extraction", model=make_model(name).fer_pll, image_processor=PROCESSOR)
    np.testing.assert_allclose(extract(faces(), batch_size=2), [extract(face) for face in faces()], atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_states_and_attentions_are_the_backbones_own(name):
    model = make_model(name)
    network = model.fer_pll.backbone
    model.set_attn_implementation("eager")
    logits = model(images()).logits
    outputs = model(images(), output_hidden_states=True, output_attentions=True)
    for answer in (outputs.logits, model(images()).logits):  # they are as they were before
        torch.testing.assert_close(answer, logits, rtol=0, atol=1e-6)
    expected = network(images(), output_hidden_states=True)
    torch.testing.assert_close(outputs.hidden_states, expected.hidden_states, rtol=0, atol=1e-5)
    assert len(outputs.hidden_states) > 1 and len(outputs.cross_attentions) == 2
    if network.has_attentions and name not in TIMM:
        attentions = network(images(), output_attentions=True).attentions
        assert len(attentions) == 2
        torch.testing.assert_close(outputs.attentions, attentions, rtol=0, atol=1e-5)
    else:
        assert outputs.attentions is None
    model.set_attn_implementation("sdpa")
    assert model(images(), output_attentions=True).cross_attentions is None
    assert model(images()).hidden_states is None
    model.config.output_hidden_states = True
    torch.testing.assert_close(model(images()).hidden_states, expected.hidden_states, rtol=0, atol=1e-5)
    classify = pipeline("image-classification", model=model, image_processor=PROCESSOR)
    assert len(classify(faces(), batch_size=2)) == 3


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_saved_and_loaded_it_answers_alike_and_files_have_the_names_of_the_modules(name, tmp_path):
    """Trainer goes on from checkpoints by those names, and skips all others silently."""
    model = make_model(name)
    expected = model(images()).logits
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(again.eval()(images()).logits, expected, rtol=0, atol=1e-6)
    assert again.config.backbone_config.out_features == model.config.backbone_config.out_features


@pytest.mark.parametrize("name", ["resnet", "swin", "ours"])
def test_training_revises_and_goes_on_bit_for_bit(name, tmp_path):
    def trainer(folder):
        processor = FerPllImageProcessor(num_channels=3, size={"height": SIDE, "width": SIDE})
        config = queries_on(backbone_config(name))
        settings = {"save_strategy": "epoch", "revision_threshold": 0.01, "uniform_weight": 0.1}
        return make_trainer(folder, config, processor, make_dataset(32), make_dataset(8, seed=1), **settings)

    whole = trainer(tmp_path / "whole")
    before = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    whole.train()
    losses = [log["loss"] for log in whole.state.log_history if "loss" in log]
    assert np.isfinite(losses).all() and (whole.table.revised_epoch >= 0).any()
    still = [name for name, parameter in whole.model.named_parameters() if torch.equal(before[name], parameter)]
    # The bias of a key has no gradient. A Swin as a backbone does not use its last norm.
    assert [each for each in still if not (each.endswith("k_proj.bias") or "swin.layernorm" in each)] == []
    assert whole.evaluate()["eval_accuracy"] >= 0
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(whole.table.confidence, resumed.table.confidence)
    for (key, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


# PyTorch's exporter fails at a view of their attention: "Cannot view a tensor with shape (s99, 16, 2, 8)".
NOT_EXPORTED = pytest.mark.xfail(raises=Exception, strict=True, reason="torch.onnx cannot export their attention yet")


@pytest.mark.parametrize(
    "name",
    [
        each
        if each == "resnet"
        else pytest.param(each, marks=[pytest.mark.long, *([NOT_EXPORTED] if each in ("swin", "beit") else [])])
        for each in ALL
    ],
)
def test_as_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_model(name)
    write_model(model, tmp_path / "model.onnx")
    write_model(model, tmp_path / "int8.onnx", dtype="int8")
    pixels = images(5)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
    for file, tolerance in (("model.onnx", 1e-4), ("int8.onnx", 0.1 * np.abs(expected).max())):
        session = onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        (answers,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(answers, expected, rtol=0, atol=tolerance)
    assert (tmp_path / "int8.onnx").read_bytes() != (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", ["resnet", "dinov2"])
@torch.no_grad()
def test_offloaded_weights_give_the_same(name):
    model = make_model(name)
    expected = model(images()).logits
    offloaded = cpu_offload(model, execution_device="cpu")
    assert next(offloaded.fer_pll.backbone.parameters()).is_meta
    torch.testing.assert_close(offloaded(images()).logits, expected, rtol=0, atol=1e-6)


STRANGER = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder = Path(sys.argv[1])
inputs, answers = load_file(folder / "inputs.safetensors"), {}
for name in ("resnet", "swin", "ours"):
    model = AutoModelForImageClassification.from_pretrained(folder / name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    answers[name] = model(inputs["colored"]).logits.detach().contiguous()
    model.save_pretrained(folder / f"{name}-again")
    again = AutoModelForImageClassification.from_pretrained(folder / f"{name}-again", trust_remote_code=True)
    assert (again(inputs["colored"]).logits - answers[name]).abs().max() < 1e-6
# AutoBackbone.from_pretrained of transformers knows names on the Hub only, no folders.
backbone_class = get_class_from_dynamic_module("modeling_fer_pll.FerPllBackbone", folder / "encoder")
backbone = backbone_class.from_pretrained(folder / "encoder", out_features=["stage1", "stage2"])
for stage, feature_map in zip(("stage1", "stage2"), backbone(inputs["gray"]).feature_maps):
    answers[stage] = feature_map.detach().contiguous()
small_class = get_class_from_dynamic_module("modeling_fer_pll_resnet.FerPllResNetBackbone", folder / "small")
small = small_class.from_pretrained(folder / "small")
answers["small"] = small(inputs["colored"]).feature_maps[0].detach()
save_file(answers, folder / "answers.safetensors")
assert "fer_pll" not in sys.modules
"""


@torch.no_grad()
def test_a_stranger_gets_equal_answers(tmp_path):
    expected, inputs = {}, {"colored": images(), "gray": images(channels=1)[:, :, :16, :16].contiguous()}
    for name in ("resnet", "swin", "ours"):
        model = make_model(name)
        model.save_pretrained(tmp_path / name)
        expected[name] = model(inputs["colored"]).logits
    encoder = FerPllForImageClassification(tiny_config()).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    states = encoder.fer_pll(inputs["gray"], output_hidden_states=True).hidden_states
    for stage in (1, 2):
        tokens = encoder.fer_pll.layernorm(states[stage])[:, 1:]
        expected[f"stage{stage}"] = tokens.transpose(1, 2).unflatten(2, (2, 2))
    small = FerPllResNetBackbone(OURS).eval()
    small.save_pretrained(tmp_path / "small")
    expected["small"] = small(inputs["colored"]).feature_maps[0]
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_MODULES_CACHE": str(tmp_path / "hf_modules"),
    }
    run_stranger(STRANGER, tmp_path, environment=environment, cwd=tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "answers.safetensors"), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_images_are_standardized_one_by_one():
    """Light and contrast change nothing then, an image without contrast is no division by zero."""
    pixels = images(channels=3) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    exact = pixels.numpy().astype(np.float64)
    mean, variance = (of(exact, axis=(1, 2, 3), keepdims=True) for of in (np.mean, np.var))
    expected = torch.from_numpy((exact - mean) / np.sqrt(variance + 0.05**2)).float()
    torch.testing.assert_close(standardized(pixels), expected, rtol=1e-5, atol=1e-6)
    plain = FerPllResNetBackbone(type(OURS).from_dict(OURS.to_dict() | {"standardize_images": False})).eval()
    model = FerPllResNetBackbone(OURS).eval()
    model.load_state_dict(plain.state_dict())
    features = model(pixels).feature_maps[0]
    torch.testing.assert_close(features, plain(expected).feature_maps[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model(40 * pixels - 7).feature_maps[0], model(10 * pixels).feature_maps[0], rtol=0, atol=1e-3
    )
    assert not torch.equal(plain(pixels + 1).feature_maps[0], plain(pixels).feature_maps[0])
    assert standardized(torch.full((1, 1, 4, 4), 3.0)).abs().max() == 0


def test_backbones_are_named_by_dictionaries_too():
    config = queries_on({"model_type": "resnet", "num_channels": 1, "hidden_sizes": [8], "depths": [1]})
    assert isinstance(config.backbone_config, ResNetConfig) and config.num_channels == 1
    assert config.image_mean == [0.5]
    again = FerPllConfig.from_dict(json.loads(config.to_json_string()))
    assert again.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert isinstance(queries_on(OURS.to_dict()).backbone_config, FerPllResNetConfig)


@torch.no_grad()
def test_a_backbone_whose_configuration_asks_for_tuples_is_used_alike():
    for given in (False, 0):
        backbone = SOURCES["resnet"][1].to_dict() | {"return_dict": given}
        model = FerPllForImageClassification(queries_on(backbone)).eval()
        assert model(images()).logits.shape == (2, 4)
        assert isinstance(model(images(), return_dict=False), tuple)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"no model_type 'squeezenet'"):
        queries_on({"model_type": "squeezenet"})
    with pytest.raises(ValueError, match=r"no model_type None"):
        queries_on({"hidden_sizes": [8]})
    with pytest.raises(ValueError, match=r"no backbone for 'vit'; it has some for beit, bit"):
        FerPllModel(queries_on({"model_type": "vit"}))
    config = queries_on(SOURCES["resnet"][1])
    with pytest.raises(ValueError, match="Masked pre-training is for the ViT encoder"):
        FerPllForPreTraining(config)
    with pytest.raises(ValueError, match=r"another network as its encoder: load that one"):
        FerPllBackbone(config)
    model = FerPllModel(config)
    with pytest.raises(ValueError, match="masks are for the ViT encoder"):
        model(images(), mask_ratio=0.5)
    with pytest.raises(ValueError, match=r"images of 3 channel\(s\), `pixel_values` has 1"):
        model(images(channels=1))
    with pytest.raises(ValueError, match=r"built for 32 x 32 pixels, the input has 48 x 32"):
        model(torch.zeros(1, 3, 48, 32))
    assert model(torch.zeros(1, 3, 48, 32), interpolate_pos_encoding=True).last_hidden_state.shape[1] == 6 * 4
    with pytest.raises(StrictDataclassError, match="hidden_size=18 must be divisible by 4"):
        queries_on(OURS, hidden_size=18)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5)])
def test_positions_of_a_grid(height, width):
    positions = grid_positions(height, width, (height, width), 8, torch.device("cpu")).unflatten(0, (height, width))
    square = sincos_positions(max(height, width), 8)[0, 1:].unflatten(0, (max(height, width),) * 2)
    torch.testing.assert_close(positions, square[:height, :width])
    # A map of twice the cells: four of them lie around the center of each of the others.
    fine = grid_positions(2 * height, 2 * width, (height, width), 8, torch.device("cpu")).unflatten(
        0, (2 * height, -1)
    )
    rows = torch.arange(2 * height) / 2 - 0.25
    torch.testing.assert_close(fine[:, 0, 4], rows.sin())


def test_one_attention_for_the_label_queries_and_those_that_have_any(tmp_path):
    for name in ("resnet", "dinov2"):
        model = make_model(name)
        pixels = images()
        logits = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            assert model.config._attn_implementation == implementation
            if name == "dinov2":
                assert model.fer_pll.backbone.config._attn_implementation == implementation
            with torch.no_grad():
                logits.append(model(pixels).logits)
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
        maps = model(pixels, output_attentions=True).cross_attentions
        cells = model.fer_pll(pixels).last_hidden_state.shape[1]
        assert [tuple(each.shape) for each in maps] == [(2, 2, 4, cells)] * 2
        model.save_pretrained(tmp_path / name)
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / name, attn_implementation="sdpa")
        assert loaded.config._attn_implementation == "sdpa"


class TestOurEncoderAsABackbone:
    @torch.no_grad()
    def test_maps_of_chosen_blocks_from_a_checkpoint(self, tmp_path):
        classifier = FerPllForImageClassification(tiny_config()).eval()
        classifier.save_pretrained(tmp_path)
        backbone = AutoBackbone.from_config(FerPllConfig.from_pretrained(tmp_path))
        assert backbone.out_features == ["stage2"] and backbone.channels == [32]
        backbone, info = MODEL_FOR_BACKBONE_MAPPING[FerPllConfig].from_pretrained(
            tmp_path, out_features=["stem", "stage2"], output_loading_info=True
        )
        assert not info["missing_keys"]
        pixels = images(channels=1)[:, :, :16, :16]
        outputs = backbone(pixels, output_hidden_states=True)
        states = classifier.fer_pll(pixels, output_hidden_states=True)
        assert [tuple(each.shape) for each in outputs.feature_maps] == [(2, 32, 2, 2)] * 2
        last = states.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
        torch.testing.assert_close(outputs.feature_maps[1], last)
        for one, other in zip(outputs.hidden_states, states.hidden_states, strict=True):
            torch.testing.assert_close(one, other)
        backbone.set_attn_implementation("eager")
        assert [tuple(each.shape) for each in backbone(pixels, output_attentions=True).attentions] == [
            (2, 2, 5, 5)
        ] * 2
        assert backbone(images(channels=1)).feature_maps[1].shape == (2, 32, 4, 4)

    def test_under_our_own_label_queries(self):
        config = queries_on(tiny_config(num_channels=3, out_features=["stage1", "stage2"]))
        model = FerPllForImageClassification(config)
        assert isinstance(model.fer_pll.backbone, FerPllBackbone)
        assert model(images()).logits.shape == (2, 4)

    def test_settings_are_written_only_where_they_were_given(self):
        assert not {"out_features", "out_indices"} & tiny_config().to_dict().keys()
        written = tiny_config(out_features=["stage1"]).to_dict()
        assert (written["out_features"], written["out_indices"]) == (["stage1"], [1])
        with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
            tiny_config(out_features=["stage3"])


class TestSmallResNet:
    def test_sizes_and_strides(self):
        config = FerPllResNetConfig(out_features=["stem", "stage1", "stage2", "stage3"])
        backbone = FerPllResNetBackbone(config).eval()
        maps = backbone(torch.zeros(1, 1, 48, 48)).feature_maps
        expected = [(32, 48, 48), (48, 24, 24), (96, 12, 12), (192, 6, 6)]
        assert [tuple(each.shape[1:]) for each in maps] == expected
        assert 1.5e6 < backbone.num_parameters() < 1.6e6
        config = FerPllResNetConfig(stem_stride=2, hidden_sizes=[8], depths=[1], strides=[1])
        assert FerPllResNetBackbone(config)(torch.zeros(1, 1, 48, 48)).feature_maps[0].shape == (1, 8, 24, 24)

    def test_a_new_block_is_its_shortcut(self):
        config = FerPllResNetConfig(hidden_sizes=[8], depths=[2], stem_size=8, strides=[1], squeeze_ratio=0.5)
        backbone = FerPllResNetBackbone(config).eval()
        stem, last = backbone(torch.randn(2, 1, 8, 8), output_hidden_states=True).hidden_states
        assert stem.std() > 0 and torch.equal(stem, last)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"depths": [2, 2]}, "need one value for each stage"),
            ({"stem_stride": 4}, "must be 1 or 2"),
            ({"strides": [2, 3, 2]}, "must be 1 or 2"),
            ({"hidden_sizes": [0, 8, 8]}, "must be at least 1"),
            ({"squeeze_ratio": 2.0}, r"squeeze_ratio must lie in \[0, 1\]"),
            ({"drop_path_rate": 1.0}, r"drop_path_rate in \[0, 1\)"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(StrictDataclassError, match=message):
            FerPllResNetConfig(**settings)


class TestConvolutionalStem:
    def config(self, **settings) -> FerPllConfig:
        return tiny_config(stem="conv", **settings)

    def test_as_many_tokens_as_patches(self, tmp_path):
        for patch_size, strides in ((8, [2, 2, 2]), (4, [2, 2])):
            config = self.config(patch_size=patch_size)
            assert config.stem_strides == strides
            model = FerPllForImageClassification(config).eval()
            tokens = model.fer_pll(torch.randn(2, 1, 16, 16)).last_hidden_state
            assert tokens.shape[1] == 1 + (16 // patch_size) ** 2
        assert self.config(image_size=48, patch_size=6, hog_cell_size=3).stem_strides == [2, 3]
        model.save_pretrained(tmp_path)
        again = FerPllForImageClassification.from_pretrained(tmp_path)
        pixels = torch.randn(2, 1, 16, 16)
        assert torch.equal(again.eval()(pixels).logits, model(pixels).logits)
        with pytest.raises(StrictDataclassError, match="stem='conv' needs a patch_size of factors 2 and 3"):
            self.config(image_size=20, patch_size=10, hog_cell_size=5)

    @pytest.mark.parametrize("style", ["visible", "token"])
    def test_hidden_pixels_are_not_seen(self, style):
        torch.manual_seed(0)
        model = FerPllForPreTraining(self.config(mask_style=style, patch_size=4)).eval()
        noise = torch.rand(2, 16)
        pixels = torch.randn(2, 1, 16, 16)
        outputs = model(pixels, noise=noise)
        hidden = outputs.mask.bool().unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        other = torch.where(hidden, torch.randn_like(pixels), pixels)
        assert torch.equal(model(other, noise=noise).logits, outputs.logits)
        seen = torch.where(hidden, pixels, torch.randn_like(pixels))
        assert not torch.equal(model(seen, noise=noise).logits, outputs.logits)
        outputs.loss.backward()
        stem = model.fer_pll.embeddings.patch_embeddings.convolutions
        assert all(parameter.grad.abs().sum() > 0 for parameter in stem.parameters())
