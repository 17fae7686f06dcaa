"""``POST /v1/events``: every form a body may take, what is refused and why, and what an event says by itself."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any

import orjson

from reportsvc.pipeline import ledger
from tests.api.helpers import NOTHING_RECEIVED, at_noon, native_error, reached
from tests.support.service import Account, Answer, Clock, Running, eventually

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STAGES = "target, sent, online_push, received, display, click, online, active"
PLATFORMS = "unknown, android, ios, web, winphone, quickapp, hmos"
ANDROID = "jg_android, xiaomi, huawei, honor, meizu, oppo, vivo, asus, fcm, tuibida, nio, pushy"


def event(**more: Any) -> dict[str, Any]:
    """A good event; what is None is left out."""
    whole = {"msg_id": "m", "stage": "received", "device_id": "a", "platform": "android"} | more
    return {name: value for name, value in whole.items() if value is not None}


async def post(service: Running, account: Account, body: object, **headers: str) -> Answer:
    """Post *body*: bytes as they are, anything else as JSON; ``Content_Encoding`` stands for ``Content-Encoding``."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    names = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.call("POST", "/v1/events", account, data=BytesIO(data), headers=names)


def accepted(count: int) -> tuple[int, dict[str, Any]]:
    """The answer when every event was good."""
    return 200, {"accepted": count, "rejected": 0, "errors": []}


async def received(service: Running, account: Account, *msg_ids: str, field: str = "android_received") -> list[Any]:
    """One number of each message."""
    await service.applied()
    answer = await service.call("GET", "/v3/received", account, params={"msg_ids": ",".join(msg_ids)})
    return [item[field] for item in answer.json]


# --------------------------------------------------------------------------------------------------------------- bodies
async def test_every_form_of_a_body(running_service: Running, account: Account) -> None:
    """One object, an array and lines are all taken; lines under any of their names, and under the type curl gives."""

    def lines(end: bytes) -> bytes:
        return end.join(orjson.dumps(event(device_id=one)) for one in "abc")

    bodies: list[tuple[str, bytes, int]] = [
        ("application/json", orjson.dumps(event()), 1),
        ("application/json; charset=utf-8", orjson.dumps([event(), event(device_id="b")]), 2),
        ("application/json", b" [\n] ", 0),
        ("application/x-www-form-urlencoded", orjson.dumps(event()), 1),
        ("application/x-www-form-urlencoded", b"[\n" + lines(b",\n") + b"\n]", 3),
        ("application/x-www-form-urlencoded", lines(b"\n"), 3),
        ("text/plain", lines(b"\r\n") + b"\r\n", 3),
        *((name, lines(b"\n"), 3) for name in ("application/x-ndjson", "application/ndjson", "application/jsonl",
                                               "application/x-jsonlines", "application/x-ndjson; charset=utf-8")),
        ("application/x-ndjson", lines(b"\n") + b"\n", 3), ("application/x-ndjson", lines(b"\r\n") + b"\r\n", 3),
        ("application/x-ndjson", b"\n\n" + lines(b"\n\n \n") + b"\n\n", 3), ("application/x-ndjson", b"", 0),
    ]

    answers = [await post(running_service, account, body, Content_Type=name) for name, body, _ in bodies]

    assert [(answer.status, answer.json) for answer in answers] == [accepted(count) for *_, count in bodies]
    assert await received(running_service, account, "m") == [3]


async def test_compressed_bodies(running_service: Running, account: Account) -> None:
    """gzip, deflate (with and without its header, as clients disagree) and zstd bodies are read."""

    raw_deflate = zlib.compressobj(wbits=-15)
    body = orjson.dumps([event(), event(device_id="b")])
    compressed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "zstd": zstd.compress(body),
                  "Deflate": raw_deflate.compress(body) + raw_deflate.flush(), "identity": body}

    answers = {name: await post(running_service, account, data, Content_Encoding=name)
               for name, data in compressed.items()}

    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == dict.fromkeys(
        compressed, accepted(2))
    assert await received(running_service, account, "m") == [2]


async def test_body_that_is_not_compressed_as_said(running_service: Running, account: Account) -> None:
    """A body that its Content-Encoding does not fit is 400, and the next request of the same client is answered."""

    for name, body in (("gzip", b"[]"), ("deflate", b"\xff" * 10), ("zstd", b"[]")):
        answer = await post(running_service, account, body, Content_Encoding=name)
        assert (answer.status, answer.json) == (400, native_error(
            "invalid_request", "the body cannot be read; check Content-Encoding and Content-Length")), name

    assert (await post(running_service, account, event())).status == 200


