"""Photographs and frames of videos a second, from the file to the expressions, beside other packages."""

import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from .common import Result

FACE = (177.9, 56.8, 273.1, 177.2)
"""The box of the face in `skimage.data.astronaut()`, 512 x 512."""

SAME = 0.35
"""Intersection over union from which on a box is that of a face: detectors draw their boxes with other margins."""


def add_options(parser):
    parser.add_argument("--photographs", type=int, default=12, metavar="N", help="photographs (default: 12)")
    parser.add_argument("--frames", type=int, default=50, metavar="N", help="frames of each video (default: 50)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="turns of each side (default: 1)")
    parser.add_argument(
        "--face-api",
        metavar="DIR",
        help="compare with face-api as well; DIR is a folder in which `npm install @vladmandic/face-api "
        "@tensorflow/tfjs @tensorflow/tfjs-backend-wasm` was run",
    )


def measure(args):
    """From files to the expressions of their faces: photographs of 1600 x 1067 with one to five faces, and videos of
    1280 x 720 with one face and with five that move and change their size. All faces are scikit-image's astronaut.

    Ours is the checkpoint in the package, in onnxruntime (as `fer-pll predict` runs an exported model) and in torch;
    in videos its faces are followed. The sides `frame by frame` search each frame as if it were a photograph. `fer`
    (Haar cascades), `deepface` (OpenCV's cascades, RetinaFace) and, with --face-api, face-api in Node (WebAssembly;
    the tiny detector and SSD) take part where they are installed. They know no videos, or go through them image by
    image: each gets the decoded frames. Decoding counts for all but face-api, which gets pixels.

    With --threads 1 the benchmark measures processor time, so other work on the machine does not count.

    For each side the table also has the faces that were found, of those that are there, and the false ones.

    ratios: video_1 and video_5, frames a second of ours in onnxruntime, with the targets 25 and 12; over_photographs,
    over_video_1 and over_video_5, ours over the quickest of the peers that find at least as many faces as ours, with
    no more false ones: at least 2; agreement_1, the share of frames with one face in which following tells the same
    expression as frame by frame, at least 0.99. Ratios without a peer are left out.
    """
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sets = {
            "photographs": write_photographs(folder, args.photographs),
            "video_1": write_video(Path(folder, "one.mp4"), args.frames, 1),
            "video_5": write_video(Path(folder, "five.mp4"), args.frames, 5),
        }
        ours, peers = our_sides(folder, args.threads), {}
        versions = []
        for name, make in PEERS.items():
            try:
                sides, version = stack.enter_context(make(args, folder))
            except Missing as missing:
                print(f"{name} is left out: {missing}", file=sys.stderr)
                continue
            versions.append(f"{name} {version}")
            peers |= sides
        sides = {**ours, **peers}
        clock = time.process_time if args.threads == 1 else time.perf_counter
        runs = {}
        for turn in range(args.repeats):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                for name, (files, _) in sets.items():
                    if turn == 0:
                        list(sides[side](files[:1], 2))  # what is loaded once does not count
                    start, seconds, answers = clock(), 0.0, []
                    for boxes, expressions, taken in sides[side](files, None):
                        answers.append((boxes, expressions))
                        seconds += taken or 0.0
                    runs.setdefault((side, name), []).append((seconds or clock() - start, answers))
    return report(sets, ours, peers, runs, versions)


def report(sets, ours, peers, runs, versions):
    rate, found, false = {}, {}, {}
    for (side, name), turns in runs.items():
        truth = sets[name][1]
        seconds = sorted(taken for taken, _ in turns)[len(turns) // 2]
        answers = turns[0][1]
        rate[side, name] = len(answers) / seconds
        found[side, name], false[side, name] = judge([boxes for boxes, _ in answers], truth)
    titles = {"photographs": "photographs", "video_1": "video, one face", "video_5": "video, five faces"}
    table = [("a second; faces found; false ones", *titles.values())]
    for side in (*ours, *peers):
        cells = [
            f"{rate[side, name]:.1f}; {found[side, name]}/{sum(map(len, sets[name][1]))}; {false[side, name]}"
            for name in sets
        ]
        table.append((side, *cells))
    ratios = {name: rate["onnx", name] for name in ("video_1", "video_5")}
    targets = {"video_1": 25.0, "video_5": 12.0}
    for name in sets:
        equal = [
            rate[side, name]
            for side in peers
            if found[side, name] >= found["onnx", name] and false[side, name] <= false["onnx", name]
        ]
        if equal:
            ratios[f"over_{name}"] = rate["onnx", name] / max(equal)
            targets[f"over_{name}"] = 2.0
    both = [runs[side, "video_1"][0][1] for side in ("onnx", "onnx, frame by frame")]
    same = [one[1] == other[1] for one, other in zip(*both, strict=True)]
    ratios["agreement_1"], targets["agreement_1"] = sum(same) / len(same), 0.99
    return Result(table, ratios, targets, ", ".join(versions) or "none")


def judge(answers, truth):
    """Of boxes (left, top, right, bottom) per image: how many faces were found, and how many boxes are of no face."""
    found = false = 0
    for boxes, faces in zip(answers, truth, strict=True):
        left = list(faces)
        for box in boxes:
            best = max(left, key=partial(overlap, box), default=None)
            if best is not None and overlap(box, best) >= SAME:
                left.remove(best)
                found += 1
            else:
                false += 1
    return found, false


def overlap(box, other):
    """Intersection over union."""
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def scene(size, faces, moment):
    """A picture with faces, and their boxes."""
    from PIL import Image
    from skimage.data import astronaut

    photograph = Image.fromarray(astronaut())
    image = Image.new("RGB", size, (40, 60, 70))
    boxes = []
    for k in range(faces):
        side = round((480 if faces == 1 else size[0] / 5.1) * (1 + 0.1 * math.sin(moment / 25 + k)))
        left = round((300 if faces == 1 else 10 + k * size[0] / 5.02) + 15 * math.sin(moment / 10 + k))
        top = round(80 + (90 * k if faces > 1 else 0) + 15 * math.cos(moment / 13 + k))
        image.paste(photograph.resize((side, side), Image.Resampling.BICUBIC), (left, top))
        boxes.append(tuple(place + side / 512 * edge for place, edge in zip((left, top) * 2, FACE, strict=True)))
    return image, boxes


def write_photographs(folder, count):
    files, truth = [], []
    for number in range(count):
        image, boxes = scene((1600, 1067), 1 + number % 5, 31 * number)
        files.append(Path(folder, f"{number:03}.jpg"))
        image.save(files[-1], quality=92)
        truth.append(boxes)
    return files, truth


def write_video(path, count, faces):
    """A video of H.264 at 25 frames a second, as phones and cameras of computers write."""
    import av

    truth = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1280, 720, "yuv420p", 4_000_000
        for number in range(count):
            image, boxes = scene((1280, 720), faces, number)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            truth.append(boxes)
        container.mux(stream.encode())
    return [path], truth


# A side takes files, and how many images of each at most (None: all). For each image it yields boxes (left, top,
# right, bottom), the expression of each, and the seconds that it took where the process is another, else None.


def opened(files, most):
    """The images of the files, as Pillow has them."""
    from itertools import islice

    from fer_pll.inference.media import show

    for file in files:
        yield from islice(show(file), most)


def our_sides(folder, threads):
    import fer_pll
    from fer_pll.inference.onnx_runtime import OnnxClassifier
    from fer_pll.inference.recognizing import Classifier, Finder, recognize_faces
    from fer_pll.model.face_alignment import FaceCrop
    from fer_pll.model.face_detection import RetinaFace

    exported, _ = fer_pll.export_onnx("fer-pll-tiny-ferplus", out=Path(folder, "onnx"))
    onnx = OnnxClassifier(exported, threads)
    recognizer = fer_pll.load_recognizer(device="cpu")
    detector, crop = RetinaFace(threads=threads), FaceCrop.from_dict(onnx.face_crop, "the checkpoint")
    classifiers = {
        "onnx": Classifier(onnx.classes, onnx),
        "torch": Classifier(onnx.classes, recognizer.probabilities),
    }

    def side(classifier, follow, files, most):
        images = opened(files, most)
        if not follow:
            images = (shown._replace(frame=None, time=None) for shown in images)
        for _, faces in recognize_faces(images, Finder(detector, crop), classifier):
            boxes = [tuple(face["box"].values()) for face in faces]
            yield boxes, [face.get("raw", face["expressions"])[0]["label"] for face in faces], None

    sides = {name: partial(side, classifier, True) for name, classifier in classifiers.items()}
    return sides | {"onnx, frame by frame": partial(side, classifiers["onnx"], False)}


class Missing(Exception):
    """A peer is not installed, or does not start here; the message says why."""


def corners(boxes):
    return [(x, y, x + width, y + height) for x, y, width, height in boxes]


@contextmanager
def fer_sides(args, folder):
    import numpy as np

    try:
        from importlib.metadata import version

        try:
            from fer.fer import FER
        except ImportError:
            from fer import FER
        detector = FER(mtcnn=False)
    except Exception as error:  # its import imports much that fails in many ways
        raise Missing(f"{type(error).__name__}: {error}") from error

    def side(files, most):
        for shown in opened(files, most):
            faces = detector.detect_emotions(np.ascontiguousarray(np.asarray(shown.image)[..., ::-1]))
            yield (
                corners(face["box"] for face in faces),
                [max(f["emotions"], key=f["emotions"].get) for f in faces],
                None,
            )

    yield {"fer": side}, version("fer")


DEEPFACE_DETECTORS = ("opencv", "retinaface")


@contextmanager
def deepface_sides(args, folder):
    import numpy as np

    try:
        from importlib.metadata import version

        from deepface import DeepFace

        DeepFace.build_model("Emotion", "facial_attribute")  # fetches the weights, which are in no package
        for name in DEEPFACE_DETECTORS:
            DeepFace.build_model(name, "face_detector")
    except Exception as error:  # as above
        raise Missing(f"{type(error).__name__}: {error}") from error

    def side(backend, files, most):
        for shown in opened(files, most):
            pixels = np.ascontiguousarray(np.asarray(shown.image)[..., ::-1])
            faces = DeepFace.analyze(
                pixels, actions=["emotion"], detector_backend=backend, enforce_detection=False, silent=True
            )
            regions = [[face["region"][key] for key in "xywh"] for face in faces]
            yield corners(regions), [face["dominant_emotion"] for face in faces], None

    yield {f"deepface, {name}": partial(side, name) for name in DEEPFACE_DETECTORS}, version("deepface")


@contextmanager
def face_api_sides(args, folder):
    if not args.face_api:
        raise Missing("no --face-api DIR")
    import numpy as np

    command = ["node", Path(__file__).with_name("face_api_photographs.cjs"), args.face_api, str(args.threads)]
    try:
        node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise Missing(f"{error}") from error
    with node:
        version = next((line.strip() for line in node.stdout if line[:1].isdigit() or line[:1] in '"{'), "")
        if not version:
            raise Missing(f"node has ended, see above; {args.face_api} needs the packages of --help")

        def side(detector, files, most):
            raw = Path(folder, "pixels.rgb")
            for shown in opened(files, most):
                raw.write_bytes(np.asarray(shown.image).tobytes())
                width, height = shown.image.size
                asked = {"file": str(raw), "width": width, "height": height, "detector": detector}
                print(json.dumps(asked), file=node.stdin, flush=True)
                answer = json.loads(node.stdout.readline())
                boxes = corners(answer["boxes"])
                yield boxes, [""] * len(boxes), answer["processor" if args.threads == 1 else "clock"]

        yield {f"face-api, {name}": partial(side, name) for name in ("tiny", "ssd")}, version
        node.stdin.close()


PEERS = {"fer": fer_sides, "deepface": deepface_sides, "face-api": face_api_sides}
