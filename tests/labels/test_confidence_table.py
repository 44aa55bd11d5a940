import multiprocessing
import random
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from fer_pll.io.errors import DataError
from fer_pll.labels.confidence_table import ConfidenceTable, warn_if_threshold_cannot_fire
from fer_pll.labels.revision import REVISION_RULES, maximum_margin, response_margin

NAMES = ("calm", "glad", "sad", "cross")
LN3 = float(np.log(3))  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4


def table_of(candidates, **kwargs):
    names = [f"class {k}" for k in range(len(candidates[0]))]
    return ConfidenceTable.from_candidates(candidates, names, "f" * 64, **kwargs)


@st.composite
def candidate_sets(draw, max_rows=8):
    shape = draw(st.tuples(st.integers(1, max_rows), st.integers(2, 6)))
    candidates = draw(arrays(bool, shape))
    candidates[~candidates.any(axis=1), draw(st.integers(0, shape[1] - 1))] = True
    return candidates


@given(arrays(np.int64, (3, 4), elements=st.integers(0, 10)), st.sampled_from([0.1, 0.5, 1.0, 2.0]))
def test_shares_of_votes_are_sharpened_by_the_temperature(votes, temperature):
    assume(votes.any(axis=1).all())
    table = table_of(votes > 0, confidence_init="votes", votes=votes, votes_temperature=temperature)
    for row, shares in zip(votes, table.confidence.double().numpy(), strict=True):
        naive = np.array([(v / row.sum()) ** (1 / temperature) for v in row])
        np.testing.assert_allclose(shares, naive / naive.sum(), atol=1e-6)


def test_a_temperature_of_one_half_squares_the_votes_and_one_changes_no_bit():
    votes = [[1, 3, 0, 0], [2, 2, 2, 4]]
    squared = table_of(np.array(votes) > 0, confidence_init="votes", votes=votes, votes_temperature=0.5).confidence
    np.testing.assert_allclose(squared, [[0.1, 0.9, 0, 0], [1 / 7, 1 / 7, 1 / 7, 4 / 7]], rtol=1e-6)
    plain = table_of(np.array(votes) > 0, confidence_init="votes", votes=votes).confidence
    assert torch.equal(plain, torch.tensor(votes) / torch.tensor(votes).sum(dim=1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_votes_outside_the_set_do_not_count_however_many_they_are(temperature):
    """With a low temperature, the shares inside vanish beside them."""
    table = table_of([[True, True, False]], confidence_init="votes", votes=[[1, 1, 8]], votes_temperature=temperature)
    assert table.confidence.tolist() == [[0.5, 0.5, 0.0]]


def margin_rule(confidence, logits, threshold):
    """What the rule `margin` makes of confidences, and its margins."""
    revised, response = REVISION_RULES["margin"].revise(confidence, confidence > 0, logits, threshold)
    return revised, response_margin(response)


def logits_like(candidates):
    return arrays(np.float32, candidates.shape, elements=st.floats(-40, 40, width=32)).map(torch.from_numpy)


# ---------------------------------------------------------------------------------------------- the rule of Eq. 4, 5


def test_rule_by_hand():
    confidence = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0]])
    logits = torch.tensor([[LN3, -LN3, 9, 9], [-LN3, LN3, 9, 9], [0, LN3, -LN3, -9], [LN3, LN3, LN3, LN3]])
    # v: (.375, .125), (.125, .375), (.125, .1875, .0625, .00003), (.75)
    revised, margin = margin_rule(confidence, logits, threshold=0.2)
    torch.testing.assert_close(margin, torch.tensor([0.25, 0.25, 0.0625, 0.75]))
    assert revised.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0.25] * 4, [0, 0, 1, 0]]
    unrevised, _ = margin_rule(confidence, logits, threshold=0.3)
    assert torch.equal(unrevised, confidence)


def test_margin_must_exceed_the_threshold():
    confidence, saturated = torch.tensor([[0.5, 0.5]]), torch.tensor([[200.0, -200.0]])  # margin exactly 1/2
    assert margin_rule(confidence, saturated, threshold=0.499)[0].tolist() == [[1, 0]]
    assert margin_rule(confidence, saturated, threshold=0.5)[0].tolist() == [[0.5, 0.5]]


def test_equal_leaders_are_never_revised():
    revised, margin = margin_rule(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 1.0, 7.0]]), threshold=0)
    assert margin.tolist() == [0] and revised.tolist() == [[0.5, 0.5, 0]]


