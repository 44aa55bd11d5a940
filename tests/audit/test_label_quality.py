"""Scores of suspicion: worked examples, and simulated annotators whose errors are known."""

import numpy as np
import pytest
from scipy.stats import dirichlet_multinomial

from fer_pll.audit import label_quality as module
from fer_pll.audit.label_quality import (
    _log_likelihood,
    _shrunken_confusion,
    annotator_confusion,
    believed_labels,
    evaluate_suspicion,
    posterior_given_predictions,
    suspicion,
    training_posterior,
)


def test_suspicion_is_what_the_given_label_is_not_believed():
    belief = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.0, 0.1, 0.9]])
    np.testing.assert_allclose(suspicion(belief, np.array([0, 1, 0])), [0.3, 0.6, 1.0])
    # of equal beliefs the given label stays, whichever class comes first
    assert believed_labels(belief, np.array([2, 1, 2])).tolist() == [0, 1, 2]


def test_of_rows_decided_alike_the_one_with_fewer_votes_is_more_suspicious():
    belief = training_posterior([[0, 1], [0, 1], [1, 0]], [[9, 1], [6, 4], [10, 0]])
    np.testing.assert_allclose(belief, [[0.09, 0.91], [0.06, 0.94], [1, 0]])
    np.testing.assert_allclose(suspicion(belief, np.array([0, 0, 0])), [0.91, 0.94, 0])


def test_annotator_confusion_of_a_worked_example():
    belief = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    votes = np.array([[3, 1], [2, 2], [0, 4]])
    np.testing.assert_allclose(annotator_confusion(belief, votes), [[4 / 6, 2 / 6], [1 / 6, 5 / 6]])
    assert annotator_confusion(belief[:1], votes[:1]).tolist() == [[0.75, 0.25], [0, 0]]


def test_shrunken_confusion_of_a_worked_example():
    """Errors that all go to one class are taken nearly as they are; those without preference become equal."""
    counts = np.array([[60.0, 40, 0], [0, 80, 20], [30, 0, 70]])  # right 210 of 300, 100 votes for each class
    confusion = _shrunken_confusion(counts)
    np.testing.assert_allclose(confusion.diagonal(), [(60 + 70) / 200, (80 + 70) / 200, (70 + 70) / 200])
    np.testing.assert_allclose(confusion[0], [0.65, 0.35 * 40.5 / 41, 0.35 * 0.5 / 41])
    np.testing.assert_allclose(confusion.sum(axis=1), 1)
    even = _shrunken_confusion(np.array([[60.0, 21, 19], [9, 80, 11], [16, 14, 70]]))
    np.testing.assert_allclose(even[0], [0.65, 0.175, 0.175], atol=1e-4)
    # of faces without any error nothing is known but that
    np.testing.assert_allclose(_shrunken_confusion(10 * np.eye(3)), np.eye(3), atol=1e-8)


def test_log_likelihood_is_that_of_the_dirichlet_multinomial():
    votes = np.array([[2, 1, 0], [0, 0, 1], [0, 5, 5]])
    confusion = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.05, 0.05, 0.9]])
    ours = _log_likelihood(votes, confusion, 4.0)
    for k, row in enumerate(confusion):
        theirs = dirichlet_multinomial(4.0 * row, votes.sum(axis=1)).logpmf(votes)
        np.testing.assert_allclose(ours[:, k] - ours[:, 0], theirs - dirichlet_multinomial(
            4.0 * confusion[0], votes.sum(axis=1)
        ).logpmf(votes), atol=1e-9)  # fmt: skip
    # of one vote it is the vote's probability, whatever the concentration
    np.testing.assert_allclose(np.exp(_log_likelihood(votes[1:2], confusion, 0.3))[0], confusion[:, 2])


@pytest.fixture(scope="module")
def simulated():
    """4,000 faces of 4 classes; a model that is right for 80 %; annotators of whom class 0 is often called 1."""
    rng = np.random.default_rng(0)
    confusion = np.full((4, 4), 0.05) + 0.8 * np.eye(4)
    confusion[0] = [0.5, 0.4, 0.05, 0.05]
    truth = rng.integers(0, 4, 4000)
    logits = 2 * (2 * np.eye(4)[truth] + rng.normal(size=(4000, 4)))  # so that their softmax is the posterior
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, confusion, probabilities


