"""reproduce.py on a few drawn faces: every table in small, what an interruption costs, and what is refused."""

import json
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from fer_pll.data.dataset import numpy_column, prepared_features, save_prepared
from fer_pll.data.sources.synthetic.dataset import load_synthetic

SCRIPTS = Path(__file__).parents[2] / "train_scripts"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPTS / "reproduce.py"))


@pytest.fixture(scope="module")
def audit(script) -> ModuleType:
    return import_module("comparisons.audit")  # `script` has made it importable


@pytest.fixture(scope="module")
def report(script) -> ModuleType:
    return import_module("comparisons.report")


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> tuple[Path, list[str]]:
    """Folder of the runs, and the options that all calls share."""
    folder = tmp_path_factory.mktemp("reproduce")
    data = load_synthetic(80, 40, 0, seed=0)
    save_prepared(DatasetDict(train=data["train"], validation=data["validation"]), folder / "data")
    sizes = ["--max-samples", "48", "--epochs", "1", "--pretrain-epochs", "1"]
    return folder, ["--data", str(folder / "data"), "--out", str(folder / "runs"), *sizes]


# a log line for each step: the few that there are hold the label recovery
OPTIONS = ["--", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--logging_steps", "1"]


def test_a_table_its_figure_and_a_second_call(script, common, capsys):
    folder, arguments = common
    call = ["figure4", *arguments, "--seeds", "0", "1", *OPTIONS]
    script["main"](call)
    results, tables = folder / "runs" / "results" / "nano", folder / "runs" / "nano" / "tables"
    text = (tables / "figure4.md").read_text()
    for title in ("random weights, softmax", "HOG pre-training, softmax", "HOG pre-training, PLL (ours)"):
        assert f"| {title} | 2 | " in text
    assert " ± " in text and "; 6 runs" in text
    assert (tables / "figure4.png").stat().st_size > 10_000
    made = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert len(made) == 6
    result = json.loads((results / "hog_table7-all-seed1.json").read_text())
    assert result["settings"]["experiment"]["revision"] == "paper" and result["settings"]["max_samples"] == 48
    assert result["protocols"]["all"]["rows"] == 40 and len(result["curves"]["eval_accuracy"]) == 1

    capsys.readouterr()
    script["main"](call)  # nothing is made again
    assert "$ python" not in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in results.glob("*.json")}

    script["main"](["figure4", *arguments, "--seeds", "1", "2", "--finished", *OPTIONS])  # of seed 2 there are none
    assert "| HOG pre-training, PLL (ours) | 1 | " in (tables / "figure4.md").read_text()
    with pytest.raises(SystemExit, match="there are no results of table6"):
        script["main"](["table6", *arguments, "--seeds", "7", "--finished", *OPTIONS])

    chosen = [*arguments, "--seeds", "0", "--finished", "--rows", "1", "3", *OPTIONS]
    script["main"](["figure4", *chosen])
    text = (tables / "figure4.md").read_text()
    assert "| random weights, softmax | 1 | " in text and "(ours) | 1 | " in text
    assert "HOG pre-training, softmax" not in text

    with pytest.raises(SystemExit, match=r"seed0.json was made with other settings \(epochs 1, not 2\)"):
        script["main"](["figure4", *arguments, "--epochs", "2", "--seeds", "0", *OPTIONS])
    with pytest.raises(SystemExit, match=r"\(options \{'logging_steps': '1'\}, not \{'logging_steps': '2'\}\)"):
        script["main"](["figure4", *arguments, "--seeds", "0", "--finished", *OPTIONS[:-1], "2"])
    how = ["--dataloader_num_workers=3", "--logging-steps=1", "--report_to", "tensorboard", "wandb"]  # makes no result
    script["main"](["figure4", *arguments, "--seeds", "0", "--finished", "--", *how])
    assert "; 3 runs" in (tables / "figure4.md").read_text()


