"""Momentum contrast: loss and updates by hand, and a training that is interrupted."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from fer_pll import FerPllForImageClassification, FerPllModel
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.moco import FerPllForMomentumContrast
from fer_pll.training.pretraining import FerPllPreTrainer
from tiny import make_dataset, make_pretrainer, tiny_config, tiny_processor

VIEWS = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))  # two views of three images


@pytest.fixture
def model() -> FerPllForMomentumContrast:
    torch.manual_seed(0)
    model = FerPllForMomentumContrast(tiny_config(), queue_size=8, temperature=0.2, momentum=0.9)
    with torch.no_grad():  # apart, as after some steps
        for parameter in model.key_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_both_encoders_start_alike():
    model = FerPllForMomentumContrast(tiny_config())
    for slow, fast in zip(model.key_encoder.parameters(), model.fer_pll.parameters(), strict=True):
        assert torch.equal(slow, fast)
    assert model.queue.shape == (65536, 128) and torch.allclose(model.queue.norm(dim=1), torch.ones(65536))


@torch.no_grad()
def test_loss_is_info_nce(model):
    model.eval()
    loss = model(VIEWS).loss

    def embed(encoder, projection, pixels):
        return normalize(projection(encoder(pixels).last_hidden_state[:, 1:].mean(dim=1)), dim=1).double()

    queries = embed(model.fer_pll, model.projection, VIEWS[:3])
    keys = embed(model.key_encoder, model.key_projection, VIEWS[3:])
    expected = 0
    for query, key in zip(queries, keys, strict=True):
        positive = torch.exp(query @ key / 0.2)
        expected -= torch.log(positive / (positive + sum(torch.exp(query @ n / 0.2) for n in model.queue.double())))
    assert loss.item() == pytest.approx(expected.item() / 3, rel=1e-5)


def test_key_encoder_follows_and_the_queue_goes_round(model):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(VIEWS).loss.backward()
    after = model.state_dict()
    for name in before:
        if name.startswith(("key_encoder.", "key_projection.")):
            fast = before[name.replace("key_encoder", "fer_pll").replace("key_projection", "projection")]
            torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * fast)
    with torch.no_grad():
        keys = model.embed(model.key_encoder, model.key_projection, VIEWS[3:])  # by the encoder that has moved
    torch.testing.assert_close(after["queue"][:3], keys)
    assert torch.equal(after["queue"][3:], before["queue"][3:]) and after["next_place"] == 3
    for parameters, has_gradient in ((model.fer_pll, True), (model.key_encoder, False)):
        assert all((p.grad is not None) == has_gradient for p in parameters.parameters() if p.requires_grad)
    for _ in range(2):
        model(VIEWS)
    assert model.next_place == 1  # 9 keys in 8 places
    assert not torch.equal(model.queue[0], keys[0]) and torch.equal(model.queue[1], keys[1])


def make_moco(folder) -> FerPllPreTrainer:
    settings = {
        "objective": "moco",
        "queue_size": 32,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "light": 0.2,
        "crop_scale": 0.5,
        "per_device_train_batch_size": 8,
        "save_strategy": "epoch",
    }
    images = make_dataset(24).select_columns("image")
    return make_pretrainer(folder, tiny_config(), tiny_processor(), images, **settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resumes_exactly_and_leaves_an_encoder(tmp_path):
    whole = make_moco(tmp_path / "whole")
    whole.train()
    whole.save_model()
    again = make_moco(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["architectures"] == ["FerPllModel"] and "AutoModel" in config["auto_map"]
    encoder = FerPllModel.from_pretrained(tmp_path / "whole", add_query_decoder=False)
    classifier = FerPllForImageClassification.from_pretrained(tmp_path / "whole")
    for name, tensor in whole.model.fer_pll.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name])
        assert torch.equal(tensor, classifier.fer_pll.state_dict()[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "simclr"}, "objective='simclr': choose one of masked, moco"),
        ({"queue_size": 0}, "queue_size=0"),
        ({"encoder_momentum": 1.0}, "encoder_momentum=1.0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature=0.0"),
        ({"on_bad_data": "warn"}, "on_bad_data='warn': choose one of skip, stop"),
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy='every_save'"),
    ],
)
def test_bad_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FerPllPreTrainingArguments(output_dir=str(tmp_path), **({"objective": "moco"} | settings))
