"""Whether two runs are the same bit for bit: every tensor of weights, optimizer, random state and table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

OWN_NAMES = ("checksums.json",)  # of the other files, whose packing is not part of the content


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{place}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{place}[{number}]")
    else:
        yield place, value


def _bytes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        array = value.detach().contiguous()
        return str(array.dtype), tuple(array.shape), array.view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return repr(value)


def content(path: Path) -> dict[str, Any]:
    """Everything in a file, by its place there, such that equal bits are equal values."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            found |= {f"metadata {key}": value for key, value in (file.metadata() or {}).items()}
    elif path.suffix in (".pt", ".pth"):
        found = dict(_leaves(torch.load(path, map_location="cpu", weights_only=False)))
    elif path.name == "trainer_state.json":
        state = json.loads(path.read_text())
        # The log of the first steps after a resume is a mean over fewer steps, and has times.
        kept = [
            {key: value for key, value in log.items() if not key.endswith(("_runtime", "_per_second"))}
            for log in state["log_history"]
            if any(key.startswith("eval_") for key in log)
        ]
        found = {key: state[key] for key in ("global_step", "max_steps", "epoch")} | {"evaluations": kept}
    elif path.suffix == ".json":
        found = {"": json.loads(path.read_text())}
    else:
        return {}
    return {place: _bytes(value) for place, value in found.items()}


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, whole or not."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else None


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs' last checkpoints and final files: places, none if all bits are equal.

    Files without tensors or numbers of the run (figures, the card, settings) are not compared.
    """
    last, other_last = newest(one), newest(other)
    if last is None or other_last is None or last.name != other_last.name:
        return [f"the last checkpoint is {other_last and other_last.name}, not {last and last.name}"]
    found = []
    for folder, other_folder in ((last, other_last), (one, other)):
        inside = folder == last
        names = {path.name for path in folder.iterdir() if path.is_file() and path.suffix in _COMPARED}
        names -= {*OWN_NAMES, *(() if inside else ("settings.json", "training.json", "all_results.json"))}
        for name in sorted(names):
            place = f"{folder.name}/{name}" if inside else name
            if not (other_folder / name).is_file():
                found.append(f"{place} is missing")
                continue
            expected, seen = content(folder / name), content(other_folder / name)
            found += [f"{place}: {key}" for key in expected.keys() | seen.keys() if expected.get(key) != seen.get(key)]
    return sorted(found)


_COMPARED = {".safetensors", ".pt", ".pth", ".json"}
