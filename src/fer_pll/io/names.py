"""What a model's name means: the same in every command and from Python."""

import os
from difflib import get_close_matches
from pathlib import Path

from .errors import DataError
from .shipped import CHECKPOINTS, shipped_config, shipped_names

ONNX_FILE = "model.onnx"
"""The model in a folder that `fer-pll export` wrote."""

ADAPTER_FILE = "adapter_config.json"
"""The settings of adapters, as peft names them."""


def find_checkpoint(name: str | os.PathLike, configs: bool = False) -> str:
    """The folder or Hub name of a model.

    In this order: a folder, a name in the package (`CHECKPOINTS`), a name on the Hub (`OWNER/NAME`). A name that can
    only be a path is not looked up on the Hub: one without or with several slashes, that begins with `.`, `/` or `~`,
    has a backslash, or lies in a folder that is there.

    Args:
        name: what the user wrote.
        configs: names in `hub_configs` count as well, before the Hub's.

    Raises:
        DataError: there is no such folder, and it is no name on the Hub; or the Hub is switched off
            (HF_HUB_OFFLINE) and has left nothing of that name in its cache.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise DataError(f"{text} is a file: name the folder of the model")
    if text in CHECKPOINTS:
        return CHECKPOINTS[text]
    if configs and (folder := shipped_config(text)) is not None:
        return str(folder)
    known = f"nor one of {', '.join(shipped_names() if configs else CHECKPOINTS)}, which the package has"
    owner, _, model = text.partition("/")
    if not model and "\\" not in text and not text.startswith(("/", ".", "~")):
        raise DataError(
            f"{text}: there is no such folder here{_similar(path)}; no name on the Hub (OWNER/NAME) either, {known}"
        )
    if not owner or "/" in model or "\\" in text or text.startswith((".", "~")) or path.parent.is_dir():
        raise DataError(f"{text}: there is no such folder{_similar(path)}")
    _check_hub_name(text)
    return text


def is_onnx_folder(folder: str | os.PathLike) -> bool:
    """Whether `fer-pll export` wrote this folder, and no checkpoint is in it."""
    return Path(folder, ONNX_FILE).is_file() and not any(Path(folder).glob("*.safetensors*"))


def check_folder(folder: str | os.PathLike) -> None:
    """Check that a folder is that of a model for torch; what is no folder (a name on the Hub) is passed over.

    Raises:
        DataError: it holds an exported model, or no model at all.
    """
    path = Path(folder)
    if not path.is_dir():
        return
    if is_onnx_folder(path):
        raise DataError(
            f"{folder} holds an exported model ({ONNX_FILE}), which torch does not run: `fer-pll predict` takes it; "
            "for everything else name the checkpoint that it was exported from"
        )
    if not (path / "config.json").is_file():
        inside = sorted((entry.parent for entry in path.glob("*/config.json")), key=lambda each: each.stat().st_mtime)
        hint = f"name a folder in it, such as {inside[-1]}" if inside else "name the folder of a checkpoint"
        raise DataError(f"{folder} has no config.json, so it is no checkpoint: {hint}")


def _similar(path: Path) -> str:
    """The name in the same folder that is most like it, as a question; nothing where there is none."""
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    found = get_close_matches(path.name, there, 1)
    return f"; did you mean {path.with_name(found[0])}?" if found else ""


def _check_hub_name(name: str) -> None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise DataError(f"{name}: there is no such folder, and it cannot be a name on the Hub ({error})") from error
    if constants.HF_HUB_OFFLINE and not any(
        isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "preprocessor_config.json")
    ):
        raise DataError(
            f"{name}: there is no such folder, and the Hub is switched off (HF_HUB_OFFLINE) with nothing of that name "
            "in its cache"
        )
