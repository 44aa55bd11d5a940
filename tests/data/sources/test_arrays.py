"""Images and votes in memory."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fer_pll
from fer_pll.data.dataset import REPORT
from fer_pll.io.errors import DataError

NAMES = ["happy", "neutral", "sad"]


def faces(count=6):
    return [np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8) for seed in range(count)]


def test_arrays_pictures_and_paths_become_rows(tmp_path):
    gray, colored = faces(2)[0], np.random.default_rng(9).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(faces(2)[1]).save(tmp_path / "face.png")
    images = [gray, colored, str(tmp_path / "face.png"), Image.fromarray(gray).rotate(90), "gone.png", gray.T]
    votes = [[3, 1, 0], [0, 0, 2], [1, 2, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    data = fer_pll.prepare(fer_pll.from_arrays(images, votes, NAMES), out=tmp_path / "set", num_proc=1)
    train = data["train"]
    assert train.features["label"].names == ["neutral", "happiness", "sadness"]
    assert train["votes"][:] == [[1, 3, 0], [0, 0, 2], [2, 1, 0], [1, 0, 0]] and train["label"][:] == [1, 2, 0, 0]
    assert train["row_id"][:] == ["row:0", "row:1", "row:2", "row:3"]
    assert np.array_equal(train[0]["image"], gray) and np.array_equal(train[1]["image"], colored)
    report = (tmp_path / "set" / REPORT).read_text()
    assert (
        "row:4,gone.png" in report and "no such file" in report and "row:5" in report and "no votes at all" in report
    )


def test_a_data_frame_names_the_classes_and_a_share_is_for_validation(tmp_path):
    votes = pd.DataFrame({"Sad": [1] * 20, "calm": [0] * 20}, index=range(5, 25))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    source = fer_pll.from_arrays(images, votes, row_ids=votes.index, validation_share=0.25)
    data = fer_pll.prepare(source, out=tmp_path / "a", num_proc=1)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 15, "validation": 5}
    assert data["train"].features["label"].names == ["sadness", "calm"]
    ids = data["train"]["row_id"][:] + data["validation"]["row_id"][:]
    assert sorted(map(int, ids)) == list(range(5, 25))
    again = fer_pll.prepare(source, out=tmp_path / "b", num_proc=2)
    assert again["validation"][:] == data["validation"][:]
    other = fer_pll.from_arrays(images, votes, row_ids=votes.index, validation_share=0.25, seed=1)
    assert [row.row_id for row in other.splits["validation"]] != data["validation"]["row_id"][:]
    for row, image in zip(ids, [*data["train"]["image"], *data["validation"]["image"]], strict=True):
        assert np.array_equal(image, images[int(row) - 5])


@pytest.mark.parametrize(
    ("votes", "options", "said"),
    [
        ([[1, 0, 0]], {}, r"votes have the shape \(1, 3\), but 2 images and 3 classes need \(2, 3\)"),
        ([[1, 0], [0, 1]], {}, r"shape \(2, 2\)"),
        ([[1, 0, 0], [0, -1, 0]], {}, r"row:1: the votes for 'neutral' are .*-1.*, but votes are whole numbers"),
        ([[1, 0, 0.5], [0, 1, 0]], {}, r"row:0: the votes for 'sadness'"),
        ([[1, 0, np.nan], [0, 1, 0]], {}, r"row:0: the votes for 'sadness' are .*nan"),
        ([["1", "a", "0"], ["0", "1", "0"]], {}, r"row:0: the votes for 'happiness'"),
        ([[1, 0, 0]] * 2, {"class_names": None}, "class_names are needed"),
        ([[1, 0, 0]] * 2, {"class_names": ["sad", "happy", "sadness"]}, "class_names has 'sadness' twice"),
        ([[1, 0, 0]] * 2, {"class_names": ["sad", "", "happy"]}, "class_names has an empty name"),
        ([[1, 0, 0]] * 2, {"class_names": ["sad", "a\ud800", "happy"]}, r"the name 'a\\ud800', which is no text"),
        ([[1], [1]], {"class_names": ["sad"]}, "class_names has only sadness: annotators choose among at least two"),
        *(
            (
                [[0, 0, 1], [value, 0, 1]],
                {},
                "row:1: the votes for 'happiness' are .*whole numbers from 0 to 2147483647",
            )
            for value in (3e9, 1e18, 1e300, np.inf, 10**30)
        ),
        ([[1j, 0, 0]] * 2, {}, "row:0: the votes for 'happiness' are .*whole numbers from 0"),
        ([[1, 0, 0]] * 2, {"row_ids": ["a", "\ud800"]}, r"row_ids has '\\ud800', which is no text"),
        ([[1, 0, 0]] * 2, {"validation_share": np.nan}, "validation_share nan: give a share"),
        ([[1, 0, 0]] * 2, {"seed": -1}, "seed -1: give a whole number from 0 up"),
        ([[1, 0, 0]] * 2, {"row_ids": ["a", "a"]}, "2 images need as many row_ids, each once; there are 1"),
        ([[1, 0, 0]] * 2, {"validation_share": 0.1}, "validation_share 0.1 of 2 rows: both parts need rows"),
        ([[1, 0, 0]] * 2, {"validation_share": 1.0}, "validation_share 1.0"),
        ([[1, 0, 0]] * 2, {"validation_share": -0.5}, "validation_share -0.5"),
    ],
)
def test_what_does_not_fit_is_named(votes, options, said):
    with pytest.raises(DataError, match=said):
        fer_pll.from_arrays(faces(2), votes, **{"class_names": NAMES} | options)


def test_options_of_sources_are_not_for_data_in_memory(tmp_path):
    with pytest.raises(DataError, match="data in memory have no option 'protocol'"):
        fer_pll.prepare(fer_pll.from_arrays(faces(2), np.eye(2, 3), NAMES), out=tmp_path / "a", protocol="all")
