"""The command line of a run: dataclasses of settings, with defaults from YAML files."""

import argparse
import copy
import reprlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..io.shipped import BACKBONE_CONFIG, DEFAULT_CONFIG, shipped_config
from .config import config_folder
from .method_options import add_method_options, method_setting_names, take_method_options

_OF_THE_TRAINER = """\
Every other setting of transformers' Trainer is an option as well, such as
--num_train_epochs, --per_device_train_batch_size, --learning_rate, --bf16,
--seed, --resume_from_checkpoint and --push_to_hub: --help-all lists them.
"""
_BY_CONFIG = "by the config"
_SET_BY_CONFIG = f"Defaults by the config are those of {DEFAULT_CONFIG}. Of the Trainer's settings, it sets {{}}."


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    string_to_bool: "true or false",
    str: "a text",
    dict: "a mapping {name: value}",
    list: "a list [a, b]",
}
_UNIONS = (Union, UnionType)
_ERRORS = (ValueError, TypeError, ImportError, OSError, LookupError, AttributeError, RuntimeError)


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
        self._hints = {name: hint for of in argument_classes for name, hint in get_type_hints(of).items()}
        self._files: dict[str, tuple[Path, Any]] = {}  # where the setting of that name was read, and what
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
        shipped = self._shipped_defaults()
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for title, names in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(
                _with_default(action, shipped)
                for action in self._actions
                if action.dest in names and not isinstance(action, argparse._StoreFalseAction)  # --no_flip
            )
            formatter.end_section()
        if not everything:
            formatter.add_text(_OF_THE_TRAINER)
            settings = ", ".join(f"--{name} {_shown(shipped[name])}" for name in shipped if name in trainer - own)
            if settings:
                text = _SET_BY_CONFIG.format(settings)
                formatter.add_text(textwrap.fill(text, 80, break_on_hyphens=False))
        formatter.add_text(self.epilog)
        return f"{self.format_usage()}\n{formatter.format_help()}"

    def _shipped_defaults(self) -> dict[str, Any]:
        """The settings of `DEFAULT_CONFIG` for this command."""
        folder = shipped_config(DEFAULT_CONFIG)
        path = folder / self.yaml_name if folder is not None else None
        return read_settings(path) if path is not None and path.is_file() else {}

    def parse_settings(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse the command line. It overrides the file of `--settings`, which overrides the YAML file of `--config`.

        Args:
            argv: the command line; by default `sys.argv[1:]`.

        Returns:
            one instance of each class.

        Raises:
            ValueError: a key in a YAML file is not a setting, a setting has the wrong type or belongs to another loss,
                the config is unknown or for another command, the file of `--settings` is missing or malformed, or a
                package is missing that a setting needs. The message names the file and the setting.
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
        return self._make(vars(self.parse_args(argv)))

    def _replace_other(self, given: Iterable[str]) -> None:
        """Take the default of a setting away where the other one for the same is given, see `_ONE_OF`."""
        replaced = {_ONE_OF[name] for name in given if name in _ONE_OF}
        for action in self._actions:
            if action.dest in replaced:
                action.default = None

    def _take_defaults(self, path: Path) -> None:
        settings = read_settings(path)
        self._replace_other(settings)
        for key, value in settings.items():
            actions = [action for action in self._actions if action.dest == key]
            if not actions:
                raise ValueError(f"{path}: {key!r} is not a setting; see {self.prog} --help-all.")
            checked = self._checked(path, actions[0], value)
            for action in actions:  # a switch that is on by default has two options: --flip and --no_flip
                action.required = False
                action.default = checked
            self._files[key] = path, checked

    def _checked(self, path: Path, action: argparse.Action, value: Any) -> Any:
        """A value of a YAML file as the setting of an option has it: the text `1e-3` becomes a number."""
        hint = self._hints.get(action.dest, action.type)
        kinds = {get_origin(each) or each for each in (get_args(hint) if get_origin(hint) in _UNIONS else (hint,))}
        try:
            if isinstance(value, list) and action.nargs in ("*", "+"):
                return [self._converted(action, each) for each in value]
            if type(value) in kinds and not isinstance(value, str):
                return value
            return self._converted(action, value)
        except (argparse.ArgumentError, argparse.ArgumentTypeError, ValueError, TypeError) as error:
            if action.choices is not None:
                choices = ", ".join(map(str, action.choices))
                raise ValueError(f"{path}: {action.dest}={reprlib.repr(value)}: choose one of {choices}.") from error
            needed = [_KINDS[kind] for kind in (action.type, dict, list) if kind in kinds | {action.type} & {*_KINDS}]
            needed_kinds = " or ".join(needed) or "another kind of value"
            raise ValueError(
                f"{path}: {action.dest}: {reprlib.repr(value)} is given where {needed_kinds} is needed."
            ) from error

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        """A single value by way of its text, as on the command line."""
        if value is None or isinstance(value, (dict, list)):
            raise ValueError("not a single value")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        converted = self._get_value(action, text)
        self._check_value(action, converted)
        return converted

    def _make(self, options: dict[str, Any]) -> tuple[Any, ...]:
        """The instances of the classes. An error about a setting of a YAML file names the file and the setting.

        The command line is at fault where it overrides the file.
        """

        def make(given: Mapping[str, Any]) -> tuple[Any, ...]:
            return self.parse_dict(take_method_options(dict(given)))

        try:
            return make(options)
        except _ERRORS as error:
            message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            for key, (path, value) in self._files.items():
                given = options.get(key)
                if given is not value and given != value:  # NaN is not equal to itself
                    continue
                try:  # the setting at fault is the one without which there is no error
                    make({name: value for name, value in options.items() if name != key})
                except _ERRORS:
                    continue
                raise ValueError(f"{path}: {key}: {message}") from error
            raise ValueError(message) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ValueError: the file cannot be read, is no YAML, holds anything but lines of the form `name: value`, or has a
            name twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply for a file of settings.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} is no YAML file of settings ({' '.join(str(error).split())}): correct it."
        ) from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path} holds no settings: it must have lines of the form `name: value`.")
    names = [key.value for key, _ in node.value]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has {twice!r} twice: delete one of the two lines.")
    return settings


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_default(action: argparse.Action, shipped: Mapping[str, Any]) -> argparse.Action:
    """The option as help shows it: what the default configuration sets is what a run has, not the option's default."""
    if action.dest not in shipped or shipped[action.dest] == action.default or action.help is None:
        return action
    shown, action = _shown(shipped[action.dest]).replace("%", "%%"), copy.copy(action)
    other = "" if action.default is None else ", else %(default)s"
    action.help = f"{action.help} (default: {shown} {_BY_CONFIG}{other})"
    return action


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
        if action.help is not None and _BY_CONFIG in action.help:
            return action.help
        return action.help if action.default is None else super()._get_help_string(action)
