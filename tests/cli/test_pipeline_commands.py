"""``reportsvc ledger`` and ``reportsvc deadletters``: what became of the events, also while the service runs."""

from __future__ import annotations

from typing import Any

import orjson

from reportsvc.config import Config
from reportsvc.model import EventBatch, Fact
from reportsvc.pipeline import ledger
from reportsvc.storage.redis import rejections_key
from tests.cli.program import Done, reportsvc
from tests.support.service import Account, Running, eventually


async def test_ledger_tells_what_became_of_events(config: Config, running_service: Running, account: Account) -> None:
    """Good, bad and skewed events are each in the ledger, as JSON and as lines."""
    good = {"msg_id": 1, "stage": "received", "device_id": "d1"}
    answer = await running_service.call("POST", "/v1/events", account, json=[
        good, good | {"ts": 1}, good | {"stage": "seen"}, good | {"stage": "eaten"}, good | {"device_id": ""}])
    assert answer.json["rejected"] == 3
    await running_service.applied()

    async def is_written() -> bool:
        return bool(await running_service.service.redis.call("EXISTS", rejections_key()))
    await eventually(is_written)
    done = await reportsvc("ledger", "--json", redis_url=config.redis_url)
    plain = await reportsvc("ledger", redis_url=config.redis_url)

    counts = {"received": 5, "accepted": 2, "applied": 2, "dead": 0, "rejected_stage": 2, "rejected_device_id": 1,
              "skewed": 1}
    assert (done.status, done.errors, done.json) == (0, "", counts)
    assert {line.split()[0]: int(line.split()[1]) for line in plain.output.splitlines()} == counts


async def test_ledger_of_nothing(config: Config) -> None:
    """Where nothing happened, the four that always hold are zero."""
    done = await reportsvc("ledger", "--json", redis_url=config.redis_url)

    assert done.json == {"received": 0, "accepted": 0, "applied": 0, "dead": 0}


async def test_dead_letters_are_listed_and_sent_back(config: Config, running_service: Running) -> None:
    """What could not be applied is listed with its reason and its record, and sent back, one or all."""
    service = running_service.service
    code = Fact("received").code
    for app_id, devices in ((4711, ["d1", "d2"]), (4712, ["d3"])):
        await service.journal.append(EventBatch(app_id, ["1"] * len(devices), devices, [code] * len(devices),
                                                [int(running_service.clock())] * len(devices)))
    await running_service.applied(may_die=True)

    listed = await reportsvc("deadletters", "list", "--json", redis_url=config.redis_url)
    plain = await reportsvc("deadletters", "list", "--limit", "1", redis_url=config.redis_url)
    letters: list[dict[str, Any]] = [orjson.loads(line) for line in listed.output.splitlines()]
    assert {tuple(letter) for letter in letters} == {("partition", "id", "events", "reason", "detail", "record")}
    assert sorted((letter["events"], letter["reason"], letter["detail"]) for letter in letters) == [
        (1, "app_deleted", "UnknownApp: app 4712 was deleted"), (2, "app_deleted", "UnknownApp: app 4711 was deleted")]
    assert sorted(orjson.loads(letter["record"])["device_ids"] for letter in letters) == [["d1", "d2"], ["d3"]]
    first = letters[0]
    assert plain.output == (f"{first['partition']}/{first['id']}  {first['events']} events  app_deleted  "
                            f"{first['detail']}\n")

    # Their app is still unknown, so they die once more; the ledger counts that.
    sent = await reportsvc("deadletters", "replay", f"0/{first['id']}", redis_url=config.redis_url)
    await running_service.applied(may_die=True)
    again = await reportsvc("deadletters", "replay", redis_url=config.redis_url)
    await running_service.applied(may_die=True)

    assert sent == Done(0, f"sent {first['events']} events of 1 entries back\n", "")
    assert again == Done(0, "sent 3 events of 2 entries back\n", "")
    counts = await ledger.read(service.redis, 1)
    expected = 3 + first["events"] + 3
    assert {name: counts[name] for name in ("accepted", "applied", "dead", "dead_app_deleted")} == {
        "accepted": expected, "applied": 0, "dead": expected, "dead_app_deleted": expected}
