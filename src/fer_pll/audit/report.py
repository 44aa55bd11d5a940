"""`fer-pll audit`: which labels of a training set look wrong, as a table, a figure and a page to look through."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from datasets import Dataset, Image

from ..data.dataset import numpy_column
from ..data.row_ids import row_ids
from ..hub.confidences import confidences_from_hub, is_published
from ..io.atomic import whole_file, write_text
from ..io.tables import FORMATS, TableWriter
from ..labels.confidence_table import ConfidenceTable
from ..metrics.classification import accuracy, confusion_matrix
from ..plots.audit import plot_audit
from ..training.finetuning import FineTuningOptions
from ..training.run_folder import RunFolder, training_rows
from .label_quality import (
    STRUCK_OUT,
    annotator_confusion,
    corrected_labels,
    posterior_given_predictions,
    suspicion,
    training_posterior,
)
from .out_of_fold import out_of_fold
from .page import write_page

PAGE_NAME, TABLE_NAME, FIGURE_NAME = "audit.html", "audit.csv", "audit.png"
_PAIRS = 10  # that the summary lists


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """What is known of the labels of N rows, K classes.

    Args:
        table: the confidences that a training left, with its candidate sets.
        row_ids: N strings.
        votes: (N, K), >= 0: what annotators chose; without votes a one for the label or, where there is none either,
            for each of the initial candidates.
        from_votes: whether they are votes.
        given: (N,) the labels to judge: the column `label`, where it is undefined the most voted.
        posterior: (N, K) float64, see `suspicion`.
        num_folds: of the cross-validation that the posterior comes from, 0 where it comes from the table.
        true_labels: (N,), -1 = unknown; `None` where none is known.
    """

    table: ConfidenceTable
    row_ids: Sequence[str]
    votes: np.ndarray
    from_votes: bool
    given: np.ndarray
    posterior: np.ndarray
    num_folds: int
    true_labels: np.ndarray | None

    @classmethod
    def of(
        cls, dataset: Dataset, table: ConfidenceTable, probabilities: np.ndarray | None = None, num_folds=0
    ) -> Self:
        """Of the rows of a table, in its order, and out-of-fold predictions (N, K) for them, if there are any."""
        candidates = table.candidates.numpy()
        given = numpy_column(dataset, "label").astype(np.int64)
        from_votes = "votes" in dataset.column_names
        if from_votes:
            votes = numpy_column(dataset, "votes")
        else:
            votes = np.where((given >= 0)[:, None], np.arange(candidates.shape[1]) == given[:, None], candidates)
        given = np.where(given >= 0, given, votes.argmax(axis=1))
        if probabilities is None:
            posterior = training_posterior(table.confidence.numpy(), votes)
        else:
            posterior = posterior_given_predictions(probabilities, votes).posterior
        truth = numpy_column(dataset, "true_label") if "true_label" in dataset.column_names else None
        return cls(table, row_ids(dataset)[:], votes.astype(np.int64), from_votes, given, posterior, num_folds, truth)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.table.class_names

    @cached_property
    def score(self) -> np.ndarray:
        """Suspicion of each row, (N,), see `suspicion`."""
        return suspicion(self.posterior, self.given)

    @cached_property
    def corrected(self) -> np.ndarray:
        """The label that is believed most, (N,) int64."""
        return corrected_labels(self.posterior, self.given)

    @cached_property
    def struck_out(self) -> np.ndarray:
        """(N, K) bool: candidates to begin with, without confidence in the end."""
        return self.table.candidates.numpy() & (self.table.confidence.numpy() < STRUCK_OUT)

    @cached_property
    def order(self) -> np.ndarray:
        """The rows, the most suspicious first; as suspicious ones in their own order."""
        return np.argsort(-self.score, kind="stable")

    @property
    def source(self) -> str:
        """What the rows are judged by."""
        if self.num_folds:
            return f"models that have not seen them, out of {self.num_folds} folds"
        return "the confidences that their training left"

    def counts(self) -> np.ndarray:
        """Rows by class pair, (K, K) int64: row = given label, column = corrected."""
        return confusion_matrix(self.corrected, self.given, len(self.class_names))

    def pairs(self) -> list[tuple[int, int, int, float]]:
        """(given, corrected, rows, mean suspicion) of the class pairs that differ, those of most rows first."""
        counts = self.counts()
        np.fill_diagonal(counts, 0)
        pairs = sorted(zip(*np.nonzero(counts), strict=True), key=lambda pair: -counts[pair])
        means = {pair: self.score[(self.given == pair[0]) & (self.corrected == pair[1])].mean() for pair in pairs}
        return [(int(a), int(b), int(counts[a, b]), float(means[a, b])) for a, b in pairs]

    def annotators(self) -> np.ndarray:
        """What annotators say of the faces that are believed to show each class, (K, K), see `annotator_confusion`."""
        return annotator_confusion(self.posterior, self.votes)

    def __str__(self) -> str:
        """The summary for the console."""
        names, pairs = self.class_names, self.pairs()
        width = max(map(len, (*names, "corrected")))
        differ = sum(rows for _, _, rows, _ in pairs)
        number = len(self.given)
        lines = [f"{number:,} rows, judged by {self.source}", f"{differ:,} ({differ / number:.1%}) get another label"]
        if not self.num_folds:
            alone = int((self.table.candidates.sum(dim=1) == 1).sum())
            lines.append(
                f"{alone:,} rows have one candidate, which no training doubts: --cross-validate judges them too"
            )
        known = None if self.true_labels is None else self.true_labels >= 0
        if known is not None and known.any():
            truth = self.true_labels[known]
            before, after = accuracy(self.given[known], truth), accuracy(self.corrected[known], truth)
            lines.append(f"label recovery: {before:.1%} as given, {after:.1%} corrected ({len(truth):,} known labels)")
        if pairs:
            lines.append(f"\n{'given':<{width}}    {'corrected':<{width}} {'rows':>8}  mean suspicion")
        for given, corrected, rows, score in pairs[:_PAIRS]:
            lines.append(f"{names[given]:<{width}} -> {names[corrected]:<{width}} {rows:>8,}  {score:.2f}")
        if len(pairs) > _PAIRS:
            lines.append(f"and {len(pairs) - _PAIRS} more pairs")
        if self.from_votes:
            shares = self.annotators()
            np.fill_diagonal(shares, 0)
            lines.append(
                f"\n{'the face shows':<{max(width, 14)}}    {'annotators say':<{width}}  share of their votes"
            )
            for place in np.argsort(-shares, axis=None, kind="stable")[:_PAIRS]:
                shown, said = np.unravel_index(place, shares.shape)
                lines.append(
                    f"{names[shown]:<{max(width, 14)}} -> {names[said]:<{max(width, 14)}}  {shares[shown, said]:.1%}"
                )
        return "\n".join(lines)

    def columns(self) -> dict[str, type]:
        """The columns of the table, with their types."""
        columns = {"row_id": str, "index": int, "suspicion": float, "given": str, "corrected": str}
        columns |= {"candidates": str, "struck_out": str, "revised_epoch": int}
        if self.true_labels is not None:
            columns["true_label"] = str
        for kind, number in self._numbers():
            columns |= {f"{kind}_{name}": int if number.dtype.kind == "i" else float for name in self.class_names}
        return columns

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the table, the most suspicious first."""
        names, epochs = np.array(self.class_names), self.table.revised_epoch.tolist()
        candidates = self.table.candidates.numpy()
        for i in self.order.tolist():
            row = {"row_id": self.row_ids[i], "index": i, "suspicion": round(float(self.score[i]), 6)}
            row |= {"given": str(names[self.given[i]]), "corrected": str(names[self.corrected[i]])}
            row |= {"candidates": "|".join(names[candidates[i]]), "struck_out": "|".join(names[self.struck_out[i]])}
            row["revised_epoch"] = epochs[i] if epochs[i] >= 0 else None
            if self.true_labels is not None:
                row["true_label"] = str(names[self.true_labels[i]]) if self.true_labels[i] >= 0 else None
            for kind, numbers in self._numbers():
                values = numbers[i].round(6).tolist()
                row |= {f"{kind}_{name}": value for name, value in zip(self.class_names, values, strict=True)}
            yield row

    def _numbers(self) -> list[tuple[str, np.ndarray]]:
        """What the table has for each class."""
        numbers = [("votes", self.votes)] if self.from_votes else []
        numbers.append(("confidence", self.table.confidence.double().numpy()))
        return [*numbers, ("belief", self.posterior)] if self.num_folds else numbers


