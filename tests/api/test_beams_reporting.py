"""Beams Reporting API v2: what the vendor's three SDKs send, and the few answers that do not break them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import orjson

from reportsvc.storage.queries import Selection
from tests.api.helpers import raw
from tests.support.service import Account, Answer, Running

CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Pusher-Library",
        "Access-Control-Max-Age": "86400"}
STAGES = ("received", "display", "click")


def path(account: Account) -> str:
    """Where the app's devices report to."""
    return f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events"


def delivery(service: Running, **more: Any) -> dict[str, Any]:
    """A report with all it needs."""
    return {"event": "delivery", "publishId": "pubid-1", "deviceId": "fcm-1",
            "timestampSecs": int(service.clock())} | more


async def report(service: Running, account: Account, body: object, content_type: str = "application/json") -> Answer:
    """The answer to a report."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return await service.call("POST", path(account), data=data, headers={"Content-Type": content_type})


async def count(service: Running, account: Account, publish_id: str = "pubid-1") -> dict[str, int]:
    """How many devices reached each stage of a publish, without the stages that none reached."""
    await service.applied()
    counts = await service.service.queries.totals(
        account.app.id, [publish_id], [Selection(stage) for stage in STAGES], int(service.clock()), "test")
    return {stage: number for stage, number in zip(STAGES, counts.get(publish_id, ()), strict=False) if number}


def bad(description: str, title: str = "Bad request") -> tuple[int, dict[str, str]]:
    """A refusal."""
    return 400, {"error": title, "description": description}


# ---------------------------------------------------------------------------------------------------------------- SDKs
async def test_android_reports(running_service: Running, account: Account) -> None:
    """Android writes ``Delivery`` and ``Open``, names its instance, and leaves out what is null."""

    head = {"instanceId": account.app.beams_instance_id, "deviceId": "fcm-0c1f", "publishId": "pubid-1",
            "timestampSecs": int(running_service.clock())}
    delivered = {"event": "Delivery", **head, "appInBackground": False, "hasDisplayableContent": True, "hasData": False}
    opened = {"event": "Open", **head, "userId": "alice"}
    content_type = "application/json; charset=UTF-8"

    answers = [await report(running_service, account, body, content_type) for body in (delivered, opened)]

    assert [(answer.status, answer.body) for answer in answers] == [(200, b"")] * 2
    assert await count(running_service, account) == {"received": 1, "click": 1}
    funnel = await running_service.call("GET", "/v3/messages?msg_ids=pubid-1", account)
    assert funnel.json[0]["android"] == {"received": 1, "target": None, "online_push": None, "click": 1,
                                         "msg_click": None}


async def test_swift_reports(running_service: Running, account: Account) -> None:
    """Swift writes ``Delivery`` with three booleans and ``Open`` without; its devices are Apple's, over APNs."""

    head = {"instanceId": account.app.beams_instance_id, "publishId": "pubid-1", "deviceId": "apns-0c1f",
            "userId": "alice", "timestampSecs": int(running_service.clock())}
    delivered = {"event": "Delivery", **head, "appInBackground": True, "hasDisplayableContent": True, "hasData": True}

    for body in (delivered, {"event": "Open", **head}):
        assert (await report(running_service, account, body)).status == 200

    assert await count(running_service, account) == {"received": 1, "display": 1, "click": 1}
    received = await running_service.call("GET", "/v3/received?msg_ids=pubid-1", account)
    assert received.json == [{"msg_id": "pubid-1", "android_received": None, "ios_apns_sent": None,
                              "ios_apns_received": 1, "ios_msg_received": None, "wp_mpns_sent": None}]


async def test_web_reports(running_service: Running, account: Account) -> None:
    """The web worker writes lower case, a null ``userId``, and its booleans on ``open`` too."""

    def body(event: str) -> dict[str, Any]:
        return {"publishId": "pubid-1", "event": event, "deviceId": "web-0c1f", "userId": None,
                "timestampSecs": int(running_service.clock()), "appInBackground": True, "hasDisplayableContent": True,
                "hasData": False}

    assert (await report(running_service, account, body("open"))).status == 200
    assert await count(running_service, account) == {"click": 1}
    assert (await report(running_service, account, body("delivery"))).status == 200
    assert await count(running_service, account) == {"received": 1, "display": 1, "click": 1}


