from collections import Counter
from itertools import islice

import pytest
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader

from fer_pll import FerPllImageProcessor
from fer_pll.data.augmentation import keyed_uniform
from fer_pll.data.collator import PixelCollator
from fer_pll.data.dataset import load_images, save_dataset
from fer_pll.data.streaming.stream import ImageStream
from fer_pll.io.errors import DataError
from tiny import make_dataset
from toy_streaming import encoded, write_folder, write_parquet, write_shards, write_tar

IMAGES = 48  # of write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shards(tmp_path_factory.mktemp("stream") / "shards"))


def take(stream: ImageStream, count: int) -> list[dict]:
    return list(islice(stream, count))


def places(rows: list[dict]) -> list[tuple]:
    return [(row["epoch"], row["index"], row["position"]) for row in rows]


def test_every_image_comes_once_in_a_pass_and_each_pass_has_its_order(shards):
    rows = take(ImageStream([shards], 10), 3 * IMAGES)
    passes = [rows[start : start + IMAGES] for start in range(0, len(rows), IMAGES)]
    orders = [[row["index"] for row in part] for part in passes]
    for number, part in enumerate(passes):
        assert {row["epoch"] for row in part} == {number}
        assert len(set(orders[number])) == IMAGES and set(orders[number]) == set(orders[0])
    assert len({tuple(order) for order in orders}) == 3
    contents = [{row["index"]: row["image"].tobytes() for row in part} for part in passes]
    assert contents[0] == contents[1] and len(set(contents[0].values())) == IMAGES
    assert {row["image"].mode for row in rows} == {"RGB"}
    assert len({row["row_id"] for row in rows}) == IMAGES


def test_the_order_hangs_on_the_seed_and_on_nothing_else(shards):
    one, again, other = (places(take(ImageStream([shards], 10, seed), IMAGES)) for seed in (1, 1, 2))
    assert one == again
    assert [place[1] for place in one] != [place[1] for place in other]


def test_the_shuffle_buffer_mixes_what_follows_each_other_and_no_more(shards):
    unshuffled = [row["index"] for row in take(ImageStream([shards], 1), IMAGES)]
    shuffled = [row["index"] for row in take(ImageStream([shards], 10), IMAGES)]
    for start in range(0, IMAGES, 10):
        assert sorted(unshuffled[start : start + 10]) == sorted(shuffled[start : start + 10])
        assert unshuffled[start : start + 10] != shuffled[start : start + 10]
    assert [index >> 32 for index in unshuffled] != sorted(index >> 32 for index in unshuffled)  # shards are too


def test_a_stream_goes_on_behind_any_image(shards):
    whole = take(ImageStream([shards], 10), 110)
    for used in range(1, 100):
        stream = ImageStream([shards], 10)
        stream.start_at({0: whole[used - 1]["position"]})
        assert places(take(stream, 10)) == places(whole[used : used + 10]), used


def test_going_on_decodes_nothing_that_was_used(shards, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "fer_pll.data.streaming.stream.decode_image", lambda data, name: opened.append(name) or len(opened)
    )
    monkeypatch.setattr("fer_pll.data.streaming.stream.open_image", lambda file: opened.append(file) or len(opened))
    position = take(ImageStream([shards], 10), 38)[-1]["position"]
    opened.clear()
    stream = ImageStream([shards], 10)
    stream.start_at({0: position})
    take(stream, 5)
    assert len(opened) == 5


