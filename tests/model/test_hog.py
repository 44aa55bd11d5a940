"""HOG targets against scikit-image, which computes them image by image in float64."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import hog

from fer_pll.model.hog import gradient_table, hog_targets, patchify_cells

CPU = torch.device("cpu")


def skimage_hog(pixels: torch.Tensor, cell_size: int, orientations: int) -> torch.Tensor:
    """The call that the docstring of `hog_targets` names, for each channel of each image."""
    cells = [
        hog(
            channel.numpy(),
            orientations,
            pixels_per_cell=(cell_size, cell_size),
            cells_per_block=(1, 1),
            block_norm="L2",
            feature_vector=False,
        )[:, :, 0, 0]
        for channel in pixels.flatten(0, 1)
    ]
    return torch.from_numpy(np.stack(cells)).unflatten(0, pixels.shape[:2])


def assert_equals_skimage(pixels: torch.Tensor, cell_size: int, orientations: int) -> None:
    targets = hog_targets(pixels, cell_size, orientations)
    expected = skimage_hog(pixels, cell_size, orientations)
    assert targets.dtype == torch.float32
    assert targets.shape == expected.shape
    assert (targets - expected).abs().max() <= 1e-6


def random_pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def structured_pixels(height: int = 48, width: int = 80) -> dict[str, torch.Tensor]:
    """Images whose gradients are often exactly zero or exactly on the edge of a bin, each uint8 (height, width)."""
    row, col = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    lines = torch.zeros(height, width)
    lines[13] = lines[:, 22] = 255
    return {
        "flat": torch.full((height, width), 137).byte(),
        "down": (5 * row).byte(),  # 90 degrees only
        "up": (255 - 5 * row).byte(),
        "right": (3 * col).byte(),  # 0 degrees only
        "left": (255 - 3 * col).byte(),
        "diagonal": (row + col).byte(),  # 45 degrees only
        "antidiagonal": (100 + row - col).byte(),  # 135 degrees only
        "steep": (3 * row + col).byte(),
        "square": 255 * ((row % 40 > 9) & (col % 40 > 9)).byte(),
        "checkerboard": 255 * ((row + col) % 2).byte(),  # no central difference but at the border
        "binary noise": 255 * (random_pixels(height, width, seed=1) % 2),
        "three levels": 100 * (random_pixels(height, width, seed=2) % 3),
        "sparse": random_pixels(height, width, seed=3) * (random_pixels(height, width, seed=4) < 8),
        "lines": lines.byte(),
        "diagonal line": 255 * (row == col).byte(),
        "circle": 255 * ((row - 24) ** 2 + (col - 40) ** 2 < 400).byte(),
        "smooth": (127.5 + 127.5 * torch.sin(row / 7.0) * torch.cos(col / 11.0)).byte(),
    }


@pytest.mark.parametrize("orientations", [8, 9, 12, 18])
@pytest.mark.parametrize("cell_size", [4, 8, 16])
def test_equals_skimage(cell_size, orientations):
    structured = torch.stack(list(structured_pixels().values()))
    pixels = torch.stack([structured, random_pixels(*structured.shape), 255 - structured.flip(-1)], dim=1)
    assert_equals_skimage(pixels, cell_size, orientations)  # (17, 3, 48, 80)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    cell_size=st.integers(1, 10),
    orientations=st.integers(1, 36),
    levels=st.sampled_from([1, 2, 3, 17, 256]),
    seed=st.integers(0, 1000),
)
def test_equals_skimage_at_any_size(size, cell_size, orientations, levels, seed):
    batch, channels, rows, cols = size
    pixels = random_pixels(batch, channels, rows * cell_size, cols * cell_size, seed=seed)
    pixels = (pixels.int() % levels * (255 // max(levels - 1, 1))).byte()
    assert_equals_skimage(pixels, cell_size, orientations)


def all_gradients() -> tuple[np.ndarray, np.ndarray]:
    """(511 * 511,) each: g_row, g_col of every pair."""
    steps = np.arange(-255.0, 256.0)
    g_row, g_col = np.meshgrid(steps, steps, indexing="ij")
    return g_row.ravel(), g_col.ravel()


@pytest.mark.parametrize("orientations", [1, 7, 8, 9, 12, 18, 24])
def test_gradient_table_is_exact_for_every_pair(orientations):
    g_row, g_col = all_gradients()
    table = gradient_table(orientations, CPU).numpy()
    rows = table[np.abs(511 * g_row + g_col).astype(int)]
    # As skimage bins them: float64 degrees, half-open intervals.
    degrees = np.rad2deg(np.arctan2(g_row, g_col)) % 180
    width = 180.0 / orientations
    expected = np.zeros_like(rows)
    for k in range(orientations):
        inside = (degrees >= width * k) & (degrees < width * (k + 1))
        expected[inside, k] = np.hypot(g_row, g_col)[inside]
    assert table.shape == (255 * 511 + 256, orientations)
    np.testing.assert_array_equal(rows, expected)


def test_gradient_table_puts_edges_into_the_upper_bin():
    rows = {degrees: abs(511 * row + col) for degrees, (row, col) in
            {0: (0, 3), 45: (3, 3), 90: (3, 0), 135: (3, -3), 180: (0, -3), 225: (-3, -3)}.items()}  # fmt: skip
    table = gradient_table(8, CPU)
    bins = {degrees: table[row].nonzero().item() for degrees, row in rows.items()}
    assert bins == {0: 0, 45: 2, 90: 4, 135: 6, 180: 0, 225: 2}


@pytest.mark.parametrize(
    "dtype",
    [torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
)
def test_dtype_does_not_matter(dtype):
    pixels = torch.cat([torch.stack(list(structured_pixels().values()))[:, None], random_pixels(2, 1, 48, 80)])
    assert torch.equal(hog_targets(pixels.to(dtype)), hog_targets(pixels))


def test_small_noise_on_floats_is_rounded_away():
    structured = torch.stack(list(structured_pixels().values()))[:, None]
    noise = torch.rand(structured.shape, generator=torch.Generator().manual_seed(0)) * 0.98 - 0.49  # also below 0
    assert torch.equal(hog_targets(structured + noise), hog_targets(structured))


def test_denormalized_images_are_exact():
    pixels = random_pixels(4, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    normalized = (pixels / 255 - mean) / std
    restored = (normalized * std + mean) * 255
    assert not torch.equal(restored, pixels.float())  # there is something to round
    assert torch.equal(hog_targets(restored), hog_targets(pixels))


def test_floats_outside_8_bit_are_clamped():
    pixels = torch.tensor([-40.0, 0.0, 255.0, 300.0]).repeat(4, 1)[None, None]
    assert torch.equal(hog_targets(pixels, 4), hog_targets(pixels.clamp(0, 255), 4))


def test_input_is_left_as_it_was():
    pixels = torch.rand(2, 3, 16, 16) * 300 - 20
    before = pixels.clone()
    hog_targets(pixels)
    assert torch.equal(pixels, before)


def test_memory_layout_does_not_matter():
    pixels = random_pixels(3, 3, 24, 40)
    assert torch.equal(hog_targets(pixels.to(memory_format=torch.channels_last)), hog_targets(pixels))
    assert torch.equal(hog_targets(pixels.transpose(2, 3)), hog_targets(pixels.transpose(2, 3).contiguous()))
    assert torch.equal(
        hog_targets(pixels[:1].expand(3, -1, -1, -1)), hog_targets(pixels[:1]).expand(3, -1, -1, -1, -1)
    )


def test_autocast_changes_nothing():
    pixels = random_pixels(2, 3, 32, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = hog_targets(pixels)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, hog_targets(pixels))


def test_no_gradient_flows():
    pixels = random_pixels(2, 3, 32, 32).float()
    targets = hog_targets(pixels.clone().requires_grad_())
    assert not targets.requires_grad
    assert torch.equal(targets, hog_targets(pixels))


def test_images_and_channels_do_not_mix():
    pixels = random_pixels(3, 2, 16, 24)
    targets = hog_targets(pixels)
    for number, image in enumerate(pixels):
        for channel in range(2):
            alone = hog_targets(image[None, channel : channel + 1])
            torch.testing.assert_close(targets[number, channel], alone[0, 0], rtol=0, atol=1e-7)


def test_flat_image_is_zero():
    assert torch.equal(hog_targets(torch.full((1, 1, 16, 16), 200)), torch.zeros(1, 1, 2, 2, 9))


@pytest.mark.parametrize("shape", [(1, 1, 20, 16), (1, 1, 16, 20)])
def test_cell_must_divide_the_image(shape):
    with pytest.raises(ValueError, match=f"cell_size=8 does not divide images of {shape[2]} x {shape[3]} pixels"):
        hog_targets(torch.zeros(shape))


def test_table_is_not_kept_from_an_export():
    class Hog(torch.nn.Module):
        def forward(self, pixels):
            return hog_targets(pixels, cell_size=4, orientations=11)  # a table that no other test has asked for

    pixels = random_pixels(2, 3, 8, 12)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Hog(), (pixels,), dynamic_shapes=({0: batch},)).module()
    more = random_pixels(5, 3, 8, 12, seed=1)
    targets = hog_targets(more, cell_size=4, orientations=11)
    assert type(targets) is torch.Tensor
    assert torch.equal(exported(more), targets)


def test_table_made_in_inference_mode_serves_training():
    pixels = random_pixels(2, 1, 8, 8)
    with torch.inference_mode():
        hog_targets(pixels, cell_size=4, orientations=10)
    layer = torch.nn.Linear(10, 1)
    layer(hog_targets(pixels, cell_size=4, orientations=10)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_compiles_into_one_graph_without_warnings():
    pixels = random_pixels(2, 3, 16, 24)
    compiled = torch.compile(hog_targets, fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        targets = compiled(pixels, 4)
    assert torch.equal(targets, hog_targets(pixels, 4))


@pytest.mark.parametrize("cells_per_patch", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4, 9), (2, 3, 8, 12, 9), (3, 2, 4, 8, 5)])
def test_patchify_cells_equals_a_loop(shape, cells_per_patch):
    batch, channels, rows, cols, orientations = shape
    cells = torch.arange(torch.tensor(shape).prod()).view(shape)
    patches = patchify_cells(cells, cells_per_patch)
    n = cells_per_patch
    length, size = (rows // n) * (cols // n), n * n * orientations * channels
    expected = torch.full((batch, length, size), -1)
    for b in range(batch):
        for patch in range(length):
            top, left = patch // (cols // n) * n, patch % (cols // n) * n
            values = [
                cells[b, channel, top + i, left + j, k]
                for i in range(n)
                for j in range(n)
                for k in range(orientations)
                for channel in range(channels)
            ]
            expected[b, patch] = torch.stack(values)
    assert torch.equal(patches, expected)


def test_patchify_cells_of_a_image_with_one_marked_patch():
    pixels = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    pixels[:, :, 36:44, 52:60] = 255  # inside the patch of row 2, column 3 of 4 x 6
    patches = patchify_cells(hog_targets(pixels), cells_per_patch=2)
    assert patches.shape == (1, 24, 108)
    assert patches[0].abs().sum(dim=1).nonzero().tolist() == [[2 * 6 + 3]]
