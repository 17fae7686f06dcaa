"""A push to everyone: its targets are the devices the app had at that moment, whatever happens to them later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from reportsvc.config import Config
from reportsvc.model import platform_rank
from reportsvc.registry.devices import BUCKETS, DeviceRegistry, bucket_of
from reportsvc.storage.redis import devices_key, journal_key
from tests.support.service import Account, Clock, Running, running

ANDROID = dict.fromkeys(("target", "online_push", "received", "click", "msg_click"))
IOS = dict.fromkeys(("apns_target", "apns_sent", "apns_received", "click", "target", "received"))
WINPHONE = dict.fromkeys(("mpns_target", "mpns_sent", "click"))


def devices(*names: str, platform: str = "android") -> list[dict[str, str]]:
    """Devices as they are registered."""
    return [{"device_id": name, "platform": platform} for name in names]


async def register(service: Running, account: Account, *names: str, platform: str = "android") -> None:
    """Register devices; when this returns, reports know them."""
    answer = await service.call("POST", "/v1/devices", account, json=devices(*names, platform=platform))
    assert answer.json == {"accepted": len(names), "rejected": 0, "errors": []}


async def delete(service: Running, account: Account, name: str) -> None:
    """Delete a device."""
    answer = await service.call("DELETE", f"/v1/devices/{name}", account)
    assert answer.json == {"device_id": name, "deleted": True}


async def push_to_all(service: Running, account: Account, msg_id: str, targets: int, **more: Any) -> None:
    """Register a push to everyone."""
    answer = await service.call("POST", "/v1/pushes", account, json={
        "msg_id": msg_id, "audience": "all", "payload": {}} | more)
    assert answer.json == {"msg_id": msg_id, "targets": targets}


async def targets(service: Running, account: Account, msg_id: str) -> dict[str, int | None]:
    """How many targets of each platform ``/v3/messages`` counts."""
    await service.applied()
    item, = (await service.call("GET", f"/v3/messages?msg_ids={msg_id}", account)).json
    android, ios, winphone = item["android"]["target"], item["ios"]["apns_target"], item["winphone"]["mpns_target"]
    assert item == {"msg_id": msg_id, "android": ANDROID | {"target": android}, "ios": IOS | {"apns_target": ios},
                    "winphone": WINPHONE | {"mpns_target": winphone}}
    return {name: count for name, count in (("android", android), ("ios", ios), ("winphone", winphone)) if count}


async def statuses(service: Running, account: Account, msg_id: str, *names: str) -> list[int]:
    """What ``/v3/status/message`` says of each device."""
    answer = await service.call("POST", "/v3/status/message", account, json={
        "msg_id": msg_id, "registration_ids": names})
    return [answer.json[name]["status"] for name in names]


async def pending(service: Running, account: Account, msg_id: str) -> list[str]:
    """Whom Pushy lists as pending."""
    answer = await service.call("GET", f"/pushes/{msg_id}?api_key={account.pushy_api_key}")
    return sorted(answer.json["push"]["pending_devices"])


@pytest.fixture
async def halted(running_service: Running) -> AsyncIterator[Running]:
    """A service that applies nothing until :func:`resume`."""
    for aggregator in running_service.service.aggregators:
        aggregator.kill()
        await aggregator.stop()
    yield running_service
    for aggregator in running_service.service.aggregators:
        await aggregator.stop()


async def resume(service: Running) -> None:
    """Apply everything."""
    for aggregator in service.service.aggregators:
        aggregator._stopping = False
        await aggregator.start()
    await service.applied()


# clock     0         :10           :20 push    :30
# a1, i1    here ................................. targets
# gone      here      deleted                      no target
# later                                          new: no target
async def test_targets_are_those_of_the_moment(running_service: Running, account: Account, clock: Clock) -> None:
    """Devices that came later or had gone before are no targets, and each target counts for its platform."""
    await register(running_service, account, "a1", "a2", "gone")
    await register(running_service, account, "i1", platform="ios")
    await register(running_service, account, "w1", "w2", "w3", platform="winphone")
    await running_service.send(account, {"msg_id": "before", "stage": "received", "device_id": "apns-1"})
    clock.ahead += 10
    await delete(running_service, account, "gone")
    clock.ahead += 10
    await push_to_all(running_service, account, "all", 7)
    clock.ahead += 10
    await register(running_service, account, "later")
    await running_service.send(account, {"msg_id": "after", "stage": "received", "device_id": "latest"})

    assert await targets(running_service, account, "all") == {"android": 2, "ios": 2, "winphone": 3}
    names = ("a1", "a2", "i1", "apns-1", "w1", "gone", "later", "latest", "nobody")
    assert await statuses(running_service, account, "all", *names) == [1, 1, 1, 1, 1, 2, 3, 3, 2]
    assert await pending(running_service, account, "all") == ["a1", "a2"]


# clock      0      :10        :20 push    :30
# returned   here   deleted                returns: was away at :20
# back       here   deleted, returns       target
# left       here                          deleted: was there at :20
async def test_deletions_count_as_of_the_push(running_service: Running, account: Account, clock: Clock) -> None:
    """Who was away at the push is no target though he is back now; who left after it stays counted as one."""
    await register(running_service, account, "stays", "returned", "back", "left")
    clock.ahead += 10
    await delete(running_service, account, "returned")
    await delete(running_service, account, "back")
    clock.ahead += 5
    await register(running_service, account, "back")
    clock.ahead += 5
    await push_to_all(running_service, account, "all", 3)
    clock.ahead += 10
    await register(running_service, account, "returned")
    await delete(running_service, account, "left")

    assert await targets(running_service, account, "all") == {"android": 3}
    assert await statuses(running_service, account, "all", "stays", "returned", "back", "left") == [1, 3, 1, 2]
    assert await pending(running_service, account, "all") == ["back", "stays"]


# clock    0     :10       :20       :30 push   :40 registers once more, as apps do at each start
# back     here  deleted   returns   target     still a target
async def test_registering_again_does_not_undo_a_target(halted: Running, account: Account, clock: Clock) -> None:
    """A device that had come back before the push is a target, however late all of that is applied."""
    await register(halted, account, "stays", "back")
    clock.ahead += 10
    await delete(halted, account, "back")
    clock.ahead += 10
    await register(halted, account, "back")
    clock.ahead += 10
    await push_to_all(halted, account, "all", 2)
    clock.ahead += 10
    await register(halted, account, "back")
    await resume(halted)

    assert await targets(halted, account, "all") == {"android": 2}
    assert await statuses(halted, account, "all", "stays", "back") == [1, 1]
    assert await pending(halted, account, "all") == ["back", "stays"]


async def test_coming_back_within_a_second(running_service: Running, account: Account, clock: Clock) -> None:
    """A device that is deleted and registered in one second is there, and one that is deleted after that is not."""
    await register(running_service, account, "stays", "back", "gone")
    for name in ("back", "gone"):
        await delete(running_service, account, name)
        await register(running_service, account, name)
    await delete(running_service, account, "gone")
    clock.ahead += 10
    await push_to_all(running_service, account, "all", 2)

    assert await targets(running_service, account, "all") == {"android": 2}
    assert await statuses(running_service, account, "all", "stays", "back", "gone") == [1, 1, 2]
    assert await pending(running_service, account, "all") == ["back", "stays"]


async def test_kind_and_channel_are_those_of_the_push(running_service: Running, account: Account) -> None:
    """A broadcast of a custom message counts as targets of messages."""
    await register(running_service, account, "i1", "i2", platform="ios")
    await push_to_all(running_service, account, "all", 2, kind="message", channel="jg_ios")
    await running_service.applied()

    item, = (await running_service.call("GET", "/v3/messages?msg_ids=all", account)).json
    assert item["ios"] == IOS | {"target": 2}


async def test_nobody_is_a_target_of_an_app_without_devices(running_service: Running, account: Account) -> None:
    """A push to everyone in an empty app has no target, and its reports say so."""
    await push_to_all(running_service, account, "all", 0)
    assert await targets(running_service, account, "all") == {}
    await register(running_service, account, "later")
    assert await targets(running_service, account, "all") == {}
    assert await statuses(running_service, account, "all", "later") == [3]
    assert await pending(running_service, account, "all") == []


async def test_other_apps_have_no_part_in_it(running_service: Running, account: Account) -> None:
    """A broadcast reaches the devices of its own app only."""
    other = await running_service.make_account("other")
    await register(running_service, account, "a1")
    await register(running_service, other, "a1", "b1", "b2")
    await push_to_all(running_service, account, "all", 1)

    assert await targets(running_service, account, "all") == {"android": 1}
    assert await targets(running_service, other, "all") == {}


async def test_registering_it_again_changes_nothing(running_service: Running, account: Account, clock: Clock) -> None:
    """A sender that repeats the registration after more devices came gets the same push with the same targets."""
    await register(running_service, account, "a1", "a2")
    await push_to_all(running_service, account, "all", 2)
    clock.ahead += 10
    await register(running_service, account, "a3")
    await push_to_all(running_service, account, "all", 2)

    assert await targets(running_service, account, "all") == {"android": 2}
    assert await statuses(running_service, account, "all", "a2", "a3") == [1, 3]


# ---------------------------------------------------------------------------------- devices that are not yet stored
async def test_devices_not_yet_stored_are_counted(running_service: Running, account: Account) -> None:
    """Devices that another process has numbered, and not brought to ClickHouse yet, are targets all the same."""
    names = [f"d{number}" for number in range(200)]
    await register(running_service, account, *names[:100])
    await running_service.applied()
    registry = DeviceRegistry(running_service.service.redis)
    # As an aggregator that was killed between its first two steps leaves them.
    await registry.number(account.app.id, {name: platform_rank(name, "ios") for name in names[100:]}, 0,
                          registering=False)
    await push_to_all(running_service, account, "all", 200)

    assert await targets(running_service, account, "all") == {"android": 100, "ios": 100}
    assert await statuses(running_service, account, "all", "d0", "d199") == [1, 1]


async def test_deletions_not_yet_stored_are_heeded(running_service: Running, account: Account, clock: Clock) -> None:
    """What another partition has not applied yet: a deletion makes no target, a return makes one."""
    await register(running_service, account, "stays", "gone", "back")
    await running_service.applied()
    registry = DeviceRegistry(running_service.service.redis)
    await delete(running_service, account, "back")
    await running_service.applied()
    clock.ahead += 10
    now = int(clock())
    await registry.number(account.app.id, {"back": 0}, now, registering=True)
    await registry.delete(account.app.id, "gone", now)
    clock.ahead += 10
    await push_to_all(running_service, account, "all", 2)

    assert await targets(running_service, account, "all") == {"android": 2}
    assert await pending(running_service, account, "all") == ["back", "stays"]


async def apply_pushes_first(service: Running) -> None:
    """Apply the journal's streams one after the other, beginning with those that have a push."""
    streams = await service.service.redis.run([
        ("XRANGE", journal_key(partition), "-", "+") for partition in range(service.service.config.partitions)])
    has_push = [b'"type":"push"' in b"".join(fields[b"e"] for _, fields in entries) for entries in streams]
    assert 0 < sum(has_push) < len(has_push)
    for _, aggregator in sorted(zip(has_push, service.service.aggregators, strict=True), key=lambda pair: not pair[0]):
        aggregator._stopping = False
        await aggregator.start()
        await aggregator.stop()


