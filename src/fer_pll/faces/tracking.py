"""Faces over the frames of a video: who is who, and where, with few searches of whole frames.

The detector searches a whole frame when the first one comes, every `search_every` seconds, and at once when a face is
not where it was. In all other frames it looks only at a small upright window (160 pixels) where the face was in the
frame before, which costs a tenth or less, and the landmarks that it sees there are the face's.

Faces have the number of their person. The rules are of place alone, not of looks:

- A face that the window shows is the same person.
- A face that a search finds is the person whose face was nearest: the centers of the boxes are no more than one side
  apart, neither box is more than twice as large as the other, and of several pairs the nearest comes first. Persons
  who are in the frame choose first, then those who were lost.
- Who has not been seen for more than `longest_gap` seconds does not return: the next face is another person. People
  who cross each other while hidden may therefore change numbers.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..model.face_alignment import similarity_transform
from ..model.face_detection import Detector, Face, has_landmarks, look_again, overlaps, refine

_REACH, _GROWTH = 1.0, 2.0
_SETTLED = 0.04  # of the window's side: landmarks that moved further are looked at once more
_SAME_FACE = 0.4  # intersection over union


@dataclass(frozen=True, eq=False)
class FollowedFace(Face):
    """A face of a video.

    Args:
        person: number of the person, from 0 in each video, in the order in which they appear.
    """

    person: int


class FaceTracker:
    """Follows the faces of one video. Call it with each frame, in order.

    Args:
        detector: see `fer_pll.model.face_detection`.
        search_every: seconds between searches of whole frames; 0 searches each. A face that appears between two
            searches is found at the second.
        longest_gap: seconds for which a face may be hidden and remain the same person.

    Raises:
        ValueError: a number is negative or not finite.
    """

    def __init__(self, detector: Detector, search_every: float = 0.2, longest_gap: float = 1.0) -> None:
        if not (0 <= search_every < math.inf and 0 <= longest_gap < math.inf):
            raise ValueError(f"search_every={search_every} and longest_gap={longest_gap} must be seconds from 0 up")
        self.detector, self.search_every, self.longest_gap = detector, search_every, longest_gap
        self._faces: dict[int, tuple[FollowedFace, float]] = {}  # by person, with the time of the last sight
        self._persons = 0
        self._time = self._searched = -math.inf

    def __call__(self, image: Image.Image, time: float) -> list[FollowedFace]:
        """The faces of the next frame, in the order of their persons.

        Args:
            image: RGB.
            time: of the frame, in seconds.

        Raises:
            ValueError: the time is before that of the last frame, or no number.
        """
        if not self._time <= time < math.inf:
            raise ValueError(
                f"a frame of second {time} cannot follow one of second {self._time}: give frames in order"
            )
        before = [face for face, seen in self._faces.values() if seen == self._time]
        self._faces = {p: known for p, known in self._faces.items() if time - known[1] <= self.longest_gap + 1e-9}
        self._time = time
        here: list[FollowedFace] = []
        for face in before:
            moved = self._look(image, face)
            if moved is not None and not any(overlaps(other.box, moved.box) > _SAME_FACE for other in here):
                here.append(moved)
        if len(here) < len(before) or time - self._searched >= self.search_every - 1e-9:
            here = self._search(image, here)
            self._searched = time
        self._faces |= {face.person: (face, time) for face in here}
        return sorted(here, key=lambda face: face.person)

    def _look(self, image: Image.Image, face: FollowedFace) -> FollowedFace | None:
        """The face where it is now; None if it is not near where it was."""
        seen = look_again(image, self.detector, face.landmarks, quick=True)
        if seen is None or not has_landmarks(seen.landmarks, image.size):
            return None
        if seen.moved > _SETTLED:
            again = look_again(image, self.detector, seen.landmarks, quick=True)
            seen = again if again is not None and has_landmarks(again.landmarks, image.size) else seen
        return replace(
            face, landmarks=seen.landmarks, score=seen.score, box=_moved(face.box, face.landmarks, seen.landmarks)
        )

    def _search(self, image: Image.Image, here: list[FollowedFace]) -> list[FollowedFace]:
        """The faces of a whole frame. Those in `here` keep their landmarks and get the detector's box and score."""
        found = [face for face in self.detector(np.asarray(image)) if has_landmarks(face.landmarks, image.size)]
        taken: set[int] = set()
        faces = list(here)
        for i, j in nearest_pairs([face.box for face in here], [face.box for face in found]):
            faces[i] = replace(here[i], box=found[j].box, score=found[j].score)
            taken.add(j)
        # What a window shows twice is one face: another detection on it is no other person.
        rest = [
            face
            for j, face in enumerate(found)
            if j not in taken and not any(overlaps(face.box, other.box) > _SAME_FACE for other in faces)
        ]
        rest = [replace(face, landmarks=refine(image, self.detector, face.landmarks)) for face in rest]
        present = {face.person for face in here}
        lost = [face for person, (face, _) in self._faces.items() if person not in present]
        persons = {
            j: lost[i].person for i, j in nearest_pairs([face.box for face in lost], [face.box for face in rest])
        }
        for j, face in enumerate(rest):
            if j not in persons:
                persons[j], self._persons = self._persons, self._persons + 1
            faces.append(FollowedFace(face.box, face.score, face.landmarks, persons[j]))
        return faces


def nearest_pairs(first: list[np.ndarray], second: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of boxes that may be one face in two frames, the nearest first, none twice.

    A box's side is the root of its area. The distance of a pair is that of the centers over the geometric mean of the
    two sides; it is at most 1, and neither side is more than twice the other.

    Args:
        first, second: boxes (4,), left, top, right, bottom.

    Returns:
        the places in `first` and `second` of each pair.
    """
    candidates = []
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            sides = [math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1]))) for box in (a, b)]
            if min(sides) <= 0 or max(sides) > _GROWTH * min(sides):
                continue
            apart = math.hypot(*((a[:2] + a[2:]) - (b[:2] + b[2:])) / 2) / math.sqrt(sides[0] * sides[1])
            if apart <= _REACH:
                candidates.append((apart, i, j))
    pairs: list[tuple[int, int]] = []
    for _, i, j in sorted(candidates):
        if all(i != other[0] and j != other[1] for other in pairs):
            pairs.append((i, j))
    return pairs


def _moved(box: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The box after its landmarks moved: its center goes with them, its size with their scale. It stays upright."""
    matrix = similarity_transform(before, after)
    center = matrix[:, :2] @ (box[:2] + box[2:]) / 2 + matrix[:, 2]
    half = math.hypot(*matrix[:, 0]) * (box[2:] - box[:2]) / 2
    return np.concatenate([center - half, center + half])
