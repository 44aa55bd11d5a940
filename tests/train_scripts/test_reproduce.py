"""reproduce.py on a few drawn faces: every table in small, what an interruption costs, and what is refused."""

import json
import runpy
from pathlib import Path

import pytest
from datasets import DatasetDict

from fer_pll.data.prepared import save_prepared
from fer_pll.data.synthetic import load_synthetic

SCRIPTS = Path(__file__).parents[2] / "train_scripts"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPTS / "reproduce.py"))


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> tuple[Path, list[str]]:
    """Folder of the runs, and the options that all calls share."""
    folder = tmp_path_factory.mktemp("reproduce")
    data = load_synthetic(80, 40, 0, seed=0)
    save_prepared(DatasetDict(train=data["train"], validation=data["validation"]), folder / "data")
    sizes = ["--rows", "48", "--epochs", "1", "--pretrain-epochs", "1"]
    return folder, ["--data", str(folder / "data"), "--out", str(folder / "runs"), *sizes]


OPTIONS = ["--", "--dataloader_num_workers", "0", "--disable_tqdm", "true"]


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
    assert result["settings"]["experiment"]["revision"] == "paper" and result["settings"]["rows"] == 48
    assert result["protocols"]["all"]["rows"] == 40 and len(result["curves"]["eval_accuracy"]) == 1

    capsys.readouterr()
    script["main"](call)  # nothing is made again
    assert "$ python" not in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in results.glob("*.json")}

    script["main"](["figure4", *arguments, "--seeds", "1", "2", "--finished", *OPTIONS])  # of seed 2 there are none
    assert "| HOG pre-training, PLL (ours) | 1 | " in (tables / "figure4.md").read_text()
    with pytest.raises(SystemExit, match="there are no results of table6"):
        script["main"](["table6", *arguments, "--seeds", "7", "--finished", *OPTIONS])

    with pytest.raises(SystemExit, match=r"seed0.json was made with other settings \(epochs 1, not 2\)"):
        script["main"](["figure4", *arguments, "--epochs", "2", "--seeds", "0", *OPTIONS])


def test_an_interrupted_matrix_goes_on(script, common, capsys):
    """A pre-training that ended and a training that was cut off after its first epoch."""
    folder, arguments = common
    arguments = [*arguments, "--epochs", "2", "--results", str(folder / "others")]
    experiments = script["Experiments"](script["parse_args"](["table7", *arguments, "--seeds", "3", *OPTIONS]))
    run = script["Run"](None, "table5/pll")

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
    del experiments.script
    capsys.readouterr()
    result = experiments.result(run, 3)
    assert "--resume_from_checkpoint last" in capsys.readouterr().out
    assert [epoch for epoch, _ in result["curves"]["eval_accuracy"]] == [1.0, 2.0]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_table_runs(script, common):
    folder, arguments = common
    tables = [*script["TABLES"], "cost"]
    script["main"]([*tables, *arguments, "--seeds", "0", *OPTIONS])
    results, written = folder / "runs" / "results" / "nano", folder / "runs" / "nano" / "tables"
    for table in tables:
        assert "\n| " in (written / f"{table}.md").read_text()
    for figure in ("figure4", "figure5-2votes", "figure6", "section4.5", "figure7-overruled", "figure7-decided",
                   "figure10-without-uniformity", "figure10-with-uniformity"):  # fmt: skip
        assert (written / f"{figure}.png").is_file(), figure
    recovered = json.loads((results / "hog_table7-all_2votes-seed0.json").read_text())
    assert recovered["coverage"]["label_inside"] < 1 and recovered["curves"]["label_recovery"]
