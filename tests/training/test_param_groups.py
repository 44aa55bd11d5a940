import pytest

from fer_pll import FerPllForImageClassification, FerPllForPreTraining
from fer_pll.training.param_groups import depths, parameter_groups


def test_depths_follow_the_encoder(toy_config):
    for model_class in (FerPllForImageClassification, FerPllForPreTraining):
        for name, depth in depths(model_class(toy_config)).items():  # 2 blocks
            block = name.removeprefix("fer_pll.layers.").split(".")[0]
            expected = 0 if ".embeddings." in name else 1 + int(block) if name.startswith("fer_pll.layers.") else 3
            assert depth == expected, name


@pytest.mark.parametrize("model_class", [FerPllForImageClassification, FerPllForPreTraining])
def test_groups_hold_every_trained_parameter_once(model_class, toy_config):
    model = model_class(toy_config)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)


def test_learning_rates_fall_towards_the_input_and_only_matrices_decay(toy_config):
    model = FerPllForImageClassification(toy_config)  # 2 blocks: depths 0..3
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = {name: settings[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert of["fer_pll.embeddings.patch_embeddings.projection.weight"] == (0.125, 0.1)
    assert of["fer_pll.embeddings.cls_token"] == (0.125, 0.0)
    assert of["fer_pll.layers.0.mlp.fc1.weight"] == (0.25, 0.1)
    assert of["fer_pll.layers.1.mlp.fc1.bias"] == (0.5, 0.0)
    assert of["fer_pll.query_decoder.label_queries"] == (1.0, 0.0)
    assert of["fer_pll.layernorm.weight"] == (1.0, 0.0)
    assert of["classifier.weight"] == (1.0, 0.1)
