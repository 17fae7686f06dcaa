"""Reads the journal as one consumer of a group, applies batches, and takes over what a dead consumer left.

Any number of processes may have a consumer of the same partition: Redis gives each entry to one of them. A consumer
that is only slow may lose entries to another that takes them over; both then apply them, which changes nothing, and
whoever acknowledges first has them counted.

An entry leaves the journal only after everything in it is in both stores. A store that is away makes the batch wait
and be applied again; a record that cannot be applied goes to the dead letters with its reason and never blocks the
rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from reportsvc.errors import StoreUnavailable
from reportsvc.metrics import Metrics
from reportsvc.pipeline import deadletter
from reportsvc.pipeline.apply import Applier, UnknownApp
from reportsvc.storage.redis import BLOCK_MILLISECONDS, Redis, ResponseError, Script, journal_key, ledger_key

log = logging.getLogger(__name__)

GROUP: Final = "aggregator"
#: One insert of this many events takes well under the second that freshness allows.
MAX_BATCH_EVENTS: Final = 120_000
#: Entries asked for at once; with group commit one holds from one event to thousands.
_READ_COUNT: Final = 200
#: A consumer that has not finished an entry for so long is taken for dead. Taking over from a slow one is harmless.
_TAKEOVER_MILLISECONDS: Final = 15_000
_TAKEOVER_EVERY_SECONDS: Final = 5
#: A consumer that has not asked for so long, and has nothing unfinished, is forgotten: every process brings a new name.
_FORGET_MILLISECONDS: Final = 3_600_000
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

_ACKNOWLEDGE = Script("""
local applied = 0
for i = 2, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    redis.call('XDEL', KEYS[1], ARGV[i])
    applied = applied + tonumber(ARGV[i + 1])
  end
end
if applied > 0 then redis.call('HINCRBY', KEYS[2], 'applied', string.format('%.0f', applied)) end
return applied
""")

# ARGV: group, consumer, idle milliseconds it must have. Deleting a consumer with unfinished entries would lose them.
_FORGET_CONSUMERS = Script("""
local consumers = redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
for _, pairs in ipairs(consumers) do
  local consumer = {}
  for i = 1, #pairs, 2 do consumer[pairs[i]] = pairs[i + 1] end
  if (ARGV[2] == '' or consumer['name'] == ARGV[2]) and consumer['pending'] == 0
      and consumer['idle'] >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
  end
