"""Each error of the document is the answer to a call, to the letter."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from urllib.parse import quote

import jwt
import orjson
import pytest

from reportsvc.api import native
from reportsvc.api.events import MAX_EVENTS
from reportsvc.api.openapi.document import SECTIONS
from reportsvc.api.openapi.operation import BODY, EVERYWHERE, Failure, answered
from reportsvc.config import Config
from reportsvc.errors import RateLimited, StoreUnavailable
from reportsvc.storage.redis import apps_key
from tests.support.openapi import check_answer, document
from tests.support.service import Account, Answer, Clock, Running, running

#: Those of every path, of bodies that are no bodies, and of stores that are away, have tests of their own: in
#: test_native_events, test_rate_limit and test_failures, and in tests/faults.
ELSEWHERE: Final[tuple[Failure, ...]] = (*EVERYWHERE, *BODY, RateLimited(1), *(
    StoreUnavailable(store) for store in ("redis", "clickhouse", "journal")))
UNKNOWN: Final = "00000000-0000-4000-8000-000000000000"
EVENT: Final[dict[str, Any]] = {"event": "delivery", "publishId": "m", "deviceId": "fcm-1", "timestampSecs": 1700000000}
OPERATIONS: Final = {operation["operationId"]: (path, method, operation)
                     for path, methods in document()["paths"].items() for method, operation in methods.items()}


@dataclass
class World:
    """A service with something in it."""

    service: Running
    account: Account
    accounts: Mapping[str | None, Account | None]
    device: str
    #: The parts of paths, unless a call has others.
    parts: Mapping[str, str]

    def token(self, **claims: Any) -> str:
        """A user's token; None takes a claim away."""
        app, now = self.account.app, int(self.service.clock())
        given = {"iss": f"https://{app.beams_instance_id}.pushnotifications.pusher.com", "sub": "alice",
                 "exp": now + 600} | claims
        return jwt.encode({name: value for name, value in given.items() if value is not None},
                          app.beams_secret_key, "HS256")

    def bearer(self, **claims: Any) -> dict[str, str]:
        """The header with a user's token."""
        return {"Authorization": f"Bearer {self.token(**claims)}"}


#: What a call has beside its operation: parts of the path (``path``), ``query``, ``json``, ``data``, ``headers``, who
#: calls (``account``), or another path altogether (``at``).
Call = dict[str, Any]


def native_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Calls of ``/v1`` that are refused."""
    for name in ("postEvents", "postPush", "postTargets", "postDevices"):
        yield name, {"data": b"{"}
    yield "postEvents", {"json": {"msg_id": "m", "device_id": "d", "stage": "seen"}}
    yield "postDevices", {"json": {}}
    for name in ("postEvents", "postDevices"):
        yield name, {"json": [1] * (MAX_EVENTS + 1)}
    everyone: Call = {"audience": "all"}
    pushes: list[Any] = [
        [], {"msg_id": "", **everyone}, {}, {"audience": {"device_ids": []}}, {"audience": {"interests": ["a b"]}},
        {"audience": {"device_ids": ["d"] * (native.MAX_AUDIENCE_DEVICES + 1)}},
        {"audience": {"interests": ["i"] * (native.MAX_AUDIENCE_INTERESTS + 1)}},
        {"audience": {"users": ["u"] * (native.MAX_AUDIENCE_USERS + 1)}}, everyone | {"created_at": "now"},
        everyone | {"time_to_live": -1}, everyone | {"time_to_live": native.MAX_TIME_TO_LIVE + 1},
        everyone | {"time_to_live": 1, "expires_at": 1}, everyone | {"vendor": ""}, everyone | {"kind": "sms"},
        everyone | {"channel": "pigeon"}, everyone | {"msg_id": "1613113584", "payload": "other"}]
    for push in pushes:
        yield "postPush", {"json": push}
    for targets in ([], [True], ["d"] * (native.MAX_AUDIENCE_DEVICES + 1)):
        yield "postTargets", {"json": targets}
    yield "postTargets", {"json": ["d"], "account": "other"}
    for name, part in (("deleteDevice", "device_id"), ("getMessage", "msg_id"), ("getTimeline", "msg_id")):
        yield name, {"path": {part: "x" * 257}}
    yield "deleteDevice", {"path": {"device_id": "02078f0f1b8"}}
    for name in ("getMessage", "getTimeline"):
        yield name, {"account": "other"}
    for query in ("limit=0", "before=?"):
        yield "getMessages", {"query": query}
    for query in ("interval=week", "platform=symbian"):
        yield "getTimeline", {"query": query}


def jpush_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Calls of ``/v3`` that are refused."""
    for suffix in ("", "Report"):
        for name in (f"jpushReceived{suffix}", f"jpushMessages{suffix}"):
            for query in ("", "msg_ids=,", "msg_ids=" + "1," * 101, "msg_ids=" + "1" * 257):
                yield name, {"query": query}
        yield f"jpushMessages{suffix}", {"query": "msg_ids=1", "account": "not vip"}
        yield f"jpushUsers{suffix}", {"query": "time_unit=DAY&start=2014-06-10&duration=3", "account": "not vip"}
        for query in ("time_unit=WEEK", "time_unit=DAY", "time_unit=DAY&start=2014-06-10&duration=61",
                      "time_unit=DAY&start=2014-06&duration=3", "time_unit=DAY&start=2014-01-10&duration=3"):
            yield f"jpushUsers{suffix}", {"query": query}
        good: Call = {"msg_id": 1, "registration_ids": ["a"]}
        bad: list[Call] = [
            {"msg_id": None}, {"msg_id": True}, {"msg_id": ""}, {"registration_ids": None},
            {"registration_ids": ["a"] * 1001}, {"registration_ids": [{}]}, {"date": "10.6.2014"},
            {"date": "2999-01-01"}]
        for changes in bad:
            yield f"jpushStatusMessage{suffix}", {"json": good | changes}
        for data in (b"[]", b"{"):
            yield f"jpushStatusMessage{suffix}", {"data": data}


