"""FER+ on small files in the real formats, on malformed ones, and (FER_PLL_FERPLUS) on the real data."""

import csv
import io
import os
import re
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fer_pll.data.dataset import REPORT
from fer_pll.data.prepare import prepare
from fer_pll.data.provenance import Provenance
from fer_pll.data.sources.ferplus import LICENSE, protocol_masks
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

ENTRIES = (*EXPRESSIONS, "unknown", "NF")
NO_FACE = (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)
HAPPY = (0, 10, 0, 0, 0, 0, 0, 0, 0, 0)
BLACK = bytes(48 * 48)


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, 48 * 48, dtype=np.uint8).tobytes()


def row(usage="Training", name="fer.png", votes=HAPPY, pixels=None, seed=0):
    return usage, name, votes, image(seed) if pixels is None else pixels


def write_csv(folder, rows, newline="\n", encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    with (
        (folder / "fer2013.csv").open("w", newline=newline, encoding=encoding) as images,
        (folder / "fer2013new.csv").open("w", newline=newline, encoding=encoding) as annotations,
    ):
        print("emotion,pixels,Usage", file=images)
        print("Usage,Image name," + ",".join(ENTRIES), file=annotations)
        for usage, name, votes, pixels in rows:
            print(f"0,{' '.join(map(str, pixels))},{usage}", file=images)
            print(",".join([usage, name, *map(str, votes)]), file=annotations)
    return folder


def write_folders(folder, rows, boxes):
    """What FERPlus's generate_training_data.py leaves: rows without a name are skipped, equal names overwrite."""
    names = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    for usage, name, votes, pixels in rows:
        if not name:
            continue
        split = folder / names[usage]
        split.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (48, 48), pixels).save(split / name, compress_level=0)
        with (split / "label.csv").open("a", newline="") as file:
            csv.writer(file).writerow([name, *(["(0, 0, 48, 48)"] if boxes else []), *votes])
    return folder


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    load_ferplus.folder = tmp_path_factory.mktemp("prepared")


def load_ferplus(source, protocol="all", drop_copies="exact"):
    out = Path(tempfile.mkdtemp(dir=load_ferplus.folder)) / "set"
    return prepare("ferplus", source, out=out, protocol=protocol, drop_copies=drop_copies, num_proc=1)


def decode(example):
    return example["image"].tobytes()


@pytest.fixture
def small(tmp_path):
    """Three rows per split, all well-formed and of different images."""
    usages = ["Training"] * 3 + ["PublicTest"] * 3 + ["PrivateTest"] * 3
    return write_csv(tmp_path / "small", [row(usage, f"fer{i}.png", seed=i) for i, usage in enumerate(usages)])


def replace(folder, name, old, new, count=1):
    file = folder / name
    text = file.read_bytes()
    assert old.encode() in text
    file.write_bytes(text.replace(old.encode(), new.encode(), count))


def set_cell(folder, name, line, column, value):
    file = folder / name
    lines = file.read_text().splitlines()
    cells = lines[line - 1].split(",")
    cells[column] = value
    lines[line - 1] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")


# What comes out


