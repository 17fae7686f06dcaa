"""Files of events, line by line: NDJSON or CSV, as they are, gzip or zstd, or standard input.

Every line keeps its number, so that whoever wrote the file finds what was wrong with it, and a reader can go on behind
the last line that another one finished.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import orjson

from reportsvc.errors import BadConfig

STDIN: Final = "-"
FORMATS: Final = ("auto", "ndjson", "csv")
#: What a CSV may have columns of; others are left alone.
COLUMNS: Final = ("msg_id", "stage", "device_id", "platform", "channel", "kind", "ts", "user_id")
#: No event is nearly as long; a file without line ends is not read whole.
MAX_LINE_BYTES: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number, from 1, and the event on it as JSON; *problem* if it cannot be one."""

    number: int
    event: bytes
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from another one of its name, and from itself after a change."""

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """That of *path* as it is now."""
        found = path.stat()
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns)


class Source:
    """A file to read; a context."""

    def __init__(self, name: str, form: str = "auto") -> None:
        self.name = name
        self.is_stdin = name == STDIN
        self._form = form
        self._raw: BinaryIO | None = None
        self._text: BinaryIO | None = None

    def __enter__(self) -> Source:
        # A file of its own for standard input too, so that closing this closes nothing of others.
        raw = os.fdopen(os.dup(sys.stdin.fileno()), "rb") if self.is_stdin else open(self.name, "rb")
        self._raw = cast(BinaryIO, raw)
        self._text = _unpacked(raw)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._text, self._raw):
            if stream is not None:
                stream.close()

    @property
    def size(self) -> int | None:
        """Bytes on disk; None where nobody can tell."""
        return None if self.is_stdin else os.stat(self.name).st_size

    @property
    def position(self) -> int:
        """How many of those bytes were read."""
        assert self._raw is not None
        return 0 if self.is_stdin else self._raw.tell()

    def lines(self, after: int = 0) -> Iterator[Line]:
        """Every line behind number *after* that is not empty.

        Raises:
            BadConfig: The file breaks off or is not compressed as it begins, or a CSV lacks a column.
        """
        assert self._text is not None
        try:
            first = _read_line(self._text)
            is_csv = self._form == "csv" or self._form == "auto" and not first.lstrip(b"\xef\xbb\xbf \t[").startswith(
                b"{")
            numbered = enumerate(_rest(first, self._text), 1)
            yield from _csv(self.name, numbered, after) if is_csv else _ndjson(numbered, after)
        except (EOFError, OSError, csv.Error) as error:
            raise BadConfig(f"{self.name} cannot be read to its end: {error}") from error
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise BadConfig(f"{self.name} cannot be read to its end: {error}") from error
            raise


def _unpacked(raw: BinaryIO) -> BinaryIO:
    head = cast(io.BufferedReader, raw).peek(4)[:4]
    if head.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if head.startswith(_ZSTD):
        return _zstd(raw)
    return raw


def _zstd(raw: BinaryIO) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return io.BufferedReader(cast(Any, zstd.ZstdFile(raw)))


def _read_line(stream: BinaryIO) -> bytes:
    return stream.readline(MAX_LINE_BYTES + 1)


def _rest(line: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Lines, the first of which was read; one that is too long comes cut, and its rest not at all."""
    while line:
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = _read_line(stream)
        line = _read_line(stream)


def _ndjson(lines: Iterator[tuple[int, bytes]], after: int) -> Iterator[Line]:
    for number, line in lines:
        text = line.strip().removeprefix(b"\xef\xbb\xbf")
        if number > after and text:
            yield Line(number, text, "" if len(line) <= MAX_LINE_BYTES else _TOO_LONG)


_TOO_LONG: Final = f"longer than {MAX_LINE_BYTES} bytes"


def _csv(name: str, lines: Iterator[tuple[int, bytes]], after: int) -> Iterator[Line]:
    """A row is numbered by the line it begins on."""
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in lines:
            last = number
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
    # One field may be as long as a line; strict: a quote in the wrong place must not swallow the rest of the file.
    csv.field_size_limit(MAX_LINE_BYTES + 1)
    reader = csv.reader(texts(), strict=True)
    header = [column.strip() for column in next(reader, [])]
    missing = [column for column in ("stage", "device_id") if column not in header]
    if missing:
        raise BadConfig(f"{name} has no column {' and no column '.join(missing)} in its first line; it needs "
                        f"stage and device_id, and may have {', '.join(COLUMNS)}")
    while True:
        started = last + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield Line(started, b"", f"not valid CSV: {error}")
            continue
        if row is None:
            return
        if started > after and any(row):
            problem = "" if len(row) == len(header) else f"{len(row)} columns, not {len(header)}"
            yield Line(started, orjson.dumps(_event(dict(zip(header, row, strict=False)))), problem)


def _event(cells: dict[str, str]) -> dict[str, Any]:
    event: dict[str, Any] = {column: cells[column].strip() for column in COLUMNS if cells.get(column, "").strip()}
    if "ts" in event:
        event["ts"] = _time(event["ts"])
    return event


def _time(text: str) -> object:
    """Unix time, or a date with its offset, as unix time; what is neither stays as it is, for the service to refuse."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return int(moment.timestamp()) if moment.tzinfo is not None else text
