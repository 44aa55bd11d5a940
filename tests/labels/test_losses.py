"""Losses and their gradients against closed forms in NumPy, in float64, that owe nothing to autograd."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fer_pll.labels.losses import (
    cc_loss,
    complement_loss,
    cross_entropy_loss,
    kl_loss,
    log_one_minus_p,
    lw_loss,
    pll_loss,
    supervised_contrastive_loss,
)
from fer_pll.labels.revision import REVISION_RULES

# ------------------------------------------------------------------------- closed forms: loss (B,) and gradient (B, K)


def softmax(logits, inside=True):
    """Over the True entries of each row, 0 elsewhere; all 0 in a row without any."""
    logits = np.where(inside, logits, -np.inf)
    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    total = powers.sum(axis=1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


def logsumexp(logits, axis=1):
    return np.logaddexp.reduce(logits, axis=axis)


def log_softmax(logits):
    return logits - logsumexp(logits)[:, None]


def without(logits):
    """r, (B, K, K): r_kj = p_j / (1 - p_k) for j other than k, the softmax over all labels but k; and log(1 - p_k)."""
    num_classes = logits.shape[1]
    others = np.where(np.eye(num_classes, dtype=bool), -np.inf, logits[:, None, :])
    log_rest = logsumexp(others, axis=2)
    return np.exp(others - log_rest[:, :, None]), log_rest - logsumexp(logits)[:, None]


def exact_softmax(z, candidates, confidence, labels):
    """d(-log p_y)/dz = p - e_y."""
    known = labels >= 0
    one_hot = np.eye(z.shape[1])[labels]  # of -1 the last, which `known` takes away again
    return -(one_hot * log_softmax(z)).sum(axis=1) * known, (softmax(z) - one_hot) * known[:, None]


def exact_pll(z, candidates, confidence, labels):
    """d(-sum_k C_k log p_k)/dz = p - C."""
    return -(confidence * log_softmax(z)).sum(axis=1), softmax(z) - confidence


def exact_cc(z, candidates, confidence, labels):
    """d(-log sum_Y p)/dz = p - q, q the softmax over the candidates."""
    loss = logsumexp(z) - logsumexp(np.where(candidates, z, -np.inf))
    return loss, softmax(z) - softmax(z, candidates)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def exact_lw(z, candidates, confidence, labels, leverage=1.0, weights_of=None):
    """w constant, s(x) = sigmoid(x): d s(-z)/dz = -s(z) s(-z) inside, d s(z)/dz = s(z) s(-z) outside."""
    of = z if weights_of is None else weights_of
    weights = softmax(of, candidates) + leverage * softmax(of, ~candidates)
    sign = np.where(candidates, -1, 1)
    return (weights * sigmoid(sign * z)).sum(axis=1), weights * sign * sigmoid(z) * sigmoid(-z)


def exact_lwc(z, candidates, confidence, labels, leverage=1.0, weights_of=None):
    """w constant: d(-log p_k)/dz_j = p_j - [j = k] inside, d(-log(1 - p_k))/dz_j = p_j - r_kj outside."""
    of = z if weights_of is None else weights_of
    inside, outside = softmax(of, candidates), leverage * softmax(of, ~candidates)
    rest, log_rest = without(z)
    p = softmax(z)
    gradient = (inside + outside).sum(axis=1, keepdims=True) * p - inside - np.einsum("bk,bkj->bj", outside, rest)
    return -(inside * log_softmax(z) + outside * log_rest).sum(axis=1), gradient


def exact_complement(z, candidates, confidence, labels):
    """d(-sum_{k not in Y} log(1 - p_k))/dz_j = sum_{k not in Y} (p_j - r_kj)."""
    rest, log_rest = without(z)
    gradient = ((softmax(z)[:, None, :] - rest) * ~candidates[:, :, None]).sum(axis=1)
    return -(log_rest * ~candidates).sum(axis=1), gradient


def exact_kl(z, candidates, confidence, labels):
    """d KL(C || p)/dz = p - C."""
    log_confidence = np.log(confidence, where=confidence > 0, out=np.zeros_like(confidence))
    return (confidence * (log_confidence - log_softmax(z))).sum(axis=1), softmax(z) - confidence


def exact_log_one_minus_p(z, candidates, confidence, labels):
    """Summed over k with the weights k + 1, so that no two labels change places unseen."""
    rest, log_rest = without(z)
    weights = 1.0 + np.arange(z.shape[1])
    gradient = np.einsum("k,bkj->bj", weights, rest) - weights.sum() * softmax(z)
    return log_rest @ weights, gradient


def weighted_log_one_minus_p(z):
    return log_one_minus_p(z) @ (1 + torch.arange(z.shape[1], dtype=z.dtype))


LOSSES = {
    "softmax": (lambda z, y, c, labels: cross_entropy_loss(z, labels), exact_softmax),
    "pll": (lambda z, y, c, labels: pll_loss(z, c), exact_pll),
    "cc": (lambda z, y, c, labels: cc_loss(z, y), exact_cc),
    "lw": (lambda z, y, c, labels: lw_loss(z, y), exact_lw),
    "lwc": (lambda z, y, c, labels: lw_loss(z, y, surrogate="cross_entropy"), exact_lwc),
    "lw, twice the weight outside": (
        lambda z, y, c, labels: lw_loss(z, y, leverage=2.0),
        lambda *args: exact_lw(*args, leverage=2.0),
    ),
    "lwc, twice the weight outside": (
        lambda z, y, c, labels: lw_loss(z, y, leverage=2.0, surrogate="cross_entropy"),
        lambda *args: exact_lwc(*args, leverage=2.0),
    ),
    "complement": (lambda z, y, c, labels: complement_loss(z, y), exact_complement),
    "kl": (lambda z, y, c, labels: kl_loss(z, c), exact_kl),
    "log(1 - p)": (lambda z, y, c, labels: weighted_log_one_minus_p(z), exact_log_one_minus_p),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
IN_FULL_PRECISION = pytest.mark.parametrize("name", [name for name in LOSSES if name != "log(1 - p)"])


def computed(name, logits, candidates, confidence, labels, dtype=torch.float64):
    """Loss and gradient as the package computes them."""
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    arguments = torch.as_tensor(candidates), torch.as_tensor(confidence).to(dtype), torch.as_tensor(labels)
    loss = LOSSES[name][0](z, *arguments)
    loss.sum().backward()
    return loss.detach(), z.grad


def random_rows(rows, classes, scale=3.0, seed=0):
    """Logits, candidate sets from one label to all, confidences inside them, labels with some unknown."""
    rng = np.random.default_rng(seed)
    candidates = rng.random((rows, classes)) < rng.random((rows, 1))
    candidates[np.arange(rows), rng.integers(classes, size=rows)] = True
    confidence = rng.exponential(size=(rows, classes)) * candidates
    confidence /= confidence.sum(axis=1, keepdims=True)
    return rng.normal(scale=scale, size=(rows, classes)), candidates, confidence, rng.integers(-1, classes, rows)


# --------------------------------------------------------------------------------------------------- numbers by hand

# p = (1, 2, 5, 2) / 10;  p = (3, 1, 1, 3) / 8;  the first again
LOGITS = np.log([[1, 2, 5, 2], [3, 1, 1, 3], [1, 2, 5, 2]])
CANDIDATES = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
CONFIDENCE = CANDIDATES / CANDIDATES.sum(axis=1, keepdims=True)
LABELS = np.array([2, 0, -1])

BY_HAND = {
    "softmax": (
        [-np.log(1 / 2), -np.log(3 / 8), 0],
        [[0.1, 0.2, -0.5, 0.2], [-5 / 8, 1 / 8, 1 / 8, 3 / 8], [0, 0, 0, 0]],
    ),
    "pll": (
        [-np.log(0.2 * 0.5) / 2, -np.log(3 / 8), -np.log(0.1 * 0.2 * 0.5 * 0.2) / 4],
        [[0.1, -0.3, 0, 0.2], [-5 / 8, 1 / 8, 1 / 8, 3 / 8], [-0.15, -0.05, 0.25, -0.05]],
    ),
    "kl": (  # less the entropies log 2, 0 and log 4
        [-np.log(0.1) / 2 - np.log(2), -np.log(3 / 8), -np.log(0.002) / 4 - np.log(4)],
        [[0.1, -0.3, 0, 0.2], [-5 / 8, 1 / 8, 1 / 8, 3 / 8], [-0.15, -0.05, 0.25, -0.05]],
    ),
    "cc": (  # q = (2, 5) / 7 inside
        [-np.log(0.7), -np.log(3 / 8), 0],
        [[0.1, 0.2 - 2 / 7, 0.5 - 5 / 7, 0.2], [-5 / 8, 1 / 8, 1 / 8, 3 / 8], [0, 0, 0, 0]],
    ),
    "lw": (
        # sigmoid(z): 1/2, 2/3, 5/6, 2/3.  Inside w = (2, 5) / 7 of 1/3, 1/6; outside w = (1, 2) / 3 of 1/2, 2/3
        # sigmoid(z): 3/4, 1/2, 1/2, 3/4.  Inside 1 of 1/4; outside w = (1, 1, 3) / 5 of 1/2, 1/2, 3/4
        # all inside: w = p of 1/2, 1/3, 1/6, 1/3
        [3 / 14 + 11 / 18, 1 / 4 + 13 / 20, 4 / 15],
        [
            [1 / 3 / 4, -2 / 7 * 2 / 9, -5 / 7 * 5 / 36, 2 / 3 * 2 / 9],
            [-3 / 16, 1 / 5 / 4, 1 / 5 / 4, 3 / 5 * 3 / 16],
            [-0.1 / 4, -0.2 * 2 / 9, -0.5 * 5 / 36, -0.2 * 2 / 9],
        ],
    ),
    "lwc": (
        # 1 - p outside: .9, .8;  7/8, 7/8, 5/8.  The sum of all weights is 2, 2 and 1, so the gradient is 2 p or p
        # less w inside and, for each k outside, less w_k r_k, with r_0 = (0, 2, 5, 2) / 9, r_3 = (1, 2, 5, 0) / 8;
        # r_1 = (3, 0, 1, 3) / 7, r_2 = (3, 1, 0, 3) / 7, r_3 = (3, 1, 1, 0) / 5
        [
            -(2 * np.log(0.2) + 5 * np.log(0.5)) / 7 - (np.log(0.9) + 2 * np.log(0.8)) / 3,
            -np.log(3 / 8) - (2 * np.log(7 / 8) + 3 * np.log(5 / 8)) / 5,
            -(0.1 * np.log(0.1) + 0.4 * np.log(0.2) + 0.5 * np.log(0.5)),
        ],
        [
            [0.2 - 1 / 12, 0.4 - 2 / 7 - 2 / 27 - 1 / 6, 1 - 5 / 7 - 5 / 27 - 5 / 12, 0.4 - 2 / 27],
            [6 / 8 - 1 - 6 / 35 - 9 / 25, 2 / 8 - 1 / 35 - 3 / 25, 2 / 8 - 1 / 35 - 3 / 25, 6 / 8 - 6 / 35],
            [0, 0, 0, 0],  # p - w
        ],
    ),
    "complement": (  # gradient 2 p - r_0 - r_3 and 3 p - r_1 - r_2 - r_3, with r as above
        [-np.log(0.9 * 0.8), -np.log(7 / 8 * 7 / 8 * 5 / 8), 0],
        [
            [0.2 - 1 / 8, 0.4 - 2 / 9 - 2 / 8, 1 - 5 / 9 - 5 / 8, 0.4 - 2 / 9],  # 2 p - r_0 - r_3
            [
                9 / 8 - 6 / 7 - 3 / 5,
                3 / 8 - 1 / 7 - 1 / 5,
                3 / 8 - 1 / 7 - 1 / 5,
                9 / 8 - 6 / 7,
            ],  # 3 p - r_1 - r_2 - r_3
            [0, 0, 0, 0],
        ],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_and_gradient_by_hand(name):
    loss, gradient = computed(name, LOGITS, CANDIDATES, CONFIDENCE, LABELS)
    expected_loss, expected_gradient = BY_HAND[name]
    np.testing.assert_allclose(loss, expected_loss, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-12)


def test_log_one_minus_p_by_hand():
    expected = np.log([[0.9, 0.8, 0.5, 0.8], [5 / 8, 7 / 8, 7 / 8, 5 / 8]])
    np.testing.assert_allclose(log_one_minus_p(torch.tensor(LOGITS[:2])), expected, atol=1e-12)


@EVERY_LOSS
def test_loss_and_gradient_agree_with_the_closed_form(name):
    rows = random_rows(300, 7)
    expected_loss, expected_gradient = LOSSES[name][1](*rows)
    loss, gradient = computed(name, *rows)
    assert loss.dtype == torch.float64 and loss.shape == (300,)
    np.testing.assert_allclose(loss, expected_loss, atol=1e-9)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-9)

    loss, gradient = computed(name, *rows, dtype=torch.float32)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@EVERY_LOSS
def test_all_losses_but_lw_ignore_a_common_shift_of_the_logits(name):
    logits, *rest = random_rows(50, 6)
    loss, gradient = computed(name, logits, *rest)
    shifted, shifted_gradient = computed(name, logits + 17, *rest)
    same = np.allclose(loss, shifted, atol=1e-9) and np.allclose(gradient, shifted_gradient, atol=1e-9)
    assert same == (name not in ("lw", "lw, twice the weight outside"))


# --------------------------------------------------------------------------------------------------- numerical limits


@EVERY_LOSS
def test_extreme_logits_give_finite_losses_and_gradients(name):
    logits = np.array(list(itertools.product([-80.0, 0.0, 80.0], repeat=4)))  # with all ties
    sets = np.array(list(itertools.product([False, True], repeat=4))[1:])
    logits, candidates = logits.repeat(len(sets), axis=0), np.tile(sets, (len(logits), 1))
    confidence = candidates / candidates.sum(axis=1, keepdims=True)
    labels = candidates.argmax(axis=1)
    rows = logits, candidates, confidence, labels
    expected_loss, expected_gradient = LOSSES[name][1](*rows)
    assert np.isfinite(expected_loss).all() and np.isfinite(expected_gradient).all()
    loss, gradient = computed(name, *rows, dtype=torch.float32)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-4)


def test_a_label_that_is_nearly_certain_keeps_its_small_remainder():
    logits = torch.tensor([[40.0, 0.0, -3.0]])  # 1 - p_0 = (1 + e^-3) e^-40, where 1 - softmax is 0 in float32
    assert 1 - logits.softmax(dim=1)[0, 0] == 0
    expected = np.log1p(np.exp(-3)) - 40
    assert log_one_minus_p(logits)[0, 0].item() == pytest.approx(expected, rel=1e-6)
    outside = torch.tensor([[False, True, True]])
    assert complement_loss(logits, outside).item() == pytest.approx(-expected, rel=1e-6)


@IN_FULL_PRECISION
def test_half_precision_and_autocast_are_computed_in_float32(name):
    logits, candidates, confidence, labels = random_rows(64, 7, scale=5)
    half = torch.tensor(logits).bfloat16().requires_grad_()
    arguments = torch.tensor(candidates), torch.tensor(confidence).float(), torch.tensor(labels)
    function = LOSSES[name][0]
    loss = function(half, *arguments)
    loss.sum().backward()

    full = half.detach().float().requires_grad_()
    expected = function(full, *arguments)
    expected.sum().backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.equal(half.grad, full.grad.bfloat16())

    under = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = function(under, *arguments)
    loss.sum().backward()
    assert torch.equal(loss, expected) and torch.equal(under.grad, full.grad)


# --------------------------------------------------------------------------------------------- what they come down to


@st.composite
def logits_and_labels(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 6)))
    logits = draw(arrays(np.float64, shape, elements=st.floats(-80, 80)))
    labels = draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return logits, labels


@given(logits_and_labels())
def test_with_one_candidate_pll_kl_and_cc_are_the_cross_entropy(rows):
    logits, labels = rows
    one_hot = np.eye(logits.shape[1], dtype=bool)[labels]
    expected_loss, expected_gradient = computed("softmax", logits, one_hot, one_hot, labels)
    for name in ("pll", "kl", "cc"):
        loss, gradient = computed(name, logits, one_hot, one_hot, labels)
        np.testing.assert_allclose(loss, expected_loss, atol=1e-9)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-9)


@given(logits_and_labels())
def test_a_full_candidate_set_teaches_nothing_outside(rows):
    logits, labels = rows
    full = np.ones(logits.shape, dtype=bool)
    for name in ("cc", "complement"):
        loss, gradient = computed(name, logits, full, full / full.shape[1], labels)
        assert not loss.any() and not gradient.any()
    for once, twice in (("lw", "lw, twice the weight outside"), ("lwc", "lwc, twice the weight outside")):
        for one, other in zip(*(computed(n, logits, full, full, labels) for n in (once, twice)), strict=True):
            assert torch.equal(one, other)  # there is no outside whose weight could matter


@pytest.mark.parametrize(("name", "exact"), [("lw", exact_lw), ("lwc", exact_lwc)])
def test_no_gradient_flows_through_the_weights_of_lw(name, exact):
    z, candidates, confidence, labels = random_rows(20, 5)
    step = 1e-6
    frozen, moving = np.zeros_like(z), np.zeros_like(z)  # central differences, with the weights of z and of z +- step
    for k in range(5):
        ahead, behind = z.copy(), z.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        parts = [exact(at, candidates, None, None, weights_of=z)[0] for at in (ahead, behind)]
        frozen[:, k] = (parts[0] - parts[1]) / (2 * step)
        parts = [exact(at, candidates, None, None)[0] for at in (ahead, behind)]
        moving[:, k] = (parts[0] - parts[1]) / (2 * step)
    _, gradient = computed(name, z, candidates, confidence, labels)
    np.testing.assert_allclose(gradient, frozen, atol=1e-8)
    assert np.abs(moving - frozen).max() > 0.01


def test_a_row_without_label_has_no_cross_entropy_loss():
    loss, gradient = computed("softmax", LOGITS, CANDIDATES, CONFIDENCE, np.array([-1, -1, 1]))
    assert loss[:2].tolist() == [0, 0] and not gradient[:2].any() and loss[2] > 0


@given(logits_and_labels(), st.data())
def test_the_soft_rule_before_the_loss_would_be_cc(rows, data):
    """Why `soft` revises after the loss: sum C log p with C = p / p_Y inside has the gradient of log p_Y."""
    logits, labels = rows
    candidates = data.draw(arrays(bool, logits.shape))
    candidates[np.arange(len(labels)), labels] = True
    z, candidates = torch.tensor(logits), torch.tensor(candidates)
    uniform = candidates.float() / candidates.sum(dim=1, keepdim=True)
    soft = REVISION_RULES["soft"].revise(uniform, candidates, z)[0]
    loss, gradient = computed("pll", logits, candidates, soft, labels)
    cc, cc_gradient = computed("cc", logits, candidates, soft, labels)
    np.testing.assert_allclose(gradient, cc_gradient, atol=1e-5)  # z is rounded to float32 for the confidences
    entropy = torch.special.entr(soft.double()).sum(dim=1)
    np.testing.assert_allclose(loss, cc + entropy, rtol=1e-5, atol=1e-5)


def test_confidences_of_an_earlier_visit_are_not_cc():
    rows = random_rows(50, 6)
    earlier = random_rows(50, 6, seed=1)[0]
    candidates = torch.tensor(rows[1])
    soft = REVISION_RULES["soft"].revise(candidates.float(), candidates, torch.tensor(earlier))[0]
    ambiguous = rows[1].sum(axis=1) > 1
    _, gradient = computed("pll", rows[0], rows[1], soft, rows[3])
    _, cc_gradient = computed("cc", *rows)
    assert ambiguous.sum() > 20
    assert ((gradient - cc_gradient).abs().amax(dim=1)[torch.tensor(ambiguous)] > 0.01).all()


# ------------------------------------------------------------------------------------- the contrastive loss of PiCO


def exact_contrastive(queries, labels, keys, key_labels, temperature):
    """Loss (B,), and the gradients of its sum by queries and keys. s = q . k / tau: dL/ds = softmax(s) - [P] / |P|."""
    similarity = queries @ keys.T / temperature
    positive = labels[:, None] == key_labels[None]
    shares = positive / np.maximum(positive.sum(axis=1, keepdims=True), 1)
    by_similarity = (softmax(similarity) - shares) * positive.any(axis=1, keepdims=True) / temperature
    return -(shares * log_softmax(similarity)).sum(axis=1), by_similarity @ keys, by_similarity.T @ queries


def contrastive(queries, labels, keys, key_labels, temperature):
    queries, keys = (torch.tensor(vectors).float().requires_grad_() for vectors in (queries, keys))
    labels, key_labels = torch.tensor(labels), torch.tensor(key_labels)
    loss = supervised_contrastive_loss(queries, labels, keys, key_labels, temperature)
    loss.sum().backward()
    return loss.detach(), queries.grad, keys.grad


def test_contrastive_loss_by_hand():
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    keys = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    key_labels = np.array([0, 1, 0])
    temperature = 1 / np.log(2)  # q . k / tau = log 2 * cosine: weights 2^cosine
    # query 0, label 0: weights 2, 1, 1/2 of 7/2; positives are keys 0 and 2: -(log 4/7 + log 1/7) / 2
    # query 1, label 1: weights 1, 2, 1 of 4; positive is key 1: -log 1/2
    # query 2, label 7: none
    loss, by_query, by_key = contrastive(queries, np.array([0, 1, 7]), keys, key_labels, temperature)
    np.testing.assert_allclose(loss, [-(np.log(4 / 7) + np.log(1 / 7)) / 2, np.log(2), 0], atol=1e-6)
    # dL/ds: (4/7 - 1/2, 2/7, 1/7 - 1/2);  (1/4, 1/2 - 1, 1/4);  none
    # dL/dq = log 2 * sum_k dL/ds_k k:  (1/14 + 5/14, 2/7);  (1/4 - 1/4, -1/2)
    np.testing.assert_allclose(by_query, np.log(2) * np.array([[3 / 7, 2 / 7], [0, -1 / 2], [0, 0]]), atol=1e-6)
    # dL/dk = log 2 * sum_q dL/ds_q q:  (1/14, 1/4);  (2/7, -1/2);  (-5/14, 1/4)
    expected = np.log(2) * np.array([[1 / 14, 1 / 4], [2 / 7, -1 / 2], [-5 / 14, 1 / 4]])
    np.testing.assert_allclose(by_key, expected, atol=1e-6)


def unit_vectors(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.0125])  # the last: scores to +-80
def test_contrastive_loss_agrees_with_the_closed_form(temperature):
    rng = np.random.default_rng(0)
    queries, keys = unit_vectors(rng, 40, 16), unit_vectors(rng, 90, 16)
    keys[:40] = queries  # the query itself, as far as it can be
    keys[40:50] = -queries[:10]
    labels, key_labels = rng.integers(0, 12, 40), rng.integers(0, 11, 90)
    assert (labels == 11).any()  # has no key
    arguments = queries, labels, keys, key_labels, temperature
    for one, expected in zip(contrastive(*arguments), exact_contrastive(*arguments), strict=True):
        assert one.dtype == torch.float32
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=2e-5 / temperature)


def test_contrastive_loss_is_float32_under_autocast_and_of_half_precision():
    rng = np.random.default_rng(1)
    queries = torch.tensor(unit_vectors(rng, 8, 16)).bfloat16().requires_grad_()
    keys = torch.tensor(unit_vectors(rng, 20, 16)).bfloat16()
    labels, key_labels = torch.arange(8) % 3, torch.arange(20) % 3
    full = queries.detach().float().requires_grad_()
    expected = supervised_contrastive_loss(full, labels, keys.float(), key_labels, 0.07)
    expected.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supervised_contrastive_loss(queries, labels, keys, key_labels, 0.07)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.equal(queries.grad, full.grad.bfloat16())


def test_contrastive_loss_is_least_where_all_keys_of_the_label_are_as_near():
    """log of the number of positives, where nothing else is near: the softmax is spread over them."""
    queries = torch.eye(4)[:2]
    keys, key_labels = torch.eye(4)[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1])
    loss = supervised_contrastive_loss(queries, torch.tensor([0, 1]), keys, key_labels, 0.01)
    torch.testing.assert_close(loss, torch.tensor([np.log(3), 0]).float())
