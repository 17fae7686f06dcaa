"""The aggregator: killed or failed anywhere, taken over, or twice on one partition, it counts everything once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from reportsvc.errors import StoreUnavailable
from reportsvc.pipeline import aggregator as aggregator_module
from reportsvc.pipeline import ledger
from reportsvc.pipeline.aggregator import GROUP, Aggregator
from reportsvc.pipeline.apply import Applier
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import MAX_SMALL_CHUNK
from reportsvc.storage.redis import Redis, journal_key
from tests.faults.oracle import Oracle, in_batches, send_all, send_while, stream
from tests.pipeline.story import Story
from tests.support.service import Account, Clock, Running, eventually

DAY = 86400


class Fuse:
    """Fails calls of a store: before they run, or when they have run, so that the caller cannot know."""

    def __init__(self) -> None:
        self._steps: int | None = None
        self._seen: set[str] | None = None
        self._is_broken = False
        self._error: type[BaseException] = AssertionError
        self.blown = 0

    def kill_at(self, step: int) -> None:
        """End the calling task at its *step*-th step from now on, counted from 1."""
        self.hold()
        self._steps, self._error = step, asyncio.CancelledError

    def fail_each_once(self) -> None:
        """Fail every step when it is reached for the first time."""
        self.hold()
        self._seen, self._error = set(), StoreUnavailable

    def fail_always(self) -> None:
        """Fail every step."""
        self.hold()
        self._is_broken, self._error = True, StoreUnavailable

    def hold(self) -> None:
        """Fail nothing."""
        self._steps, self._seen, self._is_broken, self.blown = None, None, False, 0

    def burn(self, step: str) -> None:
        """One step."""
        if self._steps is not None:
            self._steps -= 1
        is_new = self._seen is not None and step not in self._seen
        if self._seen is not None:
            self._seen.add(step)
        if self._is_broken or is_new or self._steps == 0:
            self.blown += 1
            raise self._error(f"the test wants it {step}")


class FusedRedis(Redis):
    """Redis with a fuse in its line."""

    def __init__(self, url: str, fuse: Fuse) -> None:
        super().__init__(url)
        self._fuse = fuse

    async def run(self, commands: Sequence[Any]) -> list[Any]:
        """As always, unless the fuse blows."""
        name = " ".join(sorted({str(command[1 if command[0] == "EVALSHA" else 0]) for command in commands}))
        self._fuse.burn(f"before {name}")
        replies = await super().run(commands)
        self._fuse.burn(f"after {name}")
        return replies


class FusedClickHouse(ClickHouse):
    """ClickHouse with a fuse in its line."""

    def __init__(self, like: ClickHouse, fuse: Fuse) -> None:
        super().__init__(like._url, like._directory, like.database)
        self._fuse = fuse

    async def query(self, sql: str, parameters: Mapping[str, Any], *, label: str) -> Sequence[Sequence[Any]]:
        """As always, unless the fuse blows."""
        self._fuse.burn(f"before {sql}")
        rows = await super().query(sql, parameters, label=label)
        self._fuse.burn(f"after {sql}")
        return rows

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None, *, label: str = "") -> Any:
        """As always, unless the fuse blows."""
        self._fuse.burn(f"before {sql}")
        result = await super().command(sql, parameters, label=label)
        self._fuse.burn(f"after {sql}")
        return result

    async def insert(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """As always, unless the fuse blows."""
        self._fuse.burn(f"before {table}")
        await super().insert(table, columns, rows)
        self._fuse.burn(f"after {table}")


@dataclass
class Bench:
    """A service whose own aggregator is dead, and what is needed for another one."""

    running: Running
    fuse: Fuse
    redis: FusedRedis
    clickhouse: FusedClickHouse

    @asynccontextmanager
    async def aggregating(self, consumer: str) -> AsyncIterator[Aggregator]:
        """An aggregator with nothing in its memory, as a process has one that was just started."""
        applier = Applier(self.redis, self.clickhouse, self.running.service.apps, 10_000, MAX_SMALL_CHUNK)
        aggregator = Aggregator(self.redis, applier, 0, 0.0, consumer)
        await aggregator.start()
        try:
            yield aggregator
        finally:
            await aggregator.stop()

    async def is_balanced(self) -> bool:
        """Whether everything accepted is applied; nothing here may die."""
        counts = await ledger.read(self.running.service.redis, 1)
        assert counts["dead"] == 0
        return counts["accepted"] == counts["applied"]


@pytest.fixture
async def bench(running_service: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Aggregators here take entries over at once, and waste no time."""
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 0)
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(aggregator_module, "_RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(aggregator_module, "BLOCK_MILLISECONDS", 10)
    service = running_service.service
    for aggregator in service.aggregators:
        aggregator.kill()
        await aggregator.stop()
    # Killed at its first step, it may or may not have made the group.
    await service.redis.run([("DEL", journal_key(0)), ("XGROUP", "CREATE", journal_key(0), GROUP, "0", "MKSTREAM")])
    fuse = Fuse()
    redis, clickhouse = FusedRedis(service.config.redis_url, fuse), FusedClickHouse(service.clickhouse, fuse)
    yield Bench(running_service, fuse, redis, clickhouse)
    await clickhouse.close()
    await redis.close()


# --------------------------------------------------------------------------------------------------- a fault anywhere
async def test_story_without_a_fault(running_service: Running, account: Account, clock: Clock) -> None:
    """What the tests below expect after a fault is what comes without one."""
    story = Story(running_service, clock, account)
    await story.tell()
    await running_service.applied()
    await story.check()
    clock.ahead += 2 * DAY
    await story.check_later()


# the 1st   |-- dies after its 1st call             the last  |-- all that they left -->
# the 2nd      |------ dies after its 2nd call
# the 3rd         |------------ dies after its 3rd call  …
async def test_kill_after_any_step_changes_nothing(bench: Bench, clock: Clock,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever an aggregator dies, another one does the rest: the answers are the same, and the ledger balances."""
    stories: list[Story] = []
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 3_600_000)
    is_complete = False
    while not is_complete:
        story = Story(bench.running, clock, await bench.running.make_account(f"app {len(stories)}"))
        stories.append(story)
        before = await ledger.read(bench.running.service.redis, 1)
        await story.tell()
        accepted = (await ledger.read(bench.running.service.redis, 1))["accepted"] - before["accepted"]
        # A call has two steps. Dying before one is dying after the one before it, so every other step will do.
        bench.fuse.kill_at(2 * len(stories))

        async def is_over() -> bool:
            nonlocal is_complete
            counts = await ledger.read(bench.running.service.redis, 1)
            is_complete = counts["applied"] == before["applied"] + accepted and not bench.fuse.blown
            return is_complete or bench.fuse.blown > 0

        async with bench.aggregating(f"number {len(stories)}"):
            await eventually(is_over)
        bench.fuse.hold()
    assert len(stories) > 20, "the story is too short to test anything"

    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 0)
    async with bench.aggregating("the last"):
        await eventually(bench.is_balanced)
    for story in stories:
        await story.check()
    clock.ahead += 2 * DAY
    for story in stories:
        await story.check_later()


async def test_failure_of_any_call_changes_nothing(bench: Bench, clock: Clock, account: Account) -> None:
    """One aggregator goes on after every call that fails, whether it had run or not, until all is counted once."""
    story = Story(bench.running, clock, account)
    await story.tell()
    bench.fuse.fail_each_once()
    async with bench.aggregating("only"):
        await eventually(bench.is_balanced, seconds=30)
    assert bench.fuse.blown > 30, "the story is too short to test anything"
    await story.check()
    clock.ahead += 2 * DAY
    await story.check_later()


# ------------------------------------------------------------------------------------------------------- many of them
async def pending(redis: Redis) -> dict[str, int]:
    """How many entries each consumer has read and not finished."""
    _, _, _, consumers = (await redis.call("XPENDING", journal_key(0), GROUP)).values()
    return {consumer["name"].decode(): int(consumer["pending"]) for consumer in consumers or []}


async def test_kills_during_a_stream_change_nothing(bench: Bench, account: Account) -> None:
    """While events keep coming, aggregators die one after another at any moment; every event is counted once."""
    rng, oracle, kills = random.Random(17), Oracle(), 0
    call = partial(bench.running.call, account=account)
    sending = asyncio.create_task(send_while(lambda: kills < 20, call, oracle, 17))
    while kills < 20:
        async with bench.aggregating(f"consumer {kills % 3}") as aggregator:
            await asyncio.sleep(rng.random() / 10)
            aggregator.kill()
            kills += 1
    assert await sending == []
    async with bench.aggregating("the last"):
        await eventually(bench.is_balanced)

    await oracle.check(call)


async def test_two_on_one_partition_count_once(bench: Bench, account: Account) -> None:
    """Two aggregators of one partition that even take each other's unfinished entries change no number."""
    oracle, events = Oracle(), stream(23, 2_000)
    oracle.tell(events)
    call = partial(bench.running.call, account=account)
    async with bench.aggregating("one"), bench.aggregating("other"):
        await send_all(call, in_batches(events, 23, largest=20))
        await eventually(bench.is_balanced)
        consumers = await bench.running.service.redis.call("XINFO", "CONSUMERS", journal_key(0), GROUP)

    assert sorted(consumer[b"name"].decode() for consumer in consumers) == ["one", "other"]
    await oracle.check(call)


# dead    reads three entries and is never heard of again
# living  |-- the entries are young: left alone --|-- they are old: taken over --|
async def test_entries_of_a_dead_consumer_are_taken_over(bench: Bench, account: Account,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead consumer has read is left to it for a while, then applied by another; new events never wait."""
    redis, oracle = bench.running.service.redis, Oracle()
    call = partial(bench.running.call, account=account)
    old, new = stream(1, 30), stream(2, 30)
    for batch in (old[:10], old[10:20], old[20:]):
        await send_all(call, [batch])
    await redis.call("XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 10, "STREAMS", journal_key(0), ">")

    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 3_600_000)
    async with bench.aggregating("living"):
        await send_all(call, [new])
        oracle.tell(new)

        async def is_new_applied() -> bool:
            return (await ledger.read(redis, 1))["applied"] == len(new)
        await eventually(is_new_applied)
        await oracle.check(call)
        assert await pending(redis) == {"dead": 3}

        monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 0)
        await eventually(bench.is_balanced)
        oracle.tell(old)
        await oracle.check(call)
        assert (await pending(redis), await redis.call("XLEN", journal_key(0))) == ({}, 0)


async def test_consumer_finds_its_own_entries_again(bench: Bench, account: Account,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of the same name goes on with what it had read, without waiting for a takeover."""
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 3_600_000)
    redis, oracle, events = bench.running.service.redis, Oracle(), stream(3, 300)
    oracle.tell(events)
    call, batches = partial(bench.running.call, account=account), in_batches(events, 3)
    await send_all(call, batches, senders=1)
    await redis.call("XREADGROUP", "GROUP", GROUP, "me", "COUNT", 1000, "STREAMS", journal_key(0), ">")
    assert await pending(redis) == {"me": len(batches)}

    async with bench.aggregating("me"):
        await eventually(bench.is_balanced)
    await oracle.check(call)


async def test_lost_group_is_made_again(bench: Bench, account: Account) -> None:
    """A group that is gone with all its marks is made again, and what it had not finished is read once more."""
    redis, oracle, events = bench.running.service.redis, Oracle(), stream(4, 400)
    oracle.tell(events)
    call = partial(bench.running.call, account=account)
    await send_all(call, in_batches(events[:200], 4))
    await redis.call("XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 1000, "STREAMS", journal_key(0), ">")
    async with bench.aggregating("living"):
        await redis.call("XGROUP", "DESTROY", journal_key(0), GROUP)
        await send_all(call, in_batches(events[200:], 5))
        await eventually(bench.is_balanced)
    await oracle.check(call)


async def test_stop_applies_what_the_journal_holds(bench: Bench, account: Account) -> None:
    """An aggregator that is asked to stop applies everything that was accepted before it ends."""
    oracle, events = Oracle(), stream(6, 1_000)
    oracle.tell(events)
    call = partial(bench.running.call, account=account)
    await send_all(call, in_batches(events, 6))
    assert not await bench.is_balanced()
    async with bench.aggregating("only"):
        pass

    assert await bench.is_balanced()
    await oracle.check(call)


async def test_stop_does_not_wait_for_a_store(bench: Bench, account: Account) -> None:
    """An aggregator that waits for a store ends when it is asked to; the journal keeps what is left for the next."""
    oracle, events = Oracle(), stream(7, 100)
    oracle.tell(events)
    call = partial(bench.running.call, account=account)
    await send_all(call, [events])
    bench.fuse.fail_always()
    async with bench.aggregating("only") as aggregator:
        async with asyncio.timeout(5):
            await aggregator.stop(timeout=60)
    assert not await bench.is_balanced()

    bench.fuse.hold()
    async with bench.aggregating("only"):
        await eventually(bench.is_balanced)
    await oracle.check(call)


async def test_stop_ends_though_events_go_on_coming(bench: Bench, account: Account,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop applies what was there when it was asked for, and leaves what comes after it to others."""
    call = partial(bench.running.call, account=account)
    sent = itertools.count()

    async def send_one() -> None:
        await send_all(call, [[{"msg_id": "m", "stage": "received", "device_id": f"d{next(sent)}"}]])

    async with bench.aggregating("first") as aggregator:
        apply = aggregator._applier.apply

        async def apply_and_send(records: Sequence[dict[str, Any]]) -> None:
            await apply(records)
            await send_one()  # so there always is something to read next
        monkeypatch.setattr(aggregator._applier, "apply", apply_and_send)
        await send_one()
        async with asyncio.timeout(20):
            await aggregator.stop(timeout=60)
    assert not await bench.is_balanced()

    async with bench.aggregating("second"):
        await eventually(bench.is_balanced)


async def consumers(bench: Bench) -> set[str]:
    """The names that Redis has."""
    found = await bench.running.service.redis.call("XINFO", "CONSUMERS", journal_key(0), GROUP)
    return {one[b"name"].decode() for one in found}


async def test_consumers_that_are_gone_are_forgotten(bench: Bench, account: Account,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process brings a new name; those without anything unfinished go, and no unfinished entry goes with them."""
    monkeypatch.setattr(aggregator_module, "_FORGET_MILLISECONDS", 0)
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 3_600_000)
    redis, call = bench.running.service.redis, partial(bench.running.call, account=account)
    await send_all(call, [[{"msg_id": "m", "stage": "received", "device_id": "d"}]])
    await redis.call("XREADGROUP", "GROUP", GROUP, "killed", "COUNT", 10, "STREAMS", journal_key(0), ">")
    await redis.call("XGROUP", "CREATECONSUMER", journal_key(0), GROUP, "idle")
    assert await consumers(bench) >= {"killed", "idle"}

    async with bench.aggregating("new"):
        async def has_begun() -> bool:
            return "new" in await consumers(bench) and "idle" not in await consumers(bench)
        await eventually(has_begun)
        assert await consumers(bench) == {"killed", "new"}
        assert not await bench.is_balanced()
        monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 0)
        await eventually(bench.is_balanced)
    assert await consumers(bench) == {"killed"}  # it has left by itself
