"""Tables as CSV, JSON lines or Parquet, row by row: errors name the place, files are written whole or not at all."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from .atomic import check_local, naming, put_in_place, start_file
from .errors import DataError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
SEPARATORS = (",", ";", "\t")
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
_LONGEST_HEADER = 2**20  # characters that tell the separator


def read_csv(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells) for each line that is not blank; lines are counted from 1.

    Commas, semicolons or tabs may separate the cells, as spreadsheets write them: the one that the first line has most
    often is taken. A byte order mark is passed over.

    Raises:
        DataError: the file is missing, is not UTF-8 text, or is not CSV.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing: get it again")
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        first_line = stream.readline(_LONGEST_HEADER)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=max(SEPARATORS, key=first_line.count))
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}:{reader.line_num + 1} is not comma-separated UTF-8 text ({error}): get the file again, or "
                "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
            ) from error


def read_columns(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells of the named columns) for each row of a CSV file whose first line names its columns.

    With `columns=None` it yields the names of the columns as the first row, then all cells of each row.

    Raises:
        DataError: as `read_csv`; a column is missing or there twice, or a row has another number of cells than the
            first line.
    """
    lines = read_csv(file)
    first, header = next(lines, (0, []))
    header = [name.strip() for name in header]
    _check_names(file, header if columns is None else [name for name in header if name in columns])
    missing = [name for name in columns or () if name not in header]
    if missing:
        raise DataError(
            f"{file} has no column {', '.join(missing)} (its first line names {', '.join(header)[:200] or 'none'}): "
            "check that this is the right file and that commas, semicolons or tabs separate its columns"
        )
    if columns is None:
        yield first, header
    places = range(len(header)) if columns is None else [header.index(name) for name in columns]
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{file}:{line} has {len(cells)} columns where {len(header)} should be: the file is cut off or "
                "damaged; get it again, or correct the row"
            )
        yield line, [cells[place] for place in places]


