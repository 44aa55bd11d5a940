"""The classifier that comes with the package, and devices. See `io.pretrained` for loading others."""

from typing import Any

import torch

from ..io.errors import DataError
from ..io.pretrained import load_image_processor, load_model
from ..io.shipped import DEFAULT_CHECKPOINT
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification


def load_default() -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
    """The classifier that comes with the package, ready to predict, and its image processor.

    fer-pll-tiny-ferplus tells the eight expressions of FER+ apart, logits (B, 8), on faces cropped as its card
    describes. It is read from the package's own files: no network, no download.
    """
    model = load_model(FerPllForImageClassification, DEFAULT_CHECKPOINT)
    return model.eval(), load_image_processor(DEFAULT_CHECKPOINT, FerPllImageProcessor)


def check_device(device: Any) -> None:
    """Check that this machine has a device; None and numbers are left to torch.

    Raises:
        DataError: it has no such device.
    """
    if not isinstance(device, (str, torch.device)):
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"device {device}: torch cannot use it here ({reason}): leave it out, or say cpu") from error
