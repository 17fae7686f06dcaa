"""``/v1/pushes`` and ``/v1/devices``: what senders and SDKs register, and that doing it again changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from io import BytesIO
from typing import Any
from urllib.parse import quote

import orjson

from tests.api.helpers import NOTHING_RECEIVED, at_noon, native_error, reached
from tests.support.service import Account, Answer, Clock, Running

MONTH = 30 * 86400


async def push(service: Running, account: Account, body: object) -> tuple[int, Any]:
    """Status and body of the answer to a registration."""
    answer = await service.call("POST", "/v1/pushes", account, data=BytesIO(json.dumps(body).encode()))
    return answer.status, answer.json


async def targets(service: Running, account: Account, msg_id: str, body: object, content_type: str = "") -> Answer:
    """The answer to more targets; *body* is bytes or JSON."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return await service.call("POST", f"/v1/pushes/{quote(msg_id, '')}/targets", account, data=BytesIO(data),
                              headers={"Content-Type": content_type or "application/json"})


async def record(service: Running, account: Account, msg_id: str) -> Any:
    """A registered push as Pushy's status has it."""
    await service.applied()
    answer = await service.call("GET", f"/pushes/{msg_id}?api_key={account.pushy_api_key}")
    return answer.json.get("push")


async def statuses(service: Running, account: Account, msg_id: str, *device_ids: str) -> dict[str, int]:
    """The JPush statuses of some devices."""
    answer = await service.call("POST", "/v3/status/message", account,
                                json={"msg_id": msg_id, "registration_ids": device_ids})
    return {device_id: entry["status"] for device_id, entry in answer.json.items()}


# --------------------------------------------------------------------------------------------------------------- pushes
async def test_same_push_again_is_the_same(running_service: Running, account: Account) -> None:
    """201 with the number of targets, 200 for the same push at any later time, 409 for other content."""

    body = {"msg_id": "m", "vendor": "jpush", "payload": {"message": "Hello World!", "n": 1}, "kind": "notification",
            "channel": None, "audience": {"device_ids": ["a", "b", "a"]}}
    reordered = {"audience": {"device_ids": ["b", "a"]}, "payload": {"n": 1, "message": "Hello World!"},
                 "vendor": "jpush", "msg_id": "m", "kind": "notification"}

    assert await push(running_service, account, body) == (201, {"msg_id": "m", "targets": 2})
    assert await push(running_service, account, body) == (200, {"msg_id": "m", "targets": 2})
    running_service.clock.ahead += 3600
    assert await push(running_service, account, reordered) == (200, {"msg_id": "m", "targets": 2})
    assert await push(running_service, account, body | {"trace": "another", "unknown": {}}) == (
        200, {"msg_id": "m", "targets": 2})

    conflict = 409, native_error("conflict", "msg_id m is registered with other content")
    for change in ({"payload": {"message": "Hello"}}, {"kind": "message"}, {"channel": "fcm"}, {"vendor": "pushy"},
                   {"time_to_live": 60}, {"created_at": 1}, {"audience": {"device_ids": ["a"]}}, {"audience": "all"},
                   {"payload": None}):
        assert await push(running_service, account, body | change) == conflict, change
    assert await push(running_service, account, body) == (200, {"msg_id": "m", "targets": 2})


async def test_push_registered_at_once_by_many(running_service: Running, account: Account) -> None:
    """Of many who register one push at the same moment one is told 201, and all the same number."""

    body = {"msg_id": "m", "audience": {"device_ids": [f"device{number}" for number in range(100)]}}

    answers = await asyncio.gather(*(push(running_service, account, body) for _ in range(8)))

    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert [answer for _, answer in answers] == [{"msg_id": "m", "targets": 100}] * 8