def read_run(run: str | Path, data: str | Path | None = None) -> tuple[Dataset, ConfidenceTable]:
    """The training set of a run and the confidences that the run left.

    Args:
        run: output folder of `fer-pll finetune`, or any folder that `FerPllTrainer.save_confidence` wrote to; or
            confidences that were published, by their name on the Hub, which have no images.
        data: folder of the prepared data set; where not given, what the run's settings name.

    Raises:
        ValueError: no confidences, no data set, or not the data set of the run.
    """
    if not is_published(run):
        table, rows = RunFolder(run).table_and_rows(data)
        return rows, table
    rows, table = confidences_from_hub(run)
    return (rows if data is None else training_rows(table, data, str(run))), table


def check_pictures(dataset: Dataset) -> None:
    """Raise `ValueError` naming the first row whose image is not in the data set; decodes none."""
    if "image" not in dataset.column_names:
        return
    for row in dataset.select_columns(["row_id", "image"]).cast_column("image", Image(decode=False)):
        image = row["image"]
        if image is None or (image["bytes"] is None and not Path(image["path"] or "").is_file()):
            place = image["path"] if image else "the row has none"
            raise ValueError(f"row {row['row_id']}: its picture is missing ({place}): prepare the data set again.")


def cross_validate(run: RunFolder, dataset: Dataset, table: ConfidenceTable, num_folds: int) -> np.ndarray:
    """Out-of-fold predictions (N, K) by models with the settings of a run, in whose folder the folds are kept."""
    if is_published(run.path):
        raise ValueError("--cross-validate trains models: name the folder of the run, not its published confidences.")
    folder = run.out_of_fold
    script, args = FineTuningOptions.of_run(
        run.path,
        output_dir=str(folder),
        overwrite=False,
        resume_from_checkpoint=None,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        push_to_hub=False,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=not sys.stderr.isatty(),
    )
    dataset = dataset.remove_columns([name for name in ("candidates",) if name in dataset.column_names])
    dataset = dataset.add_column("candidates", list(table.candidates.numpy()))
    return out_of_fold(
        dataset, lambda rows: script.make_trainer(args, rows), num_folds, folder, run.settings, args.seed
    )


