"""What Redis knows of one message: when it last was delivered, and the push that its sender registered.

A message's hash says whether the message is alive; its device sets have no expiry of their own. Whoever adds to the
sets touches the hash first, and the sweep marks it before it removes the sets, so that a late event and the sweep can
not pass each other unseen.

Fields: ``l`` last delivery, ``x`` being removed since, ``o`` by which sweep, ``p`` the push, ``g`` its digest, ``e``
its expiry, ``f`` when its last target received it (times in unix seconds); ``c`` the chunks its sets have members in,
or ``*`` for more than a few, then any up to ``n``; ``a`` the members of its audience, from the registration until they
are in the sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from reportsvc.errors import StoreUnavailable
from reportsvc.model import dies_at
from reportsvc.storage.device_set import DeviceSet
from reportsvc.storage.redis import Command, Redis, Script, message_key, message_set_key

#: A dead message waits this long for the sweep before Redis itself drops its hash; far more than a sweep's interval.
GRACE_SECONDS: Final = 7 * 86400
#: A mark older than this was left by a sweep that died.
_REMOVAL_SECONDS: Final = 60

#: So many chunks are listed; a set with members in more of them is read from end to end.
_LISTED_CHUNKS: Final = 16

_LIBRARY: Final = """
local function being_removed(key)
  local since = redis.call('HGET', key, 'x')
  return since and tonumber(since) + tonumber(ARGV[2]) > tonumber(redis.call('TIME')[1])
end
local function keep_until(key, time)
  if tonumber(time) > redis.call('TTL', key) + tonumber(redis.call('TIME')[1]) then
    redis.call('EXPIREAT', key, time)
  end
end
local function add_chunks(key, chunks, last)
  if chunks == '' then return end
  local state = redis.call('HMGET', key, 'c', 'n')
  local known, count = state[1] or '', 0
  if not state[2] or tonumber(state[2]) < tonumber(last) then redis.call('HSET', key, 'n', last) end
  if known == '*' then return end
  local merged = known
  if chunks == '*' then
    merged = '*'
  else
    for chunk in string.gmatch(chunks, '%d+') do
      if not string.find(',' .. merged .. ',', ',' .. chunk .. ',', 1, true) then
        merged = merged == '' and chunk or merged .. ',' .. chunk
      end
    end
    for _ in string.gmatch(merged, '%d+') do count = count + 1 end
    if count > LISTED_CHUNKS then merged = '*' end
  end
  if merged ~= known then redis.call('HSET', key, 'c', merged) end
end
""".replace("LISTED_CHUNKS", str(_LISTED_CHUNKS))

# ARGV: now, removal seconds, expiry of the hash, chunks, last chunk. Answers -1 while a sweep removes the message, 0 if
# no push is registered, 1 if one is that is not yet fully delivered, 2 if one is that was.
_TOUCH = Script(_LIBRARY + """
local key, now = KEYS[1], tonumber(ARGV[1])
if being_removed(key) then return -1 end
redis.call('HDEL', key, 'x', 'o')
local last = redis.call('HGET', key, 'l')
if not last or tonumber(last) < now then redis.call('HSET', key, 'l', ARGV[1]) end
add_chunks(key, ARGV[4], ARGV[5])
keep_until(key, ARGV[3])
local push = redis.call('HMGET', key, 'p', 'f')
return push[1] and (push[2] and 2 or 1) or 0
""")

# ARGV: now, removal seconds, expiry of the hash, chunks, last chunk, digest, push, expiry of the push, members. Answers
# what is registered now, and the members that are not yet in the sets.
_CLAIM = Script(_LIBRARY + """
local key, now = KEYS[1], tonumber(ARGV[1])
if being_removed(key) then return false end
redis.call('HDEL', key, 'x', 'o')
local fresh, digest = 0, redis.call('HGET', key, 'g')
if not digest then
  redis.call('HSET', key, 'g', ARGV[6], 'p', ARGV[7], 'e', ARGV[8], 'l', ARGV[1])
  if ARGV[9] ~= '' then redis.call('HSET', key, 'a', ARGV[9]) end
  fresh, digest = 1, ARGV[6]
end
if digest == ARGV[6] then
  add_chunks(key, ARGV[4], ARGV[5])
  keep_until(key, ARGV[3])
end
return {fresh, digest, redis.call('HGET', key, 'p'), redis.call('HGET', key, 'a') or ''}
""")

# ARGV: now, removal seconds, silent since, sweep. Answers the chunks of a message that is dead, and marks it; nothing
# for one that is not, or that another sweep is removing.
_MARK = Script(_LIBRARY + """
local key, now = KEYS[1], tonumber(ARGV[1])
if being_removed(key) and redis.call('HGET', key, 'o') ~= ARGV[4] then return false end
local state = redis.call('HMGET', key, 'l', 'e', 'c', 'n')
if state[1] and tonumber(state[1]) > tonumber(ARGV[3]) then return false end
if state[2] and tonumber(state[2]) > now then return false end
redis.call('HSET', key, 'x', redis.call('TIME')[1], 'o', ARGV[4])
redis.call('EXPIRE', key, 86400)
return {state[3] or '*', state[4] or '-1'}
""")

# ARGV: sweep. A mark that is gone was too old for an event that came in meanwhile, and the message is alive; one of
# another sweep was too old for that sweep, which has yet to remove the sets.
_FORGET = Script("""
return redis.call('HGET', KEYS[1], 'o') == ARGV[1] and redis.call('UNLINK', KEYS[1]) or 0
""")

_FINISH = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSETNX', KEYS[1], 'f', ARGV[1]) end
return 1
""")