def test_rule_agrees_with_float64():
    generator = np.random.default_rng(0)
    candidates = generator.random((4000, 8)) < 0.4
    candidates[np.arange(4000), generator.integers(8, size=4000)] = True
    logits = generator.normal(scale=3, size=(4000, 8)).astype(np.float32)
    for threshold in (0.0, 0.1, 0.3):
        exact = candidates / candidates.sum(axis=1, keepdims=True)
        response = exact / (1 + np.exp(-logits.astype(np.float64)))
        ordered = np.sort(response, axis=1)
        expected_margin = ordered[:, -1] - ordered[:, -2]
        fires = expected_margin > threshold
        exact[fires] = np.eye(8)[response.argmax(axis=1)][fires]

        confidence = table_of(candidates).confidence
        revised, margin = margin_rule(confidence, torch.from_numpy(logits), threshold)
        np.testing.assert_allclose(margin.numpy(), expected_margin, atol=1e-6)
        decided = np.abs(expected_margin - threshold) > 1e-6
        assert (decided.mean() > 0.99 and 0 < fires.mean() < 1) or threshold == 0
        np.testing.assert_allclose(revised.numpy()[decided], exact[decided], atol=1e-6)


def test_rule_is_float32_and_detached_whatever_the_logits():
    confidence = torch.tensor([[0.5, 0.5, 0, 0]] * 64)
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected, expected_margin = margin_rule(confidence, logits, 0.1)
    assert expected.dtype == expected_margin.dtype == torch.float32
    assert not expected.requires_grad and not expected_margin.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = margin_rule(confidence, logits, 0.1)
    assert torch.equal(under_autocast[0], expected) and torch.equal(under_autocast[1], expected_margin)
    half = logits.detach().bfloat16()
    assert torch.equal(margin_rule(confidence, half, 0.1)[1], margin_rule(confidence, half.float(), 0.1)[1])


def test_rows_with_nan_logits_stay_as_they_are():
    confidence = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    logits = torch.tensor([[float("nan"), 9, 0], [9, -9, float("nan")], [float("inf"), float("-inf"), 0]])
    revised, margin = margin_rule(confidence, logits, 0.1)
    assert revised.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0]]
    assert margin.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"revision_threshold=.* must lie in \[0, 1\)"):
        margin_rule(torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2), threshold)


def test_momentum_makes_soft_a_mean_over_visits():
    confidence, candidates = (
        torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]),
        torch.tensor([[1, 1, 0], [0, 1, 0]]).bool(),
    )
    logits = torch.tensor([[LN3, 0.0, 9.0], [0.0, 0.0, 9.0]])  # softmax over the candidates: (3/4, 1/4), (1)
    revised, _ = REVISION_RULES["soft"].revise(confidence, candidates, logits, 0.8)
    torch.testing.assert_close(revised, torch.tensor([[0.55, 0.45, 0], [0, 1, 0]]))
    table = table_of(candidates.numpy())
    for visit in range(1, 4):
        table.revise(torch.tensor([0]), logits[:1], visit, "soft", 0.8)
        torch.testing.assert_close(table.confidence[0, 0], torch.tensor(0.75 - 0.25 * 0.8**visit))


# ------------------------------------------------------------------------------------------------ revising the table


@given(st.data())
def test_invariants_hold_after_any_revisions(data):
    candidates = data.draw(candidate_sets())
    table = table_of(candidates)
    threshold = data.draw(st.sampled_from([0.0, 0.05, 0.2, 0.34, 0.6]))
    for epoch in range(3):
        before, before_epoch = table.confidence.clone(), table.revised_epoch.clone()
        index = torch.tensor(data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=10)))
        logits = data.draw(logits_like(np.empty((len(index), candidates.shape[1]))))
        revision = table.revise(index, logits, epoch, value=threshold)

        after = table.confidence
        assert after.dtype == torch.float32 and (after >= 0).all()
        assert ((after.sum(dim=1) - 1).abs() < 1e-6).all()
        assert not after[~table.candidates].any()
        # one-hot rows, singletons among them, never change
        one_hot = before.max(dim=1).values == 1
        assert torch.equal(after[one_hot], before[one_hot])
        # `revised` marks exactly the rows that changed, once each, and they are one-hot now
        changed = (after != before).any(dim=1)
        assert sorted(index[revision.revised].tolist()) == changed.nonzero()[:, 0].tolist()
        assert (after[changed].max(dim=1).values == 1).all()
        assert torch.equal(table.revised_epoch, torch.where(changed, epoch, before_epoch))
        # `ambiguous` marks exactly the rows of the batch that were not decided, once each
        expected = {row for row in index.tolist() if not one_hot[row]}
        assert sorted(index[revision.ambiguous].tolist()) == sorted(expected)
        assert torch.equal(revision.revised, revision.ambiguous & (revision.margin > threshold))
    assert (table.revised_epoch[torch.from_numpy(candidates.sum(axis=1) == 1)] == -1).all()


