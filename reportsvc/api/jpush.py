"""JPush Report API v3.

Quirks kept on purpose: ids may be integers and are answered as strings; a stage with no device is ``null``, never 0;
``date`` may be called ``data`` (the PHP and C# SDKs do); bodies may come as text/plain; 404 and 405 carry an ``error``
object, because the Python SDK crashes without one.
Source: https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_report
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.auth import APP
from reportsvc.api.common import Dialect, json_response, parse_id, read_body, with_large_ids
from reportsvc.errors import (BadParameter, BadRequest, Conflict, Forbidden, NotFound, RateLimited, ReportError,
                              StoreUnavailable, TooLarge, Unauthorized)
from reportsvc.localtime import local_now
from reportsvc.model import KINDS
from reportsvc.reports.delivery import DeliveryReport, Totals
from reportsvc.reports.fresh import FreshAnswers
from reportsvc.reports.status import Status, StatusReport
from reportsvc.reports.users import Figures, Period, UsersReport
from reportsvc.storage.queries import Selection

DELIVERY: Final = web.AppKey("delivery", DeliveryReport)
STATUS: Final = web.AppKey("status", StatusReport)
USERS: Final = web.AppKey("users", UsersReport)
FRESH: Final = web.AppKey("fresh", FreshAnswers)

MAX_MSG_IDS: Final = 100
MAX_REGISTRATION_IDS: Final = 1000
MAX_DAYS: Final = 60
MAX_DURATION: Final = {"HOUR": 24, "DAY": 60, "MONTH": 2}


class UnitMismatch(BadRequest):
    """``time_unit`` and ``start`` do not match."""


class OutOfRange(BadRequest):
    """The period is not within the last 60 days."""


# error -> (HTTP status, JPush code)
ERRORS: Final[Mapping[type[ReportError], tuple[int, int]]] = {
    UnitMismatch: (400, 3004), OutOfRange: (400, 3005), BadRequest: (400, 3002), TooLarge: (413, 3002),
    Unauthorized: (401, 3001), RateLimited: (429, 2002), Forbidden: (403, 2003), NotFound: (404, 3002),
    Conflict: (409, 3002), StoreUnavailable: (503, 10), ReportError: (500, 10),
}
DIALECT: Final = Dialect(
    errors=ERRORS, framework={500: 10, 503: 10, None: 3002},
    body=lambda code, text: {"error": {"code": code, "message": text}}, internal_text="Internal system error")

_MESSAGE: Final = ("message",)
_NOT_MESSAGE: Final = tuple(kind for kind in KINDS if kind != "message")

# answer field -> what it counts
RECEIVED: Final = {
    "android_received": Selection("received", "android"),
    "ios_apns_sent": Selection("sent", "ios", "apns"),
    "ios_apns_received": Selection("received", "ios", kinds=("notification",)),
    "ios_msg_received": Selection("received", "ios", kinds=_MESSAGE),
    "wp_mpns_sent": Selection("sent", "winphone"),
}
# platform -> answer field -> what it counts; in the order of the vendor's example
MESSAGES: Final = {
    "android": {
        "received": Selection("received", "android"),
        "target": Selection("target", "android"),
        "online_push": Selection("online_push", "android"),
        "click": Selection("click", "android", kinds=_NOT_MESSAGE),
        "msg_click": Selection("click", "android", kinds=_MESSAGE),
    },
    "ios": {
        "apns_sent": Selection("sent", "ios", "apns"),
        "apns_target": Selection("target", "ios", kinds=("notification",)),
        "apns_received": Selection("received", "ios", kinds=("notification",)),
        "click": Selection("click", "ios"),
        "target": Selection("target", "ios", kinds=_MESSAGE),
        "received": Selection("received", "ios", kinds=_MESSAGE),
    },
    "winphone": {
        "mpns_target": Selection("target", "winphone"),
        "mpns_sent": Selection("sent", "winphone"),
        "click": Selection("click", "winphone"),
    },
}
# What browsers add, for whoever asks with `web=1`: the vendor's answers have no field for them, and strict clients of
# his take no field that he does not have.
WEB_RECEIVED: Final = {"web_received": Selection("received", "web")}
WEB_MESSAGES: Final = {
    "web": {
        "received": Selection("received", "web"),
        "target": Selection("target", "web"),
        "sent": Selection("sent", "web"),
        "click": Selection("click", "web"),
    },
}


# ------------------------------------------------------------------------------------------------------------- handlers
async def received(request: web.Request) -> web.Response:
    """``GET /v3/received``: delivery counts of up to 100 messages."""
    async def answer() -> bytes:
        msg_ids = parse_msg_ids(request.query.get("msg_ids"))
        is_web = with_web(request)
        report, fields = ("received with web", RECEIVED | WEB_RECEIVED) if is_web else ("received", RECEIVED)
        totals = await request.app[DELIVERY].totals(request[APP], msg_ids, report, fields)
        return orjson.dumps([render_received(msg_id, totals.get(msg_id, {}), fields) for msg_id in msg_ids])

    # The query as it came: reading it would cost more than the answer that is kept.
    return await fresh(request, ("received", request.rel_url.raw_query_string), answer)


async def messages(request: web.Request) -> web.Response:
    """``GET /v3/messages``: the funnel of up to 100 messages, by platform."""
    require_vip(request)

    async def answer() -> bytes:
        msg_ids = parse_msg_ids(request.query.get("msg_ids"))
        is_web = with_web(request)
        report, platforms = ("messages with web", MESSAGES | WEB_MESSAGES) if is_web else ("messages", MESSAGES)
        counters = {f"{platform}.{name}": selection
                    for platform, fields in platforms.items() for name, selection in fields.items()}
        totals = await request.app[DELIVERY].totals(request[APP], msg_ids, report, counters)
        return orjson.dumps([render_message(msg_id, totals.get(msg_id, {}), platforms) for msg_id in msg_ids])

    return await fresh(request, ("messages", request.rel_url.raw_query_string), answer)


async def status_message(request: web.Request) -> web.Response:
    """``POST /v3/status/message``: the status of one message on up to 1000 devices."""
    query = with_large_ids(await read_body(request), parse_status_query)
    statuses = await request.app[STATUS].statuses(
        request[APP], query.msg_id, query.registration_ids, query.day, "status")
    return json_response(render_statuses(statuses))


async def users(request: web.Request) -> web.Response:
    """``GET /v3/users``: new, online and active devices of the last 60 days."""
    require_vip(request)
    app, report = request[APP], request.app[USERS]
    query = parse_users_query(request.query, local_now(app.timezone, report.clock()))
    figures = await report.figures(app, query.periods, query.end, "users")
    return json_response(render_users(query, figures))


async def fresh(request: web.Request, question: tuple[str, ...],
                answer: Callable[[], Coroutine[Any, Any, bytes]]) -> web.Response:
    """The answer to *question*, kept while nothing changes."""
    body = await request.app[FRESH].get(request[APP].id, question, answer)
    return web.Response(body=body, content_type="application/json")


def with_web(request: web.Request) -> bool:
    """Whether the caller wants to be told of browsers too."""
    return request.query.get("web") == "1"


def require_vip(request: web.Request) -> None:
    """Some interfaces are for some apps only."""
    if not request[APP].vip:
        raise Forbidden("Not authorized to use this interface")


# ---------------------------------------------------------------------------------------------------------------- parse
def parse_msg_ids(text: str | None) -> list[str]:
    """Up to 100 ids between commas; spaces around them and a comma at the end do not matter."""
    if text is None:
        raise BadParameter("msg_ids", "required: up to 100 ids, separated by commas")
    msg_ids = [parse_id("msg_ids", part) for part in map(str.strip, text.split(",")) if part]
    if not msg_ids:
        raise BadParameter("msg_ids", "must not be empty")
    if len(msg_ids) > MAX_MSG_IDS:
        raise BadParameter("msg_ids", f"at most {MAX_MSG_IDS} ids")
    return msg_ids


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """The body of a status call; *day* None is today."""

    msg_id: str
    registration_ids: Sequence[str]
    day: date | None


def parse_status_query(body: Any) -> StatusQuery:
    """The body of a status call."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    msg_id = parse_id("msg_id", body.get("msg_id"))
    ids = body.get("registration_ids")
    if not isinstance(ids, list) or not ids:
        raise BadParameter("registration_ids", "required: an array of 1 to 1000 ids")
    if len(ids) > MAX_REGISTRATION_IDS:
        raise BadParameter("registration_ids", f"at most {MAX_REGISTRATION_IDS} ids")
    day = body.get("data") if body.get("date") in (None, "") else body["date"]
    return StatusQuery(msg_id, [parse_id("registration_ids", one) for one in ids], parse_day(day))


