"""What all commands owe their user: checks before work, one line for an error, names as they are, and what is next."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, DatasetDict

import fer_pll_cli
from fer_pll import ConfidenceTable, FerPllForImageClassification
from fer_pll.commands import calibrate
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.data.splits import hold_out
from fer_pll.labels.candidates import dataset_fingerprint
from fer_pll.metrics.calibration import differs_from_one, fit_temperature, negative_log_likelihood
from tiny import make_dataset, tiny_config, tiny_processor

HOSTILE = [r"a$\frac{$b", '=c|d "e"', "row_id", "two\nlines\x1b[2J\u202e"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A run as fer-pll finetune leaves it, of classes with names that figures and tables could trip over."""
    folder = tmp_path_factory.mktemp("manners")
    rows = make_dataset(48)
    label = ClassLabel(names=HOSTILE)
    for name in ("label", "true_label"):
        values = rows[name][:]
        rows = rows.remove_columns(name).add_column(name, values, feature=label)
    save_dataset(hold_out(DatasetDict(train=rows, validation=rows.select(range(24))), 0.25), folder / "data")
    config = tiny_config(HOSTILE)
    torch.manual_seed(0)
    FerPllForImageClassification(config).save_pretrained(folder / "run")
    tiny_processor(config).save_pretrained(folder / "run")
    train = load_dataset(folder / "data", "train")
    candidates = np.array(train["candidates"][:])
    fingerprint = dataset_fingerprint(HOSTILE, train["row_id"][:], candidates)
    ConfidenceTable.from_candidates(candidates, HOSTILE, fingerprint).save(folder / "run" / "confidence.safetensors")
    return folder


