"""The runs behind the tables. Each is made once, resumed if interrupted, and never mixed with other settings."""

import argparse
import json
import platform
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, DatasetDict
from safetensors.numpy import load_file

from fer_pll.commands import evaluate, finetune, out_of_fold, pretrain
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.data.splits import keep_drawn_votes
from fer_pll.io.atomic import write_json
from fer_pll.labels.candidates import dataset_fingerprint
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.checkpoints import last_checkpoint
from fer_pll.training.config import config_folder
from fer_pll.training.run_folder import RunFolder

from .beliefs import believed_rows
from .flips import flip_labels
from .results import AUDIT_COLUMNS, CURVE_COLUMNS, CURVES, RUN_COLUMNS, ResultTable, check_same
from .runs import Run

SCRIPTS = Path(__file__).resolve().parents[1]
COMMANDS = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate, "out-of-fold": out_of_fold}


@dataclass(frozen=True)
class Scale:
    """Sizes of the networks.

    pretraining: folder of hub_configs for the pre-training of the ViT; `{}` stands for its objective. Other networks
        are pre-trained with their own folder.
    backbones: for each network that can be fine-tuned, a folder of hub_configs or of train_scripts/configs.
    vit_changes: other values for the config.json of the ViT.
    pretrain_epochs, epochs: numbers of epochs; None for those of the configuration.
    """

    pretraining: str
    backbones: dict[str, str]
    vit_changes: dict = field(default_factory=dict)
    pretrain_epochs: int | None = None
    epochs: int | None = None


CONFIGS = ("resnet18", "resnet18-queries", "small-resnet", "convnext", "convnext-queries", "tiny-conv-stem")
TINY = {"vit": "fer-pll-tiny-ferplus-quick"} | {name: str(SCRIPTS / "configs" / name) for name in CONFIGS}
BASE = {"vit": "fer-pll-vit-base-ferplus", "resnet18": str(SCRIPTS / "configs" / "resnet18-224")}
SCALES = {
    "nano": Scale("fer-pll-tiny-{}", TINY, {"num_hidden_layers": 4}, 20, 12),
    "tiny": Scale("fer-pll-tiny-{}", TINY, {}, 20, 12),
    "base": Scale("fer-pll-vit-base-{}", BASE),  # the numbers of epochs of the paper
}


