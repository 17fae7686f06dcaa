"""Pusher Beams Reporting API v2: devices tell that a notification arrived or was opened.

Quirks kept on purpose: the mobile SDKs write ``Delivery`` and ``Open``; they re-register, drop events or block for ever
on a 404, 401, 413 or 429, so only 200, 400 and 503 are ever answered to an event; anybody may call, from any origin.
Source: https://pusher.com/docs/beams/reference/reporting-api
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.auth import APPS
from reportsvc.api.beams import (CORS, FORBIDDEN_STATUSES, FRAMEWORK, INSTANCE, Incomplete, InvalidContentType,
                                 check_content_type, error_body)
from reportsvc.api.common import Dialect, error_of_tried, read_body
from reportsvc.api.events import CLOCK, JOURNAL, LEDGER, clamp_time
from reportsvc.errors import BadRequest, NotFound, ReportError, StoreUnavailable, TooLarge
from reportsvc.model import CHANNEL_OF_PREFIX, MAX_ID_BYTES, MAX_USER_CHARACTERS, App, EventBatch, Fact

# error -> (HTTP status, Title)
ERRORS: Final[Mapping[type[ReportError], tuple[int, str]]] = {
    InvalidContentType: (400, "Invalid content type"), Incomplete: (400, "Incomplete Request"),
    BadRequest: (400, "Bad request"), TooLarge: (400, "Bad request"), NotFound: (404, "Not found"),
    StoreUnavailable: (503, "Service unavailable"), ReportError: (500, "Something went wrong"),
}
DIALECT: Final = Dialect(
    errors=ERRORS, framework=FRAMEWORK, body=error_body, headers=CORS, forbidden_statuses=FORBIDDEN_STATUSES)

NO_INSTANCE: Final = ("The instance id given is invalid. It is expected to be in this format: "
                      "426abfc7-41fe-492f-bcf1-27586fa9bd3f")
REQUIRED: Final = ("event", "publishId", "deviceId", "timestampSecs")
STAGES: Final = {"delivery": "received", "open": "click"}
_DISPLAY: Final = "display"
# (stage, prefix of the device id) -> fact code
_CODES: Final = {
    (stage, prefix): Fact(stage, "", channel).code
    for stage in (*STAGES.values(), _DISPLAY) for prefix, channel in {**CHANNEL_OF_PREFIX, "": ""}.items()
}


async def report_event(request: web.Request) -> web.Response:
    """``POST /reporting_api/v2/instances/<id>/events``: one event of one device, durable when answered."""
    app = await find_app(request)
    ledger = request.app[LEDGER]
    ledger.add("received")
    try:
        check_content_type(request, "Only `application/json` is supported")
        batch = parse_event(await read_body(request), app.id, int(request.app[CLOCK]()))
    except BadRequest:
        ledger.add("rejected_beams_event")
        raise
    if (error := error_of_tried(request)) is not None:
        raise error
    await request.app[JOURNAL].append(batch)
    return web.Response(headers=CORS)


async def missing_instance(request: web.Request) -> web.Response:
    """A path without an instance id, which must not be a 404."""
    raise Incomplete("`instance-id` param is missing from path")


async def find_app(request: web.Request) -> App:
    """The app that owns the instance in the path."""
    instance_id = request.match_info["instance_id"]
    if not INSTANCE.fullmatch(instance_id):
        raise BadRequest(NO_INSTANCE)
    app = await request.app[APPS].by_instance(instance_id)
    if app is None:
        raise BadRequest("Could not find the instance")
    return app


def parse_event(body: bytes, app_id: int, now: int) -> EventBatch:
    """The events in a report: one, or two for a notification that was shown while the app was in the background."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        raise BadRequest("Failed to read body as a JSON object")
    for name in REQUIRED:
        if event.get(name) in (None, ""):
            raise BadRequest(f"`{name}` is missing from body")
    msg_id, device_id = _text(event, "publishId"), _text(event, "deviceId")
    stage = STAGES.get(str(event["event"]).lower())
    if stage is None:
        raise BadRequest("`event` must be `delivery` or `open`")
    happened, _ = clamp_time(_seconds(event["timestampSecs"]), now)
    stages = [stage]
    if stage == "received" and event.get("appInBackground") is True and event.get("hasDisplayableContent") is True:
        stages.append(_DISPLAY)
    prefix = device_id[:device_id.find("-") + 1]
    prefix = prefix if prefix in CHANNEL_OF_PREFIX else ""
    count = len(stages)
    user = event.get("userId")
    users = {0: user} if isinstance(user, str) and 0 < len(user) <= MAX_USER_CHARACTERS else {}
    return EventBatch(app_id, [msg_id] * count, [device_id] * count, [_CODES[one, prefix] for one in stages],
                      [happened] * count, users)


def _text(event: dict[str, Any], name: str) -> str:
    value = event[name]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRequest(f"`{name}` must be a string")
    if len(value) > MAX_ID_BYTES // 4 and len(value.encode()) > MAX_ID_BYTES:
        raise BadRequest(f"`{name}` is longer than {MAX_ID_BYTES} bytes")
    return value


def _seconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise BadRequest("`timestampSecs` must be an integer")
    return int(value)
