"""The column `answers`, who gave which label, from tables of answers through everything that changes rows."""

import numpy as np
import pytest
from datasets import DatasetDict, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from fer_pll.data.corrections import apply_corrections
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.data.prepare import prepare
from fer_pll.data.sources.arrays import from_arrays
from fer_pll.data.sources.hf_dataset import Columns, list_dataset
from fer_pll.data.sources.votes import list_votes
from fer_pll.data.splits import draw_validation, hold_out, keep_drawn_votes
from fer_pll.io.errors import DataError
from fer_pll.training.trainer import number_of_annotators
from tiny import count_answers, make_dataset

CLASSES = ["bored", "awake", "asleep"]
PEOPLE = ["ann", "bob", "eve", "Zoë"]
ROWS = 24


def said(rows: int = ROWS) -> np.ndarray:
    """Answers (rows, 4) to which everyone but Zoë, who rarely answers, contributes."""
    rng = np.random.default_rng(0)
    answers = rng.integers(0, len(CLASSES), (rows, len(PEOPLE)))
    answers[rng.random(answers.shape) < [0.1, 0.1, 0.1, 0.8]] = -1
    answers[:, 0] = np.where((answers < 0).all(axis=1), 1, answers[:, 0])
    return answers


def long_table(folder, answers):
    lines = ["path,annotator,label"]
    cells = [(row, person) for row, each in enumerate(answers) for person, label in enumerate(each) if label >= 0]
    for row, person in np.random.default_rng(1).permutation(cells):  # in any order
        lines.append(f"{row}.png,{PEOPLE[person]},{CLASSES[answers[row, person]]}")
    (folder / "long.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "long.csv"


def wide_table(folder, answers):
    lines = [",".join(["path", "age", *PEOPLE])]
    for row, each in enumerate(answers):
        lines.append(",".join([f"{row}.png", "31", *("" if label < 0 else CLASSES[label] for label in each)]))
    (folder / "wide.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "wide.csv"


def by_path(splits):
    return {row.path.name: row.columns for row in splits["train"] if row.problem is None}


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-1, 2), min_size=4, max_size=4), min_size=1, max_size=6))
def test_both_forms_of_a_table_list_the_same_answers(tmp_path_factory, answers):
    folder, answers = tmp_path_factory.mktemp("tables"), np.array(answers)
    rows = list_votes(wide_table(folder, answers), class_names=CLASSES, annotators=PEOPLE)["train"]
    answered = (answers >= 0).any(axis=1)
    assert [row.problem is None for row in rows] == answered.tolist()
    columns = by_path({"train": rows})
    who = (answers >= 0).any(axis=0)  # who never answered is nobody that the table knows
    for row in np.flatnonzero(answered):
        each = columns[f"{row}.png"]
        assert each["answers"] == [
            label for _, label in sorted((PEOPLE[p], label) for p, label in enumerate(answers[row]) if who[p])
        ]
        assert each["votes"] == count_answers(answers[row : row + 1], 3)[0].tolist()
    if answered.any():
        assert by_path(list_votes(long_table(folder, answers), class_names=CLASSES)) == columns


def test_annotators_are_the_same_in_every_split(tmp_path):
    (tmp_path / "t.csv").write_text(
        "path,annotator,label,split\n2.png,eve,fear,test\n1.png,bob,anger,train\n1.png,ann,fear,train\n"
    )
    splits = list_votes(tmp_path / "t.csv")
    anger, fear = 4, 6
    assert splits["train"][0].columns["answers"] == [fear, anger, -1]
    assert splits["test"][0].columns["answers"] == [-1, -1, fear]


