"""Saving a prepared set whole or not at all, and reading it back."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.dataset import check_output_folder, load_dataset, save_dataset, shards_folder
from fer_pll.data.provenance import Provenance
from fer_pll.data.splits import keep_drawn_votes
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

FEATURES = Features(
    {
        "image": Image(),
        "row_id": Value("string"),
        "votes": List(Value("int32"), length=8),
        "label": ClassLabel(names=list(EXPRESSIONS)),
    }
)


def make_dataset(num_rows=3, image=None):
    image = image or PILImage.new("L", (4, 4), 7)
    rows = [
        {"image": image, "row_id": f"a.csv:{i}", "votes": [0, 9, 1, 0, 0, 0, 0, 0], "label": 1}
        for i in range(num_rows)
    ]
    return DatasetDict({split: Dataset.from_list(rows, features=FEATURES) for split in ("train", "validation")})


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_round_trip(tmp_path):
    dataset = make_dataset()
    dataset["train"].info.description = "where it comes from"
    save_dataset(dataset, tmp_path / "new" / "set")
    loaded = load_dataset(tmp_path / "new" / "set")
    assert list(loaded) == ["train", "validation"]
    assert loaded["train"][:] == dataset["train"][:]
    assert loaded["train"].features == FEATURES
    assert loaded["train"].info.description == "where it comes from"
    assert load_dataset(tmp_path / "new" / "set", "validation")[:] == dataset["validation"][:]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["set"]


def test_an_empty_folder_may_be_used(tmp_path):
    save_dataset(make_dataset(), tmp_path)
    assert len(load_dataset(tmp_path, "train")) == 3


def test_another_run_is_refused_then_replaced(tmp_path):
    out = tmp_path / "set"
    save_dataset(make_dataset(3), out)
    before = content(out)
    with pytest.raises(DataError, match=r"set already holds dataset_dict.json, train, validation: .*--overwrite"):
        save_dataset(make_dataset(5), out)
    assert content(out) == before
    save_dataset(make_dataset(5), out, overwrite=True)
    assert len(load_dataset(out, "train")) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_set_may_replace_the_one_it_was_made_from(tmp_path):
    save_dataset(make_dataset(5), tmp_path / "set")
    smaller = load_dataset(tmp_path / "set").filter(lambda row_id: row_id < "a.csv:2", input_columns="row_id")
    save_dataset(smaller, tmp_path / "set", overwrite=True)
    assert load_dataset(tmp_path / "set", "train")["row_id"][:] == ["a.csv:0", "a.csv:1"]


def test_the_row_numbers_of_an_earlier_version_are_left_out(tmp_path):
    before = make_dataset()
    numbered = DatasetDict({split: rows.add_column("index", [0, 1, 2]) for split, rows in before.items()})
    numbered.save_to_disk(tmp_path / "set")
    loaded = load_dataset(tmp_path / "set")
    assert loaded["train"].column_names == before["train"].column_names and loaded["train"][:] == before["train"][:]
    assert load_dataset(tmp_path / "set", "validation").column_names == before["train"].column_names


def test_a_linked_folder_is_replaced_behind_the_link(tmp_path):
    save_dataset(make_dataset(3), tmp_path / "disk" / "set")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    save_dataset(make_dataset(5), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert len(load_dataset(tmp_path / "disk" / "set", "train")) == 5


def test_what_is_no_prepared_set_is_never_replaced(tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"home holds thesis.tex, which does not belong to a prepared data set"):
        check_output_folder(out, overwrite=True)
    save_dataset(make_dataset(), tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("of mine")
    with pytest.raises(DataError, match=r"set holds notes.txt, which does not belong"):
        save_dataset(make_dataset(), tmp_path / "set", overwrite=True)
    with pytest.raises(DataError, match=r"thesis.tex is a file"):
        save_dataset(make_dataset(), out / "thesis.tex", overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "set" / "notes.txt").read_text() == "of mine"


def test_a_failed_save_loses_nothing_and_leaves_nothing(tmp_path):
    out = tmp_path / "set"
    broken = make_dataset(image={"bytes": None, "path": str(tmp_path / "absent.png")})
    with pytest.raises(FileNotFoundError):
        save_dataset(broken, out)
    assert not list(tmp_path.iterdir())

    save_dataset(make_dataset(), out)
    before = content(out)
    with pytest.raises(FileNotFoundError):
        save_dataset(broken, out, overwrite=True)
    assert content(out) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_the_former_set_comes_back_when_the_new_one_cannot_be_moved(tmp_path):
    class Elsewhere(DatasetDict):
        def save_to_disk(self, path):
            """Writes nothing, so that the move into place fails after the former set was moved aside."""

    out = tmp_path / "set"
    save_dataset(make_dataset(), out)
    before = content(out)
    with pytest.raises(FileNotFoundError):
        save_dataset(Elsewhere(make_dataset()), out, overwrite=True)
    assert content(out) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_killed_process_leaves_the_former_set(tmp_path):
    out = tmp_path / "set"
    save_dataset(make_dataset(), out)
    before = content(out)
    script = f"""
