"""The journal: one command for all who wait, durable when it says so, and an answer whatever happens to Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from reportsvc.api import native
from reportsvc.errors import StoreUnavailable
from reportsvc.model import EventBatch, Fact
from reportsvc.pipeline import journal as journal_module
from reportsvc.pipeline import ledger
from reportsvc.pipeline.journal import Journal
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis, journal_key, ledger_key
from tests.support.service import Account, Running, eventually

RECEIVED = Fact("received", "android", "jg_android").code


def receipts(app_id: int, devices: Sequence[str], users: dict[int, str] | None = None) -> EventBatch:
    """Receipts of message ``m``."""
    count = len(devices)
    return EventBatch(app_id, ["m"] * count, list(devices), [RECEIVED] * count, [1_700_000_000] * count, users or {})


@asynccontextmanager
async def opened(redis_url: str, partitions: int = 1, max_bytes: int = 1 << 30) -> AsyncIterator[tuple[Journal, Redis]]:
    """A journal that nobody reads, on an empty Redis."""
    redis = Redis(redis_url)
    await redis.call("FLUSHALL")
    await redis.call("CONFIG", "RESETSTAT")
    journal = Journal(redis, partitions, max_bytes)
    await journal.start()
    try:
        yield journal, redis
    finally:
        await journal.stop()
        await redis.call("FLUSHALL")
        await redis.close()


async def entries(redis: Redis, partition: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """What is in the journal, oldest first: how many events an entry says it has, and its record."""
    found = []
    for _, fields in await redis.call("XRANGE", journal_key(partition), "-", "+"):
        pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        found.append((int(pairs[b"n"]), orjson.loads(pairs[b"e"])))
    return found


async def devices_in(redis: Redis, partition: int = 0) -> list[str]:
    """The devices of all events in the journal."""
    return sorted(device for _, record in await entries(redis, partition) for device in record["device_ids"])


async def calls(redis: Redis, *commands: str) -> list[int]:
    """How often the server ran each of *commands* for this test."""
    stats = await redis.call("INFO", "commandstats")
    return [stats.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands]


async def pause(redis: Redis, seconds: float) -> None:
    """Redis runs no command for *seconds*: what is sent now is under way for so long."""
    await redis.call("CLIENT", "PAUSE", int(seconds * 1000))


# -------------------------------------------------------------------------------------------------------- group commit
@pytest.mark.one_redis
async def test_all_who_wait_share_one_command(redis_url: str) -> None:
    """Five hundred appends of one moment are one script call with one entry an app."""
    async with opened(redis_url) as (journal, redis):
        await redis.run([journal_module.append(0, [(1, b"{}")])])  # Redis knows the script from here on
        await redis.call("DEL", journal_key(0))
        await redis.call("CONFIG", "RESETSTAT")
        await asyncio.gather(*(journal.append(receipts(number % 3, [f"d{number:03}"])) for number in range(500)))

        assert await calls(redis, "evalsha", "eval", "xadd") == [1, 0, 3]
        assert sorted((count, record["app"], len(record["codes"])) for count, record in await entries(redis)) == [
            (166, 2, 166), (167, 0, 167), (167, 1, 167)]
        assert await devices_in(redis) == [f"d{number:03}" for number in range(500)]


# append   A ......... B C D … all come while A is under way
# command  |--- A ---||--- B C D … ---|
@pytest.mark.one_redis
async def test_who_comes_during_a_command_shares_the_next(redis_url: str) -> None:
    """While one command is under way the next one fills, so two commands are enough for any number of callers."""
    async with opened(redis_url) as (journal, redis):
        await journal.append(receipts(1, ["warm-up"]))
        await redis.call("CONFIG", "RESETSTAT")
        await pause(redis, 0.2)
        first = journal.append(receipts(1, ["a"]))
        others = []
        for number in range(100):
            await asyncio.sleep(0)
            others.append(journal.append(receipts(1, [f"b{number:02}"])))
        assert not first.done()
        await asyncio.gather(first, *others)

        assert await calls(redis, "evalsha", "xadd") == [2, 2]
        assert [count for count, _ in await entries(redis)] == [1, 1, 100]


async def test_entries_stay_within_their_limit(redis_url: str) -> None:
    """However many events wait, no entry has more than ten thousand, and none is lost between entries."""
    async with opened(redis_url) as (journal, redis):
        batches = [receipts(1, [f"{number}-{device:04}" for device in range(4_000)]) for number in range(6)]
        await asyncio.gather(*map(journal.append, batches))

        assert [count for count, _ in await entries(redis)] == [8_000] * 3
        assert await devices_in(redis) == sorted(device for batch in batches for device in batch.device_ids)


async def test_merged_events_keep_what_is_theirs(redis_url: str) -> None:
    """In a shared entry every event has its own message, device, time and user, and no caller's batch changes."""
    async with opened(redis_url) as (journal, redis):
        one = receipts(7, ["a", "b"], {1: "bob"})
        other = EventBatch(7, ["n", "o"], ["c", "d"], [3, 4], [5, 6], {0: "carol"})
        await asyncio.gather(journal.append(one), journal.append(other))

        (count, record), = await entries(redis)
        assert (count, record) == (4, {
            "type": "events", "app": 7, "at": record["at"], "msg_ids": ["m", "m", "n", "o"],
            "device_ids": ["a", "b", "c", "d"], "codes": [RECEIVED, RECEIVED, 3, 4],
            "times": [1_700_000_000, 1_700_000_000, 5, 6], "users": {"1": "bob", "2": "carol"}})
        assert (one, other) == (receipts(7, ["a", "b"], {1: "bob"}),
                                EventBatch(7, ["n", "o"], ["c", "d"], [3, 4], [5, 6], {0: "carol"}))


