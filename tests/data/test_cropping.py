"""Faces of listed images, cropped by what the data set tells or by a detector."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from skimage import data

from fer_pll.commands.prepare import main
from fer_pll.data.cropping import CropToBox, CropToTemplate
from fer_pll.data.dataset import REPORT, load_dataset
from fer_pll.data.image_writer import ImageRecord
from fer_pll.faces.crops import load_crop
from fer_pll.io.errors import DataError
from fer_pll.model.face_alignment import align_face
from fer_pll.model.face_detection import RetinaFace, find_faces

CROP = load_crop("fer-pll-tiny-ferplus")


def listed(**known):
    return ImageRecord(Path("photo.jpg"), "list:1", {"label": 1}, **known)


@pytest.fixture(scope="module")
def astronaut():
    return PILImage.fromarray(data.astronaut())


def test_the_box_is_cut_out_and_reduced():
    pixels = np.arange(60 * 80, dtype=np.uint32).reshape(60, 80) % 251
    image = PILImage.fromarray(pixels.astype(np.uint8))
    cut = np.asarray(CropToBox()(image, listed(box=(10, 20, 30, 25))))
    np.testing.assert_array_equal(cut, pixels[20:45, 10:40])
    cut = np.asarray(CropToBox()(image, listed(box=(-5, -5, 30, 25))))  # as far as the image goes
    np.testing.assert_array_equal(cut, pixels[:20, :25])
    assert CropToBox(max_side=15)(image, listed(box=(10, 20, 30, 24))).size == (15, 12)
    assert CropToBox()(image, listed()) is image
    with pytest.raises(DataError, match=r"photo.jpg: the face box \(90, 20, 30, 25\) lies outside"):
        CropToBox()(image, listed(box=(90, 20, 30, 25)))


def test_landmarks_of_the_data_go_before_those_of_a_detector(astronaut):
    landmarks = [200.0, 120, 240, 118, 222, 140, 205, 160, 238, 158]
    crop = CropToTemplate(CROP, detector="never loaded")
    expected = align_face(astronaut, np.reshape(landmarks, (5, 2)), CROP)
    assert crop(astronaut, listed(landmarks=tuple(landmarks))).tobytes() == expected.tobytes()
    with pytest.raises(DataError, match=r"photo.jpg: points or template lie all in one place"):
        crop(astronaut, listed(landmarks=(5.0,) * 10))


def test_without_landmarks_the_largest_face_is_found(astronaut):
    small = astronaut.resize((200, 200))
    both = PILImage.new("RGB", (712, 512))
    both.paste(small, (512, 0))
    both.paste(astronaut, (0, 0))
    crop = CropToTemplate(CROP)
    again = pickle.loads(pickle.dumps(crop))  # as it goes to the workers
    (face,) = find_faces(astronaut, RetinaFace())
    expected = np.asarray(align_face(astronaut, face.landmarks, CROP), dtype=float)
    found = np.asarray(again(both, listed()), dtype=float)
    assert found.shape == (48, 48) and abs(found - expected).mean() < 3
    assert repr(crop) == repr(again) == repr(CropToTemplate(CROP))  # so that shards are found again
    with pytest.raises(DataError, match=r"photo.jpg: no face found"):
        crop(PILImage.new("RGB", (100, 100)), listed())


def test_prepare_data_crops_photographs(astronaut, tmp_path):
    (tmp_path / "pictures" / "happy").mkdir(parents=True)
    astronaut.save(tmp_path / "pictures" / "happy" / "astronaut.png")
    PILImage.new("RGB", (64, 64)).save(tmp_path / "pictures" / "happy" / "nobody.png")
    (tmp_path / "pictures" / "sad").mkdir()
    astronaut.rotate(15).save(tmp_path / "pictures" / "sad" / "turned.png")
    arguments = [str(tmp_path / "pictures"), "--out", str(tmp_path / "set"), "--crop", "fer-pll-tiny-ferplus"]
    main(["folder", *arguments, "--num-proc", "1", "--validation-share", "0"])
    train = load_dataset(tmp_path / "set", "train")
    assert [image.size for image in train["image"]] == [(48, 48)] * 2
    assert {image.mode for image in train["image"]} == {"L"}
    upright, turned = (np.asarray(image, dtype=float) for image in train["image"])
    assert abs(upright - turned).mean() < 12  # the same crop, but for what turning the photograph blurs
    assert "no face found" in (tmp_path / "set" / REPORT).read_text()
