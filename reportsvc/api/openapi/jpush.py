"""JPush Report, described."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from aiohttp import web

from reportsvc.api import jpush
from reportsvc.api.common import load_json
from reportsvc.api.limits import tell
from reportsvc.api.openapi.operation import BODY, EVERYWHERE, Answer, Content, Example, Operation, Section, query, said
from reportsvc.api.openapi.schemas import Schema, array, closed_object, integer, open_object, ref, string, words
from reportsvc.errors import BadParameter, Forbidden, RateLimited, StoreUnavailable, Unauthorized
from reportsvc.model import MAX_ID_BYTES
from reportsvc.registry.ratelimit import WINDOW_SECONDS, Quota
from reportsvc.reports.status import Status
from reportsvc.reports.users import MEASURES, PLATFORM_ORDER

#: What each status of a device means.
STATUSES: Final = {
    Status.RECEIVED: "delivered", Status.PENDING: "a target that has not received it",
    Status.NOT_OF_APP: "not a device of this app", Status.NOT_A_TARGET: "a device of this app, but not a target",
    Status.UNKNOWN: "the store could not say for this device",
}
_MEANINGS: Final = "; ".join(f"{status.value}: {text}" for status, text in STATUSES.items())
_NOON: Final = datetime(2014, 6, 12, 12)
_WEB: Final = query("web", string(), "`1` adds what browsers did, which the vendor's answer has no field for.")
_MSG_IDS: Final = query(
    "msg_ids", array(string(minLength=1, maxLength=MAX_ID_BYTES), minItems=1, maxItems=jpush.MAX_MSG_IDS),
    f"Up to {jpush.MAX_MSG_IDS} ids, separated by commas. Spaces around an id and a comma at the end do not matter; "
    "answers keep the order, and ids that are asked for twice.", required=True, style="form", explode=False,
    examples={"vendor": {"summary": "the vendor's example", "value": ["1613113584", "1229760629"]}})


def _quota_headers() -> list[str]:
    response = web.Response()
    tell(response, Quota(2400, 1, WINDOW_SECONDS))
    return [name for name in response.headers if name.startswith("X-")]


def _counts(*names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, ref("Count"))


_RECEIVED: Final = closed_object({"msg_id": string(minLength=1)} | _counts(*jpush.RECEIVED, *jpush.WEB_RECEIVED),
                                 optional=tuple(jpush.WEB_RECEIVED))
_MESSAGE: Final = closed_object(
    {platform: closed_object(_counts(*fields)) for platform, fields in (jpush.MESSAGES | jpush.WEB_MESSAGES).items()}
    | {"msg_id": string(minLength=1)}, optional=tuple(jpush.WEB_MESSAGES))
_ERRORS: Final = (said(jpush.parse_msg_ids, None), said(jpush.parse_msg_ids, ","),
                  said(jpush.parse_msg_ids, "1," * (jpush.MAX_MSG_IDS + 1)),
                  said(jpush.parse_msg_ids, "1" * (MAX_ID_BYTES + 1)))
_NOT_VIP: Final = Forbidden("Not authorized to use this interface")
_COUNTERS_AWAY: Final = StoreUnavailable("clickhouse")

RECEIVED: Final = Operation(
    id="jpushReceived", summary="Delivery counts of up to 100 messages",
    description="Distinct devices, for a month from the last delivery. A stage that no device reached is null. A "
                "message that nobody knows has null everywhere.",
    parameters=[_MSG_IDS, _WEB],
    answers={200: Answer("One item for each id asked for, in that order.", Content(
        array(ref("JPushReceived")), [Example("the vendor's example", [
            {"msg_id": "1613113584", "android_received": 62, "ios_apns_sent": 11, "ios_apns_received": 5,
             "ios_msg_received": 3, "wp_mpns_sent": 3},
            {"msg_id": "1229760629", "android_received": 56, "ios_apns_sent": 33, "ios_apns_received": 17,
             "ios_msg_received": 3, "wp_mpns_sent": None}])]))},
    errors=(*_ERRORS, _COUNTERS_AWAY))

MESSAGES: Final = Operation(
    id="jpushMessages", summary="The funnel of up to 100 messages, by platform",
    description="For VIP apps. `msg_click`, and iOS `target` and `received`, are of custom messages.",
    parameters=[_MSG_IDS | {"examples": {"vendor": {"summary": "the vendor's example", "value": ["269978303"]}}}, _WEB],
    answers={200: Answer("One item for each id asked for, in that order.", Content(
        array(ref("JPushMessage")), [Example("the vendor's example", [{
            "android": {"received": 1, "target": 4, "online_push": 1, "click": None, "msg_click": None},
            "ios": {"apns_sent": 2, "apns_target": 2, "apns_received": 1, "click": None, "target": 10, "received": 8},
            "winphone": {"mpns_target": 100, "mpns_sent": 100, "click": 100}, "msg_id": "269978303"}])]))},
    errors=(_NOT_VIP, *_ERRORS, _COUNTERS_AWAY))


def _status_error(**changes: Any) -> Any:
    return said(jpush.parse_status_query, {"msg_id": 1, "registration_ids": ["a"]} | changes)


_STATUS_BODY: Final = open_object({
    "msg_id": ref("Id"),
    "registration_ids": array(ref("Id"), minItems=1, maxItems=jpush.MAX_REGISTRATION_IDS),
    "date": {"type": ["string", "null"], "pattern": r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2})?$",
             "description": "`yyyy-mm-dd` in the app's timezone: how things stood at the end of that day. Today if "
                            "absent. Some SDKs call it `data`, which is the same."},
}, ["msg_id", "registration_ids"])
STATUS: Final = Operation(
    id="jpushStatusMessage", summary="The status of one message on up to 1000 devices",
    description=f"`status` is {_MEANINGS}. Targets are the audience that was registered and every device with a "
                "`target`, `sent` or `online_push` event. Any content type is taken for JSON.",
    body=[Content(ref("JPushStatusQuery"), [
        Example("the vendor's example", {"msg_id": 327640176, "registration_ids": [
            "1506bfd3a7c568d4761", "02078f0f1b8", "0207870a9b8"]}),
        Example("as of a day", {"msg_id": "327640176", "registration_ids": ["02078f0f1b8"], "date": "2014-06-10"})])],
    answers={200: Answer("The status of each id asked for.", Content(
        {"type": "object", "additionalProperties": ref("JPushStatus")}, [Example("the vendor's example", {
            "02078f0f1b8": {"status": 2}, "1507bfd3a7c568d4761": {"status": 0}, "0207870a9b8": {"status": 2}})]))},
    errors=(_status_error(msg_id=None), _status_error(msg_id=True), _status_error(msg_id=""),
            _status_error(registration_ids=None),
            _status_error(registration_ids=["a"] * (jpush.MAX_REGISTRATION_IDS + 1)),
            _status_error(registration_ids=[{}]), _status_error(date="10.6.2014"),
            BadParameter("date", "it is in the future"), said(jpush.parse_status_query, []),
            said(load_json, b"{"), *BODY, StoreUnavailable("redis"), _COUNTERS_AWAY))


def _users_error(time_unit: str, start: str, duration: str) -> Any:
    return said(jpush.parse_users_query, {"time_unit": time_unit, "start": start, "duration": duration}, _NOON)


USERS: Final = Operation(
    id="jpushUsers", summary="New, online and active devices, by hour, day or month",
    description=f"For VIP apps. Of the last {jpush.MAX_DAYS} days, in the app's timezone. Each figure counts distinct "
                "devices over its whole period: a day is the union of its hours, not their sum. Hours are cut at the "
                "end of the start day. A platform or a figure without any device is left out.",
    parameters=[
        query("time_unit", words(jpush.MAX_DURATION), "The unit of `start` and `duration`.", required=True,
              example="DAY"),
        query("start", string(pattern="^(?:" + "|".join(
            pattern.replace(r"\d", "[0-9]") for _, pattern in jpush.FORMATS.values()) + ")$"),
              "The first period: `YYYY-MM-DD HH`, `YYYY-MM-DD` or `YYYY-MM`, as `time_unit` is.", required=True,
              example="2014-06-10"),
        query("duration", integer(minimum=1, maximum=max(jpush.MAX_DURATION.values())), "How many units: at most " +
              ", ".join(f"{limit} with {unit}" for unit, limit in jpush.MAX_DURATION.items()) + ".", required=True,
              example=3),
    ],
    answers={200: Answer("`time_unit`, `start` and `duration` as they were sent, and an item for each period.", Content(
        ref("JPushUsers"), [Example("the vendor's example", {
            "time_unit": "DAY", "start": "2014-06-10", "duration": 3, "items": [
                {"time": "2014-06-10"}, {"time": "2014-06-11", "android": {"active": 1}},
                {"time": "2014-06-12", "android": {"active": 1, "online": 2}}]})]))},
    errors=(_NOT_VIP, _users_error("WEEK", "2014-06-10", "3"), _users_error("DAY", "", "3"),
            _users_error("DAY", "2014-06-10", "61"), _users_error("DAY", "2014-06", "3"),
            _users_error("DAY", "2014-01-10", "3"), _COUNTERS_AWAY))

SECTION: Final = Section(
    tag="JPush Report",
    description="JPush's Report API v3: how many devices got a message, which ones, and how many devices there are. "
                "All of it also under `/v3/report`, the prefix of the vendor's Beijing zone. Every answer to a caller "
                "who is known says where his app stands in its calls of this minute.",
    source="https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_report",
    dialect=jpush.DIALECT, security=[{"basic": []}],
    operations={jpush.received: RECEIVED, jpush.status_message: STATUS, jpush.messages: MESSAGES, jpush.users: USERS},
    errors=(Unauthorized("Basic authentication failed"), RateLimited(WINDOW_SECONDS), *EVERYWHERE),
    headers=_quota_headers(),
    schemas={
        "JPushReceived": _RECEIVED, "JPushMessage": _MESSAGE, "JPushStatusQuery": _STATUS_BODY,
        "JPushStatus": closed_object({"status": {
            "enum": [status.value for status in STATUSES], "description": _MEANINGS}}),
        "JPushUsers": closed_object({
            "time_unit": words(jpush.MAX_DURATION), "start": string(), "duration": integer(minimum=1),
            "items": array(ref("JPushPeriod"))}),
        "JPushPeriod": closed_object(
            {"time": string()} | dict.fromkeys(PLATFORM_ORDER, ref("JPushFigures")), optional=tuple(PLATFORM_ORDER)),
        "JPushFigures": closed_object(dict.fromkeys(MEASURES, integer(minimum=1)), optional=MEASURES),
    })
