"""Models larger than the memory: weights in another place (accelerate), for every part of the model."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from accelerate import cpu_offload, disk_offload
from model.variants import VARIANTS, logits, make_variant


@pytest.fixture(params=VARIANTS)
def model(request) -> PreTrainedModel:
    model = make_variant(request.param)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def parts(model: PreTrainedModel) -> list[str]:
    """Modules that together hold all weights: the encoder's own, its blocks, and what comes after it."""
    inner = [f"fer_pll.{name}" for name, each in model.fer_pll.named_children() if each is not None]
    outer = [name for name, _ in model.named_children() if name != "fer_pll"]
    return inner + outer


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_everything_offloaded(model, place, gradients, tmp_path):
    expected = logits(model, gradients)
    if place == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert {each.device.type for each in model.parameters()} == {"meta"}
    torch.testing.assert_close(logits(model, gradients), expected, atol=1e-6, rtol=0)


def test_each_part_on_disk(model, tmp_path):
    expected = logits(model)
    model.save_pretrained(tmp_path / "checkpoint")
    names = parts(model)
    assert len(names) >= 4
    for part in names:
        places = {name: "disk" if name == part else "cpu" for name in names}
        loaded = type(model).from_pretrained(
            tmp_path / "checkpoint", device_map=places, offload_folder=tmp_path / part
        )
        assert "meta" in {each.device.type for each in loaded.get_submodule(part).parameters()}
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)


def test_a_map_of_devices_made_by_accelerate(model, tmp_path):
    """`device_map="auto"`, with less memory than the model needs: the rest goes to the disk."""
    expected = logits(model)
    model.save_pretrained(tmp_path / "checkpoint")
    size = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    loaded = type(model).from_pretrained(
        tmp_path / "checkpoint", device_map="auto", max_memory={"cpu": size * 4 // 5}, offload_folder=tmp_path / "rest"
    )
    assert {"cpu", "disk"} == {str(place) for place in loaded.hf_device_map.values()}
    torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)
