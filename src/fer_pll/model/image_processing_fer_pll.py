"""Image processor of the fer-pll models."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .face_crop import check_face_crop
from .preprocessing import check_preprocessing, scale_16_bits


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers as uint8: of 16 bits scaled, 65535 becoming 255; others as they are. Fractions stay what they are.

    Raises:
        ValueError: other numbers lie outside of 0..255.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return scale_16_bits(values)
    if values.dtype.kind not in "iu":
        return values
    check_8_bits(values)
    return values.astype(np.uint8)


def check_8_bits(values: np.ndarray) -> None:
    """Raise `ValueError` for values that 8 bits do not hold."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN is refused too
        raise ValueError(
            f"The image has values from {low:g} to {high:g}, whose scale is unknown: give 0 to 255, or 16 bits, "
            "which are uint16 or Pillow's modes I;16."
        )


class FerPllImageProcessorKwargs(ImagesKwargs, total=False):
    num_channels: int | None


class FerPllImageProcessor(PilBackend):
    """Turns any image into normalized `pixel_values` (B, C, H, W).

    Color images become gray for a model of one channel (ITU-R 601-2 luma), gray images RGB for a model of three.
    16-bit values are scaled to 8 bits; other whole numbers, and images of mode F, must lie in 0..255.
    Pillow always does the resizing, also if torchvision is installed, so a checkpoint gives the same logits on every
    machine. `do_rescale=False, do_normalize=False` gives the resized 8-bit pixels.

    Args:
        num_channels: 1 or 3, as the model's `config.num_channels`.
        image_mean, image_std: one value per channel, of pixels scaled to 0..1; default to 0.5.
        face_crop: how the training images show faces, in the form of `check_face_crop`, so that a detected face can
            be cropped in the same way; None if that is unknown. It travels with the checkpoint and changes nothing
            here: this class gets images that are cropped already.
        size, resample, ...: as in transformers' image processors.

    Raises:
        ValueError: a size, mean, deviation or number of channels is impossible (see `check_preprocessing`), or
            `face_crop` does not describe a crop.
    """

    valid_kwargs = FerPllImageProcessorKwargs

    num_channels = 3
    resample = PILImageResampling.BILINEAR
    size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    face_crop = None

    def __init__(self, face_crop: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.face_crop = None if face_crop is None else check_face_crop(face_crop)
        check_preprocessing({key: getattr(self, key, None) for key in self.valid_kwargs.__annotations__})
        self.image_mean = self.image_mean or (0.5,) * self.num_channels
        self.image_std = self.image_std or (0.5,) * self.num_channels

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths and URLs. An array of a gray image (H, W), which transformers refuses, becomes (1, H, W)."""
        images = super().fetch_images(image_url_or_urls)
        return images[None] if not isinstance(images, (list, Image.Image)) and images.ndim == 2 else images

    # transformers hands over all but the image by name.
    def process_image(  # type: ignore[override]
        self, image: ImageInput, num_channels: int, **kwargs: Any
    ) -> np.ndarray:
        """One image (PIL, NumPy or tensor; gray, color or with alpha) to an array (num_channels, H, W).

        8-bit images already have their final size if `size` has height and width.
        """
        mode = "L" if num_channels == 1 else "RGB"
        kwargs["do_convert_rgb"] = False
        if isinstance(image, Image.Image) and image.mode[0] in "IF":  # Pillow would cut their values off at 255
            image = np.asarray(image)
            if image.dtype.kind == "f":
                check_8_bits(image)
        if not isinstance(image, Image.Image):
            image = to_8_bits(super().process_image(image, **kwargs))
            if image.shape[0] == num_channels:
                return image
            if image.dtype != np.uint8:
                raise ValueError(
                    f"An image of {image.shape[0]} channel(s) and type {image.dtype} cannot be converted to {mode}: "
                    "pass 8-bit values, or the model's number of channels."
                )
            image = Image.fromarray(image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1))
        if image.mode != "L":
            image = image.convert(mode)
        size = kwargs["size"]
        if kwargs["do_resize"] and size.height and size.width and isinstance(kwargs["resample"], int):
            image = image.resize((size.width, size.height), kwargs["resample"])
        pixels = super().process_image(image, **kwargs)
        # Gray for a model of three channels: resized once, not in each of three equal channels.
        return np.repeat(pixels, num_channels, axis=0) if image.mode == "L" else pixels

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        if image.dtype == np.uint8 and image.shape[1:] == (size.height, size.width):
            return image
        return super().resize(image, size, *args, **kwargs)


FerPllImageProcessor.register_for_auto_class()

__all__ = ["FerPllImageProcessor"]