async def test_different_pushes_of_one_id_at_once(running_service: Running, account: Account) -> None:
    """Of many who register one id for different pushes at the same moment one is told 201, and all others 409."""

    bodies = [{"msg_id": "m", "payload": number, "audience": {"device_ids": [f"device{number}"]}}
              for number in range(8)]

    answers = await asyncio.gather(*(push(running_service, account, body) for body in bodies))

    won = [number for number, (status, _) in enumerate(answers) if status == 201]
    assert len(won) == 1
    assert [answer for number, answer in enumerate(answers) if number != won[0]] == [
        (409, native_error("conflict", "msg_id m is registered with other content"))] * 7
    assert (await record(running_service, account, "m"))["payload"] == won[0]
    assert (await record(running_service, account, "m"))["pending_devices"] == [f"device{won[0]}"]


async def test_id_is_made_where_none_is_given(running_service: Running, account: Account) -> None:
    """A push without ``msg_id`` gets one of 24 hex digits, another each time; an integer is the string of its digits.
    """

    made = [await push(running_service, account, {"audience": "all"} | more) for more in ({}, {}, {"msg_id": None})]
    ids = [answer["msg_id"] for _, answer in made]

    assert made == [(201, {"msg_id": msg_id, "targets": 0}) for msg_id in ids]
    assert len(set(ids)) == 3 and all(re.fullmatch("[0-9a-f]{24}", msg_id) for msg_id in ids)
    for number in (7, 2**64 + 1):
        assert await push(running_service, account, {"msg_id": number, "audience": "all"}) == (
            201, {"msg_id": str(number), "targets": 0})
        assert await push(running_service, account, {"msg_id": str(number), "audience": "all"}) == (
            200, {"msg_id": str(number), "targets": 0})


async def test_push_to_everyone_counts_the_devices_there_are(running_service: Running, account: Account) -> None:
    """``"all"`` means every device of the app that is not deleted, at that moment."""

    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b", "c")))
    await running_service.call("DELETE", "/v1/devices/a", account)

    assert await push(running_service, account, {"msg_id": "m", "audience": "all"}) == (
        201, {"msg_id": "m", "targets": 2})

    await running_service.send(account, {"stage": "online", "device_id": "d"})
    assert await push(running_service, account, {"msg_id": "m", "audience": "all"}) == (
        200, {"msg_id": "m", "targets": 2})


