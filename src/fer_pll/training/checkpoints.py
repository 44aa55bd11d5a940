"""Checkpoints that a killed run can rely on: which ones are whole, and what wrote them."""

import errno
import hashlib
import logging
import math
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import sort_checkpoints

from ..hub.files import ADAPTER_WEIGHTS_NAME
from ..io.atomic import UNFINISHED, sync, whole_file, write_json
from ..io.errors import DataError
from ..io.names import ADAPTER_FILE
from ..io.pretrained import CONFIG_FILE, tensor_shapes
from ..io.stored import read_json, read_tensor_shapes, read_torch, reading
from .processes import LOST, decided_by_main, is_lost
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end.

    Trainer writes `trainer_state.json` last, after the files of all processes. Half of that file is no JSON.
    """
    try:
        read_json(RunFolder(checkpoint).trainer_state, object)
    except DataError:
        return False
    return True


ANOTHER = "resume from another checkpoint of the run, or start it again"
_STATE = {
    "global_step?": int,
    "max_steps?": int,
    "epoch?": (float, type(None)),
    "log_history?": [{str: object}],
    "stateful_callbacks?": {str: (dict, list)},
    "best_model_checkpoint?": (str, type(None)),
    "best_metric?": (float, type(None)),
    "best_global_step?": (int, type(None)),
    "train_batch_size": int,
    "logging_steps?": float,
    "eval_steps?": float,
    "save_steps?": float,
    "num_train_epochs?": float,
    "total_flos?": float,
    "num_input_tokens_seen?": int,
}
"""What Trainer and our code read from `trainer_state.json`."""


def begin_checkpoint(checkpoint: str | Path) -> None:
    """Make the folder, and mark it incomplete: it may hold an earlier run's checkpoint, which is now overwritten.

    Until the checkpoint is sealed, its list of checksums is empty. None at all means one of an earlier version.
    """
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    write_json(RunFolder(checkpoint).checksums, {})
    RunFolder(checkpoint).trainer_state.unlink(missing_ok=True)


def is_unfinished(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was begun and never came to its end. One that was finished and then damaged is not."""
    run = RunFolder(checkpoint)
    if not run.checksums.is_file():
        return not run.trainer_state.exists()
    try:
        return not read_json(run.checksums, {str: str})
    except DataError:
        return False


