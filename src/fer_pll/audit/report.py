"""`fer-pll audit`: the labels of a training set that look wrong, as a table, a figure and a page to look through."""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset, Image

from ..hub.confidences import confidences_from_hub, is_published
from ..io.atomic import check_local, check_writable, write_text
from ..io.tables import FORMATS, TableWriter
from ..io.terminal import say
from ..labels.confidence_table import ConfidenceTable
from ..plots.audit import plot_audit
from ..training.finetuning import FineTuningOptions
from ..training.idle_revision import why_unrevised
from ..training.run_folder import RunFolder, training_rows
from .label_audit import LabelAudit
from .out_of_fold import out_of_fold
from .page import write_page
from .row_heat_maps import RowHeatMaps

PAGE_NAME, TABLE_NAME, FIGURE_NAME = "audit.html", "audit.csv", "audit.png"


def read_run(run: str | Path, data: str | Path | None = None) -> tuple[Dataset, ConfidenceTable]:
    """The training set of a run and the confidences that the run left.

    Args:
        run: output folder of `fer-pll finetune`, or any folder that `FerPllTrainer.save_confidence` wrote to; or the
            Hub name of published confidences, which have no images.
        data: folder of the prepared data set (default: the one in the run's settings).

    Raises:
        ValueError: there are no confidences, no data set, or it is not the data set of the run.
    """
    if not is_published(run):
        table, rows = RunFolder(run).table_and_rows(data)
        return rows, table
    rows, table = confidences_from_hub(run)
    return (rows if data is None else training_rows(table, data, str(run))), table


def check_images(dataset: Dataset) -> None:
    """Raise a `ValueError` that names the first row whose image is missing. No image is decoded."""
    if "image" not in dataset.column_names:
        return
    for row in dataset.select_columns(["row_id", "image"]).cast_column("image", Image(decode=False)):
        image = row["image"]
        if image is None or (image["bytes"] is None and not Path(image["path"] or "").is_file()):
            place = image["path"] if image else "the row has none"
            raise ValueError(f"row {row['row_id']}: its image is missing ({place}): prepare the data set again.")


def cross_validate(run: RunFolder, dataset: Dataset, table: ConfidenceTable, num_folds: int) -> np.ndarray:
    """Out-of-fold predictions (N, K) by models with the settings of a run. The folds are kept in the run's folder."""
    if is_published(run.path):
        raise ValueError("--cross-validate trains models: name the folder of the run, not its published confidences.")
    folder = run.out_of_fold
    script, args = FineTuningOptions.from_run(
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
        dataset, lambda rows: script.for_fold().make_trainer(args, rows), num_folds, folder, run.settings, args.seed
    )


def run_audit(
    run: str,
    out: str,
    data: str | None = None,
    table: str | None = None,
    num_folds: int | None = None,
    page_rows: int = 30_000,
    overwrite: bool = False,
    safe_csv: bool = False,
    explain: int = 0,
) -> LabelAudit:
    """Audit the labels of a run's training set: print the summary; write table, figure and page to `out`.

    Args:
        run: see `read_run`.
        out: folder; made if it does not exist.
        data: folder of the prepared data set (default: the one in the run's settings).
        table: file of the table, .csv, .jsonl or .parquet (default: `audit.csv` in `out`).
        num_folds: train this many models, each on the rows outside its fold, and judge by them.
        page_rows: number of rows on the page, the most suspicious first.
        overwrite: replace the files of an earlier audit.
        safe_csv: see `TableWriter`.
        explain: the page gets heat maps of so many rows, the most suspicious.

    Raises:
        ValueError: something is wrong with run, data or output. Nothing is written then.
    """
    check_local(out)
    folder = Path(out)
    files = [Path(table) if table else folder / TABLE_NAME, folder / FIGURE_NAME, folder / PAGE_NAME]
    for path in files:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} is there already: choose another --out, or --overwrite to replace it.")
    for path in {folder, files[0].parent}:
        check_writable(path)
    if files[0].suffix.lower() not in FORMATS:
        raise ValueError(f"--table {table}: the ending says the format of the table: use {', '.join(FORMATS)}")
    if page_rows < 1:
        raise ValueError(f"--page-rows {page_rows}: a page shows at least one row.")
    if files[0].parent != folder and not files[0].parent.is_dir():
        raise ValueError(f"--table {table}: there is no folder {files[0].parent}: make it first")
    dataset, confidences = read_run(run, data)
    check_images(dataset)
    probabilities = None
    if num_folds is not None:
        probabilities = cross_validate(RunFolder(run), dataset, confidences, num_folds)
    audit = LabelAudit.from_run_rows(dataset, confidences, probabilities, num_folds or 0)
    images = dataset.select_columns("image") if "image" in dataset.column_names else None
    why = None
    if explain:
        if images is None or is_published(run):
            raise ValueError(
                f"--explain {explain}: heat maps need the model and the images of a run, and {run} has only its "
                "confidences: name the folder of the run, or leave --explain out"
            )
        why = RowHeatMaps.of_run(run, audit, images, min(explain, page_rows))
    title = Path(run).name + (", without its images" if images is None else "")
    page = write_page(audit, images, title, page_rows, why)

    folder.mkdir(parents=True, exist_ok=True)
    writer = TableWriter(files[0], audit.columns(), overwrite, safe_csv)
    for row in audit.rows():
        writer.write(row)
    writer.close(whole=True)
    plot_audit(audit.counts(), audit.annotators(), audit.class_names, files[1], audit.source)
    write_text(files[2], page)
    say(audit)
    reason = None if is_published(run) else why_unrevised(confidences, RunFolder(run))
    if reason is not None:
        say("", f"no row was revised in this run, because {reason}")
    if images is None:
        say("", f"{run} has no images, so the page shows none: name the prepared data set with --data")
    say("", f"table    {files[0]}", f"figure   {files[1]}", f"page     {files[2]}  (open it in a browser)")
    return audit
