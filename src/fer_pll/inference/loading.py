"""Weights from safetensors files only: opening a pickle can run whatever its author put into it."""

from typing import Any, TypeVar

from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def load_weights(model_class: type[Model], checkpoint: str, **options: Any) -> Model:
    """`model_class.from_pretrained(checkpoint, **options)`, but never from a pickle.

    Args:
        model_class: a model class, or an Auto class of transformers.
        checkpoint: folder, or Hub name; a folder of that name goes first.
        options: of `from_pretrained`.

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
