"""Copies of images: found, listed, and left out of training, in every source."""

import csv
import io

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageOps
from scipy import fft

import fer_pll
from fer_pll.data import copies as module
from fer_pll.data.copies import Copies, Copy, Fingerprints, find_copies, fingerprint
from fer_pll.data.dataset import COPIES, HELD_OUT
from fer_pll.data.provenance import Provenance
from fer_pll.io.errors import DataError


def photograph(seed: int, side: int = 64) -> PILImage.Image:
    """Noise with the spectrum of photographs: its power falls with the square of the frequency."""
    rng = np.random.default_rng([7, seed])
    rows, columns = np.mgrid[:side, :side]
    values = fft.idctn(rng.normal(size=(side, side)) / np.maximum(np.hypot(rows, columns), 1))
    values = 128 + 45 * (values - values.mean()) / values.std()
    return PILImage.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def stored(image: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cropped(image: PILImage.Image, share: float, left: float, top: float) -> PILImage.Image:
    width, height = round((1 - share) * image.width), round((1 - share) * image.height)
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))


CHANGES = {
    "compressed": lambda image: PILImage.open(io.BytesIO(stored(image, "JPEG", quality=60))),
    "smaller": lambda image: image.resize((45, 45), PILImage.Resampling.BICUBIC),
    "larger": lambda image: image.resize((150, 150), PILImage.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "cropped": lambda image: cropped(image, 0.05, 0.3, 1),
    "brighter": lambda image: image.point(lambda value: min(round(1.3 * value), 255)),
    "darker": lambda image: image.point(lambda value: round(0.6 * value)),
    "gray": lambda image: image.convert("L"),
}


def rows(images, names=None) -> Dataset:
    names = names or [f"row {number}" for number in range(len(images))]
    contents = [{"bytes": stored(image), "path": None} for image in images]
    return Dataset.from_dict({"image": contents, "row_id": names}).cast_column("image", Image())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_a_copy_across_splits_and_within(change):
    images = [photograph(seed) for seed in range(30)]
    copy = CHANGES[change](images[3])
    exact = change == "gray"  # the photographs are gray: stored in another mode, the pixels are the same
    kind = "exact" if exact else "mirrored" if change == "mirrored" else "near"
    found = find_copies({"train": rows([copy], ["copy"]), "validation": rows(images)})
    assert [each[:5] for each in found] == [("copy", "train", "row 3", "validation", kind)]
    assert 0 <= found[0].distance <= 0.1 and (found[0].distance == 0) == (exact or change == "mirrored")
    (within,) = find_copies(rows([*images, copy]))
    assert within[:5] == ("row 30", "train", "row 3", "train", kind)
    (late,) = find_copies({"test": rows([copy], ["copy"]), "train": rows(images)})
    assert late[:5] == ("row 3", "train", "copy", "test", kind)  # the copy is always the one in training


@settings(max_examples=40, deadline=None, derandomize=True)  # a recall of 99.96 % is measured, not one of 100 %
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 0.05),
    left=st.floats(0, 1),
    top=st.floats(0, 1),
    factor=st.floats(0.6, 1.2),
    quality=st.integers(60, 95),
    scale=st.floats(0.7, 1.5),
    mirrored=st.booleans(),
)
def test_changes_may_come_together(seed, share, left, top, factor, quality, scale, mirrored):
    original, other = photograph(seed), photograph(seed + 1)
    copy = cropped(original, share, left, top).point(lambda value: min(round(factor * value), 255))
    copy = copy.resize((round(scale * copy.width),) * 2, PILImage.Resampling.BICUBIC)
    copy = ImageOps.mirror(copy) if mirrored else copy
    copy = PILImage.open(io.BytesIO(stored(copy, "JPEG", quality=quality)))
    found = find_copies({"train": rows([copy], ["copy"]), "test": rows([other, original])})
    assert [each[:4] for each in found] == [("copy", "train", "row 1", "test")]
    assert found[0].kind == ("mirrored" if mirrored else "near")


