"""Expressions over time: probabilities smoothed, and timelines that take the same memory for a minute and a day."""

import math
from collections.abc import Sequence

import numpy as np

SMOOTHING = 0.2
"""Seconds of the filter in videos, where none is given."""

_BINS, _PERSONS = 2048, 256


class Smoother:
    """An exponential filter over each person's probabilities, by the time of the frames and not their number.

    s(first) = p(first); s(t) = s(t') + (1 - exp(-(t - t') / seconds)) (p(t) - s(t')), where t' is the frame before in
    which the person was seen. So the answer of a frame weighs 1/e of its weight after `seconds`, at any rate, also one
    that varies, and after a long gap little is left of what was before. Only frames up to t count: it works live.

    Args:
        seconds: the time constant; 0 leaves the probabilities as they are.

    Raises:
        ValueError: it is negative or not finite.
    """

    def __init__(self, seconds: float = SMOOTHING) -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"smooth={seconds} must be seconds from 0 up")
        self.seconds = seconds
        self._last: dict[int, tuple[float, np.ndarray]] = {}

    def __call__(self, person: int, time: float, probabilities: np.ndarray) -> np.ndarray:
        """The smoothed probabilities (K,) of a person at a time, given those of the frame (K,)."""
        if self.seconds == 0:
            return probabilities
        if person in self._last:
            before, smoothed = self._last[person]
            weight = -math.expm1(-(time - before) / self.seconds)
            probabilities = smoothed + weight * (probabilities - smoothed)
        elif len(self._last) >= _PERSONS:  # after 40 time constants the weight is 1 in double precision
            self._last = {each: last for each, last in self._last.items() if time - last[0] < 40 * self.seconds}
        self._last[person] = time, probabilities
        return probabilities


class Timeline:
    """The probabilities of each person of a video over time, as means of equal steps of time.

    A step is 0.01 s at first; whenever the video is longer than 2,048 steps, each two become one. So memory grows
    with the persons and not with the frames.

    Args:
        classes: names of the K classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.step = 0.01
        self._sums: dict[int, dict[int, np.ndarray]] = {}  # by person and step: sums of K values, K more, and a count

    def add(self, person: int, time: float, smoothed: Sequence[float], raw: Sequence[float]) -> None:
        """Adds a frame: smoothed and raw probabilities, K each, in the order of the classes."""
        while time >= self.step * _BINS:
            self.step *= 2
            for person_, steps in self._sums.items():
                halved: dict[int, np.ndarray] = {}
                for place, values in steps.items():
                    halved[place // 2] = halved[place // 2] + values if place // 2 in halved else values
                self._sums[person_] = halved
        values = np.array([*smoothed, *raw, 1.0])
        steps = self._sums.setdefault(person, {})
        place = int(time / self.step)
        steps[place] = steps[place] + values if place in steps else values

    @property
    def persons(self) -> list[int]:
        """Numbers of the persons who were seen."""
        return sorted(self._sums)

    def frames(self, person: int) -> int:
        """In how many frames a person was seen."""
        return round(sum(values[-1] for values in self._sums[person].values()))

    def of(self, person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The steps in which a person was seen: their middles in seconds (T,), smoothed and raw means (T, K)."""
        places = sorted(self._sums[person])
        values = np.array([self._sums[person][place] for place in places])
        means = values[:, :-1] / values[:, -1:]
        smoothed, raw = np.split(means, 2, axis=1)
        return (np.array(places) + 0.5) * self.step, smoothed, raw
