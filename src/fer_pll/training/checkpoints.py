"""Checkpoints that a killed run can rely on: which ones are complete, and what wrote them."""

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import sort_checkpoints

from ..io.atomic import write_json
from ..io.errors import DataError
from ..io.pretrained import CONFIG_FILE, tensor_shapes
from ..io.stored import read_json, read_torch, reading
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
    "train_batch_size?": (int, type(None)),
    "logging_steps?": float,
    "eval_steps?": float,
    "save_steps?": float,
    "num_train_epochs?": float,
    "total_flos?": float,
    "num_input_tokens_seen?": int,
}
"""What Trainer and our code read from `trainer_state.json`."""


def begin_checkpoint(checkpoint: str | Path) -> None:
    """Make the folder, and mark it incomplete: it may hold an earlier run's checkpoint, which is now overwritten."""
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    RunFolder(checkpoint).trainer_state.unlink(missing_ok=True)


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
        folder = Path(checkpoint).parent
        before = last_checkpoint(folder)
        reason = " ".join(str(error).split())[:200]
        raise SaveError(
            f"{checkpoint} could not be written ({type(error).__name__}: {reason}); "
            f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there. Make room (--save_total_limit 1 keeps "
            "one checkpoint), then "
            + (f"go on from {before}, which is whole: --resume_from_checkpoint last." if before else "start again.")
        ) from error


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint of the highest step in a run's folder; `None` if there is none.

    Half-written checkpoints, of a run that was killed while it wrote, are skipped with a warning in the log.
    """
    checkpoints = sort_checkpoints(str(output_dir)) if Path(output_dir).is_dir() else []
    for checkpoint in reversed(checkpoints):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning(
            "%s is half-written (the run was killed meanwhile): the one before it is used, if there is one.",
            checkpoint,
        )
    return None


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raise `ValueError` if a folder is not a checkpoint that a run can be resumed from."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: there is no such folder.")
    if not is_complete(checkpoint):
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: no checkpoint, or half-written by a run that was killed. "
            "--resume_from_checkpoint last finds the last complete one."
        )
    folder = Path(checkpoint)
    state = read_json(folder / TRAINER_STATE_NAME, _STATE, ANOTHER)
    for name in ("global_step", "epoch"):
        if not 0 <= (state.get(name) or 0) < 2**53:  # NaN is not either
            raise DataError(f"{folder / TRAINER_STATE_NAME}: {name} is {state[name]}: {ANOTHER}")
    with reading(folder / TRAINER_STATE_NAME, ANOTHER):
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))  # refuses names that it does not know
    if (folder / CONFIG_FILE).is_file():  # FSDP and DeepSpeed may keep the weights elsewhere
        tensor_shapes(folder)
    for file in (*folder.glob("*.pt"), *folder.glob("*.pth")):
        read_torch(file, ANOTHER, map_location="cpu", mmap=True)


def write_processes(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Write down the number of processes and the batch sizes that made a checkpoint."""
    write_json(RunFolder(checkpoint).processes, processes)


def warn_if_processes_differ(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Warn if a run goes on with other processes or batches than before, and say what that changes."""
    path = RunFolder(checkpoint).processes
    before = read_json(path, {str: int}) if path.is_file() else processes
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
