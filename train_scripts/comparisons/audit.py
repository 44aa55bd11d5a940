"""Comparison of our label audit with cleanlab and crowd-kit, on labels that are known to be wrong. It is not in the
paper."""

import time
from importlib.util import find_spec

import numpy as np
from datasets import DatasetDict

from fer_pll.audit.label_quality import (
    believed_labels,
    evaluate_suspicion,
    posterior_given_predictions,
    suspicion,
)
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.metrics.classification import accuracy

from .beliefs import believed_rows, votes_of
from .crowds import CROWD_MODELS, answers_of_votes, crowd_posterior, crowdlab
from .experiments import Experiments, machine
from .flips import flip_labels
from .report import spread
from .runs import Run

FLIPPED = 0.2  # share of the labels
PACKAGES = {"cleanlab": "cleanlab", "crowdkit": "crowd-kit"}
CROWDLAB = {"softmax": "CROWDLAB, softmax-trained", "ours": "CROWDLAB, on our predictions"}  # by its predictions
AUDITS = {
    "two-votes": "Two drawn votes for each row",
    "uniform": f"{FLIPPED:.0%} of the labels flipped, to every class alike",
    "confusion": f"{FLIPPED:.0%} of the labels flipped, as the votes confuse the classes",
}


def audit_tables(experiments: Experiments) -> str:
    """The tables of the audit: how well each method finds wrong labels."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"the audit compares with {' and '.join(missing)}, which is not installed: pip install 'fer-pll[dev]'"
        )
    text = ""
    for labels in AUDITS:
        results = list(filter(None, (audit_labels(experiments, labels, seed) for seed in experiments.args.seeds)))
        if results:
            text += f"\n{audit_table(labels, results)}"
    if not text:
        raise ValueError(f"--finished: there are no results of the audit in {experiments.results} yet.")
    return text


def audit_table(labels: str, results: list[dict]) -> str:
    """The Markdown table of one of `AUDITS`, from a result for each seed."""
    hours = sum(result["seconds"] for result in results) / 3600
    seeds = ", ".join(str(result["settings"]["seed"]) for result in results)
    titles = ("average precision", "precision and recall at the number of wrong labels", "right once corrected")
    text = f"{AUDITS[labels]}; seeds {seeds}; {results[0]['settings']['folds']} folds, {hours:.1f} hours.\n\n"
    text += f"| | {' | '.join(titles)} |\n" + "|---" * (len(titles) + 1) + "|\n"
    for method, figures in results[0]["figures"].items():
        if any(method not in result["figures"] for result in results):
            continue  # a result that is older than this row
        cells = [spread([result["figures"][method][figure] for result in results]) for figure in figures]
        text += f"| {method} | {' | '.join(cells)} |\n"
    return text


def audit_labels(experiments: Experiments, labels: str, seed: int) -> dict | None:
    """The result of one of `AUDITS`. Missing runs are trained; with --finished, the result is `None` instead.

    A result with votes that is older than the rows of `by_answers` gets them, also with --finished, because they need
    no training. If it is older than CROWDLAB, it is made again from the predictions in its folder; where these are
    gone, they are trained again, and --finished shows it without.

    In the first round, softmax trains on the given labels. In the second, ours trains on the posterior of the first:
    the classes that hold 95 % of it are the candidates, its probabilities their confidences. Random candidates around
    a single label, as in the paper, would say nothing about that label, and a revision would hide doubts (Eq. 5). In
    the second round a row's label has affected, through the first round, the confidences of other rows, but not its
    own prediction.

    Raises:
        ValueError: for a data set without votes, and for a result that was made with other settings.
    """
    softmax = Run("hog", "cross-entropy", (("confidence_init", "uniform"),))  # there are no candidates to weigh
    ours = Run("hog", "decoder-uniform", (("confidence_init", "column"),))
    folds = experiments.args.folds
    settings = experiments.settings(ours, seed) | {"flipped": FLIPPED, "folds": folds}
    settings["first_round"] = experiments.settings(softmax, seed)["experiment"]
    result = experiments.read(experiments.audits, labels, settings)
    start = time.perf_counter()
    voted = labels == "two-votes"
    if result is not None and voted and not set(CROWD_MODELS) <= set(result["figures"]):
        figures = result["figures"] | by_answers(*labels_of(wrong_labels(experiments, labels, seed), seed))
        seconds = round(time.perf_counter() - start) + result["seconds"]
        experiments.audits.write(experiments.group, labels, result | {"figures": figures, "seconds": seconds})
        result, start = experiments.read(experiments.audits, labels, settings), time.perf_counter()
    complete = result is not None and (not voted or set(CROWDLAB.values()) <= set(result["figures"]))
    if complete or experiments.args.finished:
        return result
    folder = experiments.folder / f"audit-{labels}-{folds}folds-seed{seed}"
    data = wrong_labels(experiments, labels, seed)
    predictions = {"softmax": experiments.out_of_fold(softmax, seed, data, folder / "softmax")}
    votes, given, truth, answers = labels_of(data, seed)
    believed = folder / "data"
    if not believed.is_dir():
        believed_rows(data, predictions["softmax"], believed)
    predictions["ours"] = experiments.out_of_fold(ours, seed, believed, folder / "ours")
    figures = compare_audits(predictions, votes, given, truth, answers)
    seconds = round(time.perf_counter() - start) + (0 if result is None else result["seconds"])
    result = {"settings": settings, "figures": figures, "seconds": seconds, "machine": machine()}
    experiments.audits.write(experiments.group, labels, result)
    return experiments.read(experiments.audits, labels, settings)


def wrong_labels(experiments: Experiments, labels: str, seed: int) -> str:
    """Folder of the training rows with the labels of one of `AUDITS` and their `true_label`."""
    if "votes" not in load_dataset(experiments.args.data, "train").column_names:
        raise ValueError(f"--data {experiments.args.data} has no votes, which the audit takes the true labels from.")
    if labels == "two-votes":
        return experiments.data(2, seed)
    folder = experiments.data_folder("flipped", labels, f"seed{seed}")
    if not folder.is_dir():
        train = flip_labels(load_dataset(experiments.data(None, seed), "train"), FLIPPED, labels == "confusion", seed)
        save_dataset(DatasetDict(train=train), folder)
    return str(folder)


def labels_of(data: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Votes (N, K), given (N,) and true (N,) labels, and answers (N, A) of the training rows.

    Without votes, the label is the only one. Without answers, votes are dealt to annotators by `answers_of_votes`.
    """
    rows = load_dataset(data, "train")
    votes = votes_of(rows)
    answers = numpy_column(rows, "answers") if "answers" in rows.column_names else answers_of_votes(votes, seed)
    return votes, numpy_column(rows, "label"), numpy_column(rows, "true_label"), answers


