"""Every format, damaged a fixed number of times: no traceback, no crash, no limit passed. About a minute in all."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fer_pll.io.errors import DataError
from tests.fuzz.mutate import BY_ENDING, damage, damage_bytes
from tests.fuzz.runner import BAD, Target, classify, run, table
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


SLOW = ("ONNX folder", "resume", "resume with adapters")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in TARGETS])
def test_damage_is_an_error_that_names_the_file(name):
    result = run(TARGETS[name], 0, range(TARGETS[name].quick))
    assert result.counts.total() == TARGETS[name].quick
    assert not result.bad, "\n".join([*table({name: result}), *result.examples.values()])
    assert result.counts["clean"] + result.counts["row"], "no damage was noticed: are the right files damaged?"


# The harness itself finds what it looks for.


def _write(folder: Path) -> None:
    (folder / "a.json").write_text('{"a": 1, "b": [1, 2, 3]}')


def _raise(error: Exception):
    def read(folder: Path) -> None:
        if (folder / "a.json").read_text() != '{"a": 1, "b": [1, 2, 3]}':
            raise error

    return read


def _spin(folder: Path) -> None:
    if (folder / "a.json").read_text() != '{"a": 1, "b": [1, 2, 3]}':
        while True:
            pass


def _eat(folder: Path) -> None:
    if (folder / "a.json").read_text() != '{"a": 1, "b": [1, 2, 3]}':
        np.ones(2**33, dtype=np.uint8)


def _die(folder: Path) -> None:
    if (folder / "a.json").read_text() != '{"a": 1, "b": [1, 2, 3]}':
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_raise(DataError("damaged/a.json is bad")), "clean"),
        (_raise(ValueError("a.json is bad")), "clean"),
        (_raise(OSError("a.json: no")), "clean"),
        (_raise(ValueError("is bad")), "raw"),
        (_raise(KeyError("a.json")), "raw"),
        (_raise(DataError("something is bad")), "unnamed"),
        (_raise(MemoryError()), "memory"),
        (_eat, "memory"),
        (_die, "crash"),
        (_spin, "time"),
        (lambda folder: None, "ok"),
        (lambda folder: [], "ok"),
        (lambda folder: ["row 3: is bad"], "row"),
    ],
)
def test_each_outcome_is_told_apart(read, outcome, monkeypatch):
    monkeypatch.setattr("tests.fuzz.runner.CPU_SECONDS", 1.0)
    result = run(Target("toy", _write, read), 0, range(2))
    assert dict(result.counts) == {outcome: 2}
    assert bool(result.examples) == (outcome in BAD)


def test_a_memory_error_behind_an_error_of_ours_counts():
    error = DataError("damaged/a.json")
    error.__cause__ = MemoryError()
    assert classify(error, Target("toy", _write, _eat), ["a.json"]) == "memory"


@pytest.mark.parametrize("ending", sorted({*BY_ENDING, ".bin"}))
def test_damage_depends_on_the_seed_only_and_changes_the_file(ending, tmp_path):
    votes = {".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
    if ending in votes:
        target = TARGETS[f"votes, sets, {votes[ending]}"]
    else:
        target = next((t for t in TARGETS.values() if any(p.endswith(ending) for p in t.damaged)), TARGETS["images"])
    target.make(tmp_path)
    files = sorted(path for path in tmp_path.rglob(f"*{ending}") if path.is_file())
    if not files:
        files = [tmp_path / f"any{ending}"]
        files[0].write_bytes(random.Random(0).randbytes(500))
    whole, results = files[0].read_bytes(), []
    for seed in (1, 1, 2):
        files[0].write_bytes(whole)
        damage(files[0], random.Random(seed))
        results.append(files[0].read_bytes())
    assert results[0] == results[1] and whole not in results
    assert damage_bytes(whole, random.Random(3)) == damage_bytes(whole, random.Random(3))


def test_it_runs_for_as_long_as_asked():
    target = Target("toy", _write, lambda folder: None)
    assert run(target, 5, range(10**9), time.monotonic()).counts.total() == 0
    assert 0 < run(target, 5, range(10**9), time.monotonic() + 3).counts.total() < 10**8


@pytest.mark.long
def test_the_command_prints_markdown():
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "7", "--only", "fold of an audit", "--inputs", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| format | inputs | ok | row | clean |") and lines[2].startswith(
        "| fold of an audit | 50 |"
    )
    assert len({line.count("|") for line in lines[:4]}) == 1 and "Seed 7." in done.stdout
