"""`fer-pll predict`: faces and expressions of many images and videos, in constant memory."""

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageDraw

from ..faces.alignment import FaceCrop, align_face
from ..faces.detection import Detector, load_detector
from ..io.atomic import whole_file
from ..io.download import is_url
from ..io.names import DEFAULT_NAME, find_checkpoint, is_onnx_folder
from ..io.tables import TableWriter, check_new_table
from ..io.terminal import number_of, say
from .answers import rank_expressions
from .explanation import draw_explanation, explain
from .media import Shown, list_files, show
from .onnx_runtime import OnnxClassifier

NO_FACE = "no face found"
_LONGEST_NAME = 200  # bytes

Answer = tuple[Shown, list[dict[str, Any]]]
"""Something that was shown, and the pipeline's answer; empty where there is no image."""

_COLUMNS = {
    "file": str,
    "frame": int,
    "face": int,
    "x": float,
    "y": float,
    "width": float,
    "height": float,
    "score": float,
    "expression": str,
}


def predict(
    sources: Sequence[str],
    model: str | None = None,
    out: str | None = None,
    save_pictures: str | None = None,
    cropped: bool = False,
    crop: str | None = None,
    detector: str = "retinaface",
    every: int = 1,
    batch_size: int = 16,
    device: str | None = None,
    overwrite: bool = False,
    backend: str | None = None,
    safe_csv: bool = False,
    save_explanations: str | None = None,
) -> bool:
    """Recognize the expression of each face in images and videos.

    What can be checked without the model is checked before it is loaded.

    Args:
        sources: see `fer_pll.inference.media.list_files`.
        model: folder of a classifier, `fer-pll-tiny-ferplus` (in the package, and the default) or Hub name; or a
            folder that `fer-pll export` wrote.
        out: table to write (`.csv`, `.jsonl`, `.parquet`). One row for each face, with the columns `file`, `frame`
            (of a video), `face` (from 0), the box `x`, `y`, `width`, `height` in pixels of the upright image (to a
            hundredth), the detector's `score`, `expression`, `p_CLASS` for every class, and `problem`: an image
            without a face and a file that cannot be read have a row that says so.
        save_pictures: new or empty folder for the images with their faces marked. They hold pixels only: no EXIF, no
            comment. Each has a name of its own.
        cropped: each image is a face crop already; no faces are searched for.
        crop: checkpoint whose crop is used where `model` has none.
        detector: see `fer_pll.faces.detection.load_detector`.
        every: use the frames 0, `every`, 2 `every` ... of a video.
        batch_size: number of faces that go through the model together.
        device: `cpu`, `cuda` ... (default: the GPU, where there is one). For torch only.
        overwrite: replace `out`, and write into `save_pictures` even if it holds files.
        backend: `torch`, or `onnx`, which imports neither torch nor transformers; by default what the model is for.
        safe_csv: see `TableWriter`.
        save_explanations: new or empty folder for a PNG of each face, see `draw_explanation`.

    Returns:
        whether it reached the end: False where Ctrl-C ended it.

    Raises:
        ValueError, OSError: something that the user can fix.
    """
    if every < 1 or batch_size < 1:
        raise ValueError(f"--every {every} and --batch-size {batch_size} must be at least 1")
    files = list_files(sources)
    if out is not None:
        check_new_table(out, overwrite)
    if backend == "onnx" and model is None:
        raise ValueError("--backend onnx: name the folder that `fer-pll export` wrote with --model")
    model = find_checkpoint(DEFAULT_NAME if model is None else model)
    backend = backend or ("onnx" if is_onnx_folder(model) else "torch")
    if backend == "onnx" and device is not None:
        raise ValueError(f"--device {device}: an exported model runs on the CPU; leave it out")
    folder = None if save_pictures is None else _ImageFolder(save_pictures, overwrite)
    explanations = None if save_explanations is None else _ImageFolder(save_explanations, overwrite)
    find = None if cropped else load_detector(detector)
    face_crop = None if crop is None or cropped else FaceCrop.from_pretrained(crop)
    if backend == "onnx":
        recognizer = _with_onnx(model, find, face_crop, batch_size)
    else:
        recognizer = _with_torch(model, find, face_crop, batch_size, device)
    columns = {**_COLUMNS, **{f"p_{name}": float for name in recognizer.classes}, "problem": str}
    table = TableWriter(out, columns, overwrite, safe_csv) if out is not None else None
    answers = _answers(recognizer.answer, files, every, recognizer.gray)

    counts: Counter[str] = Counter()
    expressions: Counter[str] = Counter()
    whole = False
    try:
        try:
            for shown, answer in answers if table is None else _counted(answers):
                faces: list[dict[str, Any]]
                faces = [{"box": None, "score": None, "expressions": answer}] if cropped and answer else answer
                counts["unreadable" if shown.problem else "images"] += 1
                counts["without a face"] += not (shown.problem or faces)
                counts["faces"] += len(faces)
                expressions.update(face["expressions"][0]["label"] for face in faces)
                not_saved = folder.save(shown, faces) if folder is not None and faces else None
                counts["not saved"] += not_saved is not None
                if explanations is not None:
                    for face in faces:
                        explanations.explain(shown, face, recognizer)
                for row in _rows(shown, faces, columns, not_saved):
                    if table is not None:
                        table.write(row)
                    else:
                        say(_line(row))
            whole = True
        except KeyboardInterrupt:
            say("", "Interrupted: what follows covers the images until here.")
    finally:
        place = table.close(whole) if table is not None else None

    seen = f"{number_of(counts['images'], 'image')} in {number_of(len(files), 'file')}"
    rest = [f"{counts[what]} {what}" for what in ("without a face", "unreadable", "not saved") if counts[what]]
    say(f"{seen}: {', '.join([number_of(counts['faces'], 'face'), *rest])}")
    if expressions:
        say(", ".join(f"{name} {count}" for name, count in expressions.most_common()))
    if place is not None:
        say(f"written to {place}")
    if folder is not None and counts["faces"]:
        say(f"marked images in {folder.path}")
    if explanations is not None and counts["faces"]:
        say(f"explanations in {explanations.path}")
    return whole


