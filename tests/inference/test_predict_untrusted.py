"""`fer-pll predict` on what strangers send: nothing is lost, nothing is believed, one bad thing costs one row."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fer_pll_cli
from fer_pll import FerPllForImageClassification
from fer_pll.inference.predict import predict
from fer_pll.io.tables import TableWriter
from tiny import tiny_config, tiny_processor


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    FerPllForImageClassification(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def crops(tmp_path) -> Path:
    (tmp_path / "crops").mkdir()
    return tmp_path / "crops"


def save(path: Path, shade: int = 0, size: tuple[int, int] = (16, 16), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 100, 100)).save(path, **options)
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "x/a.png", "a-2.png"),
        ("a-2.png", "a.png", "x/a.png"),
        ("a.png", "a.bmp", "a.webp", "a-2.png", "a-3.png", "x/a-2.png"),
        ("A.png", "x/a.png"),
        ("x" * 240 + "1.png", "x" * 240 + "2.png"),
        ("é" * 120 + "1.png", "é" * 120 + "2.png"),
        ("x" * 195 + "-2.png", "x" * 240 + ".png", "y/" + "x" * 240 + ".png"),
    ],
)
def test_each_marked_image_has_a_file(names, model, crops, tmp_path):
    shades = []
    for number, name in enumerate(names):
        save(crops / name, 20 + 40 * number)
        shades.append(20 + 40 * number)
    assert predict([str(crops)], model, str(tmp_path / "t.jsonl"), str(tmp_path / "marked"), cropped=True)
    files = list((tmp_path / "marked").iterdir())
    assert len(files) == len(names) == len({file.name.casefold() for file in files})
    found = sorted(int(np.asarray(Image.open(file))[-1, -1, 0]) for file in files)
    assert np.abs(np.array(found) - shades).max() < 15  # every image is there, none twice
    assert not any(row["problem"] for row in rows_of(tmp_path / "t.jsonl"))


def test_an_image_that_jpeg_cannot_hold_costs_one_row(model, crops, tmp_path, capsys):
    save(crops / "a.png")
    Image.new("L", (66_000, 3)).save(crops / "b.png")
    save(crops / "c.png")
    argv = [str(crops), "--model", model, "--cropped", "--save-pictures", str(tmp_path / "marked")]
    assert fer_pll_cli.main(["predict", *argv, "--out", str(tmp_path / "t.jsonl")]) == 0
    rows = rows_of(tmp_path / "t.jsonl")
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert all(row["expression"] for row in rows)
    assert [row["problem"] is None for row in rows] == [True, False, True]
    assert "cannot be saved" in rows[1]["problem"] and "66000" in rows[1]["problem"]
    assert sorted(path.name for path in (tmp_path / "marked").iterdir()) == ["a.jpg", "c.jpg"]
    assert "3 images in 3 files: 3 faces, 1 not saved" in capsys.readouterr().out


def test_what_a_file_says_of_its_maker_is_not_saved(model, crops, tmp_path):
    image = Image.new("RGB", (32, 32), "gray")
    exif = Image.Exif()
    exif[0x010F] = "SECRET-maker"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    options = {"exif": exif, "comment": b"SECRET-comment", "xmp": b"<x>SECRET-xmp</x>", "icc_profile": b"SECRET-icc"}
    image.save(crops / "a.jpg", **options)
    assert (crops / "a.jpg").read_bytes().count(b"SECRET") == 4
    assert predict([str(crops)], model, save_pictures=str(tmp_path / "marked"), cropped=True)
    content = (tmp_path / "marked" / "a.jpg").read_bytes()
    assert b"SECRET" not in content and b"Exif" not in content
    with Image.open(io.BytesIO(content)) as saved:
        assert not saved.getexif() and not {"comment", "xmp", "icc_profile"} & set(saved.info)


FORMULAS = ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\t=1.png", "\r=1.png", "=cmd|'calc'!A0.png"]


def test_formulas_are_text_by_choice(model, crops, tmp_path, monkeypatch):
    monkeypatch.chdir(crops)
    for name in (*FORMULAS, "plain.png"):
        save(Path(name))
    names = {}
    for safe in ([], ["--safe-csv"]):
        argv = ["./" * 0 + name for name in ["*.png"]]
        out = tmp_path / f"t{len(safe)}.csv"
        assert fer_pll_cli.main(["predict", *argv, "--model", model, "--cropped", "--out", str(out), *safe]) == 0
        with out.open(newline="", encoding="utf-8") as file:
            names[bool(safe)] = [row["file"] for row in csv.DictReader(file)]
    assert sorted(names[False]) == sorted([*FORMULAS, "plain.png"])
    assert sorted(names[True]) == sorted([*(f"'{name}" for name in FORMULAS), "plain.png"])


def test_only_text_in_csv_gets_an_apostrophe(tmp_path):
    for ending in ("csv", "jsonl"):
        table = TableWriter(tmp_path / f"t.{ending}", {"=a": str, "number": float}, safe_csv=True)
        table.write({"=a": "=b", "number": -1.5})
        table.write({"=a": None, "number": None})
        table.close(True)
    assert (tmp_path / "t.csv").read_text().split() == ["'=a,number", "'=b,-1.5", ","]
    assert rows_of(tmp_path / "t.jsonl")[0] == {"=a": "=b", "number": -1.5}


def test_a_name_forges_no_line_on_the_terminal(model, crops, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(crops)
    forged = "new\nline: face 0: happiness 100%.png"
    title = "\x1b]0;owned\x07\x9b31m\u202egnp.png"
    save(Path(forged))
    save(Path(title))
    Path("broken\x1b[2J.png").write_text("text")
    marked = str(tmp_path / "a\x1b[2Jb")
    assert fer_pll_cli.main(["predict", ".", "--model", model, "--cropped", "--save-pictures", marked]) == 0
    output = capsys.readouterr().out
    assert all(line.isprintable() for line in output.splitlines())
    assert len(output.splitlines()) == 3 + 2 + 1  # a line each, the summary, and where the images are
    assert "new\\nline: face 0" in output and "\\x1b]0;owned\\x07" in output and "\\u202e" in output
    assert fer_pll_cli.main(["predict", "no\x1b[2J\x07.png", "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and "no\\x1b[2J" in line


@pytest.mark.parametrize("number", [1, 2])
def test_one_image_is_no_images(number, model, crops, capsys):
    for each in range(number):
        save(crops / f"{each}.png")
    assert fer_pll_cli.main(["predict", str(crops), "--model", model, "--cropped"]) == 0
    s = "s" * (number - 1)
    assert f"{number} image{s} in {number} file{s}: {number} face{s}" in capsys.readouterr().out.splitlines()


WRONG = {
    "ending": (["--out", "t.xlsx"], "t.xlsx: the ending"),
    "table that is there": (["--out", "there.csv"], "there.csv is there already"),
    "folder that is not there": (["--out", "no/t.csv"], "no/t.csv: there is no folder no"),
    "folder for images that is a file": (["--save-pictures", "there.csv"], "there.csv is a file"),
    "detector": (["--detector", "mtcnn"], "'mtcnn' is not known"),
    "crop": (["--crop", "nope"], "nope: there is no such folder"),
    "model": (["--model", "nope"], "nope: there is no such folder"),
    "source": (["no.png"], "no.png: there is no such file"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_before_a_model_is_loaded(wrong, crops, tmp_path, monkeypatch, capsys):
    """`transformers` must not even be looked at; the default model would load."""
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    save(crops / "a.png")
    argv, message = WRONG[wrong]

    def load(*_args, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fer_pll.io.pretrained.load_model", load)
    monkeypatch.setattr("fer_pll.inference.onnx_runtime.OnnxClassifier.__init__", load)
    assert fer_pll_cli.main(["predict", str(crops), *argv]) == 1
    assert message in capsys.readouterr().err
    assert Path("there.csv").read_text() == "mine" and not list(tmp_path.glob("*.partial*"))


@pytest.mark.skipif(sys.platform == "win32" or not Path("/proc").is_dir(), reason="needs /proc")
def test_a_folder_that_takes_no_file_is_said_with_the_name_that_was_given(crops, model, capsys):
    save(crops / "a.png")
    assert fer_pll_cli.main(["predict", str(crops), "--model", model, "--cropped", "--out", "/proc/f.csv"]) == 1
    error = capsys.readouterr().err
    assert "/proc/f.csv" in error and "partial" not in error


def test_nothing_of_transformers_is_heard(model, crops, tmp_path, capfd):
    save(crops / "a.png")
    capfd.readouterr()
    assert fer_pll_cli.main(["predict", str(crops), "--model", model, "--cropped"]) == 0
    output = capfd.readouterr()
    assert output.err == "" and len(output.out.splitlines()) == 3, output
    assert os.fspath(crops) in output.out
