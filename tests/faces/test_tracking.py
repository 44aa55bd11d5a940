"""Faces over frames: numbers that hold by the stated rules, places that are those of each frame searched alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from fer_pll.faces.crops import load_crop
from fer_pll.faces.tracking import FaceTracker, nearest_pairs
from fer_pll.model.face_alignment import similarity_transform
from fer_pll.model.face_detection import Face, RetinaFace, find_faces
from videos import GROUND, place

CROP = load_crop("fer-pll-tiny-ferplus")
SIZE = (480, 360)


@pytest.fixture(scope="module")
def retinaface() -> RetinaFace:
    return RetinaFace(threads=1)


class Counting:
    """A detector that counts searches of whole frames and looks into windows."""

    def __init__(self, detector: RetinaFace) -> None:
        self.detector, self.searches, self.looks = detector, 0, 0

    def __call__(self, image: np.ndarray) -> list[Face]:
        if image.shape == (160, 160, 3):
            self.looks += 1
        else:
            self.searches += 1
        return self.detector(image)


def crop_shift(one: np.ndarray, other: np.ndarray) -> float:
    """How far a corner of the crop by one set of landmarks lies from that by the other, in sides of the crop."""
    first, second = (similarity_transform(points, CROP.landmarks) for points in (one, other))
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * CROP.size
    back = (corners - first[:, 2]) @ np.linalg.inv(first[:, :2]).T
    return float(np.abs(back @ second[:, :2].T + second[:, 2] - corners).max()) / CROP.size


def moving(number: int) -> Image.Image:
    """A face that moves by up to seven pixels a frame, and comes nearer: it is 60 to 75 pixels wide."""
    return place(20 + 60 * math.sin(number / 9), 10 + 15 * math.cos(number / 7), 0.65 + 0.004 * number, SIZE)


def test_a_followed_face_is_where_a_search_of_its_frame_finds_it(retinaface):
    detector = Counting(retinaface)
    follow = FaceTracker(detector)
    for number in range(25):
        image = moving(number)
        (face,) = follow(image, number / 25)
        (alone,) = find_faces(image, retinaface)
        assert face.person == 0
        assert crop_shift(face.landmarks, alone.landmarks) < 0.05
        sides = alone.box[2:] - alone.box[:2]
        assert np.abs((face.box - alone.box).reshape(2, 2) / sides).max() < 0.15
        assert 0.8 <= face.score <= 1
    assert detector.searches == 5  # at 0, 0.2 ... 0.8 s
    assert detector.looks <= 2 + 2 * 25


def hidden(number: int) -> Image.Image:
    return Image.new("RGB", SIZE, GROUND)


@pytest.mark.parametrize(("seconds", "person"), [(0.8, 0), (1.2, 1)])
def test_who_is_hidden_for_up_to_a_second_is_the_same_person(retinaface, seconds, person):
    follow = FaceTracker(retinaface)
    seen = [follow(place(10, 0, 0.65, SIZE), t) for t in (0.0, 0.1)]
    seen += [follow(hidden(0), 0.2)]
    assert [len(faces) for faces in seen] == [1, 1, 0]
    (face,) = follow(place(25, 5, 0.65, SIZE), 0.1 + seconds)
    assert face.person == person


def test_a_new_face_is_found_at_the_next_search_and_a_lost_one_is_looked_for_at_once(retinaface):
    two = place(300, 0, 0.35, SIZE, place(0, 0, 0.5, SIZE))
    detector = Counting(retinaface)
    follow = FaceTracker(detector)
    assert len(follow(place(0, 0, 0.5, SIZE), 0.0)) == 1
    assert len(follow(two, 0.1)) == 1 and detector.searches == 1
    assert [face.person for face in follow(two, 0.2)] == [0, 1] and detector.searches == 2
    assert [face.person for face in follow(place(0, 0, 0.5, SIZE), 0.24)] == [0] and detector.searches == 3


def test_two_people_keep_their_numbers_whatever_order_they_are_found_in(retinaface):
    """One comes nearer, the other goes: the detector's order, by score, changes between them."""
    persons = []
    follow = FaceTracker(retinaface, search_every=0)
    for number in range(6):
        near, far = 0.3 + 0.05 * number, 0.6 - 0.05 * number
        image = place(320 - 256 * far, 0, far, SIZE, place(120 - 256 * near, 20, near, SIZE))
        faces = follow(image, number / 5)
        persons.append([face.person for face in sorted(faces, key=lambda face: face.box[0])])
    assert len({tuple(numbers) for numbers in persons}) == 1 and sorted(persons[0]) == [0, 1]


