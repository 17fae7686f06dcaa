"""``reportsvc import``: files of events into a service, over HTTP.

A batch that is not answered is sent again, and so may be a whole import: it changes nothing. Every line that is refused
is told with its number and reason. Events that the service would count as of now, because their time is too old, are
not sent unless that is wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from reportsvc.commands.checkpoint import Checkpoint, Counts, Place
from reportsvc.commands.client import Access, Client
from reportsvc.commands.progress import Meter, progress
from reportsvc.commands.sources import Identity, Line, Source
from reportsvc.config import Config
from reportsvc.errors import BadConfig, ReportError
from reportsvc.model import dies_at

#: Lines of one request: the service takes 10 000, and 16 MiB.
_BATCH_LINES: Final = 5000
_BATCH_BYTES: Final = 4 << 20
#: Requests on their way at one time: while one is parsed, the next arrives.
_SENDERS: Final = 4
#: Between two notes of the place; what is behind the last one is sent again after a crash.
_SAVE_SECONDS: Final = 0.5
#: As the service has it; a margin, because the import takes time and its clock may differ.
_MAX_AGE_SECONDS: Final = 31 * 86400 - 600
_MAX_AHEAD_SECONDS: Final = 5 * 60 - 30
_MILLISECONDS_FROM: Final = 100_000_000_000
_OLD: Final = "ts: over 31 days old, and would count as of now; --accept-skew sends it so"
_AHEAD: Final = "ts: in the future, and would count as of now; --accept-skew sends it so"
#: Refused lines shown at the end; all of them are in the file of ``--rejects``.
_SHOWN: Final = 20
_SHOWN_CHARACTERS: Final = 1000


class Incomplete(ReportError):
    """Some lines were refused."""


@dataclass(slots=True)
class Result:
    """What became of one batch."""

    last: int
    position: int
    counts: Counts
    rejects: list[dict[str, Any]]


async def run(options: argparse.Namespace, access: Access, config: Config) -> None:
    """Import every file in turn.

    Raises:
        Incomplete: Some lines were refused; the report on standard output says which.
    """
    if len(options.files) != len(set(options.files)):
        raise BadConfig("a file is named twice")
    for name in options.files:
        if name != "-" and not Path(name).is_file():
            raise BadConfig(f"{name} is no file")
    total, shown = Counts(), list[dict[str, Any]]()
    with _rejects_file(options.rejects) as rejects:
        for name in options.files:
            counts, examples = await _Import(name, options, access, rejects).run()
            total.add(counts)
            shown += examples
    _report(total, shown, options)
    if total.rejected:
        raise Incomplete(f"{total.rejected:,} lines were refused" + (
            f"; they are in {options.rejects}" if options.rejects else "; --rejects FILE keeps them all"))


@contextlib.contextmanager
def _rejects_file(path: str | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    with open(path, "ab") as file:
        yield file


class _Import:
    """One file."""

    def __init__(self, name: str, options: argparse.Namespace, access: Access, rejects: BinaryIO | None) -> None:
        self._name = name
        self._options = options
        self._access = access
        self._rejects = rejects
        self._examples: list[dict[str, Any]] = []
        resumes = name != "-" and not options.no_resume
        self._checkpoint = Checkpoint(
            Identity.of(Path(name)), access.url, access.app_key, options.accept_skew) if resumes else None
        self._place = Place()
        self._saved_at = 0.0

    async def run(self) -> tuple[Counts, list[dict[str, Any]]]:
        """Send it; what became of its lines, and the first of those refused."""
        problem = ""
        if self._checkpoint is not None:
            self._place, problem = self._checkpoint.load()
        with Source(self._name, self._options.format) as source:
            with progress(self._label(), "events", source.size) as meter:
                if problem:
                    meter.say(f"beginning anew: {problem}")
                elif self._place.line:
                    meter.say(f"{self._label()}: going on after line {self._place.line:,}")
                try:
                    await self._send_all(source, meter)
                except BaseException:
                    self._save()
                    if self._checkpoint is not None and self._place.line:
                        meter.say(f"stopped after line {self._place.line:,}; the same command goes on from there")
                    raise
        if self._checkpoint is not None:
            self._checkpoint.remove()
        return self._place.counts, self._examples

    def _label(self) -> str:
        return "standard input" if self._name == "-" else Path(self._name).name

    async def _send_all(self, source: Source, meter: Meter) -> None:
        if self._rejects is not None and self._place.rejects == self._rejects_name():
            self._rejects.truncate(self._place.rejects_size)  # what was noted after the checkpoint comes again
        done, position = 0, 0
        batches = _batches(source, self._place.line)
        waiting: deque[asyncio.Task[Result]] = deque()

        def on_wait(reason: str) -> None:
            meter.update(position, self._place.counts.accepted, reason)
        async with Client(self._access, on_wait) as client:
            try:
                while True:
                    while len(waiting) < _SENDERS and (lines := await asyncio.to_thread(next, batches, None)):
                        waiting.append(asyncio.create_task(
                            _send(client, lines, source.position, self._options.accept_skew)))
                    if not waiting:
                        return
                    # In order, so that a place means that everything before it is answered.
                    result = await waiting[0]
                    waiting.popleft()
                    done += 1
                    position = result.position
                    self._note(result)
                    meter.update(position, self._place.counts.accepted)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    def _note(self, result: Result) -> None:
        counts, size = self._place.counts, 0
        counts.add(result.counts)
        for reject in result.rejects:
            if len(self._examples) < _SHOWN:
                self._examples.append({"file": self._name} | reject)
            if self._rejects is not None:
                self._rejects.write(orjson.dumps({"file": self._name} | reject) + b"\n")
        if self._rejects is not None:
            self._rejects.flush()
            size = self._rejects.tell()
        self._place = Place(result.last, counts, self._rejects_name(), size)
        if time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self._save()

    def _rejects_name(self) -> str:
        return "" if self._rejects is None else str(Path(self._options.rejects).resolve())

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._checkpoint is not None and self._place.line:
            try:
                self._checkpoint.save(self._place)
            except OSError as error:
                raise BadConfig(f"{self._checkpoint.path} cannot be written ({error.strerror}); --no-resume does "
                                "without it") from error


def _batches(source: Source, after: int) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    for line in source.lines(after):
        batch.append(line)
        size += len(line.event)
        if len(batch) >= _BATCH_LINES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _send(client: Client, lines: Sequence[Line], position: int, accept_skew: bool) -> Result:
    """Send one batch; position is how far the file was read for it."""
    result = Result(lines[-1].number, position, Counts(), [])
    good: list[Line] = []
    oldest, newest = time.time() - _MAX_AGE_SECONDS, time.time() + _MAX_AHEAD_SECONDS
    for line in lines:
        problem = line.problem
        if not problem and (skew := _skew(line.event, oldest, newest)):
            result.counts.skewed += 1
            problem = "" if accept_skew else skew
        if problem:
            _refuse(result, line, problem)
        else:
            good.append(line)
    while good:
        good = await _post(client, good, result)
    result.rejects.sort(key=lambda reject: int(reject["line"]))
    return result


async def _post(client: Client, lines: list[Line], result: Result) -> list[Line]:
    """Send *lines*; those that must be sent once more, because the service told only the first of many errors."""
    reply = await client.call("POST", "/v1/events", body=b"\n".join(line.event for line in lines),
                              content_type="application/x-ndjson")
    answer = reply.json if isinstance(reply.json, dict) else {}
    if reply.status == 413 and len(lines) > 1:
        middle = len(lines) // 2
        rest = await _post(client, lines[:middle], result)
        return rest + lines[middle:]
    outcome = answer.get("error", {}) if reply.status == 400 else answer
    if reply.status not in (200, 400) or "rejected" not in outcome:
        raise BadConfig(f"the service did not take the events: {answer or reply.status}")
    errors = outcome["errors"]
    told = len(errors) == outcome["rejected"]
    known = len(lines) if told else errors[-1]["index"] + 1
    result.counts.accepted += known - len(errors)
    for error in errors:
        message = error["message"]
        _refuse(result, lines[error["index"]], message.partition(": ")[2] if message.startswith("line ") else message)
    return lines[known:]


def _refuse(result: Result, line: Line, problem: str) -> None:
    result.counts.rejected += 1
    result.counts.reasons[problem] += 1
    text = line.event.decode("utf-8", "replace")
    result.rejects.append({"line": line.number, "reason": problem, "text": text[:_SHOWN_CHARACTERS]})


def _skew(event: bytes, oldest: float, newest: float) -> str:
    """What is wrong with the time of an event; empty where nothing is, or where the service has to say."""
    try:
        happened = orjson.loads(event)["ts"]
        seconds = happened / 1000 if happened >= _MILLISECONDS_FROM else happened
        return _OLD if seconds < oldest else _AHEAD if seconds > newest else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _report(counts: Counts, examples: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """What was done, on standard output."""
    if options.json:
        print(orjson.dumps({"accepted": counts.accepted, "rejected": counts.rejected, "skewed": counts.skewed,
                            "reasons": dict(counts.reasons.most_common())}).decode())
        return
    print(f"{counts.accepted:,} events accepted, {counts.rejected:,} lines refused")
    if counts.skewed:
        became = "counted as of now" if options.accept_skew else "not sent"
        print(f"{counts.skewed:,} events have a time that is over 31 days old or in the future: {became}")
    if counts.accepted:
        until = datetime.fromtimestamp(dies_at(int(time.time())), UTC).strftime("%Y-%m-%d")
        print(f"What was imported is kept for a month from now, until {until}, however old it is.")
    for reason, count in Counter(counts.reasons).most_common():
        print(f"{count:>9,} {reason}")
    for reject in examples[:_SHOWN]:
        print(f"{reject['file']}: line {reject['line']}: {reject['reason']}: {reject['text'][:120]}")
