"""Export of a trained classifier to an ONNX file, which onnxruntime runs without torch.

`fer_pll.inference.onnx_runtime.OnnxClassifier` reads what is written here.
"""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..data.dataset import load_dataset
from ..data.sources.synthetic.dataset import Drawing
from ..io.atomic import check_local, check_writable, whole_folder, write_json
from ..io.errors import MissingExtra
from ..io.pretrained import load_image_processor, load_model
from ..model.image_processing_fer_pll import FerPllImageProcessor
from .onnx_runtime import MODEL_FILE, OnnxClassifier

TOLERANCE = 1e-4
"""The largest difference that a float32 export's logits may have from torch's."""

AGREEMENT = 0.98
"""The share of images for which an int8 export must find the same class as torch."""

OPSET = 20
"""The first version with Gelu as one operation; onnxruntime reads it since 1.17."""

DTYPES = ("float32", "int8")


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def export_onnx(
    checkpoint: str, out: str | Path | None = None, dtype: str = "float32", data: str | None = None
) -> tuple[Path, str]:
    """Write a classifier for onnxruntime: a folder with model.onnx, config.json and preprocessor_config.json.

    model.onnx takes `pixel_values`, float32 (B, C, H, W) with any B, and gives `logits`, float32 (B, K). The folder
    appears only once its answers, computed from the image on, agree with torch's.

    With int8, weights are rounded to 8 bits, with a scale for each output channel. Activations are rounded at run
    time, by their range in the batch. On FER+ this changed fewer answers than ranges fixed beforehand on calibration
    images, and was faster. But because of this rounding an image's logits depend on what else is in its batch.

    Args:
        checkpoint: folder of a classifier with a `FerPllImageProcessor`, `fer-pll-tiny-ferplus` (in the package) or
            Hub name.
        out: new or empty folder; by default the checkpoint's name with `-onnx`, or `-onnx-int8`, after it.
        dtype: one of `DTYPES`.
        data: folder of a prepared data set: 500 images of its `validation` are compared too. Without it, only drawn
            faces are compared.

    Returns:
        the folder, and a line that says how close its answers are to torch's.

    Raises:
        MissingExtra: a package of the extra `onnx` is not installed.
        ValueError: `dtype` is not one of `DTYPES`, `out` is taken, the checkpoint is no such classifier, or the
            answers differ too much.
    """
    _check_dtype(dtype)
    suffix = "-onnx" if dtype == "float32" else f"-onnx-{dtype}"
    if out is not None:
        check_local(out)
    target = Path(out if out is not None else checkpoint.rstrip("/") + suffix).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose another folder (--out), or remove it")
    check_writable(target)
    model, image_processor = load_classifier(checkpoint)
    images = drawn_images(16 if dtype == "float32" else 200)
    if data is not None:
        validation = load_dataset(data, "validation")
        step = max(1, len(validation) // 500)
        images += validation[: 500 * step : step]["image"]

    with whole_folder(target) as folder:
        folder.mkdir()
        size: Any = image_processor.size  # a SizeDict, whatever the class had
        write_model(model, folder / MODEL_FILE, dtype, image_size=size.height)
        for name, settings in (
            ("config", model.config.to_diff_dict()),
            ("preprocessor_config", image_processor.to_dict()),
        ):
            for key in ("auto_map", "custom_pipelines"):  # the code that they name is not in this folder
                settings.pop(key, None)
            write_json(folder / f"{name}.json", settings)
        closeness = _compare(model, image_processor, OnnxClassifier(folder), images, dtype)
    return target, closeness


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose one of {', '.join(DTYPES)}")


def load_classifier(checkpoint: str) -> tuple[PreTrainedModel, FerPllImageProcessor]:
    """A classifier that can be exported, in float32, and its image processor.

    Raises:
        ValueError: there is none, or its image processor is another.
    """
    # Eager attention becomes plain matrix products, which are fast in every version of onnxruntime.
    model = load_model(AutoModelForImageClassification, checkpoint, dtype=torch.float32, attn_implementation="eager")
    image_processor = load_image_processor(checkpoint)
    if not isinstance(image_processor, FerPllImageProcessor):
        raise ValueError(
            f"{checkpoint}: its images are prepared by {type(image_processor).__name__}, which cannot be exported; "
            "train it with FerPllImageProcessor as processing_class"
        )
    return model.eval(), image_processor


def drawn_images(count: int) -> list[Image.Image]:
    """Drawn faces: gray ones, and colored ones of other sizes, so that resizing and conversion are compared too."""
    drawn = (Drawing("test", number, image_size=64)() for number in range(count))
    faces: list[Image.Image] = [Image.open(io.BytesIO(each)) for each in drawn]
    for number in range(1, count, 2):
        colored = Image.merge("RGB", (faces[number - 1], faces[number], faces[0]))
        faces[number] = colored.resize((40 + 7 * (number % 40), 300 - 5 * (number % 50)))
    return faces


def write_model(model: PreTrainedModel, path: Path, dtype: str = "float32", image_size: int | None = None) -> None:
    """Write an image classifier as an ONNX file, as `export_onnx` does, without the comparison.

    Args:
        model: its config says how many channels the images have.
        path: of the file.
        dtype: one of `DTYPES`.
        image_size: side of the images in pixels; by default the config's, which networks of convolutions may lack.

    Raises:
        MissingExtra: a package of the extra `onnx` is not installed.
        ValueError: `dtype` is not one of `DTYPES`.
    """
    _check_dtype(dtype)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"The export needs {error.name}: pip install 'fer-pll[onnx]'") from error
    config = model.config
    side = config.image_size if image_size is None else image_size
    example = torch.zeros(2, config.num_channels, side, side)
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns that torchvision is missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from torch, about itself
            program = torch.onnx.export(
                _Logits(model).eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            )
    finally:
        exporter.setLevel(level)
    assert program is not None  # of the exporter that `dynamo=True` chooses
    program.save(path, external_data=False)
    if dtype == "int8":
        quantize(path)


