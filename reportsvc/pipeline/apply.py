"""Applies a batch of journal records to both stores.

The order is what makes a crash harmless: device numbers (atomic, first come), ``devices`` rows in ClickHouse, device
sets in Redis, counters in ClickHouse. Each step is a union or a keyed upsert, so a batch that stopped anywhere is
applied again from the start and changes nothing twice. Work is done in columns: Python touches an event a few times,
numpy does the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from reportsvc.localtime import hour_start
from reportsvc.metrics import Metrics
from reportsvc.model import FACT_CODES, STAGES, TARGET_STAGES, App, Fact, Profile
from reportsvc.pipeline.numbering import NEVER_QUARTER, QUARTER_SECONDS, DeviceFact, Integers, Numbering
from reportsvc.registry.apps import AppDirectory
from reportsvc.registry.audiences import Members
from reportsvc.registry.devices import BUCKETS, DeviceRegistry, Floors
from reportsvc.registry.messages import Messages, received_by, targets_of
from reportsvc.registry.pushes import PushRegistry
from reportsvc.storage import rowbinary as rb
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import CHUNK_BITS, CHUNK_SIZE, Numbers, add_chunks, decode_chunk
from reportsvc.storage.queries import NEVER, Broadcast, Queries
from reportsvc.storage.redis import Redis, app_keys_pattern, epoch_key

log = logging.getLogger(__name__)

_INGEST: Final = ("app", "msg_id", "kind", "platform", "channel", "stage", "hour", "seen", "devices", "last")
_DEVICES: Final = ("app", "number", "device_id", "platform_rank", "first_seen", "registered_at", "deleted_at")
_USERS: Final = ("app", "number", "user_id", "told_at")
_PUSHES: Final = ("app", "msg_id", "record", "expires_at", "registered_at")
_APPS: Final = ("app", "record", "version")
_COMPLETIONS: Final = ("app", "msg_id", "finished_at", "version")
_PROFILES: Final = ("app", "number", "device_id", "gateway", "token", "bundle_id", "metadata", "user_id", "named_user",
                    "interests_since", "deleted", "version")
_INTERESTS: Final = ("app", "number", "interest", "subscribed", "version")

_STAGE_BITS: Final = 7
_RECEIVED: Final = STAGES.index("received")
_TARGETS: Final = [STAGES.index(stage) for stage in sorted(TARGET_STAGES)]
_ONLINE_CODE: Final = Fact("online").code
#: The rank of the platform that a code names, by code.
_RANKS: Final = np.array([(code >> 5 & 7) | 8 if code >> 5 & 7 else 0 for code in range(FACT_CODES)], np.int64)
#: Rows of devices that are stored together when some turn out to be missing.
_REPAIR_ROWS: Final = 100_000
#: How long a batch waits for a sweep that is removing one of its messages.
_REMOVAL_WAIT_SECONDS: Final = 0.05


class UnknownApp(Exception):
    """The app of a record was deleted since the record was accepted."""


@dataclass(slots=True)
class _Columns:
    """Everything a batch says about one app, as columns of one length; later columns are filled as it is applied."""

    app: App
    msg_ids: list[str] = field(default_factory=list)
    device_ids: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    received_at: list[int] = field(default_factory=list)
    #: Whether the device itself was heard of (False: a sender named it).
    seen: list[bool] = field(default_factory=list)
    #: Where a registration says when the device was first seen, or what its platform is.
    ranks: dict[int, int] = field(default_factory=dict)
    first_seen: dict[int, int] = field(default_factory=dict)
    users: dict[int, str] = field(default_factory=dict)
    registered: set[int] = field(default_factory=set)
    #: The rows about targets that the record of their push names; they are in no device set.
    in_record: list[int] = field(default_factory=list)
    numbers: Numbers = field(default_factory=lambda: np.zeros(0, np.uint32))
    facts: list[DeviceFact] = field(default_factory=list)
    #: What is above, as arrays, once all of the batch is collected: see :meth:`seal`.
    code_array: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    time_array: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    received_array: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    seen_array: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    #: Each row's message, as its position in ``messages``.
    message_array: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    messages: list[str] = field(default_factory=list)

    def extend(self, msg_ids: list[str], device_ids: list[str], codes: list[int], times: list[int], received_at: int,
               *, seen: bool) -> int:
        """Add rows; returns the position of the first."""
        start = len(self.codes)
        if not len(msg_ids) == len(device_ids) == len(codes) == len(times):
            raise ValueError("the columns of a record differ in length")
        self.msg_ids += msg_ids
        self.device_ids += device_ids
        self.codes += codes
        self.times += times
        self.received_at += [received_at] * len(codes)
        self.seen += [seen] * len(codes)
        return start

    def seal(self) -> None:
        """Turn the columns into arrays; no row is added after that."""
        self.code_array = np.array(self.codes, np.int64)
        self.time_array = np.array(self.times, np.int64)
        self.received_array = np.array(self.received_at, np.int64)
        self.seen_array = np.array(self.seen, np.bool_)
        self.message_array, self.messages = _positions(self.msg_ids)


@dataclass(frozen=True, slots=True)
class _Touch:
    """A message of the batch: its latest delivery, the chunks of its sets that change, and whether targets come."""

    app_id: int
    msg_id: str
    at: int
    chunks: Sequence[int]
    adds_targets: bool


class Applier:
    """Applies batches; see the module."""

    def __init__(self, redis: Redis, clickhouse: ClickHouse, apps: AppDirectory, capacity: int,
                 small_chunk_limit: int, floors: Floors | None = None, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._redis = redis
        self._clickhouse = clickhouse
        self._queries = Queries(clickhouse)
        self._apps = apps
        self._registry = DeviceRegistry(redis, floors or Floors(self._queries))
        self._messages = Messages(redis)
        self._pushes = PushRegistry(redis, self._queries)
        self._numbering = Numbering(self._registry, capacity)
        self._limit = small_chunk_limit

    async def apply(self, records: Sequence[dict[str, Any]]) -> None:
        """Apply *records*; when this returns, every report has them.

        Raises:
            StoreUnavailable: A store is away; apply the same records again.
            UnknownApp: One record's app is gone.
        """
        if any(self._apps.by_id(record["app"]) is None for record in records):
            await self._apps.refresh()  # another process may have made it a moment ago
        step = self._metrics.step
        with step("all"):
            with step("collect"):
                columns = list(self._collect(records).values())
            with step("numbers"):
                for one in columns:
                    await self._number(one)
            with step("devices"):
                await self._store_devices(columns, [record for record in records if record["type"] == "deletion"])
                await self._store_profiles(records)
            with step("sets"):
                await self._store_sets(columns)
                await self._store_audiences([record for record in records if record["type"] == "audience"])
            with step("counters"):
                await self._store_counters(columns)
            with step("pushes"):
                await self._store_pushes([record for record in records if record["type"] == "push"])
                await self._store_apps([record for record in records if record["type"] in ("app", "app_deletion")])
            # Answers made before this moment are kept no longer; see reports/fresh.py.
            await self._redis.run([("INCR", epoch_key(app_id)) for app_id in {record["app"] for record in records}])

    # ---------------------------------------------------------------------------------------------------------- collect
    def _collect(self, records: Sequence[dict[str, Any]]) -> dict[int, _Columns]:
        by_app: dict[int, _Columns] = {}
        for record in records:
            add = _COLLECTORS.get(record["type"])
            if add is None and record["type"] not in _OTHER_TYPES:
                raise ValueError(f"a record of type {record['type']!r} is not known here")
            if add is not None:
                app_id = record["app"]
                if app_id not in by_app:
                    by_app[app_id] = _Columns(self._app(app_id))
                add(by_app[app_id], record)
        for columns in by_app.values():
            columns.seal()
        return by_app

    def _app(self, app_id: int) -> App:
        app = self._apps.by_id(app_id)
        if app is None:
            raise UnknownApp(f"app {app_id} was deleted")
        return app

    # ---------------------------------------------------------------------------------------------------------- devices
    async def _number(self, columns: _Columns) -> None:
        ranks = _RANKS[columns.code_array]
        quarters = np.where(columns.seen_array, columns.time_array // QUARTER_SECONDS, NEVER_QUARTER)
        for position, rank in columns.ranks.items():
            ranks[position] = rank
        for position, seconds in columns.first_seen.items():
            quarters[position] = min(int(quarters[position]), seconds // QUARTER_SECONDS)
        columns.numbers, columns.facts = await self._numbering.resolve(
            columns.app.id, columns.device_ids, ranks, quarters, max(columns.received_at, default=0))

    async def _store_devices(self, columns: Sequence[_Columns], deletions: Sequence[dict[str, Any]]) -> None:
        rows = [_device_row(one.app.id, fact.number, fact.device_id, fact.rank, fact.first_seen * QUARTER_SECONDS
                            if fact.first_seen < NEVER_QUARTER else NEVER) for one in columns for fact in one.facts]
        for one in columns:
            rows += await self._return_rows(one)
        for record in deletions:
            device = (await self._registry.find(record["app"], [record["device_id"]]))[0]
            if device is not None:
                rows.append(_device_row(record["app"], device.number, record["device_id"], 0, NEVER,
                                        deleted=record["at"]))
        await self._insert("devices", _DEVICES, rows)
        await self._insert("device_users", _USERS, [
            b"".join((rb.uint32(one.app.id), rb.uint32(int(one.numbers[position])), rb.string(user),
                      rb.uint32(one.received_at[position])))
            for one in columns for position, user in one.users.items()])
        for one in columns:
            self._numbering.remember(one.app.id, one.facts)

    async def _return_rows(self, columns: _Columns) -> list[bytes]:
        """Rows of registered devices that were deleted before; when each came back, the registry knows."""
        device_ids = list({columns.device_ids[position] for position in columns.registered})
        found = zip(device_ids, await self._registry.find(columns.app.id, device_ids), strict=True)
        return [_device_row(columns.app.id, device.number, device_id, 0, NEVER, registered=device.returned_at)
                for device_id, device in found if device is not None and device.returned_at]

    async def _store_profiles(self, records: Sequence[dict[str, Any]]) -> None:
        await self._insert("device_profiles", _PROFILES, [
            _profile_row(record["app"], profile) for record in records if record["type"] == "profiles"
            for profile in record["profiles"]])
        await self._insert("device_profiles", _PROFILES, [
            _profile_row(self._app(record["app"]).id, asdict(Profile(
                record["device_id"], record["number"], version=record["version"])), deleted=True)
            for record in records if record["type"] == "profile_deletion"])
        await self._insert("device_interests", _INTERESTS, [
            b"".join((rb.uint32(record["app"]), rb.uint32(record["number"]), rb.string(name),
                      rb.uint8(record["subscribed"]), rb.uint64(record["version"])))
            for record in records if record["type"] == "interests" for name in record["interests"]])

    # ------------------------------------------------------------------------------------------------------------- sets
    async def _store_sets(self, columns: Sequence[_Columns]) -> None:
        pushes = await self._touch([touch for one in columns for touch in _touches(one)])
        parts = [(devices_of(one.app.id, msg_id), chunk, offsets) for one in columns
                 for devices_of, stages in ((targets_of, _TARGETS), (received_by, [_RECEIVED]))
                 for msg_id, chunk, offsets in _chunks(one, stages)]
        await self._redis.run(list(add_chunks(parts, self._limit, self._redis)))
        for app_id in {touch.app_id for touch, _ in pushes}:
            mine = [(touch, is_finished) for touch, is_finished in pushes if touch.app_id == app_id]
            noted = await self._pushes.note_completions(
                app_id, {touch.msg_id: touch.at for touch, is_finished in mine if not is_finished},
                [touch.msg_id for touch, is_finished in mine if is_finished and touch.adds_targets])
            await self._insert("completions", _COMPLETIONS, [
                b"".join((rb.uint32(app_id), rb.string(msg_id), rb.uint32(at), rb.uint64(time.time_ns())))
                for msg_id, at in noted.items()])

    async def _store_audiences(self, records: Sequence[dict[str, Any]]) -> None:
        """Add the targets that came as sets: to Redis, and to the counters a row for each chunk."""
        rows: list[bytes] = []
        for record in records:
            app, msg_id, at = self._app(record["app"]), record["msg_id"], record["at"]
            members = Members.parse(record["members"])
            chunks = {} if record["in_record"] else members.chunks
            await self._touch([_Touch(app.id, msg_id, at, list(chunks), adds_targets=True)])
            await self._redis.run(targets_of(app.id, msg_id).union(chunks, self._limit))
            code = Fact("target", "", record["channel"], record["kind"]).code
            rows += [_ingest_row(app.id, msg_id, code, hour_start(app.timezone, at), False,
                                 decode_chunk(chunk, part), at) for chunk, part in members.chunks.items()]
        await self._insert("ingest", _INGEST, rows)

    async def _touch(self, touches: list[_Touch]) -> list[tuple[_Touch, bool]]:
        """Note the deliveries, waiting for a sweep that is removing a message; returns those of registered pushes, and
        whether every target had the push before."""
        pushes = []
        while touches:
            replies = await self._redis.run([
                self._messages.touch(touch.app_id, touch.msg_id, touch.at, touch.chunks) for touch in touches])
            pushes += [(touch, reply == 2) for touch, reply in zip(touches, replies, strict=True) if reply > 0]
            touches = [touch for touch, reply in zip(touches, replies, strict=True) if reply == -1]
            if touches:
                await asyncio.sleep(_REMOVAL_WAIT_SECONDS)
        return pushes

    # --------------------------------------------------------------------------------------------------------- counters
    async def _store_counters(self, columns: Sequence[_Columns]) -> None:
        rows: list[bytes] = []
        for one in columns:
            rows += _ingest_rows(one)
        await self._insert("ingest", _INGEST, rows)

    async def _store_pushes(self, records: Sequence[dict[str, Any]]) -> None:
        await self._insert("pushes", _PUSHES, [
            b"".join((rb.uint32(record["app"]), rb.string(record["msg_id"]),
                      rb.string(orjson.dumps(record["record"] | {"digest": record.get("digest", "")}).decode()),
                      rb.uint32(record["expires_at"]),
                      rb.uint32(record["at"]))) for record in records])
        for record in records:
            if record["record"].get("ends"):
                await self._expand(record)

    async def _expand(self, record: dict[str, Any]) -> None:
        app, push, at = self._app(record["app"]), record["record"], record["at"]
        await self._complete_devices(app.id, push["ends"])
        await self._queries.expand_broadcast(app.id, Broadcast(
            record["msg_id"], push["kind"], push.get("channel", ""), hour_start(app.timezone, at), at, push["ends"]))

    async def _complete_devices(self, app_id: int, ends: Sequence[int]) -> None:
        """Store what the registry knows of devices below *ends* and another process has not stored yet.

        Numbers are dense, so a device that is missing shows in the count, as does a deletion or a return.
        """
        stored = await self._queries.stored_below(app_id, ends, BUCKETS)
        deleted = (await self._registry.extent(app_id)).deleted
        rows: list[bytes] = []
        for bucket, (have, given) in enumerate(zip(stored, ends, strict=True)):
            if have.devices < given or have.deleted != deleted[bucket]:
                rows += [_device_row(app_id, device.number, device_id, device.rank, NEVER,
                                     registered=device.returned_at, deleted=device.deleted_at)
                         async for device_id, device in self._registry.bucket(app_id, bucket)]
            if len(rows) >= _REPAIR_ROWS or bucket == len(ends) - 1:
                await self._insert("devices", _DEVICES, rows)
                rows = []

    async def _store_apps(self, records: Sequence[dict[str, Any]]) -> None:
        await self._insert("apps", _APPS, [
            rb.uint32(record["app"]) + rb.string(orjson.dumps(record.get("record", {})).decode())
            + rb.uint64(record["version"]) for record in records])
        for record in records:
            if record["type"] == "app_deletion":
                self._numbering.forget(record["app"])
                await self._queries.delete_app(record["app"])
                await self._delete_keys(record["app"])

    async def _delete_keys(self, app_id: int) -> None:
        keys = await self._redis.scan(app_keys_pattern(app_id))
        await self._redis.run([("UNLINK", key) for key in keys])

    async def _insert(self, table: str, columns: Sequence[str], rows: Sequence[bytes]) -> None:
        if rows:
            await self._clickhouse.insert(table, columns, b"".join(rows))


# ----------------------------------------------------------------------------------------------------------- collectors
def _add_events(columns: _Columns, record: dict[str, Any]) -> None:
    start = columns.extend(record["msg_ids"], record["device_ids"], record["codes"], record["times"], record["at"],
                           seen=True)
    for position, user in record["users"].items():
        if not 0 <= int(position) < len(record["codes"]):
            raise ValueError("a user of a record belongs to none of its events")
        columns.users[start + int(position)] = user


def _add_targets(columns: _Columns, record: dict[str, Any]) -> None:
    devices, at = record["device_ids"], record["at"]
    code = Fact("target", "", record["channel"], record["kind"]).code
    start = columns.extend([record["msg_id"]] * len(devices), devices, [code] * len(devices), [at] * len(devices), at,
                           seen=False)
    if record["in_record"]:
        columns.in_record += range(start, start + len(devices))


def _add_registrations(columns: _Columns, record: dict[str, Any]) -> None:
    devices, at = record["devices"], record["at"]
    start = columns.extend([""] * len(devices), [device[0] for device in devices], [_ONLINE_CODE] * len(devices),
                           [at] * len(devices), at, seen=True)
    for position, (_, platform, user, first_seen) in enumerate(devices, start):
        columns.registered.add(position)
        if platform:
            columns.ranks[position] = int(_RANKS[Fact("online", platform).code])
        if user:
            columns.users[position] = user
        if first_seen:
            columns.first_seen[position] = first_seen


def _add_profiles(columns: _Columns, record: dict[str, Any]) -> None:
    profiles, at = record["profiles"] if record["seen"] else [], record["at"]
    start = columns.extend([""] * len(profiles), [profile["device_id"] for profile in profiles],
                           [_ONLINE_CODE] * len(profiles), [at] * len(profiles), at, seen=True)
    for position, profile in enumerate(profiles, start):
        if profile["user_id"]:
            columns.users[position] = profile["user_id"]


def _add_interests(columns: _Columns, record: dict[str, Any]) -> None:
    columns.extend([""], [record["device_id"]], [_ONLINE_CODE], [record["at"]], record["at"], seen=True)


_COLLECTORS: Final = {"events": _add_events, "targets": _add_targets, "devices": _add_registrations,
                      "profiles": _add_profiles, "interests": _add_interests}
#: What is no column of facts, and is applied one by one.
_OTHER_TYPES: Final = frozenset({"push", "deletion", "profile_deletion", "audience", "app", "app_deletion"})


# ----------------------------------------------------------------------------------------------------------------- rows
def _device_row(app_id: int, number: int, device_id: str, rank: int, first_seen: int, *, registered: int = 0,
                deleted: int = 0) -> bytes:
    return (rb.uint32(app_id, number) + rb.string(device_id) + rb.uint8(rank)
            + rb.uint32(first_seen, registered, deleted))


def _profile_row(app_id: int, profile: Mapping[str, Any], *, deleted: bool = False) -> bytes:
    return b"".join((
        rb.uint32(app_id), rb.uint32(profile["number"]),
        *(rb.string(profile[name]) for name in ("device_id", "gateway", "token", "bundle_id")),
        rb.string(orjson.dumps(profile["metadata"]).decode()), rb.string(profile["user_id"]),
        rb.string(profile["named_user"]), rb.uint64(profile["interests_since"]), rb.uint8(deleted),
        rb.uint64(profile["version"])))


def _touches(columns: _Columns) -> Iterator[_Touch]:
    """What the hash of each message has to learn before its sets are added to."""
    messages, names = columns.message_array, columns.messages
    if not names:
        return
    last = np.zeros(len(names), np.int64)
    np.maximum.at(last, messages, columns.received_array)
    in_sets = _in_sets(columns, [*_TARGETS, _RECEIVED])
    extended = set(messages[np.isin(columns.code_array & _STAGE_BITS, _TARGETS)].tolist())
    pairs = np.unique(messages[in_sets] << CHUNK_BITS | columns.numbers[in_sets].astype(np.int64) >> CHUNK_BITS)
    chunks: dict[int, list[int]] = {}
    for pair in pairs.tolist():
        chunks.setdefault(pair >> CHUNK_BITS, []).append(pair & (CHUNK_SIZE - 1))
    for position, name in enumerate(names):
        if name:
            yield _Touch(columns.app.id, name, int(last[position]), chunks.get(position, ()), position in extended)


def _positions(words: Sequence[str]) -> tuple[Integers, list[str]]:
    """Each word as its position among the distinct ones, and those."""
    index: dict[str, int] = {}
    positions = [index.setdefault(word, len(index)) for word in words]
    return np.array(positions, np.int64), list(index)


def _runs(keys: Integers) -> tuple[Integers, list[int], list[int]]:
    """An order that puts equal keys side by side, and where each run of them starts and ends."""
    order = np.argsort(keys, kind="stable")
    edges = (np.flatnonzero(np.diff(keys[order])) + 1).tolist()
    return order, [0, *edges], [*edges, len(keys)]


def _in_sets(columns: _Columns, stages: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which rows belong into the set of devices that reached one of *stages*."""
    found = np.isin(columns.code_array & _STAGE_BITS, stages)
    found[columns.in_record] = False
    return found


