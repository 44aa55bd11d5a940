"""Augmentation of whole batches of faces, on the device that trains.

Batches travel as 8-bit pixels; the training device augments and normalizes them. Every random number depends only on
(seed, epoch, row index, purpose). The number of processes and workers does not change it, and an interruption does not
either.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import nn

from .jpeg import jpeg_compressed


def keyed_uniform(seed: int, epoch: int | np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Random numbers in [0, 1) that depend only on their key.

    Args:
        seed: the seed of the run.
        epoch: the epoch, or (B,) one for each row.
        index: (B,) row numbers.
        count: numbers per row.

    Returns:
        float32 (B, count), by the SplitMix64 generator (Steele, Lea and Flood, 2014) applied along the key.
    """

    def mix(state: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return state ^ (state >> np.uint64(31))

    key = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
    key = mix(key ^ index.astype(np.uint64))[:, None]  # (B, 1)
    draws = mix(key ^ np.arange(count, dtype=np.uint64))  # (B, count)
    return ((draws >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def sampling_grid(affine: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The place in the input that each pixel is taken from: (B, H, W, 2), x before y, from matrices (B, 2, 3).

    The result is that of `torch.nn.functional.affine_grid` with `align_corners=False`, up to rounding. On a CPU this
    is many times faster: it adds what the column and the row contribute, instead of one matrix product for each pixel.
    In memory, x and y lie apart.
    """
    columns = (2 * torch.arange(width, device=affine.device) + 1) / width - 1  # of the pixels' centers
    rows = (2 * torch.arange(height, device=affine.device) + 1) / height - 1
    of_columns = affine[:, :, :1] * columns  # (B, 2, W)
    of_rows = affine[:, :, 1:2] * rows + affine[:, :, 2:]  # (B, 2, H)
    return (of_rows[:, :, :, None] + of_columns[:, :, None]).permute(0, 2, 3, 1)


@dataclass
class BatchAugmentation:
    """Random geometry and light for a batch of faces, on the device that holds it.

    One bilinear resampling does crop, rotation and flip at once, so images are blurred only once.

    Args:
        seed: the seed of the run.
        crop_scale: smallest area of a crop, as a share of the image's.
        crop_scale_max: largest area of a crop. Above 1 the face gets smaller, and the image's border goes on.
        crop_ratio: largest width / height of a crop, relative to the image's own (the smallest is its inverse).
        shift: how far a crop may lie outside of the image, as a share of the image's width and height.
        rotation: largest angle in degrees, either way.
        flip: mirror half of the images.
        light: largest relative change of contrast, and of brightness as a share of the full scale.
        jpeg: share of the images that are compressed as by JPEG, with a quality from 30 to 95.
        erase: share of the images in which a rectangle of 2 % to 20 % of the area becomes the image's mean.
    """

    seed: int = 0
    crop_scale: float = 1.0
    crop_scale_max: float = 1.0
    crop_ratio: float = 1.0
    shift: float = 0.0
    rotation: float = 0.0
    flip: bool = True
    light: float = 0.0
    jpeg: float = 0.0
    erase: float = 0.0

    def __call__(
        self, pixels: torch.Tensor, index: torch.Tensor, epoch: int | torch.Tensor, view: int = 0
    ) -> torch.Tensor:
        """Augment a batch.

        Args:
            pixels: uint8 (B, C, H, W).
            index: (B,) row numbers, the key of each image's random numbers.
            epoch: the epoch, or (B,) one for each image.
            view: each number gives another random version of the same image.

        Returns:
            float32 (B, C, H, W) with whole values 0..255, as in an 8-bit image (HOG targets need them).
        """
        epochs = epoch.cpu().numpy() if isinstance(epoch, torch.Tensor) else epoch
        numbers = keyed_uniform(self.seed, epochs, index.cpu().numpy(), 14 * (view + 1))[:, 14 * view :]
        draws = torch.from_numpy(numbers).to(pixels.device)
        scale, ratio, x, y, angle, flip, contrast, brightness, erase, area, erase_x, erase_y, jpeg, quality = (
            draws.unbind(dim=1)
        )
        grid = sampling_grid(self.affine(scale, ratio, x, y, angle, flip), *pixels.shape[2:])
        pixels = nn.functional.grid_sample(
            pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        if self.light:
            mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
            gain = 1 + self.light * (2 * contrast - 1)
            shift = 255 * self.light * (2 * brightness - 1)
            pixels.sub_(mean).mul_(gain.view(-1, 1, 1, 1)).add_(mean + shift.view(-1, 1, 1, 1))
        if self.jpeg:
            chosen = (jpeg < self.jpeg).nonzero()[:, 0]
            pixels[chosen] = jpeg_compressed(pixels[chosen].round().clamp(0, 255), 30 + (65 * quality[chosen]).round())
        if self.erase:
            pixels = self.erase_rectangles(pixels, erase, area, erase_x, erase_y)
        return pixels.round_().clamp_(0, 255)

    def stronger(self) -> Self:
        """The same with more of everything but mirroring, for methods that compare a weak view with a strong one:
        crops of half the area, 20 degrees, changes of light of 40 %, and a rectangle erased from every image."""
        return replace(
            self,
            crop_scale=min(self.crop_scale, 0.5),
            rotation=max(self.rotation, 20.0),
            light=max(self.light, 0.4),
            erase=1.0,
        )

    def affine(
        self,
        scale: torch.Tensor,
        ratio: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        angle: torch.Tensor,
        flip: torch.Tensor,
    ) -> torch.Tensor:
        """Sampling matrices (B, 2, 3), in coordinates -1..1 of the input, from uniform draws (B,)."""
        area = self.crop_scale + (self.crop_scale_max - self.crop_scale) * scale
        stretch = torch.exp(
            math.log(self.crop_ratio) * (ratio - 0.5)
        )  # square root of the ratio: width times, height by
        side = math.sqrt(self.crop_scale_max)
        width = (area.sqrt() * stretch).clamp(max=side)
        height = (area.sqrt() / stretch).clamp(max=side)
        angle = torch.deg2rad(self.rotation * (2 * angle - 1))
        mirror = torch.where(flip < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(flip)
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([cos * width * mirror, -sin * height, (2 * x - 1) * self._free(width)], dim=1),
            torch.stack([sin * width * mirror, cos * height, (2 * y - 1) * self._free(height)], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _free(self, side: torch.Tensor) -> torch.Tensor:
        """How far the center of a crop may move from the image's, in coordinates -1..1, by the crop's side (B,)."""
        return (1 - side).clamp(min=0) + 2 * self.shift

    def erase_rectangles(
        self, pixels: torch.Tensor, erase: torch.Tensor, area: torch.Tensor, x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Erase a rectangle in some of the images (B, C, H, W), by uniform draws (B,)."""
        height, width = pixels.shape[2:]
        side = (0.02 + 0.18 * area).sqrt()[:, None]  # of the image's side
        columns = (torch.arange(width, device=pixels.device) + 0.5) / width
        rows = (torch.arange(height, device=pixels.device) + 0.5) / height
        in_columns = (columns - side / 2 - (1 - side) * x[:, None]).abs() < side / 2  # (B, W)
        in_rows = (rows - side / 2 - (1 - side) * y[:, None]).abs() < side / 2  # (B, H)
        hole = in_rows[:, None, :, None] & in_columns[:, None, None, :] & (erase < self.erase)[:, None, None, None]
        return torch.where(hole, pixels.mean(dim=(2, 3), keepdim=True), pixels)
