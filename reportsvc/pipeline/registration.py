"""What senders and SDKs register: pushes, their targets, devices.

Unlike an event, a registration is visible at once: the caller who gets its answer and asks in the next moment is told
what he said. It is written to the journal first, which makes it durable and brings it to ClickHouse; what Redis is
told on top of that, the aggregator will tell it once more, with no effect.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reportsvc.errors import Conflict, NotFound
from reportsvc.model import App, Audience, DeviceUpsert, Push, platform_rank
from reportsvc.pipeline import records
from reportsvc.pipeline.journal import Journal
from reportsvc.pipeline.profiles import ProfileRegistrar
from reportsvc.registry.audiences import Audiences, Members
from reportsvc.registry.devices import DeviceRegistry, Floors
from reportsvc.registry.messages import Messages, targets_of
from reportsvc.registry.pushes import MAX_IN_RECORD, PushRecord, PushRegistry
from reportsvc.storage.device_set import CHUNK_BITS, Numbers
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Redis

#: Ids in one journal record; a larger audience takes several.
_IDS_A_RECORD: Final = 10_000
#: The same for an audience that is a set: eight million devices, in one and a half megabytes.
_CHUNKS_A_RECORD: Final = 128
_CONFLICT: Final = "msg_id {} is registered with other content"


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a push: whether it is new, and how many devices are its targets."""

    msg_id: str
    targets: int
    created: bool


class Registrar:
    """Registers on behalf of senders and devices."""

    def __init__(self, redis: Redis, queries: Queries, journal: Journal, small_chunk_limit: int,
                 clock: Callable[[], float] = time.time, floors: Floors | None = None) -> None:
        self._redis = redis
        self._journal = journal
        self._limit = small_chunk_limit
        self._clock = clock
        self._devices = DeviceRegistry(redis, floors or Floors(queries))
        self._messages = Messages(redis)
        self._pushes = PushRegistry(redis, queries)
        self._audiences = Audiences(redis, self._devices)
        self.profiles = ProfileRegistrar(redis, self._devices, journal, small_chunk_limit, clock)

    async def register_push(self, app: App, push: Push, audience: Audience, content: bytes) -> Registration:
        """Register *push* for *audience*; *content* is what makes two registrations of one id the same.

        Raises:
            Conflict: The id is registered with other content.
        """
        digest = base64.b64encode(hashlib.blake2b(content, digest_size=12).digest()).decode()
        if await self._messages.digest(app.id, push.msg_id) not in ("", digest):
            raise Conflict(_CONFLICT.format(push.msg_id))  # before its devices would become known
        now = int(self._clock())
        device_ids = list(dict.fromkeys(audience.device_ids))
        numbers = await self._number(app, device_ids, now)
        members = await self._members(app, audience)
        ends: Sequence[int] = ()
        targets = len(numbers) + len(members)
        if audience.everyone:
            extent = await self._devices.extent(app.id)
            ends, targets = extent.given, extent.alive
        few = [] if targets > MAX_IN_RECORD else numbers.tolist() or members.numbers.tolist()
        record = PushRecord(push.msg_id, push.vendor, push.created_at, push.expires_at, push.scheduled_at, push.payload,
                            push.kind, push.channel, targets, now, ends, few)
        claim = await self._messages.claim(
            app.id, push.msg_id, digest, record.pack(), now=now, expires_at=push.expires_at,
            chunks=[] if few else [*_chunks(numbers), *members.chunks], members=b"" if few else members.dump())
        if claim.digest != digest:
            raise Conflict(_CONFLICT.format(push.msg_id))
        record = PushRecord.unpack(push.msg_id, claim.push)
        await self._store_targets(app, record, device_ids, numbers, now)
        if claim.members:
            await self._store_members(app, record, Members.load(claim.members))
        elif record.numbers and not device_ids:
            await self._journal_members(app, record, Members.of(np.array(record.numbers, np.uint32)), in_record=True)
        await self._journal.append_record(records.push(
            app.id, push.msg_id, record.document(), digest, record.expires_at, record.registered_at))
        return Registration(push.msg_id, record.targets, claim.is_new)

    async def add_targets(self, app: App, msg_id: str, device_ids: Sequence[str]) -> int:
        """Make more devices targets of a registered push; how many it has now.

        Raises:
            NotFound: No such push is registered.
        """
        push, _ = await self._pushes.find(app.id, msg_id)
        if push is None:
            raise NotFound(f"msg_id {msg_id} is not registered; register it with POST /v1/pushes first")
        now = int(self._clock())
        device_ids = list(dict.fromkeys(device_ids))
        numbers = await self._number(app, device_ids, now)
        await self._redis.run([self._messages.touch(app.id, msg_id, now, _chunks(numbers))])
        await self._store_targets(app, push, device_ids, numbers, now)
        return await self._pushes.count_targets(app.id, msg_id)

    async def upsert_devices(self, app: App, upserts: Sequence[DeviceUpsert]) -> None:
        """Make devices known; one that was deleted is a device of the app again."""
        now = int(self._clock())
        ranks: dict[str, int] = {}
        for one in upserts:
            ranks[one.device_id] = max(ranks.get(one.device_id, 0), platform_rank(one.device_id, one.platform))
        devices = await self._devices.number(app.id, ranks, now, registering=True)
        numbers = {device_id: device.number for device_id, device in zip(ranks, devices, strict=True)}
        await self._journal.append_record(records.devices(app.id, upserts, now))
        await self.profiles.name_users(app, {
            one.device_id: (numbers[one.device_id], one.user_id) for one in upserts if one.user_id})

    async def delete_device(self, app: App, device_id: str) -> bool:
        """Make a device no device of the app any more; False if it never was one."""
        return await self.profiles.delete(app, device_id)

    async def _number(self, app: App, device_ids: Sequence[str], now: int) -> Numbers:
        ranks = {device_id: platform_rank(device_id, "") for device_id in device_ids}
        devices = await self._devices.number(app.id, ranks, now, registering=False)
        return np.array([device.number for device in devices], np.uint32)

    async def _store_targets(self, app: App, push: PushRecord, device_ids: Sequence[str], numbers: Numbers,
                             now: int) -> None:
        in_record = set(push.numbers).issuperset(numbers.tolist())
        for start in range(0, len(device_ids), _IDS_A_RECORD):
            await self._journal.append_record(records.targets(
                app.id, push.msg_id, push.kind, push.channel, device_ids[start:start + _IDS_A_RECORD], now,
                in_record=in_record))
        if not in_record:
            await self._redis.run(targets_of(app.id, push.msg_id).add(numbers, self._limit))

    async def _members(self, app: App, audience: Audience) -> Members:
        if audience.interests:
            return await self._audiences.with_interests(app.id, audience.interests)
        if audience.users:
            return await self._audiences.of_users(app.id, audience.users)
        return Members()

    async def _store_members(self, app: App, push: PushRecord, members: Members) -> None:
        await self._journal_members(app, push, members, in_record=False)
        await self._redis.run(targets_of(app.id, push.msg_id).union(members.chunks, self._limit))
        await self._redis.run([self._messages.settled(app.id, push.msg_id)])

    async def _journal_members(self, app: App, push: PushRecord, members: Members, *, in_record: bool) -> None:
        for part in members.parts(_CHUNKS_A_RECORD):
            await self._journal.append_record(records.audience(
                app.id, push.msg_id, push.kind, push.channel, part.document(), push.registered_at,
                in_record=in_record))


def _chunks(numbers: Numbers) -> list[int]:
    chunks: list[int] = np.unique(numbers >> CHUNK_BITS).tolist()
    return chunks
