"""Videos: true times, followed faces, smoothed answers, marked copies, timelines, and cameras."""

import itertools
import json
import math
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

import fer_pll_cli
from fer_pll import FerPllForImageClassification, FerPllImageProcessor, export_onnx, load_recognizer
from fer_pll.inference import media
from fer_pll.inference.marked import VideoFolder
from fer_pll.inference.media import Shown, newest, show
from fer_pll.inference.video import Smoother, Timeline
from fer_pll.plots.timeline import plot_timeline
from tiny import CLASSES
from videos import GROUND, place, write_frames

av = pytest.importorskip("av")
FERPLUS = Path(__file__).parents[2] / "hub_configs" / "fer-pll-tiny-ferplus"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    from tiny import tiny_config

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    classifier = FerPllForImageClassification(tiny_config())
    torch.nn.init.normal_(classifier.classifier.weight)
    classifier.save_pretrained(folder)
    contract = AutoImageProcessor.from_pretrained(FERPLUS).face_crop
    FerPllImageProcessor(
        num_channels=1, size={"height": 16, "width": 16}, image_std=[0.25], face_crop=contract
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> str:
    pytest.importorskip("onnxscript")
    folder, _ = export_onnx(model, out=tmp_path_factory.mktemp("onnx") / "exported")
    return str(folder)


TIMES = [0.0, 0.04, 0.1, 0.5, 0.54, 1.7]
"""Of the frames of the video `talk`: the rate varies. In the last but one nobody is there."""


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """Two faces that move."""
    size = (480, 270)
    frames = [
        place(250 + 3 * k, 0, 0.45, size, place(10 + 4 * k, 10, 0.5, size))
        if k != 4
        else Image.new("RGB", size, GROUND)
        for k in range(len(TIMES))
    ]
    return write_frames(tmp_path_factory.mktemp("talk") / "talk.mp4", frames, TIMES)


def predict(*argv: object) -> int:
    return fer_pll_cli.main(["predict", *map(str, argv)])


def rows_of(table: Path) -> list[dict]:
    return [json.loads(line) for line in table.read_text().splitlines()]


class TestTimes:
    @pytest.mark.parametrize("every", [1, 2, 4])
    def test_frames_have_the_times_that_are_stored(self, talk, every):
        shown = list(show(talk, every))
        assert [each.frame for each in shown] == list(range(0, len(TIMES), every))
        assert [each.time for each in shown] == pytest.approx(TIMES[::every], abs=6e-4)

    @pytest.mark.parametrize(
        ("rate", "ending"), [(25, "mp4"), (30, "mkv"), (Fraction(30000, 1001), "mp4"), (5, "avi")]
    )
    def test_a_constant_rate_is_a_constant_step(self, rate, ending, tmp_path):
        frames = [Image.new("RGB", (64, 48), (k, k, k)) for k in range(8)]
        times = [shown.time for shown in show(write_frames(tmp_path / f"a.{ending}", frames, rate=rate))]
        assert times == pytest.approx([k / float(rate) for k in range(8)], abs=1.1e-3)  # Matroska has milliseconds

    def test_the_first_frame_is_second_0_wherever_its_clock_stands(self, tmp_path):
        times = [100.0, 100.2, 101.0]
        path = write_frames(tmp_path / "a.mkv", [Image.new("RGB", (64, 48))] * 3, times)
        assert [shown.time for shown in show(path)] == pytest.approx([0, 0.2, 1.0], abs=2e-3)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.none() | st.floats(-1e6, 1e6), max_size=20),
        st.sampled_from([None, Fraction(25), Fraction(1001, 40)]),
    )
    def test_time_never_goes_back_and_is_a_number(self, stored, rate):
        clock = media._Clock(rate)
        times = [clock(each) for each in stored]
        assert all(0 <= a <= b < math.inf for a, b in itertools.pairwise([0, *times]))
        if stored and None not in stored and stored == sorted(stored):
            assert times == pytest.approx([each - stored[0] for each in stored])
        if all(each is None for each in stored):
            step = 0.04 if rate is None else 1 / float(rate)
            assert times == pytest.approx([k * step for k in range(len(stored))])


PROBABILITIES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.01)
STEPS = st.lists(st.tuples(st.floats(0, 5), PROBABILITIES), min_size=1, max_size=12)


