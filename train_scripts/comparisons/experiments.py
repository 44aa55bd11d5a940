"""The trainings behind the tables: made once, continued where they were cut off, never mixed with other settings."""

import argparse
import json
import platform
import runpy
import shlex
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, DatasetDict

from comparisons.tables import Run
from fer_pll.data.dataset import load_prepared, numpy_column, save_prepared
from fer_pll.data.splits import keep_drawn_votes
from fer_pll.io.atomic import write_json
from fer_pll.labels.candidates import dataset_fingerprint
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.checkpoints import last_checkpoint
from fer_pll.training.config import config_folder
from fer_pll.training.run_folder import RunFolder

SCRIPTS = Path(__file__).resolve().parents[1]


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


# Options of the training scripts that say how one trains, not what is learned: they make no other result.
CHANGE_NO_FIGURE = {
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "log_level",
    "report_to",
    "save_total_limit",
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
            self.scripts[name] = runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]
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

    def data_folder(self, *parts: str) -> Path:
        """Folder of data that are made from --data and its part --max-samples, `parts` saying how."""
        samples = [f"{self.args.max_samples}samples"] if self.args.max_samples else []
        return self.out / "data" / "-".join([self.fingerprint[:8], *samples, *parts])

    def data(self, votes: int | None, seed: int) -> str:
        """Folder of the data: as given, or a part of the rows, or with drawn votes."""
        samples = self.args.max_samples
        if samples is None and votes is None:
            return self.args.data
        folder = self.data_folder(*([f"{votes}votes", f"seed{seed}"] if votes else []))
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
        write_json(begun, settings)
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
        write_json(done, {"settings": settings, "seconds": seconds})
        return folder

    def settings(self, run: Run, seed: int) -> dict:
        """What a result depends on."""
        experiment = SCRIPTS / "experiments" / f"{run.settings}.yaml"
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
        config = SCRIPTS / "experiments" / self.scale.resnet if run.resnet else self.config("ferplus")
        argv = ["--config", config, "--seed", seed]
        argv += [] if run.pretraining is None else ["--init_from", self.pretrain(run.pretraining, seed)]
        argv += ["--settings", SCRIPTS / "experiments" / f"{run.settings}.yaml"]
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
        write_json(self.result_path(run, seed), result, indent=1)
        return result

    def coverage(self, run: Run, seed: int) -> dict[str, float | None]:
        """Mean size of the candidate sets; share of them that hold the label; share of all votes that fall into them.

        The label is known where the data set has true labels, or nothing but labels.
        """
        table, rows = self.confidences(run, seed)
        candidates = table.candidates.numpy()
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

    def confidences(self, run: Run, seed: int) -> tuple[ConfidenceTable, Dataset]:
        """The run's confidences, and the training rows that they belong to, in the same order."""
        return RunFolder(self.run_folder(run, seed)).table_and_rows(self.data(run.votes, seed))


def some_rows(dataset: Dataset, count: int) -> Dataset:
    """A part of the rows, the same in every call."""
    return dataset.select(np.sort(np.random.default_rng(0).permutation(len(dataset))[:count]))


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
    before, now = (
        settings | {"options": options_that_count(settings["options"])}
        for settings in (before, json.loads(json.dumps(now)))
    )
    different = [f"{name} {before.get(name)!r}, not {now[name]!r}" for name in now if before.get(name) != now[name]]
    if different:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(different)}). Results are never mixed: give the "
            "settings that it was made with, or another --out and --results."
        )


def options_that_count(options: list[str]) -> dict[str, str]:
    """Options of the training scripts by their names, without those that change no figure."""
    values: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            name, *given = word[2:].split("=", 1)
            name = name.replace("-", "_")
            values[name] = given
        elif values:
            values[name].append(word)
    return {name: " ".join(given) or "true" for name, given in values.items() if name not in CHANGE_NO_FIGURE}


def machine() -> str:
    """What the time of a run depends on, without the machine's name."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, PyTorch {torch.__version__}"