def test_the_rows_of_a_table(script, common, capsys):
    script["main"](["table7", "section4.5", "--list"])
    printed = capsys.readouterr().out
    assert "Table 7: query decoder" in printed and "\n    3  PLL\n    4  PLL, decoder\n" in printed
    assert printed.endswith("Section 4.5: labels in a candidate set\n    1  1\n    2  2\n    3  3\n    4  4\n")
    for call, message in (
        (["table7", "table6", *common[1], "--rows", "8", "2"], "--rows 8 2: these are the rows of Table 7: query"),
        (["audit", *common[1], "--rows", "1"], "cost and audit have no rows"),
        (["table6", "--out", "runs"], "--data and --out are required"),
    ):
        with pytest.raises(SystemExit):
            script["main"](call)
        assert message in capsys.readouterr().err


def test_an_interrupted_matrix_goes_on(script, common, capsys):
    """A pre-training that ended and a training that was cut off after its first epoch."""
    folder, arguments = common
    arguments = [*arguments, "--epochs", "2", "--results", str(folder / "others")]
    experiments = script["Experiments"](script["parse_args"](["table7", *arguments, "--seeds", "3", *OPTIONS]))
    run = script["TABLES"]["table6"][2](None)[0].run

    def cut_off(name, argv):
        if name == "evaluate":
            raise KeyboardInterrupt
        script["Experiments"].script(experiments, name, argv)

    experiments.script = cut_off
    glob = Path.glob
    with pytest.MonkeyPatch.context() as patch:  # the interruption comes before the checkpoints are tidied away
        patch.setattr(Path, "glob", lambda self, pattern: [] if pattern == "checkpoint-*" else glob(self, pattern))
        with pytest.raises(KeyboardInterrupt):
            experiments.result(run, 3)
    assert not list((folder / "others").rglob("*.json"))
    others = script["Experiments"](script["parse_args"](["table7", *arguments, "--epochs", "3", *OPTIONS]))
    with pytest.raises(ValueError, match=r"was made with other settings \(epochs 2, not 3\)"):
        others.result(run, 3)  # what was cut off is not mixed with it
    del experiments.script
    capsys.readouterr()
    result = experiments.result(run, 3)
    assert "--resume_from_checkpoint last" in capsys.readouterr().out
    assert [epoch for epoch, _ in result["curves"]["eval_accuracy"]] == [1.0, 2.0]


def test_the_last_row_is_compared_seed_by_seed(script, report):
    def made(**accuracies):
        return [
            {"settings": {"seed": int(seed[1:])}, "protocols": {"all": {"accuracy": accuracy}}}
            for seed, accuracy in accuracies.items()
        ]

    results = [made(s0=0.60, s1=0.70), made(s1=0.705), made(s3=0.9), made(s0=0.62, s1=0.73, s2=0.5)]
    assert report.last_row_ahead_by(results) == ["2.5 ± 0.7", "2.5", "–", "–"]
    rows, columns = script["TABLES"]["table7"][2](2)[:4], {"all": report.COLUMNS["all"]}
    assert "| softmax on the majority | 2 | 65.0 ± 7.1 | 2.5 ± 0.7 | – |" in report.markdown(rows, results, columns)
    assert "ahead" not in report.markdown(rows[3:], results[3:], columns)
    assert report.spread([-0.0012, 0.0008]) == "0.0 ± 0.1"


@pytest.mark.parametrize(
    ("table", "folder", "votes", "seeds"),
    [
        ("table6", "tiny", None, "012"),
        ("table4", "nano", None, "012"),
        ("table4", "nano", 2, "012"),
        ("table4", "nano", None, "34"),
        ("table4", "nano", 2, "34"),
        ("table7", "table7/nano", None, "012"),
        ("table7", "table7/nano", 2, "012"),
        ("rules", "rules/nano", 2, "012"),
    ],
)
def test_the_tables_of_the_results_are_those_of_their_files(script, report, table, folder, votes, seeds):
    rows, results = [], []
    for row in script["TABLES"][table][2](votes):
        files = sorted((SCRIPTS / "results" / folder).glob(f"{row.run.name}-seed[{seeds}].json"))
        if files:
            rows.append(row)
            results.append([json.loads(path.read_text()) for path in files])
    assert report.markdown(rows, results, report.COLUMNS) in (SCRIPTS / "RESULTS.md").read_text()