@pytest.mark.parametrize(
    ("table", "annotators", "reason"),
    [
        ("path,ann\n1.png,fear\n", "ann,bob", "ann,bob names 'bob', which is no annotator's column"),
        ("path,ann\n1.png,fear\n", "ann,path", "names 'path', which is no annotator's column"),
        ("path,ann\n1.png,fear\n", "ann,ann", "names a column twice"),
        ("path,ann\n1.png,glee\n", "ann", "t.csv:2: label 'glee' is not one of the classes"),
        ("path,ann\n1.png,fear\n1.png,fear\n", "ann", r"t.csv:3 lists 1.png again, after t.csv:2"),
        ("path,ann,fear\n1.png,fear,3\n", "ann", r"more than one of .* annotators \(ann\), and columns of classes"),
        ("path,ann\n1.png,fear\n", None, "path and columns that --annotators names"),
    ],
)
def test_columns_of_annotators_that_cannot_be(tmp_path, table, annotators, reason):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataError, match=reason):
        prepare("votes", tmp_path / "t.csv", out=tmp_path / "set", annotators=annotators)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images and both tables; image 3 is a copy of image 0."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(2)
    for row in range(ROWS):
        pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{row}.png")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes())
    long_table(folder, said())
    wide_table(folder, said())
    return folder


def prepared(folder, out, table="wide.csv", **options):
    annotators = {"annotators": ",".join(PEOPLE)} if table == "wide.csv" else {}
    return prepare("votes", folder / table, out=out, classes=",".join(CLASSES), num_proc=1, **annotators, **options)


def check_rows(rows):
    """Answers, those of the table for the same rows, and the rows' numbers; votes are the number of the answers."""
    answers, votes = numpy_column(rows, "answers"), numpy_column(rows, "votes")
    assert answers.shape == (len(rows), len(PEOPLE))
    assert (votes == count_answers(answers, len(CLASSES))).all() and (votes.sum(axis=1) > 0).all()
    assert number_of_annotators(rows, len(CLASSES)) == len(PEOPLE)
    number = [int(row_id.split(":")[1]) - 2 for row_id in rows["row_id"]]  # the line of the wide table
    order = [PEOPLE.index(name) for name in sorted(PEOPLE)]
    expected = said()[number][:, order]
    return answers, expected, number


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.long)])
def test_rows_keep_their_answers_through_all_splits_and_copies(folder, tmp_path, num_proc):
    options = {"validation_share": 0.25, "hold_out": 0.2, "classes": ",".join(CLASSES), "num_proc": num_proc}
    data = prepare("votes", folder / "wide.csv", out=tmp_path / "set", annotators=PEOPLE, **options)
    seen = []
    for split in ("train", "validation", "held_out"):
        answers, expected, number = check_rows(data[split])
        assert (answers == expected).all()
        seen += number
    assert sorted(seen) == [row for row in range(ROWS) if row != 3]  # the copy is left out
    assert data["train"].features["answers"] == List(Value("int16"))


def test_a_table_with_a_row_for_each_answer_is_prepared_alike(folder, tmp_path):
    sets = [prepared(folder, tmp_path / table, table)["train"] for table in ("wide.csv", "long.csv")]
    found = [
        {image.tobytes(): (votes, answers) for image, votes, answers in zip(*columns, strict=True)}
        for columns in ((rows["image"][:], rows["votes"][:], rows["answers"][:]) for rows in sets)
    ]
    shared = found[0].keys() & found[1].keys()  # the tenth for validation may differ by the order of the rows
    assert len(shared) > ROWS / 2 and all(found[0][image] == found[1][image] for image in shared)


@pytest.mark.parametrize("number", [1, 2, 9])
def test_drawn_votes_are_those_of_drawn_annotators(folder, tmp_path, number):
    train = prepared(folder, tmp_path / "set", draw_votes=number, draw_seed=5, validation_share=0)["train"]
    answers, expected, _ = check_rows(train)
    assert ((answers == expected) | (answers == -1)).all()
    assert ((answers >= 0).sum(axis=1) == np.minimum((expected >= 0).sum(axis=1), number)).all()


def test_a_corrected_row_has_the_new_label_from_all_who_answered(folder, tmp_path):
    (tmp_path / "marks.csv").write_text("row_id,mark,label\nwide.csv:4,relabel,asleep\nwide.csv:7,drop,\n")
    train = prepared(folder, tmp_path / "set", corrections=tmp_path / "marks.csv", validation_share=0)["train"]
    answers, expected, number = check_rows(train)
    assert 5 not in number
    expected[number.index(2)] = np.where(expected[number.index(2)] >= 0, CLASSES.index("asleep"), -1)
    assert (answers == expected).all()


