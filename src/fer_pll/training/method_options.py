"""Command-line options for the settings of single methods: one for each field of a `Method.Settings`."""

from argparse import SUPPRESS
from dataclasses import fields
from functools import partial
from typing import Any

from transformers import HfArgumentParser

from ..labels.renamed import current_name
from .methods import METHODS, revision_names


def method_setting_names() -> list[str]:
    """Names of the settings of all methods in `METHODS`, each once."""
    return list(dict.fromkeys(each.name for method in METHODS.values() for each in fields(method.Settings)))


def add_method_options(parser: HfArgumentParser) -> None:
    """Add the options of all registered methods and rules to a parser of `FerPllTrainingArguments`.

    The methods' own settings have no default value, see `take_method_options`. `--loss` and `--revision` get their
    choices, and accept the names of the version before. A parser of other dataclasses does not change.

    Raises:
        ValueError: a method's setting has the name of another option.
    """
    actions = {action.dest: action for action in parser._actions}
    if "method_settings" not in actions:
        return
    for name, choices in (("loss", list(METHODS)), ("revision", revision_names())):
        actions[name].choices, actions[name].type = choices, partial(current_name, name)
        actions[name].metavar = "NAME"  # the help has them all
    having: dict[str, list[str]] = {}
    for method in METHODS.values():
        for each in fields(method.Settings):
            having.setdefault(each.name, []).append(method.name)
    taken = having.keys() & actions.keys()
    if taken:
        name = min(taken)
        raise ValueError(
            f"the setting {name!r} of loss={having[name][0]!r} has the name of another option: rename it."
        )
    group = parser.add_argument_group("settings of one loss")
    for method in METHODS.values():
        for action in HfArgumentParser(method.Settings, add_help=False)._actions:  # type: ignore[arg-type]  # its own type, too narrow
            if having[action.dest][0] != method.name:
                continue  # an earlier method has one of the same name
            action.help = f"{action.help} (loss {', '.join(having[action.dest])}; default: {action.default})"
            action.default = SUPPRESS
            group._add_action(action)


def take_method_options(options: dict[str, Any]) -> dict[str, Any]:
    """Parsed options, with those of the methods' own settings that were given moved into `method_settings`."""
    if "method_settings" not in options:
        return options
    own = {name: options[name] for name in method_setting_names() if name in options}
    others = {name: value for name, value in options.items() if name not in own}
    return others | {"method_settings": options["method_settings"] | own}
