"""Which devices an app has, and the number each of them was given.

Numbers are dense per app (0, 1, 2, …), first come first served, and never given twice: counting is then the union of
bitmaps. The registry is cut into buckets by a hash of the device id, each a Redis hash of its own, so that an app of
any size spreads over a cluster; bucket *b* of *B* gives the numbers b, b + B, b + 2 B, ….

A deleted device keeps its number as a mark, so that its past receipts stay counted once. Events do not bring it back
(one may be a replay from before the deletion); a registration does.

If Redis lost a bucket, or the end of one, it would give numbers a second time, and every count with one of them would
be wrong for good. :class:`Floors` notices before that: no bucket may stand below what ClickHouse has seen of it or what
Redis itself has told this process, and none may be begun unless ClickHouse says that it never was.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from reportsvc.errors import DataLost, StoreUnavailable
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Command, Question, Redis, Script, devices_key

T = TypeVar("T")

#: More buckets spread a large app better; fewer make a status call of a thousand devices cheaper.
BUCKETS: Final = 64
#: The field that holds "how many numbers are given : how many of them are deleted"; no device id is empty.
_COUNTERS: Final = ""

# A device's value is `number * 16 + rank`, then `x<time>` if it was deleted, or `r<time>` if it came back after that.
# ARGV: bucket, buckets, '1' to bring deleted devices back, now, how many numbers must have been given, '1' if the
# bucket may be begun, then ids and ranks. Answers how many numbers are given, then the values; without values when they
# are too few, and nothing when the bucket would have to be begun.
_NUMBER = Script("""
local key, bucket, buckets, revive, now = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local counters = redis.call('HGET', key, '')
if not counters and ARGV[6] == '0' then return false end
counters = counters or '0:0'
local given, deleted = string.match(counters, '^(%d+):(%d+)$')
given, deleted = tonumber(given), tonumber(deleted)
if given < tonumber(ARGV[5]) then return {given} end
local out = {0}
for i = 7, #ARGV, 2 do
  local id, rank = ARGV[i], tonumber(ARGV[i + 1])
  local value = redis.call('HGET', key, id)
  local packed, mark = nil, ''
  if value then
    packed, mark = string.match(value, '^(%d+)(.*)$')
    packed = tonumber(packed)
    if rank > packed % 16 then packed = packed - packed % 16 + rank end
    if revive and string.sub(mark, 1, 1) == 'x' then
      -- Later than the deletion also within one second: that is how ClickHouse tells which of the two came last.
      mark = 'r' .. string.format('%.0f', math.max(tonumber(now), tonumber(string.sub(mark, 2)) + 1))
      deleted = deleted - 1
    end
  else
    packed = (given * buckets + bucket) * 16 + rank
    given = given + 1
  end
  local wanted = string.format('%.0f', packed) .. mark
  if wanted ~= value then redis.call('HSET', key, id, wanted) end
  out[#out + 1] = wanted
end
local changed = string.format('%.0f:%.0f', given, deleted)
if changed ~= counters then redis.call('HSET', key, '', changed) end
out[1] = given
return out
""")

# Answers how many numbers are given, and the value, if there is one.
_DELETE = Script("""
local given, deleted = string.match(redis.call('HGET', KEYS[1], '') or '0:0', '^(%d+):(%d+)$')
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return {tonumber(given)} end
local packed, mark = string.match(value, '^(%d+)(.*)$')
if string.sub(mark, 1, 1) == 'x' then return {tonumber(given), value} end
value = packed .. 'x' .. string.format('%.0f', math.max(tonumber(ARGV[2]), tonumber(string.sub(mark, 2)) or 0))
redis.call('HSET', KEYS[1], ARGV[1], value, '', given .. ':' .. string.format('%.0f', tonumber(deleted) + 1))
return {tonumber(given), value}
""")

#: In place of the value of a device that there is none of; no number is below 0.
_UNKNOWN: Final = b"-1"
_DIGITS: Final = re.compile(rb"-?\d+")
_VALUE: Final = re.compile(rb"(\d+)(?:([xr])(\d+))?")


class Device(NamedTuple):
    """What the registry knows of one device; times in unix seconds, 0 for never."""

    number: int
    rank: int
    deleted_at: int = 0
    returned_at: int = 0


#: The same from a tuple of all its values, in half the time: a call may be about a thousand devices.
_device: Final = partial(tuple.__new__, Device)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of some ids, by their positions: numbers and ranks, -1 for an id the app never had; and all of a
    device that was ever deleted."""

    numbers: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    marked: Mapping[int, Device]

    @classmethod
    def parse(cls, values: Sequence[bytes]) -> Found:
        """What the values in Redis say; :data:`_UNKNOWN` for none."""
        text, marked = b" ".join(values), dict[int, Device]()
        if b"x" in text or b"r" in text:
            marked = {position: _parse(value) for position, value in enumerate(values)
                      if value is not _UNKNOWN and not value.isdigit()}
            text = b" ".join(_DIGITS.match(value)[0] for value in values)  # type: ignore[index]  # it always matches
        packed = np.fromstring(text, np.int64, sep=" ") if values else np.zeros(0, np.int64)
        return cls(packed >> 4, np.where(packed < 0, -1, packed & 15), marked)

    def device(self, position: int) -> Device | None:
        """One of them; None for an id the app never had."""
        number = int(self.numbers[position])
        return self.marked.get(position) or (Device(number, int(self.ranks[position])) if number >= 0 else None)

    def devices(self) -> list[Device | None]:
        """All of them."""
        devices: list[Device | None] = [_device((number, rank, 0, 0)) if number >= 0 else None for number, rank
                                        in zip(self.numbers.tolist(), self.ranks.tolist(), strict=True)]
        for position, device in self.marked.items():
            devices[position] = device
        return devices


@dataclass(frozen=True, slots=True)
class Extent:
    """How many devices each bucket had at one moment."""

    given: Sequence[int]
    deleted: Sequence[int]

    @property
    def end(self) -> int:
        """A number over every device's."""
        return max(self.given, default=0) * BUCKETS

    @property
    def alive(self) -> int:
        """How many devices the app has."""
        return sum(self.given) - sum(self.deleted)


class Floors:
    """How many numbers each bucket must have given at least, as far as this process knows."""

    def __init__(self, queries: Queries | None) -> None:
        """Without *queries*, only what Redis itself has told counts."""
        self._queries = queries
        self._given: dict[tuple[int, int], int] = {}
        self._is_loaded = False

    async def load(self) -> None:
        """Learn what ClickHouse has seen, unless that was done since Redis last failed."""
        if self._queries is not None and not self._is_loaded:
            self._learn(await self._queries.numbers_given(BUCKETS))
            self._is_loaded = True

    def doubt(self) -> None:
        """Redis has failed: it may come back with less than it had, also of what other processes were given."""
        self._is_loaded = False

    def of(self, app_id: int, bucket: int) -> int:
        """The floor of one bucket."""
        return self._given.get((app_id, bucket), 0)

    def check(self, app_id: int, bucket: int, given: int, floor: int) -> None:
        """Take note that a bucket has given so many numbers; *floor* is its floor from before it was asked.

        Raises:
            DataLost: It had given more.
        """
        if given < floor:
            raise DataLost("redis", "device numbers that it had given")
        if given > self.of(app_id, bucket):
            self._given[app_id, bucket] = given

    async def look_up(self, app_id: int) -> None:
        """Learn what ClickHouse has seen of one app just now.

        While ClickHouse is away, what is known has to do: a new app must be able to register devices.
        """
        if self._queries is not None:
            with suppress(StoreUnavailable):
                self._learn(await self._queries.numbers_given(BUCKETS, app_id))

    def _learn(self, rows: Iterable[tuple[int, int, int]]) -> None:
        for app_id, bucket, given in rows:
            self._given[app_id, bucket] = max(given, self.of(app_id, bucket))


class DeviceRegistry:
    """The devices of every app, in Redis.

    Every method raises :class:`DataLost` where Redis is seen, by *floors*, to have lost numbers.
    """

    def __init__(self, redis: Redis, floors: Floors | None = None) -> None:
        self._redis = redis
        self._floors = floors or Floors(None)

    async def find(self, app_id: int, device_ids: Sequence[str]) -> list[Device | None]:
        """The devices with these ids, in their order; None for an id the app never had."""
        return (await self.look_up(app_id, device_ids)).devices()

    async def look_up(self, app_id: int, device_ids: Sequence[str]) -> Found:
        """The same in columns, which is quicker for many."""
        question = self.question(app_id, device_ids)
        return question.parse(await self._redis.run(question.commands))

    def question(self, app_id: int, device_ids: Sequence[str]) -> Question[Found]:
        """The same, to be asked beside something else."""
        places = _by_bucket(device_ids)
        check = self._checker(app_id, places)

        def parse(replies: Sequence[Any]) -> Found:
            found: list[bytes] = [_UNKNOWN] * len(device_ids)
            for (bucket, positions), (counters, *values) in zip(places.items(), replies, strict=True):
                check(bucket, _counts(counters)[0])
                for position, value in zip(positions, values, strict=True):
                    if value:
                        found[position] = value
            return Found.parse(found)
        return Question([
            ("HMGET", devices_key(app_id, bucket), _COUNTERS, *(device_ids[position] for position in positions))
            for bucket, positions in places.items()], parse)

    async def number(self, app_id: int, ranks: Mapping[str, int], now: int, *, registering: bool) -> list[Device]:
        """The devices with these ids, in their order, numbering those that are new.

        *ranks* gives each id's ``platform_rank``, which is remembered if it is the largest so far. *registering*
        brings a deleted device back.
        """
        floors = self._floors
        await floors.load()
        device_ids = list(ranks)
        found: dict[int, Device] = {}
        if not registering:  # almost all are known; to look costs Redis a fifth of what a script does
            known = await self._doubting(self.look_up(app_id, device_ids))
            found = {position: device for position, device in enumerate(known.devices())
                     if device is not None and device.rank >= ranks[device_ids[position]]}
        rest = [position for position in range(len(device_ids)) if position not in found]
        places = {bucket: [rest[place] for place in some]
                  for bucket, some in _by_bucket([device_ids[position] for position in rest]).items()}
        may_begin = False
        while places:
            check = self._checker(app_id, places)
            commands = [
                _NUMBER((devices_key(app_id, bucket),), bucket, BUCKETS, int(registering), now,
                        floors.of(app_id, bucket), int(may_begin),
                        *(word for position in positions
                          for word in (device_ids[position], ranks[device_ids[position]])))
                for bucket, positions in places.items()]
            replies = await self._doubting(self._redis.run(commands))
            for (bucket, positions), reply in zip(list(places.items()), replies, strict=True):
                if reply is not None:
                    check(bucket, reply[0])
                    found.update(zip(positions, map(_parse, reply[1:]), strict=True))
                    del places[bucket]
            if places:
                await floors.look_up(app_id)
                may_begin = True
        return [found[position] for position in range(len(device_ids))]

    async def delete(self, app_id: int, device_id: str, now: int) -> Device | None:
        """Make a device no device of the app any more; None if it never was one."""
        bucket = bucket_of(device_id)
        check = self._checker(app_id, [bucket])
        given, *values = await self._redis.call(*_DELETE((devices_key(app_id, bucket),), device_id, now))
        check(bucket, given)
        return _parse(values[0]) if values else None

    async def extent(self, app_id: int) -> Extent:
        """How many devices there are now."""
        check = self._checker(app_id, range(BUCKETS))
        replies = await self._redis.run([("HGET", devices_key(app_id, bucket), _COUNTERS) for bucket in range(BUCKETS)])
        counts = list(map(_counts, replies))
        for bucket, (given, _) in enumerate(counts):
            check(bucket, given)
        return Extent([given for given, _ in counts], [deleted for _, deleted in counts])

    async def bucket(self, app_id: int, bucket: int) -> AsyncIterator[tuple[str, Device]]:
        """Every device of one bucket; reads it in pages, for repairs only."""
        cursor: Any = 0
        while True:
            cursor, fields = await self._redis.call("HSCAN", devices_key(app_id, bucket), cursor, "COUNT", 1000)
            for device_id, value in _pairs(fields):
                if device_id:
                    yield device_id.decode("utf-8", "surrogatepass"), _parse(value)
            if int(cursor) == 0:
                return

    def restore(self, app_id: int, devices: Mapping[str, Device]) -> list[Command]:
        """What writes *devices* as they are; :meth:`restore_counters` has to follow."""
        words: dict[int, list[Any]] = {}
        for device_id, device in devices.items():
            words.setdefault(bucket_of(device_id), []).extend((device_id, _value(device)))
        return [("HSET", devices_key(app_id, bucket), *pairs) for bucket, pairs in words.items()]

    def restore_counters(self, app_id: int, given: Sequence[int], deleted: Sequence[int]) -> list[Command]:
        """What writes how many numbers each bucket has given, and how many of them are deleted."""
        return [("HSET", devices_key(app_id, bucket), _COUNTERS, f"{given[bucket]}:{deleted[bucket]}")
                for bucket in range(BUCKETS) if given[bucket]]

    async def _doubting(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except StoreUnavailable:
            self._floors.doubt()
            raise

    def _checker(self, app_id: int, buckets: Iterable[int]) -> Callable[[int, int], None]:
        """What checks how many numbers each of *buckets* has given, against the floors of this moment: a reply may be
        overtaken by another that raises them."""
        floors = self._floors
        before = {bucket: floors.of(app_id, bucket) for bucket in buckets}
        return lambda bucket, given: floors.check(app_id, bucket, given, before[bucket])


def _by_bucket(device_ids: Sequence[str]) -> dict[int, list[int]]:
    """The positions of the ids of each bucket."""
    buckets = np.fromiter(_buckets_of(device_ids), np.uint8, len(device_ids))
    order = np.argsort(buckets, kind="stable")
    present, starts = np.unique(buckets[order], return_index=True)
    positions, edges = order.tolist(), [*starts.tolist(), len(order)]
    return {bucket: positions[start:end]
            for bucket, start, end in zip(present.tolist(), edges, edges[1:], strict=False)}


def _counts(counters: bytes | None) -> tuple[int, int]:
    """How many numbers are given, and how many of them deleted."""
    given, deleted = (counters or b"0:0").split(b":")
    return int(given), int(deleted)


def bucket_of(device_id: str) -> int:
    """The bucket that numbers this device."""
    return zlib.crc32(device_id.encode("utf-8", "surrogatepass")) % BUCKETS


def _buckets_of(device_ids: Sequence[str]) -> Iterable[int]:
    """The same of many, in half the time where they are what UTF-8 can write, as almost all are."""
    try:
        return [checksum % BUCKETS for checksum in map(zlib.crc32, map(str.encode, device_ids))]
    except UnicodeEncodeError:
        return map(bucket_of, device_ids)


def _parse(value: bytes) -> Device:
    if value.isdigit():  # as almost all are
        packed = int(value)
        return _device((packed >> 4, packed & 15, 0, 0))
    match = _VALUE.fullmatch(value)
    assert match, f"a device's value in Redis reads {value!r}"
    packed, mark, time = int(match[1]), match[2], int(match[3] or 0)
    return Device(packed >> 4, packed & 15, time if mark == b"x" else 0, time if mark == b"r" else 0)


def _value(device: Device) -> str:
    """Undo :func:`_parse`."""
    packed = device.number << 4 | device.rank
    if device.deleted_at:
        return f"{packed}x{device.deleted_at}"
    return f"{packed}r{device.returned_at}" if device.returned_at else f"{packed}"


def _pairs(fields: Any) -> Iterable[tuple[bytes, bytes]]:
    if isinstance(fields, dict):
        return fields.items()
    return zip(fields[::2], fields[1::2], strict=True)
