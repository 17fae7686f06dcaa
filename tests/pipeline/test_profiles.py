"""Profiles, interests and users in both stores: they agree after anything, also after what broke off half-way."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
import pytest_asyncio

from reportsvc.api.native import parse_push
from reportsvc.errors import StoreUnavailable
from reportsvc.model import App, Profile
from reportsvc.pipeline import records
from reportsvc.pipeline.profiles import ProfileRegistrar
from reportsvc.pipeline.registration import Registrar
from reportsvc.registry.audiences import Audiences
from reportsvc.registry.devices import DeviceRegistry
from reportsvc.registry.messages import Messages, targets_of
from reportsvc.registry.profiles import OtherUser, ProfileStore, TooManyInterests, UnknownDevice
from reportsvc.registry.tokens import Tokens
from reportsvc.registry.users import TooManyDevices
from reportsvc.storage.device_set import small_chunk_limit
from reportsvc.storage.redis import Command, Redis, profile_key, signed_in_key
from tests.support.beams import push, register, user_token
from tests.support.service import Account, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")
INTERESTS = ["a", "b", "c", "d", "e"]
USERS = ["alice", "bob"]


@pytest_asyncio.fixture(loop_scope="module")
async def account(shared_service: Running) -> Account:
    """A new app of the service that the tests of this file share."""
    return await shared_service.make_account(f"test {uuid.uuid4()}")


# --------------------------------------------------------------------------------------------------- both stores' views
@dataclass(frozen=True)
class View:
    """What is known of one device: its profile without the versions, and its interests."""

    profile: Profile
    interests: frozenset[str]


async def in_redis(service: Running, app: App) -> dict[str, View]:
    """Every device that has a profile with anything in it, as Redis knows it."""
    redis = service.service.redis
    prefix = profile_key(app.id, "").rstrip("}")
    device_ids = [key.decode()[len(prefix):-1] for key in await redis.scan(profile_key(app.id, "*"))]
    store = ProfileStore(redis)
    profiles = await store.load(app.id, device_ids)
    return {profile.device_id: View(
        replace(profile, version=0, interests_since=0), frozenset(await store.interests(app.id, profile.device_id)))
        for profile in profiles if profile is not None and (profile.gateway or profile.named_user)}


async def in_clickhouse(service: Running, app: App) -> dict[str, View]:
    """The same, as the durable copy has it; read as ``migrations/0002_profiles.sql`` says."""
    clickhouse = service.service.clickhouse
    rows = await clickhouse.query(
        "SELECT device_id, number, gateway, token, bundle_id, metadata, user_id, named_user, interests_since "
        "FROM device_profiles FINAL WHERE app = {app:UInt32} AND NOT deleted", {"app": app.id}, label="test")
    kept = await clickhouse.query(
        "SELECT number, interest, version FROM device_interests FINAL WHERE app = {app:UInt32} AND subscribed",
        {"app": app.id}, label="test")
    views = {}
    for device_id, number, gateway, token, bundle_id, metadata, user_id, named_user, since in rows:
        profile = Profile(device_id, number, gateway, token, bundle_id, orjson.loads(metadata), user_id, named_user)
        views[device_id] = View(profile, frozenset(
            name for owner, name, version in kept if owner == number and version >= since))
    return {device_id: view for device_id, view in views.items()
            if view.profile.gateway or view.profile.named_user}


async def audiences(service: Running, app: App) -> dict[str, set[int]]:
    """The numbers of the devices that a push to each interest, and to each user, would be for."""
    found = Audiences(service.service.redis, DeviceRegistry(service.service.redis))
    return {name: set((await found.with_interests(app.id, [name])).numbers.tolist()) for name in INTERESTS} | {
        name: set((await found.of_users(app.id, [name])).numbers.tolist()) for name in USERS}


def expected_audiences(views: dict[str, View]) -> dict[str, set[int]]:
    """The same, as the profiles have it."""
    return {name: {view.profile.number for view in views.values() if name in view.interests} for name in INTERESTS} | {
        name: {view.profile.number for view in views.values()
               if name in (view.profile.user_id, view.profile.named_user)} for name in USERS}


async def check(service: Running, app: App) -> dict[str, View]:
    """Lists, sets and the durable copy say the same, and so does the registry of who is a device; what they say."""
    await service.applied()
    views = await in_redis(service, app)
    assert await audiences(service, app) == expected_audiences(views)
    assert await in_clickhouse(service, app) == views
    found = await DeviceRegistry(service.service.redis).find(app.id, list(views))
    assert all(device is not None and not device.deleted_at for device in found)
    return views


# ----------------------------------------------------------------------------------------------------- the durable copy
async def test_the_durable_copy_has_the_whole_profile(shared_service: Running, account: Account) -> None:
    """Token, bundle identifier, metadata, both users and interests of a device stand in ClickHouse as in Redis."""

    phone = await register(shared_service, account, "apns", "t\u00f6ken", metadata={
        "sdkVersion": "4.0.0", "iosVersion": "17"})
    await phone.add("a", "b")
    await phone.do("DELETE", "/interests/a")
    assert (await phone.sign_in("alice")).status == 200
    await shared_service.call("POST", "/v1/devices", account, json=[
        {"device_id": phone.id, "user_id": "bob"}, {"device_id": "native", "user_id": "bob"}, {"device_id": "nobodys"}])

    views = await check(shared_service, account.app)

    numbers = {device_id: view.profile.number for device_id, view in views.items()}
    assert views == {
        phone.id: View(Profile(phone.id, numbers[phone.id], "apns", "t\u00f6ken", "com.example", {
            "sdkVersion": "4.0.0", "iosVersion": "17"}, "alice", "bob"), frozenset({"b"})),
        "native": View(Profile("native", numbers["native"], named_user="bob"), frozenset())}


async def test_the_durable_copy_forgets_what_is_deleted(shared_service: Running, account: Account) -> None:
    """Of a deleted device nothing is kept in ClickHouse but that it was: no token, no user, no metadata, no interest
    that counts."""

    phone = await register(shared_service, account, token="secret", metadata={"sdkVersion": "1"})
    await phone.add("a")
    assert (await phone.sign_in("alice")).status == 200
    await phone.do("DELETE")

    assert await check(shared_service, account.app) == {}
    rows = await shared_service.service.clickhouse.query(
        "SELECT device_id, token, metadata, user_id, deleted FROM device_profiles FINAL WHERE app = {app:UInt32}",
        {"app": account.app.id}, label="test")
    assert list(map(tuple, rows)) == [(phone.id, "", "{}", "", True)]


async def test_records_may_come_twice_and_in_any_order(shared_service: Running, account: Account) -> None:
    """The journal's records of a device's life, replayed shuffled and more than once, leave the durable copy as it is:
    the version decides, not the order."""

    service, app = shared_service, account.app
    written: list[bytes] = []
    journal = service.service.journal
    append = journal.append_record

    def keep(record: bytes) -> asyncio.Future[None]:
        written.append(record)
        return append(record)
    journal.append_record = keep  # type: ignore[method-assign]  # only listens
    try:
        phone = await register(service, account, token="t")
        await phone.add("a", "b")
        await phone.do("PUT", "/interests", json={"interests": ["b", "c"]})
        await phone.do("DELETE", "/interests/b")
        await phone.add("b", "d")
        await phone.do("PUT", "/metadata", json={"sdkVersion": "2"})
        assert (await phone.sign_in("alice")).status == 200
        await phone.do("PUT", "/token", json={"token": "u"})
        other = await register(service, account)
        await other.add("a")
        await other.do("DELETE")
    finally:
        journal.append_record = append  # type: ignore[method-assign]
    before = await check(service, app)
    assert {view.interests for view in before.values()} == {frozenset({"b", "c", "d"})}

    chance = random.Random(1)
    for _ in range(5):
        for record in chance.sample(written, len(written)):
            await journal.append_record(record)
        assert await check(service, app) == before


@pytest.mark.parametrize("seed", range(3))
async def test_both_stores_agree_after_many_changes_at_once(shared_service: Running, account: Account,
                                                            seed: int) -> None:
    """Devices that change in every way, several ways at the same moment: afterwards each list, each set, each user and
    the durable copy say the same."""

    chance = random.Random(seed)
    service = shared_service
    tokens = [f"t{number}" for number in range(5)]

    async def act() -> None:
        """One request about one of a few devices; what is refused is refused."""
        act, token = chance.randrange(9), chance.choice(tokens)
        names = chance.sample(INTERESTS, chance.randint(0, 3))
        phone = await register(service, account, token=token, metadata={"sdkVersion": str(chance.randrange(9))})
        if act < 3:
            await phone.call("POST", f"/interests/{chance.choice(INTERESTS)}")
        elif act < 4:
            await phone.call("DELETE", f"/interests/{chance.choice(INTERESTS)}")
        elif act < 5:
            await phone.call("PUT", "/interests", json={"interests": names})
        elif act < 7:
            await phone.sign_in(chance.choice(USERS))
        elif act < 8:
            await phone.call("PUT", "/token", json={"token": chance.choice(tokens)})
        elif chance.random() < 0.3:
            await phone.call("DELETE")
        else:
            await service.call("POST", "/v1/devices", account, json=[
                {"device_id": phone.id, "user_id": chance.choice(USERS)}])

    for _ in range(6):
        await asyncio.gather(*(act() for _ in range(12)))
        views = await check(service, account.app)
        assert len({view.profile.token for view in views.values() if view.profile.gateway}) == sum(
            1 for view in views.values() if view.profile.gateway)


# ----------------------------------------------------------------------------------------------------------- broken off
class Breaking(Redis):
    """Redis over a line that breaks: the reply of the *at*-th exchange is lost, and nothing is sent after it."""

    def __init__(self, url: str, at: int) -> None:
        super().__init__(url)
        self._exchanges = itertools.count()
        self._at = at
        self.has_broken = False

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands*, or not."""
        if not commands:
            return []
        number = next(self._exchanges)
        if number > self._at:
            raise StoreUnavailable("redis", "the line is broken")
        replies = await super().run(commands)
        if number == self._at:
            self.has_broken = True
            raise StoreUnavailable("redis", "the line broke")
        return replies


