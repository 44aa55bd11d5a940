"""The answers about a face, the same with torch and without it."""

import math
from collections.abc import Sequence
from typing import Any

from .face_detection import Face


def class_names(config: Any) -> list[str]:
    """Names of a classifier's K classes, in the order of its logits, from its config."""
    names: dict[int, str] = config.id2label  # the config turns the keys that JSON made text into numbers
    return [names[k] for k in range(len(names))]


def rank_expressions(probabilities: Sequence[float], classes: Sequence[str]) -> list[dict[str, Any]]:
    """`label` and `score` of every class, the best first, as the task `image-classification` gives them.

    Raises:
        ValueError: a probability is NaN: the weights, or the settings for images, are broken.
    """
    if not all(map(math.isfinite, probabilities)):
        raise ValueError(
            "The model's answer is NaN: its weights or the numbers in its preprocessor_config.json are broken; take "
            "an earlier checkpoint"
        )
    expressions = [{"label": name, "score": score} for name, score in zip(classes, probabilities, strict=True)]
    return sorted(expressions, key=lambda expression: -expression["score"])


def describe_face(
    face: Face, probabilities: Sequence[float], classes: Sequence[str], top_k: int | None = None
) -> dict[str, Any]:
    """A detected face as the task `facial-expression-recognition` gives it, see `inference.pipeline`."""
    return {
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), face.box.tolist(), strict=True)),
        "score": face.score,
        "landmarks": face.landmarks.tolist(),
        "expressions": rank_expressions(probabilities, classes)[:top_k],
    }
