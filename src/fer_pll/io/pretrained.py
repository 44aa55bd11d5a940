"""Loading what lies in a checkpoint: config, image processor, model. Nothing in it is run; damage is an error.

The commands load through these functions only. They never run Python files beside the weights and never ask whether
to, they open no pickle, and they fetch nothing for a folder of this machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..model.preprocessing import check_preprocessing
from .errors import DataError, name_some
from .names import ADAPTER_FILE, check_folder, find_checkpoint
from .stored import check_shape, describe, read_json, read_tensor_shapes, reading

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_ATTENTIONS = (None, "eager", "sdpa", "flex_attention")
_ADVICE = "save or download the checkpoint again, or correct the value"


def config_content(name: str | Path) -> dict[str, Any]:
    """What stands in a checkpoint's config.json.

    Args:
        name: see `find_checkpoint`.

    Raises:
        DataError: there is no such checkpoint, or its config.json is damaged.
    """
    from transformers import PreTrainedConfig  # not above: programs without torch import this package

    name = find_checkpoint(name)
    check_folder(name)
    with _of(name, CONFIG_FILE):
        content = _local(name, CONFIG_FILE)
        if content is None:
            content, _ = PreTrainedConfig.get_config_dict(str(name))
        check_shape(content, dict, _place(name, CONFIG_FILE), _ADVICE)
    return content


def load_model_config(name: str | Path, config_class: Any = None) -> Any:
    """The configuration of a checkpoint.

    Args:
        name: see `find_checkpoint`.
        config_class: class of the configuration; by default the one that its `model_type` names.

    Raises:
        DataError: there is no such checkpoint, its config.json is damaged, its values are impossible, or it asks for
            code that would have to be downloaded.
    """
    from transformers import AutoConfig  # not above: programs without torch import this package

    content, name = config_content(name), find_checkpoint(name)
    place = _place(name, CONFIG_FILE)
    with _of(name, CONFIG_FILE):
        _check_config(content, place)
        own = getattr(config_class, "model_type", "") or content.get("model_type")
        if content.get("model_type", own) != own:
            raise DataError(f"{place}: model_type is {content['model_type']!r} where {own!r} should be: {_ADVICE}")
        config = (config_class or AutoConfig).from_pretrained(str(name), trust_remote_code=False)
        _check_labels(config, place)
    return config


def load_image_processor(name: str | Path, processor_class: Any = None) -> Any:
    """The image processor of a checkpoint.

    Args:
        name: as in `load_model_config`.
        processor_class: its class; by default the one that the checkpoint names.

    Raises:
        DataError: as `load_model_config`, about preprocessor_config.json.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from transformers import AutoImageProcessor

    name = find_checkpoint(name)
    with _of(name, PROCESSOR_FILE):
        if (content := _local(name, PROCESSOR_FILE)) is not None:
            check_preprocessing(content)
        if processor_class is not None:
            return processor_class.from_pretrained(str(name))
        if content is None:  # without a network, AutoImageProcessor would try four times as long to tell
            with suppress(RemoteEntryNotFoundError):
                hf_hub_download(str(name), PROCESSOR_FILE)
        # The config names the class where preprocessor_config.json does not, and is read by transformers anyway.
        return AutoImageProcessor.from_pretrained(str(name), trust_remote_code=False)


def load_model(model_class: Any, name: str | Path, partly: bool = False, config: Any = None, **options: Any) -> Any:
    """A model with the weights of a checkpoint, from safetensors files only.

    Args:
        model_class: a model class, or an Auto class of transformers.
        name: as in `load_model_config`.
        partly: accept a checkpoint that lacks weights of the model, or has them in other shapes; they are random then.
        config: takes the place of the checkpoint's own.
        options: of `from_pretrained`.

    Returns:
        the model; with `partly`, the pair of the model and the names of its random weights.

    Raises:
        DataError: as `load_model_config`; the checkpoint has no safetensors file, one is damaged, or the weights
            are not those of the model.
    """
    name = find_checkpoint(name)
    own = getattr(model_class, "config_class", None)
    config = config or load_model_config(name, own)
    with _of(name, f"{CONFIG_FILE} and its weights"):
        if Path(name).is_dir():
            for file in weight_files(name):
                if file.endswith(".safetensors"):
                    read_tensor_shapes(Path(name) / file, _ADVICE)
        try:
            with quiet():
                model, info = model_class.from_pretrained(
                    str(name),
                    config=config,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    trust_remote_code=False,
                    **options,
                )
        except OSError as error:
            if WEIGHTS_FILE not in str(error):
                raise
            raise DataError(_no_weights(name)) from error
    check_finite(model, str(name))
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    random = sorted(info["missing_keys"] | mismatched)
    if partly:
        return model, random
    if random:
        found = "in another shape" if random[0] in mismatched else "not there"
        raise DataError(
            f"{name} is not a trained classifier: the weights {random[0]} of its {CONFIG_FILE} are {found}; "
            f"fine-tune it first, or {_ADVICE}"
        )
    return model


def check_finite(model: Any, name: str) -> None:
    """Check the weights of a model; `name` says whose they are.

    Raises:
        DataError: some are NaN or infinite; the message names them.
    """
    for key, weights in model.state_dict().items():
        if weights.is_floating_point() and not weights.float().isfinite().all():
            raise DataError(_not_finite(name, key))


