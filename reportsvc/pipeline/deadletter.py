"""Entries that could not be applied: kept with their reason, listed, and sent back to the journal when mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from reportsvc.storage.redis import Command, Redis, Script, dead_letters_key, journal_key, ledger_key

#: The closed list of reasons.
UNREADABLE: Final = "unreadable"
APP_DELETED: Final = "app_deleted"
REASONS: Final = (UNREADABLE, APP_DELETED)

# KEYS: journal, ledger, dead letters. ARGV: group, id, events, record, reason, detail.
_BURY = Script("""
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[3], '*', 'n', ARGV[3], 'e', ARGV[4], 'reason', ARGV[5], 'detail', ARGV[6])
redis.call('HINCRBY', KEYS[2], 'dead', ARGV[3])
redis.call('HINCRBY', KEYS[2], 'dead_' .. ARGV[5], ARGV[3])
return 1
""")

# KEYS: journal, ledger, dead letters. ARGV: id. The events are accepted once more, and stay counted as dead before.
_REPLAY = Script("""
local found = redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[1])
if #found == 0 then return 0 end
local fields = {}
for i = 1, #found[1][2], 2 do fields[found[1][2][i]] = found[1][2][i + 1] end
redis.call('XADD', KEYS[1], '*', 'n', fields['n'], 'e', fields['e'])
redis.call('XDEL', KEYS[3], ARGV[1])
redis.call('HINCRBY', KEYS[2], 'accepted', fields['n'])
return tonumber(fields['n'])
""")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry that could not be applied."""

    partition: int
    id: str
    events: int
    reason: str
    detail: str
    record: bytes


def bury(partition: int, group: str, entry_id: bytes, events: int, record: bytes, reason: str, detail: str) -> Command:
    """Move an entry from the journal to the dead letters, in one transaction with the ledger."""
    return _BURY(_keys(partition), group, entry_id, events, record, reason, detail)


class DeadLetters:
    """The dead letters of every partition."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    async def list(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest *limit* of each partition."""
        replies = await self._redis.run([
            ("XRANGE", dead_letters_key(partition), "-", "+", "COUNT", limit)
            for partition in range(self._partitions)])
        return [_parse(partition, entry_id, fields)
                for partition, reply in enumerate(replies) for entry_id, fields in reply]

    async def replay(self, letters: Sequence[DeadLetter]) -> int:
        """Send *letters* back to the journal; how many events that is."""
        replies = await self._redis.run([_REPLAY(_keys(letter.partition), letter.id) for letter in letters])
        return sum(replies)


def _keys(partition: int) -> tuple[str, str, str]:
    return journal_key(partition), ledger_key(partition), dead_letters_key(partition)


def _parse(partition: int, entry_id: bytes, fields: Any) -> DeadLetter:
    pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return DeadLetter(partition, entry_id.decode(), int(pairs[b"n"]), pairs[b"reason"].decode(),
                      pairs[b"detail"].decode(), pairs[b"e"])
