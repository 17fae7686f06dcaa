"""What callers see when a store is away, or when the service itself is at fault, in each dialect's words."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.pipeline.journal import Journal
from reportsvc.registry.pushes import PushRegistry
from reportsvc.reports.delivery import DeliveryReport
from reportsvc.reports.status import StatusReport
from reportsvc.storage.embedded import EmbeddedRedis
from tests.api.helpers import NOTHING_RECEIVED, jpush_error, native_error, reached
from tests.support.clickhouse_http import ClickHouseHttp, clickhouse_http_server
from tests.support.service import Account, Answer, Running, eventually, running

EVENT = {"msg_id": "m", "stage": "received", "device_id": "android9", "platform": "android"}


@pytest.fixture
async def own_redis(short_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    """A redis-server of the test's own, which nobody starts again when it dies."""
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start(supervise=False)
    yield server
    await server.stop()


@pytest.fixture
async def clickhouse(short_dir: Path) -> AsyncIterator[ClickHouseHttp]:
    """A ClickHouse server of the test's own."""
    async with clickhouse_http_server(short_dir / "clickhouse") as server:
        yield server


async def prepare(service: Running) -> Account:
    """An app with one push and two receipts."""
    account = await service.make_account()
    await service.call("POST", "/v1/pushes", account, json={"msg_id": "m", "audience": {"device_ids": ["a"]}})
    await service.send(account, *reached("m", "received", 2, "android"))
    return account


async def ask_everything(service: Running, account: Account) -> dict[str, Answer]:
    """One request of each sort, all at once."""
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(service.clock() - 86400))
    status = {"msg_id": "m", "registration_ids": ["android0"]}
    event = {"event": "delivery", "publishId": "m", "deviceId": "fcm-1", "timestampSecs": int(service.clock())}
    calls: dict[str, tuple[str, str, Any]] = {
        "received": ("GET", "/v3/received?msg_ids=m", None), "messages": ("GET", "/v3/messages?msg_ids=m", None),
        "users": ("GET", f"/v3/users?time_unit=DAY&start={yesterday}&duration=1", None),
        "status": ("POST", "/v3/status/message", status),
        "status by date": ("POST", "/v3/status/message", status | {"date": yesterday}),
        "pushy": ("GET", f"/pushes/m?api_key={account.pushy_api_key}", None),
        "beams": ("POST", f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events", event),
        "events": ("POST", "/v1/events", EVENT),
        "pushes": ("POST", "/v1/pushes", {"audience": "all"}), "targets": ("POST", "/v1/pushes/m/targets", ["b"]),
        "devices": ("POST", "/v1/devices", {"device_id": "b"}), "deletion": ("DELETE", "/v1/devices/android0", None),
    }
    answers = await asyncio.gather(*(service.call(method, path, account, json=body)
                                     for method, path, body in calls.values()))
    return dict(zip(calls, answers, strict=True))


def outage(store: str) -> dict[str, Any]:
    """The body of each request's 503 while *store* is away."""
    text = f"{store} is unavailable"
    jpush = dict.fromkeys(("received", "messages", "users", "status", "status by date"), jpush_error(10, text))
    native = dict.fromkeys(("events", "pushes", "targets", "devices", "deletion"), native_error("unavailable", text))
    return jpush | native | {"pushy": {"code": "SERVICE_UNAVAILABLE", "error": text},
                             "beams": {"error": "Service unavailable", "description": text}}


def check_outage(answers: dict[str, Answer], store: str, *unhurt: str) -> None:
    """All but *unhurt* are 503 in their dialect's words, with the time to wait; those are 200."""
    bodies = outage(store)
    assert {name: (answer.status, answer.json, answer.headers.get("Retry-After")) for name, answer in answers.items()
            if name not in unhurt} == {name: (503, body, "2") for name, body in bodies.items() if name not in unhurt}
    assert {name: answers[name].status for name in unhurt} == {
        name: 201 if name == "pushes" else 200 for name in unhurt}
    if "beams" not in unhurt:
        assert answers["beams"].headers["Access-Control-Allow-Origin"] == "*"


async def test_redis_is_dead(config: Config, database: str, own_redis: EmbeddedRedis) -> None:
    """With Redis gone, whatever needs it is 503 in its dialect; counters, credentials and /healthz go on."""

    async with running(replace(config, redis_url=own_redis.url), database=database) as service:
        account = await prepare(service)
        os.kill(own_redis.pid, signal.SIGKILL)
        await eventually(lambda: _refuses(service, account))

        answers = await ask_everything(service, account)

        check_outage(answers, "redis", "received", "messages", "users")
        assert answers["received"].json == [{"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": 2}]
        assert (await service.call("GET", "/v3/received?msg_ids=m")).status == 401
        assert (await service.call("GET", "/pushes/m?api_key=nobody")).status == 401
        assert (await service.call("GET", "/healthz")).json == {"status": "ok"}
        ready = await service.call("GET", "/readyz")
        assert (ready.status, ready.json["stores"]["clickhouse"]) == (503, "ok")
        assert ready.json["stores"]["redis"].startswith("redis is unavailable")

        # It comes back, and the service with it, without a restart.
        await own_redis.start(supervise=False)
        await service.send(account, EVENT)
        assert (await service.call("GET", "/v3/received?msg_ids=m", account)).json == [
            {"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": 3}]


async def _refuses(service: Running, account: Account) -> bool:
    return (await service.call("POST", "/v1/events", account, json=EVENT)).status == 503


async def test_redis_does_not_answer(config: Config, database: str, own_redis: EmbeddedRedis) -> None:
    """With Redis frozen, requests end with the same 503 after its timeout, and it is told apart from a wrong request.
    """

    async with running(replace(config, redis_url=own_redis.url), database=database) as service:
        account = await prepare(service)
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            answers = await ask_everything(service, account)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)

        check_outage(answers, "redis", "received", "messages", "users")
        await service.send(account, EVENT)
        assert (await service.call("GET", "/v3/received?msg_ids=m", account)).json == [
            {"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": 3}]


