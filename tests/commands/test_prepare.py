"""`fer-pll prepare` and `fer_pll.prepare`."""

import inspect
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import fer_pll
from fer_pll.commands.prepare import main
from fer_pll.data import image_writer
from fer_pll.data.dataset import COPIES, REPORT, load_dataset
from fer_pll.data.image_writer import ImageRecord
from fer_pll.data.prepare import prepare
from fer_pll.data.provenance import Provenance
from fer_pll.data.sources import SOURCES, Opened, Source
from fer_pll.io.errors import DataError
from siblings import siblings

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, votes = "emotion,pixels,Usage\n", HEADER
    # one image on two training rows; one row without a face
    for usage, seed, counts in (
        ("Training", 0, "0,10,0,0,0,0,0,0,0,0"),
        ("Training", 0, "0,10,0,0,0,0,0,0,0,0"),
        ("Training", 1, "3,2,0,0,2,1,1,1,0,0"),
        ("Training", 2, "0,0,0,0,0,0,0,0,0,10"),
        ("PublicTest", 3, "0,0,0,9,0,0,0,0,1,0"),
    ):
        pixels = np.random.default_rng(seed).integers(0, 256, 48 * 48)
        images += f"{rng.integers(7)},{' '.join(map(str, pixels))},{usage}\n"
        votes += f"{usage},fer.png,{counts}\n"
    (folder / "fer2013.csv").write_text(images)
    (folder / "fer2013new.csv").write_text(votes)
    return folder