async def test_display_takes_both_booleans(running_service: Running, account: Account) -> None:
    """Only a delivery in the background, with something to show, was displayed; anything but ``true`` is not true."""

    values: list[dict[str, Any]] = [
        {}, {"appInBackground": True}, {"hasDisplayableContent": True},
        {"appInBackground": True, "hasDisplayableContent": False}, {"appInBackground": False,
                                                                    "hasDisplayableContent": True},
        {"appInBackground": "true", "hasDisplayableContent": 1}, {"appInBackground": None,
                                                                  "hasDisplayableContent": None}]
    for number, flags in enumerate(values):
        answer = await report(running_service, account, delivery(running_service, deviceId=f"fcm-{number}", **flags))
        assert answer.status == 200
    assert await count(running_service, account) == {"received": len(values)}

    await report(running_service, account, delivery(running_service, deviceId="fcm-0", appInBackground=True,
                                                    hasDisplayableContent=True))
    assert await count(running_service, account) == {"received": len(values), "display": 1}


async def test_reports_that_come_twice_count_once(running_service: Running, account: Account) -> None:
    """SDKs retry after a lost answer, with other seconds and letter case at worst; each device counts once."""

    now = int(running_service.clock())
    for body in (delivery(running_service), delivery(running_service), delivery(running_service, event="DELIVERY"),
                 delivery(running_service, timestampSecs=now - 4000), delivery(running_service, event="oPEN"),
                 delivery(running_service, event="Open", timestampSecs=now - 10),
                 delivery(running_service, deviceId="fcm-2")):
        assert (await report(running_service, account, body)).status == 200

    assert await count(running_service, account) == {"received": 2, "click": 1}


async def test_any_time_is_taken(running_service: Running, account: Account) -> None:
    """A device with a wrong clock, or one that reports fractions or milliseconds, still counts."""

    now = int(running_service.clock())
    times = [0, -1, now + 10**6, now - 10**8, now * 1000, now + 0.5, 10**18, 10**30, 1e300]
    for number, time in enumerate(times):
        answer = await report(running_service, account,
                              orjson.dumps(delivery(running_service, deviceId=f"fcm-{number}")).replace(
                                  b'"timestampSecs":%d' % now, b'"timestampSecs":%s' % str(time).encode()))
        assert answer.status == 200, time

    assert await count(running_service, account) == {"received": len(times)}


async def test_user_of_a_report_is_remembered(running_service: Running, account: Account) -> None:
    """A ``userId`` of up to 164 characters is the device's user; what cannot be one is left out, and the event counts.
    """

    longest = "\u00e9" * 164
    users = {"fcm-1": "alice", "fcm-2": longest, "fcm-3": longest + "x", "fcm-4": "", "fcm-5": 5, "fcm-6": None}
    for device_id, user in users.items():
        answer = await report(running_service, account, delivery(running_service, deviceId=device_id, userId=user))
        assert answer.status == 200

    assert await count(running_service, account) == {"received": len(users)}
    rows = await running_service.service.clickhouse.query(
        "SELECT device_id, user_id FROM device_users INNER JOIN devices USING (app, number) ORDER BY device_id", {},
        label="test")
    assert [tuple(row) for row in rows] == [("fcm-1", "alice"), ("fcm-2", longest)]


async def test_content_types_of_json(running_service: Running, account: Account) -> None:
    """JSON is JSON with any charset, in any letter case, also with one that is malformed."""

    types = ["application/json", "application/json; charset=utf-8", "application/json;charset:utf-8",
             "Application/JSON", "application/vnd.pusher+json"]

    answers = [await report(running_service, account, delivery(running_service), name) for name in types]

    assert [answer.status for answer in answers] == [200] * len(types)


