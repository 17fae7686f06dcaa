"""Pushes to interests and to users: who is meant is who has them at that moment, whatever comes later."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from reportsvc.registry.audiences import Members
from reportsvc.registry.devices import BUCKETS
from reportsvc.registry.interests import subscribers
from reportsvc.registry.messages import targets_of
from reportsvc.storage.device_set import DeviceSet, chunks_below, small_chunk_limit
from reportsvc.storage.redis import devices_key
from tests.api.helpers import native_error
from tests.support.beams import Phone, pending, push, register, statuses
from tests.support.service import Account, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")
A_MILLION = 1_000_000


@pytest_asyncio.fixture(loop_scope="module")
async def account(shared_service: Running) -> Account:
    """A new app of the service that the tests of this file share."""
    return await shared_service.make_account(f"test {uuid.uuid4()}")


async def subscribed(service: Running, account: Account, *interests: str, platform: str = "fcm") -> Phone:
    """A new device that has *interests*."""
    phone = await register(service, account, platform)
    await phone.add(*interests)
    return phone


# ------------------------------------------------------------------------------------------------------------ interests
async def test_a_push_is_for_all_who_have_one_of_its_interests(shared_service: Running, account: Account) -> None:
    """A device with several of the interests is one target, and one with none of them is no target."""

    a, b, both, none = [await subscribed(shared_service, account, *interests)
                        for interests in (["a"], ["b"], ["a", "b"], ["c"])]

    assert await push(shared_service, account, "m", interests=["a", "b", "nobody-has-this"]) == 3

    ids = [phone.id for phone in (a, b, both, none)]
    assert await statuses(shared_service, account, "m", *ids) == [1, 1, 1, 3]
    await shared_service.applied()
    assert await statuses(shared_service, account, "m", *ids) == [1, 1, 1, 3]
    assert await pending(shared_service, account, "m") == {a.id, b.id, both.id}


async def test_targets_of_each_platform_are_counted(shared_service: Running, account: Account) -> None:
    """The report has the targets of a set like any others: by platform, and as receipts and clicks come in."""

    phones = [await subscribed(shared_service, account, "news", platform=platform)
              for platform in ("apns", "apns", "fcm", "fcm", "fcm", "web")]
    assert await push(shared_service, account, "m", interests=["news"]) == 6
    await shared_service.send(account, *({"msg_id": "m", "stage": stage, "device_id": phones[2].id}
                                         for stage in ("received", "click")))

    answer = await shared_service.call("GET", "/v3/messages?msg_ids=m&web=1", account)

    assert answer.json == [{
        "android": {"received": 1, "target": 3, "online_push": None, "click": 1, "msg_click": None},
        "ios": {"apns_sent": None, "apns_target": 2, "apns_received": None, "click": None, "target": None,
                "received": None},
        "winphone": dict.fromkeys(("mpns_target", "mpns_sent", "click")),
        "web": {"received": None, "target": 1, "sent": None, "click": None}, "msg_id": "m"}]
    assert await pending(shared_service, account, "m") == {phones[3].id, phones[4].id}


async def test_who_comes_or_goes_later_changes_nothing(shared_service: Running, account: Account) -> None:
    """The audience is that of the moment: who subscribes afterwards is no target, who unsubscribes stays one, and a
    sender that repeats the request is told the same number."""

    stays, goes, comes = [await subscribed(shared_service, account, *interests) for interests in (["a"], ["a"], ["b"])]
    body = {"msg_id": "m", "audience": {"interests": ["a"]}}
    first = await shared_service.call("POST", "/v1/pushes", account, json=body)

    await goes.do("DELETE", "/interests/a")
    await comes.add("a")
    again = await shared_service.call("POST", "/v1/pushes", account, json=body)
    await shared_service.applied()

    assert [(answer.status, answer.json) for answer in (first, again)] == [
        (201, {"msg_id": "m", "targets": 2}), (200, {"msg_id": "m", "targets": 2})]
    assert await statuses(shared_service, account, "m", stays.id, goes.id, comes.id) == [1, 1, 3]
    answer = await shared_service.call("GET", "/v3/messages?msg_ids=m", account)
    assert answer.json[0]["android"]["target"] == 2
    assert await push(shared_service, account, "n", interests=["a"]) == 2


async def test_one_id_has_one_audience(shared_service: Running, account: Account) -> None:
    """The same interests in another order are the same push; others, or users of the same names, are a conflict."""

    await subscribed(shared_service, account, "a")
    audiences = [{"interests": ["a", "b"]}, {"interests": ["b", "a", "b"]}, {"interests": ["a"]}, {"users": ["a", "b"]}]

    answers = [await shared_service.call("POST", "/v1/pushes", account, json={"msg_id": "m", "audience": audience})
               for audience in audiences]

    assert [answer.status for answer in answers] == [201, 200, 409, 409]


async def test_nobody_has_the_interest(shared_service: Running, account: Account) -> None:
    """A push that is for nobody is registered, with no target."""

    phone = await subscribed(shared_service, account, "a")

    assert await push(shared_service, account, "m", interests=["b"]) == 0
    await shared_service.applied()

    assert await statuses(shared_service, account, "m", phone.id) == [3]
    assert await pending(shared_service, account, "m") == set()


async def test_interests_of_one_app_are_nothing_to_another(shared_service: Running, account: Account) -> None:
    """Two apps may use the same names of interests and of users, and neither reaches the other's devices."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    mine, theirs = [await subscribed(shared_service, one, "news") for one in (account, other)]
    assert [(await phone.sign_in("alice")).status for phone in (mine, theirs)] == [200, 200]

    assert await push(shared_service, account, "m", interests=["news"]) == 1
    assert await push(shared_service, account, "n", users=["alice"]) == 1

    assert await statuses(shared_service, account, "m", mine.id, theirs.id) == [1, 2]
    assert await statuses(shared_service, other, "m", theirs.id) == [3]


