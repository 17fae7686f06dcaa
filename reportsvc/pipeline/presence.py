"""Lets a rebuild of Redis see that a service is at work on it, in whichever process on whichever machine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis import Redis, presence_key

#: Seconds between two signs of life.
_INTERVAL: Final = 2.0


class Presence:
    """Shows that this process is at work."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Give a sign now and then."""
        self._task = asyncio.create_task(self._repeat(), name="presence")

    async def stop(self) -> None:
        """Give no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _repeat(self) -> None:
        while True:
            with suppress(StoreUnavailable):
                await self._redis.call("SET", presence_key(), 1)
            await asyncio.sleep(_INTERVAL)


async def is_at_work(redis: Redis) -> bool:
    """Whether any process shows itself; takes a little longer than it takes them."""
    await redis.call("DEL", presence_key())
    await asyncio.sleep(1.5 * _INTERVAL)
    return bool(await redis.call("EXISTS", presence_key()))