async def test_targets_are_counted_by_platform(running_service: Running, account: Account) -> None:
    """A registered audience, listed or everyone, is the ``target`` of ``/v3/messages``, by each device's platform."""

    await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": f"{platform}{number}", "platform": platform}
        for platform, count in (("android", 3), ("ios", 2), ("winphone", 1)) for number in range(count)])
    await push(running_service, account, {"msg_id": "all", "audience": "all"})
    await push(running_service, account, {"msg_id": "list", "kind": "message", "audience": {
        "device_ids": ["android0", "ios0", "ios1", "apns-new", "stranger"]}})
    await running_service.applied()

    answer = await running_service.call("GET", "/v3/messages?msg_ids=all,list", account)

    assert answer.json == [
        {"android": {"received": None, "target": 3, "online_push": None, "click": None, "msg_click": None},
         "ios": {"apns_sent": None, "apns_target": 2, "apns_received": None, "click": None, "target": None,
                 "received": None},
         "winphone": {"mpns_target": 1, "mpns_sent": None, "click": None}, "msg_id": "all"},
        {"android": {"received": None, "target": 1, "online_push": None, "click": None, "msg_click": None},
         "ios": {"apns_sent": None, "apns_target": None, "apns_received": None, "click": None, "target": 3,
                 "received": None},
         "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}, "msg_id": "list"}]


async def test_times_of_a_push(running_service: Running, account: Account, clock: Clock) -> None:
    """Expiry is 30 days, ``time_to_live`` or ``expires_at``, from the schedule if there is one; milliseconds are
    recognised."""

    now = int(clock())
    given: dict[str, tuple[dict[str, Any], int, int]] = {
        "default": ({"created_at": now}, now, now + MONTH),
        "ttl": ({"created_at": now, "time_to_live": 60}, now, now + 60),
        "expiry": ({"created_at": now, "expires_at": now + 90}, now, now + 90),
        "milliseconds": ({"created_at": now * 1000, "expires_at": (now + 90) * 1000}, now, now + 90),
        "fraction": ({"created_at": now + 0.5, "time_to_live": 60}, now, now + 60),
        "past": ({"created_at": now - 100, "time_to_live": 200}, now - 100, now + 100),
        "year": ({"created_at": now, "time_to_live": 365 * 86400}, now, now + 365 * 86400),
        "due": ({"created_at": now - 100, "scheduled_at": now - 50, "time_to_live": 100}, now - 100, now + 50),
    }
    for msg_id, (more, *_) in given.items():
        assert await push(running_service, account, {"msg_id": msg_id, "audience": "all"} | more) == (
            201, {"msg_id": msg_id, "targets": 0})

    records = {msg_id: await record(running_service, account, msg_id) for msg_id in given}

    assert records == {msg_id: {"date": created, "payload": None, "expiration": expires, "pending_devices": []}
                       for msg_id, (_, created, expires) in given.items()}


async def test_every_fault_of_a_push(running_service: Running, account: Account) -> None:
    """What is wrong with a registration is named, and nothing is registered."""

    audience = 'audience: required: "all", or an object with one of device_ids, interests, users'
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    not_lists: list[Any] = [None, [], "a", {"a": 1}]
    not_audiences: list[Any] = [
        None, "", "everyone", [], ["a"], {}, {"tags": ["a"]}, {"device_ids": ["a"], "users": ["b"]}, True]
    faults: list[tuple[Any, str]] = [
        ([], "the body must be a JSON object"), (None, "the body must be a JSON object"),
        *(({"audience": value}, audience) for value in not_audiences),
        *(({"audience": {name: value}}, f"audience.{name}: must be an array of ids")
          for name in ("device_ids", "interests", "users") for value in not_lists),
        ({"audience": {"device_ids": ["a", ""]}}, "audience.device_ids: must not be empty"),
        ({"audience": {"device_ids": [None]}}, "audience.device_ids: required"),
        ({"audience": {"device_ids": [1.5]}}, "audience.device_ids: must be a string or an integer"),
        ({"audience": {"device_ids": ["x" * 257]}}, "audience.device_ids: at most 256 bytes"),
        ({"audience": {"device_ids": list(range(100_001))}}, "audience.device_ids: at most 100000"),
        ({"audience": {"interests": list(range(101))}}, "audience.interests: at most 100"),
        ({"audience": {"users": list(range(1001))}}, "audience.users: at most 1000"),
        *(({"msg_id": value}, f"msg_id: {problem}") for value, problem in (
            ("", "must not be empty"), (True, "must be a string or an integer"),
            (0.5, "must be a string or an integer"), ("x" * 257, "at most 256 bytes"))),
        *(({"vendor": value}, "vendor: must be a string of 1 to 64 characters") for value in ("", 1, "x" * 65)),
        ({"kind": "push"}, "kind: must be one of notification, message, inapp, live_activity"),
        *(({name: value}, f"{name}: must be a unix time in seconds") for name in ("created_at", "scheduled_at",
                                                                                  "expires_at")
          for value in ("now", True, -1, 10**17)),
        *(({"time_to_live": value}, "time_to_live: must be a number of seconds") for value in (-1, 1.5, "60", True)),
        ({"time_to_live": 365 * 86400 + 1}, "time_to_live: at most 365 days"),
        ({"expires_at": int(running_service.clock()) + 366 * 86400}, "time_to_live: at most 365 days"),
        ({"time_to_live": 60, "expires_at": 2_000_000_000}, "expires_at: give either expires_at or time_to_live"),
        ({"payload": deep}, "payload: nested too deeply"),
        ({"payload": deep, "msg_id": 10**30}, "payload: nested too deeply"),
    ]

    for fault, message in faults:
        body = {"msg_id": "m", "audience": "all"} | fault if isinstance(fault, dict) else fault
        assert await push(running_service, account, body) == (400, native_error("invalid_request", message)), message
    bad_channel = await push(running_service, account, {"msg_id": "m", "audience": "all", "channel": "pigeon"})
    not_json = await running_service.call("POST", "/v1/pushes", account, data=b"{")

    assert bad_channel[0] == 400
    assert bad_channel[1]["error"]["message"].startswith("channel: must be one of jg_android, xiaomi, ")
    assert (not_json.status, not_json.json) == (400, native_error("invalid_request", "the body is not valid JSON"))
    assert await push(running_service, account, {"msg_id": "m", "audience": "all"}) == (
        201, {"msg_id": "m", "targets": 0})


# -------------------------------------------------------------------------------------------------------------- targets
async def test_more_targets(running_service: Running, account: Account) -> None:
    """Device ids are added as an array or as lines, of strings, integers or objects; each counts once."""

    await push(running_service, account, {"msg_id": "m/1", "audience": {"device_ids": ["a"]}})
    added: list[tuple[object, str, int]] = [
        (["b", "a"], "", 2), (["b"], "", 2), ("c", "", 3), ([{"device_id": "d", "platform": "ios"}, 5], "", 5),
        (b'"e"\n"f"\n', "application/x-ndjson", 7), (b'{"device_id":"g"}\n{"device_id":"a"}', "", 8),
        (b"[18446744073709551617]", "", 9), (b"18446744073709551617\n18446744073709551618", "", 10)]

    answers = [await targets(running_service, account, "m/1", body, kind) for body, kind, _ in added]

    assert [(answer.status, answer.json) for answer in answers] == [
        (200, {"msg_id": "m/1", "targets": count}) for *_, count in added]
    assert await statuses(running_service, account, "m/1", "a", "e", "5", "18446744073709551617", "z") == {
        "a": 1, "e": 1, "5": 1, "18446744073709551617": 1, "z": 2}
    await running_service.applied()
    assert await statuses(running_service, account, "m/1", "a", "e", "5", "18446744073709551617", "z") == {
        "a": 1, "e": 1, "5": 1, "18446744073709551617": 1, "z": 2}


async def test_large_audiences_come_in_parts(running_service: Running, account: Account) -> None:
    """An audience may be larger than a request may have events; 100 000 ids at once are the limit."""

    device_ids = [f"device{number}" for number in range(24_000)]
    assert await push(running_service, account, {"msg_id": "m", "audience": {"device_ids": device_ids[:12_000]}}) == (
        201, {"msg_id": "m", "targets": 12_000})

    rest = await targets(running_service, account, "m", device_ids[11_000:])
    too_many = await targets(running_service, account, "m", ["m"] * 100_001)

    assert (rest.status, rest.json) == (200, {"msg_id": "m", "targets": 24_000})
    assert (too_many.status, too_many.json) == (
        413, native_error("too_large", "at most 100000 items a request, not 100001"))


async def test_targets_of_a_push_to_everyone(running_service: Running, account: Account) -> None:
    """Devices added to a push for everyone count on top, unless they were meant already."""

    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b")))
    await push(running_service, account, {"msg_id": "m", "audience": "all"})

    answer = await targets(running_service, account, "m", ["a", "late"])

    assert answer.json == {"msg_id": "m", "targets": 3}
    assert await statuses(running_service, account, "m", "a", "b", "late") == {"a": 1, "b": 1, "late": 1}


async def test_every_fault_of_targets(running_service: Running, account: Account) -> None:
    """An unknown push is 404, and one bad id refuses the request, naming it."""

    await push(running_service, account, {"msg_id": "m", "audience": {"device_ids": ["a"]}})
    await running_service.send(account, {"msg_id": "event only", "stage": "received", "device_id": "a"})
    faults: list[tuple[object, str]] = [
        (b"", "the body is not valid JSON"), ([], "device_ids: must be an array of ids"),
        (["b", ""], "device_ids: must not be empty"), (["b", None], "device_ids: required"),
        ([{"id": "b"}], "device_ids: required"), (["x" * 257], "device_ids: at most 256 bytes"),
        (["b", 1.5], "device_ids: must be a string or an integer"), (b'"b"\nc', "line 2: not valid JSON")]

    answers = [await targets(running_service, account, "m", body) for body, _ in faults]
    unknown = [await targets(running_service, account, msg_id, ["b"]) for msg_id in ("other", "event only")]

    assert [(answer.status, answer.json) for answer in answers] == [
        (400, native_error("invalid_request", message)) for _, message in faults]
    assert [(answer.status, answer.json) for answer in unknown] == [
        (404, native_error("not_found", f"msg_id {msg_id} is not registered; register it with POST /v1/pushes first"))
        for msg_id in ("other", "event only")]
    assert await statuses(running_service, account, "m", "a", "b") == {"a": 1, "b": 2}


# -------------------------------------------------------------------------------------------------------------- devices
async def test_every_form_of_registering_devices(running_service: Running, account: Account) -> None:
    """One object, an array and lines are taken, by whatever type; a device is known when the answer comes."""

    one = b'{"device_id":"%s","platform":"android","unknown":1}'
    bodies: list[tuple[str, bytes, int]] = [
        ("application/json", one % b"a", 1), ("application/json", b"[" + one % b"b" + b"," + one % b"c" + b"]", 2),
        ("application/x-ndjson", one % b"d" + b"\n\n" + one % b"e" + b"\n", 2),
        ("application/x-www-form-urlencoded", one % b"f" + b"\n" + one % b"g", 2),
        ("application/json", b'{"device_id":18446744073709551617,"platform":null,"user_id":null}', 1),
        ("application/json", b"[]", 0)]

    answers = [await running_service.call("POST", "/v1/devices", account, data=body, headers={"Content-Type": name})
               for name, body, _ in bodies]

    assert [(answer.status, answer.json) for answer in answers] == [
        (200, {"accepted": count, "rejected": 0, "errors": []}) for *_, count in bodies]
    known = [*"abcdefg", str(2**64 + 1)]
    assert await statuses(running_service, account, "m", *known, "z") == dict.fromkeys(known, 3) | {"z": 2}


async def test_every_fault_of_a_device(running_service: Running, account: Account) -> None:
    """Good devices are registered though others are bad; all bad is 400; each fault is named with its place."""

    faults: list[tuple[Any, str]] = [
        ("a", "device: must be a JSON object"), ({}, "device_id: required"),
        ({"device_id": ""}, "device_id: must not be empty"), ({"device_id": "x" * 257}, "device_id: at most 256 bytes"),
        ({"device_id": "b", "platform": "symbian"},
         "platform: must be one of unknown, android, ios, web, winphone, quickapp, hmos"),
        ({"device_id": "b", "user_id": ""}, "user_id: must not be empty"),
        ({"device_id": "b", "first_seen": "now"}, "first_seen: must be a unix time in seconds"),
        ({"device_id": "b", "first_seen": -1}, "first_seen: must be a unix time in seconds")]
    errors = [{"index": index, "message": message} for index, (_, message) in enumerate(faults)]
    bad = [item for item, _ in faults]

    some = await running_service.call("POST", "/v1/devices", account, json=[*bad, {"device_id": "good"}])
    none = await running_service.call("POST", "/v1/devices", account, json=bad)
    lines = await running_service.call("POST", "/v1/devices", account, data=b'x\n{"device_id":"good"}\n\n{}\ny',
                                       headers={"Content-Type": "application/x-ndjson"})
    many = await running_service.call("POST", "/v1/devices", account, json=[{}] * 10_001)

    assert (some.status, some.json) == (200, {"accepted": 1, "rejected": len(bad), "errors": errors})
    assert (none.status, none.json) == (400, {"error": {
        "code": "invalid_request", "message": errors[0]["message"], "rejected": len(bad), "errors": errors}})
    assert (lines.status, lines.json) == (200, {"accepted": 1, "rejected": 3, "errors": [
        {"index": 0, "message": "line 1: not valid JSON"}, {"index": 2, "message": "line 4: device_id: required"},
        {"index": 3, "message": "line 5: not valid JSON"}]})
    assert (many.status, many.json) == (
        413, native_error("too_large", "at most 10000 items a request, not 10001"))
    assert await statuses(running_service, account, "m", "good", "b") == {"good": 3, "b": 2}


async def test_what_a_registration_tells(running_service: Running, account: Account, clock: Clock) -> None:
    """``first_seen`` dates a device back, but never into the future; ``user_id`` names its user."""

    noon = at_noon(clock)
    now = int(clock())
    await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": "old", "platform": "ios", "user_id": "alice", "first_seen": now - 86400},
        {"device_id": "milliseconds", "platform": "ios", "user_id": 7, "first_seen": (now - 86400) * 1000},
        {"device_id": "future", "platform": "ios", "first_seen": now + 86400}, {"device_id": "new", "platform": "ios"}])
    await running_service.applied()

    today = noon.strftime("%Y-%m-%d")
    day = await running_service.call("GET", f"/v3/users?time_unit=DAY&start={today}&duration=2", account)
    rows = await running_service.service.clickhouse.query(
        "SELECT device_id, user_id FROM device_users INNER JOIN devices USING (app, number) ORDER BY device_id", {},
        label="test")

    assert day.json["items"][0] == {"time": today, "ios": {"new": 2, "online": 4}}
    assert "ios" not in day.json["items"][1]
    assert sorted({tuple(row) for row in rows}) == [("milliseconds", "7"), ("old", "alice")]


