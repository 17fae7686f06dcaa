"""Sets of device numbers in Redis: they behave as sets, whatever form a chunk has, and stay small."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reportsvc.registry.interests import subscribers
from reportsvc.registry.messages import received_by, targets_of
from reportsvc.storage.device_set import (CHUNK_SIZE, MAX_SMALL_CHUNK, REDIS_INTSET_ENTRIES, DeviceSet, Numbers,
                                          add_chunks, chunk_of, chunks_below, small_chunk_limit)
from reportsvc.storage.redis import Redis, spare_key
from tests.support.redis_cluster import slot_of

_NAMES = itertools.count()
_TEN_MILLION = 10_000_000
#: The first, its neighbour, and the last one of ten million devices.
_CHUNKS = (0, 1, 152)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """The suite's Redis."""
    client = Redis(redis_url)
    yield client
    await client.close()


def new_set() -> DeviceSet:
    """A set that no other test has."""
    return DeviceSet((f"set{{{next(_NAMES)}:", "}"))


def numbers(values: Iterable[int]) -> Numbers:
    return np.array(list(values), np.uint32)


def spread(chunk: int, start: int, stride: int, count: int) -> Numbers:
    """*count* numbers of a chunk: from the offset *start* on, *stride* apart, round the chunk's end."""
    return numbers(((start + stride * np.arange(count)) % CHUNK_SIZE + chunk * CHUNK_SIZE).tolist())


async def form_of(redis: Redis, devices: DeviceSet, chunk: int) -> str:
    """How Redis keeps a chunk: ``intset``, ``raw`` for a bitmap, empty if it keeps none."""
    encoding = await redis.call("OBJECT", "ENCODING", devices.chunk_key(chunk))
    return (encoding or b"").decode()


@dataclass(frozen=True)
class Step:
    """Add or remove what :func:`spread` gives."""

    is_addition: bool
    chunk: int
    start: int
    stride: int
    count: int

    @property
    def numbers(self) -> Numbers:
        return spread(self.chunk, self.start, self.stride, self.count)


def steps(limit: int) -> st.SearchStrategy[list[Step]]:
    """Steps that often meet the ends of a chunk, and both sides of *limit*."""
    return st.lists(st.builds(
        Step, st.sampled_from((True, True, False)), st.sampled_from(_CHUNKS),
        st.sampled_from((0, 1, 65_534, 65_535)) | st.integers(0, 65_535), st.sampled_from((1, 2, 16)),
        st.sampled_from((1, 2, limit - 1, limit, limit + 1)) | st.integers(1, limit + 50)), min_size=1, max_size=6)


# --------------------------------------------------------------------------------------------------------- as a set is
async def check_steps(redis_url: str, taken: list[Step], limit: int) -> None:
    """Take the steps with a device set and with a set of Python's, and compare everything that can be asked."""
    redis, devices, expected = Redis(redis_url), new_set(), set[int]()
    try:
        for step in taken:
            changed = set(step.numbers.tolist())
            await redis.run(devices.add(step.numbers, limit) if step.is_addition else devices.remove(step.numbers))
            expected = expected | changed if step.is_addition else expected - changed

        read = [await devices.read_chunk(redis, chunk) for chunk in _CHUNKS]
        assert np.concatenate(read).tolist() == sorted(expected)
        assert await devices.size(redis, _TEN_MILLION) == len(expected)
        asked = numbers([*expected, *(number ^ 1 for number in expected), *(step.start for step in taken)])
        assert (await devices.contains(redis, asked)).tolist() == [number in expected for number in asked.tolist()]
        for chunk, found in zip(_CHUNKS, read, strict=True):
            form = await form_of(redis, devices, chunk)
            assert form in ({"raw"} if len(found) > limit else {"intset", "raw"} if len(found) else {""})
    finally:
        await redis.run(devices.delete(_TEN_MILLION))
        await redis.close()


@settings(max_examples=40, deadline=None)
@given(taken=steps(REDIS_INTSET_ENTRIES))
async def test_behaves_as_a_set_with_the_default_of_redis(redis_url: str, taken: list[Step]) -> None:
    """Whatever is added and removed, in whatever form a chunk is: members, size and look-ups are those of a set."""
    await check_steps(redis_url, taken, REDIS_INTSET_ENTRIES)


