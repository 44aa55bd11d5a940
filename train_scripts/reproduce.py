"""The paper's comparisons, as matrices of trainings over one data set.

    python train_scripts/reproduce.py table6 --data data/ferplus --out runs/reproduce --seeds 0 1 2

Pre-trains and trains what the table needs, one run after the other, and judges each on the split `validation`. A run
that is finished is not made again, one that was cut off goes on: the same command continues. Every run leaves one JSON
file in --results. From these come, in OUT/SCALE/tables, a Markdown table (mean and standard deviation over the seeds,
how far the last row is ahead seed by seed, the paper's own figures in a column of their own) and the figures. A result
made with other settings is refused.

Everything after `--` goes to pretrain.py and finetune.py alike, for instance `-- --bf16 true`.
"""

import argparse
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev

# Python puts the folder of a script first; there, evaluate.py would hide the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import numpy as np
import yaml
from datasets import Dataset, DatasetDict, List, Value
from safetensors.numpy import load_file

from fer_pll.data.prepared import keep_drawn_votes, load_prepared, save_prepared
from fer_pll.evaluation.metrics import accuracy
from fer_pll.evaluation.plots import plot_confusion_matrix, plot_curves, plot_gallery
from fer_pll.evaluation.suspicion import (
    annotator_confusion,
    corrected_labels,
    judge_suspicion,
    label_posterior,
    suspicion,
)
from fer_pll.labels.candidates import dataset_fingerprint, from_posterior
from fer_pll.training.checkpoints import last_checkpoint
from fer_pll.training.settings import config_folder
from fer_pll.training.trainer import CONFIDENCE_NAME, numpy_column

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Scale:
    """Sizes of the networks. `configs` names a folder of hub_configs, `{}` being objective or data set."""

    configs: str
    resnet: str
    changes: dict = field(default_factory=dict)
    pretrain_epochs: int | None = None
    epochs: int | None = None


SCALES = {
    "nano": Scale("fer-pll-tiny-{}", "resnet18", {"num_hidden_layers": 4}, 20, 12),
    "tiny": Scale("fer-pll-tiny-{}", "resnet18", {}, 20, 12),
    "base": Scale("fer-pll-vit-base-{}", "resnet18-224"),  # as many epochs as the paper has
}


@dataclass(frozen=True)
class Run:
    """One training.

    pretraining: objective of the pre-training, None for random weights.
    settings: file in experiments/, without its ending.
    overrides: settings of finetune.py beside those.
    resnet: a ResNet-18 with random weights in the place of the ViT.
    votes: train on as many drawn votes of each row, None for all.
    """

    pretraining: str | None
    settings: str
    overrides: tuple[tuple[str, str], ...] = ()
    resnet: bool = False
    votes: int | None = None

    @property
    def name(self) -> str:
        parts = ["resnet18" if self.resnet else self.pretraining or "scratch", self.settings.replace("/", "-")]
        parts += [f"{key}={value}" for key, value in self.overrides]
        return "_".join([*parts, f"{self.votes}votes"] if self.votes else parts)


@dataclass(frozen=True)
class Row:
    """Of a table: its title, its run, and what the paper reports (accuracy on FER+ or, where said, elsewhere)."""

    title: str
    run: Run
    published: str = ""


def _plain(*rows: tuple) -> Callable[[int | None], list[Row]]:
    """Rows given as (title, pre-training, settings, published, further fields of Run)."""

    def make(votes: int | None) -> list[Row]:
        return [
            Row(title, Run(pretraining, settings, votes=votes, **dict(*more)), published)
            for title, pretraining, settings, published, *more in rows
        ]

    return make


RESNET = {"resnet": True}
ALL = "table7/all"
RAF = "{} (RAF-DB)".format


def _with(**settings: object) -> dict:
    return {"overrides": tuple((key, str(value)) for key, value in settings.items())}


SOFT_MOMENTUM = _with(revision="soft", revision_momentum=0.9)

