"""Faces drawn from facial action units, with simulated annotators: real enough to learn from, free to ship.

Every expression is a set of action units of the Facial Action Coding System (Ekman, Friesen & Hager 2002) in the
combinations that the literature gives for it. A picture shows one expression, or a blend of two, on a person of its
own under a view of its own; simulated annotators vote for what they see (`annotate`), and the expression that was
drawn stays beside the votes as the true label.
"""

import atexit
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, NamedSplit
from PIL import Image as PILImage

from ....io.errors import DataError
from ....labels.expressions import EXPRESSIONS
from ..ferplus import FEATURES as FERPLUS_FEATURES
from ..ferplus import protocol_masks
from .annotators import Scene, annotate
from .faces import ACTION_UNITS, SMALLEST, Identity, View, draw_face

SPLITS = ("train", "validation", "test")
_BLOCK = 250  # rows that a process draws at a time
FEATURES = Features({**FERPLUS_FEATURES, "true_label": ClassLabel(names=list(EXPRESSIONS))})
"""The columns of FER+ and `true_label`, the expression that was drawn."""


def generate_rows(
    split: str,
    indices: Iterable[int],
    image_size: int = 48,
    seed: int = 0,
    num_annotators: int = 10,
    variation: float = 1.0,
    contested: float = 0.3,
) -> Iterator[dict]:
    """Draw the rows `indices` of a split; row i depends on (`seed`, `split`, i) alone, whichever rows are asked for.

    Every row shows a person of its own, so no identity is shared within or between splits. The picture does not
    depend on `num_annotators` or `contested`.

    Yields:
        One dict with the columns of `FEATURES` for each index; the picture as PNG bytes.
    """
    place = SPLITS.index(split)
    # No split stands at place 3, so this random stream is no row's.
    reliability = np.random.default_rng([seed, len(SPLITS)]).uniform(0.93, 1.0, num_annotators)
    for index in indices:
        drawing = np.random.default_rng([seed, place, index, 0])
        scene = Scene.sample(drawing)
        action_units = _perform(scene, drawing)
        person, view = Identity.sample(drawing, variation), View.sample(drawing, variation)
        picture = draw_face(action_units, person, view, image_size)
        png = io.BytesIO()
        PILImage.fromarray(picture).save(png, "PNG", compress_level=1)
        votes = annotate(scene, reliability, np.random.default_rng([seed, place, index, 1]), contested)
        yield {
            "image": {"bytes": png.getvalue(), "path": None},
            "index": index,
            "row_id": f"synthetic-{seed}/{split}:{index}",
            "votes": votes,
            "label": int(votes.argmax()),
            "majority": bool(protocol_masks(np.pad(votes, (0, 2))[None])[1][0]),
            "true_label": scene.truth,
        }


def _perform(scene: Scene, rng: np.random.Generator) -> dict[str, float]:
    """The scene's action units as one person shows them at one moment: unevenly, perhaps speaking, with a habit."""
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


def load_synthetic(
    num_train: int = 4000,
    num_validation: int = 1000,
    num_test: int = 1000,
    image_size: int = 48,
    seed: int = 0,
    num_annotators: int = 10,
    variation: float = 1.0,
    contested: float = 0.3,
    num_proc: int = 1,
) -> DatasetDict:
    """Drawn faces with simulated votes, in the columns of the real data sets.

    The rows go straight to Arrow files in a temporary folder that is deleted when the process ends, so memory stays
    bounded whatever the number of rows. The same arguments always give the same rows.

    Args:
        num_train, num_validation, num_test: rows of each split; a split with 0 rows is left out.
        image_size: side of the square grey pictures in pixels, at least 24.
        seed: 0 or greater; another seed gives other people, faces and votes.
        num_annotators: votes per picture.
        variation: 0..1, how much people, poses and light differ from picture to picture. 1 is like pictures from the
            web, and takes a network a long time to learn; lower values are like pictures from a studio.
        contested: 0..1, the share of the pictures whose annotators are misled to one and the same wrong expression.
            Of ten annotators the majority is then wrong for one picture in five at 0.3, for one in three at 0.5.
        num_proc: processes that draw; their number does not change the rows.

    Returns:
        Splits among `train`, `validation`, `test` with the columns `image` (grey PNG), `index` (0..N-1), `row_id`,
        `votes` (how many annotators chose each of `EXPRESSIONS`, see `annotate`), `label` (the most voted, the first
        of ties), `majority` (without single votes one expression holds more than half) and `true_label` (what was
        drawn).

    Raises:
        DataError: a number out of its range, or no rows at all.
    """
    counts = dict(zip(SPLITS, (num_train, num_validation, num_test), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise DataError(f"num_{split} is {count}; give 0 (no such split) or more")
    if not any(counts.values()):
        raise DataError("num_train, num_validation and num_test are all 0: ask for at least one row")
    if image_size < SMALLEST:
        raise DataError(f"image_size is {image_size}; a face needs at least {SMALLEST} pixels")
    if seed < 0:
        raise DataError(f"seed is {seed}; give 0 or more")
    if num_annotators < 1:
        raise DataError(f"num_annotators is {num_annotators}; a label needs at least one vote")
    if not 0 <= variation <= 1:
        raise DataError(f"variation is {variation}; give 0 (all alike) to 1")
    if not 0 <= contested <= 1:
        raise DataError(f"contested is {contested}; give 0 (no picture) to 1 (every picture)")
    if num_proc < 1:
        raise DataError(f"num_proc is {num_proc}; give the number of processes that draw, 1 or more")
    folder = tempfile.mkdtemp(prefix="fer_pll-synthetic-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = {
        "image_size": image_size,
        "seed": seed,
        "num_annotators": num_annotators,
        "variation": variation,
        "contested": contested,
    }
    splits = {}
    for split, count in counts.items():
        if count:
            processes = min(num_proc, -(-count // _BLOCK))
            splits[split] = Dataset.from_generator(
                _generate_blocks,
                features=FEATURES,
                cache_dir=folder,
                # datasets shares out what stands in a list
                gen_kwargs={"blocks": list(range(0, count, _BLOCK)), "split": split, "count": count, **options},
                num_proc=processes if processes > 1 else None,
                split=NamedSplit(split),
            )
    return DatasetDict(splits)


def _generate_blocks(blocks: list[int], split: str, count: int, **options) -> Iterator[dict]:
    for first in blocks:
        yield from generate_rows(split, range(first, min(first + _BLOCK, count)), **options)