Operation = Callable[[ProfileRegistrar, App, str], Awaitable[object]]


async def set_up(healthy: ProfileRegistrar, app: App) -> str:
    """A device with two interests, a user, and a user that a sender named."""
    device_id, _ = await healthy.register(app, "fcm", "t", "", {"sdkVersion": "1"})
    await healthy.set_interests(app, "fcm", device_id, ["a", "b"])
    await healthy.sign_in(app, "fcm", device_id, "alice")
    profile = await healthy.find(app, "fcm", device_id)
    await healthy.name_users(app, {device_id: (profile.number, "bob")})
    return device_id


async def name_alice(registrar: ProfileRegistrar, app: App, device_id: str) -> None:
    """What POST /v1/devices does with a user."""
    numbers = await registrar._devices.find(app.id, [device_id])
    assert numbers[0] is not None
    await registrar.name_users(app, {device_id: (numbers[0].number, "alice")})


OPERATIONS: dict[str, Operation] = {
    "register anew": lambda one, app, device_id: one.register(app, "fcm", "new", "", {}),
    "register again": lambda one, app, device_id: one.register(app, "fcm", "t", "", {"sdkVersion": "2"}),
    "metadata": lambda one, app, device_id: one.set_metadata(app, "fcm", device_id, {"sdkVersion": "3"}),
    "token": lambda one, app, device_id: one.set_token(app, "fcm", device_id, "u"),
    "sign in": lambda one, app, device_id: one.sign_in(app, "fcm", device_id, "alice"),
    "add interest": lambda one, app, device_id: one.add_interest(app, "fcm", device_id, "c"),
    "remove interest": lambda one, app, device_id: one.remove_interest(app, "fcm", device_id, "a"),
    "set interests": lambda one, app, device_id: one.set_interests(app, "fcm", device_id, ["b", "c", "d"]),
    "name a user": name_alice,
    "delete": lambda one, app, device_id: one.delete(app, device_id),
    "unregister": lambda one, app, device_id: one.unregister(app, "fcm", device_id),
    "delete user": lambda one, app, device_id: one.delete_user(app, "alice"),
    "delete named user": lambda one, app, device_id: one.delete_user(app, "bob"),
}


