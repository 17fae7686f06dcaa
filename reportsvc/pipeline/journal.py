"""The durable log between accepting an event and counting it, with group commit.

All appends that wait while one command is under way share the next one, so the cost of durability per event falls as
load rises. An append returns when Redis has the entry; the ledger counts it in the same script, so that
accepted = applied + dead can be checked after any crash.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from reportsvc.errors import StoreUnavailable
from reportsvc.model import EventBatch
from reportsvc.pipeline import records
from reportsvc.storage.redis import Redis, Script, journal_key, ledger_key

log = logging.getLogger(__name__)

#: How often the size of the backlog is looked at; one memory bound's worth of overshoot a second is nothing.
_MEASURE_SECONDS: Final = 0.5
#: Events that may wait in this process; more are refused before they fill its memory.
_MAX_WAITING: Final = 400_000

_APPEND = Script("""
local accepted = 0
for i = 1, #ARGV, 2 do
  redis.call('XADD', KEYS[1], '*', 'n', ARGV[i], 'e', ARGV[i + 1])
  accepted = accepted + tonumber(ARGV[i])
end
return redis.call('HINCRBY', KEYS[2], 'accepted', string.format('%.0f', accepted))
""")


_Part = tuple[EventBatch, asyncio.Future[None]]


@dataclass(slots=True)
class _Waiting:
    """What the next command will carry."""

    batches: dict[int, list[_Part]] = field(default_factory=dict)
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    callers: list[asyncio.Future[None]] = field(default_factory=list)
    events: int = 0


class Journal:
    """The writing end of the journal."""

    def __init__(self, redis: Redis, partitions: int, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._partitions = partitions
        self._max_bytes = max_bytes
        self._clock = clock
        self._waiting = _Waiting()
        self._wake = asyncio.Event()
        self._partition = 0
        self._is_full = False
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to write."""
        self._tasks = [asyncio.create_task(self._write(), name="journal-write"),
                       asyncio.create_task(self._measure(), name="journal-measure")]

    async def stop(self) -> None:
        """Write what waits and take nothing more."""
        self._is_stopping = True
        self._wake.set()
        if self._tasks:
            write, measure = self._tasks
            measure.cancel()
            await asyncio.gather(write, measure, return_exceptions=True)

    def append(self, batch: EventBatch) -> asyncio.Future[None]:
        """A future that is done once the events of *batch* are in the journal and survive a crash of this process.

        The batch must not be changed afterwards. The future raises :class:`StoreUnavailable` when Redis did not
        confirm; the events may or may not be stored then, and sending them again is safe.
        """
        caller = self._enqueue(len(batch))
        self._waiting.batches.setdefault(batch.app_id, []).append((batch, caller))
        return caller

    def append_record(self, record: bytes) -> asyncio.Future[None]:
        """The same for a record that is not a batch of events."""
        caller = self._enqueue(1)
        self._waiting.entries.append((1, record))
        return caller

    def _enqueue(self, events: int) -> asyncio.Future[None]:
        if self._is_stopping:
            raise StoreUnavailable("journal", "the service is stopping")
        if self._is_full:
            raise StoreUnavailable("journal", "it is full, because the aggregator has not kept up")
        if self._waiting.events > _MAX_WAITING:
            raise StoreUnavailable("journal", "too many events wait to be written")
        caller: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.callers.append(caller)
        self._waiting.events += events
        self._wake.set()
        return caller

    async def _write(self) -> None:
        while self._waiting.callers or not self._is_stopping:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, _Waiting()
            if waiting.callers:
                await self._commit(waiting)

    async def _commit(self, waiting: _Waiting) -> None:
        try:
            await self._send(waiting)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the callers' to report
            if not isinstance(error, StoreUnavailable):
                log.exception("the journal could not be written")
            _settle(waiting.callers, error)
        else:
            _settle(waiting.callers, None)

    async def _send(self, waiting: _Waiting) -> None:
        now = int(self._clock())
        entries = waiting.entries
        for parts in waiting.batches.values():
            entries.extend(_encoded(parts, now))
        if entries:
            await self._redis.run([append(self._next_partition(), entries)])

    def _next_partition(self) -> int:
        # Every fact is a union, so entries need no order between partitions: taking turns spreads the load.
        self._partition = (self._partition + 1) % self._partitions
        return self._partition

    async def _measure(self) -> None:
        while True:
            try:
                self._is_full = await self.backlog_bytes() > self._max_bytes
            except StoreUnavailable:
                pass  # appending fails by itself, with the better message
            await asyncio.sleep(_MEASURE_SECONDS)

    async def backlog_bytes(self) -> int:
        """Memory in Redis of everything accepted and not yet applied."""
        sizes = await self._redis.run([
            ("MEMORY", "USAGE", journal_key(partition)) for partition in range(self._partitions)])
        return sum(size or 0 for size in sizes)


def append(partition: int, entries: Sequence[tuple[int, bytes]]) -> Any:
    """The command that writes *entries* (a count of events, and a record) to a partition and its ledger."""
    return _APPEND((journal_key(partition), ledger_key(partition)), *(word for entry in entries for word in entry))


def _encoded(parts: Sequence[_Part], now: int) -> list[tuple[int, bytes]]:
    """The entries of *parts*, without one that cannot be written: that is its own caller's fault alone."""
    try:
        return list(records.events([batch for batch, _ in parts], now))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is that caller's to report
        if len(parts) > 1:
            return [entry for part in parts for entry in _encoded([part], now)]
        _settle([parts[0][1]], error)
        return []


def _settle(callers: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    for caller in callers:
        if caller.done():
            continue
        if error is None:
            caller.set_result(None)
        else:
            caller.set_exception(error)