def test_every_frame_is_searched_where_that_is_asked_for(retinaface):
    detector = Counting(retinaface)
    follow = FaceTracker(detector, search_every=0)
    for time in (0, 0.01, 0.01):
        follow(place(0, 0, 0.5, SIZE), time)
    assert detector.searches == 3


def test_frames_apart_are_each_searched(retinaface):
    """Every 25th frame: as good as frame by frame, however far the face has gone."""
    detector = Counting(retinaface)
    follow = FaceTracker(detector)
    for number, x in enumerate((0.0, 150.0, 10.0)):
        (face,) = follow(place(x, 0, 0.6, SIZE), float(number))
        (alone,) = find_faces(place(x, 0, 0.6, SIZE), retinaface)
        assert crop_shift(face.landmarks, alone.landmarks) < 0.02
    assert detector.searches == 3


@pytest.mark.parametrize("time", [-1.0, math.nan, math.inf])
def test_frames_out_of_order_are_refused(time):
    follow = FaceTracker(lambda image: [])
    follow(hidden(0), 0.0)
    with pytest.raises(ValueError, match="give frames in order"):
        follow(hidden(0), time)


@pytest.mark.parametrize("options", [{"search_every": -1}, {"longest_gap": math.nan}])
def test_impossible_seconds_are_refused(options):
    with pytest.raises(ValueError, match="must be seconds from 0 up"):
        FaceTracker(lambda image: [], **options)


def test_a_detector_that_gives_nonsense_harms_nobody():
    """Landmarks in one place, far away, or not numbers make no face."""
    landmarks = CROP.landmarks * 3
    bad = [np.zeros((5, 2)), landmarks + 1e9, np.full((5, 2), np.nan)]
    faces = [Face(np.array([0.0, 0, 9, 9]), 0.9, points) for points in bad]
    assert FaceTracker(lambda image: faces)(hidden(0), 0.0) == []


BOX = st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 60), st.floats(1, 60)).map(
    lambda values: np.array([values[0], values[1], values[0] + values[2], values[1] + values[3]])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(BOX, max_size=5), st.lists(BOX, max_size=5))
def test_pairs_are_of_two_near_boxes_of_like_size_and_nobody_is_in_two(first, second):
    pairs = nearest_pairs(first, second)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)

    def apart(i: int, j: int) -> float:
        a, b = first[i], second[j]
        side_a, side_b = (math.sqrt((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b))
        if max(side_a, side_b) > 2 * min(side_a, side_b):
            return math.inf
        return math.dist((a[:2] + a[2:]) / 2, (b[:2] + b[2:]) / 2) / math.sqrt(side_a * side_b)

    distances = [apart(i, j) for i, j in pairs]
    assert all(distance <= 1 + 1e-9 for distance in distances) and distances == sorted(distances)
    # Whoever could have been paired has been, with someone at least as near to one of the two.
    for i in range(len(first)):
        for j in range(len(second)):
            if apart(i, j) < 1 - 1e-9:
                taken = [apart(*pair) for pair in pairs if pair[0] == i or pair[1] == j]
                assert taken and min(taken) <= apart(i, j) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(BOX, min_size=1, max_size=5), st.floats(0.1, 10), st.floats(-100, 100), st.floats(-100, 100))
def test_faces_that_stay_are_themselves_at_every_scale_and_place(boxes, scale, x, y):
    centers = {tuple((box[:2] + box[2:]) / 2) for box in boxes}
    moved = [box * scale + [x, y, x, y] for box in boxes]
    pairs = nearest_pairs(moved, moved)
    if (
        len(centers) == len(boxes)
        and min((math.dist(a, b) for a in centers for b in centers if a != b), default=1) > 1e-3
    ):
        assert sorted(pairs) == [(i, i) for i in range(len(boxes))]


def test_the_face_of_the_astronaut_is_nobody_elses_when_two_trackers_run(retinaface):
    """Each video has numbers of its own."""
    image = Image.fromarray(astronaut())
    assert [FaceTracker(retinaface)(image, 5.0)[0].person for _ in range(2)] == [0, 0]
