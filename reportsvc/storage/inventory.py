"""Everything that ClickHouse has of what Redis holds too, page by page, for the rebuild of Redis.

Each page is bounded, whatever the size of an app; the pages of one kind follow one another in the order of their keys,
so that nothing is read twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from reportsvc.model import Profile
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import CHUNK_SIZE
from reportsvc.storage.queries import DeviceRow

#: Rows of one page; messages count as many as their devices.
_PAGE: Final = 100_000
#: Messages of one page: each is a row of bitmaps, which may be large.
_MESSAGES: Final = 1000
_PROFILE: Final = ("device_id", "number", "gateway", "token", "bundle_id", "metadata", "user_id", "named_user",
                   "interests_since", "version")
_RECEIVED: Final = "stage = 'received'"
_TARGETS: Final = "stage IN ('target', 'sent', 'online_push')"
#: The rows that a push to everyone was expanded to.
_EXPANDED: Final = ("stage = 'target' AND platform = '' AND kind = {kind:String} AND channel = {channel:String} "
                    "AND hour = toDateTime({hour:UInt32}, 'UTC')")


@dataclass(frozen=True, slots=True)
class StoredApp:
    """An app as it is stored: the JSON of its settings, empty if it was deleted."""

    id: int
    record: str
    version: int


@dataclass(frozen=True, slots=True)
class StoredPush:
    """A push as it is stored; times in unix seconds, ``finished_at`` 0 if not every target has it."""

    msg_id: str
    record: dict[str, Any]
    expires_at: int
    registered_at: int
    finished_at: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that devices reached: its last delivery, how many devices its sets have, and a number over all."""

    msg_id: str
    last: int
    devices: int
    end: int


