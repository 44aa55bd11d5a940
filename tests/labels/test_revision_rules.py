"""What revision rules have in common and what sets them apart; test_confidence_table.py has more of `margin`."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.labels.losses import cc_loss
from fer_pll.labels.renamed import current_name
from fer_pll.labels.revision import (
    MOMENTUM,
    REVISION_RULES,
    THRESHOLD,
    RevisionRule,
    RuleSetting,
    find_rule,
    soft_response,
)

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4; softmax of (ln 3, 0) = (3/4, 1/4)
NAN = math.nan

EVERY_RULE = pytest.mark.parametrize("rule", REVISION_RULES)
WITH_AND_WITHOUT_RETURN = pytest.mark.parametrize("reversible", [False, True], ids=["final", "reversible"])
DECIDING = pytest.mark.parametrize("rule", [name for name, rule in REVISION_RULES.items() if rule.final])
REVISING = pytest.mark.parametrize("rule", [name for name, rule in REVISION_RULES.items() if rule.response])
few = settings(max_examples=30)  # for each rule, final and reversible
thresholds = st.sampled_from([0.0, 0.05, 0.2, 0.34, 0.6])
momenta = st.sampled_from([0.0, 0.3, 0.9])


def table_of(candidates, **kwargs):
    names = [f"class {k}" for k in range(len(candidates[0]))]
    return ConfidenceTable.from_candidates(candidates, names, "f" * 64, **kwargs)


# Shapes and seeds are drawn by hypothesis, entries by NumPy: drawing every number by hypothesis takes minutes.
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def candidate_sets(draw, min_size=1):
    rows, classes = draw(st.integers(1, 8)), draw(st.integers(2, 6))
    generator = draw(generators)
    order = generator.random((rows, classes)).argsort(axis=1)
    return order < generator.integers(min_size, classes, size=(rows, 1), endpoint=True)


@st.composite
def tables(draw):
    """A new table, from candidate sets alone or from votes inside them, some candidates without a vote."""
    candidates = draw(candidate_sets())
    if draw(st.booleans()):
        return table_of(candidates)
    votes = draw(generators).integers(0, 4, size=candidates.shape) * candidates
    votes[np.arange(len(votes)), candidates.argmax(axis=1)] += 1
    return table_of(candidates, confidence_init="votes", votes=votes)


@st.composite
def logits_for(draw, index, table, values=None, rare=()):
    """Any numbers up to 90, or some of a few values; here and there a rare one."""
    generator, shape = draw(generators), (len(index), table.confidence.shape[1])
    if values is None:
        logits = np.clip(generator.normal(scale=draw(st.sampled_from([0.1, 1, 5, 40])), size=shape), -90, 90)
    else:
        logits = generator.choice(values, size=shape)
    if rare and draw(st.booleans()):
        logits = np.where(generator.random(shape) < 0.1, generator.choice(rare, size=shape), logits)
    return torch.from_numpy(logits.astype(np.float32))


@st.composite
def batches(draw, table):
    """Rows of the table, in any order, some more than once."""
    size = draw(st.integers(1, 10))
    return torch.from_numpy(draw(generators).integers(len(table), size=size))


def revise(table, index, logits, threshold, epoch, rule="margin", reversible=False, momentum=0.0):
    """`table.revise` with whichever of the two numbers the rule has."""
    value = {THRESHOLD: threshold, MOMENTUM: momentum, None: None}[REVISION_RULES[rule].setting]
    return table.revise(index, logits, epoch, rule, value, reversible)


def bits(table):
    return table.confidence.view(torch.int32)


# ------------------------------------------------------------------------------------------------ what all rules keep


@EVERY_RULE
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_rows_stay_distributions_over_their_candidates(rule, reversible, data):
    table = data.draw(tables())
    final = REVISION_RULES[rule].final and not reversible
    for epoch in range(3):
        before, before_epoch = table.confidence.clone(), table.revised_epoch.clone()
        index = data.draw(batches(table))
        logits = data.draw(logits_for(index, table, rare=(NAN, math.inf, -math.inf)))
        revision = revise(table, index, logits, data.draw(thresholds), epoch, rule, reversible, data.draw(momenta))

        after = table.confidence
        assert after.dtype == torch.float32 and (after >= 0).all()
        assert ((after.sum(dim=1) - 1).abs() < 1e-6).all()
        assert not after[~table.candidates].any()
        singletons = table.candidates.sum(dim=1) == 1
        assert torch.equal(after[singletons], before[singletons])
        assert (table.revised_epoch[singletons] == -1).all()
        if final:  # what is decided, is decided for good
            one_hot = before.max(dim=1).values == 1
            assert torch.equal(after[one_hot], before[one_hot])
        # `revised` marks exactly the rows that changed, once each
        changed = (after != before).any(dim=1)
        assert sorted(index[revision.revised].tolist()) == changed.nonzero()[:, 0].tolist()
        assert torch.equal(table.revised_epoch, torch.where(changed, epoch, before_epoch))
        # `ambiguous` marks exactly the rows of the batch with labels to choose from, once each
        choices = before if final else table.candidates
        expected = {row for row in index.tolist() if choices[row].count_nonzero() > 1}
        assert sorted(index[revision.ambiguous].tolist()) == sorted(expected)
        if rule == "none":
            assert not changed.any() and revision.margin.isnan().all()


@EVERY_RULE
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_the_order_of_the_rows_is_irrelevant(rule, reversible, data):
    candidates = data.draw(candidate_sets())
    straight, shuffled, one_by_one = table_of(candidates), table_of(candidates), table_of(candidates)
    index = torch.arange(len(candidates))
    logits = data.draw(logits_for(index, straight))
    order = torch.tensor(data.draw(st.permutations(range(len(candidates)))))
    first = revise(straight, index, logits, 0.1, 0, rule, reversible)
    second = revise(shuffled, index[order], logits[order], 0.1, 0, rule, reversible)
    for row in index:
        revise(one_by_one, row[None], logits[row][None], 0.1, 0, rule, reversible)
    # A processor may round the last bit differently at another place of the batch.
    torch.testing.assert_close(first.margin[order], second.margin, rtol=0, atol=1e-6, equal_nan=True)
    assume(rule == "none" or ((first.margin - 0.1).abs() > 1e-6).all())
    assert torch.equal(first.ambiguous[order], second.ambiguous)
    torch.testing.assert_close(straight.confidence, shuffled.confidence, rtol=0, atol=1e-6)
    torch.testing.assert_close(straight.confidence, one_by_one.confidence, rtol=0, atol=1e-6)


@EVERY_RULE
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_two_processes_that_see_the_same_batches_end_with_the_same_bits(rule, reversible, data):
    """Ties and all: few values of the logits, so that many are equal."""
    first = data.draw(tables())
    second = ConfidenceTable(
        first.confidence.clone(),
        first.candidates.clone(),
        first.revised_epoch.clone(),
        first.class_names,
        first.fingerprint,
    )
    for epoch in range(3):
        index = data.draw(batches(first))
        logits = data.draw(logits_for(index, first, values=(-1, 0, 1)))
        threshold, momentum = data.draw(thresholds), data.draw(momenta)
        one = revise(first, index, logits, threshold, epoch, rule, reversible, momentum)
        other = revise(second, index.clone(), logits.clone(), threshold, epoch, rule, reversible, momentum)
        assert torch.equal(bits(first), bits(second)) and torch.equal(first.revised_epoch, second.revised_epoch)
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine.nan_to_num(7), theirs.nan_to_num(7))
    assert first.summary() == second.summary()


@DECIDING
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_of_equal_leaders_none_is_taken(rule, reversible, data):
    candidates = data.draw(candidate_sets(min_size=2))
    table = table_of(candidates)
    index = torch.arange(len(candidates))
    logits = data.draw(logits_for(index, table))
    leader = logits.masked_fill(~table.candidates, -math.inf).amax(dim=1)
    generator = data.draw(generators)
    for row, (allowed, value) in enumerate(zip(candidates, leader, strict=True)):
        logits[row, generator.choice(np.flatnonzero(allowed), 2, replace=False)] = value
    start = table.confidence.clone()
    # Not 0: a processor may round the sigmoids of equal numbers differently at different places of the batch.
    revision = revise(table, index, logits, 1e-6, 0, rule, reversible)
    assert (revision.margin < 1e-6).all() and not revision.revised.any()
    assert torch.equal(table.confidence, start)


@EVERY_RULE
@WITH_AND_WITHOUT_RETURN
def test_rows_without_numbers_stay_as_they_are(rule, reversible):
    """A candidate's NaN, alone or with others, before and after a decision."""
    votes = [[3, 1, 0], [3, 1, 0], [3, 1, 0], [2, 1, 1]]
    table = table_of([[1, 1, 0]] * 3 + [[1, 1, 1]], confidence_init="votes", votes=votes)
    for epoch in range(2):
        before = table.confidence.clone()
        logits = torch.tensor([[NAN, 0, 0], [NAN, NAN, NAN], [9, -9, 0], [9, NAN, -9]])
        revision = revise(table, torch.arange(4), logits, 0.1, epoch, rule, reversible)
        spoilt = [0, 1, 3]
        assert torch.equal(table.confidence[spoilt], before[spoilt])
        assert not revision.revised[spoilt].any() and (table.revised_epoch[spoilt] == -1).all()
        assert rule == "none" or table.confidence[2, 0] > 0.999  # their neighbor is revised all the same
        assert revision.margin.isnan().tolist() == [True, True, rule == "none", True]


