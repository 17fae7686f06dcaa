"""The native dialect: senders, importers and dashboards; HTTP Basic with the app's key and secret.

Everything here may be sent again without harm: events and registrations are unions, and a push is registered under its
id.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.auth import APP
from reportsvc.api.common import (Dialect, FloatId, encodable, json_response, load_exactly, parse_id, read_body,
                                  with_large_ids)
from reportsvc.api.events import (CLOCK, JOURNAL, LEDGER, MAX_ERRORS, MAX_EVENTS, Lines, ParsedEvents, Rejected,
                                  parse_events, parse_word, split_lines)
from reportsvc.errors import (BadParameter, BadRequest, Conflict, Forbidden, NotFound, RateLimited, ReportError,
                              StoreUnavailable, TooLarge, Unauthorized)
from reportsvc.model import (INTEREST, KINDS, MAX_USER_CHARACTERS, PLATFORM_OF_CHANNEL, PLATFORMS, Audience,
                             DeviceUpsert, Push)
from reportsvc.pipeline.registration import Registrar

REGISTRAR: Final = web.AppKey("registrar", Registrar)

# error -> (HTTP status, code)
ERRORS: Final[Mapping[type[ReportError], tuple[int, str]]] = {
    BadRequest: (400, "invalid_request"), Unauthorized: (401, "unauthorized"), Forbidden: (403, "forbidden"),
    NotFound: (404, "not_found"), Conflict: (409, "conflict"), TooLarge: (413, "too_large"),
    RateLimited: (429, "rate_limited"),
    StoreUnavailable: (503, "unavailable"), ReportError: (500, "internal"),
}
DIALECT: Final = Dialect(
    errors=ERRORS,
    framework={404: "not_found", 413: "too_large", 429: "rate_limited", 500: "internal", 503: "unavailable",
               None: "invalid_request"},
    body=lambda code, text: {"error": {"code": code, "message": text}})

MAX_AUDIENCE_DEVICES: Final = 100_000
MAX_AUDIENCE_INTERESTS: Final = 100
MAX_AUDIENCE_USERS: Final = 1_000
MAX_VENDOR_CHARACTERS: Final = 64
#: Pushy's, and the month that JPush keeps statistics for.
DEFAULT_TIME_TO_LIVE: Final = 30 * 86400
#: Pushy's limit.
MAX_TIME_TO_LIVE: Final = 365 * 86400
LINES: Final = frozenset({
    "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
#: What a registration may say beside ``msg_id`` and ``audience``.
_PUSH_KEYS: Final = ("channel", "created_at", "expires_at", "kind", "payload", "scheduled_at", "time_to_live", "vendor")
#: A request of so many events comes from a program that can wait, and not from a device.
PACED_EVENTS: Final = 100
#: A time past this is in milliseconds; see events._MILLISECONDS_FROM.
MAX_SECONDS: Final = 100_000_000_000


# --------------------------------------------------------------------------------------------------------------- events
async def post_events(request: web.Request) -> web.Response:
    """``POST /v1/events``: what happened, as an object, an array or lines of JSON."""
    app, ledger = request[APP], request.app[LEDGER]
    now = int(request.app[CLOCK]())
    body = await read_body(request)
    parsed = parse_items(request, body, lambda lines: parse_lines(lines, app.id, now))
    ledger.add("received", len(parsed.batch) + parsed.rejected)
    for reason, count in parsed.reasons.items():
        ledger.add(f"rejected_{reason}", count)
    if parsed.skewed:
        ledger.add("skewed", parsed.skewed)
    if len(parsed.batch):
        journal = request.app[JOURNAL]
        if len(parsed.batch) >= PACED_EVENTS:
            await journal.pace()
        await journal.append(parsed.batch)
    return render_outcome(len(parsed.batch), parsed.rejected, parsed.errors)


def parse_items(request: web.Request, body: bytes, parse: Callable[[Lines], Any], limit: int = MAX_EVENTS) -> Any:
    """``parse(values of body)``, where *body* is an object, an array or lines, and ids are of any size."""
    is_lines = request.content_type in LINES
    try:
        return parse(_items(body, is_lines, limit, orjson.loads))
    except FloatId:
        return parse(_items(body, is_lines, limit, load_exactly))


def _items(body: bytes, is_lines: bool, limit: int, loads: Callable[[bytes], Any]) -> Lines:
    if not is_lines:
        try:
            value = loads(body)
        except ValueError as error:
            # `curl --data-binary` names no type of its own; lines that can be read are not refused for it.
            if b"\n" not in body.strip():
                raise BadRequest("the body is not valid JSON") from error
        else:
            return _limited(Lines(value if isinstance(value, list) else [value]), limit)
    lines = split_lines(body, loads)
    if not is_lines and not lines.values:
        raise BadRequest("the body is not valid JSON")
    return _limited(lines, limit)


def _limited(lines: Lines, limit: int) -> Lines:
    count = len(lines.values) + len(lines.rejected)
    if count > limit:
        raise TooLarge(f"at most {limit} items a request, not {count}")
    return lines


def parse_lines(lines: Lines, app_id: int, now: int) -> ParsedEvents:
    """The events among *lines*; lines that are no JSON are rejected like bad events."""
    parsed = parse_events(lines.values, app_id, now, lines.numbers)
    parsed.rejected += len(lines.rejected)
    parsed.reasons.update(rejected.reason for rejected in lines.rejected)
    parsed.errors = lines.merged(parsed.errors)[:MAX_ERRORS]
    return parsed


def render_outcome(accepted: int, rejected: int, errors: Sequence[Rejected]) -> web.Response:
    """How many items were taken; 400 if all were bad."""
    details = [error.document() for error in errors]
    if rejected and not accepted:
        return json_response({"error": {"code": "invalid_request", "message": details[0]["message"],
                                        "rejected": rejected, "errors": details}}, status=400)
    return json_response({"accepted": accepted, "rejected": rejected, "errors": details})


# -------------------------------------------------------------------------------------------------------------- devices
async def post_devices(request: web.Request) -> web.Response:
    """``POST /v1/devices``: make devices known, in bulk."""
    body = await read_body(request)
    now = int(request.app[CLOCK]())
    upserts, rejected = parse_items(request, body, lambda lines: parse_devices(lines, now))
    if upserts:
        await request.app[REGISTRAR].upsert_devices(request[APP], upserts)
    return render_outcome(len(upserts), len(rejected), rejected[:MAX_ERRORS])


def parse_devices(lines: Lines, now: int) -> tuple[list[DeviceUpsert], list[Rejected]]:
    """The good devices, and the bad ones."""
    upserts: list[DeviceUpsert] = []
    rejected: list[Rejected] = []
    for index, item in enumerate(lines.values):
        try:
            upserts.append(parse_device(item, now))
        except BadParameter as error:
            line = lines.numbers[index] if lines.numbers else 0
            rejected.append(Rejected(index, error.name, str(error), line))
    return upserts, lines.merged(rejected)


def parse_device(item: Any, now: int) -> DeviceUpsert:
    """One device."""
    if not isinstance(item, dict):
        raise BadParameter("device", "must be a JSON object")
    device_id = parse_id("device_id", item.get("device_id"))
    platform = parse_word(item, "platform", ("unknown", *PLATFORMS[1:]), "unknown")
    user_id = parse_id("user_id", item["user_id"]) if item.get("user_id") is not None else ""
    first_seen = parse_time(item, "first_seen")
    return DeviceUpsert(device_id, "" if platform == "unknown" else platform, user_id,
                        min(first_seen, now) if first_seen is not None else 0)


async def delete_device(request: web.Request) -> web.Response:
    """``DELETE /v1/devices/<device_id>``: it is no device of the app any more; its receipts stay counted."""
    device_id = parse_id("device_id", request.match_info["device_id"])
    if not await request.app[REGISTRAR].delete_device(request[APP], device_id):
        raise NotFound(f"device {device_id} is not known")
    return json_response({"device_id": device_id, "deleted": True})


# --------------------------------------------------------------------------------------------------------------- pushes
async def post_push(request: web.Request) -> web.Response:
    """``POST /v1/pushes``: what is sent, and to whom."""
    now = int(request.app[CLOCK]())
    push, audience, content = with_large_ids(await read_body(request), lambda body: parse_push(body, now))
    done = await request.app[REGISTRAR].register_push(request[APP], push, audience, content)
    return json_response({"msg_id": done.msg_id, "targets": done.targets}, status=201 if done.created else 200)


def parse_push(body: Any, now: int) -> tuple[Push, Audience, bytes]:
    """A push, its audience, and what makes two registrations of one id the same."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    msg_id = parse_id("msg_id", body["msg_id"]) if body.get("msg_id") is not None else secrets.token_hex(12)
    audience = parse_audience(body.get("audience"))
    body = encodable("payload", {name: body[name] for name in _PUSH_KEYS if body.get(name) is not None})
    created_at = parse_time(body, "created_at") or now
    scheduled_at = parse_time(body, "scheduled_at")
    vendor = body.get("vendor")
    if vendor is not None and not (isinstance(vendor, str) and 0 < len(vendor) <= MAX_VENDOR_CHARACTERS):
        raise BadParameter("vendor", f"must be a string of 1 to {MAX_VENDOR_CHARACTERS} characters")
    push = Push(
        msg_id=msg_id, vendor=vendor or "", created_at=created_at, scheduled_at=scheduled_at,
        expires_at=parse_expiry(body, scheduled_at or created_at), payload=body.get("payload"),
        kind=parse_word(body, "kind", KINDS, "notification"),
        channel=parse_word(body, "channel", PLATFORM_OF_CHANNEL, ""))
    return push, audience, _content(body, audience)


