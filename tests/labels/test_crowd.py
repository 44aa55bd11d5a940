"""Answers weighed by the quality of their annotators, from the table of answers to the confidences of a training."""

import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fer_pll.data.sources.votes import list_votes
from fer_pll.io.errors import DataError, MissingExtra
from fer_pll.labels.candidates import draw_votes, from_posterior
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.labels.crowd import dawid_skene_posterior, keep_answers
from tiny import count_answers

CLASSES = ["neutral", "happiness", "surprise", "sadness"]
SHARE_RIGHT = {"ann": 0.95, "bob": 0.85, "eve": 0.4, "joe": 0.35, "sue": 0.3}


@pytest.fixture(scope="module")
def answers():
    """True labels of 400 images, and the rows, annotators and labels of the answers: four of five for each."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    given = [
        (row, name, int(label if rng.random() < right else (label + rng.integers(1, 4)) % 4))
        for row, label in enumerate(truth)
        for name, right in SHARE_RIGHT.items()
        if rng.random() < 0.8 or name == "sue"
    ]
    return truth, given


@pytest.fixture(scope="module")
def posterior(answers):
    return dawid_skene_posterior(*zip(*answers[1], strict=True), num_rows=400, num_classes=5)


def test_more_true_labels_than_the_majority_finds(answers, posterior):
    truth, given = answers
    votes = np.zeros((400, 5))
    for row, _, label in given:
        votes[row, label] += 1
    expected_of_majority = (votes == votes.max(1, keepdims=True)) / (votes == votes.max(1, keepdims=True)).sum(1)[
        :, None
    ]
    majority = expected_of_majority[np.arange(400), truth].mean()  # ties at random
    weighed = (posterior.argmax(axis=1) == truth).mean()
    assert weighed > majority + 0.1 and weighed > 0.85
    assert np.allclose(posterior.sum(axis=1), 1) and not posterior[:, 4].any()  # a class that nobody chose


def test_candidate_sets_cover_the_probability_with_the_fewest_labels(posterior):
    hand = [[0.5, 0.3, 0.2, 0.0], [0.96, 0.04, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 2, 2]]
    sets = from_posterior(hand, coverage=0.75)
    assert sets.tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, False],
        [False, False, True, True],
    ]
    assert from_posterior([[0.7, 0.2, 0.1, 0.0]], coverage=1).tolist() == [[True, True, True, False]]
    sets = from_posterior(posterior, 0.95)
    assert ((posterior * sets).sum(axis=1) >= 0.95 - 1e-9).all() and 1 < sets.sum(axis=1).mean() < 2.5


@pytest.mark.parametrize("coverage", [0, 1.5, float("nan")])
def test_coverage_is_a_share(coverage):
    with pytest.raises(ValueError, match="coverage must lie in"):
        from_posterior([[0.5, 0.5]], coverage)


def write(folder, given):
    file = folder / "answers.csv"
    lines = [f"{row}.png,{name},{CLASSES[label]}" for row, name, label in given]
    file.write_text("\n".join(["path,annotator,label", *lines]))
    return file


def test_a_table_of_answers_gives_candidates_and_confidences(answers, posterior, tmp_path):
    _, given = answers
    images = list_votes(write(tmp_path, given), class_names=CLASSES, coverage=0.95)["train"]
    columns = {name: np.array([row.columns[name] for row in images]) for name in images[0].columns}
    assert np.array_equal(columns["label"], posterior.argmax(axis=1))
    assert np.array_equal(columns["candidates"], from_posterior(posterior, 0.95)[:, :4])
    assert columns["votes"].sum() == len(given)
    table = ConfidenceTable.from_candidates(
        columns["candidates"], CLASSES, "fingerprint", "column", confidence=columns["confidence"].astype(np.float32)
    )
    assert (table.confidence.argmax(dim=1).numpy() == columns["label"]).all()
    inside = posterior[:, :4] * columns["candidates"]
    assert np.allclose(table.confidence.numpy(), inside / inside.sum(axis=1, keepdims=True), atol=1e-6)


def test_without_annotators_there_is_nothing_to_weigh(tmp_path):
    (tmp_path / "votes.csv").write_text("path,happiness\na.png,3\n")
    with pytest.raises(DataError, match=r"votes.csv does not say who gave which answer"):
        list_votes(tmp_path / "votes.csv", coverage=0.95)


def test_without_crowd_kit_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation.classification", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fer-pll\[crowd\]'"):
        dawid_skene_posterior([0], ["ann"], [0], 1, 2)


@given(
    hnp.arrays(np.int16, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.integers(-1, 3)),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_drawn_answers_are_a_part_of_the_answers_and_count_as_the_drawn_votes(answers, number, seed):
    answers[(answers < 0).all(axis=1), 0] = 0
    drawn = draw_votes(count_answers(answers, 4), number, seed)
    kept = keep_answers(answers, drawn, seed)
    assert kept.dtype == answers.dtype and ((kept == answers) | (kept == -1)).all()
    assert (count_answers(kept, 4) == drawn).all()
    assert (kept == keep_answers(answers, drawn, seed)).all()


def test_every_pair_of_annotators_is_drawn_as_often():
    answers = np.tile(np.array([0, 0, 1, -1, 2], dtype=np.int16), (6000, 1))
    kept = keep_answers(answers, draw_votes(count_answers(answers, 3), 2), seed=1) >= 0
    assert not kept[:, 3].any() and (kept.sum(axis=1) == 2).all()
    pairs = [(kept[:, a] & kept[:, b]).mean() for a, b in combinations((0, 1, 2, 4), 2)]
    assert np.abs(np.array(pairs) - 1 / 6).max() < 0.02


def test_more_votes_than_answers_keep_all_of_them():
    answers = np.array([[1, -1, 0]], dtype=np.int16)
    assert keep_answers(answers, np.array([[5, 5]])).tolist() == answers.tolist()
