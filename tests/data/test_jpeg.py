import io

import numpy as np
import pytest
import torch
from PIL import Image

from fer_pll.data.jpeg import jpeg_compressed


def by_pillow(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(C, H, W) after a file in JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        file, "jpeg", quality=quality, subsampling=0
    )
    found = np.asarray(Image.open(file))
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def faces_and_noise(channels: int, height: int, width: int) -> np.ndarray:
    """(2, C, H, W): a photograph and noise."""
    from skimage.data import astronaut

    photo = astronaut()[20 : 20 + 4 * height : 4, 160 : 160 + 4 * width : 4, :channels]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return np.stack([photo, noise]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [(48, 48), (33, 41)])
@pytest.mark.parametrize("quality", [5, 30, 50, 75, 95, 100])
def test_it_is_what_pillow_makes_of_a_file(channels, side, quality):
    images = faces_and_noise(channels, *side)
    ours = jpeg_compressed(torch.from_numpy(images), torch.tensor([quality] * 2)).numpy()
    theirs = np.stack([by_pillow(image, quality) for image in images]).astype(np.float32)
    assert ours.shape == theirs.shape and np.array_equal(ours, ours.round())
    difference, change = np.abs(ours - theirs), np.abs(theirs - images.astype(np.float32))
    # libjpeg transforms with whole numbers, so that a few coefficients fall on the other side of a rounding.
    assert difference.mean() < (0.1 if channels == 1 else 0.2) * change.mean() + 0.3 and (difference == 0).mean() > 0.5


def test_each_image_has_its_own_quality():
    images = torch.from_numpy(faces_and_noise(1, 48, 48))
    both = jpeg_compressed(images, torch.tensor([20, 90]))
    assert torch.equal(both[:1], jpeg_compressed(images[:1], torch.tensor([20])))
    assert torch.equal(both[1:], jpeg_compressed(images[1:], torch.tensor([90])))


def test_it_is_exact_under_autocast():
    images, quality = torch.from_numpy(faces_and_noise(3, 48, 48)), torch.tensor([50, 80])
    with torch.autocast("cpu", torch.bfloat16):
        found = jpeg_compressed(images, quality)
    assert found.dtype == torch.float32 and torch.equal(found, jpeg_compressed(images, quality))
