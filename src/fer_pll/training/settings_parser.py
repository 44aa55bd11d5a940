"""The command line of a run: dataclasses of settings, with defaults from YAML files."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..io.shipped import BACKBONE_CONFIG
from .config import config_folder
from .method_options import add_method_options, method_setting_names, take_method_options

_OF_THE_TRAINER = """\
Every other setting of transformers' Trainer is an option as well, such as
--num_train_epochs, --per_device_train_batch_size, --learning_rate, --bf16,
--seed, --resume_from_checkpoint and --push_to_hub: --help-all lists them.
"""


class SettingsParser(HfArgumentParser):
    """Makes an option for every field of two dataclasses, and reads defaults from YAML files.

    `--help` shows our fields, `--help-all` also those of `transformers.TrainingArguments`.

    Args:
        argument_classes: the dataclass of the command's own options, with a field `config` and perhaps `settings`; and
            a subclass of `TrainingArguments`.
        yaml_name: the file with defaults in the configuration's folder, e.g. `"finetune.yaml"`. It may be missing if
            the folder has no other YAML file.
        options: as in `argparse.ArgumentParser`.
    """

    def __init__(self, argument_classes: tuple[type, type], yaml_name: str, **options: Any) -> None:
        # transformers' types let no dataclass through
        super().__init__(argument_classes, add_help=False, formatter_class=_Formatter, **options)  # type: ignore[arg-type]
        self.yaml_name = yaml_name
        for action in self._actions:
            if action.dest == "output_dir":
                action.required = True
        add_method_options(self)
        self.add_argument("-h", "--help", action="help", help="show this text and exit")
        self.add_argument("--help-all", action=_HelpAll, help="show the settings of transformers' Trainer as well")

    def format_usage(self) -> str:
        required, indent = "--data DATA --output_dir DIR [--config NAME]", " " * len(f"usage: {self.prog}")
        return f"usage: {self.prog} {required}\n{indent} [--SETTING VALUE ...]\n"

    def format_help(self, everything: bool = False) -> str:
        own, training = ({field.name for field in fields(of)} for of in self.dataclass_types)
        trainer = {field.name for field in fields(TrainingArguments)}
        sections = {
            "data and model": own,
            "training": training - trainer,
            "settings of one loss": set(method_setting_names()),
            "help": {"help", "help_all"},
        }
        if everything:
            sections["transformers' Trainer"] = trainer
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for title, names in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(
                action
                for action in self._actions
                if action.dest in names and not isinstance(action, argparse._StoreFalseAction)  # --no_flip
            )
            formatter.end_section()
        if not everything:
            formatter.add_text(_OF_THE_TRAINER)
        formatter.add_text(self.epilog)
        return f"{self.format_usage()}\n{formatter.format_help()}"

    def parse_settings(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse the command line. It overrides the file of `--settings`, which overrides the YAML file of `--config`.

        Args:
            argv: the command line; by default `sys.argv[1:]`.

        Returns:
            one instance of each class.

        Raises:
            ValueError: a key in a YAML file is not a setting, a setting has the wrong type or belongs to another loss,
                the config is unknown or for another command, or the file of `--settings` is missing or malformed.
        """
        options = vars(self.parse_known_args(argv)[0])
        if options.get("backbone") is not None:
            self.set_defaults(config=BACKBONE_CONFIG)
            options = vars(self.parse_known_args(argv)[0])
        path = config_folder(options["config"]) / self.yaml_name
        if not path.is_file() and any(path.parent.glob("*.yaml")):
            having = sorted(other.parent.name for other in path.parent.parent.glob(f"*/{self.yaml_name}"))
            raise ValueError(
                f"--config {options['config']} is not for {self.prog}: {path.parent} has no {self.yaml_name}"
                + (f". These have: {', '.join(having)}." if having else ".")
            )
        if path.is_file():
            self._take_defaults(path)
        if options.get("settings") is not None:
            if not Path(options["settings"]).is_file():
                raise ValueError(f"--settings {options['settings']}: there is no such file.")
            self._take_defaults(Path(options["settings"]))
        self._replace_other(name for name in _ONE_OF if options.get(name) is not None)
        return self.parse_dict(take_method_options(vars(self.parse_args(argv))))

    def _take_defaults(self, path: Path) -> None:
        settings = yaml.safe_load(path.read_text()) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"{path} holds no settings: it must have lines of the form `name: value`.")
        self._replace_other(settings)
        for key, value in settings.items():
            actions = [action for action in self._actions if action.dest == key]
            if not actions:
                raise ValueError(f"{path}: {key!r} is not a setting; see {self.prog} --help-all.")
            for action in actions:  # a switch that is on by default has two options: --flip and --no_flip
                action.required = False
                action.default = self._get_value(action, value) if isinstance(value, str) else value

    def _replace_other(self, given: Iterable[str]) -> None:
        """Take the default of a setting away where the other one for the same is given, see `_ONE_OF`."""
        replaced = {_ONE_OF[name] for name in given if name in _ONE_OF}
        for action in self._actions:
            if action.dest in replaced:
                action.default = None


# Two settings for the same: the one that is given in one place replaces the other in the places below it.
_ONE_OF = {"revision_warmup": "revision_warmup_epochs", "revision_warmup_epochs": "revision_warmup"}


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        assert isinstance(parser, SettingsParser)
        print(parser.format_help(everything=True), end="")
        parser.exit()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each option (hyphens work too), and leaves out the default None."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = "N" if action.type is int else "X" if action.type is float else "VALUE"
        return f"{action.option_strings[0]} {self._format_args(action, metavar)}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)