# Title and the numbers of votes that a table has by default (None: all), then its rows.
TABLES: dict[str, tuple[str, tuple[int | None, ...], Callable[[int | None], list[Row]]]] = {
    "table4": (
        "Table 4: baseline, partial label learning, ours",
        (None, 2),
        _plain(
            ("ViT, softmax, random weights (the baseline)", None, "table5/softmax", "88.18"),
            ("ViT, softmax, pre-trained", "hog", "table5/softmax", ""),
            ("ViT, soft votes, pre-trained", "hog", "table4/soft-votes", ""),
            ("RC, ResNet-18", None, "table4/rc", "88.53", RESNET),
            ("LW, ResNet-18", None, "table4/lw", "88.10", RESNET),
            ("PiCO, ResNet-18", None, "table4/pico", "87.93", RESNET),
            ("CRPLL, ResNet-18", None, "table4/crpll", "88.01", RESNET),
            ("ours, random weights", None, ALL, "89.76"),
            ("ours, pre-trained", "hog", ALL, "91.11"),
            ("ours, pre-trained, soft revision with momentum", "hog", ALL, "", SOFT_MOMENTUM),
        ),
    ),
    "table5": (
        "Table 5: softmax and PLL, two backbones",
        (None,),
        _plain(
            ("ResNet-18, softmax", None, "table5/softmax", "87.37", RESNET),
            ("ResNet-18, PLL", None, "table5/pll", "88.40", RESNET),
            ("ViT, HOG pre-training, softmax", "hog", "table5/softmax", "87.92"),
            ("ViT, HOG pre-training, PLL", "hog", "table5/pll", "90.24"),
        ),
    ),
    "table6": (
        "Table 6: pre-trainings, with PLL",
        (None,),
        _plain(
            ("none", None, "table5/pll", ""),
            ("ResNet-18, none", None, "table5/pll", "88.40", RESNET),
            ("MoCo", "moco", "table5/pll", "88.14"),
            ("SimMIM", "simmim", "table5/pll", "89.78"),
            ("MAE", "mae", "table5/pll", "89.70"),
            ("MaskFeat (mask tokens)", "maskfeat", "table5/pll", ""),
            ("HOG, visible patches (ours)", "hog", "table5/pll", "90.24"),
        ),
    ),
    "table7": (
        "Table 7: query decoder, uniformity, revision",
        (None, 2),
        _plain(
            ("softmax on the majority", "hog", "table5/softmax", ""),
            ("soft votes", "hog", "table4/soft-votes", ""),
            ("PLL", "hog", "table5/pll", RAF(90.35)),
            ("PLL, decoder", "hog", "table7/decoder", RAF(91.29)),
            ("PLL, decoder, uniformity", "hog", "table7/decoder-uniform", RAF(91.64)),
            ("PLL, decoder, revision", "hog", "table7/decoder-revision", RAF(91.89)),
            ("PLL, decoder, uniformity, revision", "hog", ALL, RAF(92.05)),
        ),
    ),
    "table8": (
        "Table 8: temperature of the uniformity loss, our form and Eq. 3 as printed",
        (None,),
        _plain(
            *((f"{tau}", "hog", ALL, published, _with(uniform_temperature=tau))
              for tau, published in ((0.001, "91.41"), (0.005, "90.67"), (0.01, "90.18"), (0.1, ""))),
            *((f"{tau}, as printed", "hog", ALL, "", _with(uniform_temperature=tau, uniform_literal="true"))
              for tau in (0.001, 0.005, 0.01, 0.1)),
        ),
    ),
    "section4.5": (
        "Section 4.5: labels in a candidate set",
        (None,),
        _plain(
            *((f"{size}", "hog", ALL, published, _with(max_candidates=size))
              for size, published in ((1, ""), (2, RAF(92.05)), (3, RAF(91.94)), (4, RAF(90.01))))
        ),
    ),
    "figure4": (
        "Figure 4: accuracy over the epochs",
        (None,),
        _plain(
            ("random weights, softmax", None, "table5/softmax", ""),
            ("HOG pre-training, softmax", "hog", "table5/softmax", ""),
            ("HOG pre-training, PLL (ours)", "hog", ALL, ""),
        ),
    ),
    "figure5": (
        "Figure 5: rows whose largest confidence is right",
        (2,),
        _plain(("random weights, PLL (ours)", None, ALL, ""), ("HOG pre-training, PLL (ours)", "hog", ALL, "")),
    ),
    "figure6": (
        "Figure 6: threshold of the revision",
        (None,),
        _plain(
            *((f"{threshold}", "hog", ALL, "", _with(revision_threshold=threshold))
              for threshold in (0.05, 0.1, 0.2, 0.3, 0.4))
        ),
    ),
    "rules": (
        "Rules of the revision, beyond the paper",
        (None, 2),
        _plain(
            ("none", "hog", "table7/decoder-uniform", ""),
            ("paper (Eq. 4 and 5)", "hog", ALL, ""),
            ("normalized", "hog", ALL, "", _with(revision="normalized", revision_threshold=0.5)),
            ("soft", "hog", ALL, "", _with(revision="soft")),
            ("soft, momentum .9", "hog", ALL, "", SOFT_MOMENTUM),
        ),
    ),
    "figure7": (
        "Figures 1 and 7 to 9: what training made of its annotators",
        (None,),
        _plain(("ours", "hog", ALL, "")),
    ),
    "figure10": (
        "Figures 10 and 11: confusion matrices with and without uniformity",
        (None,),
        _plain(("without uniformity", "hog", "table7/decoder-revision", ""), ("with uniformity", "hog", ALL, "")),
    ),
}  # fmt: skip

COST_BATCHES, COST_STEPS = (72, 128, 256), 6

FLIPPED = 0.2  # share of the labels
AUDITS = {
    "two-votes": "Two drawn votes for each row",
    "uniform": f"{FLIPPED:.0%} of the labels flipped, to every class alike",
    "confusion": f"{FLIPPED:.0%} of the labels flipped, as the votes confuse the classes",
}


