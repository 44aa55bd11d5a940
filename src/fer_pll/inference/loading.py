"""Loading models from safetensors files only: opening a pickle can run any code that its author put there."""

from typing import Any, Literal, TypeVar, cast, overload

from transformers import PreTrainedConfig, PreTrainedModel

from ..io.shipped import DEFAULT_CHECKPOINT
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification

Model = TypeVar("Model", bound=PreTrainedModel)


@overload
def load_weights(
    model_class: type[Model], checkpoint: str, *, output_loading_info: Literal[False] = ..., **options: Any
) -> Model: ...


@overload
def load_weights(model_class: type, checkpoint: str, **options: Any) -> Any: ...


def load_weights(model_class: Any, checkpoint: str, **options: Any) -> Any:
    """Call `model_class.from_pretrained(checkpoint, **options)`, but never open a pickle.

    Args:
        model_class: a model class, or an Auto class of transformers.
        checkpoint: folder or Hub name; where both exist, the folder.
        options: see `from_pretrained`.

    Raises:
        ValueError: the checkpoint has no safetensors file.
        OSError: it cannot be found or read.
    """
    try:
        return model_class.from_pretrained(checkpoint, use_safetensors=True, **options)
    except OSError as error:
        if "model.safetensors" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} holds no weights in a safetensors file (model.safetensors). Pickles (pytorch_model.bin) "
            "are not opened, because that can run code. If you trust where it comes from, convert it: load it with "
            "from_pretrained(..., use_safetensors=False) and save it with save_pretrained."
        ) from error


def class_names(config: PreTrainedConfig) -> list[str]:
    """Names of a classifier's K classes, in the order of its logits."""
    names = cast(dict[int, str], config.id2label)  # the config turns the keys that JSON made text into numbers
    return [names[k] for k in range(len(names))]


def load_default() -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
    """The classifier that comes with the package, ready to predict, and its image processor.

    fer-pll-tiny-ferplus tells the eight expressions of FER+ apart, logits (B, 8), on faces cropped as its card
    describes. It is read from the package's own files: no network, no download.
    """
    model = FerPllForImageClassification.from_pretrained(DEFAULT_CHECKPOINT)
    return model.eval(), FerPllImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)
