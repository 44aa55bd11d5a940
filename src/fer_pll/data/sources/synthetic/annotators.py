"""Simulated annotators: what a drawn face shows, and how they vote on it."""

from dataclasses import dataclass

import numpy as np

from ....labels.expressions import EXPRESSIONS
from .faces import EXPRESSION_ACTION_UNITS


@dataclass(frozen=True)
class Scene:
    """What an image shows: `truth` at share 1 - `blend`, `second` at share `blend` < 1/2, both times `intensity`.

    `truth` and `second` are places in `EXPRESSIONS`; `second` differs from `truth` also where `blend` is 0.
    """

    truth: int
    second: int
    blend: float
    intensity: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Scene":
        """A random scene. Half of them blend in an expression that is easily confused with the truth."""
        blended, blend, intensity = rng.random(3).tolist()
        truth = int(rng.choice(len(EXPRESSIONS), p=PRIOR))
        second = int(rng.choice(len(EXPRESSIONS), p=CONFUSIONS[truth]))
        return cls(
            truth=truth,
            second=second,
            blend=0.42 * blend if blended < 0.5 else 0.0,
            intensity=0.5 + 0.5 * intensity,
        )

    def action_units(self) -> dict[str, float]:
        """The action units that show this."""
        units: dict[str, float] = {}
        for expression, share in ((self.truth, 1 - self.blend), (self.second, self.blend)):
            for name, strength in EXPRESSION_ACTION_UNITS[EXPRESSIONS[expression]].items():
                units[name] = units.get(name, 0.0) + self.intensity * share * strength
        return units


# The share of each expression among the truths: uneven, as in images from the web, but less so.
PRIOR = np.array([0.20, 0.18, 0.13, 0.13, 0.12, 0.08, 0.09, 0.07])


# Row: the truth; column: the expression that annotators take it for by mistake. The diagonal is zero.
CONFUSIONS = np.array(
    [
        # neut  hap   sur   sad   ang   dis   fear  cont
        [0.00, 0.12, 0.10, 0.30, 0.16, 0.08, 0.08, 0.16],
        [0.30, 0.00, 0.25, 0.07, 0.06, 0.06, 0.06, 0.20],
        [0.12, 0.18, 0.00, 0.08, 0.08, 0.08, 0.38, 0.08],
        [0.28, 0.06, 0.06, 0.00, 0.18, 0.16, 0.16, 0.10],
        [0.18, 0.06, 0.10, 0.16, 0.00, 0.30, 0.10, 0.10],
        [0.10, 0.08, 0.08, 0.18, 0.34, 0.00, 0.10, 0.12],
        [0.08, 0.08, 0.36, 0.18, 0.10, 0.12, 0.00, 0.08],
        [0.28, 0.24, 0.06, 0.12, 0.12, 0.12, 0.06, 0.00],
    ]
)


def annotate(scene: Scene, reliability: np.ndarray, rng: np.random.Generator, contested: float = 0.3) -> np.ndarray:
    """Let every annotator vote for one expression.

    The vote of annotator a for an image of `scene` is drawn from row a of

        P(a, k) = r_a [(1 - s) v(k) + s 1(k = d)] + (1 - r_a) M(truth, k)

    - v stands for what the image shows: v(k) is proportional to m(k)^3 with m(truth) = (1 - blend) intensity,
      m(second) = blend intensity, and (1 - intensity) / 2 added to m(neutral). A strong, unmixed face leaves little
      doubt, a blend draws votes to the second expression, and a weak face draws votes to neutral.
    - s and d stand for what the image does not show. An image is contested with probability `contested`. Then a share
      s ~ Beta(9, 7) of the careful annotators is misled to the same wrong expression d ~ M(truth, .). Otherwise s = 0.
      Both are drawn again for every image, and nothing in the image tells whether, or to what, its annotators were
      misled. A majority that is wrong for this reason is noise, which other images of the same truth can correct.
    - r_a is the reliability of annotator a. Careless votes follow M, a table of common confusions (zero diagonal).

    Args:
        reliability: (annotators,) floats in 0..1.
        contested: 0..1, the share of the images whose annotators are misled.

    Returns:
        (8,) int32, the number of votes for each of `EXPRESSIONS`; the sum is the number of annotators.
    """
    visible = np.zeros(len(EXPRESSIONS))
    visible[scene.truth] = (1 - scene.blend) * scene.intensity
    visible[scene.second] = scene.blend * scene.intensity
    visible[0] += (1 - scene.intensity) / 2
    perceived = visible**3 / np.sum(visible**3)
    mistaken = CONFUSIONS[scene.truth]
    misled = (rng.random() < contested) * rng.beta(9, 7)
    distractor = rng.choice(len(EXPRESSIONS), p=mistaken)
    perceived *= 1 - misled
    perceived[distractor] += misled
    cumulative = np.cumsum(np.outer(reliability, perceived) + np.outer(1 - reliability, mistaken), axis=1)
    draws = rng.random(len(reliability)) * cumulative[:, -1]  # the sum is 1 but for rounding
    chosen = np.sum(cumulative <= draws[:, None], axis=1)
    return np.bincount(chosen, minlength=len(EXPRESSIONS)).astype(np.int32)