def test_as_a_process_of_its_own(source, tmp_path):
    command = [sys.executable, "-c", "from fer_pll.commands.prepare import main; main()"]
    command += ["ferplus", str(source), "--out", "data/set"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "examples/s" not in run.stderr  # no progress bars in a log file
    assert len(load_dataset(tmp_path / "data" / "set", "train")) == 2
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["train", "validation"] in lines
    assert ["rows", "2", "1"] in lines
    assert ["neutral", "1", "0"] in lines
    assert ["happiness", "1", "0"] in lines
    assert ["sadness", "0", "1"] in lines
    assert ["in", "majority", "1", "1"] in lines
    assert "2 of 4 rows; dropped: 1 not in protocol all" in run.stdout
    assert "1 copy of an earlier training image" in run.stdout
    assert run.stdout.endswith(
        "saved in data/set\nnext: fer-pll finetune --data data/set --output_dir runs/finetune\n"
    )


def test_options_reach_the_loader(source, tmp_path):
    main(["ferplus", str(source), "--out", str(tmp_path / "a"), "--drop-copies", "none"])
    assert len(load_dataset(tmp_path / "a", "train")) == 3
    main(["ferplus", str(source), "--out", str(tmp_path / "b"), "--protocol", "majority"])
    assert load_dataset(tmp_path / "b", "train")["row_id"][:] == ["fer2013new.csv:2"]
    main(["ferplus", str(source), "--out", str(tmp_path / "c"), "--draw-votes", "2", "--draw-seed", "5"])
    drawn = load_dataset(tmp_path / "c")
    assert all(sum(votes) == 2 for votes in drawn["train"]["votes"]) and "true_label" in drawn["train"].column_names
    assert all(sum(votes) > 2 for votes in drawn["validation"]["votes"])  # to be judged by all of them
    with pytest.raises(DataError, match="--draw-votes 0: give a whole number from 1 up"):
        main(["ferplus", str(source), "--out", str(tmp_path / "d"), "--draw-votes", "0"])
    assert not (tmp_path / "d").exists()


def test_synthetic_needs_no_source(tmp_path, capsys):
    sizes = ["--num-train", "5", "--num-validation", "3", "--num-test", "2", "--image-size", "32", "--seed", "7"]
    main(["synthetic", "--out", str(tmp_path / "a"), *sizes])
    main(["synthetic", "--out", str(tmp_path / "b"), *sizes])
    assert ["rows", "5", "3", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    dataset, again = load_dataset(tmp_path / "a"), load_dataset(tmp_path / "b")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 5, "validation": 3, "test": 2}
    assert dataset["train"][0]["image"].size == (32, 32)
    assert dataset["train"][:] == again["train"][:]


def test_another_run_is_kept_unless_overwrite(source, tmp_path):
    out = tmp_path / "set"
    main(["ferplus", str(source), "--out", str(out), "--drop-copies", "none"])
    with pytest.raises(DataError, match="already holds"):
        main(["ferplus", str(source), "--out", str(out)])
    assert len(load_dataset(out, "train")) == 3
    main(["ferplus", str(source), "--out", str(out), "--overwrite"])
    assert len(load_dataset(out, "train")) == 2


def test_bad_input_keeps_the_former_set_and_leaves_nothing(source, tmp_path):
    out = tmp_path / "out" / "set"
    main(["ferplus", str(source), "--out", str(out)])
    whole = (source / "fer2013.csv").read_text()
    (source / "fer2013.csv").write_text(whole[:-30])
    with pytest.raises(DataError, match=r"fer2013.csv:6 has 2 columns where 3 should be") as error:
        main(["ferplus", str(source), "--out", str(out), "--overwrite"])
    assert len(str(error.value).splitlines()) == 1
    assert len(load_dataset(out, "train")) == 2
    assert [entry.name for entry in out.parent.iterdir()] == ["set"]
    with pytest.raises(DataError):
        main(["ferplus", str(source), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ferplus", "absent", "--out", "set"],
        ["synthetic", "--num-train", "-1", "--out", "set"],
        ["synthetic", "--image-size", "0", "--out", "set"],
    ],
)
def test_errors_are_data_errors_and_leave_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        main(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [[], ["celeba", "x", "--out", "y"], ["ferplus", "x"], ["synthetic", "--out", "y", "--protocol", "all"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_help_teaches_and_lists_every_source(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "fer-pll prepare ferplus path/to/ferplus --out data/ferplus" in said
    for name, source in SOURCES.items():
        assert name in said and source.summary in " ".join(said.split())
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "--hold-out" in capsys.readouterr().out


def test_the_function_takes_the_options_of_the_command(source, tmp_path):
    main(["ferplus", str(source), "--out", str(tmp_path / "a"), "--protocol", "majority", "--drop-copies", "none"])
    said = []
    options = {"protocol": "majority", "drop_copies": "none"}
    dataset = fer_pll.prepare("ferplus", source, out=tmp_path / "b", report=said.append, **options)
    by_command = fer_pll.load_dataset(tmp_path / "a")
    assert {split: rows[:] for split, rows in dataset.items()} == {s: rows[:] for s, rows in by_command.items()}
    assert len(dataset["train"]) == 2
    assert said == [
        "read as FER+ (images of fer2013.csv, votes of fer2013new.csv)",
        f"1 copies of images among all splits, see {tmp_path / 'b' / COPIES}",
    ]
    drawn = fer_pll.prepare("synthetic", out=tmp_path / "c", num_train=3, num_validation=0, num_test=0)
    assert list(drawn) == ["train"] and drawn["train"][0]["image"].size == (48, 48)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("celeba", {}, "there is no data source 'celeba': choose ferplus, fer2013, rafdb, affectnet"),
        ("ferplus", {}, "ferplus needs 'source': folder with fer2013.csv"),
        ("ferplus", {"source": "x", "seed": 1}, "ferplus has no option 'seed'; it has source, protocol"),
        ("ferplus", {"source": "x", "protocol": "most"}, "protocol='most' is not known: choose all or majority"),
        ("synthetic", {"source": "x"}, "synthetic has no option 'source'"),
        ("synthetic", {"num_proc": 0}, "--num-proc 0: give a whole number from 1 up"),
        ("synthetic", {"num_proc": 1.5}, "--num-proc 1.5: give a whole number from 1 up"),
        ("synthetic", {"draw_votes": 2, "draw_seed": -1}, "--draw-seed -1: give a whole number from 0 up"),
        ("synthetic", {"split_seed": "one"}, "--split-seed 'one': give a whole number from 0 up"),
        *(
            ("synthetic", {name: value}, f"--{name.replace('_', '-')} {value!r}: give a share")
            for name in ("hold_out", "validation_share")
            for value in (math.nan, math.inf, -0.1, 1, "x", True)
        ),
        ("synthetic", {"hold_out": 0}, "--hold-out 0: give a share above 0 and below 1"),
    ],
)
def test_options_that_a_source_does_not_have_are_named(tmp_path, name, options, said):
    with pytest.raises(DataError, match=re.escape(said)):
        fer_pll.prepare(name, out=tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


def test_every_source_keeps_the_contract():
    for name, source in SOURCES.items():
        assert source.name == name and source.summary and "\n" not in source.summary
        required = {} if name == "synthetic" else {"source": "somewhere"}
        options = vars(source.options(**required))
        assert not set(options) & (set(inspect.signature(prepare).parameters) - {"source"})


CLASSES = ("happy", "sad", "fear")


def votes_table(folder, rows=60, name="votes.csv"):
    """Rows of three classes, 30, 20 and 10 of 60, with an image each."""
    folder.mkdir(exist_ok=True)
    lines = ["path,happy,sad,fear"]
    for n in range(rows):
        PILImage.new("L", (8, 8), n).save(folder / f"{n}.png")
        lines.append(f"{n}.png," + ",".join("1" if k == (n % 6 > 2) + (n % 6 > 4) else "0" for k in range(3)))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def source_of(name, tmp_path):
    """60 rows without a validation split, as each of the layouts for users' data."""
    table = votes_table(tmp_path / "in")
    if name == "votes":
        return table
    folder = tmp_path / "other"
    for line in table.read_text().splitlines()[1:]:
        path, *votes = line.split(",")
        place = folder / CLASSES[votes.index("1")]
        place.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).rename(place / path)
    if name == "folder":
        return folder
    prepare("folder", folder, out=tmp_path / "saved", validation_share=0, num_proc=1)
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["votes", "folder", "dataset"])
def test_users_data_get_a_validation_split(tmp_path, name):
    source, said = source_of(name, tmp_path), []
    common = {"num_proc": 1, "report": said.append}
    dataset = prepare(name, source, out=tmp_path / "a", **common)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 54, "validation": 6}
    names = dataset["train"].features["label"].names
    labels = [names[label] for label in dataset["validation"]["label"]]
    assert sorted(labels) == ["fear", "happiness", "happiness", "happiness", "sadness", "sadness"]  # as in train
    assert said[-1].startswith("validation: 6 of 60 training rows, 0.1 of each class (--validation-share sets another")
    everything = [row for rows in dataset.values() for row in rows["row_id"]]
    assert len(set(everything)) == 60
    half = prepare(name, source, out=tmp_path / "b", validation_share=0.5, split_seed=1, **common)
    assert len(half["validation"]) == 30
    again = prepare(name, source, out=tmp_path / "c", validation_share=0.5, split_seed=1, **common)
    assert again["validation"]["row_id"][:] == half["validation"]["row_id"][:]
    other = prepare(name, source, out=tmp_path / "d", validation_share=0.5, split_seed=2, **common)
    assert other["validation"]["row_id"][:] != half["validation"]["row_id"][:]
    assert list(prepare(name, source, out=tmp_path / "e", validation_share=0, **common)) == ["train"]
    with pytest.raises(DataError, match=r"--validation-share 1: give a share from 0 to less than 1"):
        prepare(name, source, out=tmp_path / "f", validation_share=1, **common)


def test_the_draw_stays_nearly_the_same_when_rows_are_added_and_keeps_copies_together(tmp_path):
    table = votes_table(tmp_path / "in")
    options = {"validation_share": 0.2, "num_proc": 1, "drop_copies": "none"}
    few = prepare("votes", table, out=tmp_path / "a", **options)["validation"]
    paths = table.read_text().splitlines()
    table.write_text("\n".join([paths[0], "copy.png,1,0,0", *paths[1:]]) + "\n")  # other lines, and so other row ids
    first = next(k for k in range(60) if paths[k + 1].endswith(",1,0,0"))
    (table.parent / "copy.png").write_bytes((table.parent / f"{first}.png").read_bytes())
    more = prepare("votes", table, out=tmp_path / "b", **options)
    before = {image.getpixel((0, 0)) for image in few["image"]}
    after = {image.getpixel((0, 0)) for image in more["validation"]["image"]}
    assert len(before & after) >= len(before) - 1
    split_of = [
        [split for split, rows in more.items() if f"votes.csv:{line}" in rows["row_id"]] for line in (2, first + 3)
    ]
    assert split_of[0] == split_of[1]


@pytest.mark.parametrize("rows", [2, 5])
def test_a_small_set_gets_one_row_to_validate_on(tmp_path, rows):
    table = votes_table(tmp_path / "in", rows)
    dataset = prepare("votes", table, out=tmp_path / "a", num_proc=1)
    assert {split: len(part) for split, part in dataset.items()} == {"train": rows - 1, "validation": 1}
    with pytest.raises(DataError, match=r"--validation-share 0.99 of .* training rows: both parts need rows"):
        prepare("votes", table, out=tmp_path / "b", num_proc=1, validation_share=0.99)


def test_published_splits_stay_as_they_are_unless_asked(source, tmp_path):
    dataset = prepare("synthetic", out=tmp_path / "a", num_train=20, num_validation=0, num_test=2, num_proc=1)
    assert list(dataset) == ["train", "test"]
    sizes = {"num_train": 20, "num_validation": 0, "num_test": 2}
    dataset = prepare("synthetic", out=tmp_path / "b", validation_share=0.2, num_proc=1, draw_votes=3, **sizes)
    assert list(dataset) == ["train", "validation", "test"]
    assert all(sum(votes) == 3 for votes in dataset["train"]["votes"])
    assert all(sum(votes) > 3 for votes in dataset["validation"]["votes"])  # judged by all of them
    sentence = Provenance.from_dataset(dataset["validation"]).sentence()
    assert f"validation: {len(dataset['validation'])} of them (seed 0)" in sentence
    with pytest.raises(DataError, match=r"--validation-share 0.1: the data have a validation split already"):
        prepare("ferplus", source, out=tmp_path / "c", validation_share=0.1)
    assert not (tmp_path / "c").exists()


def test_validation_and_held_out_rows_are_different_ones(tmp_path):
    table = votes_table(tmp_path / "in")
    dataset = prepare("votes", table, out=tmp_path / "set", num_proc=1, hold_out=0.25)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 40, "validation": 6, "held_out": 14}
    assert len({row for rows in dataset.values() for row in rows["row_id"]}) == 60