import os, signal
from datasets import DatasetDict
from fer_pll.data.dataset import load_dataset, save_dataset

class Killed(DatasetDict):
    def save_to_disk(self, path):
        super().save_to_disk(path)
        os.kill(os.getpid(), signal.SIGKILL)

save_dataset(Killed(load_dataset({str(out)!r})), {str(out)!r}, overwrite=True)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    assert content(out) == before


def test_a_link_in_place_of_the_hidden_folder_is_refused(tmp_path):
    """Nobody names that folder, so a link there is not the user's."""
    (tmp_path / ".other.shards").symlink_to(tmp_path)
    with pytest.raises(DataError, match="shards is a symbolic link"):
        shards_folder(tmp_path / "other")


def test_a_place_that_cannot_be_written_is_found_before_the_images_are_read():
    with pytest.raises(DataError, match="/proc/set cannot be written"):
        check_output_folder("/proc/set")


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(DataError, match=r"absent is not a folder: .*`fer-pll prepare`"):
        load_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match=r"is not a prepared data set \(it has no dataset_dict.json\)"):
        load_dataset(tmp_path)
    save_dataset(make_dataset(), tmp_path / "set")
    with pytest.raises(DataError, match=r"set has no split 'test', it has train, validation: name one .* --split$"):
        load_dataset(tmp_path / "set", "test")
    with pytest.raises(DataError, match=r"no split 'held_out', .* or prepare the set again with --hold-out 0\.05"):
        load_dataset(tmp_path / "set", "held_out")
    save_dataset(DatasetDict(train=make_dataset()["train"]), tmp_path / "train only")
    with pytest.raises(DataError, match=r"no split 'validation', .* again with --validation-share 0\.1"):
        load_dataset(tmp_path / "train only", "validation")


def test_a_column_is_missing(tmp_path):
    make_dataset().remove_columns(["row_id", "label"]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="set: split 'train' has no column row_id, label"):
        load_dataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["train/data-00000-of-00001.arrow", "train/state.json", "dataset_dict.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_set(tmp_path, name, damage):
    save_dataset(make_dataset(), tmp_path / "set")
    file = tmp_path / "set" / name
    whole = file.read_bytes()
    file.unlink()
    if damage == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"set (cannot be read|is not a prepared data set)"):
        load_dataset(tmp_path / "set")


def test_a_split_that_is_listed_but_absent(tmp_path):
    save_dataset(make_dataset(), tmp_path / "set")
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    with pytest.raises(DataError, match=r"set cannot be read .*prepare it again"):
        load_dataset(tmp_path / "set")


def test_drawn_votes_leave_the_winner_of_all_votes_as_the_true_label():
    votes = [[0, 6, 4, 0, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0, 0, 0], [0, 0, 0, 9, 0, 0, 0, 1]] * 30
    dataset = make_dataset(90)["train"].remove_columns("votes").add_column("votes", votes)
    drawn = keep_drawn_votes(dataset.cast(make_dataset()["train"].features), 2, seed=3)
    assert drawn["true_label"][:] == [1, -1, 3] * 30  # a tie has no winner
    assert {sum(row) for row in drawn["votes"]} == {2}
    assert drawn["label"][:] == [row.index(max(row)) for row in drawn["votes"]]
    assert {name: drawn.features[name] for name in FEATURES} == FEATURES
    assert "2 votes drawn for each row (seed 3)" in Provenance.from_dataset(drawn).sentence()
    again = keep_drawn_votes(drawn, 1)
    assert again["true_label"][:] == drawn["true_label"][:]  # what was known stays
    with pytest.raises(DataError, match="the data set has no votes; it has image, row_id, label"):
        keep_drawn_votes(make_dataset()["train"].remove_columns("votes"), 2)


def test_candidates_come_from_votes_or_else_from_labels():
    dataset = make_dataset()["train"]
    votes = np.array(dataset["votes"][:])
    assert (np.array(add_candidates(dataset, max_candidates=1, ties="drop")["candidates"][:]).sum(axis=1) == 1).all()
    labeled = dataset.remove_columns("votes")
    candidates = np.array(add_candidates(labeled, set_size=2)["candidates"][:])
    assert (candidates.sum(axis=1) == 2).all()
    assert candidates[np.arange(len(votes)), labeled["label"][:]].all()
    assert np.array(add_candidates(labeled, flip_probability=0)["candidates"][:]).sum() == len(votes)
    own = labeled.add_column("candidates", list(np.ones_like(votes, dtype=bool)))
    assert add_candidates(own)["candidates"][:] == own["candidates"][:]
