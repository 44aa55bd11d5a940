"""The face crops of checkpoints, by name."""

from pathlib import Path

from ..io.errors import DataError
from ..io.names import find_checkpoint
from ..io.pretrained import load_image_processor
from ..io.stored import read_json
from ..model.face_alignment import FaceCrop


def load_crop(model: str) -> FaceCrop:
    """How the training images of a checkpoint show a face.

    Args:
        model: a folder or Hub name with a preprocessor_config.json, or a name in hub_configs.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or does not say how its faces are cropped.
    """
    folder = Path(find_checkpoint(model, configs=True))
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return FaceCrop.from_dict(read_json(file).get("face_crop"), str(model))
    if folder.is_dir():
        raise DataError(f"{model} has no {file.name}, which says how its faces are cropped: name a checkpoint")
    return FaceCrop.from_image_processor(load_image_processor(model), str(model))