end
return 1
""")

# Where the journal ends at this moment: the id that was given last.
_END = Script("""
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then return info[i + 1] end end
""")


class Entry(NamedTuple):
    """One entry of the journal: its id, how many events it holds, and the record."""

    id: bytes
    events: int
    record: bytes


class Aggregator:
    """One consumer of one partition."""

    def __init__(self, redis: Redis, applier: Applier, partition: int, linger_seconds: float,
                 consumer: str = "", metrics: Metrics | None = None) -> None:
        """*redis* blocks while it waits for entries, so it is this aggregator's own."""
        self._redis = redis
        self._applier = applier
        self._partition = partition
        self._linger = linger_seconds
        # Containers share host names and process ids; two consumers of one name would drain each other's entries.
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._metrics = metrics or Metrics()
        self._stream = journal_key(partition)
        self._stopping = False
        #: How far to go once stopping; what comes after it is for others, or for the next start.
        self._end: tuple[int, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._next_takeover = 0.0

    async def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name=f"aggregator-{self._partition}")

    async def stop(self, timeout: float = 30.0) -> None:
        """Apply what the journal holds at this moment, then end.

        What is left after *timeout* seconds waits for the next start, or for another process.
        """
        self._stopping = True
        if self._task:
            done, _ = await asyncio.wait([self._task], timeout=timeout)
            if not done:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    def kill(self) -> None:
        """End at once, wherever it is: for tests of what a crash leaves."""
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        failures = 0
        joined = False
        while True:
            try:
                if not joined:
                    await self._join()
                    await self._drain_own()
                    joined = True
                last = await self._step()
                if self._stopping and (not last or await self._is_at_end(last)):
                    await self._leave()
                    return
                failures = 0
            except StoreUnavailable as error:
                if self._stopping:
                    return
                joined = False  # the group may be gone with the store's data; what is unfinished is read again
                failures = await self._back_off(failures, error)
            except Exception:
                log.exception("the aggregator stumbled; it goes on")
                joined = False
                failures = await self._back_off(failures, None)

    async def _back_off(self, failures: int, error: StoreUnavailable | None) -> int:
        if error is not None:
            self._metrics.failed(error.store, "apply")
            if failures == 0:
                log.warning("applying waits: %s", error)
        await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
        return failures + 1

    async def _join(self) -> None:
        try:
            await self._redis.call("XGROUP", "CREATE", self._stream, GROUP, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        await self._redis.run([_FORGET_CONSUMERS((self._stream,), GROUP, "", _FORGET_MILLISECONDS)])

    async def _leave(self) -> None:
        with suppress(ResponseError):  # the group may be gone by now
            await self._redis.run([_FORGET_CONSUMERS((self._stream,), GROUP, self._consumer, 0)])

    async def _is_at_end(self, last: Entry) -> bool:
        """Whether *last* is the entry that was the newest when the stop was noticed, or a newer one."""
        if not self._end:
            self._end = _order(await self._redis.call(*_END((self._stream,))))
        return _order(last.id) >= self._end

    async def _drain_own(self) -> None:
        """Apply what this consumer had read before it was interrupted."""
        while entries := await self._read("0", block=False):
            await self._apply(entries)

    async def _step(self) -> Entry | None:
        """Apply what there is; the newest of it, None when there was nothing."""
        if time.monotonic() > self._next_takeover:
            self._next_takeover = time.monotonic() + _TAKEOVER_EVERY_SECONDS
            await self._take_over()
        entries = await self._collect()
        if entries:
            await self._apply(entries)
        return entries[-1] if entries else None

    async def _collect(self) -> list[Entry]:
        """New entries: what is there, and what comes in the moment after, so that few large batches are applied."""
        entries = await self._read(">", block=not self._stopping)
        if not entries:
            return entries
        deadline = time.monotonic() + self._linger
        events = sum(entry.events for entry in entries)
        while events < MAX_BATCH_EVENTS and not self._stopping and time.monotonic() < deadline:
            await asyncio.sleep(min(self._linger / 4, 0.05))
            more = await self._read(">", block=False)
            entries += more
            events += sum(entry.events for entry in more)
        return entries

    async def _read(self, start: str, *, block: bool) -> list[Entry]:
        wait = ("BLOCK", BLOCK_MILLISECONDS) if block else ()
        reply = await self._redis.call("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", _READ_COUNT, *wait,
                                       "STREAMS", self._stream, start)
        if not reply:
            return []
        streams = reply.values() if isinstance(reply, dict) else [stream[1] for stream in reply]
        return [entry for stream in streams for entry in parse_entries(stream)]

    async def _take_over(self) -> None:
        start: Any = "0-0"
        while True:
            start, claimed, *_ = await self._redis.call(
                "XAUTOCLAIM", self._stream, GROUP, self._consumer, _TAKEOVER_MILLISECONDS, start, "COUNT", _READ_COUNT)
            entries = parse_entries(claimed)
            if entries:
                log.info("took over %d entries of another aggregator", len(entries))
                await self._apply(entries)
            if start in (b"0-0", "0-0"):
                return

    async def _apply(self, entries: Sequence[Entry]) -> None:
        for batch in _batches(entries):
            await self._apply_batch(batch)

    async def _apply_batch(self, entries: Sequence[Entry]) -> None:
        """Apply together; if that fails for another reason than a store, find the one entry that is to blame."""
        try:
            await self._applier.apply([orjson.loads(entry.record) for entry in entries])
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  # any failure to understand a record must not stop the partition
            if len(entries) == 1:
                await self._bury(entries[0], error)
                return
            middle = len(entries) // 2
            await self._apply_batch(entries[:middle])
            await self._apply_batch(entries[middle:])
        else:
            self._metrics.applied([(entry.id, entry.events) for entry in entries], time.time())
            await self._acknowledge(entries)

    async def _bury(self, entry: Entry, error: Exception) -> None:
        reason = deadletter.APP_DELETED if isinstance(error, UnknownApp) else deadletter.UNREADABLE
        log.error("entry %s is dead (%s): %s", entry.id.decode(), reason, type(error).__name__)
        await self._redis.run([deadletter.bury(self._partition, GROUP, entry.id, entry.events, entry.record, reason,
                                               f"{type(error).__name__}: {error}"[:500])])

    async def _acknowledge(self, entries: Sequence[Entry]) -> None:
        await self._redis.run([_ACKNOWLEDGE(
            (self._stream, ledger_key(self._partition)), GROUP,
            *(word for entry in entries for word in (entry.id, entry.events)))])


def _order(entry_id: bytes) -> tuple[int, ...]:
    """An id, milliseconds and a count, as something to compare."""
    return tuple(map(int, entry_id.split(b"-")))


def parse_entries(stream: Any) -> list[Entry]:
    """Entries as Redis replies them; one deleted meanwhile has no fields."""
    return [Entry(entry[0], *_fields(entry[1])) for entry in stream if entry and entry[1]]


def _fields(fields: Any) -> tuple[int, bytes]:
    pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    count = pairs.get(b"n", b"1")
    return int(count) if re.fullmatch(rb"[0-9]{1,9}", count) else 1, pairs.get(b"e", b"")


def _batches(entries: Sequence[Entry]) -> list[list[Entry]]:
    batches: list[list[Entry]] = [[]]
    events = 0
    for entry in entries:
        if batches[-1] and events + entry.events > MAX_BATCH_EVENTS:
            batches.append([])
            events = 0
        batches[-1].append(entry)
        events += entry.events
    return batches