@settings(max_examples=20, deadline=None)
@given(taken=steps(MAX_SMALL_CHUNK))
async def test_behaves_as_a_set_with_large_intsets(redis_url: str, taken: list[Step]) -> None:
    """The same with the limit of a server that the service has configured itself."""
    await check_steps(redis_url, taken, MAX_SMALL_CHUNK)


@pytest.mark.parametrize("limit", [REDIS_INTSET_ENTRIES, MAX_SMALL_CHUNK])
async def test_chunk_becomes_a_bitmap_past_the_limit(redis: Redis, limit: int) -> None:
    """The last member an intset may have leaves it one; the next makes it a bitmap, with every member kept."""
    devices = new_set()
    # Both ends of the chunk are in from the beginning: they must survive the change.
    first = [0, 65_535, *range(100, 98 + limit)]

    await redis.run(devices.add(numbers(first), limit))
    assert await form_of(redis, devices, 0) == "intset"
    assert (await devices.read_chunk(redis, 0)).tolist() == sorted(first)

    await redis.run(devices.add(numbers([60_000]), limit))
    assert await form_of(redis, devices, 0) == "raw"
    assert (await devices.read_chunk(redis, 0)).tolist() == sorted([*first, 60_000])
    assert (await devices.contains(redis, numbers([0, 1, 65_535, 60_000, 60_001]))).tolist() == [
        True, False, True, True, False]


@pytest.mark.parametrize("others", [range(100, 110), range(100, 1_100)], ids=["intset", "bitmap"])
async def test_ends_of_a_chunk_can_be_removed(redis: Redis, others: range) -> None:
    """Removing takes away just the numbers named, also the first and the last of a chunk, in either form."""
    devices = new_set()
    await redis.run(devices.add(numbers([0, 65_535, 65_536, *others]), REDIS_INTSET_ENTRIES))

    await redis.run(devices.remove(numbers([65_535, 65_536, 70_000])))
    assert (await devices.read_chunk(redis, 0)).tolist() == [0, *others]
    assert (await devices.read_chunk(redis, 1)).tolist() == []
    await redis.run(devices.remove(numbers([0, others[0]])))
    assert (await devices.read_chunk(redis, 0)).tolist() == list(others[1:])


async def test_largest_intset_is_not_taken_for_a_bitmap(redis: Redis) -> None:
    """At two bytes a member, 4095 of them are nearly as long as a bitmap; one more would be read as one."""
    devices, largest = new_set(), numbers(range(0, 16 * MAX_SMALL_CHUNK, 16))
    await redis.run(devices.add(largest, MAX_SMALL_CHUNK))

    assert await form_of(redis, devices, 0) == "intset"
    assert (await devices.read_chunk(redis, 0)).tolist() == largest.tolist()


async def test_every_number_fits(redis: Redis) -> None:
    """The first and the last number of 32 bits, and those beside the border of two chunks, are told apart."""
    devices, last = new_set(), 2 ** 32 - 1
    await redis.run(devices.add(numbers([0, 65_535, 65_536, last]), REDIS_INTSET_ENTRIES))

    asked = [0, 1, 65_534, 65_535, 65_536, 65_537, last - 1, last]
    assert (await devices.contains(redis, numbers(asked))).tolist() == [
        True, False, False, True, True, False, False, True]
    assert (await devices.read_chunk(redis, last >> 16)).tolist() == [last]


async def test_adding_again_changes_nothing(redis: Redis) -> None:
    """A batch that is applied a second time, in part or as a whole, leaves the set as it was."""
    devices, batch = new_set(), numbers([5, 5, 70_000, 3, 70_000])
    for again in (batch, batch, batch[:2]):
        await redis.run(devices.add(again, REDIS_INTSET_ENTRIES))

    assert await devices.size(redis, 131_072) == 3
    assert await form_of(redis, devices, 0) == "intset"