def run_audit(
    run: str,
    out: str,
    data: str | None = None,
    table: str | None = None,
    num_folds: int | None = None,
    page_rows: int = 30_000,
    overwrite: bool = False,
) -> LabelAudit:
    """Audit the labels of a run's training set; print the summary, write table, figure and page to `out`.

    Args:
        run: output folder of `fer-pll finetune`, or any that `FerPllTrainer.save_confidence` wrote to.
        out: folder, made where there is none.
        data: folder of the prepared data set; where not given, what the run's settings name.
        table: file of the table, .csv, .jsonl or .parquet; `audit.csv` in `out` where not given.
        num_folds: train as many models, each on the rows outside its fold, and judge by these.
        page_rows: rows that the page shows, the most suspicious.
        overwrite: replace the files of an earlier audit.

    Raises:
        ValueError: for what is wrong with run, data or output; nothing is written then.
    """
    folder = Path(out)
    files = [Path(table) if table else folder / TABLE_NAME, folder / FIGURE_NAME, folder / PAGE_NAME]
    for path in files:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} is there already: choose another --out, or --overwrite to replace it.")
    if files[0].suffix.lower() not in FORMATS:
        raise ValueError(f"--table {table}: the ending says the format of the table: use {', '.join(FORMATS)}")
    if page_rows < 1:
        raise ValueError(f"--page-rows {page_rows}: a page shows at least one row.")
    confidences, dataset = RunFolder(run).table_and_rows(data)
    check_pictures(dataset)
    probabilities = None
    if num_folds is not None:
        probabilities = cross_validate(RunFolder(run), dataset, confidences, num_folds)
    audit = LabelAudit.of(dataset, confidences, probabilities, num_folds or 0)
    images = dataset.select_columns("image") if "image" in dataset.column_names else None
    page = write_page(audit, images, Path(run).name + (", without its images" if images is None else ""), page_rows)

    folder.mkdir(parents=True, exist_ok=True)
    writer = TableWriter(files[0], audit.columns(), overwrite)
    for row in audit.rows():
        writer.write(row)
    writer.close(whole=True)
    with whole_file(files[1]) as unfinished:
        plot_audit(audit.counts(), audit.annotators(), audit.class_names, unfinished, audit.source)
    write_text(files[2], page)
    print(audit)
    if images is None:
        print(f"\n{run} has no images, so the page shows none: name the prepared data set with --data")
    print(f"\ntable    {files[0]}\nfigure   {files[1]}\npage     {files[2]}  (open it in a browser)")
    return audit