async def test_body_that_is_no_json(running_service: Running, account: Account) -> None:
    """What is no JSON at all is 400 as a whole, however it is called."""

    for body in (b"", b"{", b"hello", b"[{}", b"\xff\xfe", b"{}{}", b"hello\nworld", b"[" * 5000, b"NaN"):
        answer = await post(running_service, account, body)
        assert (answer.status, answer.json) == (
            400, native_error("invalid_request", "the body is not valid JSON")), body


# ----------------------------------------------------------------------------------------------------------- rejections
async def test_good_events_count_though_others_are_bad(running_service: Running, account: Account) -> None:
    """The answer names each bad event by its place and its fault, and the good ones are counted."""

    answer = await post(running_service, account, [
        event(), event(stage="recieved"), event(device_id="b"), "event", event(device_id=""), event(device_id="c")])

    assert (answer.status, answer.json) == (200, {"accepted": 3, "rejected": 3, "errors": [
        {"index": 1, "message": f"stage: must be one of {STAGES}"},
        {"index": 3, "message": "event: must be a JSON object"},
        {"index": 4, "message": "device_id: must not be empty"}]})
    assert await received(running_service, account, "m") == [3]


async def test_request_without_a_good_event_is_refused(running_service: Running, account: Account) -> None:
    """All bad is 400; the body has the native error, with the first fault as its message, and all of them."""

    answer = await post(running_service, account, [event(stage=None), {}])

    errors = [{"index": index, "message": f"stage: required: one of {STAGES}"} for index in range(2)]
    assert (answer.status, answer.json) == (400, {"error": {
        "code": "invalid_request", "message": f"stage: required: one of {STAGES}", "rejected": 2, "errors": errors}})


async def test_lines_are_named_by_their_number(running_service: Running, account: Account) -> None:
    """In lines, a fault has its line, blank ones included, and its place among the events; in their order."""

    body = b"\n".join([b"not json", orjson.dumps(event(stage="x")), b"", orjson.dumps(event()), b'{"half":',
                       orjson.dumps(event(platform="x")), orjson.dumps(event(device_id="b"))])

    answer = await post(running_service, account, body, Content_Type="application/x-ndjson")

    assert (answer.status, answer.json) == (200, {"accepted": 2, "rejected": 4, "errors": [
        {"index": 0, "message": "line 1: not valid JSON"},
        {"index": 1, "message": f"line 2: stage: must be one of {STAGES}"},
        {"index": 3, "message": "line 5: not valid JSON"},
        {"index": 4, "message": f"line 6: platform: must be one of {PLATFORMS}"}]})
    assert await received(running_service, account, "m") == [2]


async def test_the_first_hundred_faults_are_told(running_service: Running, account: Account) -> None:
    """All rejections are counted, and the first 100 described, of whatever sort they are."""

    bad = [event(stage="x")] * 150
    expected = [{"index": index, "message": f"stage: must be one of {STAGES}"} for index in range(100)]

    some = await post(running_service, account, [*bad, event()])
    none = await post(running_service, account, bad)
    lines = await post(running_service, account, b"\n".join([*map(orjson.dumps, bad), b"x", orjson.dumps(event())]),
                       Content_Type="application/x-ndjson")

    assert some.json == {"accepted": 1, "rejected": 150, "errors": expected}
    assert none.json == {"error": {"code": "invalid_request", "message": expected[0]["message"], "rejected": 150,
                                   "errors": expected}}
    assert (lines.json["accepted"], lines.json["rejected"]) == (1, 151)
    assert [error["index"] for error in lines.json["errors"]] == list(range(100))