def test_other_images_are_no_copies():
    assert find_copies(rows([photograph(seed) for seed in range(300)])) == []


def naive_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The definition in the module's words, for two thumbnails (24, 24)."""

    def described(thumbnail, size=1.0, top=0.0, left=0.0):
        positions = [np.arange(24) * size + (size - 1) / 2 + place * (1 - size) * 24 for place in (top, left)]
        part = np.array([[at(thumbnail, y, x) for x in positions[1]] for y in positions[0]])
        waves = fft.dctn(part, norm="ortho")
        kept = [waves[y, x] * np.hypot(y, x) for y in range(12) for x in range(12) if 0 < np.hypot(y, x) < 12]
        return np.array(kept) / np.linalg.norm(kept)

    def at(thumbnail, y, x):
        y, x = np.clip([y, x], 0, 23)
        top, left = min(int(y), 22), min(int(x), 22)
        (a, b), (c, d) = thumbnail[top : top + 2, left : left + 2]
        y, x = y - top, x - left
        return (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d)

    crops = [(s, top, left) for s in (0.95, 0.9) for top in (0, 0.5, 1) for left in (0, 0.5, 1)]
    whole = described(one) @ described(other)
    return max(
        whole,
        *(described(one, *crop) @ described(other) for crop in crops),
        *(described(one) @ described(other, *crop) for crop in crops),
    )


def prints(images, names=None) -> Fingerprints:
    names = names or map(str, range(len(images)))
    return Fingerprints.of_images(
        [(name, fingerprint(image.convert("RGB")), True) for name, image in zip(names, images, strict=True)]
    )


def test_similarity_is_what_the_module_says():
    image = photograph(1)
    changed = [image, cropped(image, 0.07, 0.2, 0.9), ImageOps.mirror(cropped(image, 0.04, 1, 0))]
    among = Copies.among({"train": [prints(changed)]})
    thumbnails = [np.asarray(each.convert("L").resize((24, 24), PILImage.Resampling.BILINEAR)) for each in changed]
    assert among.pairs.tolist()[:2] == [[1, 0], [2, 0]] and among.mirrored[:2].tolist() == [False, True]
    for (i, j), mirrored, similarity in zip(among.pairs, among.mirrored, among.similarity, strict=True):
        other = thumbnails[j][:, ::-1] if mirrored else thumbnails[j]
        assert similarity == pytest.approx(
            naive_similarity(thumbnails[i].astype(float), other.astype(float)), abs=1e-4
        )


def test_clusters_and_blocks_lose_nothing(monkeypatch):
    """A set with many clusters gives the pairs that comparing all with all gives."""
    images = [photograph(seed) for seed in range(400)]
    images += [CHANGES[change](images[7 * n]) for n, change in enumerate([*CHANGES, *CHANGES])]
    whole = find_copies(rows(images))
    assert {copy.row_id for copy in whole} == {f"row {n}" for n in range(400, 416)}
    for name, value in {"_CLUSTER": 16, "_BLOCK": 32, "_BUFFER": 50}.items():
        monkeypatch.setattr(module, name, value)
    assert find_copies(rows(images)) == whole


def test_many_copies_of_one_image_stay_a_short_list():
    frames = [photograph(1).point(lambda value, n=n: round(value * (0.7 + 0.01 * n))) for n in range(30)]
    found = find_copies({"train": rows(frames), "test": rows([photograph(1), photograph(2)])})
    in_test = [copy for copy in found if copy.copy_of_split == "test"]
    assert [copy.row_id for copy in in_test] == [f"row {n}" for n in range(30)]
    assert len(found) <= 30 * 17
    among = Copies.among({"train": [prints(frames)]})
    assert among.of_training("near")["near copy of an earlier training image"].sum() >= 20


