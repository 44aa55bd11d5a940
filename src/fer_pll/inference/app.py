"""The page of `fer-pll app`: photographs, a webcam and videos, in a browser, with Gradio.

It asks no other host for anything, and sends nothing anywhere. What is uploaded lies in a folder of its own, which
goes when the page ends.
"""

import base64
import html
import io
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..io.errors import DataError, MissingExtra
from ..io.images import MAX_BYTES, open_image
from ..io.names import find_checkpoint
from ..io.shipped import DEFAULT_NAME
from ..io.tables import TableWriter
from ..io.terminal import number_of, say
from ..model.face_alignment import FaceCrop
from ..model.face_detection import Detector, Face, load_detector
from .explanation import draw_explanation, explain
from .marked import TimelineFolder, VideoFolder, marked
from .media import VIDEOS, Shown, show
from .predict import NO_FACE, backend_of, load_classifier, table_columns, table_rows
from .recognizing import Answer, Classifier, Finder, recognize_faces

HOST = "127.0.0.1"
"""Where the page is served unless another address is given: for this machine alone."""

LIMITS = """\
### What it must not be used for

A face is not a feeling: the answers say what strangers would call a face in an image, not what a person feels,
thinks or intends. They are often wrong, more often for rare expressions, and perhaps more often for some groups of
people than for others.

Do not use them to watch people without their knowledge, or to decide about them: on work, schooling, credit,
insurance, health care, migration or policing. Some of this is forbidden by law. Ask the people whose faces you show.
"""

_EVERY_FRAME = 0.05  # seconds between the frames that the browser sends of a webcam
_KEPT = 3600  # seconds for which what was uploaded is kept while the page runs
_QUALITY = 85  # of JPEG, of what goes back to the browser of a webcam
_SIDE = 192  # in pixels, of a crop on the page
_MODELS = 3  # that stay loaded


class _Model(NamedTuple):
    name: str
    classifier: Classifier
    crop: FaceCrop


class _Models:
    """Models by the names that a user may give, those used last kept in memory."""

    def __init__(self, named: Sequence[str], any_model: bool) -> None:
        self.named, self.any_model = list(named), any_model
        self._loaded: dict[str, _Model] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str | None) -> _Model:
        """The model of that name.

        Raises:
            ValueError, OSError: it may not be asked for here, is not there, or is no trained classifier.
        """
        name = (name or "").strip()
        if not name:
            raise DataError("name a model")
        if name not in self.named and not self.any_model:
            raise DataError(f"{name}: choose one of {', '.join(self.named)}")
        with self._lock:
            if name not in self._loaded:
                place = find_checkpoint(name)
                classifier, crop = load_classifier(place, backend_of(place))
                self._loaded[name] = _Model(name, classifier, FaceCrop.from_dict(crop, name))
            model = self._loaded.pop(name)
            self._loaded[name] = model  # the last in order
            for other in list(self._loaded)[:-_MODELS]:
                del self._loaded[other]
            return model


class _Seen(NamedTuple):
    """An image with its faces: what `recognize_faces` says of each, and the crop that the model saw."""

    image: Image.Image
    faces: list[dict[str, Any]]
    crops: list[Image.Image]


class _Watcher:
    """The faces of what is shown to one model: of photographs, or followed from frame to frame.

    `recognize_faces` is the path of both. It asks for the next frame only when its answer is asked for.
    """

    def __init__(self, model: _Model, detector: Detector) -> None:
        self.model = model
        self._find = Finder(detector, model.crop)
        self._found: list[tuple[Face | None, Image.Image]] = []
        self._next: list[Shown] = []
        self._frames = 0
        self._start = time.monotonic()
        self._answers: Iterator[Answer] | None = None

    def _each(self) -> Iterator[Shown]:
        while True:
            yield self._next.pop()

    def _remember(self, shown: Shown) -> list[tuple[Face | None, Image.Image]]:
        self._found = self._find(shown)
        return self._found

    def photograph(self, image: Image.Image) -> _Seen:
        return self._see(Shown("photograph", None, image))

    def frame(self, image: Image.Image) -> _Seen:
        shown = Shown("webcam", self._frames, image, time=time.monotonic() - self._start)
        self._frames += 1
        return self._see(shown)

    def _see(self, shown: Shown) -> _Seen:
        if self._answers is None:
            self._answers = recognize_faces(self._each(), self._remember, self.model.classifier, batch_size=1)
        self._next = [shown]
        try:
            answered, faces = next(self._answers)
        except BaseException:
            self._answers = None  # it ended with that
            raise
        assert answered.image is not None
        return _Seen(answered.image, faces, [crop for _, crop in self._found])


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise MissingExtra(f"the page needs Gradio ({error}): pip install 'fer-pll[app]'") from error
    return gradio