def quantize(path: Path) -> None:
    """Round the weights of an exported model to 8 bits, in its file, see `export_onnx`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inferred = path.with_suffix(".inferred.onnx")
    quant_pre_process(path, inferred, skip_optimization=True, skip_symbolic_shape=True)
    quantize_dynamic(
        inferred,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QUInt8,  # sums of products with signed ones saturate on CPUs without VNNI
        extra_options={"MatMulConstBOnly": True},  # skip the products of attention: they have no weights
    )
    inferred.unlink()


@torch.inference_mode()
def _compare(
    model: PreTrainedModel,
    image_processor: FerPllImageProcessor,
    exported: OnnxClassifier,
    images: list[Image.Image],
    dtype: str,
) -> str:
    """How close the export is to torch, in words.

    Raises:
        ValueError: not close enough.
    """
    differences, same = [], []
    for k in range(0, len(images), 32):
        batch = images[k : k + 32]
        expected = model(image_processor(batch, return_tensors="pt")["pixel_values"]).logits.numpy()
        answers = exported.logits(exported.preprocess(batch))
        differences.append(np.abs(answers - expected).max())
        same += (answers.argmax(axis=1) == expected.argmax(axis=1)).tolist()
    return judge(dtype, differences, same, "logits", TOLERANCE)


def judge(dtype: str, differences: list[float], same: list[bool], what: str, tolerance: float) -> str:
    """How close an exported model is to torch, in words.

    Args:
        dtype: of its weights: `float32`, judged by `tolerance`, or `int8`, judged by `AGREEMENT`.
        differences: the largest ones, in whatever groups of images.
        same: for each image, whether the most likely class is that of torch.
        what: that the differences are of.
        tolerance: largest difference allowed in float32.

    Raises:
        ValueError: not close enough.
    """
    difference, agreement = max(differences), np.mean(same)
    closeness = f"same class as torch for {agreement:.1%} of {len(same)} images, "
    closeness += f"{what} differ by at most {difference:.2g}"
    # In this form NaN fails too.
    if not (difference <= tolerance if dtype == "float32" else agreement >= AGREEMENT):
        bound = f"at most {tolerance:g}" if dtype == "float32" else f"{AGREEMENT:.0%} of the images"
        raise ValueError(
            f"The exported model is not written, because it differs from torch: {closeness} ({bound} needed)"
        )
    return closeness
