import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_pll.data.augmentation import BatchAugmentation, keyed_uniform, sampling_grid
from fer_pll.data.collator import PixelCollator
from fer_pll.data.jpeg import jpeg_compressed
from tiny import make_dataset


def random_pixels(batch: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_keyed_uniform_is_uniform_and_uncorrelated():
    draws = keyed_uniform(seed=3, epoch=1, index=np.arange(20_000), count=4)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        assert np.abs(np.histogram(column, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    neighbors = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03 and abs(neighbors) < 0.03


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 2**40), st.integers(0, 2**40))
def test_keyed_uniform_depends_on_nothing_but_its_key(seed, epoch, row, other):
    alone = keyed_uniform(seed, epoch, np.array([row]), 3)
    in_batch = keyed_uniform(seed, epoch, np.array([other, row]), 3)
    assert np.array_equal(alone[0], in_batch[1])
    assert not np.array_equal(alone, keyed_uniform(seed, epoch + 1, np.array([row]), 3))
    assert not np.array_equal(alone, keyed_uniform(seed + 1, epoch, np.array([row]), 3))


def test_sampling_grid_is_that_of_torch():
    affine = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(affine, [3, 1, 7, 10], align_corners=False)
    assert (sampling_grid(affine, 7, 10) - expected).abs().max() < 1e-6


def test_switched_off_it_changes_nothing():
    pixels = random_pixels()
    out = BatchAugmentation(flip=False)(pixels, torch.arange(6), epoch=0)
    assert out.dtype == torch.float32 and torch.equal(out, pixels.float())


def test_flip_mirrors_about_half_of_the_images_exactly():
    pixels = random_pixels(200)
    out = BatchAugmentation(flip=True)(pixels, torch.arange(200), epoch=0)
    mirrored = (out == pixels.flip(-1)).flatten(1).all(dim=1)
    kept = (out == pixels).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all() and 70 < mirrored.sum() < 130


def test_a_row_is_augmented_alike_in_every_batch_and_otherwise_in_another_epoch():
    augment = BatchAugmentation(seed=5, crop_scale=0.5, crop_ratio=1.3, rotation=15, light=0.3, jpeg=0.5, erase=0.5)
    pixels, index = random_pixels(), torch.tensor([9, 4, 7, 1, 0, 3])
    whole = augment(pixels, index, epoch=2)
    parts = torch.cat([augment(pixels[i : i + 2], index[i : i + 2], epoch=2) for i in (0, 2, 4)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, augment(pixels, index, epoch=3))


def test_views_of_a_image_differ_and_the_first_is_the_image_of_a_training_with_one():
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augmentation, index = BatchAugmentation(seed=1, crop_scale=0.5, rotation=20), torch.arange(4)
    views = [augmentation(pixels, index, 2, view) for view in range(3)]
    assert torch.equal(views[0], augmentation(pixels, index, 2))
    assert not any(torch.equal(views[i], views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(views[2][1:2], augmentation(pixels[1:2], index[1:2], 2, 2))


def test_values_stay_whole_and_in_range():
    augment = BatchAugmentation(crop_scale=0.5, crop_ratio=1.3, rotation=20, light=0.9, jpeg=0.5, erase=0.5)
    out = augment(random_pixels(50), torch.arange(50), epoch=0)
    assert torch.equal(out, out.round()) and out.min() >= 0 and out.max() <= 255


def test_a_crop_shows_a_part_of_the_image_enlarged():
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(100, 1, 32, 32).contiguous()  # gray = 8 * column
    out = BatchAugmentation(crop_scale=0.25, flip=False)(ramp, torch.arange(100), epoch=0)
    span = (out[:, 0, :, -2] - out[:, 0, :, 1]).mean(dim=1) / (8 * 29)  # share of the width that is seen
    assert span.min() > 0.48 and span.max() < 1.02 and span.std() > 0.1
    assert (out.diff(dim=-1) >= 0).all()  # never mirrored, never beyond the border


def test_rotation_turns_about_the_center():
    spot = torch.zeros(40, 1, 33, 33, dtype=torch.uint8)
    spot[:, :, 15:18, 28:31] = 255  # 13 px right of the center
    out = BatchAugmentation(rotation=45, flip=False)(spot, torch.arange(40), epoch=0)[:, 0]
    rows, cols = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    weight = out.sum(dim=(1, 2))
    y, x = (out * (rows - 16)).sum(dim=(1, 2)) / weight, (out * (cols - 16)).sum(dim=(1, 2)) / weight
    assert (torch.hypot(x, y) - 13).abs().max() < 0.5
    angle = torch.rad2deg(torch.atan2(y, x))
    assert angle.abs().max() <= 46 and angle.std() > 15


def test_erasing_replaces_a_rectangle_by_the_mean():
    pixels = random_pixels(300, side=32)
    out = BatchAugmentation(flip=False, erase=0.5)(pixels, torch.arange(300), epoch=0)
    changed = out != pixels
    share = changed.float().mean(dim=(1, 2, 3))
    hit = share > 0
    assert 110 < hit.sum() < 190 and share.max() < 0.25 and share[hit].mean() > 0.05
    first = int(hit.nonzero()[0])
    assert torch.all(out[first][changed[first]] == pixels[first].float().mean().round())


def test_jpeg_compresses_a_share_of_the_images_with_different_qualities():
    pixels = random_pixels(300)
    out = BatchAugmentation(flip=False, jpeg=0.5)(pixels, torch.arange(300), epoch=0)
    hit = (out != pixels).flatten(1).any(dim=1)
    assert 120 < hit.sum() < 180
    nothing_chosen = BatchAugmentation(flip=False, jpeg=1e-9)(pixels, torch.arange(300), epoch=0)
    assert torch.equal(nothing_chosen, pixels.float())
    change = (out - pixels)[hit].abs().mean(dim=(1, 2, 3))
    worst, best = (jpeg_compressed(pixels, torch.full((300,), quality)) for quality in (30, 95))
    least, most = ((each - pixels)[hit].abs().mean(dim=(1, 2, 3)) for each in (best, worst))
    assert (change <= most * 1.05).all() and (change >= least * 0.95).all() and change.std() > 1


def test_collator_yields_bytes_and_rows(toy_processor):
    dataset = make_dataset(5)
    batch = PixelCollator(toy_processor)([{**dataset[i], "index": i} for i in (3, 0, 4)])  # as the trainer does
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (3, 1, 16, 16)
    assert batch["index"].tolist() == [3, 0, 4] and batch["labels"].tolist() == [
        dataset[i]["label"] for i in (3, 0, 4)
    ]
    assert np.array_equal(batch["pixel_values"][0, 0].numpy(), np.array(dataset[3]["image"]))
    without_labels = PixelCollator(toy_processor)([{"image": dataset[0]["image"], "index": 0}])
    assert sorted(without_labels) == ["index", "pixel_values"]


@pytest.mark.parametrize("side", [15, 16])
def test_no_border_of_another_color_appears(side):
    bright = torch.full((30, 1, side, side), 200, dtype=torch.uint8)
    out = BatchAugmentation(crop_scale=0.6, rotation=30)(bright, torch.arange(30), epoch=0)
    assert (out == 200).all()


def test_a_crop_above_one_shows_the_whole_image_smaller_and_its_border_goes_on():
    pixels = torch.full((50, 1, 32, 32), 100, dtype=torch.uint8)
    pixels[:, :, 8:24, 8:24] = 200  # 256 pixels
    augment = BatchAugmentation(crop_scale=4.0, crop_scale_max=4.0, flip=False)  # half the width and height
    out = augment(pixels, torch.arange(50), epoch=0)
    assert (out[:, :, 12:20, 12:20] == 200).all()
    assert ((out == 200).flatten(1).sum(dim=1) == 64).all()
    assert (out[:, :, 0] == 100).all() and (out[:, :, :, -1] == 100).all()


def test_a_shift_moves_the_image_at_most_that_far_in_both_directions():
    pixels = torch.zeros(400, 1, 40, 40, dtype=torch.uint8)
    pixels[:, :, 20, 20] = 255
    out = BatchAugmentation(shift=0.1, flip=False)(pixels, torch.arange(400), epoch=0)
    moved = (out.flatten(1).argmax(dim=1) // 40 - 20, out.flatten(1).argmax(dim=1) % 40 - 20)
    for way in moved:
        assert way.min() == -4 and way.max() == 4 and way.float().mean().abs() < 0.5
