"""The command that measures a data set's crop finds the one that the images were cut with."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image
from skimage.data import astronaut

import fer_pll_cli
from fer_pll import FerPllImageProcessor
from fer_pll.data.dataset import prepared_features, save_dataset
from fer_pll.faces.crops import load_crop
from fer_pll.labels.expressions import EXPRESSIONS
from fer_pll.model.face_alignment import FaceCrop, align_face
from fer_pll.model.face_detection import RetinaFace, find_faces

LARGE = FaceCrop("large", load_crop("fer-pll-tiny-ferplus").template, size=288, color="rgb", margin=0.25)


def prepared(images: list[Image.Image], folder: Path) -> Path:
    rows = [
        {"image": p, "row_id": f"row:{i}", "label": 0, "votes": [1] + [0] * 7, "majority": True}
        for i, p in enumerate(images)
    ]
    features = prepared_features(EXPRESSIONS, ["votes", "majority"])
    save_dataset(DatasetDict(train=Dataset.from_list(rows, features=features)), folder)
    return folder


def measure(*argv: object) -> int:
    return fer_pll_cli.main(["measure-crop", *map(str, argv)])


def test_the_crop_is_found_again(tmp_path, capsys):
    crop = load_crop("fer-pll-tiny-ferplus")
    photograph = Image.fromarray(astronaut())
    (face,) = find_faces(photograph, RetinaFace())
    rng = np.random.default_rng(0)
    images = [align_face(photograph, face.landmarks + rng.normal(0, 2, 2), crop) for _ in range(6)]
    assert measure(prepared(images, tmp_path / "data"), "--enlarge", 4, "--name", "again") == 0
    printed = capsys.readouterr().out
    assert "a face was found in 6 of 6 images of 48 x 48 pixels" in printed
    contract = json.loads(printed.splitlines()[-1])["face_crop"]
    assert (contract["name"], contract["size"], contract["color"]) == ("again", 48, "gray")
    found = FaceCrop.from_image_processor(FerPllImageProcessor(num_channels=1, face_crop=contract))
    # Her own face is not the median one: what must be found is where it lies in these images.
    lies = np.array(find_faces(align_face(photograph, face.landmarks, LARGE), RetinaFace())[0].landmarks) / 4
    assert np.abs(found.landmarks - (lies - 12)).max() < 2


def test_errors_say_what_to_do(tmp_path, capsys):
    blank = prepared([Image.new("L", (48, 48))] * 2, tmp_path / "blank")
    assert measure(blank) == 1
    assert "error: no face was found in 2 images: try --enlarge 4" in capsys.readouterr().err
    assert measure(blank, "--enlarge", 100000, "--count", 1) == 1
    assert "--enlarge 100000: images of 48 pixels can be made 98 times as large" in capsys.readouterr().err
    mixed = prepared([Image.new("L", (48, 48)), Image.new("L", (40, 48))], tmp_path / "mixed")
    assert measure(mixed) == 1
    assert "error: row:1: (40, 48) pixels; all images must have one square size" in capsys.readouterr().err
