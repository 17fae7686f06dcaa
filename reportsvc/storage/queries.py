"""The only SQL of the service beside ``migrations/``: what is asked of ClickHouse, one function a question.

An event that names no platform is stored as ``platform = ''`` and takes its device's when it is read, so that the
order in which events and registrations arrive cannot change a number. Each count therefore has two arms: rows that
name the platform, and rows that do not, cut down to the devices known to be of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reportsvc.model import (KINDS, PLATFORMS, PRESENCE_STAGES, STAGES, UNKNOWN_PLATFORM, default_channel,
                             platform_of_rank)
from reportsvc.storage.clickhouse import ClickHouse

NAMED_PLATFORMS: Final = PLATFORMS[1:]
#: What may become of a message on a device, in the order in which it happens.
MESSAGE_STAGES: Final = tuple(stage for stage in STAGES if stage not in PRESENCE_STAGES)
#: The largest DateTime: "never seen" in a column that keeps the smallest value.
NEVER: Final = 0xFFFF_FFFF
TABLES: Final = ("delivery", "activity", "devices", "device_platforms", "device_users", "device_profiles",
                 "device_interests", "pushes", "completions", "messages")
#: The tables with rows of a message, each with the column that tells how late a row may be of use.
_TIMES_OF_MESSAGES: Final = {"delivery": "last", "pushes": "registered_at", "completions": "finished_at",
                             "messages": "last"}


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
#: The time of a row of ``messages``: when the push was made, or else the hour of its first event.
_ROW_TIME: Final = "toUnixTimestamp(if(toUnixTimestamp(created_at) > 0, created_at, first_hour))"
#: So many rows for each message that is wanted are looked at first, then so many, then all. Most messages have one row;
#: an active one has a few more, one for each part of the table that was not merged yet.
_FIRST_ROWS: Final = 8
_MORE_ROWS: Final = 512
#: The title of a message is looked for in payloads up to this size; one that is larger is not read for a list.
_TITLED_BYTES: Final = 32 * 1024


def _carrier() -> str:
    """The SQL expression of a row's channel: the one it names, or that which its platform and kind have by default."""
    defaults = {f"{platform} {kind}": default_channel(platform, kind) for platform in NAMED_PLATFORMS for kind in KINDS}
    return (f"if(channel != '', toString(channel), transform(concat(platform_of, ' ', kind), [{_quoted(defaults)}], "
            f"[{_quoted(defaults.values())}], '{UNKNOWN_PLATFORM}'))")


def _of_platform(platform: str) -> str:
    """The SQL expression of the devices of a row that are of *platform*; needs :data:`_WITH_PLATFORMS`."""
    if platform == UNKNOWN_PLATFORM:
        return "bitmapAndnot(devices, of_any)"
    return f"if(platform = '', bitmapAnd(devices, of_{platform}), devices)"


#: The devices of the ranks above a row's.
_ABOVE: Final = ("groupBitmapMergeState(state) OVER (ORDER BY platform_rank DESC "
                 "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)")
#: The same as :data:`_WITH_PLATFORMS` as an array to go through: each platform with the devices known to be of it, and
#: ``unknown`` with all of those. A value like that one, not a table to join: on a cluster those would be each shard's.
_WITH_PLATFORM_ARRAY: Final = (
    "WITH (SELECT groupArray((platform_of, known)) FROM ("
    "SELECT platform_of, groupBitmapMergeState(only) AS known FROM ("
    f"SELECT transform(bitAnd(platform_rank, 7), {list(range(1, len(PLATFORMS)))}, [{_quoted(NAMED_PLATFORMS)}], '') "
    f"AS platform_of, bitmapAndnot(state, {_ABOVE}) AS only FROM ("
    "SELECT platform_rank, groupBitmapMergeState(devices) AS state FROM device_platforms WHERE app = {app:UInt32} "
    f"GROUP BY platform_rank) UNION ALL SELECT arrayJoin([{_quoted(NAMED_PLATFORMS)}]), "
    "bitmapBuild(emptyArrayUInt32())) GROUP BY platform_of "
    f"UNION ALL SELECT '{UNKNOWN_PLATFORM}', groupBitmapMergeState(devices) FROM device_platforms "
    "WHERE app = {app:UInt32})) AS platforms ")


