"""What shards a model in a way that is not supported is refused at once, by name and with the reason."""

import json
import warnings

import pytest

import fer_pll_cli
from fer_pll import FerPllTrainingArguments
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.sharding import check_state_dict_type
from tiny import QUICK, make_dataset, make_trainer, tiny_config, tiny_processor

ZERO_2 = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}


@pytest.mark.parametrize("kind", [FerPllTrainingArguments, FerPllPreTrainingArguments])
def test_deepspeed_is_refused_installed_or_not(kind, tmp_path, monkeypatch):
    message = "DeepSpeed is refused, ZeRO-2 like its other stages: .* take FSDP2"
    with pytest.raises(ValueError, match=message):
        kind(str(tmp_path), **QUICK, deepspeed=ZERO_2)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # as accelerate launch sets it
    with pytest.raises(ValueError, match=message):
        kind(str(tmp_path), **QUICK)


def test_the_command_refuses_deepspeed_in_one_line(tmp_path, capsys):
    (tmp_path / "zero2.json").write_text(json.dumps(ZERO_2))
    options = ["--data", tmp_path, "--output_dir", tmp_path / "run", "--deepspeed", tmp_path / "zero2.json"]
    status = fer_pll_cli.main([str(part) for part in ("finetune", *options)])
    said = capsys.readouterr().err
    assert status != 0 and "DeepSpeed is refused" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:FSDP1")
def test_the_first_fsdp_is_refused(tmp_path, monkeypatch):
    message = "FSDP1 is refused: it flattens the parameters"
    with pytest.raises(ValueError, match=message):
        FerPllTrainingArguments(str(tmp_path), **QUICK, fsdp=True, fsdp_config={"version": 1})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # whose version is 1 by default
    with pytest.raises(ValueError, match=message):
        FerPllTrainingArguments(str(tmp_path), **QUICK)


def test_fsdp_that_does_not_shard_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.warns(UserWarning, match="here each process holds the whole model"):
        make_trainer(tmp_path, tiny_config(), tiny_processor(), make_dataset(8))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(tmp_path, tiny_config(), tiny_processor(), make_dataset(8))


def test_a_checkpoint_is_resumed_with_the_state_dict_that_it_has(tmp_path):
    whole, full, parts = (tmp_path / name for name in ("whole", "full", "parts"))
    (parts / "pytorch_model_fsdp_0").mkdir(parents=True)
    full.mkdir()
    (full / "pytorch_model_fsdp.bin").touch()
    types = {whole: None, full: "FULL_STATE_DICT", parts: "SHARDED_STATE_DICT"}
    for checkpoint, written in types.items():
        check_state_dict_type(checkpoint, written)
        for own in {*types.values()} - {written}:
            with pytest.raises(ValueError, match=r"was written with.* FSDP.*, and this run is with"):
                check_state_dict_type(checkpoint, own)