@EVERY_RULE
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_a_repeated_row_counts_where_it_stands_first(rule, reversible, data):
    table, once = (table_of(sets) for sets in [data.draw(candidate_sets())] * 2)
    index = data.draw(batches(table))
    logits = data.draw(logits_for(index, table, values=(-3, -1, 0, 1, 3)))
    first = torch.tensor([row not in index[:i] for i, row in enumerate(index)])
    revision = revise(table, index, logits, 0.15, 0, rule, reversible)
    assert not revision.revised[~first].any() and not revision.ambiguous[~first].any()
    expected = revise(once, index[first], logits[first], 0.15, 0, rule, reversible)
    torch.testing.assert_close(revision.margin[first], expected.margin, rtol=0, atol=1e-6, equal_nan=True)
    assert torch.equal(revision.ambiguous[first], expected.ambiguous)
    torch.testing.assert_close(table.confidence, once.confidence, rtol=0, atol=1e-6)
    assert table.summary()["revised_fraction"] == once.summary()["revised_fraction"] or rule == "soft"


@EVERY_RULE
def test_logits_are_detached_and_float32(rule):
    table, other = table_of([[1, 1, 0, 0]] * 32), table_of([[1, 1, 0, 0]] * 32)
    logits = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        margin = revise(table, torch.arange(32), logits, 0.1, 0, rule).margin
    expected = revise(other, torch.arange(32), logits.detach().float(), 0.1, 0, rule).margin
    assert margin.dtype == torch.float32 and not table.confidence.requires_grad
    assert torch.equal(margin.nan_to_num(7), expected.nan_to_num(7)) and torch.equal(bits(table), bits(other))


