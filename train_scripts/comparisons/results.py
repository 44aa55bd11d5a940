"""Results in CSV files, one line per run. Results that were made with other settings are refused."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fer_pll.io.atomic import whole_file
from fer_pll.io.tables import read_columns

KEY = ("group", "run", "seed")
SETTINGS = (
    "scale",
    "backbone",
    "pretraining",
    "votes",
    "experiment",
    "max_samples",
    "pretrain_epochs",
    "epochs",
    "options",
    "fingerprint",
)
AUDIT_SETTINGS = ("first_round", "flipped", "folds")
FIGURES = ("rows", "accuracy", "mean_class_accuracy", "ece", "per_class_recall", "confusion_matrix")
CURVES = ("eval_accuracy", "label_recovery")
# Columns of the files. A name with a dot names a dictionary in a result and an entry of it.
RUN_COLUMNS = (
    *KEY,
    *SETTINGS,
    "classes",
    *(f"{protocol}.{figure}" for protocol in ("all", "majority") for figure in FIGURES),
    "label_recovery",
    *(f"coverage.{name}" for name in ("mean_size", "label_inside", "votes_inside")),
    "seconds",
    "machine",
)
CURVE_COLUMNS = (*KEY, *CURVES)
AUDIT_COLUMNS = (*KEY, *SETTINGS, *AUDIT_SETTINGS, "figures", "seconds", "machine")

IN_SETTINGS = {"seed", *SETTINGS, *AUDIT_SETTINGS}
TEXT = {"group", "run", "scale", "backbone", "pretraining", "fingerprint", "machine"}  # all other cells are JSON

# Options of pretrain and finetune that change how a run is made, but not what it learns.
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


@dataclass(frozen=True)
class ResultTable:
    """A CSV file with one line per result, sorted by group, run and seed.

    A result is a dictionary. Its entry `settings` is a dictionary as well. An empty cell is None.

    Args:
        path: path of the file, which need not exist yet.
        columns: columns of the file; the first are `KEY`.
    """

    path: Path
    columns: tuple[str, ...]

    def find(self, group: str, run: str, seed: int) -> dict | None:
        """The result with this key, or None."""
        line = self._lines().get((group, run, seed))
        if line is None:
            return None
        result: dict = {}
        for column, cell in line.items():
            *outer, name = _place(column)
            values = result
            for part in outer:
                values = values.setdefault(part, {})
            values[name] = None if cell == "" else cell if column in TEXT else json.loads(cell)
        return result

    def write(self, group: str, run: str, result: dict) -> None:
        """Add a result, or replace the one with the same key. The file is written whole or not at all."""
        result = {"group": group, "run": run, **result}
        line = {column: _cell(column, result) for column in self.columns}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):  # two processes of reproduce.py may run at the same time
            lines = self._lines()
            lines[group, run, int(line["seed"])] = line
            with whole_file(self.path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines[key] for key in sorted(lines))

    def _lines(self) -> dict[tuple[str, str, int], dict[str, str]]:
        if not self.path.is_file():
            return {}
        lines = (dict(zip(self.columns, cells, strict=True)) for _, cells in read_columns(self.path, self.columns))
        return {(line["group"], line["run"], int(line["seed"])): line for line in lines}


def _place(column: str) -> list[str]:
    """The keys that lead to the value of a column in a result."""
    return ["settings", column] if column in IN_SETTINGS else column.split(".")


def _cell(column: str, result: dict) -> str:
    value = result
    for part in _place(column):
        value = None if value is None else value.get(part)
    if value is None:
        return ""
    return value if column in TEXT else json.dumps(value)


def check_same(before: dict, now: dict, what: str) -> None:
    """Raise `ValueError` if the settings `before`, with which `what` was made, differ from the present ones."""
    before, now = (
        settings | {"options": options_that_count(settings["options"])}
        for settings in (before, json.loads(json.dumps(now)))
    )
    different = [f"{name} {before.get(name)!r}, not {now[name]!r}" for name in now if before.get(name) != now[name]]
    if different:
        raise ValueError(
            f"{what} was made with other settings ({'; '.join(different)}). Results are never mixed: give the "
            "settings that it was made with, or another --group."
        )


def options_that_count(options: list[str]) -> dict[str, str]:
    """Options of pretrain and finetune by name, without those that change no figure."""
    values: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            name, *given = word[2:].split("=", 1)
            name = name.replace("-", "_")
            values[name] = given
        elif values:
            values[name].append(word)
    return {name: " ".join(given) or "true" for name, given in values.items() if name not in CHANGE_NO_FIGURE}
