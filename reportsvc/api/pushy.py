"""Pushy Notification Status API.

Quirks kept on purpose: an unknown push is a 400, and so is one that is over: expired, or with every device for two
days. Only Android (and unknown) devices are listed as pending, at most 1000.
Source: https://pushy.me/docs/api/notification-status
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from reportsvc.api.auth import APPS
from reportsvc.api.common import Dialect, json_response, parse_id
from reportsvc.api.events import CLOCK
from reportsvc.api.limits import check_pushy
from reportsvc.errors import (BadRequest, Forbidden, NotFound, RateLimited, ReportError, StoreUnavailable, TooLarge,
                              Unauthorized)
from reportsvc.model import App
from reportsvc.registry.pushes import PushRecord, PushRegistry
from reportsvc.storage.queries import DeviceRow

PUSHES: Final = web.AppKey("pushes", PushRegistry)

#: A push that every device has is kept for so long.
DELIVERED_SECONDS: Final = 2 * 86400


class InvalidPush(ReportError):
    """No such push, or it is over."""

    def __init__(self) -> None:
        super().__init__("The push notification ID provided is invalid.")


class Scheduled(ReportError):
    """The push is not due yet."""

    def __init__(self) -> None:
        super().__init__("The push notification is scheduled for future delivery, please try again after the scheduled "
                         "delivery time elapses.")


# error -> (HTTP status, Pushy code)
ERRORS: Final[Mapping[type[ReportError], tuple[int, str]]] = {
    InvalidPush: (400, "INVALID_PUSH_ID"), Scheduled: (400, "PUSH_SCHEDULED"), Unauthorized: (401, "INVALID_API_KEY"),
    BadRequest: (400, "INVALID_REQUEST"), Forbidden: (403, "FORBIDDEN"), NotFound: (404, "NOT_FOUND"),
    TooLarge: (413, "REQUEST_TOO_LARGE"), RateLimited: (429, "RATE_LIMIT_EXCEEDED"),
    StoreUnavailable: (503, "SERVICE_UNAVAILABLE"), ReportError: (500, "INTERNAL_SERVER_ERROR"),
}
DIALECT: Final = Dialect(
    errors=ERRORS,
    framework={404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE", 500: "INTERNAL_SERVER_ERROR",
               503: "SERVICE_UNAVAILABLE", None: "INVALID_REQUEST"},
    body=lambda code, text: {"code": code, "error": text})


async def notification_status(request: web.Request) -> web.Response:
    """``GET /pushes/<id>``: one push, and the devices that do not have it yet."""
    app = await authenticate(request)
    await check_pushy(request, app)
    push, pending = await find(request, app)
    return json_response(render_push(push, pending))


async def authenticate(request: web.Request) -> App:
    """The app whose secret key stands in the query."""
    app = await request.app[APPS].by_pushy_api_key(request.query.get("api_key", ""))
    if app is None:
        raise Unauthorized("The provided API key is invalid.")
    return app


async def find(request: web.Request, app: App) -> tuple[PushRecord, list[DeviceRow]]:
    """The push and its pending devices, unless it is unknown, scheduled or over."""
    registry, now = request.app[PUSHES], request.app[CLOCK]()
    try:
        msg_id = parse_id("id", request.match_info["push_id"])
    except BadRequest:
        raise InvalidPush from None
    push, state = await registry.find(app.id, msg_id)
    if push is None or push.expires_at <= now:
        raise InvalidPush
    if push.scheduled_at is not None and now < push.scheduled_at:
        raise Scheduled
    pending = await registry.pending(app.id, push, state, "pending")
    finished_at = 0 if pending else await registry.finished_at(app.id, push, state)
    if finished_at and now >= finished_at + DELIVERED_SECONDS:
        raise InvalidPush
    return push, pending


def render_push(push: PushRecord, pending: list[DeviceRow]) -> dict[str, Any]:
    """The body of ``/pushes/<id>``."""
    return {"push": {"date": push.created_at, "payload": push.payload, "expiration": push.expires_at,
                     "pending_devices": [device.device_id for device in pending]}}