def test_a_source_of_ones_own(tmp_path, monkeypatch):
    """A file and a name are all that a data set takes."""

    class Dots(Source):
        name, summary = "dots", "gray dots"

        def add_arguments(self, parser):
            parser.add_argument("--number", type=int, default=3)

        def open(self, options):
            records = []
            for n in range(options.number):
                file = io.BytesIO()
                PILImage.new("L", (8, 8), n).save(file, "PNG")
                records.append(ImageRecord(Path(f"{n}"), f"dot:{n}", {"label": n % 2}, data=file.getvalue()))
            records[1] = records[1]._replace(data=b"broken")
            return Opened(["even", "odd"], {"train": records}, provenance=Provenance("Dots", self.name))

    monkeypatch.setitem(SOURCES, "dots", Dots())
    main(["dots", "--number", "5", "--out", str(tmp_path / "set"), "--hold-out", "0.25"])
    dataset = load_dataset(tmp_path / "set")
    assert sorted(dataset["train"]["row_id"][:] + dataset["held_out"]["row_id"][:]) == [
        f"dot:{n}" for n in (0, 2, 3, 4)
    ]
    assert "dot:1," in (tmp_path / "set" / REPORT).read_text()
    provenance = Provenance.from_dataset(dataset["held_out"])
    assert (provenance.name, provenance.split, provenance.kept) == ("Dots", "held_out", 4)
    assert provenance.sentence() == (
        "Dots train: 4 of 5 rows; dropped: 1 that could not be used; held_out: 1 of them (seed 0)"
    )