class Inventory:
    """What is stored; every method raises :class:`~reportsvc.errors.StoreUnavailable` when ClickHouse is away."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def apps(self) -> list[StoredApp]:
        """Every app there ever was, oldest first."""
        rows = await self._query("SELECT app, record, version FROM apps FINAL ORDER BY app", {})
        return [StoredApp(row[0], "" if row[1] == "{}" else row[1], row[2]) for row in rows]

    async def devices(self, app_id: int) -> AsyncIterator[list[DeviceRow]]:
        """The devices of an app; a page is a chunk of numbers."""
        for start in await self._chunks("devices", app_id):
            rows = await self._query(
                "SELECT number, max(device_id), max(platform_rank), toUnixTimestamp(min(first_seen)), "
                "toUnixTimestamp(max(registered_at)), toUnixTimestamp(max(deleted_at)) FROM devices "
                "WHERE app = {app:UInt32} AND number >= {start:UInt32} AND number < {end:UInt64} GROUP BY number",
                {"app": app_id, "start": start, "end": start + CHUNK_SIZE})
            yield [DeviceRow(*row) for row in rows]

    async def profiles(self, app_id: int) -> AsyncIterator[dict[int, Profile]]:
        """The profiles of an app by number; a page is a chunk of numbers, and none of it means nothing."""
        for start in await self._chunks("device_profiles", app_id):
            rows = await self._query(
                f"SELECT {', '.join(_PROFILE)} FROM device_profiles FINAL WHERE app = {{app:UInt32}} "
                "AND number >= {start:UInt32} AND number < {end:UInt64} AND NOT deleted",
                {"app": app_id, "start": start, "end": start + CHUNK_SIZE})
            if rows:
                yield {profile.number: profile for profile in map(_profile, rows)}

    async def interests(self, app_id: int, start: int, end: int) -> AsyncIterator[list[tuple[int, str, bool, int]]]:
        """Number, interest, whether it has it, and as of which version, of the devices from *start* to below *end*."""
        number, interest = start, ""
        while True:
            rows = await self._query(
                "SELECT number, interest, argMax(subscribed, version), max(version) FROM device_interests "
                "WHERE app = {app:UInt32} AND number >= {number:UInt32} AND number < {end:UInt64} "
                "AND (number, interest) > ({number:UInt32}, {interest:String}) "
                "GROUP BY number, interest ORDER BY number, interest LIMIT {limit:UInt32}",
                {"app": app_id, "number": number, "interest": interest, "end": end, "limit": _PAGE})
            if not rows:
                return
            number, interest = rows[-1][0], rows[-1][1]
            yield [(row[0], row[1], row[2], row[3]) for row in rows]

    async def pushes(self, app_id: int) -> AsyncIterator[list[StoredPush]]:
        """The registered pushes of an app."""
        after = ""
        while rows := await self._query(
                "SELECT msg_id, record, toUnixTimestamp(expires_at), toUnixTimestamp(registered_at) "
                "FROM pushes FINAL WHERE app = {app:UInt32} AND msg_id > {after:String} "
                "ORDER BY msg_id LIMIT {limit:UInt32}", {"app": app_id, "after": after, "limit": _MESSAGES}):
            after = rows[-1][0]
            yield await self._with_completions(app_id, rows)

    async def pushes_of(self, app_id: int, msg_ids: Sequence[str]) -> dict[str, StoredPush]:
        """The registered pushes among *msg_ids*."""
        rows = await self._query(
            "SELECT msg_id, record, toUnixTimestamp(expires_at), toUnixTimestamp(registered_at) FROM pushes FINAL "
            "WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)}", {"app": app_id, "msg_ids": msg_ids})
        return {push.msg_id: push for push in await self._with_completions(app_id, rows)}

    async def _with_completions(self, app_id: int, rows: Sequence[Sequence[Any]]) -> list[StoredPush]:
        completions = await self._query(
            "SELECT msg_id, toUnixTimestamp(finished_at) FROM completions FINAL "
            "WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)}",
            {"app": app_id, "msg_ids": [row[0] for row in rows]})
        finished = {row[0]: row[1] for row in completions}
        return [StoredPush(row[0], orjson.loads(row[1]), row[2], row[3], finished.get(row[0], 0)) for row in rows]

    async def messages(self, app_id: int) -> AsyncIterator[list[StoredMessage]]:
        """The messages that devices reached; a page has some hundred thousand devices, or one message."""
        after = ""
        while rows := await self._query(
                "SELECT msg_id, toUnixTimestamp(max(last)), groupBitmapMergeIf(devices, stage = 'received') "
                f"+ groupBitmapMergeIf(devices, {_TARGETS}), bitmapMax(groupBitmapMergeState(devices)) + 1 "
                "FROM delivery WHERE app = {app:UInt32} AND msg_id > {after:String} GROUP BY msg_id ORDER BY msg_id "
                "LIMIT {limit:UInt32} SETTINGS optimize_aggregation_in_order = 1",
                {"app": app_id, "after": after, "limit": _MESSAGES}):
            after = rows[-1][0]
            page: list[StoredMessage] = []
            devices = 0
            for row in rows:
                if page and devices + row[2] > _PAGE:
                    yield page
                    page, devices = [], 0
                page.append(StoredMessage(*row))
                devices += row[2]
            yield page

    async def members(self, app_id: int, msg_ids: Sequence[str], start: int,
                      end: int) -> list[tuple[str, list[int], list[int]]]:
        """Of each message, who received it and who was a target, from number *start* to below *end*."""
        rows = await self._query(
            f"SELECT msg_id, {_members('received', _RECEIVED)}, {_members('targets', _TARGETS)} FROM delivery "
            "WHERE app = {app:UInt32} AND msg_id IN {msg_ids:Array(String)} GROUP BY msg_id",
            {"app": app_id, "msg_ids": msg_ids, "start": start, "end": end})
        return [(row[0], row[1], row[2]) for row in rows]

    async def members_of_broadcast(self, app_id: int, msg_id: str, kind: str, channel: str, hour: int, start: int,
                                   end: int) -> tuple[list[int], list[int], list[int]]:
        """Who received a push to everyone, whom events made a target, and whom the push or an event in its own hour."""
        rows = await self._query(
            f"SELECT {_members('received', _RECEIVED)}, {_members('named', f'{_TARGETS} AND NOT ({_EXPANDED})')}, "
            f"{_members('expanded', _EXPANDED)} FROM delivery "
            "WHERE app = {app:UInt32} AND msg_id = {msg_id:String}",
            {"app": app_id, "msg_id": msg_id, "kind": kind, "channel": channel, "hour": hour, "start": start,
             "end": end})
        return rows[0][0], rows[0][1], rows[0][2]

    async def _chunks(self, table: str, app_id: int) -> range:
        """Where the chunks of an app's numbers begin."""
        rows = await self._query(
            f"SELECT count(), max(number) FROM {table} WHERE app = {{app:UInt32}}", {"app": app_id})
        return range(0, rows[0][1] + 1 if rows[0][0] else 0, CHUNK_SIZE)

    async def _query(self, sql: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
        return await self._clickhouse.query(sql, parameters, label="rebuild")


def _profile(row: Sequence[Any]) -> Profile:
    fields = dict(zip(_PROFILE, row, strict=True))
    return Profile(**(fields | {"metadata": orjson.loads(fields["metadata"])}))


def _members(name: str, condition: str) -> str:
    return (f"bitmapToArray(bitmapSubsetInRange(groupBitmapMergeStateIf(devices, {condition}), "
            f"{{start:UInt32}}, {{end:UInt32}})) AS {name}")