def parse_day(value: object) -> date | None:
    """``yyyy-mm-dd``; None where nothing is given."""
    if value in (None, ""):
        return None
    parsed = _parse_local(value, "%Y-%m-%d", r"\d{4}-\d\d-\d\d")
    if parsed is None:
        raise BadParameter("date", "must be yyyy-mm-dd")
    return parsed.date()


@dataclass(frozen=True, slots=True)
class UsersQuery:
    """A users call: its words as sent, and the local time they stand for."""

    time_unit: str
    start: str
    duration: int
    periods: Sequence[Period]
    end: datetime


# time_unit -> (format, pattern of `start`)
FORMATS: Final = {
    "HOUR": ("%Y-%m-%d %H", r"\d{4}-\d\d-\d\d \d\d"),
    "DAY": ("%Y-%m-%d", r"\d{4}-\d\d-\d\d"),
    "MONTH": ("%Y-%m", r"\d{4}-\d\d"),
}


def parse_users_query(query: Mapping[str, str], now: datetime) -> UsersQuery:
    """The parameters of a users call; *now* is the app's wall clock."""
    unit, text = query.get("time_unit", ""), query.get("start", "")
    if unit not in FORMATS:
        raise BadParameter("time_unit", "must be HOUR, DAY or MONTH")
    if not text:
        raise BadParameter("start", "required")
    start = _parse_local(text, *FORMATS[unit])
    if start is None:
        raise UnitMismatch(f"start: with time_unit {unit} it must look like {now.strftime(FORMATS[unit][0])}")
    duration = parse_duration(unit, query.get("duration", ""))
    _check_range(unit, start, now)
    *starts, end = _boundaries(unit, start, duration)
    periods = [Period(moment.strftime(FORMATS[unit][0]), moment) for moment in starts]
    return UsersQuery(unit, text, duration, periods, end)