class TestSmoother:
    @settings(max_examples=100, deadline=None)
    @given(STEPS, st.floats(0.01, 3))
    def test_the_answer_is_the_weighted_mean_of_its_formula(self, steps, seconds):
        """Written out: each frame's weight fades by exp(-time since / seconds); the first has what is left."""
        smoother = Smoother(seconds)
        now, times, given_ = 0.0, [], []
        for step, p in steps:
            now += step
            times.append(now)
            given_.append(np.array(p) / sum(p))
            smoothed = smoother(0, now, given_[-1])
        weights = [1.0] + [1 - math.exp(-(b - a) / seconds) for a, b in itertools.pairwise(times)]
        faded = [w * math.exp(-(times[-1] - t) / seconds) for w, t in zip(weights, times, strict=True)]
        np.testing.assert_allclose(smoothed, np.array(faded) @ np.array(given_), atol=1e-9)
        assert smoothed.sum() == pytest.approx(1) and (smoothed >= 0).all()

    @pytest.mark.parametrize("rate", [5, 25, 100, 1000])
    def test_a_change_arrives_at_the_same_time_at_every_rate(self, rate):
        smoother = Smoother(0.2)
        smoother(0, 0.0, np.array([1.0, 0.0]))
        for k in range(1, rate + 1):
            smoothed = smoother(0, k / rate, np.array([0.0, 1.0]))
            assert smoothed[0] == pytest.approx(math.exp(-k / rate / 0.2), abs=1e-9)

    def test_persons_are_apart_and_zero_seconds_change_nothing(self):
        smoother = Smoother(1)
        smoother(0, 0.0, np.array([1.0, 0.0]))
        np.testing.assert_array_equal(smoother(1, 0.1, np.array([0.0, 1.0])), [0, 1])
        plain = Smoother(0)
        plain(0, 0.0, np.array([1.0, 0.0]))
        np.testing.assert_array_equal(plain(0, 0.1, np.array([0.0, 1.0])), [0, 1])

    def test_who_left_long_ago_is_forgotten_and_nobody_else(self):
        smoother = Smoother(0.2)
        for person in range(5000):
            smoother(person, person * 1.0, np.array([0.5, 0.5]))
        assert len(smoother._last) <= 256
        again, kept = Smoother(0.2), Smoother(0.2)
        for s, persons in ((again, 1), (kept, 1000)):  # with and without a thousand others in the meantime
            s(0, 0.0, np.array([1.0, 0.0]))
            for other in range(1, persons):
                s(other, 0.05, np.array([1.0, 0.0]))
        np.testing.assert_array_equal(*(s(0, 0.1, np.array([0.0, 1.0])) for s in (again, kept)))

    @pytest.mark.parametrize("seconds", [-0.1, math.inf, math.nan])
    def test_impossible_seconds_are_refused(self, seconds):
        with pytest.raises(ValueError, match="must be seconds from 0 up"):
            Smoother(seconds)


class TestTimeline:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.floats(0, 1e5), min_size=1, max_size=50).map(sorted), st.randoms(use_true_random=False))
    def test_it_keeps_means_whatever_the_length(self, times, random):
        timeline = Timeline(["a", "b"])
        values = [random.random() for _ in times]
        for moment, value in zip(times, values, strict=True):
            timeline.add(3, moment, [value, 1 - value], [0.0, 1.0])
        middles, smoothed, raw = timeline.of(3)
        assert timeline.persons == [3] and timeline.frames(3) == len(times)
        assert len(middles) <= 2048 and times[-1] < 2048 * timeline.step
        places = [int(moment / timeline.step) for moment in times]
        for middle, (mean, rest) in zip(middles, smoothed, strict=True):
            here = [v for v, p in zip(values, places, strict=True) if p == int(middle / timeline.step)]
            assert mean == pytest.approx(np.mean(here)) and rest == pytest.approx(1 - mean)
        np.testing.assert_allclose(raw, [[0, 1]] * len(middles))

    def test_a_day_takes_the_memory_of_a_minute(self):
        timeline = Timeline(["a", "b"])
        for moment in range(0, 86_400, 7):
            timeline.add(0, float(moment), [0.5, 0.5], [0.5, 0.5])
        assert len(timeline.of(0)[0]) <= 2048 and 42 <= timeline.step <= 85

    def test_its_chart(self, tmp_path):
        timeline = Timeline(["calm", "$x$ _and_ more", "never"])
        for k in range(200):
            share = 0.5 + 0.5 * math.sin(k / 20)
            for person in range(14) if k < 100 else (0, 13):
                timeline.add(person, k / 25, [share, 1 - share, 0], [share, 1 - share, 0])
        assert plot_timeline(timeline, tmp_path / "a.png") == [*range(11), 13]  # twelve, those who are there longest
        chart = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
        for name, color in (("calm", (32, 102, 168)), ("$x$", (217, 123, 28)), ("never", (46, 133, 64))):
            assert ((chart == color).all(axis=1).sum() > 500) == (name != "never")


