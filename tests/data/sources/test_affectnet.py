"""AffectNet in small, in both layouts."""

import numpy as np
import pytest
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import REPORT, load_dataset
from fer_pll.data.sources.affectnet import affectnet_classes, five_landmarks, list_affectnet
from fer_pll.io.errors import DataError
from fer_pll.labels.expressions import EXPRESSIONS

HEADER = [
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks"),
    *("expression", "valence", "arousal"),
]


def face(left=10.0, top=20.0, unit=1.0):
    """68 landmarks, most of them far off, so that a wrong number shows in the five that are made of them."""
    points = np.full((68, 2), 999.0)
    points[36:42] = [(0, 5), (1, 4), (2, 4), (3, 5), (2, 6), (1, 6)]
    points[42:48] = [(7, 5), (8, 4), (9, 4), (10, 5), (9, 6), (8, 6)]
    points[30], points[48], points[54] = (5, 9), (2, 12), (8, 12)
    return np.array([left, top]) + unit * points


FIVE = np.array([(1.5, 5), (8.5, 5), (5, 9), (2, 12), (8, 12)]) + np.array([10, 20])


def text_of(landmarks):
    return ";".join(f"{value:.2f}" for value in landmarks.reshape(-1))


def write_tables(folder, rows, name="training.csv"):
    folder.mkdir(exist_ok=True)
    lines = [HEADER, *([path, 1, 2, 30, 40, text_of(face()), label, 0.1, -0.2] for path, label in rows)]
    (folder / name).write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    for path, _ in rows:
        image = folder / "Manually_Annotated_Images" / path
        image.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (60, 60)).save(image)


def write_folder(folder, labels):
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for number, label in labels.items():
        PILImage.new("RGB", (60, 60)).save(folder / "images" / f"{number}.jpg")
        np.save(folder / "annotations" / f"{number}_exp.npy", np.array(str(label)))
        np.save(folder / "annotations" / f"{number}_lnd.npy", face().reshape(-1).astype(np.float32))


def names_of(rows, num_classes=8):
    return {row.row_id: affectnet_classes(num_classes)[row.columns["label"]] for row in rows}


# all eleven, the eight expressions by AffectNet's own numbers
OF_NUMBER = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]


def test_five_landmarks_of_68():
    np.testing.assert_allclose(five_landmarks(face()), FIVE)


@pytest.mark.parametrize("num_classes", [8, 7])
def test_tables(tmp_path, num_classes):
    write_tables(tmp_path, [(f"{label}/a.jpg", label) for label in range(11)])
    write_tables(tmp_path, [("v/b.jpg", 7), ("v/c.jpg", 1)], "validation.csv")
    splits = {split: list(rows) for split, rows in list_affectnet(tmp_path, num_classes).items()}
    assert names_of(splits["train"], num_classes) == {
        f"training.csv:{label + 2}": OF_NUMBER[label] for label in range(num_classes)
    }
    assert names_of(splits["validation"], num_classes) == (
        {"validation.csv:2": "contempt", "validation.csv:3": "happiness"}
        if num_classes == 8
        else {"validation.csv:3": "happiness"}
    )
    for row in splits["train"] + splits["validation"]:
        assert row.path.is_file() and row.box == (1, 2, 30, 40) and row.problem is None
        np.testing.assert_allclose(np.reshape(row.landmarks, (5, 2)), FIVE, atol=0.006)


@pytest.mark.parametrize("num_classes", [8, 7])
def test_folders(tmp_path, num_classes):
    write_folder(tmp_path / "train_set", {2: 6, 10: 0, 9: 7, 300: 9})
    write_folder(tmp_path / "val_set", {0: 5})
    splits = {split: list(rows) for split, rows in list_affectnet(tmp_path, num_classes).items()}
    expected = {"train_set/2": "anger", "train_set/9": "contempt", "train_set/10": "neutral"}
    if num_classes == 7:
        del expected["train_set/9"]
    assert names_of(splits["train"], num_classes) == expected and list(names_of(splits["train"])) == list(expected)
    assert names_of(splits["validation"], num_classes) == {"val_set/0": "disgust"}
    for row in splits["train"]:
        assert row.path.is_file() and row.problem is None
        np.testing.assert_allclose(np.reshape(row.landmarks, (5, 2)), FIVE, atol=0.001)