class _Recognizer(NamedTuple):
    """A loaded model. `answer` takes images and gives the answers of the task's pipeline, in the same order.

    `gray`: it takes face crops, and was trained on gray ones.
    `probabilities` gives those of the K classes, (B, K), for B face crops; `crop` is how they show a face, None where
    images are crops already.
    """

    classes: list[str]
    gray: bool
    answer: Callable[[Iterator[Image.Image]], Iterable[list[dict[str, Any]]]]
    probabilities: Callable[[list[Image.Image]], np.ndarray]
    crop: FaceCrop | None


def _with_torch(
    model: str, find: Detector | None, crop: FaceCrop | None, batch_size: int, device: str | None
) -> _Recognizer:
    # Imported here, because transformers loads torch.
    from transformers import AutoModelForImageClassification, pipeline

    from ..io.pretrained import load_image_processor, load_model
    from .loading import check_device, class_names
    from .pipeline import load_recognizer

    check_device(device)
    if find is not None:
        recognize = load_recognizer(model, device, detector=find, crop=crop, batch_size=batch_size)
        # At once, to raise before any image is opened.
        face_crop = crop or FaceCrop.from_image_processor(recognize.image_processor, model)
        return _Recognizer(class_names(recognize.model.config), False, recognize, recognize.probabilities, face_crop)
    classifier = load_model(AutoModelForImageClassification, model).eval()
    image_processor = load_image_processor(model)
    classes = class_names(classifier.config)
    classify = pipeline(
        "image-classification",
        model=classifier,
        image_processor=image_processor,
        device=device,
        batch_size=batch_size,
        top_k=len(classes),  # None means five
    )

    def answer(images: Iterator[Image.Image]) -> Iterator[list[dict[str, Any]]]:
        ranks: Any = classify(images)  # type: ignore[call-overload]  # a generator is not in its types
        for ranked in ranks:
            yield rank_expressions([each["score"] for each in ranked], [each["label"] for each in ranked])

    def probabilities(crops: list[Image.Image]) -> np.ndarray:
        scores = [{each["label"]: each["score"] for each in ranked} for ranked in classify(crops)]
        return np.array([[each[name] for name in classes] for each in scores])

    gray = _is_gray(getattr(image_processor, "face_crop", None), model)
    return _Recognizer(classes, gray, answer, probabilities, None)


def _with_onnx(model: str, find: Detector | None, crop: FaceCrop | None, batch_size: int) -> _Recognizer:
    classifier = OnnxClassifier(model)
    if find is None:
        gray = _is_gray(classifier.face_crop, model)
        classify = partial(classifier.classify, batch_size=batch_size)
        return _Recognizer(classifier.classes, gray, classify, classifier, None)
    face_crop = crop or FaceCrop.from_dict(classifier.face_crop, model)
    recognize = partial(classifier.recognize, detector=find, crop=face_crop, batch_size=batch_size)
    return _Recognizer(classifier.classes, False, recognize, classifier, face_crop)


def _is_gray(face_crop: dict[str, Any] | None, model: str) -> bool:
    return face_crop is not None and FaceCrop.from_dict(face_crop, model).color == "gray"