@pytest.mark.parametrize("labels", ["two-votes", "uniform", "confusion"])
def test_the_tables_of_the_audit_are_those_of_their_files(audit, labels):
    files = sorted((SCRIPTS / "results/nano").glob(f"audit-{labels}-seed[0-9].json"))
    results = [json.loads(path.read_text()) for path in files]
    assert audit.audit_table(labels, results) in (SCRIPTS / "RESULTS.md").read_text()


@pytest.fixture(scope="module")
def voted() -> Dataset:
    """3,000 rows of 3 classes: class 0 is called 1 by 3 of 10, the others always right; each tenth row is a tie."""
    votes = np.eye(3, dtype=int)[np.arange(3000) % 3] * 10
    votes[::3] = [7, 3, 0]
    votes[::30] = [5, 5, 0]
    features = prepared_features(["a", "b", "c"], votes=True)
    columns = {"image": [None] * 3000, "index": range(3000), "row_id": map(str, range(3000)), "label": votes.argmax(1)}
    return Dataset.from_dict({name: list(values) for name, values in columns.items()} | {"votes": votes}, features)


@pytest.mark.parametrize("as_votes", [False, True])
def test_flipped_labels(audit, voted, as_votes):
    flipped = audit.flip_labels(voted, as_votes, seed=1)
    assert flipped.column_names == ["image", "row_id", "label", "true_label"]
    truth, label, winner = numpy_column(flipped, "true_label"), numpy_column(flipped, "label"), np.arange(3000) % 3
    assert (truth[::30] == -1).all() and (np.delete(truth, np.s_[::30]) == np.delete(winner, np.s_[::30])).all()
    wrong = label != winner
    assert wrong.sum() == 600
    share = np.bincount(winner[wrong], minlength=3) / 600
    if as_votes:  # only class 0 is ever taken for another, and always for class 1
        assert share.tolist() == [1, 0, 0] and (label[wrong] == 1).all()
    else:
        assert abs(share - 1 / 3).max() < 0.06
        assert abs((label[wrong] == (winner[wrong] + 1) % 3).mean() - 0.5) < 0.06
    again = audit.flip_labels(voted, as_votes, seed=1)
    assert (numpy_column(again, "label") == label).all()
    assert (numpy_column(audit.flip_labels(voted, as_votes, seed=2), "label") != label).any()


