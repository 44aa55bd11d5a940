"""benchmark.py robustness: its distortions against whole pixels and quarter turns, and a run on drawn faces."""

import json

import numpy as np
import pytest
from datasets import DatasetDict

from fer_pll.data.dataset import save_dataset
from tiny import make_dataset
from train_scripts.benchmarks.main import main
from train_scripts.benchmarks.robustness import DISTORTIONS, compress, distorted, move


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 255, (50, 50)).astype(np.float32)


def test_a_shift_moves_whole_pixels_and_repeats_the_border(image):
    right = move(image, shift=(0.06, 0))  # 3 of 50 pixels
    np.testing.assert_allclose(right[:, 3:], image[:, :-3], atol=1e-3)
    np.testing.assert_allclose(right[:, :3], np.repeat(image[:, :1], 3, axis=1), atol=1e-3)
    down = move(image, shift=(0, 0.06))
    np.testing.assert_allclose(down[3:], image[:-3], atol=1e-3)


def test_a_turn_is_counterclockwise_and_a_scale_above_one_enlarges(image):
    np.testing.assert_allclose(move(image, degrees=90), np.rot90(image), atol=1e-2)
    disk = (np.hypot(*(np.mgrid[:49, :49] - 24)) < 10).astype(np.float32)
    assert move(disk, scale=1.2).sum() == pytest.approx(1.44 * disk.sum(), rel=0.02)
    assert move(disk, scale=0.85).sum() == pytest.approx(0.7225 * disk.sum(), rel=0.02)


def test_every_distortion_keeps_shape_and_mode_and_changes_the_image(image):
    color = np.stack([image, image.T, 255 - image], axis=2)
    for array in (image, color):
        for distortion in DISTORTIONS.values():
            changed = distortion(array)
            assert changed.shape == array.shape
            assert np.abs(changed - array).max() > 1
    assert np.abs(compress(np.full((50, 50), 77.0), 50) - 77).max() <= 1


def test_the_benchmark_measures_each_distortion_of_the_bundled_checkpoint(tmp_path, capsys):
    save_dataset(DatasetDict(validation=make_dataset(12)), tmp_path / "data")
    main(["robustness", "--data", str(tmp_path / "data"), "--threads", "1", "--rows", "8"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(summary["ratios"]) == set(DISTORTIONS)
    assert set(summary["targets"].values()) == {-2.0}
    assert all(-100 <= gained <= 100 for gained in summary["ratios"].values())


def test_distorted_images_are_the_image_as_it_is_without_a_distortion(image):
    rows = {"image": [image]}
    assert distorted(rows, None) is rows