async def test_order_between_partitions_does_not_matter(config: Config, clock: Clock, database: str) -> None:
    """With several partitions a push may be applied before the registrations it counts on, and counts the same."""
    async with running(replace(config, partitions=3), clock, database) as service:
        account = await service.make_account()
        for aggregator in service.service.aggregators:
            await aggregator.stop()
        for number in range(30):
            await register(service, account, f"d{number}")
        clock.ahead += 10
        await push_to_all(service, account, "first", 30)
        await apply_pushes_first(service)
        assert await targets(service, account, "first") == {"android": 30}

        # The deletion goes to one partition, the push to another.
        clock.ahead += 10
        await delete(service, account, "d0")
        clock.ahead += 10
        await push_to_all(service, account, "second", 29)
        clock.ahead += 10
        await register(service, account, "later")
        await apply_pushes_first(service)
        assert await targets(service, account, "second") == {"android": 29}
        assert await statuses(service, account, "second", "d0", "d1", "d29", "later") == [2, 1, 1, 3]


async def test_pending_waits_for_devices_to_be_stored(running_service: Running, account: Account) -> None:
    """While a pending device cannot be named, the answer is 503 rather than a list without it."""
    await register(running_service, account, "a1")
    await push_to_all(running_service, account, "all", 1)
    await running_service.applied()
    await running_service.service.clickhouse.command("TRUNCATE TABLE devices")

    answer = await running_service.call("GET", f"/pushes/all?api_key={account.pushy_api_key}")
    assert (answer.status, answer.json) == (503, {
        "code": "SERVICE_UNAVAILABLE", "error": "clickhouse is unavailable"})


async def test_more_devices_than_a_chunk(running_service: Running, account: Account) -> None:
    """Numbers over the border of a chunk are targets like all others; free numbers between them are none."""
    app_id, redis = account.app.id, running_service.service.redis
    near = next(f"d{number}" for number in range(10_000) if bucket_of(f"d{number}") == 5)
    far = next(f"e{number}" for number in range(10_000) if bucket_of(f"e{number}") == 5)
    await register(running_service, account, near)
    await running_service.applied()
    # The next number of bucket 5 lies in the chunk after the first: 1024 * 64 + 5.
    await redis.call("HSET", devices_key(app_id, 5), "", "1024:1023")
    await register(running_service, account, far)
    assert (await DeviceRegistry(redis).find(app_id, [far]))[0] == (1024 * BUCKETS + 5, 9, 0, 0)
    await push_to_all(running_service, account, "all", 2)

    assert await targets(running_service, account, "all") == {"android": 2}
    assert await statuses(running_service, account, "all", near, far) == [1, 1]
