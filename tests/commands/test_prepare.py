"""train_scripts/prepare_data.py, as a plain script and through runpy."""

import subprocess
import sys

import numpy as np
import pytest

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import load_dataset

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures, votes = "emotion,pixels,Usage\n", HEADER
    # one picture on two training rows; one row without a face
    for usage, seed, counts in (
        ("Training", 0, "0,10,0,0,0,0,0,0,0,0"),
        ("Training", 0, "0,10,0,0,0,0,0,0,0,0"),
        ("Training", 1, "3,2,0,0,2,1,1,1,0,0"),
        ("Training", 2, "0,0,0,0,0,0,0,0,0,10"),
        ("PublicTest", 3, "0,0,0,9,0,0,0,0,1,0"),
    ):
        pixels = np.random.default_rng(seed).integers(0, 256, 48 * 48)
        pictures += f"{rng.integers(7)},{' '.join(map(str, pixels))},{usage}\n"
        votes += f"{usage},fer.png,{counts}\n"
    (folder / "fer2013.csv").write_text(pictures)
    (folder / "fer2013new.csv").write_text(votes)
    return folder


def test_as_a_plain_script(source, tmp_path):
    command = [sys.executable, str(SCRIPT), "ferplus", str(source), "--out", "data/set"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "examples/s" not in run.stderr  # no progress bars in a log file
    assert len(load_dataset(tmp_path / "data" / "set", "train")) == 2
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["train", "validation"] in lines
    assert ["rows", "2", "1"] in lines
    assert ["neutral", "1", "0"] in lines
    assert ["happiness", "1", "0"] in lines
    assert ["sadness", "0", "1"] in lines
    assert ["in", "majority", "1", "1"] in lines
    assert "2 of 4 rows; dropped: 1 not in protocol all" in run.stdout
    assert "1 copy of an earlier training picture" in run.stdout
    assert run.stdout.endswith("saved in data/set\n")


def test_options_reach_the_loader(source, tmp_path):
    main(["ferplus", str(source), "--out", str(tmp_path / "a"), "--keep-duplicates"])
    assert len(load_dataset(tmp_path / "a", "train")) == 3
    main(["ferplus", str(source), "--out", str(tmp_path / "b"), "--protocol", "majority"])
    assert load_dataset(tmp_path / "b", "train")["row_id"][:] == ["fer2013new.csv:2"]
    main(["ferplus", str(source), "--out", str(tmp_path / "c"), "--draw-votes", "2", "--draw-seed", "5"])
    drawn = load_dataset(tmp_path / "c")
    assert all(sum(votes) == 2 for votes in drawn["train"]["votes"]) and "true_label" in drawn["train"].column_names
    assert all(sum(votes) > 2 for votes in drawn["validation"]["votes"])  # to be judged by all of them
    assert main(["ferplus", str(source), "--out", str(tmp_path / "d"), "--draw-votes", "0"]) == 2
    assert not (tmp_path / "d").exists()


def test_synthetic_needs_no_source(tmp_path, capsys):
    sizes = ["--num-train", "5", "--num-validation", "3", "--num-test", "2", "--image-size", "32", "--seed", "7"]
    main(["synthetic", "--out", str(tmp_path / "a"), *sizes])
    main(["synthetic", "--out", str(tmp_path / "b"), *sizes])
    assert ["rows", "5", "3", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    dataset, again = load_dataset(tmp_path / "a"), load_dataset(tmp_path / "b")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 5, "validation": 3, "test": 2}
    assert dataset["train"][0]["image"].size == (32, 32)
    assert dataset["train"][:] == again["train"][:]


def test_another_run_is_kept_unless_overwrite(source, tmp_path, capsys):
    out = tmp_path / "set"
    main(["ferplus", str(source), "--out", str(out), "--keep-duplicates"])
    assert main(["ferplus", str(source), "--out", str(out)]) == 2
    assert "already holds" in capsys.readouterr().err
    assert len(load_dataset(out, "train")) == 3
    main(["ferplus", str(source), "--out", str(out), "--overwrite"])
    assert len(load_dataset(out, "train")) == 2


def test_bad_input_keeps_the_former_set_and_leaves_nothing(source, tmp_path, capsys):
    out = tmp_path / "out" / "set"
    main(["ferplus", str(source), "--out", str(out)])
    whole = (source / "fer2013.csv").read_text()
    (source / "fer2013.csv").write_text(whole[:-30])
    assert main(["ferplus", str(source), "--out", str(out), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "fer2013.csv:6 has 2 columns where 3 should be" in error
    assert len(error.splitlines()) == 1
    assert len(load_dataset(out, "train")) == 2
    assert [entry.name for entry in out.parent.iterdir()] == ["set"]
    assert main(["ferplus", str(source), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ferplus", "absent", "--out", "set"],
        ["synthetic", "--num-train", "-1", "--out", "set"],
        ["synthetic", "--image-size", "0", "--out", "set"],
    ],
)
def test_errors_have_no_traceback(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [[], ["celeba", "x", "--out", "y"], ["ferplus", "x"], ["synthetic", "--out", "y", "--protocol", "all"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_help_teaches_and_loads_nothing_heavy():
    script = f"""
import runpy, sys
sys.argv = ["prepare_data.py", "--help"]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
finally:
    assert not {{"torch", "datasets", "numpy"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "prepare_data.py ferplus path/to/ferplus --out data/ferplus" in run.stdout


def test_corrections_are_applied_and_reported_or_nothing_is_written(tmp_path, capsys):
    command = ["synthetic", "--num-train", "6", "--num-validation", "2", "--num-test", "0", "--num-proc", "1"]
    main([*command, "--out", str(tmp_path / "before")])
    before = load_dataset(tmp_path / "before", "train")
    first, second = before["row_id"][:2]
    marks = tmp_path / "marks.csv"
    marks.write_text(f"row_id,mark,label\n{first},relabel,contempt\n{second},drop,\n")
    capsys.readouterr()
    main([*command, "--out", str(tmp_path / "after"), "--corrections", str(marks)])
    assert "1 relabelled, 1 dropped, 0 kept as they are" in capsys.readouterr().out
    after = load_dataset(tmp_path / "after", "train")
    assert after["row_id"][:] == [first, *before["row_id"][2:]]
    assert after.features["label"].int2str(after[0]["label"]) == "contempt"
    assert sum(after[0]["votes"]) == after[0]["votes"][7] == sum(before[0]["votes"])

    marks.write_text("row_id,mark,label\nelsewhere,drop,\n")
    assert main([*command, "--out", str(tmp_path / "never"), "--corrections", str(marks)]) == 2
    assert "row 'elsewhere' is not in the data set" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
