"""Lets others see which processes of the service are at work, on whichever machines: a rebuild of Redis, which must be
alone, and ``reportsvc status``."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis import Redis, Script, presence_key

#: Seconds between two signs of life.
_INTERVAL: Final = 2.0
#: A process that gave none for so long is gone. One that waits for the disk may be late.
_GONE_SECONDS: Final = 10

# ARGV: process, role, seconds. Notes the role, when the process was first seen, and now, by the clock of Redis. Those
# that gave no sign for long were killed, and are left out; so is what was here of another form.
_SIGN = Script("""
local now = redis.call('TIME')[1]
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local known = redis.call('HGET', KEYS[1], ARGV[1])
local since = known and string.match(known, '^%S+ (%d+)') or now
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. since .. ' ' .. now)
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if tonumber(string.match(all[i + 1], '%d+$')) + ARGV[3] < tonumber(now) then redis.call('HDEL', KEYS[1], all[i]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return now
""")

# Answers the time, and what the processes noted.
_LOOK = Script("""
local all = {redis.call('TIME')[1]}
if redis.call('TYPE', KEYS[1]).ok == 'hash' then
  for _, word in ipairs(redis.call('HGETALL', KEYS[1])) do all[#all + 1] = word end
end
return all
""")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the service: its machine and number, what it does, and since when (unix seconds)."""

    name: str
    role: str
    since: int


class Presence:
    """Shows that this process is at work."""

    def __init__(self, redis: Redis, role: str = "all") -> None:
        self._redis = redis
        self._role = role
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Give a sign now and then."""
        self._task = asyncio.create_task(self._repeat(), name="presence")

    async def stop(self) -> None:
        """Give no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with suppress(StoreUnavailable):
                await self._redis.call("HDEL", presence_key(), self._name)

    async def _repeat(self) -> None:
        while True:
            with suppress(StoreUnavailable):
                await self._redis.run([_SIGN((presence_key(),), self._name, self._role, _GONE_SECONDS)])
            await asyncio.sleep(_INTERVAL)


async def processes(redis: Redis) -> list[Process]:
    """Those that gave a sign of life in the last seconds."""
    now, *words = await redis.call(*_LOOK((presence_key(),)))
    found = []
    for name, value in zip(words[::2], words[1::2], strict=True):
        role, since, seen = value.decode().split(" ")
        if int(seen) + _GONE_SECONDS >= int(now):
            found.append(Process(name.decode(), role, int(since)))
    return sorted(found, key=lambda process: process.name)


async def is_at_work(redis: Redis) -> bool:
    """Whether any process shows itself; takes a little longer than it takes them."""
    await redis.call("DEL", presence_key())
    await asyncio.sleep(1.5 * _INTERVAL)
    return bool(await redis.call("EXISTS", presence_key()))
