"""Why a label is doubted: heat maps of the given and of the believed label, for the most suspicious rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from datasets import Dataset
from transformers import AutoModelForImageClassification

from ..inference.explanation import heat_maps
from ..inference.pipeline import FacialExpressionPipeline
from ..io.pretrained import load_image_processor, load_model
from ..model.face_answers import class_names
from .label_audit import LabelAudit


@dataclass(frozen=True, eq=False)
class RowHeatMaps:
    """Of the M most suspicious rows of an audit.

    Args:
        values: float32 (M, 2, h, w): what speaks for the given label, and for the believed one.
        sizes: M times width and height of the image in pixels.
    """

    values: np.ndarray
    sizes: list[tuple[int, int]]

    @classmethod
    def of_run(cls, run: str | Path, audit: LabelAudit, images: Dataset, count: int) -> Self:
        """The maps that a run's own model gives, see `inference.explanation`.

        Args:
            run: the folder of the model.
            audit: N rows.
            images: N rows with `image`.
            count: M; fewer where there are not so many rows.

        Raises:
            ValueError: the folder holds no model, or one of other classes.
        """
        model = load_model(AutoModelForImageClassification, str(run)).eval()
        if class_names(model.config) != list(audit.class_names):
            raise ValueError(
                f"{run}: its model tells {', '.join(class_names(model.config))} apart, its confidences "
                f"{', '.join(audit.class_names)}: leave --explain out"
            )
        recognize = FacialExpressionPipeline(model, image_processor=load_image_processor(str(run)))
        values, sizes = [], []
        for row in audit.order[:count].tolist():
            image = images[row]["image"]
            values.append(heat_maps(recognize.probabilities, image)[[audit.given[row], audit.believed[row]]])
            sizes.append(image.size)
        return cls(np.stack(values), sizes)