async def test_targets_can_be_added_to_an_audience(shared_service: Running, account: Account) -> None:
    """Devices that are named later join those of the interest, each counted once."""

    phones = [await subscribed(shared_service, account, "a") for _ in range(2)]
    assert await push(shared_service, account, "m", interests=["a"]) == 2

    answer = await shared_service.call("POST", "/v1/pushes/m/targets", account, json=[phones[0].id, "d"])

    assert answer.json == {"msg_id": "m", "targets": 3}


@pytest.mark.parametrize("audience, message", [
    ({"interests": []}, "audience.interests: must be an array of ids"),
    ({"interests": ["a"] * 101}, "audience.interests: at most 100"),
    ({"interests": ["a b"]}, "audience.interests: a name is 1 to 164 of the characters a-z A-Z 0-9 _ - = @ , . ;"),
    ({"interests": ["a" * 165]}, "audience.interests: a name is 1 to 164 of the characters a-z A-Z 0-9 _ - = @ , . ;"),
    ({"users": []}, "audience.users: must be an array of ids"),
    ({"users": ["a"] * 1001}, "audience.users: at most 1000"),
    ({"users": [""]}, "audience.users: must not be empty"),
    ({"users": ["a" * 257]}, "audience.users: at most 256 bytes"),
    ({"interests": ["a"], "users": ["a"]},
     'audience: required: "all", or an object with one of device_ids, interests, users'),
])
async def test_malformed_audience(shared_service: Running, account: Account, audience: dict[str, Any],
                                  message: str) -> None:
    """An audience that nobody can be in, or over its limit, is refused and not taken for an empty one."""

    answer = await shared_service.call("POST", "/v1/pushes", account, json={"msg_id": "m", "audience": audience})

    assert (answer.status, answer.json) == (400, native_error("invalid_request", message))


