"""Checkpoints that a killed training can rely on: which are complete, and what they were written with."""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import sort_checkpoints

from ..io.atomic import write_json
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end.

    `trainer_state.json` is what Trainer writes last, after the files of all processes; a part of it is no JSON.
    """
    try:
        json.loads(RunFolder(checkpoint).trainer_state.read_text())
    except (OSError, ValueError):
        return False
    return True


def begin_checkpoint(checkpoint: str | Path) -> None:
    """Make the folder, incomplete: what an earlier run left there does not pass for complete while it is replaced."""
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    RunFolder(checkpoint).trainer_state.unlink(missing_ok=True)


class NonFiniteLossError(ValueError):
    """The loss is NaN or infinite; the message says at which step and rows, and where the training can go on."""


class SaveError(OSError):
    """A checkpoint could not be written; the message says where, why, and how the training goes on."""


@contextmanager
def saving(checkpoint: str | Path) -> Iterator[None]:
    """What writes a checkpoint goes inside.

    Where that fails, what was written of it is deleted, so that the disk is no fuller than before; earlier checkpoints
    stay.

    Raises:
        SaveError: the checkpoint could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch has no error of its own for a full disk
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
    """The complete checkpoint of the highest step in a run's folder, `None` where there is none.

    Half-written ones, of a run that was killed while it wrote, are passed over with a message in the log.
    """
    checkpoints = sort_checkpoints(str(output_dir)) if Path(output_dir).is_dir() else []
    for checkpoint in reversed(checkpoints):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning(
            "%s is half-written (the run was killed meanwhile): the checkpoint before it is used, if there is one.",
            checkpoint,
        )
    return None


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raise `ValueError` where a folder is no checkpoint that a training can be resumed from."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: there is no such folder.")
    if not is_complete(checkpoint):
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: no checkpoint, or half-written by a run that was killed. "
            "--resume_from_checkpoint last finds the last complete one."
        )


def write_processes(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Write down with how many processes, and what batches, a checkpoint was made."""
    write_json(RunFolder(checkpoint).processes, processes)


def warn_if_processes_differ(checkpoint: str | Path, processes: dict[str, int]) -> None:
    """Say what is no longer bit-identical when a run goes on with other processes or batches than it began with."""
    path = RunFolder(checkpoint).processes
    before = json.loads(path.read_text()) if path.is_file() else processes
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