def _counted(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Pass answers on, and count them on a terminal."""
    terminal = sys.stderr.isatty()
    for number, answer in enumerate(answers, 1):
        yield answer
        if terminal:
            print(f"\r{number} images", end="", file=sys.stderr, flush=True)
    if terminal:
        print(file=sys.stderr)


def _answers(
    recognize: Callable[[Iterator[Image.Image]], Iterable[list[dict[str, Any]]]],
    files: list[Path | str],
    every: int,
    gray: bool = False,
) -> Iterator[Answer]:
    """Everything in the files, in order, with its answer.

    With `gray` the pipeline gets gray images, otherwise RGB, as `show` opens them. The pipeline reads ahead until it
    has a batch of faces: `waiting` holds what it has read and not yet answered.
    """
    waiting: deque[Shown] = deque()

    def images() -> Iterator[Image.Image]:
        for file in files:
            for shown in show(file, every):
                waiting.append(shown)
                if shown.image is not None:
                    yield shown.image.convert("L") if gray else shown.image

    for answer in recognize(images()):
        while waiting[0].problem:
            yield waiting.popleft(), []
        yield waiting.popleft(), answer
    while waiting:
        yield waiting.popleft(), []


def _rows(
    shown: Shown, faces: list[dict[str, Any]], columns: dict[str, type], not_saved: str | None = None
) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(columns)
    # File names need not be Unicode, tables must be.
    empty |= {"file": os.fsencode(shown.file).decode("utf-8", "backslashreplace"), "frame": shown.frame}
    if not faces:
        yield {**empty, "problem": shown.problem or NO_FACE}
    for number, face in enumerate(faces):
        row = {**empty, "face": number, "expression": face["expressions"][0]["label"], "problem": not_saved}
        if (box := face["box"]) is not None:
            row |= {"x": box["xmin"], "y": box["ymin"]}
            row |= {"width": box["xmax"] - box["xmin"], "height": box["ymax"] - box["ymin"]}
            row |= {name: round(row[name], 2) for name in ("x", "y", "width", "height")}
            row["score"] = round(face["score"], 6)
        yield row | {f"p_{each['label']}": round(each["score"], 8) for each in face["expressions"]}


def _line(row: dict[str, Any]) -> str:
    place = row["file"] if row["frame"] is None else f"{row['file']} frame {row['frame']}"
    if row["expression"] is None:
        return f"{place}: {row['problem']}"
    found = f"{place}: face {row['face']}: {row['expression']} {row['p_' + row['expression']]:.0%}"
    return f"{found} ({row['problem']})" if row["problem"] else found


class _ImageFolder:
    """A folder for images with marked faces. They keep their names; a name that is taken gets a number."""

    def __init__(self, path: str, overwrite: bool) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{path} is a file: name a folder for the images")
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise ValueError(f"{path} is not empty: choose another folder, or --overwrite to write into it")
        self.path.mkdir(parents=True, exist_ok=True)
        self._taken: set[str] = set()

    def save(self, shown: Shown, faces: list[dict[str, Any]]) -> str | None:
        """Save an image with its faces marked; the reason, where its format cannot hold it.

        Raises:
            OSError: nothing can be written there.
        """
        assert shown.image is not None  # it has faces
        marked = _marked(shown.image, faces)
        try:
            with whole_file(self.path / self._new_name(shown)) as unfinished:
                marked.save(unfinished, "JPEG", quality=92)
        except OSError as error:
            if error.errno is not None:  # of the system: a full disk, a folder that is gone
                raise
            return f"the marked image cannot be saved as JPEG ({error}; {marked.width} x {marked.height} pixels)"
        return None

    def explain(self, shown: Shown, face: dict[str, Any], recognizer: _Recognizer) -> None:
        """Save a figure that says why a face got its expressions.

        Raises:
            OSError: nothing can be written there.
        """
        assert shown.image is not None  # it has faces
        crop = shown.image.convert("L") if recognizer.gray else shown.image
        if recognizer.crop is not None:
            crop = align_face(shown.image, np.array(face["landmarks"]), recognizer.crop)
        figure = draw_explanation(face | explain(recognizer.probabilities, crop, recognizer.classes))
        with whole_file(self.path / self._new_name(shown, ".png")) as unfinished:
            figure.save(unfinished, "PNG")

    def _new_name(self, shown: Shown, ending: str = ".jpg") -> str:
        path = urlsplit(str(shown.file)).path if is_url(shown.file) else os.fspath(shown.file)
        stem = PurePosixPath(Path(path).as_posix()).stem or "image"
        if len(name := os.fsencode(stem)) > _LONGEST_NAME:  # a file system takes 255 bytes, with what is added to it
            stem = name[:_LONGEST_NAME].decode("utf-8", "ignore")
        stem = stem if shown.frame is None else f"{stem}-{shown.frame:06}"
        free, number = stem, 1
        while free.casefold() in self._taken:  # some file systems do not tell A from a
            number += 1
            free = f"{stem}-{number}"
        self._taken.add(free.casefold())
        return f"{free}{ending}"


def _marked(image: Image.Image, faces: list[dict[str, Any]]) -> Image.Image:
    image = image.copy()
    image.info = {}  # a comment would be saved
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 400))
    for face in faces:
        best = face["expressions"][0]
        left, top = 0, 0
        if (box := face["box"]) is not None:
            left, top = box["xmin"], box["ymin"]
            draw.rectangle((left, top, box["xmax"], box["ymax"]), outline="yellow", width=line)
            for x, y in face["landmarks"]:
                draw.ellipse((x - line, y - line, x + line, y + line), fill="cyan")
        text, size = f"{best['label']} {best['score']:.0%}", max(10, 6 * line)
        area = draw.textbbox((left, max(0, top - 1.3 * size)), text, font_size=size)
        draw.rectangle(area, fill="black")
        draw.text((left, max(0, top - 1.3 * size)), text, fill="yellow", font_size=size)
    return image