def test_images_without_contrast_have_exact_copies_only():
    flat = [PILImage.new("L", (20, 20), level) for level in (0, 0, 1, 200)]
    assert find_copies(rows(flat)) == [Copy("row 1", "train", "row 0", "train", "exact", 0.0)]


def test_what_cannot_be_compared_is_said():
    with pytest.raises(DataError, match="split 'train' has no column 'image'; it has label"):
        find_copies(Dataset.from_dict({"label": [1]}))
    broken = rows([photograph(0)] * 2).cast_column("image", Image(decode=False))
    broken = Dataset.from_list(
        [broken[0], {"image": {"bytes": b"no image", "path": None}, "row_id": "bad"}, broken[1]]
    )
    with pytest.warns(UserWarning, match="1 images of train cannot be compared; the first: bad: .*not an image"):
        found = find_copies(broken.cast_column("image", Image()))
    assert [copy.row_id for copy in found] == ["row 1"]
    assert find_copies({}) == [] and find_copies(rows([photograph(0)])) == []


def write_images(folder, images):
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)


def votes(folder, train, validation):
    write_images(folder, train | validation)
    lines = [f"{name},3,1,{split}" for split, part in (("train", train), ("validation", validation)) for name in part]
    (folder / "votes.csv").write_text("\n".join(["path,happiness,sadness,split", *lines]))
    return ("votes", folder / "votes.csv"), {}


def class_folders(folder, train, validation):
    write_images(folder / "train" / "happy", train)
    write_images(folder / "val" / "happy", validation)
    photograph(99).save(folder / "val" / "happy" / "z.png")
    write_images(folder / "train" / "sad", {"z.png": photograph(98)})
    return ("folder", folder), {}


def rafdb(folder, train, validation):
    names = (
        [f"train_{n:05}" for n in range(1, len(train) + 1)],
        [f"test_{n:04}" for n in range(1, len(validation) + 1)],
    )
    files = {f"Image/aligned/{name}_aligned.jpg": image for name, image in zip(names[0], train.values(), strict=True)}
    files |= {f"Image/aligned/{name}_aligned.jpg": im for name, im in zip(names[1], validation.values(), strict=True)}
    write_images(folder, {})
    for name, image in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, quality=95)
    (folder / "EmoLabel").mkdir()
    lines = [f"{name}.jpg 5" for part in names for name in part]
    (folder / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines))
    return ("rafdb", folder), {}


def affectnet(folder, train, validation):
    for split, part in (("train_set", train), ("val_set", validation)):
        for number, image in enumerate(part.values()):
            write_images(folder / split, {f"images/{number}.jpg": image})
            (folder / split / "annotations").mkdir(exist_ok=True)
            np.save(folder / split / "annotations" / f"{number}_exp.npy", "1")
            np.save(folder / split / "annotations" / f"{number}_lnd.npy", np.zeros(136))
    return ("affectnet", folder), {}


def dataset(folder, train, validation):
    splits = {"train": rows(train.values(), list(train)), "validation": rows(validation.values(), list(validation))}
    labeled = {split: part.add_column("label", ["happiness"] * len(part)) for split, part in splits.items()}
    DatasetDict(labeled).save_to_disk(folder / "set")
    return ("dataset", folder / "set"), {"row_id": "row_id"}


