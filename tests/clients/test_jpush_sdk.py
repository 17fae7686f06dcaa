"""The vendor's own Python client (PyPI ``jpush``) against this service: right answers, and its own exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import jpush
import pytest
from jpush import common

from tests.api.helpers import NOTHING_RECEIVED, at_noon, reached
from tests.support.service import Account, Clock, Running


@dataclass
class Sdk:
    """A client of one app. It blocks, so its calls run in a thread."""

    client: Any

    async def call(self, name: str, *arguments: Any) -> Any:
        """The payload that the client's method *name* returns."""
        response = await asyncio.to_thread(getattr(self.client.create_report(), name), *arguments)
        assert response.get_status_code() == 200
        return response.payload

    async def fail(self, name: str, *arguments: Any) -> tuple[int, int, str]:
        """HTTP status, code and message of the client's exception."""
        with pytest.raises(common.JPushFailure) as caught:
            await self.call(name, *arguments)
        error = caught.value
        return error.response.status_code, error.error_code, error.details


MakeSdk = Callable[..., Sdk]


@pytest.fixture
def make_sdk(running_service: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSdk]:
    """Makes clients that talk to the running service, whichever zone they are set to."""
    monkeypatch.setitem(common.ZONES["DEFAULT"], "REPORT", running_service.url + "/v3/")
    monkeypatch.setitem(common.ZONES["BJ"], "REPORT", running_service.url + "/v3/report/")
    clients: list[Any] = []

    def make(app_key: str, master_secret: str, zone: str = "default") -> Sdk:
        clients.append(jpush.JPush(app_key, master_secret, zone=zone))
        return Sdk(clients[-1])

    yield make
    for client in clients:
        client.session.close()


@pytest.fixture
def sdk(make_sdk: MakeSdk, account: Account) -> Sdk:
    """The client of the test's app."""
    return make_sdk(account.app.app_key, account.master_secret)


async def test_get_received(running_service: Running, account: Account, make_sdk: MakeSdk) -> None:
    """``get_received`` takes one id or several, encodes the comma, and gets numbers and nulls, in both zones."""

    await running_service.send(account, *reached(1613113584, "received", 4, "android"),
                               *reached(1229760629, "sent", 2, "ios"))
    first = {"msg_id": "1613113584"} | NOTHING_RECEIVED | {"android_received": 4}
    second = {"msg_id": "1229760629"} | NOTHING_RECEIVED | {"ios_apns_sent": 2}

    for zone in ("default", "bj"):
        sdk = make_sdk(account.app.app_key, account.master_secret, zone)
        assert await sdk.call("get_received", "1613113584,1229760629") == [first, second]
        assert await sdk.call("get_received", 1613113584) == [first]