# ------------------------------------------------------------------------------------------- what sets the rules apart

# Votes 3 : 1 of classes 0 and 1, and 1 : 1 of all but the last, whose candidate 3 has none.
SETS = [[1, 1, 0, 0], [1, 1, 1, 1]]
VOTES = [[3, 1, 0, 0], [1, 1, 1, 0]]
TURNED = torch.tensor([[-LN3, LN3, 9, 9], [0, LN3, 0, 9]])  # towards class 1
# margin:          v = (3/4 * 1/4, 1/4 * 3/4);  (1/6, 1/4, 1/6, 0)                       margins 0 and 1/12
# margin_softmax:  v = softmax(-ln 3, ln 3) = (1/10, 9/10);  softmax(0, ln 3, 0) = (1, 3, 1) / 5   margins 4/5 and 2/5
# soft:            the same, but over all candidates: (1, 3, 1, e^9) / (5 + e^9) in the second
E9 = math.exp(9)
AS_BEFORE = [[3 / 4, 1 / 4, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]]


@pytest.mark.parametrize(
    ("rule", "threshold", "confidence", "margin"),
    [
        ("margin", 0.05, [AS_BEFORE[0], [0, 1, 0, 0]], [0, 1 / 12]),
        ("margin", 0.1, AS_BEFORE, [0, 1 / 12]),
        ("margin_softmax", 0.5, [[0, 1, 0, 0], AS_BEFORE[1]], [4 / 5, 2 / 5]),
        ("margin_softmax", 0.3, [[0, 1, 0, 0], [0, 1, 0, 0]], [4 / 5, 2 / 5]),
        (
            "soft",
            0.9,  # has none
            [[1 / 10, 9 / 10, 0, 0], [1 / (5 + E9), 3 / (5 + E9), 1 / (5 + E9), E9 / (5 + E9)]],
            [4 / 5, (E9 - 3) / (5 + E9)],
        ),
        ("none", 0.0, AS_BEFORE, [NAN, NAN]),
    ],
)
def test_each_rule_by_hand(rule, threshold, confidence, margin):
    table = table_of(SETS, confidence_init="votes", votes=VOTES)
    revision = revise(table, torch.arange(2), TURNED, threshold, 5, rule)
    torch.testing.assert_close(table.confidence, torch.tensor(confidence, dtype=torch.float32))
    torch.testing.assert_close(
        revision.margin, torch.tensor(margin, dtype=torch.float32), rtol=0, atol=1e-6, equal_nan=True
    )
    changed = [row != start for row, start in zip(confidence, AS_BEFORE, strict=True)]
    assert revision.revised.tolist() == changed
    assert table.revised_epoch.tolist() == [5 if row else -1 for row in changed]