def test_the_audit_of_predictions_that_know_the_answer(audit):
    """Of 400 rows each fifth is wrong; one model sees that, the other tells nothing."""
    truth = np.arange(400) % 4
    given = np.where(np.arange(400) % 5 == 0, (truth + 1) % 4, truth)
    truth[-1] = -1  # not counted
    knowing = 0.01 + 0.96 * np.eye(4)[np.arange(400) % 4]
    predictions = {"ours": knowing, "softmax": np.full((400, 4), 0.25)}
    figures = audit.compare_audits(predictions, np.eye(4, dtype=int)[given], given, truth)
    assert figures["labels as given"]["corrected"] == pytest.approx(319 / 399)
    perfect = pytest.approx({"average_precision": 1.0, "precision_at_wrong": 1.0, "corrected": 1.0})
    assert figures["ours"] == perfect
    for method in ("self confidence", "normalized margin"):
        assert figures[f"cleanlab, issues by {method}, on our predictions"] == perfect
        by_quality = figures[f"cleanlab, label quality by {method}, on our predictions"]
        assert by_quality["average_precision"] == pytest.approx(1) and by_quality["corrected"] is None
        assert figures[f"cleanlab, issues by {method}, softmax-trained"]["average_precision"] < 0.5
    assert not any("majority" in title for title in figures)

    votes = 2 * np.eye(4, dtype=int)[given]
    votes[::5] = np.eye(4, dtype=int)[given[::5]] + np.eye(4, dtype=int)[np.arange(0, 400, 5) % 4]
    figures = audit.compare_audits({"ours": knowing, "softmax": knowing}, votes, given, truth)
    assert figures["softmax-trained, inside the set"] == perfect
    # every tie is wrong, and only ties are; the prior says which of two labels, not that
    assert figures["majority, ties by class prior"]["average_precision"] == pytest.approx(1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_table_runs(script, common, capsys):
    folder, arguments = common
    tables = [*script["TABLES"], "cost", "audit"]
    arguments = [*arguments, "--seeds", "0", "--folds", "2"]
    script["main"]([*tables, *arguments, *OPTIONS])
    results, written = folder / "runs" / "results" / "nano", folder / "runs" / "nano" / "tables"
    for table in tables:
        assert "\n| " in (written / f"{table}.md").read_text()
    for figure in ("figure4", "figure5-2votes", "figure6", "section4.5", "figure10-without-uniformity",
                   "figure10-with-uniformity"):  # fmt: skip
        assert (written / f"{figure}.png").is_file(), figure
    recovered = json.loads((results / "hog_table7-all_2votes-seed0.json").read_text())
    assert recovered["coverage"]["label_inside"] < 1 and recovered["curves"]["label_recovery"]

    # One step decides nothing. As if it had decided each row, for the majority in every other one.
    run = script["TABLES"]["figure7"][2](None)[0].run
    experiments = script["Experiments"](script["parse_args"](["figure7", *arguments, *OPTIONS]))
    table, rows = experiments.confidences(run, 0)
    ranking = numpy_column(rows, "votes").argsort(axis=1)[:, ::-1]
    table.confidence = torch.eye(8)[ranking[np.arange(48), np.arange(48) % 2]]
    table.save(experiments.run_folder(run, 0) / "confidence.safetensors")
    script["main"](["figure7", *arguments, *OPTIONS])
    for name in ("overruled", "decided"):
        assert (written / f"figure7-{name}.png").stat().st_size > 10_000, name

    audits = {path.name: path.stat().st_mtime_ns for path in results.glob("audit-*.json")}
    assert sorted(audits) == ["audit-confusion-seed0.json", "audit-two-votes-seed0.json", "audit-uniform-seed0.json"]
    (results / "audit-uniform-seed0.json").unlink()
    script["main"](["audit", *arguments, "--finished", *OPTIONS])
    assert "to every class alike" not in (written / "audit.md").read_text()
    (folder / "runs/nano/audit-uniform-2folds-seed0/ours/fold-2-of-2.safetensors").unlink()
    capsys.readouterr()
    script["main"](["audit", *arguments, *OPTIONS])  # only what is missing is made
    again = capsys.readouterr().out
    assert "fold 2 of 2" in again and "fold 1 of 2" not in again and again.count("$ python") == 2
    assert audits["audit-confusion-seed0.json"] == (results / "audit-confusion-seed0.json").stat().st_mtime_ns
    with pytest.raises(
        SystemExit, match=r"audit-two-votes-seed0.json was made with other settings \(folds 2, not 3\)"
    ):
        script["main"](["audit", *arguments, "--folds", "3", *OPTIONS])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_figures_of_the_results_come_out_again(script, tmp_path, monkeypatch):
    """The commands that RESULTS.md gives for drawn faces, in an empty folder, end in the line that it has."""
    section = (SCRIPTS / "RESULTS.md").read_text().split("## A row that anyone can make\n")[1].split("\n## ")[0]
    commands = section.split("```sh\n")[1].split("```")[0].replace("\\\n", " ").splitlines()
    monkeypatch.chdir(tmp_path)
    for command in commands:
        _, path, *argv = shlex.split(command)
        runpy.run_path(str(SCRIPTS.parent / path))["main"](argv)
    figures = line_of_a_table(section)
    again = line_of_a_table(next(tmp_path.glob("runs/*/nano/tables/table7.md")).read_text())
    # Another machine rounds in another way; RESULTS.md says how much that is.
    assert again.pop("label recovery") == pytest.approx(figures.pop("label recovery"), abs=0.5)
    assert again == pytest.approx(figures, abs=4)


def line_of_a_table(text: str) -> dict[str, float]:
    """What a Markdown table with one line has measured, by the titles of its columns."""
    head, _, line = (row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("|"))
    return {title: float(cell) for title, cell in zip(head[1:-1], line[2:-1], strict=True)}
