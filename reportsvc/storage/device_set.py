"""Sets of device numbers in Redis: who is a target, who received, who subscribed to an interest.

A set is cut into chunks of 65 536 numbers, a key each. A small chunk is a Redis intset of two-byte members; past a
few thousand members the 8 KiB bitmap is smaller and takes over. Adding and removing are idempotent, so replaying a
batch changes nothing. A set has no expiry of its own: one chunk must never outlive or predecease the others, so the
retention sweep removes them together (see ARCHITECTURE.md, Retention).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from reportsvc.storage.redis import Command, Redis, Script, spare_key

Numbers = npt.NDArray[np.uint32]

CHUNK_BITS: Final = 16
CHUNK_SIZE: Final = 1 << CHUNK_BITS
#: At two bytes a member an intset is nearly as large as the bitmap here; one more member and a packed chunk could not
#: be told from a bitmap. A server that allows fewer entries in an intset (``set-max-intset-entries``, 512 unless
#: configured) keeps to its own limit.
MAX_SMALL_CHUNK: Final = 4095
#: Redis' own default.
REDIS_INTSET_ENTRIES: Final = 512

#: From so many members on, a bitmap of them travels beside them: one BITOP is then cheaper than setting bit by bit, for
#: Redis and for its log.
_MANY: Final = 512
#: Chunks that one command adds to, where a server has all keys. Packing, parsing and answering a command costs as much
#: as adding a few members does.
_TOGETHER: Final = 64

# Members are stored minus 32 768, so that all of them fit the intset's two-byte form. Offsets arrive as one string of
# little-endian uint16: one argument instead of thousands. They are taken out a thousand at a time, as a call of Lua has
# room for no more than some thousand values. The spare key is there only while a script runs.
_OFFSETS: Final = """
local function each_part(blob, shift, use)
  for from = 1, #blob, 2000 do
    local to = math.min(from + 1999, #blob)
    local part = {struct.unpack('<' .. string.rep('H', (to - from + 1) / 2), blob, from)}
    part[#part] = nil  -- the last is where it stopped
    if shift ~= 0 then
      for i = 1, #part do part[i] = part[i] + shift end
    end
    use(part)
  end
end
"""
_LIBRARY: Final = _OFFSETS + """
local function set_bits(key, members)
  for from = 1, #members, 1000 do
    local part = {}
    for i = from, math.min(from + 999, #members) do
      local n = #part
      part[n + 1], part[n + 2], part[n + 3], part[n + 4] = 'SET', 'u1', members[i], 1
    end
    redis.call('BITFIELD', key, unpack(part))
  end
end
local function add_bitmap(key, spare, bitmap)
  redis.call('SET', spare, bitmap)
  redis.call('BITOP', 'OR', key, key, spare)
  redis.call('DEL', spare)
end
local function to_bitmap(key, kind)
  local members = kind == 'set' and redis.call('SMEMBERS', key) or {}
  for i = 1, #members do members[i] = tonumber(members[i]) + 32768 end
  redis.call('DEL', key)
  redis.call('SETBIT', key, 65535, 0)
  set_bits(key, members)
end
"""

# KEYS: for each chunk its key and the spare one. ARGV: the limit, then for each chunk its offsets and their bitmap,
# which is empty where they are few.
_ADD = Script(_LIBRARY + """
local limit = tonumber(ARGV[1])
local function add(key, spare, blob, bitmap)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'string' then
    local size = kind == 'set' and redis.call('SCARD', key) or 0
    if size + #blob / 2 <= limit then
      each_part(blob, -32768, function(members) redis.call('SADD', key, unpack(members)) end)
      return
    end
    to_bitmap(key, kind)
  end
  if bitmap ~= '' then
    add_bitmap(key, spare, bitmap)
  else
    each_part(blob, 0, function(offsets) set_bits(key, offsets) end)
  end
end
for n = 2, #KEYS, 2 do add(KEYS[n - 1], KEYS[n], ARGV[n], ARGV[n + 1]) end
return 1
""")

_UNION = Script(_LIBRARY + """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' then to_bitmap(KEYS[1], kind) end
add_bitmap(KEYS[1], KEYS[2], ARGV[1])
return 1
""")

_REMOVE = Script(_OFFSETS + """
local key, blob = KEYS[1], ARGV[1]
local kind = redis.call('TYPE', key).ok
if kind == 'none' then return 0 end
each_part(blob, 0, function(offsets)
  for _, offset in ipairs(offsets) do
    if kind == 'string' then redis.call('SETBIT', key, offset, 0) else redis.call('SREM', key, offset - 32768) end
  end
end)
if kind == 'string' and redis.call('BITCOUNT', key) == 0 then redis.call('DEL', key) end
return 1
""")

# Either the whole bitmap (first 1), which is quicker to look through elsewhere, or a byte for each member asked for.
_CONTAINS = Script(_OFFSETS + """
local key, blob = KEYS[1], ARGV[1]
local kind = redis.call('TYPE', key).ok
local out = {}
if kind == 'string' then
  if #blob > 32 then return {1, redis.call('GET', key)} end
  each_part(blob, 0, function(offsets)
    for _, offset in ipairs(offsets) do out[#out + 1] = string.char(redis.call('GETBIT', key, offset)) end
  end)
elseif kind == 'set' then
  each_part(blob, -32768, function(members)
    for _, one in ipairs(redis.call('SMISMEMBER', key, unpack(members))) do out[#out + 1] = string.char(one) end
  end)
else
  return {0, string.rep('\\0', #blob / 2)}
end
return {0, table.concat(out)}
""", writes=False)

_READ = Script("""
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' then return redis.call('GET', KEYS[1]) end
if kind == 'none' then return '' end
local out = {}
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local offset = tonumber(member) + 32768
  out[#out + 1] = string.char(offset % 256, math.floor(offset / 256))
end
return table.concat(out)
""", writes=False)

_SIZE = Script("""
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' then return redis.call('BITCOUNT', KEYS[1]) end
return kind == 'set' and redis.call('SCARD', KEYS[1]) or 0
""", writes=False)

_BITMAP_BYTES: Final = CHUNK_SIZE // 8


class DeviceSet:
    """One set, named by the start and the end of its keys; the chunk's number stands between.

    The methods build commands instead of running them, so that a batch over many sets is one pipeline.
    """

    __slots__ = ("_start", "_end")

    def __init__(self, key: tuple[str, str]) -> None:
        self._start, self._end = key

    def chunk_key(self, chunk: int) -> str:
        """The key of one chunk."""
        return f"{self._start}{chunk}{self._end}"

    def _keys(self, chunk: int) -> tuple[str, str]:
        """The key of a chunk, and one beside it for the moment."""
        key = self.chunk_key(chunk)
        return key, spare_key(key)

    def add_chunk(self, chunk: int, offsets: bytes, limit: int) -> Command:
        """Add numbers of one chunk, given as packed uint16 offsets; *limit* as :func:`small_chunk_limit` tells."""
        return _add([(self, chunk, offsets)], limit)

    def add(self, numbers: Numbers, limit: int) -> list[Command]:
        """Add *numbers*, in any order."""
        return [self.add_chunk(chunk, offsets, limit) for chunk, offsets, _ in split(numbers)]

    def union(self, chunks: Mapping[int, bytes], limit: int) -> list[Command]:
        """Add whole chunks, each in a form that :func:`decode_chunk` reads."""
        return [_UNION(self._keys(chunk), members) if len(members) == _BITMAP_BYTES
                else self.add_chunk(chunk, members, limit) for chunk, members in chunks.items()]

    def remove(self, numbers: Numbers) -> list[Command]:
        """Remove *numbers*; those that are no members do not matter."""
        return [_REMOVE((self.chunk_key(chunk),), offsets) for chunk, offsets, _ in split(numbers)]

    def delete(self, end: int) -> list[Command]:
        """Remove the whole set; *end* is over its largest number."""
        return [("UNLINK", self.chunk_key(chunk)) for chunk in chunks_below(end)]

    async def contains(self, redis: Redis, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Which of *numbers* are members, in their order."""
        return (await contains([self], redis, numbers))[0]

    async def read_chunk(self, redis: Redis, chunk: int) -> Numbers:
        """The members of one chunk, ascending."""
        return decode_chunk(chunk, await redis.call(*self.read_command(chunk)))

    def read_command(self, chunk: int) -> Command:
        """The command whose reply :func:`decode_chunk` understands."""
        return _READ((self.chunk_key(chunk),))

    async def size(self, redis: Redis, end: int) -> int:
        """How many members there are; *end* is over the largest number."""
        return sum(await redis.run([_SIZE((self.chunk_key(chunk),)) for chunk in chunks_below(end)]))


def add_chunks(parts: Iterable[tuple[DeviceSet, int, bytes]], limit: int, redis: Redis) -> Iterator[Command]:
    """What adds to chunks of any sets; each part as :meth:`DeviceSet.add_chunk` has it."""
    iterator = iter(parts)
    while some := list(islice(iterator, 1 if redis.is_cluster else _TOGETHER)):
        yield _add(some, limit)


def _add(parts: Sequence[tuple[DeviceSet, int, bytes]], limit: int) -> Command:
    keys: list[str] = []
    arguments: list[bytes] = []
    for devices, chunk, offsets in parts:
        keys += devices._keys(chunk)
        arguments += (offsets, _bitmap(offsets) if len(offsets) > 2 * _MANY else b"")
    return _ADD(keys, limit, *arguments)


async def contains(sets: Sequence[DeviceSet], redis: Redis, numbers: Numbers) -> list[npt.NDArray[np.bool_]]:
    """Which of *numbers* are members of each of *sets*, in one round trip."""
    parts = list(split(numbers))
    replies = iter(await redis.run([
        _CONTAINS((one.chunk_key(chunk),), offsets) for one in sets for chunk, offsets, _ in parts]))
    answers = []
    for _ in sets:
        found = np.zeros(len(numbers), np.bool_)
        for _, offsets, positions in parts:
            is_bitmap, reply = next(replies)
            found[positions] = _bits(reply, offsets) if is_bitmap else np.frombuffer(reply, np.bool_)
        answers.append(found)
    return answers


def decode_chunk(chunk: int, reply: bytes) -> Numbers:
    """The members of a chunk as :meth:`DeviceSet.read_command` returns them, ascending."""
    if len(reply) == _BITMAP_BYTES:
        offsets = np.flatnonzero(np.unpackbits(np.frombuffer(reply, np.uint8)))
    else:
        offsets = np.sort(np.frombuffer(reply, "<u2"))
    return offsets.astype(np.uint32) + np.uint32(chunk << CHUNK_BITS)


def union_of(parts: Sequence[bytes]) -> bytes:
    """The union of sets of one chunk, each in a form that :func:`decode_chunk` reads, in the shorter of the two."""
    bitmap = np.zeros(_BITMAP_BYTES, np.uint8)
    for part in parts:
        if len(part) == _BITMAP_BYTES:
            bitmap |= np.frombuffer(part, np.uint8)
    members = np.unpackbits(bitmap)
    members[np.frombuffer(b"".join(part for part in parts if len(part) != _BITMAP_BYTES), "<u2")] = 1
    return _encode(members)


def chunk_of(offsets: bytes) -> bytes:
    """The set of packed uint16 *offsets*, of any number and in any order, in the form that is shorter. (As they are,
    4096 of them could not be told from a bitmap.)"""
    members = np.zeros(CHUNK_SIZE, np.uint8)
    members[np.frombuffer(offsets, "<u2")] = 1
    return _encode(members)


def _bits(bitmap: bytes, offsets: bytes) -> npt.NDArray[np.bool_]:
    wanted = np.frombuffer(offsets, "<u2")
    found: npt.NDArray[np.bool_] = np.unpackbits(np.frombuffer(bitmap, np.uint8))[wanted].astype(np.bool_)
    return found


def _bitmap(offsets: bytes) -> bytes:
    members = np.zeros(CHUNK_SIZE, np.uint8)
    members[np.frombuffer(offsets, "<u2")] = 1
    return np.packbits(members).tobytes()


def _encode(members: npt.NDArray[np.uint8]) -> bytes:
    offsets = np.flatnonzero(members)
    return np.packbits(members).tobytes() if len(offsets) > MAX_SMALL_CHUNK else offsets.astype("<u2").tobytes()


def count_of(members: bytes) -> int:
    """How many members a chunk has, in either form."""
    if len(members) == _BITMAP_BYTES:
        return int(np.bitwise_count(np.frombuffer(members, np.uint64)).sum())
    return len(members) // 2


def chunks_below(end: int) -> range:
    """The chunks that numbers below *end* can be in."""
    return range((end + CHUNK_SIZE - 1) >> CHUNK_BITS)


def split(numbers: Numbers) -> Iterator[tuple[int, bytes, npt.NDArray[np.intp]]]:
    """Cut *numbers* into chunks: the chunk, the packed offsets, and where in *numbers* they stood."""
    if not len(numbers):
        return
    chunks = numbers >> CHUNK_BITS
    order = np.argsort(chunks, kind="stable")
    offsets = (numbers[order] & (CHUNK_SIZE - 1)).astype("<u2")
    edges = np.flatnonzero(np.diff(chunks[order])) + 1
    for start, end in zip([0, *edges], [*edges, len(numbers)], strict=True):
        yield int(chunks[order[start]]), offsets[start:end].tobytes(), order[start:end]


async def small_chunk_limit(redis: Redis) -> int:
    """How many members a chunk may have as an intset on this server."""
    return min(await redis.setting("set-max-intset-entries", REDIS_INTSET_ENTRIES), MAX_SMALL_CHUNK)
