"""Faces drawn from facial action units, with simulated annotators: real enough to learn from, free to ship.

Every expression is a set of action units of the Facial Action Coding System (Ekman, Friesen & Hager 2002), in the
combinations that the literature gives for it. An image shows one expression, or a blend of two. Every image has its
own person and its own view. Simulated annotators vote for what they see (`annotate`). The drawn expression stays
beside the votes as the true label.
"""

import argparse
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from ....io.errors import DataError
from ....labels.expressions import EXPRESSIONS
from ...image_writer import ImageRecord
from ...provenance import Provenance
from ..base import Opened, Source
from ..ferplus import protocol_masks
from .annotators import Scene, annotate
from .faces import ACTION_UNITS, SMALLEST, Identity, View, draw_face

SPLITS = ("train", "validation", "test")
LARGEST = 1024  # pixels of a side
MOST_ANNOTATORS = 10_000
MOST_ROWS = 10**9


@dataclass(frozen=True)
class Drawing:
    """One face, which a call draws. The image depends on these fields only."""

    split: str
    index: int
    image_size: int = 48
    seed: int = 0
    variation: float = 1.0

    def scene(self) -> tuple[Scene, np.random.Generator]:
        """The scene of the face, and the random stream that continues with its looks."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, 0])
        return Scene.sample(rng), rng

    def __call__(self) -> bytes:
        """The gray image (`image_size`, `image_size`) as PNG."""
        scene, rng = self.scene()
        action_units = _perform(scene, rng)
        person, view = Identity.sample(rng, self.variation), View.sample(rng, self.variation)
        png = io.BytesIO()
        image = draw_face(action_units, person, view, self.image_size)
        PILImage.fromarray(image).save(png, "PNG", compress_level=1)
        return png.getvalue()


def drawn_faces(
    split: str,
    indices: Iterable[int],
    image_size: int = 48,
    seed: int = 0,
    num_annotators: int = 10,
    variation: float = 1.0,
    contested: float = 0.3,
) -> Iterator[ImageRecord]:
    """The rows `indices` of a split. Row i depends on (`seed`, `split`, i) only, not on the other rows.

    Every row shows another person, so no identity is shared within or between splits. The image does not depend on
    `num_annotators` or `contested`.

    Yields:
        records with `votes` (how many annotators chose each of `EXPRESSIONS`, see `annotate`), `label` (the most
        voted, the first of ties), `majority` (one expression holds more than half of the votes, where
        single votes do not count) and `true_label` (the drawn expression). `data` is a `Drawing`.
    """
    place = SPLITS.index(split)
    # No split has place 3, so no row has this random stream.
    reliability = np.random.default_rng([seed, len(SPLITS)]).uniform(0.93, 1.0, num_annotators)
    for index in indices:
        drawing = Drawing(split, index, image_size, seed, variation)
        scene, _ = drawing.scene()
        votes = annotate(scene, reliability, np.random.default_rng([seed, place, index, 1]), contested)
        columns = {
            "label": int(votes.argmax()),
            "votes": votes.tolist(),
            "majority": bool(protocol_masks(np.pad(votes, (0, 2))[None])[1][0]),
            "true_label": scene.truth,
        }
        row_id = f"synthetic-{seed}/{split}:{index}"
        yield ImageRecord(Path(row_id), row_id, columns, data=drawing)


def _perform(scene: Scene, rng: np.random.Generator) -> dict[str, float]:
    """The scene's action units as one person shows them at one moment: uneven, perhaps speaking, with a habit."""
    units = scene.action_units()
    uneven = np.exp(0.25 * rng.standard_normal(len(units))).tolist()
    units = {name: strength * factor for (name, strength), factor in zip(units.items(), uneven, strict=True)}
    speaks, opening, has_habit, strength = rng.random(4).tolist()
    if speaks < 0.2:
        units["AU25"] = units.get("AU25", 0.0) + 0.7 * opening
    habit = list(ACTION_UNITS)[rng.integers(len(ACTION_UNITS))]
    if has_habit < 0.4:
        units[habit] = units.get(habit, 0.0) + 0.4 * strength
    return {name: min(strength, 1.0) for name, strength in units.items()}


class Synthetic(Source):
    name = "synthetic"
    summary = "drawn faces with simulated annotators; needs no files"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        for split, rows in (("train", 8000), ("validation", 2000), ("test", 2000)):
            parser.add_argument(
                f"--num-{split}", type=int, default=rows, metavar="N", help=f"{split} rows (default: {rows})"
            )
        parser.add_argument("--image-size", type=int, default=48, metavar="PX", help="side in pixels (default: 48)")
        parser.add_argument("--seed", type=int, default=0, help="seed of faces and votes (default: 0)")
        parser.add_argument(
            "--num-annotators", type=int, default=10, metavar="N", help="votes for each image (default: 10)"
        )
        parser.add_argument(
            "--variation",
            type=float,
            default=1.0,
            metavar="V",
            help="how much people, poses and light differ, from 0 (hardly) to 1 (as on the web, default); a network "
            "learns sooner from lower values",
        )
        parser.add_argument(
            "--contested",
            type=float,
            default=0.3,
            metavar="SHARE",
            help="share of the images whose annotators are misled to one wrong expression, 0 to 1 (default: 0.3). Of "
            "ten annotators the majority is then wrong for one image in five at 0.3, for one in three at 0.5",
        )

    def open(self, options: argparse.Namespace) -> Opened:
        counts = {split: getattr(options, f"num_{split}") for split in SPLITS}
        for split, count in counts.items():
            if not 0 <= count <= MOST_ROWS:
                raise DataError(f"num_{split} is {count}; give 0 (no such split) to {MOST_ROWS}")
        if not any(counts.values()):
            raise DataError("num_train, num_validation and num_test are all 0: ask for at least one row")
        if not SMALLEST <= options.image_size <= LARGEST:
            raise DataError(f"image_size is {options.image_size}; give {SMALLEST} to {LARGEST} pixels")
        if options.seed < 0:
            raise DataError(f"seed is {options.seed}; give 0 or more")
        if not 1 <= options.num_annotators <= MOST_ANNOTATORS:
            raise DataError(f"num_annotators is {options.num_annotators}; give 1 to {MOST_ANNOTATORS} votes")
        if not 0 <= options.variation <= 1:
            raise DataError(f"variation is {options.variation}; give 0 (all alike) to 1")
        if not 0 <= options.contested <= 1:
            raise DataError(f"contested is {options.contested}; give 0 (no image) to 1 (every image)")
        counts = {split: count for split, count in counts.items() if count}
        how = {name: value for name, value in vars(options).items() if not name.startswith("num_")}
        splits = {
            split: drawn_faces(split, range(count), num_annotators=options.num_annotators, **how)
            for split, count in counts.items()
        }
        columns = ("votes", "majority", "true_label")
        return Opened(
            EXPRESSIONS, splits, columns, Provenance("drawn faces", self.name), counts=counts, has_copies=False
        )