async def test_clickhouse_is_away(config: Config, clickhouse: ClickHouseHttp) -> None:
    """With ClickHouse failing, then gone, reports are 503, never zero; events and registrations are still taken, and
    counted when it is back."""

    async with running(replace(config, clickhouse_url=clickhouse.url)) as service:
        account = await prepare(service)
        await clickhouse.refuse()
        refused = await ask_everything(service, account)
        await asyncio.to_thread(clickhouse.kill)
        gone = await ask_everything(service, account)

        unhurt = ("status", "beams", "events", "pushes", "targets", "devices", "deletion")
        check_outage(refused, "clickhouse", *unhurt)
        check_outage(gone, "clickhouse", *unhurt)
        ready = await service.call("GET", "/readyz")
        assert (ready.status, ready.json["stores"]["redis"]) == (503, "ok")

        await clickhouse.start()
        await service.applied()
        received = await service.call("GET", "/v3/received?msg_ids=m", account)
        assert received.json == [{"msg_id": "m"} | NOTHING_RECEIVED | {"android_received": 4}]


async def test_bug_is_an_internal_error(running_service: Running, account: Account, monkeypatch: pytest.MonkeyPatch,
                                        caplog: pytest.LogCaptureFixture) -> None:
    """A failure nobody foresaw is a plain 500 in the dialect's words, which tells the caller nothing of the inside;
    the log has all of it."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret inside")

    def broken_append(*_: Any) -> Any:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(DeliveryReport, "totals", broken)
    monkeypatch.setattr(StatusReport, "statuses", broken)
    monkeypatch.setattr(PushRegistry, "find", broken)
    monkeypatch.setattr(Journal, "append", broken_append)

    answers = await ask_everything(running_service, account)

    jpush, native = jpush_error(10, "Internal system error"), native_error("internal", "Internal server error")
    assert {name: (answer.status, answer.json) for name, answer in answers.items() if answer.status != 200} == {
        "received": (500, jpush), "messages": (500, jpush), "status": (500, jpush), "status by date": (500, jpush),
        "pushy": (500, {"code": "INTERNAL_SERVER_ERROR", "error": "Internal server error"}),
        "beams": (500, {"error": "Something went wrong", "description": "Internal server error"}),
        "events": (500, native), "targets": (500, native), "pushes": (201, answers["pushes"].json),
        "deletion": (404, native_error("not_found", "device android0 is not known"))}
    assert answers["beams"].headers["Access-Control-Allow-Origin"] == "*"
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 8
    assert all(record.exc_info and "secret inside" in str(record.exc_info[1]) for record in logged)