def test_each_rule_by_hand_from_the_initial_candidates():
    """Reversible: from (1/2, 1/2) and (1/4, 1/4, 1/4, 1/4), whatever the votes made of them."""
    # margin:          v = (1/8, 3/8);  (1/8, 3/16, 1/8, sigmoid(9) / 4)        margins 1/4 and sigmoid(9) / 4 - 3/16
    # margin_softmax:  v = (1/10, 9/10);  (1, 3, 1, e^9) / (5 + e^9)              margins 4/5 and (e^9 - 3) / (5 + e^9)
    expected = {
        "margin": [[0, 1, 0, 0], [1 / 4] * 4],
        "margin_softmax": [[0, 1, 0, 0], [0, 0, 0, 1]],
        "soft": [[1 / 10, 9 / 10, 0, 0], [1 / (5 + E9), 3 / (5 + E9), 1 / (5 + E9), E9 / (5 + E9)]],
        "none": AS_BEFORE,
    }
    assert expected.keys() == REVISION_RULES.keys()
    for rule, confidence in expected.items():
        table = table_of(SETS, confidence_init="votes", votes=VOTES)
        revise(table, torch.arange(2), TURNED, 0.1, 0, rule, reversible=True)
        torch.testing.assert_close(table.confidence, torch.tensor(confidence, dtype=torch.float32))


