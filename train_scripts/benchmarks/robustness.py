"""Accuracy on images that were cropped, turned, compressed or lit differently."""

import io
import math
from functools import partial

from .common import Result

# Each makes from a gray or color image, floats 0..255 (H, W) or (H, W, 3), another of the same shape.
DISTORTIONS = {
    "scale_0.85": lambda image: move(image, scale=0.85),
    "scale_1.2": lambda image: move(image, scale=1.2),
    "shift_right": lambda image: move(image, shift=(0.06, 0)),
    "shift_left": lambda image: move(image, shift=(-0.06, 0)),
    "shift_down": lambda image: move(image, shift=(0, 0.06)),
    "shift_up": lambda image: move(image, shift=(0, -0.06)),
    "rotation_15": lambda image: move(image, degrees=15),
    "rotation_-15": lambda image: move(image, degrees=-15),
    "jpeg_50": lambda image: compress(image, 50),
    "contrast_0.7": lambda image: image.mean() + 0.7 * (image - image.mean()),
    "contrast_1.3": lambda image: image.mean() + 1.3 * (image - image.mean()),
    "light_0.7": lambda image: 0.7 * image,
    "light_1.3": lambda image: 1.3 * image,
}


def add_options(parser):
    parser.add_argument(
        "--checkpoint", metavar="PATH_OR_NAME", help="a classifier (default: the checkpoint in the package)"
    )
    parser.add_argument(
        "--data", default="data/ferplus", metavar="DIR", help="a prepared data set (default: %(default)s)"
    )
    parser.add_argument("--split", default="validation", help="the split to measure on (default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, metavar="N", help="measure on N rows, spread over the split (default: all of them)"
    )


def measure(args):
    """Accuracy of a checkpoint on a split, with each image as it is and distorted as another crop or camera would.

    scale_S enlarges the face S times; shift_SIDE moves it by 6 % of the image's side; rotation_D turns it D degrees.
    Where the image ends, its border goes on. jpeg_50 compresses the image with quality 50; contrast_F and light_F
    multiply the differences from the image's mean, or the image, by F.

    ratios: points of accuracy gained by each distortion, so a loss is negative; each at least -2.
    """
    import torch
    from transformers import AutoModelForImageClassification

    from fer_pll.data.dataset import load_dataset, numpy_column
    from fer_pll.inference.predictions import predict_logits
    from fer_pll.io.pretrained import load_image_processor, load_model
    from fer_pll.io.shipped import DEFAULT_CHECKPOINT
    from fer_pll.metrics.classification import classification_report

    torch.set_num_threads(args.threads)
    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    model = load_model(AutoModelForImageClassification, checkpoint).eval()
    image_processor = load_image_processor(checkpoint)
    dataset = load_dataset(args.data, args.split)
    if args.rows and args.rows < len(dataset):
        dataset = dataset.select(i * len(dataset) // args.rows for i in range(args.rows))
    labels = numpy_column(dataset, "label")

    def points(distortion):
        rows = dataset.with_transform(partial(distorted, distortion=distortion))
        probabilities = predict_logits(model, image_processor, rows).softmax(dim=1).numpy()
        report = classification_report(probabilities[labels >= 0], labels[labels >= 0])
        return 100 * report["accuracy"], 100 * report["mean_class_accuracy"]

    accuracy, mean_class = points(None)
    table = [("", "accuracy", "points", "mean class"), ("as it is", f"{accuracy:.1f}", "", f"{mean_class:.1f}")]
    gained = {}
    for name, distortion in DISTORTIONS.items():
        score, mean_class = points(distortion)
        gained[name] = score - accuracy
        table.append((name, f"{score:.1f}", f"{gained[name]:+.1f}", f"{mean_class:.1f}"))
    return Result(table, gained, dict.fromkeys(gained, -2.0), "the image as it is")


def distorted(rows, distortion):
    """A batch of rows with distorted images; `distortion` None leaves them as they are."""
    import numpy as np
    from PIL import Image

    if distortion is None:
        return rows
    pixels = (distortion(np.asarray(image, dtype=np.float32)) for image in rows["image"])
    return {"image": [Image.fromarray(array.round().clip(0, 255).astype(np.uint8)) for array in pixels]}


def move(image, scale=1.0, shift=(0.0, 0.0), degrees=0.0):
    """Enlarge, turn and shift an image about its center, with bilinear sampling.

    Args:
        image: floats (H, W) or (H, W, C).
        scale: size of the face in the result over its size in the image.
        shift: to the right and down, as shares of the image's width and height.
        degrees: turn, counterclockwise as seen.
    """
    import numpy as np
    from skimage.transform import AffineTransform, warp

    height, width = image.shape[:2]
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    around_center = AffineTransform(translation=-center)
    turned = AffineTransform(scale=scale, rotation=-math.radians(degrees))
    back = AffineTransform(translation=center + np.array(shift) * (width, height))
    return warp(image, (around_center + turned + back).inverse, order=1, mode="edge", preserve_range=True)


def compress(image, quality):
    """The image after JPEG compression."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file), dtype=np.float32)