def test_parts_and_unions_of_prepared_sets(folder, tmp_path):
    data = prepared(folder, tmp_path / "set")["train"]
    halves = [data.select(range(5)), data.filter(lambda row: row["label"] > 0, load_from_cache_file=False)]
    save_dataset(DatasetDict(train=concatenate_datasets(halves)), tmp_path / "union")
    both = load_dataset(tmp_path / "union", "train")
    answers, expected, _ = check_rows(both)
    assert (answers == expected).all()


def test_a_prepared_set_is_prepared_again(folder, tmp_path):
    data = prepared(folder, tmp_path / "set")
    again = prepare("dataset", tmp_path / "set", out=tmp_path / "again", num_proc=1)
    for split, rows in data.items():
        for name in ("row_id", "votes", "answers", "label"):
            assert again[split][name][:] == rows[name][:]
    turned = prepare("dataset", tmp_path / "set", out=tmp_path / "turned", classes=",".join(CLASSES[::-1]), num_proc=1)
    answers = numpy_column(turned["train"], "answers")
    assert (np.where(answers >= 0, 2 - answers, -1) == numpy_column(data["train"], "answers")).all()
    assert (numpy_column(turned["train"], "votes") == count_answers(answers, 3)).all()


def test_answers_in_memory(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    names = ["sadness", "neutral", "happiness"]  # the set has FER+'s order: neutral, happiness, sadness
    said = np.array([[0, 0, -1], [1, 2, 1], [-1, -1, -1]])
    listed = from_arrays(list(images), class_names=names, answers=said)
    data = prepare(listed, out=tmp_path / "set", num_proc=1)["train"]
    assert data.features["label"].names == ["neutral", "happiness", "sadness"]
    assert data["answers"][:] == [[2, 2, -1], [0, 1, 0]] and data["votes"][:] == [[0, 0, 2], [2, 1, 0]]
    assert data["label"][:] == [2, 0]  # and the row without answers is left out
    for wrong, reason in (
        ({}, "give either votes, or answers"),
        ({"answers": said, "votes": np.ones((3, 3))}, "give either votes, or answers"),
        ({"answers": said[:2]}, r"answers have the shape \(2, 3\), but 3 images need \(3, annotators\)"),
        ({"answers": [0, 1, 2]}, r"answers have the shape \(3,\)"),
        ({"answers": np.where(said == 2, 3, said)}, "annotator 1 for image 1 is .*3.*, but answers are whole numbers"),
        ({"answers": said / 2}, "annotator 0 for image 0 is .*, but answers are whole numbers from 0 to 2, or -1"),
        ({"answers": said - 1}, "annotator 2 for image 0 is .*-2"),
    ):
        with pytest.raises(DataError, match=reason):
            from_arrays(list(images), class_names=names, **wrong)


def dataset_with(answers, feature, **columns):
    rows = make_dataset(len(answers)).select_columns(["image", *columns])
    return rows.add_column("answers", answers, feature=List(feature))


def test_a_data_set_with_answers_alone(tmp_path):
    rows = dataset_with([["right", "", "top"], [None, "Left", "left"]], Value("string"))
    rows.save_to_disk(tmp_path / "set")
    listed = list_dataset(tmp_path / "set", Columns(answers="answers"), ["left", "right", "top", "bottom"])
    assert set(listed.columns) == {"answers", "votes"}
    assert [row.columns for row in listed.splits["train"]] == [
        {"answers": [1, -1, 2], "votes": [0, 1, 1, 0], "label": 1},
        {"answers": [-1, 0, 0], "votes": [2, 0, 0, 0], "label": 0},
    ]


def test_answers_that_are_no_classes_or_too_few(tmp_path):
    dataset_with([[0, 1], [9, 1], [1], [-1, -1]], Value("int64")).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="'answers' has numbers; name their classes"):
        list_dataset(tmp_path / "set", Columns(answers="answers"))
    listed = list_dataset(tmp_path / "set", class_names=["left", "right", "top", "bottom"])
    assert listed.columns == ["answers", "votes"]
    problems = [row.problem for row in listed.splits["train"]]
    assert problems[0] is None
    reasons = ("is 9, but the classes are numbered to 3", "has 1 entries, but 2 in the first", "has no votes")
    assert all(reason in problem for problem, reason in zip(problems[1:], reasons, strict=True))
    texts = dataset_with([["what", "is"], ["this"]], Value("string"))  # of another kind, under the same name
    rows = texts.add_column("label", [0, 1], feature=make_dataset(2).features["label"])
    rows.save_to_disk(tmp_path / "other")
    assert list_dataset(tmp_path / "other").columns == []


