"""Every path, with another app's valid keys: it answers as if the first app had nothing, and moves nothing of it.

The table below has a call for every route. Two strangers make all of them, with the ids that the owner of the data uses
too: one before there is any data, one after. If they are answered alike, the path tells nothing of another app; if both
stores have the same of the owner before and after, it moves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jwt
import orjson
import pytest
from aiohttp.web_routedef import RouteDef

from reportsvc.api import beams, beams_device, beams_reporting, dashboard, operations
from reportsvc.api.openapi import handlers
from reportsvc.api.routes import ROUTES
from reportsvc.registry.apps import AppStore
from reportsvc.storage.redis import app_keys_pattern
from tests.support.service import Account, Answer, Running, eventually

#: Handlers that look at no app's data; they are called as well.
WITHOUT_DATA: Final = {
    beams.preflight, beams_reporting.missing_instance, beams_device.missing_instance, beams_device.missing_device,
    beams_device.missing_interest, dashboard.page, dashboard.file, operations.healthz, operations.readyz,
    operations.metrics, handlers.openapi_json, handlers.docs,
}


@dataclass(frozen=True)
class Ids:
    """What is in the paths: the stranger's own instance and key, and a device of the owner's."""

    stranger: Account
    device: str
    now: int

    def path(self, template: str) -> str:
        """*template* with everything filled in."""
        values = {"instance_id": self.stranger.app.beams_instance_id, "device_id": self.device, "platform": "fcm",
                  "interest": "news", "user_id": "alice", "push_id": "m", "msg_id": "m", "rest": "",
                  "version": "1", "name": "main.js"}
        path = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], without_patterns(template))
        path = path.replace("/v1/devices/" + self.device, "/v1/devices/d1")
        return path + (f"?api_key={self.stranger.pushy_api_key}" if path.startswith("/pushes") else
                       "?msg_ids=m,n" if path.endswith(("/received", "/messages")) else
                       f"?time_unit=MONTH&start={_month(self.now)}&duration=1" if path.endswith("/users") else "")

    def token(self) -> str:
        """Lets alice sign in on a device of the stranger's instance."""
        app = self.stranger.app
        return jwt.encode({"iss": f"https://{app.beams_instance_id}.pushnotifications.pusher.com", "sub": "alice",
                           "exp": self.now + 600}, app.beams_secret_key, "HS256")


