"""`fer-pll predict`, as its users run it: whole tables, told from partial ones, whatever the files are like."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from transformers import AutoImageProcessor, pipeline

import fer_pll_cli
from fer_pll import FerPllForImageClassification, FerPllImageProcessor
from fer_pll.inference.media import list_files, show
from fer_pll.io.tables import TableWriter
from siblings import siblings
from tiny import CLASSES

FERPLUS = Path(__file__).parents[2] / "hub_configs" / "fer-pll-tiny-ferplus"
COLUMNS = ["file", "frame", "face", "x", "y", "width", "height", "score", "expression"]
COLUMNS += [f"p_{name}" for name in CLASSES] + ["problem"]


@pytest.fixture
def model(toy_config, tmp_path) -> str:
    torch.manual_seed(0)
    classifier = FerPllForImageClassification(toy_config)
    torch.nn.init.normal_(classifier.classifier.weight)
    classifier.save_pretrained(tmp_path / "model")
    contract = AutoImageProcessor.from_pretrained(FERPLUS).face_crop
    FerPllImageProcessor(
        num_channels=1, size={"height": 16, "width": 16}, image_std=[0.25], face_crop=contract
    ).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five files: one face, two, none, a text, nothing; and one that is no image by its name."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    one = astronaut()
    Image.fromarray(one).save(folder / "Éva ☃.png")
    Image.fromarray(np.hstack([one, one])).save(folder / "more" / "two.jpg", quality=95)
    Image.new("L", (50, 40)).save(folder / "none.png")
    (folder / "text.jpg").write_text("text")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not asked for")
    return folder


def predict(*argv: object) -> int:
    return fer_pll_cli.main(["predict", *map(str, argv)])


def read(table: Path) -> list[dict]:
    """Rows as text, None as an empty field, from every format."""
    if table.suffix == ".csv":
        with table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if table.suffix == ".jsonl":
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    else:
        rows = pyarrow.parquet.read_table(table).to_pylist()
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def test_a_folder_in_every_format(model, photos, tmp_path, capsys):
    tables = []
    for ending in ("csv", "jsonl", "parquet"):
        table = tmp_path / f"faces.{ending}"
        assert predict(photos, "--model", model, "--out", table, "--batch-size", 2) == 0
        tables.append(read(table))
        assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []
    assert tables[0] == tables[1] == tables[2]
    output = capsys.readouterr().out
    assert "3 images in 5 files: 3 faces, 1 without a face, 2 unreadable" in output
    assert f"written to {tmp_path / 'faces.csv'}" in output

    rows = tables[0]
    assert list(rows[0]) == COLUMNS
    seen = [(os.path.relpath(row["file"], photos), row["face"], row["problem"].partition(" (")[0]) for row in rows]
    assert sorted(seen) == [
        ("more/two.jpg", "0", ""),
        ("more/two.jpg", "1", ""),
        ("none.png", "", "no face found"),
        ("text.jpg", "", "not an image in a format that is read"),
        ("zero.jpg", "", "the file is empty"),
        ("Éva ☃.png", "0", ""),
    ]
    for row in rows:
        probabilities = {name: row[f"p_{name}"] for name in CLASSES}
        if row["problem"]:
            assert set(probabilities.values()) == {""} and row["expression"] == row["x"] == ""
        else:
            assert sum(map(float, probabilities.values())) == pytest.approx(1)
            assert row["expression"] == max(CLASSES, key=lambda name: float(row[f"p_{name}"]))
            assert 90 < float(row["width"]) < 130 and 0.9 < float(row["score"]) <= 1
            assert row["frame"] == ""


def test_the_rows_are_the_answers_of_the_pipeline(model, photos, tmp_path):
    assert predict(photos / "more", "--model", model, "--out", tmp_path / "t.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    recognize = pipeline("facial-expression-recognition", model=model, trust_remote_code=False)
    for row, face in zip(rows, recognize(photos / "more" / "two.jpg"), strict=True):
        box = face["box"]
        corners = (row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"])
        assert corners == pytest.approx(tuple(box.values()), abs=0.011)  # to a hundredth of a pixel
        assert row["score"] == pytest.approx(face["score"], abs=1e-6)
        assert all(len(repr(row[name]).partition(".")[2]) <= 2 for name in ("x", "y", "width", "height"))
        assert {e["label"]: row[f"p_{e['label']}"] for e in face["expressions"]} == pytest.approx(
            {e["label"]: e["score"] for e in face["expressions"]}, abs=1e-6
        )


def test_crops_are_taken_as_they_are(model, tmp_path):
    (tmp_path / "crops").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "crops" / f"{i}.png")
    (tmp_path / "crops" / "3.png").write_text("broken")
    options = ("--cropped", "--batch-size", 2, "--out", tmp_path / "t.csv", "--save-pictures", tmp_path / "marked")
    assert predict(tmp_path / "crops", "--model", model, *options) == 0
    rows = read(tmp_path / "t.csv")
    assert [Path(row["file"]).stem for row in rows] == list("01234")
    assert [row["problem"] != "" for row in rows] == [False, False, False, True, False]
    classify = pipeline("image-classification", model=model, trust_remote_code=False, top_k=None)
    for i in (0, 1, 2, 4):
        expected = {f"p_{e['label']}": e["score"] for e in classify(str(tmp_path / "crops" / f"{i}.png"))}
        assert {name: float(rows[i][name]) for name in expected} == pytest.approx(expected, abs=1e-6)
        assert rows[i]["x"] == rows[i]["score"] == ""
    assert sorted(path.name for path in (tmp_path / "marked").iterdir()) == [f"{i}.jpg" for i in (0, 1, 2, 4)]


def test_color_crops_become_gray_where_the_training_was(toy_config, tmp_path):
    torch.manual_seed(0)
    color = type(toy_config)(
        **{**toy_config.to_dict(), "num_channels": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    )
    FerPllForImageClassification(color).save_pretrained(tmp_path / "model")
    contract = AutoImageProcessor.from_pretrained(FERPLUS).face_crop
    FerPllImageProcessor(size={"height": 16, "width": 16}, image_std=[0.25] * 3, face_crop=contract).save_pretrained(
        tmp_path / "model"
    )
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    crop.save(tmp_path / "color.png")
    crop.convert("L").save(tmp_path / "gray.png")
    images = (tmp_path / "color.png", tmp_path / "gray.png")
    assert predict(*images, "--cropped", "--model", tmp_path / "model", "--out", tmp_path / "t.csv") == 0
    (first, second) = ({name: row[name] for name in COLUMNS[8:]} for row in read(tmp_path / "t.csv"))
    assert first == second


def test_without_a_table_the_faces_are_printed(model, photos, capsys):
    assert predict(photos / "Éva ☃.png", photos / "none.png", "--model", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{photos / 'Éva ☃.png'}: face 0: ") and lines[0].endswith("%")
    assert lines[1] == f"{photos / 'none.png'}: no face found"


def test_marked_images(model, photos, tmp_path):
    (photos / "more" / "Éva ☃.webp").write_bytes((photos / "Éva ☃.png").read_bytes())  # the same name again
    marked = tmp_path / "marked"
    assert predict(photos, "--model", model, "--save-pictures", marked) == 0
    assert sorted(path.name for path in marked.iterdir()) == sorted(["two.jpg", "Éva ☃.jpg", "Éva ☃-2.jpg"])
    image = np.asarray(Image.open(marked / "Éva ☃.jpg")).astype(int)
    changed = np.abs(image - astronaut()).max(axis=2) > 100
    assert changed[50:180, 170:280].any() and not changed[250:].any()
    assert predict(photos, "--model", model, "--save-pictures", marked) == 1  # not over what is there
    assert predict(photos / "more", "--model", model, "--save-pictures", marked, "--overwrite") == 0


@pytest.mark.parametrize("option", ["--save-pictures", "--explain", "--save-video", "--save-timelines"])
def test_results_do_not_replace_what_is_read(model, photos, capsys, option):
    before = (photos / "more" / "two.jpg").read_bytes()
    assert predict(photos, "--model", model, option, photos / "more" / ".", "--overwrite") == 1
    assert "more is also read, so it is not written" in capsys.readouterr().err
    assert (photos / "more" / "two.jpg").read_bytes() == before


@pytest.fixture
def video(tmp_path) -> Path:
    """Seven frames as a telephone stores them that was held upright: lying, with the rotation beside."""
    av = pytest.importorskip("av")
    path = tmp_path / "talk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 256
        stream.bit_rate = 4_000_000
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this version of av cannot write a rotation")
        stream.set_display_rotation(90)
        lying = np.ascontiguousarray(np.rot90(astronaut()[:256, 100:356], -1))
        for number in range(7):
            pixels = lying if number != 4 else np.zeros_like(lying)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_are_upright(video):
    frames = list(show(video, every=3))
    assert [shown.frame for shown in frames] == [0, 3, 6]
    difference = np.asarray(frames[0].image).astype(int) - astronaut()[:256, 100:356]
    assert np.abs(difference).mean() < 8


def test_a_video(model, video, tmp_path):
    options = ("--every", 2, "--out", tmp_path / "t.parquet", "--save-pictures", tmp_path / "marked")
    assert predict(video, "--model", model, *options) == 0
    rows = read(tmp_path / "t.parquet")
    assert [(row["frame"], row["problem"]) for row in rows] == [
        ("0", ""),
        ("2", ""),
        ("4", "no face found"),
        ("6", ""),
    ]
    names = [f"talk-{number:06}.jpg" for number in (0, 2, 6)]
    assert sorted(path.name for path in (tmp_path / "marked").iterdir()) == names


def test_a_broken_video_is_a_row(model, video, tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    content = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    assert predict(tmp_path / "text.mp4", tmp_path / "cut.mp4", "--model", model, "--out", tmp_path / "t.csv") == 0
    rows = read(tmp_path / "t.csv")
    assert [Path(row["file"]).name for row in rows if row["problem"]] == ["text.mp4", "cut.mp4"]


def test_sources(photos, monkeypatch, tmp_path):
    assert [path.name for path in list_files([str(photos / "*.png"), str(photos / "none.png")])] == [
        "none.png",
        "Éva ☃.png",
    ]
    assert len(list_files([str(photos / "**" / "*.jpg")])) == 3
    assert list_files([str(photos / "notes.txt")]) == [photos / "notes.txt"]  # asked for by name
    (tmp_path / "[a].png").write_bytes(b"")
    assert list_files([str(tmp_path / "[a].png")]) == [tmp_path / "[a].png"]  # no pattern, a file


def test_a_name_that_is_not_unicode(model, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Image.new("L", (9, 9)).save(os.fsdecode(name))
    except OSError:
        pytest.skip("this file system has Unicode names only")
    for ending in ("csv", "jsonl", "parquet"):
        assert predict(os.fsdecode(name), "--model", model, "--out", tmp_path / f"t.{ending}") == 0
        assert read(tmp_path / f"t.{ending}")[0]["file"].endswith("caf\\xe9.png")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.jpg"], "gone.jpg: there is no such file or folder"),
        (["nothing*.jpg"], "nothing*.jpg: no image or video fits this pattern"),
        (["empty"], "empty: no images or videos in this folder"),
        (["photos", "--out", "t.xlsx"], "t.xlsx: the ending says the format"),
        (["photos", "--out", "there.csv"], "there.csv is there already"),
        (["photos", "--out", "no/t.csv"], "there is no folder no"),
        (["photos", "--save-pictures", "photos"], "photos is not empty"),
        (["photos", "--save-pictures", "there.csv"], "there.csv is a file"),
        (["photos", "--detector", "mtcnn"], "'mtcnn' is not known"),
        (["photos", "--detector", "yunet:no.onnx"], "no.onnx"),
        (["photos", "--crop", "model-without"], "model-without does not say how its faces are cropped"),
    ],
)
def test_wrong_options_end_in_one_line(argv, message, model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    FerPllImageProcessor(num_channels=1).save_pretrained(tmp_path / "model-without")
    capsys.readouterr()
    assert predict(*argv, "--model", model) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    "option",
    [
        ("--every", "0"),
        ("--every", "x"),
        ("--batch-size", "-1"),
        ("--backend", "tf"),
        ("--nope", "1"),
        ("--crop", "fer-pll-tiny-ferplus", "--cropped"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(option, photos, capsys):
    with pytest.raises(SystemExit) as ended:
        predict(photos, *option)
    assert ended.value.code == 2
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_leaves_what_there_is_under_another_name(model, photos, tmp_path):
    """Thousands of links to one photograph; interrupted once the table has rows."""
    (tmp_path / "many").mkdir()
    for i in range(5000):  # whatever else the machine has to do, it is not through within a second
        (tmp_path / "many" / f"{i:04}.png").symlink_to(photos / "Éva ☃.png")
    out, partial = tmp_path / "t.jsonl", tmp_path / "t.partial.jsonl"
    command = [sys.executable, "-m", "fer_pll_cli", "predict", tmp_path / "many", "--model", model, "--out", out]
    run = subprocess.Popen(
        [*map(str, command), "--batch-size", "1"], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    )  # fmt: skip
    while not partial.exists() and run.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Interrupted" in output and f"written to {partial}" in output
    assert not out.exists()
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert len(rows) < 5000 and all(row["expression"] in CLASSES for row in rows)


@pytest.mark.parametrize("ending", siblings("csv", "jsonl", "parquet"))
def test_a_full_disk_leaves_no_table_of_that_name(tmp_path, ending):
    """A limit on the size of files stands for the full disk: to the writer both are an OSError."""
    path = tmp_path / f"t.{ending}"
    code = f"""
