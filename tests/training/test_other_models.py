"""The trainer with image classifiers of transformers: their `logits` are all it asks for."""

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    Dinov2Config,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from fer_pll import FerPllImageProcessor, FerPllTrainer, FerPllTrainingArguments
from fer_pll.training.param_groups import parameter_groups
from siblings import siblings
from tiny import CLASSES, make_dataset, make_trainer

LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CONFIGS = {
    "ResNet-18": ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", embedding_size=64, **LABELS
    ),
    "ViT": ViTConfig(intermediate_size=64, **TRANSFORMER, **LABELS),
    "DINOv2": Dinov2Config(mlp_ratio=2, **TRANSFORMER, **LABELS),
    "ConvNeXt": ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=4, **LABELS),
}


def trainer_of(tmp_path, name: str, processor=None, **settings) -> FerPllTrainer:
    processor = processor or FerPllImageProcessor(num_channels=3, size={"height": 32, "width": 32})
    settings = {"learning_rate": 2e-4, "flip": False, "revision_threshold": 0.01, "seed": 0} | settings
    return make_trainer(tmp_path, CONFIGS[name], processor, make_dataset(48), make_dataset(24, seed=1), **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_other_models_learn_and_revise(tmp_path, name):
    trainer = trainer_of(tmp_path, name, uniform_weight=5.0, num_train_epochs=5)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]  # a uniformity term, of weight 5, would pull below zero from the start
    assert min(losses) > 0
    assert (trainer.table.revised_epoch >= 0).any()
    # DINOv2's mask token has no part in classification; the bias of a key gets no gradient.
    still = [name for name, p in trainer.model.named_parameters() if torch.equal(before[name], p)]
    assert [name for name in still if not name.endswith(("key.bias", "mask_token"))] == []
    assert trainer.evaluate()["eval_accuracy"] >= 0

    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Its convolutions trained with the channels last in memory, which would round sums in another order.
        trainer.model.to(memory_format=torch.contiguous_format)
        assert torch.equal(loaded.eval()(pixels).logits, trainer.model.eval()(pixels).logits)


@pytest.mark.parametrize("name", siblings(*CONFIGS))
@pytest.mark.parametrize(
    "loss", ["rc", "pico", "crpll", *(pytest.param(n, marks=pytest.mark.long) for n in ("papi", "crosel"))]
)
def test_methods_that_need_more_than_logits_find_it_in_other_models(tmp_path, name, loss):
    trainer = trainer_of(tmp_path, name, loss=loss)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)
    assert (trainer.table.revised_epoch >= 0).any()


def test_a_resumed_batch_norm_model_ends_bit_for_bit_like_the_whole_one(tmp_path):
    whole = trainer_of(tmp_path, "ResNet-18", save_strategy="epoch")
    whole.train()
    resumed = trainer_of(tmp_path, "ResNet-18", save_strategy="epoch")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(whole.table.confidence, resumed.table.confidence)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_models_own_image_processor_will_do(tmp_path):
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, do_convert_rgb=True)
    trainer = trainer_of(tmp_path, "ViT", processor)
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.eval()
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    expected = processor([row["image"] for row in rows], return_tensors="pt").pixel_values
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-5)
    trainer.train()


def test_layer_wise_learning_rates_are_refused_for_layers_we_do_not_know():
    model = MobileNetV1ForImageClassification(MobileNetV1Config(depth_multiplier=0.25, image_size=32))
    assert parameter_groups(model, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"layer_decay: the stages of a MobileNetV1ForImageClassification are not"):
        parameter_groups(model, 1.0, 0.1, layer_decay=0.5)


def test_a_model_without_a_classifier_layer_is_refused_by_pico(tmp_path):
    trainer = trainer_of(tmp_path, "ViT")
    model = trainer.model
    model.classifier = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"pico.*classifier"):
        FerPllTrainer(
            model,
            FerPllTrainingArguments(output_dir=str(tmp_path), loss="pico", use_cpu=True),
            processing_class=trainer.processing_class,
            train_dataset=trainer.train_dataset,
        )