def test_one_label_each_is_judged_better_with_the_confusion_of_the_annotators(simulated):
    truth, confusion, probabilities = simulated
    rng = np.random.default_rng(1)
    given = np.array([rng.choice(4, p=confusion[k]) for k in truth])
    posterior = posterior_given_predictions(probabilities, np.eye(4, dtype=int)[given])
    np.testing.assert_allclose(posterior.posterior.sum(axis=1), 1)
    ours = evaluate_suspicion(suspicion(posterior.posterior, given), given != truth)
    plain = evaluate_suspicion(suspicion(probabilities, given), given != truth)
    assert ours["average_precision"] > plain["average_precision"] + 0.005
    assert ours["precision_at_wrong"] > plain["precision_at_wrong"]
    right = (believed_labels(posterior.posterior, given) == truth).mean()
    assert right > max((given == truth).mean(), (probabilities.argmax(axis=1) == truth).mean())
    off_diagonal = posterior.confusion - np.diag(posterior.confusion.diagonal())
    assert np.unravel_index(off_diagonal.argmax(), (4, 4)) == (0, 1)


def test_what_the_model_learned_from_wrong_labels_is_undone(simulated):
    truth, confusion, probabilities = simulated
    rng = np.random.default_rng(1)
    given = np.array([rng.choice(4, p=confusion[k]) for k in truth])
    learned = probabilities @ confusion  # the probability of each label, right or wrong
    posterior = posterior_given_predictions(learned, np.eye(4, dtype=int)[given])
    assert posterior.temperature < 0.8
    right = (believed_labels(posterior.posterior, given) == truth).mean()
    assert right > max((given == truth).mean(), (learned.argmax(axis=1) == truth).mean()) + 0.01


def test_ambiguous_faces_do_not_pass_for_errors_of_the_annotators(monkeypatch):
    """Labels wrong at random, and a model that takes half of the faces of 0 and 1 for one or the other, too surely."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 4000)
    logits = 2 * (2 * np.eye(4)[truth] + rng.normal(size=(4000, 4)))
    alike = rng.random(4000) < 0.5
    logits[alike, :2] = logits[alike, :2].mean(axis=1, keepdims=True) + 1.2 * rng.normal(size=(alike.sum(), 2))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = np.where(rng.random(4000) < 0.2, (truth + rng.integers(1, 4, 4000)) % 4, truth)

    def judged():
        posterior = posterior_given_predictions(probabilities, np.eye(4, dtype=int)[given])
        figures = evaluate_suspicion(suspicion(posterior.posterior, given), given != truth)
        return posterior.confusion[[0, 1], [1, 0]], figures["average_precision"]

    confusion, precision = judged()
    np.testing.assert_allclose(confusion, 0.2 / 3, atol=0.01)
    monkeypatch.setattr(module, "_CLARITY", 0)  # as if each row counted alike
    confusion, before = judged()
    assert confusion.min() > 0.1 and precision > before + 0.01


@pytest.mark.parametrize("together", [False, True])
def test_votes_that_go_together_count_for_less(simulated, together):
    truth, confusion, probabilities = simulated
    rng = np.random.default_rng(1)
    shown = np.array([rng.dirichlet(2 * confusion[k]) for k in truth]) if together else confusion[truth]
    votes = np.array([rng.multinomial(10, shares / shares.sum()) for shares in shown])
    posterior = posterior_given_predictions(probabilities, votes)
    assert (posterior.concentration < 8) == together
    given = votes.argmax(axis=1)
    wrong = given != truth
    ours = evaluate_suspicion(suspicion(posterior.posterior, given), wrong)["average_precision"]
    assert ours > evaluate_suspicion(suspicion(probabilities, given), wrong)["average_precision"]
    assert (believed_labels(posterior.posterior, given) == truth).mean() > (~wrong).mean()


def test_evaluate_suspicion_of_a_worked_example():
    figures = evaluate_suspicion([0.9, 0.8, 0.7, 0.1], [True, False, True, False])
    assert figures == {"average_precision": pytest.approx((1 + 2 / 3) / 2), "precision_at_wrong": 0.5}
