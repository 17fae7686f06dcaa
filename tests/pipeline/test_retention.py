"""Retention: a message lives a month from its last delivery, as a whole, and then is gone as a whole."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.model import dies_at
from reportsvc.pipeline.ledger import read
from reportsvc.pipeline.sweep import Sweep
from reportsvc.registry import messages as messages_module
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import devices_key, message_key
from tests.support.service import Account, Clock, Running, eventually, running

DAY = 86400
NOTHING = dict.fromkeys(("android_received", "ios_apns_sent", "ios_apns_received", "ios_msg_received", "wp_mpns_sent"))


def receipts(msg_id: str, devices: range, **more: Any) -> list[dict[str, Any]]:
    """One event for each device."""
    return [{"msg_id": msg_id, "stage": "received", "device_id": f"d{device}", "platform": "android"} | more
            for device in devices]


async def received(service: Running, account: Account, *msg_ids: str) -> list[int | None]:
    """How many android devices have each message, as ``/v3/received`` says."""
    answer = await service.call("GET", f"/v3/received?msg_ids={','.join(msg_ids)}", account)
    assert answer.json == [{"msg_id": msg_id} | NOTHING | {"android_received": item["android_received"]}
                           for msg_id, item in zip(msg_ids, answer.json, strict=True)]
    return [item["android_received"] for item in answer.json]


async def statuses(service: Running, account: Account, msg_id: str, *devices: str, date: str = "") -> list[int]:
    """What ``/v3/status/message`` says of each device."""
    answer = await service.call("POST", "/v3/status/message", account, json={
        "msg_id": msg_id, "registration_ids": devices, "date": date})
    assert list(answer.json) == list(devices)
    return [answer.json[device]["status"] for device in devices]


async def keys(service: Running, account: Account, msg_id: str) -> list[bytes]:
    """The keys of a message in Redis."""
    return sorted(await service.service.redis.scan(f"?{{{account.app.id}:{msg_id}[:}}]*"))


async def rows(service: Running, msg_id: str) -> list[int]:
    """How many rows of a message ClickHouse has, in ``delivery`` and in ``pushes``."""
    return [(await service.service.clickhouse.query(
        f"SELECT count() FROM {table} WHERE msg_id = {{msg_id:String}}", {"msg_id": msg_id}, label="test"))[0][0]
        for table in ("delivery", "pushes")]


async def last_delivery(service: Running, msg_id: str) -> int:
    """When ClickHouse says that the message was delivered last."""
    found = await service.service.clickhouse.query(
        "SELECT toUnixTimestamp(max(last)) FROM delivery WHERE msg_id = {msg_id:String}", {"msg_id": msg_id},
        label="test")
    return int(found[0][0])


def advance_to(clock: Clock, moment: float) -> None:
    """Put the clock forward to *moment*, unix seconds."""
    assert moment >= clock()
    clock.ahead = moment - time.time()


# ------------------------------------------------------------------------------------------------------------ the month
async def test_month_is_that_of_clickhouse(running_service: Running) -> None:
    """Both stores let a message die at the same second, at every end of a month and at any other time."""
    rng = random.Random(2)
    days = [int(datetime(year, month, day, tzinfo=UTC).timestamp())
            for year in (2024, 2025, 2026, 2027, 2028, 2096, 2100) for month in range(1, 13)
            for day in (1, 2, 27, 28, 29, 30, 31) if day <= 28 or _exists(year, month, day)]
    times = [*days, *(day + DAY - 1 for day in days), *(rng.randrange(2 ** 32 - 40 * DAY) for _ in range(2000))]

    found = await running_service.service.clickhouse.query(
        "SELECT arrayMap(time -> toUnixTimestamp(addMonths(toDateTime(time, 'UTC'), 1)), {times:Array(UInt32)})",
        {"times": times}, label="test")
    assert [dies_at(moment) for moment in times] == list(found[0][0])


def _exists(year: int, month: int, day: int) -> bool:
    try:
        datetime(year, month, day)
    except ValueError:
        return False
    return True


# day      0 .......... 20 ................ 45 ..... 46
# devices  d0-d99       d100-d102           d103-104
# parts    each delivery makes a part; the oldest is over a month old when the newest comes
async def test_old_part_of_a_living_message_is_kept(running_service: Running, account: Account, clock: Clock) -> None:
    """The deliveries of over a month ago still count while newer ones keep the message alive, merged or swept."""
    await running_service.send(account, *receipts("m", range(100)))
    clock.ahead += 20 * DAY
    await running_service.send(account, *receipts("m", range(100, 103)))
    clock.ahead += 25 * DAY
    assert await received(running_service, account, "m") == [103]
    await running_service.send(account, *receipts("m", range(103, 105)))

    assert await received(running_service, account, "m") == [105]
    await running_service.service.clickhouse.command("OPTIMIZE TABLE delivery FINAL")
    assert await received(running_service, account, "m") == [105]
    assert await running_service.service.sweep.run() == 0
    clock.ahead += DAY
    await running_service.service.clickhouse.command("OPTIMIZE TABLE delivery FINAL")
    assert await received(running_service, account, "m") == [105]
    assert await statuses(running_service, account, "m", "d0", "d102", "d104", "d105") == [0, 0, 0, 2]
    # ClickHouse knows by itself that the message lives, should Redis know nothing of it any more.
    await running_service.service.redis.call("DEL", message_key(account.app.id, "m"))
    assert await running_service.service.sweep.run() == 0
    assert await received(running_service, account, "m") == [105]


# last delivery      its month is over        the sweep
#      |--- alive ----------|--- gone from reports ---|--- gone from both stores
async def test_silent_message_is_gone_at_once(running_service: Running, account: Account, clock: Clock) -> None:
    """At the second its month ends a message is gone from every report; the sweep then leaves nothing of it."""
    await running_service.call("POST", "/v1/pushes", account, json={
        "msg_id": "m", "audience": {"device_ids": ["d0", "d1", "d2"]}, "payload": {}, "time_to_live": DAY})
    await running_service.send(account, *receipts("m", range(2)), *receipts("other", range(1)))
    end = dies_at(await last_delivery(running_service, "m"))
    advance_to(clock, end - 30)
    assert await received(running_service, account, "m") == [2]
    assert await statuses(running_service, account, "m", "d0", "d2", "nobody") == [0, 1, 2]
    await running_service.send(account, *receipts("other", range(1, 2)))

    advance_to(clock, end)
    assert await received(running_service, account, "m", "other") == [None, 2]
    assert await statuses(running_service, account, "m", "d0", "d2", "nobody") == [3, 3, 2]
    answer = await running_service.call("GET", "/v3/messages?msg_ids=m", account)
    assert [value for platform in ("android", "ios", "winphone") for value in answer.json[0][platform].values()] == (
        [None] * 14)
    assert await keys(running_service, account, "m") == [b"m{1:m}", b"r{1:m:0}"]
    assert (await rows(running_service, "m"))[0] > 0

    assert await running_service.service.sweep.run() == 1
    assert (await keys(running_service, account, "m"), await rows(running_service, "m")) == ([], [0, 0])
    assert await received(running_service, account, "m", "other") == [None, 2]
    assert await statuses(running_service, account, "other", "d0", "d1", "d2") == [0, 0, 3]
    assert await running_service.service.sweep.run() == 0


async def test_sweep_removes_by_itself(config: Config, clock: Clock, database: str) -> None:
    """The service sweeps in the background, at its interval, without being asked."""
    async with running(replace(config, sweep_interval=1), clock, database) as service:
        account = await service.make_account()
        await service.send(account, *receipts("m", range(3)))
        clock.ahead += 32 * DAY

        async def is_gone() -> bool:
            return await keys(service, account, "m") == [] and await rows(service, "m") == [0, 0]
        await eventually(is_gone)


async def test_sets_of_any_size_are_removed(running_service: Running, account: Account, clock: Clock) -> None:
    """The sweep removes every chunk of a message's sets, also when Redis has dropped the message's hash before."""
    await running_service.call("POST", "/v1/devices", account, json=[{"device_id": f"x{n}"} for n in range(3000)])
    redis = running_service.service.redis
    # Numbers are interleaved over the buckets, so few devices of one bucket are enough to reach another chunk.
    await redis.call("HSET", devices_key(account.app.id, 0), "", "2000:0")
    await running_service.send(account, *receipts("listed", range(500)), *receipts("unlisted", range(500)))
    assert [len(await keys(running_service, account, msg_id)) for msg_id in ("listed", "unlisted")] == [3, 3]
    await redis.call("DEL", message_key(account.app.id, "unlisted"))
    clock.ahead += 40 * DAY

    assert await running_service.service.sweep.run() == 2
    assert [await keys(running_service, account, msg_id) for msg_id in ("listed", "unlisted")] == [[], []]


# ----------------------------------------------------------------------------------------------------- late deliveries
# day       -3 (the event happened)     0 (it arrives)      +25        +32
# hour row  |........................... received now        counted    over
async def test_late_event_counts_where_it_belongs(running_service: Running, account: Account, clock: Clock) -> None:
    """An event of a past hour counts, on its own day, and keeps its message alive from when it arrived."""
    # Away from midnight, so that today stays today.
    advance_to(clock, (clock() // DAY + 1.5) * DAY)
    happened = int(clock()) - 3 * DAY
    await running_service.send(account, *receipts("m", range(2), ts=happened),
                               *receipts("m", range(2, 3), ts=int(clock())))
    days = [datetime.fromtimestamp(happened + offset * DAY, UTC).strftime("%Y-%m-%d") for offset in (-1, 0, 1, 3)]

    assert await received(running_service, account, "m") == [3]
    found = [await statuses(running_service, account, "m", "d0", "d2", "nobody", date=day) for day in days]
    assert found == [[2, 2, 2], [0, 2, 2], [0, 2, 2], [0, 0, 2]]
    clock.ahead += 27 * DAY  # thirty days after it happened, and no sweep may take it
    assert await running_service.service.sweep.run() == 0
    assert await received(running_service, account, "m") == [3]
    clock.ahead += 5 * DAY
    assert await received(running_service, account, "m") == [None]


async def test_event_as_old_as_its_month_is_counted(running_service: Running, account: Account, clock: Clock) -> None:
    """An event that was under way for 30 days is not dropped on arrival, nor by a merge."""
    await running_service.send(account, *receipts("m", range(5), ts=int(clock()) - 30 * DAY))
    await running_service.service.clickhouse.command("OPTIMIZE TABLE delivery FINAL")

    assert await received(running_service, account, "m") == [5]
    clock.ahead += 27 * DAY
    assert await received(running_service, account, "m") == [5]


# day    0 push, a month of silence      45                    61 it expires
# push   |-- pending devices ------------------------------------|
# counts |------------------------|
async def test_push_is_kept_until_it_expires(running_service: Running, account: Account, clock: Clock) -> None:
    """A push that lives longer than its statistics keeps its record and its pending devices until then."""
    path = f"/pushes/long?api_key={account.pushy_api_key}"
    await running_service.call("POST", "/v1/pushes", account, json={
        "msg_id": "long", "audience": {"device_ids": ["d0", "d1", "d2"]}, "payload": {}, "time_to_live": 60 * DAY})
    await running_service.send(account, *receipts("long", range(1)))
    clock.ahead += 45 * DAY
    assert await received(running_service, account, "long") == [None]
    assert await running_service.service.sweep.run() == 0
    answer = await running_service.call("GET", path)
    assert sorted(answer.json["push"]["pending_devices"]) == ["d1", "d2"]

    # A device that gets it now brings its statistics back to life.
    await running_service.send(account, *receipts("long", range(1, 2)))
    assert (await running_service.call("GET", path)).json["push"]["pending_devices"] == ["d2"]
    assert await received(running_service, account, "long") == [2]

    clock.ahead += 47 * DAY
    assert (await running_service.call("GET", path)).status == 400
    assert await running_service.service.sweep.run() == 1
    assert (await keys(running_service, account, "long"), await rows(running_service, "long")) == ([], [0, 0])


# ------------------------------------------------------------------------------------------- a delivery during a sweep
class PausedQueries(Queries):
    """Stops before it removes rows, or after, until it is let go on."""

    def __init__(self, like: Queries, *, before: bool) -> None:
        super().__init__(like._clickhouse)
        self._before = before
        self.is_paused = asyncio.Event()
        self.go_on = asyncio.Event()

    async def delete_messages(self, messages: Sequence[tuple[int, str]], silent_since: int) -> None:
        """As always, with a pause."""
        if not self._before:
            await super().delete_messages(messages, silent_since)
        self.is_paused.set()
        await self.go_on.wait()
        if self._before:
            await super().delete_messages(messages, silent_since)


@asynccontextmanager
async def paused_sweep(service: Running, clock: Clock, *, before: bool) -> AsyncIterator[tuple[Sweep, PausedQueries]]:
    """A sweep that has marked what is dead, and has emptied Redis of it, and is stopped there."""
    queries = PausedQueries(service.service.queries, before=before)
    sweep = Sweep(service.service.redis, queries, 3600, clock)
    await sweep.start()
    await queries.is_paused.wait()
    try:
        yield sweep, queries
    finally:
        await sweep.stop()


async def is_settled(service: Running) -> bool:
    counts = await read(service.service.redis, service.service.config.partitions)
    return counts["accepted"] == counts["applied"]


# sweep   mark -- sets removed -- | rows removed --------- mark removed
# event                           | waits ............................ counted
@pytest.mark.parametrize("before", [True, False])
async def test_delivery_during_a_sweep_is_not_lost(running_service: Running, account: Account, clock: Clock,
                                                   before: bool) -> None:
    """It waits until the old is gone, wherever the sweep stands, and then counts alone."""
    await running_service.send(account, *receipts("m", range(50)), *receipts("alive", range(2)))
    clock.ahead += 20 * DAY
    await running_service.send(account, *receipts("alive", range(1)))
    clock.ahead += 20 * DAY
    async with paused_sweep(running_service, clock, before=before) as (_, queries):
        answer = await running_service.call("POST", "/v1/events", account, json=receipts("m", range(49, 51)))
        assert answer.json == {"accepted": 2, "rejected": 0, "errors": []}
        await asyncio.sleep(0.2)
        assert not await is_settled(running_service)
        queries.go_on.set()
        await running_service.applied()

        assert await received(running_service, account, "m", "alive") == [2, 2]
        assert await statuses(running_service, account, "m", "d0", "d49", "d50") == [3, 0, 0]
        assert await running_service.service.sweep.run() == 0
        assert await received(running_service, account, "m", "alive") == [2, 2]


# sweep   mark -- killed                          mark -- rows removed -- killed
# event           waits for the mark to be old            waits for the mark to be old
@pytest.mark.parametrize("before", [True, False])
async def test_killed_sweep_does_not_block(running_service: Running, account: Account, clock: Clock, before: bool,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of a sweep that died keeps a new delivery waiting for a moment only, and nothing of that is lost."""
    monkeypatch.setattr(messages_module, "_REMOVAL_SECONDS", 2)
    await running_service.send(account, *receipts("m", range(50)))
    clock.ahead += 40 * DAY
    async with paused_sweep(running_service, clock, before=before):
        pass  # stopped where it stands

    await running_service.send(account, *receipts("m", range(60, 61)))
    assert await statuses(running_service, account, "m", "d60") == [0]
    await running_service.service.sweep.run()
    assert await statuses(running_service, account, "m", "d60") == [0]
    # Rows that a sweep had not come to remove are part of a message that lives again.
    assert await received(running_service, account, "m") == [51 if before else 1]