@REVISING
@WITH_AND_WITHOUT_RETURN
@few
@given(data=st.data())
def test_a_common_shift_of_the_logits_matters_to_margin_only(rule, reversible, data):
    candidates = data.draw(candidate_sets(min_size=2))
    table, shifted = table_of(candidates), table_of(candidates)
    index = torch.arange(len(candidates))
    eighths = np.arange(-64, 65) / 8  # their sums are exact in float32
    logits = data.draw(logits_for(index, table, eighths))
    shift = data.draw(logits_for(index, table, eighths))[:, :1]
    first = revise(table, index, logits, 0.1, 0, rule, reversible)
    second = revise(shifted, index, logits + shift, 0.1, 0, rule, reversible)
    if rule != "margin":
        assert torch.equal(first.margin, second.margin) and torch.equal(bits(table), bits(shifted))


def test_margin_decides_or_not_by_a_common_shift():
    """sigmoid(1) - sigmoid(-1) = .462, sigmoid(5) - sigmoid(3) = .041; half of that each with two candidates."""
    for shift, margin, decided in ((0.0, 0.2311, True), (4.0, 0.0204, False)):
        table = table_of([[1, 1, 0]])
        revision = revise(table, torch.tensor([0]), torch.tensor([[1.0, -1.0, 0.0]]) + shift, 0.1, 0, "margin")
        assert revision.margin.item() == pytest.approx(margin, abs=1e-4)
        assert revision.revised.tolist() == [decided]


@DECIDING
def test_a_reversible_decision_is_undone_when_the_logits_turn(rule):
    index, towards, away = torch.tensor([0]), torch.tensor([[9.0, -9, -9, 0]]), torch.tensor([[-9.0, 9, -9, 0]])
    undecided = torch.zeros(1, 4)
    for reversible in (False, True):
        table = table_of([[1, 1, 1, 0]])

        def visit(logits, epoch, table=table, reversible=reversible):
            revision = revise(table, index, logits, 0.2, epoch, rule, reversible)
            return table.confidence[0].tolist(), revision.revised.item(), revision.ambiguous.item()

        assert visit(towards, 0) == ([1, 0, 0, 0], True, True)
        assert visit(towards, 1) == ([1, 0, 0, 0], False, reversible)
        if not reversible:
            assert visit(away, 2) == ([1, 0, 0, 0], False, False)
            assert visit(undecided, 3) == ([1, 0, 0, 0], False, False)
            assert table.revised_epoch.tolist() == [0]
        else:
            assert visit(away, 2) == ([0, 1, 0, 0], True, True)
            confidence, revised, _ = visit(undecided, 3)  # back to the candidates
            assert revised and confidence == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
            assert table.revised_epoch.tolist() == [3]


def test_momentum_matters_to_soft_only():
    # reversible, so from (1/2, 1/2) each time: 3/4 of that and 1/4 of softmax(ln 3, 0) = (3/4, 1/4); else of the last
    for reversible, expected in ((False, [[9 / 16, 7 / 16], [39 / 64, 25 / 64]]), (True, [[9 / 16, 7 / 16]] * 2)):
        table = table_of([[1, 1]])
        for visit, confidence in enumerate(expected):
            revise(table, torch.tensor([0]), torch.tensor([[LN3, 0.0]]), 0.1, visit, "soft", reversible, momentum=0.75)
            torch.testing.assert_close(table.confidence, torch.tensor([confidence]))
    for rule in ("margin", "margin_softmax", "none"):  # what else these have a number for is a threshold
        assert REVISION_RULES[rule].setting is not MOMENTUM
    with_it, without = table_of(SETS), table_of(SETS)
    with_it.revise(torch.arange(2), TURNED, 0, "none", 0.75)
    assert torch.equal(bits(with_it), bits(without))


def test_soft_comes_back_from_a_label_that_took_all():
    table = table_of([[1, 1, 0]])
    index = torch.tensor([0])
    revise(table, index, torch.tensor([[90.0, -90.0, 0.0]]), 0.2, 0, "soft")
    assert table.confidence.tolist() == [[1, 0, 0]]  # the other is too small for float32
    revise(table, index, torch.tensor([[0.0, LN3, 0.0]]), 0.2, 1, "soft")
    torch.testing.assert_close(table.confidence, torch.tensor([[1 / 4, 3 / 4, 0]]))


