import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.image_processing_backends import PilBackend

from fer_pll import FerPllForImageClassification, FerPllImageProcessor
from fer_pll.io.images import open_image

MEAN, STD = [0.4, 0.5, 0.6], [0.25, 0.3, 0.2]


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def processor(request) -> FerPllImageProcessor:
    channels = request.param
    return FerPllImageProcessor(
        num_channels=channels, size={"height": 16, "width": 12}, image_mean=MEAN[:channels], image_std=STD[:channels]
    )


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random 8-bit values, smooth enough for resizing to matter."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, shape[-1]), dtype=np.uint8)
    channels = [np.asarray(Image.fromarray(coarse[..., c]).resize((shape[1], shape[0]))) for c in range(shape[-1])]
    return np.stack(channels, axis=-1)


def reference(image: Image.Image, processor: FerPllImageProcessor) -> np.ndarray:
    """What should come out, (C, 16, 12): Pillow's conversion and resizing, then the normalization by hand."""
    image = image.convert("L" if processor.num_channels == 1 else "RGB").resize((12, 16), Image.Resampling.BILINEAR)
    values = np.asarray(image, dtype=np.float64).reshape(16, 12, -1) / 255
    return ((values - np.array(processor.image_mean)) / np.array(processor.image_std)).transpose(2, 0, 1)


def palette_image() -> Image.Image:
    return Image.fromarray(pixels(30, 20, 3)).quantize(16)


GRAY, RGB, RGBA = pixels(30, 20, 1)[..., 0], pixels(30, 20, 3), pixels(30, 20, 4)


@pytest.mark.parametrize(
    ("given", "image"),
    [
        (Image.fromarray(GRAY), Image.fromarray(GRAY)),
        (Image.fromarray(RGB), Image.fromarray(RGB)),
        (Image.fromarray(RGBA), Image.fromarray(RGBA)),
        (Image.fromarray(RGBA[..., :2]), Image.fromarray(RGBA[..., :2])),
        (Image.fromarray(GRAY > 127), Image.fromarray(GRAY > 127)),
        (palette_image(), palette_image()),
        (GRAY, Image.fromarray(GRAY)),
        (GRAY[None], Image.fromarray(GRAY)),
        (GRAY[..., None], Image.fromarray(GRAY)),
        (RGB, Image.fromarray(RGB)),
        (RGB.transpose(2, 0, 1), Image.fromarray(RGB)),
        (RGBA, Image.fromarray(RGBA)),
        (torch.from_numpy(GRAY), Image.fromarray(GRAY)),
        (torch.from_numpy(RGB).permute(2, 0, 1), Image.fromarray(RGB)),
        (torch.from_numpy(RGB), Image.fromarray(RGB)),
    ],
    ids=[
        "PIL L",
        "PIL RGB",
        "PIL RGBA",
        "PIL LA",
        "PIL 1",
        "PIL P",
        "array (H, W)",
        "array (1, H, W)",
        "array (H, W, 1)",
        "array (H, W, 3)",
        "array (3, H, W)",
        "array (H, W, 4)",
        "tensor (H, W)",
        "tensor (3, H, W)",
        "tensor (H, W, 3)",
    ],
)
def test_equals_pillow_and_normalization_by_hand(processor, given, image):
    pixel_values = processor(given, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, processor.num_channels, 16, 12) and pixel_values.dtype == torch.float32
    np.testing.assert_allclose(pixel_values[0].numpy(), reference(image, processor), atol=1e-6)


def test_batch_of_images_of_all_kinds_and_sizes(processor):
    small, large = Image.fromarray(pixels(9, 7, 3)), Image.fromarray(pixels(60, 80, 1)[..., 0])
    pixel_values = processor([small, large, GRAY, RGB], return_tensors="pt").pixel_values
    expected = [reference(p, processor) for p in (small, large, Image.fromarray(GRAY), Image.fromarray(RGB))]
    np.testing.assert_allclose(pixel_values.numpy(), expected, atol=1e-6)


def test_batch_as_one_array(processor):
    batch = np.stack([pixels(30, 20, 3, seed=seed) for seed in range(3)])
    pixel_values = processor(batch, return_tensors="pt").pixel_values
    expected = [reference(Image.fromarray(image), processor) for image in batch]
    np.testing.assert_allclose(pixel_values.numpy(), expected, atol=1e-6)


def test_a_path_is_opened(processor, tmp_path):
    image = Image.fromarray(RGB)
    image.save(tmp_path / "face.png")
    pixel_values = processor(str(tmp_path / "face.png"), return_tensors="pt").pixel_values
    np.testing.assert_allclose(pixel_values[0].numpy(), reference(image, processor), atol=1e-6)


@pytest.mark.parametrize("side", [(12, 16), (20, 30)], ids=["of the final size", "of another"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "YCbCr"])
def test_without_rescaling_the_resized_8_bit_pixels(processor, mode, side):
    image = Image.fromarray(RGB).convert(mode).resize(side)
    pixel_values = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    assert pixel_values.dtype == torch.uint8
    converted = image.convert("L" if processor.num_channels == 1 else "RGB").resize((12, 16), 2)
    expected = np.asarray(converted).reshape(16, 12, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixel_values[0].numpy(), expected)


