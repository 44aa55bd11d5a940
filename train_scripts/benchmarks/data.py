"""The cost of loading a batch, against the same written by hand, and against a training step."""

import argparse

from .common import Result, device, photo_crops, synchronize, take_turns
from .images import decode, encode, encoded_images
from .training_step import SCALES, add_options, make_step, settings_of

__all__ = ["add_options", "measure"]

ASTRONAUT_LANDMARKS = ((203, 111), (245, 110), (227, 133), (207, 156), (246, 155))
"""Eyes, nose and corners of the mouth in scikit-image's portrait, in pixels; close enough for timing."""

BATCHES = 16  # number of batches that a loader yields in one turn, and of photographs that are aligned


def measure(args):
    """The cost of loading a batch (reading rows of a prepared data set, decoding, resizing, augmentation as in
    finetune.yaml, normalization), against the same written by hand with Pillow and NumPy, and against a training step.

    Images are 48 x 48 gray PNG at tiny, 100 x 100 color JPEG at base. By hand they are bytes in a list already, and
    pass through Pillow one by one. Alignment, which fer-pll prepare does once, takes a photograph of 512 x 512 pixels
    and five landmarks; by hand it has no protection against aliasing.
    ratios, each at least the target: loader and align, images/s of ours over by hand on one core; over_training,
    images/s of the loader with one worker per core over those of a step of our model, pre-training or fine-tuning,
    whichever is faster. At base the augmentation is meant for a GPU, so loader has no target there.
    """
    args.batch_size = args.batch_size or SCALES[args.scale][1]

    import numpy as np
    import PIL
    import torch
    import yaml

    from fer_pll.data.augmentation import BatchAugmentation
    from fer_pll.faces.crops import load_crop
    from fer_pll.model.face_alignment import align_face
    from fer_pll.training.config import config_folder

    folder = config_folder(SCALES[args.scale][0])
    settings = yaml.safe_load((folder / "finetune.yaml").read_text())
    settings = {name: settings[name] for name in vars(BatchAugmentation()) if name in settings}
    images = encoded_images(args.scale, BATCHES * args.batch_size)
    crop = load_crop(str(folder))
    photo, landmarks = encode(photo_crops(1, 512, 3)[0], "JPEG"), np.array(ASTRONAUT_LANDMARKS)

    torch.set_num_threads(1)
    sides = {
        "loader": lambda: load_batches(loader(images, folder, args.batch_size, 0), folder, settings),
        "loader by hand": lambda: load_by_hand(images, folder, args.batch_size, settings),
        "align": lambda: [align_face(decode(photo), landmarks, crop) for _ in range(BATCHES)],
        "align by hand": lambda: [align_by_hand(decode(photo), landmarks, crop) for _ in range(BATCHES)],
    }
    seconds = take_turns(sides, args.repeats)
    torch.set_num_threads(args.threads)
    workers = loader(images, folder, args.batch_size, args.threads)
    steps = {
        name: make_step("ours", argparse.Namespace(**vars(args) | {"name": name}))[-1]
        for name in ("pretrain", "finetune")
    }
    seconds |= take_turns({"loader, all cores": lambda: load_batches(workers, folder, settings)} | steps, args.repeats)
    counts = dict.fromkeys(seconds, len(images)) | {"align": BATCHES, "align by hand": BATCHES}
    counts |= dict.fromkeys(steps, args.batch_size)
    speed = {name: counts[name] / seconds[name] for name in seconds}
    ratios = {name: speed[name] / speed[f"{name} by hand"] for name in ("loader", "align")}
    whole = speed["loader, all cores"]
    ratios["over_training"] = whole / max(speed[name] for name in steps)
    targets = {"over_training": 2.0}
    if args.scale == "tiny":
        targets["loader"] = 1.0

    def row_of(title, ours, theirs, name):
        target = f">= {targets[name]:g}x" if name in targets else ""
        return (title, f"{ours:,.1f}", f"{theirs:,.1f}", f"{ours / theirs:.2f}x", target)

    table = [
        (f"images/s, {settings_of(args)}", "fer-pll", "other", "ratio", "target"),
        row_of("load | by hand, one core", speed["loader"], speed["loader by hand"], "loader"),
        row_of("open and align | by hand, one core", speed["align"], speed["align by hand"], "align"),
        *(
            row_of(f"load | step of {step}, {args.threads} cores", whole, speed[step], "over_training")
            for step in steps
        ),
    ]
    return Result(table, ratios, targets, f"Pillow {PIL.__version__}")