# sweep   mark .................. (its mark is too old by now) ... goes on to its end
# event          waits ......... counted
async def test_slow_sweep_spares_what_came_meanwhile(running_service: Running, account: Account, clock: Clock,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep so slow that a delivery stopped waiting for it does not remove that delivery from either store."""
    monkeypatch.setattr(messages_module, "_REMOVAL_SECONDS", 1)
    await running_service.send(account, *receipts("m", range(50)))
    clock.ahead += 40 * DAY
    async with paused_sweep(running_service, clock, before=True) as (_, queries):
        await running_service.send(account, *receipts("m", range(60, 61)))
        queries.go_on.set()

        async def is_swept() -> bool:
            return await received(running_service, account, "m") == [1]
        await eventually(is_swept)
        await asyncio.sleep(0.1)
        assert await statuses(running_service, account, "m", "d0", "d60") == [3, 0]
        assert await received(running_service, account, "m") == [1]


# ------------------------------------------------------------------------------------- sweeps in several processes
# sweep 1   mark -- sets removed -- | .............. rows removed -- mark removed
# sweep 2                           | leaves it alone
async def test_sweep_leaves_alone_what_another_removes(running_service: Running, account: Account,
                                                       clock: Clock) -> None:
    """Of two sweeps one removes a message; the other finds it marked and does not touch it."""
    await running_service.send(account, *receipts("m", range(50)))
    clock.ahead += 40 * DAY
    async with paused_sweep(running_service, clock, before=True) as (_, queries):
        assert await running_service.service.sweep.run() == 0
        queries.go_on.set()

        async def is_gone() -> bool:
            return not await running_service.service.redis.call("EXISTS", message_key(account.app.id, "m"))
        await eventually(is_gone)
        assert await running_service.service.sweep.run() == 0  # nothing is left to remove


# sweep 1   mark ........ (its mark is too old) ........ goes on to its end
# sweep 2                 marks it again ............................................ goes on to its end
# event                                                                     waits ................... counted
async def test_slow_sweep_leaves_the_mark_of_the_next(running_service: Running, account: Account, clock: Clock,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that took so long that another began anew does not let a delivery in between that one's steps."""
    monkeypatch.setattr(messages_module, "_REMOVAL_SECONDS", 1)
    await running_service.send(account, *receipts("m", range(50)))
    clock.ahead += 40 * DAY
    async with paused_sweep(running_service, clock, before=True) as (_, held):
        await asyncio.sleep(2.1)
        async with paused_sweep(running_service, clock, before=True) as (_, queries):
            monkeypatch.setattr(messages_module, "_REMOVAL_SECONDS", 60)
            held.go_on.set()
            await eventually(lambda: has_removed_rows(running_service))
            await asyncio.sleep(0.2)
            answer = await running_service.call("POST", "/v1/events", account, json=receipts("m", range(60, 61)))
            assert answer.status == 200
            await asyncio.sleep(0.2)
            assert not await is_settled(running_service)
            queries.go_on.set()
            await running_service.applied()
    assert await statuses(running_service, account, "m", "d0", "d60") == [3, 0]
    assert await received(running_service, account, "m") == [1]


async def has_removed_rows(service: Running) -> bool:
    """Whether ClickHouse has nothing of any message."""
    return await service.service.queries.dead_messages(int(service.clock()), 1) == []


async def test_push_cannot_be_registered_into_a_removal(running_service: Running, account: Account,
                                                        clock: Clock) -> None:
    """Who registers the id of a message that is just being removed is told to come again, and then gets a new push."""
    body = {"msg_id": "m", "audience": {"device_ids": ["d7"]}, "payload": {}}
    await running_service.send(account, *receipts("m", range(5)))
    clock.ahead += 40 * DAY
    async with paused_sweep(running_service, clock, before=True) as (_, queries):
        answer = await running_service.call("POST", "/v1/pushes", account, json=body)
        assert (answer.status, answer.json["error"]["code"], answer.headers["Retry-After"]) == (503, "unavailable", "2")
        queries.go_on.set()

        async def is_registered() -> bool:
            return (await running_service.call("POST", "/v1/pushes", account, json=body)).status == 201
        await eventually(is_registered)
    await running_service.applied()
    assert await statuses(running_service, account, "m", "d0", "d7") == [3, 1]
    assert await received(running_service, account, "m") == [None]
