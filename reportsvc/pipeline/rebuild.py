"""Restores Redis from ClickHouse after Redis has lost its data, all of it or a part.

ClickHouse has everything that was ever applied: apps, devices with their numbers, profiles, interests and users,
pushes, and who was a target of a message or received it. What it cannot have is what the journal still held; that is
lost with the journal, and only with it: where the journal survived, the service applies it afterwards.

The work goes from the parts to the whole, and the apps come last: a Redis that is half restored has none, and the
service refuses to start on it. It can be begun again at any time, because everything but the journal and its ledger is
removed first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import orjson

from reportsvc.errors import BadConfig
from reportsvc.localtime import hour_start
from reportsvc.model import Profile, dies_at
from reportsvc.pipeline.presence import is_at_work
from reportsvc.registry.apps import AppStore
from reportsvc.registry.devices import BUCKETS, Device, DeviceRegistry
from reportsvc.registry.interests import subscribers
from reportsvc.registry.messages import GRACE_SECONDS, Messages, received_by, targets_of
from reportsvc.registry.profiles import ProfileStore
from reportsvc.registry.pushes import PushRecord
from reportsvc.registry.tokens import Tokens
from reportsvc.registry.users import Users
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import CHUNK_SIZE, Numbers, small_chunk_limit, split, union_of
from reportsvc.storage.inventory import Inventory, StoredApp, StoredMessage, StoredPush
from reportsvc.storage.queries import DeviceRow
from reportsvc.storage.redis import Command, Redis, restored_keys_pattern

log = logging.getLogger(__name__)

#: Commands sent together.
_PIPELINE: Final = 2000
#: Device numbers of one message that are read together: sixteen chunks.
_RANGE: Final = CHUNK_SIZE * 16


class Rebuild:
    """One rebuild; nobody else may write to Redis meanwhile."""

    def __init__(self, redis: Redis, clickhouse: ClickHouse, tell: Callable[[str], None],
                 clock: Callable[[], float] = time.time) -> None:
        """*tell* is given a line now and then."""
        self._redis = redis
        self._inventory = Inventory(clickhouse)
        self._tell = tell
        self._clock = clock
        self._apps = AppStore(redis)
        self._registry = DeviceRegistry(redis)
        self._messages = Messages(redis)
        self._profiles = ProfileStore(redis)
        self._tokens = Tokens(redis)
        self._users = Users(redis, self._profiles)
        self._limit = 0
        self._counts: Counter[str] = Counter()

    async def run(self, *, force: bool) -> dict[str, int]:
        """Restore everything; how much of what that was.

        Raises:
            BadConfig: A service is at work; or Redis has apps, so that it may have lost nothing, and *force* was not
                given.
        """
        if await is_at_work(self._redis):
            raise BadConfig("a service is at work on this Redis; stop every process of it first")
        if not force and (version := await self._apps.version()):
            raise BadConfig(f"this Redis has apps (version {version}), so it may have everything; add --force to remove"
                            " all of it but the journal, and restore it")
        self._limit = await small_chunk_limit(self._redis)
        await self._clear()
        apps = await self._inventory.apps()
        for app in apps:
            if app.record:
                await self._restore_app(app)
        await self._apps.restore({app.id: app.record for app in apps if app.record},
                                 version=max((app.version for app in apps), default=0),
                                 last_id=max((app.id for app in apps), default=0))
        self._counts["apps"] = sum(bool(app.record) for app in apps)
        return dict(self._counts)

    async def _clear(self) -> None:
        await self._apps.clear()
        removed = 0
        async for keys in self._redis.scan_pages(restored_keys_pattern()):
            await self._redis.run([("UNLINK", key) for key in keys])
            removed += len(keys)
        if removed:
            self._tell(f"removed {removed} keys")

    async def _restore_app(self, app: StoredApp) -> None:
        before, settings = Counter(self._counts), orjson.loads(app.record)
        given, deleted = [0] * BUCKETS, [0] * BUCKETS
        await self._restore_devices(app.id, given, deleted)
        await self._restore_profiles(app.id)
        await self._restore_pushes(app.id, given)
        # The counters come last: a bucket that is half restored has none, and nothing can be numbered in it.
        await self._send(self._registry.restore_counters(app.id, given, deleted))
        await self._restore_messages(app.id, settings["timezone"])
        done = self._counts - before
        self._tell(f"app {settings['name']}: " + ", ".join(f"{count} {name}" for name, count in done.items()))

    # ---------------------------------------------------------------------------------------------------------- devices
    async def _restore_devices(self, app_id: int, given: list[int], deleted: list[int]) -> None:
        async for rows in self._inventory.devices(app_id):
            await self._send(self._registry.restore(app_id, {row.device_id: _device(row) for row in rows}))
            for row in rows:
                bucket = row.number % BUCKETS
                given[bucket] = max(given[bucket], row.number // BUCKETS + 1)
                deleted[bucket] += row.is_deleted
            self._count("devices", len(rows), app_id)

    async def _restore_profiles(self, app_id: int) -> None:
        async for profiles in self._inventory.profiles(app_id):
            await self._send(command for profile in profiles.values() for command in self._profile(app_id, profile))
            self._count("profiles", len(profiles), app_id)
            async for rows in self._inventory.interests(app_id, min(profiles), max(profiles) + 1):
                await self._restore_interests(app_id, profiles, rows)

    def _profile(self, app_id: int, profile: Profile) -> list[Command]:
        commands = [self._profiles.restore(app_id, profile), *self._users.restore(app_id, profile)]
        if profile.token:
            commands.append(self._tokens.restore(app_id, profile.gateway, profile.token, profile.device_id))
        return commands

    async def _restore_interests(self, app_id: int, profiles: dict[int, Profile],
                                 rows: Iterable[tuple[int, str, bool, int]]) -> None:
        of_device: dict[int, list[str]] = {}
        of_interest: dict[str, list[int]] = {}
        for number, interest, is_subscribed, version in rows:
            profile = profiles.get(number)
            if profile is None:
                continue
            names = of_device.setdefault(number, [])
            if version > profile.version:
                profiles[number] = replace(profile, version=version)
            if is_subscribed and version >= profile.interests_since:
                names.append(interest)
                of_interest.setdefault(interest, []).append(number)
        await self._send(command for number, names in of_device.items()
                         for command in self._profiles.restore_interests(
                             app_id, profiles[number].device_id, names, profiles[number].version))
        await self._send(command for interest, numbers in of_interest.items()
                         for command in subscribers(app_id, interest).union(_chunks(numbers), self._limit))
        self._count("interests", sum(map(len, of_device.values())), app_id)

    # --------------------------------------------------------------------------------------------------------- messages
    async def _restore_pushes(self, app_id: int, given: list[int]) -> None:
        async for pushes in self._inventory.pushes(app_id):
            kept = [push for push in pushes
                    if max(dies_at(push.registered_at), push.expires_at) + GRACE_SECONDS > self._clock()]
            for start in range(0, len(kept), _PIPELINE):
                await asyncio.gather(*(self._restore_push(app_id, push) for push in kept[start:start + _PIPELINE]))
            for push in pushes:
                given[:] = map(max, given, push.record.get("ends") or given)
            self._count("pushes", len(kept), app_id)

    async def _restore_push(self, app_id: int, push: StoredPush) -> None:
        await self._messages.claim(
            app_id, push.msg_id, push.record["digest"], _record(push).pack(), now=push.registered_at,
            expires_at=push.expires_at, chunks=())
        if push.finished_at:
            await self._redis.run([self._messages.finish(app_id, push.msg_id, push.finished_at)])

    async def _restore_messages(self, app_id: int, timezone: str) -> None:
        async for page in self._inventory.messages(app_id):
            # Redis would drop the hash at once; the sweep has yet to remove the rest.
            messages = {message.msg_id: message for message in page
                        if dies_at(message.last) + GRACE_SECONDS > self._clock()}
            pushes = {msg_id: _record(push) for msg_id, push in (
                await self._inventory.pushes_of(app_id, list(messages))).items()}
            simple = [message for message in messages.values()
                      if message.devices <= _RANGE and not (message.msg_id in pushes and pushes[message.msg_id].ends)]
            if simple:
                for msg_id, received, targets in await self._inventory.members(
                        app_id, [message.msg_id for message in simple], 0, max(message.end for message in simple)):
                    await self._restore_sets(app_id, messages[msg_id], received, _without(targets, pushes.get(msg_id)))
            for message in messages.values():
                if message not in simple:
                    await self._restore_large(app_id, message, pushes.get(message.msg_id), timezone)
            self._count("messages", len(messages), app_id)

    async def _restore_large(self, app_id: int, message: StoredMessage, push: PushRecord | None, timezone: str) -> None:
        for start in range(0, message.end, _RANGE):
            if push is not None and push.ends:
                received, named, expanded = await self._inventory.members_of_broadcast(
                    app_id, message.msg_id, push.kind, push.channel, hour_start(timezone, push.registered_at), start,
                    start + _RANGE)
                # Redis has no list of everyone: only whom events made a target.
                targets = [*named, *_above(expanded, push.ends)]
            else:
                (_, received, targets), = await self._inventory.members(
                    app_id, [message.msg_id], start, start + _RANGE)
            await self._restore_sets(app_id, message, received, _without(targets, push))

    async def _restore_sets(self, app_id: int, message: StoredMessage, received: Sequence[int],
                            targets: Sequence[int]) -> None:
        got, meant = _chunks(received), _chunks(targets)
        await self._send([
            self._messages.touch(app_id, message.msg_id, message.last, [*got, *meant]),
            *received_by(app_id, message.msg_id).union(got, self._limit),
            *targets_of(app_id, message.msg_id).union(meant, self._limit)])
        self._counts["members"] += len(received) + len(targets)

    # ------------------------------------------------------------------------------------------------------------- both
    async def _send(self, commands: Iterable[Command]) -> None:
        waiting: list[Command] = []
        for command in commands:
            waiting.append(command)
            if len(waiting) == _PIPELINE:
                await self._redis.run(waiting)
                waiting = []
        await self._redis.run(waiting)

    def _count(self, name: str, count: int, app_id: int) -> None:
        before = self._counts[name]
        self._counts[name] += count
        if before // _EVERY != self._counts[name] // _EVERY:
            self._tell(f"{self._counts[name]} {name} (app {app_id})")


#: A line is told so often, in rows.
_EVERY: Final = 500_000


def _device(row: DeviceRow) -> Device:
    if row.is_deleted:
        return Device(row.number, row.platform_rank, deleted_at=row.deleted_at)
    return Device(row.number, row.platform_rank, returned_at=row.registered_at if row.deleted_at else 0)


def _record(push: StoredPush) -> PushRecord:
    blank: dict[str, Any] = {"vendor": "", "scheduled_at": None, "payload": None, "kind": "notification",
                             "channel": "", "targets": 0}
    stored = {name: value for name, value in push.record.items() if name != "digest"}
    return PushRecord(push.msg_id, **(blank | stored))


def _chunks(numbers: Sequence[int]) -> dict[int, bytes]:
    distinct: Numbers = np.unique(np.array(numbers, np.uint32))
    return {chunk: union_of([offsets]) for chunk, offsets, _ in split(distinct)}


def _without(targets: Sequence[int], push: PushRecord | None) -> Sequence[int]:
    """*targets* without those that stand in the record of the push."""
    if push is None or not push.numbers:
        return targets
    listed = set(push.numbers)
    return [number for number in targets if number not in listed]


def _above(numbers: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Those of *numbers* that were still free when the buckets stood at *ends*."""
    found = np.array(numbers, np.uint32)
    return found[found // BUCKETS >= np.array(ends, np.uint32)[found % BUCKETS]].tolist()  # type: ignore[no-any-return]
