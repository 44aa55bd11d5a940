"""Data of strangers: nothing outside of their folder is read, nothing stays in that was not asked for, and one bad
thing costs one row."""

import csv
import http.server
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import threading
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from PIL import ExifTags, PngImagePlugin
from PIL import Image as PILImage

from fer_pll.commands.prepare import main
from fer_pll.data.dataset import REPORT, load_dataset
from fer_pll.data.prepare import prepare
from fer_pll.io.errors import DataError
from fer_pll.io.images import pixels_only
from tiny import make_dataset

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def image_file(path, number=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (8, 8), number).save(path)
    return path


@pytest.fixture
def web():
    """A server on this machine; the list has the paths that it was asked for."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def report_of(folder):
    with (folder / REPORT).open(newline="", encoding="utf-8") as file:
        return {row["row_id"]: row["reason"] for row in csv.DictReader(file)}


# ---- images of rows


OUTSIDE = {
    "absolute": "{tmp}/private.png",
    "up": "../private.png",
    "up and down": "source/../../private.png",
    "address": "{web}/ssrf.png",
    "file address": "file://{tmp}/private.png",
    "chained": "simplecache::{web}/ssrf.png",
    "nul": "a\0.png",
    "long": "a" * 5000,
}
"""Names of images that do not lie in a data set."""


def rename_last_image(folder, name):
    """In an Arrow file that `datasets` saved: the last row names an image instead of holding one."""
    (arrow,) = folder.glob("*.arrow")
    with pa.ipc.open_stream(arrow.read_bytes()) as reader:
        table = reader.read_all().combine_chunks()
    images = [*table["image"].to_pylist()[:-1], {"bytes": None, "path": name}]
    place, field = table.column_names.index("image"), table.schema.field("image")
    table = table.set_column(place, field, pa.array(images, field.type))
    with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return table


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_a_data_set_reads_no_image_outside_of_its_folder(tmp_path, monkeypatch, web, kind, form):
    address, asked = web
    monkeypatch.chdir(tmp_path)
    own = {"bytes": image_file(tmp_path / "private.png").read_bytes(), "path": "own.png"}
    features = Features({"image": Image(), "label": Value("string")})
    rows = Dataset.from_dict({"image": [own, own], "label": ["happy", "sad"]}, features)
    rows.save_to_disk(tmp_path / "source")
    table = rename_last_image(tmp_path / "source", OUTSIDE[kind].format(tmp=tmp_path, web=address))
    if form == "parquet":
        shutil.rmtree(tmp_path / "source")
        (tmp_path / "source").mkdir()
        pq.write_table(table, tmp_path / "source" / "train.parquet")
    options = {"validation_share": 0, "num_proc": 1}
    dataset = prepare("dataset", tmp_path / "source", out=tmp_path / "set", **options)
    assert dataset["train"]["row_id"][:] == ["train[0]"] and asked == []
    reason = report_of(tmp_path / "set")["train[1]"]
    assert "which is no file of the data set" in reason or "no such file" in reason or "cannot be opened" in reason


@pytest.mark.parametrize("option", ["votes", "candidates"])
def test_columns_of_votes_are_not_opened_as_images(tmp_path, web, option):
    address, asked = web
    cell = {"bytes": image_file(tmp_path / "a.png").read_bytes(), "path": None}
    rows = {"image": [cell], option: [[{"bytes": None, "path": f"{address}/ssrf.png"}]]}
    table = pa.table(rows)
    features = Features({"image": Image(), option: List(Image())})
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    (tmp_path / "source").mkdir()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "source" / "train.parquet")
    with pytest.raises(DataError, match=f"--{option} needs"):
        main(["dataset", str(tmp_path / "source"), "--out", str(tmp_path / "set"), f"--{option}", option])
    assert asked == []


@pytest.mark.parametrize(
    "pattern",
    [
        "{web}/train.parquet",
        "../elsewhere/*.parquet",
        "{tmp}/elsewhere/train.parquet",
        "data/../../elsewhere/train.parquet",
        "zip://train.parquet::{web}/a.zip",
        "hf://datasets/a/b/train.parquet",
        "~/train.parquet",
    ],
)
@pytest.mark.parametrize("form", ["text", "list", "splits", "split list", "data_dir"])
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_a_card_names_files_of_its_folder_only(tmp_path, web, pattern, form, file):
    address, asked = web
    source = tmp_path / "source"
    for folder in (source, tmp_path / "elsewhere"):
        folder.mkdir()
        rows = {"image": [image_file(folder / "a.png").read_bytes()], "label": ["happy"]}
        Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
        (folder / "a.png").unlink()
    named = pattern.format(web=address, tmp=tmp_path)
    value = {
        "text": f"data_files: {json.dumps(named)}",
        "list": f"data_files: [train.parquet, {json.dumps(named)}]",
        "splits": f"data_files: [{{split: train, path: {json.dumps(named)}}}]",
        "split list": f"data_files: [{{split: train, path: [train.parquet, {json.dumps(named)}]}}]",
        "data_dir": f"data_dir: {json.dumps(named)}",
    }[form]
    configs = f"configs:\n- config_name: default\n  {value}\n"
    (source / file).write_text(f"---\n{configs}---\n" if file == "README.md" else configs)
    with pytest.raises(DataError, match="which does not lie in the folder") as error:
        main(["dataset", str(source), "--out", str(tmp_path / "set")])
    assert file in str(error.value) and asked == []


def test_a_card_that_names_its_own_files_is_read(tmp_path):
    source = tmp_path / "source"
    rows = {"image": [image_file(tmp_path / "a.png").read_bytes()] * 4, "label": ["happy"] * 4}
    (source / "some").mkdir(parents=True)
    Dataset.from_dict(rows).to_parquet(source / "some" / "rows-1.parquet")
    data_files = "data_files: [{split: train, path: some/rows-*.parquet}]"
    (source / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {data_files}\n---\n# Faces\n---\n")
    options = {"num_proc": 1, "validation_share": 0, "drop_copies": "none"}
    dataset = prepare("dataset", source, out=tmp_path / "set", **options)
    assert len(dataset["train"]) == 4


@pytest.mark.parametrize(
    "yaml",
    ["configs: [", "configs: 5", "configs:\n- 5", "- a", "configs: !!python/object/apply:os.getcwd []", "[" * 5000],
)
def test_a_malformed_card_is_no_traceback(tmp_path, yaml):
    source = tmp_path / "source"
    rows = {"image": [image_file(source / "a.png").read_bytes()], "label": ["happy"]}
    Dataset.from_dict(rows).to_parquet(source / "train.parquet")
    (source / "a.png").unlink()
    (source / "README.md").write_text(f"---\n{yaml}\n---\n")
    try:
        main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"])
    except DataError as error:
        assert str(source) in str(error)


@pytest.mark.parametrize("name", ["source.py", "loader.py"])
def test_no_script_of_a_data_set_is_run(tmp_path, name):
    source = tmp_path / "source"
    rows = {"image": [image_file(source / "a.png").read_bytes()], "label": ["happy"]}
    Dataset.from_dict(rows).to_parquet(source / "train.parquet")
    (source / "a.png").unlink()
    (source / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    try:
        main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1", "--validation-share", "0"])
    except DataError as error:
        assert "is not a data set that can be opened" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", ["pkl", "pth", "pyd", "npy", "json", "txt"])
def test_a_web_data_set_with_other_files_is_no_traceback(tmp_path, ending):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "train.tar", "w") as archive:
        for number in range(3):
            contents = {"png": image_file(tmp_path / "a.png").read_bytes(), ending: pickle.dumps(Evil())}
            for kind, data in contents.items():
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError):
        main(["dataset", str(source), "--out", str(tmp_path / "set"), "--num-proc", "1"])
    assert not (tmp_path / "ran").exists()


# ---- prepared sets


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_prepared_set_holds_its_images(tmp_path, web, kind):
    address, asked = web
    image_file(tmp_path / "private.png")
    DatasetDict(train=make_dataset(3)).save_to_disk(tmp_path / "set")
    assert len(load_dataset(tmp_path / "set", "train")) == 3
    rename_last_image(tmp_path / "set" / "train", OUTSIDE[kind].format(tmp=tmp_path, web=address))
    with pytest.raises(DataError, match="1 rows of split 'train' hold no image, the first is"):
        load_dataset(tmp_path / "set")
    assert asked == []


@pytest.mark.parametrize("form", ["../elsewhere.arrow", "{tmp}/elsewhere.arrow"])
@pytest.mark.parametrize("command", ["load", "prepare"])
def test_a_saved_set_reads_its_own_files_only(tmp_path, form, command):
    DatasetDict(train=make_dataset(3)).save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set" / "train").glob("*.arrow")
    arrow.rename(tmp_path / "elsewhere.arrow")
    state = json.loads((tmp_path / "set" / "train" / "state.json").read_text())
    name = form.format(tmp=tmp_path) if "tmp" in form else "../../elsewhere.arrow"
    state["_data_files"] = [{"filename": name}]
    (tmp_path / "set" / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="which lies outside of it"):
        if command == "load":
            load_dataset(tmp_path / "set")
        else:
            main(["dataset", str(tmp_path / "set"), "--out", str(tmp_path / "other")])


@pytest.mark.parametrize("feature", [Value("string"), Image(decode=False)], ids=["text", "not decoded"])
def test_a_column_that_does_not_hold_images_is_refused(tmp_path, feature):
    names = {"image": Value("string") if feature == Value("string") else feature, "row_id": Value("string")}
    values = ["http://127.0.0.1:1/a.png"] if feature == Value("string") else [{"bytes": b"a", "path": None}]
    names["label"] = ClassLabel(names=["x"])
    dataset = Dataset.from_dict({"image": values, "row_id": ["a"], "label": [0]}, Features(names))
    DatasetDict(train=dataset).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="which does not hold images"):
        load_dataset(tmp_path / "set")


def test_no_prepared_set_starts_ghostscript(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail(f"started {args}"))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: pytest.fail(f"started {args}"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"
    rows = {"image": [{"bytes": eps, "path": None}], "row_id": ["a"], "label": [0]}
    features = Features({"image": Image(), "row_id": Value("string"), "label": ClassLabel(names=["x"])})
    DatasetDict(train=Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"set: an image of split 'train': not an image in a format that is read"):
        load_dataset(tmp_path / "set", "train")[0]


def png(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    PILImage.new("1", size).save(stream, "PNG")
    return stream.getvalue()


BAD_IMAGES = {
    "empty": (b"", "cannot be read|not an image"),
    "text": (b"<!DOCTYPE html>", "not an image"),
    "cut off": (png((64, 64))[:-30], "truncated or damaged"),
    "a bomb": (png((9000, 9000)), "more than 50,000,000 pixels"),
}


@pytest.mark.parametrize("how", ["row", "batch", "iteration", "one split"])
@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_a_bad_image_in_a_prepared_set_is_an_error_that_names_the_set(tmp_path, bad, how):
    contents, message = BAD_IMAGES[bad]
    rows = {"image": [{"bytes": each, "path": None} for each in (png((8, 8)), contents)]}
    features = Features({"image": Image(), "row_id": Value("string"), "label": ClassLabel(names=["x"])})
    dataset = Dataset.from_dict(rows | {"row_id": ["a", "b"], "label": [0, 0]}, features)
    DatasetDict(train=dataset).save_to_disk(tmp_path / "set")
    loaded = load_dataset(tmp_path / "set", "train") if how == "one split" else load_dataset(tmp_path / "set")["train"]
    assert loaded[0]["image"].size == (8, 8) and loaded[0]["image"].mode == "1"
    with pytest.raises(DataError, match=rf"set: an image of split 'train': .*({message}).*: prepare the set again"):
        {
            "row": lambda: loaded[1],
            "batch": lambda: loaded[:],
            "iteration": lambda: list(loaded),
            "one split": lambda: loaded.select([1]).with_format("torch")[0],
        }[how]()


def test_a_loaded_set_is_saved_and_joined_like_any_other(tmp_path):
    made = make_dataset(3)
    DatasetDict(train=made).save_to_disk(tmp_path / "set")
    loaded = load_dataset(tmp_path / "set", "train")
    assert loaded.features == made.features and loaded.features["image"] == Image() == loaded.features["image"]
    assert loaded.features["image"] != Image(decode=False)
    joined = concatenate_datasets([made, loaded, load_dataset(tmp_path / "set", "train")])
    assert [image.tobytes() for image in joined["image"]] == [image.tobytes() for image in made["image"]] * 3
    loaded.save_to_disk(tmp_path / "again")
    text = (tmp_path / "again" / "dataset_info.json").read_text()
    assert json.loads(text)["features"]["image"] == {"_type": "Image"} and str(tmp_path) not in text


# ---- links


@pytest.mark.parametrize("source", ["folder", "votes", "rafdb", "affectnet"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_linked_file_that_leads_out_is_read_only_when_the_user_says_so(tmp_path, source, follow):
    root = tmp_path / "source"
    outside = image_file(tmp_path / "private" / "x.jpg")
    if source == "folder":
        own = image_file(root / "happy" / "a.jpg")
        image_file(root / "sad" / "b.jpg")
        link, given = root / "happy" / "link.jpg", root
    elif source == "votes":
        own, link, given = image_file(root / "a.jpg"), root / "link.jpg", root / "votes.csv"
        given.write_text("path,happy,sad\na.jpg,1,0\nlink.jpg,0,1\ninner.jpg,1,0\n")
    elif source == "rafdb":
        own, link, given = image_file(root / "train" / "1" / "a.jpg"), root / "train" / "1" / "link.jpg", root
        image_file(root / "test" / "1" / "b.jpg")
    else:
        own, given = image_file(root / "Manually_Annotated_Images" / "a.jpg"), root
        link = own.with_name("link.jpg")
        points = ";".join(map(str, range(136)))
        rows = [f"{name},0,0,8,8,{points},0\n" for name in ("a.jpg", "link.jpg", "inner.jpg")]
        head = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression\n"
        (root / "training.csv").write_text(head + "".join(rows))
    link.symlink_to(outside)
    own.with_name("inner.jpg").symlink_to(own)  # within the folder
    options = {"num_proc": 1, "validation_share": 0, "drop_copies": "none", "follow_links": follow}
    dataset = prepare(source, given, out=tmp_path / "set", **options)
    assert len(dataset["train"]) == {"folder": 3, "votes": 2, "rafdb": 2, "affectnet": 2}[source] + follow
    if not follow:
        (reason,) = report_of(tmp_path / "set").values()
        assert "link.jpg: a link that leads out of" in reason and "--follow-links" in reason


# ---- names


def test_a_name_that_no_file_can_have_costs_one_row(tmp_path):
    image_file(tmp_path / "a.png")
    names = [
        "a.png",
        "x" * 300 + ".png",
        "y/" * 3000 + ".png",
        "nul\0.png",
        "\ud800.png",
        "gone\n.png",
        "\x1b]0;a.png",
    ]
    with (tmp_path / "votes.jsonl").open("w") as file:
        file.writelines(json.dumps({"path": name, "happy": 1, "sad": 0}) + "\n" for name in names)
    said = []
    options = {"validation_share": 0, "num_proc": 1, "report": said.append}
    dataset = prepare("votes", tmp_path / "votes.jsonl", out=tmp_path / "set", **options)
    assert dataset["train"]["row_id"][:] == ["votes.jsonl:1"]
    reasons = report_of(tmp_path / "set")
    assert list(reasons) == [f"votes.jsonl:{line}" for line in range(2, 8)]
    assert all(reason.isprintable() and len(reason) < 7000 for reason in reasons.values())
    assert all(line.isprintable() for line in said)


@pytest.mark.parametrize("broken", [False, True])
def test_a_file_name_that_is_not_utf_8_costs_one_row(tmp_path, broken):
    for name in ("happy/a.png", "sad/b.png"):
        image_file(tmp_path / "in" / name)
    bad = os.fsencode(tmp_path / "in" / "happy") + b"/caf\xe9.png"
    with open(bad, "wb") as file:  # noqa: PTH123
        file.write(b"broken" if broken else (tmp_path / "in" / "sad" / "b.png").read_bytes())
    options = ["--num-proc", "1", "--validation-share", "0", "--drop-copies", "none"]
    main(["folder", str(tmp_path / "in"), "--out", str(tmp_path / "set"), *options])
    assert load_dataset(tmp_path / "set", "train")["row_id"][:] == ["happy/a.png", "sad/b.png"]
    ((row_id, reason),) = report_of(tmp_path / "set").items()
    assert row_id == "happy/caf\\udce9.png" and "its name is not UTF-8" in reason


@pytest.mark.parametrize("size", [(65_501, 3), (3, 65_501)])
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_an_image_too_wide_for_a_jpeg_file_costs_one_row(tmp_path, size, mode):
    image_file(tmp_path / "a.png")
    PILImage.new(mode, size).save(tmp_path / "wide.tif")
    (tmp_path / "votes.csv").write_text("path,happy\na.png,1\nwide.tif,1\n")
    dataset = prepare("votes", tmp_path / "votes.csv", out=tmp_path / "set", validation_share=0, num_proc=1)
    assert len(dataset["train"]) == 1
    assert "but a JPEG file holds 65,500 to a side" in report_of(tmp_path / "set")["votes.csv:3"]


# ---- what files hold beside their pixels


def secrets(kind):
    """An image file with everything that tells more than its pixels, and the words in it."""
    exif = PILImage.Exif()
    exif[ExifTags.Base.Make] = "SECRET camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 12.0, 0.0)
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] = "SECRET place"
    file = io.BytesIO()
    image = PILImage.fromarray(NOISE if kind != "gray" else NOISE[..., 0])
    if kind in ("png", "gray"):
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "SECRET text")
        text.add_text("Long", "SECRET " * 99, zip=True)
        text.add_itxt("XML:com.adobe.xmp", "<SECRET/>")
        text.add(b"prVt", b"SECRET chunk")
        text.add(b"tIME", bytes(7), after_idat=True)
        image.save(file, "PNG", exif=exif, pnginfo=text, icc_profile=b"SECRET profile")
        return file.getvalue() + b"SECRET tail"
    options = (
        {"progressive": True} if kind == "progressive" else {"restart_marker_rows": 1} if kind == "restart" else {}
    )
    image = image.convert("L") if kind == "gray jpeg" else image
    image.save(
        file, "JPEG", exif=exif, comment="SECRET comment", xmp=b"<SECRET/>", icc_profile=b"SECRET profile", **options
    )
    data = file.getvalue()
    jfif = b"\xff\xe0" + (16 + 3).to_bytes(2, "big") + b"JFIF\0\1\1\0\0\1\0\1\1\1SEC"  # with a thumbnail
    more = b"\xff\xed" + (2 + 14).to_bytes(2, "big") + b"SECRET segment" + b"\xff\xff\xfe\0\x08SECRET"
    start = data.index(b"\xff\xe1") if data[2:4] == b"\xff\xe0" else 2
    return data[:2] + jfif + data[start:-2][:0] + more + data[start:] + b"SECRET tail"


@pytest.mark.parametrize("kind", ["png", "gray", "jpeg", "gray jpeg", "progressive", "restart"])
def test_only_pixels_go_into_a_prepared_set(tmp_path, kind):
    ending = "png" if kind in ("png", "gray") else "jpg"
    data = secrets(kind)
    assert b"SECRET" in data
    (tmp_path / f"a.{ending}").write_bytes(data)
    (tmp_path / "votes.csv").write_text(f"path,happy\na.{ending},1\n")
    dataset = prepare("votes", tmp_path / "votes.csv", out=tmp_path / "set", validation_share=0, num_proc=1)["train"]
    stored = dataset.cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    assert b"SEC" not in stored and b"Exif" not in stored and len(stored) < len(data)
    assert stored == pixels_only(data) == pixels_only(stored)
    with PILImage.open(io.BytesIO(data)) as before, PILImage.open(io.BytesIO(stored)) as after:
        assert before.mode == after.mode and before.format == after.format
        assert np.array_equal(np.asarray(before), np.asarray(after))  # bit for bit
        assert not after.getexif() and set(after.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"} | {
            "progressive", "progression",
        }  # fmt: skip
    for file in (tmp_path / "set").rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "avif"])
def test_images_that_are_stored_anew_hold_pixels_only(tmp_path, ending):
    exif = PILImage.Exif()
    exif[ExifTags.Base.Make] = "SECRET camera"
    exif[ExifTags.Base.Orientation] = 6
    options = {} if ending == "gif" else {"exif": exif}
    options |= {"comment": "SECRET comment"} if ending in ("jpg", "gif") else {}
    PILImage.fromarray(NOISE).save(tmp_path / f"a.{ending}", **options)
    assert b"SECRET" in (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / "votes.csv").write_text(f"path,happy\na.{ending},1\n")
    dataset = prepare("votes", tmp_path / "votes.csv", out=tmp_path / "set", validation_share=0, num_proc=1)["train"]
    stored = dataset.cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    assert b"SECRET" not in stored and b"Exif" not in stored
    assert dataset[0]["image"].size == ((56, 40) if ending == "gif" else (40, 56))  # upright


@pytest.mark.parametrize("colors", ["rgb", "keep 4:4:4", "adobe"])
def test_the_colors_of_a_jpeg_file_stay_without_its_segments(colors):
    """Adobe's segment says how the colors are stored; without it others would come out."""
    file = io.BytesIO()
    options = {"keep_rgb": True} if colors == "rgb" else {"subsampling": 0}
    PILImage.fromarray(NOISE).save(file, "JPEG", quality=90, **options)
    data = file.getvalue()
    if colors == "adobe":
        end = 4 + int.from_bytes(data[4:6], "big")
        data = data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + data[end:]
    kept = pixels_only(data)
    with PILImage.open(io.BytesIO(data)) as before, PILImage.open(io.BytesIO(kept)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_damaged_files_are_never_kept_as_they_are_and_never_an_error():
    rng = np.random.default_rng(1)
    for kind in ("png", "jpeg", "progressive"):
        whole = secrets(kind)
        for _ in range(400):
            data = bytearray(whole[: rng.integers(2, len(whole))] if rng.random() < 0.5 else whole)
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                data[place] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kept = pixels_only(bytes(data))
            assert kept is None or len(kept) <= len(data)