def pushy_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Calls of ``/pushes`` that are refused."""
    key = {"query": f"api_key={world.account.pushy_api_key}"}
    yield "pushyNotificationStatus", key | {"path": {"push_id": "unknown"}}
    yield "pushyNotificationStatus", key | {"path": {"push_id": "scheduled"}}
    yield "pushyNotificationStatus", {"query": "api_key=wrong"}


def reporting_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Reports of events that are refused."""
    name = "beamsReportEvent"
    yield name, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}
    yield name, {"at": "/reporting_api/v2/instances//events", "json": EVENT}
    for instance in ("no-uuid", UNKNOWN):
        yield name, {"path": {"instance_id": instance}, "json": EVENT}
    yield name, {"json": []}
    bad: list[Call] = [{"event": None}, {"publishId": ""}, {"deviceId": None}, {"timestampSecs": None},
                       {"event": "shown"}, {"publishId": []}, {"deviceId": "d" * 257}, {"timestampSecs": "now"}]
    for changes in bad:
        yield name, {"json": EVENT | changes}


_INSTANCES: Final = "/device_api/v1/instances"
#: What a good call of each operation about a device has, and the rest of its path.
DEVICE_CALLS: Final[dict[str, tuple[str, Call]]] = {
    "beamsGetDevice": ("", {}), "beamsDeleteDevice": ("", {}), "beamsSetMetadata": ("/metadata", {"json": {}}),
    "beamsSetToken": ("/token", {"json": {"token": "t"}}), "beamsSetUser": ("/user", {}),
    "beamsGetInterests": ("/interests", {}), "beamsSetInterests": ("/interests", {"json": {"interests": []}}),
    "beamsAddInterest": ("/interests/a", {}), "beamsRemoveInterest": ("/interests/a", {}),
}


