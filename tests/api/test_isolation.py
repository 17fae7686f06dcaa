"""Apps are apart: no key of one reads or moves a number of another, at any path."""

from __future__ import annotations

from typing import Any

from aiohttp import encode_basic_auth

from tests.api.helpers import NOTHING_RECEIVED, at_noon, native_error, reached
from tests.support.service import Account, Clock, Running


async def snapshot(service: Running, account: Account, day: str) -> dict[str, Any]:
    """Everything the readers' paths say about message ``m`` and devices ``android0`` to ``android2``."""
    await service.applied()
    status = {"msg_id": "m", "registration_ids": ["android0", "android1", "android2"]}
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "received": ("GET", {}), "messages": ("GET", {}), "status": ("POST", {"json": status}),
        "status by date": ("POST", {"json": status | {"date": day}}), "users": ("GET", {}), "push": ("GET", {})}
    paths = {"received": "/v3/received?msg_ids=m", "messages": "/v3/report/messages?msg_ids=m",
             "status": "/v3/status/message", "status by date": "/v3/status/message",
             "users": f"/v3/users?time_unit=DAY&start={day}&duration=1",
             "push": f"/pushes/m?api_key={account.pushy_api_key}"}
    return {name: (await service.call(method, paths[name], account, **options)).json
            for name, (method, options) in calls.items()}


def statuses(*numbers: int) -> dict[str, Any]:
    """The status answer for the three devices."""
    return {f"android{place}": {"status": number} for place, number in enumerate(numbers)}


async def test_two_apps_with_the_same_ids(running_service: Running, account: Account, clock: Clock) -> None:
    """Two apps that use the same message and device ids each see their own data, at every path that reads."""

    other = await running_service.make_account("other")
    noon = at_noon(clock)
    day, now = noon.strftime("%Y-%m-%d"), int(clock())
    for one, count, payload in ((account, 2, "first"), (other, 1, "second")):
        await running_service.call("POST", "/v1/pushes", one, json={
            "msg_id": "m", "payload": payload, "created_at": now, "audience": {
                "device_ids": [f"android{number}" for number in range(count + 1)]}})
        await running_service.send(one, *reached("m", "received", count, "android"))
    await running_service.send(other, {"stage": "active", "device_id": "android0", "platform": "android"})

    def expected(targets: int, received: int, payload: str, users: dict[str, Any], *states: int) -> dict[str, Any]:
        return {
            "received": [{"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": received}],
            "messages": [{
                "android": {"received": received, "target": received, "online_push": None, "click": None,
                            "msg_click": None},
                "ios": {"apns_sent": None, "apns_target": None, "apns_received": None, "click": None, "target": None,
                        "received": None},
                "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}, "msg_id": "m"}],
            "status": statuses(*states), "status by date": statuses(*states),
            "users": {"time_unit": "DAY", "start": day, "duration": 1, "items": [{"time": day, "android": users}]},
            "push": {"push": {"date": now, "payload": payload, "expiration": now + 30 * 86400,
                              "pending_devices": [f"android{targets - 1}"]}}}
    assert await snapshot(running_service, account, day) == expected(3, 2, "first", {"new": 2, "online": 2}, 0, 0, 1)
    assert await snapshot(running_service, other, day) == expected(
        2, 1, "second", {"new": 1, "online": 1, "active": 1}, 0, 1, 2)


async def test_answers_kept_for_one_app_are_not_anothers(running_service: Running, account: Account) -> None:
    """Two apps with as many changes each, asking the same at the same time again and again, get their own numbers."""

    other = await running_service.make_account("other")
    for one, count in ((account, 2), (other, 3)):
        await running_service.send(one, *reached("m", "received", count, "android"))

    for _ in range(3):
        received = [await running_service.call("GET", "/v3/received?msg_ids=m", one) for one in (account, other)]
        messages = [await running_service.call("GET", "/v3/messages?msg_ids=m", one) for one in (account, other)]
        assert [answer.json[0]["android_received"] for answer in received] == [2, 3]
        assert [answer.json[0]["android"]["received"] for answer in messages] == [2, 3]


async def test_another_apps_key_sees_and_moves_nothing(running_service: Running, account: Account,
                                                       clock: Clock) -> None:
    """With another app's valid key every path answers as if nothing existed, and changes nothing of the first app."""

    stranger = await running_service.make_account("stranger")
    day = at_noon(clock).strftime("%Y-%m-%d")
    await running_service.call("POST", "/v1/pushes", account, json={
        "msg_id": "m", "audience": {"device_ids": ["android0", "android1", "android2"]}})
    await running_service.send(account, *reached("m", "received", 2, "android"))
    before = await snapshot(running_service, account, day)

    seen = await snapshot(running_service, stranger, day)
    more = await running_service.call("POST", "/v1/pushes/m/targets", stranger, json=["android9"])
    deleted = await running_service.call("DELETE", "/v1/devices/android0", stranger)
    registered = await running_service.call("POST", "/v1/pushes", stranger, json={"msg_id": "m", "audience": "all"})
    await running_service.call("POST", "/v1/devices", stranger, json={"device_id": "android2", "platform": "ios"})
    await running_service.send(stranger, *reached("m", "received", 7, "android"), *reached("m", "click", 7, "ios"))

    assert seen["received"] == [{"msg_id": "m"} | NOTHING_RECEIVED]
    assert all(number is None for platform in ("android", "ios", "winphone")
               for number in seen["messages"][0][platform].values())
    assert seen["status"] == seen["status by date"] == statuses(2, 2, 2)
    assert seen["users"]["items"] == [{"time": day}]
    assert seen["push"] == {"code": "INVALID_PUSH_ID", "error": "The push notification ID provided is invalid."}
    assert (more.status, more.json) == (
        404, native_error("not_found", "msg_id m is not registered; register it with POST /v1/pushes first"))
    assert (deleted.status, deleted.json) == (404, native_error("not_found", "device android0 is not known"))
    assert (registered.status, registered.json) == (201, {"msg_id": "m", "targets": 0})
    assert await snapshot(running_service, account, day) == before


async def test_secrets_of_one_dialect_do_not_open_another(running_service: Running, account: Account) -> None:
    """A Pushy key is no Basic password, and a Beams secret opens nothing here."""

    app = account.app
    for login, password in ((app.app_key, account.pushy_api_key), (app.beams_instance_id, app.beams_secret_key),
                            (app.app_key, app.beams_secret_key), (app.app_key, app.master_secret_sha256)):
        header = {"Authorization": encode_basic_auth(login, password)}
        for path in ("/v3/received?msg_ids=m", "/v1/events"):
            method = "GET" if path.startswith("/v3") else "POST"
            assert (await running_service.call(method, path, headers=header)).status == 401
    for key in (account.master_secret, app.beams_secret_key, app.pushy_api_key_sha256):
        assert (await running_service.call("GET", f"/pushes/m?api_key={key}")).status == 401
