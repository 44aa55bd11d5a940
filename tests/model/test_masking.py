"""Which patches are hidden: random ones (see also test_modeling.py), squares of them, and blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_pll.model.masking import blockwise_masking, random_masking, unit_masking


def test_units_of_one_patch_are_random_masking():
    noise = torch.rand(3, 36)
    assert torch.equal(unit_masking(noise, 0.4, (6, 6), 1), random_masking(noise, 0.4)[1])


@settings(max_examples=40)
@given(
    rows=st.integers(1, 7), columns=st.integers(2, 7), unit=st.integers(1, 4), ratio=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_units_are_hidden_whole(rows, columns, unit, ratio, seed):
    noise = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(seed))
    mask = unit_masking(noise, ratio, (rows * unit, columns * unit), unit).view(2, rows * unit, columns * unit)
    squares = mask.unflatten(2, (columns, unit)).unflatten(1, (rows, unit)).transpose(2, 3)  # (2, rows, cols, u, u)
    assert torch.equal(squares.amin(dim=(3, 4)), squares.amax(dim=(3, 4)))
    hidden = squares[..., 0, 0].flatten(1)
    assert hidden.sum(dim=1).tolist() == [rows * columns - int(rows * columns * (1 - ratio))] * 2
    for row in range(2):
        if 0 < hidden[row].sum() < rows * columns:
            assert noise[row][hidden[row] == 1].min() > noise[row][hidden[row] == 0].max()


def beit_mask(rng: np.random.Generator, height: int, width: int, most: int, smallest: int) -> np.ndarray:
    """Algorithm 1 of BEiT for one image, in plain Python."""
    mask, failures = np.zeros((height, width), dtype=bool), 0
    while mask.sum() < most and failures < 10:
        left = most - mask.sum()
        area, aspect = smallest + (left - smallest) * rng.random(), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        failures += 1
        if tall < height and wide < width:
            top, side = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
            new = tall * wide - mask[top : top + tall, side : side + wide].sum()
            if 0 < new <= left:
                mask[top : top + tall, side : side + wide] = True
                failures = 0
    return mask


@pytest.mark.parametrize(("grid", "ratio", "smallest"), [((14, 14), 0.4, 16), ((6, 6), 0.4, 3)])
def test_blocks_are_distributed_as_in_beit(grid, ratio, smallest):
    torch.manual_seed(0)
    rng, most = np.random.default_rng(0), int(grid[0] * grid[1] * ratio)
    ours = blockwise_masking(3000, grid, ratio).view(-1, *grid).numpy()
    theirs = np.stack([beit_mask(rng, *grid, most, smallest) for _ in range(3000)]).astype(float)

    def neighbors(masks: np.ndarray) -> float:  # how often the patch right of a hidden one is hidden
        return (masks[:, :, 1:] * masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()

    assert set(np.unique(ours)) == {0, 1} and ours.sum(axis=(1, 2)).max() <= most
    assert ours.sum(axis=(1, 2)).mean() == pytest.approx(theirs.sum(axis=(1, 2)).mean(), rel=0.01)
    assert neighbors(ours) == pytest.approx(neighbors(theirs), abs=0.01)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.05)


def test_blocks_of_vit_base_are_at_most_78_of_196_patches():
    hidden = blockwise_masking(500, (14, 14), 0.4).sum(dim=1)
    assert 70 < hidden.mean() <= hidden.max() == 78