def results(views: dict[str, View]) -> set[tuple[Any, ...]]:
    """What an operation left, without what differs from run to run: ids and numbers."""
    return {(view.profile.gateway, view.profile.token, tuple(view.profile.metadata.items()), view.profile.user_id,
             view.profile.named_user, view.interests) for view in views.values()}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_what_breaks_off_is_completed_by_its_repetition(shared_service: Running, name: str) -> None:
    """Wherever an operation breaks off, nobody is in an audience that his device does not name; and when it is sent
    again, everything is as if it had never broken off."""

    service, operation = shared_service, OPERATIONS[name]
    redis = service.service.redis
    limit = await small_chunk_limit(redis)

    def registrar(line: Redis) -> ProfileRegistrar:
        return ProfileRegistrar(line, DeviceRegistry(line, service.service.floors), service.service.journal, limit)

    healthy = registrar(redis)
    app = (await service.make_account(f"whole {uuid.uuid4()}")).app
    await operation(healthy, app, await set_up(healthy, app))
    whole = results(await check(service, app))

    for at in itertools.count():
        app = (await service.make_account(f"broken {uuid.uuid4()}")).app
        device_id = await set_up(healthy, app)
        line = Breaking(redis.url, at)
        try:
            await operation(registrar(line), app, device_id)
        except StoreUnavailable:
            pass
        await line.close()
        meant, known = await audiences(service, app), expected_audiences(await in_redis(service, app))
        if not name.startswith(("delete", "unregister")):  # there a device is no device before it is in no set
            assert all(meant[one] <= known[one] for one in meant)
        await operation(healthy, app, device_id)
        assert results(await check(service, app)) == whole, at
        if not line.has_broken:
            break
    assert at > 0


