"""ClickHouse away: ingest goes on, reports say so rather than zero, and afterwards every number is exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.pipeline import journal as journal_module
from reportsvc.pipeline import ledger
from reportsvc.storage import clickhouse as clickhouse_module
from reportsvc.storage.schema import Schema
from tests.faults.oracle import Oracle, in_batches, send_all, send_until_taken, send_while, stream
from tests.support.clickhouse_http import ClickHouseHttp, clickhouse_http_server
from tests.support.service import Account, Clock, Running, eventually, running

UNAVAILABLE = "clickhouse is unavailable"


@dataclass
class Rig:
    """A service on a ClickHouse server that the test may harm."""

    running: Running
    server: ClickHouseHttp
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


@pytest.fixture
async def server(short_dir: Path) -> AsyncIterator[ClickHouseHttp]:
    """A ClickHouse server of the test's own."""
    async with clickhouse_http_server(short_dir / "clickhouse") as one:
        yield one


@pytest.fixture
async def rig(config: Config, clock: Clock, server: ClickHouseHttp) -> AsyncIterator[Rig]:
    """A service on that server."""
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        yield Rig(service, server, await service.make_account())


async def check_refusals(rig: Rig, *, with_push: bool = True) -> None:
    """Every report that needs ClickHouse is a 503 in its dialect; none is empty, null or zero."""
    today = datetime.fromtimestamp(rig.running.clock(), UTC)
    yesterday = datetime.fromtimestamp(rig.running.clock() - 86400, UTC)
    jpush = {"error": {"code": 10, "message": UNAVAILABLE}}
    questions: list[tuple[str, str, Any, Any]] = [
        ("GET", "/v3/received?msg_ids=m0,m1", None, jpush),
        ("GET", "/v3/report/received?msg_ids=m0", None, jpush),
        ("GET", "/v3/messages?msg_ids=m0", None, jpush),
        ("GET", f"/v3/users?time_unit=DAY&start={today:%Y-%m-%d}&duration=1", None, jpush),
        ("POST", "/v3/status/message", {
            "msg_id": "m0", "registration_ids": ["d0"], "date": f"{yesterday:%Y-%m-%d}"}, jpush),
        ("GET", f"/pushes/p?api_key={rig.account.pushy_api_key}", None, {
            "code": "SERVICE_UNAVAILABLE", "error": UNAVAILABLE}),
    ]
    questions = questions if with_push else questions[:-1]
    answers = await asyncio.gather(*(rig.call(method, path, json=body) for method, path, body, _ in questions))
    for (_, path, _, expected), answer in zip(questions, answers, strict=True):
        assert (path, answer.status, answer.headers.get("Retry-After"), answer.json) == (path, 503, "2", expected)
    ready = await rig.running.call("GET", "/readyz")
    assert (ready.status, ready.json["status"], ready.json["stores"]["redis"]) == (503, "unavailable", "ok")
    assert ready.json["stores"]["clickhouse"] != "ok"
    assert (await rig.running.call("GET", "/healthz")).status == 200


async def register_push(rig: Rig) -> None:
    """A push with a pending device, so that Pushy's answer needs ClickHouse."""
    answer = await rig.call("POST", "/v1/pushes", json={
        "msg_id": "p", "audience": {"device_ids": ["d0"]}, "payload": {}})
    assert (answer.status, answer.json) == (201, {"msg_id": "p", "targets": 1})


# server   works      refuses                works
# ingest   200 ....   200 ................   200
# reports  exact      503                    exact
async def test_refusing_server_changes_nothing(rig: Rig) -> None:
    """While the server answers with errors, every event is taken; when it works again, all are counted once."""
    oracle, before, during, after = Oracle(), stream(61, 300), stream(62, 300), stream(63, 300)
    oracle.tell(before)
    await send_all(rig.call, in_batches(before, 61))
    await register_push(rig)
    await rig.running.applied()
    await rig.server.refuse()
    await check_refusals(rig)
    live = await rig.call("POST", "/v3/status/message", json={"msg_id": "m0", "registration_ids": ["d0", "nobody"]})
    assert (live.status, live.json) == (200, oracle.statuses("m0", ["d0", "nobody"]))
    assert await send_all(rig.call, in_batches(during, 62)) == []
    await check_refusals(rig)
    await rig.server.recover()

    oracle.tell(during)
    oracle.tell(after)
    assert await send_all(rig.call, in_batches(after, 63)) == []
    await rig.check(oracle)
    pushy = await rig.call("GET", f"/pushes/p?api_key={rig.account.pushy_api_key}")
    assert pushy.json["push"]["pending_devices"] == ["d0"]