async def test_every_fault_of_an_event(running_service: Running, account: Account) -> None:
    """Each field that breaks its rule is named, with the rule."""

    long, not_an_id = "x" * 257, "must be a string or an integer"
    bad_ids: list[tuple[Any, str]] = [
        ("", "must not be empty"), (True, not_an_id), (1.5, not_an_id), ([], not_an_id), ({}, not_an_id),
        (long, "at most 256 bytes"), ("\u00e9" * 129, "at most 256 bytes")]
    words: list[Any] = ["", 3, [], {}, True]
    faults: list[tuple[Any, str]] = [
        (None, "event: must be a JSON object"), (5, "event: must be a JSON object"),
        ([], "event: must be a JSON object"), (event(stage=None), f"stage: required: one of {STAGES}"),
        (event() | {"stage": None}, f"stage: required: one of {STAGES}"),
        *((event(stage=value), f"stage: must be one of {STAGES}") for value in ("Received", *words)),
        *((event(platform=value), f"platform: must be one of {PLATFORMS}") for value in ("Android", *words)),
        (event(channel="apns"), f"channel: must be one of {ANDROID}"),
        (event(channel=""), f"channel: must be one of {ANDROID}"),
        (event(platform="ios", channel="fcm"), "channel: must be one of jg_ios, voip, apns"),
        (event(platform="web", channel=1), "channel: must be one of webpush"),
        *((event(kind=value), "kind: must be one of notification, message, inapp, live_activity")
          for value in ("Message", *words)),
        *((event(**{name: None}), f"{name}: required") for name in ("msg_id", "device_id")),
        *((event(**{name: value}), f"{name}: {problem}") for name in ("msg_id", "device_id", "user_id")
          for value, problem in bad_ids),
        *((event(ts=value), "ts: must be a unix time in seconds or milliseconds")
          for value in ("now", "1700000000", words[2], words[3], True)),
    ]

    answer = await post(running_service, account, [event(), *(item for item, _ in faults)])

    assert answer.json == {"accepted": 1, "rejected": len(faults), "errors": [
        {"index": index, "message": message} for index, (_, message) in enumerate(faults, 1)]}
    assert await received(running_service, account, "m") == [1]


async def test_rejections_are_counted_by_their_reason(running_service: Running, account: Account) -> None:
    """The ledger has every event that came in, and why each that was refused was refused."""

    body = b"\n".join([b"x", orjson.dumps(event(stage="x")), orjson.dumps(event(device_id="")), b"5",
                       orjson.dumps(event()), orjson.dumps(event(user_id=""))])
    await post(running_service, account, body, Content_Type="application/x-ndjson")

    async def is_counted() -> bool:
        counts = await ledger.read(running_service.service.redis, 1)
        return counts == {"received": 6, "accepted": 1, "applied": 1, "dead": 0, "rejected_json": 1,
                          "rejected_stage": 1, "rejected_device_id": 1, "rejected_event": 1, "rejected_user_id": 1}
    await eventually(is_counted)


# --------------------------------------------------------------------------------------------------------------- limits
async def test_ten_thousand_events_a_request(running_service: Running, account: Account) -> None:
    """10 000 events are taken; one more is 413 and none is counted, as an array and as lines."""

    items = list(reached("m", "received", 10_001, "android"))
    lines = b"\n".join(map(orjson.dumps, items))

    full = await post(running_service, account, items[:-1])
    array = await post(running_service, account, items)
    ndjson = await post(running_service, account, lines, Content_Type="application/x-ndjson")

    too_many = (413, native_error("too_large", "at most 10000 items a request, not 10001"))
    assert (full.status, full.json) == accepted(10_000)
    assert [(answer.status, answer.json) for answer in (array, ndjson)] == [too_many, too_many]
    assert await received(running_service, account, "m") == [10_000]


async def test_sixteen_mebibytes_a_body(running_service: Running, account: Account) -> None:
    """A body over 16 MiB is 413, also when it was far smaller on the wire; just below, it is read."""

    def body(size: int) -> bytes:
        start = orjson.dumps([event()])[:-1]
        return start + b" " * (size - len(start) - 1) + b"]"

    limit = 16 * 1024 * 1024
    encode: dict[str, Callable[[bytes], bytes]] = {
        "identity": lambda data: data, "gzip": lambda data: gzip.compress(data, 1),
        "deflate": lambda data: zlib.compress(data, 1), "zstd": zstd.compress}

    for name, compress in encode.items():
        at_limit = await post(running_service, account, compress(body(limit - 1)), Content_Encoding=name)
        over = await post(running_service, account, compress(body(limit + 1)), Content_Encoding=name)

        assert (at_limit.status, at_limit.json) == accepted(1), name
        assert (over.status, over.json) == (
            413, native_error("too_large", "the body is over 16777216 bytes")), name


async def test_decompression_bomb_is_refused(running_service: Running, account: Account) -> None:
    """A few hundred kilobytes that would unpack to hundreds of megabytes are 413, and the service goes on."""

    for name, bomb in (("gzip", gzip.compress(b" " * (256 << 20), 9)), ("zstd", zstd.compress(b" " * (256 << 20)))):
        answer = await post(running_service, account, bomb, Content_Encoding=name)
        assert (answer.status, answer.json) == (
            413, native_error("too_large", "the body is over 16777216 bytes")), name

    assert (await post(running_service, account, event())).status == 200


