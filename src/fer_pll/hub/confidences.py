"""The confidences of a run as a data set of its own, without the images."""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, List, Value
from datasets.table import InMemoryTable
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, hf_hub_download

from ..data.dataset import numpy_column
from ..data.provenance import Provenance
from ..data.row_ids import row_ids
from ..labels.candidates import dataset_fingerprint
from ..labels.confidence_table import ConfidenceTable
from .card import TAGS
from .files import CARD_NAME
from .markdown import code, escaped, link, one_line, prose
from .push import push_files

DATA_NAME = "train.parquet"
_COLUMNS = ("row_id", "label", "candidates", "confidence", "revised_epoch")

_TEXT = """\
# Confidences of {model_id}

[{model_id}](https://huggingface.co/{model_link}) was trained with `fer-pll` on candidate sets. This data set says how
far it trusts each label of its {rows:,} training images.{images}

| column | |
|---|---|
| `row_id` | the image: its place in the files of the data set |
| `label` | the class that the data set gives; -1 where it gives none |{votes}
| `candidates` | whether each class was a candidate when training began |
| `confidence` | a share for each class, in the order of `label`; 0 outside the image's candidate set |
| `revised_epoch` | the epoch that revised the confidences last; -1 = never |

To see which labels look wrong: `fer-pll audit {repo_id} --out audit`.

Training data: {data}
{terms}
A label says what strangers saw in an image, not what a person felt. A confidence is a network's guess about it.
"""
_VOTES = "\n| `votes` | the number of annotators that chose each class |"


def confidence_dataset(table: ConfidenceTable, train: Dataset, with_images: bool = False) -> Dataset:
    """What annotators and a run say about each training row, in the order of the data set.

    Args:
        table: the confidences that the run left, see `training.run_folder.RunFolder.table_and_rows`.
        train: the N rows of its training set, in the same order.
        with_images: with the column `image`.

    Returns:
        N rows: `row_id`, the given `label`, where the set has them `votes` (K), `candidates` (K bools),
        `confidence` (K float32), and `revised_epoch`.
    """
    names = list(table.class_names)
    candidates, confidence = table.candidates.numpy(), table.confidence.numpy()
    train = train if "row_id" in train.column_names else train.add_column("row_id", row_ids(train))
    kept = ("image", "row_id", "label", "votes") if with_images else ("row_id", "label", "votes")
    rows = train.select_columns([name for name in kept if name in train.column_names])
    for name, values, kind in (("candidates", candidates, "bool"), ("confidence", confidence, "float32")):
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), len(names))
        rows = rows.add_column(name, column, feature=List(Value(kind), length=len(names)))
    return rows.add_column("revised_epoch", table.revised_epoch.numpy())


def is_published(name: str | os.PathLike) -> bool:
    """Whether a name can be a data set of confidences: a folder that holds one, or a name of the Hub's form."""
    if Path(name).exists():
        return (Path(name) / DATA_NAME).is_file()
    owner, _, rest = str(name).partition("/")
    return bool(owner and rest) and "/" not in rest


def confidences_from_hub(name: str | os.PathLike) -> tuple[Dataset, ConfidenceTable]:
    """The data set that `push_confidences` published, from the Hub or from a folder of its files.

    Returns:
        N rows with the columns of `confidence_dataset`, and the table that the run left, with the run's fingerprint.

    Raises:
        ValueError: there is no such data set, or it does not hold confidences.
    """
    try:
        if Path(name).exists():
            file = str(Path(name) / DATA_NAME)
        else:
            file = hf_hub_download(str(name), DATA_NAME, repo_type="dataset")
        rows = Dataset(InMemoryTable(pq.read_table(file)))
    except Exception as error:  # of any kind from a damaged file; OSError from the name, the network, the Hub, Parquet
        raise ValueError(
            f"{name} is no folder here, and no data set of confidences that can be read from the Hub "
            f"({type(error).__name__}: {error})"
        ) from error
    missing = [column for column in _COLUMNS if column not in rows.column_names]
    if missing or not isinstance(rows.features["label"], ClassLabel):
        lacks = ", ".join(missing) or "the names of its classes"
        raise ValueError(
            f"{name} is no data set of confidences that can be audited: it lacks {lacks}. If an earlier version "
            "published it, publish it again with `fer-pll push --with-confidences`."
        )
    names = rows.features["label"].names
    candidates = numpy_column(rows, "candidates")
    table = ConfidenceTable.from_candidates(
        candidates,
        names,
        dataset_fingerprint(names, rows.select_columns("row_id")["row_id"], candidates),
        "column",
        confidence=numpy_column(rows, "confidence"),
    )
    table.revised_epoch = torch.tensor(numpy_column(rows, "revised_epoch"), dtype=torch.int32)
    return rows, table


def push_confidences(
    dataset: Dataset, repo_id: str, model_id: str, license: str | None = None, private: bool | None = None
) -> CommitInfo:
    """Push a `confidence_dataset` with a card of its own to a data set repository.

    Raises:
        PushError: the push failed.
    """
    provenance = Provenance.from_dataset(dataset)
    terms = provenance and provenance.terms()
    text = _TEXT.format(
        model_id=escaped(model_id),
        model_link=link(model_id),
        repo_id=code(repo_id),
        rows=len(dataset),
        images=" The images are in it." if "image" in dataset.column_names else " The images are not in it.",
        votes=_VOTES if "votes" in dataset.column_names else "",
        data=prose(provenance.sentence()) if provenance else "not described.",
        terms=f"\nIts terms: {prose(terms)}\n" if terms else "",
    )
    card_data = DatasetCardData(license=license, tags=TAGS, pretty_name=one_line(f"Confidences of {model_id}"))
    with tempfile.TemporaryDirectory() as folder:
        dataset.to_parquet(Path(folder) / DATA_NAME)
        DatasetCard(f"---\n{card_data}\n---\n\n{text}").save(Path(folder) / CARD_NAME)
        return push_files(
            folder,
            [CARD_NAME, DATA_NAME],
            repo_id,
            repo_type="dataset",
            commit_message="Upload confidences",
            private=private,
        )
