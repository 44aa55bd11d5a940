"""Tables of predictions, written row by row, that bear their name only when they are whole."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS_PER_GROUP = 4096


class TableWriter:
    """Writes rows to `path` as CSV, JSONL or Parquet, by its ending.

    Rows go to `NAME.partial.ENDING` beside it; `close(whole=True)` renames that to `path`. So what was cut off, by
    Ctrl-C or by a full disk, keeps the name that says so. With `close(whole=False)` it is a well-formed table of the
    rows so far.

    Args:
        path: of the table.
        columns: their names with their Python types (`str`, `int`, `float`); any value may be None, which is an empty
            field in CSV.
        overwrite: replace a table that is there.

    Raises:
        ValueError: another ending, or a table of that name is there.
        OSError: the folder is not there, or cannot be written to.
    """

    def __init__(self, path: str | Path, columns: dict[str, type], overwrite: bool = False):
        self.path = Path(path)
        ending = self.path.suffix.lower()
        if ending not in FORMATS:
            raise ValueError(f"{path}: the ending says the format of the table: use {', '.join(FORMATS)}")
        if self.path.exists() and not overwrite:
            raise ValueError(f"{path} is there already: choose another name, or --overwrite to replace it")
        if not self.path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {self.path.parent}: make it first")
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self._columns = columns
        self._write, self._finish = {".csv": self._csv, ".jsonl": self._jsonl, ".parquet": self._parquet}[ending]()

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; it has every column."""
        with self._named():
            self._write([row[name] for name in self._columns])

    def close(self, whole: bool) -> Path:
        """Ends the file and gives it its name; returns where it is."""
        with self._named():
            self._finish()
        if not whole:
            return self.partial
        self.partial.replace(self.path)
        return self.path

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the name of the file to an error that has none, such as that of a full disk."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror or error}; what is there is no whole table"
            raise OSError(error.errno, reason, str(self.partial)) from error

    def _csv(self):
        file = self.partial.open("w", newline="", encoding="utf-8")
        writer = csv.writer(file)
        writer.writerow(self._columns)
        return writer.writerow, file.close

    def _jsonl(self):
        file = self.partial.open("w", encoding="utf-8")

        def write(values: list) -> None:
            row = dict(zip(self._columns, values, strict=True))
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

        return write, file.close

    def _parquet(self):
        import pyarrow
        import pyarrow.parquet

        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        schema = pyarrow.schema([(name, types[kind]) for name, kind in self._columns.items()])
        writer = pyarrow.parquet.ParquetWriter(self.partial, schema)
        rows = []

        def flush() -> None:
            columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
            writer.write_table(pyarrow.table([list(column) for column in columns], schema=schema))
            rows.clear()

        def write(values: list) -> None:
            rows.append(values)
            if len(rows) >= _ROWS_PER_GROUP:
                flush()

        def finish() -> None:
            flush()
            writer.close()

        return write, finish
