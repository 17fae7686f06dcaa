"""``reportsvc status``: one screen on the service and its stores, whether they are well or not."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reportsvc import __version__
from reportsvc.commands.status import wrong_with_journal
from reportsvc.config import Config
from reportsvc.model import EventBatch, Fact
from reportsvc.pipeline import ledger
from reportsvc.pipeline.presence import processes
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis, presence_key
from tests.cli.program import Done, reportsvc, serving
from tests.support.clickhouse_http import clickhouse_http_server
from tests.support.service import Account, Running, eventually, running

NOBODY = "no process of the service is at work"


async def status(*arguments: str, **settings: object) -> Done:
    """One look; no service is looked for on a port unless one is named."""
    return await reportsvc("status", *arguments, **{"port": 0} | settings)


async def flushed(service: Running, received: int) -> None:
    """Wait until the ledger has what came in at the door."""
    async def is_written() -> bool:
        return (await ledger.read(service.service.redis, 1))["received"] == received
    await eventually(is_written)


def lines(done: Done) -> dict[str, list[str]]:
    """The screen: label -> texts; problems are under ``!``."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in filter(None, done.output.splitlines()):
        if line.startswith("! "):
            found.setdefault("!", []).append(line[2:])
            continue
        label = line[:12].strip() or label
        found.setdefault(label, []).append(line[12:])
    return found


async def test_everything_of_a_service_on_servers(config: Config, short_dir: Path) -> None:
    """Figures of both stores, the ledger, processes and apps are there, as JSON and on a screen."""

    async with clickhouse_http_server(short_dir / "clickhouse") as clickhouse:
        settings = {"redis_url": config.redis_url, "clickhouse_url": clickhouse.url, "data_dir": short_dir}
        async with running(replace(config, clickhouse_url=clickhouse.url)) as service:
            account, port = await service.make_account(timezone="Asia/Tokyo"), service.url.rpartition(":")[2]
            await service.send(account, *(
                {"msg_id": f"m{number % 3}", "stage": "received", "device_id": f"d{number}"} for number in range(10)))
            await service.call("POST", "/v1/events", account, json=[{"stage": "seen"}])
            await flushed(service, 11)

            done = await status("--json", port=port, **settings)
            plain = await status(port=port, **settings)

    body = done.json
    # The suite's cluster keeps nothing on disk.
    wrong = [f"Redis on port {server['tcp_port']} keeps no append-only file: what it accepts is lost when it stops; "
             "set appendonly yes" for server in body["redis"]["servers"] if "cluster" in config.redis_url]
    assert (done.status, done.errors, body["problems"]) == (int(bool(wrong)), "", wrong)
    assert body["service"] == {"url": service.url, "answers": True, "stores": {"redis": "ok", "clickhouse": "ok"}}
    assert body["ledger"] == {"received": 11, "accepted": 10, "applied": 10, "dead": 0, "rejected_stage": 1}
    assert body["apps"] == [{"id": account.app.id, "name": "test", "app_key": account.app.app_key,
                             "timezone": "Asia/Tokyo", "devices": 10, "messages": 3}]
    journal = body["journal"]
    assert {name: journal[name] for name in ("partitions", "entries", "being_applied", "max_bytes", "oldest_seconds",
                                             "aggregators", "dead_letters")} == {
        "partitions": 1, "entries": 0, "being_applied": 0, "max_bytes": 1 << 30, "oldest_seconds": 0.0,
        "aggregators": 1, "dead_letters": 0}
    process, = body["processes"]
    assert (process["name"], process["role"]) == (f"{socket.gethostname()}:{os.getpid()}", "all")
    assert body["redis"]["answers"]
    assert len(body["redis"]["servers"]) == (3 if "cluster" in config.redis_url else 1)
    assert all(server["used_memory"] > 0 for server in body["redis"]["servers"])
    assert sum(server["keys"] for server in body["redis"]["servers"]) > 10
    assert len(lines(plain)["redis"]) == len(body["redis"]["servers"])
    tables = {table["name"]: table for table in body["clickhouse"]["tables"]}
    assert {"delivery", "devices", "messages", "schema_migrations"} <= set(tables)
    assert all(table["rows"] > 0 and table["bytes"] > 0 and table["parts"] > 0 for table in tables.values())
    assert body["clickhouse"]["pending_migrations"] == []

    assert plain.status == done.status
    screen = lines(plain)
    assert screen["reportsvc"] == [f"{__version__}, data in {short_dir}"]
    assert screen["service"] == [f"{service.url} answers"]
    assert screen["ledger"] == ["11 received, 10 accepted, 10 applied, 1 rejected, 0 dead, 0 skewed"]
    assert screen["app"] == ["test: 10 devices, 3 messages, Asia/Tokyo"]
    assert re.fullmatch(r"0 entries, \d+ B of 1.0 GiB, oldest 0 s, 0 being applied, 1 at work on it",
                        screen["journal"][0])
    assert plain.output.endswith("\n\nAll is well.\n") != bool(wrong)
    assert len(plain.output.splitlines()) < 30


