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
#: Events accepted and not yet applied above which senders of batches are slowed down, while aggregators are at work: a
#: second or two of what one of them applies. Without that, a sender on the same machine would take the time they need.
_LAG_EVENTS: Final = 200_000
#: The shortest and the longest pause of such a sender, in seconds, before his next batch is taken.
_PAUSE_SECONDS: Final = (0.005, 2.0)
#: A node of a cluster that failed is passed over for so long; who waits is written to another. One that hangs would
#: otherwise keep every commit waiting in its turn.
_REST_SECONDS: Final = 1.0
#: Nodes of a cluster that one commit is tried on.
_ATTEMPTS: Final = 3

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
class _Pace:
    """How long senders of batches pause: longer as long as the lag grows, shorter when it is small again."""

    pause: float = 0.0
    _lag: int = 0
    _applied: int = -1

    def update(self, lag: int, applied: int) -> None:
        """Take note of the events that are not applied, and of those that are."""
        shortest, longest = _PAUSE_SECONDS
        is_at_work = -1 < self._applied < applied
        if lag > _LAG_EVENTS and is_at_work:
            if lag >= self._lag:
                self.pause = min(max(shortest, self.pause * 1.5), longest)
        else:
            self.pause = self.pause / 2 if self.pause > shortest and is_at_work else 0.0
        self._lag, self._applied = lag, applied

    def reset(self) -> None:
        """Nothing is known."""
        self.pause, self._applied = 0.0, -1


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
        # By server; one that is no cluster has the name "".
        self._full: set[str] = set()
        self._resting: dict[str, float] = {}
        self._pace = _Pace()
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
        if self._full and self._full.issuperset(map(self._node, range(self._partitions))):
            raise StoreUnavailable("journal", "it is full, because the aggregator has not kept up")
        if self._waiting.events > _MAX_WAITING:
            raise StoreUnavailable("journal", "too many events wait to be written")
        caller: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.callers.append(caller)
        self._waiting.events += events
        self._wake.set()
        return caller

    async def pace(self) -> None:
        """Wait, before a batch is appended, for as long as keeps its senders from outrunning the aggregators.

        While no aggregator gets on, because ClickHouse is away, nobody waits: the journal is there to hold that.
        """
        if self._pace.pause:
            await asyncio.sleep(self._pace.pause)

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
            await self._append(entries)

    async def _append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        attempts = min(self._partitions, _ATTEMPTS) if self._redis.is_cluster else 1
        for attempt in range(1, attempts + 1):
            partition = self._next_partition()
            try:
                await self._redis.run([append(partition, entries)])
                return
            except StoreUnavailable:
                # Perhaps it was written all the same; that a second time changes nothing.
                self._resting[self._node(partition)] = time.monotonic() + _REST_SECONDS
                if attempt == attempts:
                    raise

    def _next_partition(self) -> int:
        # Every fact is a union, so entries need no order between partitions: taking turns spreads the load.
        now = time.monotonic()
        for turn in range(1, self._partitions + 1):
            partition = (self._partition + turn) % self._partitions
            node = self._node(partition)
            if node not in self._full and self._resting.get(node, 0.0) < now:
                break
        else:
            partition = (self._partition + 1) % self._partitions
        self._partition = partition
        return partition

    def _node(self, partition: int) -> str:
        return self._redis.node_of(journal_key(partition))

    async def _measure(self) -> None:
        while True:
            sizes: dict[str, int] = {}
            # A node that is away must not keep us from looking at the others; appending to it fails by itself, with the
            # better message.
            replies = await asyncio.gather(*map(self._size, range(self._partitions)), return_exceptions=True)
            for partition, size in enumerate(replies):
                node = self._node(partition)
                known = size if isinstance(size, int) else self._max_bytes + 1 if node in self._full else 0
                sizes[node] = sizes.get(node, 0) + known
            self._full = {node for node, size in sizes.items() if size > self._max_bytes}
            await self._look_at_lag()
            await asyncio.sleep(_MEASURE_SECONDS)

    async def _look_at_lag(self) -> None:
        try:
            replies = await self._redis.run([("HMGET", ledger_key(partition), "accepted", "applied", "dead")
                                             for partition in range(self._partitions)])
        except StoreUnavailable:
            self._pace.reset()
        else:
            accepted, applied, dead = (sum(int(reply[index] or 0) for reply in replies) for index in range(3))
            self._pace.update(accepted - applied - dead, applied)

    async def _size(self, partition: int) -> int:
        return await self._redis.call("MEMORY", "USAGE", journal_key(partition)) or 0

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
