"""Collator from rows of a prepared set to a batch of 8-bit pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.image_processing_fer_pll import FerPllImageProcessor


@dataclass
class PixelCollator:
    """Turns rows of a prepared data set into a batch of 8-bit pixels.

    The batch has uint8 `pixel_values` (B, C, H, W), resized by the image processor. Where the rows have them, it also
    has int64 `index` (B,), which the trainer adds, `row_id` (B strings), int64 `labels` (B,) and, if `columns` names
    them, `votes` (B, K) and `answers` (B, A).
    """

    image_processor: FerPllImageProcessor
    columns: Sequence[str] = ()

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [row["image"] for row in rows]
        pixels = self.image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
        batch = {"pixel_values": pixels}
        if "index" in rows[0]:
            batch["index"] = torch.tensor([row["index"] for row in rows])
        if "row_id" in rows[0]:
            batch["row_id"] = [row["row_id"] for row in rows]
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        for name in ("votes", "answers"):
            if name in self.columns and name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch
