"""Image processor of the fer-pll models."""

import math
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs


def check_face_crop(face_crop: Any) -> None:
    """Raise `ValueError` where `face_crop` is no description of a crop; the message names the key at fault.

    Args:
        face_crop: `name` (text), `template` (five (x, y) in shares of the crop's side: left and right eye, nose, left
            and right corner of the mouth, as seen in the picture), `size` (pixels), `colour` ("grey" or "rgb") and
            `margin` (share of the side that is added on each side).
    """

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    keys = ("name", "template", "size", "colour", "margin")
    if not isinstance(face_crop, dict) or set(face_crop) != set(keys):
        given = ", ".join(map(str, face_crop)) if isinstance(face_crop, dict) else repr(face_crop)
        raise ValueError(f"face_crop must have exactly the keys {', '.join(keys)}; it has: {given or 'none'}.")
    name, template, size, colour, margin = (face_crop[key] for key in keys)
    if not (isinstance(name, str) and name):
        raise ValueError(f"face_crop['name']={name!r}: say whose crop it is, e.g. 'FER+'.")
    if not (
        isinstance(template, (list, tuple))
        and len(template) == 5
        and all(isinstance(p, (list, tuple)) and len(p) == 2 and all(map(is_number, p)) for p in template)
        and all(0 <= value <= 1 for point in template for value in point)
        and len({tuple(point) for point in template}) == 5
    ):
        raise ValueError(
            f"face_crop['template']={template!r}: give five different (x, y) between 0 and 1, in shares of the side."
        )
    if not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        raise ValueError(f"face_crop['size']={size!r}: give the side of the crop in whole pixels.")
    if colour not in ("grey", "rgb"):
        raise ValueError(f"face_crop['colour']={colour!r}: choose 'grey' or 'rgb'.")
    if not (is_number(margin) and 0 <= margin <= 4):
        raise ValueError(f"face_crop['margin']={margin!r}: give a share of the side between 0 and 4.")


class FerPllImageProcessorKwargs(ImagesKwargs, total=False):
    num_channels: int | None


class FerPllImageProcessor(PilBackend):
    """Any picture to normalised `pixel_values` (B, C, H, W).

    Colour pictures become grey for a model of one channel (ITU-R 601-2 luma), grey ones RGB for a model of three.
    Resizing is always Pillow's, also where torchvision is installed, so that a checkpoint gives the same logits on
    every machine. `do_rescale=False, do_normalize=False` gives the resized 8-bit pixels.

    Args:
        num_channels: 1 or 3, as the model's `config.num_channels`.
        image_mean, image_std: one value per channel, of pixels scaled to 0..1; default to 0.5.
        face_crop: how the pictures of the training show their faces, as `check_face_crop` says, so that a detected
            face can be cropped likewise; None where that is not known. It travels with the checkpoint, and changes
            nothing here: this class gets pictures that are cropped already.
        size, resample, ...: as in transformers' image processors.

    Raises:
        ValueError: for another number of channels, or a `face_crop` that describes none.
    """

    valid_kwargs = FerPllImageProcessorKwargs
    model_input_names = ["pixel_values"]

    num_channels = 3
    resample = PILImageResampling.BILINEAR
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    face_crop = None

    def __init__(self, face_crop: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if face_crop is not None:
            check_face_crop(face_crop)
        self.face_crop = face_crop
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels}: pictures have 1 (grey) or 3 (RGB) channels.")
        self.image_mean = self.image_mean or (0.5,) * self.num_channels
        self.image_std = self.image_std or (0.5,) * self.num_channels

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Paths and URLs to pictures, and arrays of a grey picture (H, W) to (1, H, W), which transformers refuses."""
        images = super().fetch_images(image_url_or_urls)
        return images[None] if not isinstance(images, (list, Image.Image)) and images.ndim == 2 else images

    def process_image(self, image: ImageInput, num_channels: int, **kwargs: Any) -> np.ndarray:
        """One picture (PIL, NumPy or tensor; grey, colour or with alpha) to an array (num_channels, H, W).

        8-bit pictures have their final size already, where `size` has height and width.
        """
        mode = "L" if num_channels == 1 else "RGB"
        kwargs["do_convert_rgb"] = False
        if not isinstance(image, Image.Image):
            image = super().process_image(image, **kwargs)
            if image.shape[0] == num_channels:
                return image
            if image.dtype != np.uint8:
                raise ValueError(
                    f"A picture of {image.shape[0]} channel(s) and type {image.dtype} cannot be converted to {mode}: "
                    "pass 8-bit values, or the model's number of channels."
                )
            image = Image.fromarray(image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1))
        if image.mode != "L":
            image = image.convert(mode)
        size = kwargs["size"]
        if kwargs["do_resize"] and size.height and size.width and isinstance(kwargs["resample"], int):
            image = image.resize((size.width, size.height), kwargs["resample"])
        pixels = super().process_image(image, **kwargs)
        # Grey for a model of three channels: resized once, not in each of three equal channels.
        return np.repeat(pixels, num_channels, axis=0) if image.mode == "L" else pixels

    def resize(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        if image.dtype == np.uint8 and image.shape[1:] == (size.height, size.width):
            return image
        return super().resize(image, size, **kwargs)


FerPllImageProcessor.register_for_auto_class()

__all__ = ["FerPllImageProcessor", "check_face_crop"]
