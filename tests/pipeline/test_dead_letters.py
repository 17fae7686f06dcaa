"""Dead letters: what cannot be applied is kept with its reason, counted, shown and sent back, and blocks nobody."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from typing import Any

import orjson
import pytest

from reportsvc.model import Fact
from reportsvc.pipeline import aggregator as aggregator_module
from reportsvc.pipeline import ledger
from reportsvc.pipeline.deadletter import DeadLetters
from reportsvc.pipeline.journal import append
from reportsvc.registry.apps import AppStore
from reportsvc.storage.redis import Redis, dead_letters_key, journal_key, ledger_key
from tests.faults.oracle import Oracle, send_all, send_while, stream
from tests.support.service import Account, Running

RECEIVED = Fact("received", "android", "jg_android").code
NOW = int(time.time())


def record(app_id: int, **changes: Any) -> bytes:
    """A good record of two events, but for *changes*."""
    return orjson.dumps({"type": "events", "app": app_id, "at": NOW, "msg_ids": ["m", "m"],
                         "device_ids": ["a", "b"], "codes": [RECEIVED] * 2, "times": [NOW] * 2,
                         "users": {}} | changes)


async def letters(running: Running) -> list[tuple[int, str, str, bytes]]:
    """Events, reason, detail and record of every dead letter."""
    found = await DeadLetters(running.service.redis, 1).list()
    return [(letter.events, letter.reason, letter.detail, letter.record) for letter in found]


async def counts(running: Running) -> dict[str, int]:
    """The ledger but for what was received at the door."""
    found = await ledger.read(running.service.redis, 1)
    return {name: count for name, count in found.items() if name != "received"}


async def command(running: Running, *arguments: str) -> list[str]:
    """The lines that a command of the service prints."""
    environment = {"PATH": os.environ["PATH"], "REPORTSVC_REDIS_URL": running.service.config.redis_url,
                   "REPORTSVC_DATA_DIR": str(running.service.config.data_dir)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "reportsvc", *arguments, env=environment,
                                                   stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().splitlines()


# ------------------------------------------------------------------------------------------------------------- burying
# a record of app 1 that cannot be applied -> how the detail of its letter begins
BAD = [
    (b"", "JSONDecodeError: "),
    (b'{"type":"events","app":', "JSONDecodeError: "),
    (b"\xff\xfe\x00", "JSONDecodeError: "),
    (b"[1, 2]", "TypeError: "),
    (b"{}", "KeyError: 'app'"),
    (record(1, type="from the future"), "ValueError: a record of type 'from the future' is not known here"),
    (record(1, codes=[RECEIVED]), "ValueError: the columns of a record differ in length"),
    (record(1, msg_ids=["m"] * 3), "ValueError: the columns of a record differ in length"),
    (record(1, codes=[RECEIVED, 1 << 20]), "IndexError: "),
    (record(1, codes=[RECEIVED, "x"]), "ValueError: "),
    (record(1, users={"2": "eve"}), "ValueError: a user of a record belongs to none of its events"),
    (record(1, device_ids=["a", None]), "AttributeError: "),
]


async def test_records_that_cannot_be_applied_are_kept(running_service: Running, account: Account) -> None:
    """Each goes to the dead letters as it is, with its reason; the good ones before, between and behind are applied."""
    assert account.app.id == 1
    oracle, events = Oracle(), stream(31, 200)
    oracle.tell(events)
    redis, call = running_service.service.redis, partial(running_service.call, account=account)
    await send_all(call, [events[:100]])
    await redis.run([append(0, [(1, record(1, msg_ids=["good"], device_ids=[f"g{number}"], codes=[RECEIVED],
                                           times=[NOW])), (2, bad)]) for number, (bad, _) in enumerate(BAD)])
    await send_all(call, [events[100:]])
    await running_service.applied(may_die=True)

    found = sorted(await letters(running_service), key=lambda letter: [bad for bad, _ in BAD].index(letter[3]))
    assert [(count, reason, bad) for count, reason, _, bad in found] == [(2, "unreadable", bad) for bad, _ in BAD]
    assert [detail[:len(start)] for (_, _, detail, _), (_, start) in zip(found, BAD, strict=True)] == [
        start for _, start in BAD]
    assert await counts(running_service) == {"accepted": 236, "applied": 212, "dead": 24, "dead_unreadable": 24}
    assert await redis.run([("XLEN", journal_key(0)), ("XLEN", dead_letters_key(0))]) == [0, 12]
    answer = await call("GET", "/v3/received?msg_ids=good,m")
    assert [item["android_received"] for item in answer.json] == [12, None]
    oracle.devices.update(f"g{number}" for number in range(12))
    await oracle.check(call)


async def test_entries_of_another_shape_block_nobody(running_service: Running, account: Account) -> None:
    """Something that is no journal entry at all counts as one event and is dead."""
    shapes = [["x", "y"], ["n", "two", "e", "{}"], ["n", "9" * 30, "e", "{}"], ["n", "-5", "e", "{}"]]
    await running_service.service.redis.run([
        *(("XADD", journal_key(0), "*", *fields) for fields in shapes), ("HINCRBY", ledger_key(0), "accepted", 4)])
    event = {"msg_id": "m", "stage": "received", "device_id": "d", "platform": "android"}
    assert (await running_service.call("POST", "/v1/events", account, json=event)).status == 200
    await running_service.applied(may_die=True)

    assert await counts(running_service) == {"accepted": 5, "applied": 1, "dead": 4, "dead_unreadable": 4}
    answer = await running_service.call("GET", "/v3/received?msg_ids=m", account)
    assert answer.json[0]["android_received"] == 1


async def test_only_the_bad_of_a_large_batch_are_dead(running_service: Running, account: Account) -> None:
    """Among hundreds of entries of one batch exactly the bad ones are found, and every good event is counted."""
    bad = [7, 8, 100, 299]
    entries = [(1, b"broken") if number in bad else (1, record(
        account.app.id, msg_ids=["m"], device_ids=[f"d{number}"], codes=[RECEIVED], times=[NOW]))
        for number in range(300)]
    await running_service.service.redis.run([append(0, entries)])
    await running_service.applied(may_die=True)

    assert await counts(running_service) == {"accepted": 300, "applied": 296, "dead": 4, "dead_unreadable": 4}
    answer = await running_service.call("GET", "/v3/received?msg_ids=m", account)
    assert answer.json[0]["android_received"] == 296


async def test_events_of_a_deleted_app_are_dead(running_service: Running, account: Account) -> None:
    """They are kept with a reason of their own, and the events of other apps beside them are counted."""
    service, other = running_service.service, await running_service.make_account("other")
    await AppStore(service.redis).delete(account.app)
    await service.apps.refresh()
    good = record(other.app.id)
    await service.redis.run([append(0, [(2, good), (2, record(account.app.id)), (2, good)])])
    await running_service.applied(may_die=True)

    assert await letters(running_service) == [
        (2, "app_deleted", f"UnknownApp: app {account.app.id} was deleted", record(account.app.id))]
    assert await counts(running_service) == {"accepted": 6, "applied": 4, "dead": 2, "dead_app_deleted": 2}
    answer = await running_service.call("GET", "/v3/received?msg_ids=m", other)
    assert answer.json[0]["android_received"] == 2


async def test_outage_buries_nothing(running_service: Running, account: Account) -> None:
    """While Redis refuses writes, good events wait; nothing is taken for bad because it could not be applied."""
    oracle, outages = Oracle(), 0
    redis, call = running_service.service.redis, partial(running_service.call, account=account)
    sending = asyncio.create_task(send_while(lambda: outages < 4, call, oracle, 33))
    while outages < 4:
        await asyncio.sleep(0.05)
        await redis.call("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(0.15)
        await redis.call("CONFIG", "SET", "maxmemory", "0")
        outages += 1
    refusals = await sending
    await running_service.applied(may_die=True)

    assert set(refusals) == {503}
    found = await counts(running_service)
    assert found == {"accepted": found["accepted"], "applied": found["accepted"], "dead": 0}
    await oracle.check(call)


# ------------------------------------------------------------------------------------------------- shown and sent back
async def test_letters_are_shown_and_sent_back(running_service: Running, account: Account) -> None:
    """The command lists each with its reason; what can be applied by then is applied when it is sent back."""
    missing = account.app.id + 1
    await running_service.service.redis.run([append(0, [(2, record(missing)), (1, b"broken")])])
    await running_service.applied(may_die=True)
    before = await DeadLetters(running_service.service.redis, 1).list()
    assert [letter.reason for letter in before] == ["app_deleted", "unreadable"]

    assert await command(running_service, "deadletters", "list") == [
        f"0/{before[0].id}  2 events  app_deleted  UnknownApp: app {missing} was deleted",
        f"0/{before[1].id}  1 events  unreadable  {before[1].detail}"]
    assert [orjson.loads(line) for line in await command(running_service, "deadletters", "list", "--json")] == [
        {"partition": 0, "id": letter.id, "events": letter.events, "reason": letter.reason, "detail": letter.detail,
         "record": letter.record.decode()} for letter in before]

    other = await running_service.make_account("the missing one")
    assert other.app.id == missing
    assert await command(running_service, "deadletters", "replay") == ["sent 3 events of 2 entries back"]
    await running_service.applied(may_die=True)
    answer = await running_service.call("GET", "/v3/received?msg_ids=m", other)
    assert answer.json[0]["android_received"] == 2
    assert [(letter.events, letter.reason, letter.record) for letter in await DeadLetters(
        running_service.service.redis, 1).list()] == [(1, "unreadable", b"broken")]
    # Accepted twice, dead three times: one letter was applied at last, the other died once more.
    assert await counts(running_service) == {"accepted": 6, "applied": 2, "dead": 4, "dead_app_deleted": 2,
                                             "dead_unreadable": 2}


async def test_one_letter_can_be_sent_back(running_service: Running, account: Account) -> None:
    """Naming an id sends that one back and leaves the others."""
    await running_service.service.redis.run([append(0, [(1, b"one"), (1, b"two"), (1, b"three")])])
    await running_service.applied(may_die=True)
    one, two, three = await DeadLetters(running_service.service.redis, 1).list()

    assert await command(running_service, "deadletters", "replay", two.id) == ["sent 1 events of 1 entries back"]
    await running_service.applied(may_die=True)
    left = await DeadLetters(running_service.service.redis, 1).list()
    assert [letter.record for letter in left] == [b"one", b"three", b"two"]
    assert [letter.id for letter in left[:2]] == [one.id, three.id]


async def test_sending_back_twice_sends_once(redis_url: str) -> None:
    """Two people who send the same letters back at once put each of them into the journal once."""
    redis = Redis(redis_url)
    await redis.call("FLUSHALL")
    await redis.call("XADD", dead_letters_key(0), "*", "n", 3, "e", "broken", "reason", "unreadable", "detail", "")
    store = DeadLetters(redis, 1)
    found = await store.list()
    sent = await asyncio.gather(store.replay(found), store.replay(found))

    assert sorted(sent) == [0, 3]
    assert (await redis.call("XLEN", journal_key(0)), await store.list()) == (1, [])
    await redis.close()


async def test_ledger_command_shows_the_dead(running_service: Running, account: Account) -> None:
    """The sums that have to balance can be read from the command line, without the service's help."""
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    await running_service.service.redis.run([append(0, [(5, b"broken")])])
    await running_service.applied(may_die=True)
    await running_service.service.ledger.stop()

    line, = await command(running_service, "ledger", "--json")
    assert orjson.loads(line) == {"received": 1, "accepted": 6, "applied": 1, "dead": 5, "dead_unreadable": 5}


async def test_burying_is_one_step(running_service: Running, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two aggregators that bury the same entry leave one letter and count it once."""
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_MILLISECONDS", 0)
    monkeypatch.setattr(aggregator_module, "_TAKEOVER_EVERY_SECONDS", 0)
    service = running_service.service
    applier = service.aggregators[0]._applier
    second = aggregator_module.Aggregator(service.redis, applier, 0, 0.0, "second")
    await second.start()
    for number in range(50):
        await service.redis.run([append(0, [(1, b"broken %d" % number)])])
    await running_service.applied(may_die=True)
    await second.stop()

    assert sorted(bad for _, _, _, bad in await letters(running_service)) == sorted(
        b"broken %d" % number for number in range(50))
    assert await counts(running_service) == {"accepted": 50, "applied": 0, "dead": 50, "dead_unreadable": 50}
