"""What was sent, to whom, and who has not got it yet.

A push to everyone stores no list: its targets are the devices that were numbered below ``ends`` (by bucket) when it
was registered and that existed then. Any other push has a device set, to which events of the target stages add.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from reportsvc.errors import StoreUnavailable
from reportsvc.model import UNKNOWN_PLATFORM, platform_of_rank
from reportsvc.registry.devices import BUCKETS, Device
from reportsvc.registry.messages import Messages, MessageState, received_by, targets_of
from reportsvc.storage.device_set import CHUNK_SIZE, Numbers, chunks_below, decode_chunk
from reportsvc.storage.queries import DeviceRow, Queries
from reportsvc.storage.redis import Redis

#: Pushy lists so many pending devices at most.
MAX_PENDING: Final = 1000
#: So many numbers are looked up at once while pending devices are searched.
_PAGE: Final = 5000
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

    def document(self) -> dict[str, Any]:
        """The record as JSON values, without what is empty."""
        return {name: value for name in self.__slots__ if name != "msg_id"
                and (value := getattr(self, name)) not in (None, "", ())}

    @classmethod
    def parse(cls, msg_id: str, text: bytes) -> PushRecord:
        """Undo :meth:`document`."""
        blank: dict[str, Any] = {"vendor": "", "scheduled_at": None, "payload": None, "channel": "", "targets": 0}
        return cls(msg_id, **(blank | orjson.loads(text)))

    def covers(self, device: Device) -> bool:
        """Whether a push to everyone was meant for *device* too."""
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
        state = await self._messages.state(app_id, msg_id)
        return PushRecord.parse(msg_id, state.push) if state.push else None, state

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
            added += len(np.setdiff1d(members, _numbers_below(chunk, push.ends), assume_unique=True))
        return added + (push.targets if push.ends else 0)

    async def note_completion(self, app_id: int, msg_id: str, now: int) -> bool:
        """Note the time if every target of the push has it now; tells whether that is so."""
        push, state = await self.find(app_id, msg_id)
        if push is None or not await self._is_complete(app_id, push, state):
            return False
        await self._redis.run([self._messages.finish(app_id, msg_id, now)])
        return True

    async def _is_complete(self, app_id: int, push: PushRecord, state: MessageState) -> bool:
        async for numbers in self._pending_numbers(app_id, push, state):
            # Only devices that were deleted meanwhile may still be missing.
            rows = await self._queries.devices(app_id, numbers[:_PAGE].tolist(), "completion")
            if len(numbers) > _PAGE or any(number not in rows or not rows[number].is_deleted
                                           for number in numbers.tolist()):
                return False
        return bool(push.targets)

    async def _pending_pages(self, app_id: int, push: PushRecord, state: MessageState,
                             label: str) -> AsyncIterator[list[DeviceRow]]:
        async for numbers in self._pending_numbers(app_id, push, state):
            for start in range(0, len(numbers), _PAGE):
                page = numbers[start:start + _PAGE].tolist()
                rows = await self._queries.devices(app_id, page, label)
                if len(rows) < len(page):
                    raise StoreUnavailable("clickhouse", "some devices of this push are not stored yet")
                yield [rows[number] for number in page if not rows[number].is_deleted]

    async def _pending_numbers(self, app_id: int, push: PushRecord, state: MessageState) -> AsyncIterator[Numbers]:
        """Targets that have not received the push, by chunk, ascending."""
        targets, received = targets_of(app_id, push.msg_id), received_by(app_id, push.msg_id)
        everyone = set(chunks_below(max(push.ends) * BUCKETS)) if push.ends else set()
        for chunk in sorted(everyone | set(state.chunks)):
            wanted, got = await self._redis.run([targets.read_command(chunk), received.read_command(chunk)])
            members = np.union1d(decode_chunk(chunk, wanted), _numbers_below(chunk, push.ends))
            pending = np.setdiff1d(members, decode_chunk(chunk, got), assume_unique=True)
            if len(pending):
                yield pending.astype(np.uint32)


def _numbers_below(chunk: int, ends: Sequence[int]) -> Numbers:
    """The numbers of a chunk that were given when the buckets stood at *ends*."""
    numbers = np.arange(chunk * CHUNK_SIZE, (chunk + 1) * CHUNK_SIZE, dtype=np.uint32)
    if not ends:
        return numbers[:0]
    return numbers[numbers // BUCKETS < np.array(ends, np.uint32)[numbers % BUCKETS]]
