"""The only SQL of the service beside ``migrations/``: what is asked of ClickHouse, one function a question.

An event that names no platform is stored as ``platform = ''`` and takes its device's when it is read, so that the
order in which events and registrations arrive cannot change a number. Each count therefore has two arms: rows that
name the platform, and rows that do not, cut down to the devices known to be of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reportsvc.model import KINDS, PLATFORMS, UNKNOWN_PLATFORM, default_channel, platform_of_rank
from reportsvc.storage.clickhouse import ClickHouse

NAMED_PLATFORMS: Final = PLATFORMS[1:]
#: The largest DateTime: "never seen" in a column that keeps the smallest value.
NEVER: Final = 0xFFFF_FFFF
TABLES: Final = ("delivery", "activity", "devices", "device_platforms", "device_users", "device_profiles",
                 "device_interests", "pushes", "completions")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of ``delivery`` a counter counts the distinct devices of; what is left empty may be anything."""

    stage: str
    platform: str = ""
    channel: str = ""
    kinds: tuple[str, ...] = ()

    def condition(self) -> str:
        """The SQL condition of everything but the platform."""
        parts = [f"stage = '{self.stage}'"]
        if self.kinds:
            parts.append(f"kind IN ({_quoted(self.kinds)})")
        if self.channel:
            kinds = [kind for kind in KINDS if default_channel(self.platform, kind) == self.channel]
            unnamed = f" OR channel = '' AND kind IN ({_quoted(kinds)})" if kinds else ""
            parts.append(f"(channel = '{self.channel}'{unnamed})")
        return " AND ".join(parts)

    def count(self) -> str:
        """The SQL expression that counts; needs :data:`_WITH_PLATFORMS`."""
        condition = self.condition()
        if not self.platform:
            return f"groupBitmapMergeIf(devices, {condition})"
        if self.platform == UNKNOWN_PLATFORM:
            return f"bitmapAndnotCardinality(groupBitmapMergeStateIf(devices, platform = '' AND {condition}), of_any)"
        return (f"bitmapOrCardinality(groupBitmapMergeStateIf(devices, platform = '{self.platform}' AND {condition}), "
                f"bitmapAnd(groupBitmapMergeStateIf(devices, platform = '' AND {condition}), of_{self.platform}))")


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def _with_platforms() -> str:
    """Common bitmaps ``of_<platform>``: the devices whose highest rank is that platform, and ``of_any``.

    Ranks are 9-15 where somebody named the platform and 1-7 where the id's prefix told (``model.platform_rank``);
    the largest rank wins.
    """
    count = len(NAMED_PLATFORMS)
    ranks = [*range(1, count + 1), *range(9, 9 + count)]
    merges = ", ".join(f"groupBitmapMergeStateIf(devices, platform_rank = {rank})" for rank in ranks)
    lines = [f"(SELECT tuple({merges}) FROM device_platforms WHERE app = {{app:UInt32}}) AS ranks"]
    # over_i: the devices of a rank above the i-th; built from the top down, so each is one more union.
    for index in reversed(range(len(ranks))):
        over = f"over_{index + 1}" if index + 1 < len(ranks) else "bitmapBuild(emptyArrayUInt32())"
        lines.append(f"bitmapOr(ranks.{index + 1}, {over}) AS over_{index}")
        lines.append(f"bitmapAndnot(ranks.{index + 1}, {over}) AS only_{index}")
    for index, platform in enumerate(NAMED_PLATFORMS):
        lines.append(f"bitmapOr(only_{index}, only_{index + count}) AS of_{platform}")
    lines.append("over_0 AS of_any")
    return "WITH " + ",\n".join(lines) + "\n"


_WITH_PLATFORMS: Final = _with_platforms()
#: The sliding month, as :func:`reportsvc.model.dies_at` has it.
_ALIVE: Final = "addMonths(max(last), 1) > toDateTime({now:UInt32}, 'UTC')"