def test_columns_and_contents(tmp_path):
    votes = [(4, 0, 0, 1, 3, 2, 0, 0, 0, 0), NO_FACE, (0, 0, 0, 0, 0, 3, 3, 0, 4, 0), (0, 0, 7, 0, 0, 0, 1, 0, 2, 0)]
    usages = ["Training", "Training", "Training", "Training"]
    rows = [row(u, f"fer{i}.png", v, seed=i) for i, (u, v) in enumerate(zip(usages, votes, strict=True))]
    rows += [row("PublicTest", "fer9.png", (5, 5, 0, 0, 0, 0, 0, 0, 0, 0), seed=9)]
    dataset = load_ferplus(write_csv(tmp_path / "raw", rows))

    assert list(dataset) == ["train", "validation"]
    train = dataset["train"]
    assert train.column_names == ["image", "row_id", "label", "votes", "majority"]
    assert train.features["label"].names == list(EXPRESSIONS)
    assert train.features["votes"].length == 8
    # rows 1 (no face) and 2 (unknown on top) go; the row id is the line in the votes file
    assert train["row_id"][:] == ["fer2013new.csv:2", "fer2013new.csv:5"]
    assert train["votes"][:] == [list(votes[0][:8]), list(votes[3][:8])]
    assert train["label"][:] == [0, 2]
    assert train["majority"][:] == [False, True]
    assert [decode(example) for example in train] == [rows[0][3], rows[3][3]]
    assert train[0]["image"].mode == "L" and train[0]["image"].size == (48, 48)
    assert dataset["validation"]["label"][:] == [0]  # the first of ties
    told = Provenance.from_dataset(train)
    assert told.sentence() == "FER+ train, protocol all: 2 of 4 rows; dropped: 2 not in protocol all"
    assert (told.source, told.split, told.protocol, told.kept) == ("ferplus", "train", "all", 2)
    assert told.terms() == train.info.license == LICENSE


@pytest.mark.parametrize(
    ("votes", "in_all", "in_majority"),
    [
        (HAPPY, True, True),
        (NO_FACE, False, False),
        ((0, 0, 0, 0, 0, 0, 0, 0, 10, 0), False, False),
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), True, False),  # half is not more than half
        ((0, 0, 0, 0, 0, 0, 0, 5, 5, 0), True, False),  # a tie with unknown: contempt comes first
        ((4, 2, 1, 1, 1, 1, 0, 0, 0, 0), True, True),  # 4 of the 6 that are left
        ((4, 2, 2, 1, 1, 0, 0, 0, 0, 0), True, False),  # 4 of the 8 that are left
        ((3, 0, 0, 0, 0, 0, 0, 0, 3, 4), False, False),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), True, False),  # single votes only: nothing is left
        ((0, 0, 1, 0, 0, 0, 0, 0, 0, 0), True, False),
        ((0, 5, 0, 4, 0, 0, 0, 0, 0, 0), True, True),  # nine votes
        ((0, 4, 0, 4, 0, 0, 0, 0, 1, 0), True, False),
        ((0, 0, 0, 0, 0, 0, 0, 0, 1, 1), False, False),
    ],
)
def test_protocols_by_hand(votes, in_all, in_majority):
    assert [mask.tolist() for mask in protocol_masks(np.array([votes]))] == [[in_all], [in_majority]]


@given(st.lists(st.lists(st.integers(0, 10), min_size=10, max_size=10), min_size=1, max_size=20))
def test_protocols_follow_the_rule_in_words(votes):
    in_all, in_majority = protocol_masks(np.array(votes))
    for counts, whole, strict in zip(votes, in_all, in_majority, strict=True):
        assert whole == (counts.index(max(counts)) < 8)
        left = [count if count >= 2 else 0 for count in counts]
        assert strict == any(count > sum(left) / 2 for count in left[:8])
        assert whole or not strict  # majority is a subset of all


def test_protocol_majority_keeps_the_rows_that_all_marks(tmp_path):
    votes = [HAPPY, (4, 2, 2, 1, 1, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 0, 9, 1), (1, 0, 0, 9, 0, 0, 0, 0, 0, 0)]
    source = write_csv(tmp_path / "raw", [row(votes=v, seed=i) for i, v in enumerate(votes)])
    full, strict = load_ferplus(source)["train"], load_ferplus(source, "majority")["train"]
    marked = full.filter(lambda majority: majority, input_columns="majority")
    assert len(full) == 3
    assert strict["row_id"][:] == marked["row_id"][:] == ["fer2013new.csv:2", "fer2013new.csv:5"]


