"""`fer-pll audit` on a small run: what it finds, writes and refuses."""

import base64
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file, save_file

import fer_pll_cli
from fer_pll import (
    ConfidenceTable,
    FacialExpressionPipeline,
    FerPllForImageClassification,
    FerPllTrainingArguments,
)
from fer_pll.audit.label_audit import LabelAudit
from fer_pll.audit.out_of_fold import out_of_fold
from fer_pll.audit.report import read_run
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.inference.explanation import heat_maps
from fer_pll.labels.candidates import dataset_fingerprint
from fer_pll.plots.audit import plot_audit
from fer_pll.training.config import start_run
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.run_folder import RunFolder
from tiny import CLASSES, QUICK, make_dataset, tiny_config, tiny_processor
from toy_training import DEFAULTS

ROWS, WRONG = 96, range(0, 96, 8)


def audit(*argv) -> int:
    return fer_pll_cli.main(["audit", *map(str, argv)])


def files_in(folder) -> dict:
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Prepared rows, of which every eighth label is wrong by 3 votes to 2, and a run as fer-pll finetune leaves it."""
    folder = tmp_path_factory.mktemp("audit")
    rows = make_dataset(ROWS)
    truth = np.array(rows["true_label"][:])
    votes = np.array(rows["votes"][:])
    votes[votes == 3] = 1  # 4 for the truth; 1 for another label, where there is one
    label = truth.copy()
    for row in WRONG:
        label[row] = (truth[row] + 1) % 4
        votes[row] = 0
        votes[row, [label[row], truth[row]]] = 3, 2
    for name, values in (("votes", list(votes)), ("label", label)):
        feature = rows.features[name]
        rows = rows.remove_columns(name).add_column(name, values, feature=feature)
    rows = rows.remove_columns("candidates")
    save_dataset(DatasetDict(train=rows), folder / "data")

    tiny_config().save_pretrained(folder / "config")
    tiny_processor().save_pretrained(folder / "config")
    script = FineTuningOptions(config=str(folder / "config"), data=str(folder / "data"))
    settings = (
        QUICK | DEFAULTS | {"confidence_init": "uniform", "num_train_epochs": 4, "per_device_train_batch_size": 32}
    )
    args = FerPllTrainingArguments(output_dir=str(folder / "run"), logging_strategy="no", **settings)
    torch.manual_seed(0)
    trainer = script.make_trainer(args, script.add_candidates(load_dataset(folder / "data", "train"), args.seed))
    start_run(args, script)
    trainer.train()
    trainer.save_confidence()
    return SimpleNamespace(run=folder / "run", data=folder / "data", truth=truth)


def test_table_and_summary_say_what_the_run_made_of_each_row(workspace, tmp_path, capsys):
    out = tmp_path / "new" / "audit"
    assert audit(workspace.run, "--out", out) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(out / "audit.csv", keep_default_na=False)
    assert sorted(table["index"]) == list(range(ROWS))
    assert (table["suspicion"].diff().dropna() <= 0).all()

    run = load_file(workspace.run / "confidence.safetensors")
    for row in table.itertuples():
        assert row.row_id == f"row:{row.index}"
        candidates = [name for name, inside in zip(CLASSES, run["candidates"][row.index], strict=True) if inside]
        assert row.candidates.split("|") == candidates
        confidence = dict(zip(CLASSES, run["confidence"][row.index].tolist(), strict=True))
        assert row.struck_out == "|".join(name for name in candidates if confidence[name] < 0.01)
        assert row.revised_epoch == ("" if (epoch := int(run["revised_epoch"][row.index])) < 0 else str(epoch))
        assert getattr(row, f"confidence_{row.believed}") == pytest.approx(confidence[row.believed], abs=1e-6)
        assert row.true_label == CLASSES[workspace.truth[row.index]]
    assert table["struck_out"].str.len().gt(0).sum() >= 10
    votes = table.sort_values("index")[[f"votes_{name}" for name in CLASSES]].to_numpy()
    assert votes.tolist() == load_dataset(workspace.data, "train")["votes"][:]
    place, given = np.arange(ROWS), table.sort_values("index")["given"].map(CLASSES.index)
    shares = votes / votes.sum(axis=1, keepdims=True)
    belief = 0.9 * run["confidence"].numpy()[place, given] + 0.1 * shares[place, given]
    np.testing.assert_allclose(table.sort_values("index")["suspicion"], 1 - belief, atol=1e-5)

    believed = (table["believed"] == table["true_label"]).mean()
    assert f"{1 - len(WRONG) / ROWS:.1%} as given, {believed:.1%} as believed (96 known labels)" in said
    pairs = table[table["given"] != table["believed"]].groupby(["given", "believed"]).size()
    (given, other), rows = pairs.idxmax(), pairs.max()
    assert [given, "->", other, str(rows)] in [line.split()[:4] for line in said.splitlines()]
    assert "annotators say" in said
    assert (out / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "audit.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in out.iterdir()) == ["audit.csv", "audit.html", "audit.png"]


def test_cross_validation_goes_on_where_it_was_cut_off(workspace, tmp_path, capsys):
    command = (workspace.run, "--cross-validate", 2, "--out", tmp_path, "--table", tmp_path / "rows.parquet")
    assert audit(*command) == 0
    said = capsys.readouterr().out
    assert "fold 1 of 2" in said and "fold 2 of 2" in said and "judged by models that have not seen them" in said
    table = pd.read_parquet(tmp_path / "rows.parquet")
    beliefs = table[[f"belief_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(beliefs.sum(axis=1), 1, atol=1e-5)
    given = table["given"].map(CLASSES.index)
    np.testing.assert_allclose(1 - beliefs[np.arange(ROWS), given], table["suspicion"], atol=1e-5)

    (workspace.run / "out_of_fold" / "fold-2-of-2.safetensors").unlink()
    assert audit(*command) == 1  # the files are there
    assert "--overwrite" in capsys.readouterr().err
    assert audit(*command, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "fold 2 of 2" in said and "fold 1 of 2" not in said
    again = pd.read_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(again, table)

    # A fold of other settings is no part of this cross-validation.
    run = tmp_path / "run"
    shutil.copytree(workspace.run, run)
    settings = json.loads((run / "settings.json").read_text())
    settings["arguments"]["learning_rate"] = 0.1
    (run / "settings.json").write_text(json.dumps(settings))
    before = files_in(tmp_path)
    assert audit(run, "--cross-validate", 2, "--out", tmp_path / "other") == 1
    assert "was made with other settings: delete the folder" in capsys.readouterr().err
    assert files_in(tmp_path) == before


def test_no_row_is_judged_by_a_model_that_saw_it(workspace, tmp_path):
    """The real division and order of rows, with trainers that only note what they are given."""
    table, dataset = RunFolder(workspace.run).table_and_rows()
    dataset = dataset.add_column("candidates", list(table.candidates.numpy()))
    names = {image.tobytes(): i for i, image in enumerate(dataset["image"][:])}  # no two are alike
    assert len(names) == ROWS
    seen = []

    class Trainer:
        def __init__(self, rows):
            self.rows = {names[image.tobytes()] for image in rows["image"][:]}
            assert rows["row_id"][:] == [f"row:{i}" for i in sorted(self.rows)]

        def train(self):
            pass

        def predict(self, rows):
            assert set(rows.column_names) == {"image", "label"} and not any(rows["label"][:])
            numbers = [names[image.tobytes()] for image in rows["image"][:]]
            seen.append((set(numbers), self.rows))
            return SimpleNamespace(predictions=np.eye(4)[workspace.truth[numbers]] * 20)

    probabilities = out_of_fold(dataset, Trainer, 5, tmp_path, {})
    assert probabilities.argmax(axis=1).tolist() == workspace.truth.tolist()
    everything = set(range(ROWS))
    assert len(seen) == 5 and set.union(*(held_out for held_out, _ in seen)) == everything
    assert all(held_out | trained_on == everything and not held_out & trained_on for held_out, trained_on in seen)


def test_ctrl_c_in_a_fold_says_how_to_go_on(workspace, tmp_path, capsys):
    table, dataset = RunFolder(workspace.run).table_and_rows()
    dataset = dataset.add_column("candidates", list(table.candidates.numpy()))

    def interrupted(rows):
        raise KeyboardInterrupt

    assert fer_pll_cli.status(lambda argv: out_of_fold(dataset, interrupted, 3, tmp_path, {}), []) == 130
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "stopped in fold 1 of 3" in error[0] and "the same command goes on" in error[0]


@pytest.mark.parametrize("columns", [["votes"], ["votes", "label", "true_label"]])
def test_one_label_for_each_row_and_ready_candidate_sets(columns):
    """Without votes the label is judged; without a label, the first of the row's candidates."""
    rows = make_dataset(6)
    candidates = np.array(rows["candidates"][:])
    if "label" in columns:
        label = rows.features["label"]
        rows = rows.remove_columns("label").add_column("label", [-1] * 6, feature=label)
    rows = rows.remove_columns([name for name in columns if name != "label"])
    confidence = np.where(candidates, 0.25, 0)
    confidence[np.arange(6), 3 - candidates[:, ::-1].argmax(axis=1)] += 1 - confidence.sum(axis=1)  # the last leads
    fingerprint = dataset_fingerprint(CLASSES, rows["row_id"][:], candidates)
    table = ConfidenceTable.from_candidates(candidates, CLASSES, fingerprint, "column", confidence=confidence)
    found = LabelAudit.from_run_rows(rows, table)
    given = candidates.argmax(axis=1) if "label" in columns else np.array(rows["label"][:])
    assert found.given.tolist() == given.tolist()
    assert found.believed.tolist() == (3 - candidates[:, ::-1].argmax(axis=1)).tolist()
    assert not any(name.startswith("votes_") for name in found.columns())
    assert ("true_label" in found.columns()) == ("label" not in columns)
    assert len(list(found.rows())) == 6 and "annotators say" not in str(found)
    sure = candidates.sum(axis=1) == 1
    np.testing.assert_allclose(found.score[sure], 0, atol=1e-12)