@pytest.mark.parametrize("readers", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("num_shards", [4, 41])
def test_readers_share_out_each_pass(tmp_path, readers, num_shards):
    """By shards where these come out even or are many, else by rows."""
    for number in range(num_shards):
        write_folder(tmp_path / f"{number:02}", encoded(3, number))
    sources = [str(tmp_path / f"{number:02}") for number in range(num_shards)]
    streams = [ImageStream(sources, 5, rank=rank, world_size=readers) for rank in range(readers)]
    assert streams[0].shares_shards(readers) == ((num_shards == 41 and readers < 6) or num_shards % readers == 0)
    seen, first_to_finish = Counter(), []
    for stream in streams:
        for number, row in enumerate(stream):
            if row["epoch"] > 2:
                first_to_finish.append(number)
                break
            seen[row["epoch"], row["index"]] += 1
    assert len(seen) == 3 * 3 * num_shards and set(seen.values()) == {1}
    assert max(first_to_finish) - min(first_to_finish) <= 2 * 3  # none gets ahead by more than two shards


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_dataloader_workers_are_readers_of_their_own(shards, workers):
    stream = ImageStream([shards], 10)
    loader = DataLoader(stream, batch_size=6, num_workers=workers, collate_fn=list)
    batches = list(islice(loader, 30))
    rows = [row for batch in batches for row in batch]
    seen = Counter((row["epoch"], row["index"]) for row in rows)
    assert set(seen.values()) == {1} and sum(epoch == 0 for epoch, _ in seen) == IMAGES
    if workers < 2:
        assert places(rows) == places(take(ImageStream([shards], 10), 180))
    # An interruption after 7 batches: whose turn it is, and where each is.
    positions = {batch[-1]["reader"]: batch[-1]["position"] for batch in batches[:7]}
    stream.start_at(positions, first_worker=7 % max(1, workers))
    resumed = [row for batch in islice(loader, 8) for row in batch]
    assert places(resumed) == places([row for batch in batches[7:15] for row in batch])


def test_a_new_pass_can_be_begun(shards):
    for rank in (0, 1):
        stream = ImageStream([shards], 10, rank=rank, world_size=2)
        of_pass_3 = [row["index"] for row in take(stream, 200) if row["epoch"] == 3]
        stream.start_at({}, epoch=3)
        assert [row["index"] for row in take(stream, len(of_pass_3))] == of_pass_3


def test_the_union_of_all_kinds_of_sources(shards, tmp_path):
    save_dataset(DatasetDict(train=make_dataset(30)), tmp_path / "set")
    write_tar(tmp_path / "more.tar", encoded(5, 9))
    rows = take(ImageStream([shards, str(tmp_path / "set"), str(tmp_path / "more.tar")], 10), IMAGES + 35)
    assert len({row["index"] for row in rows}) == IMAGES + 35 and {row["epoch"] for row in rows} == {0}
    assert sum(row["row_id"].startswith("row:") for row in rows) == 30


def test_a_prepared_set_gives_the_same_pixels_as_a_stream(tmp_path):
    save_dataset(DatasetDict(train=make_dataset(6)), tmp_path / "set")
    collate = PixelCollator(FerPllImageProcessor(num_channels=1, size={"height": 24, "width": 24}))
    streamed = sorted(take(ImageStream([str(tmp_path / "set")]), 6), key=lambda row: row["index"])
    kept = load_images([tmp_path / "set"]).add_column("index", range(6))  # as the trainer does
    assert torch.equal(collate(streamed)["pixel_values"], collate(kept)["pixel_values"])


def test_the_union_of_prepared_sets(tmp_path):
    for name, count in (("one", 7), ("two", 5)):
        save_dataset(DatasetDict(train=make_dataset(count, seed=count)), tmp_path / name)
    union = load_images([tmp_path / "one", tmp_path / "two"])
    assert union.column_names == ["image", "row_id"] and len(union) == 12
    assert union[8]["image"].tobytes() == make_dataset(5, seed=5)[1]["image"].tobytes()


def test_what_cannot_be_read_is_left_out_reported_once_in_each_pass_and_nothing_else_is_lost(shards, tmp_path):
    write_tar(tmp_path / "whole.tar", encoded(6, 11))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:8000])
    files = encoded(8, 12)
    files[3], files[5] = b"not an image", files[5][:60]
    write_parquet(tmp_path / "p.parquet", files)
    sources = [shards, str(tmp_path), str(tmp_path / "gone-{0..0}.tar")]
    rows = take(ImageStream(sources, 10), 300)
    problems = [(row["epoch"], *problem) for row in rows for problem in row["unreadable"]]
    first = {(row_id, path): reason for epoch, row_id, path, reason in problems if epoch == 0}
    assert len(first) == 4
    assert first[f"{tmp_path}/p.parquet:3", f"{tmp_path}/p.parquet"].startswith(
        "not an image in a format that is read"
    )
    assert "truncated" in first[f"{tmp_path}/p.parquet:5", f"{tmp_path}/p.parquet"]
    assert "the rest, from row" in first[f"{tmp_path}/cut.tar", f"{tmp_path}/cut.tar"]
    assert "FileNotFoundError" in first[f"{tmp_path}/gone-0.tar", f"{tmp_path}/gone-0.tar"]
    assert all(path in (f"{tmp_path}/cut.tar", f"{tmp_path}/gone-0.tar", f"{tmp_path}/p.parquet") for _, path in first)
    good = IMAGES + 6 + 6 + sum(row["epoch"] == 0 and "cut.tar" in row["row_id"] for row in rows)
    assert len({row["index"] for row in rows}) == good == sum(row["epoch"] == 0 for row in rows)


def test_a_stream_without_a_image_ends_with_the_reason(tmp_path):
    write_tar(tmp_path / "a.tar", [b"nothing", b"at all"])
    with pytest.raises(DataError, match=r"no image can be read in a whole pass; the last: .*a.tar.*not an image"):
        next(iter(ImageStream([str(tmp_path)])))


def test_fewer_images_than_readers(tmp_path):
    write_folder(tmp_path, encoded(1, 0))
    streams = (ImageStream([str(tmp_path)], rank=rank, world_size=2) for rank in (0, 1))
    assert [[row["epoch"] for row in take(stream, 3)] for stream in streams] == [[0, 2, 4], [1, 3, 5]]


def test_a_source_is_named_once(shards):
    with pytest.raises(DataError, match=r"a.parquet twice"):
        ImageStream([shards, f"{shards}/*.parquet"])


def test_the_pass_is_part_of_a_images_random_numbers():
    index = torch.tensor([5, 5, 9]).numpy()
    mixed = keyed_uniform(0, torch.tensor([1, 2, 2]).numpy(), index, 4)
    assert (mixed[0] == keyed_uniform(0, 1, index, 4)[0]).all()
    assert (mixed[1:] == keyed_uniform(0, 2, index, 4)[1:]).all()
    assert (mixed[0] != mixed[1]).all()
