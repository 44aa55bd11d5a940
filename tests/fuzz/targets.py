"""The formats that the package reads. A new one is a `Target`: what makes whole files, and what reads them."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from fer_pll import FerPllForImageClassification, FerPllTrainer
from fer_pll.audit.label_audit import LabelAudit
from fer_pll.audit.out_of_fold import _read_fold
from fer_pll.commands import finetune
from fer_pll.data.collator import PixelCollator
from fer_pll.data.corrections import apply_corrections, read_corrections
from fer_pll.data.dataset import load_dataset, numpy_column, prepared_features, save_dataset
from fer_pll.data.image_writer import ImageRecord
from fer_pll.data.provenance import Provenance
from fer_pll.data.row_ids import row_ids
from fer_pll.data.sources.affectnet import list_affectnet
from fer_pll.data.sources.ferplus import list_ferplus
from fer_pll.data.sources.hf_dataset import list_dataset
from fer_pll.data.sources.rafdb import list_rafdb
from fer_pll.data.sources.votes import list_votes
from fer_pll.data.streaming.shards import find_shards, read_shard
from fer_pll.data.transition import read_transition
from fer_pll.faces.crops import load_crop
from fer_pll.hub.card import folder_card, training_record, weights_digest
from fer_pll.hub.confidences import confidence_dataset, confidences_from_hub
from fer_pll.hub.push import published_files
from fer_pll.inference.media import show
from fer_pll.inference.onnx_runtime import OnnxClassifier
from fer_pll.io.images import ImageError, decode_image, open_image
from fer_pll.io.pretrained import load_image_processor, load_model
from fer_pll.labels.candidates import dataset_fingerprint
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.labels.expressions import EXPRESSIONS
from fer_pll.model.face_alignment import FaceCrop
from fer_pll.training.checkpoints import check_checkpoint
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.lora import add_adapters
from fer_pll.training.run_folder import RunFolder
from fer_pll.training.trainer import start_table
from tests.tiny import CLASSES, CROP, make_dataset, make_trainer, tiny_config, tiny_processor

from .runner import Target


def problems(splits: Mapping[str, Iterable[ImageRecord]]) -> list[str]:
    """Why rows cannot be used."""
    return [record.problem for records in splits.values() for record in records if record.problem]


def picture(seed: int = 0, side: int = 16, mode: str = "RGB") -> Image.Image:
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


# Tables


def make_votes(form: str, ending: str, folder: Path) -> None:
    paths = [f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        picture(number, 8).save(folder / path)
    if form == "counts":
        rows = [{"path": p, "happiness": n % 3 + 1, "fear": n % 2, "split": "train"} for n, p in enumerate(paths)]
    elif form == "answers":
        rows = [
            {"path": p, "annotator": who, "label": EXPRESSIONS[(n + k) % 4]}
            for n, p in enumerate(paths)
            for k, who in enumerate(("ann", "bob", "cy"))
        ]
    else:
        rows = [{"path": p, "candidates": "happiness|fear", "label": "fear"} for p in paths]
    file = folder / f"votes.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = {"csv": ",", "tsv": "\t", "semicolons.csv": ";"}[ending]
        lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
        file.write_text("".join(separator.join(line) + "\n" for line in lines))


def read_votes(form: str, folder: Path) -> list[str]:
    (file,) = folder.glob("votes.*")
    coverages = (None, 0.9) if form == "answers" else (None,)
    return [each for coverage in coverages for each in problems(list_votes(file, coverage=coverage))]


VOTES = {
    f"votes, {form}, {ending}": Target(
        f"votes, {form}, {ending}",
        partial(make_votes, form, ending),
        partial(read_votes, form),
        ("votes.*",),
        quick=20 if form == "answers" else 40,  # annotators are weighed in many rounds
    )
    for form in ("counts", "answers", "sets")
    for ending in ("csv", "tsv", "semicolons.csv", "jsonl", "parquet")
}


def make_corrections(folder: Path) -> None:
    (folder / "marks.csv").write_text("row_id,mark,label\nrow:0,keep,\nrow:1,relabel,top\nrow:2,drop,\nrow:3,keep,\n")


def read_marks(folder: Path) -> None:
    read_corrections(folder / "marks.csv")
    apply_corrections(DatasetDict(train=_rows(12)), folder / "marks.csv")


@cache
def _rows(number: int):
    return make_dataset(number)


def make_transition(folder: Path) -> None:
    lines = [["", *CLASSES], *([name, *("1" if other == name else "0.2" for other in CLASSES)] for name in CLASSES)]
    (folder / "transition.csv").write_text("".join(",".join(line) + "\n" for line in lines))


def read_matrix(folder: Path) -> None:
    read_transition(folder / "transition.csv", CLASSES)


def make_ferplus(folder: Path) -> None:
    entries = [*EXPRESSIONS, "unknown", "NF"]
    images, votes = ["emotion,pixels,Usage"], ["Usage,Image name," + ",".join(entries)]
    for number, usage in enumerate(["Training"] * 4 + ["PublicTest"] * 2 + ["PrivateTest"] * 2):
        pixels = np.random.default_rng(number).integers(0, 256, 48 * 48)
        images.append(f"0,{' '.join(map(str, pixels))},{usage}")
        votes.append(f"{usage},fer{number:07}.png,{'0,' * number}10{',0' * (9 - number)}")
    (folder / "fer2013.csv").write_text("\n".join(images) + "\n")
    (folder / "fer2013new.csv").write_text("\n".join(votes) + "\n")


def read_ferplus(folder: Path) -> None:
    for records in list_ferplus(folder).splits.values():
        for record in records:
            if callable(record.data):
                record.data()


def make_rafdb(folder: Path) -> None:
    (folder / "EmoLabel").mkdir()
    (folder / "Image" / "aligned").mkdir(parents=True)
    names = ["train_00001", "train_00002", "test_0001", "train_00003"]
    lines = [f"{name}.jpg {number + 1}\n" for number, name in enumerate(names)]
    (folder / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines))
    for name in names:
        picture().save(folder / "Image" / "aligned" / f"{name}_aligned.jpg")


def read_rafdb(folder: Path) -> list[str]:
    return problems(list_rafdb(folder))


LANDMARKS = np.random.default_rng(0).uniform(5, 40, (68, 2)).astype(np.float32)


def make_affectnet_table(folder: Path) -> None:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    points = ";".join(f"{value:.2f}" for value in LANDMARKS.reshape(-1))
    lines = [f"1/{number}.png,1,2,30,40,{points},{number},0.1,-0.2" for number in range(4)]
    (folder / "training.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "Manually_Annotated_Images" / "1").mkdir(parents=True)
    for number in range(4):
        picture().save(folder / "Manually_Annotated_Images" / "1" / f"{number}.png")


def make_affectnet_folder(folder: Path) -> None:
    for name in ("images", "annotations"):
        (folder / "train_set" / name).mkdir(parents=True)
    for number in range(2):
        picture(side=48).save(folder / "train_set" / "images" / f"{number}.jpg")
        np.save(folder / "train_set" / "annotations" / f"{number}_exp.npy", np.array(str(number)))
        np.save(folder / "train_set" / "annotations" / f"{number}_lnd.npy", LANDMARKS.reshape(-1))


def read_affectnet(folder: Path) -> list[str]:
    return problems(list_affectnet(folder))


def make_parquet_dataset(folder: Path) -> None:
    rows = [{"image": {"bytes": encoded(number), "path": None}, "label": "happiness"} for number in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")


def read_hub_dataset(folder: Path) -> list[str]:
    return problems(list_dataset(str(folder)).splits)


# Images, videos, shards


def encoded(seed: int = 0, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, format, **options)
    return stream.getvalue()


def make_images(folder: Path) -> None:
    for mode in ("L", "RGB", "RGBA"):
        picture(0, 16, mode).save(folder / f"{mode}.png")
    picture().quantize(8).save(folder / "palette.png")
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(folder / "16bit.png")
    picture().save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(folder / "turned.jpg", exif=exif, progressive=True, comment=b"x")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().save(folder / "plain.gif", save_all=True, append_images=[picture(1)])
    picture().save(folder / "plain.bmp")
    picture().save(folder / "plain.tiff")
    picture().save(folder / "packed.tiff", compression="tiff_deflate")
    for name, options in (("plain", {}), ("lossless", {"lossless": True})):
        picture().save(folder / f"{name}.webp", **options)
    picture().save(folder / "plain.ppm")


def read_images(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        open_image(file)


def make_video(folder: Path) -> None:
    import av

    with av.open(str(folder / "talk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.set_display_rotation(90)
        for number in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number, 32))))
        container.mux(stream.encode())


def read_video(folder: Path) -> list[str]:
    rows = list(show(folder / "talk.mp4"))
    assert rows, "no row says what is wrong"
    return [row.problem for row in rows if row.problem]


def make_tar(folder: Path) -> None:
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")):
        with tarfile.open(folder / f"shard.{ending}", mode) as archive:
            for number in range(3):
                for name, content in ((f"{number}.png", encoded(number)), (f"{number}.cls", b"1")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def read_shards(folder: Path) -> list[str]:
    found = []
    for shard in find_shards(str(folder)):
        rows = list(read_shard(shard))
        assert rows, "no row says what is wrong"
        for _, row_id, contents in rows:
            try:
                if isinstance(contents, ImageError):
                    raise contents
                decode_image(contents, row_id)
            except ImageError as error:
                found.append(str(error))
    return found


# What the package writes itself: prepared sets, runs, checkpoints


def make_prepared(folder: Path) -> None:
    rows = make_dataset(8)
    Provenance("toy", split="train", kept=8, license="free for all.").attach(rows)
    save_dataset(DatasetDict(train=rows, validation=make_dataset(4, 1)), folder / "set")


def read_prepared(folder: Path) -> None:
    for rows in load_dataset(folder / "set").values():
        provenance = Provenance.from_dataset(rows)
        if provenance is not None:
            provenance.sentence()
        names = [name for name in rows.column_names if name != "image"]
        rows.select_columns(names)[:]
        for name in names:
            numpy_column(rows, name)
        ids = row_ids(rows)
        if "candidates" in names:
            dataset_fingerprint(rows.features["label"].names, ids, numpy_column(rows, "candidates"))


def make_prepared_images(folder: Path) -> None:
    (folder / "images").mkdir()
    make_images(folder / "images")


def read_prepared_images(folder: Path) -> None:
    """A set that holds these files, as another program could have made it, read as training reads it."""
    images = [{"bytes": file.read_bytes(), "path": None} for file in sorted((folder / "images").iterdir())]
    names = [f"row:{number}" for number in range(len(images))]
    features = prepared_features(CLASSES)
    rows = Dataset.from_dict({"image": images, "row_id": names, "label": [0] * len(images)}, features)
    DatasetDict(train=rows).save_to_disk(folder / "set")
    PixelCollator(tiny_processor())(list(load_dataset(folder / "set", "train")))


def make_confidence(folder: Path) -> None:
    make_prepared(folder)
    rows = load_dataset(folder / "set", "train")
    start_table(rows, CLASSES, "uniform").save(RunFolder(folder).confidence)
    settings = {"script": {"config": "x", "data": str(folder / "set")}, "arguments": {}}
    RunFolder(folder).settings_file.write_text(json.dumps(settings))


def read_confidence(folder: Path) -> None:
    table, rows = RunFolder(folder).table_and_rows(folder / "set")
    LabelAudit.from_run_rows(rows, table, None, 0).columns()
    table = ConfidenceTable.load(RunFolder(folder).confidence)
    table.summary()


MADE_FROM = {"data": "d", "settings": "s"}


def make_fold(folder: Path) -> None:
    save_file({"probabilities": torch.full((6, 4), 0.25)}, folder / "fold-1-of-2.safetensors", metadata=MADE_FROM)


def read_fold(folder: Path) -> None:
    _read_fold(folder / "fold-1-of-2.safetensors", MADE_FROM, (6, 4))


def make_published(folder: Path) -> None:
    rows = make_dataset(8)
    confidence_dataset(start_table(rows, CLASSES, "uniform"), rows).to_parquet(folder / "train.parquet")


def read_published(folder: Path) -> None:
    rows, table = confidences_from_hub(folder)
    LabelAudit.from_run_rows(rows, table, None, 0).columns()


def make_settings(folder: Path) -> None:
    argv = [
        "--config",
        "fer-pll-tiny-ferplus-quick",
        "--data",
        "data",
        "--output_dir",
        str(folder / "run"),
        "--use_cpu",
    ]
    options, args = finetune.make_parser().parse_settings(argv)
    RunFolder(folder).settings_file.write_text(
        json.dumps({"script": vars(options), "arguments": args.to_dict()}, default=str)
    )


def read_settings(folder: Path) -> None:
    FineTuningOptions.from_run(folder, output_dir=str(folder / "new"), report_to="none")


def make_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    FerPllForImageClassification(tiny_config()).save_pretrained(folder)
    tiny_processor(face_crop=CROP).save_pretrained(folder)


def make_sharded(folder: Path) -> None:
    make_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(sorted(weights))}
    for file in set(names.values()):
        save_file({n: weights[n] for n in weights if names[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def read_checkpoint(folder: Path) -> None:
    model = load_model(AutoModelForImageClassification, folder)
    processor = load_image_processor(folder)
    model.eval()
    assert model.config.id2label
    load_crop(str(folder))
    assert processor is not None


def make_card(folder: Path) -> None:
    make_checkpoint(folder)
    rows = make_dataset(8)
    data = Provenance("toy", split="train", kept=8, dropped={"no face": 1}, license="free for all.")
    table = start_table(rows, CLASSES, "uniform")
    training = training_record({"max_candidates": 2, "learning_rate": 0.001}, data, table, compute={"device": "CPU"})
    training["calibration"] = {"balance": 0.5, "temperature": 1.2, "rows": 8, "ece_before": 0.2, "ece_after": 0.1}
    training["pretraining"] = {"data": data.to_dict(), "objective": "hog", "epochs": 3}
    (folder / "training.json").write_text(json.dumps(training))
    figures = {"rows": 8, "accuracy": 0.5, "mean_class_accuracy": 0.4, "ece": 0.1}
    recall = {"per_class_recall": dict(zip(CLASSES, [0.5, None, 0.1, 1], strict=True))}
    report = {"weights": weights_digest(folder), "data": data.to_dict(), "split": "validation"}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(report | {"protocols": {"all": figures | recall}}))


def read_card(folder: Path) -> None:
    published_files(folder)
    str(folder_card(folder, "someone/toy"))


def make_resume(make: Callable[[Path], FerPllTrainer], folder: Path) -> None:
    trainer = make(folder / "run")
    trainer.train()
    for path in (folder / "run").iterdir():
        if path.name.startswith("checkpoint-"):
            path.rename(folder / "checkpoint-3")
            break
    # As in those of earlier versions; otherwise their checksums would find all damage, and nothing else be tried.
    RunFolder(folder / "checkpoint-3").checksums.unlink()


def _trainer(output: Path, **settings):
    steps = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    return make_trainer(output, tiny_config(), tiny_processor(), _rows(16), report_to="none", **steps, **settings)


def _with_pico(output: Path):
    return _trainer(output, loss="pico")  # it has a state of its own, in method.pt


def _with_adapters(output: Path):
    return _trainer(output, trainer_class=_adapted)


def _adapted(model, *args, **options):
    return FerPllTrainer(add_adapters(model, rank=2), *args, **options)


def read_resume(make: Callable[[Path], FerPllTrainer], folder: Path) -> None:
    checkpoint = str(folder / "checkpoint-3")
    check_checkpoint(checkpoint)
    trainer = make(folder / "again")
    trainer.check_checkpoint(checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)


def make_onnx(folder: Path) -> None:
    from fer_pll.inference.onnx_export import export_onnx

    make_checkpoint(folder / "checkpoint")
    export_onnx(str(folder / "checkpoint"), str(folder / "exported"))


def read_onnx(folder: Path) -> None:
    classifier = OnnxClassifier(folder / "exported", threads=1)
    if classifier.face_crop is not None:
        FaceCrop.from_dict(classifier.face_crop, str(folder))
    classifier([picture(side=20)])


def make_yaml(folder: Path) -> None:
    (folder / "settings.yaml").write_text("learning_rate: 0.001\nflip: true\nseed: 3\nloss: pll\nmax_candidates: 2\n")


def read_yaml(folder: Path) -> None:
    argv = ["--config", "fer-pll-tiny-ferplus-quick", "--data", "x", "--output_dir", str(folder / "run"), "--use_cpu"]
    finetune.make_parser().parse_settings([*argv, "--settings", str(folder / "settings.yaml")])


os.environ.setdefault("HF_HUB_OFFLINE", "1")

_OTHERS = (
    Target("corrections", make_corrections, read_marks),
    Target("transition", make_transition, read_matrix),
    Target("FER+, CSV", make_ferplus, read_ferplus, ("*.csv",), quick=100),
    Target("RAF-DB list", make_rafdb, read_rafdb, ("*.txt",)),
    Target("AffectNet, CSV", make_affectnet_table, read_affectnet, ("*.csv",)),
    Target("AffectNet, npy", make_affectnet_folder, read_affectnet, ("*.npy",)),
    Target("data set, Parquet", make_parquet_dataset, read_hub_dataset, quick=25),
    Target("images", make_images, read_images, quick=300),
    Target("video", make_video, read_video),
    Target("shards, tar", make_tar, read_shards),
    Target("shards, Parquet", make_parquet_dataset, read_shards),
    Target("prepared set, JSON", make_prepared, read_prepared, ("*.json",), quick=100),
    Target("prepared set, Arrow", make_prepared, read_prepared, ("*.arrow",), quick=100),
    Target("prepared set, images", make_prepared_images, read_prepared_images, ("images/*",), quick=40),
    Target("confidence table", make_confidence, read_confidence, ("confidence.safetensors",), quick=150),
    Target("fold of an audit", make_fold, read_fold),
    Target("published confidences", make_published, read_published, quick=100),
    Target("settings of a run", make_settings, read_settings, quick=100),
    Target("checkpoint, JSON", make_checkpoint, read_checkpoint, ("*.json",), quick=60),
    Target("checkpoint, weights", make_checkpoint, read_checkpoint, ("*.safetensors",), quick=40),
    Target("checkpoint in parts", make_sharded, read_checkpoint, ("*.index.json", "*.safetensors"), quick=40),
    Target("card", make_card, read_card, ("*.json",), quick=60),
    Target(
        "resume", partial(make_resume, _with_pico), partial(read_resume, _with_pico), ("checkpoint-3/*",), quick=20
    ),
    Target(
        "resume with adapters",
        partial(make_resume, _with_adapters),
        partial(read_resume, _with_adapters),
        ("checkpoint-3/adapter*",),
        quick=15,
    ),
    Target("ONNX folder", make_onnx, read_onnx, ("exported/*",), quick=80),
    Target("settings, YAML", make_yaml, read_yaml, errors=(SystemExit,), quick=60),
)

TARGETS: dict[str, Target] = VOTES | {target.name: target for target in _OTHERS}