class Experiments:
    """The runs of one scale over one data set.

    Args:
        args: the parsed command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.scale = SCALES[args.scale]
        self.out = Path(args.out)
        self.results = Path(args.results or self.out / "results") / args.scale
        self.tables = self.out / args.scale / "tables"
        self.pretrain_epochs = args.pretrain_epochs or self.scale.pretrain_epochs
        self.epochs = args.epochs or self.scale.epochs
        self.scripts = {}
        data = load_prepared(args.data)
        for split in ("train", "validation"):
            if split not in data:
                raise ValueError(f"--data {args.data} has no split {split!r}, which the comparisons need.")
        given = numpy_column(data["train"], "votes") > 0 if "votes" in data["train"].column_names else None
        names = data["train"].features["label"].names
        if given is None:
            given = np.eye(len(names), dtype=bool)[numpy_column(data["train"], "label")]
        given[~given.any(axis=1), 0] = True  # of a row without votes there is nothing to tell
        self.fingerprint = dataset_fingerprint(names, data["train"]["row_id"], given)

    def script(self, name: str, argv: list) -> None:
        """Run one of the scripts beside this one, as if from the command line."""
        if name not in self.scripts:
            self.scripts[name] = runpy.run_path(str(HERE / f"{name}.py"))["main"]
        argv = [str(value) for value in argv]
        print(f"$ python train_scripts/{name}.py {shlex.join(argv)}", flush=True)
        self.scripts[name](argv)

    def config(self, name: str) -> str:
        """Folder of a configuration at this scale."""
        folder = config_folder(self.scale.configs.format(name))
        if not self.scale.changes:
            return str(folder)
        mine = self.out / "configs" / folder.name
        mine.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.copyfile(path, mine / path.name)
        config = json.loads((folder / "config.json").read_text()) | self.scale.changes
        (mine / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return str(mine)

    def data(self, votes: int | None, seed: int) -> str:
        """Folder of the data: as given, or a part of the rows, or with drawn votes."""
        samples = self.args.max_samples
        if samples is None and votes is None:
            return self.args.data
        parts = [self.fingerprint[:8]]  # of --data
        parts += ([f"{samples}samples"] if samples else []) + ([f"{votes}votes-seed{seed}"] if votes else [])
        folder = self.out / "data" / "-".join(parts)
        if folder.is_dir():
            return str(folder)
        data = load_prepared(self.args.data)
        train, validation = data["train"], data["validation"]
        if samples is not None:
            train = some_rows(train, samples)
            validation = some_rows(validation, samples)
        if votes is not None:
            train = keep_drawn_votes(train, votes, seed)
        save_prepared(DatasetDict(train=train, validation=validation), folder)
        return str(folder)

    def epochs_option(self, epochs: int | None) -> list:
        return [] if epochs is None else ["--num_train_epochs", epochs]

    def train(self, script: str, folder: Path, argv: list, settings: dict) -> float:
        """Run a training script to its end, from its last checkpoint where it was cut off; seconds of this call.

        Raises:
            ValueError: where a training that was cut off in the folder had other settings.
        """
        start = time.perf_counter()
        begun = folder.with_name(f"{folder.name}.json")
        if begun.is_file():
            check_same(json.loads(begun.read_text()), settings, begun)
        write_json(settings, begun)
        argv = [*argv, "--output_dir", folder, *self.args.options]
        if last_checkpoint(folder) is not None:
            argv += ["--resume_from_checkpoint", "last"]
        elif folder.is_dir():
            shutil.rmtree(folder)  # nothing was learned yet
        self.script(script, argv)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return time.perf_counter() - start

    def pretrain(self, objective: str, seed: int) -> Path:
        """Folder of a pre-trained encoder; made where it is missing."""
        samples = f"-{self.args.max_samples}samples" if self.args.max_samples else ""
        folder = self.out / self.args.scale / "pretrain" / f"{objective}-seed{seed}{samples}"
        settings = {"epochs": self.pretrain_epochs, "options": self.args.options, "fingerprint": self.fingerprint}
        done = folder / "pretrained.json"
        if done.is_file():
            check_same(json.loads(done.read_text())["settings"], settings, done)
            return folder
        argv = ["--config", self.config(objective), "--data", self.data(None, seed), "--seed", seed]
        seconds = self.train("pretrain", folder, argv + self.epochs_option(self.pretrain_epochs), settings)
        write_json({"settings": settings, "seconds": seconds}, done)
        return folder

    def settings(self, run: Run, seed: int) -> dict:
        """What a result depends on."""
        experiment = HERE / "experiments" / f"{run.settings}.yaml"
        return {
            "experiment": yaml.safe_load(experiment.read_text()) | dict(run.overrides),
            "pretraining": run.pretraining,
            "resnet": run.resnet,
            "votes": run.votes,
            "seed": seed,
            "max_samples": self.args.max_samples,
            "pretrain_epochs": self.pretrain_epochs if run.pretraining else None,
            "epochs": self.epochs,
            "options": self.args.options,
            "fingerprint": self.fingerprint,
        }

    def training_options(self, run: Run, seed: int) -> list:
        """What a run's training is told, but for its data and its folder; pre-trains where that is missing."""
        config = HERE / "experiments" / self.scale.resnet if run.resnet else self.config("ferplus")
        argv = ["--config", config, "--seed", seed]
        argv += [] if run.pretraining is None else ["--init_from", self.pretrain(run.pretraining, seed)]
        argv += ["--settings", HERE / "experiments" / f"{run.settings}.yaml"]
        argv += self.epochs_option(self.epochs)
        if self.epochs is not None:
            argv += ["--revision_warmup_epochs", self.epochs / 3]
        for key, value in run.overrides:
            argv += [f"--{key}", value]
        return argv

    def run_folder(self, run: Run, seed: int) -> Path:
        return self.out / self.args.scale / f"{run.name}-seed{seed}"

    def result_path(self, run: Run, seed: int) -> Path:
        return self.results / f"{run.name}-seed{seed}.json"

    def finished(self, run: Run, seed: int) -> dict | None:
        """The result of a run, `None` where it is missing; see `read_result`."""
        return read_result(self.result_path(run, seed), self.settings(run, seed))

    def result(self, run: Run, seed: int) -> dict:
        """The result of a run; made where it is missing."""
        result = self.finished(run, seed)
        if result is not None:
            return result
        folder = self.run_folder(run, seed)
        argv = ["--data", self.data(run.votes, seed), *self.training_options(run, seed)]
        seconds = self.train("finetune", folder, argv, self.settings(run, seed))
        self.script("evaluate", [folder, self.data(run.votes, seed), "--out", folder / "evaluation"])
        metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
        logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        curves = ("eval_accuracy", "eval_mean_class_accuracy", "label_recovery", "revised_fraction")
        result = {
            "settings": self.settings(run, seed),
            "classes": metrics["classes"],
            "protocols": metrics["protocols"],
            "curves": {
                name: [[round(log["epoch"], 3), round(log[name], 5)] for log in logs if name in log] for name in curves
            },
            "coverage": self.coverage(run, seed),
            "seconds": round(seconds),
            "machine": machine(),
        }
        write_json(result, self.result_path(run, seed))
        return result

    def coverage(self, run: Run, seed: int) -> dict[str, float | None]:
        """Mean size of the candidate sets; share of them that hold the label; share of all votes that fall into them.

        The label is known where the data set has true labels, or nothing but labels.
        """
        rows, table = self.confidences(run, seed)
        candidates = table["candidates"].astype(bool)
        votes = numpy_column(rows, "votes") if "votes" in rows.column_names else None
        label_inside = votes_inside = None
        if votes is not None:
            votes_inside = float((votes * candidates).sum() / votes.sum())
        if votes is None or "true_label" in rows.column_names:
            truth = numpy_column(rows, "label" if votes is None else "true_label")
            known = truth >= 0
            label_inside = float(candidates[known, truth[known]].mean())
        size = float(candidates.sum(axis=1).mean())
        return {"mean_size": size, "label_inside": label_inside, "votes_inside": votes_inside}

    def confidences(self, run: Run, seed: int) -> tuple[Dataset, dict[str, np.ndarray]]:
        """The training rows in the order of their index, and what the run's confidence table holds of them."""
        table = load_file(self.run_folder(run, seed) / CONFIDENCE_NAME)
        rows = load_prepared(self.data(run.votes, seed), "train")
        return rows.select(numpy_column(rows, "index").argsort()), table

    def audit(self, labels: str, seed: int) -> dict | None:
        """How well wrong labels, one of `AUDITS`, are found; what is missing is trained, with --finished it is `None`.

        Softmax trains on the given label. Ours trains on the posterior of that first round: the classes that hold
        95 % of it are the candidates, its probabilities their confidences. Candidates drawn at random around a single
        label, as the paper has them, would tell nothing of it, and a revision would hide doubts (Eq. 5). In the second
        round a row's label had a say, through the first, in the confidences of others, but not in its own prediction.

        Raises:
            ValueError: for a data set without votes, and for a result that was made with other settings.
        """
        softmax = Run("hog", "table5/softmax", (("confidence_init", "uniform"),))  # which has no say
        ours = Run("hog", "table7/decoder-uniform", (("confidence_init", "column"),))
        settings = self.settings(ours, seed) | {"labels": labels, "flipped": FLIPPED, "folds": self.args.folds}
        settings["softmax"] = self.settings(softmax, seed)["experiment"]
        path = self.results / f"audit-{labels}-seed{seed}.json"
        result = read_result(path, settings)
        if result is not None or self.args.finished:
            return result
        start = time.perf_counter()
        folder = self.out / self.args.scale / f"audit-{labels}-{self.args.folds}folds-seed{seed}"
        data = self.wrong_labels(labels, seed)
        predictions = {"softmax": self.out_of_fold(softmax, seed, data, folder / "softmax")}
        rows = load_prepared(data, "train")
        given = numpy_column(rows, "label")
        one_hot = np.eye(rows.features["label"].num_classes, dtype=int)[given]
        votes = numpy_column(rows, "votes") if "votes" in rows.column_names else one_hot
        believed = folder / "data"
        if not believed.is_dir():
            belief = label_posterior(predictions["softmax"], votes).belief
            save_prepared(DatasetDict(train=believe(rows, belief)), believed)
        predictions["ours"] = self.out_of_fold(ours, seed, believed, folder / "ours")
        figures = compare_audits(predictions, votes, given, numpy_column(rows, "true_label"))
        seconds = round(time.perf_counter() - start)
        result = {"settings": settings, "figures": figures, "seconds": seconds, "machine": machine()}
        write_json(result, path)
        return result

    def wrong_labels(self, labels: str, seed: int) -> str:
        """Folder of the training rows with labels of one of `AUDITS`, and their `true_label`."""
        if "votes" not in load_prepared(self.args.data, "train").column_names:
            raise ValueError(f"--data {self.args.data} has no votes, which the audit takes the true labels from.")
        if labels == "two-votes":
            return self.data(2, seed)
        parts = [self.fingerprint[:8]] + ([f"{self.args.max_samples}samples"] if self.args.max_samples else [])
        folder = self.out / "data" / "-".join([*parts, "flipped", labels, f"seed{seed}"])
        if not folder.is_dir():
            train = flip_labels(load_prepared(self.data(None, seed), "train"), labels == "confusion", seed)
            save_prepared(DatasetDict(train=train), folder)
        return str(folder)

    def out_of_fold(self, run: Run, seed: int, data: str | Path, folder: Path) -> np.ndarray:
        """Predictions (N, K) by models that have not seen the rows; folds that are done are not trained again."""
        argv = ["--data", data, *self.training_options(run, seed), "--folds", self.args.folds]
        self.script("out_of_fold", [*argv, "--output_dir", folder, *self.args.options])
        return load_file(folder / "out_of_fold.safetensors")["probabilities"].astype(np.float64)


