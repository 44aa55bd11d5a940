"""Provenance: kept with a data set, told in one sentence, and read where an earlier version wrote prose."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from fer_pll.data.provenance import Provenance

TRAIN = Provenance(
    "FER+",
    "ferplus",
    "train",
    protocol="all",
    kept=26903,
    dropped={"not in protocol all": 320, "copy of an earlier training image": 1486, "that could not be used": 0},
    license="free for all.",
)
SENTENCE = (
    "FER+ train, protocol all: 26903 of 28709 rows; dropped: 320 not in protocol all, 1486 copy of an earlier "
    "training image"
)


def rows(provenance: Provenance | None = None) -> Dataset:
    dataset = Dataset.from_dict({"number": list(range(10))})
    if provenance is not None:
        provenance.attach(dataset)
    return dataset


def test_it_stays_through_what_one_does_with_a_data_set(tmp_path):
    dataset = rows(TRAIN)
    some = dataset.select(range(8)).filter(lambda number: number > 3, input_columns="number")
    some.add_column("more", [0] * len(some)).save_to_disk(tmp_path / "set")
    assert Provenance.from_dataset(load_from_disk(tmp_path / "set")) == TRAIN
    assert load_from_disk(tmp_path / "set").info.license == "free for all."


def test_sets_that_are_put_together_keep_that_of_each():
    other = Provenance("RAF-DB", "rafdb", "train", kept=5, license="on request.")
    both = Provenance.from_dataset(concatenate_datasets([rows(TRAIN), rows(other)]))
    assert both == Provenance(parts=[TRAIN, other])
    assert both.title() == "FER+ + RAF-DB" and both.terms() == "free for all. on request."
    assert both.sentence() == f"{SENTENCE}; RAF-DB train: 5 rows"
    assert Provenance.from_json(json.loads(json.dumps(both.to_dict()))) == both
    assert Provenance.from_dataset(rows(both)) == both
    assert Provenance.from_dataset(concatenate_datasets([rows(other), rows(other)])) == other


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, SENTENCE),
        ({"dropped": {"that could not be used": 0}}, "FER+ train, protocol all: 26903 rows"),
        ({"name": None, "protocol": None, "kept": None}, "unnamed data train"),
        ({"name": None, "hub_id": "a/b", "dropped": {}}, "a/b train, protocol all: 26903 rows"),
        (
            {
                "split": "held_out",
                "drawn_votes": {"number": 2, "seed": 5},
                "corrections": [{"file": "marks.csv", "relabeled": 3, "dropped": 1}],
                "held_out": {"of": "train", "rows": 1345, "seed": 0},
            },
            f"{SENTENCE}; 2 votes drawn for each row (seed 5); 3 rows relabeled and 1 dropped by marks.csv; "
            "held_out: 1345 of them (seed 0)",
        ),
    ],
)
def test_the_sentence(changes, sentence):
    provenance = replace(TRAIN, **changes)
    assert provenance.sentence() == sentence
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_dict()))) == provenance
    assert provenance.to_dict()["sentence"] == sentence


@pytest.mark.parametrize(
    ("text", "name", "split"),
    [
        ("FER+ validation, protocol all: 3553 of 3589 rows; dropped: 36 not in protocol all", "FER+", "validation"),
        ("FER+ train, protocol all: 9 of 9 rows; dropped: 0 x; held_out: 3 of them (seed 0)", "FER+", "held_out"),
        ("FER+ train, protocol all: 9 of 9 rows; dropped: 0 x; train: 6 of them (seed 0)", "FER+", "train"),
        ("RAF-DB train: 12271 images", "RAF-DB", "train"),
        ("AffectNet-7 validation: 3500 images", "AffectNet-7", "validation"),
        ("data", "data", None),
        ("A data set of many words,\n\nin paragraphs", "A data set of many words", None),
        ("A sentence without any mark that goes on and on as descriptions on the Hub do", None, None),
    ],
)
def test_prose_of_before_is_kept_and_read_as_far_as_it_can_be(text, name, split):
    dataset = rows()
    dataset.info.description, dataset.info.license = text, "on request."
    found = Provenance.from_dataset(dataset)
    assert (found.name, found.split, found.license) == (name, split, "on request.")
    assert found.sentence() == text
    assert Provenance.from_json(json.loads(json.dumps(found.to_dict()))) == found


def test_what_is_not_known():
    assert Provenance.from_dataset(rows()) is None and Provenance.from_json(None) is None
    assert Provenance.from_json({"name": "FER+", "of_a_later_version": 1}) == Provenance("FER+")


@pytest.mark.parametrize(
    ("provenance", "kind"),
    [
        (TRAIN, "ferplus"),
        (Provenance("AffectNet-7"), "affectnet-7"),
        (Provenance("drawn faces"), "drawn-faces"),
        (Provenance(hub_id="someone/faces"), "someone/faces"),
        (Provenance(), "unnamed-data"),
    ],
)
def test_the_type_for_the_hub(provenance, kind):
    assert provenance.dataset_type() == kind