@pytest.mark.parametrize("write", [votes, class_folders, rafdb, affectnet, dataset])
def test_copies_leave_the_training_split_of_every_source(write, tmp_path):
    images = [photograph(seed) for seed in range(6)]
    train = {
        "a.png": images[0],
        "b.png": images[1],  # also in validation
        "c.png": images[0],  # repeats a
        "d.png": CHANGES["cropped"](images[2]),  # of an image in validation
        "e.png": images[3],
        "f.png": CHANGES["mirrored"](images[3]),
    }
    validation = {"v.png": images[1], "w.png": images[2], "x.png": images[1]}
    (name, source), options = write(tmp_path / "raw", train, validation)
    extra = 1 if name == "folder" else 0  # it has another class
    said: list[str] = []
    for drop, kept in {"none": 6, "exact": 4, "near": 2}.items():
        out = tmp_path / drop
        said.clear()
        prepared = fer_pll.prepare(name, source, out=out, drop_copies=drop, report=said.append, num_proc=1, **options)
        splits = list(prepared)
        assert [len(prepared[split]) for split in splits] == [kept + extra, 3 + extra]
        with (out / COPIES).open(newline="") as file:
            listed = [Copy(*row[:5], float(row[5])) for row in list(csv.reader(file))[1:]]
        assert {(copy.split, copy.copy_of_split, copy.kind) for copy in listed} == {
            (splits[1], splits[1], "exact"),
            ("train", splits[1], "exact"),
            ("train", "train", "exact"),
            ("train", splits[1], "near"),
            ("train", "train", "mirrored"),
        }
        assert len(listed) == 5 and f"5 copies of images among all splits, see {out / COPIES}" in said
        leaks = {"none": "1 are copies and 1 near copies", "exact": "0 are copies and 1 near copies"}.get(drop)
        assert [leaks in line for line in said if "training images" in line] == ([True] if leaks else [])
        sentence = Provenance.from_dataset(prepared["train"]).sentence()
        assert ("1 copy of a validation or test image, 1 copy of an earlier training" in sentence) == (drop != "none")
        assert ("1 near copy of a validation or test image, 1 near copy of an e" in sentence) == (drop == "near")
        assert {copy.row_id for copy in listed if copy.split == "train"} & set(prepared["train"]["row_id"]) == (
            set() if drop == "near" else {copy.row_id for copy in listed if copy.split == "train"} - gone(listed, drop)
        )


def gone(listed, drop):
    return {copy.row_id for copy in listed if copy.kind == "exact" and copy.split == "train" and drop == "exact"}


def test_rows_held_out_are_listed_as_such_and_options_are_checked(tmp_path):
    images = {f"{n}.png": photograph(n // 2).point(lambda value, n=n: max(value - n % 2, 0)) for n in range(20)}
    (name, source), _ = votes(tmp_path / "raw", images, {})
    said: list[str] = []
    options = {"validation_share": 0, "hold_out": 0.5, "num_proc": 1}
    prepared = fer_pll.prepare(name, source, out=tmp_path / "set", report=said.append, **options)
    where = {row_id: split for split, part in prepared.items() for row_id in part["row_id"]}
    with (tmp_path / "set" / COPIES).open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 10 and {copy["split"] for copy in listed} == {"train", HELD_OUT}
    assert all(where[copy["row_id"]] == copy["split"] for copy in listed)
    assert all(where[copy["copy_of"]] == copy["copy_of_split"] for copy in listed)
    leaks = {copy["row_id"] for copy in listed if (copy["split"], copy["copy_of_split"]) == ("train", HELD_OUT)}
    assert leaks and f"0 are copies and {len(leaks)} near copies of images to evaluate on" in "".join(said)
    fer_pll.prepare(name, source, out=tmp_path / "set", overwrite=True, num_proc=1)  # the list is one of our files
    with pytest.raises(DataError, match="--drop-copies all: choose exact, near, none"):
        fer_pll.prepare(name, source, out=tmp_path / "b", drop_copies="all")


def test_a_training_split_of_copies_only_is_an_error(tmp_path):
    (name, source), _ = votes(tmp_path / "raw", {"a.png": photograph(0)}, {"v.png": photograph(0)})
    with pytest.raises(DataError, match="no train row is left; dropped: 1 copy of a validation or test image; --drop"):
        fer_pll.prepare(name, source, out=tmp_path / "set", num_proc=1)


@pytest.mark.parametrize("dataset", ["/nope", None, {"train": "/nope"}, [1]])
def test_what_is_no_data_set_is_named(dataset):
    with pytest.raises(DataError, match=r"dataset is .*: give data sets, as load_dataset returns them"):
        find_copies(dataset)