def read_rows(file: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) of a table of any of `ENDINGS`; a place is `"votes.csv:17"`, in Parquet counted in rows.

    CSV files are read as `read_csv` does; their cells are strings.

    Raises:
        DataError: the file is missing, of another kind, empty or malformed; or two columns, or two keys of a row of
            JSON, have the same name.
    """
    file = Path(file)
    if file.suffix.lower() not in ENDINGS:
        raise DataError(f"{file}: a table's name ends in {', '.join(ENDINGS)}; save it as one of these")
    if not file.is_file():
        raise DataError(f"{file} is missing: check the path")
    read = {".jsonl": _read_json_lines, ".parquet": _read_parquet}.get(file.suffix.lower(), _read_separated)
    empty = True
    for number, row in read(file):
        empty = False
        yield f"{file.name}:{number}", row
    if empty:
        raise DataError(f"{file} has no rows")


def column_names(file: str | Path) -> list[str]:
    """The names of the columns of a table that `read_rows` reads, as they appear; of JSON lines, the keys of all rows.

    Raises:
        DataError: as `read_rows`.
    """
    rows = (row for _, row in read_rows(file))
    read = rows if Path(file).suffix.lower() == ".jsonl" else islice(rows, 1)
    return list(dict.fromkeys(name for row in read for name in row))


def _read_separated(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    rows = read_columns(file)
    _, header = next(rows)
    for line, cells in rows:
        yield line, dict(zip(header, cells, strict=True))


def _read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{line} is no JSON ({error}): correct the row") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}:{line} is {type(row).__name__} where an object {{...}} should be: correct it")
            yield line, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    for name in row:
        name.encode()  # halves of characters, which JSON can name, are no text
    return row


def _check_names(file: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file}: the column {twice!r} is there twice; rename one of them")


def decimal(text: str) -> float:
    """A number of a table. Spreadsheets in many countries write a comma for the decimal point.

    Raises:
        ValueError: it is no number.
    """
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def _read_parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq  # not above: prediction without torch must not need pyarrow

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            _check_names(file, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except DataError:
        raise
    except Exception as error:  # from pyarrow, and of Python for values that it has no type for
        raise DataError(f"{file} is no Parquet file, or damaged ({error}): write it again") from error


FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS_PER_GROUP = 4096

_WriteAndFinish = tuple[Callable[[list], object], Callable[[], None]]


def check_new_table(path: str | Path, overwrite: bool = False) -> None:
    """Check, before anything else is done, that a `TableWriter` can write a table there.

    Raises:
        ValueError, OSError: as `TableWriter`.
    """
    check_local(path)
    table = Path(path)
    if table.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the ending says the format of the table: use {', '.join(FORMATS)}")
    if table.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or --overwrite to replace it")
    if not table.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {table.parent}: make it first")
    try:
        with tempfile.TemporaryFile(dir=table.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written there ({error.strerror})", str(path)) from error


def without_formula(value: Any) -> Any:
    """Text as it is, but after an apostrophe if a spreadsheet would take it for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class TableWriter:
    """Writes rows to `path` as CSV, JSONL or Parquet, by its ending.

    Rows go to `NAME.partial.ENDING` beside it; `close(whole=True)` renames that file to `path`. So a table that Ctrl-C
    or a full disk cut off keeps the name that says so. `close(whole=False)` leaves a well-formed table of the rows so
    far under that name.

    Cells stand in CSV as they are: a file name or row_id that begins with `=` is a formula to a spreadsheet program.

    Args:
        path: of the table.
        columns: names of the columns with their Python types (`str`, `int`, `float`). Any value may be None, which is
            an empty field in CSV.
        overwrite: replace an existing table.
        safe_csv: in CSV, put an apostrophe before text that begins like a formula (`=`, `+`, `-`, `@`). Spreadsheets
            run such text, from a file's name for example; programs that read CSV do not, and see the apostrophe.

    Raises:
        ValueError: the ending is none of `FORMATS`, the folder is missing, or the table exists.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self, path: str | Path, columns: dict[str, type], overwrite: bool = False, safe_csv: bool = False
    ) -> None:
        check_new_table(path, overwrite)
        self.path = Path(path)
        ending = self.path.suffix.lower()
        self._safe = safe_csv
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self._columns = columns
        with naming(self.path, self.partial):
            start_file(self.partial)  # never through a link of that name
        self._write, self._finish = {".csv": self._csv, ".jsonl": self._jsonl, ".parquet": self._parquet}[ending]()

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, which must have every column."""
        with self._named():
            self._write([row[name] for name in self._columns])

    def close(self, whole: bool) -> Path:
        """Closes the file, gives it its name if it is whole, and returns its path."""
        with self._named():
            self._finish()
            if not whole:
                return self.partial
            put_in_place(self.partial, self.path)
        return self.path

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the name of the file to an error without one, such as the error of a full disk."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror or error}; what is there is no whole table"
            raise OSError(error.errno, reason, str(self.partial)) from error

    def _csv(self) -> _WriteAndFinish:
        file = self.partial.open("w", newline="", encoding="utf-8")
        writer = csv.writer(file)
        safe = without_formula if self._safe else None
        writer.writerow(map(safe, self._columns) if safe else self._columns)
        return (lambda values: writer.writerow(map(safe, values) if safe else values)), file.close

    def _jsonl(self) -> _WriteAndFinish:
        file = self.partial.open("w", encoding="utf-8")

        def write(values: list) -> None:
            row = dict(zip(self._columns, values, strict=True))
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

        return write, file.close

    def _parquet(self) -> _WriteAndFinish:
        import pyarrow
        import pyarrow.parquet

        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        schema = pyarrow.schema([(name, types[kind]) for name, kind in self._columns.items()])
        writer = pyarrow.parquet.ParquetWriter(self.partial, schema)
        rows: list[list] = []

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