async def test_embedded_stores_while_the_service_runs_and_after(short_dir: Path) -> None:
    """While the service runs its engine is its own, and that is said; all else is told, and after it the engine too."""

    async with serving(short_dir) as service:
        settings = {"data_dir": short_dir / "data"}
        during = await status(port=service.url.rpartition(":")[2], **settings)
    after = await status("--json", **settings)
    plain = await status(**settings)

    screen = lines(during)
    assert during.status == 0, during
    assert screen["clickhouse"] == ["held by the running service"]
    assert screen["app"] == ["default: 0 devices, UTC"]
    assert screen["process"][0].startswith(f"{socket.gethostname()}:{service.process.pid} all, for ")
    assert (after.status, after.json["problems"], after.json["processes"]) == (1, [NOBODY], [])
    assert after.json["clickhouse"]["answers"] is True
    assert lines(plain)["!"] == [NOBODY]
    assert lines(plain)["service"] == ["on any free port"]


async def test_nothing_there_yet(short_dir: Path) -> None:
    """Before a first start there is little to tell, and nothing is made but what Redis needs."""

    done = await status(data_dir=short_dir / "data")

    screen = lines(done)
    assert (done.status, screen["!"], screen["clickhouse"]) == (1, [NOBODY], ["not there yet"])
    assert screen["ledger"] == ["0 received, 0 accepted, 0 applied, 0 rejected, 0 dead, 0 skewed"]
    assert "app" not in screen


async def test_stores_that_are_away(short_dir: Path, config: Config) -> None:
    """A store that does not answer is named with the reason, and what the other one knows is still told."""

    both = await status(redis_url="redis://127.0.0.1:9/0", clickhouse_url="http://127.0.0.1:9", data_dir=short_dir)
    screen = lines(both)
    assert (both.status, both.errors) == (1, "")
    redis, clickhouse, nobody = screen["!"]
    assert redis.startswith("Redis: redis is unavailable: Error 111 connecting to 127.0.0.1:9.")
    assert clickhouse.startswith("ClickHouse: clickhouse is unavailable: ") and len(clickhouse) <= 201
    assert nobody == NOBODY
    assert "redis" not in screen and screen["clickhouse"] == ["does not answer"]

    one = await status("--json", redis_url=config.redis_url, clickhouse_url="http://127.0.0.1:9", data_dir=short_dir)
    assert one.json["redis"]["answers"] is True
    assert one.json["clickhouse"] == {"answers": False}
    assert one.json["ledger"] == {"received": 0, "accepted": 0, "applied": 0, "dead": 0}


