"""The task `facial-expression-recognition` of `transformers.pipeline`: from photographs to faces' expressions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from ..faces.crops import load_crop
from ..io.errors import DataError
from ..io.images import ImageError, open_image
from ..io.pretrained import check_finite, load_image_processor, load_model, quiet
from ..io.shipped import DEFAULT_NAME
from ..model.face_alignment import FaceCrop
from ..model.face_answers import class_names
from ..model.face_detection import Detector
from ..model.pipeline_fer_pll import TASK, PhotographPipeline, check_count
from .explanation import explain as explain_face
from .loading import check_device
from .media import Shown, is_video, show
from .recognizing import Classifier, Finder, recognize_faces
from .video import SMOOTHING, Smoother

_FOR_THE_HUB = (
    "revision", "token", "trust_remote_code", "local_files_only", "code_revision", "cache_dir", "_from_pipeline",
)  # fmt: skip


class _Refused(NamedTuple):
    """In the place of a model, why there is none: `pipeline` would bury an error in tracebacks."""

    error: DataError


class NamedClassifier(AutoModelForImageClassification):
    """What `pipeline(TASK, model=NAME)` loads: a classifier that remembers which of its weights no file gave."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        name = os.fspath(pretrained_model_name_or_path)
        if Path(name).is_dir() and not kwargs.get("trust_remote_code"):
            options = {key: value for key, value in kwargs.items() if key not in _FOR_THE_HUB}
            try:
                model, missing = load_model(AutoModelForImageClassification, name, partly=True, **options)
            except DataError as error:
                return _Refused(error)
            model.missing_weights = missing
            return model
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet():
            model, report = super().from_pretrained(name, *model_args, **kwargs)
        model.missing_weights = sorted(report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]})
        return model


