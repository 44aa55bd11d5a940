"""Teachers: trained classifiers whose predictions a student learns from, beside its candidate sets."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset
from filelock import FileLock
from PIL import ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_backends import PilBackend

from ..inference.predictions import predict_logits
from ..io.atomic import whole_file
from ..io.errors import DataError
from ..io.pretrained import load_image_processor, load_model
from ..io.stored import reading
from ..labels.expressions import canonical_name
from ..model.face_answers import class_names
from .backbones import Images

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to gray


class Teacher:
    """One classifier, asked for the probabilities of a student's classes.

    Args:
        model: an image classifier of ours or of transformers.
        image_processor: its own; it says size, channels and normalization.
        names: the student's K classes. The teacher must know all of them, in any order.

    Raises:
        ValueError: the teacher does not know a class.
    """

    def __init__(self, model: PreTrainedModel, image_processor: PilBackend, names: Sequence[str]) -> None:
        self.model, self.image_processor = model.eval().requires_grad_(False), image_processor
        known = [canonical_name(name) for name in class_names(model.config)]
        missing = [name for name in names if canonical_name(name) not in known]
        if missing:
            raise ValueError(
                f"The teacher does not know {', '.join(missing)}; it knows {', '.join(known)}: take one that was "
                "trained on the student's classes."
            )
        self.columns = [known.index(canonical_name(name)) for name in names]
        self.images = Images.from_processor(image_processor, getattr(model.config, "num_channels", 3))

    @classmethod
    def load(cls, checkpoint: str, names: Sequence[str], device: torch.device) -> Self:
        """From a folder or Hub name; only safetensors are opened."""
        model: Any = load_model(AutoModelForImageClassification, checkpoint)
        try:
            return cls(model.to(device), load_image_processor(checkpoint), names)
        except ValueError as error:
            raise ValueError(f"--teacher {checkpoint}: {error}") from error

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities (B, K) for images (B, C, H, W) with values 0..255, of any size, gray or in color."""
        images = self.images
        mean, std = (pixels.new_tensor(each).view(-1, 1, 1) * 255 for each in (images.image_mean, images.image_std))
        if pixels.shape[1] != len(mean):
            gray = pixels.new_tensor(_LUMINANCE).view(-1, 1, 1)
            pixels = pixels.expand(-1, len(mean), -1, -1) if pixels.shape[1] == 1 else (pixels * gray).sum(1, True)
        size = (images.size, images.size)
        if pixels.shape[2:] != size:
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 255)
        return self._of_student(self.model(pixel_values=(pixels - mean) / std).logits)

    def probabilities_of(self, dataset: Dataset, batch_size: int = 256) -> Tensor:
        """Mean of the probabilities for each image and its mirror image, float32 (N, K); shows progress bars."""
        mirrored = dataset.with_transform(_mirror)
        logits = (predict_logits(self.model, self.image_processor, rows, batch_size) for rows in (dataset, mirrored))
        return torch.stack([self._of_student(each) for each in logits]).mean(dim=0)

    def _of_student(self, logits: Tensor) -> Tensor:
        chosen = logits.float()[:, self.columns]  # the softmax over them is renormalized
        return chosen.softmax(dim=1)


class Distillation:
    """The part of the loss that draws a student to its teachers (Hinton, Vinyals and Dean, 2015).

    With the mean of the teachers' probabilities p, the student's q, both sharpened or softened by the temperature T,
    p_T ~ p^(1/T), q_T ~ q^(1/T), the loss of a row is T^2 KL(p_T || q_T). The factor keeps its gradient's size.

    Args:
        teachers: classifiers, which see what the student sees; or their probabilities, (N, K) by row number.
        weight: share of this loss in the sum with the method's, 0 < weight <= 1.
        temperature: T > 0.

    Raises:
        ValueError: weight or temperature is out of its range.
    """

    def __init__(self, teachers: Sequence[Teacher] | Tensor, weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1 or not 0 < temperature < math.inf:
            raise ValueError("teacher_weight must lie in (0, 1], teacher_temperature must be positive.")
        self.teachers, self.weight, self.temperature = teachers, weight, temperature

    def blend(self, losses: Tensor, logits: Tensor, pixels: Tensor, index: Tensor) -> Tensor:
        """The losses (B,) of a step.

        Args:
            losses: (B,) of the method.
            logits: (B, K) of the student.
            pixels: (B, C, H, W), 0..255: the images that the student saw.
            index: (B,) row numbers.
        """
        if isinstance(self.teachers, Tensor):
            probabilities = self.teachers[index.to(self.teachers.device)].to(logits.device)
        else:
            probabilities = torch.stack([each.probabilities(pixels) for each in self.teachers]).mean(dim=0)
        return (1 - self.weight) * losses + self.weight * self.loss(logits, probabilities)

    def loss(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """T^2 KL(p_T || q_T), (B,), of logits and probabilities (B, K)."""
        log_target = (probabilities.clamp(min=1e-12).log() / self.temperature).log_softmax(dim=1)
        log_student = (logits.float() / self.temperature).log_softmax(dim=1)
        return self.temperature**2 * (log_target.exp() * (log_target - log_student)).sum(dim=1)


def cached_probabilities(
    path: str | Path, teachers: Sequence[Teacher], digests: Sequence[str], dataset: Dataset, fingerprint: str
) -> Tensor:
    """Mean of the teachers' probabilities for each row and its mirror image, (N, K), from a file or computed into it.

    Args:
        path: safetensors file; it is written where there is none.
        teachers: the classifiers.
        digests: of their weights, to know the file's again.
        dataset: N rows with `image`.
        fingerprint: of the data set, see `labels.candidates.dataset_fingerprint`.

    Raises:
        DataError: the file holds something else.
    """
    made_from = {"teachers": " ".join(digests), "fingerprint": fingerprint}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # another run may be computing the same
        if Path(path).is_file():
            with reading(path, "delete it, and it is computed again"), safe_open(path, "pt") as file:
                found, probabilities = file.metadata() or {}, file.get_tensor("probabilities")
            if found != made_from or len(probabilities) != len(dataset):
                raise DataError(f"{path} is of other teachers or other rows: name another file, or delete it")
            return probabilities
        probabilities = torch.stack([teacher.probabilities_of(dataset) for teacher in teachers]).mean(dim=0)
        with whole_file(path) as unfinished:
            save_file({"probabilities": probabilities}, unfinished, made_from)
    return probabilities


def _mirror(rows: dict[str, list]) -> dict[str, list]:
    return {"image": [ImageOps.mirror(image) for image in rows["image"]]}