def test_rules_say_when_they_revise():
    assert [name for name, rule in REVISION_RULES.items() if rule.after_loss] == ["soft"]
    assert [name for name, rule in REVISION_RULES.items() if rule.final] == ["margin", "margin_softmax"]
    assert [name for name, rule in REVISION_RULES.items() if rule.setting is THRESHOLD] == ["margin", "margin_softmax"]
    assert [name for name, rule in REVISION_RULES.items() if rule.setting is MOMENTUM] == ["soft"]
    assert all(name == rule.name and rule.summary for name, rule in REVISION_RULES.items())


@few
@given(data=st.data())
def test_soft_is_the_gradient_that_cc_holds_back(data):
    """dCC/dz = p - C' with C' of the rule: the two see the same label in a row."""
    table = table_of(data.draw(candidate_sets()))
    index = torch.arange(len(table))
    logits = data.draw(logits_for(index, table)).requires_grad_()
    cc_loss(logits, table.candidates).sum().backward()
    revise(table, index, logits, 0.2, 0, "soft")
    torch.testing.assert_close(table.confidence, logits.detach().softmax(dim=1) - logits.grad, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- figures of the table


def figures(table, true_labels):
    """`summary`, from the table's rows alone, in float64."""
    confidence = table.confidence.numpy().astype(np.float64)
    ambiguous = table.candidates.numpy().sum(axis=1) > 1
    revised = table.revised_epoch.numpy() >= 0
    entropy = -(confidence * np.log(confidence, where=confidence > 0, out=np.zeros_like(confidence))).sum(axis=1)
    expected = {
        "revised_fraction": revised[ambiguous].sum() / max(ambiguous.sum(), 1),
        "confidence_entropy": entropy.mean(),
    }
    if true_labels is not None:
        known = true_labels >= 0
        right = confidence.argmax(axis=1)[known] == true_labels[known]
        expected["label_recovery"] = right.sum() / max(known.sum(), 1)
    return expected


def assert_figures(table, true_labels):
    summary, expected = table.summary(), figures(table, true_labels)
    assert summary.keys() == expected.keys()
    assert summary["revised_fraction"] == expected["revised_fraction"]
    assert abs(summary["confidence_entropy"] - expected["confidence_entropy"]) < 1e-9
    assert summary.get("label_recovery") == expected.get("label_recovery")


@settings(max_examples=60)
@given(data=st.data())
def test_the_summary_is_that_of_the_rows_after_any_revisions(data):
    table = data.draw(tables())
    num_classes = table.confidence.shape[1]
    true_labels = None
    for epoch in range(4):
        if data.draw(st.booleans()) and true_labels is None:  # they may come late
            true_labels = data.draw(generators).integers(-1, num_classes, size=len(table))
            table.set_true_labels(true_labels)
            assert_figures(table, true_labels)
        index = data.draw(batches(table))
        logits = data.draw(logits_for(index, table, rare=(NAN,)))
        rule, reversible = data.draw(st.sampled_from(list(REVISION_RULES))), data.draw(st.booleans())
        revise(table, index, logits, data.draw(thresholds), epoch, rule, reversible, data.draw(momenta))
        assert_figures(table, true_labels)
    ambiguous = (table.candidates.sum(dim=1) > 1).nonzero()[:, 0]
    table.write(ambiguous, table.candidates[ambiguous] / table.candidates[ambiguous].sum(dim=1, keepdim=True), 9)
    assert_figures(table, true_labels)


def test_the_summary_stays_exact_over_a_long_training(tmp_path):
    """Running sums of 30,000 revisions of 500 rows; a loaded table counts anew."""
    generator = np.random.default_rng(0)
    candidates = generator.random((500, 7)) < 0.4
    truth = generator.integers(7, size=500)
    candidates[np.arange(500), truth] = True
    truth[::5] = -1
    table = table_of(candidates)
    table.set_true_labels(truth)
    for visit in range(600):
        index = torch.from_numpy(generator.choice(500, 50, replace=False))
        logits = torch.from_numpy(generator.normal(scale=4, size=(50, 7)))
        rule = ("soft", "margin", "margin_softmax")[visit % 3]
        revise(table, index, logits, 0.1, visit // 10, rule, reversible=visit % 3 > 0)
    assert_figures(table, truth)
    assert 0 < table.summary()["label_recovery"] < 1 and table.summary()["confidence_entropy"] > 0.1

    table.save(tmp_path / "confidence.safetensors")
    loaded = ConfidenceTable.load(tmp_path / "confidence.safetensors", table.class_names, table.fingerprint)
    loaded.set_true_labels(truth)
    assert_figures(loaded, truth)


# -------------------------------------------------------------------------------------------------- rules of one's own


def take_most_probable(confidence, response, value):
    """All of `value` to the most probable candidate, the rest as it was."""
    leader = torch.nn.functional.one_hot(response.argmax(dim=1), response.shape[1])
    return value * leader + (1 - value) * confidence


OWN = RevisionRule(
    "hardest",
    "the most probable candidate gains",
    soft_response,
    take_most_probable,
    RuleSetting("revision_step", 0.5, "Share that the most probable candidate gains.", minimum=0.1, below=2.0),
)


def test_a_rule_of_ones_own_revises_as_an_object_and_by_its_name(monkeypatch):
    table, registered = table_of([[1, 1, 0, 0]]), table_of([[1, 1, 0, 0]])
    logits = torch.tensor([[0.0, LN3, 9, 9]])
    revision = table.revise(torch.tensor([0]), logits, 3, OWN)
    torch.testing.assert_close(table.confidence, torch.tensor([[1 / 4, 3 / 4, 0, 0]]))
    torch.testing.assert_close(revision.margin, torch.tensor([1 / 2]))
    assert revision.revised.tolist() == [True] and table.revised_epoch.tolist() == [3]
    with pytest.raises(ValueError, match="revision='hardest': choose one of margin, margin_softmax, soft, none"):
        registered.revise(torch.tensor([0]), logits, 3, "hardest")
    monkeypatch.setitem(REVISION_RULES, "hardest", OWN)
    registered.revise(torch.tensor([0]), logits, 3, "hardest", 1.0)
    assert registered.confidence.tolist() == [[0, 1, 0, 0]]
    table.revise(torch.tensor([0]), torch.tensor([[NAN, LN3, 9, 9]]), 4, OWN)
    assert table.revised_epoch.tolist() == [3]


def test_the_response_is_computed_once():
    calls = []

    def counted(*args):
        calls.append(args)
        return soft_response(*args)

    table_of(SETS).revise(torch.arange(2), TURNED, 0, RevisionRule("counted", "", counted, setting=THRESHOLD))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("rule", "value", "match"),
    [
        ("margin", 1.0, r"revision_threshold=1.0 must lie in \[0, 1\)"),
        ("margin_softmax", -0.1, r"revision_threshold=-0.1 must lie in \[0, 1\)"),
        ("soft", 1.0, r"revision_momentum=1.0 must lie in \[0, 1\)"),
        ("soft", NAN, "revision_momentum=nan"),
        (OWN, 0.0, r"revision_step=0.0 must lie in \[0.1, 2\)"),
        ("paper", None, "revision='paper': choose one of"),
    ],
)
def test_a_number_outside_its_range_and_an_unknown_rule_are_refused(rule, value, match):
    table = table_of(SETS)
    with pytest.raises(ValueError, match=match):
        table.revise(torch.arange(2), TURNED, 0, rule, value)
    assert (table.revised_epoch == -1).all()


def test_a_rule_without_response_cannot_revise_by_itself():
    with pytest.raises(ValueError, match="'none' has no response"):
        REVISION_RULES["none"].revise(torch.ones(1, 2) / 2, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))