def device_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Calls of devices that are refused."""
    instance = world.account.app.beams_instance_id
    for name, (rest, good) in DEVICE_CALLS.items():
        yield name, good | {"at": f"{_INSTANCES}//devices/fcm/{world.device}{rest}"}
        yield name, good | {"at": f"{_INSTANCES}/{instance}/devices/fcm/{rest}"}
        yield name, good | {"path": {"instance_id": "no-uuid"}}
        yield name, good | {"path": {"platform": "pigeon"}}
        if name != "beamsDeleteDevice":
            token = {"headers": world.bearer()} if name == "beamsSetUser" else {}
            yield name, good | {"path": {"instance_id": UNKNOWN}}
            yield name, good | token | {"path": {"device_id": "fcm-unknown"}}
        if name in ("beamsAddInterest", "beamsRemoveInterest", "beamsSetUser"):
            yield name, good | {"path": {"device_id": "a.b"}}
    yield "beamsRegisterDevice", {"at": f"{_INSTANCES}//devices/fcm", "json": {"token": "t"}}
    for parts in ({"instance_id": "no-uuid"}, {"instance_id": UNKNOWN}, {"platform": "pigeon"}):
        yield "beamsRegisterDevice", {"path": parts, "json": {"token": "t"}}
    for name in ("beamsRegisterDevice", "beamsSetMetadata", "beamsSetToken"):
        yield name, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}
    for name in ("beamsRegisterDevice", "beamsSetMetadata", "beamsSetToken", "beamsSetInterests"):
        yield name, {"json": []}
    for name in ("beamsRegisterDevice", "beamsSetToken"):
        for gateway in ("apns", "fcm", "web"):
            parts = {"platform": gateway, "device_id": f"{gateway}-1"}
            yield name, {"path": parts, "json": {}}
            yield name, {"path": parts, "json": {"token": "t" * 5000}}
    yield "beamsRegisterDevice", {"path": {"platform": "apns"}, "json": {"token": "t"}}
    yield "beamsGetInterests", {"query": "limit=0"}
    yield "beamsGetInterests", {"query": "cursor=?"}
    yield "beamsSetInterests", {"json": {"interests": ["a b"]}}
    yield "beamsSetInterests", {"json": {"interests": [f"i{number}" for number in range(5001)]}}
    for name in ("beamsAddInterest", "beamsRemoveInterest"):
        yield name, {"path": {"interest": "a b"}}
        yield name, {"at": f"{_INSTANCES}/{instance}/devices/fcm/{world.device}/interests/"}
    yield "beamsAddInterest", {"path": {"device_id": "full"}}
    yield "beamsWebVapidPublicKey", {"at": f"{_INSTANCES}//web-vapid-public-key"}
    for instance_id in ("no-uuid", UNKNOWN, "keyless"):
        yield "beamsWebVapidPublicKey", {"path": {"instance_id": instance_id}}


def user_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Users who may not sign in, and who may not be deleted."""
    now = int(world.service.clock())
    for claims in ({"exp": None}, {"sub": None}, {"sub": "s" * 165}, {"iss": None}, {"iss": "https://example.com"},
                   {"exp": now - 60}, {"iat": now + 600}, {"nbf": now + 600}, {"sub": "bob"}, {"sub": "crowd"}):
        yield "beamsSetUser", {"headers": world.bearer(**claims)}
    good = world.token()
    for header in ("", "Bearer no-token", f"Bearer {good[:-4]}AAAA",
                   "Bearer " + jwt.encode({"sub": "alice"}, "s" * 64, "HS512")):
        yield "beamsSetUser", {"headers": {"Authorization": header}}
    secret = {"Authorization": f"Bearer {world.account.app.beams_secret_key}"}
    for name in ("beamsDeleteUser", "beamsDeleteUserUserApi"):
        yield name, {}
        yield name, {"headers": {"Authorization": "Bearer wrong"}}
        yield name, {"headers": secret, "path": {"user_id": "u" * 165}}
        yield name, {"headers": secret, "path": {"instance_id": UNKNOWN}}


def beams_calls(world: World) -> Iterator[tuple[str, Call]]:
    """Calls of devices and servers that are refused."""
    yield from device_calls(world)
    yield from user_calls(world)


# tags -> calls of all their operations
GROUPS: Final[dict[tuple[str, ...], Callable[[World], Iterator[tuple[str, Call]]]]] = {
    ("Native",): native_calls, ("JPush Report",): jpush_calls, ("Pushy",): pushy_calls,
    ("Beams Reporting",): reporting_calls, ("Beams Device", "Beams Servers"): beams_calls,
}


def documented(name: str) -> list[tuple[int, Any]]:
    """The errors of an operation, without those that have tests elsewhere."""
    operation = OPERATIONS[name][2]
    dialect = next(section.dialect for section in SECTIONS if section.tag == operation["tags"][0])
    elsewhere = [(response.status, body) for response, body in (answered(dialect, failure) for failure in ELSEWHERE)]
    found = [(int(status), example["value"]) for status, response in operation["responses"].items()
             for example in response.get("content", {}).get("application/json", {}).get("examples", {}).values()]
    return [one for one in found if one[0] >= 400 and one not in elsewhere]