async def test_empty_chunks_leave_no_key(redis: Redis) -> None:
    """Removing the last member of a chunk, in either form, gives its memory back."""
    devices = new_set()
    small, large = numbers([1]), numbers(range(65_536, 65_536 + 600))
    await redis.run(devices.add(small, REDIS_INTSET_ENTRIES) + devices.add(large, REDIS_INTSET_ENTRIES))
    assert await redis.run([("EXISTS", devices.chunk_key(0)), ("EXISTS", devices.chunk_key(1))]) == [1, 1]

    await redis.run(devices.remove(small) + devices.remove(large))
    assert await redis.run([("EXISTS", devices.chunk_key(0)), ("EXISTS", devices.chunk_key(1))]) == [0, 0]


async def test_delete_removes_every_chunk_below_the_end(redis: Redis) -> None:
    """Deleting a set leaves no key of it."""
    devices = new_set()
    await redis.run(devices.add(numbers(range(0, 1_000_000, 1000)), REDIS_INTSET_ENTRIES))
    keys = [devices.chunk_key(chunk) for chunk in chunks_below(1_000_000)]
    assert await redis.run([("EXISTS", key) for key in keys]) == [1] * 16

    await redis.run(devices.delete(999_001))
    assert await redis.run([("EXISTS", key) for key in keys]) == [0] * 16


async def test_nothing_is_asked_about_no_numbers(redis: Redis) -> None:
    """No numbers, no commands."""
    devices = new_set()
    assert (devices.add(numbers([]), 512), devices.remove(numbers([]))) == ([], [])
    assert (await devices.contains(redis, numbers([]))).tolist() == []


# -------------------------------------------------------------------------------------------------------------- memory
async def bytes_a_member(redis: Redis, members: Numbers) -> float:
    """Memory of a set with *members*, its keys included, over their count."""
    devices = new_set()
    for command in devices.add(members, await small_chunk_limit(redis)):
        await redis.call(*command)
    keys = [devices.chunk_key(chunk) for chunk in chunks_below(_TEN_MILLION)]
    sizes = await redis.run([("MEMORY", "USAGE", key) for key in keys])
    assert await devices.size(redis, _TEN_MILLION) == len(members)
    await redis.run(devices.delete(_TEN_MILLION))
    return sum(size or 0 for size in sizes) / len(members)


@pytest.mark.parametrize(("count", "end", "limit"), [
    pytest.param(1_000_000, 1_000_000, 0.2, id="a broadcast to a million"),
    pytest.param(100_000, _TEN_MILLION, 5.0, id="one in a hundred of ten million"),
    pytest.param(1_000, _TEN_MILLION, 25.0, id="a thousand of ten million"),
])
async def test_sets_stay_small(redis: Redis, count: int, end: int, limit: float) -> None:
    """The bytes a member that the design counts on, with the limit that the embedded server is given."""
    assert await small_chunk_limit(redis) == MAX_SMALL_CHUNK
    members = np.random.default_rng(11).choice(end, count, replace=False).astype(np.uint32)

    assert await bytes_a_member(redis, members) <= limit


# -------------------------------------------------------------------------------------------- bitmaps that travel along
@dataclass(frozen=True)
class Act:
    """Add, unite or remove what :func:`spread` gives; "unite": as a rebuild does, by chunks."""

    what: str
    chunk: int
    start: int
    stride: int
    count: int

    @property
    def numbers(self) -> Numbers:
        return spread(self.chunk, self.start, self.stride, self.count)


#: Both sides of where a bitmap travels along, of what an intset may hold, and of where chunks look like bitmaps.
_BORDERS = (1, 63, 64, 65, 511, 512, 513, 514, 1100, 4094, 4095, 4096, 4097, 65_536)
ACTS = st.lists(st.builds(
    Act, st.sampled_from(("add", "add", "unite", "remove")), st.sampled_from((0, 152)),
    st.sampled_from((0, 1, 32_768, 65_535)), st.sampled_from((1, 3, 7, 15)), st.sampled_from(_BORDERS)),
    min_size=1, max_size=7)


