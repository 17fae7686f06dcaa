"""``reportsvc export``: messages, their timelines and users as tables, read from a service over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from reportsvc.commands.client import Access, Client
from reportsvc.commands.progress import progress
from reportsvc.commands.tables import STDOUT, Columns, Row, format_of, table
from reportsvc.errors import BadConfig

_STAGES: Final = ("target", "sent", "online_push", "received", "display", "click")
_RATES: Final = ("received", "display", "click")
#: What each table has; times in unix seconds.
COLUMNS: Final[Mapping[str, Columns]] = {
    "messages": {"msg_id": str, "vendor": str, "kind": str, "title": str, "created_at": int, "expires_at": int,
                 "first_event_at": int, "last_event_at": int, **dict.fromkeys(_STAGES, int),
                 **{f"{name}_rate": float for name in _RATES}},
    "timeline": {"msg_id": str, "time": str, "start": int, "stage": str, "new": int, "cumulative": int},
    "users": {"time": str, "platform": str, "new": int, "online": int, "active": int},
}
_PAGE: Final = 200
#: Timelines asked for at one time.
_READERS: Final = 4


async def run(options: argparse.Namespace, access: Access) -> None:
    """Write one table."""
    form = format_of(options.output, options.format)
    read = _READERS_OF[options.what]
    count = 0
    with progress(f"exporting {options.what}", "rows", None) as meter:
        async with Client(access, lambda reason: meter.update(0, count, reason)) as client:
            with table(options.output, form, COLUMNS[options.what]) as written:
                async for rows in read(client, options):
                    await asyncio.to_thread(written.write, rows)
                    count += len(rows)
                    meter.update(0, count)
        meter.say(f"{count:,} rows" + ("" if options.output == STDOUT else f" in {options.output}"))


async def _messages(client: Client, options: argparse.Namespace) -> AsyncIterator[Sequence[Row]]:
    async for page in _pages(client, options):
        yield [_message(message) for message in page]


async def _pages(client: Client, options: argparse.Namespace) -> AsyncIterator[list[Any]]:
    """The messages that were named, or all, newest first."""
    if options.msg_id:
        for msg_id in options.msg_id:
            reply = await client.call("GET", _path(msg_id))
            if reply.status != 200:
                raise BadConfig(f"the app has no message {msg_id}")
            yield [reply.json["message"]]
        return
    before: dict[str, str] = {}
    while True:
        page = await client.get("/v1/messages", limit=str(_PAGE), **before)
        yield page["messages"]
        if page["next"] is None:
            return
        before = {"before": page["next"]}


def _path(msg_id: str) -> str:
    return f"/v1/messages/{quote(msg_id, safe='')}"


def _message(message: Mapping[str, Any]) -> Row:
    rates = {f"{name}_rate": message["rates"][name] for name in _RATES}
    return {**{name: message.get(name) for name in COLUMNS["messages"]}, **message["totals"], **rates}


async def _timelines(client: Client, options: argparse.Namespace) -> AsyncIterator[Sequence[Row]]:
    async for page in _pages(client, options):
        msg_ids = [message["msg_id"] for message in page]
        for start in range(0, len(msg_ids), _READERS):
            found = await asyncio.gather(*(_timeline(client, msg_id, options.interval)
                                           for msg_id in msg_ids[start:start + _READERS]))
            yield [row for rows in found for row in rows]


async def _timeline(client: Client, msg_id: str, interval: str) -> list[Row]:
    path = f"{_path(msg_id)}/timeline"
    reply = await client.call("GET", path, params={"interval": interval})
    if reply.status == 404:
        return []  # its month ended since the list was read
    return [{"msg_id": msg_id, "time": one["time"], "start": one["start"], "stage": stage,
             "new": one["new"].get(stage, 0), "cumulative": count}
            for one in reply.json["series"] for stage, count in one["cumulative"].items()]


async def _users(client: Client, options: argparse.Namespace) -> AsyncIterator[Sequence[Row]]:
    # The app's day may be a day ahead of UTC, or behind; a day that has not begun has no rows.
    days = options.days
    start = datetime.fromtimestamp(time.time(), UTC) - timedelta(days=days - 1)
    answer = await client.get("/v3/users", time_unit="DAY", start=start.strftime("%Y-%m-%d"),
                              duration=str(min(days + 1, 60)))
    yield [{"time": item["time"], "platform": platform} | counts
           for item in answer["items"] for platform, counts in item.items() if platform != "time"]


_READERS_OF: Final[Mapping[str, Callable[[Client, argparse.Namespace], AsyncIterator[Sequence[Row]]]]] = {
    "messages": _messages, "timeline": _timelines, "users": _users}