def targets_of(app_id: int, msg_id: str) -> DeviceSet:
    """Who was meant to get the message."""
    return DeviceSet(message_set_key(app_id, msg_id, "t"))


def received_by(app_id: int, msg_id: str) -> DeviceSet:
    """Who has the message."""
    return DeviceSet(message_set_key(app_id, msg_id, "r"))


@dataclass(frozen=True, slots=True)
class MessageState:
    """What Redis knows of a message; times in unix seconds, 0 for never."""

    last: int
    push: bytes | None
    finished_at: int
    #: The chunks in which its device sets may have members.
    chunks: Sequence[int]

    @classmethod
    def parse(cls, reply: Sequence[bytes | None]) -> MessageState:
        """What :meth:`Messages.state_command` answers."""
        last, push, finished, chunks, end = reply
        return cls(int(last or 0), push, int(finished or 0), _chunk_numbers(chunks or b"", int(end or -1)))

    def is_kept(self, expires_at: int, now: float) -> bool:
        """Whether the push, which expires at *expires_at*, is still told of."""
        return expires_at > now or dies_at(self.last) > now


class Claim(NamedTuple):
    """What is registered under an id: whether it is new, its digest and text, and the members of its audience that are
    still to be put into the sets."""

    is_new: bool
    digest: str
    push: bytes
    members: bytes


class Messages:
    """The hashes of messages."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def touch(self, app_id: int, msg_id: str, now: int, chunks: Iterable[int]) -> Command:
        """Note a delivery at *now* that will add to *chunks* of the message's sets. Replies -1 while the message is
        being removed (wait, then ask again), 0 without a push, 1 if that may now be fully delivered, 2 if it was."""
        return _TOUCH((message_key(app_id, msg_id),), now, _REMOVAL_SECONDS, dies_at(now) + GRACE_SECONDS,
                      *_chunk_words(chunks))

    async def digest(self, app_id: int, msg_id: str) -> str:
        """The digest of the push that is registered; empty where none is."""
        return (await self._redis.call("HGET", message_key(app_id, msg_id), "g") or b"").decode()

    async def claim(self, app_id: int, msg_id: str, digest: str, push: bytes, *, now: int, expires_at: int,
                    chunks: Iterable[int], members: bytes = b"") -> Claim:
        """Register *push* unless one is; what is registered now.

        *members* of its audience are kept with it until :meth:`settled`, so that a registration which breaks off and
        is repeated is for those whom the first one found.

        Raises:
            StoreUnavailable: The message is dead and being removed at this very moment.
        """
        keep = max(dies_at(now), expires_at) + GRACE_SECONDS
        reply = await self._redis.call(*_CLAIM((message_key(app_id, msg_id),), now, _REMOVAL_SECONDS, keep,
                                               *_chunk_words(chunks), digest, push, expires_at, members))
        if reply is None:
            raise StoreUnavailable("redis", f"message {msg_id} is being removed")
        return Claim(bool(reply[0]), reply[1].decode(), reply[2], reply[3])

    def settled(self, app_id: int, msg_id: str) -> Command:
        """Note that the members of the audience are in the sets."""
        return ("HDEL", message_key(app_id, msg_id), "a")

    async def states(self, app_id: int, msg_ids: Sequence[str]) -> dict[str, MessageState]:
        """What is known of the messages; an unknown one has no delivery and no push."""
        replies = await self._redis.run([self.state_command(app_id, msg_id) for msg_id in msg_ids])
        return dict(zip(msg_ids, map(MessageState.parse, replies), strict=True))

    def state_command(self, app_id: int, msg_id: str) -> Command:
        """The command whose reply :meth:`MessageState.parse` understands."""
        return ("HMGET", message_key(app_id, msg_id), "l", "p", "f", "c", "n")

    def finish(self, app_id: int, msg_id: str, now: int) -> Command:
        """Note that every target has the message; the first note stays."""
        return _FINISH((message_key(app_id, msg_id),), now)

    def reopen(self, app_id: int, msg_id: str) -> Command:
        """Take the note back: a target was added that has not got the message."""
        return ("HDEL", message_key(app_id, msg_id), "f")

    async def mark_dead(self, messages: Sequence[tuple[int, str]], now: int, silent_since: int,
                        sweep: str) -> list[Sequence[int] | None]:
        """Bar the way to those of *messages* that are dead, and tell the chunks of their sets; None for one that is
        not, or that another *sweep* is removing, which stays as it is. Where Redis has dropped the hash there is no
        chunk to tell of, and any may exist."""
        replies: list[Any] = await self._redis.run([
            _MARK((message_key(app_id, msg_id),), now, _REMOVAL_SECONDS, silent_since, sweep)
            for app_id, msg_id in messages])
        return [None if reply is None else _chunk_numbers(reply[0], int(reply[1])) for reply in replies]

    def forget(self, app_id: int, msg_id: str, sweep: str) -> Command:
        """Remove the hash, and with it the mark, if it is that of *sweep*."""
        return _FORGET((message_key(app_id, msg_id),), sweep)


def _chunk_words(chunks: Iterable[int]) -> tuple[str, int]:
    distinct = sorted(set(chunks))
    words = ",".join(map(str, distinct)) if len(distinct) <= _LISTED_CHUNKS else "*"
    return words, distinct[-1] if distinct else -1


def _chunk_numbers(words: bytes, last: int) -> Sequence[int]:
    return range(last + 1) if words == b"*" else [int(word) for word in words.split(b",") if word]