@pytest.mark.parametrize("predicted", [False, True])
def test_a_row_for_which_nobody_voted_is_judged_by_its_candidates(predicted):
    rows = make_dataset(12)
    votes = np.array(rows["votes"][:])
    votes[5] = 0
    rows = rows.remove_columns("votes").add_column("votes", votes.tolist())
    probabilities = np.full((12, 4), 0.25) if predicted else None
    found = LabelAudit.from_run_rows(rows, bare_table(rows), probabilities, num_folds=2 if predicted else 0)
    assert np.isfinite(found.posterior).all() and np.isfinite(found.score).all()
    assert (found.votes[5] > 0).tolist() == rows["candidates"][5]


def bare_table(rows, names=CLASSES, revised=-1) -> ConfidenceTable:
    """The confidences that a run begins with."""
    candidates = np.array(rows["candidates"][:])
    fingerprint = dataset_fingerprint(names, rows["row_id"][:], candidates)
    table = ConfidenceTable.from_candidates(candidates, names, fingerprint)
    table.revised_epoch[0] = revised
    return table


def test_a_run_that_revised_nothing_is_not_taken_for_clean_labels():
    rows = make_dataset(12)
    said = str(LabelAudit.from_run_rows(rows, bare_table(rows)))
    assert "no row was revised in the training" in said and "--cross-validate" in said
    assert "no row was revised" not in str(LabelAudit.from_run_rows(rows, bare_table(rows, revised=3)))
    judged = LabelAudit.from_run_rows(rows, bare_table(rows), np.full((12, 4), 0.25), num_folds=2)
    assert "no row was revised" not in str(judged)


