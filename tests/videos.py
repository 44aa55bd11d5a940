"""Videos that tests and pages of the documentation are made of: the astronaut who moves, and drawn faces that act."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import astronaut

from fer_pll.data.sources.synthetic.faces import EXPRESSION_ACTION_UNITS, Identity, View, draw_face

GROUND = (60, 70, 80)
FACE = np.array([177.9, 56.8, 273.1, 177.2])
"""The box of the astronaut's face in her photograph."""


def write_frames(
    path: Path, frames: Iterable[Image.Image], times: Sequence[float] | None = None, rate: int = 25
) -> Path:
    """A video of RGB images of one size, at these seconds or at a constant rate. MPEG-4 of high quality."""
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for number, frame in enumerate(frames):
            if stream is None:
                rate_ = rate if times is None else 1000
                stream = container.add_stream("mpeg4", rate=rate_, options={"qmin": "1", "qmax": "3"})
                stream.width, stream.height = frame.size
                stream.bit_rate = 8_000_000
            picture = av.VideoFrame.from_image(frame)
            picture.pts = number if times is None else round(times[number] * 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def place(x: float, y: float, scale: float, size: tuple[int, int], ground: Image.Image | None = None) -> Image.Image:
    """The astronaut's photograph, scaled, with its upper left corner at (x, y), to fractions of pixels."""
    photograph = Image.fromarray(astronaut())
    side = max(1, round(512 * scale))
    steps = (512 / side, 0, -(x % 1) * 512 / side, 0, 512 / side, -(y % 1) * 512 / side)
    part = photograph.transform((side, side), Image.Transform.AFFINE, steps, Image.Resampling.BICUBIC)
    image = ground or Image.new("RGB", size, GROUND)
    image.paste(part, (int(x // 1), int(y // 1)))
    return image


def act(moods: Sequence[tuple[float, str]], time: float) -> dict[str, float]:
    """Action units at a time, between those of `moods`: (second, expression), in order."""
    times = [second for second, _ in moods]
    after = int(np.searchsorted(times, time).clip(1, len(moods) - 1))
    share = float(np.clip((time - times[after - 1]) / (times[after] - times[after - 1]), 0, 1))
    mixed: dict[str, float] = {}
    for weight, (_, name) in ((1 - share, moods[after - 1]), (share, moods[after])):
        for unit, strength in EXPRESSION_ACTION_UNITS.get(name, {}).items():
            mixed[unit] = min(1.0, mixed.get(unit, 0.0) + weight * strength)
    return mixed


def drawn(seed: int, moods: Sequence[tuple[float, str]], side: int = 240) -> Callable[[float], Image.Image]:
    """A drawn person who acts: the face at a time, gray."""
    person = Identity.sample(np.random.default_rng(seed), 0.3)
    return lambda time: Image.fromarray(draw_face(act(moods, time), person, View(), side))