def test_duplicates_go_from_train_only(tmp_path):
    a, b, c, d = map(image, range(4))
    nearly_a = bytes([a[0] ^ 1]) + a[1:]
    rows = [
        row("Training", pixels=a, votes=NO_FACE),  # not in the protocol, so the next one is the first
        row("Training", pixels=a),
        row("Training", pixels=b),  # also in validation
        row("Training", pixels=a),  # repeat
        row("Training", pixels=nearly_a),
        row("Training", pixels=c),  # also in test
        row("Training", pixels=d),  # also in validation, in a row outside the protocol
        row("PublicTest", pixels=b),
        row("PublicTest", pixels=b),
        row("PublicTest", pixels=d, votes=NO_FACE),
        row("PrivateTest", pixels=c),
        row("PrivateTest", pixels=b),
    ]
    source = write_csv(tmp_path / "raw", rows)
    kept, dropped = load_ferplus(source, drop_copies="none"), load_ferplus(source)
    assert kept["train"]["row_id"][:] == [f"fer2013new.csv:{line}" for line in range(3, 9)]
    assert dropped["train"]["row_id"][:] == ["fer2013new.csv:3", "fer2013new.csv:6"]
    assert [decode(example) for example in dropped["train"]] == [a, nearly_a]
    for split, count in (("validation", 2), ("test", 2)):
        assert dropped[split][:] == kept[split][:]
        assert len(dropped[split]) == count
    assert Provenance.from_dataset(dropped["train"]).sentence() == (
        "FER+ train, protocol all: 2 of 7 rows; dropped: 1 not in protocol all, "
        "3 copy of a validation or test image, 1 copy of an earlier training image"
    )


def test_no_face_rows_and_names_that_are_empty_or_twice(tmp_path):
    """Rows belong together by position: neither an empty name nor a name on two rows shifts the images."""
    rows = [
        row(name="", votes=NO_FACE, pixels=BLACK),
        row(name="fer0000000.png", seed=1),
        row(name="", votes=NO_FACE, pixels=BLACK),
        row(name="fer0000001.png", seed=2),
        row(name="fer0000001.png", votes=(0, 0, 9, 0, 0, 0, 0, 0, 0, 0), seed=3),
    ]
    train = load_ferplus(write_csv(tmp_path / "raw", rows))["train"]
    assert [decode(example) for example in train] == [image(1), image(2), image(3)]
    assert train["label"][:] == [1, 1, 2]


@pytest.mark.parametrize("boxes", [True, False])
def test_both_layouts_give_the_same(tmp_path, boxes):
    rng = np.random.default_rng(0)
    rows = []
    for i, usage in enumerate(["Training"] * 12 + ["PublicTest"] * 6 + ["PrivateTest"] * 6):
        no_face = i % 5 == 0
        votes = NO_FACE if no_face else tuple(rng.multinomial(10, [0.3, 0.3, *[0.05] * 8]).tolist())
        pixels = BLACK if no_face else image(i % 20)
        rows.append(row(usage, "" if no_face else f"fer{i:07}.png", votes, pixels))
    from_csv = load_ferplus(write_csv(tmp_path / "csv", rows))
    from_folders = load_ferplus(write_folders(tmp_path / "folders", rows, boxes))
    assert list(from_csv) == list(from_folders) == ["train", "validation", "test"]
    for split in from_csv:
        assert len(from_csv[split]) >= 3
        columns = ["image", "votes", "label", "majority"]
        one, other = (dataset[split].select_columns(columns) for dataset in (from_csv, from_folders))
        assert one[:] == other[:]


def test_folder_layout_with_a_name_listed_twice(tmp_path):
    rows = [row(name="fer1.png", seed=1), row(name="fer1.png", votes=(9, 1, 0, 0, 0, 0, 0, 0, 0, 0), seed=1)]
    train = load_ferplus(write_folders(tmp_path / "raw", rows, boxes=True), drop_copies="none")["train"]
    assert train["label"][:] == [1, 0]
    assert train["row_id"][:] == ["FER2013Train/label.csv:1", "FER2013Train/label.csv:2"]