@pytest.mark.parametrize("settings", [{"do_resize": False}, {"size": {"shortest_edge": 8}}])
def test_settings_of_the_resizing_hold_for_gray_images_too(settings):
    processor = FerPllImageProcessor(num_channels=3, size={"height": 16, "width": 12})
    gray, color = (
        processor(image, do_rescale=False, do_normalize=False, **settings).pixel_values[0]
        for image in (Image.fromarray(GRAY), Image.fromarray(GRAY).convert("RGB"))
    )
    np.testing.assert_array_equal(gray, color)
    assert gray.shape[1:] == {"do_resize": (30, 20), "size": (12, 8)}[next(iter(settings))]


def test_floats_of_the_final_size_go_through_8_bits_as_in_transformers(processor):
    floats = np.random.default_rng(0).random((processor.num_channels, 16, 12)).astype(np.float32)
    pixel_values = processor(floats, do_rescale=False, do_normalize=False).pixel_values[0]
    np.testing.assert_array_equal(pixel_values, PilBackend.resize(processor, floats, processor.size))
    assert not np.array_equal(pixel_values, floats)


def test_floats_of_another_number_of_channels_are_refused():
    """Floats may mean 0..1 or 0..255: converting them would be a guess."""
    with pytest.raises(ValueError, match=r"3 channel\(s\) and type float32 cannot be converted to L"):
        FerPllImageProcessor(num_channels=1)(np.random.rand(3, 20, 20).astype(np.float32))


WIDE = np.random.default_rng(0).integers(0, 65536, (30, 20)).astype(np.uint16)


@pytest.mark.parametrize(
    "given", [WIDE, torch.from_numpy(WIDE), "I;16", "I;16B"], ids=["array", "tensor", "PIL", "PIL B"]
)
def test_16_bits_are_scaled_to_8_as_our_readers_do(processor, given):
    if isinstance(given, str):
        given = Image.frombytes(given, (20, 30), WIDE.astype(">u2" if given == "I;16B" else "<u2").tobytes())
    image = Image.fromarray(np.round(WIDE / 257).astype(np.uint8))
    np.testing.assert_allclose(processor(given).pixel_values[0], reference(image, processor), atol=1e-6)
    read = open_image(Image.fromarray(WIDE))
    np.testing.assert_allclose(processor(given).pixel_values, processor(read).pixel_values, atol=1e-6)


def test_whole_numbers_of_more_bits_within_0_to_255_are_read_as_they_are(processor):
    for given in (GRAY.astype(np.int32), Image.fromarray(GRAY.astype(np.int32))):
        pixel_values = processor(given).pixel_values[0]
        np.testing.assert_allclose(pixel_values, reference(Image.fromarray(GRAY), processor), atol=1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_outside_of_0_to_255_are_refused(processor, kind):
    values = WIDE.astype(kind)
    for given in [Image.fromarray(values), *([values] if kind is np.int32 else [])]:
        with pytest.raises(ValueError, match=r"values from .* to 65.*: give 0 to 255, or 16 bits"):
            processor(given)


def test_an_image_of_fractions_is_treated_as_the_array_of_them():
    processor = FerPllImageProcessor(num_channels=1, size={"height": 16, "width": 12})
    for values in (GRAY / np.float32(255), GRAY.astype(np.float32)):
        np.testing.assert_array_equal(processor(Image.fromarray(values)).pixel_values, processor(values).pixel_values)


def test_number_of_channels_is_checked():
    with pytest.raises(ValueError, match="num_channels=2"):
        FerPllImageProcessor(num_channels=2)


def test_defaults():
    for channels in (1, 3):
        processor = FerPllImageProcessor(num_channels=channels)
        assert list(processor.image_mean) == list(processor.image_std) == [0.5] * channels
        assert processor(RGB, return_tensors="pt").pixel_values.shape == (1, channels, 224, 224)


def test_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "FerPllImageProcessor"
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_fer_pll.FerPllImageProcessor"}
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FerPllImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(loaded(RGB, return_tensors="pt").pixel_values, processor(RGB, return_tensors="pt").pixel_values)


def test_image_classification_pipeline(toy_config, toy_processor, tmp_path):
    torch.manual_seed(0)
    model = FerPllForImageClassification(toy_config).eval()
    model.save_pretrained(tmp_path / "model")
    toy_processor.save_pretrained(tmp_path / "model")
    classify = pipeline("image-classification", model=str(tmp_path / "model"))

    image = Image.fromarray(RGB)
    image.save(tmp_path / "face.png")
    with torch.no_grad():
        logits = model(**toy_processor(image, return_tensors="pt")).logits[0]
    expected = {toy_config.id2label[k]: p for k, p in enumerate(logits.softmax(dim=0).tolist())}
    for given in (image, str(tmp_path / "face.png"), Image.fromarray(np.asarray(image))):
        answers = classify(given, top_k=None)
        assert sum(answer["score"] for answer in answers) == pytest.approx(1)
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-6)
