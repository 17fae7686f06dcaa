"""The drills themselves: two rigs, what is done to each while the load goes on, and the table of it all.

The first rig is what ``reportsvc serve`` is without any settings: one process with both stores embedded. The second is
a production in small: two services on one Redis, one journal partition and one ClickHouse behind HTTP, so that two
aggregators always fight for the same entries.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from reportsvc.storage.redis import dead_letters_key, journal_key, ledger_key
from tests.drill.check import Comparison, compare
from tests.drill.client import Client
from tests.drill.load import DAY, MORTALS, TIMEZONES, Load, Tenant
from tests.drill.oracle import Json
from tests.drill.processes import RedisServer, Service, limit_files
from tests.support.clickhouse_http import ClickHouseHttp

#: Bytes of journal at which ingest has to stop.
JOURNAL_BYTES: Final = 4 << 20
#: The size is measured twice a second, and requests under way are let in.
JOURNAL_OVERSHOOT: Final = 12 << 20
SETTLE_SECONDS: Final = 180.0
LOST: Final = r"redis is unavailable: it has lost .*; stop every process of the service, then run `reportsvc rebuild`"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    #: Whether everything is compared after each act, or only before Redis is wiped and after it is rebuilt.
    compare_each: bool
    service_kills: int
    redis_kills: int
    clickhouse_kills: int
    #: Seconds of a long outage; short ones last a part of it.
    outage: float
    #: Events of each act at least, and events a second while something happens.
    events: int
    rate: float
    devices: int
    messages: int


LONG: Final = Scale(compare_each=True, service_kills=16, redis_kills=6, clickhouse_kills=4, outage=60, events=14_000,
                    rate=600, devices=3000, messages=40)
QUICK: Final = Scale(compare_each=False, service_kills=2, redis_kills=1, clickhouse_kills=1, outage=4, events=800,
                     rate=2000, devices=300, messages=12)


@dataclass
class Row:
    """One act: what was done, and what came out."""

    rig: str
    act: str
    done: str
    seconds: float
    events: int
    refused: int
    compared: int
    different: int


@dataclass
class Report:
    """What becomes of a run."""

    rows: list[Row] = field(default_factory=list)
    values: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    events: int = 0

    def table(self) -> str:
        """For people."""
        head = ("rig", "act", "what was done", "s", "events", "refused", "compared", "different")
        rows = [(row.rig, row.act, row.done, f"{row.seconds:.0f}", f"{row.events:,}", f"{row.refused:,}",
                 f"{row.compared:,}", f"{row.different:,}") for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) if place < 3 else cell.rjust(width)
                           for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                 for row in (head, tuple("-" * width for width in widths), *rows)]
        compared = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.values.items()))
        return "\n".join([*lines, "", f"{self.events:,} events; compared: {compared}",
                          *(f"WRONG: {fault}" for fault in self.faults)])


class Rig(ABC):
    """Stores, services, and those who call them."""

    name: str

    def __init__(self, directory: Path, scale: Scale, seed: str, report: Report, tell: Callable[[str], None]) -> None:
        self.directory = directory
        self.scale = scale
        self.report = report
        self.rng = random.Random(f"{seed}/{self.name}")
        self.tell = tell
        self.services: list[Service] = []
        self.client = Client(lambda: [service.url for service in self.services])
        self.tenants: list[Tenant] = []
        self.load = Load(self.client, self.tenants, f"{seed}/{self.name}")
        #: Events that were refused, and that the oracle knows of.
        self.owed: list[tuple[Tenant, Sequence[Json]]] = []
        self._seed = seed

    @property
    @abstractmethod
    def redis(self) -> Redis:
        """A connection of our own."""

    @abstractmethod
    async def start(self) -> None:
        """Start the stores and the services, and make the apps."""

    @abstractmethod
    async def stop(self) -> None:
        """Leave nothing running."""

    @abstractmethod
    def acts(self) -> Sequence[tuple[str, Callable[[], Awaitable[str]]]]:
        """What happens here while the load goes on: a name, and what does it and tells what it did."""

    @abstractmethod
    async def wipe(self) -> None:
        """Take everything away from Redis, while nothing is under way."""

    # ---------------------------------------------------------------------------------------------------------- the run
    async def run(self) -> None:
        """All of it."""
        await self.start()
        now = time.time()
        # The first app has but these devices, from the beginning: whoever pushes to everyone knows who that is.
        await self.tenants[0].register(self.client, self.tenants[0].devices)
        await self.tenants[1].register(self.client, self.tenants[1].devices[:MORTALS])
        self.tell(f"{self.name}: ready after {time.time() - now:.0f} s")
        acts = self.acts()
        for name, act in acts:
            await self._act(name, act, is_compared=self.scale.compare_each or name == acts[-1][0])
        await self._rebuild()
        await self._act("after the rebuild", self._nothing, fresh=True)
        self.report.events += self.load.events
        self.report.faults += [f"{self.name}: {answer}" for answer in self.client.wrong[:20]]

    async def make_tenants(self, service: Service) -> None:
        """Three apps with the same ids in them."""
        for index, timezone in enumerate(TIMEZONES):
            self.tenants.append(Tenant(index, await service.create_app(f"app{index}", timezone),
                                       f"{self._seed}/{self.name}", time.time(), devices=self.scale.devices,
                                       messages=self.scale.messages))

    async def pay(self) -> None:
        """Send what is owed."""
        while self.owed:
            tenant, events = self.owed.pop()
            await self.client.insist("POST", "/v1/events", headers=tenant.headers, body=events)

    async def _nothing(self) -> str:
        return "the load alone, with devices that nobody knew"

    async def _act(self, name: str, act: Callable[[], Awaitable[str]], *, fresh: bool = False,
                   is_compared: bool = True) -> None:
        started, events, statuses = time.monotonic(), self.load.events, self.client.statuses.copy()
        if fresh:
            for tenant in self.tenants[1:]:
                tenant.devices += [f"d{len(tenant.devices) + number}" for number in range(200)]
        done = ""

        async def meanwhile() -> None:
            nonlocal done
            done = await act()
        await self.load.run(meanwhile, self.scale.events, self.scale.rate)
        refused = self.client.statuses - statuses
        await self._conclude(name, done, started, self.load.events - events, refused[0] + refused[503], is_compared)

    async def _conclude(self, name: str, done: str, started: float, events: int, refused: int,
                        is_compared: bool = True) -> None:
        await self.settle()
        comparison = await compare(self.client, self.tenants) if is_compared else Comparison()
        await self._check_ledger(comparison)
        row = Row(self.name, name, done, time.monotonic() - started, events, refused,
                  sum(comparison.values.values()), sum(comparison.different.values()))
        self.report.rows.append(row)
        self.report.values += comparison.values
        self.report.faults += [f"{self.name}, {name}: {example}" for example in comparison.examples]
        self.tell(f"{self.name}: {name}: {done}; {row.events:,} events, {row.refused:,} refused, {row.compared:,} "
                  f"values compared, {row.different:,} different ({row.seconds:.0f} s)")

    async def settle(self) -> None:
        """Wait until everything accepted is applied or dead."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (counts := await self._ledger())["accepted"] != counts["applied"] + counts["dead"]:
            assert time.monotonic() < deadline, f"{self.name}: the journal is not empty: {counts}; see {self.directory}"
            await asyncio.sleep(0.1)

    async def _ledger(self) -> Counter[str]:
        try:
            fields: Any = await self.redis.hgetall(ledger_key(0))
        except RedisError:  # it is just being started again
            return Counter(accepted=1)
        return Counter({name.decode(): int(value) for name, value in fields.items()})

    async def _check_ledger(self, comparison: Comparison) -> None:
        """Nothing is dead, and nothing is left over in the journal."""
        counts = await self._ledger()
        left = [counts["dead"], await self.redis.xlen(journal_key(0)), await self.redis.xlen(dead_letters_key(0)),
                (await self.redis.xpending(journal_key(0), "aggregator"))["pending"]]
        comparison.compare("ledgers", "ledger: dead, left, buried, pending ", [0, 0, 0, 0], left)

    async def _rebuild(self) -> None:
        """Redis loses everything: nobody is answered wrong, no service starts, the rebuild brings all of it back."""
        started, statuses = time.monotonic(), self.client.statuses.copy()
        await self.wipe()
        refusal = await self.services[0].command("serve")
        if refusal[0] != 1 or not re.search(LOST, refusal[2]):
            self.report.faults.append(f"{self.name}: serve on an empty Redis: {refusal}")
        status, output, errors = await self.services[0].command("rebuild")
        if status != 0:
            raise AssertionError(f"rebuild: {status} {output} {errors}")
        for service in self.services:
            await service.start()
        await self.pay()
        refused = self.client.statuses - statuses
        done = "Redis wiped, serve refused to start; " + output.splitlines()[-1]
        await self._conclude("rebuild", done, started, 0, refused[0] + refused[503])

    # ----------------------------------------------------------------------------------------------------- what happens
    async def kill_services(self) -> str:
        """``kill -9`` of a service at any moment, its start included."""
        early = 0
        for _ in range(self.scale.service_kills):
            service = self.rng.choice(self.services)
            await asyncio.sleep(self.rng.random() * 2)
            await service.end(signal.SIGKILL)
            if self.rng.random() < 0.25:
                start = asyncio.create_task(service.start())
                await asyncio.sleep(self.rng.random() * 2)
                if not start.done():
                    early += 1
                    await service.end(signal.SIGKILL)
                    await asyncio.gather(start, return_exceptions=True)
                    await service.start()
            else:
                await service.start()
        return f"{self.scale.service_kills + early} × kill -9 of a service, {early} of them while it started"

    async def jump_clocks(self) -> str:
        """Hours ahead and back, and days ahead, each service for itself."""
        jumps = (7200, -7200, 10 * DAY, 0)
        for jump in jumps:
            for service in self.services:
                service.jump(jump)
                await asyncio.sleep(self.scale.outage / 15)
        return f"{len(jumps) * len(self.services)} jumps of a service's clock: +2 h, -2 h, +10 days, back"