@given(st.data())
def test_order_of_the_rows_in_a_batch_is_irrelevant(data):
    candidates = data.draw(candidate_sets())
    logits = data.draw(logits_like(candidates))
    index = torch.arange(len(candidates))
    order = torch.tensor(data.draw(st.permutations(range(len(candidates)))))
    straight, shuffled, one_by_one = table_of(candidates), table_of(candidates), table_of(candidates)
    first = straight.revise(index, logits, epoch=0, value=0.1)
    second = shuffled.revise(index[order], logits[order], epoch=0, value=0.1)
    for row in index:
        one_by_one.revise(row[None], logits[row][None], epoch=0, value=0.1)
    # A processor may round the last bit of a sigmoid differently at another place of the batch.
    torch.testing.assert_close(first.margin[order], second.margin, rtol=0, atol=1e-6)
    assume(((first.margin - 0.1).abs() > 1e-6).all())
    assert torch.equal(first.revised[order], second.revised)
    assert torch.equal(first.ambiguous[order], second.ambiguous)
    assert torch.equal(straight.confidence, shuffled.confidence)
    assert torch.equal(straight.confidence, one_by_one.confidence)


def test_repeated_index_counts_where_it_stands_first():
    table = table_of([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    index = torch.tensor([1, 0, 1, 1, 0])
    logits = torch.tensor([[0.1, 0, 0], [-9, 9, 0], [-9, 9, 0], [9, -9, 0], [9, -9, 0]])
    revision = table.revise(index, logits, epoch=4, value=0.2)
    # row 1: its first logits are undecided, so it stays, though its repetitions would decide it
    assert table.confidence.tolist() == [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert table.revised_epoch.tolist() == [4, -1, -1]
    assert revision.revised.tolist() == [False, True, False, False, False]
    assert revision.ambiguous.tolist() == [True, True, False, False, False]
    assert revision.margin.shape == (5,)


def test_singleton_and_decided_rows_are_neither_revised_nor_ambiguous():
    table = table_of([[0, 1, 0], [1, 1, 0]])
    index, logits = torch.arange(2), torch.tensor([[9.0, LN3, 9], [9, -9, 0]])
    first = table.revise(index, logits, epoch=0, value=0.2)
    assert first.ambiguous.tolist() == [False, True] and first.revised.tolist() == [False, True]
    torch.testing.assert_close(first.margin[0], torch.tensor(0.75))  # v_(2) = 0
    second = table.revise(index, -logits, epoch=1, value=0.0)
    assert not second.revised.any() and not second.ambiguous.any()
    assert table.confidence.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert table.revised_epoch.tolist() == [-1, 0]


def test_revise_checks_index_and_logits():
    table = table_of([[1, 1, 0], [1, 0, 1]])
    for outside in (2, -1):
        with pytest.raises(IndexError, match=f"row index {outside} lies outside the confidence table of 2 rows"):
            table.lookup(torch.tensor([0, outside]))
        with pytest.raises(IndexError, match=f"row index {outside}"):
            table.revise(torch.tensor([outside]), torch.zeros(1, 3), epoch=0, value=0.1)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 2\) do not match \(1, 3\)"):
        table.revise(torch.tensor([0]), torch.zeros(1, 2), epoch=0, value=0.1)


def test_lookup_gives_copies_in_the_order_asked():
    table = table_of([[1, 1, 0], [0, 0, 1]])
    rows = table.lookup(torch.tensor([1, 0, 1]))
    assert rows.tolist() == [[0, 0, 1], [0.5, 0.5, 0], [0, 0, 1]]
    rows.zero_()
    assert table.confidence.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]


# ------------------------------------------------------------------------------------------- the table's beginnings


@given(candidate_sets())
def test_uniform_start(candidates):
    table = table_of(candidates)
    expected = candidates / candidates.sum(axis=1, keepdims=True)
    assert len(table) == len(candidates) and table.class_names == tuple(f"class {k}" for k in range(len(expected[0])))
    assert table.confidence.dtype == torch.float32 and table.revised_epoch.dtype == torch.int32
    assert torch.equal(table.confidence, torch.from_numpy(expected.astype(np.float32)))
    assert torch.equal(table.candidates, torch.from_numpy(candidates))
    assert (table.revised_epoch == -1).all()


def test_start_from_vote_shares_inside_the_candidate_set():
    votes = [[6, 2, 1, 1], [0, 4, 0, 1], [1, 1, 1, 1]]
    table = table_of([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]], confidence_init="votes", votes=votes)
    assert table.confidence.tolist() == [[0.75, 0.25, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_bad_beginnings_are_refused():
    sets, votes = [[1, 1, 0], [1, 0, 1]], [[1, 2, 0], [0, 3, 0]]
    with pytest.raises(ValueError, match="needs the votes"):
        table_of(sets, confidence_init="votes")
    with pytest.raises(ValueError, match="row 1: no candidate has a vote"):
        table_of(sets, confidence_init="votes", votes=votes)
    with pytest.raises(ValueError, match=r"votes of shape \(1, 3\) do not match candidates of shape \(2, 3\)"):
        table_of(sets, confidence_init="votes", votes=votes[:1])
    with pytest.raises(ValueError, match=r"votes row 0 .* negative"):
        table_of(sets, confidence_init="votes", votes=[[1, -2, 0], [0, 3, 1]])
    with pytest.raises(ValueError, match='"uniform", "votes" or "column"'):
        table_of(sets, confidence_init="random")
    with pytest.raises(ValueError, match=r"row 1 .* empty candidate set"):
        table_of([[1, 1, 0], [0, 0, 0]])


def test_candidates_given_are_not_shared_with_the_table():
    candidates = np.array([[True, True, False]])
    table = table_of(candidates)
    candidates[:] = False
    assert table.candidates.tolist() == [[True, True, False]]


def test_entropy_and_labels():
    table = table_of([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]])
    torch.testing.assert_close(table.entropy(), torch.tensor([np.log(2), 0, np.log(4), np.log(2)]).float())
    assert table.labels().tolist() == [0, 2, 0, 1]  # of equal ones the first
    table.revise(torch.tensor([3]), torch.tensor([[0, -9.0, 0, 9.0]]), epoch=0, value=0.1)
    assert table.labels().tolist() == [0, 2, 0, 3]
    assert table.entropy()[3] == 0


# ------------------------------------------------------------------------------ thresholds that can never be exceeded


@given(st.data())
def test_no_margin_exceeds_its_bound(data):
    candidates = data.draw(candidate_sets())
    confidence = table_of(candidates).confidence
    assert torch.equal(maximum_margin(confidence), 1 / torch.from_numpy(candidates).sum(dim=1).float())
    _, margin = margin_rule(confidence, data.draw(logits_like(candidates)), 0.0)
    assert (margin <= maximum_margin(confidence)).all()
    saturated = torch.full(candidates.shape, -200.0)
    saturated[torch.arange(len(candidates)), confidence.argmax(dim=1)] = 200.0
    _, margin = margin_rule(confidence, saturated, 0.0)
    assert torch.equal(margin, maximum_margin(confidence))


def test_warning_gives_the_numbers():
    table = table_of([[1, 1, 0, 0]] * 5 + [[1, 1, 1, 0]] * 3 + [[1, 1, 1, 1]] * 2 + [[0, 1, 0, 0]] * 7)
    with pytest.warns(UserWarning) as caught:
        warn_if_threshold_cannot_fire(table, "margin", 0.34)
    message = str(caught[0].message)
    assert "revision_threshold 0.34 can never fire for 5 of 10 ambiguous rows" in message
    assert "3 of 3 rows with 3 candidates (margins stay below 0.333)" in message
    assert "2 of 2 rows with 4 candidates (margins stay below 0.250)" in message
    assert "2 candidates" not in message
    with pytest.warns(UserWarning, match="10 of 10 ambiguous rows"):
        warn_if_threshold_cannot_fire(table, "margin", 0.5)
    with pytest.warns(UserWarning, match="5 of 10 ambiguous rows"):
        warn_if_threshold_cannot_fire(table, "margin", 1 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_threshold_cannot_fire(table, "margin", 0.24)
        warn_if_threshold_cannot_fire(table_of([[1, 0], [0, 1]]), "margin", 0.9)
        warn_if_threshold_cannot_fire(table, "margin_softmax", 0.9)  # its margins come as near to 1 as they like
        warn_if_threshold_cannot_fire(table, "soft")


def test_warning_counts_vote_shares_row_by_row():
    sets, votes = [[1, 1, 0], [1, 1, 0], [1, 1, 0]], [[9, 1, 0], [5, 5, 0], [6, 4, 0]]
    with pytest.warns(UserWarning, match="2 of 3 rows with 2 candidates .margins stay below 0.600"):
        warn_if_threshold_cannot_fire(table_of(sets, confidence_init="votes", votes=votes), "margin", 0.7)


# ------------------------------------------------------------------------------------------------- saving and loading


def trained_table(rows=50):
    generator = np.random.default_rng(3)
    votes = generator.multinomial(10, [0.4, 0.3, 0.2, 0.1], size=rows)
    table = ConfidenceTable.from_candidates(votes > 1, NAMES, "ab" * 32, confidence_init="votes", votes=votes)
    table.revise(torch.arange(rows), torch.from_numpy(generator.normal(size=(rows, 4))), epoch=6, value=0.2)
    assert 0 < (table.revised_epoch == 6).sum() < rows
    return table


def assert_same_bits(left, right):
    assert torch.equal(left.confidence.view(torch.int32), right.confidence.view(torch.int32))
    assert torch.equal(left.candidates, right.candidates)
    assert torch.equal(left.revised_epoch, right.revised_epoch) and right.revised_epoch.dtype == torch.int32
    assert left.class_names == right.class_names and left.fingerprint == right.fingerprint


def test_round_trip_is_bit_identical(tmp_path):
    table = trained_table()
    path = tmp_path / "checkpoint-7" / "confidence.safetensors"  # the folder comes with it
    table.save(path)
    loaded = ConfidenceTable.load(str(path), list(NAMES), "ab" * 32)
    assert_same_bits(table, loaded)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    index, logits = torch.arange(len(table)), torch.full((len(table), 4), -9.0).index_fill(1, torch.tensor(1), 9.0)
    contents = path.read_bytes()
    revised, again = (each.revise(index, logits, 7, value=0.1).revised for each in (table, loaded))
    assert torch.equal(revised, again)
    assert_same_bits(table, loaded)
    assert path.read_bytes() == contents  # the loaded table lives in memory, not in the file
    path.write_bytes(b"\0" * len(contents))
    assert_same_bits(table, loaded)


def test_mismatch_is_refused(tmp_path):
    path = tmp_path / "confidence.safetensors"
    trained_table().save(path)
    with pytest.raises(ValueError, match=r"class names differ: .*confidence.safetensors holds .'calm', 'glad'"):
        ConfidenceTable.load(path, ("glad", "calm", "sad", "cross"), "ab" * 32)
    with pytest.raises(ValueError, match=f"fingerprints differ: .* holds {'ab' * 32}, the data set {'cd' * 32}"):
        ConfidenceTable.load(path, NAMES, "cd" * 32)


def test_files_that_are_no_confidence_tables_are_refused(tmp_path):
    path = tmp_path / "confidence.safetensors"
    trained_table().save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"confidence.safetensors cannot be read \(SafetensorError"):
            ConfidenceTable.load(path, NAMES, "ab" * 32)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a confidence table of format version 1"):
        ConfidenceTable.load(path, NAMES, "ab" * 32)
    with pytest.raises(DataError, match=r"absent\.safetensors is missing"):
        ConfidenceTable.load(tmp_path / "absent.safetensors", NAMES, "ab" * 32)


SAVE_FOR_EVER = """
import torch
from fer_pll.labels.confidence_table import ConfidenceTable
table = ConfidenceTable(torch.ones(100_000, 4), torch.ones(100_000, 4, dtype=torch.bool),
                        torch.zeros(100_000, dtype=torch.int32), ("a", "b", "c", "d"), "f")
while True:
    table.revised_epoch += 1
    table.save(path)
"""


def test_a_save_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "confidence.safetensors"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fer_pll.labels.confidence_table"])
    moments = random.Random(0)
    for _ in range(8):
        process = context.Process(target=exec, args=(SAVE_FOR_EVER, {"path": str(path)}), daemon=True)
        path.unlink(missing_ok=True)
        process.start()
        deadline = time.monotonic() + 60
        while not path.exists():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        loaded = ConfidenceTable.load(path, "abcd", "f")
        assert loaded.confidence.shape == (100_000, 4) and loaded.confidence.min() == 1
        assert loaded.revised_epoch.min() == loaded.revised_epoch.max() >= 1
