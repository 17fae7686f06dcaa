"""Redis away: ingest and statuses say so, counters go on, and afterwards nothing is missing or counted twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.pipeline import ledger
from reportsvc.storage import redis as redis_module
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis
from tests.faults.oracle import Oracle, in_batches, send_all, send_while, stream
from tests.support.service import Account, Clock, Running, eventually, running


@dataclass
class Rig:
    """A service on a Redis of its own, which the test may harm."""

    running: Running
    server: EmbeddedRedis
    account: Account

    @property
    def call(self) -> Any:
        """Requests of the app."""
        return partial(self.running.call, account=self.account)

    async def check(self, oracle: Oracle) -> None:
        """All that was accepted is applied, nothing is dead, and every answer is exact."""
        await self.running.applied()
        counts = await ledger.read(self.running.service.redis, 1)
        assert (counts["dead"], counts["applied"]) == (0, counts["accepted"])
        await oracle.check(self.call)


@asynccontextmanager
async def rigged(config: Config, clock: Clock, database: str, directory: Path, *,
                 supervise: bool = True) -> AsyncIterator[Rig]:
    # With `everysec`, a server that is killed may lose what it had not written while it waited for the disk.
    server = EmbeddedRedis(directory / "redis", "always")
    await server.start(supervise=supervise)
    try:
        async with running(replace(config, redis_url=server.url), clock, database) as service:
            yield Rig(service, server, await service.make_account())
    finally:
        await server.stop()


@pytest.fixture
async def rig(config: Config, clock: Clock, database: str, short_dir: Path) -> AsyncIterator[Rig]:
    """A service whose Redis is started again whenever it dies."""
    async with rigged(config, clock, database, short_dir) as one:
        yield one


async def test_killed_redis_changes_nothing(rig: Rig) -> None:
    """The server dies again and again under a stream of events and comes back; what was answered 200 counts once."""
    oracle, kills = Oracle(), 0
    sending = asyncio.create_task(send_while(lambda: kills < 3, rig.call, oracle, 51))
    while kills < 3:
        await asyncio.sleep(0.2)
        before = rig.server.pid
        os.kill(before, signal.SIGKILL)

        async def is_back() -> bool:
            return rig.server.pid != before
        await eventually(is_back)
        kills += 1

    assert set(await sending) == {503}
    await rig.check(oracle)


async def test_stopped_redis_changes_nothing(config: Config, clock: Clock, database: str, short_dir: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs makes ingest say 503 in time; commands it carries out late harm nothing."""
    # One second instead of five, so that the test is over sooner.
    monkeypatch.setitem(Redis.__init__.__kwdefaults__ or {}, "timeout", 1.0)
    monkeypatch.setattr(redis_module, "COMMAND_TIMEOUT_SECONDS", 1.0)
    async with rigged(config, clock, database, short_dir) as rig:
        oracle, stops, late = Oracle(), 0, [{"msg_id": "x", "stage": "sent", "device_id": "y"}]
        sending = asyncio.create_task(send_while(lambda: stops < 1, rig.call, oracle, 53))
        await asyncio.sleep(0.2)
        os.kill(rig.server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(1.5)
            async with asyncio.timeout(10):
                answers = [await rig.call("POST", "/v1/events", json=late), await rig.call(
                    "POST", "/v3/status/message", json={"msg_id": "m0", "registration_ids": ["d0"]})]
        finally:
            os.kill(rig.server.pid, signal.SIGCONT)
        stops = 1

        assert [answer.status for answer in answers] == [503, 503]
        assert set(await sending) == {503}
        # The event that was refused may have been written all the same; sending it again makes it certain.
        oracle.tell(late)
        await send_all(rig.call, [late])
        await rig.check(oracle)


async def test_lost_scripts_change_nothing(rig: Rig) -> None:
    """Scripts that Redis loses in the middle of everything are taught again; no caller is refused for it."""
    oracle, flushes = Oracle(), 0
    sending = asyncio.create_task(send_while(lambda: flushes < 50, rig.call, oracle, 55))
    while flushes < 50:
        await rig.running.service.redis.call("SCRIPT", "FLUSH")
        await asyncio.sleep(0.01)
        flushes += 1

    assert await sending == []
    await rig.check(oracle)


# ------------------------------------------------------------------------------------------------ while it is away
async def test_what_is_said_while_redis_is_away(config: Config, clock: Clock, database: str, short_dir: Path) -> None:
    """Counters are answered, everything that needs Redis is a 503 in its dialect, and afterwards all is as before."""
    async with rigged(config, clock, database, short_dir, supervise=False) as rig:
        oracle, events = Oracle(), stream(57, 500)
        oracle.tell(events)
        await send_all(rig.call, in_batches(events, 57))
        await rig.call("POST", "/v1/pushes", json={"msg_id": "p", "audience": {"device_ids": ["d1"]}, "payload": {}})
        await rig.running.applied()
        messages = [f"m{number}" for number in range(8)]
        asked = ",".join(messages)
        month = datetime.fromtimestamp(clock(), UTC).strftime("%Y-%m")
        users = await rig.call("GET", f"/v3/users?time_unit=MONTH&start={month}&duration=1")
        os.kill(rig.server.pid, signal.SIGKILL)

        # Counters, which ClickHouse has.
        assert (await rig.call("GET", f"/v3/received?msg_ids={asked}")).json == [*map(oracle.received, messages)]
        assert (await rig.call("GET", f"/v3/messages?msg_ids={asked}")).json == [*map(oracle.message, messages)]
        again = await rig.call("GET", f"/v3/users?time_unit=MONTH&start={month}&duration=1")
        assert (again.status, again.json) == (200, users.json)
        # Everything else.
        away = "redis is unavailable"
        jpush = {"error": {"code": 10, "message": away}}
        native = {"error": {"code": "unavailable", "message": away}}
        beams = {"error": "Service unavailable", "description": away}
        instance = rig.account.app.beams_instance_id
        for method, path, body, expected in (
            ("POST", "/v1/events", {"msg_id": "m", "stage": "received", "device_id": "d"}, native),
            ("POST", "/v1/pushes", {"audience": "all"}, native),
            ("POST", "/v1/pushes/p/targets", ["d2"], native),
            ("POST", "/v1/devices", {"device_id": "d"}, native),
            ("DELETE", "/v1/devices/d1", None, native),
            ("POST", f"/reporting_api/v2/instances/{instance}/events", {
                "event": "delivery", "publishId": "m", "deviceId": "d", "timestampSecs": 1}, beams),
            ("POST", "/v3/status/message", {"msg_id": "m0", "registration_ids": ["d0"]}, jpush),
            ("GET", f"/pushes/p?api_key={rig.account.pushy_api_key}", None, {
                "code": "SERVICE_UNAVAILABLE", "error": away}),
        ):
            answer = await rig.call(method, path, json=body)
            assert (path, answer.status, answer.headers.get("Retry-After"), answer.json) == (path, 503, "2", expected)
        ready = await rig.running.call("GET", "/readyz")
        assert (ready.status, ready.json["status"], ready.json["stores"]["clickhouse"]) == (503, "unavailable", "ok")
        assert ready.json["stores"]["redis"] != "ok"
        assert (await rig.running.call("GET", "/healthz")).status == 200

        await rig.server.stop()
        await rig.server.start()
        await rig.check(oracle)
        ready = await rig.running.call("GET", "/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ok", "stores": {"redis": "ok", "clickhouse": "ok"}})
