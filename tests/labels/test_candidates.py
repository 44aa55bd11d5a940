import hashlib
import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fer_pll.labels.candidates import (
    check_candidates,
    check_votes,
    dataset_fingerprint,
    draw_votes,
    from_labels,
    from_predictions,
    from_votes,
)


@st.composite
def vote_tables(draw):
    shape = draw(st.tuples(st.integers(1, 8), st.integers(2, 6)))
    votes = draw(arrays(np.int64, shape, elements=st.integers(0, 10)))
    votes[votes.sum(axis=1) == 0, draw(st.integers(0, shape[1] - 1))] = 1
    return votes


def reference(row, max_candidates, min_votes, ties):
    """The definition, label by label: a label is in when fewer than max_candidates labels go before it."""
    chosen = []
    for label, count in enumerate(row):
        ahead = sum(other > count for other in row)
        if ties == "drop":
            ahead += sum(other == count for other in row[:label])
        chosen.append(bool(count >= min_votes and ahead < max_candidates))
    return chosen


@pytest.mark.parametrize(
    ("votes", "max_candidates", "min_votes", "ties", "expected"),
    [
        ([6, 3, 1, 0], 2, 1, "keep", [1, 1, 0, 0]),
        ([6, 2, 2, 0], 2, 1, "keep", [1, 1, 1, 0]),  # tied at the cut
        ([6, 2, 2, 0], 2, 1, "drop", [1, 1, 0, 0]),
        ([0, 5, 5, 5], 2, 1, "keep", [0, 1, 1, 1]),  # all of the top tied
        ([0, 5, 5, 5], 2, 1, "drop", [0, 1, 1, 0]),
        ([5, 5, 1, 0], 2, 1, "drop", [1, 1, 0, 0]),  # a tie that fits is none
        ([10, 0, 0, 0], 2, 1, "keep", [1, 0, 0, 0]),  # a label nobody voted for never fills up a set
        ([10, 0, 0, 0], 4, 1, "drop", [1, 0, 0, 0]),
        ([8, 1, 1, 0], 2, 2, "keep", [1, 0, 0, 0]),  # below min_votes
        ([0.5, 0.3, 0.2, 0], 2, 0.1, "keep", [1, 1, 0, 0]),  # shares
    ],
)
def test_from_votes_by_hand(votes, max_candidates, min_votes, ties, expected):
    candidates = from_votes([votes], max_candidates, min_votes, ties)
    assert candidates.dtype == bool
    assert candidates.tolist() == [[bool(entry) for entry in expected]]


def test_from_votes_defaults_keep_ties_of_the_top_two_with_at_least_one_vote():
    votes = np.array([[6, 2, 2, 0], [10, 0, 0, 0]], dtype=np.uint8)
    assert from_votes(votes).tolist() == [[True, True, True, False], [True, False, False, False]]


def test_ties_are_dropped_in_class_order_however_many_classes_there_are():
    candidates = from_votes(np.ones((1, 500)), max_candidates=3, ties="drop")
    assert candidates[0].nonzero()[0].tolist() == [0, 1, 2]


@given(vote_tables(), st.data())
def test_from_votes_properties(votes, data):
    num_classes = votes.shape[1]
    max_candidates = data.draw(st.integers(1, num_classes))
    min_votes = data.draw(st.integers(1, int(votes.max(axis=1).min())))
    keep = from_votes(votes, max_candidates, min_votes, "keep")
    drop = from_votes(votes, max_candidates, min_votes, "drop")
    assert keep.tolist() == [reference(row, max_candidates, min_votes, "keep") for row in votes.tolist()]
    assert drop.tolist() == [reference(row, max_candidates, min_votes, "drop") for row in votes.tolist()]

    size = keep.sum(axis=1)
    assert (size >= 1).all() and (drop.sum(axis=1) == np.minimum(size, max_candidates)).all()
    assert not (drop & ~keep).any()
    assert (votes[keep] >= min_votes).all()
    beyond = size > max_candidates  # only a tie at the cut lets a set grow
    cut = np.sort(votes, axis=1)[:, -max_candidates]
    assert ((votes == cut[:, None]).sum(axis=1)[beyond] > 1).all()
    # labels left out have no more votes than any label inside, and with "keep" strictly fewer
    for row, inside in zip(votes, keep, strict=True):
        left_out = row[~inside & (row >= min_votes)]
        assert left_out.size == 0 or left_out.max() < row[inside].min()