def seal(checkpoint: str | Path) -> None:
    """Wait until all files of a finished checkpoint are on the disk, and write down their SHA-256 checksums.

    Raises:
        SaveError: the disk does not take them.
    """
    folder = Path(checkpoint)
    try:
        for path in (*folder.rglob("*"), folder):
            sync(path)
        write_json(RunFolder(folder).checksums, {name: _digest(folder / name) for name in _names(folder)})
    except OSError as error:
        raise save_error(checkpoint, error) from error


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path != RunFolder(folder).checksums)
    return sorted(path.relative_to(folder).as_posix() for path in files if not path.name.startswith(UNFINISHED))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_damage(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; `None` if it is whole.

    Files are compared with the checksums that were written with them. A checkpoint of an earlier version has none.
    """
    folder = Path(checkpoint)
    half = "it is half-written (the run was killed meanwhile)"
    if is_unfinished(folder):
        return half
    if not is_complete(folder):
        return f"{half}, or its trainer_state.json is damaged"
    if RunFolder(folder).checksums.is_file():
        try:
            expected = read_json(RunFolder(folder).checksums, {str: str})
        except DataError as error:
            return str(error)
        for name, digest in expected.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} is damaged: it is not what was written"
    if not any(folder.glob("optimizer*")):
        return "it has no state of the optimizer (optimizer.pt): it was written with --save_only_model, or cut down"
    return None


def rotate(output_dir: str | Path, step: int, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints up to `step` but for the newest `limit`, by their steps, and the best one.

    Trainer goes by the time of modification, and would delete new ones after the clock was set back. Checkpoints of
    later steps come from a run that was resumed at an earlier one: they are left alone until it gets there.
    """
    if limit is None or limit <= 0:
        return
    done = [path for path in sort_checkpoints(str(output_dir)) if int(path.rpartition("-")[2]) <= step]
    best_path = Path(best).resolve() if best else None
    spare = [path for path in done[:-1] if Path(path).resolve() != best_path]
    for path in spare[: max(0, len(done) - limit)]:
        shutil.rmtree(path, ignore_errors=True)


class NonFiniteLossError(ValueError):
    """The loss is NaN or infinite. The message says at which step and rows, and where the run can go on."""


class SaveError(OSError):
    """A checkpoint could not be written. The message says where, why, and how the run can go on."""


@contextmanager
def saving(checkpoint: str | Path) -> Iterator[None]:
    """Context for the code that writes a checkpoint.

    If writing fails, the files written so far are deleted, so that the disk is no fuller than before. Earlier
    checkpoints stay.

    Raises:
        SaveError: the checkpoint could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch raises RuntimeError for a full disk
        if is_complete(checkpoint):  # something else failed, such as a push to the Hub
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise save_error(checkpoint, error) from error


@contextmanager
def saving_model(folder: str | Path) -> Iterator[None]:
    """Context for the code that writes the model at the end of a run.

    Raises:
        SaveError: the model could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise save_error(Path(folder) / "model.safetensors", error) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space", "too large", "quota", "unexpected pos", "failed writing file")  # the last two of PyTorch


def save_error(checkpoint: str | Path, error: Exception) -> SaveError:
    """The error for a checkpoint that could not be written, with advice that fits the cause."""
    folder = Path(checkpoint).parent
    free = shutil.disk_usage(folder).free
    reason = " ".join(str(error).split())[:200]
    number = getattr(error, "errno", None)
    if is_lost(error):
        advice = f"{LOST[0].upper()}{LOST[1:]}. Then "
    elif number == errno.EROFS or "read-only" in reason.lower():
        advice = "The disk is read-only: make it writable. Then "
    elif number in (errno.EACCES, errno.EPERM):
        advice = "The folder may not be written to: change its permissions. Then "
    elif number in _FULL or any(word in reason.lower() for word in _FULL_WORDS) or free < 2**28:
        advice = (
            f"{free / 2**20:,.0f} MiB are free there: make room (--save_total_limit 1 keeps one checkpoint). Then "
        )
    else:
        advice = "See to it. Then "
    before = last_checkpoint(folder)
    go_on = f"go on from {before}, which is whole: --resume_from_checkpoint last." if before else "start again."
    return SaveError(f"{checkpoint} could not be written ({type(error).__name__}: {reason}). {advice}{go_on}")


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The whole checkpoint of the highest step in a run's folder; `None` if there is none.

    Half-written and damaged ones are passed over with a warning in the log.
    """
    checkpoints = sort_checkpoints(str(output_dir)) if Path(output_dir).is_dir() else []
    for checkpoint in reversed(checkpoints):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s is passed over: %s. The one before it is used, if there is one.", checkpoint, damage)
    return None


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raise `ValueError` if a folder is not a checkpoint that a run can be resumed from."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: there is no such folder.")
    damage = find_damage(checkpoint)
    if damage is not None:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {damage}. --resume_from_checkpoint last finds the last whole one."
        )
    folder = Path(checkpoint)
    state = read_json(folder / TRAINER_STATE_NAME, _STATE, ANOTHER)
    for name in ("global_step", "epoch"):
        if not 0 <= (state.get(name) or 0) < 2**53:  # NaN is not either
            raise DataError(f"{folder / TRAINER_STATE_NAME}: {name} is {state[name]}: {ANOTHER}")
    with reading(folder / TRAINER_STATE_NAME, ANOTHER):
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))  # refuses names that it does not know
    if (folder / ADAPTER_FILE).is_file():
        read_tensor_shapes(folder / ADAPTER_WEIGHTS_NAME, ANOTHER)
    elif (folder / CONFIG_FILE).is_file():  # FSDP and DeepSpeed may keep the weights elsewhere
        tensor_shapes(folder)
    for file in (*folder.glob("*.pt"), *folder.glob("*.pth")):
        read_torch(file, ANOTHER, map_location="cpu", mmap=True)


def bring_checkpoint(args: Any, checkpoint: str | Path) -> None:
    """Give the main process's checkpoint to the machines that have another disk, and check each process's own files.

    Args:
        args: the training arguments, which know the processes.
        checkpoint: its folder, of the same name on all machines.

    Raises:
        ValueError: a process has not the random state that it saved, though as many processes go on; on all of them.
    """
    if args.world_size == 1:
        return
    folder = Path(checkpoint)
    expected = decided_by_main(args, lambda: {name: _digest(folder / name) for name in _all_names(folder)})
    missing: list[str] = []
    if args.local_process_index == 0 and args.process_index != 0:  # one of each machine
        missing = [
            name
            for name, digest in expected.items()
            if not (folder / name).is_file() or _digest(folder / name) != digest
        ]
    for name in sorted(set(gather_object(missing))):
        _send(args, folder / name, name in missing)
    states = [name for name in expected if name.startswith("rng_state")]
    own = f"rng_state_{args.process_index}.pth"
    same_number = decided_by_main(args, lambda: _processes(folder).get("world_size")) == args.world_size
    lacks = bool(states) and same_number and not (folder / own).is_file()
    without = gather_object([f"process {args.process_index} on {platform.node()}"] if lacks else [])
    if without:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {', '.join(without)} cannot see its own random state "
            "(rng_state_*.pth). Use an output folder that all machines share, or copy the checkpoints together."
        )


def _all_names(folder: Path) -> list[str]:
    seal_file = RunFolder(folder).checksums
    return [*_names(folder), *([seal_file.name] if seal_file.is_file() else [])]


def _send(args: Any, path: Path, receives: bool, size: int = 2**26) -> None:
    """Copy a file of the main process to the processes that receive it, in parts of `size` bytes."""
    parts = decided_by_main(args, lambda: -(-path.stat().st_size // size))
    with ExitStack() as stack:
        source = stack.enter_context(path.open("rb")) if args.process_index == 0 else None
        target = None
        if receives:
            target = stack.enter_context(stack.enter_context(whole_file(path)).open("wb"))
        for _ in range(parts):
            part = [source.read(size) if source is not None else b""]
            broadcast_object_list(part, from_process=0)
            if target is not None:
                target.write(part[0])


def _processes(checkpoint: str | Path) -> dict[str, int]:
    path = RunFolder(checkpoint).processes
    return read_json(path, {str: int}) if path.is_file() else {}


def write_processes(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Write down the number of processes and the batch sizes that made a checkpoint."""
    write_json(RunFolder(checkpoint).processes, processes)


def warn_if_processes_differ(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Warn if a run goes on with other processes or batches than before, and say what that changes."""
    before = _processes(checkpoint) or processes
    if before == processes:
        return
    changes = ", ".join(
        f"{name} {before.get(name)} -> {now}" for name, now in processes.items() if before.get(name) != now
    )
    logger.warning(
        "%s was written with other processes or batches (%s). Weights, optimizer, confidences and the order of the "
        "rows go on from there, but no longer bit for bit: sums are taken in another order, and dropout and "
        "stochastic depth draw other random numbers.%s",
        checkpoint,
        changes,
        ""
        if math.prod(before.values()) == math.prod(processes.values())
        else " The global batch differs as well: the epoch goes on at the same number of steps, with other rows.",
    )
