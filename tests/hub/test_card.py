"""The model card: valid metadata, code that runs, no claim without a measurement."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from conftest import make_trainer
from fer_pll import ConfidenceTable, FerPllForImageClassification, FerPllForPreTraining, FerPllTrainingArguments
from fer_pll.data.provenance import Provenance
from fer_pll.hub.card import folder_card, model_card, training_record
from fer_pll.hub.push import published_files
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.pretraining import FerPllPreTrainer, pretraining_model

CONFIGS = Path(__file__).parents[2] / "hub_configs"

TRAIN = Provenance(
    "FER+",
    "ferplus",
    "train",
    protocol="all",
    kept=26903,
    dropped={"not in protocol all": 320, "copies": 1486},
    license="the votes are free, the pictures are not.",
)
EVALUATION = {
    "data": Provenance("FER+", "ferplus", "validation", "all", 3553, {"not in protocol all": 36}).to_dict(),
    "split": "validation",
    "protocols": {
        "all": {
            "rows": 3553,
            "accuracy": 0.7512,
            "mean_class_accuracy": 0.5034,
            "ece": 0.0316,
            "per_class_recall": {"left": 0.9, "right": None, "top": 0.25, "bottom": 0.5},
        },
        "majority": {
            "rows": 3199,
            "accuracy": 0.79438,
            "mean_class_accuracy": 0.5111,
            "ece": 0.0211,
            "per_class_recall": {"left": 1.0, "right": 0.0, "top": 0.3, "bottom": 0.6},
        },
    },
}


@pytest.fixture
def classifier(toy_config):
    return FerPllForImageClassification(toy_config)


@pytest.fixture
def table():
    """Three rows, two of them ambiguous, one of these revised."""
    candidates = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=bool)
    table = ConfidenceTable.from_candidates(candidates, ["left", "right", "top", "bottom"], "fingerprint")
    table.revised_epoch[0] = 3
    return table


def full_card(classifier, table, tmp_path) -> str:
    args = FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=3e-4, revision_threshold=0.3)
    training = training_record(
        {**args.to_dict(), "max_candidates": 2, "min_votes": 1, "ties": "keep"},
        data=TRAIN,
        table=table,
        metrics={"the evaluation set, at the last epoch": EVALUATION["protocols"]["all"]},
        compute={"device": "a GPU", "processes": 2, "torch": "2.13.0", "transformers": "5.23.0", "hours": 1.5},
    )
    return str(
        model_card(
            classifier,
            "someone/toy",
            training=json.loads(json.dumps(training)),
            evaluations={"evaluation": EVALUATION},
            license="apache-2.0",
        )
    )


def test_metadata_survives_a_round_trip(classifier, table, tmp_path):
    card = ModelCard(full_card(classifier, table, tmp_path))
    metadata = yaml.safe_load(card.content.split("---")[1])
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "facial-expression-recognition" in metadata["tags"]
    assert metadata["license"] == "apache-2.0"
    assert ModelCardData(**metadata).to_dict() == card.data.to_dict() == metadata
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").content == card.content


def test_the_model_index_has_both_accuracies_of_each_protocol(classifier, table, tmp_path):
    (model,) = ModelCard(full_card(classifier, table, tmp_path)).data.to_dict()["model-index"]
    assert model["name"] == "toy"
    found = {
        (result["dataset"]["config"], metric["type"]): metric["value"]
        for result in model["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("all", "accuracy"): 0.7512,
        ("all", "recall"): 0.5034,
        ("majority", "accuracy"): 0.7944,
        ("majority", "recall"): 0.5111,
    }
    for result in model["results"]:
        assert result["task"] == {"type": "image-classification"}
        assert (result["dataset"]["name"], result["dataset"]["split"]) == ("FER+", "validation")
        assert result["dataset"]["type"] == "ferplus"


def test_held_out_rows_are_no_data_set_of_their_own(classifier):
    """Neither in reports of today nor in those that had prose."""
    now = replace(TRAIN, split="held_out", held_out={"of": "train", "rows": 1345, "seed": 0})
    before = "FER+ train, protocol all: 26903 of 28709 rows; dropped: 320 x; held_out: 1345 of them (seed 0)"
    for data in (now.to_dict(), before):
        evaluations = {"evaluation": EVALUATION | {"data": data, "split": "held_out"}}
        card = model_card(classifier, "someone/toy", evaluations=evaluations)
        (model,) = card.data.to_dict()["model-index"]
        found = {tuple(result["dataset"][key] for key in ("name", "type", "split")) for result in model["results"]}
        assert found == {("FER+", "ferplus", "held_out")}
        assert "| FER+, held_out, protocol all |" in str(card) and "FER+ train" not in str(card)


def test_a_data_set_of_the_hub_is_named_by_its_name_there(classifier):
    data = Provenance(source="dataset", split="validation", kept=10, hub_id="someone/faces").to_dict()
    card = model_card(classifier, "toy", evaluations={"evaluation": EVALUATION | {"data": data}})
    assert {result.dataset_type for result in card.data.eval_results} == {"someone/faces"}


def test_records_of_before_are_read(classifier):
    """training.json and metrics.json had prose, and the license in a field of its own."""
    pretraining = {"data": "Toys: 48 pictures", "objective": "hog", "epochs": 3}
    training = {"data": "FER+ train: 9 rows", "data_license": "free for all.", "pretraining": pretraining}
    evaluation = EVALUATION | {"data": "FER+ validation, protocol all: 3553 of 3589 rows"}
    card = model_card(classifier, "someone/toy", training=training, evaluations={"evaluation": evaluation})
    assert "Data: FER+ train: 9 rows\n\nTerms of the data: free for all." in str(card)
    assert "Its data: Toys: 48 pictures." in str(card) and "| FER+, validation, protocol all |" in str(card)
    assert {result.dataset_type for result in card.data.eval_results} == {"ferplus"}


def test_a_full_card_tells_what_is_known(classifier, table, tmp_path):
    card = full_card(classifier, table, tmp_path)
    assert "# someone/toy" in card
    assert "left, right, top, bottom" in card
    assert "26903 of 28709 rows" in card and "Terms of the data: the votes are free, the pictures are not." in card
    assert "3 pictures, with 2.00 candidate labels each on average; 2 have more than one." in card
    assert "the 2 labels with the most votes, where they have at least 1; all labels tied" in card
    assert "leads by more than 0.3" in card and "1 pictures got their label that way" in card
    assert "| `learning_rate` | 0.0003 |" in card and "| `max_candidates` | 2 |" in card
    assert "Compute: 2 x a GPU, 1.50 hours, PyTorch 2.13.0, transformers 5.23.0." in card
    assert "`output_dir`" not in card and str(tmp_path) not in card  # a path of this machine is nobody's business
    assert "| FER+, validation, protocol all | 3,553 | 75.1 % | 50.3 % | 0.032 |" in card
    assert "| FER+, validation, protocol majority | 3,199 | 79.4 % | 51.1 % | 0.021 |" in card
    assert "Recall, FER+, validation, protocol all: left 90 %, right no pictures, top 25 %, bottom 50 %." in card
    assert "(evaluation/confusion_matrix_all.png)" in card and "(evaluation/confusion_matrix_majority.png)" in card
    assert "at the last epoch" not in card  # evaluate.py's figures stand in its place
    assert "`apache-2.0`, as their author declares" in card


def test_what_training_evaluated_stands_where_nothing_else_was(classifier):
    metrics = {"the evaluation set, at the last epoch": {"accuracy": 0.5, "mean_class_accuracy": 0.25, "ece": 0.1}}
    card = model_card(classifier, "toy", training=training_record({}, metrics=metrics))
    assert "| the evaluation set, at the last epoch | 50.0 % | 25.0 % | 0.100 |" in str(card)
    assert card.data.eval_results is None and "Compute" not in str(card)


def test_use_begins_with_the_crop(classifier, table, tmp_path):
    use = full_card(classifier, table, tmp_path).split("## Use")[1]
    assert use.index("cropped like the faces it was trained on") < use.index("pipeline(")
    lines = [line for line in re.search(r"```python\n(.*?)```", use, flags=re.DOTALL)[1].splitlines() if line]
    assert len(lines) == 3


def test_what_is_not_known_is_left_out(classifier):
    card = str(model_card(classifier, "toy"))
    text = card.split("## Limits")[0]
    assert "## Training" not in text and "|" not in text and "%" not in text
    assert "None were recorded" in text
    assert "license" not in card and "metrics:" not in card


def test_settings_without_a_value_are_left_out(classifier, tmp_path):
    args = FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.drop_path_rate is None
    card = str(model_card(classifier, "toy", training=training_record(args.to_dict())))
    assert "drop_path_rate" not in card and "| None |" not in card


def test_the_crop_is_stated_in_words_and_numbers(classifier, toy_config):
    crop = AutoImageProcessor.from_pretrained(CONFIGS / "fer-pll-tiny-ferplus").face_crop
    card = str(model_card(classifier, "toy", face_crop=crop))
    assert "cropped as those of FER+: 48 x 48 pixels, grey." in card
    for axis, name in enumerate("xy"):
        assert f"| {name} | " + " | ".join(str(point[axis]) for point in crop["template"]) + " |" in card
    assert "MobileFaceNet" in card and 'pipeline("facial-expression-recognition", model="toy"' in card
    assert "margin" not in card and "\n\n\n" not in card
    wide = str(model_card(classifier, "toy", face_crop={**crop, "margin": 0.25, "colour": "rgb"}))
    assert "in colour, with a margin of 25 % of the template's side" in wide
    pretraining = str(model_card(FerPllForPreTraining(toy_config), "toy", face_crop=crop))
    assert "FER+: 48 x 48" in pretraining and 'facial-expression-recognition",' not in pretraining
    assert "### The crop" not in str(model_card(classifier, "toy"))


def test_a_training_leaves_a_card_and_a_processor_with_the_crop(toy_config, toy_processor, toy_train, tmp_path):
    toy_processor.face_crop = AutoImageProcessor.from_pretrained(CONFIGS / "fer-pll-tiny-ferplus").face_crop
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train)
    trainer.save_model()
    trainer.create_model_card()
    assert "cropped as those of FER+" in (tmp_path / "README.md").read_text()
    assert AutoImageProcessor.from_pretrained(tmp_path).face_crop == toy_processor.face_crop
    # From the folder alone the same card can be made again.
    assert folder_card(tmp_path, tmp_path.name).content == (tmp_path / "README.md").read_text()
    assert "hours" not in json.loads((tmp_path / "training.json").read_text())["compute"]  # it was not trained


def test_a_model_of_single_labels_does_not_boast_of_candidate_sets(classifier):
    single = ConfidenceTable.from_candidates(np.eye(4, dtype=bool), ["left", "right", "top", "bottom"], "fingerprint")
    card = str(model_card(classifier, "toy", training=training_record({"revision": "paper"}, table=single)))
    assert "a comparison without them" in card
    assert "Eq. 4" not in card


PAPER = {"revision": "paper", "revision_threshold": 0.2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"revision": "none"}, "They were not revised"),
        ({**PAPER, "confidence_init": "uniform"}, "start equal for all"),
        ({**PAPER, "confidence_init": "votes"}, "start as the shares of the"),
        ({**PAPER, "confidence_init": "column"}, "start where an earlier training ended"),
        ({"revision": "normalized", "revision_threshold": 0.5}, "leads by more than 0.5 in the softmax"),
        ({"revision": "soft"}, "the softmax over its candidates becomes its confidences"),
        ({"revision": "prototype"}, "whose prototype is nearest"),
        ({"loss": "softmax", "revision": "none"}, "The loss did not use them: it is the cross-entropy with the given"),
        ({"loss": "soft_votes", "revision": "none"}, "cross-entropy with the shares of all votes"),
        ({"flip_probability": 0.1}, "each other label joined it with probability 0.1"),
        ({"set_size": 3, "flip_probability": 0.1}, "until there were 3"),
    ],
)
def test_the_rule_that_was_used_is_described(classifier, table, settings, expected):
    card = str(model_card(classifier, "toy", training=training_record(settings, table=table)))
    assert expected in card and "\n\n\n" not in card


def test_every_card_speaks_of_use_licence_and_source(classifier, toy_config):
    for model in (classifier, FerPllForPreTraining(toy_config)):
        card = str(model_card(model, "toy"))
        for part in ("responsible use", "consent", "Apache-2.0", "terms of their data sets", "2209.15402"):
            assert part in card
        assert "{{" not in card and "{%" not in card and "\n\n\n" not in card


def test_the_pretraining_card_promises_no_classifier(toy_config):
    card = model_card(FerPllForPreTraining(toy_config), "toy", training=training_record({"learning_rate": 1e-3}))
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "image-classification" not in str(card) and "## Results" not in str(card)
    assert "40 % of the patches hidden" in str(card)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"pretraining_target": "pixels", "pretraining_loss": "l1", "mask_style": "token"},
            "predict the pixels of hidden",
        ),
        ({"pretraining_target": "normalized_pixels"}, "over their standard deviation, of hidden patches"),
        ({"mask_style": "token"}, "(HOG) of hidden patches from the visible ones"),
    ],
)
def test_the_pretraining_card_says_what_was_predicted(toy_config, settings, says):
    for name, value in settings.items():
        setattr(toy_config, name, value)
    card = str(model_card(FerPllForPreTraining(toy_config), "toy"))
    assert says in card
    assert ("orientations in cells" in card) == (toy_config.pretraining_target == "hog")
    assert ("a mask token in their place" in card) == (toy_config.mask_style == "token")


@pytest.mark.parametrize(
    ("objective", "target", "says"),
    [
        ("masked", "hog", "predicting the histograms of oriented gradients (HOG) of hidden patches, for 3 epochs"),
        ("masked", "normalized_pixels", "predicting the normalised pixels of hidden patches, for 3 epochs"),
        ("moco", "hog", "(MoCo), for 3 epochs"),
    ],
)
def test_the_card_tells_of_the_pretraining_that_the_encoder_comes_from(
    classifier, toy_config, tmp_path, objective, target, says
):
    toy_config.pretraining_target = target
    toy_config.save_pretrained(tmp_path / "pretrained")
    args = FerPllPreTrainingArguments(str(tmp_path), objective=objective, num_train_epochs=3, use_cpu=True)
    record = training_record(args.to_dict(), data=Provenance("Toys", kept=48))
    (tmp_path / "pretrained" / "training.json").write_text(json.dumps(record))
    training = json.loads(json.dumps(training_record({"loss": "pll"}, init_from=tmp_path / "pretrained")))
    assert f"{says}. Its data: Toys: 48 rows." in str(model_card(classifier, "toy", training=training))
    for folder in (tmp_path, tmp_path / "nowhere", "owner/name"):  # someone else's
        assert training_record({}, init_from=folder)["pretraining"] is None


def test_the_card_of_moco_is_about_the_encoder(toy_config, toy_processor, toy_train, tmp_path):
    args = FerPllPreTrainingArguments(str(tmp_path), objective="moco", queue_size=8, use_cpu=True)
    model = pretraining_model(toy_config, args)
    trainer = FerPllPreTrainer(model, args, processing_class=toy_processor, train_dataset=toy_train)
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "tell two views of a picture" in card and "HOG" not in card.split("## Limits")[0].replace("hog_", "")
    assert f"{model.fer_pll.num_parameters() / 1e6:.1f} million parameters" in card
    assert "| `queue_size` | 8 |" in card
    assert "README.md" in published_files(tmp_path)
    assert folder_card(tmp_path, tmp_path.name).content == card
    AutoModel.from_pretrained(tmp_path, add_query_decoder=False)


def test_the_code_of_the_cards_runs_without_the_package(toy_config, toy_processor, tmp_path):
    code = []
    for model_class in (FerPllForImageClassification, FerPllForPreTraining):
        folder = tmp_path / model_class.__name__
        model = model_class(toy_config)
        model.save_pretrained(folder)
        toy_processor.save_pretrained(folder)
        code += re.findall(r"```python\n(.*?)```", str(model_card(model, str(folder))), flags=re.DOTALL)
    assert len(code) == 2
    code.append("import sys; assert 'fer_pll' not in sys.modules; print(encoder.query_decoder)")
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "face.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    scores, decoder = run.stdout.strip().splitlines()
    assert set(re.findall(r"'label': '(\w+)'", scores)) == {"left", "right", "top", "bottom"}
    assert decoder == "None"
