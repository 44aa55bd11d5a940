"""The answers about a face, the same with torch and without it."""

from collections.abc import Sequence
from typing import Any

from ..faces.detection import Face


def rank_expressions(probabilities: Sequence[float], classes: Sequence[str]) -> list[dict[str, Any]]:
    """`label` and `score` of every class, the best first, as the task `image-classification` gives them."""
    expressions = [{"label": name, "score": score} for name, score in zip(classes, probabilities, strict=True)]
    return sorted(expressions, key=lambda expression: -expression["score"])


def describe_face(face: Face, probabilities: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """A detected face as the task `facial-expression-recognition` gives it, see `inference.pipeline`."""
    return {
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), face.box.tolist(), strict=True)),
        "score": face.score,
        "landmarks": face.landmarks.tolist(),
        "expressions": rank_expressions(probabilities, classes),
    }