async def test_partitions_take_turns(redis_url: str) -> None:
    """Commands go round the partitions, and each partition's ledger has what its stream has."""
    async with opened(redis_url, partitions=3) as (journal, redis):
        for number in range(9):
            await journal.append(receipts(1, [f"d{number}", f"e{number}"]))

        assert [len(await entries(redis, partition)) for partition in range(3)] == [3, 3, 3]
        assert await redis.run([("HGET", ledger_key(partition), "accepted") for partition in range(3)]) == [b"6"] * 3


@pytest.mark.one_redis
async def test_requests_share_commands(running_service: Running, account: Account) -> None:
    """Also over HTTP: many requests at once need fewer entries than there are requests, and each is answered."""
    redis = running_service.service.redis
    await redis.call("CONFIG", "RESETSTAT")
    await pause(redis, 0.3)
    answers = await asyncio.gather(*(running_service.call(
        "POST", "/v1/events", account, json={"msg_id": "m", "stage": "received", "device_id": f"d{number}"})
        for number in range(100)))
    await running_service.applied()

    assert [answer.json for answer in answers] == [{"accepted": 1, "rejected": 0, "errors": []}] * 100
    assert (await calls(redis, "xadd"))[0] < 50
    counts = await ledger.read(redis, 1)
    assert (counts["accepted"], counts["applied"], counts["dead"]) == (100, 100, 0)


# ------------------------------------------------------------------------------------------------------------- durable
async def test_append_is_in_redis_when_it_is_done(redis_url: str) -> None:
    """At the moment an append returns, another client sees its events in the stream and in the ledger."""
    async with opened(redis_url) as (journal, redis):
        other = Redis(redis_url)
        missing: list[str] = []

        async def append(number: int) -> None:
            await asyncio.sleep(random.Random(number).random() / 20)
            await journal.append(receipts(1, [f"d{number}"]))
            if f"d{number}" not in await devices_in(other):
                missing.append(f"d{number}")

        await asyncio.gather(*map(append, range(100)))
        counts = await ledger.read(other, 1)
        await other.close()

        assert missing == []
        assert counts == {"received": 0, "accepted": 100, "applied": 0, "dead": 0}


async def test_stop_writes_what_waits(redis_url: str) -> None:
    """At stop, the command under way ends and what waits behind it is written; every caller gets his answer."""
    async with opened(redis_url) as (journal, redis):
        await journal.append(receipts(1, ["warm-up"]))
        await pause(redis, 0.2)
        under_way = journal.append(receipts(1, ["under way"]))
        await asyncio.sleep(0.02)
        waiting = [journal.append(receipts(1, [f"waiting {number}"])) for number in range(3)]
        await journal.stop()

        assert [caller.done() and caller.exception() for caller in (under_way, *waiting)] == [None] * 4
        assert await devices_in(redis) == ["under way", "waiting 0", "waiting 1", "waiting 2", "warm-up"]


async def test_nothing_is_taken_after_stop(redis_url: str) -> None:
    """An append after the stop is refused at once, rather than waiting for a writer that is gone."""
    async with opened(redis_url) as (journal, redis):
        await journal.stop()
        with pytest.raises(StoreUnavailable, match="journal is unavailable: the service is stopping"):
            journal.append(receipts(1, ["late"]))
        assert await entries(redis) == []