@pytest.mark.parametrize("command", siblings("ferplus", "synthetic"))
def test_an_interruption_says_what_to_do_and_the_same_command_goes_on(command, source, tmp_path, monkeypatch, capsys):
    where = [str(source)] if command == "ferplus" else ["--num-train", "5", "--num-validation", "3"]
    argv = [command, *where, "--out", str(tmp_path / "set"), "--num-proc", "1", "--drop-copies", "none"]
    monkeypatch.setattr(image_writer, "ROWS_PER_SHARD", 1)
    write, written = image_writer._write_images, []

    def interrupted(job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job.records[0].row_id)
        return write(job)

    monkeypatch.setattr(image_writer, "_write_images", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        main(argv)
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(image_writer, "_write_images", lambda job: written.append(job.records[0].row_id) or write(job))
    main(argv)
    dataset = load_dataset(tmp_path / "set")
    rows = [row_id for split in dataset for row_id in dataset[split]["row_id"][:]]
    assert sorted(written) == sorted(rows)  # none of them twice


def test_corrections_are_applied_and_reported_or_nothing_is_written(tmp_path, capsys):
    command = ["synthetic", "--num-train", "6", "--num-validation", "2", "--num-test", "0", "--num-proc", "1"]
    main([*command, "--out", str(tmp_path / "before")])
    before = load_dataset(tmp_path / "before", "train")
    first, second = before["row_id"][:2]
    marks = tmp_path / "marks.csv"
    marks.write_text(f"row_id,mark,label\n{first},relabel,contempt\n{second},drop,\n")
    capsys.readouterr()
    main([*command, "--out", str(tmp_path / "after"), "--corrections", str(marks)])
    was = before.features["label"].int2str(before[0]["label"])
    assert f"{marks}: 1 relabeled, 1 dropped, 0 kept as they are\n  {was} -> contempt  1\n" in capsys.readouterr().out
    after = load_dataset(tmp_path / "after", "train")
    assert after["row_id"][:] == [first, *before["row_id"][2:]]
    assert after.features["label"].int2str(after[0]["label"]) == "contempt"
    assert sum(after[0]["votes"]) == after[0]["votes"][7] == sum(before[0]["votes"])

    marks.write_text("row_id,mark,label\nelsewhere,drop,\n")
    with pytest.raises(DataError, match="row 'elsewhere' is not in the data set"):
        main([*command, "--out", str(tmp_path / "never"), "--corrections", str(marks)])
    assert not (tmp_path / "never").exists()
