"""The native dialect, described."""

from __future__ import annotations

from typing import Any, Final

import orjson

from reportsvc.api import native, native_reads
from reportsvc.api.common import parse_id, with_large_ids
from reportsvc.api.events import MAX_AGE_SECONDS, MAX_AHEAD_SECONDS, MAX_ERRORS, MAX_EVENTS, Lines, parse_event
from reportsvc.api.openapi.operation import (BODY, EVERYWHERE, Answer, Content, Example, Failure, Operation, Section,
                                             query, said)
from reportsvc.api.openapi.schemas import (Schema, array, boolean, closed_object, integer, nullable, open_object, ref,
                                           string, whole, words)
from reportsvc.errors import (BadRequest, Conflict, NotFound, RateLimited, ReportError, StoreUnavailable, TooLarge,
                              Unauthorized)
from reportsvc.model import (CHANNELS, CHANNELS_BY_PLATFORM, INTEREST, KINDS, MAX_ID_BYTES, MAX_USER_CHARACTERS,
                             PLATFORMS, PRESENCE_STAGES, STAGES, UNKNOWN_PLATFORM)
from reportsvc.registry.ratelimit import WINDOW_SECONDS
from reportsvc.reports.timeline import INTERVALS
from reportsvc.storage.queries import MESSAGE_STAGES

_NOW: Final = 1700000000
_EVENT: Final = {"msg_id": "1613113584", "stage": "received", "device_id": "1507bfd3a7c568d4761",
                 "platform": "android", "channel": "xiaomi", "kind": "notification", "ts": _NOW, "user_id": "alice"}
_DEVICE: Final = {"device_id": "1507bfd3a7c568d4761", "platform": "android"}
_PLATFORM: Final = words((*PLATFORMS[1:], UNKNOWN_PLATFORM), "`unknown` or nothing: that of the device.")
_TIME: Final = {"type": ["number", "null"], "minimum": 0, "maximum": native.MAX_SECONDS * 1000 - 1,
                "description": "Unix time in seconds; milliseconds are recognised."}
_LINES_MEDIA: Final = tuple(sorted(native.LINES, key=lambda media: (media != "application/x-ndjson", media)))
_JOURNAL_AWAY: Final = StoreUnavailable("journal")
_REDIS_AWAY: Final = StoreUnavailable("redis")
_COUNTERS_AWAY: Final = StoreUnavailable("clickhouse")
_NO_JSON: Final = said(with_large_ids, b"{", native.parse_audience)


def _lines(values: list[Any]) -> str:
    return "".join(f"{orjson.dumps(value).decode()}\n" for value in values)


def _bulk(item: str, limit: int, good: list[Any], least: int = 0) -> list[Content]:
    """One item or an array of them, or lines."""
    return [Content({"anyOf": [ref(item), array(ref(item), minItems=least, maxItems=limit)]},
                    [Example("one", good[0]), Example("several", good)]),
            Content(string("One JSON value a line; empty lines do not matter."), [Example("lines", _lines(good))],
                    _LINES_MEDIA)]


def _message(refuse: Any, *args: Any) -> str:
    error = said(refuse, *args)()
    return str(error)


_OUTCOME: Final = Answer("What was taken, and what was not.", Content(ref("NativeOutcome"), [
    Example("all good", {"accepted": 1, "rejected": 0, "errors": []}),
    Example("one bad among good ones", {"accepted": 998, "rejected": 1, "errors": [
        {"index": 17, "message": _message(parse_event, _EVENT | {"stage": "seen"})}]})]))
_ALL_BAD: Final = Answer("", Content(ref("NativeAllRejected"), [Example("nothing was good", {"error": {
    "code": native.ERRORS[BadRequest][1], "message": _message(parse_event, _EVENT | {"stage": "seen"}),
    "rejected": 1, "errors": [{"index": 0, "message": _message(parse_event, _EVENT | {"stage": "seen"})}]}})]))


def _too_many(limit: int) -> ReportError:
    return TooLarge(f"at most {limit} items a request, not {limit + 1}")