def test_classes_are_those_of_ferplus():
    assert affectnet_classes(8) == EXPRESSIONS and affectnet_classes(7) == EXPRESSIONS[:7]
    with pytest.raises(DataError, match="7 or 8 expressions, not 6"):
        affectnet_classes(6)


@pytest.mark.parametrize(
    ("cell", "value", "problem"),
    [
        ("facial_landmarks", "1;2;3", "3 coordinates of landmarks where 2 x 68 should be: correct the row"),
        ("facial_landmarks", text_of(face()).replace("1009.00", "nan", 1), "is not a position"),
        ("facial_landmarks", text_of(face()).replace("1009.00", "x", 1), "could not convert"),
        ("facial_landmarks", "", "0 coordinates"),
        ("face_x", "NULL", "could not convert"),
        ("subDirectory_filePath", "../../etc/passwd", "leads out of Manually_Annotated_Images"),
        ("subDirectory_filePath", "/etc/passwd", "leads out of"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_problem_of_that_row(tmp_path, cell, value, problem):
    write_tables(tmp_path, [("a.jpg", 1), ("b.jpg", 1)])
    lines = (tmp_path / "training.csv").read_text().splitlines()
    cells = lines[1].split(",")
    cells[HEADER.index(cell)] = value
    (tmp_path / "training.csv").write_text("\n".join([lines[0], ",".join(cells), lines[2]]) + "\n")
    first, second = list_affectnet(tmp_path)["train"]
    assert first.row_id == "training.csv:2" and problem in first.problem
    assert second.problem is None


@pytest.mark.parametrize("expression", ["11", "-1", "happy", "", "nan", "inf"])
def test_an_unknown_expression_is_an_error(tmp_path, expression):
    write_tables(tmp_path, [("a.jpg", 1), ("b.jpg", expression)])
    with pytest.raises(DataError, match=r"training.csv:3: expression .* is not a number from 0 to 10"):
        list(list_affectnet(tmp_path)["train"])


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match="is not AffectNet"):
        list_affectnet(tmp_path)
    write_tables(tmp_path, [("a.jpg", 1)])
    (tmp_path / "Manually_Annotated_Images").rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="no folder Manually_Annotated_Images"):
        list_affectnet(tmp_path)

    write_folder(tmp_path / "b" / "train_set", {0: 1, 1: 2})
    lnd = tmp_path / "b" / "train_set" / "annotations" / "0_lnd.npy"
    np.save(lnd, np.zeros(134))
    first, second = list_affectnet(tmp_path / "b")["train"]
    assert "134 coordinates" in first.problem and "0_lnd.npy" in first.problem and second.problem is None
    lnd.unlink()
    assert "0_lnd.npy is missing" in next(list_affectnet(tmp_path / "b")["train"]).problem
    (tmp_path / "b" / "train_set" / "annotations" / "1_exp.npy").write_bytes(b"\x93NUMPY")
    assert "1_exp.npy is missing or is not a NumPy array" in list(list_affectnet(tmp_path / "b")["train"])[1].problem
    write_folder(tmp_path / "c" / "train_set", {})
    with pytest.raises(DataError, match=r"has no file like 0_exp.npy"):
        list(list_affectnet(tmp_path / "c")["train"])


def test_objects_in_npy_files_are_not_unpickled(tmp_path):
    write_folder(tmp_path / "train_set", {0: 1})
    np.save(tmp_path / "train_set" / "annotations" / "0_exp.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    (row,) = list_affectnet(tmp_path)["train"]
    assert "0_exp.npy is missing or is not a NumPy array" in row.problem


def npz(file):
    with file.open("wb") as stream:
        np.savez(stream, a=np.zeros(136))


def npy(shape="(136,)", kind="'<f4'", contents=bytes(544)):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (118 - len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + contents


DAMAGED = {
    "an archive": npz,
    "a cut-off archive": lambda file: (npz(file), file.write_bytes(file.read_bytes()[:100])),
    "no Python": npy(shape="(136,"),
    "an unclosed quote": npy(kind='"'),
    "of other types": npy(kind="[('a', '<f4')]"),
    "huge": npy(shape="(1000000000000,)"),
    "larger than the file": npy(shape="(5000000000,)"),
    "text that is none": npy(shape="()", kind="'<U2'", contents=b"\xff" * 8),
    "dates": npy(kind="'<M8[s]'", contents=bytes(1088)),
    "empty": b"",
    "text": b"0.5 0.5",
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("name", ["exp", "lnd"])
def test_a_damaged_file_costs_one_row(tmp_path, what, name):
    write_folder(tmp_path / "train_set", {0: 1, 1: 2})
    file = tmp_path / "train_set" / "annotations" / f"0_{name}.npy"
    damage = DAMAGED[what]
    damage(file) if callable(damage) else file.write_bytes(damage)
    first, second = list_affectnet(tmp_path)["train"]
    assert f"0_{name}.npy" in first.problem and second.problem is None


@pytest.mark.parametrize("source", ["{0}", "../{1}", "../{1}/../{1}", "link"])
def test_the_path_that_the_user_gives_may_have_any_form(tmp_path, monkeypatch, source):
    write_tables(tmp_path / "a", [("x/1.jpg", 0), ("..\\x\\2.jpg", 0), ("/x/3.jpg", 0), ("x/../../4.jpg", 0)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "b")
    rows = list(list_affectnet(source.format(tmp_path / "a", "a"))["train"])
    assert [row.problem and "leads out of Manually_Annotated_Images" in row.problem for row in rows] == [
        None, True, True, True,
    ]  # fmt: skip
    assert rows[0].path.is_file()


def test_a_table_that_a_spreadsheet_saved(tmp_path):
    write_tables(tmp_path, [("1.jpg", 0)])
    file = tmp_path / "training.csv"
    head, row = file.read_text().splitlines()
    path, *box, points, label, valence, arousal = row.split(",")
    cells = [path, *(f"{cell},5" for cell in box), f'"{points.replace(".", ",")}"', label, valence, arousal]
    file.write_text("\ufeff" + head.replace(",", ";") + "\r\n" + ";".join(cells) + "\r\n", encoding="utf-8")
    (row,) = list_affectnet(tmp_path)["train"]
    assert row.problem is None and row.box == (1.5, 2.5, 30.5, 40.5)
    assert np.allclose(np.reshape(row.landmarks, (5, 2)), FIVE)


def test_landmarks_far_apart_cost_one_row(tmp_path):
    """A crop of them would need gigabytes."""
    write_tables(tmp_path / "a", [("1.jpg", 0), ("2.jpg", 0), ("3.jpg", 0), ("4.jpg", 1)])
    file = tmp_path / "a" / "training.csv"
    lines = file.read_text().splitlines()
    for number, unit in ((1, 3_000), (2, 1e8), (3, 1e200)):
        lines[number] = lines[number].replace(text_of(face()), text_of(face(unit=unit)))
    file.write_text("\n".join(lines) + "\n")
    arguments = ["affectnet", str(tmp_path / "a"), "--num-proc", "1", "--crop", "fer-pll-tiny-ferplus"]
    main([*arguments, "--out", str(tmp_path / "set")])
    assert load_dataset(tmp_path / "set", "train")["row_id"][:] == ["training.csv:5"]
    report = (tmp_path / "set" / REPORT).read_text()
    assert report.count("the landmarks lie far outside of the image") == 2 and report.count("training.csv:") == 3


def test_prepare_data_affectnet(tmp_path):
    write_tables(tmp_path / "a", [("x/1.jpg", 0), ("x/2.jpg", 7), ("x/3.jpg", 8)])
    write_tables(tmp_path / "a", [("v/1.jpg", 3)], "validation.csv")
    arguments = [
        "affectnet",
        str(tmp_path / "a"),
        "--num-proc",
        "1",
        "--classes",
        "7",
        "--drop-copies",
        "none",
        "--out",
    ]
    main([*arguments, str(tmp_path / "boxes")])
    dataset = load_dataset(tmp_path / "boxes")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 1, "validation": 1}
    assert dataset["train"].features["label"].names == list(EXPRESSIONS[:7])
    assert dataset["train"]["image"][0].size == (30, 40)  # the face's box
    main([*arguments, str(tmp_path / "aligned"), "--crop", "fer-pll-tiny-ferplus"])
    assert load_dataset(tmp_path / "aligned")["validation"]["image"][0].size == (48, 48)
