"""The reading half of the native dialect: messages, newest first, one of them, and how it spread.

A stage that no device reached is ``null`` where the keys are fixed, and left out where they are not: never 0.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.auth import APP
from reportsvc.api.common import parse_id
from reportsvc.api.jpush import fresh
from reportsvc.errors import BadParameter
from reportsvc.model import PLATFORMS, UNKNOWN_PLATFORM
from reportsvc.reports.messages import Message, MessagesReport, Page, Place
from reportsvc.reports.timeline import INTERVALS, Interval, TimelineReport
from reportsvc.storage.queries import MESSAGE_STAGES

MESSAGES: Final = web.AppKey("messages", MessagesReport)
TIMELINE: Final = web.AppKey("timeline", TimelineReport)

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
#: Of what `received` is a part: the first of these that is known.
_MEANT: Final = ("target", "sent", "online_push")


async def get_messages(request: web.Request) -> web.Response:
    """``GET /v1/messages``: the newest messages with their totals."""
    app = request[APP]
    limit, before = parse_limit(request.query.get("limit")), parse_cursor(request.query.get("before"))

    async def answer() -> bytes:
        return orjson.dumps(render_page(await request.app[MESSAGES].newest(app, limit, before), app.timezone))

    return await fresh(request, ("recent messages", str(limit), repr(before)), answer)


async def get_message(request: web.Request) -> web.Response:
    """``GET /v1/messages/<msg_id>``: one message by platform, channel, kind and stage."""
    app, msg_id = request[APP], parse_id("msg_id", request.match_info["msg_id"])

    async def answer() -> bytes:
        return orjson.dumps({"message": render_whole(await request.app[MESSAGES].one(app, msg_id))})

    return await fresh(request, ("message", msg_id), answer)


async def get_timeline(request: web.Request) -> web.Response:
    """``GET /v1/messages/<msg_id>/timeline``: how it spread, by hour or by day."""
    app, msg_id = request[APP], parse_id("msg_id", request.match_info["msg_id"])
    interval = parse_choice("interval", request.query.get("interval", INTERVALS[0]), INTERVALS)
    platform = parse_choice("platform", request.query.get("platform", ""), ("", *PLATFORMS[1:], UNKNOWN_PLATFORM))

    async def answer() -> bytes:
        series = await request.app[TIMELINE].series(app, msg_id, interval, platform)
        if not series:
            await request.app[MESSAGES].one(app, msg_id)  # raises if there is no such message
        return orjson.dumps({"msg_id": msg_id, "interval": interval, "timezone": app.timezone,
                             "series": [render_interval(one) for one in series]})

    return await fresh(request, ("timeline", msg_id, interval, platform), answer)


# ---------------------------------------------------------------------------------------------------------------- parse
def parse_limit(text: str | None) -> int:
    """How many messages."""
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadParameter("limit", f"must be 1 to {MAX_LIMIT}")
    return int(text)


def parse_cursor(text: str | None) -> Place | None:
    """The place that :func:`render_cursor` wrote."""
    if text is None:
        return None
    try:
        at, msg_id = orjson.loads(base64.b64decode(text.encode("ascii"), b"-_", validate=True))
    except (binascii.Error, UnicodeEncodeError, ValueError, TypeError):
        at, msg_id = None, None
    if type(at) is not int or not 0 <= at < 1 << 40 or not isinstance(msg_id, str):
        raise BadParameter("before", "must be what `next` of another page was")
    return at, msg_id


def parse_choice(name: str, text: str, allowed: tuple[str, ...]) -> str:
    """A word of a list; an empty one stands for no choice."""
    if text not in allowed:
        raise BadParameter(name, f"must be one of {', '.join(filter(None, allowed))}")
    return text


# --------------------------------------------------------------------------------------------------------------- render
def render_page(page: Page, timezone: str) -> dict[str, Any]:
    """The body of ``GET /v1/messages``; *timezone* is the app's, for whoever shows times or asks for days."""
    return {"timezone": timezone, "messages": [render_message(message) for message in page.messages],
            "next": render_cursor(page.next) if page.next else None}


def render_cursor(place: Place) -> str:
    """A place in the list, to come back to."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode()


def render_message(message: Message) -> dict[str, Any]:
    """A message as a list has it."""
    push, reach = message.push, message.reach
    totals = render_totals(reach.counts if reach else {})
    return {
        "msg_id": message.msg_id,
        "vendor": push.vendor or None if push else None, "kind": push.kind if push else None,
        "created_at": push.created_at if push else None, "expires_at": push.expires_at if push else None,
        "first_event_at": reach.first_hour or None if reach else None,
        "last_event_at": reach.last_hour or None if reach else None,
        "title": push.title if push else None,
        "totals": totals, "rates": render_rates(totals)}


def render_totals(counts: Mapping[str, int]) -> dict[str, int | None]:
    """Devices by stage; every stage has its key."""
    return {stage: counts.get(stage) or None for stage in MESSAGE_STAGES}


def render_rates(totals: Mapping[str, int | None]) -> dict[str, float | None]:
    """What part of the devices that were meant received it, and what part of those saw and opened it."""
    meant = next((totals[stage] for stage in _MEANT if totals[stage]), None)
    return {"received": _rate(totals["received"], meant), "display": _rate(totals["display"], totals["received"]),
            "click": _rate(totals["click"], totals["received"])}


def _rate(part: int | None, whole: int | None) -> float | None:
    return round(part / whole, 6) if part and whole else None


def render_whole(message: Message) -> dict[str, Any]:
    """A message with all that is known of it."""
    push = message.push
    audience = None if push is None else "all" if push.for_everyone else {"device_ids": push.targets}
    groups: dict[tuple[str, str, str], dict[str, int]] = {}
    for part in message.parts:
        groups.setdefault((part.platform, part.channel, part.kind), {})[part.stage] = part.count
    ordered = {key: {stage: groups[key][stage] for stage in MESSAGE_STAGES if stage in groups[key]}
               for key in sorted(groups, key=_place)}
    return render_message(message) | {
        "payload": push.payload if push else None, "audience": audience,
        "breakdown": [{"platform": platform, "channel": channel, "kind": kind, "totals": totals}
                      for (platform, channel, kind), totals in ordered.items() if platform and channel and kind],
        "platforms": {key[0]: totals for key, totals in ordered.items() if key[0] and not key[1]},
        "channels": {key[1]: totals for key, totals in ordered.items() if key[1] and not key[0]},
        "kinds": {key[2]: totals for key, totals in ordered.items() if key[2] and not key[1]}}


def _place(key: tuple[str, str, str]) -> tuple[int, str, str]:
    """Platforms in the order of the vocabulary, the unknown one last; the rest by name."""
    platform, channel, kind = key
    return PLATFORMS.index(platform) if platform in PLATFORMS else len(PLATFORMS), channel, kind


def render_interval(interval: Interval) -> dict[str, Any]:
    """One interval of a series."""
    return {"time": interval.time, "start": interval.start, "new": interval.new, "cumulative": interval.cumulative}