async def test_what_is_wrong_with_a_service_that_answers(config: Config, short_dir: Path, database: str) -> None:
    """Its stores' troubles, dead letters, and settings of Redis that lose data are each a line."""

    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start(supervise=False)
    try:
        async with running(replace(config, redis_url=server.url), database=database) as service:
            await service.service.journal.append(EventBatch(4711, ["1"], ["d"], [Fact("received").code], [1]))
            await service.applied(may_die=True)
            redis = service.service.redis
            await redis.call("CONFIG", "SET", "appendonly", "no")
            await redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            await redis.call("CONFIG", "SET", "maxmemory", "1gb")
            port = service.url.rpartition(":")[2]
            wrong = lines(await status(redis_url=server.url, data_dir=short_dir, port=port))["!"]
            os.kill(server.pid, signal.SIGKILL)

            async def is_noticed() -> bool:
                return (await service.call("GET", "/readyz")).status == 503
            await eventually(is_noticed)
            gone = lines(await status(redis_url=server.url, data_dir=short_dir, port=port))["!"]
            await server.start(supervise=False)
    finally:
        await server.stop()

    assert wrong == [
        "Redis keeps no append-only file: what it accepts is lost when it stops; set appendonly yes",
        "Redis throws keys away when its memory is full (allkeys-lru); set maxmemory-policy noeviction",
        "1 entries could not be applied; `reportsvc deadletters list` shows them"]
    assert gone[0].startswith("Redis: redis is unavailable: ")
    assert gone[1:] == [f"the service at {service.url} says: redis: redis is unavailable"]


async def test_journal_that_nobody_applies(config: Config, running_service: Running, account: Account) -> None:
    """Entries that wait without anybody at work on them are told, with how long the oldest has waited."""

    await running_service.send(account, {"stage": "online", "device_id": "d"})
    for aggregator in running_service.service.aggregators:
        await aggregator.stop()
    await running_service.call("POST", "/v1/events", account, json={"stage": "online", "device_id": "e"})

    done = await status("--json", redis_url=config.redis_url, data_dir=config.data_dir / "none")

    assert done.json["journal"]["entries"] == 1
    assert done.json["journal"]["oldest_seconds"] >= 0
    assert done.json["processes"] != []


JOURNAL = {"entries": 0, "bytes": 0, "max_bytes": 1000, "oldest_seconds": 0.0, "aggregators": 1, "dead_letters": 0}


@pytest.mark.parametrize(("journal", "is_running", "wrong"), [
    ({}, True, []), ({}, False, []), ({"entries": 5, "oldest_seconds": 9.0}, True, []),
    ({"entries": 5}, False, ["5 entries of the journal wait to be counted"]),
    ({"entries": 5, "oldest_seconds": 200.0, "aggregators": 0}, True,
     ["events have waited to be counted for 3 min: no aggregator is at work"]),
    ({"entries": 5, "oldest_seconds": 11.0}, True,
     ["events have waited to be counted for 11 s: the aggregator does not keep up, or a store is away"]),
    ({"bytes": 800}, True, []),
    ({"bytes": 801}, True, ["the journal is 80 % full; at 100 % events are answered 503"]),
])
def test_journal_that_does_not_empty(journal: dict[str, Any], is_running: bool, wrong: list[str]) -> None:
    """What waits for long, or for nobody, or fills the journal, is told; what is under way is not."""
    assert wrong_with_journal(JOURNAL | journal, is_running) == wrong


async def test_processes_are_seen_while_they_live(config: Config) -> None:
    """A process shows itself with its role, is gone when it stops, and one that was killed after some seconds; what an
    older version left under the key does not matter."""

    redis = Redis(config.redis_url)

    async def names() -> Iterable[Any]:
        return [(process.name, process.role) for process in await processes(redis)]
    try:
        await redis.call("SET", presence_key(), 1)
        assert await names() == []
        me = f"{socket.gethostname()}:{os.getpid()}"
        async with running(config):
            async def is_seen() -> bool:
                return await names() == [(me, "all")]
            await eventually(is_seen)
            since = (await processes(redis))[0].since
            await redis.call("HSET", presence_key(), "killed:1", f"api {since} {since - 60}")
            assert await names() == [(me, "all")]

            async def is_forgotten() -> bool:
                return not await redis.call("HEXISTS", presence_key(), "killed:1")
            await eventually(is_forgotten)
            assert (await processes(redis))[0].since == since
        assert await names() == []
    finally:
        await redis.close()