class Queries:
    """The questions; every method raises :class:`~reportsvc.errors.StoreUnavailable` when ClickHouse is away."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def ping(self) -> None:
        """Return if ClickHouse answers."""
        await self._clickhouse.query("SELECT 1", {}, label="readyz")

    async def totals(self, app_id: int, msg_ids: Sequence[str], selections: Sequence[Selection], now: int,
                     label: str) -> dict[str, tuple[int, ...]]:
        """Distinct devices of each selection, for those of *msg_ids* that are alive at *now*."""
        rows = await self._clickhouse.query(
            f"{_WITH_PLATFORMS} SELECT msg_id, {', '.join(selection.count() for selection in selections)} "
            "FROM delivery WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
            f"GROUP BY msg_id HAVING {_ALIVE}",
            {"app": app_id, "msg_ids": list(msg_ids), "now": now}, label=label)
        return {row[0]: tuple(row[1:]) for row in rows}

    async def membership(self, app_id: int, msg_id: str, numbers: Sequence[int], before: int, now: int,
                         label: str) -> list[tuple[bool, bool]]:
        """For each of *numbers*: had it received the message, and was it a target of it, in the hours up to *before*.

        Empty for a message that is dead or was not there yet.
        """
        rows = await self._clickhouse.query(
            "WITH groupBitmapMergeStateIf(devices, stage = 'received' AND hour < toDateTime({before:UInt32}, 'UTC')) "
            "AS received, groupBitmapMergeStateIf(devices, stage IN ('target', 'sent', 'online_push') "
            "AND hour < toDateTime({before:UInt32}, 'UTC')) AS targets "
            "SELECT arrayMap(n -> (bitmapContains(received, n), bitmapContains(targets, n)), "
            "{numbers:Array(UInt32)}) FROM delivery "
            f"WHERE app = {{app:UInt32}} AND msg_id = {{msg_id:String}} GROUP BY msg_id HAVING {_ALIVE}",
            {"app": app_id, "msg_id": msg_id, "numbers": list(numbers), "before": before, "now": now}, label=label)
        return [(bool(received), bool(target)) for received, target in rows[0][0]] if rows else []

    async def devices(self, app_id: int, numbers: Sequence[int], label: str) -> dict[int, DeviceRow]:
        """The stored devices among *numbers*."""
        rows = await self._clickhouse.query(
            "SELECT number, max(device_id), max(platform_rank), toUnixTimestamp(min(first_seen)), "
            "toUnixTimestamp(max(registered_at)), toUnixTimestamp(max(deleted_at)) FROM devices "
            "WHERE app = {app:UInt32} AND number IN {numbers:Array(UInt32)} GROUP BY number",
            {"app": app_id, "numbers": list(numbers)}, label=label)
        return {row[0]: DeviceRow(*row) for row in rows}

    async def numbers_given(self, buckets: int, app_id: int | None = None) -> list[tuple[int, int, int]]:
        """App, bucket, and how many numbers of the bucket must have been given; of one app, or of all."""
        rows = await self._clickhouse.query(
            "SELECT app, number % {buckets:UInt32} AS bucket, max(intDiv(number, {buckets:UInt32})) + 1 FROM devices "
            f"{'' if app_id is None else 'WHERE app = {app:UInt32} '}GROUP BY app, bucket",
            {"buckets": buckets} | ({} if app_id is None else {"app": app_id}), label="floors")
        return [(row[0], row[1], row[2]) for row in rows]

    async def apps_version(self) -> int:
        """The version of the newest change of an app that is stored; 0 if none is."""
        rows = await self._clickhouse.query("SELECT max(version) FROM apps", {}, label="floors")
        return int(rows[0][0])

    async def users(self, app_id: int, starts: Sequence[int], end: int, label: str) -> list[UserCount]:
        """New, online and active devices by platform, in the periods that begin at *starts* and run to *end*.

        *starts* ascend; a period ends where the next begins. Periods and platforms without data have no row.
        """
        parameters = {"app": app_id, "starts": list(starts), "end": end}
        period = "arrayCount(start -> start <= toUnixTimestamp({0}), {{starts:Array(UInt32)}}) - 1"
        inside = ("{0} >= toDateTime({{starts:Array(UInt32)}}[1], 'UTC') AND {0} < toDateTime({{end:UInt32}}, 'UTC')")
        present = ", ".join(f"bitmapAndCardinality(present, of_{platform})" for platform in NAMED_PLATFORMS)
        activity = await self._clickhouse.query(
            f"{_WITH_PLATFORMS} SELECT period, measure, {present}, bitmapAndnotCardinality(present, of_any) FROM ("
            f"SELECT {period.format('hour')} AS period, measure, groupBitmapMergeState(devices) AS present "
            f"FROM activity WHERE app = {{app:UInt32}} AND {inside.format('hour')} GROUP BY period, measure)",
            parameters, label=label)
        new = await self._clickhouse.query(
            f"SELECT {period.format('first')} AS period, rank, count() FROM ("
            "SELECT min(first_seen) AS first, max(platform_rank) AS rank FROM devices WHERE app = {app:UInt32} "
            "AND number IN (SELECT number FROM devices WHERE app = {app:UInt32} "
            f"AND {inside.format('first_seen')}) GROUP BY number) WHERE {inside.format('first')} GROUP BY period, rank",
            parameters, label=label)
        counts = [UserCount(row[0], platform, row[1], count)
                  for row in activity
                  for platform, count in zip((*NAMED_PLATFORMS, UNKNOWN_PLATFORM), row[2:], strict=True) if count]
        by_platform: dict[tuple[int, str], int] = {}
        for index, rank, count in new:
            key = (index, platform_of_rank(rank))
            by_platform[key] = by_platform.get(key, 0) + count
        return counts + [UserCount(index, platform, "new", count) for (index, platform), count in by_platform.items()]

    async def dead_messages(self, now: int, limit: int) -> list[tuple[int, str]]:
        """Up to *limit* messages whose month is over and whose push, if they have one, has expired."""
        rows = await self._clickhouse.query(
            "SELECT app, msg_id FROM delivery WHERE (app, msg_id) NOT IN (SELECT app, msg_id FROM pushes FINAL "
            "WHERE expires_at > toDateTime({now:UInt32}, 'UTC')) GROUP BY app, msg_id "
            f"HAVING NOT ({_ALIVE}) LIMIT {{limit:UInt32}} "
            # A push that reached nobody has no row above.
            "UNION DISTINCT SELECT app, msg_id FROM pushes FINAL WHERE expires_at <= toDateTime({now:UInt32}, 'UTC') "
            "AND addMonths(registered_at, 1) <= toDateTime({now:UInt32}, 'UTC') "
            "AND (app, msg_id) NOT IN (SELECT app, msg_id FROM delivery) LIMIT {limit:UInt32}",
            {"now": now, "limit": limit}, label="sweep")
        return [(row[0], row[1]) for row in rows]

    async def delete_messages(self, messages: Sequence[tuple[int, str]], silent_since: int) -> None:
        """Remove messages that were dead; a row with a delivery after *silent_since* stays."""
        for app_id, msg_ids in _by_app(messages).items():
            await self._clickhouse.command(
                "DELETE FROM delivery WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
                "AND last <= toDateTime({silent_since:UInt32}, 'UTC')",
                {"app": app_id, "msg_ids": msg_ids, "silent_since": silent_since}, label="sweep")
            await self._clickhouse.command(
                "DELETE FROM pushes WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
                "AND registered_at <= toDateTime({silent_since:UInt32}, 'UTC')",
                {"app": app_id, "msg_ids": msg_ids, "silent_since": silent_since}, label="sweep")
            await self._clickhouse.command(
                "DELETE FROM completions WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
                "AND finished_at <= toDateTime({silent_since:UInt32}, 'UTC')",
                {"app": app_id, "msg_ids": msg_ids, "silent_since": silent_since}, label="sweep")

    async def delete_app(self, app_id: int) -> None:
        """Remove everything of an app."""
        for table in TABLES:
            await self._clickhouse.command(f"DELETE FROM {table} WHERE app = {{app:UInt32}}", {"app": app_id},
                                           label="delete app")

    async def stored_below(self, app_id: int, ends: Sequence[int], buckets: int) -> list[BucketCount]:
        """What is stored of each bucket: the devices with a local number below its end in *ends*, and all deletions."""
        rows = await self._clickhouse.query(
            "SELECT bucket, countIf(is_below), countIf(is_deleted) FROM (SELECT number % {buckets:UInt32} AS bucket, "
            "intDiv(number, {buckets:UInt32}) < {ends:Array(UInt32)}[bucket + 1] AS is_below, "
            "toUnixTimestamp(max(deleted_at)) > 0 AND max(registered_at) <= max(deleted_at) AS is_deleted "
            "FROM devices WHERE app = {app:UInt32} GROUP BY number) GROUP BY bucket",
            {"app": app_id, "ends": list(ends), "buckets": buckets}, label="broadcast")
        counts = {row[0]: BucketCount(row[1], row[2]) for row in rows}
        return [counts.get(bucket, BucketCount(0, 0)) for bucket in range(buckets)]

    async def expand_broadcast(self, app_id: int, broadcast: Broadcast) -> None:
        """Make every device that existed when the push was registered a target of it."""
        await self._clickhouse.command(
            "INSERT INTO delivery (app, msg_id, kind, platform, channel, stage, hour, devices, last) "
            "SELECT {app:UInt32}, {msg_id:String}, {kind:String}, '', {channel:String}, 'target', "
            "toDateTime({hour:UInt32}, 'UTC'), groupBitmapState(number), toDateTime({at:UInt32}, 'UTC') FROM ("
            "SELECT number FROM devices WHERE app = {app:UInt32} "
            "AND intDiv(number, {buckets:UInt32}) < {ends:Array(UInt32)}[number % {buckets:UInt32} + 1] "
            "GROUP BY number "
            "HAVING toUnixTimestamp(max(deleted_at)) = 0 OR toUnixTimestamp(max(deleted_at)) > {at:UInt32} "
            "OR max(registered_at) > max(deleted_at) AND toUnixTimestamp(max(registered_at)) <= {at:UInt32}) "
            "HAVING count() > 0",
            {"app": app_id, "msg_id": broadcast.msg_id, "kind": broadcast.kind, "channel": broadcast.channel,
             "hour": broadcast.hour, "at": broadcast.at, "ends": list(broadcast.ends),
             "buckets": len(broadcast.ends)}, label="broadcast")


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as ClickHouse has it; times in unix seconds, ``first_seen`` :data:`NEVER` if it only was a target."""

    number: int
    device_id: str
    platform_rank: int
    first_seen: int
    registered_at: int
    deleted_at: int

    @property
    def is_deleted(self) -> bool:
        """Whether it is no device of the app any more."""
        return self.deleted_at > 0 and self.registered_at <= self.deleted_at


@dataclass(frozen=True, slots=True)
class BucketCount:
    """How much of one bucket of an app's devices is stored."""

    devices: int
    deleted: int


@dataclass(frozen=True, slots=True)
class UserCount:
    """Distinct devices of one period (its position), platform and measure (``new``, ``online``, ``active``)."""

    period: int
    platform: str
    measure: str
    count: int


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A push to everyone: ``ends`` has, for each bucket of the registry, the first number that was still free."""

    msg_id: str
    kind: str
    channel: str
    hour: int
    at: int
    ends: Sequence[int]


def _by_app(messages: Sequence[tuple[int, str]]) -> Mapping[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for app_id, msg_id in messages:
        grouped.setdefault(app_id, []).append(msg_id)
    return grouped