def _content(written: dict[str, Any], audience: Audience) -> bytes:
    """The push as its sender wrote it: a retry is the same, whenever it comes."""
    return orjson.dumps([written, audience.everyone, sorted(set(audience.device_ids)), sorted(set(audience.interests)),
                         sorted(set(audience.users))], option=orjson.OPT_SORT_KEYS)


def parse_time(body: Mapping[str, Any], name: str) -> int | None:
    """A unix time in seconds (milliseconds are recognised), or None."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_SECONDS * 1000:
        raise BadParameter(name, "must be a unix time in seconds")
    return int(value) // 1000 if value >= MAX_SECONDS else int(value)


def parse_expiry(body: Mapping[str, Any], start: int) -> int:
    """When the push expires, from ``expires_at`` or ``time_to_live``."""
    expires_at, seconds = parse_time(body, "expires_at"), body.get("time_to_live")
    if seconds is None:
        expires_at = start + DEFAULT_TIME_TO_LIVE if expires_at is None else expires_at
    elif expires_at is not None:
        raise BadParameter("expires_at", "give either expires_at or time_to_live")
    elif isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 0:
        raise BadParameter("time_to_live", "must be a number of seconds")
    else:
        expires_at = start + seconds
    if expires_at > start + MAX_TIME_TO_LIVE:
        raise BadParameter("time_to_live", "at most 365 days")
    return expires_at


def parse_audience(value: Any) -> Audience:
    """``"all"``, or an object with exactly one list."""
    if value == "all":
        return Audience(everyone=True)
    limits = {"device_ids": MAX_AUDIENCE_DEVICES, "interests": MAX_AUDIENCE_INTERESTS, "users": MAX_AUDIENCE_USERS}
    if not isinstance(value, dict) or len(value) != 1 or not set(value) <= set(limits):
        raise BadParameter("audience", 'required: "all", or an object with one of device_ids, interests, users')
    lists = {name: parse_ids(f"audience.{name}", ids, limits[name], parse_user if name == "users" else parse_id)
             for name, ids in value.items()}
    if not all(INTEREST.fullmatch(name) for name in lists.get("interests", ())):
        raise BadParameter("audience.interests", "a name is 1 to 164 of the characters a-z A-Z 0-9 _ - = @ , . ;")
    return Audience(device_ids=lists.get("device_ids", ()), interests=lists.get("interests", ()),
                    users=lists.get("users", ()))


def parse_user(name: str, value: object) -> str:
    """The id of a user: as any other, or as long as one who signs in on a device may have."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_USER_CHARACTERS else parse_id(name, value)


def parse_ids(name: str, value: Any, limit: int, parse: Callable[[str, object], str] = parse_id) -> list[str]:
    """A list of ids."""
    if not isinstance(value, list) or not value:
        raise BadParameter(name, "must be an array of ids")
    if len(value) > limit:
        raise BadParameter(name, f"at most {limit}")
    return [parse(name, one) for one in value]


async def post_targets(request: web.Request) -> web.Response:
    """``POST /v1/pushes/<msg_id>/targets``: more devices that the push is meant for."""
    msg_id = parse_id("msg_id", request.match_info["msg_id"])
    body = await read_body(request)
    device_ids = parse_items(request, body, parse_targets, MAX_AUDIENCE_DEVICES)
    targets = await request.app[REGISTRAR].add_targets(request[APP], msg_id, device_ids)
    return json_response({"msg_id": msg_id, "targets": targets})


def parse_targets(lines: Lines) -> list[str]:
    """Device ids: strings, or objects with a ``device_id``."""
    if lines.rejected:
        raise BadRequest(f"line {lines.rejected[0].line}: not valid JSON")
    ids = [value.get("device_id") if isinstance(value, dict) else value for value in lines.values]
    return parse_ids("device_ids", ids, MAX_AUDIENCE_DEVICES)