EVENTS: Final = Operation(
    id="postEvents", summary="What happened to messages on devices",
    description="Answered when the events are durable; counted in every report within a second. Good events count "
                "though others are bad, and sending again is always safe. A `channel` that is named names its "
                "platform: " + "; ".join(
                    f"{platform} " + ", ".join(f"`{channel}`" for channel in channels)
                    for platform, channels in CHANNELS_BY_PLATFORM.items()) + ". The stages " + " and ".join(
                    f"`{stage}`" for stage in sorted(PRESENCE_STAGES, reverse=True)) + " need no `msg_id`. "
                "`Content-Encoding` may be gzip, deflate or zstd.",
    body=_bulk("Event", MAX_EVENTS, [_EVENT, {"stage": "online", "device_id": "02078f0f1b8"}]),
    answers={200: _OUTCOME, 400: _ALL_BAD},
    errors=(_NO_JSON, _too_many(MAX_EVENTS), *BODY, _JOURNAL_AWAY, _REDIS_AWAY))


def _push_error(**changes: Any) -> Any:
    return said(native.parse_push, {"audience": "all"} | changes, _NOW)


PUSHES: Final = Operation(
    id="postPush", summary="Register what was sent, and to whom",
    description="So that targets, pending devices and expiry are known. The same push again is answered 200 with the "
                "targets that it had.",
    body=[Content(ref("Push"), [
        Example("to everyone", {"msg_id": "1613113584", "payload": {"message": "Hello World!"}, "audience": "all"}),
        Example("to some devices", {
            "msg_id": "5ea9b214b47cad768a35f13a", "vendor": "pushy", "created_at": 1464003935, "time_to_live": 2592000,
            "payload": {"message": "Hello World!"}, "audience": {"device_ids": ["fe8f7b2c102e883e5b41d2"]}}),
        Example("to subscribers", {"audience": {"interests": ["donuts"]}, "payload": {"title": "New"}}),
        Example("to users", {"audience": {"users": ["alice"]}, "channel": "fcm", "kind": "message"})])],
    answers={201: Answer("It is registered.", Content(ref("PushTargets"), [
                 Example("registered", {"msg_id": "1613113584", "targets": 1234})])),
             200: Answer("It was registered before.", Content(ref("PushTargets"), [
                 Example("as before", {"msg_id": "1613113584", "targets": 1234})]))},
    errors=(_NO_JSON, said(native.parse_push, [], _NOW), _push_error(msg_id=""), _push_error(audience=None),
            _push_error(audience={"device_ids": []}),
            _push_error(audience={"device_ids": ["d"] * (native.MAX_AUDIENCE_DEVICES + 1)}),
            _push_error(audience={"interests": ["not a name"]}),
            _push_error(audience={"interests": ["i"] * (native.MAX_AUDIENCE_INTERESTS + 1)}),
            _push_error(audience={"users": ["u"] * (native.MAX_AUDIENCE_USERS + 1)}),
            _push_error(created_at="now"), _push_error(time_to_live=-1),
            _push_error(time_to_live=native.MAX_TIME_TO_LIVE + 1), _push_error(time_to_live=1, expires_at=_NOW),
            _push_error(vendor=""), _push_error(kind="sms"), _push_error(channel="pigeon"),
            Conflict("msg_id 1613113584 is registered with other content"), *BODY, _JOURNAL_AWAY, _REDIS_AWAY,
            _COUNTERS_AWAY))
TARGETS: Final = Operation(
    id="postTargets", summary="More devices that a push is meant for",
    description=f"For audiences of more than {native.MAX_AUDIENCE_DEVICES} devices. JSON or lines.",
    body=_bulk("Target", native.MAX_AUDIENCE_DEVICES, ["1507bfd3a7c568d4761", {"device_id": "02078f0f1b8"}], 1),
    answers={200: Answer("How many targets it has now.", Content(ref("PushTargets"), [
        Example("with two more", {"msg_id": "1613113584", "targets": 1236})]))},
    errors=(_NO_JSON, said(native.parse_targets, Lines()), said(native.parse_targets, Lines([True])),
            _too_many(native.MAX_AUDIENCE_DEVICES),
            NotFound("msg_id 1613113584 is not registered; register it with POST /v1/pushes first"), *BODY,
            _JOURNAL_AWAY, _REDIS_AWAY, _COUNTERS_AWAY))
