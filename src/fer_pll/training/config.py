"""Settings from `hub_configs/<name>/*.yaml`, overridden on the command line; and the folder that a run writes to."""

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from ..io.atomic import write_json
from ..io.shipped import shipped, shipped_config
from ..model import FerPllConfig, FerPllImageProcessor
from .checkpoints import last_checkpoint
from .run_folder import RunFolder


def config_folder(name: str) -> Path:
    """Folder of a checkpoint's configuration: a path, or a name from `hub_configs`.

    Raises:
        ValueError: where there is none, with the names that exist.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    folder = shipped_config(name)
    if folder is not None:
        return folder
    known = ", ".join(sorted(path.parent.name for path in shipped("hub_configs").glob("*/config.json")))
    raise ValueError(f"--config {name}: neither a folder with a config.json nor one of {known}.")


def load_config(name: str, **changes: Any) -> tuple[FerPllConfig, FerPllImageProcessor]:
    """The model's configuration and its image processor, of a path or a name from `hub_configs`.

    Args:
        name: of `--config`.
        changes: other values for the configuration's settings; `None` leaves what is in config.json.

    Raises:
        ValueError: where there is none, or its values do not fit each other.
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


def parse_settings(
    argument_classes: tuple[type, ...], yaml_name: str, description: str, argv: list[str] | None = None
) -> tuple[Any, ...]:
    """Parse the command line over the YAML file of `--config` and, between them, that of `--settings`.

    Args:
        argument_classes: dataclasses; the first has a field `config` and may have a field `settings`.
        yaml_name: file in the configuration's folder that holds the defaults, e.g. `"finetune.yaml"`; may be missing
            where the folder has no other YAML file.
        description: for `--help`.
        argv: the command line; `sys.argv[1:]` where not given.

    Returns:
        one instance of each class.

    Raises:
        ValueError: for a key of a YAML file that is no setting, a setting of the wrong type, an unknown config or one
            for another script, or a file of `--settings` that is missing or holds something else.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(argument_classes, description=description)
    if "-h" in argv or "--help" in argv:
        parser.parse_args(argv)
    options = vars(parser.parse_known_args(argv)[0])
    path = config_folder(options["config"]) / yaml_name
    if not path.is_file() and any(path.parent.glob("*.yaml")):
        having = sorted(other.parent.name for other in path.parent.parent.glob(f"*/{yaml_name}"))
        raise ValueError(
            f"--config {options['config']} is not for this script: {path.parent} has no {yaml_name}"
            + (f". These have: {', '.join(having)}." if having else ".")
        )
    if path.is_file():
        _take_defaults(parser, path)
    if options.get("settings") is not None:
        if not Path(options["settings"]).is_file():
            raise ValueError(f"--settings {options['settings']}: there is no such file.")
        _take_defaults(parser, Path(options["settings"]))
    return parser.parse_args_into_dataclasses(argv)


def _take_defaults(parser: HfArgumentParser, path: Path) -> None:
    settings = yaml.safe_load(path.read_text()) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; they are lines of the form `name: value`.")
    for key, value in settings.items():
        actions = [action for action in parser._actions if action.dest == key]
        if not actions:
            raise ValueError(f"{path}: {key!r} is not a setting; see --help.")
        for action in actions:  # a switch that is on by default has two, --flip and --no_flip
            action.required = False
            action.default = parser._get_value(action, value) if isinstance(value, str) else value


def check_output_folder(args: Any) -> None:
    """Turn `--resume_from_checkpoint last` into a path, and refuse to mix two runs. Changes nothing on disk.

    Raises:
        ValueError: where the folder holds another run and neither `--overwrite` nor `--resume_from_checkpoint` was
            given, where there is no checkpoint to resume from, or where `--overwrite` would delete what is no run.
    """
    folder = Path(args.output_dir)
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


def start_run(args: Any, script: Any) -> None:
    """Empty the output folder where `--overwrite` says so, and write down what the run was started with.

    To be called once everything else is known to be right, so that a mistake costs no earlier run.
    """
    if not args.should_save:
        return
    folder = Path(args.output_dir)
    if args.overwrite and args.resume_from_checkpoint is None and folder.is_dir():
        shutil.rmtree(folder)
    write_json(RunFolder(folder).settings_file, {"script": vars(script), "arguments": args.to_dict()})