NUMBERS = {"rows": 3000, "mean_size": 2.0, "ambiguous": 2000, "revised": 1234}


@pytest.mark.parametrize(
    ("rule", "chosen", "sentence"),
    [
        (
            "margin",
            {"revision_threshold": 0.3},
            "As soon as one candidate's confidence, times the sigmoid of its logit, leads by more than 0.3, it "
            "becomes the label (Eq. 4 and 5 of the paper). Images that got their label that way: 1,234.",
        ),
        (
            "margin",
            {"revision_threshold": 0.3, "reversible": True, "revision_warmup_epochs": 2.5},
            "Each time the image is seen, from epoch 2.5 on, its candidates are judged anew, from equal confidences:"
            " where one candidate's confidence, times the sigmoid of its logit, leads by more than 0.3, it takes all"
            " the confidence (Eq. 4 and 5 of the paper); where not, the candidates are equal again. Images revised at"
            " least once: 1,234.",
        ),
        (
            "margin_softmax",
            {"revision_threshold": 0.5, "revision_warmup_epochs": 4},
            "As soon as, from epoch 4 on, one candidate leads by more than 0.5 in the softmax over the labels that "
            "are left, it becomes the label. Images that got their label that way: 1,234.",
        ),
        (
            "margin_softmax",
            {"revision_threshold": 0.5, "reversible": True},
            "Each time the image is seen, its candidates are judged anew, from equal confidences: where one candidate "
            "leads by more than 0.5 in the softmax over the labels that are left, it takes all the confidence; where "
            "not, the candidates are equal again. Images revised at least once: 1,234.",
        ),
        (
            "soft",
            {"revision_momentum": 0.0},
            "Each time the image is seen, the softmax over its candidates becomes its confidences.",
        ),
        (
            "soft",
            {"revision_momentum": 0.9, "revision_warmup_epochs": 12},
            "Each time the image is seen, from epoch 12 on, the softmax over its candidates makes up 10 % of its new "
            "confidences, the former ones the rest.",
        ),
        (
            "soft",
            {"revision_momentum": 0.9, "reversible": True},
            "Each time the image is seen, the softmax over its candidates makes up 10 % of its new confidences, equal "
            "shares the rest.",
        ),
        ("none", {"reversible": True}, "They were not revised during training."),
        (
            OWN,
            {"revision_step": 1.5, "revision_warmup_epochs": 1, "reversible": True},
            "They were revised by the rule `hardest` (revision_step 1.5), from epoch 1 on, each time from equal "
            "confidences: the most probable candidate gains. Images revised at least once: 1,234.",
        ),
        (
            OWN,
            {},
            "They were revised by the rule `hardest` (revision_step 0.5): the most probable candidate gains. Images "
            "revised at least once: 1,234.",
        ),
    ],
)
def test_each_rule_tells_what_it_did(rule, chosen, sentence):
    assert find_rule(rule).sentence(chosen, NUMBERS) == sentence


@pytest.mark.parametrize("rule", [*REVISION_RULES, OWN], ids=lambda rule: getattr(rule, "name", rule))
def test_a_rule_that_never_came_to_revise_says_so(rule):
    """As with a warm-up that is longer than the training."""
    for reversible in (False, True):
        chosen = {"revision_warmup_epochs": 9, "reversible": reversible}
        sentence = find_rule(rule).sentence(chosen, NUMBERS | {"revised": 0})
        assert any(text in sentence for text in (": 0.", "before any image was revised.", "were not revised during"))


def test_names_of_the_version_before_are_read_with_a_warning():
    for setting, before, now in (
        ("loss", "softmax", "cross_entropy"),
        ("revision", "paper", "margin"),
        ("revision", "normalized", "margin_softmax"),
    ):
        with pytest.warns(UserWarning, match=f"^{setting}='{before}' is called '{now}' now.$"):
            assert current_name(setting, before) == now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for setting, value in (("loss", "pll"), ("revision", None), ("revision", "margin"), ("ties", "paper")):
            assert current_name(setting, value) == value