async def test_deleting_a_device(running_service: Running, account: Account) -> None:
    """A known device is erased, however often asked; an unknown one is 404; ids may hold any characters."""

    strange = "a/b c\u4e2d?"
    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", strange)))

    known = [await running_service.call("DELETE", f"/v1/devices/{quote(one, '')}", account)
             for one in ("a", "a", strange)]
    unknown = await running_service.call("DELETE", "/v1/devices/nobody", account)
    too_long = await running_service.call("DELETE", "/v1/devices/" + "x" * 257, account)

    assert [(answer.status, answer.json) for answer in known] == [
        (200, {"device_id": one, "deleted": True}) for one in ("a", "a", strange)]
    assert (unknown.status, unknown.json) == (404, native_error("not_found", "device nobody is not known"))
    assert (too_long.status, too_long.json) == (
        400, native_error("invalid_request", "device_id: at most 256 bytes"))
    assert await statuses(running_service, account, "m", "a", strange) == {"a": 2, strange: 2}


async def test_deleted_device_keeps_its_receipts_and_its_number(running_service: Running, account: Account) -> None:
    """A device's receipts count after its deletion, and once: it returns under the number it had."""

    receipt = {"msg_id": "m", "stage": "received", "device_id": "android0", "platform": "android"}
    counted = {"msg_id": "m"} | NOTHING_RECEIVED
    await running_service.send(account, *reached("m", "received", 3, "android"))

    await running_service.call("DELETE", "/v1/devices/android0", account)
    await running_service.applied()
    after_deletion = await running_service.call("GET", "/v3/received?msg_ids=m", account)
    await running_service.send(account, receipt)
    after_late_receipt = await running_service.call("GET", "/v3/received?msg_ids=m", account)
    status = await statuses(running_service, account, "m", "android0")
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "android0", "platform": "android"})
    await running_service.send(account, receipt, receipt | {"device_id": "android3"})
    after_return = await running_service.call("GET", "/v3/received?msg_ids=m", account)

    assert after_deletion.json == [counted | {"android_received": 3}]
    assert after_late_receipt.json == [counted | {"android_received": 3}]
    assert status == {"android0": 2}
    assert after_return.json == [counted | {"android_received": 4}]
    assert await statuses(running_service, account, "m", "android0") == {"android0": 0}