async def test_a_hundred_interests_and_a_thousand_users(shared_service: Running, account: Account) -> None:
    """The largest audiences are taken, and everybody in them is found."""

    names = [f"i{number}" for number in range(100)]
    users = [f"u{number}" for number in range(1000)]
    phones = [await subscribed(shared_service, account, name) for name in (names[0], names[50], names[99])]
    await shared_service.call("POST", "/v1/devices", account, json=[
        {"device_id": f"d{user}", "user_id": user} for user in users])

    assert await push(shared_service, account, "m", interests=names) == 3
    assert await push(shared_service, account, "n", users=users) == 1000

    assert await statuses(shared_service, account, "m", *(phone.id for phone in phones)) == [1, 1, 1]
    assert await statuses(shared_service, account, "n", *(f"d{user}" for user in users)) == [1] * 1000


@pytest.mark.parametrize("seed", range(3))
async def test_audiences_equal_a_models(shared_service: Running, account: Account, seed: int) -> None:
    """Whatever devices subscribe, unsubscribe, replace, leave and sign in, some of it at the same moment: every push is
    for exactly those that a few lines of Python say."""

    chance = random.Random(seed)
    names, users = ["a", "b", "c", "d"], ["u", "v"]
    phones = [await register(shared_service, account, chance.choice(["apns", "fcm", "web"])) for _ in range(12)]
    has: dict[str, set[str]] = {phone.id: set() for phone in phones}
    whose: dict[str, str] = {}

    async def act(phone: Phone) -> None:
        """Change one device."""
        name, act = chance.choice(names), chance.choice(["add", "add", "remove", "replace", "sign in", "delete"])
        if act == "add":
            has[phone.id].add(name)
            await phone.add(name)
        elif act == "remove":
            has[phone.id].discard(name)
            await phone.do("DELETE", f"/interests/{name}")
        elif act == "replace":
            has[phone.id] = set(chance.sample(names, 2))
            await phone.do("PUT", "/interests", json={"interests": sorted(has[phone.id])})
        elif act == "sign in" and phone.id not in whose:
            whose[phone.id] = chance.choice(users)
            assert (await phone.sign_in(whose[phone.id])).status == 200
        elif act == "delete" and len(has) > 6:
            del has[phone.id]
            whose.pop(phone.id, None)
            phones.remove(phone)
            await phone.do("DELETE")

    for turn in range(12):
        await asyncio.gather(*(act(phone) for phone in chance.sample(phones, min(6, len(phones)))))
        wanted = chance.sample(names, chance.randint(1, 3))
        meant = {one for one, interests in has.items() if interests & set(wanted)}
        assert await push(shared_service, account, f"i{turn}", interests=wanted) == len(meant)
        everybody = [*has, *(phone.id for phone in phones)]
        assert {one for one, status in zip(everybody, await statuses(
            shared_service, account, f"i{turn}", *everybody), strict=True) if status == 1} == meant
        user = chance.choice(users)
        assert await push(shared_service, account, f"u{turn}", users=[user]) == sum(
            one == user for one in whose.values())


# ---------------------------------------------------------------------------------------------------------------- users
async def test_a_users_devices(shared_service: Running, account: Account) -> None:
    """A user has the devices he signed in on and those that a sender named him for, each once; what an event says of a
    user makes nobody a target, because anybody may send one."""

    both, named, signed_in, claimed = [await register(shared_service, account) for _ in range(4)]
    for phone in (both, signed_in):
        assert (await phone.sign_in("alice")).status == 200
    await shared_service.call("POST", "/v1/devices", account, json=[
        {"device_id": one, "user_id": "alice"} for one in (both.id, named.id, "native")])
    await shared_service.send(account, {"msg_id": "x", "stage": "received", "device_id": claimed.id,
                                        "user_id": "alice"})

    assert await push(shared_service, account, "m", users=["alice", "nobody"]) == 4

    ids = [both.id, named.id, signed_in.id, "native", claimed.id]
    assert await statuses(shared_service, account, "m", *ids) == [1, 1, 1, 1, 3]
    await shared_service.applied()
    assert await pending(shared_service, account, "m") == {both.id, named.id, signed_in.id, "native"}


