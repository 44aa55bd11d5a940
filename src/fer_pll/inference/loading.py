"""Loading models: from safetensors files only, because opening a pickle can run any code, and trained ones only."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ..io.names import find_checkpoint
from ..io.shipped import DEFAULT_CHECKPOINT
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification
from ..model.preprocessing import check_preprocessing
from .onnx_runtime import is_onnx_folder

Model = TypeVar("Model", bound=PreTrainedModel)


@overload
def load_weights(
    model_class: type[Model], checkpoint: str, *, output_loading_info: Literal[False] = ..., **options: Any
) -> Model: ...


@overload
def load_weights(model_class: type, checkpoint: str, **options: Any) -> Any: ...


def load_weights(model_class: Any, checkpoint: str, **options: Any) -> Any:
    """Call `model_class.from_pretrained(checkpoint, **options)`, but never open a pickle, and show nothing.

    Args:
        model_class: a model class, or an Auto class of transformers.
        checkpoint: a name for `find_checkpoint`.
        options: see `from_pretrained`.

    Raises:
        ValueError: there is no such checkpoint, its weights are in no safetensors file, or do not fit its config.json.
        OSError: it cannot be read.
    """
    folder = find_checkpoint(checkpoint)
    check_folder(folder)
    try:
        with quiet():
            return model_class.from_pretrained(folder, use_safetensors=True, **options)
    except SafetensorError as error:
        raise ValueError(
            f"{checkpoint}: its safetensors file is damaged, perhaps cut off ({error}): get it again"
        ) from error
    except (RuntimeError, StrictDataclassError) as error:  # sizes
        raise ValueError(f"{checkpoint}: weights and config.json do not fit each other: {error}") from error
    except OSError as error:
        if "model.safetensors" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} holds no weights in a safetensors file (model.safetensors). Pickles (pytorch_model.bin) "
            "are not opened, because that can run code. If you trust where it comes from, convert it: load it with "
            "from_pretrained(..., use_safetensors=False) and save it with save_pretrained."
        ) from error


def check_folder(folder: str) -> None:
    """Raise `ValueError` if this is a folder, but none of a model that torch can run; the message says of what."""
    path = Path(folder)
    if not path.is_dir():
        return  # a name on the Hub
    if is_onnx_folder(path):
        raise ValueError(
            f"{folder} holds an exported model (model.onnx), which torch does not run: `fer-pll predict` takes it; "
            "for everything else name the checkpoint that it was exported from"
        )
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        inside = sorted(entry.parent.name for entry in path.glob("*/config.json"))
        hint = f": name a folder in it, such as {path / inside[-1]}" if inside else ": name the folder of a checkpoint"
        raise ValueError(f"{folder} is no checkpoint, it has no config.json{hint}")


def load_classifier(checkpoint: str | os.PathLike, model_class: Any = AutoModelForImageClassification, **options: Any) -> Any:
    """A trained classifier, ready to predict: every way to an answer goes through here.

    Args:
        checkpoint: a name for `find_checkpoint`.
        model_class: a class of classifiers.
        options: see `from_pretrained`.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: as `load_weights`; or weights are missing, as in a checkpoint of pre-training; or some are NaN or
            infinite.
        OSError: it cannot be read.
    """
    model = load_untrained(os.fspath(checkpoint), model_class, **{"trust_remote_code": False} | options)
    check_trained(model, model.missing_weights, os.fspath(checkpoint))
    return model.eval()


def load_untrained(checkpoint: str, model_class: Any = AutoModelForImageClassification, **options: Any) -> Any:
    """As `load_classifier`, but weights may be missing: the model has their names as `missing_weights`."""
    model, report = load_weights(model_class, checkpoint, output_loading_info=True, **options)
    model.missing_weights = sorted(report["missing_keys"])
    return model


def check_trained(model: PreTrainedModel, missing: Sequence[str], name: str) -> None:
    """Raise `ValueError` if a classifier has weights that no file gave, or that are no finite numbers."""
    if missing:
        raise ValueError(
            f"{name} is not a trained classifier: it has no weights {missing[0]}; fine-tune it first"
        )
    check_finite(model, name)


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise `ValueError` if a model has weights that are no finite numbers; `name` says whose they are."""
    for key, weights in model.state_dict().items():
        if weights.is_floating_point() and not torch.isfinite(weights).all():
            raise ValueError(f"{name}: the weights {key} hold NaN or infinite numbers: take an earlier checkpoint")


def load_image_processor(checkpoint: str | os.PathLike) -> BaseImageProcessor:
    """The image processor of a checkpoint.

    Args:
        checkpoint: a name for `find_checkpoint`.

    Raises:
        ValueError: there is no such checkpoint, or its preprocessor_config.json has an impossible value.
        OSError: it cannot be read.
    """
    folder = find_checkpoint(checkpoint)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(processor, FerPllImageProcessor):  # ours has checked itself
        check_preprocessing(vars(processor), f"{checkpoint}: preprocessor_config.json: ")
    return processor


def check_device(device: Any) -> None:
    """Raise `ValueError` if this machine has no such device; None and numbers are left to torch."""
    if not isinstance(device, (str, torch.device)):
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device}: torch cannot use it here ({reason}): leave it out, or say cpu") from error


def class_names(config: PreTrainedConfig) -> list[str]:
    """Names of a classifier's K classes, in the order of its logits."""
    names = cast(dict[int, str], config.id2label)  # the config turns the keys that JSON made text into numbers
    return [names[k] for k in range(len(names))]


def load_default() -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
    """The classifier that comes with the package, ready to predict, and its image processor.

    fer-pll-tiny-ferplus tells the eight expressions of FER+ apart, logits (B, 8), on faces cropped as its card
    describes. It is read from the package's own files: no network, no download.
    """
    model = load_classifier(DEFAULT_CHECKPOINT, FerPllForImageClassification)
    return model, FerPllImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bar and the report of what transformers loads: errors say it in our terms."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
