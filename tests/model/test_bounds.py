"""Sizes in the JSON of a checkpoint are bounded before anything of such a size is made."""

import resource
import time

import numpy as np
import pytest
from PIL import Image

from fer_pll import FaceCrop, FerPllConfig, FerPllImageProcessor
from fer_pll.model.configuration_fer_pll import LARGEST
from fer_pll.model.face_alignment import align_face
from fer_pll.model.face_detection import Face, find_faces
from fer_pll.model.preprocessing import MAX_SIDE, check_preprocessing

TEMPLATE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
CROP = FaceCrop("test", TEMPLATE, 48, "rgb")


def quickly(function, *args, **options) -> str:
    """The message of the error, which comes before time and memory are spent."""
    memory, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(Exception) as raised:  # of huggingface_hub, or ours
        function(*args, **options)
    assert time.process_time() - begin < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB
    return str(raised.value)


@pytest.mark.parametrize("name", [*LARGEST, "num_labels"])
@pytest.mark.parametrize("factor", [2, 2**20, 2**40])
def test_each_size_of_a_config(name, factor):
    value = LARGEST.get(name, 10_000) * factor
    assert f"{name}={value} is too large" in quickly(FerPllConfig, **{name: value})


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"id2label": {str(k): str(k) for k in range(10_001)}}, "id2label=10001"),
        ({"hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 64}, "num_hidden_layers=64"),
        (
            {
                "hidden_size": 8192,
                "intermediate_size": 32768,
                "num_hidden_layers": 1,
                "query_decoder_num_hidden_layers": 64,
            },
            "query_decoder_num",
        ),
        ({"decoder_hidden_size": 8192, "decoder_num_hidden_layers": 128}, "decoder_num_hidden_layers=128"),
        ({"image_size": 2048, "patch_size": 4, "hog_cell_size": 4}, "262144 patches"),
    ],
)
def test_sizes_together(sizes, name):
    assert name in quickly(FerPllConfig, **sizes)


def test_the_largest_models_of_the_literature_are_possible():
    FerPllConfig(hidden_size=1664, num_hidden_layers=48, num_attention_heads=16, intermediate_size=8192)  # ViT-G
    FerPllConfig(image_size=1024, patch_size=16, num_labels=1000)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"size": {"height": MAX_SIDE + 1, "width": 16}}, "size"),
        ({"size": {"height": 40_000, "width": 40_000}}, "size"),
        ({"size": {"shortest_edge": 2**31}}, "size"),
        ({"crop_size": {"height": 40_000, "width": 40_000}}, "crop_size"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"image_std": [0.0, 0.0, 0.0]}, "image_std"),
        ({"image_mean": [float("inf")] * 3}, "image_mean"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"num_channels": 2}, "num_channels"),
        ({"face_crop": {"name": "x", "template": TEMPLATE, "size": 20_000, "color": "rgb", "margin": 0}}, "size"),
    ],
)
def test_settings_of_an_image_processor(settings, name):
    assert name in quickly(FerPllImageProcessor, **settings)


def test_other_peoples_image_processors():
    check_preprocessing({"size": {"shortest_edge": 224}, "crop_size": 224, "image_std": [0.2, 0.2, 0.2]})
    assert "side=40000" in quickly(check_preprocessing, {"size": 40_000}, "x: ")


@pytest.mark.parametrize("far", [3e3, 3e4, 3e6, 1e12, 1e100])
def test_landmarks_of_another_image_take_no_memory(far):
    """Of coordinates up to 30,000, 107 GiB were asked for."""
    image = Image.new("RGB", (200, 200), "gray")
    landmarks = np.array(TEMPLATE) * far
    if far < 1e4:
        assert align_face(image, landmarks, CROP).size == (48, 48)
        return
    assert "landmarks lie far outside" in quickly(align_face, image, landmarks, CROP)


@pytest.mark.parametrize("landmarks", [np.full((5, 2), np.nan), np.zeros((5, 2)), np.array(TEMPLATE) * 1e9])
def test_a_detection_without_a_face_is_left_out(landmarks):
    face = Face(np.array([0, 0, 9, 9]), 0.9, np.array(TEMPLATE) * 60)

    def detector(image: np.ndarray) -> list[Face]:
        return [Face(np.zeros(4), 0.9, landmarks), face] if image.shape == (64, 64, 3) else []

    (found,) = find_faces(Image.new("RGB", (64, 64)), detector)
    assert found.score == 0.9 and np.array_equal(found.landmarks, face.landmarks)


def test_a_very_large_face_is_reduced_first_and_looks_the_same():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    large = small.resize((6000, 6000), Image.Resampling.BICUBIC)
    landmarks = np.array(TEMPLATE) * 5000 + 400
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    crop = np.asarray(align_face(large, landmarks, CROP)).astype(int)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 4 * 6000 * 6000 * 3 // 1024
    reference = np.asarray(align_face(large.reduce(4), landmarks / 4, CROP)).astype(int)
    assert np.abs(crop - reference).mean() < 1.5 and np.abs(crop - reference).max() < 25