def test_byte_order_mark_windows_line_ends_and_blank_lines(small, tmp_path):
    rows = [row(name=f"fer{i}.png", seed=i) for i in range(3)]
    plain = load_ferplus(write_csv(tmp_path / "plain", rows))
    windows = write_csv(tmp_path / "windows", rows, newline="\r\n", encoding="utf-8-sig")
    assert (windows / "fer2013.csv").read_bytes().startswith(b"\xef\xbb\xbfemotion,pixels,Usage\r\n")
    for name in ("fer2013.csv", "fer2013new.csv"):
        with (windows / name).open("ab") as file:
            file.write(b"\r\n")
    assert load_ferplus(windows)["train"][:] == plain["train"][:]


def test_repeated_loading_gives_no_stale_rows(tmp_path):
    source = write_csv(tmp_path / "raw", [row(seed=1), row(seed=2)])
    assert len(load_ferplus(source)["train"]) == 2
    write_csv(source, [row(seed=3)])
    assert [decode(example) for example in load_ferplus(source)["train"]] == [image(3)]


@pytest.mark.long
def test_memory_does_not_grow_with_the_pixels(tmp_path):
    """Four times the rows may cost some votes and digests more, but not the pixels (2,304 bytes a row)."""

    def peak(folder, num_rows):
        line = f"0,{' '.join(digits)},Training\n"
        folder.mkdir()
        (folder / "fer2013.csv").write_text("emotion,pixels,Usage\n" + line * num_rows)
        votes = "Training,fer.png," + ",".join(map(str, HAPPY)) + "\n"
        (folder / "fer2013new.csv").write_text(f"Usage,Image name,{','.join(ENTRIES)}\n" + votes * num_rows)
        tracemalloc.start()
        try:
            load_ferplus(folder, drop_copies="none")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    digits = list(map(str, np.random.default_rng(0).integers(0, 10, 48 * 48)))  # one-digit strings cost no allocation
    few, many = 1100, 2400  # both above the 1,000 rows that the Arrow writer collects
    peak(tmp_path / "warm", 10)
    grown = peak(tmp_path / "many", many) - peak(tmp_path / "few", few)
    assert grown < (many - few) * 48 * 48 / 2


# Bad input


def test_votes_file_of_another_length(small):
    with (small / "fer2013new.csv").open("a") as file:
        file.write("PrivateTest,fer9.png,0,10,0,0,0,0,0,0,0,0\n")
    with pytest.raises(DataError, match=r"fer2013\.csv has 9 rows and .*fer2013new\.csv has 10, .*get both again"):
        load_ferplus(small)


def test_image_file_of_another_length(small):
    text = (small / "fer2013.csv").read_text().splitlines(keepends=True)
    (small / "fer2013.csv").write_text("".join(text[:-1]))
    with pytest.raises(DataError, match=r"fer2013\.csv has 8 rows and .*fer2013new\.csv has 9"):
        load_ferplus(small)


@pytest.mark.parametrize("bad", ["-1", "nan", "", "4.0", "x", "1e1", "²", "99999999999"])
def test_votes_that_are_no_counts(small, bad):
    set_cell(small, "fer2013new.csv", 5, 6, bad)
    with pytest.raises(DataError, match=rf"fer2013new\.csv:5: the votes for 'anger' are '{bad}'.*correct the row"):
        load_ferplus(small)


def test_a_row_without_votes(small):
    replace(small, "fer2013new.csv", "fer2.png,0,10,", "fer2.png,0,0,")
    with pytest.raises(DataError, match=r"fer2013new\.csv:4 has no vote at all"):
        load_ferplus(small)


