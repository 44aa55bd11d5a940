"""HOG targets against scikit-image."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from .common import Result, photo_crops, take_turns


def add_options(parser):
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PX", help="side in pixels (default: 224)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each side (default: 7)")


def measure(args):
    """HOG targets against skimage.feature.hog.

    ratios: scikit-image's time over ours on crops of a photo, for one_thread (both on one thread) and all_threads
    (scikit-image has a pool of as many processes, which hold their images already); the same on one thread for white
    noise, which is the worst case, and for the tiny size (48 x 48, one channel, cell 4); largest_difference between
    the two in any value.
    """
    import numpy as np
    import skimage
    import torch

    from fer_pll.model.hog import hog_targets

    def ours(pixels, cell_size, threads):
        torch.set_num_threads(threads)
        return hog_targets(pixels, cell_size)

    photos = photo_crops(args.batch_size, args.image_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, photos.shape, dtype=np.uint8)
    tiny = photo_crops(args.batch_size, 48, 1)
    size = f"{args.image_size} x {args.image_size} x 3"
    cases = {
        "one_thread": (f"{size}, one thread", photos, 8, 1),
        "all_threads": (f"{size}, {args.threads} threads / processes", photos, 8, args.threads),
        "one_thread_noise": (f"{size}, noise, one thread", noise, 8, 1),
        "one_thread_tiny": ("48 x 48 x 1, one thread", tiny, 4, 1),
    }
    targets = {"one_thread": 20.0, "all_threads": 20.0, "largest_difference": 1e-6}
    ratios, difference = {}, 0.0
    table = [(f"ms per image, batch {args.batch_size}", "fer-pll", "scikit-image", "ratio", "target", "difference")]
    workers = ProcessPoolExecutor(
        args.threads, get_context("spawn"), initializer=keep_images, initargs=(photos, args.threads)
    )
    with workers:
        for name, (title, images, cell_size, threads) in cases.items():
            pixels = torch.from_numpy(images)
            sides = {"ours": lambda pixels=pixels, cell=cell_size, n=threads: ours(pixels, cell, n)}
            if name == "all_threads":
                sides["theirs"] = lambda: list(workers.map(skimage_hog_of_share, range(args.threads)))
            else:
                sides["theirs"] = lambda images=images, cell=cell_size: skimage_hog(images, cell)
            seconds = take_turns(sides, args.repeats)
            apart = np.abs(sides["ours"]().numpy() - skimage_hog(images, cell_size)).max().item()
            difference = max(difference, apart)
            ratios[name] = seconds["theirs"] / seconds["ours"]
            each = [f"{seconds[side] / args.batch_size * 1e3:.3f}" for side in ("ours", "theirs")]
            target = f">= {targets[name]:g}x" if name in targets else ""
            table.append((title, *each, f"{ratios[name]:.1f}x", target, f"{apart:.1e}"))
    ratios["largest_difference"] = difference
    if difference > targets["largest_difference"]:
        raise ValueError(f"the HOG of fer-pll and of scikit-image differ by {difference:.1e}, more than 1e-6.")
    return Result(table, ratios, targets, f"scikit-image {skimage.__version__}")


def skimage_hog(images, cell_size):
    """(B, C, H, W) to (B, C, rows, cols, 9), float64."""
    import numpy as np
    from skimage.feature import hog

    options = {"pixels_per_cell": (cell_size, cell_size), "cells_per_block": (1, 1), "block_norm": "L2"}
    channels = images.reshape(-1, *images.shape[2:])
    cells = np.stack([hog(channel, 9, feature_vector=False, **options)[:, :, 0, 0] for channel in channels])
    return cells.reshape(*images.shape[:2], *cells.shape[1:])


def keep_images(images, shares):
    """Keep the images in a process of the pool, so that the time does not include sending them."""
    global images_by_share
    images_by_share = [images[share::shares] for share in range(shares)]


def skimage_hog_of_share(share):
    if len(images_by_share[share]):
        skimage_hog(images_by_share[share], 8)
