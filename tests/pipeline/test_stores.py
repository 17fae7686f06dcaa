"""The same checks on both forms of ClickHouse: the engine in this process, and a server reached over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from reportsvc.config import Config
from reportsvc.pipeline import ledger
from reportsvc.pipeline.journal import append
from tests.faults.oracle import Oracle, in_batches, send_all, stream
from tests.pipeline.story import Story
from tests.support.clickhouse_http import ClickHouseHttp, clickhouse_http_server
from tests.support.service import Account, Clock, Running, eventually, running

DAY = 86400
#: Ids that a careless encoding would break: in SQL, in a parameter, in a URL, in a tab-separated value.
ODD_IDS = ["it's", 'say "hi"', "back\\slash", "\\'; DROP TABLE delivery; --", "tab\there", "new\nline", "null\x00byte",
           "100%", "{msg_ids:Array(String)}", "[1]", "\\N", "☃ 雪", "e\u0301", "\U0001f514", "a" * 256, "0", "-1",
           "null"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(suite_dir: Path) -> AsyncIterator[ClickHouseHttp]:
    """A ClickHouse server for all of these tests, each of which has a database of its own."""
    async with clickhouse_http_server(suite_dir / "clickhouse-http") as one:
        yield one


@pytest.fixture(params=["embedded", "http"])
def store(request: pytest.FixtureRequest, config: Config) -> Config:
    """Settings for either form."""
    if request.param == "embedded":
        return config
    server: ClickHouseHttp = request.getfixturevalue("server")
    return replace(config, clickhouse_url=server.url)


@pytest.fixture
async def service(store: Config, clock: Clock, database: str) -> AsyncIterator[Running]:
    """A running service on that store."""
    async with running(store, clock, database) as one:
        yield one


@pytest.fixture
async def account(service: Running) -> Account:
    """An app of that service."""
    return await service.make_account()


async def test_every_kind_of_record_and_report(service: Running, account: Account, clock: Clock) -> None:
    """Devices, pushes, deletions, events, and all reports about them."""
    story = Story(service, clock, account)
    await story.tell()
    await service.applied()
    await story.check()
    clock.ahead += 2 * DAY
    await story.check_later()


async def test_stream_is_counted_exactly(service: Running, account: Account) -> None:
    """Duplicates and any order change no number."""
    oracle, events = Oracle(), stream(81, 3_000)
    oracle.tell(events)
    call = partial(service.call, account=account)
    assert await send_all(call, in_batches(events, 81, largest=300)) == []
    await service.applied()
    await oracle.check(call)


async def test_large_requests_are_counted(service: Running, account: Account) -> None:
    """Ten thousand devices in one request, and a second request with the same ones and as many more."""
    events = [{"msg_id": f"m{number % 3}", "stage": "received", "device_id": f"fcm-{number:05}"}
              for number in range(20_000)]
    await service.send(account, *events[:10_000])
    await service.send(account, *events)

    answer = await service.call("GET", "/v3/received?msg_ids=m0,m1,m2", account)
    assert [item["android_received"] for item in answer.json] == [6667, 6667, 6666]


async def test_any_id_comes_back_as_it_was(service: Running, account: Account) -> None:
    """Whatever characters a message's or a device's id has, it is counted and found under that id alone."""
    await service.send(account, *(
        {"msg_id": msg_id, "stage": "received", "device_id": device_id, "platform": "android", "user_id": device_id}
        for number, msg_id in enumerate(ODD_IDS) for device_id in ODD_IDS[:number + 1]))
    push = await service.call("POST", "/v1/pushes", account, json={
        "msg_id": "pending", "audience": {"device_ids": ODD_IDS}, "payload": {"text": ODD_IDS}})
    assert push.json == {"msg_id": "pending", "targets": len(ODD_IDS)}
    await service.applied()

    answer = await service.call("GET", f"/v3/received?msg_ids={','.join(map(quote, ODD_IDS))}", account)
    assert [(item["msg_id"], item["android_received"]) for item in answer.json] == [
        (msg_id, number) for number, msg_id in enumerate(ODD_IDS, 1)]
    status = await service.call("POST", "/v3/status/message", account, json={
        "msg_id": ODD_IDS[4], "registration_ids": ODD_IDS})
    assert status.json == {device_id: {"status": 0 if number <= 4 else 3} for number, device_id in enumerate(ODD_IDS)}
    pending = await service.call("GET", f"/pushes/pending?api_key={account.pushy_api_key}")
    assert sorted(pending.json["push"]["pending_devices"]) == sorted(ODD_IDS)
    assert pending.json["push"]["payload"] == {"text": ODD_IDS}


# day      0          20           45
# devices  d0-d99     d100-d102    d103-d104      "silent": d0-d4 on day 0 only
async def test_retention_is_exact(service: Running, account: Account, clock: Clock) -> None:
    """An old part of a living message is kept through merges; a silent message goes from reports, then altogether."""
    def receipts(msg_id: str, devices: range) -> list[dict[str, str]]:
        return [{"msg_id": msg_id, "stage": "received", "device_id": f"d{device}", "platform": "android"}
                for device in devices]

    await service.send(account, *receipts("living", range(100)), *receipts("silent", range(5)))
    clock.ahead += 20 * DAY
    await service.send(account, *receipts("living", range(100, 103)))
    clock.ahead += 25 * DAY
    await service.send(account, *receipts("living", range(103, 105)))
    await service.service.clickhouse.command("OPTIMIZE TABLE delivery FINAL")

    for swept in (1, 0):
        answer = await service.call("GET", "/v3/received?msg_ids=living,silent", account)
        assert [item["android_received"] for item in answer.json] == [105, None]
        assert await service.service.sweep.run() == swept
    rows = await service.service.clickhouse.query(
        "SELECT msg_id, count() > 0 FROM delivery GROUP BY msg_id", {}, label="test")
    assert [tuple(row) for row in rows] == [("living", 1)]


async def test_bad_record_is_dead_and_alone(service: Running, account: Account) -> None:
    """A record that cannot be applied is buried; those beside it are counted."""
    await service.service.redis.run([append(0, [(1, b"broken")])])
    answer = await service.call("POST", "/v1/events", account, json={
        "msg_id": "m", "stage": "received", "device_id": "d", "platform": "android"})
    assert answer.json == {"accepted": 1, "rejected": 0, "errors": []}
    await service.applied(may_die=True)

    counts = await ledger.read(service.service.redis, 1)
    assert (counts["accepted"], counts["applied"], counts["dead"]) == (2, 1, 1)
    answer = await service.call("GET", "/v3/received?msg_ids=m", account)
    assert answer.json[0]["android_received"] == 1


async def test_next_service_finds_everything(store: Config, clock: Clock, database: str) -> None:
    """A service that is started on a database with data migrates nothing, and answers as the last one did."""
    oracle, events = Oracle(), stream(83, 600)
    oracle.tell(events)
    async with running(store, clock, database) as service:
        account = await service.make_account()
        await send_all(partial(service.call, account=account), in_batches(events[:300], 83))
    async with running(store, clock, database) as service:
        await send_all(partial(service.call, account=account), in_batches(events[300:], 84))
        await service.applied()
        await oracle.check(partial(service.call, account=account))


async def test_two_services_share_the_stores(store: Config, clock: Clock, database: str) -> None:
    """Two processes on the same stores take events for one another, and give the same, exact answers."""
    oracle, events = Oracle(), stream(85, 1_200)
    oracle.tell(events)
    async with running(store, clock, database) as one, running(store, clock, database) as other:
        account = await one.make_account()
        calls = partial(one.call, account=account), partial(other.call, account=account)

        async def is_known() -> bool:
            return (await calls[1]("GET", "/v3/received?msg_ids=m0")).status == 200
        await eventually(is_known)
        batches = in_batches(events, 85)
        await asyncio.gather(send_all(calls[0], batches[::2]), send_all(calls[1], batches[1::2]),
                             send_all(calls[1], batches[:5]))
        await other.applied()
        for call in calls:
            await oracle.check(call)