@pytest.fixture
def here(workspace, tmp_path, monkeypatch) -> Path:
    """The same in a folder of the test's own, which is the current one."""
    shutil.copytree(workspace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def says(capsys, *argv: object, expect: int = 0) -> str:
    status = fer_pll_cli.main([str(part) for part in argv])
    out, err = capsys.readouterr()
    assert status == expect, out + err
    assert all(line.isprintable() for line in out.split("\n")) and not re.search("^lines", out, re.MULTILINE)
    return err if expect else out


def test_class_names_are_no_formulas_separators_or_columns(here, capsys):
    """Each command ends with all of its files, and each class is where it belongs."""
    evaluated = says(capsys, "evaluate", "run", "data", "--device", "cpu")
    assert evaluated.splitlines()[-1] == "next: fer-pll audit run --out audit"
    out = here / "run" / "evaluation-validation"
    assert {"metrics.json", "predictions.csv", "confusion_matrix_all.png"} <= {path.name for path in out.iterdir()}
    predictions = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert list(predictions) == ["row_id", "label", "predicted", *(f"p_{name.lower()}" for name in HOSTILE)]
    assert predictions["row_id"].tolist() == load_dataset("data", "validation")["row_id"][:]
    shares = predictions[[f"p_{name.lower()}" for name in HOSTILE]].to_numpy()
    assert [HOSTILE[k].lower() for k in shares.argmax(axis=1)] == predictions["predicted"].tolist()
    report = json.loads((out / "metrics.json").read_text())
    assert list(report["protocols"]["all"]["per_class_recall"]) == [name.lower() for name in HOSTILE]

    audited = says(capsys, "audit", "run", "--data", "data", "--out", "audit")
    assert audited.splitlines()[-1].startswith("next: ") and "no row was revised" in audited
    assert sorted(path.name for path in (here / "audit").iterdir()) == ["audit.csv", "audit.html", "audit.png"]
    table = pd.read_csv("audit/audit.csv", keep_default_na=False)
    assert "believed" in table and "corrected" not in table
    assert set(table["given"]) <= set(HOSTILE)

    calibrated = says(capsys, "calibrate", "run", "data", "--out", "calibrated")
    assert calibrated.splitlines()[-1] == "next: fer-pll evaluate calibrated data"
    assert (here / "calibrated" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_commands_that_name_classes_and_rows_obey_none(here, capsys):
    """Class names and row ids have line breaks and what a terminal obeys; `says` looks at each line."""
    for name in ("data", "run"):
        Path(name).rename(f"{name}\x1b[2J\n")
    data, run = "data\x1b[2J\n", "run\x1b[2J\n"
    escaped = r"two\nlines\x1b[2J\u202e"
    assert escaped in says(capsys, "audit", run, "--data", data, "--out", "audit\x07")
    assert "run\\x1b[2J" in says(capsys, "evaluate", run, data, "--device", "cpu")
    assert "saved in more\\x07" in says(capsys, "propose", data, "--teacher", run, "--out", "more\x07")
    assert "data\\x1b[2J\\n" in says(capsys, "calibrate", run, data, "--out", "calibrated")
    (error,) = says(capsys, "evaluate", "no\x1b[2J\nwhere", data, expect=1).splitlines()
    assert error.isprintable() and "no\\x1b[2J where" in error


@pytest.mark.parametrize("option", [[], ["--safe-csv"]])
def test_safe_csv_is_the_same_option_wherever_a_table_has_names_in_it(option, here, capsys):
    """A class is named like a formula: a spreadsheet would run it, in the header too."""
    says(capsys, "evaluate", "run", "data", "--device", "cpu", *option)
    says(capsys, "audit", "run", "--data", "data", "--out", "audit", *option)
    evaluated = (here / "run" / "evaluation-validation" / "predictions.csv").open(newline="")
    audited = (here / "audit" / "audit.csv").open(newline="")
    cells = [cell for file in (evaluated, audited) for row in csv.reader(file) for cell in row]
    formulas = [cell for cell in cells if cell[:1] in set("=+-@\t\r") and not _is_number(cell)]
    names = {cell for cell in cells if cell in ('=c|d "e"', '\'=c|d "e"')}
    assert {name[0] for name in names} == ({"'"} if option else {"="})
    assert bool(formulas) == (not option)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_every_command_that_writes_a_table_with_names_has_safe_csv():
    for command in ("predict", "evaluate", "audit"):
        assert "--safe-csv" in (fer_pll_cli.HELP / f"{command}.txt").read_text()


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


NOWHERE = "/proc/nowhere"
WRITING = {
    "evaluate": ["run", "data", "--out", NOWHERE],
    "calibrate": ["run", "data", "--out", NOWHERE],
    "audit": ["run", "--data", "data", "--out", NOWHERE],
    "export": ["run", "--out", NOWHERE],
    "propose": ["data", "--teacher", "run", "--out", NOWHERE],
    "out-of-fold": ["--config", "run", "--data", "data", "--output_dir", NOWHERE, "--use_cpu"],
    "demo": ["--out", NOWHERE],
    "prepare": ["synthetic", "--num-train", "9", "--out", NOWHERE],
}


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(command, here, capsys, monkeypatch):
    def too_late(*args, **kwargs):
        pytest.fail("a model was loaded first")

    monkeypatch.setattr(torch.nn.Module, "__init__", too_late)
    before = files(here)
    error = says(capsys, command, *WRITING[command], expect=1)
    assert len(error.splitlines()) == 1 and error.startswith("error: ") and NOWHERE in error
    assert files(here) == before


@pytest.mark.parametrize(
    ("command", "out"),
    [
        *((command, "s3://bucket/x") for command in WRITING),
        *((name, "") for name in ("prepare", "propose", "export", "audit")),
    ],
)
def test_an_address_is_no_place_on_this_machine(command, out, here, capsys):
    before = files(here)
    argv = [word if word != NOWHERE else out for word in WRITING[command]]
    error = says(capsys, command, *argv, expect=1)
    assert ("is an address, but" if out else "path of an output is empty") in error
    assert files(here) == before


def test_results_of_predict_are_local_and_its_sources_have_names(here, capsys):
    for option in ("--save-pictures", "--out"):
        error = says(capsys, "predict", "data", "--cropped", option, "s3://bucket/x.csv", expect=1)
        assert "no images or videos" in error or "is an address" in error
    assert "the name of an image is empty" in says(capsys, "predict", "", "--cropped", expect=1)


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "audit", "export"])
def test_a_file_in_place_of_an_output_folder_is_named(command, here, capsys):
    (here / "taken").write_text("mine")
    argv = [word if word != NOWHERE else "taken/new" for word in WRITING[command]]
    error = says(capsys, command, *argv, expect=1)
    assert len(error.splitlines()) == 1 and "taken is a file" in error and (here / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "at"),
    [
        (["evaluate", "run", "data", "--batch-size", "0"], "--batch-size: '0'"),
        (["evaluate", "run", "data", "--batch-size", "many"], "--batch-size: 'many'"),
        (["audit", "run", "--out", "audit", "--page-rows", "0"], "--page-rows: '0'"),
        (
            ["audit", "run", "--out", "audit", "--cross-validate", "1"],
            "--cross-validate: '1' is no",
        ),
        (["measure-crop", "data", "--count", "-3"], "--count: '-3'"),
        (["measure-crop", "data", "--enlarge", "0"], "--enlarge: '0'"),
        (["measure-crop", "data", "--seed", "-1"], "--seed: '-1' is no whole number from 0 up"),
        (["demo", "--seed", "-1"], "--seed: '-1'"),
        (["calibrate", "run", "data"], "--out"),
        (["propose", "data", "--teacher", "run", "--out", "new", "--max-candidates", "0"], "--max-candidates: '0'"),
        (["export", "run", "--dtype", "float8"], "--dtype: invalid choice"),
        (["push", "run", "me/faces", "--with-images"], "--with-images goes with"),
        (["out-of-fold", "--folds", "few"], "--folds"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_before_anything(argv, at, here, capsys):
    before = files(here)
    with pytest.raises(SystemExit) as stop:
        fer_pll_cli.main(argv)
    assert stop.value.code == 2
    assert at in capsys.readouterr().err and files(here) == before


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_a_set_without_the_split_says_which_it_has_and_how_to_make_it(command, here, capsys):
    save_dataset(DatasetDict(train=load_dataset("data", "train")), here / "train-only")
    out = ["--out", "new"]
    error = says(capsys, command, "run", "train-only", *out, expect=1)
    option = {"evaluate": "--validation-share", "calibrate": "--hold-out"}[command]
    assert "it has train" in error and f"prepare the set again with {option}" in error
    assert not (here / "new").exists()


def test_commands_add_no_words_of_libraries(here):
    """In a process of its own, because a library that warned once is quiet ever after."""
    command = [sys.executable, "-m", "fer_pll_cli"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("TRANSFORMERS_VERBOSITY", None)
    argv = ["calibrate", "run", "data", "--out", "calibrated"]
    done = subprocess.run([*command, *argv], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    noise = re.sub(r"evaluate: .*\n?", "", done.stderr)  # our own progress bar
    assert "Loading weights" not in done.stderr and "transformers" not in noise, noise
    assert done.stdout.startswith("temperature ")


def figures(rows: int, nll=(0.6, 0.5), ece=(0.06, 0.05)) -> dict:
    values = zip(("nll_before", "nll_after", "ece_before", "ece_after"), (*nll, *ece), strict=True)
    return {"balance": 0.0, "rows": rows, "temperature": 0.98, **dict(values)}


def test_a_calibration_says_what_it_did_and_when_it_did_not_help():
    helped = calibrate.summary(figures(1076))
    assert "fitted on 1,076 rows" in helped and "warning" not in helped
    assert re.search(r"NLL +0\.6000 +0\.5000\nECE +0\.0600 +0\.0500", helped)
    assert "59 rows are few" in calibrate.summary(figures(59)) and "--hold-out" in calibrate.summary(figures(59))
    assert "did not help measurably" in calibrate.summary(figures(59, nll=(0.60, 0.59)))  # the case of a newcomer
    assert "did not help measurably" in calibrate.summary(figures(1000, nll=(0.6010, 0.6)))
    worse = calibrate.summary(figures(1076, ece=(0.05, 0.06)))
    assert "NLL fell, but ECE rose" in worse and "did not help" not in worse


def test_the_test_of_a_temperature_errs_as_often_as_it_says():
    """Labels drawn by the model's own shares: the temperature is 1, and one in twenty fits looks as if it were not."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        logits = rng.normal(scale=2, size=(300, 4))
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = (shares.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1).clip(max=3)
        fitted = fit_temperature(logits, labels)
        likelihoods = (negative_log_likelihood(logits / t, labels) for t in (1.0, fitted))
        found += differs_from_one(*likelihoods, 300)
    assert 2 <= found <= 20  # 10 are expected; a count outside has a probability below 0.2 %
