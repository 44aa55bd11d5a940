"""The task `facial-expression-recognition`: what it answers is what its parts, one after the other, give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from fer_pll import FacialExpressionPipeline, FerPllForImageClassification, FerPllImageProcessor
from fer_pll.faces.crops import load_crop
from fer_pll.io.images import ImageError
from fer_pll.model.face_alignment import align_face
from fer_pll.model.face_detection import RetinaFace, find_faces

FERPLUS = Path(__file__).parents[2] / "hub_configs" / "fer-pll-tiny-ferplus"
TASK = "facial-expression-recognition"


@pytest.fixture
def checkpoint(toy_config, tmp_path):
    torch.manual_seed(0)
    model = FerPllForImageClassification(toy_config).eval()
    torch.nn.init.normal_(model.classifier.weight)  # so that answers differ clearly from face to face
    contract = AutoImageProcessor.from_pretrained(FERPLUS).face_crop
    processor = FerPllImageProcessor(
        num_channels=1, size={"height": 16, "width": 16}, image_std=[0.25], face_crop=contract
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def recognize(checkpoint):
    return pipeline(TASK, model=checkpoint, trust_remote_code=False, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """One face, none, two of them, one that is upside down."""
    one = astronaut()
    two = np.hstack([one, one[:, ::-1]])
    return [Image.fromarray(image) for image in (one, np.zeros((60, 80), np.uint8), two, one[::-1])]


def test_it_is_its_parts_in_turn(checkpoint, recognize, images):
    (answer,) = recognize(images[0])
    (face,) = find_faces(images[0], RetinaFace())
    np.testing.assert_allclose(list(answer["box"].values()), face.box)
    assert list(answer["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert answer["score"] == face.score
    np.testing.assert_allclose(answer["landmarks"], face.landmarks)

    crop = align_face(images[0], face.landmarks, load_crop(checkpoint))
    model = AutoModelForImageClassification.from_pretrained(checkpoint, trust_remote_code=False).eval()
    with torch.no_grad():
        logits = model(**AutoImageProcessor.from_pretrained(checkpoint)(crop, return_tensors="pt")).logits[0]
    expected = {model.config.id2label[k]: p for k, p in enumerate(logits.softmax(dim=0).tolist())}
    scores = [expression["score"] for expression in answer["expressions"]]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-12)
    assert {e["label"]: e["score"] for e in answer["expressions"]} == pytest.approx(expected, abs=1e-6)
    # And the same crop through transformers' own task.
    classify = pipeline("image-classification", model=checkpoint, trust_remote_code=False, top_k=None)
    assert {e["label"]: e["score"] for e in classify(crop)} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_faces_of_several_images_in_batches(recognize, images, batch_size):
    one_by_one = [recognize(image) for image in images]
    assert [len(faces) for faces in one_by_one[:3]] == [1, 0, 2]
    for together in (
        recognize(images, batch_size=batch_size),
        list(recognize((image for image in images), batch_size=batch_size)),
    ):
        assert [len(faces) for faces in together] == [len(faces) for faces in one_by_one]
        for expected, faces in zip(one_by_one, together, strict=True):
            for left, right in zip(expected, faces, strict=True):
                assert left["box"] == right["box"]
                scores = [[e["score"] for e in face["expressions"]] for face in (left, right)]
                np.testing.assert_allclose(*scores, atol=1e-6)


def test_paths_arrays_and_images_are_alike(recognize, images, tmp_path):
    images[0].save(tmp_path / "face.png")
    expected = recognize(images[0])
    for given in (str(tmp_path / "face.png"), tmp_path / "face.png", np.asarray(images[0])):
        assert recognize(given) == expected


def test_gray_and_color_photographs_have_the_same_expressions_for_a_gray_crop(recognize, images):
    detector = RetinaFace()

    def seen_in_color(image):
        return detector(np.asarray(images[0])) if image.shape[:2] == (512, 512) else []

    color, gray = (recognize(p, detector=seen_in_color) for p in (images[0], images[0].convert("L")))
    scores = [{e["label"]: e["score"] for e in answer[0]["expressions"]} for answer in (color, gray)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)


def test_no_images_have_no_answers(recognize):
    assert recognize([]) == []


def test_a_bad_image_is_named(recognize, tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(ImageError, match=r"text.jpg: not an image"):
        recognize(tmp_path / "text.jpg")


def test_a_checkpoint_without_a_crop_needs_one(toy_config, toy_processor, images, tmp_path):
    FerPllForImageClassification(toy_config).save_pretrained(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    recognize = pipeline(TASK, model=str(tmp_path), trust_remote_code=False)
    with pytest.raises(ValueError, match=f"{tmp_path} does not say how its faces are cropped"):
        recognize(images[0])
    by_name = recognize(images[0], crop="fer-pll-tiny-ferplus")
    by_value = pipeline(TASK, model=str(tmp_path), trust_remote_code=False, crop=load_crop("fer-pll-tiny-ferplus"))(
        images[0]
    )
    assert len(by_name) == 1 and by_name == by_value


def test_an_unknown_detector_is_refused_at_once(checkpoint):
    with pytest.raises(ValueError, match="detector 'mtcnn' is not known"):
        pipeline(TASK, model=checkpoint, trust_remote_code=False, detector="mtcnn")


def test_saved_and_loaded_it_answers_the_same(recognize, images, tmp_path):
    recognize.save_pretrained(tmp_path / "again")
    again = pipeline(TASK, model=str(tmp_path / "again"), trust_remote_code=False)
    assert type(again) is FacialExpressionPipeline
    assert again(images[0]) == recognize(images[0])