# ------------------------------------------------------------------------------------------------------------------ ids
async def test_ids_of_any_size_and_script(running_service: Running, account: Account) -> None:
    """Integers of any size are the strings of their digits, 256 bytes of any script are an id, and none is cut."""

    longest = "\u4e2d" * 85 + "x"
    numbers = [0, -1, 2**53 + 1, 2**63, 2**64 - 1, 2**64 + 1, 10**100 + 1]
    await running_service.send(account, *(event(msg_id="numbers", device_id=number) for number in numbers),
                               *(event(msg_id="numbers", device_id=str(number)) for number in numbers),
                               event(msg_id=longest, device_id=longest), event(msg_id=longest, device_id=longest[:-1]))

    assert await received(running_service, account, "numbers", longest, longest[:-1]) == [len(numbers), 2, None]


async def test_one_large_id_does_not_soften_the_rules(running_service: Running, account: Account) -> None:
    """Beside an id beyond 64 bits, which takes another decoder, no event and no line is taken that JSON forbids."""

    lines = [json.dumps(event(device_id=10**30)).encode(), b'{"msg_id":"m","stage":"received","device_id":"\\ud800"}',
             b'{"msg_id":"m","stage":"received","device_id":"nan","ts":NaN}',
             b'{"msg_id":"m","stage":"received","device_id":"inf","ts":1e999}',
             b'{"msg_id":"m","stage":"received","device_id":' + b"[" * 2000 + b"]" * 2000 + b"}",
             orjson.dumps(event(device_id=1.5)), orjson.dumps(event(device_id="b", ts=0.5))]

    answer = await post(running_service, account, b"\n".join(lines), Content_Type="application/x-ndjson")

    assert (answer.status, answer.json) == (200, {"accepted": 2, "rejected": 5, "errors": [
        *({"index": index, "message": f"line {index + 1}: not valid JSON"} for index in range(1, 5)),
        {"index": 5, "message": "line 6: device_id: must be a string or an integer"}]})
    assert await received(running_service, account, "m") == [2]


# ----------------------------------------------------------------------------------------------------------------- time
async def test_times_in_milliseconds_and_fractions(running_service: Running, account: Account, clock: Clock) -> None:
    """``ts`` may be seconds, milliseconds or a fraction; the event belongs to the hour it names."""

    yesterday = at_noon(clock) - timedelta(days=1)
    seconds = int(yesterday.timestamp())
    await running_service.send(account, *(
        {"stage": "online", "device_id": str(ts), "platform": "android", "ts": ts}
        for ts in (seconds, seconds * 1000, seconds * 1000 + 999, seconds + 0.75, float(seconds * 1000))))

    answer = await running_service.call("GET", "/v3/users", account, params={
        "time_unit": "HOUR", "start": yesterday.strftime("%Y-%m-%d 12"), "duration": "1"})

    assert answer.json["items"] == [{"time": yesterday.strftime("%Y-%m-%d 12"), "android": {"new": 5, "online": 5}}]


async def test_wrong_clocks_are_moved_to_now(running_service: Running, account: Account, clock: Clock) -> None:
    """A time over 5 minutes ahead or 31 days old becomes now and is counted as skewed; the event counts."""

    noon = at_noon(clock)
    now = int(clock())
    skewed = [now + 6 * 60, now - 32 * 86400, 0, -1, now * 1000 + 10**9, 10**20, now - 32 * 86400 + 0.5]
    right = [now + 4 * 60, now - 31 * 86400 + 600, now * 1000, now]
    await running_service.send(account, *(event(device_id=str(ts), ts=ts) for ts in skewed + right))

    today = await running_service.call("GET", "/v3/users", account, params={
        "time_unit": "DAY", "start": noon.strftime("%Y-%m-%d"), "duration": "1"})

    assert await received(running_service, account, "m") == [len(skewed) + len(right)]
    assert today.json["items"][0]["android"] == {"new": len(skewed) + 3, "online": len(skewed) + 3}

    async def is_counted() -> bool:
        return (await ledger.read(running_service.service.redis, 1)).get("skewed") == len(skewed)
    await eventually(is_counted)