class Experiments:
    """The runs of one group, all of one scale and on one data set.

    Args:
        args: the parsed command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.scale = SCALES[args.scale]
        self.group = args.group or args.scale
        self.out = Path(args.out)
        self.folder = self.out / self.group
        self.tables = self.folder / "tables"
        self.results = Path(args.results or self.out / "results")
        self.runs = ResultTable(self.results / "runs.csv", RUN_COLUMNS)
        self.curves = ResultTable(self.results / "curves.csv", CURVE_COLUMNS)
        self.audits = ResultTable(self.results / "audits.csv", AUDIT_COLUMNS)
        self.pretrain_epochs = args.pretrain_epochs or self.scale.pretrain_epochs
        self.epochs = args.epochs or self.scale.epochs
        data = load_dataset(args.data)
        for split in ("train", "validation"):
            if split not in data:
                raise ValueError(f"--data {args.data} has no split {split!r}, which the comparisons need.")
        self.fingerprint = label_fingerprint(data["train"])

    def run(self, command: str, argv: Sequence) -> None:
        """Run a command of fer-pll."""
        argv = [str(value) for value in argv]
        print(f"$ fer-pll {command} {shlex.join(argv)}", flush=True)
        COMMANDS[command].main(argv)

    def vit_config(self, name: str) -> str:
        """Folder of a configuration of the ViT at this scale."""
        folder = config_folder(name)
        if not self.scale.vit_changes:
            return str(folder)
        mine = self.out / "configs" / folder.name
        mine.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.copyfile(path, mine / path.name)
        config = json.loads((folder / "config.json").read_text()) | self.scale.vit_changes
        (mine / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return str(mine)

    def backbone_config(self, backbone: str) -> str:
        """Folder of the configuration for fine-tuning a backbone."""
        name = self.scale.backbones[backbone]
        return self.vit_config(name) if backbone == "vit" else name

    def data_folder(self, *parts: str) -> Path:
        """Folder of data made from --data, or from its part --max-samples; `parts` say how."""
        samples = [f"{self.args.max_samples}samples"] if self.args.max_samples else []
        return self.out / "data" / "-".join([self.fingerprint[:8], *samples, *parts])

    def data(self, votes: int | None, seed: int, flipped: float = 0.0) -> str:
        """Folder of the data: --data itself, a part of its rows, or its rows with drawn votes or flipped labels."""
        samples = self.args.max_samples
        if samples is None and votes is None and not flipped:
            return self.args.data
        parts = [f"{votes}votes"] if votes else []
        parts += [f"{flipped:.0%}flipped"] if flipped else []
        folder = self.data_folder(*parts, *([f"seed{seed}"] if parts else []))
        if folder.is_dir():
            return str(folder)
        data = load_dataset(self.args.data)
        train, validation = data["train"], data["validation"]
        if samples is not None:
            train = some_rows(train, samples)
            validation = some_rows(validation, samples)
        if votes is not None:
            train = keep_drawn_votes(train, votes, seed)
        if flipped:
            train = flip_labels(train, flipped, seed=seed)
        save_dataset(DatasetDict(train=train, validation=validation), folder)
        return str(folder)

    def run_data(self, run: Run, seed: int) -> str:
        """Folder of the data of a run. A missing first round is made."""
        data = self.data(run.votes, seed, run.flipped)
        if run.first_round is None:
            return data
        folder = self.run_folder(run, seed).with_name(f"{run.name}-seed{seed}-first-round-{self.args.folds}folds")
        if not (folder / "data").is_dir():
            predictions = self.out_of_fold(run.first_round, seed, data, folder)
            believed_rows(data, predictions, folder / "data", run.belief)
        return str(folder / "data")

    def out_of_fold(self, run: Run, seed: int, data: str | Path, folder: Path) -> np.ndarray:
        """Predictions (N, K) by models that have not seen the rows. Finished folds are not trained again."""
        argv = ["--data", data, *self.training_options(run, seed), "--folds", self.args.folds]
        self.run("out-of-fold", [*argv, "--output_dir", folder, *self.args.options])
        return load_file(RunFolder(folder).out_of_fold_predictions)["probabilities"].astype(np.float64)

    def epochs_option(self, epochs: int | None) -> list:
        return [] if epochs is None else ["--num_train_epochs", epochs]

    def train(self, command: str, folder: Path, argv: list, settings: dict) -> float:
        """Run pretrain or finetune to its end, from the last checkpoint if interrupted. Returns seconds of this call.

        Raises:
            ValueError: if an interrupted run in the folder had other settings.
        """
        start = time.perf_counter()
        begun = folder.with_name(f"{folder.name}.json")
        if begun.is_file():
            check_same(json.loads(begun.read_text()), settings, str(begun))
        write_json(begun, settings)
        argv = [*argv, "--output_dir", folder, *self.args.options]
        if last_checkpoint(folder) is not None:
            argv += ["--resume_from_checkpoint", "last"]
        elif folder.is_dir():
            shutil.rmtree(folder)  # nothing was learned yet
        self.run(command, argv)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return time.perf_counter() - start

    def pretrain(self, backbone: str, objective: str, seed: int) -> Path:
        """Folder of a pre-trained encoder. A missing one is made."""
        samples = f"-{self.args.max_samples}samples" if self.args.max_samples else ""
        name = objective if backbone == "vit" else f"{backbone}_{objective}"
        folder = self.folder / "pretrain" / f"{name}-seed{seed}{samples}"
        settings = {"epochs": self.pretrain_epochs, "options": self.args.options, "fingerprint": self.fingerprint}
        done = folder / "pretrained.json"
        if done.is_file():
            check_same(json.loads(done.read_text())["settings"], settings, str(done))
            return folder
        if backbone == "vit":
            config = self.vit_config(self.scale.pretraining.format(objective))
        else:
            config = self.backbone_config(backbone)
        argv = ["--config", config, "--data", self.data(None, seed), "--seed", seed]
        seconds = self.train("pretrain", folder, argv + self.epochs_option(self.pretrain_epochs), settings)
        write_json(done, {"settings": settings, "seconds": seconds})
        return folder

    def settings(self, run: Run, seed: int) -> dict:
        """The settings that a result depends on."""
        return {
            "seed": seed,
            "scale": self.args.scale,
            "backbone": run.backbone,
            "pretraining": run.pretraining,
            "votes": run.votes,
            "experiment": experiment(run, self.args.folds),
            "max_samples": self.args.max_samples,
            "pretrain_epochs": self.pretrain_epochs if run.pretraining else None,
            "epochs": self.epochs,
            "options": self.args.options,
            "fingerprint": self.fingerprint,
        }

    def training_options(self, run: Run, seed: int) -> list:
        """Options of a run, except its data and its folder. A missing pre-trained encoder or teacher is made."""
        argv = ["--config", self.backbone_config(run.backbone), "--seed", seed]
        argv += [] if run.pretraining is None else ["--init_from", self.pretrain(run.backbone, run.pretraining, seed)]
        argv += ["--settings", settings_file(run)]
        argv += self.epochs_option(self.epochs)
        if self.epochs is not None:
            argv += ["--revision_warmup", 1 / 3]
        for key, value in run.overrides:
            argv += [f"--{key}", value]
        if run.teacher is not None:
            self.result(run.teacher, seed)
            folder = self.run_folder(run.teacher, seed)
            argv += ["--teacher", folder, "--teacher_cache", folder / "said.safetensors"]
        return argv

    def run_folder(self, run: Run, seed: int) -> Path:
        return self.folder / f"{run.name}-seed{seed}"

    def read(self, table: ResultTable, name: str, settings: dict) -> dict | None:
        """A result of this group, or None if it is missing.

        Raises:
            ValueError: if it was made with other settings.
        """
        seed = settings["seed"]
        result = table.find(self.group, name, seed)
        if result is not None:
            check_same(result["settings"], settings, f"{table.path}: in {self.group}, {name} with seed {seed}")
        return result

    def finished(self, run: Run, seed: int) -> dict | None:
        """The result of a run, or None if it is missing; see `read`."""
        return self.read(self.runs, run.name, self.settings(run, seed))

    def result(self, run: Run, seed: int) -> dict:
        """The result of a run. A missing one is made."""
        result = self.finished(run, seed)
        if result is not None:
            return result
        folder, settings = self.run_folder(run, seed), self.settings(run, seed)
        data = self.run_data(run, seed)
        seconds = self.train("finetune", folder, ["--data", data, *self.training_options(run, seed)], settings)
        self.run("evaluate", [folder, data, "--out", folder / "evaluation"])
        metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
        logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        curves = {
            name: [[round(log["epoch"], 3), round(log[name], 5)] for log in logs if name in log] for name in CURVES
        }
        self.curves.write(self.group, run.name, {"settings": settings, **curves})
        result = {
            "settings": settings,
            "classes": metrics["classes"],
            **metrics["protocols"],
            "label_recovery": curves["label_recovery"][-1][1] if curves["label_recovery"] else None,
            "coverage": self.coverage(run, seed),
            "seconds": round(seconds),
            "machine": machine(),
        }
        self.runs.write(self.group, run.name, result)
        return self.finished(run, seed)

    def curve(self, run: Run, seed: int, name: str) -> list[list[float]]:
        """One of `CURVES` of a finished run: pairs of epoch and value.

        Raises:
            ValueError: if the file of the curves does not have it.
        """
        curves = self.curves.find(self.group, run.name, seed)
        if curves is None:
            raise ValueError(f"{self.curves.path} has no curves of {run.name} with seed {seed} in {self.group}.")
        return curves[name]

    def coverage(self, run: Run, seed: int) -> dict[str, float | None]:
        """Mean size of the candidate sets, the share that hold the label, and the share of all votes that they hold.

        The label is known if the data set has true labels, or labels without votes.
        """
        table, rows = self.confidences(run, seed)
        candidates = table.candidates.numpy()
        votes = numpy_column(rows, "votes") if "votes" in rows.column_names else None
        label_inside = votes_inside = None
        if votes is not None:
            votes_inside = float((votes * candidates).sum() / votes.sum())
        if votes is None or "true_label" in rows.column_names:
            truth = numpy_column(rows, "true_label" if "true_label" in rows.column_names else "label")
            known = truth >= 0
            label_inside = float(candidates[known, truth[known]].mean())
        size = float(candidates.sum(axis=1).mean())
        return {"mean_size": size, "label_inside": label_inside, "votes_inside": votes_inside}

    def confidences(self, run: Run, seed: int) -> tuple[ConfidenceTable, Dataset]:
        """The run's confidences and its training rows, in the same order."""
        return RunFolder(self.run_folder(run, seed)).table_and_rows(self.run_data(run, seed))


