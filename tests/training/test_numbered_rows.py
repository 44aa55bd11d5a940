"""Which row is which is the trainer's business: any data set with images and candidates trains."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, concatenate_datasets

from fer_pll.data.row_ids import row_ids
from fer_pll.training.numbered_rows import NumberedRows
from tiny import make_dataset, make_images, make_trainer


def with_column(dataset: Dataset, name: str, values: list) -> Dataset:
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, values)


DATA_SETS = {
    "filtered": lambda rows: rows.filter(lambda label: label != 2, input_columns="label"),
    "selected": lambda rows: rows.select(range(40, 8, -1)),
    "shuffled and flattened": lambda rows: rows.shuffle(seed=1).flatten_indices(),
    "concatenated": lambda rows: concatenate_datasets([rows.select(range(20)), make_dataset(24, seed=5)]),
    "with itself": lambda rows: concatenate_datasets([rows.select(range(24)), rows.select(range(24))]),
    "one name for all": lambda rows: with_column(rows, "row_id", ["a"] * len(rows)),
    "without names": lambda rows: rows.remove_columns("row_id"),
    "an index of its own": lambda rows: with_column(rows, "index", list(range(1000, 1000 + len(rows)))),
    "an index that is no number": lambda rows: with_column(rows, "index", [f"n{i}" for i in range(len(rows))]),
    "the index of before": lambda rows: with_column(rows, "index", list(range(len(rows)))),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_trains_and_its_rows_keep_their_places(
    tmp_path, toy_config, toy_processor, toy_train, toy_validation, name
):
    rows = DATA_SETS[name](toy_train)
    validation = toy_validation.select_columns(["image", "label"])
    if "index" in name:
        validation = DATA_SETS[name](toy_validation)
    trainer = make_trainer(
        tmp_path, toy_config, toy_processor, rows, validation, revision_threshold=0.0, save_strategy="epoch"
    )
    seen = {}
    collate = trainer.data_collator

    def observe(batch):
        if trainer.model.training:
            seen.update((row["index"], (row["image"].tobytes(), row["candidates"])) for row in batch)
        return collate(batch)

    trainer.data_collator = observe
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()
    assert trainer.train_dataset is rows
    assert seen == {i: (row["image"].tobytes(), row["candidates"]) for i, row in enumerate(rows)}

    # With the threshold 0 every ambiguous row is decided, inside its own candidate set.
    revised = trainer.revised_dataset()
    assert revised.column_names[: len(rows.column_names)] == rows.column_names
    candidates, confidence = np.array(rows["candidates"][:]), np.array(revised["confidence"][:])
    assert (confidence.max(axis=1) == 1).all() and candidates[np.arange(len(rows)), confidence.argmax(axis=1)].all()
    assert np.array_equal(np.array(revised["revised_epoch"][:]) >= 0, candidates.sum(axis=1) > 1)
    for column in rows.column_names:
        if column != "image":
            assert revised[column][:] == rows[column][:]

    # What was saved belongs to these rows, in this order.
    again = make_trainer(tmp_path, toy_config, toy_processor, rows, save_strategy="epoch")
    again.check_checkpoint(str(tmp_path / f"checkpoint-{trainer.state.max_steps}"))


def test_a_column_index_changes_nothing(tmp_path, toy_config, toy_processor, toy_train):
    """Random numbers are keyed by the place of a row, which its number was before."""
    settings = {"crop_scale": 0.7, "rotation": 10, "light": 0.3, "class_balance": "sampler"}
    trainers = [
        make_trainer(tmp_path, toy_config, toy_processor, rows, **settings)
        for rows in (toy_train, with_column(toy_train, "index", list(range(47, -1, -1))))
    ]
    for trainer in trainers:
        trainer.train()
    one, other = trainers
    assert torch.equal(one.table.confidence, other.table.confidence)
    for weight, same in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(weight, same)


@pytest.mark.parametrize("named", [True, False])
def test_the_table_of_other_rows_or_another_order_is_refused(tmp_path, toy_config, toy_processor, toy_train, named):
    # One candidate set for all, so that nothing but the rows' names tells them apart.
    rows = with_column(toy_train, "candidates", [[True, True, False, False]] * 48)
    rows = rows if named else rows.remove_columns("row_id")
    make_trainer(tmp_path, toy_config, toy_processor, rows, save_strategy="epoch").train()
    checkpoint = str(tmp_path / "checkpoint-3")
    make_trainer(tmp_path, toy_config, toy_processor, rows).check_checkpoint(checkpoint)
    images = make_images(np.arange(48) % 4, seed=9)
    others = {
        "another order": rows.select([1, 0, *range(2, 48)]),
        "a row less": rows.select(range(47)),
        "other names": with_column(rows, "row_id", [f"x{i}" for i in range(48)]),
        "other images": rows.remove_columns(["image", *(["row_id"] if named else [])]).add_column(
            "image", [{"bytes": None, "path": f"{i}.png"} for i in range(48)], feature=Image()
        ),
        "new images": rows.map(lambda row, i: {"image": images[i]}, with_indices=True).remove_columns(
            ["row_id"] if named else []
        ),
    }
    for other in others.values():
        with pytest.raises(ValueError, match="fingerprint"):
            make_trainer(tmp_path, toy_config, toy_processor, other).check_checkpoint(checkpoint)


def test_names_are_made_of_what_is_stored_and_nothing_is_decoded(tmp_path):
    (tmp_path / "b.png").write_bytes(b"another")
    stored = [
        {"bytes": b"no image at all", "path": None},
        {"bytes": b"no image at all", "path": "a.png"},
        {"bytes": b"another", "path": "a.png"},
        {"bytes": None, "path": "absent.png"},
        {"bytes": None, "path": str(tmp_path / "b.png")},
        None,
    ]
    rows = Dataset.from_dict({"image": stored}).cast_column("image", Image())
    names = row_ids(rows)
    assert names[0] == names[1] and names[2] == names[4] and len(set(names)) == 4
    assert all(len(name) == 64 for name in names)
    part = rows.select([4, 0])
    assert row_ids(part) == [names[4], names[0]]
    part.save_to_disk(tmp_path / "set")
    (tmp_path / "b.png").unlink()  # its bytes are in the set now
    assert row_ids(Dataset.load_from_disk(tmp_path / "set")) == [names[4], names[0]]
    pixels = Dataset.from_dict({"image": [[[0, 1]], [[1, 0]], [[0, 1]]]})
    assert row_ids(pixels)[0] == row_ids(pixels)[2] != row_ids(pixels)[1]
    named = with_column(rows, "row_id", list("abcdef"))
    assert row_ids(named)[:] == list("abcdef") and row_ids(named.with_format("numpy"))[:] == list("abcdef")


def test_rows_and_batches_carry_their_places(toy_train):
    rows = NumberedRows(with_column(toy_train, "index", [-1] * 48))
    assert len(rows) == 48 and rows[7]["index"] == 7 and rows[7]["row_id"] == "row:7"
    batch = rows.__getitems__([5, 3, 5])
    assert [row["index"] for row in batch] == [5, 3, 5]
    assert [row["row_id"] for row in batch] == ["row:5", "row:3", "row:5"]
    assert batch[1]["image"].tobytes() == toy_train[3]["image"].tobytes()