async def test_a_sender_gives_a_device_to_another_user(shared_service: Running, account: Account) -> None:
    """The last user that a sender named has the device; naming none changes nothing, and a deleted device is nobody's,
    also when it comes back."""

    async def name(user: str | None) -> None:
        await shared_service.call("POST", "/v1/devices", account, json={"device_id": "d", "user_id": user})

    async def targets() -> list[int]:
        return [await push(shared_service, account, uuid.uuid4().hex, users=[user]) for user in ("alice", "bob")]

    await name("alice")
    assert await targets() == [1, 0]
    await name("bob")
    await name(None)
    assert await targets() == [0, 1]
    await name("alice")
    await name("alice")
    assert await targets() == [1, 0]
    await shared_service.call("DELETE", "/v1/devices/d", account)
    assert await targets() == [0, 0]
    await name(None)
    assert await targets() == [0, 0]


async def test_two_senders_name_users_at_once(shared_service: Running, account: Account) -> None:
    """However two requests about the same devices interleave, each device ends up with one of the users."""

    requests = [[{"device_id": f"d{number}", "user_id": user} for number in range(50)] for user in ("alice", "bob")]

    await asyncio.gather(*(shared_service.call("POST", "/v1/devices", account, json=request)
                           for request in requests * 3))

    counts = [await push(shared_service, account, user, users=[user]) for user in ("alice", "bob")]
    assert sum(counts) == 50
    assert await push(shared_service, account, "both", users=["alice", "bob"]) == 50


# ---------------------------------------------------------------------------------------------------------------- large
async def memory(service: Running, devices: DeviceSet) -> int:
    """Bytes of Redis that a set of up to a million devices takes."""
    sizes = await service.service.redis.run([
        ("MEMORY", "USAGE", devices.chunk_key(chunk)) for chunk in chunks_below(A_MILLION)])
    return sum(size or 0 for size in sizes)


async def test_a_million_subscribers(shared_service: Running, account: Account) -> None:
    """A million devices that have an interest, and a push to them, take at most twice the bits of a bitmap each, and
    every one of them is a target, in the counters too."""

    redis, app_id = shared_service.service.redis, account.app.id
    # The registry of an app that has given a million numbers, and an interest that all but every tenth device has.
    await redis.run([
        ("HSET", devices_key(app_id, bucket), "", f"{A_MILLION // BUCKETS}:0") for bucket in range(BUCKETS)])
    numbers = np.arange(A_MILLION, dtype=np.uint32)
    limit = await small_chunk_limit(redis)
    for name, members in {"most": numbers[numbers % 10 > 0], "every-tenth": numbers[::10],
                          "few": numbers[::5000]}.items():
        await redis.run(subscribers(app_id, name).union(Members.of(members).chunks, limit))

    assert await push(shared_service, account, "most", interests=["most"]) == 900_000
    assert await push(shared_service, account, "all", interests=["most", "every-tenth", "few"]) == A_MILLION
    assert await push(shared_service, account, "few", interests=["few"]) == 200
    await shared_service.applied()

    a_bitmap = A_MILLION // 8
    assert max([await memory(shared_service, subscribers(app_id, name)) for name in ("most", "every-tenth")]
               + [await memory(shared_service, targets_of(app_id, name)) for name in ("most", "all")]) <= 2 * a_bitmap
    assert await memory(shared_service, targets_of(app_id, "few")) <= 16 * 200
    for name, expected in (("most", 900_000), ("all", A_MILLION), ("few", 200)):
        assert await targets_of(app_id, name).size(redis, A_MILLION) == expected
        rows = await shared_service.service.clickhouse.query(
            "SELECT groupBitmapMerge(devices) FROM delivery WHERE app = {app:UInt32} AND msg_id = {msg_id:String} "
            "AND stage = 'target'", {"app": app_id, "msg_id": name}, label="test")
        assert rows[0][0] == expected
