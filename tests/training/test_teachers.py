"""Learning from teachers: the loss, what a teacher sees, the cache, and candidate sets for images without labels."""

import multiprocessing
import time
from functools import partial

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from transformers import BitImageProcessorPil, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import fer_pll_cli
from fer_pll import FerPllForImageClassification, FerPllTrainer, FerPllTrainingArguments
from fer_pll.commands.finetune import build
from fer_pll.commands.propose import main as propose_command
from fer_pll.data.dataset import load_dataset, numpy_column, save_dataset
from fer_pll.data.provenance import Provenance
from fer_pll.io.errors import DataError
from fer_pll.labels.candidates import from_posterior
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.proposals import propose
from fer_pll.training.teachers import Distillation, Teacher, cached_probabilities
from tiny import CLASSES, make_dataset, make_trainer, tiny_config, tiny_processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A classifier with the classes in another order."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    FerPllForImageClassification(tiny_config(CLASSES[::-1])).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def teacher_of(checkpoint: str) -> Teacher:
    return Teacher.load(checkpoint, CLASSES, torch.device("cpu"))


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_loss_is_that_of_the_formula(seed, temperature):
    generator = np.random.default_rng(seed)
    logits, p = generator.normal(0, 3, (5, 4)), generator.dirichlet(np.ones(4), 5)
    softened = p ** (1 / temperature)
    softened /= softened.sum(axis=1, keepdims=True)
    q = np.exp(logits / temperature)
    q /= q.sum(axis=1, keepdims=True)
    expected = temperature**2 * (softened * (np.log(np.clip(softened, 1e-30, None)) - np.log(q))).sum(axis=1)
    loss = Distillation([], 0.5, temperature).loss(torch.tensor(logits), torch.tensor(p))
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-4)


def test_the_weight_shares_the_loss_between_method_and_teachers():
    table = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]])
    distillation = Distillation(table, weight=0.25)
    logits, index = torch.tensor([[0.2, 0.4], [1.0, -1.0]]), torch.tensor([2, 0])
    losses = distillation.blend(torch.tensor([4.0, 8.0]), logits, torch.zeros(2, 1, 3, 3), index)
    expected = 0.75 * torch.tensor([4.0, 8.0]) + 0.25 * distillation.loss(logits, table[index])
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (1.1, 1.0), (0.5, 0.0)])
def test_settings_out_of_range_are_refused(weight, temperature):
    with pytest.raises(ValueError, match="teacher_weight"):
        Distillation([], weight, temperature)


def test_a_teacher_of_the_students_kind_answers_by_class_name(checkpoint):
    images = make_dataset(6)["image"]
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images]))[:, None].float()
    model = FerPllForImageClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        logits = model(**tiny_processor()(list(images), return_tensors="pt")).logits
    expected = logits.softmax(dim=1).flip(1)  # its classes are in reverse
    torch.testing.assert_close(teacher_of(checkpoint).probabilities(pixels), expected, atol=1e-5, rtol=1e-4)


