"""Rows with their number, by which the trainer finds a row's confidences and random numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset


class NumberedRows(torch.utils.data.Dataset):
    """The rows of a data set, each with its number, 0 .. N-1, under the key `index`.

    Nothing is copied. A column `index` in the data set is ignored.

    Args:
        dataset: N rows.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.remove_columns("index") if "index" in dataset.column_names else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.dataset[place] | {"index": place}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once. A DataLoader calls this."""
        return [row | {"index": place} for row, place in zip(self.dataset.__getitems__(places), places, strict=True)]