def flip_labels(dataset: Dataset, as_votes: bool, seed: int) -> Dataset:
    """One label for each row, the most voted, of which a share of `FLIPPED` is made wrong; the votes are left out.

    `true_label`, where there is none yet, is the winner of the votes, or -1 where several labels share the top.

    Args:
        dataset: N rows with `votes`.
        as_votes: rows of a class are flipped as often, and to those classes, as annotators do it. Otherwise every row
            and every class is as likely as another.
        seed: of the draw.
    """
    votes, feature = numpy_column(dataset, "votes"), dataset.features["label"]
    unique = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    winner = votes.argmax(axis=1)
    truth = numpy_column(dataset, "true_label") if "true_label" in dataset.column_names else np.full(len(votes), -1)
    truth = np.where((truth < 0) & unique, winner, truth)
    label = np.where(truth >= 0, truth, winner)
    classes = np.eye(votes.shape[1])
    flips = annotator_confusion(classes[label[unique]], votes[unique]) if as_votes else np.ones_like(classes)
    np.fill_diagonal(flips, 0)
    rate = flips.sum(axis=1)[label]
    generator = np.random.default_rng(seed)
    for row in generator.choice(len(label), round(FLIPPED * len(label)), replace=False, p=rate / rate.sum()):
        others = flips[label[row]]
        label[row] = generator.choice(len(classes), p=others / others.sum())
    dataset = dataset.select_columns(["image", "index", "row_id"])
    return dataset.add_column("label", label, feature=feature).add_column("true_label", truth, feature=feature)


