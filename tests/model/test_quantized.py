"""Weights of 8 bits (torchao) in every part of the models.

torchao is no dependency of the tests: its wheels print warnings wherever transformers is imported, when they were not
compiled for the torch at hand. `make test-transformers` fetches it, and runs these tests as well.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel, TorchAoConfig

from fer_pll import FerPllForImageClassification
from model.variants import VARIANTS, logits, make_variant
from tiny import tiny_config

quantization = pytest.importorskip("torchao.quantization")


@pytest.fixture(params=VARIANTS)
def model(request) -> PreTrainedModel:
    return make_variant(request.param)


def quantized(model: PreTrainedModel) -> set[str]:
    return {name for name, each in model.named_parameters() if type(each.data) is not torch.Tensor}


def linear(model: PreTrainedModel) -> set[str]:
    return {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Linear)}


def check(model: PreTrainedModel, expected: torch.Tensor) -> None:
    """Close, but not the same: 8 bits round each weight to a 127th of its row's largest."""
    for gradients in (False, True):
        error = (logits(model, gradients) - expected).abs().max()
        assert 0 < error < 0.05 * expected.abs().max()


def test_all_linear_layers(model):
    expected = logits(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert quantized(model) == linear(model)
    check(model, expected)


def test_each_linear_layer_by_itself(model):
    expected = logits(model)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    for chosen in sorted(linear(model)):
        one = type(model)(model.config).eval()
        one.load_state_dict(state)
        config = quantization.Int8WeightOnlyConfig()
        quantization.quantize_(one, config, filter_fn=lambda module, name, chosen=chosen: f"{name}.weight" == chosen)
        assert quantized(one) == {chosen}
        check(one, expected)


def test_while_loading(tmp_path):
    torch.manual_seed(0)
    model = FerPllForImageClassification(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=[])
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, quantization_config=config)
    assert quantized(loaded) == linear(model)
    check(loaded, logits(model))