def experiment(run: Run, folds: int | None) -> dict:
    """What is learned, and from what. `folds` are those of a first round."""
    learned = yaml.safe_load(settings_file(run).read_text()) | dict(run.overrides)
    if run.teacher is not None:
        learned["teacher"] = run.teacher.name
    if run.flipped:
        learned["flipped"] = run.flipped
    if run.first_round is not None:
        learned |= {"first_round": run.first_round.name, "belief": run.belief, "folds": folds}
    return learned


def settings_file(run: Run) -> Path:
    return SCRIPTS / "settings" / f"{run.settings}.yaml"


def label_fingerprint(train: Dataset) -> str:
    """Fingerprint of the rows and of the labels that their annotators chose: all labels if a row has no votes."""
    names = train.features["label"].names
    if "votes" in train.column_names:
        chosen = numpy_column(train, "votes") > 0
        chosen[~chosen.any(axis=1)] = True
    else:
        chosen = np.eye(len(names), dtype=bool)[numpy_column(train, "label")]
    return dataset_fingerprint(names, train["row_id"], chosen)


def some_rows(dataset: Dataset, count: int) -> Dataset:
    """A random part of the rows, the same in every call."""
    return dataset.select(np.sort(np.random.default_rng(0).permutation(len(dataset))[:count]))


def machine() -> str:
    """A description of the machine that the time of a run depends on, without its name."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}"
