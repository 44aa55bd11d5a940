"""Tables of votes: both forms, every file kind, and what can be wrong with them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.candidate_sets import add_candidates
from fer_pll.data.dataset import REPORT, load_dataset
from fer_pll.data.prepare import prepare
from fer_pll.data.sources.votes import list_votes
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

COUNTS = [
    {"path": "a.png", "Happy": 6, "surprise": 3, "neutral": 1},
    {"path": "sub/ü.png", "Happy": 0, "surprise": 5, "neutral": 5},
    {"path": "c.png", "Happy": 0, "surprise": 0, "neutral": 0},
]
ANSWERS = [
    {"path": "a.png", "annotator": "eve", "label": "happy"},
    {"path": "sub/ü.png", "annotator": "eve", "label": "Surprise"},
    {"path": "a.png", "annotator": "bob", "label": "happiness"},
    {"path": "a.png", "annotator": "ann", "label": "fear"},
]


def write(folder, rows, ending, separator=",", encoding="utf-8", newline="\n"):
    file = folder / f"votes{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ending == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows), encoding=encoding)
    else:
        lines = [list(rows[0]), *(row.values() for row in rows)]
        text = newline.join(separator.join(map(str, line)) for line in lines) + newline
        file.write_bytes(text.encode(encoding))
    return file


def votes_of(splits):
    """{split: {file name: {class: votes}}}, votes of 0 left out."""
    return {
        split: {
            row.path.name: {n: v for n, v in zip(EXPRESSIONS, row.columns["votes"], strict=True) if v} for row in rows
        }
        for split, rows in splits.items()
    }


KINDS = [
    (".csv", {}),
    (".csv", {"separator": ";"}),
    (".csv", {"encoding": "utf-8-sig", "newline": "\r\n"}),
    (".tsv", {"separator": "\t"}),
    (".jsonl", {}),
    (".jsonl", {"encoding": "utf-8-sig"}),
    (".parquet", {}),
]


@pytest.mark.parametrize(("ending", "settings"), KINDS)
def test_a_row_for_each_image(tmp_path, ending, settings):
    splits = list_votes(write(tmp_path, COUNTS, ending, **settings))
    assert votes_of(splits) == {
        "train": {
            "a.png": {"happiness": 6, "surprise": 3, "neutral": 1},
            "ü.png": {"surprise": 5, "neutral": 5},
            "c.png": {},
        }
    }
    labels = [EXPRESSIONS[row.columns["label"]] for row in splits["train"]]
    assert labels[:2] == ["happiness", "neutral"]  # the first of a tie in class order
    assert splits["train"][1].path == tmp_path / "sub" / "ü.png"
    line = 1 if ending in (".jsonl", ".parquet") else 2
    assert [row.row_id for row in splits["train"]] == [f"votes{ending}:{line + row}" for row in range(3)]
    assert [row.problem is None for row in splits["train"]] == [True, True, False]
    assert "has no votes at all" in splits["train"][2].problem


@pytest.mark.parametrize(("ending", "settings"), KINDS)
def test_a_row_for_each_answer(tmp_path, ending, settings):
    splits = list_votes(write(tmp_path, ANSWERS, ending, **settings))
    assert votes_of(splits) == {"train": {"a.png": {"happiness": 2, "fear": 1}, "ü.png": {"surprise": 1}}}


SETS = [
    {"path": "a.png", "candidates": "Happy|surprise", "label": "happiness"},
    {"path": "sub/ü.png", "candidates": " fear ", "label": ""},
    {"path": "c.png", "candidates": "", "label": ""},
]


@pytest.mark.parametrize(("ending", "settings"), KINDS)
def test_ready_candidate_sets(tmp_path, ending, settings):
    rows = list_votes(write(tmp_path, SETS, ending, **settings))["train"]
    names = [{EXPRESSIONS[k] for k in np.flatnonzero(row.columns["candidates"])} for row in rows]
    assert names == [{"happiness", "surprise"}, {"fear"}, set()]
    assert [row.columns["label"] for row in rows] == [EXPRESSIONS.index("happiness"), -1, -1]
    assert [row.problem is None for row in rows] == [True, True, False]
    assert "has no candidates at all" in rows[2].problem and "votes" not in rows[0].columns


def test_splits_as_the_table_says(tmp_path):
    rows = [row | {"split": split} for row, split in zip(COUNTS, ("Test", "train", ""), strict=True)]
    rows[2]["surprise"] = 1
    splits = list_votes(write(tmp_path, [*rows, rows[0] | {"path": "v.png", "split": "validation"}], ".csv"))
    assert {split: list(images) for split, images in votes_of(splits).items()} == {
        "train": ["ü.png", "c.png"],
        "validation": ["v.png"],
        "test": ["a.png"],
    }


def test_own_classes_and_another_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    file = write(tmp_path, [{"path": "x\\1.png", "Bored": 2, "awake": 1}], ".csv")
    splits = list_votes(file, root=tmp_path / "pictures", class_names=("awake", "bored"))
    assert splits["train"][0].columns == {"votes": [1, 2], "label": 1}
    assert splits["train"][0].path == tmp_path / "pictures" / "x" / "1.png"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from(EXPRESSIONS)), min_size=1))
def test_answers_in_any_order_give_the_same_votes(tmp_path_factory, answers):
    unique = {(image, annotator): label for image, annotator, label in answers}
    rows = [{"path": f"{p}.png", "annotator": f"n{a}", "label": label} for (p, a), label in unique.items()]
    folder = tmp_path_factory.mktemp("votes")
    votes = votes_of(list_votes(write(folder, rows, ".jsonl")))
    assert votes == votes_of(list_votes(write(folder, rows[::-1], ".jsonl")))
    assert sum(sum(counts.values()) for counts in votes["train"].values()) == len(unique)


HEADER = "path,happiness,surprise\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("votes.csv", HEADER + "a.png,1,2\nb.png,1.5,0\n", r"votes.csv:3: the votes for 'happiness' are '1.5'"),
        ("votes.csv", HEADER + "a.png,-1,2\n", r"votes.csv:2: the votes for 'happiness' are '-1'"),
        ("votes.csv", HEADER + "a.png,nan,2\n", "are 'nan', but votes are whole numbers"),
        ("votes.csv", HEADER + "a.png,,2\n", "are '', but votes are whole numbers"),
        ("votes.csv", HEADER + "a.png,99999999999,2\n", "too many to be true"),
        ("votes.csv", HEADER + "a.png,1,2\na.png,1,2\n", r"votes.csv:3 lists a.png again, after votes.csv:2"),
        ("votes.csv", HEADER + "a.png,1,2\n./a.png,1,2\n", "lists a.png again"),
        ("votes.csv", HEADER + "../../etc/a.png,1,2\n", r"votes.csv:2: ../../etc/a.png lies outside of"),
        ("votes.csv", HEADER + "/etc/a.png,1,2\n", "lies outside of"),
        ("votes.csv", HEADER + ",1,2\n", "votes.csv:2 has no path"),
        ("votes.csv", "path,label\na.png,fear\nb.png,meh\n", "votes.csv:3: label 'meh' is not one of the classes"),
        ("votes.csv", "path,label\na.png,fear\na.png,anger\n", "votes.csv:3 lists a.png again"),
        ("votes.csv", HEADER + "a.png,1;2\n", "votes.csv:2 has 2 columns where 3 should be"),
        ("votes.csv", HEADER + "a.png,1,2,3\n", "votes.csv:2 has 4 columns where 3 should be"),
        ("votes.csv", HEADER + "a.png;1;2\n", "votes.csv:2 has 1 columns where 3 should be"),
        ("votes.csv", "path;happiness,fear\na.png;1,2\n", "has the columns path;happiness, fear; it needs path"),
        ("votes.csv", (HEADER + "a.png,1,2\n").encode("utf-16"), "votes.csv.* is not .*UTF-8 text"),
        ("votes.csv", HEADER, "has no rows"),
        ("votes.csv", "", "has no rows"),
        ("votes.csv", "file,happiness\na.png,1\n", "has the columns file, happiness; it needs path, annotator, label"),
        ("votes.csv", "path,width\na.png,1\n", "has the columns path, width"),
        ("votes.csv", "path,happy,joy\na.png,1,1\n", "are the same class"),
        ("votes.csv", "path,fear,fear\na.png,1,1\n", "the column 'fear' is there twice"),
        ("votes.csv", "path,annotator,label,fear\na.png,e,fear,1\n", "has more than one of"),
        ("votes.csv", "path,candidates,fear\na.png,fear,1\n", "has more than one of"),
        ("votes.csv", "path,candidates\na.png,fear|meh\n", "votes.csv:2: label 'meh' is not one of the classes"),
        ("votes.csv", "path,candidates\na.png,fear\na.png,anger\n", "votes.csv:3 lists a.png again"),
        (
            "votes.csv",
            "path,candidates,label\na.png,fear|sad,sadness\nb.png,fear|sad,anger\n",
            r"votes.csv:3: the label 'anger' is not among the candidates fear\|sad",
        ),
        ("votes.csv", "path,annotator,label\na.png,e,meh\n", "votes.csv:2: label 'meh' is not one of the classes"),
        ("votes.csv", "path,annotator,label\na.png,,fear\n", "votes.csv:2 has no annotator"),
        ("votes.csv", "path,annotator,label\na.png,e,\n", "votes.csv:2 has no label"),
        (
            "votes.csv",
            "path,annotator,label\na.png,e,fear\na.png,e,anger\n",
            "annotator e already answered for a.png",
        ),
        ("votes.csv", "path,fear,split\na.png,1,dev\n", "split 'dev' is not one of train, validation, test"),
        (
            "votes.csv",
            "path,annotator,label,split\na.png,e,fear,train\na.png,f,fear,test\n",
            "a.png is in split test, but votes.csv:2 has it in train",
        ),
        ("votes.csv", b"path,fear\n\xff\xfe.png,1\n", "is not comma-separated UTF-8 text"),
        ("votes.jsonl", '{"path": "a.png", "fear": 1}\n{"path": \n', "votes.jsonl:2 is no JSON"),
        ("votes.jsonl", '{"path": "a.png", "\\ud800": 1}\n', "votes.jsonl:1 is no JSON .*surrogates"),
        (
            "votes.jsonl",
            '{"path": "a.png", "annotator": "\\ud800", "label": "fear"}\n',
            r"votes.jsonl:1: annotator is '.ud800', which is no text",
        ),
        ("votes.jsonl", '["a.png", 1]\n', "votes.jsonl:1 is list where an object"),
        (
            "votes.jsonl",
            '{"path": "a.png", "fear": 1}\n{"path": "b.png"}\n',
            "votes.jsonl:2: the votes for 'fear' are None",
        ),
        ("votes.jsonl", '{"path": "a.png", "fear": true}\n', "are True, but votes are whole numbers"),
        ("votes.jsonl", '{"path": "a.png", "fear": NaN}\n', "are nan, but votes are whole numbers"),
        ("votes.parquet", b"PAR1 no more", "is no Parquet file, or damaged"),
        ("votes.xlsx", b"", "a table's name ends in .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        list_votes(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "votes"),
    [
        ([{"neutral": 1}, {"neutral": 1, "happy": 5}], [{"neutral": 1}, {"neutral": 1, "happiness": 5}]),
        ([{"neutral": 1}, {"fear": 2}, {"id": 7, "anger": 3}], [{"neutral": 1}, {"fear": 2}, {"anger": 3}]),
        ([{}, {"annotator": "eve", "label": "fear"}], "votes.jsonl:1 has no annotator"),
        ([{"fear": 1}, {"candidates": "fear"}], "has more than one of"),
        ([{"fear": 1}, {"fear": None, "anger": 1}], "votes.jsonl:2: the votes for 'fear' are None"),
        ([{"split": "test", "fear": 1}, {"fear": 1, "happines": 2}], "votes.jsonl:2: the column 'happines' has votes"),
    ],
)
def test_rows_of_json_lines_may_have_keys_of_their_own(tmp_path, rows, votes):
    file = write(tmp_path, [{"path": f"{number}.png"} | row for number, row in enumerate(rows)], ".jsonl")
    if isinstance(votes, str):
        with pytest.raises(DataError, match=votes):
            list_votes(file)
    else:
        assert votes_of(list_votes(file)) == {"train": {f"{n}.png": counts for n, counts in enumerate(votes)}}


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("column", "meant"),
    [("happyness", "happiness"), ("Surprisse ", "surprise"), ("angery", "anger"), ("hapy", "happiness")],
)
def test_a_misspelled_class_is_named(tmp_path, kind, column, meant):
    file = write(tmp_path, [{"path": "a.png", "neutral": 1, column: 2}], kind)
    with pytest.raises(DataError, match=f"{column.strip()} ?' has votes, but is no class: rename it if '{meant}'"):
        list_votes(file)


def test_a_misspelled_class_of_your_own_is_named(tmp_path):
    file = write(tmp_path, [{"path": "a.png", "awake": 1, "boredom": 2}], ".csv")
    with pytest.raises(DataError, match=r"votes.csv:2: the column 'boredom' has votes, .* if 'bored' is meant"):
        list_votes(file, class_names=["awake", "bored"])


def test_columns_that_are_no_class_are_said(tmp_path, capsys):
    """A comment, or a column beside that of the class which it looks like, is no misspelled class."""
    PILImage.new("L", (8, 8)).save(tmp_path / "a.png")
    others = {"age": 9, "id": 1, "usage": 3, "source": 4, "angry?": "no", "fears": 2}
    file = write(tmp_path, [{"path": "a.png", "fear": 1, "split": "train"} | others], ".csv")
    main(["votes", str(file), "--out", str(tmp_path / "set"), "--validation-share", "0", "--num-proc", "1"])
    read = "read as a table of votes (votes.csv), passing over the columns age, id, usage, source and 2 more\n"
    assert read in capsys.readouterr().out


def test_one_class_is_none_to_choose_from(tmp_path):
    file = write(tmp_path, [{"path": "a.png", "neutral": 1}], ".csv")
    with pytest.raises(DataError, match="--classes neutral: annotators choose among at least two classes"):
        prepare("votes", file, out=tmp_path / "set", classes="neutral")


@pytest.mark.parametrize("second", [{}, {"candidates": None}, {"candidates": ""}, {"label": "fear"}])
def test_a_row_that_lacks_its_candidates_is_left_out(tmp_path, second):
    file = write(tmp_path, [{"path": "a.png", "candidates": "fear"}, {"path": "b.png"} | second], ".jsonl")
    first, other = list_votes(file)["train"]
    assert first.problem is None and other.problem == "has no candidates at all: remove the row or add some"


def test_a_missing_table_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"votes.csv is missing"):
        list_votes(tmp_path / "votes.csv")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_votes(write(tmp_path, COUNTS, ".csv"), root=tmp_path / "nowhere")


@pytest.mark.parametrize("spelling", ["6", "6.0", "6,0", "6.00", "0006.000", "6.000000", "6.", " 6 "])
def test_whole_numbers_as_spreadsheets_write_them(tmp_path, spelling):
    (tmp_path / "votes.csv").write_text(f"path;happy;fear\r\na.png;{spelling};0\r\n", encoding="utf-8-sig")
    assert votes_of(list_votes(tmp_path / "votes.csv"))["train"] == {"a.png": {"happiness": 6}}


@pytest.mark.parametrize("spelling", ["6.5", "6,5", "0,4", ".", ",0", "1.000,0", "1e3", "99999999999", "9" * 5000])
def test_other_numbers_are_no_votes(tmp_path, spelling):
    (tmp_path / "votes.csv").write_text(f"path;happy;fear\na.png;{spelling};0\n")
    with pytest.raises(DataError, match=r"votes.csv:2: .*(are whole numbers from 0 up|too many to be true)"):
        list_votes(tmp_path / "votes.csv")


@pytest.mark.parametrize("spelling", ["1.000", "1,000", " 120,000"])
def test_a_separator_of_thousands_is_no_decimal_point(tmp_path, spelling):
    (tmp_path / "votes.csv").write_text(f"path;happy;fear\na.png;{spelling};0\n")
    with pytest.raises(DataError, match=r"votes.csv:2: the votes for 'happy' are .*write the number without a separ"):
        list_votes(tmp_path / "votes.csv")


@pytest.mark.parametrize(("link", "below"), [("faces", "0.png"), ("faces", "sub/0.png"), ("faces/sub", "0.png")])
def test_a_linked_folder_is_read(tmp_path, link, below):
    (tmp_path / "disk" / below).parent.mkdir(parents=True)
    PILImage.new("L", (8, 8)).save(tmp_path / "disk" / below)
    place = tmp_path / "table" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "disk")
    (tmp_path / "table" / "votes.csv").write_text(f"path,happy,sad\n{link}/{below},1,0\n")
    arguments = ["votes", str(tmp_path / "table" / "votes.csv"), "--validation-share", "0", "--num-proc", "1"]
    main([*arguments, "--out", str(tmp_path / "set")])
    assert len(load_dataset(tmp_path / "set", "train")) == 1 and not (tmp_path / "set" / REPORT).exists()


@pytest.mark.parametrize("name", ["path", "label", "annotator", "split", "candidates"])
def test_classes_may_have_the_names_of_columns(tmp_path, name):
    """Where a table would mean two things, it says so; otherwise the name is a class like any other."""
    classes = [name, "other"]
    (tmp_path / "votes.csv").write_text("path,other\na.png,3\n")
    with pytest.raises(DataError, match=f"a class named '{name}' cannot have a column of votes"):
        list_votes(tmp_path / "votes.csv", class_names=classes)
    (tmp_path / "answers.csv").write_text(
        f"path,annotator,label\na.png,ann,{name}\na.png,bob,other\na.png,eve,{name}\n"
    )
    (row,) = list_votes(tmp_path / "answers.csv", class_names=classes)["train"]
    assert row.columns == {"votes": [2, 1], "label": 0, "answers": [0, 1, 0]}
    (tmp_path / "sets.csv").write_text(f"path,candidates\na.png,other|{name}\n")
    (row,) = list_votes(tmp_path / "sets.csv", class_names=classes)["train"]
    assert row.columns == {"candidates": [True, True], "label": -1}


def test_a_class_with_the_separator_of_candidates_in_its_name(tmp_path):
    (tmp_path / "sets.csv").write_text("path,candidates\na.png,a|b\n")
    with pytest.raises(DataError, match=r"the class 'a\|b' has a \| in it, which separates candidates"):
        list_votes(tmp_path / "sets.csv", class_names=["a|b", "c"])


def test_class_names_may_hold_anything(tmp_path):
    names = ["a$\\frac{$b", '"quoted"', "<b>", "=1+1", "new\nline", "row_id", "image", "predicted", "☃", "-1"]
    rows = [{"path": f"{k}.png", "candidates": name, "label": name} for k, name in enumerate(names)]
    for shade, row in enumerate(rows):
        PILImage.new("L", (8, 8), 20 * shade).save(tmp_path / row["path"])
    file = write(tmp_path, rows, ".jsonl")
    options = {"classes": names, "validation_share": 0, "num_proc": 1}
    dataset = prepare("votes", file, out=tmp_path / "set", **options)
    assert dataset["train"].features["label"].names == names
    assert dataset["train"]["label"][:] == list(range(10))
    assert load_dataset(tmp_path / "set")["train"].features["candidates"].length == 10


def test_the_summary_counts_candidates_where_there_are_no_labels(tmp_path, capsys):
    for shade, name in enumerate("abcd"):
        PILImage.new("L", (8, 8), 20 * shade).save(tmp_path / f"{name}.png")
    (tmp_path / "sets.csv").write_text("path,candidates\na.png,fear|anger\nb.png,fear\nc.png,neutral\nd.png,fear\n")
    arguments = ["votes", str(tmp_path / "sets.csv"), "--validation-share", "0", "--num-proc", "1"]
    main([*arguments, "--out", str(tmp_path / "set")])
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    for expected in (["rows", "4"], ["neutral", "1"], ["anger", "1"], ["fear", "3"], ["contempt", "0"]):
        assert expected in lines
    assert "counted: the rows with the class among their candidates; 4 rows have no label" in said
    assert "read as a table of candidate sets (sets.csv)" in said


def test_prepare_data_votes(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.png", "sub/ü.png")):
        PILImage.new("L", (8, 8), number).save(tmp_path / name)
    file = write(tmp_path, [*COUNTS, {"path": "gone.png", "Happy": 1, "surprise": 0, "neutral": 0}], ".csv")
    main(["votes", str(file), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"])
    train = load_dataset(tmp_path / "set", "train")
    assert np.array(train["votes"][:]).sum(axis=1).tolist() == [10, 10] and len(train) == 2
    report = (tmp_path / "set" / REPORT).read_text()
    assert "votes.csv:4," in report and "no votes at all" in report
    assert "votes.csv:5," in report and "gone.png: there is no such file" in report
    assert "2 images could not be used" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"^votes.csv:4: "):
        main(["votes", str(file), "--out", str(tmp_path / "b"), "--strict", "--num-proc", "1"])
    arguments = ["--classes", "surprise,happiness,neutral", "--validation-share", "0.5", "--root", str(tmp_path)]
    main(["votes", str(file), "--out", str(tmp_path / "c"), "--num-proc", "1", *arguments])
    dataset = load_dataset(tmp_path / "c")
    assert next(iter(dataset.values())).features["label"].names == ["surprise", "happiness", "neutral"]


def test_ready_candidate_sets_train_as_they_are(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        PILImage.new("L", (8, 8), number).save(tmp_path / name)
    file = write(tmp_path, [SETS[0], SETS[1] | {"path": "b.png"}], ".jsonl")
    main(["votes", str(file), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"])
    train = load_dataset(tmp_path / "set", "train")
    assert add_candidates(train, max_candidates=1)["candidates"][:] == train["candidates"][:]
    assert np.sum(train["candidates"][:], axis=1).tolist() == [2, 1] and train["label"][:] == [1, -1]


def test_one_label_for_each_image(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label,split,age\na.png,Happy,train,3\nb.png,fear,test,4\n")
    splits = list_votes(tmp_path / "labels.csv")
    found = {split: [(row.path, row.columns, row.problem) for row in rows] for split, rows in splits.items()}
    happiness, fear = EXPRESSIONS.index("happiness"), EXPRESSIONS.index("fear")
    assert found == {
        "train": [(tmp_path / "a.png", {"label": happiness}, None)],
        "test": [(tmp_path / "b.png", {"label": fear}, None)],
    }


def test_an_absolute_path_may_lead_into_the_root_and_nowhere_else(tmp_path):
    table, root = tmp_path / "tables" / "votes.csv", tmp_path / "faces"
    root.mkdir()
    table.parent.mkdir()
    table.write_text(HEADER + f"{root}/a.png,1,2\n")
    assert list_votes(table, root)["train"][0].path == root / "a.png"
    for path in (f"{tmp_path}/a.png", f"{root}/../a.png"):
        table.write_text(HEADER + f"{path},1,2\n")
        with pytest.raises(DataError, match="lies outside of"):
            list_votes(table, root)


def test_absolute_and_relative_paths_of_one_image_are_one_image(tmp_path, monkeypatch):
    root, link = tmp_path / "faces", tmp_path / "link"
    root.mkdir()
    link.symlink_to(root)
    answers = root / "answers.csv"
    answers.write_text(f"path,annotator,label\n{root}/a.png,x,happy\na.png,y,sad\n{root}/./b/../a.png,z,sad\n")
    monkeypatch.chdir(root)
    for start in (root, link, Path("../faces"), Path()):  # a link, and a folder written another way
        [row] = list_votes(start / "answers.csv", start)["train"]
        assert row.path == start / "a.png" and sum(row.columns["votes"]) == 3
        assert row.columns["label"] == EXPRESSIONS.index("sadness")
    votes = root / "votes.csv"
    votes.write_text(HEADER + f"a.png,1,2\n{root}/a.png,1,2\n")
    with pytest.raises(DataError, match=r"votes.csv:3 lists a.png again"):
        list_votes(votes)