async def test_killed_server_changes_nothing(rig: Rig) -> None:
    """The server dies again and again under a stream of events; no event is refused, and each is counted once."""
    oracle, kills = Oracle(), 0
    await register_push(rig)
    await rig.running.applied()
    sending = asyncio.create_task(send_while(lambda: kills < 2, rig.call, oracle, 65))
    for _ in range(2):
        await asyncio.sleep(0.2)
        rig.server.kill()
        await check_refusals(rig)
        await rig.server.start()
        kills += 1

    assert await sending == []
    await rig.check(oracle)


async def test_hanging_server_changes_nothing(config: Config, clock: Clock, server: ClickHouseHttp,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes requests and never answers: reports give up in time, ingest does not notice."""
    # A second instead of many, so that the test is over sooner.
    monkeypatch.setattr(clickhouse_module, "REPORT_TIMEOUT_SECONDS", 0)
    monkeypatch.setattr(clickhouse_module, "REPORT_GRACE_SECONDS", 1)
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        rig, oracle = Rig(service, server, await service.make_account()), Oracle()
        before, during = stream(67, 200), stream(68, 200)
        oracle.tell(before)
        await register_push(rig)
        await send_all(rig.call, in_batches(before, 67))
        await rig.check(oracle)

        await server.hang()
        async with asyncio.timeout(30):
            assert await send_all(rig.call, in_batches(during, 68)) == []
            await check_refusals(rig)
        await server.recover()
        oracle.tell(during)
        await rig.check(oracle)


# server    works        killed                       works
# service   first one    |-- starts, takes events --- migrates and counts
async def test_service_starts_without_clickhouse(config: Config, clock: Clock, server: ClickHouseHttp) -> None:
    """A service that is started while the server is away takes events, and counts them once the server is there."""
    oracle, before, during = Oracle(), stream(69, 300), stream(70, 300)
    oracle.tell(before)
    oracle.tell(during)
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        rig = Rig(service, server, await service.make_account())
        await register_push(rig)
        await send_all(rig.call, in_batches(before, 69))
        # What the next service would migrate if it could.
        await service.applied()
        await service.service.clickhouse.command("TRUNCATE TABLE schema_migrations")
    server.kill()
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        rig = Rig(service, server, rig.account)
        assert await send_all(rig.call, in_batches(during, 70)) == []
        await check_refusals(rig)
        await server.start()

        await service.applied()
        ready = await service.call("GET", "/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ok", "stores": {"redis": "ok", "clickhouse": "ok"}})
        await rig.check(oracle)

        async def is_migrated() -> bool:
            return await Schema(service.service.clickhouse).pending() == []
        await eventually(is_migrated)


async def test_journal_fills_up_and_is_emptied(config: Config, clock: Clock, server: ClickHouseHttp,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage that lasts too long ends in 503 for ingest, not in a full memory, and ingest goes on by itself."""
    monkeypatch.setattr(journal_module, "_MEASURE_SECONDS", 0.05)
    async with running(replace(config, clickhouse_url=server.url, journal_max_bytes=100_000), clock) as service:
        rig, oracle = Rig(service, server, await service.make_account()), Oracle()
        await server.refuse()
        for seed in range(1000):
            batch = stream(seed, 50)
            answer = await rig.call("POST", "/v1/events", json=batch)
            if answer.status == 503:
                break
            oracle.tell(batch)
        instance = rig.account.app.beams_instance_id
        beams = await rig.call("POST", f"/reporting_api/v2/instances/{instance}/events", json={
            "event": "delivery", "publishId": "m", "deviceId": "d", "timestampSecs": int(clock())})
        push = await rig.call("POST", "/v1/pushes", json={"msg_id": "p", "audience": "all"})

        full = {"error": {"code": "unavailable", "message": "journal is unavailable"}}
        assert (answer.status, answer.headers["Retry-After"], answer.json) == (503, "2", full)
        assert (push.status, push.headers["Retry-After"], push.json) == (503, "2", full)
        assert (beams.status, beams.headers["Retry-After"], beams.json) == (503, "2", {
            "error": "Service unavailable", "description": "journal is unavailable"})
        assert 100_000 < await service.service.journal.backlog_bytes() < 2_000_000

        await server.recover()
        oracle.tell(batch)
        await send_until_taken(rig.call, batch)
        await rig.check(oracle)


async def test_stop_while_clickhouse_is_away(config: Config, clock: Clock, server: ClickHouseHttp) -> None:
    """A service that stops during an outage ends in time and leaves the rest in the journal for the next one."""
    oracle, events = Oracle(), stream(71, 300)
    oracle.tell(events)
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        account = await service.make_account()
        await server.refuse()
        await send_all(partial(service.call, account=account), in_batches(events, 71))

        async def is_refused() -> bool:
            return (await service.call("GET", "/v3/received?msg_ids=m0", account)).status == 503
        await eventually(is_refused)
        counts = await ledger.read(service.service.redis, 1)
        assert counts["applied"] < counts["accepted"]
    await server.recover()
    async with running(replace(config, clickhouse_url=server.url), clock) as service:
        await Rig(service, server, account).check(oracle)
