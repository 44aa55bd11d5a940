"""The task `facial-expression-recognition` of `transformers.pipeline`: from a photograph to its faces' expressions."""

import os
from collections.abc import Iterator
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor
from transformers.pipelines.base import ChunkPipeline

from ..faces.alignment import FaceCrop, align_face
from ..faces.detection import Detector, find_faces, load_detector
from ..io.images import open_image
from .answers import describe_face
from .loading import class_names

TASK = "facial-expression-recognition"


class FacialExpressionPipeline(ChunkPipeline):
    """Finds the faces of a photograph, crops them as the model's training images were, and names their expressions.

        recognize = pipeline("facial-expression-recognition", model="runs/finetune", trust_remote_code=False)
        recognize("group.jpg")

    It takes whatever `open_image` opens, a list of that, or a generator. For each image it gives a list of the faces,
    in the detector's order, empty where there are none. Each face is a dictionary with

    - `box`: `xmin`, `ymin`, `xmax`, `ymax` in pixels of the upright image,
    - `score`: the detector's,
    - `landmarks`: five [x, y]: left eye, right eye, nose, left and right corner of the mouth, as seen in the image,
    - `expressions`: `label` and `score` of every class, the best first; the scores sum to 1.

    Args (to `pipeline(...)` or to each call):
        detector: a name for `load_detector`, or a callable (see `fer_pll.faces.detection`); default `"retinaface"`.
        crop: a `FaceCrop`, or a checkpoint to take it from; default: that of the model's image processor.
        timeout: seconds to wait for a server.
        batch_size: number of faces that go through the model together; they may be from several images.

    Raises:
        ValueError: no crop is known for this model, an image cannot be read, or the extra `faces` is not installed.
    """

    # Pipeline declares these as None; its own subclasses assign them alike.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    image_processor: BaseImageProcessor
    _default_detector: Detector | None = None

    # The four methods below narrow the signatures of Pipeline, as its own subclasses do.
    def _sanitize_parameters(  # type: ignore[override]
        self,
        detector: str | Detector | None = None,
        crop: FaceCrop | str | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {
            "detector": load_detector(detector) if isinstance(detector, str) else detector,
            "crop": FaceCrop.from_pretrained(crop) if isinstance(crop, str) else crop,
            "timeout": timeout,
        }
        return {name: value for name, value in given.items() if value is not None}, {}, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, detector: Detector | None = None, crop: FaceCrop | None = None, timeout: float | None = 30
    ) -> Iterator[dict[str, Any]]:
        """One item for each face. An image without a face gets one blank item, so that it has an answer too."""
        crop = crop or FaceCrop.from_image_processor(
            self.image_processor, self.model.name_or_path or "The model's image processor"
        )
        detector = detector or self._default_detector
        if detector is None:
            detector = self._default_detector = load_detector("retinaface")
        image = open_image(image, timeout)
        faces = find_faces(image, detector)
        crops = [align_face(image, face.landmarks, crop) for face in faces] or [Image.new("L", (crop.size,) * 2)]
        pixel_values = self.image_processor(crops, return_tensors="pt")["pixel_values"].to(self.dtype)
        for number, face in enumerate(faces or [None]):
            last = number + 1 >= len(faces)
            yield {"is_last": last, "face": face, "pixel_values": pixel_values[number : number + 1]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        outputs = self.model(pixel_values=model_inputs.pop("pixel_values"))
        return {**model_inputs, "logits": outputs.logits}

    def postprocess(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:  # type: ignore[override]
        classes = class_names(self.model.config)
        return [
            describe_face(answer["face"], answer["logits"][0].double().softmax(dim=0).tolist(), classes)
            for answer in answers
            if answer["face"] is not None
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and image processor. This task needs the package, so its code is not saved with them."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)
