"""The configurations in `hub_configs`, and checks of the output folder before a run."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..io.atomic import write_json
from ..io.shipped import shipped_config, shipped_names
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from .checkpoints import last_checkpoint
from .run_folder import RunFolder
from .run_trainer import RunTrainer


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
    try:
        config = FerPllConfig.from_pretrained(folder)
        for key, value in changes.items():
            if value is not None:
                setattr(config, key, value)
        config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'}: {error.__cause__}") from error
    return config, FerPllImageProcessor.from_pretrained(folder)


def check_output_folder(args: Any) -> None:
    """Turn `--resume_from_checkpoint last` into a path, and refuse to mix two runs. Leaves the disk as it was.

    Raises:
        ValueError: nothing can be written to the folder; it holds files and neither `--overwrite` nor
            `--resume_from_checkpoint` was given; there is no checkpoint to resume from; or `--overwrite` would delete
            something that is not a run.
    """
    folder = Path(args.output_dir)
    if args.should_save:
        _check_writable(folder)
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = last_checkpoint(folder)
        if args.resume_from_checkpoint is None:
            raise ValueError(
                f"--resume_from_checkpoint last: there is no checkpoint in {folder} yet. "
                "Start the run again without it (and with --overwrite, if the folder holds files)."
            )
    if args.resume_from_checkpoint is not None or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not args.overwrite:
        raise ValueError(
            f"--output_dir {folder} already holds files. Choose another folder, continue the run with "
            "--resume_from_checkpoint last, or replace it with --overwrite."
        )
    if not RunFolder(folder).settings_file.is_file():
        raise ValueError(f"--overwrite: {folder} holds no run of fer-pll, so it is not emptied. Empty it yourself.")


def _check_writable(folder: Path) -> None:
    """Raise `ValueError` unless a file can be written in a folder, which need not exist yet and then is not left."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--output_dir {folder}: nothing can be written there ({error.strerror or error}). Choose another folder."
        ) from error
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextlib.contextmanager
def stopping_in_one_line(trainer: RunTrainer) -> Iterator[None]:
    """Context for a training: Ctrl-C ends it with a message that says how to go on, for `fer_pll_cli.status`."""
    try:
        yield
    except KeyboardInterrupt:
        folder, state = trainer.run_folder.path, trainer.state
        checkpoint = last_checkpoint(folder)
        how = (
            f"go on from {checkpoint} with --resume_from_checkpoint last"
            if checkpoint
            else f"{folder} has no checkpoint yet, so start again with --overwrite"
        )
        raise KeyboardInterrupt(f"stopped at step {state.global_step:,} of {state.max_steps:,}; {how}") from None


def start_run(args: Any, script: Any) -> None:
    """Empty the output folder if `--overwrite` was given, and write down the settings of the run.

    Call it after all checks, so that a mistake does not cost an earlier run.
    """
    if not args.should_save:
        return
    folder = Path(args.output_dir)
    if args.overwrite and args.resume_from_checkpoint is None and folder.is_dir():
        shutil.rmtree(folder)
    write_json(RunFolder(folder).settings_file, {"script": vars(script), "arguments": args.to_dict()})
