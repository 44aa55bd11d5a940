"""Fine-tuning with adapters (peft): what learns, checkpoints, resuming, the merged model."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fer_pll import FerPllForImageClassification, FerPllForPreTraining, FerPllTrainer
from fer_pll.commands import finetune
from fer_pll.hub.push import published_files
from fer_pll.io.errors import DataError
from fer_pll.training.lora import add_adapters, check_adapters, save_base
from tiny import CLASSES, make_dataset, make_trainer, tiny_config, tiny_processor

PIXELS = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
OURS = {"ours": {}, "linear": {"add_query_decoder": False}}


def trained(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def others() -> dict[str, nn.Module]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 1, "num_labels": 4}
    return {
        "vit": ViTForImageClassification(
            ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1, num_labels=4)
        ),
        "resnet": ResNetForImageClassification(ResNetConfig(**resnet, layer_type="basic")),
        "convnext": ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_channels=1, num_labels=4)
        ),
    }


class TestWhatLearns:
    @pytest.mark.parametrize("changes", OURS.values(), ids=OURS)
    def test_adapters_and_all_outside_the_encoder(self, changes):
        model = FerPllForImageClassification(tiny_config(**changes))
        linear = {
            name
            for name, each in model.named_modules()
            if isinstance(each, nn.Linear) and name.startswith("fer_pll.layers.")
        }
        outside = {
            name for name, _ in model.named_parameters() if name.startswith(("fer_pll.query_decoder.", "classifier."))
        }
        adapted = add_adapters(model, rank=2)
        names = {name.removeprefix("base_model.model.") for name in trained(adapted)}
        assert {name.split(".lora_")[0] for name in names if ".lora_" in name} == linear
        whole = {name.replace(".modules_to_save.default", "") for name in names if ".lora_" not in name}
        assert whole == outside
        assert adapted.peft_config["default"].lora_alpha == 4  # twice the rank

    @pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
    def test_other_networks(self, kind):
        model = others()[kind].eval()
        before = model(PIXELS).logits.detach()
        adapted = add_adapters(model, rank=2).eval()
        torch.testing.assert_close(adapted(PIXELS).logits, before, atol=1e-6, rtol=0)
        names = trained(adapted)
        assert any(".lora_A" in name for name in names)
        assert any("classifier" in name and ".lora_" not in name for name in names)
        for name in names:
            nn.init.normal_(adapted.get_parameter(name), std=0.1)
        after = adapted(PIXELS).logits.detach()
        assert (after - before).abs().max() > 1e-2
        torch.testing.assert_close(adapted.merge_and_unload()(PIXELS).logits, after, atol=1e-4, rtol=1e-4)

    def test_layers_by_name(self):
        adapted = add_adapters(FerPllForImageClassification(tiny_config()), targets=["q_proj", "layers.1.mlp.fc1"])
        layers = {
            name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained(adapted) if "lora" in name
        }
        assert layers == {
            "fer_pll.layers.0.attention.q_proj",
            "fer_pll.layers.1.attention.q_proj",
            "fer_pll.layers.1.mlp.fc1",
        }
        with pytest.raises(ValueError, match=r"has no layer 'query'\. It has .*fc1, fc2, .*q_proj"):
            add_adapters(FerPllForImageClassification(tiny_config()), targets=["query"])

    @pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}])
    def test_bad_numbers(self, settings):
        with pytest.raises(ValueError, match=r"lora_rank=.* must be at least 1, lora_alpha=.* positive"):
            add_adapters(FerPllForImageClassification(tiny_config()), **settings)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    FerPllForPreTraining(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    DatasetDict(train=make_dataset(48, seed=0), validation=make_dataset(24, seed=1)).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    tiny_config().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "finetune.yaml").write_text(
        "num_train_epochs: 2\nper_device_train_batch_size: 16\nlearning_rate: 0.01\nsave_strategy: epoch\n"
        "eval_strategy: epoch\nrevision_threshold: 0.1\nload_best_model_at_end: true\n"
        "metric_for_best_model: accuracy\n"
    )
    return folder


def command(config, data, encoder, out, *more: str) -> list[str]:
    options = {"--config": config, "--data": data, "--init_from": encoder, "--output_dir": out}
    return [str(each) for option in options.items() for each in option] + ["--lora", "--disable_tqdm", "true", *more]


@pytest.fixture(scope="module")
def run(config, data, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    finetune.main(command(config, data, encoder, folder))
    return folder


class TestCommand:
    def test_the_run_folder_holds_the_merged_model_and_the_adapters(self, run, config, data, encoder):
        merged = AutoModelForImageClassification.from_pretrained(run).eval()
        assert type(merged) is FerPllForImageClassification
        assert set(load_file(run / "model.safetensors")) == set(
            FerPllForImageClassification(tiny_config()).state_dict()
        )
        options, args = finetune.make_parser().parse_settings(command(config, data, encoder, run, "--overwrite"))
        base, _ = options.make_model(args, CLASSES)
        before = base.state_dict()["fer_pll.layers.0.mlp.fc1.weight"].clone()
        adapted = PeftModel.from_pretrained(base, run / "adapter").eval()
        torch.testing.assert_close(merged(PIXELS).logits, adapted(PIXELS).logits, atol=1e-5, rtol=1e-5)
        change = merged.state_dict()["fer_pll.layers.0.mlp.fc1.weight"] - before
        assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 8  # the default rank
        frozen = "fer_pll.embeddings.patch_embeddings.projection.weight"
        assert torch.equal(merged.state_dict()[frozen], load_file(encoder / "model.safetensors")[frozen])

    def test_checkpoints_hold_the_adapters_only(self, run):
        checkpoint = run / "checkpoint-3"
        assert (checkpoint / "adapter_model.safetensors").is_file()
        assert not (checkpoint / "model.safetensors").exists()

    def test_what_is_published(self, run):
        files = published_files(run)
        assert {"model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(files)
        assert not any("checkpoint" in name or "adapter_base" in name for name in files)
        card = (run / "README.md").read_text()
        assert "lora_rank" in json.dumps(json.loads((run / "training.json").read_text())) and "fer-pll" in card

    def test_a_resumed_run_ends_the_same(self, run, config, data, encoder, tmp_path):
        shutil.copytree(run / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
        resume = ("--resume_from_checkpoint", "last")
        finetune.main(command(config, data, encoder, tmp_path / "run", *resume))
        for name in ("model.safetensors", "confidence.safetensors", "adapter/adapter_model.safetensors"):
            expected, actual = load_file(run / name), load_file(tmp_path / "run" / name)
            assert set(expected) == set(actual)
            assert all(torch.equal(actual[key], expected[key]) for key in expected), name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("no lora", "the run has adapters: give --lora"),
            (["--lora_rank", "4"], "lora_rank was 8 and is 4"),
            (["--lora_alpha", "8"], "lora_alpha was 16 and is 8"),
            (["--lora_targets", "fc1"], "adapters are on other layers"),
            ("other weights", "its adapters belong to other weights"),
        ],
    )
    def test_a_run_does_not_go_on_with_other_adapters(self, run, config, data, encoder, tmp_path, change, message):
        shutil.copytree(run / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
        if change == "other weights":
            torch.manual_seed(2)
            encoder = tmp_path / "encoder"
            FerPllForPreTraining(tiny_config()).save_pretrained(encoder)
        argv = command(config, data, encoder, tmp_path / "run", "--resume_from_checkpoint", "last")
        if change == "no lora":
            argv.remove("--lora")
        elif isinstance(change, list):
            argv += change
        with pytest.raises(ValueError, match=message):
            finetune.main(argv)

    def test_a_run_without_adapters_does_not_go_on_with_them(self, config, data, encoder, tmp_path):
        argv = command(config, data, encoder, tmp_path / "run", "--max_steps", "1", "--save_steps", "1")
        argv += ["--save_strategy", "steps", "--load_best_model_at_end", "false"]
        argv.remove("--lora")
        finetune.main(argv)
        with pytest.raises(ValueError, match="the run has no adapters: leave out --lora"):
            finetune.main([*argv, "--lora", "--resume_from_checkpoint", "last"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--freeze_backbone", "true"], "--lora keeps the encoder's weights as they are"),
            (["--loss", "pico"], "loss='pico' trains a head that would not be saved"),
            (
                ["--push_to_hub", "true", "--hub_model_id", "a/b"],
                "only the merged model is pushed, at the end",
            ),
        ],
    )
    def test_what_does_not_go_together(self, config, data, encoder, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            finetune.build(command(config, data, encoder, tmp_path / "run", *options))

    def test_random_weights_are_no_base(self, config, data, encoder, tmp_path):
        argv = command(config, data, encoder, tmp_path / "run")
        del argv[argv.index("--init_from") : argv.index("--init_from") + 2]
        with pytest.raises(
            ValueError, match="--lora learns small changes of weights that are there: give --init_from"
        ):
            finetune.build(argv)


def test_a_convolutional_backbone_goes_on_with_its_batch_norms(config, data, tmp_path):
    """Their statistics change in training, although the weights around them stay."""
    torch.manual_seed(3)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 1}
    network = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=4))
    network.save_pretrained(tmp_path / "resnet")
    tiny_processor().save_pretrained(tmp_path / "resnet")
    ends = []
    for out in ("whole", "resumed"):
        argv = command(config, data, "", tmp_path / out, "--backbone", str(tmp_path / "resnet"))
        del argv[argv.index("--init_from") : argv.index("--init_from") + 2]
        if out == "resumed":
            shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
            argv += ["--resume_from_checkpoint", "last"]
        finetune.main(argv)
        ends.append(load_file(tmp_path / out / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    before, convolutions = network.state_dict(), []
    for name, tensor in ends[0].items():
        source = name.replace("fer_pll.backbone.", "resnet.")
        if name.endswith("running_mean"):
            assert not torch.equal(tensor, before[source])
        elif name.endswith("convolution.weight"):
            convolutions.append(not torch.equal(tensor, before[source]))
    assert len(convolutions) > 4 and all(convolutions)


DAMAGED = {
    "empty": "",
    "cut off": '{"r": 2, "lora_al',
    "a page": "<!DOCTYPE html><html>404</html>",
    "a list": "[]",
    "null": "null",
    "nothing in it": "{}",
    "other types": '{"r": "2", "lora_alpha": [], "target_modules": 5, "modules_to_save": {}, "sha256": 5}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_base.json"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_settings_of_adapters_are_an_error_that_names_the_file(name, damage, tmp_path):
    model = add_adapters(FerPllForImageClassification(tiny_config()), rank=2)
    model.save_pretrained(tmp_path)
    save_base(model, tmp_path)
    check_adapters(model, tmp_path)
    (tmp_path / name).write_text(DAMAGED[damage])
    with pytest.raises(DataError, match=f"{name}.*resume from another checkpoint"):
        check_adapters(model, tmp_path)


@pytest.mark.parametrize("targets", ["all-linear", r".*fc\d", ["fc1"]])
def test_adapters_of_a_user_are_told_apart_however_they_name_the_layers(targets, tmp_path):
    def adapted(targets) -> PeftModel:
        model = FerPllForImageClassification(tiny_config(initializer_range=0.0))
        return get_peft_model(model, LoraConfig(r=2, target_modules=targets))

    torch.manual_seed(0)
    model = adapted(targets)
    model.save_pretrained(tmp_path)
    save_base(model, tmp_path)
    check_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="on other layers"):
        check_adapters(adapted(["fc2"]), tmp_path)


class TestTrainer:
    """A `PeftModel` that a user made, in our trainer."""

    def trainer(self, folder, **settings) -> FerPllTrainer:
        def adapt(model, *args, **options) -> FerPllTrainer:
            config = LoraConfig(r=2, target_modules="all-linear")
            return FerPllTrainer(get_peft_model(model, config), *args, **options)

        data = make_dataset(48), make_dataset(24, seed=1)
        return make_trainer(folder, tiny_config(), tiny_processor(), *data, trainer_class=partial(adapt), **settings)

    def test_it_learns_revises_and_evaluates(self, tmp_path):
        trainer = self.trainer(tmp_path, num_train_epochs=20, learning_rate=0.02, eval_strategy="epoch")
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
        assert (trainer.table.revised_epoch >= 0).any()
        assert "uniformity" in str(trainer.state.log_history) or trainer.model.label_queries is not None
        logits = trainer.predict(make_dataset(24, seed=1)).predictions
        trainer.merge_adapters()
        assert type(trainer.model) is FerPllForImageClassification
        merged = trainer.predict(make_dataset(24, seed=1)).predictions
        np.testing.assert_allclose(merged, logits, atol=1e-4)
        trainer.save_model()
        assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "adapter" / "adapter_config.json").is_file()

    def test_layer_wise_learning_rates(self, tmp_path):
        trainer = self.trainer(tmp_path, layer_decay=0.5)
        rates = {
            name: group["lr"]
            for group in trainer.create_optimizer().param_groups
            for name, each in trainer.model.named_parameters()
            if any(each is one for one in group["params"])
        }
        first = next(rate for name, rate in rates.items() if "fer_pll.layers.0." in name)
        last = next(rate for name, rate in rates.items() if "fer_pll.layers.1." in name)
        head = next(rate for name, rate in rates.items() if "classifier" in name)
        assert head == pytest.approx(2 * last) and last == pytest.approx(2 * first)
