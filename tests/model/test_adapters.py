"""LoRA on every part of the models, with the real library (peft)."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from fer_pll import FerPllForImageClassification, FerPllForPreTraining
from tiny import tiny_config

CONFIGS = {"query decoder": {}, "linear": {"add_query_decoder": False}}
configs = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
BY_NAME = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "perceptrons": ["fc1", "fc2"],
    "classifier": ["classifier"],
    "patches": ["projection"],
    "decoder": r"fer_pll\.query_decoder\..*_proj",
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(batch))


def spread(model: nn.Module) -> nn.Module:
    """Weights of a trained model's size, so that no output is nearly zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return model


def classifier(**changes) -> FerPllForImageClassification:
    return spread(FerPllForImageClassification(tiny_config(**changes))).eval()


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if "lora_" in name}


def linear_layers(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@configs
@pytest.mark.parametrize("batch", [1, 3, 4])  # four: the number of classes
def test_all_linear_layers_learn_and_merge(changes, batch):
    model = classifier(**changes)
    linear, pixels = linear_layers(model), images(batch)
    before = model(pixels).logits.detach()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    named = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in adapters(adapted)}
    assert named == linear and "classifier" in named
    torch.testing.assert_close(adapted(pixels).logits, before, atol=1e-6, rtol=0)  # nothing learned yet

    spread(adapted)  # the adapters only: the rest is frozen
    outputs = adapted(pixel_values=pixels, labels=torch.zeros(batch, dtype=torch.long))
    assert outputs.logits.shape == (batch, 4)
    assert (outputs.logits - before).abs().max() > 0.1
    outputs.loss.backward()
    assert [name for name, each in adapters(adapted).items() if each.grad is None or not each.grad.any()] == []

    merged = adapted.merge_and_unload()
    assert type(merged) is FerPllForImageClassification and type(merged.classifier) is nn.Linear
    torch.testing.assert_close(merged(pixels).logits, outputs.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("targets", BY_NAME.values(), ids=BY_NAME)
def test_parts_by_name(targets, tmp_path):
    model, pixels = classifier(), images(3)
    before = model(pixels).logits.detach()
    model.save_pretrained(tmp_path / "base")
    adapted = spread(get_peft_model(model, LoraConfig(r=2, target_modules=targets))).eval()
    after = adapted(pixels).logits.detach()
    assert (after - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(pixels).logits, after, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.merge_and_unload()(pixels).logits, after, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_the_classifiers_rows_acts_on_its_own_class():
    """The classifier's row k goes with the state of query k; so must its adapter."""
    model, pixels = classifier(), images(2)
    adapted = spread(get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=["classifier"]))).eval()
    weights = {name.split(".")[-3]: each for name, each in adapters(adapted).items()}  # lora_A, lora_B
    change = weights["lora_B"] @ weights["lora_A"]  # (K, d)
    outputs = adapted(pixels)
    head = adapted.get_base_model().classifier.base_layer
    expected = torch.einsum("bkd,kd->bk", outputs.query_states, head.weight + change) + head.bias
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)


def test_queries_and_classifier_may_learn_whole():
    whole = ["classifier", "query_decoder"]
    config = LoraConfig(r=2, target_modules=r"fer_pll\.layers\..*_proj", modules_to_save=whole)
    adapted = get_peft_model(classifier(), config)
    trained = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert any(name.endswith("label_queries") for name in trained) and any("classifier" in name for name in trained)
    adapted(pixel_values=images(3), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert [name for name, each in adapted.named_parameters() if each.requires_grad and each.grad is None] == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_reaches_every_adapter(reentrant):
    """Nothing below the first block learns, so its input must be made to ask for gradients."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapted = spread(get_peft_model(classifier(), LoraConfig(r=2, target_modules=r".*layers\..*_proj"))).train()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            adapted.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            adapted.get_base_model().enable_input_require_grads()
        adapted(pixel_values=images(3), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: each.grad for name, each in adapters(adapted).items()})
    assert all(gradient is not None for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("style", ["visible", "token"])
def test_pretraining(style):
    model = spread(FerPllForPreTraining(tiny_config(mask_style=style))).eval()
    linear = linear_layers(model)
    noise = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    before = model(images(3), noise=noise)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in adapters(adapted)} == linear
    spread(adapted)
    after = adapted(pixel_values=images(3), noise=noise)
    assert after.logits.shape == before.logits.shape
    after.loss.backward()
    assert [name for name, each in adapters(adapted).items() if each.grad is None] == []
    merged = adapted.merge_and_unload()(images(3), noise=noise)
    torch.testing.assert_close(merged.logits, after.logits, atol=1e-4, rtol=1e-4)
