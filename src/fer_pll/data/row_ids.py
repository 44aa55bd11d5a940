"""Names of rows that stay the same when the data set changes: `row_id` or, without one, a digest of the image."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Image


def row_ids(dataset: Dataset) -> Sequence[str]:
    """N names, in the order of the rows: the column `row_id` or, where there is none, SHA-256 digests of the images.

    A digest covers the bytes of the image's file, in the data set or at the path that it names, so that saving or
    moving the set does not change it. Where there is no file, it covers the path. No image is decoded. Rows with equal
    images have equal names.
    """
    if "row_id" in dataset.column_names:
        return dataset.select_columns("row_id").with_format(None)["row_id"]
    images = dataset.select_columns("image").with_format(None)
    if isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image(decode=False))
    return [_digest(row["image"]) for row in images]


def _digest(image: object) -> str:
    if not isinstance(image, dict):
        stored = repr(image).encode()
    elif image["bytes"] is not None:
        stored = image["bytes"]
    else:
        path = Path(image["path"] or "")
        stored = path.read_bytes() if path.is_file() else os.fsencode(path)
    return hashlib.sha256(stored).hexdigest()