DEVICES: Final = Operation(
    id="postDevices", summary="Make devices known, in bulk",
    description="A device becomes known at its first event, at its registration, or here. One that was deleted is a "
                "device of the app again.",
    body=_bulk("Device", MAX_EVENTS, [_DEVICE, {
        "device_id": "ios7", "platform": "ios", "user_id": "alice", "first_seen": _NOW}]),
    answers={200: _OUTCOME, 400: Answer("", Content(ref("NativeAllRejected"), [Example("nothing was good", {"error": {
        "code": native.ERRORS[BadRequest][1], "message": _message(native.parse_device, {}, _NOW),
        "rejected": 1, "errors": [{"index": 0, "message": _message(native.parse_device, {}, _NOW)}]}})]))},
    errors=(_NO_JSON, _too_many(MAX_EVENTS), *BODY, _JOURNAL_AWAY, _REDIS_AWAY))
DELETE_DEVICE: Final = Operation(
    id="deleteDevice", summary="Erase a device",
    description="It is no device of the app any more; its receipts stay counted.",
    answers={200: Answer("It is erased.", Content(ref("DeviceDeleted"), [
        Example("erased", {"device_id": "1507bfd3a7c568d4761", "deleted": True})]))},
    errors=(NotFound("device 02078f0f1b8 is not known"), said(parse_id, "device_id", "d" * (MAX_ID_BYTES + 1)),
            _JOURNAL_AWAY, _REDIS_AWAY))

# --------------------------------------------------------------------------------------------------------------- reads
_TOTALS: Final = {"target": 1000, "sent": 990, "online_push": None, "received": 800, "display": 500, "click": 50}
_SHORT: Final = {
    "msg_id": "1613113584", "vendor": "jpush", "kind": "notification", "created_at": _NOW, "expires_at": _NOW + 2592000,
    "first_event_at": _NOW - _NOW % 3600, "last_event_at": _NOW - _NOW % 3600 + 3600, "title": "Hello World!",
    "totals": _TOTALS, "rates": native_reads.render_rates(_TOTALS)}
_COUNTED: Final = {stage: count for stage, count in _TOTALS.items() if count}
_CURSOR: Final = native_reads.render_cursor((_NOW, "1613113584"))
_BAD_ID: Final = said(parse_id, "msg_id", "m" * (MAX_ID_BYTES + 1))

GET_MESSAGES: Final = Operation(
    id="getMessages", summary="The newest messages with their totals",
    description="Counts are of distinct devices. A stage that no device reached, and a rate of nothing, is null.",
    parameters=[
        query("limit", integer(minimum=1, maximum=native_reads.MAX_LIMIT, default=native_reads.DEFAULT_LIMIT),
              "How many messages."),
        query("before", string(), "`next` of the page before.")],
    answers={200: Answer("A page, newest first.", Content(ref("Messages"), [
        Example("a page before another", {"timezone": "UTC", "messages": [_SHORT], "next": _CURSOR}),
        Example("no messages", {"timezone": "UTC", "messages": [], "next": None})]))},
    errors=(said(native_reads.parse_limit, "0"), said(native_reads.parse_cursor, "?"), _COUNTERS_AWAY, _REDIS_AWAY))
GET_MESSAGE: Final = Operation(
    id="getMessage", summary="One message by platform, channel, kind and stage",
    description="In `breakdown`, `platforms`, `channels` and `kinds` a stage that no device reached is left out.",
    answers={200: Answer("The message.", Content(closed_object({"message": ref("Message")}), [
        Example("a message", {"message": _SHORT | {
            "payload": {"message": "Hello World!"}, "audience": {"device_ids": 1000},
            "breakdown": [{"platform": "android", "channel": "xiaomi", "kind": "notification", "totals": _COUNTED}],
            "platforms": {"android": _COUNTED}, "channels": {"xiaomi": _COUNTED}, "kinds": {"notification": _COUNTED}}}
                )]))},
    errors=(NotFound("message 1613113584 is not known"), _BAD_ID, _COUNTERS_AWAY, _REDIS_AWAY))
