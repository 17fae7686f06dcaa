"""Rows written as CSV, NDJSON or Parquet, to standard output or to a file that is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import orjson

from reportsvc.errors import BadConfig

STDOUT: Final = "-"
#: Column -> str, int or float; every column may be empty.
Columns = Mapping[str, type]
Row = Mapping[str, Any]


class Table(Protocol):
    """Takes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add *rows*."""

    def close(self) -> None:
        """Write what is left."""


class _Csv:
    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._file = file
        self._columns = list(columns)
        # The head comes with the first rows: before them there may be nothing but a failure.
        self._head = [self._columns]

    def write(self, rows: Sequence[Row]) -> None:
        """Lines, with nothing between the commas where there is no value."""
        self._write([*self._head, *([row.get(name) for name in self._columns] for row in rows)])
        self._head = []

    def close(self) -> None:
        """Also a table without rows has a head."""
        self._write(self._head)

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode())


class _Ndjson:
    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._file = file
        self._columns = list(columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Objects, with ``null`` where there is no value."""
        self._file.write(b"".join(orjson.dumps({name: row.get(name) for name in self._columns}) + b"\n"
                                  for row in rows))

    def close(self) -> None:
        """Nothing is left."""


class _Parquet:
    """A row group for each lot of rows."""

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        import pyarrow
        import pyarrow.parquet
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        self._arrow = pyarrow
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Keep *rows* until they make a row group of some size."""
        self._rows += rows
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the rest and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []


_ROW_GROUP: Final = 50_000
_TABLES: Final[Mapping[str, Any]] = {"csv": _Csv, "ndjson": _Ndjson, "parquet": _Parquet}
FORMATS: Final = tuple(_TABLES)
_FORMAT_OF_SUFFIX: Final = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}


def format_of(output: str, named: str | None) -> str:
    """The format that was named, or that of the file's name.

    Raises:
        BadConfig: Neither says one.
    """
    form = named or ("csv" if output == STDOUT else _FORMAT_OF_SUFFIX.get(Path(output).suffix.lower()))
    if form is None:
        raise BadConfig(f"{output} names no format; add --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if form == "parquet" and output == STDOUT and sys.stdout.isatty():
        raise BadConfig("Parquet is nothing to look at; name a file with --output")
    return form


@contextlib.contextmanager
def table(output: str, form: str, columns: Columns) -> Iterator[Table]:
    """A table to fill; the file takes its name once the block ends well, and is not left behind if it does not."""
    with _standard_output() if output == STDOUT else _whole_file(Path(output)) as file:
        made: Table = _TABLES[form](file, columns)
        yield made
        made.close()


@contextlib.contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
