"""The confidences of a training as a data set of their own: what it made of the annotators, without their pictures."""

import tempfile
from pathlib import Path

import pyarrow as pa
from datasets import ClassLabel, Dataset, List, Value
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from ..data.row_ids import row_ids
from ..labels.confidence_table import ConfidenceTable
from .card import TAGS
from .files import CARD_NAME
from .push import push_files

DATA_NAME = "train.parquet"

_TEXT = """\
# Confidences of {model_id}

What [{model_id}](https://huggingface.co/{model_id}), trained with `fer-pll` on candidate sets, makes of the labels of
its {rows:,} training pictures.{images}

| column | |
|---|---|
| `row_id` | which picture it is; the rows are in the order of the prepared data set |
| `label` | the class of the largest confidence |
| `confidence` | a share for each class, in the order of `label`; 0 outside the picture's candidate set |

Training data: {data}
{terms}
A label says what strangers saw in a picture, not what a person felt; a confidence is a guess of a network about it.
"""


def confidence_dataset(table: ConfidenceTable, train: Dataset, with_images: bool = False) -> Dataset:
    """N rows `row_id`, `label`, `confidence` and, `with_images`, `image`, in the order of the training set.

    Args:
        table: the confidences that a training left, see `RunFolder.table_and_rows`.
        train: the N rows of its training set, in the same order.
        with_images: see above.
    """
    names = list(table.class_names)
    confidence = pa.FixedSizeListArray.from_arrays(table.confidence.numpy().reshape(-1), len(names))
    rows = train if "row_id" in train.column_names else train.add_column("row_id", row_ids(train))
    rows = rows.select_columns(["image", "row_id"] if with_images else ["row_id"])
    rows = rows.add_column("label", table.labels().numpy(), feature=ClassLabel(names=names))
    return rows.add_column("confidence", confidence, feature=List(Value("float32"), length=len(names)))


def push_confidences(
    dataset: Dataset, repo_id: str, model_id: str, license: str | None = None, private: bool | None = None
) -> CommitInfo:
    """Push a `confidence_dataset` with a card of its own to a data set repository.

    Raises:
        PushError: it did not come through.
    """
    text = _TEXT.format(
        model_id=model_id,
        rows=len(dataset),
        images=" The pictures are in it." if "image" in dataset.column_names else " The pictures are not in it.",
        data=dataset.info.description or "not described.",
        terms=f"\nIts terms: {dataset.info.license}\n" if dataset.info.license else "",
    )
    card_data = DatasetCardData(license=license, tags=TAGS, pretty_name=f"Confidences of {model_id}")
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