@given(vote_tables(), st.data())
def test_from_votes_ignores_the_order_of_rows_and_of_classes(votes, data):
    rows = data.draw(st.permutations(range(votes.shape[0])))
    classes = data.draw(st.permutations(range(votes.shape[1])))
    for ties in ("keep", "drop"):
        assert (from_votes(votes[rows], ties=ties) == from_votes(votes, ties=ties)[rows]).all()
    assert (from_votes(votes[:, classes]) == from_votes(votes)[:, classes]).all()
    untied = np.array([len(set(row[row > 0])) == (row > 0).sum() for row in votes])
    permuted = from_votes(votes[:, classes], ties="drop")
    assert (permuted == from_votes(votes, ties="drop")[:, classes])[untied].all()


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[1, 2], [3, -1]], r"votes row 1 \(3, -1\) holds a negative"),
        ([[1, 2], [np.nan, 1]], r"votes row 1 \(nan, 1\) holds NaN"),
        ([[np.inf, 2], [1, 1]], r"votes row 0 \(inf, 2\) holds NaN or infinity"),
        ([[1, 0], [1, 1], [0, 0], [0, 0]], r"votes row 2 \(0, 0\) holds no vote at all.*\(2 such rows of 4"),
        ([1, 2], r"shape \(rows, classes\), got \(2,\)"),
        ([[1, 2], [1]], "table of numbers"),
        ([["many", "few"]], "table of numbers"),
    ],
)
def test_bad_votes_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        check_votes(votes)
    with pytest.raises(ValueError, match=message):
        from_votes(votes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_candidates": 0}, "max_candidates must be a whole number from 1 to 3, got 0"),
        ({"max_candidates": 4}, "from 1 to 3, got 4"),
        ({"max_candidates": 1.5}, "got 1.5"),
        ({"min_votes": 0}, "min_votes must be a positive number, got 0"),
        ({"min_votes": float("nan")}, "min_votes must be a positive number"),
        ({"ties": "first"}, "ties must be"),
        (
            {"min_votes": 3},
            r"votes row 1 \(2, 2, 1\) has no label with min_votes=3; lower min_votes or drop it \(1 such",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        from_votes([[3, 0, 0], [2, 2, 1]], **settings)


@given(vote_tables(), st.integers(1, 12), st.integers(0, 5))
def test_votes_are_drawn_without_replacement(votes, number, seed):
    drawn = draw_votes(votes, number, seed)
    assert (drawn <= votes).all() and (drawn >= 0).all()
    assert np.array_equal(drawn.sum(axis=1), np.minimum(votes.sum(axis=1), number))
    assert np.array_equal(drawn, draw_votes(votes, number, seed))


def test_draws_have_the_shares_of_the_votes():
    drawn = draw_votes(np.tile([5, 3, 2, 0], (20_000, 1)), 2)
    np.testing.assert_allclose(drawn.mean(axis=0), [1, 0.6, 0.4, 0], atol=0.02)
    np.testing.assert_allclose((drawn == 2).mean(axis=0), [20 / 90, 6 / 90, 2 / 90, 0], atol=0.01)
    assert not np.array_equal(drawn, draw_votes(np.tile([5, 3, 2, 0], (20_000, 1)), 2, seed=1))


def test_draws_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"row 0 .* part of a vote"):
        draw_votes([[0.5, 0.5]], 1)
    with pytest.raises(ValueError, match="whole number from 1, got 0"):
        draw_votes([[1, 1]], 0)


def mean_candidates_by_label(candidates, labels, num_classes):
    return np.stack([candidates[labels == label].mean(axis=0) for label in range(num_classes)])


def test_uniform_false_candidates_join_with_the_flip_probability():
    labels = np.arange(40_000) % 5
    candidates = from_labels(labels, 5, flip_probability=0.3, seed=1)
    shares = mean_candidates_by_label(candidates, labels, 5)
    assert (shares.diagonal() == 1).all()
    off_diagonal = shares[~np.eye(5, dtype=bool)]
    assert abs(off_diagonal - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 8000)  # five standard deviations
    assert abs(candidates.sum(axis=1).mean() - (1 + 0.3 * 4)) < 0.03


def test_class_dependent_false_candidates_join_with_the_transition():
    labels = np.arange(30_000) % 3
    transition = np.array([[0.0, 0.5, 0.1], [1.0, 0.0, 0.0], [0.2, 0.9, 0.3]])  # the diagonal is not looked at
    shares = mean_candidates_by_label(from_labels(labels, 3, transition=transition), labels, 3)
    np.fill_diagonal(transition, 1)
    np.testing.assert_allclose(shares, transition, atol=0.025)
    assert (shares[1] == [1, 1, 0]).all()


@pytest.mark.parametrize("set_size", [1, 2, 3, 6])
def test_sets_of_one_size_hold_the_given_label_and_others_alike(set_size):
    labels = np.arange(24_000) % 6
    candidates = from_labels(labels, 6, set_size=set_size)
    assert (candidates.sum(axis=1) == set_size).all()
    shares = mean_candidates_by_label(candidates, labels, 6)
    assert (shares.diagonal() == 1).all()
    np.testing.assert_allclose(shares[~np.eye(6, dtype=bool)], (set_size - 1) / 5, atol=0.04)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.floats(0, 0.99),
    st.integers(0, 9),
    st.sampled_from(["uniform", "transition", "set_size"]),
)
def test_from_labels_keeps_the_given_label_and_repeats_itself(labels, probability, seed, way):
    settings = {
        "uniform": {"flip_probability": probability},
        "transition": {"transition": np.full((4, 4), probability)},
        "set_size": {"set_size": 1 + seed % 4},
    }[way]
    candidates = from_labels(labels, 4, seed=seed, **settings)
    assert candidates.dtype == bool and candidates.shape == (len(labels), 4)
    assert candidates[np.arange(len(labels)), labels].all()
    assert (candidates == from_labels(labels, 4, seed=seed, **settings)).all()
    # a row's draw does not depend on the rows after it
    assert (from_labels([*labels[:-1], 0], 4, seed=seed, **settings)[:-1] == candidates[:-1]).all()


