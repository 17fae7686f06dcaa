"""Which devices an app has, and the number each of them was given.

Numbers are dense per app (0, 1, 2, …), first come first served, and never given twice: counting is then the union of
bitmaps. The registry is cut into buckets by a hash of the device id, each a Redis hash of its own, so that an app of
any size spreads over a cluster; bucket *b* of *B* gives the numbers b, b + B, b + 2 B, ….

A deleted device keeps its number as a mark, so that its past receipts stay counted once. Events do not bring it back
(one may be a replay from before the deletion); a registration does.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from reportsvc.storage.redis import Redis, Script, devices_key

#: More buckets spread a large app better; fewer make a status call of a thousand devices cheaper.
BUCKETS: Final = 64
#: The field that holds "how many numbers are given : how many of them are deleted"; no device id is empty.
_COUNTERS: Final = ""

# A device's value is `number * 16 + rank`, then `x<time>` if it was deleted, or `r<time>` if it came back after that.
_NUMBER = Script("""
local key, bucket, buckets, revive, now = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local counters = redis.call('HGET', key, '') or '0:0'
local given, deleted = string.match(counters, '^(%d+):(%d+)$')
given, deleted = tonumber(given), tonumber(deleted)
local out = {}
for i = 5, #ARGV, 2 do
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
return out
""")

_DELETE = Script("""
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return false end
local packed, mark = string.match(value, '^(%d+)(.*)$')
if string.sub(mark, 1, 1) == 'x' then return value end
value = packed .. 'x' .. string.format('%.0f', math.max(tonumber(ARGV[2]), tonumber(string.sub(mark, 2)) or 0))
local given, deleted = string.match(redis.call('HGET', KEYS[1], ''), '^(%d+):(%d+)$')
redis.call('HSET', KEYS[1], ARGV[1], value, '', given .. ':' .. string.format('%.0f', tonumber(deleted) + 1))
return value
""")

_VALUE: Final = re.compile(rb"(\d+)(?:([xr])(\d+))?")


class Device(NamedTuple):
    """What the registry knows of one device; times in unix seconds, 0 for never."""

    number: int
    rank: int
    deleted_at: int = 0
    returned_at: int = 0


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


class DeviceRegistry:
    """The devices of every app, in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def find(self, app_id: int, device_ids: Sequence[str]) -> list[Device | None]:
        """The devices with these ids, in their order; None for an id the app never had."""
        return await self._by_bucket(app_id, device_ids, lambda bucket, ids: (
            "HMGET", devices_key(app_id, bucket), *ids))

    async def number(self, app_id: int, ranks: Mapping[str, int], now: int, *, registering: bool) -> list[Device]:
        """The devices with these ids, in their order, numbering those that are new.

        *ranks* gives each id's ``platform_rank``, which is remembered if it is the largest so far. *registering*
        brings a deleted device back.
        """
        found = await self._by_bucket(app_id, list(ranks), lambda bucket, ids: _NUMBER(
            (devices_key(app_id, bucket),), bucket, BUCKETS, int(registering), now,
            *(word for device_id in ids for word in (device_id, ranks[device_id]))))
        return [device for device in found if device is not None]

    async def delete(self, app_id: int, device_id: str, now: int) -> Device | None:
        """Make a device no device of the app any more; None if it never was one."""
        value = await self._redis.call(*_DELETE((devices_key(app_id, bucket_of(device_id)),), device_id, now))
        return _parse(value) if value else None

    async def extent(self, app_id: int) -> Extent:
        """How many devices there are now."""
        replies = await self._redis.run([("HGET", devices_key(app_id, bucket), _COUNTERS) for bucket in range(BUCKETS)])
        pairs = [tuple(int(part) for part in (reply or b"0:0").split(b":")) for reply in replies]
        return Extent([pair[0] for pair in pairs], [pair[1] for pair in pairs])

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

    async def _by_bucket(self, app_id: int, device_ids: Sequence[str], command: Any) -> list[Device | None]:
        positions: dict[int, list[int]] = {}
        for position, device_id in enumerate(device_ids):
            positions.setdefault(bucket_of(device_id), []).append(position)
        replies = await self._redis.run([
            command(bucket, [device_ids[position] for position in places]) for bucket, places in positions.items()])
        found: list[Device | None] = [None] * len(device_ids)
        for places, values in zip(positions.values(), replies, strict=True):
            for position, value in zip(places, values, strict=True):
                found[position] = _parse(value) if value else None
        return found


def bucket_of(device_id: str) -> int:
    """The bucket that numbers this device."""
    return zlib.crc32(device_id.encode("utf-8", "surrogatepass")) % BUCKETS


def _parse(value: bytes) -> Device:
    if value.isdigit():  # as almost all are
        number = int(value)
        return Device(number >> 4, number & 15)
    match = _VALUE.fullmatch(value)
    assert match, f"a device's value in Redis reads {value!r}"
    packed, mark, time = int(match[1]), match[2], int(match[3] or 0)
    return Device(packed >> 4, packed & 15, time if mark == b"x" else 0, time if mark == b"r" else 0)


def _pairs(fields: Any) -> Iterable[tuple[bytes, bytes]]:
    if isinstance(fields, dict):
        return fields.items()
    return zip(fields[::2], fields[1::2], strict=True)