# ------------------------------------------------------------------------------------------------------ others' faults
async def test_batch_that_cannot_be_written_fails_alone(redis_url: str) -> None:
    """Who shares a command with a batch that is no text is not harmed by it."""
    async with opened(redis_url) as (journal, redis):
        callers = [journal.append(receipts(app_id, [device]))
                   for app_id, device in ((1, "good"), (1, "\ud800"), (2, "good, too"), (1, "also good"))]
        results = await asyncio.gather(*callers, return_exceptions=True)

        assert [type(result) for result in results] == [type(None), TypeError, type(None), type(None)]
        assert await devices_in(redis) == ["also good", "good", "good, too"]
        assert (await ledger.read(redis, 1))["accepted"] == 3


async def test_callers_who_go_away_harm_nobody(redis_url: str) -> None:
    """Appends whose callers are cancelled at any moment neither fail nor mix up those of the others."""
    rng = random.Random(3)
    async with opened(redis_url) as (journal, redis):
        async def append(number: int) -> str:
            await asyncio.sleep(rng.random() / 10)
            await journal.append(receipts(1, [f"d{number:03}"]))
            return f"d{number:03}"

        tasks = [asyncio.create_task(append(number)) for number in range(300)]
        while not all(task.done() for task in tasks):
            rng.choice(tasks).cancel()
            await asyncio.sleep(0.001)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await journal.append(receipts(1, ["the next one"]))

        confirmed = {result for result in results if isinstance(result, str)}
        assert {type(result) for result in results} == {str, asyncio.CancelledError}
        assert {*confirmed, "the next one"} <= set(await devices_in(redis))


async def test_replies_go_to_those_who_asked(redis_url: str) -> None:
    """A command whose caller is cancelled before its reply leaves a connection that nobody mistakes it on."""
    rng = random.Random(5)
    redis = Redis(redis_url)

    async def ask(number: int) -> None:
        assert await redis.run([("ECHO", number), ("ECHO", -number)]) == [b"%d" % number, b"%d" % -number]

    for round_ in range(20):
        tasks = [asyncio.create_task(ask(round_ * 100 + number)) for number in range(1, 31)]
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        for task in rng.sample(tasks, 15):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    await redis.close()


async def test_a_crowd_waits_for_connections(redis_url: str) -> None:
    """More calls at once than there are connections are all answered; none is told that Redis is away."""
    redis = Redis(redis_url)
    await pause(redis, 0.1)
    replies = await asyncio.gather(*(redis.call("ECHO", number) for number in range(500)))
    await redis.close()

    assert replies == [b"%d" % number for number in range(500)]


# ---------------------------------------------------------------------------------------------------------- Redis away
async def test_append_says_when_redis_is_away(short_dir: Path) -> None:
    """Every append ends with StoreUnavailable while there is no server, and with success when it is back."""
    server = EmbeddedRedis(short_dir / "redis", "always")
    await server.start()
    redis = Redis(server.url)
    journal = Journal(redis, 1, 1 << 30)
    await journal.start()
    await journal.append(receipts(1, ["before"]))
    await server.stop()

    async with asyncio.timeout(10):
        results = await asyncio.gather(*(journal.append(receipts(1, [f"during {number}"])) for number in range(5)),
                                       return_exceptions=True)
    await server.start()
    await journal.append(receipts(1, ["after"]))
    found = await devices_in(redis)
    await journal.stop()
    await redis.close()
    await server.stop()

    assert [(type(result), str(result).partition(":")[0]) for result in results] == [
        (StoreUnavailable, "redis is unavailable")] * 5
    assert found == ["after", "before"]


@pytest.mark.parametrize(("make", "undo"), [
    pytest.param([("CONFIG", "SET", "maxmemory", "1")], [("CONFIG", "SET", "maxmemory", "0")], id="full"),
    pytest.param([("REPLICAOF", "127.0.0.1", "1")], [("REPLICAOF", "NO", "ONE")], id="read-only replica",
                 marks=pytest.mark.one_redis),
    pytest.param([("CONFIG", "SET", "min-replicas-to-write", "1")], [("CONFIG", "SET", "min-replicas-to-write", "0")],
                 id="too few replicas"),
])
async def test_redis_that_takes_no_writes_is_away(redis_url: str, make: list[Any], undo: list[Any]) -> None:
    """A server that answers but refuses to write is an outage, inside scripts and outside, and it passes."""
    async with opened(redis_url) as (journal, redis):
        await journal.append(receipts(1, ["before"]))
        await redis.run(make)
        try:
            with pytest.raises(StoreUnavailable, match="^redis is unavailable: "):
                await journal.append(receipts(1, ["during"]))
            with pytest.raises(StoreUnavailable, match="^redis is unavailable: "):
                await redis.call("SET", "key", "value")
        finally:
            await redis.run(undo)
        await journal.append(receipts(1, ["after"]))

        assert await devices_in(redis) == ["after", "before"]


