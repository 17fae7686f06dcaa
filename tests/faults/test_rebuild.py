"""Redis loses its data: nothing is counted wrong meanwhile, and ``reportsvc rebuild`` brings all of it back."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reportsvc.commands.stores import create_app
from reportsvc.config import Config
from reportsvc.errors import BadConfig, DataLost, StoreUnavailable
from reportsvc.pipeline import rebuild as rebuild_module
from reportsvc.pipeline.rebuild import Rebuild
from reportsvc.registry.devices import bucket_of
from reportsvc.storage import inventory as inventory_module
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import decode_chunk
from reportsvc.storage.redis import Redis, apps_key, devices_key, restored_keys_pattern
from tests.faults.process import ServiceProcess, service_process
from tests.support.beams import register
from tests.support.service import Account, Clock, Running, eventually, running

LOST = "it has lost {}; stop every process of the service, then run `reportsvc rebuild`"
EVERYTHING = {"apps": 2, "devices": 5082, "profiles": 3, "interests": 4, "pushes": 8, "messages": 12, "members": 5066}


# -------------------------------------------------------------------------------------------------------- what there is
async def tell(service: Running, account: Account, clock: Clock) -> None:
    """A little of everything that Redis holds: devices in each state, pushes of each kind, sets of each form."""
    call = partial(service.call, account=account)

    async def do(method: str, path: str, body: Any = None, status: int = 200) -> None:
        answer = await call(method, path, json=body)
        assert answer.status == status, answer

    await do("POST", "/v1/devices", [
        {"device_id": f"d{number}", "platform": ("android", "ios", "web", "winphone")[number % 4]}
        for number in range(50)])
    await do("POST", "/v1/devices", [{"device_id": "ünïcode/1", "user_id": "zoë"}, {"device_id": "named"}])
    for number in (1, 2, 3):
        await do("DELETE", f"/v1/devices/d{number}")
    clock.ahead += 5
    await do("POST", "/v1/pushes", {"msg_id": "all", "audience": "all", "payload": {"n": 1.5}}, 201)
    clock.ahead += 5
    await do("POST", "/v1/devices", [{"device_id": "d2"}])  # came back too late for the push
    await do("POST", "/v1/pushes", {"msg_id": "few", "audience": {"device_ids": ["d4", "d5", "d6"]}}, 201)
    await do("POST", "/v1/pushes", {
        "msg_id": "many", "audience": {"device_ids": [f"d{number}" for number in range(4, 24)]}, "kind": "message",
        "channel": "huawei", "vendor": "jpush", "time_to_live": 7200, "payload": "text"}, 201)
    await do("POST", "/v1/pushes", {"msg_id": "done", "audience": {"device_ids": ["d8", "d12"]}}, 201)
    await do("POST", "/v1/pushes", {"msg_id": "reopened", "audience": {"device_ids": ["d8", "d3"]}}, 201)
    await do("POST", "/v1/pushes", {"msg_id": "0", "audience": {"device_ids": ["d1"]},
                                    "scheduled_at": int(clock()) + 99,
                                    "created_at": int(clock()) - 10 * 86400}, 201)
    phones = [await register(service, account, platform, f"token-{platform}") for platform in ("fcm", "apns", "fcm")]
    await phones[0].add("news", "weather", "sports")
    await phones[1].do("PUT", "/interests", json={"interests": ["old"]})
    await phones[1].do("PUT", "/interests", json={"interests": ["news"]})
    assert (await phones[1].sign_in("alice")).status == 200
    gone = await register(service, account, "web", "gone")
    await gone.add("news")
    await gone.do("DELETE")
    await do("POST", "/v1/pushes", {"msg_id": "interested", "audience": {"interests": ["news"]}}, 201)
    await do("POST", "/v1/pushes", {"msg_id": "alice's", "audience": {"users": ["alice"]}}, 201)
    events = [{"msg_id": "plain", "stage": stage, "device_id": f"e{number}", "platform": "ios"}
              for number in range(20) for stage in ("sent", "received")[:1 + number % 2]]
    events += [{"msg_id": "dense", "stage": "received", "device_id": f"dense{number}"} for number in range(5000)]
    events += [{"msg_id": "all", "stage": stage, "device_id": f"d{number}"}
               for number, stage in ((0, "received"), (4, "sent"), (2, "sent"), (7, "display"))]
    events += [{"msg_id": "clicked", "stage": "click", "device_id": "d9"}, {"stage": "online", "device_id": "d10"}]
    events += [{"msg_id": msg_id, "stage": "received", "device_id": device}
               for msg_id, device in (("few", "d4"), ("done", "d8"), ("done", "d12"), ("reopened", "d8"))]
    await service.send(account, *events)
    clock.ahead += 7
    await service.send(account, {"msg_id": "done", "stage": "click", "device_id": "d8"})
    await do("POST", "/v1/pushes/reopened/targets", ["d20"])
    await do("POST", "/v1/pushes/all/targets", ["e1"])
    await service.applied()


def members(value: Any) -> frozenset[int]:
    """What is in a chunk of a device set, in either form."""
    return frozenset(decode_chunk(0, value).tolist() if isinstance(value, bytes) else
                     {int(member) + 32768 for member in value})


READERS: dict[bytes, str] = {b"hash": "HGETALL", b"zset": "ZRANGE", b"set": "SMEMBERS", b"string": "GET"}


async def contents(redis: Redis) -> dict[bytes, Any]:
    """Everything in Redis that is to be restored, in a form that does not depend on how it came there."""
    found: dict[bytes, Any] = {}
    for key in [apps_key().encode(), *await redis.scan(restored_keys_pattern())]:
        kind = await redis.call("TYPE", key)
        value = await redis.call(READERS[kind], key, *((0, -1) if kind == b"zset" else ()))
        if kind == b"hash":
            fields = value if isinstance(value, dict) else dict(zip(value[::2], value[1::2], strict=True))
            if fields.keys() <= {b"v", b"z"}:
                continue  # the version of a deleted profile, which is kept for an hour and not restored
            if key.startswith(b"m"):
                fields[b"c"] = b",".join(sorted(fields.get(b"c", b"").split(b",")))
                fields[b"ttl"] = round(await redis.call("TTL", key) / 60)
            found[key] = fields
        else:
            found[key] = value if kind == b"zset" else members(value)
    return found


async def answers(service: Running, account: Account) -> list[Any]:
    """What every report says of every message and device."""
    today = datetime.fromtimestamp(service.clock(), UTC)
    ids = ["all", "few", "many", "done", "reopened", "interested", "alice's", "plain", "dense", "clicked", "0"]
    devices = [*(f"{letter}{number}" for letter in "de" for number in range(50)), "ünïcode/1", "named", "dense4999",
               "nobody"]
    questions: list[tuple[str, str, Any]] = [
        ("GET", "/v3/received?msg_ids=" + ",".join(ids), None), ("GET", "/v3/messages?msg_ids=" + ",".join(ids), None),
        ("GET", f"/v3/users?time_unit=DAY&start={today:%Y-%m-%d}&duration=1", None),
        *(("POST", "/v3/status/message", {"msg_id": one, "registration_ids": devices}) for one in ids),
        *(("GET", f"/pushes/{one.replace(chr(39), '%27')}?api_key={account.pushy_api_key}", None) for one in ids)]
    return [((answer := await service.call(method, path, account, json=body)).status, answer.json)
            for method, path, body in questions]


# ------------------------------------------------------------------------------------------------------------ the drill
@dataclass
class Drill:
    """Stores with data of two apps in them, and no service at work."""

    config: Config
    clock: Clock
    database: str
    redis: Redis
    clickhouse: ClickHouse
    accounts: list[Account]
    before: dict[bytes, Any]
    reports: list[Any]

    async def rebuild(self, *, force: bool = False) -> dict[str, int]:
        """What the command does; returns what it restored."""
        return await Rebuild(self.redis, self.clickhouse, print).run(force=force)

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Running]:
        """The service, at work."""
        async with running(self.config, self.clock, self.database) as service:
            yield service

    async def check(self) -> None:
        """Redis and the reports are as they were."""
        after = await contents(self.redis)
        assert {key: value for key, value in after.items() if self.before.get(key) != value} == {}
        assert after.keys() == self.before.keys()
        async with self.service() as service:
            assert [await answers(service, account) for account in self.accounts] == self.reports


async def account_of(service: Running, name: str) -> Account:
    """An app made as the command line makes it, which lets ClickHouse know."""
    credentials = await create_app(service.service.redis, name)
    await service.service.apps.refresh()
    return Account(credentials.app, credentials.master_secret, credentials.pushy_api_key)


@pytest.fixture
async def drill(config: Config, clock: Clock, database: str, engine: Path,
                monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Drill]:
    """Two apps with the same ids in them, one with less than the other; and a third one that was deleted."""
    monkeypatch.setattr("reportsvc.pipeline.presence._INTERVAL", 0.2)
    redis, clickhouse = Redis(config.redis_url), ClickHouse(directory=engine / "clickhouse", database=database)
    async with running(config, clock, database) as service:
        accounts = [await account_of(service, name) for name in ("one", "two")]
        await tell(service, accounts[0], clock)
        await service.send(accounts[1], *({"msg_id": "all", "stage": "received", "device_id": f"d{number}"}
                                          for number in range(7)))
        reports = [await answers(service, account) for account in accounts]
    yield Drill(config, clock, database, redis, clickhouse, accounts, await contents(redis), reports)
    await clickhouse.close()
    await redis.close()


# ------------------------------------------------------------------------------------------------------------- restored
async def test_everything_is_as_before(drill: Drill) -> None:
    """Redis is wiped and rebuilt: every key is as it was, and every report says what it said."""
    await drill.redis.call("FLUSHALL")

    assert await drill.rebuild() == EVERYTHING
    await drill.check()


async def test_pages_of_any_size_give_the_same(drill: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in many small pages adds up to what is read in one."""
    monkeypatch.setattr(inventory_module, "_PAGE", 3)
    monkeypatch.setattr(inventory_module, "_MESSAGES", 2)
    monkeypatch.setattr(inventory_module, "CHUNK_SIZE", 1000)
    monkeypatch.setattr(rebuild_module, "_PIPELINE", 7)
    monkeypatch.setattr(rebuild_module, "_RANGE", 64)
    await drill.redis.call("FLUSHALL")

    assert await drill.rebuild() == EVERYTHING
    await drill.check()