@contextmanager
def _said_on_the_page() -> Iterator[None]:
    """What a user can mend is a message on the page, and not a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = html.escape(" ".join(str(error).split())[:500])
        raise _gradio().Error(message, print_exception=False) from error


def _bars(face: dict[str, Any] | None) -> dict[str, float] | None:
    return None if face is None else {each["label"]: each["score"] for each in face["expressions"]}


def _caption(number: int, face: dict[str, Any]) -> str:
    best = face["expressions"][0]
    return f"{number}: {best['label']} {best['score']:.0%}"


def _numbered(faces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [face | {"person": number} for number, face in enumerate(faces)]


def _enlarged(crop: Image.Image) -> Image.Image:
    """A crop with its pixels as squares, large enough to be looked at."""
    times = max(1, _SIDE // max(crop.size))
    return crop.resize((crop.width * times, crop.height * times), Image.Resampling.NEAREST)


def _largest(seen: _Seen) -> int | None:
    def area(number: int) -> float:
        box = seen.faces[number]["box"]
        return (box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"])

    return max(range(len(seen.faces)), key=area, default=None)


class _Answers:
    """What the page asks for. Each answer is in the order of the page's parts."""

    def __init__(self, models: _Models, detector: Detector) -> None:
        self.models, self.detector = models, detector

    def photograph(self, source: str | None, model: str) -> tuple[Any, ...]:
        """The marked image, the crops, the bars of the largest face, no figure, and what the next questions need."""
        if source is None:
            return None, [], None, None, None
        with _said_on_the_page():
            seen = _Watcher(self.models(model), self.detector).photograph(_open(source))
        if not seen.faces:
            _gradio().Warning(f"{NO_FACE[0].upper()}{NO_FACE[1:]} in this photograph.")
            return seen.image, [], None, None, None
        chosen = _largest(seen)
        crops = [
            (_enlarged(crop), _caption(number, face))
            for number, (face, crop) in enumerate(zip(seen.faces, seen.crops, strict=True))
        ]
        picture = marked(seen.image, _numbered(seen.faces))
        return picture, crops, _bars(seen.faces[chosen or 0]), None, (model, seen, chosen)

    def choose(self, number: int, state: tuple[str, _Seen, int] | None) -> tuple[Any, ...]:
        """The bars of another face of the photograph, no figure yet, and the state with it."""
        if state is None or not 0 <= number < len(state[1].faces):
            return None, None, state
        return _bars(state[1].faces[number]), None, (*state[:2], number)

    def why(self, state: tuple[str, _Seen, int] | None) -> Image.Image:
        """The heat maps of the chosen face."""
        with _said_on_the_page():
            if state is None:
                raise DataError("show a photograph with a face first")
            name, seen, number = state
            classifier = self.models(name).classifier
            maps = explain(classifier.probabilities, seen.crops[number], classifier.classes)
            return draw_explanation(seen.faces[number] | maps)

    def frame(self, source: str | None, model: str, watcher: _Watcher | None) -> tuple[Any, ...]:
        """The marked frame, the crop and the bars of the largest face, and who follows the faces."""
        if source is None:
            return None, None, None, watcher
        with _said_on_the_page():
            if watcher is None or watcher.model.name != model.strip():
                watcher = _Watcher(self.models(model), self.detector)
            seen = watcher.frame(_open(source))
        largest = _largest(seen)
        if largest is None:
            return seen.image, None, None, watcher
        return marked(seen.image, seen.faces), _enlarged(seen.crops[largest]), _bars(seen.faces[largest]), watcher

    def video(self, source: str | None, model: str, every: float | None) -> Iterator[tuple[Any, ...]]:
        """How far it is; at the end also the marked video, the timeline and the table."""
        with _said_on_the_page(), tempfile.TemporaryDirectory(prefix="fer-pll-video-") as scratch:
            if source is None:
                raise DataError("choose a video first")
            if Path(source).suffix.lower() not in VIDEOS:
                raise DataError(f"{Path(source).name}: name it as a video ({', '.join(sorted(VIDEOS))})")
            name, classifier, crop = self.models(model)
            folder = Path(scratch)
            # Gradio copies the files of the last answer before this folder goes.
            videos = VideoFolder(str(folder / "marked"), overwrite=False)
            timelines = TimelineFolder(str(folder / "timelines"), False, classifier.classes)
            columns = table_columns(classifier.classes, moving=True)
            table = TableWriter(folder / "faces.csv", columns, safe_csv=True)
            frames, said, whole, problem = 0, 0.0, False, None
            try:
                # The name in the table is that of the video alone: where it lies here says nothing.
                shown = (each._replace(file=Path(source).name) for each in show(Path(source), max(1, int(every or 1))))
                for each, faces in recognize_faces(shown, Finder(self.detector, crop), classifier):
                    problem = each.problem or problem
                    frames += each.image is not None
                    videos.add(each, faces)
                    timelines.add(each, faces)
                    for row in table_rows(each, faces, columns):
                        table.write(row)
                    if each.time is not None and time.monotonic() - said > 1:
                        said = time.monotonic()
                        yield f"{number_of(frames, 'frame')}, {each.time:.1f} s of the video", None, None, None
                timelines.close()
                whole = True
            finally:
                videos.close(whole)
                place = table.close(whole)
            if not frames:
                raise DataError(f"{Path(source).name}: {problem}")
            note = f"{number_of(frames, 'frame')}, {name}" + (f"; {problem}" if problem else "")
            files = [next((folder / inside).iterdir(), None) for inside in ("marked", "timelines")]
            yield note, *(None if file is None else str(file) for file in files), str(place)


