"""Transition matrices as CSV, and the candidate sets that they draw."""

import numpy as np
import pytest

from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.transition import read_transition
from fer_pll.io.errors import DataError
from fer_pll.training.finetuning import FineTuningOptions
from tiny import make_dataset

CLASSES = ["neutral", "happiness", "sadness"]
TABLE = """given,Sad,neutral,happy
happiness,0,0.25,
neutral,1,,0.5
sadness,,0.125,0
"""


def write(folder, text, encoding="utf-8"):
    file = folder / "transition.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_by_the_names_of_the_classes(tmp_path, encoding, newline):
    matrix = read_transition(write(tmp_path, TABLE.replace("\n", newline), encoding), CLASSES)
    assert matrix.tolist() == [[0, 0.5, 1], [0.25, 0, 0], [0.125, 0, 0]]


def test_as_a_spreadsheet_saves_it(tmp_path):
    text = TABLE.replace(",", ";").replace(".", ",").replace("\n", "\r\n")
    assert "0,25" in text
    matrix = read_transition(write(tmp_path, text, "utf-8-sig"), CLASSES)
    assert matrix.tolist() == [[0, 0.5, 1], [0.25, 0, 0], [0.125, 0, 0]]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("Sad", "Happy", "transition.csv:1: 'happiness' is there twice"),
        ("Sad", "bored", "transition.csv:1: 'bored' is not a class"),
        ("given,Sad", "given", "transition.csv:1: 'sadness' is missing"),
        ("sadness,,0.125,0\n", "", "transition.csv: 'sadness' is missing"),
        ("sadness,", "neutral,", "transition.csv:4: 'neutral' is not one of the classes .*, or already has a line"),
        ("sadness,", "bored,", "transition.csv:4: 'bored' is not one of the classes neutral, happiness, sadness, or"),
        ("0.25", "1.5", "transition.csv:2: '1.5', for neutral beside happiness, is not a probability"),
        ("0.25", "-0.1", "transition.csv:2: '-0.1'"),
        ("0.25", "nan", "transition.csv:2: 'nan'"),
        ("0.25", "", "transition.csv:2: ''"),
        ("0.25", "much", "transition.csv:2: 'much'"),
        ("0.25,", "0.25", "transition.csv:2 has 3 columns where 4 should be"),
        (",", "|", "transition.csv:1: 'neutral' is missing"),
    ],
)
def test_malformed_tables_are_named_by_line(tmp_path, before, after, reason):
    with pytest.raises(DataError, match=reason):
        read_transition(write(tmp_path, TABLE.replace(before, after)), CLASSES)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"absent.csv is missing"):
        read_transition(tmp_path / "absent.csv", CLASSES)


def test_candidate_sets_follow_it(tmp_path):
    labeled = make_dataset(400).remove_columns(["candidates", "votes"])  # left, right, top, bottom
    text = "given,left,right,top,bottom\nleft,,1,0,0.5\nright,0,,0,0\ntop,0,0,,1\nbottom,0,0,0,\n"
    script = FineTuningOptions("config", "data", transition=str(write(tmp_path, text)))
    drawn = script.add_candidates(labeled, seed=0)
    sets, labels = (np.array(drawn[name][:]) for name in ("candidates", "label"))
    shares = np.array([sets[labels == label].mean(axis=0) for label in range(4)])
    assert np.array_equal(shares == 1, [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
    assert 0.3 < shares[0, 3] < 0.7 and shares.sum() == 6 + shares[0, 3]


def test_it_is_for_data_with_one_label():
    matrix = np.zeros((4, 4))
    dataset = make_dataset(4)
    for columns in ([], ["candidates"]):
        with pytest.raises(
            DataError, match=r"the data have (votes|candidates) of their own, so no transition is drawn"
        ):
            add_candidates(dataset.remove_columns(columns), transition=matrix)
    with pytest.raises(ValueError, match="transition and set_size are two ways"):
        add_candidates(dataset.remove_columns(["candidates", "votes"]), transition=matrix, set_size=2)
