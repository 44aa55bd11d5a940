"""`fer-pll predict`: faces and expressions of many images and videos, in constant memory."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..faces.crops import load_crop
from ..io.atomic import check_apart
from ..io.download import is_url
from ..io.names import find_checkpoint, is_onnx_folder
from ..io.shipped import DEFAULT_NAME
from ..io.tables import TableWriter, check_new_table
from ..io.terminal import number_of, say
from ..model.face_alignment import FaceCrop
from ..model.face_detection import Face, load_detector
from .marked import ExplanationFolder, ImageFolder, TimelineFolder, VideoFolder
from .media import Shown, is_video, list_files, show, show_camera
from .onnx_runtime import OnnxClassifier
from .recognizing import Answer, Classifier, Finder, recognize_faces
from .video import SMOOTHING, Smoother

NO_FACE = "no face found"

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
_OF_VIDEOS = {"frame": "time", "face": "person"}
"""Columns that a table with videos has behind others."""


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
    save_video: str | None = None,
    save_timelines: str | None = None,
    camera: int | None = None,
    smooth: float = SMOOTHING,
    min_face: int | None = None,
    save_explanations: str | None = None,
) -> bool:
    """Recognize the expression of each face in images and videos.

    The faces of a video are followed (see `fer_pll.faces.tracking`), and their probabilities smoothed.

    What can be checked without the model is checked before it is loaded.

    Args:
        sources: see `fer_pll.inference.media.list_files`.
        model: folder of a classifier, `fer-pll-tiny-ferplus` (in the package, and the default) or Hub name; or a
            folder that `fer-pll export` wrote.
        out: table to write (`.csv`, `.jsonl`, `.parquet`). One row for each face, with the columns `file`, `frame`
            (of a video), `face` (from 0), the box `x`, `y`, `width`, `height` in pixels of the upright image (to a
            hundredth), the detector's `score`, `expression`, `p_CLASS` for every class, and `problem`: an image
            without a face and a file that cannot be read have a row that says so. With a video among the sources, or
            a camera, also `time` (seconds since the first frame), `person` (from 0 in each video) and `raw_CLASS`, of
            the frame alone, where `p_CLASS` is smoothed over time.
        save_pictures: new or empty folder for the images with their faces marked. They hold pixels only: no EXIF, no
            comment. Each has a name of its own.
        cropped: each image is a face crop already; no faces are searched for.
        crop: checkpoint whose crop is used where `model` has none.
        detector: see `fer_pll.model.face_detection.load_detector`.
        every: use the frames 0, `every`, 2 `every` ... of a video.
        batch_size: number of faces that go through the model together.
        device: `cpu`, `cuda` ... (default: the GPU, where there is one). For torch only.
        overwrite: replace `out`, and write into the folders even if they hold files.
        backend: `torch`, or `onnx`, which imports neither torch nor transformers; by default what the model is for.
        safe_csv: see `TableWriter`.
        save_video: new or empty folder for the videos with their faces marked (MP4).
        save_timelines: new or empty folder for a chart of each video: the expressions of its persons over time (PNG).
        camera: number of a camera to watch instead of sources, until Ctrl-C; see `show_camera`.
        smooth: seconds over which the answers of videos are smoothed, see `Smoother`; 0: not at all.
        min_face: find faces down to so many pixels in big images too, see `SmallFaces`.
        save_explanations: new or empty folder for a PNG of each face, see `draw_explanation`.

    Returns:
        whether it reached the end: False where Ctrl-C ended it, unless it was a camera's.

    Raises:
        ValueError, OSError: something that the user can fix.
    """
    if every < 1 or batch_size < 1:
        raise ValueError(f"--every {every} and --batch-size {batch_size} must be at least 1")
    if bool(sources) == (camera is not None):
        raise ValueError("name images or videos, or a camera with --camera N, and not both")
    if cropped and (
        camera is not None or save_video is not None or save_timelines is not None or min_face is not None
    ):
        raise ValueError(
            "--cropped looks for no faces: leave out --camera, --save-video, --save-timelines, --min-face"
        )
    files = list_files(sources)
    for each in filter(None, (save_pictures, save_explanations, save_video, save_timelines) if overwrite else ()):
        check_apart(each, {Path(file).parent for file in files if not is_url(file)})
    if out is not None:
        check_new_table(out, overwrite)
    if backend == "onnx" and model is None:
        raise ValueError("--backend onnx: name the folder that `fer-pll export` wrote with --model")
    model = find_checkpoint(DEFAULT_NAME if model is None else model)
    backend = backend or backend_of(model)
    if backend == "onnx" and device is not None:
        raise ValueError(f"--device {device}: an exported model runs on the CPU; leave it out")
    Smoother(smooth)  # raises what it does not take
    folder = None if save_pictures is None else ImageFolder(save_pictures, overwrite)
    explanations = None if save_explanations is None else ExplanationFolder(save_explanations, overwrite)
    videos = None if save_video is None else VideoFolder(save_video, overwrite)
    loaded = None if cropped else load_detector(detector, min_face)
    face_crop = None if crop is None or cropped else load_crop(crop)
    classifier, own_crop = load_classifier(model, backend, device)
    timelines = None if save_timelines is None else TimelineFolder(save_timelines, overwrite, classifier.classes)
    moving = not cropped and (camera is not None or any(map(is_video, files)))
    columns = table_columns(classifier.classes, moving)
    find: Callable[[Shown], list[tuple[Face | None, Image.Image]]]
    if loaded is None:
        find = _as_crop(_is_gray(own_crop, model))
    else:
        find = Finder(loaded, face_crop or FaceCrop.from_dict(own_crop, model))
    table = TableWriter(out, columns, overwrite, safe_csv) if out is not None else None
    answers = recognize_faces(
        _shown(files, every) if camera is None else show_camera(camera, every),
        find,
        classifier,
        batch_size if camera is None else 1,  # a camera's answers come at once
        smooth,
        explain=explanations is not None,
    )

    counts: Counter[str] = Counter()
    expressions: Counter[str] = Counter()
    said: dict[int, str] = {}
    whole = False
    try:
        try:
            for shown, faces in answers if table is None else _counted(answers):
                counts["unreadable" if shown.problem else "images"] += 1
                counts["without a face"] += not (shown.problem or faces)
                counts["faces"] += len(faces)
                expressions.update(face["expressions"][0]["label"] for face in faces)
                not_saved = folder.save(shown, faces) if folder is not None and faces else None
                counts["not saved"] += not_saved is not None
                if explanations is not None:
                    explanations.save(shown, faces)
                if videos is not None:
                    videos.add(shown, faces)
                if timelines is not None:
                    timelines.add(shown, faces)
                for row in table_rows(shown, faces, columns, not_saved):
                    if table is not None:
                        table.write(row)
                    elif camera is None or _is_news(row, said):
                        say(_line(row))
            whole = True
        except KeyboardInterrupt:
            whole = camera is not None  # it has no other end
            say("", "Interrupted: what follows covers the images until here.")
        if timelines is not None:
            timelines.close()
    finally:
        if videos is not None:
            videos.close(whole)
        place = table.close(whole) if table is not None else None

    seen = number_of(counts["images"], "image")
    seen += f" in {number_of(len(files), 'file')}" if camera is None else f" of camera {camera}"
    rest = [f"{counts[what]} {what}" for what in ("without a face", "unreadable", "not saved") if counts[what]]
    say(f"{seen}: {', '.join([number_of(counts['faces'], 'face'), *rest])}")
    if expressions:
        say(", ".join(f"{name} {count}" for name, count in expressions.most_common()))
    if place is not None:
        say(f"written to {place}")
    if folder is not None and counts["faces"]:
        say(f"marked images in {folder.path}")
    for results, what in ((explanations, "explanations"), (videos, "marked videos"), (timelines, "timelines")):
        if results is not None and results.files:
            say(f"{what} in {results.path}")
    return whole


def table_columns(classes: Sequence[str], moving: bool) -> dict[str, type]:
    """The columns of the table that `predict` writes; `moving`: there are videos in it."""
    columns: dict[str, type] = {}
    for name, kind in _COLUMNS.items():
        columns[name] = kind
        if moving and name in _OF_VIDEOS:
            columns[_OF_VIDEOS[name]] = float if name == "frame" else int
    columns |= {f"p_{name}": float for name in classes}
    columns |= {f"raw_{name}": float for name in classes if moving}
    return columns | {"problem": str}


def backend_of(model: str) -> str:
    """What runs a model, `torch` or `onnx`: what `find_checkpoint` found says itself."""
    return "onnx" if is_onnx_folder(model) else "torch"


def load_classifier(model: str, backend: str, device: str | None = None) -> tuple[Classifier, Any]:
    """A model, and the `face_crop` of its image processor.

    Args:
        model: what `find_checkpoint` found.
        backend: `torch`, or `onnx`, which imports neither torch nor transformers.
        device: see `predict`.

    Raises:
        ValueError, OSError: it is not there, damaged, or no trained classifier.
    """
    if backend == "onnx":
        exported = OnnxClassifier(model)
        return Classifier(exported.classes, exported), exported.face_crop
    # Imported here, because transformers loads torch.
    from ..model.face_answers import class_names
    from .pipeline import load_recognizer

    recognizer = load_recognizer(model, device)
    face_crop = getattr(recognizer.image_processor, "face_crop", None)
    return Classifier(class_names(recognizer.model.config), recognizer.probabilities), face_crop


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


def _shown(files: list[Path | str], every: int) -> Iterator[Shown]:
    for file in files:
        yield from show(file, every)


def _as_crop(gray: bool) -> Callable[[Shown], list[tuple[Face | None, Image.Image]]]:
    """For `recognize_faces`: each image is a crop; gray where the model was trained on such."""

    def find(shown: Shown) -> list[tuple[Face | None, Image.Image]]:
        assert shown.image is not None
        return [(None, shown.image.convert("L").convert("RGB") if gray else shown.image)]

    return find


def table_rows(
    shown: Shown, faces: list[dict[str, Any]], columns: dict[str, type], not_saved: str | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of the table for something that was shown: one for each face, or one that says what is the matter."""
    empty = dict.fromkeys(columns)
    # File names need not be Unicode, tables must be.
    empty |= {"file": os.fsencode(shown.file).decode("utf-8", "backslashreplace"), "frame": shown.frame}
    if "time" in columns and shown.time is not None:
        empty["time"] = round(shown.time, 6)
    if not faces:
        yield {**empty, "problem": shown.problem or NO_FACE}
    for number, face in enumerate(faces):
        row = {**empty, "face": number, "expression": face["expressions"][0]["label"], "problem": not_saved}
        if (box := face["box"]) is not None:
            row |= {"x": box["xmin"], "y": box["ymin"]}
            row |= {"width": box["xmax"] - box["xmin"], "height": box["ymax"] - box["ymin"]}
            row |= {name: round(row[name], 2) for name in ("x", "y", "width", "height")}
            row["score"] = round(face["score"], 6)
        if "person" in face:
            row["person"] = face["person"]
            row |= {f"raw_{each['label']}": round(each["score"], 8) for each in face["raw"]}
        yield row | {f"p_{each['label']}": round(each["score"], 8) for each in face["expressions"]}


def _line(row: dict[str, Any]) -> str:
    place = row["file"] if row["frame"] is None else f"{row['file']} frame {row['frame']}"
    if row["expression"] is None:
        return f"{place}: {row['problem']}"
    who = f"face {row['face']}" if row.get("person") is None else f"person {row['person']}"
    found = f"{place}: {who}: {row['expression']} {row['p_' + row['expression']]:.0%}"
    return f"{found} ({row['problem']})" if row["problem"] else found


def _is_news(row: dict[str, Any], said: dict[int, str]) -> bool:
    """Whether a person's expression is another than was said last; a camera would say it at every frame."""
    person, expression = row["person"], row["expression"]
    if person is None or said.get(person) == expression:
        return False
    said[person] = expression
    return True