# --------------------------------------------------------------------------------------------------- platform and stage
async def test_channel_names_its_platform(running_service: Running, account: Account) -> None:
    """An event with a channel and no platform is of the channel's platform, ``unknown`` or null being none."""

    await running_service.send(
        account, event(platform=None, channel="xiaomi"), event(platform="unknown", channel="fcm", device_id="b"),
        event() | {"platform": None, "channel": None, "kind": None, "ts": None, "user_id": None, "device_id": "c"},
        event(platform=None, channel="apns", device_id="d", stage="sent"))

    answer = await running_service.call("GET", "/v3/received?msg_ids=m", account)

    assert answer.json == [{"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": 2, "ios_apns_sent": 1}]


async def test_platform_of_a_device_holds_for_all_its_events(running_service: Running, account: Account) -> None:
    """An event without a platform takes its device's, whichever is told first, and changes when that is told later."""

    bare = event(platform=None)
    await running_service.send(account, bare, bare | {"device_id": "b"})
    assert await received(running_service, account, "m") == [None]

    # Told by a registration, then by another event of the device.
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "a", "platform": "android"})
    assert await received(running_service, account, "m") == [1]
    await running_service.send(account, {"stage": "online", "device_id": "b", "platform": "android"})
    assert await received(running_service, account, "m") == [2]

    # And the other way round: the platform first.
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "c", "platform": "ios"})
    await running_service.send(account, bare | {"device_id": "c"})
    assert await received(running_service, account, "m", field="ios_apns_received") == [1]


async def test_prefix_of_an_id_tells_the_platform(running_service: Running, account: Account) -> None:
    """Ids that Beams made say their platform, unless somebody names another."""

    bare = event(platform=None)
    await running_service.send(account, *(bare | {"device_id": one} for one in ("fcm-1", "apns-1", "web-1", "fcm1")))
    assert await received(running_service, account, "m") == [1]
    assert await received(running_service, account, "m", field="ios_apns_received") == [1]

    await running_service.call("POST", "/v1/devices", account, json={"device_id": "apns-1", "platform": "android"})
    assert await received(running_service, account, "m") == [2]
    assert await received(running_service, account, "m", field="ios_apns_received") == [None]


async def test_presence_needs_no_message(running_service: Running, account: Account, clock: Clock) -> None:
    """``online`` and ``active`` are about the device alone: a message id is not needed, looked at or counted."""

    today = at_noon(clock).strftime("%Y-%m-%d")
    presence = {"stage": "online", "device_id": "a", "platform": "ios"}
    await running_service.send(account, presence, presence | {"msg_id": "m"}, presence | {"msg_id": []},
                               presence | {"stage": "active", "device_id": "b", "msg_id": "m", "kind": "message"})

    users = await running_service.call("GET", f"/v3/users?time_unit=DAY&start={today}&duration=1", account)
    funnel = await running_service.call("GET", "/v3/messages?msg_ids=m", account)

    assert users.json["items"] == [{"time": today, "ios": {"new": 2, "online": 2, "active": 1}}]
    assert funnel.json == [{
        "android": {"received": None, "target": None, "online_push": None, "click": None, "msg_click": None},
        "ios": {"apns_sent": None, "apns_target": None, "apns_received": None, "click": None, "target": None,
                "received": None},
        "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}, "msg_id": "m"}]


# --------------------------------------------------------------------------------------------------------------- errors
async def test_framework_errors_have_the_native_shape(running_service: Running, account: Account) -> None:
    """404, 405 with ``Allow`` and 401 answer ``error.code`` and ``error.message``, at paths of no dialect too."""

    missing = [await running_service.call("GET", path, account)
               for path in ("/nothing", "/v1", "/v2/received", "/favicon.ico")]
    wrong = [await running_service.call("PUT", path, account) for path in ("/v1/events", "/v1/devices/a", "/healthz")]
    nobody = [await running_service.call(method, path) for method, path in (
        ("POST", "/v1/events"), ("POST", "/v1/pushes"), ("POST", "/v1/pushes/m/targets"), ("POST", "/v1/devices"),
        ("DELETE", "/v1/devices/a"))]

    assert [(answer.status, answer.json) for answer in missing] == [
        (404, native_error("not_found", "there is nothing at this path"))] * 4
    assert [(answer.status, answer.json, answer.headers["Allow"]) for answer in wrong] == [
        (405, native_error("invalid_request", "Method Not Allowed"), allow) for allow in ("POST", "DELETE", "GET,HEAD")]
    assert [(answer.status, answer.json) for answer in nobody] == [
        (401, native_error("unauthorized", "Basic authentication failed"))] * 5
