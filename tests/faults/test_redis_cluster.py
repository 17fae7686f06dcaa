"""Redis Cluster: a node that dies, slots that move, a master that its replica takes over from, all of it under load.

What was answered 200 is counted, and counted once; whatever that took, no caller is told anything but 200 or 503.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.errors import StoreUnavailable
from reportsvc.pipeline import journal as journal_module
from reportsvc.pipeline import ledger
from reportsvc.pipeline.journal import Journal
from reportsvc.registry.devices import bucket_of
from reportsvc.storage.redis import Redis, apps_key, devices_key, journal_key
from tests.faults.oracle import Oracle, in_batches, send_all, send_while, stream
from tests.support.redis_cluster import SLOTS, RedisCluster, redis_cluster, slot_of
from tests.support.service import Account, Clock, Running, eventually, running

#: Enough that every master has some.
PARTITIONS = 4


@dataclass
class Rig:
    """A service on a cluster that the test may harm."""

    running: Running
    cluster: RedisCluster
    account: Account

    @property
    def call(self) -> Any:
        """Requests of the app."""
        return partial(self.running.call, account=self.account)

    async def send_during(self, harm: Any, oracle: Oracle, seed: int) -> list[int]:
        """Send while *harm* is done, and half a second before and after; every refusal."""
        is_over = False
        sending = asyncio.create_task(send_while(lambda: not is_over, self.call, oracle, seed))
        await asyncio.sleep(0.5)
        await harm
        await asyncio.sleep(0.5)
        is_over = True
        return await sending

    async def check(self, oracle: Oracle) -> None:
        """All that was accepted is applied, nothing is dead, and every answer is exact."""
        await self.running.applied(60)
        counts = await ledger.read(self.running.service.redis, self.running.service.config.partitions)
        assert (counts["dead"], counts["applied"]) == (0, counts["accepted"])
        await oracle.check(self.call)


@asynccontextmanager
async def rigged(config: Config, clock: Clock, database: str, cluster: RedisCluster,
                 **settings: Any) -> AsyncIterator[Rig]:
    config = replace(config, redis_url=cluster.url, partitions=PARTITIONS)
    async with running(replace(config, **settings), clock, database) as service:
        yield Rig(service, cluster, await service.make_account())


async def test_slots_that_move_refuse_nobody(config: Config, clock: Clock, database: str, short_dir: Path) -> None:
    """The slots of the journal, the apps, the devices and others go to other nodes under load, also to one that is new:
    nobody is told 503."""
    async with (redis_cluster(short_dir, spares=1) as cluster,
                rigged(config, clock, database, cluster) as rig):
        oracle = Oracle()

        async def move() -> None:
            new = [journal_key(1), devices_key(rig.account.app.id, 5)]
            await cluster.move([slot_of(key) for key in new], cluster.spares[0])
            keys = [apps_key(), *(journal_key(partition) for partition in range(PARTITIONS)),
                    *(devices_key(rig.account.app.id, bucket) for bucket in range(64))]
            for number, key in enumerate(keys):
                owner = await cluster.owner_of(key)
                others = [node for node in cluster.masters if node is not owner]
                await cluster.move([slot_of(key)], others[number % 2])
            await cluster.move(range(SLOTS // 3 - 20, SLOTS // 3 + 20), cluster.masters[2])
        refusals = await rig.send_during(move(), oracle, 101)

        assert refusals == []
        await rig.check(oracle)


async def test_node_that_is_down_takes_only_its_own_along(config: Config, clock: Clock, database: str,
                                                          short_dir: Path) -> None:
    """Without replicas, what a dead node holds is unavailable until it is back, ingest goes on by way of the others,
    and nothing that was accepted is missing afterwards."""
    async with (redis_cluster(short_dir) as cluster,
                rigged(config, clock, database, cluster) as rig):
        oracle, events = Oracle(), stream(103, 400)
        oracle.tell(events)
        await send_all(rig.call, in_batches(events, 103))
        await rig.running.applied()
        app_id = rig.account.app.id
        # The service must go on knowing its app, so the apps' node stays.
        home = await cluster.owner_of(apps_key())
        dead = next(node for node in cluster.masters if node is not home)
        owners = {device: await cluster.owner_of(devices_key(app_id, bucket_of(device))) for device in oracle.devices}

        async def die() -> None:
            dead.kill()
            await asyncio.sleep(3)
        await rig.send_during(die(), oracle, 104)
        # Nothing of it is applied now, but it is accepted, at once.
        answers = [await rig.call("POST", "/v1/events", json=event) for event in stream(105, 40)]
        oracle.tell(stream(105, 40))
        status = {}
        for device in list(oracle.devices)[:30]:
            answer = await rig.call("POST", "/v3/status/message", json={"msg_id": "m0", "registration_ids": [device]})
            status[device] = answer.status if answer.status != 200 else answer.json[device]["status"]

        assert [answer.status for answer in answers] == [200] * len(answers)
        away = {device for device, owner in owners.items() if owner is dead}
        assert {503, 4} & {status[device] for device in away & set(status)}
        assert {status[device] for device in away & set(status)} <= {503, 4}
        await dead.start()
        await cluster.settled()
        await rig.check(oracle)


async def test_master_that_dies_under_load_loses_nothing(config: Config, clock: Clock, database: str,
                                                         short_dir: Path) -> None:
    """With REPORTSVC_REDIS_REPLICAS=1 a master is killed, its replica takes over, and it comes back as a replica: all
    that was answered 200 is counted once, no number was given twice, and nobody has to rebuild."""
    async with (redis_cluster(short_dir, replicas=1) as cluster,
                rigged(config, clock, database, cluster, redis_replicas=1) as rig):
        oracle = Oracle()

        async def fail_over() -> None:
            for key in (journal_key(0), devices_key(rig.account.app.id, 0)):
                master = await cluster.owner_of(key)
                master.kill()
                await eventually(lambda: other_owner(cluster, key, master.port), 30)
                await master.start()
                await cluster.settled()
        refusals = await rig.send_during(fail_over(), oracle, 107)

        assert set(refusals) <= {503}
        await rig.check(oracle)


async def other_owner(cluster: RedisCluster, key: str, port: int) -> bool:
    """Whether another node than that on *port* has the key."""
    owners = await cluster.owners()
    node = owners.get(slot_of(key))
    return node is not None and node.port != port


async def test_nothing_is_confirmed_that_a_replica_lacks(config: Config, clock: Clock, database: str,
                                                         short_dir: Path) -> None:
    """While the replica hangs, ingest says 503; what it had refused may be gone after the failover, and nothing else.

    replica   |  follows  |  hangs                              |  goes on, takes over
    master    |           |       an event is refused   killed  |
    """
    async with (redis_cluster(short_dir, masters=3, replicas=1) as cluster,
                rigged(config, clock, database, cluster, redis_replicas=1, partitions=1) as rig):
        oracle, events = Oracle(), stream(109, 300)
        oracle.tell(events)
        await send_all(rig.call, in_batches(events, 109))
        await rig.running.applied()
        master = await cluster.owner_of(journal_key(0))
        replica = cluster.replicas[cluster.masters.index(master)]
        replica.signal(signal.SIGSTOP)
        refused = await rig.call("POST", "/v1/events", json={"msg_id": "m0", "stage": "click", "device_id": "late"})
        master.kill()
        replica.signal(signal.SIGCONT)
        await cluster.replaced(master)
        await master.start()
        await cluster.settled()
        again = await rig.call("POST", "/v1/events", json={"msg_id": "m0", "stage": "sent", "device_id": "d1"})
        oracle.tell([{"msg_id": "m0", "stage": "sent", "device_id": "d1"}])

        assert (refused.status, refused.json) == (
            503, {"error": {"code": "unavailable", "message": "redis is unavailable"}})
        assert again.status == 200
        await rig.check(oracle)


async def test_journal_is_bounded_on_each_node(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose part of the backlog is over the bound is passed over; ingest is refused when all of them are."""
    monkeypatch.setattr(journal_module, "_MEASURE_SECONDS", 0.02)
    async with redis_cluster(short_dir, appendonly=False) as cluster:
        redis = Redis(cluster.url)
        journal = Journal(redis, PARTITIONS, 100_000)
        await journal.start()
        try:
            lengths = [("XLEN", journal_key(partition)) for partition in range(PARTITIONS)]
            nodes = {partition: await cluster.owner_of(journal_key(partition)) for partition in range(PARTITIONS)}
            full = nodes[0]
            assert set(nodes.values()) == set(cluster.masters)
            await redis.call("XADD", journal_key(0), "*", "n", 1, "e", b"x" * 200_000)

            async def is_passed_over() -> bool:
                before = await redis.run(lengths)
                await asyncio.gather(*(journal.append_record(b"{}") for _ in range(2 * PARTITIONS)))
                for _ in range(2 * PARTITIONS):
                    await journal.append_record(b"{}")
                after = await redis.run(lengths)
                return all(before[partition] == after[partition] for partition in nodes if nodes[partition] is full)
            await eventually(is_passed_over)

            for partition in range(1, PARTITIONS):
                await redis.call("XADD", journal_key(partition), "*", "n", 1, "e", b"x" * 200_000)

            async def is_full() -> bool:
                try:
                    await journal.append_record(b"{}")
                except StoreUnavailable as error:
                    return str(error) == "journal is unavailable: it is full, because the aggregator has not kept up"
                return False
            await eventually(is_full)
        finally:
            await journal.stop()
            await redis.close()