import resource, sys
from fer_pll.io.tables import TableWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
table = TableWriter({str(path)!r}, {{"file": str, "face": int}})
try:
    for i in range(9000):
        table.write({{"file": f"{{i * 7919 % 104729}}", "face": i}})
    table.close(True)
except OSError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert f"t.partial.{ending}" in run.stdout and "no whole table" in run.stdout, run.stderr
    assert not path.exists()


def test_a_table_replaces_another_only_when_whole(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    table = TableWriter(path, {"file": str}, overwrite=True)
    table.write({"file": "new"})
    assert path.read_text() == "old"
    assert table.close(whole=True) == path
    assert path.read_bytes() == b"file\r\nnew\r\n"


def test_an_empty_parquet_table_keeps_its_columns(tmp_path):
    table = TableWriter(tmp_path / "t.parquet", {"file": str, "score": float})
    table.close(whole=True)
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").column_names == ["file", "score"]


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(model, photos):
    """Images are let go once they are answered."""
    import gc
    import weakref

    from fer_pll import load_recognizer
    from fer_pll.inference.predict import _as_crop, _shown
    from fer_pll.inference.recognizing import Classifier, recognize_faces

    classifier = Classifier(CLASSES, load_recognizer(model).probabilities)
    kept: list[weakref.ref] = []
    images = _shown([photos / "none.png"] * 30, every=1)
    for shown, _ in recognize_faces(images, _as_crop(False), classifier, batch_size=2):
        kept.append(weakref.ref(shown.image))
        del shown
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 4
    assert len(kept) == 30


def test_help_teaches(capsys):
    assert predict("--help") == 0
    output = capsys.readouterr().out
    assert "--cropped" in output and "examples:" in output and "fer-pll[faces]" in output