def judge(score: np.ndarray, labels: np.ndarray, given: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of suspicions (N,) of the given labels and of corrected ones (N,), on the rows whose truth is known."""
    known = truth >= 0
    wrong = (given != truth)[known]
    return evaluate_suspicion(score[known], wrong) | {"corrected": accuracy(labels[known], truth[known])}


def judge_belief(belief: np.ndarray, given: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of a belief (N, K)."""
    return judge(suspicion(belief, given), believed_labels(belief, given), given, truth)


def by_answers(
    votes: np.ndarray, given: np.ndarray, truth: np.ndarray, answers: np.ndarray
) -> dict[str, dict[str, float]]:
    """What crowd-kit's models find. They do not look at the images, so they need no predictions."""
    return {
        model: judge_belief(crowd_posterior(model, answers, votes.shape[1]), given, truth) for model in CROWD_MODELS
    }


def compare_audits(
    predictions: dict[str, np.ndarray],
    votes: np.ndarray,
    given: np.ndarray,
    truth: np.ndarray,
    answers: np.ndarray | None = None,
) -> dict[str, dict[str, float | None]]:
    """How well each method finds the wrong labels among N given ones, and how many are right after its corrections.

    cleanlab ranks in two ways: all rows by label quality, or the issues that it finds before all other rows. Issues
    get the predicted label. Where rows have several votes, cleanlab's CROWDLAB gets all of them, and so do crowd-kit's
    models, which do not look at the images. CROWDLAB corrects by its consensus.

    Args:
        predictions: out-of-fold predictions (N, K) of `"ours"` and `"softmax"`.
        votes: (N, K), whole numbers.
        given: (N,), the labels to judge.
        truth: (N,); -1 is unknown, and such rows are not counted.
        answers: (N, A), what each annotator said, -1 for nothing; drawn from the votes where not given.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rows = np.arange(len(given))
    none = {"average_precision": None, "precision_at_wrong": None}
    figures = {"labels as given": none | {"corrected": accuracy(given[truth >= 0], truth[truth >= 0])}}
    figures["ours"] = judge_belief(posterior_given_predictions(predictions["ours"], votes).posterior, given, truth)
    figures["our posterior, softmax-trained"] = judge_belief(
        posterior_given_predictions(predictions["softmax"], votes).posterior, given, truth
    )
    for name, probabilities in predictions.items():
        for method in ("self_confidence", "normalized_margin"):
            issues = find_label_issues(given, probabilities, return_indices_ranked_by=method, n_jobs=1)
            score = 1 - get_label_quality_scores(given, probabilities, method=method)
            title = f"{method.replace('_', ' ')}, {'on our predictions' if name == 'ours' else 'softmax-trained'}"
            figures[f"cleanlab, label quality by {title}"] = judge(score, given, given, truth) | {"corrected": None}
            score[issues] = 2 - rows[: len(issues)] / len(rows)
            labels = given.copy()
            labels[issues] = probabilities[issues].argmax(axis=1)
            figures[f"cleanlab, issues by {title}"] = judge(score, labels, given, truth)
    if votes.sum(axis=1).max() > 1:
        prior = votes.sum(axis=0) / votes.sum()
        majority = votes + prior / 2  # less than a vote, so it decides only ties
        figures["majority, ties by class prior"] = judge_belief(
            majority / majority.sum(axis=1, keepdims=True), given, truth
        )
        inside = np.where(votes > 0, predictions["softmax"], 0)
        figures["softmax-trained, inside the set"] = judge_belief(
            inside / inside.sum(axis=1, keepdims=True), given, truth
        )
        answers = answers_of_votes(votes) if answers is None else answers
        for name, title in CROWDLAB.items():
            quality, consensus = crowdlab(answers, predictions[name], given)
            figures[title] = judge(1 - quality, consensus, given, truth)
        figures |= by_answers(votes, given, truth, answers)
    return figures