async def test_get_messages(running_service: Running, account: Account, sdk: Sdk) -> None:
    """``get_messages`` gets the funnel by platform."""

    await running_service.send(account, *reached(1, "target", 3, "android"), *reached(1, "click", 1, "android"))

    assert await sdk.call("get_messages", "1") == [{
        "msg_id": "1",
        "android": {"target": 3, "online_push": None, "received": None, "click": 1, "msg_click": None},
        "ios": {"apns_target": None, "apns_sent": None, "apns_received": None, "click": None, "target": None,
                "received": None},
        "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}}]


async def test_get_status_message(running_service: Running, account: Account, sdk: Sdk, clock: Clock) -> None:
    """``get_status_message`` takes the id as a number, however large, or a string, one device or a list, and a date."""

    noon = at_noon(clock)
    for msg_id in (327640176, 2**63 + 1):
        await running_service.send(
            account, {"msg_id": msg_id, "stage": "target", "device_id": "a", "ts": int(noon.timestamp()) - 86400},
            {"msg_id": msg_id, "stage": "received", "device_id": "a", "ts": int(noon.timestamp())})

        for spelled in (msg_id, str(msg_id)):
            assert await sdk.call("get_status_message", spelled, ["a", "b"]) == {"a": {"status": 0}, "b": {"status": 2}}
        assert await sdk.call("get_status_message", msg_id, "a") == {"a": {"status": 0}}
        today, yesterday = noon.strftime("%Y-%m-%d"), (noon - timedelta(days=1)).strftime("%Y-%m-%d")
        assert await sdk.call("get_status_message", msg_id, ["a"], today) == {"a": {"status": 0}}
        assert await sdk.call("get_status_message", msg_id, ["a"], yesterday) == {"a": {"status": 1}}


async def test_get_users(running_service: Running, account: Account, sdk: Sdk, clock: Clock) -> None:
    """``get_users`` works by HOUR (whose space it writes as ``+``), DAY and MONTH."""

    noon = at_noon(clock)
    await running_service.send(account, {"stage": "active", "device_id": "a", "platform": "android"})
    found = {"android": {"new": 1, "online": 1, "active": 1}}

    for unit, form, step in (("HOUR", "%Y-%m-%d %H", timedelta(hours=1)), ("DAY", "%Y-%m-%d", timedelta(days=1))):
        start, end = (noon - step).strftime(form), noon.strftime(form)
        assert await sdk.call("get_users", unit, start, 2) == {
            "time_unit": unit, "start": start, "duration": 2, "items": [{"time": start}, {"time": end} | found]}
    month = noon.strftime("%Y-%m")
    assert await sdk.call("get_users", "MONTH", month, 1) == {
        "time_unit": "MONTH", "start": month, "duration": 1, "items": [{"time": month} | found]}


async def test_wrong_credentials(account: Account, make_sdk: MakeSdk) -> None:
    """Wrong credentials raise the client's ``Unauthorized``, at every call."""

    sdk = make_sdk(account.app.app_key, "0" * 24)

    for name, *arguments in (("get_received", "1"), ("get_messages", "1"), ("get_status_message", 1, ["a"]),
                             ("get_users", "DAY", "2026-01-01", 1)):
        with pytest.raises(common.Unauthorized):
            await sdk.call(name, *arguments)


async def test_failures_carry_the_vendors_codes(running_service: Running, sdk: Sdk, make_sdk: MakeSdk,
                                                clock: Clock) -> None:
    """Every refusal is a ``JPushFailure`` with its code, also at paths the service does not have; never a crash."""

    plain = await running_service.make_account("plain", vip=False)
    not_vip = make_sdk(plain.app.app_key, plain.master_secret)
    today = at_noon(clock).strftime("%Y-%m-%d")

    assert await sdk.fail("get_received", ",".join(map(str, range(101)))) == (400, 3002, "msg_ids: at most 100 ids")
    assert await sdk.fail("get_received", "") == (400, 3002, "msg_ids: must not be empty")
    assert await sdk.fail("get_status_message", 1, list(map(str, range(1001)))) == (
        400, 3002, "registration_ids: at most 1000 ids")
    assert await sdk.fail("get_status_message", 1, ["a"], "tomorrow") == (400, 3002, "date: must be yyyy-mm-dd")
    assert await sdk.fail("get_users", "WEEK", today, 1) == (400, 3002, "time_unit: must be HOUR, DAY or MONTH")
    assert await sdk.fail("get_users", "DAY", today, 61) == (
        400, 3002, "duration: must be 1 to 60 with time_unit DAY")
    assert await sdk.fail("get_users", "HOUR", today, 1) == (
        400, 3004, f"start: with time_unit HOUR it must look like {today} 12")
    assert await sdk.fail("get_users", "DAY", "2014-06-10", 3) == (
        400, 3005, "start: only the last 60 days can be asked for")
    assert await not_vip.fail("get_messages", "1") == (403, 2003, "Not authorized to use this interface")
    assert await not_vip.fail("get_users", "DAY", today, 1) == (403, 2003, "Not authorized to use this interface")


async def test_calls_the_service_does_not_have(sdk: Sdk) -> None:
    """The detail reports are not here yet: the client is told so, and can go on."""

    for name in ("get_received_detail", "get_messages_detail"):
        assert await sdk.fail(name, "1") == (404, 3002, "there is nothing at this path")
    assert await sdk.call("get_received", "1") == [{"msg_id": "1"} | NOTHING_RECEIVED]
