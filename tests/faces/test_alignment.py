"""One similarity transform, exactly; and what a crop shows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from fer_pll import FerPllImageProcessor
from fer_pll.faces.crops import load_crop
from fer_pll.model.face_alignment import FaceCrop, align_face, similarity_transform

TEMPLATE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
CROP = FaceCrop("test", TEMPLATE, 48, "rgb")
coordinates = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


def moved(points: np.ndarray, angle: float, scale: float, offset) -> np.ndarray:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return points @ np.array([[cosine, -sine], [sine, cosine]]).T + offset


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@given(
    points=st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=9),
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(0.01, 100),
    offset=st.tuples(coordinates, coordinates),
)
def test_a_similarity_is_recovered_exactly(points, angle, scale, offset):
    points = np.array(points)
    if np.ptp(points, axis=0).max() < 0.1:
        return
    matrix = similarity_transform(points, moved(points, angle, scale, offset))
    expected = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(matrix[:, :2], expected, atol=1e-7 * max(scale, 1) + 1e-8 * scale)
    np.testing.assert_allclose(apply(matrix, points), moved(points, angle, scale, offset), atol=1e-6 * max(scale, 1))


@given(st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=3, max_size=9))
def test_it_is_the_least_squares_solution(rows):
    """Against the general linear least squares in (a, b, x, y), which knows nothing of complex numbers."""
    points, template = np.array(rows)[:, :2], np.array(rows)[:, 2:]
    if np.ptp(points, axis=0).max() < 1 or np.ptp(template, axis=0).max() < 1:
        return
    x, y = points.T
    one, none = np.ones_like(x), np.zeros_like(x)
    equations = np.concatenate([np.stack([x, -y, one, none], axis=1), np.stack([y, x, none, one], axis=1)])
    a, b, c, d = np.linalg.lstsq(equations, template.T.ravel(), rcond=None)[0]
    if np.hypot(a, b) < 1e-6:
        return
    np.testing.assert_allclose(similarity_transform(points, template), [[a, -b, c], [b, a, d]], atol=1e-5, rtol=1e-6)


def test_skimage_agrees():
    from skimage.transform import SimilarityTransform

    rng = np.random.default_rng(0)
    points, template = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    expected = SimilarityTransform.from_estimate(points, template).params[:2]
    np.testing.assert_allclose(similarity_transform(points, template), expected, atol=1e-12)


def test_a_reflection_is_not_taken():
    points = np.array(TEMPLATE)
    matrix = similarity_transform(points, points * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    ("points", "template", "message"),
    [
        (np.zeros((5, 2)), np.array(TEMPLATE), "all in one place"),
        (np.array(TEMPLATE), np.zeros((5, 2)), "all in one place"),
        (np.zeros((4, 2)), np.zeros((5, 2)), r"\(4, 2\) and template \(5, 2\)"),
        (np.zeros((1, 2)), np.zeros((1, 2)), "N >= 2"),
        (np.zeros((5, 3)), np.zeros((5, 3)), r"\(N, 2\)"),
        (np.full((5, 2), np.nan), np.array(TEMPLATE), "finite"),
    ],
)
def test_points_that_fix_no_similarity_are_refused(points, template, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(points, template)


def pattern(side: int) -> Image.Image:
    """Smooth colors whose value at any place is known: see `color_at`."""
    x, y = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side)
    return Image.fromarray(np.rint(color_at(np.stack([x, y], axis=-1))).astype(np.uint8))


def color_at(place: np.ndarray) -> np.ndarray:
    """Of shares of the image (..., 2): red rises to the right, green downwards, blue is a slow wave."""
    x, y = place[..., 0], place[..., 1]
    return np.stack([20 + 200 * x, 20 + 200 * y, 127 + 100 * np.sin(3 * x) * np.cos(2 * y)], axis=-1)


@pytest.mark.parametrize("side", [30, 100, 177, 480, 1500])
@pytest.mark.parametrize("degrees", [0, 15, -40, 90, 180])
def test_every_pixel_of_the_crop_comes_from_its_place(side, degrees):
    """Enlarged, reduced and rotated: within a gray level or two, and so within a few hundredths of a pixel."""
    landmarks = moved(np.array(TEMPLATE) - 0.5, np.deg2rad(degrees), 0.4 * side, side / 2)
    crop = np.asarray(align_face(pattern(side), landmarks, CROP)).astype(float)
    centers = (np.stack(np.meshgrid(np.arange(48), np.arange(48)), axis=-1) + 0.5) / 48 - 0.5
    place = moved(centers.reshape(-1, 2), np.deg2rad(degrees), 0.4 * side, side / 2).reshape(48, 48, 2)
    assert np.abs(crop - color_at(place / side)).max() < 2.5
    bias = crop.mean(axis=(0, 1)) - color_at(place / side).mean(axis=(0, 1))
    assert np.abs(bias).max() < 0.8  # Pillow cuts off where it could round: 0.5


def test_the_template_itself_comes_back_unchanged():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    np.testing.assert_array_equal(np.asarray(align_face(image, CROP.landmarks, CROP)), np.asarray(image))


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_a_fine_pattern_is_averaged_not_sampled(factor):
    """Stripes of one pixel, reduced: bilinear sampling alone would give black or white, or waves."""
    stripes = np.zeros((48 * factor, 48 * factor, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    crop = np.asarray(align_face(Image.fromarray(stripes), CROP.landmarks * factor, CROP))
    inner = crop[2:-2, 2:-2].astype(float)
    assert np.abs(inner - 127.5).max() <= (1 if factor % 2 == 0 else 255 / factor / 2 + 1)


def test_what_lies_outside_the_photograph_is_its_edge():
    image = Image.new("RGB", (48, 48), (10, 20, 30))
    crop = np.asarray(align_face(image, CROP.landmarks + 30, CROP))
    np.testing.assert_array_equal(crop, np.broadcast_to([10, 20, 30], (48, 48, 3)))
    far = np.asarray(align_face(image, CROP.landmarks + 1000, CROP))
    np.testing.assert_array_equal(far, np.broadcast_to([10, 20, 30], (48, 48, 3)))


def test_color_becomes_gray_where_the_crop_is():
    gray = FaceCrop("test", TEMPLATE, 48, "gray")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    crop = align_face(image, gray.landmarks, gray)
    assert crop.mode == "L"
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(image.convert("L")))


def test_a_margin_shows_more_on_each_side():
    wide = FaceCrop("test", TEMPLATE, 96, "rgb", margin=0.5)
    np.testing.assert_allclose(wide.landmarks, CROP.landmarks + 24)
    image = pattern(480)
    landmarks = CROP.landmarks * 3 + 150
    inner = align_face(image, landmarks, wide).crop((24, 24, 72, 72))
    np.testing.assert_allclose(np.asarray(inner), np.asarray(align_face(image, landmarks, CROP)), atol=1)


CONTRACT = {
    "name": "test",
    "template": [list(point) for point in TEMPLATE],
    "size": 48,
    "color": "rgb",
    "margin": 0.0,
}


def test_the_contract_travels_with_the_image_processor(tmp_path):
    processor = FerPllImageProcessor(num_channels=1, face_crop=CONTRACT)
    assert FaceCrop.from_image_processor(processor) == CROP
    processor.save_pretrained(tmp_path)
    for loaded in (FerPllImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert loaded.face_crop == CONTRACT
    assert load_crop(str(tmp_path)) == CROP


@pytest.mark.parametrize(("before", "now"), [("grey", "gray"), ("rgb", "rgb")])
def test_a_contract_of_earlier_versions_is_read_and_written_anew(before, now, tmp_path):
    earlier = {name: value for name, value in CONTRACT.items() if name != "color"} | {"colour": before}
    FerPllImageProcessor(num_channels=1, face_crop=CONTRACT).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"face_crop": earlier}))
    assert load_crop(str(tmp_path)) == FaceCrop("test", TEMPLATE, 48, now)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.face_crop == {**CONTRACT, "color": now}
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())["face_crop"] == loaded.face_crop
    with pytest.raises(ValueError, match="choose 'gray' or 'rgb'"):
        FerPllImageProcessor(num_channels=1, face_crop={**earlier, "colour": "blue"})
    with pytest.raises(ValueError, match=r"it has: .*color"):
        FerPllImageProcessor(num_channels=1, face_crop={**earlier, "color": now})


def test_a_checkpoint_without_the_contract_still_loads_and_says_what_is_missing(tmp_path):
    FerPllImageProcessor(num_channels=1).save_pretrained(tmp_path)
    assert "face_crop" not in (tmp_path / "preprocessor_config.json").read_text()
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.face_crop is None
    with pytest.raises(ValueError, match=f"{tmp_path} does not say how its faces are cropped.*--crop"):
        load_crop(str(tmp_path))


def test_the_shipped_configurations_have_the_crop_of_ferplus():
    tiny, base = (load_crop(f"fer-pll-{name}-ferplus") for name in ("tiny", "vit-base"))
    assert tiny == base
    assert (tiny.name, tiny.size, tiny.color) == ("FER+", 48, "gray")
    # Measured with another detector setting when the data were first looked at; the spread is 3 to 4 pixels.
    first = [(15.6, 18.4), (32.8, 18.4), (24.2, 28.7), (17.2, 37.0), (31.1, 36.8)]
    np.testing.assert_allclose(tiny.landmarks, first, atol=1)


def test_a_name_that_nothing_has_is_refused_with_those_that_exist(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"fer-pll-tiny-ferpuls: there is no such folder.*fer-pll-tiny-ferplus"):
        load_crop("fer-pll-tiny-ferpuls")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"face_crop\['name'\]=''"),
        ({"template": CONTRACT["template"][:4]}, r"face_crop\['template'\]"),
        ({"template": [[0.5, 0.5]] * 5}, "five different"),
        ({"template": [*CONTRACT["template"][:4], [0.5, 36.0]]}, "between 0 and 1"),
        ({"template": [*CONTRACT["template"][:4], [0.5, float("nan")]]}, "between 0 and 1"),
        ({"size": 0}, r"face_crop\['size'\]=0"),
        ({"size": 48.0}, r"face_crop\['size'\]=48.0"),
        ({"color": "grey"}, "choose 'gray' or 'rgb'"),
        ({"margin": -0.1}, r"face_crop\['margin'\]=-0.1"),
        ({"margins": 0}, "it has: .*margins"),
    ],
)
def test_a_contract_that_describes_no_crop_is_refused_by_key(change, message):
    with pytest.raises(ValueError, match=message):
        FerPllImageProcessor(num_channels=1, face_crop={**CONTRACT, **change})


@pytest.mark.parametrize("given", [{}, {"name": "x"}, "FER+", [1]])
def test_a_contract_of_another_shape_is_refused(given):
    with pytest.raises(ValueError, match="face_crop must have exactly the keys"):
        FerPllImageProcessor(num_channels=1, face_crop=given)
