"""The configurations in `hub_configs`, and checks of the output folder before a run."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub.errors import StrictDataclassError

from ..io.atomic import UNFINISHED, check_writable, write_json
from ..io.errors import name_some
from ..io.pretrained import load_image_processor, load_model_config
from ..io.shipped import shipped_config, shipped_names
from ..io.stored import read_json
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from .checkpoints import is_unfinished, last_checkpoint
from .processes import decided_by_main
from .run_folder import RunFolder
from .run_trainer import RunTrainer
from .signals import RunInterrupted

LOCK = ".run.lock"
"""File in the output folder that a process holds while its run writes there."""


def config_folder(name: str) -> Path:
    """Folder of a model's configuration, from a path or a name in `hub_configs`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    folder = shipped_config(name)
    if folder is not None:
        return folder
    raise ValueError(f"--config {name}: neither a folder with a config.json nor one of {', '.join(shipped_names())}.")


def load_config(name: str, **changes: Any) -> tuple[FerPllConfig, FerPllImageProcessor]:
    """The model's configuration and its image processor, from a path or a name in `hub_configs`.

    Args:
        name: the value of `--config`.
        changes: settings that override config.json; `None` keeps its value.

    Raises:
        ValueError: there is none, or its values do not fit each other.
    """
    folder = config_folder(name)
    config = load_model_config(folder, FerPllConfig)
    try:
        for key, value in changes.items():
            if value is not None:
                setattr(config, key, value)
        config.validate()
    except StrictDataclassError as error:
        given = ", ".join(f"{key}={value}" for key, value in changes.items() if value is not None)
        raise ValueError(f"{given}: {error.__cause__ or error}") from error
    return config, load_image_processor(folder, FerPllImageProcessor)


def check_output_folder(args: Any) -> None:
    """Turn `--resume_from_checkpoint last` or `auto` into a path, and refuse to mix two runs. Changes nothing on disk.

    The main process looks and decides for all: another one may be late, and find what the run has written already.

    Raises:
        ValueError: the folder holds files and neither `--overwrite` nor `--resume_from_checkpoint` was given, there is
            no checkpoint to resume from, `--overwrite` would delete something that is not a run, or the folder cannot
            be written to.
    """
    args.resume_from_checkpoint = decided_by_main(args, lambda: _find_start(args))


def _find_start(args: Any) -> str | None:
    """The checkpoint to resume from; `None` to start a run."""
    folder, wanted = Path(args.output_dir), args.resume_from_checkpoint
    check_writable(folder)
    if wanted in ("last", "auto"):
        found = last_checkpoint(folder)
        if found is not None:
            return found
        checkpoints = sorted(path.name for path in folder.glob("checkpoint-*")) if folder.is_dir() else []
        unfinished = {name for name in checkpoints if is_unfinished(folder / name)}
        if checkpoints and not (wanted == "auto" and unfinished == set(checkpoints)):
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: none of the checkpoints in {folder} is whole "
                f"({name_some(checkpoints)}). Start the run again with --overwrite, or in another folder."
            )
        if wanted == "last":
            raise ValueError(
                f"--resume_from_checkpoint last: there is no checkpoint in {folder} yet. Start the run again without "
                "it (and with --overwrite, if the folder holds files), or with --resume_from_checkpoint auto, which "
                "starts a run where there is none."
            )
    elif wanted is not None:
        return wanted
    held = {path.name for path in folder.iterdir()} - {LOCK} if folder.is_dir() else set()
    # What a run has written that ended before its first checkpoint was whole.
    begun = {RunFolder(folder).settings_file.name, RunFolder(folder).candidate_sets.name}
    begun |= {name for name in held if name.startswith(UNFINISHED)}
    half = {name for name in held if name.startswith("checkpoint-") and is_unfinished(folder / name)}
    if held <= begun or (wanted == "auto" and held <= begun | half):
        return None
    if not args.overwrite:
        raise ValueError(
            f"--output_dir {folder} already holds files. Choose another folder, continue the run with "
            "--resume_from_checkpoint last, or replace it with --overwrite."
        )
    if not RunFolder(folder).settings_file.is_file():
        raise ValueError(f"--overwrite: {folder} holds no run of fer-pll, so it is not emptied. Empty it yourself.")
    return None


@contextlib.contextmanager
def stopping_in_one_line(trainer: RunTrainer) -> Iterator[None]:
    """Context for a training: Ctrl-C ends it with a message that says how to go on, for `fer_pll_cli.status`."""
    try:
        yield
    except RunInterrupted:
        raise
    except KeyboardInterrupt:
        for callback in trainer.callback_handler.callbacks:
            if getattr(callback, "training_bar", None) is not None:
                callback.training_bar.close()  # else it is drawn again below the message
        folder, state = trainer.run_folder.path, trainer.state
        checkpoint = last_checkpoint(folder)
        how = (
            f"go on from {checkpoint} with --resume_from_checkpoint last"
            if checkpoint
            else f"{folder} has no checkpoint yet, so start again with --overwrite"
        )
        raise KeyboardInterrupt(f"stopped at step {state.global_step:,} of {state.max_steps:,}; {how}") from None


def start_run(args: Any, script: Any) -> None:
    """Lock the output folder for this run, empty it if `--overwrite` was given, and write down the run's settings.

    Call it after all checks, so that a mistake does not cost an earlier run.

    Raises:
        ValueError: another run writes to the folder.
    """
    decided_by_main(args, lambda: _lock(args))
    if not args.should_save:
        return
    folder = Path(args.output_dir)
    if args.overwrite and args.resume_from_checkpoint is None and folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    process = {"host": platform.node(), "pid": os.getpid()}
    settings = {"script": vars(script), "arguments": args.to_dict(), "process": process}
    write_json(RunFolder(folder).settings_file, settings)


def _lock(args: Any) -> None:
    """Hold a lock in the output folder until the process ends, however it ends."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Runs of one process that follow each other in a folder share the lock.
    lock = _locks.setdefault(folder.resolve(), FileLock(folder / LOCK, timeout=0))
    try:
        lock.acquire()
    except Timeout:
        file = RunFolder(folder).settings_file
        process = read_json(file).get("process", {}) if file.is_file() else {}
        who = f" (process {process.get('pid')} on {process.get('host')})" if process else ""
        raise ValueError(
            f"--output_dir {folder}: another run{who} writes to it. Choose another folder, or wait for its end."
        ) from None


_locks: dict[Path, FileLock] = {}
"""Locks of this process by folder. They end with it."""