@pytest.mark.parametrize("count", [0, 1, 2303, 2305])
def test_a_pixel_row_of_the_wrong_length(small, count):
    set_cell(small, "fer2013.csv", 7, 1, " ".join(["7"] * count))
    with pytest.raises(DataError, match=rf"fer2013\.csv:7 has {count} pixels where 48 x 48 = 2304 should be"):
        load_ferplus(small)


@pytest.mark.parametrize("bad", ["256", "-1", "nan", "1.5", "x"])
def test_a_pixel_that_is_none(small, bad):
    set_cell(small, "fer2013.csv", 10, 1, " ".join(["7"] * 2303 + [bad]))
    with pytest.raises(DataError, match=rf"fer2013\.csv:10: pixel '{bad}' is not a whole number from 0 to 255"):
        load_ferplus(small)


def test_no_row_is_written_when_the_last_is_bad(small, tmp_path):
    """Also a row outside the protocol is checked, and before anything lies on disk."""
    set_cell(small, "fer2013.csv", 10, 1, "7")
    with pytest.raises(DataError):
        prepare("ferplus", small, out=tmp_path / "new" / "set")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013new.csv"])
def test_every_cut_through_the_last_line_is_found(small, name):
    """The file ends in the middle of its last line, wherever that is."""
    whole = (small / name).read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in [*range(2, min(last, 40)), last - 3, last - 1]:
        (small / name).write_bytes(whole[:-cut])
        with pytest.raises(DataError, match=rf"{name}:10[ :]"):
            load_ferplus(small)
    (small / name).write_bytes(whole[:-1])  # only the line end is missing: nothing is lost
    assert len(load_ferplus(small)["test"]) == 3


@pytest.mark.parametrize(
    ("name", "column"), [("fer2013.csv", "pixels"), ("fer2013.csv", "Usage"), ("fer2013new.csv", "NF")]
)
def test_a_column_is_missing(small, name, column):
    replace(small, name, column, "other")
    with pytest.raises(DataError, match=rf"{name} has no column {column} \(its first line names .*other"):
        load_ferplus(small)


@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013new.csv"])
def test_a_file_is_missing(small, name):
    (small / name).unlink()
    with pytest.raises(DataError, match=f"has no {name}: put the"):
        load_ferplus(small)


@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013new.csv"])
def test_an_empty_file(small, name):
    (small / name).write_text("")
    with pytest.raises(DataError, match=name):
        load_ferplus(small)


def test_files_with_headers_only(tmp_path):
    with pytest.raises(DataError, match=r"fer2013new\.csv has no rows"):
        load_ferplus(write_csv(tmp_path / "raw", []))


def test_a_folder_that_is_not_ferplus(tmp_path):
    with pytest.raises(DataError, match=r"is not FER\+: it has neither fer2013.csv and fer2013new.csv nor a folder"):
        load_ferplus(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_ferplus(tmp_path / "absent")


def test_usage_columns_that_disagree(small):
    replace(small, "fer2013.csv", ",PublicTest", ",Training")
    with pytest.raises(DataError, match=r"fer2013\.csv:5 is a Training row, but its row of votes, fer2013new\.csv:5"):
        load_ferplus(small)


@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013new.csv"])
def test_an_unknown_usage(small, name):
    replace(small, name, "PublicTest", "Validation")
    with pytest.raises(DataError, match=rf"{name}:5: Usage 'Validation' is not known"):
        load_ferplus(small)


@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013new.csv"])
def test_a_file_that_is_not_text(small, name):
    (small / name).write_bytes((small / name).read_text().encode("utf-16"))
    with pytest.raises(DataError, match=rf"{name}:1 is not comma-separated UTF-8 text"):
        load_ferplus(small)


def test_a_quote_that_is_never_closed(tmp_path):
    source = write_csv(tmp_path / "raw", [row(seed=i) for i in range(30)])
    replace(source, "fer2013.csv", "0,", '0,"')
    with pytest.raises(DataError, match=r"fer2013\.csv:\d+ is not comma-separated UTF-8 text"):
        load_ferplus(source)


def test_a_protocol_that_leaves_nothing(tmp_path):
    source = write_csv(tmp_path / "raw", [row(seed=1), row("PublicTest", votes=NO_FACE, seed=2)])
    with pytest.raises(DataError, match="no validation row is left; dropped: 1 not in protocol all"):
        load_ferplus(source)
    with pytest.raises(DataError, match="protocol='most' is not known: choose all or majority"):
        load_ferplus(source, "most")


@pytest.fixture
def folders(tmp_path):
    rows = [row(usage, f"fer{i}.png", seed=i) for i, usage in enumerate(["Training", "Training", "PublicTest"])]
    return write_folders(tmp_path / "folders", rows, boxes=True)


def test_a_listed_image_is_missing(folders):
    (folders / "FER2013Train" / "fer1.png").unlink()
    reasons = left_out(folders)
    assert list(reasons) == ["FER2013Train/label.csv:2"]
    assert "fer1.png is missing, but FER2013Train/label.csv:2 lists it: write the" in reasons.popitem()[1]
    for file in (folders / "FER2013Train").glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"none of 2 train images can be used; the first: .*fer0\.png is missing"):
        load_ferplus(folders)
    with pytest.raises(DataError, match=r"FER2013Train/label\.csv:1: .*fer0\.png is missing"):
        prepare("ferplus", folders, out=folders.parent / "set", strict=True, num_proc=1)


