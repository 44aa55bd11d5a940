"""Marks of the audit applied to a prepared data set."""

import numpy as np
import pytest
from datasets import DatasetDict

from fer_pll.data.corrections import apply_corrections
from fer_pll.data.provenance import Provenance
from fer_pll.io.errors import DataError
from tiny import CLASSES, make_dataset


@pytest.fixture(scope="module")
def dataset():
    train = make_dataset(8)
    validation = make_dataset(3, seed=1)
    renamed = [f"validation:{i}" for i in range(3)]
    validation = validation.remove_columns("row_id").add_column("row_id", renamed)
    return DatasetDict(train=train.add_column("majority", [False] * 8), validation=validation)


@pytest.fixture
def corrections(tmp_path):
    def write(*lines, header="row_id,mark,label"):
        path = tmp_path / "marks.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def test_marks_change_what_they_name_and_nothing_else(dataset, corrections):
    before = dataset["train"][:]
    new = next(name for i, name in enumerate(CLASSES) if i != before["label"][2])
    corrected, report = apply_corrections(
        dataset, corrections(f"row:2,relabel,{new}", "row:5,drop,", "row:0,keep,", "validation:1,drop,")
    )
    train = corrected["train"]
    assert train.features == dataset["train"].features
    after = train[:]
    assert after["row_id"] == [f"row:{i}" for i in range(8) if i != 5]
    label = CLASSES.index(new)
    assert after["label"][2] == label
    assert after["votes"][2] == [sum(before["votes"][2]) if k == label else 0 for k in range(4)]
    assert after["candidates"][2] == [k == label for k in range(4)]
    assert after["majority"] == [i == 2 for i in range(7)]
    for old, row in enumerate(i for i in range(8) if i != 5):
        assert np.array_equal(after["image"][old], before["image"][row])
        assert after["true_label"][old] == before["true_label"][row]
        if row != 2:
            for name in ("label", "votes", "candidates"):
                assert after[name][old] == before[name][row]
    assert corrected["validation"]["row_id"][:] == ["validation:0", "validation:2"]
    assert "1 relabeled, 2 dropped, 1 kept as they are" in report
    assert f"{CLASSES[before['label'][2]]} -> {new}  1" in report
    assert "1 rows relabeled and 1 dropped by marks.csv" in Provenance.from_dataset(train).sentence()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_as_a_spreadsheet_saves_them(dataset, tmp_path, separator, start, order):
    rows = [("row_id", "mark", "label"), ("row:1", "relabel", CLASSES[0]), ("row:3", "drop", "")]
    text = "\r\n".join(separator.join(row[place] for place in order) for row in rows)
    (tmp_path / "marks.csv").write_text(start + text + "\r\n", encoding="utf-8", newline="")
    corrected, report = apply_corrections(dataset, tmp_path / "marks.csv")
    assert "1 relabeled, 1 dropped, 0 kept" in report
    assert corrected["train"]["label"][1] == 0 and "row:3" not in corrected["train"]["row_id"][:]


def test_row_ids_that_need_quotes_are_found(dataset, corrections):
    name = 'a, "b"\nc'
    train = dataset["train"].remove_columns("row_id").add_column("row_id", [name, *map(str, range(7))])
    corrected, _ = apply_corrections(DatasetDict(train=train), corrections('"a, ""b""\nc",drop,'))
    assert len(corrected["train"]) == 7 and name not in corrected["train"]["row_id"][:]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["row:99,drop,"], "line 2: row 'row:99' is not in the data set"),
        (["row:1,keep,", "row:1,drop,"], "line 3: row 'row:1' is already in line 2"),
        (["row:1,relabel,pride"], "'pride' is not a class of the data set; it has left, right, top, bottom"),
        (["row:1,relabel,"], "needs a label"),
        (["row:1,drop,left"], "takes no label"),
        (["row:1,remove,"], "mark 'remove'"),
        (["row:1,drop"], "marks.csv:2 has 2 columns where 3 should be"),
        ([f"row:{i},drop," for i in range(8)], "every row of the split 'train' is dropped"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_line(dataset, corrections, lines, said):
    with pytest.raises(DataError) as error:
        apply_corrections(dataset, corrections(*lines))
    assert said in str(error.value) and "marks.csv" in str(error.value)


def test_a_row_id_of_several_rows_is_refused(dataset, corrections):
    twice = DatasetDict(train=dataset["train"], test=dataset["train"])
    with pytest.raises(DataError, match="is in the data set 2 times"):
        apply_corrections(twice, corrections("row:1,drop,"))


def test_other_files_are_refused(dataset, corrections, tmp_path):
    with pytest.raises(DataError, match=r"has no column row_id \(its first line names id, mark, label\)"):
        apply_corrections(dataset, corrections(header="id,mark,label"))
    with pytest.raises(DataError, match=r"nowhere.csv is missing"):
        apply_corrections(dataset, tmp_path / "nowhere.csv")
    (tmp_path / "marks.csv").write_bytes(b"row_id,mark,label\n\xff\xfe,drop,\n")
    with pytest.raises(DataError, match=r"marks.csv:\d is not comma-separated UTF-8 text"):
        apply_corrections(dataset, tmp_path / "marks.csv")