async def test_a_push_that_breaks_off_keeps_its_moment(shared_service: Running, account: Account) -> None:
    """A registration that broke off is completed by its repetition, for those who had the interest when it was first
    made; who came since is not among them."""

    service = shared_service
    limit = await small_chunk_limit(service.service.redis)
    body = {"audience": {"interests": ["a"]}}
    for at in itertools.count():
        app = await service.make_account(f"push {uuid.uuid4()}")
        phones = [await register(service, app) for _ in range(6)]
        for phone in phones[:5]:  # more than a push's record holds by itself
            await phone.add("a")
        line = Breaking(service.service.redis.url, at)
        broken = Registrar(line, service.service.queries, service.service.journal, limit, service.clock,
                           service.service.floors)
        push_of, audience, content = parse_push({"msg_id": "m"} | body, int(service.clock()))
        is_registered = False
        try:
            await broken.register_push(app.app, push_of, audience, content)
        except StoreUnavailable:
            is_registered = bool(await Messages(service.service.redis).digest(app.app.id, "m"))
        await line.close()

        await phones[5].add("a")
        await phones[0].do("DELETE", "/interests/a")
        answer = await service.call("POST", "/v1/pushes", app, json={"msg_id": "m"} | body)
        await service.applied()

        is_over = not line.has_broken
        expected = phones[:5] if is_registered or is_over else phones[1:]
        found = await DeviceRegistry(service.service.redis).find(app.app.id, [phone.id for phone in expected])
        numbers = {device.number for device in found if device is not None}
        assert answer.json == {"msg_id": "m", "targets": 5}
        assert answer.status == (200 if is_registered or is_over else 201)
        assert set((await targets_of(app.app.id, "m").read_chunk(service.service.redis, 0)).tolist()) == numbers
        rows = await service.service.clickhouse.query(
            "SELECT bitmapToArray(groupBitmapMergeState(devices)) FROM delivery WHERE app = {app:UInt32}",
            {"app": app.app.id}, label="test")
        assert set(rows[0][0]) == numbers
        if is_over:
            break
    assert at > 3


async def test_an_audience_is_applied_twice(shared_service: Running, account: Account) -> None:
    """A record of an audience that is replayed changes no count."""

    phones = [await register(shared_service, account) for _ in range(5)]
    for phone in phones:
        await phone.add("a")
    assert await push(shared_service, account, "m", interests=["a"]) == 5
    members = await Audiences(shared_service.service.redis, DeviceRegistry(
        shared_service.service.redis)).with_interests(account.app.id, ["a"])
    record = records.audience(account.app.id, "m", "notification", "", members.document(),
                              int(shared_service.clock()), in_record=False)
    for _ in range(3):
        await shared_service.service.journal.append_record(record)
    await shared_service.applied()

    answer = await shared_service.call("GET", "/v3/messages?msg_ids=m", account)

    assert answer.json[0]["android"]["target"] == 5


# ------------------------------------------------------------------------------------------------------ the small parts
async def test_a_place_that_was_never_taken_is_given_up(shared_service: Running, account: Account) -> None:
    """A sign-in that broke off holds a place of the hundred only as long as it might be going on, and is never in an
    audience."""

    service, app = shared_service, account.app
    redis = service.service.redis
    now = int(service.clock() * 1_000_000)
    await redis.call("HSET", signed_in_key(app.id, "alice"), *(
        word for number in range(99) for word in (f"fcm-{number}", f"{number}:{now}")))
    first, second = [await register(service, account) for _ in range(2)]
    assert (await first.sign_in("alice")).status == 200
    assert (await second.sign_in("alice")).status == 422
    assert await push(service, account, "m", users=["alice"]) == 1

    service.clock.ahead += 61
    assert (await second.sign_in("alice")).status == 200
    assert await redis.call("HLEN", signed_in_key(app.id, "alice")) == 2