def left_out(folders):
    """The reasons in the report by row, of a set whose other rows are prepared."""
    out = Path(tempfile.mkdtemp(dir=load_ferplus.folder)) / "set"
    dataset = prepare("ferplus", folders, out=out, num_proc=1)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 1, "validation": 1}
    with (out / REPORT).open(newline="") as file:
        return {row["row_id"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "a/../../../secret.png"])
def test_a_name_that_leads_out_is_not_read(folders, name):
    Image.frombytes("L", (48, 48), image(9)).save(folders.parent / "secret.png")
    replace(folders / "FER2013Train", "label.csv", "fer1.png", name)
    assert "secret.png is missing" in left_out(folders)["FER2013Train/label.csv:2"]


def test_a_link_that_leads_out_is_read_only_when_the_user_says_so(folders):
    file = folders / "FER2013Train" / "fer1.png"
    file.symlink_to(file.rename(folders.parent / "elsewhere.png"))
    assert "a link that leads out" in left_out(folders)["FER2013Train/label.csv:2"]
    dataset = prepare("ferplus", folders, out=folders.parent / "set", follow_links=True, num_proc=1)
    assert len(dataset["train"]) == 2


@pytest.mark.parametrize("boxes", [True, False])
def test_a_first_line_of_names_is_passed_over(folders, boxes):
    for file in folders.glob("*/label.csv"):
        rows = list(csv.reader(file.open(newline="")))
        rows = rows if boxes else [[row[0], *row[2:]] for row in rows]
        names = ["Image name", *(["Face box"] if boxes else []), *ENTRIES]
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([names, *rows])
    dataset = load_ferplus(folders)
    assert dataset["train"]["row_id"][:] == ["FER2013Train/label.csv:2", "FER2013Train/label.csv:3"]
    assert decode(dataset["train"][1]) == image(1) and dataset["train"]["votes"][0] == list(HAPPY[:8])


@pytest.mark.parametrize("name", ["icml_face_data.csv", "fer2013/fer2013.csv"])
def test_kaggles_other_names_of_the_table(small, tmp_path, name):
    expected = load_ferplus(small)
    text = (small / "fer2013.csv").read_text()
    (small / "fer2013.csv").unlink()
    (small / name).parent.mkdir(exist_ok=True)
    lines = [line.split(",") for line in text.splitlines()]
    if "icml" in name:  # its columns come in another order, and with spaces in their names
        lines = [["emotion", " Usage", " pixels"], *([cells[0], cells[2], cells[1]] for cells in lines[1:])]
    (small / name).write_text("\n".join(",".join(cells) for cells in lines) + "\n")
    said = []
    dataset = prepare("ferplus", small, out=tmp_path / "set", num_proc=1, report=said.append)
    assert {split: rows[:] for split, rows in dataset.items()} == {s: rows[:] for s, rows in expected.items()}
    assert said[0] == f"read as FER+ (images of {Path(name).name}, votes of fer2013new.csv)"


