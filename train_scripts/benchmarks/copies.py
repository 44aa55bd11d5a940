"""Which planted copies of images are found, and how long it takes."""

import io
import tempfile
import time
from pathlib import Path

from .common import Result
from .images import decode

CHANGES = ("compressed", "smaller", "mirrored", "cropped", "brighter")


def add_options(parser):
    parser.add_argument("--data", metavar="DIR", help="prepared set whose images are copied (default: drawn faces)")
    parser.add_argument("--planted", type=int, default=500, metavar="N", help="copies of each kind (default: 500)")
    parser.add_argument(
        "--images", type=int, default=100_000, metavar="N", help="images of the set that is timed (default: 100000)"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="turns of the timing (default: 1)")


def measure(args):
    """Copies planted in a set of images, one of each kind for each of N images drawn at random: compressed (JPEG,
    quality 60), smaller (resized to 0.7), mirrored, cropped (to 0.95 of each side, anywhere), and brighter or darker
    (0.7 or 1.3 times). The planted images are the split `train`, the others `test`.

    recall is the share of planted images that are found as copies of their original. precision is the share of the
    original among all images of the set that planted images are found to be copies of; images that are listed as
    copies of the original do not count, because nobody knows whether they are.
    time: the processor's seconds to find copies among --images images, over those in which fer-pll prepare reads and
    writes that many (from 3,000 of them). The images are those of the set, turned and moved at random until there are
    enough.
    ratios, each at least the target: recall, precision, and recall of each kind. time is to stay below its target.
    """
    import numpy as np
    import PIL

    from fer_pll.data.copies import Copies, Fingerprints, fingerprint

    rng = np.random.default_rng(0)
    files = images_of(args.data, args.planted)
    own = Fingerprints.of_images([(str(n), fingerprint(decode(data)), True) for n, data in enumerate(files)])
    drawn = np.sort(rng.permutation(len(files))[: args.planted])
    planted = Fingerprints.of_images(
        [
            (f"{kind} {n}", fingerprint(changed(decode(files[n]), kind, rng)), True)
            for kind in CHANGES
            for n in drawn.tolist()
        ]
    )
    among = Copies.among({"train": [planted], "test": [own]}).listed()
    in_set = {(copy.row_id, copy.copy_of) for copy in Copies.among({"test": [own]}).listed()}
    in_set |= {(other, one) for one, other in in_set}
    found, wrong = {kind: set() for kind in CHANGES}, 0
    for copy in among:
        if copy.split == "train" and copy.copy_of_split == "test":
            kind, original = copy.row_id.split()
            if copy.copy_of == original:
                found[kind].add(original)
            else:
                wrong += (copy.copy_of, original) not in in_set
    right = sum(map(len, found.values()))
    ratios = {kind: len(found[kind]) / len(drawn) for kind in CHANGES}
    ratios |= {"recall": right / (len(CHANGES) * len(drawn)), "precision": right / max(right + wrong, 1)}

    many, read = turned(files, args.images, np.random.default_rng(1))
    seconds = []
    for _ in range(args.repeats):
        start = time.process_time()
        Copies.among({"test": many[: len(many) // 10], "train": many[len(many) // 10 :]})
        seconds.append(time.process_time() - start)
    find = float(np.median(seconds))
    ratios["time"] = find / read
    targets = {"recall": 0.99, "precision": 0.99, "time": 1.0}
    table = [
        (f"{len(files):,} images, {len(drawn)} of each kind", "value", "target"),
        *((f"found of those {kind}", f"{ratios[kind]:.3f}", "") for kind in CHANGES),
        *((name, f"{ratios[name]:.4f}", f">= {targets[name]:g}") for name in ("recall", "precision")),
        (f"read {args.images:,} images, s", f"{read:.1f}", ""),
        ("find copies among them, s", f"{find:.1f}", ""),
        ("find over read", f"{ratios['time']:.2f}", f"<= {targets['time']:g}"),
    ]
    return Result(table, ratios, targets, f"Pillow {PIL.__version__}")


def images_of(data, count):
    """The image files of a prepared set without exact copies, or of `count` drawn faces."""
    if data is None:
        from fer_pll.data.sources.synthetic.dataset import drawn_faces

        return [record.data() for record in drawn_faces("train", range(count))]
    from datasets import Image

    from fer_pll import load_dataset

    splits = load_dataset(data).values()
    stored = (rows.select_columns("image").cast_column("image", Image(decode=False)) for rows in splits)
    return list(dict.fromkeys(row["image"]["bytes"] for rows in stored for row in rows))


def changed(image, kind, rng):
    """A copy of an image: changed as `kind` says, and stored as a PNG, or a JPEG where it is compressed."""
    from PIL import Image, ImageOps

    if kind == "compressed":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        return decode(file.getvalue())
    if kind == "smaller":
        return image.resize((round(0.7 * image.width), round(0.7 * image.height)), Image.Resampling.BICUBIC)
    if kind == "mirrored":
        return ImageOps.mirror(image)
    if kind == "cropped":
        width, height = round(0.95 * image.width), round(0.95 * image.height)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        return image.crop((left, top, left + width, top + height))
    factor = rng.choice([0.7, 1.3])
    return image.point(lambda value: min(round(factor * value), 255))


def turned(files, count, rng):
    """Fingerprints of `count` images, in parts of 512, and the seconds that reading so many takes.

    The first are the files'. Of the others, the thumbnails are those of a file, turned by up to 15 degrees and moved
    by up to a tenth.
    """
    from PIL import Image

    from fer_pll.data.copies import Fingerprint, Fingerprints, fingerprint
    from fer_pll.data.dataset import prepared_features
    from fer_pll.data.image_writer import ImageRecord, write_split

    prints = [fingerprint(decode(file)) for file in files[:count]]
    some = [ImageRecord(Path(str(n)), str(n), {"label": 0}, data=file) for n, file in enumerate(files[:3000])]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        write_split(some, prepared_features(["a", "b"]), folder)
    seconds = (time.process_time() - start) * count / len(some)
    thumbnails = [Image.frombytes("L", (24, 24), each.thumbnail) for each in prints]
    for number in range(len(prints), count):
        place = tuple(rng.uniform(-2.4, 2.4, 2))
        image = thumbnails[number % len(files)].rotate(
            rng.uniform(-15, 15), Image.Resampling.BILINEAR, translate=place, fillcolor=128
        )
        prints.append(Fingerprint(number.to_bytes(16, "big"), image.tobytes()))
    numbered = [(str(number), each, True) for number, each in enumerate(prints)]
    return [Fingerprints.of_images(numbered[start : start + 512]) for start in range(0, count, 512)], seconds