class Embedded(Rig):
    """One service on embedded stores."""

    name = "embedded"

    def __init__(self, directory: Path, scale: Scale, seed: str, report: Report, tell: Callable[[str], None]) -> None:
        super().__init__(directory, scale, seed, report, tell)
        self.service = Service("service", directory / "service", {})
        self.services.append(self.service)
        self._redis = Redis(unix_socket_path=str(self.service.data_dir / "redis" / "redis.sock"))

    @property
    def redis(self) -> Redis:
        """A connection of our own."""
        return self._redis

    async def start(self) -> None:
        """Make the apps, then start."""
        await self.make_tenants(self.service)
        await self.service.start()

    async def stop(self) -> None:
        """Leave nothing running."""
        await self.client.close()
        await self._redis.aclose()
        await self.service.end(signal.SIGKILL)
        if pid := self.service.redis_pid():
            os.kill(pid, signal.SIGKILL)

    def acts(self) -> Sequence[tuple[str, Callable[[], Awaitable[str]]]]:
        """What happens here."""
        return [("services killed", self.kill_services), ("redis-server killed", self.kill_redis),
                ("disk full", self.fill_disk), ("clock jumps", self.jump_clocks)]

    async def kill_redis(self) -> str:
        """``kill -9`` of redis-server, which the service starts again, alone and together with the service."""
        both = max(1, self.scale.redis_kills // 3)
        for number in range(self.scale.redis_kills + both):
            await self._until_redis_answers()
            await asyncio.sleep(0.5 + self.rng.random() * 2)
            os.kill(self.service.redis_pid(), signal.SIGKILL)
            if number >= self.scale.redis_kills:
                await self.service.end(signal.SIGKILL)
                await self.service.start()
        return f"{self.scale.redis_kills + both} × kill -9 of redis-server, {both} of them with the service"

    async def _until_redis_answers(self) -> None:
        while True:
            with suppress(RedisError):
                await self._redis.ping()
                return
            await asyncio.sleep(0.05)

    async def fill_disk(self) -> str:
        """Less is free than the reserve of ClickHouse. (Writes that fail are no drill: the engine in the service takes
        them for good ones. That they do not come to that is what the reserve is for.)"""
        seconds, taken = self.scale.outage / 4, self.directory / "taken"
        await self.service.end()
        self.service.environment["REPORTSVC_DISK_RESERVE"] = str(shutil.disk_usage(self.directory).free - (256 << 20))
        await self.service.start()
        with taken.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 512 << 20)
        await asyncio.sleep(seconds)
        taken.unlink()
        del self.service.environment["REPORTSVC_DISK_RESERVE"]  # others may fill the disk of this machine later
        await self.service.end()
        await self.service.start()
        return f"the disk is fuller than ClickHouse may fill it for {seconds:g} s"

    async def wipe(self) -> None:
        """The directory of Redis is gone."""
        await self.service.end()
        await self._redis.connection_pool.disconnect()
        shutil.rmtree(self.service.data_dir / "redis")