class TestNewest:
    def test_a_slow_reader_misses_what_it_has_no_time_for_and_gets_the_last(self):
        read, ended = threading.Event(), threading.Event()

        def items():
            yield 0
            read.wait(60)
            yield from range(1, 100)
            ended.set()

        given_ = newest(items())
        first = next(given_)
        read.set()
        assert ended.wait(60)
        assert [first, *given_] == [0, 99]

    def test_what_is_raised_comes_after_what_was_there(self):
        def items():
            yield 1
            raise media.ImageError("camera-0: unplugged")

        given_ = newest(items())
        assert next(given_) == 1
        with pytest.raises(media.ImageError, match="unplugged"):
            next(given_)

    def test_it_stops_reading_when_nobody_listens(self):
        closed = threading.Event()

        def items():
            try:
                for number in itertools.count():
                    time.sleep(0.001)
                    yield number
            finally:
                closed.set()

        given_ = newest(items())
        assert next(given_) >= 0
        given_.close()
        assert closed.wait(60)


class TestCamera:
    def test_a_device_of_ffmpeg_is_a_camera(self):
        """lavfi is an input device, as cameras are: 12 frames of a test card, at the speed of a clock."""
        source = "testsrc=size=64x48:rate=20:duration=0.6,realtime"
        frames = list(media._show_device(source, "lavfi", "camera-0", 1))
        numbers, times = [each.frame for each in frames], [each.time for each in frames]
        assert numbers == sorted(set(numbers)) and numbers[-1] == 11
        assert times == pytest.approx([number / 20 for number in numbers], abs=1e-3)
        assert {each.image.size for each in frames} == {(64, 48)} and {each.file for each in frames} == {"camera-0"}

    @pytest.mark.skipif(sys.platform != "linux" or Path("/dev/video97").exists(), reason="Linux without that camera")
    def test_a_camera_that_is_not_there_ends_in_one_line(self, model, capsys):
        assert predict("--camera", 97, "--model", model) == 1
        assert "camera-97: " in capsys.readouterr().err.strip().splitlines()[-1]

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["a.mp4", "--camera", "0"], "and not both"),
            (["--camera", "0", "--cropped"], "--cropped looks for no faces"),
        ],
    )
    def test_what_does_not_go_together(self, argv, message, model, capsys):
        assert predict(*argv, "--model", model) == 1
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_table_of_followed_faces(backend, model, exported, talk, tmp_path, capsys):
    folder = model if backend == "torch" else exported
    out = tmp_path / "t.jsonl"
    options = ("--save-video", tmp_path / "marked", "--save-timelines", tmp_path / "charts", "--batch-size", 3)
    assert predict(talk, "--model", folder, "--backend", backend, "--out", out, *options) == 0
    rows = rows_of(out)
    columns = ["file", "frame", "time", "face", "person", "x", "y", "width", "height", "score", "expression"]
    columns += [f"p_{name}" for name in CLASSES] + [f"raw_{name}" for name in CLASSES] + ["problem"]
    assert list(rows[0]) == columns
    # In frame 4 nobody is there; both return 1.2 s after they were seen: that is too long, and they are others.
    persons = [(row["frame"], row["person"]) for row in rows]
    assert persons == [(k, p) for k in range(4) for p in (0, 1)] + [(4, None), (5, 2), (5, 3)]
    assert [row["time"] for row in rows] == pytest.approx([TIMES[row["frame"]] for row in rows], abs=6e-4)
    last: dict[int, tuple[float, np.ndarray]] = {}
    for row in rows:
        if row["problem"]:
            assert row["problem"] == "no face found"
            continue
        raw, smoothed = (np.array([row[f"{kind}_{name}"] for name in CLASSES]) for kind in ("raw", "p"))
        if row["person"] in last:
            before, expected = last[row["person"]]
            raw = expected + (1 - math.exp(-(row["time"] - before) / 0.2)) * (raw - expected)
        np.testing.assert_allclose(smoothed, raw, atol=1e-4)
        assert row["expression"] == CLASSES[int(smoothed.argmax())]
        last[row["person"]] = row["time"], smoothed
    again = list(show(tmp_path / "marked" / "talk.mp4"))
    assert [shown.time for shown in again] == pytest.approx(TIMES, abs=1e-3)
    original = [np.asarray(shown.image).astype(int) for shown in show(talk)]
    marked = [np.asarray(shown.image).astype(int) for shown in again]
    changed = [np.abs(one - other).max(axis=2) > 60 for one, other in zip(marked, original, strict=True)]
    assert all(there.sum() > 100 for k, there in enumerate(changed) if k != 4) and changed[4].sum() == 0
    assert np.abs(marked[4] - original[4]).mean() < 4
    with Image.open(tmp_path / "charts" / "talk.png") as chart:
        assert chart.format == "PNG" and min(chart.size) > 300
    said = capsys.readouterr().out
    assert f"marked videos in {tmp_path / 'marked'}" in said and f"timelines in {tmp_path / 'charts'}" in said


