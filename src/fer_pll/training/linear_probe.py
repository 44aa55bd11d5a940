"""A linear probe of frozen features, to monitor pre-training."""

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BaseImageProcessor


class LinearProbe:
    """Accuracy of a logistic regression on the features of labeled images.

    Two thirds of the images train the regression; the others test it. The split depends only on the data and
    `max_rows`, so that accuracies within a run can be compared.

    Args:
        dataset: rows with `image` and `label`; -1: unknown.
        image_processor: of the model.
        max_rows: at most this many labeled rows take part, chosen at random.

    Raises:
        ValueError: there are fewer than 30 labeled rows, or only one class.
    """

    def __init__(self, dataset: Dataset, image_processor: BaseImageProcessor, max_rows: int = 3000) -> None:
        labels = dataset.select_columns("label").with_format("numpy")["label"][:]
        labeled = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))[:max_rows]
        self.num_training = len(labeled) * 2 // 3
        self.labels = labels[labeled]
        classes = np.unique(self.labels[: self.num_training])
        if len(labeled) < 30 or len(classes) < 2:
            raise ValueError(
                f"a probe needs at least 30 labeled images of two classes; there are {len(labeled)} of "
                f"{len(np.unique(self.labels))}."
            )
        self.images = dataset.select_columns("image").select(labeled)
        self.image_processor = image_processor

    def accuracy(self, features: Callable[[torch.Tensor], torch.Tensor], batch_size: int) -> float:
        """Share of the test images that are classified correctly; NaN if any feature is not finite.

        Args:
            features: normalized pixels (B, C, H, W) to features (B, d), on any device.
            batch_size: images at a time.
        """
        parts = []
        for start in range(0, len(self.images), batch_size):
            images = self.images[start : start + batch_size]["image"]
            pixels = self.image_processor(images, return_tensors="pt").pixel_values
            parts.append(features(pixels).float().cpu())
        rows = torch.cat(parts).numpy()  # (N, d)
        if not np.isfinite(rows).all():
            return float("nan")
        # Mild shrinkage: at C = 1, on FER+, the regression overfits.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        classifier.fit(rows[: self.num_training], self.labels[: self.num_training])
        return float(classifier.score(rows[self.num_training :], self.labels[self.num_training :]))