class Servers(Rig):
    """Two services on one Redis and one ClickHouse."""

    name = "servers"

    def __init__(self, directory: Path, scale: Scale, seed: str, report: Report, tell: Callable[[str], None]) -> None:
        super().__init__(directory, scale, seed, report, tell)
        self._server = RedisServer(directory / "redis")
        self._clickhouse = ClickHouseHttp(directory / "clickhouse")

    @property
    def redis(self) -> Redis:
        """A connection of our own."""
        return self._server.client

    async def start(self) -> None:
        """Start everything."""
        await self._server.start()
        await self._clickhouse.start()
        settings = {"REDIS_URL": self._server.url, "CLICKHOUSE_URL": self._clickhouse.url,
                    "JOURNAL_MAX_BYTES": str(JOURNAL_BYTES)}
        self.services += [Service(name, self.directory / name, settings) for name in ("a", "b")]
        await self.make_tenants(self.services[0])
        for service in self.services:
            await service.start()

    async def stop(self) -> None:
        """Leave nothing running."""
        await self.client.close()
        for service in self.services:
            await service.end(signal.SIGKILL)
        await self._clickhouse.stop()
        await self._server.stop()

    def acts(self) -> Sequence[tuple[str, Callable[[], Awaitable[str]]]]:
        """What happens here."""
        acts = [("services killed", self.kill_services), ("redis-server killed", self.kill_redis),
                ("ClickHouse killed", self.kill_clickhouse), ("ClickHouse refuses", self.refuse_clickhouse),
                ("Redis refuses", self.refuse_redis), ("Redis out of memory", self.fill_memory),
                ("disk full, Redis", self.fill_redis_disk), ("disk full, ClickHouse", self.fill_clickhouse_disk),
                ("clock jumps", self.jump_clocks)]
        if self.scale is LONG:  # these two cannot be hurried; the suite has tests of each
            acts += [("aggregators fight", self.stop_aggregator), ("journal full", self.fill_journal)]
        return acts

    async def kill_redis(self) -> str:
        """``kill -9``, and a start a moment later."""
        for _ in range(self.scale.redis_kills):
            await asyncio.sleep(0.5 + self.rng.random() * 2)
            self._server.signal(signal.SIGKILL)
            await asyncio.sleep(self.rng.random() / 2)
            await self._server.start()
        return f"{self.scale.redis_kills} × kill -9 of redis-server"

    async def kill_clickhouse(self) -> str:
        """``kill -9`` of the server, in the middle of inserts and merges."""
        for _ in range(self.scale.clickhouse_kills):
            await asyncio.sleep(0.5 + self.rng.random() * 2)
            self._clickhouse.kill()
            await asyncio.sleep(self.rng.random())
            await self._clickhouse.start()
        return f"{self.scale.clickhouse_kills} × kill -9 of ClickHouse"

    async def refuse_clickhouse(self) -> str:
        """Every statement is an error; then none is answered at all. A service starts while that is so."""
        await self._clickhouse.refuse()
        await asyncio.sleep(self.scale.outage / 2)
        await self.services[1].end(signal.SIGKILL)
        await self.services[1].start()
        await asyncio.sleep(self.scale.outage / 2)
        await self._clickhouse.recover()
        await asyncio.sleep(self.scale.outage / 12)
        await self._clickhouse.hang()
        await asyncio.sleep(self.scale.outage / 4)
        await self._clickhouse.recover()
        return (f"ClickHouse refuses for {self.scale.outage:g} s, a service starts meanwhile; hangs for "
                f"{self.scale.outage / 4:g} s")

    async def refuse_redis(self) -> str:
        """No connection is taken; then the server hangs."""
        self._server.signal(signal.SIGKILL)
        await asyncio.sleep(self.scale.outage)
        await self._server.start()
        await asyncio.sleep(self.scale.outage / 12)
        self._server.signal(signal.SIGSTOP)
        await asyncio.sleep(self.scale.outage / 3)
        self._server.signal(signal.SIGCONT)
        return f"Redis refuses connections for {self.scale.outage:g} s; hangs for {self.scale.outage / 3:.0f} s"

    async def fill_memory(self) -> str:
        """Redis has no memory for another write."""
        before = self.client.statuses[503]
        used = (await self.redis.info("memory"))["used_memory"]
        await self.redis.config_set("maxmemory", used)
        await self._until(lambda: self.client.statuses[503] > before)
        await asyncio.sleep(self.scale.outage / 4)
        await self.redis.config_set("maxmemory", 0)
        return f"maxmemory {used >> 20} MiB for {self.scale.outage / 4:g} s"

    async def fill_redis_disk(self) -> str:
        """The append-only file cannot grow: Redis refuses writes, or, under ``appendfsync always``, ends."""
        seconds = self.scale.outage / 8
        await self.redis.config_set("appendfsync", "no")
        limit_files(self._server.pid, full=True)
        await asyncio.sleep(seconds)
        limit_files(self._server.pid, full=False)
        await asyncio.sleep(seconds)
        await self._until_writable()
        await self.redis.config_set("appendfsync", "always")
        limit_files(self._server.pid, full=True)
        await self._until(lambda: not self._server.is_running)
        await asyncio.sleep(seconds)
        await self._server.start()
        return f"no file of Redis can grow for {seconds:g} s: it refuses writes; under appendfsync always it ends"

    async def _until_writable(self) -> None:
        while (await self.redis.info("persistence"))["aof_last_write_status"] != "ok":
            await asyncio.sleep(0.1)

    async def fill_clickhouse_disk(self) -> str:
        """ClickHouse has no room for what is inserted."""
        seconds = self.scale.outage / 4
        await self._clickhouse.fill()
        await asyncio.sleep(seconds)
        await self._clickhouse.recover()
        return f"ClickHouse has no space for {seconds:g} s"

    async def stop_aggregator(self) -> str:
        """A service stands still in the middle of its work for longer than another waits to take that over."""
        times = 3
        for _ in range(times):
            service = self.rng.choice(self.services)
            service.signal(signal.SIGSTOP)
            url, service.url = service.url, ""
            await asyncio.sleep(22)
            service.signal(signal.SIGCONT)
            service.url = url
            await asyncio.sleep(1)
        return f"{times} × a service stands still for 22 s, the other takes over, the first goes on"

    async def fill_journal(self) -> str:
        """ClickHouse stays away until the journal is full: ingest stops by itself, and goes on by itself."""
        before, largest = self.client.statuses[503], 0

        async def is_full() -> bool:
            nonlocal largest
            largest = max(largest, await self.redis.memory_usage(journal_key(0)) or 0)
            return self.client.statuses[503] > before
        await self._clickhouse.refuse()
        # At the pace of the other acts it would take hours.
        filler = self.tenants[0]
        while not await is_full():
            events = filler.batch(3000)
            status, _ = await self.client.once("POST", "/v1/events", headers=filler.headers, body=events)
            if status != 200:
                self.owed.append((filler, events))
        for _ in range(int(self.scale.outage)):
            await asyncio.sleep(0.2)
            await is_full()
        await self._clickhouse.recover()
        await self.pay()
        if largest > JOURNAL_BYTES + JOURNAL_OVERSHOOT:
            self.report.faults.append(f"the journal grew to {largest} bytes, over its bound of {JOURNAL_BYTES}")
        return f"ClickHouse away until ingest stops: {largest / (1 << 20):.1f} MiB of {JOURNAL_BYTES >> 20} MiB"

    async def wipe(self) -> None:
        """FLUSHALL under the running services, whose callers must all be refused soon and told nothing wrong."""
        await self.redis.flushall()
        tenant = self.tenants[1]
        await asyncio.sleep(1.5)
        self.owed.append((tenant, tenant.batch(50)))
        for method, path, body in (
                ("POST", "/v1/events", self.owed[-1][1]), ("POST", "/v1/devices", [{"device_id": "d0"}]),
                ("POST", "/v3/status/message", {"msg_id": "m0", "registration_ids": ["d0"]})):
            status, answer = await self.client.once(method, path, headers=tenant.headers, body=body)
            if status != 503:
                self.report.faults.append(f"{method} {path} after FLUSHALL: {status} {answer}")
        for service in self.services:
            await service.end()

    async def _until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _running(rig: Rig) -> AsyncIterator[Rig]:
    try:
        yield rig
    finally:
        await rig.stop()


async def run(directory: Path, seed: str, *, quick: bool, rigs: Sequence[type[Rig]] = (Embedded, Servers),
              tell: Callable[[str], None] = print) -> Report:
    """Run every drill on every rig; *directory* has what is left of them."""
    report = Report()
    for kind in rigs:
        async with _running(kind(directory / kind.name, QUICK if quick else LONG, seed, report, tell)) as rig:
            await rig.run()
    return report