@pytest.fixture
async def world(config: Config, clock: Clock, database: str) -> AsyncIterator[World]:
    """A service with a push, a scheduled one, and devices."""
    async with running(replace(config, rate_limit=0), clock, database) as service:
        account = await service.make_account()
        accounts = {"": account, "other": await service.make_account("other"),
                    "not vip": await service.make_account("not vip", vip=False), None: None}
        instance = account.app.beams_instance_id
        devices = f"/device_api/v1/instances/{instance}/devices/fcm"
        device = (await service.call("POST", devices, json={"token": "t"})).json["id"]
        parts = {"instance_id": instance, "platform": "fcm", "device_id": device, "interest": "a",
                 "msg_id": "1613113584", "push_id": "1613113584", "user_id": "alice"}
        world = World(service, account, accounts, device, parts)
        for push in ({"msg_id": "1613113584"}, {"msg_id": "scheduled", "scheduled_at": int(clock()) + 3600}):
            await service.call("POST", "/v1/pushes", account, json=push | {"audience": "all"})
        await service.call("PUT", f"{devices}/{device}/user", headers=world.bearer())
        yield world


async def prepared(world: World, call: Call) -> Call:
    """*call* with what it needs to be there first."""
    service, app = world.service, world.account.app
    devices = f"/device_api/v1/instances/{app.beams_instance_id}/devices/fcm"
    parts = dict(call.get("path", {}))
    if parts.get("device_id") == "full":
        parts["device_id"] = (await service.call("POST", devices, json={"token": "full"})).json["id"]
        names = {"interests": [f"i{number}" for number in range(5000)]}
        assert (await service.call("PUT", f"{devices}/{parts['device_id']}/interests", json=names)).status == 200
    if parts.get("instance_id") == "keyless":
        old = (await service.make_account("keyless")).app
        record = orjson.dumps(asdict(old) | {"vapid_private_key": ""})
        await service.service.redis.run([("HSET", apps_key(), old.id, record), ("HINCRBY", apps_key(), "v", 1)])
        await service.service.apps.refresh()
        parts["instance_id"] = old.beams_instance_id
    if "crowd" in str(jwt_subject(call)):
        for number in range(100):
            one = (await service.call("POST", devices, json={"token": f"crowd{number}"})).json["id"]
            await service.call("PUT", f"{devices}/{one}/user", headers=call["headers"])
        parts["device_id"] = (await service.call("POST", devices, json={"token": "crowd"})).json["id"]
    return call | {"path": parts}


def jwt_subject(call: Call) -> Any:
    """The user in a call's token, if there is one."""
    header = call.get("headers", {}).get("Authorization", "")
    try:
        return jwt.decode(header.partition(" ")[2], options={"verify_signature": False}).get("sub")
    except jwt.PyJWTError:
        return None


async def send(world: World, name: str, call: Call) -> Answer:
    """Make a call."""
    path, method, operation = OPERATIONS[name]
    call = await prepared(world, call)
    for part, value in (world.parts | call["path"]).items():
        path = path.replace(f"{{{part}}}", quote(value, safe=""))
    path = call.get("at", path) + (f"?{call['query']}" if call.get("query") else "")
    account = world.accounts[call.get("account", "")] if {"basic": []} in operation["security"] else None
    options = {option: call[option] for option in ("json", "data", "headers") if option in call}
    answer = await world.service.call(method.upper(), path, account, **options)
    check_answer(method, path, answer)
    return answer


@pytest.mark.parametrize("tags", GROUPS, ids=" and ".join)
async def test_every_error_is_answered_as_documented(world: World, tags: tuple[str, ...]) -> None:
    """For each error in the document there is a call that is answered with it: status and whole body."""

    told: dict[str, list[list[Any]]] = {}
    for name, call in [*GROUPS[tags](world)]:
        answer = await send(world, name, call)
        told.setdefault(name, []).append([answer.status, answer.json if answer.body else None])
    for name in [*told]:
        if {"basic": []} in OPERATIONS[name][2]["security"]:
            answer = await send(world, name, {"account": None})
            told[name].append([answer.status, answer.json])

    today = time.strftime("%Y-%m-%d", time.gmtime(world.service.clock()))
    told = orjson.loads(orjson.dumps(told).replace(b"look like " + today.encode(), b"look like 2014-06-12"))
    assert {name: [one for one in documented(name) if [*one] not in answers]
            for name, answers in told.items()} == dict.fromkeys(told, [])
    assert set(told) == {name for name, (_, _, operation) in OPERATIONS.items()
                         if operation["tags"][0] in tags and documented(name)}


def test_every_tag_has_calls() -> None:
    """No part of the document is forgotten above, but for what has two errors only, which have tests of their own."""

    assert {tag["name"] for tag in document()["tags"]} - {tag for tags in GROUPS for tag in tags} == {"Operations"}