def _month(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


_DEVICE: Final = "/device_api/v1/instances/{instance_id}/devices/{platform}"
_ONE: Final = f"{_DEVICE}/{{device_id}}"
_STATUS: Final = {"msg_id": "m", "registration_ids": ["d1", "d2", "d9"]}
_EVENT: Final = {"msg_id": "m", "stage": "received", "device_id": "d1", "platform": "ios"}
_TOLD: Final = {"publishId": "m", "event": "open", "deviceId": "d1", "timestampSecs": 0}
BASIC: Final = "basic"
NONE: Final = "none"
#: With these words after ``Bearer``.
USER: Final = "user"
SERVER: Final = "server"

# route -> (who calls, body); in the order in which they are called: readers first, then what changes something
CASES: Final[dict[str, tuple[str, Any]]] = {
    **{f"{method} {prefix}/{name}": (BASIC, body) for prefix in ("/v3", "/v3/report") for method, name, body in (
        ("GET", "received", None), ("GET", "messages", None), ("GET", "users", None),
        ("POST", "status/message", _STATUS))},
    "GET /v1/messages": (BASIC, None),
    "GET /v1/messages/{msg_id}": (BASIC, None),
    "GET /v1/messages/{msg_id}/timeline": (BASIC, None),
    "GET /pushes/{push_id}": (NONE, None),
    "GET /device_api/v1/instances/{instance_id}/web-vapid-public-key": (NONE, None),
    f"GET {_ONE}": (NONE, None),
    f"GET {_ONE}/interests": (NONE, None),
    f"PUT {_ONE}/metadata": (NONE, {"sdkVersion": "9.9.9"}),
    f"PUT {_ONE}/token": (NONE, {"token": "t2"}),
    f"PUT {_ONE}/interests": (NONE, {"interests": ["other"]}),
    f"POST {_ONE}/interests/{{interest}}": (NONE, None),
    f"DELETE {_ONE}/interests/{{interest}}": (NONE, None),
    f"PUT {_ONE}/user": (USER, None),
    f"DELETE {_ONE}": (NONE, None),
    "DELETE /v1/devices/{device_id}": (BASIC, None),
    "POST /v1/pushes/{msg_id}/targets": (BASIC, ["d1", "d9"]),
    "DELETE /customer_api/v1/instances/{instance_id}/users/{user_id}": (SERVER, None),
    "DELETE /user_api/v1/instances/{instance_id}/users/{user_id}": (SERVER, None),
    f"POST {_DEVICE}": (NONE, {"token": "t1"}),
    "POST /reporting_api/v2/instances/{instance_id}/events": (NONE, _TOLD),
    "POST /v1/devices": (BASIC, {"device_id": "d1", "platform": "web", "user_id": "bob"}),
    "POST /v1/pushes": (BASIC, {"msg_id": "m", "audience": "all", "payload": "other"}),
    "POST /v1/events": (BASIC, [_EVENT, _EVENT | {"device_id": "d9"}]),
}


def without_patterns(path: str) -> str:
    """The path of a route with the names of its parts alone."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)


def named(route: RouteDef) -> str:
    """A route as the table has it."""
    return f"{route.method} {without_patterns(route.path)}"


def test_every_route_has_a_case() -> None:
    """A route that is added to the service is added to the table, or named as one that looks at no app's data."""

    routes = [route for route in ROUTES if isinstance(route, RouteDef)]
    with_data = {named(route) for route in routes if route.handler not in WITHOUT_DATA}

    assert with_data - set(CASES) == set()
    assert set(CASES) - with_data == set()
    assert len(routes) == len(ROUTES)


async def call(service: Running, name: str, who: str, body: Any, ids: Ids) -> Answer:
    """One call of the stranger's; *name* is that of a case."""
    method, _, path = name.partition(" ")
    app = ids.stranger.app
    headers = {USER: {"Authorization": f"Bearer {ids.token()}"},
               SERVER: {"Authorization": f"Bearer {app.beams_secret_key}"}}.get(who, {})
    if isinstance(body, dict) and "timestampSecs" in body:
        body = body | {"timestampSecs": ids.now}
    return await service.call(method, ids.path(path), ids.stranger if who == BASIC else None, json=body,
                              headers=headers)


async def call_everything(service: Running, ids: Ids) -> dict[str, tuple[int, str]]:
    """What each path answers, with what is the stranger's own, or made up for the occasion, left out."""
    calls: dict[str, tuple[str, Any]] = {
        named(route).replace("*", "GET"): (NONE, None) for route in ROUTES
        if isinstance(route, RouteDef) and route.handler in WITHOUT_DATA}
    answers = {}
    for name, (who, body) in (calls | CASES).items():
        answer = await call(service, name, who, body, ids)
        # The figures of the whole service change with every call, and none of them is an app's.
        text = "" if name == "GET /metrics" else answer.body.decode().replace(ids.device, "DEVICE")
        text = text.replace(ids.stranger.app.beams_instance_id, "INSTANCE")
        text = re.sub(r'(?<="id":")fcm-[0-9a-f-]{36}|(?<="vapidPublicKey":")[\w-]+', "MADE UP", text)
        answers[name] = answer.status, text
    await service.applied()
    return answers


async def fill(service: Running, owner: Account, now: int) -> str:
    """Data of every sort for the owner; the id of his Beams device."""
    instance = owner.app.beams_instance_id
    devices = f"/device_api/v1/instances/{instance}/devices/fcm"
    await service.call("POST", "/v1/devices", owner, json=[
        {"device_id": f"d{number}", "platform": "android", "user_id": "alice"} for number in (1, 2)])
    device: str = (await service.call("POST", devices, json={"token": "t1"})).json["id"]
    await service.call("PUT", f"{devices}/{device}/interests", json={"interests": ["news", "sport"]})
    token = Ids(owner, device, now).token()
    signed_in = await service.call("PUT", f"{devices}/{device}/user", headers={"Authorization": f"Bearer {token}"})
    assert signed_in.status == 200
    for push in ({"msg_id": "m", "audience": {"device_ids": ["d1", "d2"]}, "payload": "mine"},
                 {"msg_id": "n", "audience": {"interests": ["news"]}},
                 {"msg_id": "done", "audience": {"device_ids": ["d1"]}}):
        assert (await service.call("POST", "/v1/pushes", owner, json=push)).status == 201
    await service.call("POST", f"/reporting_api/v2/instances/{instance}/events", json=_TOLD | {
        "timestampSecs": now, "deviceId": device})
    await service.send(owner, *({"msg_id": msg_id, "stage": stage, "device_id": "d1", "platform": "android"}
                                for msg_id in ("m", "n", "done") for stage in ("sent", "received", "click")))
    return device


async def stored(service: Running, owner: Account) -> dict[str, Any]:
    """Everything that either store has of an app, as it is."""
    clickhouse, redis = service.service.clickhouse, service.service.redis
    keys = await redis.scan(app_keys_pattern(owner.app.id))
    found: dict[str, Any] = {key.decode(): await redis.call("DUMP", key) for key in keys}
    columns = await clickhouse.query(
        "SELECT table, groupArray((name, type)) FROM system.columns WHERE database = currentDatabase() AND table IN "
        "(SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree') "
        "GROUP BY table", {}, label="test")
    for table, typed in columns:
        if "app" in {name for name, _ in typed}:
            await clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")
            selected = ", ".join(f"bitmapToArray({name})" if "groupBitmap" in kind else name for name, kind in typed)
            rows = await clickhouse.query(f"SELECT {selected} FROM {table} WHERE app = {{app:UInt32}}",
                                          {"app": owner.app.id}, label="test")
            found[f"table {table}"] = sorted(map(repr, rows))
    return found


async def test_no_path_tells_or_moves_anything_of_another_app(running_service: Running, account: Account) -> None:
    """A stranger is answered on every path as if the owner had nothing, and afterwards the owner has what he had."""

    now = int(running_service.clock())
    strangers = [await running_service.make_account(name) for name in ("early", "late")]
    nobodys = "fcm-00000000-0000-4000-8000-000000000000"
    empty = await call_everything(running_service, Ids(strangers[0], nobodys, now))
    device = await fill(running_service, account, now)
    before = await stored(running_service, account)

    seen = await call_everything(running_service, Ids(strangers[1], device, now))

    assert await stored(running_service, account) == before
    assert seen == empty
    # There was something to see, of every sort, and the strangers did something.
    assert [name for name, found in before.items() if not found] == ["table apps"]  # the command line writes it
    assert {key[0] for key in before if "{" in key} >= set("dmtrbsikun")
    assert {status for status, _ in seen.values()} >= {200, 201, 204, 400, 404}


def guarded_paths(owner: Account, device: str) -> Mapping[str, str]:
    """Paths that name the owner's instance and need a key of it."""
    instance = owner.app.beams_instance_id
    return {f"/device_api/v1/instances/{instance}/devices/fcm/{device}/user": "PUT",
            f"/customer_api/v1/instances/{instance}/users/alice": "DELETE",
            f"/user_api/v1/instances/{instance}/users/alice": "DELETE"}


@pytest.mark.parametrize("key", ["token of a user", "secret", "both"])
async def test_keys_of_another_instance_open_nothing(running_service: Running, account: Account, key: str) -> None:
    """A stranger's token, or his secret, at the owner's instance is refused and moves nothing."""

    now = int(running_service.clock())
    stranger = await running_service.make_account("stranger")
    device = await fill(running_service, account, now)
    before = await stored(running_service, account)
    forged = jwt.encode({"iss": f"https://{account.app.beams_instance_id}.pushnotifications.pusher.com",
                         "sub": "mallory", "exp": now + 600}, stranger.app.beams_secret_key, "HS256")
    words = {"token of a user": Ids(stranger, device, now).token(), "secret": stranger.app.beams_secret_key,
             "both": forged}[key]

    answers = [await running_service.call(method, path, headers={"Authorization": f"Bearer {words}"})
               for path, method in guarded_paths(account, device).items()]
    await running_service.applied()

    assert [answer.status for answer in answers] == [401, 401, 401]
    assert await stored(running_service, account) == before


async def test_answers_hold_no_other_apps_ids(running_service: Running, account: Account) -> None:
    """The browsers' key is each app's own."""

    other = await running_service.make_account("other")
    keys = [orjson.loads((await running_service.call(
        "GET", f"/device_api/v1/instances/{one.app.beams_instance_id}/web-vapid-public-key")).body)["vapidPublicKey"]
        for one in (account, other)]

    assert keys[0] != keys[1]


async def test_deleted_apps_keys_open_nothing(running_service: Running, account: Account) -> None:
    """The keys of an app that is gone are as good as none, on every path that asks for one."""

    await AppStore(running_service.service.redis).delete(account.app)

    async def is_gone() -> bool:
        return (await running_service.call("GET", "/v3/received?msg_ids=1", account)).status == 401
    await eventually(is_gone)
    ids = Ids(account, "fcm-1", int(running_service.clock()))
    answers = {name: await call(running_service, name, *case, ids) for name, case in CASES.items()}

    # Beams: 404 or, to an event, 400; a deletion of a device is 200 whether or not there is such an instance.
    assert {name for name, answer in answers.items() if answer.status not in (400, 401, 404)} == {f"DELETE {_ONE}"}
    assert {name for name, (who, _) in CASES.items() if who == BASIC} <= {
        name for name, answer in answers.items() if answer.status == 401}