HOSTILE = [r"a$\frac{$b", "c|d\\e", 'row_id"', "given\nbelieved"]


def test_names_from_the_data_cannot_break_the_table(tmp_path):
    rows = make_dataset(12)
    found = LabelAudit.from_run_rows(rows, bare_table(rows, HOSTILE))
    table = pd.DataFrame(found.rows())
    assert list(table.columns) == list(found.columns()) and len(set(table.columns)) == len(table.columns)
    for row, i in zip(found.rows(), found.order, strict=True):
        escaped = re.split(r"(?<!\\)\|", row["candidates"])
        names = [re.sub(r"\\(.)", r"\1", name) for name in escaped]
        assert names == [name for name, inside in zip(HOSTILE, rows[int(i)]["candidates"], strict=True) if inside]
    plot_audit(found.counts(), found.annotators(), found.class_names, tmp_path / "audit.png", found.source)
    assert len(str(found).splitlines()) > 5


def test_a_run_says_where_its_data_are_or_is_told(workspace, tmp_path):
    shutil.copy(workspace.run / "confidence.safetensors", tmp_path)  # as a training in Python leaves it
    with pytest.raises(ValueError, match="does not say what data it had: name its folder with --data"):
        RunFolder(tmp_path).table_and_rows()
    table, rows = RunFolder(tmp_path).table_and_rows(workspace.data)
    assert len(rows) == len(table) == ROWS
    assert rows["row_id"][:] == load_dataset(workspace.data, "train")["row_id"][:]
    assert read_run(tmp_path, workspace.data)[0]["row_id"][:] == rows["row_id"][:]
    reversed_rows = load_dataset(workspace.data, "train").select(range(ROWS)[::-1])
    save_dataset(DatasetDict(train=reversed_rows), tmp_path / "reversed")
    with pytest.raises(ValueError, match=r"is not the data set that .* was trained on: 96 rows .* or another order"):
        read_run(tmp_path, tmp_path / "reversed")


