"""When each key was last used: noted in memory at every request, and written to Redis every few seconds.

A key is known here by what is stored of it, so after a rotation the old key and the new one are told apart: whoever
rotates sees when nobody uses the old one any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis import Redis, uses_key

log = logging.getLogger(__name__)

#: What is shown may be so old; one command then carries every key used since.
FLUSH_SECONDS: Final = 3.0


class Uses:
    """The last use of each key, in memory and, a little later, in Redis."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._noted: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, key: str) -> None:
        """*key* is used at this moment."""
        self._noted[key] = self._clock()

    async def start(self) -> None:
        """Write what is noted now and then."""
        self._task = asyncio.create_task(self._repeat(), name="uses")

    async def stop(self) -> None:
        """Write what is left."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            await self._redis.call("HSET", uses_key(), *(
                word for key, used in noted.items() for word in (key, int(used))))
        except StoreUnavailable:
            self._noted = noted | self._noted  # kept until Redis is back
        except Exception:
            log.exception("the last uses of keys could not be written")


async def last_uses(redis: Redis, keys: Sequence[str]) -> dict[str, int]:
    """When each of *keys* was last used, unix seconds; without those that never were."""
    if not keys:
        return {}
    replies = await redis.call("HMGET", uses_key(), *keys)
    return {key: int(reply) for key, reply in zip(keys, replies, strict=True) if reply is not None}


async def forget_uses(redis: Redis, keys: Iterable[str]) -> None:
    """Remove what is known of keys that are gone."""
    gone = list(keys)
    if gone:
        await redis.call("HDEL", uses_key(), *gone)