def test_without_flips_only_the_given_label_is_left():
    assert (from_labels([2, 0], 3, flip_probability=0) == [[0, 0, 1], [1, 0, 0]]).all()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 3], {}, r"labels row 1 \(3\) lies outside 0 ... 2"),
        ([-1, 0], {}, r"labels row 0 \(-1\) lies outside"),
        ([0.0, 1.0], {}, "whole numbers"),
        ([[0, 1]], {}, r"shape \(rows,\)"),
        ([0], {"flip_probability": 1}, r"flip_probability must lie in \[0, 1\)"),
        ([0], {"flip_probability": -0.1}, "flip_probability"),
        ([0], {"flip_probability": float("nan")}, "flip_probability"),
        ([0], {"set_size": 0}, "set_size must be a whole number from 1 to 3, got 0"),
        ([0], {"set_size": 4}, "set_size"),
        ([0], {"set_size": 1.5}, "set_size"),
        ([0], {"transition": np.eye(2)}, r"shape \(3, 3\)"),
        ([0], {"transition": [[0, 0, 0], [0, 0, 2], [0, 0, 0]]}, "transition row 1"),
        ([0], {"transition": [[0, np.nan, 0], [0, 0, 0], [0, 0, 0]]}, "transition row 0"),
        ([0], {"transition": np.eye(3), "set_size": 2}, "give one of them"),
    ],
)
def test_from_labels_refuses_what_cannot_be(labels, settings, message):
    with pytest.raises(ValueError, match=message):
        from_labels(labels, 3, **settings)


def test_from_predictions_by_hand():
    probabilities = [[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]
    assert (from_predictions(probabilities) == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]).all()
    assert (from_predictions(probabilities, [0, 2, 2]) == [[1, 1, 0], [1, 0, 1], [1, 0, 1]]).all()
    assert (from_predictions(probabilities, [0, 2, 2], keep_given=False) == from_predictions(probabilities)).all()
    assert (from_predictions(probabilities, [0, 2, 2], max_candidates=1) == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]).all()


@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.sampled_from([0.0, 0.1, 0.2, 0.7])),
    st.integers(1, 4),
    st.data(),
)
def test_from_predictions_takes_the_most_probable(probabilities, max_candidates, data):
    probabilities[:, 0] += 0.05
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(probabilities), max_size=len(probabilities)))
    for given_labels in (None, labels):
        candidates = from_predictions(probabilities, given_labels, max_candidates)
        assert (candidates.sum(axis=1) == max_candidates).all()
        for row, (chosen, scores) in enumerate(zip(candidates, probabilities, strict=True)):
            free = chosen.copy()
            if given_labels is not None:
                assert chosen[labels[row]]
                free[labels[row]] = False
            if free.any() and not chosen.all():
                assert scores[free].min() >= scores[~chosen].max()


