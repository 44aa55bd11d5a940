"""The trainings and what judges them, as a user runs them: from drawn faces to metrics."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, DatasetDict, Features
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline

import fer_pll_cli
from fer_pll import FerPllConfig, FerPllForImageClassification, FerPllImageProcessor
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.labels.expressions import EXPRESSIONS
from fer_pll.training.evaluation import evaluate
from tiny import SIZES

SCRIPTS = Path(__file__).parents[2] / "train_scripts"
LAUNCHERS = {
    "accelerate, module": ("accelerate", "launch", "--cpu", "-m", "fer_pll.commands.finetune"),
    "torchrun, file": ("torchrun", "--nproc_per_node", "1", SCRIPTS / "finetune.py"),
    "python, file": (sys.executable, SCRIPTS / "finetune.py"),
}


def run(*command: object, expect: int = 0, merge: bool = True) -> str:
    """What the command printed, with its standard error or, `merge=False`, without."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output[-4000:]
    return output if merge else done.stdout


def fer_pll(*argv: object, expect: int = 0) -> str:
    """What the command line said, in this process."""
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        status = fer_pll_cli.main([str(part) for part in argv])
    assert status == expect, said.getvalue()[-4000:]
    return said.getvalue()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A small configuration beside the shipped ones, and drawn faces, prepared."""
    folder = tmp_path_factory.mktemp("scripts")
    shipped = SCRIPTS.parent / "hub_configs" / "fer-pll-tiny-ferplus-quick"
    pretraining = SCRIPTS.parent / "hub_configs" / "fer-pll-tiny-hog" / "pretrain.yaml"
    config = folder / "config"
    config.mkdir()
    for path in (shipped / "preprocessor_config.json", shipped / "finetune.yaml", pretraining):
        (config / path.name).write_text(path.read_text())
    settings = json.loads((shipped / "config.json").read_text()) | SIZES
    (config / "config.json").write_text(json.dumps(settings))
    sizes = ("--num-train", 96, "--num-validation", 32, "--num-test", 0)
    fer_pll("prepare", "synthetic", "--out", folder / "data", *sizes)
    return folder


@pytest.mark.long
def test_from_drawn_faces_to_metrics(workspace):
    common = ("--config", workspace / "config", "--data", workspace / "data", "--bf16", "false")
    common += ("--per_device_train_batch_size", 32, "--logging_steps", 1)
    pretrain = ("pretrain", *common, "--output_dir", workspace / "pretrained")
    output = fer_pll(*pretrain, "--num_train_epochs", 1, "--probe", workspace / "data")
    assert output.count("probe_accuracy") == 2 and "images_per_second" in output
    assert (workspace / "pretrained" / "pictures" / "step-0000003.png").is_file()
    assert "--overwrite" in fer_pll(*pretrain, "--num_train_epochs", 1, expect=1)  # refused, the first run stays
    fer_pll(*pretrain, "--num_train_epochs", 2, "--resume_from_checkpoint", "last")
    state = json.loads((workspace / "pretrained" / "trainer_state.json").read_text())
    assert state["global_step"] == 6

    # Fine-tuning goes through `accelerate launch`, on two processes.
    launch = (Path(sys.executable).parent / "accelerate", "launch", "--config_file", SCRIPTS / "accelerate/ddp.yaml")
    finetune = (*launch, SCRIPTS / "finetune.py", *common, "--init_from", workspace / "pretrained")
    output = run(*finetune, "--output_dir", workspace / "run", "--num_train_epochs", 1, "--max_candidates", 3)
    assert "query_decoder" in output  # says which weights are new
    settings = json.loads((workspace / "run" / "settings.json").read_text())
    assert settings["script"]["max_candidates"] == 3
    assert settings["script"]["flip_probability"] is None  # had no say: the data have votes
    training = json.loads((workspace / "run" / "training.json").read_text())
    assert training["settings"]["max_candidates"] == 3 and "flip_probability" not in training["settings"]
    checkpoint = workspace / "run" / "checkpoint-2"  # 96 rows, 2 x 32 at a time
    assert json.loads((checkpoint / "processes.json").read_text())["world_size"] == 2
    for file in ("confidence.safetensors", "training_curves.png"):
        assert (workspace / "run" / file).is_file()

    output = run(sys.executable, SCRIPTS / "evaluate.py", workspace / "run", workspace / "data")
    report = json.loads((workspace / "run" / "evaluation-validation" / "metrics.json").read_text())
    everything, majority = report["protocols"]["all"], report["protocols"]["majority"]
    assert everything["rows"] == 32 >= majority["rows"] > 0
    assert sum(map(sum, everything["confusion_matrix"])) == 32
    assert f"{everything['accuracy']:.1%}" in output
    for image in ("confusion_matrix_all.png", "confusion_matrix_majority.png", "training_curves.png"):
        assert (workspace / "run" / "evaluation-validation" / image).read_bytes().startswith(b"\x89PNG")

    # What was counted is what a user's pipeline says.
    rows = load_dataset(workspace / "data", "validation")
    classify = pipeline("image-classification", model=str(workspace / "run"), device="cpu", trust_remote_code=False)
    said = [answer[0]["label"] for answer in classify(rows["image"][:], batch_size=8)]
    right = sum(name == rows.features["label"].int2str(label) for name, label in zip(said, rows["label"], strict=True))
    assert right / 32 == pytest.approx(everything["accuracy"])


def test_a_model_is_judged_on_a_data_set_with_other_classes(workspace):
    """`surprise` the model knows by another name, `boredom` not at all; the data lack six of its classes."""
    model = FerPllForImageClassification(FerPllConfig.from_pretrained(workspace / "config"))
    model.save_pretrained(workspace / "model")
    FerPllImageProcessor.from_pretrained(workspace / "config").save_pretrained(workspace / "model")
    faces = load_dataset(workspace / "data", "validation").select_columns(["image", "row_id", "label"])
    names = ["boredom", "Surprised", "happiness"]
    labels = [number % 4 - 1 for number in range(len(faces))]  # -1: undefined
    features = Features(faces.features | {"label": ClassLabel(names=names)})
    other = faces.remove_columns("label").add_column("label", labels).cast(features)
    save_dataset(DatasetDict(test=other), workspace / "other")

    out = workspace / "elsewhere"
    output = fer_pll("evaluate", workspace / "model", workspace / "other", "--split", "test", "--out", out)
    report = json.loads((out / "metrics.json").read_text())
    assert report["classes"] == ["happiness", "surprise"]
    assert report["classes_of_the_data_only"] == ["boredom"] and len(report["classes_of_the_model_only"]) == 6
    assert report["rows_left_out"] == 16 and report["protocols"]["all"]["rows"] == 16
    assert "8 of 32 rows have no label" in output and "8 of 32 rows have none of the 2 classes judged" in output
    assert "of the data only, left out: boredom" in output

    predictions = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert list(predictions)[:3] == ["row_id", "label", "predicted"]
    classes = list(predictions)[3:]
    assert classes == list(EXPRESSIONS)
    assert predictions["row_id"].tolist() == other["row_id"][:]
    assert predictions["label"].tolist()[:4] == ["", "boredom", "surprise", "happiness"]
    assert abs(predictions[classes].sum(axis=1) - 1).max() < 1e-5
    assert (predictions[classes].idxmax(axis=1) == predictions["predicted"]).all()
    judged = predictions[predictions["label"].isin(["surprise", "happiness"])]
    right = judged[["happiness", "surprise"]].idxmax(axis=1) == judged["label"]
    assert right.mean() == pytest.approx(report["protocols"]["all"]["accuracy"])

    alone = other.cast(Features(features | {"label": ClassLabel(names=["boredom", "pride", "fear"])}))
    save_dataset(DatasetDict(test=alone), workspace / "alone")
    output = fer_pll("evaluate", workspace / "model", workspace / "alone", "--split", "test", expect=1)
    assert "needs two in common" in output


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learning_rate", "-1"), "learning_rate=-1.0 must not be negative"),
        (("--lr_scheduler_kwargs", '{"nonsense": 1}'), "nonsense"),
        (("--optim", "adamw_bnb_8bit"), "bitsandbytes"),
    ],
)
def test_a_mistake_in_a_setting_does_not_cost_an_earlier_run(workspace, tmp_path, command, options, message):
    for name in ("settings.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    config = workspace / "config" if command == "finetune" else "fer-pll-tiny-hog"
    arguments = ("--config", config, "--data", workspace / "data", "--output_dir", tmp_path, "--use_cpu", "true")
    assert message in fer_pll(command, *arguments, "--overwrite", *options, expect=1)
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "model.safetensors"}


def test_own_votes_are_judged_by_both_protocols(workspace):
    """Without a column that says so, the majority is more than half of the votes."""
    model = FerPllForImageClassification(FerPllConfig.from_pretrained(workspace / "config"))
    model.save_pretrained(workspace / "of-own-votes")
    FerPllImageProcessor.from_pretrained(workspace / "config").save_pretrained(workspace / "of-own-votes")
    faces = load_dataset(workspace / "data", "validation").remove_columns("majority")
    votes = np.zeros((len(faces), len(EXPRESSIONS)), dtype=int)
    votes[:, 0], votes[::2, 1] = 2, 1
    votes[1::2, 1] = 2
    feature = faces.features["votes"]
    own = faces.remove_columns("votes").add_column("votes", votes.tolist(), feature=feature)
    save_dataset(DatasetDict(test=own), workspace / "own")
    report = evaluate(workspace / "of-own-votes", workspace / "own", "test", workspace / "own-evaluation")
    rows = {name: figures["rows"] for name, figures in report["protocols"].items()}
    assert rows == {"all": len(faces), "majority": int((2 * votes.max(axis=1) > votes.sum(axis=1)).sum())}
    assert 0 < rows["majority"] < rows["all"]
    agreed = own.remove_columns("votes").add_column(
        "votes", (5 * np.eye(8, dtype=int))[own["label"]].tolist(), feature=feature
    )
    save_dataset(DatasetDict(test=agreed), workspace / "agreed")
    report = evaluate(workspace / "of-own-votes", workspace / "agreed", "test", workspace / "agreed-evaluation")
    assert list(report["protocols"]) == ["all"]  # the other would be the same


def test_a_model_of_transformers_with_its_own_processor_is_judged_on_gray_faces(workspace):
    """Its processor wants three channels; training gives it gray images."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(EXPRESSIONS)),
    )
    ViTForImageClassification(config).save_pretrained(workspace / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(workspace / "vit")
    assert load_dataset(workspace / "data", "validation")[0]["image"].mode == "L"
    report = evaluate(workspace / "vit", workspace / "data", out=workspace / "vit-evaluation")
    assert report["protocols"]["all"]["rows"] == 32


def test_out_of_fold_predictions_cover_every_row_and_go_on_where_they_were_cut_off(workspace):
    out = workspace / "out-of-fold"
    command = ("out-of-fold", "--config", workspace / "config", "--data", workspace / "data", "--output_dir", out)
    command += ("--folds", 2, "--num_train_epochs", 1, "--loss", "soft_votes")
    output = fer_pll(*command)
    assert "label recovery of the most probable candidate, out of fold:" in output
    tensors = load_file(out / "out_of_fold.safetensors")
    assert list(tensors) == ["probabilities"]
    torch.testing.assert_close(tensors["probabilities"].sum(dim=1), torch.ones(96))
    (out / "fold-2-of-2.safetensors").unlink()
    again = fer_pll(*command)
    assert "fold 2 of 2" in again and "fold 1 of 2" not in again
    assert torch.equal(load_file(out / "out_of_fold.safetensors")["probabilities"], tensors["probabilities"])


@pytest.mark.long
def test_comparing_methods_prints_a_row_for_each(tmp_path):
    options = ("--seeds", 2, "--num-train", 64, "--epochs", 1)
    output = run(sys.executable, SCRIPTS / "compare_methods.py", "--out", tmp_path, *options, merge=False)
    rows = [line for line in output.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 14 and all(row.count("±") == 3 for row in rows[1:])
    assert run(sys.executable, SCRIPTS / "compare_methods.py", "--out", tmp_path, *options, merge=False) == "\n".join(
        [rows[0], "|---|---|---|---|", *rows[1:], ""]
    )


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate", "out-of-fold"])
def test_mistakes_are_one_line_without_a_traceback(workspace, command):
    if command == "evaluate":
        output = fer_pll(command, workspace / "config", workspace / "nowhere", expect=1)
    else:
        options = ("--data", workspace / "nowhere", "--output_dir", workspace / "never")
        output = fer_pll(command, "--config", workspace / "config", *options, expect=1)
    assert output.splitlines()[-1].startswith("error: ") and "nowhere" in output and "Traceback" not in output
    assert not (workspace / "never").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_trains_and_passes_errors_on(workspace, name, tmp_path):
    program, *options = LAUNCHERS[name]
    common = (Path(sys.executable).parent / program, *options, "--config", workspace / "config")
    common += ("--output_dir", tmp_path / "run", "--max_steps", 1, "--bf16", "false")
    run(*common, "--data", workspace / "data")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    output = run(*common, "--data", workspace / "data", expect=1)
    assert output.count("error: --output_dir") == 1 and "already holds files" in output


@pytest.mark.parametrize(
    ("options", "ratios"),
    [
        (
            ["hog", "--batch-size", 2, "--image-size", 64],
            {"one_thread", "all_threads", "one_thread_noise", "one_thread_tiny", "largest_difference"},
        ),
        pytest.param(
            ["pretrain", "--batch-size", 2],
            {"time", "memory", "hog_share", "flops_share", "flops_share_peer"},
            marks=pytest.mark.long,
        ),
        pytest.param(["data", "--batch-size", 2], {"loader", "align", "over_training"}, marks=pytest.mark.long),
        pytest.param(
            ["copies", "--planted", 3, "--images", 40],
            {"compressed", "smaller", "mirrored", "cropped", "brighter", "recall", "precision", "time"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["table", "--rows", "10,100"],
            {"bytes_per_row", "build_mib", "save_mib", "load_mib", "step_growth"},
            marks=pytest.mark.long,
        ),
        pytest.param(["finetune", "--batch-size", 2], {"time", "memory", "trainer"}, marks=pytest.mark.long),
        pytest.param(["inference", "--batch-sizes", 1], {"torch_1", "onnx_1", "int8_1"}, marks=pytest.mark.long),
        pytest.param(
            ["finetune", "--scale", "resnet18", "--batch-size", 1],
            {"time", "memory", "trainer"},
            marks=pytest.mark.long,
        ),
        pytest.param(["checkpoints", "--batch-sizes", 1], {"torch_1", "onnx_1", "int8_1"}, marks=pytest.mark.long),
        pytest.param(["imports"], {"import", "first_use"}, marks=pytest.mark.long),
        pytest.param(["start"], {"start"}, marks=pytest.mark.long),
        pytest.param(
            ["photographs", "--photographs", 1, "--frames", 6],
            {"video_1", "video_5", "agreement_1"},
            marks=pytest.mark.long,
        ),
        pytest.param(["stream", "--images", 64, "--shards", 2], {"speed", "memory", "resume"}, marks=pytest.mark.long),
    ],
)
def test_benchmark_ends_with_one_json_object(options, ratios):
    output = run(sys.executable, SCRIPTS / "benchmark.py", *options, "--repeats", 1, "--threads", 2, merge=False)
    result = json.loads(output.splitlines()[-1])
    assert result["benchmark"] == options[0]
    assert result["ratios"].keys() == ratios and all(ratio >= 0 for ratio in result["ratios"].values())
    assert result["targets"].keys() <= ratios
    assert {"cpu", "cores", "threads", "torch", "peer"} <= result["machine"].keys()
    assert output.splitlines()[0].split()[-1] in ("target", "difference", "ratio", "transformers", "int8", "faces")