def _open(source: str) -> Image.Image:
    """An upload, or a frame as a data URL. A path is never taken for the address of another host."""
    if source.startswith("data:"):
        return open_image(source)
    shown = next(show(Path(source)))
    if shown.image is None:
        raise DataError(f"{Path(source).name}: {shown.problem}")
    return shown.image


def _as_uploaded(payload: Any) -> str | None:
    """In place of the preprocessing of Gradio's parts, which opens images without a limit and converts videos."""
    if payload is None:
        return None
    url = payload.url if isinstance(payload.url, str) else ""
    return url if url.startswith("data:") else payload.path


def _as_data_url(image: Image.Image | None, format: str) -> Any:
    """In place of the postprocessing of Gradio's images, which writes a file that the browser must ask for."""
    if image is None:
        return None
    written = io.BytesIO()
    image.save(written, format, quality=_QUALITY)
    url = f"data:image/{format};base64,{base64.b64encode(written.getvalue()).decode()}"
    return _gradio().data_classes.ImageData(url=url)


def make_page(models: Sequence[str] = (DEFAULT_NAME,), any_model: bool = False, detector: str = "retinaface") -> Any:
    """The page, a `gradio.Blocks`. The first model is loaded at once.

    Args:
        models: names for `find_checkpoint` that can be chosen.
        any_model: other names can be written too: folders of this machine, and names on the Hub.
        detector: see `load_detector`.

    Raises:
        MissingExtra: Gradio, or what the detector needs, is not installed.
        ValueError, OSError: the first model cannot be used.
    """
    gr = _gradio()
    loaded = _Models(models, any_model)
    answers = _Answers(loaded, load_detector(detector))
    classes = loaded(models[0]).classifier.classes

    def given(kind: Callable[..., Any], label: str, **options: Any) -> Any:
        made = kind(label=label, **options)
        made.preprocess = _as_uploaded
        return made

    def picture(label: str, **options: Any) -> Any:
        buttons = ["download", "fullscreen"]  # not the one that shares it with others
        return gr.Image(label=label, format="png", interactive=False, buttons=buttons, **options)

    def moving(label: str, format: str, **options: Any) -> Any:
        made = gr.Image(label=label, interactive=False, buttons=[], **options)
        made.postprocess = partial(_as_data_url, format=format)
        return made

    with gr.Blocks(title="Facial expressions", analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        gr.Markdown("# Facial expressions\nImages stay on the computer that serves this page, for an hour at most.")
        model = gr.Dropdown(
            list(models),
            value=models[0],
            label="Model",
            allow_custom_value=any_model,
            info="Choose one, or write the folder of a checkpoint or its name on the Hub." if any_model else None,
            elem_id="model",
        )
        with gr.Tab("Photograph", id="photograph"):
            state = gr.State(time_to_live=_KEPT)
            with gr.Row():
                photograph = given(gr.Image, "Photograph", sources=["upload", "clipboard"], elem_id="photograph")
                found = picture("Faces", elem_id="faces")
            with gr.Row():
                crops = gr.Gallery(
                    label="What the model saw: choose a face", format="png", columns=4, height="auto",
                    object_fit="contain", allow_preview=False, interactive=False, buttons=[], elem_id="crops",
                )  # fmt: skip
                bars = gr.Label(label="Probabilities", num_top_classes=len(classes), elem_id="bars")
            button = gr.Button("Why? Heat maps of this face", elem_id="why")
            figure = picture("Why", show_label=False, elem_id="heat-maps")
        with gr.Tab("Webcam", id="webcam"):
            watcher = gr.State(time_to_live=_KEPT)
            with gr.Row():
                camera = given(
                    gr.Image, "Webcam", sources=["webcam"], streaming=True,
                    webcam_options=gr.WebcamOptions(mirror=False), elem_id="camera",
                )  # fmt: skip
                live = moving("Faces", "jpeg", elem_id="live")
            with gr.Row():
                live_crop = moving("What the model saw of the largest face", "png", height=240, elem_id="live-crop")
                live_bars = gr.Label(label="Probabilities", num_top_classes=len(classes), elem_id="live-bars")
        with gr.Tab("Video", id="video"):
            video = given(gr.Video, "Video", sources=["upload"], elem_id="upload")
            every = gr.Number(1, label="Use every Nth frame", precision=0, minimum=1, elem_id="every")
            with gr.Row():
                start = gr.Button("Recognize", variant="primary", elem_id="start")
                stop = gr.Button("Stop", elem_id="stop")
            note = gr.Markdown(elem_id="note")
            with gr.Row():
                film = gr.Video(label="Faces", interactive=False, buttons=["download"], elem_id="film")
                chart = picture("Timeline", elem_id="timeline")
            table = gr.File(label="Table", elem_id="table")
        gr.Markdown(LIMITS, elem_id="limits")

        shown = [found, crops, bars, figure, state]
        gr.on([photograph.change, model.change], answers.photograph, [photograph, model], shown, api_name="photograph")

        def choose(event: gr.SelectData, state: Any) -> tuple[Any, ...]:  # type: ignore[name-defined]
            return answers.choose(event.index, state)

        crops.select(choose, [state], [bars, figure, state], api_visibility="private")
        button.click(answers.why, [state], [figure], api_name="why")
        camera.stream(
            answers.frame,
            [camera, model, watcher],
            [live, live_crop, live_bars, watcher],
            stream_every=_EVERY_FRAME,
            show_progress="hidden",
            api_name="frame",
        )
        run = start.click(answers.video, [video, model, every], [note, film, chart, table], api_name="video")
        stop.click(None, cancels=[run])
    return page


@contextmanager
def _only_uploads() -> Iterator[None]:
    """What the page shows was uploaded to it, into a folder that goes at the end.

    Gradio fetches the addresses that its clients name, in place of uploads and as files, with the two functions of
    safehttpx that are replaced here.
    """
    import safehttpx

    async def refuse(address: str, *_: Any, **__: Any) -> Any:
        raise _gradio().Error("upload the file: this page fetches no address", print_exception=False)

    fetching, place = (safehttpx.get, safehttpx.async_validate_url), tempfile.tempdir
    before = os.environ.get("GRADIO_TEMP_DIR")
    with (
        _ended_by_a_signal(),
        tempfile.TemporaryDirectory(prefix="fer-pll-app-", ignore_cleanup_errors=True) as folder,
    ):
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))  # read when the parts of a page are made
        tempfile.tempdir = folder  # of videos that are being marked
        safehttpx.get = safehttpx.async_validate_url = refuse
        try:
            yield
        finally:
            safehttpx.get, safehttpx.async_validate_url = fetching
            tempfile.tempdir = place
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """SIGTERM, as of whoever runs a service, ends the block as Ctrl-C does, and not before its end is tidy."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield
        return

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)  # as shells have it

    handler = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def serve(
    models: Sequence[str] = (DEFAULT_NAME,),
    host: str = HOST,
    port: int | None = None,
    any_model: bool = False,
    detector: str = "retinaface",
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models, any_model, detector: see `make_page`.
        host: address to listen at; another than `HOST` lets other machines in.
        port: default: the first free one from 7860 on.

    Raises:
        ValueError, OSError: as `make_page`; or the port is taken.
    """
    gr = _gradio()
    with _only_uploads():
        page = make_page(models, any_model, detector)
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            max_file_size=MAX_BYTES, enable_monitoring=False, run_history=False, footer_links=[], theme=theme,
        )  # fmt: skip
        say(f"{address} shows the page; Ctrl-C ends it")
        page.block_thread()