def believe(dataset: Dataset, belief: np.ndarray) -> Dataset:
    """The rows with a belief (N, K) as `candidates`, the classes that hold 95 % of it, and `confidence`."""
    candidates = from_posterior(belief)
    confidence = np.where(candidates, belief, 0)
    confidence /= confidence.sum(axis=1, keepdims=True)
    size = belief.shape[1]
    dataset = dataset.add_column("candidates", list(candidates), feature=List(Value("bool"), length=size))
    return dataset.add_column("confidence", list(confidence), feature=List(Value("float32"), length=size))


def compare_audits(
    predictions: dict[str, np.ndarray], votes: np.ndarray, given: np.ndarray, truth: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """How well each method finds the wrong ones among N given labels, and how many are right once it corrected them.

    cleanlab ranks in two ways: all rows by label quality, or before all others the issues that it finds, which get the
    predicted label.

    Args:
        predictions: out of fold, (N, K), of `"ours"` and `"softmax"`.
        votes: (N, K), whole numbers.
        given: (N,) the labels to judge.
        truth: (N,), -1 = unknown; such rows are not counted.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    known, rows = truth >= 0, np.arange(len(given))
    wrong = (given != truth)[known]

    def judge(score: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return judge_suspicion(score[known], wrong) | {"corrected": accuracy(labels[known], truth[known])}

    def by_belief(belief: np.ndarray) -> dict[str, float]:
        return judge(suspicion(belief, given), corrected_labels(belief, given))

    none = {"average_precision": None, "precision_at_wrong": None}
    figures = {"labels as given": none | {"corrected": float(1 - wrong.mean())}}
    figures["ours"] = by_belief(label_posterior(predictions["ours"], votes).belief)
    figures["our posterior, softmax-trained"] = by_belief(label_posterior(predictions["softmax"], votes).belief)
    for name, probabilities in predictions.items():
        for method in ("self_confidence", "normalized_margin"):
            issues = find_label_issues(given, probabilities, return_indices_ranked_by=method, n_jobs=1)
            score = 1 - get_label_quality_scores(given, probabilities, method=method)
            title = f"{method.replace('_', ' ')}, {'on our predictions' if name == 'ours' else 'softmax-trained'}"
            figures[f"cleanlab, label quality by {title}"] = judge(score, given) | {"corrected": None}
            score[issues] = 2 - rows[: len(issues)] / len(rows)
            labels = given.copy()
            labels[issues] = probabilities[issues].argmax(axis=1)
            figures[f"cleanlab, issues by {title}"] = judge(score, labels)
    if votes.sum(axis=1).max() > 1:
        prior = votes.sum(axis=0) / votes.sum()
        majority = votes + prior / 2  # less than a vote: only ties are decided by it
        figures["majority, ties by class prior"] = by_belief(majority / majority.sum(axis=1, keepdims=True))
        inside = np.where(votes > 0, predictions["softmax"], 0)
        figures["softmax-trained, inside the set"] = by_belief(inside / inside.sum(axis=1, keepdims=True))
    return figures


def some_rows(dataset: Dataset, count: int) -> Dataset:
    """A part of the rows, the same in every call, numbered anew."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:count])
    part = dataset.select(chosen).remove_columns("index")
    return part.add_column("index", np.arange(len(part)))


def read_result(path: Path, settings: dict) -> dict | None:
    """What the file of a result holds, `None` where there is none.

    Raises:
        ValueError: where it was made with other settings.
    """
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    check_same(result["settings"], settings, path)
    return result


def check_same(before: dict, now: dict, path: Path) -> None:
    """Raise `ValueError` where a result that is there was made with other settings."""
    now = json.loads(json.dumps(now))
    different = [f"{name} {before.get(name)!r}, not {now[name]!r}" for name in now if before.get(name) != now[name]]
    if different:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(different)}). Results are never mixed: give the "
            "settings that it was made with, or another --out and --results."
        )


def write_json(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def machine() -> str:
    """What the time of a run depends on, without the machine's name."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}"


# Columns of the tables: title, and how to take the value out of a result.
COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "all": lambda result: result["protocols"]["all"]["accuracy"],
    "majority": lambda result: result["protocols"].get("majority", {}).get("accuracy"),
    "mean class": lambda result: result["protocols"]["all"]["mean_class_accuracy"],
    "label recovery": lambda result: last(result["curves"]["label_recovery"]),
}
COVERAGE: dict[str, Callable[[dict], float | None]] = {
    "label in the set": lambda result: result["coverage"]["label_inside"],
    "votes in the set": lambda result: result["coverage"]["votes_inside"],
}


def last(curve: list[list[float]]) -> float | None:
    return curve[-1][1] if curve else None


def spread(values: list[float | None]) -> str:
    """Percent, mean and standard deviation."""
    if not values or any(value is None for value in values):
        return "–"
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def last_row_ahead_by(results: list[list[dict]]) -> list[str]:
    """For each row: accuracy (protocol all) of the last row minus its own, seed by seed, mean and deviation.

    Runs of one seed may share the pre-trained encoder and the draw of votes, whose effects the difference is free of.
    """
    accuracies = [{result["settings"]["seed"]: COLUMNS["all"](result) for result in found} for found in results]
    final = accuracies[-1]
    return [spread([final[seed] - row[seed] for seed in row if seed in final]) for row in accuracies[:-1]] + ["–"]


def markdown(rows: list[Row], results: list[list[dict]], columns: dict[str, Callable]) -> str:
    """A table with a line for each row; `results` has the runs of its seeds. Columns without values are left out."""
    cells = {title: [spread([value(result) for result in row]) for row in results] for title, value in columns.items()}
    cells["last row ahead by"] = last_row_ahead_by(results)
    columns = {title: column for title, column in cells.items() if set(column) != {"–"}}
    lines = [f"| | seeds | {' | '.join(columns)} | the paper |", "|---" * (len(columns) + 3) + "|"]
    for number, (row, found) in enumerate(zip(rows, results, strict=True)):
        values = " | ".join(column[number] for column in columns.values())
        lines.append(f"| {row.title} | {len(found)} | {values} | {row.published or '–'} |")
    return "\n".join(lines)


def draw(table: str, rows: list[Row], results: list[list[dict]], experiments: Experiments, stem: Path) -> list[Path]:
    """The figures of a table, as PNG."""
    title = TABLES[table][0]
    if table in ("figure4", "figure5"):
        curve = "eval_accuracy" if table == "figure4" else "label_recovery"
        curves = {row.title: [r["curves"][curve] for r in found] for row, found in zip(rows, results, strict=True)}
        path = stem.with_name(f"{stem.name}.png")
        plot_curves(curves, path, title, "epoch", "share of the rows")
        return [path]
    if table in ("figure6", "section4.5"):
        points = [[[float(row.title), COLUMNS["all"](result)] for row, found in zip(rows, results, strict=True)
                   for result in found[seed : seed + 1]] for seed in range(len(results[0]))]  # fmt: skip
        path = stem.with_name(f"{stem.name}.png")
        plot_curves({"accuracy, protocol all": points}, path, title, rows_axis(table), "accuracy")
        return [path]
    if table == "figure10":
        paths = []
        for row, found in zip(rows, results, strict=True):
            matrix = sum(np.array(result["protocols"]["all"]["confusion_matrix"]) for result in found)
            paths.append(stem.with_name(f"{stem.name}-{row.title.replace(' ', '-')}.png"))
            heading = f"{row.title}: mean class accuracy {spread([COLUMNS['mean class'](r) for r in found])} %"
            plot_confusion_matrix(matrix, found[0]["classes"], paths[-1], heading)
        return paths
    if table == "figure7":
        return galleries(rows[0].run, experiments, stem)
    return []


def rows_axis(table: str) -> str:
    return "threshold of the margin (Eq. 5)" if table == "figure6" else "labels in a candidate set"


def galleries(run: Run, experiments: Experiments, stem: Path) -> list[Path]:
    """Rows whose majority label training overruled most clearly, and rows of which it chose one of the candidates."""
    seed = experiments.args.seeds[0]
    if not (experiments.run_folder(run, seed) / CONFIDENCE_NAME).is_file():
        print("no galleries: they need the folder of the run, which is not here (and data sets with votes).")
        return []
    rows, table = experiments.confidences(run, seed)
    if "votes" not in rows.column_names:
        print("no galleries: the data set has no votes.")
        return []
    votes, confidence = numpy_column(rows, "votes"), table["confidence"]
    candidates, number = table["candidates"].astype(bool), np.arange(len(rows))
    found, majority = confidence.argmax(axis=1), votes.argmax(axis=1)
    overruled = confidence[number, found] - confidence[number, majority]
    decided = (candidates.sum(axis=1) > 1) & (confidence.max(axis=1) > 0.99) & (found == majority)
    paths = []
    for name, chosen in (
        ("overruled", [row for row in np.argsort(-overruled)[:18] if overruled[row] > 0]),
        ("decided", np.random.default_rng(0).permutation(np.flatnonzero(decided))[:18]),
    ):
        if len(chosen):
            paths.append(stem.with_name(f"{stem.name}-{name}.png"))
            part = rows.select(chosen)
            names = rows.features["label"].names
            plot_gallery(part["image"][:], votes[chosen], candidates[chosen], confidence[chosen], names, paths[-1])
    return paths


def cost(experiments: Experiments) -> str:
    """Section 4.2.2: time of an epoch and peak memory of fine-tuning at three batch sizes, each in a fresh process."""
    args = experiments.args
    rows = len(load_prepared(experiments.data(None, 0), "train"))
    lines = ["| batch | seconds a step | minutes an epoch | peak memory, GiB |", "|---|---|---|---|"]
    for batch in COST_BATCHES:
        folder = experiments.out / args.scale / f"cost-{batch}"
        command = [sys.executable, HERE / "finetune.py", "--config", experiments.config("ferplus")]
        command += ["--data", experiments.data(None, 0), "--output_dir", folder, "--overwrite", "true"]
        command += ["--max_steps", COST_STEPS, "--per_device_train_batch_size", batch, "--logging_steps", 1]
        command += ["--eval_strategy", "no", "--save_strategy", "no", *args.options]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise ValueError(f"the training with batch size {batch} failed; its message stands above.")
        state = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        seconds = next(log["train_runtime"] for log in state if "train_runtime" in log) / COST_STEPS
        memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
        lines.append(f"| {batch} | {seconds:.2f} | {seconds * rows / batch / 60:.1f} | {memory:.2f} |")
    return "\n".join(lines)


def audit(experiments: Experiments) -> str:
    """The tables of how well wrong labels are found."""
    if find_spec("cleanlab") is None:
        raise ValueError("the audit compares with cleanlab, which is not installed: pip install 'fer-pll[dev]'")
    text = ""
    for labels in AUDITS:
        results = list(filter(None, (experiments.audit(labels, seed) for seed in experiments.args.seeds)))
        if results:
            text += f"\n{audit_table(labels, results)}"
    if not text:
        raise ValueError(f"--finished: there are no results of the audit in {experiments.results} yet.")
    return text


def audit_table(labels: str, results: list[dict]) -> str:
    """One of `AUDITS`, with a result for each seed, as Markdown."""
    hours = sum(result["seconds"] for result in results) / 3600
    seeds = ", ".join(str(result["settings"]["seed"]) for result in results)
    titles = ("average precision", "precision and recall at the number of wrong labels", "right once corrected")
    text = f"{AUDITS[labels]}; seeds {seeds}; {results[0]['settings']['folds']} folds, {hours:.1f} hours.\n\n"
    text += f"| | {' | '.join(titles)} |\n" + "|---" * (len(titles) + 1) + "|\n"
    for method, figures in results[0]["figures"].items():
        cells = [spread([result["figures"][method][figure] for result in results]) for figure in figures]
        text += f"| {method} | {' | '.join(cells)} |\n"
    return text


def reproduce(table: str, experiments: Experiments) -> None:
    """Make the runs of a table, print it and write it, with its figures, to the folder `tables` beside them."""
    args = experiments.args
    experiments.tables.mkdir(parents=True, exist_ok=True)
    if table == "cost":
        text = f"## Section 4.2.2: time and memory of fine-tuning\n\n{cost(experiments)}\n\n{machine()}\n"
        files = []
    elif table == "audit":
        text, files = f"## Finding wrong labels, in percent\n{audit(experiments)}", []
    else:
        title, default_votes, make_rows = TABLES[table]
        text, files = f"## {title}\n", []
        for votes in args.votes or default_votes:
            rows = [row for number, row in enumerate(make_rows(votes), 1) if number in (args.rows or [number])]
            get = experiments.finished if args.finished else experiments.result
            results = [list(filter(None, (get(row.run, seed) for seed in args.seeds))) for row in rows]
            rows, results = (
                [row for row, found in zip(rows, results, strict=True) if found],
                list(filter(None, results)),
            )
            if not rows:
                raise ValueError(f"--finished: there are no results of {table} in {experiments.results} yet.")
            regime = "all votes" if votes is None else f"{votes} drawn votes for each row"
            runs = sum(map(len, results))
            hours = sum(result["seconds"] for found in results for result in found) / 3600
            text += (
                f"\nTrained on {regime}; seeds {', '.join(map(str, args.seeds))}; {runs} runs, {hours:.1f} hours.\n\n"
            )
            text += markdown(rows, results, COLUMNS | COVERAGE if table == "section4.5" else COLUMNS) + "\n"
            stem = experiments.tables / (table if votes is None else f"{table}-{votes}votes")
            files += draw(table, rows, results, experiments, stem)
    path = experiments.tables / f"{table}.md"
    path.write_text(text)
    print(f"\n{text}\nwritten to {path}", *files, sep="\n")


def contents(table: str) -> str:
    """The title of a table, and its rows with their numbers."""
    title, _, make_rows = TABLES[table]
    return "\n".join([title, *(f"  {number:3}  {row.title}" for number, row in enumerate(make_rows(None), 1))])


def parse_votes(text: str) -> int | None:
    if not re.fullmatch(r"all|[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of votes, or all")
    return None if text == "all" else int(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = argv[argv.index("--") + 1 :] if "--" in argv else []
    argv = argv[: argv.index("--")] if "--" in argv else argv
    tables = "\n".join(f"  {name:12} {title}" for name, (title, *_) in TABLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"tables:\n{tables}\n  cost         Section 4.2.2: time and memory of fine-tuning\n"
        "  audit        finding wrong labels out of fold, ours and cleanlab (not in the paper)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="+", choices=[*TABLES, "cost", "audit"], metavar="TABLE", help="see below")
    parser.add_argument("--data", metavar="DIR", help="folder written by prepare_data.py")
    parser.add_argument("--out", metavar="DIR", help="folder of the runs")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="only these rows of a table; see --list")
    parser.add_argument("--list", action="store_true", help="print the rows of TABLE with their numbers, and end")
    parser.add_argument("--results", metavar="DIR", help="folder of the results (default: OUT/results)")
    parser.add_argument("--scale", choices=list(SCALES), default="nano", help="size of the networks (default: nano)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--finished", action="store_true", help="make no runs: the table of those that are finished")
    parser.add_argument("--max-samples", type=int, metavar="N", help="only so many pictures of each split")
    parser.add_argument("--votes", type=parse_votes, nargs="+", metavar="N", help="drawn votes for each row, or all")
    parser.add_argument("--pretrain-epochs", type=int, metavar="N", help="of each pre-training (nano, tiny: 20)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of each training (nano, tiny: 12)")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="of the audit (default: 3)")
    args = parser.parse_args(argv)
    args.options = options
    if not args.list and None in (args.data, args.out):
        parser.error("--data and --out are required")
    if (args.rows or args.list) and not set(args.table) <= set(TABLES):
        parser.error("cost and audit have no rows to choose from")
    for table in args.table if args.rows else []:
        if not set(args.rows) <= set(range(1, 1 + len(TABLES[table][2](None)))):
            parser.error(f"--rows {' '.join(map(str, args.rows))}: these are the rows of {contents(table)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        for table in args.table:
            print(contents(table))
        return
    try:
        experiments = Experiments(args)
        for table in args.table:
            reproduce(table, experiments)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