def loader(images, folder, batch_size, workers):
    """The batches of a prepared data set in random order, as the trainers read them."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from fer_pll import FerPllImageProcessor
    from fer_pll.data.collator import PixelCollator
    from fer_pll.data.dataset import prepared_features
    from fer_pll.labels.expressions import EXPRESSIONS

    rows = range(len(images))
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "row_id": [str(row) for row in rows],
        "label": [row % len(EXPRESSIONS) for row in rows],
        "votes": [[1] * len(EXPRESSIONS)] * len(images),
    }
    return DataLoader(
        Dataset.from_dict(columns, prepared_features(EXPRESSIONS, ("votes",))).add_column("index", rows),
        batch_size,
        shuffle=True,
        collate_fn=PixelCollator(FerPllImageProcessor.from_pretrained(folder)),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def load_batches(batches, folder, settings):
    """An epoch of a loader, with the augmentation and normalization that the trainers apply to its batches."""
    import torch

    from fer_pll import FerPllConfig
    from fer_pll.data.augmentation import BatchAugmentation

    config = FerPllConfig.from_pretrained(folder)
    mean, std = (
        255 * torch.tensor(values, device=device()).view(-1, 1, 1) for values in (config.image_mean, config.image_std)
    )
    augmentation = BatchAugmentation(**settings)
    for batch in batches:
        pixels = augmentation(batch["pixel_values"].to(device()), batch["index"], epoch=0)
        (pixels - mean) / std
    synchronize()


def load_by_hand(images, folder, batch_size, settings):
    """The same as a user of Pillow would write it: one image at a time, with Pillow's functions."""
    import numpy as np
    import torch

    from fer_pll import FerPllConfig

    config = FerPllConfig.from_pretrained(folder)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (config.image_mean, config.image_std))
    order = np.random.default_rng(0).permutation(len(images))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [augment_by_hand(images[row], config, settings) for row in rows]
        torch.from_numpy((np.stack(batch) - mean) / std).to(device())
    synchronize()


def augment_by_hand(data, config, settings):
    """An image file to float32 (C, H, W) in 0..1, with the random changes of `BatchAugmentation`."""
    import io
    import math
    import random

    import numpy as np
    from PIL import Image, ImageEnhance, ImageOps

    image = Image.open(io.BytesIO(data)).convert("L" if config.num_channels == 1 else "RGB")
    area, ratio = random.uniform(settings.get("crop_scale", 1), 1), settings.get("crop_ratio", 1)
    stretch = math.exp(random.uniform(-0.5, 0.5) * math.log(ratio))
    width, height = (min(1, math.sqrt(area) * s) * image.width for s in (stretch, 1 / stretch))
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    image = image.resize((config.image_size, config.image_size), Image.Resampling.BILINEAR, box)
    if settings.get("rotation"):
        image = image.rotate(random.uniform(-1, 1) * settings["rotation"], Image.Resampling.BILINEAR)
    if settings.get("flip", True) and random.random() < 0.5:
        image = ImageOps.mirror(image)
    if settings.get("light"):
        for enhance in (ImageEnhance.Contrast, ImageEnhance.Brightness):
            image = enhance(image).enhance(1 + random.uniform(-1, 1) * settings["light"])
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if random.random() < settings.get("erase", 0):
        side = int(math.sqrt(random.uniform(0.02, 0.2)) * config.image_size)
        x, y = (random.randint(0, config.image_size - side) for _ in range(2))
        pixels = pixels.copy()
        pixels[:, y : y + side, x : x + side] = pixels.mean(axis=(1, 2), keepdims=True)
    return pixels


def align_by_hand(image, landmarks, crop):
    """Alignment with a least-squares similarity transform and Pillow."""
    import numpy as np
    from PIL import Image

    # x' = a x - b y + c, y' = b x + a y + d, from the crop to the image
    x, y = crop.landmarks.T
    zero, one = np.zeros(5), np.ones(5)
    equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(equations, landmarks.T.reshape(-1), rcond=None)[0]
    image = image.convert("L" if crop.color == "gray" else "RGB")
    size, matrix = (crop.size, crop.size), (a, -b, c, b, a, d)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