@pytest.mark.one_redis
async def test_scripts_are_taught_again(redis_url: str) -> None:
    """A server that has lost its scripts is told them within the same append, once for all."""
    async with opened(redis_url) as (journal, redis):
        await journal.append(receipts(1, ["before"]))
        await redis.call("SCRIPT", "FLUSH")
        await redis.call("CONFIG", "RESETSTAT")
        for number in range(3):
            await journal.append(receipts(1, [f"after {number}"]))

        assert await calls(redis, "eval", "xadd") == [1, 3]
        assert await devices_in(redis) == ["after 0", "after 1", "after 2", "before"]


# -------------------------------------------------------------------------------------------------------------- bounds
async def test_full_journal_refuses_and_recovers(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its bound the journal refuses at once; as soon as the backlog is worked off it takes events again."""
    monkeypatch.setattr(journal_module, "_MEASURE_SECONDS", 0.02)
    async with opened(redis_url, max_bytes=50_000) as (journal, redis):
        async def is_refused() -> bool:
            try:
                await journal.append(receipts(1, ["d" * 200] * 10))
            except StoreUnavailable as error:
                return str(error) == "journal is unavailable: it is full, because the aggregator has not kept up"
            return False

        await eventually(is_refused)
        assert 50_000 < await journal.backlog_bytes() < 1_000_000
        await redis.call("DEL", journal_key(0))

        async def is_taken() -> bool:
            return not await is_refused()

        await eventually(is_taken)


async def test_too_many_waiting_events_are_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is slow, events do not pile up in this process without end; those that wait are written."""
    monkeypatch.setattr(journal_module, "_MAX_WAITING", 10)
    async with opened(redis_url) as (journal, redis):
        await journal.append(receipts(1, ["warm-up"]))
        await pause(redis, 0.2)
        under_way = journal.append(receipts(1, ["under way"]))
        await asyncio.sleep(0.02)
        waiting = [journal.append(receipts(1, ["w"] * 6)), journal.append(receipts(1, ["w"] * 6))]
        with pytest.raises(StoreUnavailable, match="journal is unavailable: too many events wait to be written"):
            journal.append(receipts(1, ["too many"]))
        await asyncio.gather(under_way, *waiting)
        await journal.append(receipts(1, ["again"]))

        assert await devices_in(redis) == ["again", "under way", *["w"] * 12, "warm-up"]


# --------------------------------------------------------------------------------------------------------------- pacing
BOUND = journal_module._LAG_EVENTS
SHORTEST, LONGEST = journal_module._PAUSE_SECONDS


def paced(*told: tuple[int, int]) -> list[float]:
    """The pause after each of what a controller is told: the lag, and the events applied so far."""
    pace, pauses = journal_module._Pace(), []
    for lag, applied in told:
        pace.update(lag, applied)
        pauses.append(pace.pause)
    return pauses


# lag      |-- under --|-- over, and growing --------|-- over, and falling --|-- under --------
# pause    0           shortest ... half longer ...   as it is                half, half ... 0
def test_pause_follows_the_lag() -> None:
    """Senders pause from the moment the lag is over its bound while events are applied; longer while it grows, as long
    while it falls, and shorter, to nothing, when it is small again."""
    assert paced((0, 0), (BOUND, 10)) == [0, 0]
    assert paced((0, 0), (BOUND + 1, 10), (BOUND + 2, 20), (BOUND + 2, 30), (BOUND + 1, 40), (BOUND + 1, 50)) == [
        0, SHORTEST, SHORTEST * 1.5, SHORTEST * 1.5 ** 2, SHORTEST * 1.5 ** 2, SHORTEST * 1.5 ** 3]
    grown = paced((0, 0), *((BOUND + 1 + turn, turn + 1) for turn in range(100)))
    assert (max(grown), grown[-1]) == (LONGEST, LONGEST)

    pace = journal_module._Pace(LONGEST, BOUND, 100)
    shrinking: list[float] = []
    while pace.pause:
        pace.update(BOUND, 101 + len(shrinking))
        shrinking.append(pace.pause)
    assert shrinking[:3] == [LONGEST / 2, LONGEST / 4, LONGEST / 8]
    assert 5 < len(shrinking) < 20


def test_nobody_pauses_where_nothing_is_applied() -> None:
    """While no aggregator gets on, however far behind it is, nobody is slowed for it, neither anew nor any longer; what
    was applied before this process looked for the first time says nothing."""
    assert paced(*((BOUND * turn, 0) for turn in range(1, 9))) == [0] * 8
    assert paced((BOUND * 2, 500), (BOUND * 3, 500)) == [0, 0]
    stuck = journal_module._Pace(LONGEST, BOUND * 2, 100)
    stuck.update(BOUND, 100)
    assert stuck.pause == 0


def test_pause_ends_with_redis() -> None:
    """While Redis is away nobody pauses, and the first look after that begins anew."""
    pace = journal_module._Pace(LONGEST, BOUND * 2, 100)
    pace.reset()
    assert pace.pause == 0
    pace.update(BOUND * 3, 200)
    assert pace.pause == 0
    pace.update(BOUND * 4, 300)
    assert pace.pause == SHORTEST


async def test_redis_away_ends_the_pause(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be looked at slows nobody."""
    monkeypatch.setattr(journal_module, "_MEASURE_SECONDS", 0.02)
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start()
    redis = Redis(server.url)
    journal = Journal(redis, 1, 1 << 30)
    await journal.start()
    await server.stop()
    journal._pace.pause = LONGEST

    async def is_over() -> bool:
        return not journal._pace.pause

    await eventually(is_over)
    await journal.stop()
    await redis.close()


# batch    |-- pauses ------------------------------| 200
# single   |-| 200
async def test_batches_wait_and_single_events_do_not(running_service: Running, account: Account) -> None:
    """While senders pause, a batch that came first is answered after events that came alone, small batches and devices'
    reports; all of them are taken."""
    journal, ended = running_service.service.journal, []
    journal._tasks[1].cancel()  # nobody looks at the lag; the pause is the test's
    journal._pace.pause = 1.0

    def events(count: int, name: str) -> list[dict[str, Any]]:
        return [{"msg_id": "m", "stage": "received", "device_id": f"{name}{number}"} for number in range(count)]

    async def send(name: str, path: str, body: Any) -> None:
        answer = await running_service.call("POST", path, account, json=body)
        assert answer.status == 200
        ended.append(name)

    large = asyncio.create_task(send("large", "/v1/events", events(native.PACED_EVENTS, "a")))
    await asyncio.sleep(0.05)
    await asyncio.gather(
        send("one", "/v1/events", events(1, "b")), send("few", "/v1/events", events(native.PACED_EVENTS - 1, "c")),
        send("device", f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events",
             {"event": "delivery", "publishId": "m", "deviceId": "fcm-1", "timestampSecs": 1}))
    assert sorted(ended) == ["device", "few", "one"]
    await large
    await running_service.applied()
    assert (await ledger.read(running_service.service.redis, 1))["applied"] == 2 * native.PACED_EVENTS + 1


async def test_senders_that_outrun_are_slowed_and_never_refused(running_service: Running, account: Account,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders that are faster than the aggregator come to pause by themselves, are all answered 200, and pause no more
    when everything is applied."""
    monkeypatch.setattr(journal_module, "_LAG_EVENTS", 500)
    monkeypatch.setattr(journal_module, "_MEASURE_SECONDS", 0.02)
    journal, statuses, longest = running_service.service.journal, set[int](), 0.0

    async def send(sender: int) -> None:
        for number in range(100):
            answer = await running_service.call("POST", "/v1/events", account, json=[
                {"msg_id": f"m{number}", "stage": "received", "device_id": f"{sender}-{device}"}
                for device in range(200)])
            statuses.add(answer.status)
            if longest:
                break

    senders = [asyncio.create_task(send(sender)) for sender in range(8)]
    while not all(sender.done() for sender in senders):
        longest = max(longest, journal._pace.pause)
        await asyncio.sleep(0.005)
    await asyncio.gather(*senders)
    assert longest >= SHORTEST
    assert statuses == {200}
    await running_service.applied()
    await running_service.call("POST", "/v1/events", account, json={"msg_id": "m", "stage": "sent", "device_id": "d"})

    async def is_over() -> bool:
        return not journal._pace.pause

    await eventually(is_over)