def test_a_teacher_in_color_and_of_another_size_sees_the_image_as_its_processor_makes_it():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(CLASSES)), **sizes)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3])
    teacher = Teacher(ViTForImageClassification(config), processor, CLASSES)
    images = list(make_dataset(6)["image"])
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images]))[:, None].float()
    inputs = processor([image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = teacher.model(**inputs).logits.softmax(dim=1)
    torch.testing.assert_close(teacher.probabilities(pixels), expected, atol=2e-3, rtol=1e-2)


def test_a_teacher_whose_processor_crops_the_center_gets_images_of_the_size_that_is_left():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=16, patch_size=8, id2label=dict(enumerate(CLASSES)), **sizes)
    crop = {"height": 16, "width": 16}
    processor = BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=crop, do_center_crop=True)
    teacher = Teacher(ViTForImageClassification(config), processor, CLASSES)
    images = list(make_dataset(6)["image"])
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images]))[:, None].float()
    inputs = processor([image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = teacher.model(**inputs).logits.softmax(dim=1)
    torch.testing.assert_close(teacher.probabilities(pixels), expected, atol=1e-4, rtol=1e-3)


def test_the_mean_over_mirror_images_does_not_depend_on_which_is_the_image(checkpoint):
    rows = make_dataset(8)
    mirrored = rows.map(lambda row: {"image": row["image"].transpose(0)})  # Transpose.FLIP_LEFT_RIGHT
    teacher = teacher_of(checkpoint)
    one, other = teacher.probabilities_of(rows), teacher.probabilities_of(mirrored)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_teacher_without_a_class_of_the_student_is_refused(checkpoint):
    with pytest.raises(ValueError, match="middle"):
        Teacher.load(checkpoint, [*CLASSES, "middle"], torch.device("cpu"))


def test_the_cache_is_used_again_and_refused_for_others(checkpoint, tmp_path):
    rows, path = make_dataset(8), tmp_path / "teacher.safetensors"
    teacher = teacher_of(checkpoint)
    first = cached_probabilities(path, [teacher], ["a"], rows, "f")
    assert torch.equal(first, teacher.probabilities_of(rows))
    teacher.model = None  # not asked again
    assert torch.equal(first, cached_probabilities(path, [teacher], ["a"], rows, "f"))
    for digests, fingerprint in ((["b"], "f"), (["a"], "g")):
        with pytest.raises(DataError, match=r"teacher\.safetensors is of other"):
            cached_probabilities(path, [teacher], digests, rows, fingerprint)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="delete it"):
        cached_probabilities(path, [teacher], ["a"], rows, "f")


class SlowTeacher:
    """Writes down when it is asked, and takes its time."""

    def __init__(self, log):
        self.log = log

    def probabilities_of(self, dataset):
        with self.log.open("a") as file:
            file.write("asked\n")
        time.sleep(0.5)
        return torch.full((len(dataset), 4), 0.25)


def test_runs_that_begin_together_ask_once_and_share_the_cache(tmp_path):
    rows, path, log = make_dataset(8), tmp_path / "cache" / "teacher.safetensors", tmp_path / "log"
    make = partial(cached_probabilities, path, [SlowTeacher(log)], ["a"], rows, "f")
    runs = [multiprocessing.get_context("fork").Process(target=make) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0] and log.read_text() == "asked\n"
    assert make().tolist() == [[0.25] * 4] * 8


def test_a_fold_asks_its_teachers_itself(tmp_path):
    """A cache is one of all rows."""
    options = FineTuningOptions(data="data", teacher=["one"], teacher_cache=str(tmp_path / "cache"))
    assert (options.for_fold().teacher_cache, options.for_fold().teacher) == (None, ["one"])


@pytest.mark.parametrize("setting", [{"teacher_weight": float("nan")}, {"teacher_temperature": 0.0}])
def test_a_setting_of_teachers_without_a_teacher_is_refused(tmp_path, toy_train, setting):
    args = FerPllTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"--{next(iter(setting))}: name the teachers as well"):
        FineTuningOptions(data="data", **setting).make_trainer(args, toy_train)


def test_a_student_comes_to_agree_with_its_teacher(checkpoint, tmp_path, toy_config, toy_processor):
    teacher, rows = teacher_of(checkpoint), make_dataset(96)
    wanted = teacher.probabilities_of(rows)

    def distance(distillation: Distillation | None) -> float:
        learning = partial(FerPllTrainer, distillation=distillation)
        folder = tmp_path / str(id(distillation))
        trainer = make_trainer(
            folder, toy_config, toy_processor, rows, trainer_class=learning, num_train_epochs=6, flip=False
        )
        trainer.train()
        with torch.no_grad():
            logits = trainer.model(**toy_processor(list(rows["image"]), return_tensors="pt")).logits
        return float((logits.softmax(dim=1) - wanted).abs().mean())

    alone = distance(None)
    assert distance(Distillation([teacher], weight=1.0)) < 0.5 * alone
    assert distance(Distillation(wanted, weight=1.0)) < 0.5 * alone


@pytest.fixture
def sets(tmp_path):
    """A labeled set with a validation split, and one whose labels are not to be used."""
    save_dataset(DatasetDict(train=make_dataset(24), validation=make_dataset(8, seed=1)), tmp_path / "labeled")
    save_dataset(DatasetDict(train=make_dataset(40, seed=2)), tmp_path / "images")
    return tmp_path


def test_proposed_sets_are_those_of_the_teachers_probabilities(checkpoint, sets):
    images = load_dataset(sets / "images", "train")
    probabilities = teacher_of(checkpoint).probabilities_of(images).double().numpy()
    least = float(np.median(probabilities.max(axis=1)))
    made = propose(sets / "images", [checkpoint], sets / "labeled", coverage=0.6, least=least)
    sure = probabilities.max(axis=1) >= least
    assert (made.proposed, made.left_out) == (sure.sum(), (~sure).sum())
    train = made.dataset["train"]
    assert len(train) == 24 + sure.sum()
    expected = from_posterior(probabilities[sure], 0.6)
    assert np.array_equal(numpy_column(train, "candidates")[24:], expected)
    shares = probabilities[sure] * expected
    np.testing.assert_allclose(
        numpy_column(train, "confidence")[24:], shares / shares.sum(axis=1, keepdims=True), atol=1e-6
    )
    assert (numpy_column(train, "label")[24:] == -1).all()
    labeled = load_dataset(sets / "labeled", "train")
    for column in ("label", "candidates"):
        assert np.array_equal(numpy_column(train, column)[:24], numpy_column(labeled, column))
    assert made.dataset["validation"]["label"] == load_dataset(sets / "labeled", "validation")["label"]
    assert sum(made.set_sizes.values()) == made.proposed


