"""What was sent, to whom, and who has not got it yet.

A push to everyone stores no list: its targets are the devices that were numbered below ``ends`` (by bucket) when it
was registered and that existed then. A push to a few has their numbers in its record, any other a device set; to either
events of the target stages add a set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from reportsvc.errors import StoreUnavailable
from reportsvc.model import UNKNOWN_PLATFORM, platform_of_rank
from reportsvc.registry.devices import BUCKETS, Device
from reportsvc.registry.messages import Messages, MessageState, received_by, targets_of
from reportsvc.storage.device_set import CHUNK_BITS, CHUNK_SIZE, Numbers, chunks_below, decode_chunk
from reportsvc.storage.queries import DeviceRow, Queries
from reportsvc.storage.redis import Question, Redis

#: Pushy lists so many pending devices at most.
MAX_PENDING: Final = 1000
#: So many numbers are looked up at once while pending devices are searched.
_PAGE: Final = 5000
#: A push that so many devices lack may still be complete: they may all be deleted. With more, nobody looks.
_FEW: Final = 10
#: A set of its own costs more than so many numbers in the record.
MAX_IN_RECORD: Final = 4
#: What most pushes have in the places of :meth:`PushRecord.pack`; the first two have no usual value.
_REQUIRED: Final = 2
_USUAL: Final[Sequence[Any]] = (None, None, 1, 0, 30 * 86400, "notification", "", "", None, [])
#: Delivery to these can be followed; the rest (Apple, web push) report no receipt to Pushy.
_FOLLOWED: Final = frozenset({"android", UNKNOWN_PLATFORM})


@dataclass(frozen=True, slots=True)
class PushRecord:
    """A registered push; times in unix seconds."""

    msg_id: str
    vendor: str
    created_at: int
    expires_at: int
    scheduled_at: int | None
    payload: Any
    kind: str
    channel: str
    targets: int
    registered_at: int
    #: For a push to everyone: the first free number of each bucket; else empty.
    ends: Sequence[int] = ()
    #: For a push to a few: the numbers of its targets, which are in no set; else empty.
    numbers: Sequence[int] = ()

    def document(self) -> dict[str, Any]:
        """The record as JSON values, without what is empty; a payload may be empty on purpose."""
        return {name: value for name in self.__slots__ if name != "msg_id"
                and ((value := getattr(self, name)) not in (None, "", ()) or name == "payload")}

    def pack(self) -> bytes:
        """The record in few bytes: a JSON array, times as differences, without what is usual at its end.

        Redis keeps a hash whose values are under 65 bytes in a compact form, at a third of the memory.
        """
        values: list[Any] = [
            self.registered_at, self.payload, list(self.numbers) or self.targets, self.created_at - self.registered_at,
            self.expires_at - self.created_at, self.kind, self.vendor, self.channel, self.scheduled_at,
            list(self.ends)]
        while len(values) > _REQUIRED and values[-1] == _USUAL[len(values) - 1]:
            values.pop()
        return orjson.dumps(values)

    @classmethod
    def unpack(cls, msg_id: str, packed: bytes) -> PushRecord:
        """Undo :meth:`pack`."""
        values: list[Any] = orjson.loads(packed)
        registered_at, payload, targets, created, lifetime, kind, vendor, channel, scheduled_at, ends = (
            *values, *_USUAL[len(values):])
        numbers = tuple(targets) if isinstance(targets, list) else ()
        return cls(msg_id, vendor, registered_at + created, registered_at + created + lifetime, scheduled_at, payload,
                   kind, channel, len(numbers) or targets, registered_at, tuple(ends), numbers)

    def covers(self, device: Device) -> bool:
        """Whether the record itself, without any set, makes *device* a target."""
        if device.number in self.numbers:
            return True
        bucket = device.number % BUCKETS
        return (bool(self.ends) and device.number // BUCKETS < self.ends[bucket]
                and device.returned_at <= self.registered_at)


class PushRegistry:
    """The registered pushes of every app."""

    def __init__(self, redis: Redis, queries: Queries) -> None:
        self._redis = redis
        self._queries = queries
        self._messages = Messages(redis)

    async def find(self, app_id: int, msg_id: str) -> tuple[PushRecord | None, MessageState]:
        """The push, and what else is known of the message."""
        question = self.question(app_id, msg_id)
        return question.parse(await self._redis.run(question.commands))

    def question(self, app_id: int, msg_id: str) -> Question[tuple[PushRecord | None, MessageState]]:
        """The same, to be asked beside something else."""
        def parse(replies: Sequence[Any]) -> tuple[PushRecord | None, MessageState]:
            state = MessageState.parse(replies[0])
            return self._parse(msg_id, state) if state.push else None, state
        return Question([self._messages.state_command(app_id, msg_id)], parse)

    async def pending(self, app_id: int, push: PushRecord, state: MessageState, label: str) -> list[DeviceRow]:
        """Devices that are targets and have not received it, at most :data:`MAX_PENDING`, of the followed platforms.

        Raises:
            StoreUnavailable: Also when devices numbered a moment ago are not stored yet.
        """
        found: list[DeviceRow] = []
        async for rows in self._pending_pages(app_id, push, state, label):
            found += [row for row in rows if platform_of_rank(row.platform_rank) in _FOLLOWED]
            if len(found) >= MAX_PENDING:
                break
        return found[:MAX_PENDING]

    async def count_targets(self, app_id: int, msg_id: str) -> int:
        """How many devices are targets; for a push to everyone, those of its registration and all added since."""
        push, state = await self.find(app_id, msg_id)
        if push is None:
            return 0
        added = 0
        for chunk in state.chunks:
            members = await targets_of(app_id, msg_id).read_chunk(self._redis, chunk)
            added += len(np.setdiff1d(members, _in_record(chunk, push), assume_unique=True))
        return added + (push.targets if push.ends or push.numbers else 0)

    async def note_completions(self, app_id: int, deliveries: Mapping[str, int],
                               extended: Collection[str]) -> dict[str, int]:
        """Note the time of those *deliveries* (message -> time) after which every target has the push.

        *extended* are those that were complete before and have been given targets; the note of one that is complete no
        more is taken back. Returns what is noted now, 0 for a note taken back.
        """
        states = await self._messages.states(app_id, [*deliveries, *extended])
        complete = await self._complete(app_id, states)
        finished = {msg_id: at for msg_id, at in deliveries.items() if msg_id in complete}
        reopened = [msg_id for msg_id in extended if msg_id not in complete]
        await self._redis.run([
            *(self._messages.finish(app_id, msg_id, at) for msg_id, at in finished.items()),
            *(self._messages.reopen(app_id, msg_id) for msg_id in reopened)])
        return finished | dict.fromkeys(reopened, 0)

    async def finished_at(self, app_id: int, push: PushRecord, state: MessageState) -> int:
        """When every target had the push; 0 if one has not. Deleting the last device that lacked it finishes it too."""
        if state.finished_at:
            return state.finished_at
        complete = await self._complete(app_id, {push.msg_id: state})
        if push.msg_id not in complete:
            return 0
        finished_at = max(state.last, complete[push.msg_id])
        await self._redis.run([self._messages.finish(app_id, push.msg_id, finished_at)])
        return finished_at

    async def _complete(self, app_id: int, states: Mapping[str, MessageState]) -> dict[str, int]:
        """The pushes among these that no device lacks, each with the last deletion of a device that did (0: none).

        They are searched side by side, a chunk of each at a time, and most are dropped at their first.
        """
        searches = [_Search(self._parse(msg_id, state), self._chunks(self._parse(msg_id, state), state))
                    for msg_id, state in states.items() if state.push]
        candidates = []
        while searches:
            candidates += [search for search in searches if not search.chunks]
            searches = [search for search in searches if search.chunks]
            for search, pending in zip(searches, await self._next_pending(app_id, searches), strict=True):
                search.missing += pending.tolist()
            searches = [search for search in searches if len(search.missing) <= _FEW]
        numbers = [number for search in candidates for number in search.missing]
        rows = await self._queries.devices(app_id, numbers, "completion") if numbers else {}
        complete: dict[str, int] = {}
        for search in candidates:
            missing = [rows[number] for number in search.missing if number in rows]
            excused = await self._excused(app_id, search.push, missing)
            if search.push.targets and excused.issuperset(search.missing):
                complete[search.push.msg_id] = max((row.deleted_at for row in missing), default=0)
        return complete

    async def _next_pending(self, app_id: int, searches: Sequence[_Search]) -> list[Numbers]:
        """Who is pending in the next chunk of each search."""
        chunks = [search.chunks.pop(0) for search in searches]
        replies = iter(await self._redis.run([
            device_set(app_id, search.push.msg_id).read_command(chunk)
            for search, chunk in zip(searches, chunks, strict=True) for device_set in (targets_of, received_by)]))
        return [_pending(chunk, next(replies), next(replies), search.push)
                for search, chunk in zip(searches, chunks, strict=True)]

    async def _excused(self, app_id: int, push: PushRecord, rows: Sequence[DeviceRow]) -> set[int]:
        """Which of these devices are no targets: those deleted, and those that came back after a push to everyone."""
        back = [row.number for row in rows if push.ends and row.registered_at > push.registered_at]
        listed = await targets_of(app_id, push.msg_id).contains(self._redis, np.array(back, np.uint32))
        unlisted = {number for number, is_listed in zip(back, listed.tolist(), strict=True) if not is_listed}
        return unlisted | {row.number for row in rows if row.is_deleted}

    async def _pending_pages(self, app_id: int, push: PushRecord, state: MessageState,
                             label: str) -> AsyncIterator[list[DeviceRow]]:
        async for numbers in self._pending_numbers(app_id, push, state):
            for start in range(0, len(numbers), _PAGE):
                page = numbers[start:start + _PAGE].tolist()
                rows = await self._queries.devices(app_id, page, label)
                if len(rows) < len(page):
                    raise StoreUnavailable("clickhouse", "some devices of this push are not stored yet")
                excused = await self._excused(app_id, push, list(rows.values()))
                yield [rows[number] for number in page if number not in excused]

    async def _pending_numbers(self, app_id: int, push: PushRecord, state: MessageState) -> AsyncIterator[Numbers]:
        """Targets that have not received the push, by chunk, ascending."""
        search = _Search(push, self._chunks(push, state))
        while search.chunks:
            pending, = await self._next_pending(app_id, [search])
            if len(pending):
                yield pending

    @staticmethod
    def _parse(msg_id: str, state: MessageState) -> PushRecord:
        return PushRecord.unpack(msg_id, state.push or b"[]")

    @staticmethod
    def _chunks(push: PushRecord, state: MessageState) -> list[int]:
        everyone = chunks_below(max(push.ends) * BUCKETS) if push.ends else ()
        return sorted({*everyone, *(number >> CHUNK_BITS for number in push.numbers), *state.chunks})


@dataclass(slots=True)
class _Search:
    """A search for the devices that lack a push: the chunks still to look at, and those found missing so far."""

    push: PushRecord
    chunks: list[int]
    missing: list[int] = field(default_factory=list)


def _pending(chunk: int, targets: bytes, received: bytes, push: PushRecord) -> Numbers:
    members = np.union1d(decode_chunk(chunk, targets), _in_record(chunk, push))
    return np.setdiff1d(members, decode_chunk(chunk, received), assume_unique=True).astype(np.uint32)


def _in_record(chunk: int, push: PushRecord) -> Numbers:
    """The numbers of a chunk that the record itself names, ascending."""
    if push.numbers:
        named: Numbers = np.unique(np.array([number for number in push.numbers if number >> CHUNK_BITS == chunk],
                                            np.uint32))
        return named
    numbers = np.arange(chunk * CHUNK_SIZE, (chunk + 1) * CHUNK_SIZE, dtype=np.uint32)
    if not push.ends:
        return numbers[:0]
    return numbers[numbers // BUCKETS < np.array(push.ends, np.uint32)[numbers % BUCKETS]]