class FacialExpressionPipeline(PhotographPipeline):
    """Finds the faces of a photograph, crops them as the model's training images were, and names their expressions.

        recognize = fer_pll.load_recognizer("runs/finetune")
        recognize("group.jpg")

    It takes whatever `open_image` opens, a list of that, or a generator. For each image it gives a list of the faces,
    in the detector's order, empty where there are none. Each face is a dictionary with

    - `box`: `xmin`, `ymin`, `xmax`, `ymax` in pixels of the upright image,
    - `score`: the detector's,
    - `landmarks`: five [x, y]: left eye, right eye, nose, left and right corner of the mouth, as seen in the image,
    - `expressions`: `label` and `score` of every class, the best first; the scores sum to 1.

    With `explain=True` each has two keys more: `crop`, the image that the model saw, and `heat_maps`, for each label
    how much each part of the crop speaks for it, float32 (8, 8), see `inference.explanation`; `draw_explanation(face)`
    is a figure of them. A face then takes as long as 82 without.

    A path or URL that ends like a video (`.mp4`, `.mov` ...) gives an iterator, which reads frame by frame and keeps
    none: a dictionary for each with `frame`, its number from 0, `time`, in seconds since the first, and `faces`. The
    faces are followed (see `fer_pll.faces.tracking`), so each has two keys more: `person`, its number from 0, and
    `raw`, the expressions of this frame alone; `expressions` are smoothed over time (see `inference.video.Smoother`).
    A list with videos gives a list in which they are iterators.

    Args (to `pipeline(...)` or to each call):
        detector: a name for `load_detector`, or a callable (see `model.face_detection`); default `"retinaface"`.
        crop: a `FaceCrop`, or a checkpoint to take it from; default: that of the model's image processor.
        timeout: seconds to wait for a server.
        every: use the frames 0, `every`, 2 `every` ... of a video.
        smooth: seconds over which the answers of a video are smoothed (0: none); default 0.2.
        min_face: find faces down to so many pixels in big images too, see `load_detector`; for a detector by name.
        top_k: give this many expressions of each face, the best; default: all.
        explain: see above.
        batch_size: number of faces that go through the model together; they may be from several images.

    Raises:
        ValueError: the model is no trained classifier or answers NaN, no crop is known for it, an image or video
            cannot be read, there is no such device, or the extra `faces` is not installed.
    """

    def __init__(self, model: Any, *, device: Any = None, **options: Any) -> None:
        if isinstance(model, _Refused):
            raise model.error
        name = model.name_or_path or "The model"
        if missing := getattr(model, "missing_weights", ()):
            raise DataError(f"{name} is not a trained classifier: it has no weights {missing[0]}; fine-tune it first")
        check_finite(model, name)
        check_device(device)
        super().__init__(model, device=device, **options)

    # These methods narrow the signatures of Pipeline, as its own subclasses do.
    def _sanitize_parameters(  # type: ignore[override]
        self,
        detector: str | Detector | None = None,
        crop: FaceCrop | str | None = None,
        timeout: float | None = None,
        every: int | None = None,
        top_k: int | None = None,
        smooth: float | None = None,
        min_face: int | None = None,
        explain: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_count("every", every)
        if smooth is not None:
            Smoother(smooth)  # raises what it does not take
        before, forward, after = super()._sanitize_parameters(
            detector, load_crop(crop) if isinstance(crop, str) else crop, timeout, min_face, top_k
        )
        before |= {name: value for name, value in (("every", every), ("smooth", smooth)) if value is not None}
        return before, forward, after | ({} if explain is None else {"explain": explain})

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if is_video(inputs):
            return self._frames(inputs, *args, **kwargs)
        if isinstance(inputs, list) and (not inputs or any(map(is_video, inputs))):
            return [self(each, *args, **kwargs) for each in inputs]
        return super().__call__(inputs, *args, **kwargs)

    def _frames(
        self,
        video: str | os.PathLike,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """The answers for a video; options are checked at once."""
        before, _, after = self._sanitize_parameters(**options)
        given = {**self._preprocess_params, **before}
        wanted = {**self._postprocess_params, **after}
        find = Finder(*self._detector_and_crop(given.get("detector"), given.get("crop")))
        timeout, every = given.get("timeout", 30), given.get("every", 1)
        classifier = Classifier(class_names(self.model.config), self.probabilities)
        answers = recognize_faces(
            _shown(video, every, timeout),
            find,
            classifier,
            batch_size or self._batch_size or 1,
            given.get("smooth", SMOOTHING),
            **wanted,
        )
        return ({"frame": shown.frame, "time": shown.time, "faces": faces} for shown, faces in answers)

    @torch.inference_mode()
    def probabilities(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Class probabilities, float64 (B, K), of images that show one face each."""
        pixel_values = self.image_processor(list(crops), return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixel_values.to(self.device, self.dtype)).logits
        return logits.double().softmax(dim=1).cpu().numpy()

    def open_image(self, image: Any, timeout: float | None) -> Image.Image:
        """A photograph, upright and RGB, see `io.images.open_image`."""
        if is_video(image):
            raise ImageError(f"{os.fspath(image)}: a video is given by itself or in a list, not by a generator")
        return open_image(image, timeout)

    def preprocess(  # type: ignore[override]
        self, image: Any, every: int = 1, smooth: float = SMOOTHING, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """As in `PhotographPipeline`; `every` and `smooth` are for videos."""
        return super().preprocess(image, **options)

    def postprocess(  # type: ignore[override]
        self, answers: list[dict[str, Any]], top_k: int | None = None, explain: bool = False
    ) -> list[dict[str, Any]]:
        faces = super().postprocess(answers, top_k)
        if explain:
            classes = class_names(self.model.config)
            crops = [answer["crop"] for answer in answers if answer["face"] is not None]
            for face, crop in zip(faces, crops, strict=True):
                face.update(explain_face(self.probabilities, crop, classes))
        return faces

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and image processor; the part of this task that travels comes with the model."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)


def load_recognizer(
    model: str | os.PathLike | None = None, device: str | int | torch.device | None = None, **options: Any
) -> FacialExpressionPipeline:
    """The pipeline of the task `facial-expression-recognition`, ready to use, for a trained model.

        recognize = fer_pll.load_recognizer()
        recognize("group.jpg")

    Args:
        model: folder of a trained classifier, `fer-pll-tiny-ferplus` (in the package, and the default) or Hub name.
        device: `"cpu"`, `"cuda"` ...; by default the GPU, where there is one.
        options: see `FacialExpressionPipeline`.

    Raises:
        ValueError: as `FacialExpressionPipeline`; or there is no such model, or it is damaged.
        OSError: it cannot be read.
    """
    name = DEFAULT_NAME if model is None else os.fspath(model)
    check_device(device)
    classifier = load_model(AutoModelForImageClassification, name).eval()
    return FacialExpressionPipeline(
        classifier, image_processor=load_image_processor(name), task=TASK, device=device, **options
    )


def _shown(video: str | os.PathLike, every: int, timeout: float | None) -> Iterator[Shown]:
    for shown in show(video, every, timeout):  # type: ignore[arg-type]  # str or os.PathLike
        if shown.image is None:
            raise ImageError(f"{os.fspath(video)}: {shown.problem}")
        yield shown