GET_TIMELINE: Final = Operation(
    id="getTimeline", summary="How a message spread, by hour or by day",
    description="In the app's timezone. Intervals without a change are left out.",
    parameters=[
        query("interval", words(INTERVALS, default=INTERVALS[0]), "The length of an interval."),
        query("platform", words(("", *PLATFORMS[1:], UNKNOWN_PLATFORM)), "Of one platform only.")],
    answers={200: Answer("The series that a chart needs.", Content(ref("Timeline"), [Example("one hour", {
        "msg_id": "1613113584", "interval": "hour", "timezone": "Asia/Shanghai", "series": [{
            "time": "2023-11-15 06:00", "start": _NOW - _NOW % 3600, "new": {"received": 10, "click": 1},
            "cumulative": {"received": 10, "click": 1}}]})]))},
    errors=(NotFound("message 1613113584 is not known"), _BAD_ID,
            said(native_reads.parse_choice, "interval", "week", INTERVALS),
            said(native_reads.parse_choice, "platform", "symbian", ("", *PLATFORMS[1:], UNKNOWN_PLATFORM)),
            _COUNTERS_AWAY, _REDIS_AWAY))

_STAGE_COUNTS: Final = closed_object(dict.fromkeys(MESSAGE_STAGES, integer(minimum=1)), optional=MESSAGE_STAGES)
_MESSAGE: Final[dict[str, Schema]] = {
    "msg_id": string(minLength=1), "vendor": nullable(string()), "kind": nullable(words(KINDS)),
    "created_at": nullable(ref("UnixTime")), "expires_at": nullable(ref("UnixTime")),
    "first_event_at": nullable(ref("UnixTime")), "last_event_at": nullable(ref("UnixTime")),
    "title": nullable(string("A short text of the payload.")),
    "totals": closed_object(dict.fromkeys(MESSAGE_STAGES, ref("Count"))),
    "rates": closed_object(dict.fromkeys(
        native_reads.render_rates(_TOTALS), nullable({"type": "number", "minimum": 0}))),
}
_STORED_KEYS: Final = (*PLATFORMS[1:], UNKNOWN_PLATFORM)
SCHEMAS: Final[dict[str, Schema]] = {
    "Event": {"anyOf": [ref("MessageEvent"), ref("PresenceEvent")]},
    "MessageEvent": open_object({
        "msg_id": ref("Id"), "stage": words([stage for stage in STAGES if stage not in PRESENCE_STAGES]),
        "device_id": ref("Id"), "platform": nullable(_PLATFORM), "channel": nullable(words(CHANNELS[1:])),
        "kind": nullable(words(KINDS)),
        "ts": {"type": ["number", "null"], "description": "Unix time in seconds; milliseconds are recognised. Over "
               f"{MAX_AHEAD_SECONDS // 60} minutes ahead or {MAX_AGE_SECONDS // 86400} days old, it is moved to now."},
        "user_id": nullable(ref("Id")),
    }, ["msg_id", "stage", "device_id"], "A device reached a stage of a message."),
    "PresenceEvent": open_object({
        "stage": words(sorted(PRESENCE_STAGES)), "device_id": ref("Id"), "platform": nullable(_PLATFORM),
        "ts": {"type": ["number", "null"]}, "user_id": nullable(ref("Id")),
    }, ["stage", "device_id"], "A device was there, or its user was."),
    "Device": open_object({
        "device_id": ref("Id"), "platform": nullable(_PLATFORM), "user_id": nullable(ref("Id")), "first_seen": _TIME,
    }, ["device_id"]),
    "Target": {"anyOf": [ref("Id"), open_object({"device_id": ref("Id")}, ["device_id"])]},
    "Push": open_object({
        "msg_id": nullable(ref("Id")) | {"description": "Made if absent: 24 hexadecimal digits."},
        "audience": ref("Audience"), "payload": {"description": "Any JSON; it comes back as it is."},
        "vendor": nullable(string(minLength=1, maxLength=native.MAX_VENDOR_CHARACTERS)), "created_at": _TIME,
        "scheduled_at": _TIME,
        "expires_at": _TIME | {"description": "Unix time in seconds, instead of `time_to_live`."},
        "time_to_live": nullable(integer(
            f"Seconds from `scheduled_at` or `created_at`; {native.DEFAULT_TIME_TO_LIVE} unless given.", minimum=0,
            maximum=native.MAX_TIME_TO_LIVE)),
        "kind": nullable(words(KINDS)), "channel": nullable(words(CHANNELS[1:])),
    }, ["audience"]),
    "Audience": {"anyOf": [
        {"const": "all"},
        *({"type": "object", "properties": {name: array(items, minItems=1, maxItems=limit)}, "required": [name],
           "additionalProperties": False} for name, items, limit in (
            ("device_ids", ref("Id"), native.MAX_AUDIENCE_DEVICES),
            ("interests", string(pattern=whole(INTEREST)), native.MAX_AUDIENCE_INTERESTS),
            ("users", {"anyOf": [ref("Id"), string(minLength=1, maxLength=MAX_USER_CHARACTERS)]},
             native.MAX_AUDIENCE_USERS)))],
        "description": "Everybody, or the devices, subscribers or users of one list."},
    "PushTargets": closed_object({"msg_id": string(minLength=1), "targets": integer(minimum=0)}),
    "DeviceDeleted": closed_object({"device_id": string(minLength=1), "deleted": boolean() | {"const": True}}),
    "ItemError": closed_object({"index": integer("The place in the request, from 0.", minimum=0), "message": string()}),
    "NativeOutcome": closed_object({
        "accepted": integer(minimum=0), "rejected": integer(minimum=0),
        "errors": array(ref("ItemError"), "The first of them.", maxItems=MAX_ERRORS)}),
    "NativeAllRejected": closed_object({"error": closed_object({
        "code": {"const": native.ERRORS[BadRequest][1]}, "message": string(), "rejected": integer(minimum=1),
        "errors": array(ref("ItemError"), minItems=1, maxItems=MAX_ERRORS)})}),
    "Messages": closed_object({
        "timezone": string("The app's; an IANA name."),
        "messages": array(closed_object(_MESSAGE), maxItems=native_reads.MAX_LIMIT), "next": nullable(string())}),
    "Message": closed_object(_MESSAGE | {
        "payload": {"description": "As it was registered."},
        "audience": {"anyOf": [{"const": "all"}, closed_object({"device_ids": integer(minimum=0)}), {"type": "null"}]},
        "breakdown": array(closed_object({
            "platform": words(_STORED_KEYS), "channel": string(), "kind": words(KINDS), "totals": ref("StageCounts")})),
        "platforms": {"type": "object", "propertyNames": {"enum": list(_STORED_KEYS)},
                      "additionalProperties": ref("StageCounts")},
        "channels": {"type": "object", "additionalProperties": ref("StageCounts")},
        "kinds": {"type": "object", "propertyNames": {"enum": list(KINDS)}, "additionalProperties": ref("StageCounts")},
    }),
    "StageCounts": _STAGE_COUNTS,
    "Timeline": closed_object({
        "msg_id": string(minLength=1), "interval": words(INTERVALS), "timezone": string("An IANA name."),
        "series": array(closed_object({
            "time": string("Local time of the app.", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:00)?$"),
            "start": ref("UnixTime"), "new": ref("StageCounts"), "cumulative": ref("StageCounts")}))}),
}
_CALLER: Final[tuple[Failure, ...]] = (Unauthorized("Basic authentication failed"), RateLimited(WINDOW_SECONDS))
SECTION: Final = Section(
    tag="Native", description="This service's own API: senders and importers tell what was sent and what happened, "
                              "dashboards read it.",
    dialect=native.DIALECT, security=[{"basic": []}],
    operations={
        native.post_events: EVENTS, native.post_push: PUSHES, native.post_targets: TARGETS,
        native.post_devices: DEVICES, native.delete_device: DELETE_DEVICE, native_reads.get_messages: GET_MESSAGES,
        native_reads.get_message: GET_MESSAGE, native_reads.get_timeline: GET_TIMELINE,
    },
    path_parameters={
        "msg_id": string("The message.", minLength=1, maxLength=MAX_ID_BYTES, examples=["1613113584"]),
        "device_id": string("The device.", minLength=1, maxLength=MAX_ID_BYTES,
                            examples=["1507bfd3a7c568d4761"])},
    errors=(*_CALLER, *EVERYWHERE), schemas=SCHEMAS)