async def check_acts(redis_url: str, acts: list[Act]) -> None:
    """Do everything with a device set and with a set of Python's; after each act every question has the same answer."""
    redis, devices, expected = Redis(redis_url), new_set(), set[int]()
    try:
        limit = await small_chunk_limit(redis)
        for act in acts:
            named = act.numbers
            if act.what == "remove":
                commands = devices.remove(named)
                expected -= set(named.tolist())
            else:
                offsets = (named & (CHUNK_SIZE - 1)).astype("<u2").tobytes()
                commands = (devices.add(named, limit) if act.what == "add"
                            else devices.union({act.chunk: chunk_of(offsets)}, limit))
                expected |= set(named.tolist())
            await redis.run(commands)
            members = sorted(number for number in expected if number >> 16 == act.chunk)
            assert (await devices.read_chunk(redis, act.chunk)).tolist() == members
            for asked in (named, named[:64], named[-65:], named + np.uint32(1) & np.uint32(2 ** 32 - 1)):
                assert (await devices.contains(redis, asked)).tolist() == [one in expected for one in asked.tolist()]
            assert await devices.size(redis, _TEN_MILLION) == len(expected)
            keys = {devices.chunk_key(chunk) for chunk in chunks_below(_TEN_MILLION)}
            left = {key.decode() for key in await redis.scan(f"*{{{devices._start.partition('{')[2]}*")}
            assert left == {devices.chunk_key(number >> 16) for number in expected} <= keys
    finally:
        await redis.run(devices.delete(_TEN_MILLION))
        await redis.close()


@asynccontextmanager
async def intset_entries(redis_url: str, entries: int) -> AsyncIterator[None]:
    """The server allows so many in an intset."""
    redis = Redis(redis_url)
    before = await redis.setting("set-max-intset-entries", 0)
    await redis._on_each("CONFIG", "SET", "set-max-intset-entries", entries)
    try:
        assert await small_chunk_limit(redis) == min(entries, MAX_SMALL_CHUNK)
        yield
    finally:
        await redis._on_each("CONFIG", "SET", "set-max-intset-entries", before)
        await redis.close()


@pytest.mark.parametrize("entries", [REDIS_INTSET_ENTRIES, 4096])
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@example(acts=[Act("add", 0, 0, 1, 512), Act("add", 0, 600, 1, 513), Act("remove", 0, 0, 1, 65_536)])
@example(acts=[Act("unite", 0, 0, 7, 4095), Act("unite", 0, 1, 7, 4096)])
@given(acts=ACTS)
async def test_bitmaps_that_travel_along_change_nothing(redis_url: str, entries: int, acts: list[Act]) -> None:
    """Whatever is added, united and removed, in numbers around every limit, a device set is the set it should be, and
    no other key is left behind; with the server's own limit of an intset and with that of the embedded one."""
    async with intset_entries(redis_url, entries):
        await check_acts(redis_url, acts)


@pytest.mark.parametrize("key", [
    targets_of(1, "m").chunk_key(0), received_by(12, "m").chunk_key(3), subscribers(1, "cats").chunk_key(152),
    received_by(1, "a}b{c").chunk_key(1), targets_of(1, "{}").chunk_key(1)])
def test_spare_keys_are_where_their_sets_are(key: str) -> None:
    """The key beside a chunk is in the slot of the chunk, whatever characters the message's id has, and is no key of
    anything else."""
    assert slot_of(spare_key(key)) == slot_of(key)
    assert spare_key(key) != key


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
async def test_many_chunks_are_added_to_at_once(redis: Redis, count: int) -> None:
    """Chunks of several sets, small ones and such as become bitmaps, each get theirs, in as few commands as may be."""
    limit = await small_chunk_limit(redis)
    sets = [new_set(), new_set(), new_set()]
    given = [(sets[number % 3], number // 3, spread(0, number, 7, 600 if number % 5 else limit + 10))
             for number in range(count)]
    commands = list(add_chunks([(one, chunk, offsets.astype("<u2").tobytes()) for one, chunk, offsets in given],
                               limit, redis))
    await redis.run(commands)

    assert len(commands) == (count if redis.is_cluster else -(-count // 64))
    for one, chunk, offsets in given:
        expected = sorted(set((offsets + np.uint32(chunk * CHUNK_SIZE)).tolist()))
        assert (await one.read_chunk(redis, chunk)).tolist() == expected
    assert [await one.size(redis, _TEN_MILLION) for one in sets] == [
        sum(len(set(offsets.tolist())) for other, _, offsets in given if other is one) for one in sets]