async def test_instance_id_has_no_letter_case(running_service: Running, account: Account) -> None:
    """A UUID in capitals is the same instance, and extra slashes do not matter."""

    upper = f"/reporting_api//v2/instances/{account.app.beams_instance_id.upper()}/events/"

    answer = await running_service.call("POST", upper, json=delivery(running_service))

    assert answer.status == 200
    assert await count(running_service, account) == {"received": 1}


# -------------------------------------------------------------------------------------------------------------- errors
async def test_every_error_of_the_vendors_tables(running_service: Running, account: Account) -> None:
    """Each row of the published tables, for deliveries and opens alike: the title and the description, without its
    final full stop."""

    for event in ("delivery", "open"):
        whole = delivery(running_service, event=event)
        invalid = ("The instance id given is invalid. It is expected to be in this format: "
                   "426abfc7-41fe-492f-bcf1-27586fa9bd3f")
        answers = [
            await report(running_service, account, whole, "text/plain"),
            await running_service.call("POST", "/reporting_api/v2/instances/events", json=whole),
            await running_service.call("POST", "/reporting_api/v2/instances//events", json=whole),
            await running_service.call("POST", "/reporting_api/v2/instances/not-a-uuid/events", json=whole),
            await report(running_service, account, b"not json"),
            *[await report(running_service, account, {key: value for key, value in whole.items() if key != name})
              for name in ("event", "publishId", "deviceId", "timestampSecs")]]

        assert [(answer.status, answer.json) for answer in answers] == [
            bad("Only `application/json` is supported", "Invalid content type"),
            bad("`instance-id` param is missing from path", "Incomplete Request"),
            bad("`instance-id` param is missing from path", "Incomplete Request"),
            bad(invalid), bad("Failed to read body as a JSON object"), bad("`event` is missing from body"),
            bad("`publishId` is missing from body"), bad("`deviceId` is missing from body"),
            bad("`timestampSecs` is missing from body")]


async def test_null_and_empty_are_missing(running_service: Running, account: Account) -> None:
    """Android sends empty ids and the web worker a null device when they lost them; both are missing."""

    for name in ("event", "publishId", "deviceId", "timestampSecs"):
        for nothing in (None, ""):
            answer = await report(running_service, account, delivery(running_service, **{name: nothing}))
            assert (answer.status, answer.json) == bad(f"`{name}` is missing from body")


async def test_other_bad_bodies(running_service: Running, account: Account) -> None:
    """What else can be wrong with a body is a 400 that names it, and never anything worse."""

    not_an_object = bad("Failed to read body as a JSON object")
    expected = {
        b"": not_an_object, b"[]": not_an_object, b"null": not_an_object, b'"delivery"': not_an_object,
        b"\xff\xfe": not_an_object, b'{"event":"delivery"': not_an_object, b'{"timestampSecs":NaN}': not_an_object,
        b'{"timestampSecs":1e400}': not_an_object, b"[" * 100_000: not_an_object,
        orjson.dumps(delivery(running_service, event="dismiss")): bad("`event` must be `delivery` or `open`"),
        orjson.dumps(delivery(running_service, event=["delivery"])): bad("`event` must be `delivery` or `open`"),
        orjson.dumps(delivery(running_service, event=1)): bad("`event` must be `delivery` or `open`"),
        orjson.dumps(delivery(running_service, publishId={})): bad("`publishId` must be a string"),
        orjson.dumps(delivery(running_service, publishId=True)): bad("`publishId` must be a string"),
        orjson.dumps(delivery(running_service, deviceId=1.5)): bad("`deviceId` must be a string"),
        orjson.dumps(delivery(running_service, publishId="x" * 257)): bad("`publishId` is longer than 256 bytes"),
        orjson.dumps(delivery(running_service, deviceId="\u00e9" * 129)): bad("`deviceId` is longer than 256 bytes"),
        orjson.dumps(delivery(running_service, timestampSecs="now")): bad("`timestampSecs` must be an integer"),
        orjson.dumps(delivery(running_service, timestampSecs=True)): bad("`timestampSecs` must be an integer"),
        orjson.dumps(delivery(running_service, timestampSecs=[1])): bad("`timestampSecs` must be an integer"),
    }

    answers = {body: await report(running_service, account, body) for body in expected}

    assert {body: (answer.status, answer.json) for body, answer in answers.items()} == expected
    assert await count(running_service, account) == {}