async def test_versions_grow_also_when_the_clock_goes_back(shared_service: Running, account: Account) -> None:
    """A change is later than the one before, whatever the clock of the process says that makes it."""

    store = ProfileStore(shared_service.service.redis)
    app_id = account.app.id
    first = await store.save(app_id, "fcm-1", 5_000, create=True, number=1, gateway="fcm")
    versions = [first.after.version if first else 0]
    versions.append((await store.subscribe(app_id, "fcm-1", "a", 4_000)).version)
    versions.append((await store.subscribe(app_id, "fcm-1", "a", 9_000)).version)
    versions.append((await store.unsubscribe(app_id, "fcm-1", "a", 1)).version)
    profile, before = await store.replace(app_id, "fcm-1", ["b"], 1)
    versions.append(profile.version)
    versions.append((await store.sign_in(app_id, "fcm-1", "alice", 8_000)).version)

    assert versions == [5_000, 5_001, 5_001, 5_002, 5_003, 8_000]
    assert (profile.interests_since, before) == (5_003, [])


async def test_a_device_that_is_being_removed_can_do_nothing(shared_service: Running, account: Account) -> None:
    """From the moment a deletion begins, the device is unknown to every operation, until it is erased."""

    store = ProfileStore(shared_service.service.redis)
    app_id = account.app.id
    await store.save(app_id, "fcm-1", 1, create=True, number=1, gateway="fcm", token="t")
    await store.subscribe(app_id, "fcm-1", "a", 2)

    left = await store.leave(app_id, "fcm-1", 3)
    again = await store.leave(app_id, "fcm-1", 4)

    assert left is not None and again is not None
    assert (left[0].token, left[1], again[1]) == ("t", ["a"], ["a"])
    assert await store.load(app_id, ["fcm-1"]) == [None]
    assert await store.save(app_id, "fcm-1", 5, create=True, number=1) is None
    for change in (store.subscribe(app_id, "fcm-1", "b", 6), store.unsubscribe(app_id, "fcm-1", "a", 6),
                   store.replace(app_id, "fcm-1", [], 6), store.sign_in(app_id, "fcm-1", "alice", 6)):
        with pytest.raises(UnknownDevice):
            await change
    await store.discard(app_id, "fcm-1")
    assert await store.gateway(app_id, "fcm-1") == "fcm"
    await store.erase(app_id, "fcm-1")
    assert await store.gateway(app_id, "fcm-1") == ""
    assert await store.leave(app_id, "fcm-1", 7) is None


async def test_tokens_are_first_come(shared_service: Running, account: Account) -> None:
    """A token is the first claimer's until he releases it, or somebody who knows whose it was takes it over."""

    tokens, app_id = Tokens(shared_service.service.redis), account.app.id

    assert await tokens.claim(app_id, "fcm", "t", "one") == "one"
    assert await tokens.claim(app_id, "fcm", "t", "two") == "one"
    assert await tokens.claim(app_id, "apns", "t", "two") == "two"
    assert await tokens.claim(app_id, "fcm", "t", "two", instead_of="three") == "one"
    await tokens.release(app_id, "fcm", "t", "two")
    assert await tokens.claim(app_id, "fcm", "t", "two", instead_of="one") == "two"
    await tokens.release(app_id, "fcm", "t", "two")
    assert await tokens.claim(app_id, "fcm", "t", "three") == "three"


async def test_errors_of_the_registry(shared_service: Running, account: Account) -> None:
    """Below the dialects, each refusal is an error of its own, with a text that names no vendor."""

    assert [str(error()) for error in (UnknownDevice, OtherUser, TooManyInterests, TooManyDevices)] == [
        "the device is not registered", "another user signed in on the device", "a device has at most 5000 interests",
        "a user has at most 100 devices"]


async def test_a_user_token_signs_in_once_per_device_only(shared_service: Running, account: Account) -> None:
    """Eight identical requests at once, as an SDK that lost its answers sends them, take one place."""

    phone = await register(shared_service, account)
    token = user_token(account, now=shared_service.clock())
    headers = {"Authorization": f"Bearer {token}"}

    answers = await asyncio.gather(*(phone.call("PUT", "/user", headers=headers) for _ in range(8)))

    assert [answer.status for answer in answers] == [200] * 8
    assert await push(shared_service, account, "m", users=["alice"]) == 1
    await check(shared_service, account.app)