def parse_duration(unit: str, text: str) -> int:
    """How many units."""
    limit = MAX_DURATION[unit]
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= limit:
        raise BadParameter("duration", f"must be 1 to {limit} with time_unit {unit}")
    return int(text)


def _parse_local(value: object, form: str, pattern: str) -> datetime | None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        return None
    try:
        return datetime.strptime(value, form)
    except ValueError:
        return None


def _check_range(unit: str, start: datetime, now: datetime) -> None:
    """Within the last 60 days; last month may be asked for as a whole, however long two months are."""
    oldest = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=MAX_DAYS)
    if unit == "MONTH":
        oldest = min(oldest, (now.replace(day=1) - timedelta(days=1)).replace(day=1, hour=0, minute=0, second=0,
                                                                              microsecond=0))
    if not oldest <= start <= now:
        raise OutOfRange(f"start: only the last {MAX_DAYS} days can be asked for")


def _boundaries(unit: str, start: datetime, duration: int) -> list[datetime]:
    """Where each period begins, and where the last one ends; hours are cut at the end of the start day."""
    if unit == "HOUR":
        return [start + timedelta(hours=hours) for hours in range(min(duration, 24 - start.hour) + 1)]
    if unit == "DAY":
        return [start + timedelta(days=days) for days in range(duration + 1)]
    months = [start.year * 12 + start.month - 1 + count for count in range(duration + 1)]
    return [datetime(month // 12, month % 12 + 1, 1) for month in months]


# --------------------------------------------------------------------------------------------------------------- render
def render_received(msg_id: str, totals: Totals, fields: Iterable[str]) -> dict[str, Any]:
    """One item of ``/v3/received``."""
    return {"msg_id": msg_id} | {name: totals.get(name) or None for name in fields}


def render_message(msg_id: str, totals: Totals, platforms: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """One item of ``/v3/messages``."""
    item: dict[str, Any] = {
        platform: {name: totals.get(f"{platform}.{name}") or None for name in fields}
        for platform, fields in platforms.items()}
    return item | {"msg_id": msg_id}


_STATUSES: Final = [{"status": int(status)} for status in sorted(Status)]


def render_statuses(statuses: Mapping[str, Status]) -> dict[str, Any]:
    """The body of ``/v3/status/message``."""
    return {device_id: _STATUSES[status] for device_id, status in statuses.items()}


def render_users(query: UsersQuery, figures: Sequence[Figures]) -> dict[str, Any]:
    """The body of ``/v3/users``; what has no data is left out."""
    return {"time_unit": query.time_unit, "start": query.start, "duration": query.duration,
            "items": [{"time": period.label} | found for period, found in zip(query.periods, figures, strict=True)]}
