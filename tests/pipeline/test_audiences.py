"""Audiences as sets of numbers: the union is that of sets, in whatever forms their chunks come."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reportsvc.registry.audiences import Members
from reportsvc.storage.device_set import (CHUNK_SIZE, MAX_SMALL_CHUNK, DeviceSet, Numbers, count_of, decode_chunk,
                                          small_chunk_limit, union_of)
from reportsvc.storage.redis import Redis

_NAMES = itertools.count()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """The suite's Redis."""
    client = Redis(redis_url)
    yield client
    await client.close()


def stretch(start: int, stride: int, count: int) -> Numbers:
    """*count* numbers from *start* on, *stride* apart."""
    return (start + stride * np.arange(count)).astype(np.uint32)


#: From nothing to a full chunk, on both sides of the limit of small chunks, over the ends of chunks.
stretches = st.builds(
    stretch, st.sampled_from([0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, 3 * CHUNK_SIZE]) | st.integers(0, 200_000),
    st.sampled_from([1, 2, 15]),
    st.sampled_from([0, 1, MAX_SMALL_CHUNK, MAX_SMALL_CHUNK + 1, CHUNK_SIZE]) | st.integers(0, 5000))


@settings(max_examples=12, deadline=None)
@given(st.lists(stretches, max_size=5))
def test_union_of_chunks(sets: list[Numbers]) -> None:
    """The union of any sets, taken chunk by chunk, has the members of all of them once, and says how many they are."""

    parts: dict[int, list[bytes]] = {}
    for numbers in sets:
        for chunk, members in Members.of(numbers).chunks.items():
            parts.setdefault(chunk, []).append(members)
    union = Members({chunk: union_of(found) for chunk, found in parts.items()})

    expected = sorted(set().union(*(numbers.tolist() for numbers in sets)))
    assert union.numbers.tolist() == expected
    assert len(union) == len(expected)
    assert Members.load(union.dump() or b"{}") == union
    pairs, rest = divmod(len(union.chunks), 2)
    assert [len(part.chunks) for part in union.parts(2)] == [2] * pairs + [1] * rest
    assert sorted(number for part in union.parts(2) for number in part.numbers.tolist()) == expected
    for chunk, members in union.chunks.items():
        assert count_of(members) == len(decode_chunk(chunk, members))
        assert len(members) == min(2 * count_of(members), CHUNK_SIZE // 8)


@settings(max_examples=6, deadline=None)
@given(st.lists(stretches, min_size=1, max_size=4))
async def test_whole_chunks_are_added_to_a_set(redis_url: str, sets: list[Numbers]) -> None:
    """Adding whole chunks to a device set, to none, to a small one or to a bitmap, is adding their members; adding them
    again is nothing."""

    redis, devices = Redis(redis_url), DeviceSet((f"set{{{next(_NAMES)}:", "}"))
    limit = await small_chunk_limit(redis)
    expected: set[int] = set()
    try:
        for numbers in [*sets, sets[0]]:
            await redis.run(devices.union(Members.of(numbers).chunks, limit))
            expected |= set(numbers.tolist())
            found = [member for chunk in {number // CHUNK_SIZE for number in expected}
                     for member in (await devices.read_chunk(redis, chunk)).tolist()]
            assert sorted(found) == sorted(expected)
    finally:
        await redis.call("FLUSHALL")
        await redis.close()


async def test_a_bitmap_meets_a_small_chunk(redis: Redis) -> None:
    """A small chunk that a bitmap is added to becomes one, and loses no member of its own."""

    devices = DeviceSet((f"set{{{next(_NAMES)}:", "}"))
    few, many = np.array([1, 65_535], np.uint32), stretch(0, 2, CHUNK_SIZE // 2)
    limit = await small_chunk_limit(redis)
    await redis.run(devices.add(few, limit))
    bitmap = Members.of(many).chunks
    assert [len(members) for members in bitmap.values()] == [CHUNK_SIZE // 8]

    await redis.run(devices.union(bitmap, limit))

    assert (await devices.read_chunk(redis, 0)).tolist() == sorted([*few.tolist(), *many.tolist()])
    assert await redis.call("OBJECT", "ENCODING", devices.chunk_key(0)) == b"raw"
