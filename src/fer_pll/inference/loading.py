"""The classifiers that come with the package, and devices. See `io.pretrained` for loading others."""

from typing import Any

import torch

from ..io.errors import DataError
from ..io.pretrained import load_image_processor, load_model
from ..io.shipped import CHECKPOINTS, DEFAULT_NAME
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification


def load_default(name: str = DEFAULT_NAME) -> tuple[FerPllForImageClassification, FerPllImageProcessor]:
    """A classifier that comes with the package, ready to predict, and its image processor.

    It tells the eight expressions of FER+ apart, logits (B, 8), on faces cropped as its card describes. It is read
    from the package's own files: no network, no download.

    Args:
        name: fer-pll-tiny-ferplus, the best, or fer-pll-tiny-vit-ferplus, whose ViT encoder was pre-trained on HOG.

    Raises:
        DataError: the package has none of that name.
    """
    if name not in CHECKPOINTS:
        raise DataError(f"{name}: the package has {' and '.join(CHECKPOINTS)}")
    model = load_model(FerPllForImageClassification, CHECKPOINTS[name])
    return model.eval(), load_image_processor(CHECKPOINTS[name], FerPllImageProcessor)


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
