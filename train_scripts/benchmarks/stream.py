"""A stream of Parquet shards against that of datasets."""

import sys
import tempfile
import time
from statistics import median

from .common import Result, fresh_process
from .images import encoded_images


def add_options(parser):
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="number of images (default: 100,000)")
    parser.add_argument("--shards", type=int, default=20, metavar="N", help="Parquet files (default: 20)")
    parser.add_argument("--buffer", type=int, default=4096, metavar="N", help="shuffle buffer (default: 4096)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="passes of each side (default: 3)")


def measure(args):
    """A pass over Parquet shards of 48 x 48 PNG, shuffled and decoded in one process, against that of datasets.

    Each side has a fresh process. The benchmark also resumes in the middle of the pass. Ours reads a part of a shard
    and a buffer again, without decoding; the other side is transformers' Trainer, which iterates over all images that
    came before.
    ratios: speed, images per second of ours over datasets'; memory, peak memory of the process during the pass, ours
    over datasets'; resume, Trainer's time to the next image over ours.
    """
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        with fresh_process() as child:
            child.submit(write_shards, folder, args.images, args.shards).result()
        runs = {"ours": [], "theirs": []}
        for turn in range(args.repeats):
            for side in list(runs)[:: 1 if turn % 2 else -1]:
                with fresh_process() as child:
                    runs[side].append(child.submit(pass_of_stream, side, folder, args).result())
    seconds, memory, resume = (
        {side: median(run[i] for run in results) for side, results in runs.items()} for i in range(3)
    )
    ratios = {
        "speed": seconds["theirs"] / seconds["ours"],
        "memory": memory["ours"] / memory["theirs"],
        "resume": resume["theirs"] / resume["ours"],
    }
    speed = {side: args.images / seconds[side] for side in seconds}

    def row_of(title, values, form, ratio):
        return (title, format(values["ours"], form), format(values["theirs"], form), f"{ratio:.2f}x")

    table = [
        (f"{args.images:,} images, {args.shards} shards, buffer {args.buffer}", "fer-pll", "datasets", "ratio"),
        row_of("images/s", speed, ",.0f", ratios["speed"]),
        row_of("peak memory of a pass, MiB", memory, ".1f", ratios["memory"]),
        row_of("resuming in the middle, s", resume, ".2f", ratios["resume"]),
    ]
    return Result(table, ratios, {}, f"datasets {datasets.__version__}")


def write_shards(folder, count, shards):
    from datasets import Dataset, Features, Image

    images = encoded_images("tiny", 1000)
    for shard in range(shards):
        numbers = range(count * shard // shards, count * (shard + 1) // shards)
        rows = {"image": [{"bytes": images[number % 1000], "path": None} for number in numbers]}
        Dataset.from_dict(rows, features=Features(image=Image())).to_parquet(f"{folder}/{shard:05}.parquet")


def pass_of_stream(side, folder, args):
    """Seconds of a pass, its peak MiB, and seconds to resume behind the middle; to be called in a fresh process."""
    import resource

    import psutil
    from datasets import load_dataset

    from fer_pll.data.streaming.stream import ImageStream

    def ours():
        return ImageStream([folder], args.buffer)

    def theirs():
        files = f"{folder}/*.parquet"
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
        return (row["image"].convert("RGB") for row in stream.shuffle(seed=0, buffer_size=args.buffer))

    next(iter(ours() if side == "ours" else theirs()))  # imports what is imported late
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    stream = ours() if side == "ours" else theirs()
    for count, image in enumerate(stream, 1):
        if count == args.images // 2:
            middle, to_middle = image, time.perf_counter() - start
        if count == args.images:
            break
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    memory = max(most - before, resource.getpagesize()) / 2**20  # of few images nothing shows
    if side == "theirs":
        return seconds, memory, to_middle
    start = time.perf_counter()
    stream = ours()
    stream.start_at({0: middle["position"]})
    next(iter(stream))
    return seconds, memory, time.perf_counter() - start