async def test_work_goes_on_after_a_rebuild(drill: Drill) -> None:
    """A push that is sent again is known by its content, and new devices get numbers that nobody had."""
    await drill.redis.call("FLUSHALL")
    await drill.rebuild()
    async with drill.service() as service:
        account = drill.accounts[0]
        again = {"msg_id": "few", "audience": {"device_ids": ["d4", "d5", "d6"]}}
        answer = await service.call("POST", "/v1/pushes", account, json=again)
        other = await service.call("POST", "/v1/pushes", account, json=again | {"payload": "other"})
        await service.send(account, *({"msg_id": "dense", "stage": "received", "device_id": f"new{number}"}
                                      for number in range(300)))
        alice = await service.call("POST", "/v1/pushes", account, json={
            "msg_id": "later", "audience": {"users": ["alice"]}})

        assert (answer.status, answer.json, other.status) == (200, {"msg_id": "few", "targets": 3}, 409)
        assert alice.json == {"msg_id": "later", "targets": 1}
        rows = await drill.clickhouse.query(
            "SELECT count(), uniqExact(device_id), max(number) FROM (SELECT number, any(device_id) AS device_id "
            "FROM devices WHERE app = {app:UInt32} GROUP BY number)", {"app": account.app.id}, label="test")
        assert rows[0][:2] == (5075 + 300, 5075 + 300)
        total = await drill.clickhouse.query(
            "SELECT groupBitmapMerge(devices) FROM delivery WHERE app = {app:UInt32} AND msg_id = 'dense'",
            {"app": account.app.id}, label="test")
        assert total[0][0] == 5300


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8, 0.99])
async def test_half_a_rebuild_is_none(drill: Drill, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild that broke off leaves a Redis that no service starts on; another one completes it."""
    run, calls, most = drill.redis.run, 0, 1e9

    async def counting(commands: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > most:
            raise StoreUnavailable("redis", "it was killed")
        return await run(commands)
    with monkeypatch.context() as patch:
        patch.setattr(drill.redis, "run", counting)
        await drill.rebuild(force=True)
        await run([("FLUSHALL",)])
        calls, most = 0, int(share * calls)
        with pytest.raises(StoreUnavailable, match="it was killed"):
            await drill.rebuild()
    with pytest.raises(DataLost) as refusal:
        async with drill.service():
            pass

    assert str(refusal.value) == "redis is unavailable: " + LOST.format("apps that it had")
    assert await drill.rebuild() == EVERYTHING
    await drill.check()


async def test_a_part_that_was_lost_is_restored(drill: Drill) -> None:
    """A Redis that has lost some of its keys is mended with force, and not without."""
    app_id = drill.accounts[0].app.id
    keys = [key for key in await drill.redis.scan(restored_keys_pattern()) if hash(key) % 3 == 0]
    await drill.redis.run([("UNLINK", key) for key in [*keys, devices_key(app_id, bucket_of("d4"))]])
    with pytest.raises(DataLost) as refusal:
        async with drill.service():
            pass
    with pytest.raises(BadConfig, match="this Redis has apps .* add --force"):
        await drill.rebuild()

    assert str(refusal.value) == "redis is unavailable: " + LOST.format("device numbers that it had given")
    assert await drill.rebuild(force=True) == EVERYTHING
    await drill.check()


async def test_journal_survives_a_rebuild(drill: Drill) -> None:
    """What Redis still has of the journal is not removed, and is applied afterwards."""
    async with drill.service() as service:
        for aggregator in service.service.aggregators:
            aggregator.kill()
        event = {"msg_id": "tail", "stage": "received", "device_id": "d4"}
        assert (await service.call("POST", "/v1/events", drill.accounts[0], json=event)).status == 200
    await drill.rebuild(force=True)
    async with drill.service() as service:
        await service.applied()
        answer = await service.call("GET", "/v3/received?msg_ids=tail", drill.accounts[0])

    assert answer.json[0]["android_received"] == 1


async def test_rebuild_under_a_service_is_refused(drill: Drill) -> None:
    """While an aggregator reads the journal, nothing is touched."""
    async with drill.service():
        with pytest.raises(BadConfig, match="a service is at work on this Redis"):
            await drill.rebuild(force=True)

    await drill.check()


# -------------------------------------------------------------------------------------------------------------- noticed
async def test_wiped_redis_is_noticed_at_work(running_service: Running, clock: Clock,
                                              caplog: pytest.LogCaptureFixture) -> None:
    """From one moment to the next Redis is empty: every call that needs it is a 503, and no number is given twice."""
    account = await account_of(running_service, "app")
    events = [{"msg_id": "m", "stage": "received", "device_id": f"d{number}"} for number in range(200)]
    await running_service.send(account, *events)
    redis, url = running_service.service.redis, f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events"
    await redis.call("FLUSHALL")
    calls: list[Callable[[], Any]] = [
        lambda: running_service.call("POST", "/v1/events", account, json=events),
        lambda: running_service.call("POST", "/v3/status/message", account, json={
            "msg_id": "m", "registration_ids": ["d1"]}),
        lambda: running_service.call("GET", f"/pushes/m?api_key={account.pushy_api_key}"),
        lambda: running_service.call("POST", url, json={
            "event": "delivery", "publishId": "m", "deviceId": "d1", "timestampSecs": int(clock())}),
        lambda: running_service.call("GET", "/readyz")]

    async def is_noticed() -> bool:
        return (await running_service.call("GET", "/readyz")).status == 503
    await eventually(is_noticed)
    assert [(await call()).status for call in calls] == [503] * 5
    ready = (await running_service.call("GET", "/readyz")).json
    assert ready["stores"] == {"clickhouse": "ok", "redis": "redis is unavailable"}
    assert caplog.messages.count("redis is unavailable: " + LOST.format("apps that it had")) == 1


async def test_nothing_is_numbered_in_the_moment_before(running_service: Running, account: Account) -> None:
    """Before anybody has looked at the apps, devices, targets, events and questions about devices run into a wall."""
    await running_service.send(account, *({"msg_id": "m", "stage": "received", "device_id": f"d{number}"}
                                          for number in range(200)))
    service = running_service.service
    service.apps._task.cancel()  # type: ignore[union-attr]
    await service.redis.call("FLUSHALL")
    bodies = [("POST", "/v1/devices", [{"device_id": "new"}]),
              ("POST", "/v1/pushes", {"msg_id": "p", "audience": {"device_ids": ["new"]}}),
              ("POST", "/v1/pushes", {"msg_id": "p", "audience": "all"}), ("DELETE", "/v1/devices/d1", None),
              ("POST", "/v3/status/message", {"msg_id": "m", "registration_ids": ["d1", "new"]})]

    assert [(await running_service.call(method, path, account, json=body)).status
            for method, path, body in bodies] == [503] * len(bodies)
    # Known devices have their numbers in the aggregator's memory, right ones; a new one gets none.
    event = {"msg_id": "m", "stage": "received", "device_id": "new"}
    assert (await running_service.call("POST", "/v1/events", account, json=event)).status == 200
    await asyncio.sleep(0.3)
    assert await service.redis.scan("d{*") == []
    rows = await service.clickhouse.query("SELECT uniqExact(number) FROM devices", {}, label="test")
    assert rows[0][0] == 200


def of_bucket(bucket: int) -> Iterator[str]:
    """Ids that this bucket numbers."""
    return (name for number in range(100_000) if bucket_of(name := f"d{number}") == bucket)


# given by bucket 3   0  1  2 |    0        what ClickHouse has: 0, 1, 2
# by Redis            x  x  x | x           it fell back to its first
async def test_bucket_that_fell_back_gives_no_number(running_service: Running, account: Account) -> None:
    """A Redis that comes back without its latest writes, as a replica that lagged, is not believed."""
    names = of_bucket(3)
    known = [next(names) for _ in range(3)]
    await running_service.send(account, *({"msg_id": "m", "stage": "received", "device_id": one} for one in known))
    key = devices_key(account.app.id, 3)
    redis = running_service.service.redis
    assert (await redis.call("HGET", key, "")) == b"3:0"
    await redis.run([("HDEL", key, *known[1:]), ("HSET", key, "", "1:0")])

    answer = await running_service.call("POST", "/v1/devices", account, json={"device_id": next(names)})
    other = await running_service.call("POST", "/v1/devices", account, json={"device_id": next(of_bucket(4))})

    assert (answer.status, other.status) == (503, 200)
    assert await redis.call("HLEN", key) == 2


async def test_another_process_learns_from_clickhouse(running_service: Running, account: Account,
                                                      config: Config, database: str) -> None:
    """A bucket that this process never saw in use is not begun, if another process has used it and Redis lost it."""
    idle = running_service.service.registrar
    names = of_bucket(3)
    async with running(config, running_service.clock, database) as other:
        await other.send(account, {"msg_id": "m", "stage": "received", "device_id": next(names)})
        await other.service.redis.call("UNLINK", devices_key(account.app.id, 3))

        with pytest.raises(DataLost, match="device numbers that it had given"):
            await idle._devices.number(account.app.id, {next(names): 0}, 0, registering=True)


async def test_floors_do_not_mistake_a_race(running_service: Running, account: Account) -> None:
    """Many callers who number devices of one new app at once are all served: a reply that comes late is no loss."""
    answers = await asyncio.gather(*(
        running_service.call("POST", "/v1/devices", account, json=[
            {"device_id": f"d{caller}-{number}"} for number in range(20)]) for caller in range(40)))

    assert {answer.status for answer in answers} == {200}
    await running_service.applied()
    rows = await running_service.service.clickhouse.query(
        "SELECT count(), uniqExact(device_id) FROM (SELECT number, max(device_id) AS device_id FROM devices "
        "GROUP BY number)", {}, label="test")
    assert rows[0] == (800, 800)


# --------------------------------------------------------------------------------------------------------- command line
@pytest.fixture
async def process(short_dir: Path) -> AsyncIterator[ServiceProcess]:
    """The service as users run it."""
    async with service_process(short_dir) as one:
        yield one


async def test_the_command_line_leads_through_it(process: ServiceProcess) -> None:
    """The embedded Redis is deleted: ``serve`` and ``apps create`` refuse with advice that works when followed."""
    await process.start()
    events = [{"msg_id": "m", "stage": "received", "device_id": f"d{number}", "platform": "android"}
              for number in range(30)]
    assert (await process.call("POST", "/v1/events", json=events)).status == 200
    await eventually(process.is_settled)
    in_use = await process.command("rebuild")
    assert await process.end(signal.SIGTERM) == 0
    shutil.rmtree(process.data_dir / "redis")
    advice = "reportsvc: redis is unavailable: " + LOST.format("apps that it had") + "\n"

    assert in_use[0] == 1 and f"in use by the service with pid {process.process.pid}" in in_use[2]  # type: ignore
    for command in ("serve", "apps create other"):
        status, output, errors = await process.command(*command.split())
        assert (status, output, errors.splitlines(keepends=True)[-1]) == (1, "", advice)
    status, output, errors = await process.command("rebuild")
    assert (status, output, errors) == (
        0, "app default: 30 devices, 30 members, 1 messages\nrestored 30 devices, 30 members, 1 messages, 1 apps\n", "")
    status, output, errors = await process.command("rebuild")
    assert (status, output) == (1, "")
    assert "this Redis has apps (version 1), so it may have everything; add --force" in errors
    await process.start()
    await process.call("POST", "/v1/events", json={**events[0], "device_id": "another"})
    await eventually(process.is_settled)
    answer = await process.call("GET", "/v3/received?msg_ids=m")
    assert answer.json[0]["android_received"] == 31


async def test_empty_redis_without_clickhouse_is_not_begun(short_dir: Path, config: Config) -> None:
    """With ClickHouse away, an empty Redis may have lost everything: no first app is made in it."""
    async with service_process(short_dir, CLICKHOUSE_URL="http://127.0.0.1:9", REDIS_URL=config.redis_url) as process:
        serve = await process.command("serve")
        create = await process.command("apps", "create", "app")
    redis = Redis(config.redis_url)
    version = await redis.call("HGET", apps_key(), "v")
    await redis.close()

    assert (serve[0], create[0], version) == (1, 1, None)
    assert "start ClickHouse first" in serve[2].splitlines()[-1]