def test_torch_and_onnx_say_the_same(model, exported, talk, tmp_path):
    for folder, name in ((model, "torch"), (exported, "onnx")):
        assert predict(talk, "--model", folder, "--out", tmp_path / f"{name}.jsonl", "--smooth", 0) == 0
    for one, other in zip(rows_of(tmp_path / "torch.jsonl"), rows_of(tmp_path / "onnx.jsonl"), strict=True):
        assert one["person"] == other["person"] and one["expression"] == other["expression"]
        for name in CLASSES if one["expression"] else ():
            assert one[f"p_{name}"] == one[f"raw_{name}"] == pytest.approx(other[f"p_{name}"], abs=1e-5)


class TestPipeline:
    def test_a_video_is_an_iterator_of_its_frames(self, model, talk, tmp_path):
        recognize = load_recognizer(model, "cpu")
        assert predict(talk, "--model", model, "--out", tmp_path / "t.jsonl") == 0
        rows = [row for row in rows_of(tmp_path / "t.jsonl") if row["expression"]]
        frames = recognize(talk, batch_size=2)
        assert iter(frames) is frames
        frames = list(frames)
        assert [frame["frame"] for frame in frames] == list(range(6))
        assert [frame["time"] for frame in frames] == pytest.approx(TIMES, abs=6e-4)
        faces = [face for frame in frames for face in frame["faces"]]
        for face, row in zip(faces, rows, strict=True):
            assert face["person"] == row["person"]
            for kind, prefix in (("expressions", "p"), ("raw", "raw")):
                scores = {each["label"]: each["score"] for each in face[kind]}
                assert scores == pytest.approx({name: row[f"{prefix}_{name}"] for name in CLASSES}, abs=1e-6)

    def test_frames_come_before_the_video_ends(self, model, tmp_path):
        """A file whose end is no video: its first frames are answered before that is known."""
        whole = write_frames(tmp_path / "long.mkv", (place(10, 10, 0.4 + k / 300, (240, 240)) for k in range(30)))
        content = whole.read_bytes()
        (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3] + b"x" * (len(content) // 3))
        frames = load_recognizer(model, "cpu")(tmp_path / "cut.mkv")
        first = next(frames)
        assert first["frame"] == 0 and len(first["faces"]) == 1
        rest = list(itertools.islice(frames, 10))
        assert [frame["frame"] for frame in rest] == list(range(1, 11))

    def test_lists_options_and_what_is_refused(self, model, talk):
        recognize = load_recognizer(model, "cpu", every=2, smooth=0)
        image = place(0, 0, 0.5, (256, 256))
        faces, video = recognize([image, str(talk)], top_k=2)
        assert len(faces) == 1 and "person" not in faces[0]
        frames = list(video)
        assert [frame["frame"] for frame in frames] == [0, 2, 4]
        for face in frames[1]["faces"]:
            assert face["raw"] == face["expressions"] and len(face["raw"]) == 2
        with pytest.raises(ValueError, match=r"talk.mp4: a video is given by itself or in a list"):
            list(recognize(each for each in [str(talk)]))
        with pytest.raises(ValueError, match="every=0 must be a whole number"):
            recognize(talk, every=0)
        with pytest.raises(ValueError, match=r"gone.mp4: there is no such file"):
            next(recognize("gone.mp4"))


class TestMarkedVideos:
    @pytest.mark.parametrize("size", [(64, 48), (63, 47), (65, 48)])
    def test_odd_sizes_repeat_their_edge(self, size, tmp_path):
        folder = VideoFolder(str(tmp_path / "v"), overwrite=False)
        colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
        for k, color in enumerate(colors):
            folder.add(Shown("a.mp4", k, Image.new("RGB", size, color), time=k * k / 10), [])
        folder.close(whole=True)
        shown = list(show(tmp_path / "v" / "a.mp4"))
        assert [each.time for each in shown] == pytest.approx([0, 0.1, 0.4], abs=1e-3)
        assert shown[0].image.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        for each, color in zip(shown, colors, strict=True):
            assert np.abs(np.asarray(each.image).astype(int) - color).max() < 16

    def test_each_video_has_a_file_and_one_cut_off_has_none(self, tmp_path):
        folder = VideoFolder(str(tmp_path / "v"), overwrite=False)
        for name in ("a/x.mp4", "b/x.mp4", "y.mp4"):
            for k in range(2):
                folder.add(Shown(name, k, Image.new("RGB", (32, 32)), time=k / 25), [])
        folder.add(Shown("photo.jpg", None, Image.new("RGB", (32, 32))), [])
        folder.close(whole=False)
        assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["x-2.mp4", "x.mp4"]

    def test_a_size_that_changes_is_brought_to_the_first(self, tmp_path):
        folder = VideoFolder(str(tmp_path / "v"), overwrite=False)
        for k, size in enumerate([(64, 48), (128, 96), (64, 48)]):
            folder.add(Shown("a.mp4", k, Image.new("RGB", size, (90, 90, 90)), time=k / 25), [])
        folder.close(whole=True)
        assert [shown.image.size for shown in show(tmp_path / "v" / "a.mp4")] == [(64, 48)] * 3


MEMORY = """
import resource, sys
import fer_pll_cli
fer_pll_cli.leave_out_transformers()
from fer_pll.inference.predict import predict
source, model, out = sys.argv[1:]
predict([source], model=model, out=out, save_video=f"{out}-v", save_timelines=f"{out}-t")
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
def test_a_long_video_takes_the_memory_of_a_short_one_without_torch(exported, tmp_path):
    most = []
    for count in (40, 600):
        frames = (place(20 + 10 * math.sin(k / 9), 10, 0.5, (640, 360)) for k in range(count))
        path = write_frames(tmp_path / f"{count}.mp4", frames)
        command = [sys.executable, "-c", MEMORY, path, exported, tmp_path / f"{count}.csv"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        most.append(int(run.stdout.splitlines()[-1]))
    assert most[1] < most[0] + 30


@pytest.mark.long
@pytest.mark.parametrize(
    ("moods", "least"),
    [
        ([(0, "happiness"), (4, "happiness")], 0.99),
        # An expression that comes and goes has frames that are neither: 197 of 200 agreed here.
        ([(0, "neutral"), (2, "happiness"), (4, "happiness"), (5, "surprise"), (8, "surprise")], 0.97),
    ],
    ids=["steady", "acting"],
)
def test_expressions_are_those_of_each_frame_alone(moods, least, tmp_path):
    """By the checkpoint of the package, of a drawn person who sways, with a steady face and with one that changes."""
    from fer_pll.model.face_alignment import FaceCrop, align_face
    from fer_pll.model.face_detection import RetinaFace, find_faces
    from videos import drawn

    person, count = drawn(3, moods), round(moods[-1][0] * 25)

    def frame(k: int) -> Image.Image:
        image = Image.new("RGB", (480, 360), (90, 90, 90))
        image.paste(
            person(k / 25).convert("RGB"), (round(100 + 30 * math.sin(k / 15)), round(50 + 20 * math.cos(k / 11)))
        )
        return image

    path = write_frames(tmp_path / "a.mp4", (frame(k) for k in range(count)))
    recognize = load_recognizer(device="cpu")
    detector, crop = RetinaFace(), FaceCrop.from_image_processor(recognize.image_processor)
    alone = []
    for shown in show(path):
        (face,) = find_faces(shown.image, detector)
        (row,) = recognize.probabilities([align_face(shown.image, face.landmarks, crop)])
        alone.append(recognize.model.config.id2label[int(row.argmax())])
    followed = [face["raw"][0]["label"] for each in recognize(path) for face in each["faces"]]
    assert len(followed) == count
    assert np.mean([a == b for a, b in zip(alone, followed, strict=True)]) >= least