@pytest.mark.parametrize(
    ("probabilities", "labels", "max_candidates", "message"),
    [
        ([0.5, 0.5], None, 2, r"shape \(rows, classes\)"),
        ([[0.5, 0.5], [0, 0]], None, 2, "probabilities row 1"),
        ([[0.5, np.nan]], None, 2, "probabilities row 0"),
        ([[-0.5, 0.5]], None, 2, "no distribution"),
        ([[0.5, 0.5]], None, 3, "max_candidates must be a whole number from 1 to 2, got 3"),
        ([[0.5, 0.5]], [0, 1], 2, "2 labels do not match 1 rows"),
        ([[0.5, 0.5]], [2], 2, "labels row 0"),
    ],
)
def test_from_predictions_refuses_what_cannot_be(probabilities, labels, max_candidates, message):
    with pytest.raises(ValueError, match=message):
        from_predictions(probabilities, labels, max_candidates)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_check_candidates_takes_booleans_and_zero_one(dtype):
    expected = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    for given_as in (expected.astype(dtype), expected.astype(dtype).tolist()):
        checked = check_candidates(given_as, 3)
        assert checked.dtype == bool and (checked == expected).all()


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[1, 0, 0], [0, 0, 0]], r"candidates row 1 \(0, 0, 0\) is an empty candidate set"),
        ([[1, 0, 0], [0, 2, 0]], r"candidates row 1 \(0, 2, 0\) must be booleans or 0 / 1"),
        (np.array([[1, np.nan, 0]]), "candidates row 0"),
        ([[1, 0, 0], [1, 0]], "candidates row 1 has 2 entries, but there are 3 classes"),
        (np.array([[1, 0, 0], [1, 0]], dtype=object), "candidates row 1 has 2 entries"),
        (np.ones((2, 4), dtype=bool), r"shape \(rows, 3\).*got \(2, 4\)"),
        (np.ones(3, dtype=bool), r"shape \(rows, 3\).*got \(3,\)"),
    ],
)
def test_bad_candidates_are_refused(candidates, message):
    with pytest.raises(ValueError, match=message):
        check_candidates(candidates, 3)


NAMES = ["calm", "glad", "sad"]
ROW_IDS = ["a.csv:0", "a.csv:1", "a.csv:2"]
SETS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=bool)


def test_fingerprint_is_the_sha256_of_its_definition():
    text = json.dumps(NAMES) + "\n" + "".join(json.dumps(row_id) + "\n" for row_id in ROW_IDS)
    expected = hashlib.sha256(text.encode() + bytes([1, 0, 1, 0, 1, 0, 1, 1, 0])).hexdigest()
    assert dataset_fingerprint(NAMES, ROW_IDS, SETS) == expected


def test_fingerprint_does_not_depend_on_how_the_rows_are_chunked(monkeypatch):
    expected = dataset_fingerprint(NAMES, ROW_IDS, SETS)
    monkeypatch.setattr("fer_pll.labels.candidates._FINGERPRINT_ROWS", 2)
    assert dataset_fingerprint(NAMES, ROW_IDS, SETS) == expected


def test_fingerprint_survives_a_datasets_round_trip(tmp_path):
    features = datasets.Features(
        {"row_id": datasets.Value("string"), "candidates": datasets.List(datasets.Value("bool"), length=3)}
    )
    before = datasets.Dataset.from_dict({"row_id": ROW_IDS, "candidates": SETS.tolist()}, features=features)
    before.save_to_disk(tmp_path)
    after = datasets.load_from_disk(tmp_path)
    expected = dataset_fingerprint(NAMES, ROW_IDS, SETS)
    assert dataset_fingerprint(NAMES, after["row_id"], after["candidates"]) == expected
    assert dataset_fingerprint(NAMES, after["row_id"], after.with_format("numpy")["candidates"][:]) == expected


def test_fingerprint_changes_with_everything_it_covers():
    flipped = SETS.copy()
    flipped[2, 2] = True
    variants = [
        (NAMES, ROW_IDS, SETS),
        (NAMES[::-1], ROW_IDS, SETS),
        (NAMES, ROW_IDS[::-1], SETS),
        (NAMES, ROW_IDS, SETS[::-1]),
        (NAMES, ROW_IDS[:2], SETS[:2]),
        (NAMES, ["a.csv:0", "a.csv:1\n", "a.csv:2"], SETS),
        (NAMES, ["a.csv:0", 'a.csv:1"\n"a.csv:2', ""], SETS),
        (NAMES, ROW_IDS, flipped),
    ]
    assert len({dataset_fingerprint(*variant) for variant in variants}) == len(variants)


def test_fingerprint_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="2 row_ids do not match 3 rows"):
        dataset_fingerprint(NAMES, ROW_IDS[:2], SETS)
    with pytest.raises(ValueError, match="row_ids row 1 is 7; row ids must be strings"):
        dataset_fingerprint(NAMES, ["a", 7, "b"], SETS)
    with pytest.raises(ValueError, match=r"shape \(rows, 2\)"):
        dataset_fingerprint(NAMES[:2], ROW_IDS, SETS)