@pytest.mark.parametrize(
    ("answers", "reason"), [([[0, 1], [1]], "different lengths"), ([[0, 7]] * 2, "neither -1"), ([[0, -2]] * 2, "nei")]
)
def test_a_set_with_damaged_answers_is_refused(tmp_path, answers, reason):
    rows = make_dataset(2).add_column("answers", answers, feature=List(Value("int16")))
    save_dataset(DatasetDict(train=rows), tmp_path / "set")
    with pytest.raises(DataError, match=reason):
        load_dataset(tmp_path / "set")


def test_weighed_annotators_keep_their_answers(folder, tmp_path):
    pytest.importorskip("crowdkit")
    answers = said()
    answers[4] = -1  # nobody answered
    table = wide_table(tmp_path, answers)
    rows = list_votes(table, folder, CLASSES, 0.9, PEOPLE)["train"]
    assert [row.problem is None for row in rows] == [row != 4 for row in range(ROWS)]
    for row in rows:
        if row.problem is None:
            assert sum(row.columns["confidence"]) == pytest.approx(1) and any(row.columns["candidates"])
    data = prepared(folder, tmp_path / "set", weigh_annotators=0.9, validation_share=0)["train"]
    found, expected, _ = check_rows(data)
    assert (found == expected).all() and "confidence" in data.column_names


def test_a_corrected_row_has_the_new_label_with_all_confidence(folder, tmp_path):
    pytest.importorskip("crowdkit")
    (tmp_path / "marks.csv").write_text("row_id,mark,label\nwide.csv:4,relabel,asleep\nwide.csv:7,drop,\n")
    options = {"weigh_annotators": 0.99, "corrections": tmp_path / "marks.csv", "validation_share": 0}
    rows = prepared(folder, tmp_path / "set", **options)["train"]
    candidates, confidence = numpy_column(rows, "candidates"), numpy_column(rows, "confidence")
    assert confidence[rows["row_id"][:].index("wide.csv:4")].tolist() == [0, 0, 1]
    assert ((confidence > 0) == candidates).all() and np.allclose(confidence.sum(axis=1), 1)
    with pytest.raises(DataError, match="--draw-votes 2: the candidates come from all votes"):
        prepared(folder, tmp_path / "none", weigh_annotators=0.9, draw_votes=2)


def test_every_split_function_leaves_answers_beside_their_rows(folder, tmp_path):
    train = prepared(folder, tmp_path / "set", validation_share=0)["train"]
    for data in (draw_validation(DatasetDict(train=train), 0.3), hold_out(DatasetDict(train=train), 0.3)):
        assert sum(map(len, data.values())) == len(train)
        for rows in data.values():
            answers, expected, _ = check_rows(rows)
            assert (answers == expected).all()
    drawn = keep_drawn_votes(train, 1)
    assert set(drawn.column_names) == set(train.column_names) | {"true_label"}
    (tmp_path / "marks.csv").write_text("row_id,mark,label\nwide.csv:2,relabel,bored\n")
    corrected, _ = apply_corrections(DatasetDict(train=drawn), tmp_path / "marks.csv")
    check_rows(corrected["train"])
    assert corrected["train"].features == drawn.features