def broken(workspace, folder, how):
    """A run or data set with something wrong: the arguments, and what is said of it."""
    if how == "no confidences":
        (folder / "run").mkdir()
        return ["run"], "run holds no confidence.safetensors"
    shutil.copytree(workspace.run, folder / "run", ignore=shutil.ignore_patterns("out_of_fold"))
    rows = load_dataset(workspace.data, "train")
    if how == "no data":
        settings = json.loads((workspace.run / "settings.json").read_text())
        settings["script"]["data"] = "nowhere"
        (folder / "run" / "settings.json").write_text(json.dumps(settings))
        return ["run"], "nowhere, is not there: name its folder with --data"
    if how == "damaged":
        (folder / "run" / "confidence.safetensors").write_bytes(b"cut off")
        return ["run"], "cannot be read (SafetensorError"
    if how == "no settings":
        (folder / "run" / "settings.json").unlink()
        return ["run", "--data", workspace.data, "--cross-validate", 2], "has no settings.json"
    if how == "too many folds":
        return ["run", "--cross-validate", 97], "choose a number from 2 to the number of rows"
    if how == "ending":
        return ["run", "--table", "rows.xlsx"], "the ending says the format"
    if how == "other rows":
        rows = rows.select(range(ROWS - 1))
        said = "is not the data set that"
    elif how == "other row_ids":
        rows = rows.remove_columns("row_id").add_column("row_id", [f"other:{i}" for i in range(ROWS)])
        said = "is not the data set that"
    elif how == "another order":
        rows = rows.select(range(ROWS)[::-1])
        said = "is not the data set that"
    elif how == "missing image":
        image = rows.features["image"]
        rows = rows.remove_columns("image").add_column("image", [None] * ROWS, feature=image)
        said = "hold no image, the first is row:0"
    save_dataset(DatasetDict(train=rows), folder / "data")
    return ["run", "--data", "data"], said


@pytest.mark.parametrize(
    "how",
    [
        *("no confidences", "no data", "damaged", "no settings", "too many folds", "ending"),
        *("other rows", "other row_ids", "another order", "missing image"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(workspace, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    argv, said = broken(workspace, tmp_path, how)
    before = files_in(tmp_path)
    assert audit(*argv, "--out", "new") == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and said in error[-1]
    assert files_in(tmp_path) == before


def test_a_file_that_is_no_confidence_table_is_refused(workspace, tmp_path):
    save_file({"confidence": torch.ones(1, 2)}, tmp_path / "confidence.safetensors")
    with pytest.raises(ValueError, match="is not a confidence table"):
        RunFolder(tmp_path).table_and_rows(workspace.data)


def test_heat_maps_on_the_page_are_those_of_the_runs_own_model(workspace, tmp_path, capsys):
    folder = shutil.copytree(workspace.run, tmp_path / "run")
    config, processor = tiny_config(), tiny_processor()
    torch.manual_seed(0)
    model = FerPllForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert audit(folder, "--data", workspace.data, "--out", tmp_path / "out", "--explain", 3) == 0
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    why, classes = data["why"], data["classes"]
    assert (why["rows"], why["height"], why["width"], why["sizes"]) == (3, 8, 8, [[16, 16]] * 3)
    values = np.frombuffer(base64.b64decode(why["maps"]), np.int8).reshape(3, 2, 8, 8)
    rows = load_dataset(workspace.data, "train")
    recognize = FacialExpressionPipeline(model, image_processor=processor)
    for number in range(3):
        image = rows[rows["row_id"][:].index(data["ids"][number])]["image"]
        labels = [data["given"][number], data["believed"][number]]
        expected = heat_maps(recognize.probabilities, image)[labels]
        np.testing.assert_allclose(values[number], expected / np.abs(expected).max() * 127, atol=0.51)

    model.config.id2label = dict(enumerate([*classes[1:], classes[0]]))
    model.save_pretrained(folder)
    assert audit(folder, "--data", workspace.data, "--out", tmp_path / "other", "--explain", 3) != 0
    assert "leave --explain out" in capsys.readouterr().err