def _chunks(columns: _Columns, stages: Sequence[int]) -> Iterator[tuple[str, int, bytes]]:
    """The devices that reached one of *stages*: message, chunk, packed offsets."""
    wanted = np.flatnonzero(_in_sets(columns, stages))
    if not len(wanted):
        return
    numbers, names = columns.numbers[wanted], columns.messages
    keys = columns.message_array[wanted] << CHUNK_BITS | (numbers >> CHUNK_BITS).astype(np.int64)
    order, starts, ends = _runs(keys)
    offsets = (numbers[order] & (CHUNK_SIZE - 1)).astype("<u2")
    for start, end in zip(starts, ends, strict=True):
        key = int(keys[order[start]])
        yield names[key >> CHUNK_BITS], key & (CHUNK_SIZE - 1), offsets[start:end].tobytes()


def _ingest_rows(columns: _Columns) -> Iterator[bytes]:
    """One row for all devices that did the same: stage, message, hour and the rest."""
    if not columns.codes:
        return
    timezone = columns.app.timezone
    quarters, quarter_of = np.unique(columns.time_array // QUARTER_SECONDS, return_inverse=True)
    hours = np.array([hour_start(timezone, int(quarter) * QUARTER_SECONDS) for quarter in quarters], np.int64)
    messages, names = columns.message_array, columns.messages
    codes, seen = columns.code_array, columns.seen_array
    # From the right: `seen` 1 bit, the fact 13, the hour as a quarter since 1970 24, the message what is left.
    keys = messages << 38 | (hours // QUARTER_SECONDS)[quarter_of] << 14 | codes << 1 | seen
    order, starts, ends = _runs(keys)
    devices, received_at = columns.numbers[order], columns.received_array[order]
    lasts = np.maximum.reduceat(received_at, starts)
    for start, end, last in zip(starts, ends, lasts.tolist(), strict=True):
        first = order[start]
        yield _ingest_row(columns.app.id, names[messages[first]], int(codes[first]), int(hours[quarter_of[first]]),
                          bool(seen[first]), devices[start:end], last)


def _ingest_row(app_id: int, msg_id: str, code: int, hour: int, seen: bool, devices: Numbers, last: int) -> bytes:
    return b"".join((rb.uint32(app_id), rb.string(msg_id), _fact_columns(code), rb.uint32(hour), rb.uint8(seen),
                     rb.length(len(devices)), devices.tobytes(), rb.uint32(last)))


_FACT_COLUMNS: dict[int, bytes] = {}


def _fact_columns(code: int) -> bytes:
    """kind, platform, channel and stage of a code, encoded."""
    encoded = _FACT_COLUMNS.get(code)
    if encoded is None:
        fact = Fact.from_code(code)
        encoded = _FACT_COLUMNS[code] = b"".join(
            map(rb.string, (fact.kind, fact.platform, fact.channel, fact.stage)))
    return encoded