class Queries:
    """The questions; every method raises :class:`~reportsvc.errors.StoreUnavailable` when ClickHouse is away."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def version(self) -> str:
        """That of the server, or of the engine in this process."""
        rows = await self._clickhouse.query("SELECT version()", {}, label="status")
        return str(rows[0][0])

    async def sizes(self) -> list[TableSize]:
        """What each table takes; on a cluster, on the server at hand."""
        rows = await self._clickhouse.query(
            "SELECT table, sum(rows), sum(bytes_on_disk), count() FROM system.parts "
            "WHERE database = currentDatabase() AND active GROUP BY table ORDER BY table", {}, label="status")
        return [TableSize(*row) for row in rows]

    async def count_messages(self) -> dict[int, int]:
        """How many messages are kept of each app, those included that no report shows any more."""
        rows = await self._clickhouse.query(
            "SELECT app, uniqExact(msg_id) FROM messages GROUP BY app", {}, label="status")
        return {row[0]: row[1] for row in rows}

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

    async def newest_messages(self, app_id: int, before: tuple[int, str] | None, limit: int, now: int,
                              label: str) -> list[tuple[int, str]]:
        """The newest messages of which anything is kept, each with its time: when its push was made, or else the hour
        of its first event. Those after *before*, a time and an id, in that order.

        Looks at the newest rows alone, and at more of them only if they are of too few messages: the time of every row
        is read, and nothing else of most.
        """
        time, msg_id = before or (NEVER + 1, "")
        for rows in (_FIRST_ROWS * limit, _MORE_ROWS * limit):
            look = await self._clickhouse.query(
                f"SELECT min(row_time), count() FROM (SELECT {_ROW_TIME} AS row_time FROM messages "
                "WHERE app = {app:UInt32} AND row_time <= {time:UInt64} ORDER BY row_time DESC LIMIT {rows:UInt64})",
                {"app": app_id, "time": time, "rows": rows}, label=label)
            if look[0][1] < rows:
                break
            found = await self._newest_since(app_id, look[0][0], (time, msg_id), limit, now, label)
            if len(found) == limit:
                return found
        return await self._newest_since(app_id, 0, (time, msg_id), limit, now, label)

    async def _newest_since(self, app_id: int, since: int, before: tuple[int, str], limit: int, now: int,
                            label: str) -> list[tuple[int, str]]:
        """The same, of messages whose time is *since* or later. The row that gave a message its time is among those of
        that time, but a row may also be of a message that is older."""
        recent = (f"AND msg_id IN (SELECT msg_id FROM messages WHERE app = {{app:UInt32}} AND {_ROW_TIME} "
                  "BETWEEN {since:UInt64} AND {time:UInt64}) " if since else "")
        rows = await self._clickhouse.query(
            "SELECT toUnixTimestamp(if(toUnixTimestamp(max(created_at)) > 0, max(created_at), min(first_hour))) AS at, "
            f"msg_id FROM messages WHERE app = {{app:UInt32}} {recent}GROUP BY msg_id "
            f"HAVING at >= {{since:UInt64}} AND (at, msg_id) < ({{time:UInt64}}, {{msg_id:String}}) AND ({_ALIVE} "
            "OR max(expires_at) > toDateTime({now:UInt32}, 'UTC')) "
            "ORDER BY at DESC, msg_id DESC LIMIT {limit:UInt32}",
            {"app": app_id, "since": since, "time": before[0], "msg_id": before[1], "limit": limit, "now": now},
            label=label)
        return [(row[0], row[1]) for row in rows]

    async def reach(self, app_id: int, msg_ids: Sequence[str], now: int, label: str) -> dict[str, Reach]:
        """How many devices each message reached at each stage, of those that are alive at *now*."""
        counts = ", ".join(f"groupBitmapMergeIf(devices, stage = '{stage}')" for stage in MESSAGE_STAGES)
        rows = await self._clickhouse.query(
            "SELECT msg_id, toUnixTimestamp(minIf(hour, stage != 'target')), "
            f"toUnixTimestamp(maxIf(hour, stage != 'target')), {counts} FROM delivery "
            f"WHERE app = {{app:UInt32}} AND msg_id IN {{msg_ids:Array(String)}} GROUP BY msg_id HAVING {_ALIVE}",
            {"app": app_id, "msg_ids": list(msg_ids), "now": now}, label=label)
        return {row[0]: Reach(row[1], row[2], dict(zip(MESSAGE_STAGES, row[3:], strict=True))) for row in rows}

    async def pushes(self, app_id: int, msg_ids: Sequence[str], now: int, label: str,
                     *, whole: bool) -> dict[str, StoredPush]:
        """The registered pushes among *msg_ids* that are kept at *now*; *whole*: also where the payload is large."""
        record = "record" if whole else f"if(length(record) > {_TITLED_BYTES}, '', record)"
        rows = await self._clickhouse.query(
            "SELECT msg_id, JSONExtractString(record, 'vendor'), JSONExtractString(record, 'kind'), "
            "JSONExtractUInt(record, 'created_at'), JSONExtractUInt(record, 'expires_at'), "
            f"{record}, JSONExtractUInt(record, 'targets'), JSONHas(record, 'ends') FROM pushes FINAL "
            "WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
            # Not only by its own times: deliveries keep a message too.
            "AND (expires_at > toDateTime({now:UInt32}, 'UTC') OR msg_id IN (SELECT msg_id FROM messages "
            f"WHERE app = {{app:UInt32}} AND msg_id IN {{msg_ids:Array(String)}} GROUP BY msg_id HAVING {_ALIVE}))",
            {"app": app_id, "msg_ids": list(msg_ids), "now": now}, label=label)
        return {row[0]: StoredPush(row[1], row[2], row[3], row[4], row[5], row[6], bool(row[7])) for row in rows}

    async def breakdown(self, app_id: int, msg_ids: Sequence[str], now: int, label: str) -> dict[str, list[Part]]:
        """Distinct devices by stage, of each platform, channel and kind, and of each three of them, for those of
        *msg_ids* that are alive at *now*. What is not told apart in a part is empty there; no part is without devices.
        """
        part = f"if(platform_of = '{UNKNOWN_PLATFORM}', bitmapAndnot(state, entry.2), bitmapAnd(state, entry.2))"
        rows = await self._clickhouse.query(
            f"{_WITH_PLATFORM_ARRAY} SELECT msg_id, of.1, of.2, of.3, stage, groupBitmapMerge(part) AS count FROM ("
            f"SELECT msg_id, kind, stage, entry.1 AS platform_of, if(platform = '', {part}, state) AS part, "
            f"{_carrier()} AS carrier FROM ("
            "SELECT msg_id, kind, platform, channel, stage, groupBitmapMergeState(devices) AS state FROM delivery "
            "WHERE app = {app:UInt32} AND msg_id IN (SELECT msg_id FROM delivery WHERE app = {app:UInt32} "
            f"AND msg_id IN {{msg_ids:Array(String)}} GROUP BY msg_id HAVING {_ALIVE}) "
            "GROUP BY msg_id, kind, platform, channel, stage) ARRAY JOIN platforms AS entry "
            "WHERE platform IN ('', platform_of)) ARRAY JOIN [(platform_of, carrier, toString(kind)), "
            "(platform_of, '', ''), ('', carrier, ''), ('', '', toString(kind))] AS of "
            "GROUP BY msg_id, of, stage HAVING count > 0",
            {"app": app_id, "msg_ids": list(msg_ids), "now": now}, label=label)
        found: dict[str, list[Part]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(Part(*row[1:]))
        return found

    async def growth(self, app_id: int, msg_id: str, platform: str, now: int, label: str) -> list[Growth]:
        """How many distinct devices had reached each stage by the end of each hour in which there was an event of it,
        hours ascending; of one platform, or of all. Empty for a message that is dead at *now*."""
        devices, arms = "devices", ""
        if platform:
            devices = _of_platform(platform)
            arms = f"AND platform IN ('', '{'' if platform == UNKNOWN_PLATFORM else platform}') "
        rows = await self._clickhouse.query(
            f"{_WITH_PLATFORMS if platform else ''} SELECT toUnixTimestamp(hour), stage, "
            "groupBitmapMerge(state) OVER (PARTITION BY stage ORDER BY hour) FROM ("
            f"SELECT hour, stage, groupBitmapMergeState({devices}) AS state FROM delivery "
            f"WHERE app = {{app:UInt32}} AND msg_id = {{msg_id:String}} {arms}"
            "AND (SELECT count() FROM (SELECT 1 FROM delivery WHERE app = {app:UInt32} AND msg_id = {msg_id:String} "
            f"HAVING {_ALIVE})) > 0 GROUP BY hour, stage) ORDER BY hour",
            {"app": app_id, "msg_id": msg_id, "now": now}, label=label)
        return [Growth(*row) for row in rows]

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
            for table, time in _TIMES_OF_MESSAGES.items():
                await self._clickhouse.command(
                    f"DELETE FROM {self._clickhouse.stored(table)} "
                    "WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} "
                    f"AND {time} <= toDateTime({{silent_since:UInt32}}, 'UTC')",
                    {"app": app_id, "msg_ids": msg_ids, "silent_since": silent_since}, label="sweep")

    async def delete_app(self, app_id: int) -> None:
        """Remove everything of an app."""
        for table in TABLES:
            await self._clickhouse.command(
                f"DELETE FROM {self._clickhouse.stored(table)} WHERE app = {{app:UInt32}}", {"app": app_id},
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
class TableSize:
    """A table as it lies on disk."""

    name: str
    rows: int
    bytes: int
    parts: int


@dataclass(frozen=True, slots=True)
class BucketCount:
    """How much of one bucket of an app's devices is stored."""

    devices: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Distinct devices of a message by stage, and when its first and last event happened, targets left out: the hours
    in unix seconds, 0 for none."""

    first_hour: int
    last_hour: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StoredPush:
    """What is told of a push; times in unix seconds. *record* is the whole of it as JSON, empty if it was not read."""

    vendor: str
    kind: str
    created_at: int
    expires_at: int
    record: str
    targets: int
    for_everyone: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Distinct devices at a stage, of a platform, a channel, a kind; empty where a part is of all of them."""

    platform: str
    channel: str
    kind: str
    stage: str
    count: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Distinct devices that had reached a stage by the end of an hour (unix seconds)."""

    hour: int
    stage: str
    count: int


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
