"""Tables of any kind: read as spreadsheets save them; what is malformed is named by file and row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pll.io.errors import DataError
from fer_pll.io.tables import decimal, read_columns, read_csv, read_rows


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_separator_is_found(tmp_path, separator, start, newline):
    lines = [["name", " count "], ["ü", "1"], ["a b", "2,5" if separator != "," else "2.5"]]
    file = tmp_path / "a.csv"
    file.write_bytes(start + newline.join(separator.join(line) for line in lines).encode())
    assert [cells for _, cells in read_csv(file)] == lines
    assert list(read_columns(file, ["count"])) == [(2, ["1"]), (3, [lines[2][1]])]
    assert [row for _, row in read_rows(file)] == [{"name": "ü", "count": "1"}, {"name": "a b", "count": lines[2][1]}]
    assert decimal(lines[2][1]) == 2.5


@pytest.mark.parametrize("text", ["1,2,3", "1.000,5", "", "a", "1,a"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError):
        decimal(text)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table([pa.array([1]), pa.array([2]), pa.array(["a"])], names=["fear", "fear", "path"]), file)
    elif ending == ".jsonl":
        file.write_text('{"path": "a", "fear": 1}\n{"path": "b", "fear": 1, "fear": 2}\n')
    else:
        file.write_text("path,fear,fear\na,1,2\n")
    with pytest.raises(DataError, match=rf"a\{ending}.*'fear' is there twice"):
        list(read_rows(file))


def test_a_nested_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"votes": {"fear": 1, "fear": 2}}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1 is no JSON \(the key 'fear' is there twice\)"):
        list(read_rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "{", "nul", '{"a": 1}{"a": 2}', "\x00", "1" * 5000]
)
def test_what_is_no_json_is_named_by_its_line(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": 1}) + "\n" + text + "\n")
    with pytest.raises(DataError, match=r"a.jsonl:2 is "):
        list(read_rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("cut", [10, 100, 300])
def test_a_damaged_parquet_file_is_named(tmp_path, cut):
    pq.write_table(pa.table({"path": [f"{n}.png" for n in range(500)]}), tmp_path / "a.parquet")
    contents = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(contents[:-cut])
    with pytest.raises(DataError, match=r"a.parquet is no Parquet file, or damaged"):
        list(read_rows(tmp_path / "a.parquet"))


def test_values_that_python_has_no_type_for_are_an_error_with_the_name(tmp_path):
    far = pa.array([2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"path": ["a.png"], "when": far}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet is no Parquet file, or damaged"):
        list(read_rows(tmp_path / "a.parquet"))