def test_images_of_the_joined_set_are_left_out(checkpoint, sets):
    labeled = load_dataset(sets / "labeled")
    known = [labeled["train"].select([3, 5]), labeled["validation"].select([1])]
    rows = concatenate_datasets([known[0], load_dataset(sets / "images", "train"), known[1]])
    save_dataset(DatasetDict(train=rows), sets / "overlapping")
    made = propose(sets / "overlapping", [checkpoint], sets / "labeled")
    assert (made.copies, made.proposed, len(made.dataset["train"])) == (3, 40, 64)
    assert "dropped: 3 copies of a joined image" in Provenance.from_dataset(made.dataset["train"]).sentence()
    save_dataset(DatasetDict(train=concatenate_datasets(known)), sets / "known")
    with pytest.raises(ValueError, match=r"labeled has all images of .*known already"):
        propose(sets / "known", [checkpoint], sets / "labeled")


def test_a_set_says_what_it_was_made_of_and_on_what_terms(checkpoint, sets):
    rows = make_dataset(40, seed=2)
    Provenance(name="Faces", split="train", kept=40, license="for research").attach(rows)
    save_dataset(DatasetDict(train=rows), sets / "licensed")
    surest = teacher_of(checkpoint).probabilities_of(rows).double().numpy().max(axis=1)
    made = propose(sets / "licensed", [checkpoint], least=float(np.median(surest)))
    said = Provenance.from_dataset(made.dataset["train"])
    assert said.terms() == "for research"
    assert said.sentence() == (
        f"Faces with proposed candidate sets train: {made.proposed} of 40 rows; "
        f"dropped: {made.left_out} that the teachers were too unsure of"
    )


@pytest.mark.parametrize("wrong", ["nowhere", "someone/nothing", "images"])
def test_a_teacher_that_is_none_is_one_line(wrong, sets, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it is tried for half a minute
    monkeypatch.chdir(sets)
    assert fer_pll_cli.main(["propose", "images", "--teacher", wrong, "--out", "new"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and wrong in error and len(error.splitlines()) == 1
    assert not (sets / "new").exists()


def test_a_place_that_is_taken_is_said_before_a_teacher_is_loaded(sets, capsys, monkeypatch):
    monkeypatch.chdir(sets)
    assert fer_pll_cli.main(["propose", "images", "--teacher", "nowhere", "--out", "labeled"]) == 1
    assert "labeled already holds" in capsys.readouterr().err
    for out in ("images", "labeled/."):
        argv = ["images", "--teacher", "nowhere", "--join", "labeled", "--out", out, "--overwrite"]
        assert fer_pll_cli.main(["propose", *argv]) == 1
        assert f"{out} is also read, so it is not written" in capsys.readouterr().err
    assert fer_pll_cli.main(["prepare", "dataset", "images", "--out", "new/../images", "--overwrite"]) == 1
    assert "images is also read, so it is not written" in capsys.readouterr().err


def test_a_threshold_that_no_image_reaches_is_named(checkpoint, sets):
    with pytest.raises(ValueError, match="--least"):
        propose(sets / "images", [checkpoint], least=0.999)


def test_from_the_command_line_to_a_student(checkpoint, sets, tmp_path, capsys):
    out = str(sets / "both")
    propose_command([str(sets / "images"), "--teacher", checkpoint, "--join", str(sets / "labeled"), "--out", out])
    said = capsys.readouterr().out
    assert "40 images have candidate sets now" in said
    assert said.splitlines()[-2:] == [
        f"saved in {out}",
        f"next: fer-pll finetune --data {out} --output_dir runs/student",
    ]
    config = tmp_path / "config"
    tiny_config().save_pretrained(config)
    tiny_processor().save_pretrained(config)
    cache = sets / "cache.safetensors"
    options = {
        "--config": config,
        "--data": out,
        "--teacher": checkpoint,
        "--teacher_cache": cache,
        "--teacher_weight": 0.3,
        "--output_dir": tmp_path / "run",
        "--max_steps": 2,
        "--use_cpu": "true",
    }
    trainer, _ = build([str(each) for option in options.items() for each in option])
    proposed = numpy_column(load_dataset(out, "train"), "confidence")
    np.testing.assert_allclose(trainer.table.confidence, proposed, atol=1e-6)  # without --confidence_init
    trainer.train()
    assert cache.is_file()
    assert trainer.distillation.teachers.shape == (64, len(CLASSES))
    assert trainer.card_settings()["teacher_weight"] == 0.3
    assert trainer.card_settings()["teacher"] not in ("", checkpoint)  # the name without its folder
