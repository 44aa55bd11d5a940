"""Classifiers that `fer-pll export` wrote, run by onnxruntime with NumPy and Pillow, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..io.errors import DataError, MissingExtra
from ..io.names import ONNX_FILE
from ..io.stored import read_json, reading
from ..model.face_alignment import FaceCrop
from ..model.face_detection import open_session
from ..model.preprocessing import check_preprocessing
from .onnx_operators import check_operators, one_line

MODEL_FILE, CONFIG_FILE, PREPROCESSOR_FILE = ONNX_FILE, "config.json", "preprocessor_config.json"
AGAIN = "export the model again"


def _read_classes(file: Path) -> list[str]:
    names = read_json(file, advice=AGAIN).get("id2label")
    if isinstance(names, dict) and len(names) > 1 and set(names) == {str(k) for k in range(len(names))}:
        classes = [names[str(k)] for k in range(len(names))]
        if all(isinstance(name, str) for name in classes) and len(set(classes)) == len(classes):
            return classes
    raise DataError(
        f'{file}: id2label must give the classes from "0" on different names, at least two: export the model again'
    )


class Preprocessing:
    """What a `FerPllImageProcessor` does to images, with NumPy and Pillow.

    Args:
        file: its preprocessor_config.json.

    Raises:
        DataError: a setting is missing or impossible; the message names the file.
    """

    def __init__(self, file: Path) -> None:
        settings = read_json(file, advice=AGAIN)
        size = settings.get("size")
        needed = ("num_channels", "size", "resample", "rescale_factor", "image_mean", "image_std")
        missing = [name for name in needed if settings.get(name) is None]
        missing += (
            [] if isinstance(size, dict) and {"width", "height"} <= set(size) else ["size.width and size.height"]
        )
        if missing:
            raise DataError(f"{file} has no {missing[0]}: {AGAIN}")
        with reading(file, AGAIN):
            check_preprocessing(settings)
        self.face_crop: dict[str, Any] | None = settings.get("face_crop")
        if self.face_crop is not None:
            with reading(file, AGAIN):
                FaceCrop.from_dict(self.face_crop, str(file))
        self.channels, self.size = settings["num_channels"], (size["width"], size["height"])
        self._resample = Image.Resampling(settings["resample"])
        scaled = (np.arange(256) * settings["rescale_factor"]).astype(np.float32)
        mean, std = (np.ravel(settings[name]).astype(np.float32)[:, None] for name in ("image_mean", "image_std"))
        self._normalized = (scaled - mean) / std  # (C, 256), for every value that a pixel can have

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The checkpoint's `pixel_values`, float32 (B, C, H, W), as its image processor makes them."""
        mode = "L" if self.channels == 1 else "RGB"
        resized = [image.convert(mode).resize(self.size, self._resample) for image in images]
        pixels = np.stack([np.asarray(image) for image in resized])
        pixels = pixels.reshape(len(resized), *self.size[::-1], -1)  # (B, H, W, C)
        return np.stack([values[pixels[..., c]] for c, values in enumerate(self._normalized)], axis=1)


def _check_interface(session: Any, folder: Path, image: list[int], classes: int) -> None:
    """Raise `DataError` if a model does not take such images (C, H, W), or does not give a number for each class."""
    inputs = {given.name: (given.type, given.shape) for given in session.get_inputs()}
    outputs = {given.name: (given.type, given.shape) for given in session.get_outputs()}
    file, kind = folder / MODEL_FILE, "tensor(float)"
    if list(inputs) != ["pixel_values"] or not kind == inputs["pixel_values"][0] == outputs.get("logits", [""])[0]:
        raise DataError(f"{file} is no classifier of images: it needs the input pixel_values and the output logits")
    taken, given = inputs["pixel_values"][1], outputs["logits"][1]
    if len(taken) != 4 or taken[1:] != image:
        raise DataError(f"{file} takes images (channels, height, width) {taken[1:]}, {PREPROCESSOR_FILE} has {image}")
    if len(given) != 2 or (isinstance(given[1], int) and given[1] != classes):
        raise DataError(f"{file} gives logits of {given[1:]} classes, {CONFIG_FILE} names {classes}")


class OnnxClassifier:
    """Class probabilities for images of faces.

    The folder holds `model.onnx`, which takes `pixel_values`, float32 (B, C, H, W), and gives `logits`, float32
    (B, K); `preprocessor_config.json`; and `config.json` with the names of the classes.

    Args:
        folder: one that `fer-pll export` wrote.
        threads: see `fer_pll.model.face_detection.open_session`.

    Raises:
        MissingExtra: onnxruntime is not installed.
        DataError: a file is missing or damaged, the files do not fit each other, or the model has an operator that
            is not in `OPERATORS`.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        for name in (MODEL_FILE, CONFIG_FILE, PREPROCESSOR_FILE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: no {name} in there; `fer-pll export CHECKPOINT --out DIR` writes it")
        self.name = str(folder)
        self.classes = _read_classes(folder / CONFIG_FILE)
        self.preprocess = Preprocessing(folder / PREPROCESSOR_FILE)
        self.face_crop = self.preprocess.face_crop
        content = (folder / MODEL_FILE).read_bytes()
        check_operators(content, folder / MODEL_FILE)
        try:
            self._session = open_session(content, "An exported model", "onnx", threads)
        except MissingExtra:
            raise
        except Exception as error:  # onnxruntime has no common class for its own
            raise DataError(
                f"{folder / MODEL_FILE} cannot be read ({one_line(error)}): export the model again"
            ) from error
        image = [self.preprocess.channels, *self.preprocess.size[::-1]]
        _check_interface(self._session, folder, image, len(self.classes))

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """Logits, float32 (B, K), for `pixel_values`, float32 (B, C, H, W).

        Raises:
            DataError: they are no finite numbers, or the model cannot be run.
        """
        try:
            logits = self._session.run(["logits"], {"pixel_values": pixel_values})[0]
        except Exception as error:  # onnxruntime has no common class for its own
            raise DataError(f"{self.name}/{MODEL_FILE} cannot be run ({one_line(error)}): export it again") from error
        if logits.shape != (len(pixel_values), len(self.classes)) or not np.isfinite(logits).all():
            raise DataError(
                f"{self.name}/{MODEL_FILE}: its logits are NaN, infinite, or not one for each of the "
                f"{len(self.classes)} classes: export the model again"
            )
        return logits

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class probabilities, float64 (B, K), of images that show one face each."""
        logits = self.logits(self.preprocess(images)).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