def check_finite_weights(folder: str | Path) -> None:
    """Check the weights in a checkpoint's folder, one after the other.

    Raises:
        DataError: as `weight_files`; a file is damaged, or holds NaN or infinite numbers.
    """
    from safetensors import safe_open

    for name in weight_files(folder):
        if not name.endswith(".safetensors"):
            continue
        path = Path(folder) / name
        with reading(path, _ADVICE), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # no __iter__
                weights = file.get_tensor(key)
                if weights.is_floating_point() and not weights.float().isfinite().all():
                    raise DataError(_not_finite(path, key))


def _not_finite(name: str | Path, key: str) -> str:
    return f"{name}: the weights {key} hold NaN or infinite numbers: take an earlier checkpoint"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bar and its report of what it loads: errors say it in our terms."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def make_model(model_class: Any, config: Any) -> Any:
    """A model with random weights from a configuration that was loaded.

    Args:
        model_class: a model class or another function that makes a model from a configuration, or an Auto class.
        config: the configuration.

    Raises:
        DataError: no such model can be made; the message names config.json.
    """
    with _of(config.name_or_path or ".", CONFIG_FILE):
        if hasattr(model_class, "from_config"):  # an Auto class
            return model_class.from_config(config, trust_remote_code=False)
        return model_class(config)


def weight_files(folder: str | Path) -> list[str]:
    """Names of the files in a checkpoint's folder that hold its weights, and of their index where there is one.

    Raises:
        DataError: there are none, or adapters of other weights; the index is damaged, or it names anything but a
            safetensors file of this folder.
    """
    folder = Path(folder)
    if (folder / ADAPTER_FILE).is_file():  # transformers would load the weights that it names, from anywhere
        raise DataError(
            f"{folder} holds adapters ({ADAPTER_FILE}), which belong to other weights: name the run's folder, which "
            "holds the merged model, or merge them first with peft's merge_and_unload"
        )
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise DataError(_no_weights(folder))
    names = sorted(set(read_json(index, {"weight_map": {str: str}}, _ADVICE)["weight_map"].values()))
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name or ":" in name:
            raise DataError(f"{index} names {name!r}, which is no safetensors file of its folder: {_ADVICE}")
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}, which {INDEX_FILE} names: {_ADVICE}")
    if not names:
        raise DataError(f"{index} names no file: {_ADVICE}")
    return [INDEX_FILE, *names]


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a checkpoint's folder, from the headers of its files.

    Raises:
        DataError: as `weight_files`; a file is cut off or no safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        if file.endswith(".safetensors"):
            shapes |= read_tensor_shapes(Path(folder) / file, _ADVICE)
    return shapes


def share_weights(folder: str | Path) -> None:
    """Give the weights in a checkpoint's folder the permissions of its config.json, which follow the umask.

    safetensors makes files that nobody but their owner can read.
    """
    config = Path(folder) / CONFIG_FILE
    if config.is_file():  # a model that is not of transformers has none
        for file in Path(folder).glob("*.safetensors"):
            file.chmod(config.stat().st_mode)


def _no_weights(name: str | Path) -> str:
    return (
        f"{name} holds no weights in a safetensors file ({WEIGHTS_FILE}). Pickles (pytorch_model.bin) are not opened, "
        "because that can run code. If you trust where it comes from, convert it: load it with "
        "from_pretrained(..., use_safetensors=False) and save it with save_pretrained."
    )


def _place(name: str | Path, file: str) -> str:
    return str(Path(name) / file) if Path(name).is_dir() else f"{name} ({file})"


def _local(name: str | Path, file: str) -> dict[str, Any] | None:
    """A JSON file in a folder; `None` where `name` is no folder, or it has a file of another name for it."""
    path = Path(name) / file
    if path.is_file():
        return read_json(path, advice=_ADVICE)
    if Path(name).is_dir() and not (file == PROCESSOR_FILE and (Path(name) / "processor_config.json").is_file()):
        raise DataError(f"{name} has no {file}: name the folder of a checkpoint")
    return None


@contextmanager
def _of(name: str | Path, file: str) -> Iterator[None]:
    """Turns the exceptions of transformers, which are of any kind, into a `DataError` that names the place."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise DataError(f"{name}: there is no such folder, and as a name on the Hub: {error}") from error
        raise DataError(f"{_place(name, file)}: cannot be used ({describe(error)}): {_ADVICE}") from error


def _check_config(content: dict[str, Any], place: str) -> None:
    """Raise `DataError` if classes or architectures are no text, or if code would be fetched for the attention."""
    for key in ("architectures", "id2label"):
        if content.get(key) is not None:
            check_shape(content[key], [str] if key == "architectures" else {str: str}, f"{place}: {key}", _ADVICE)
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for key, each in value.items():
                if key in ("attn_implementation", "_attn_implementation") and each not in _ATTENTIONS:
                    raise DataError(
                        f"{place}: {key} is {each!r}, which can be code from the Hub: remove it; fer-pll chooses the "
                        "attention itself"
                    )


def _check_labels(config: Any, place: str) -> None:
    """Raise `DataError` if the classes are not numbered from 0 without a gap."""
    labels = getattr(config, "id2label", None)
    if labels is not None and set(labels) != set(range(len(labels))):
        found = name_some([str(key) for key in labels])
        raise DataError(
            f"{place}: id2label has the numbers {found}; they must be 0, 1, 2, ... without a gap: {_ADVICE}"
        )