def test_a_image_is_damaged_or_of_another_kind(folders):
    file = folders / "FER2013Train" / "fer1.png"
    whole = file.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 8, 11, 35)]
    for damaged in (whole[:200], whole[:-1500], b"", b"no image", *flipped):
        file.write_bytes(damaged)
        reason = left_out(folders)["FER2013Train/label.csv:2"]
        assert "fer1.png (listed in FER2013Train/label.csv:2) is not a readable" in reason
    for mode, size in (("RGB", (48, 48)), ("L", (47, 48))):
        png = io.BytesIO()
        Image.new(mode, size).save(png, "PNG")
        file.write_bytes(png.getvalue())
        reason = left_out(folders)["FER2013Train/label.csv:2"]
        assert re.search(rf"fer1\.png .* is {size[0]} x {size[1]}, mode {mode}, where 48 x 48 gray", reason)


def test_a_label_file_is_missing_empty_or_cut_off(folders):
    file = folders / "FER2013Valid" / "label.csv"
    text = file.read_text().rstrip()
    for cut in (4, 21, len(text) - 5):
        file.write_text(text[:-cut])
        with pytest.raises(DataError, match=r"FER2013Valid/label\.csv:1 has \d+ columns where an image name"):
            load_ferplus(folders)
    file.write_text(text[:-2])  # as many columns as without the box
    with pytest.raises(DataError, match=r"FER2013Valid/label\.csv:1: the votes for 'neutral' are '\(0, 0, 48, 48\)'"):
        load_ferplus(folders)
    file.write_text("")
    with pytest.raises(DataError, match=r"FER2013Valid/label\.csv has no rows"):
        load_ferplus(folders)
    file.unlink()
    with pytest.raises(DataError, match=r"FER2013Valid/label\.csv is missing"):
        load_ferplus(folders)


# The real data


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("FER_PLL_FERPLUS")
    if not folder:
        pytest.skip("set FER_PLL_FERPLUS to a folder with the real fer2013.csv and fer2013new.csv")
    return Path(folder)


REAL_MAJORITY = {
    "train": [8740, 7287, 3149, 3014, 2100, 119, 532, 119],
    "validation": [1182, 865, 415, 351, 287, 24, 62, 13],
    "test": [1090, 893, 396, 384, 273, 18, 83, 16],
}
REAL_ALL = {"train": 28389, "validation": 3553, "test": 3546}


def test_real_row_counts_and_duplicates(real):
    everything, dropped = load_ferplus(real, drop_copies="none"), load_ferplus(real)
    for split, rows in everything.items():
        assert len(rows) == REAL_ALL[split]
        labels, majority = np.array(rows["label"][:]), np.array(rows["majority"][:])
        assert np.bincount(labels[majority], minlength=8).tolist() == REAL_MAJORITY[split]

    images = {split: [decode(example) for example in rows] for split, rows in everything.items()}
    in_evaluation = {pixels for split in images if split != "train" for pixels in images[split]} | {BLACK}
    first = {}
    for row_id, pixels in zip(everything["train"]["row_id"][:], images["train"], strict=True):
        if pixels not in in_evaluation:
            first.setdefault(pixels, row_id)
    assert dropped["train"]["row_id"][:] == list(first.values())
    if "test" not in everything:
        assert len(dropped["train"]) == 26903
    for split in everything.keys() - {"train"}:
        assert dropped[split]["row_id"][:] == everything[split]["row_id"][:]