async def test_devices_never_see_a_status_that_breaks_them(running_service: Running, account: Account) -> None:
    """No way of sending a report is a 404, 401, 413, 417, 429 or 431: SDKs re-register, drop the event or stop for
    ever."""

    event = orjson.dumps(delivery(running_service))
    large = orjson.dumps(delivery(running_service, hasData="x" * (16 * 1024 * 1024)))
    kind = {"Content-Type": "application/json"}
    unknown = "/reporting_api/v2/instances/426abfc7-41fe-492f-bcf1-27586fa9bd3f/events"
    head = f"POST {path(account)} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"

    answers = [
        await running_service.call("POST", unknown, data=event, headers=kind),
        await running_service.call("POST", path(account), data=BytesIO(large), headers=kind),
        await running_service.call("POST", path(account), data=event, headers=kind | {"Content-Encoding": "gzip"}),
        await running_service.call("POST", path(account)),
        await raw(running_service, head.encode() + b"Expect: miracles\r\nContent-Length: 0\r\n\r\n"),
        await raw(running_service, head.encode() + b"Cookie: " + b"x" * 17_000 + b"\r\n\r\n"),
        await raw(running_service, head.replace(" HTTP", "?" + "x" * 140_000 + " HTTP", 1).encode() + b"\r\n"),
    ]

    assert [(answer.status, answer.json) for answer in answers] == [
        bad("Could not find the instance"), bad("the body is over 16777216 bytes"),
        bad("the body cannot be read; check Content-Encoding and Content-Length"),
        bad("Only `application/json` is supported", "Invalid content type"),
        bad("Expect: only 100-continue is supported"),
        bad("a header is over 16384 bytes"), bad("the request line is over 131072 bytes")]


async def test_credentials_are_not_looked_at(running_service: Running, account: Account) -> None:
    """The API is public: wrong credentials do not make a report fail."""

    answer = await running_service.call("POST", path(account), json=delivery(running_service),
                                        headers={"Authorization": "Basic bm86bm8="})

    assert answer.status == 200


# ----------------------------------------------------------------------------------------------------------------- CORS
async def test_any_page_may_report(running_service: Running, account: Account) -> None:
    """The preflight is answered, and every answer, the errors included, may be read by the page that asked."""

    origin = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "content-type"}

    preflight = await running_service.call("OPTIONS", path(account), headers=origin)
    answers = [
        preflight,
        await report(running_service, account, delivery(running_service)),
        await report(running_service, account, b"not json"),
        await running_service.call("POST", "/reporting_api/v2/instances/events"),
        await running_service.call("POST", "/reporting_api/v2/instances/nobody/events"),
        await running_service.call("GET", path(account)),
        await running_service.call("GET", "/reporting_api/v2/elsewhere"),
    ]

    assert (preflight.status, preflight.body) == (204, b"")
    assert [answer.status for answer in answers] == [204, 200, 400, 400, 400, 405, 404]
    assert [{name: answer.headers.get(name) for name in CORS} for answer in answers] == [CORS] * len(answers)


async def test_framework_errors_have_the_vendors_shape(running_service: Running, account: Account) -> None:
    """Other paths and methods answer ``error`` and ``description``."""

    wrong = await running_service.call("GET", path(account))
    missing = await running_service.call("GET", "/reporting_api/v2/elsewhere")

    assert (wrong.status, wrong.json, wrong.headers["Allow"]) == (
        405, {"error": "Method not allowed", "description": "Method Not Allowed"}, "OPTIONS,POST")
    assert (missing.status, missing.json) == (
        404, {"error": "Not found", "description": "there is nothing at this path"})


async def test_instances_are_apart(running_service: Running, account: Account) -> None:
    """A report counts in the app that owns the instance, and in no other, whatever its body says."""

    other = await running_service.make_account("other")

    await report(running_service, other, delivery(running_service, instanceId=account.app.beams_instance_id))

    assert await count(running_service, account) == {}
    assert await count(running_service, other) == {"received": 1}
