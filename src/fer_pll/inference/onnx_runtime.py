"""Classifiers that `fer-pll export` wrote, run by onnxruntime with NumPy and Pillow, without torch."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..faces.alignment import FaceCrop, align_face
from ..faces.detection import Detector, find_faces, open_session
from .answers import describe_face, rank_expressions

MODEL_FILE = "model.onnx"


class OnnxClassifier:
    """Class probabilities for images of faces.

    The folder holds `model.onnx`, which takes `pixel_values`, float32 (B, C, H, W), and gives `logits`, float32
    (B, K); `preprocessor_config.json`; and `config.json` with the names of the classes.

    Args:
        folder: one that `fer-pll export` wrote.
        threads: see `fer_pll.faces.detection.open_session`.

    Raises:
        MissingExtra: onnxruntime is not installed.
        ValueError: a file is missing.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        for name in (MODEL_FILE, "config.json", "preprocessor_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: no {name} in there; `fer-pll export CHECKPOINT --out DIR` writes it")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.name = str(folder)
        self.classes: list[str] = [config["id2label"][str(k)] for k in range(len(config["id2label"]))]
        self.face_crop: dict[str, Any] | None = settings.get("face_crop")
        self._mode = "L" if settings["num_channels"] == 1 else "RGB"
        self._size = (settings["size"]["width"], settings["size"]["height"])
        self._resample = Image.Resampling(settings["resample"])
        scaled = (np.arange(256) * settings["rescale_factor"]).astype(np.float32)
        mean, std = (np.array(settings[name], dtype=np.float32)[:, None] for name in ("image_mean", "image_std"))
        self._normalized = (scaled - mean) / std  # (C, 256), for every value that a pixel can have
        self._session = open_session(str(folder / MODEL_FILE), "An exported model", "onnx", threads)

    def preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The checkpoint's `pixel_values`, float32 (B, C, H, W), as its image processor makes them."""
        resized = [image.convert(self._mode).resize(self._size, self._resample) for image in images]
        pixels = np.stack([np.asarray(image) for image in resized])
        pixels = pixels.reshape(len(resized), *self._size[::-1], -1)  # (B, H, W, C)
        return np.stack([values[pixels[..., c]] for c, values in enumerate(self._normalized)], axis=1)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._session.run(["logits"], {"pixel_values": pixel_values})[0]

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class probabilities, float64 (B, K), of images that show one face each."""
        logits = self.logits(self.preprocess(images)).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def classify(self, crops: Iterable[Image.Image], batch_size: int) -> Iterator[list[dict[str, Any]]]:
        """For each crop, the answer of the task `image-classification`: all classes, the best first."""
        for batch in batches(crops, batch_size):
            for probabilities in self(batch).tolist():
                yield rank_expressions(probabilities, self.classes)

    def recognize(
        self, images: Iterable[Image.Image], detector: Detector, crop: FaceCrop, batch_size: int
    ) -> Iterator[list[dict[str, Any]]]:
        """For each image, the answer of the task `facial-expression-recognition`: its faces."""
        for batch in batches(images, batch_size):
            faces = [find_faces(image, detector) for image in batch]
            crops = [
                align_face(image, face.landmarks, crop)
                for image, found in zip(batch, faces, strict=True)
                for face in found
            ]
            probabilities = (row for part in batches(crops, batch_size) for row in self(part).tolist())
            for found in faces:
                yield [describe_face(face, next(probabilities), self.classes) for face in found]


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
