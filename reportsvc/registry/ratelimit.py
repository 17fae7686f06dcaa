"""How many calls an app may make a minute, counted in Redis for all processes together.

The minute begins with an app's first call and is the life of one counter, so no clock is read and none can jump. Calls
that arrive while a command is under way share the next one: the count stays exact, each caller has a place of its own
in it, and the cost per call falls as load rises.

A limit is there to protect the service, so it must not take it down: while Redis does not count, every call is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis import Redis, Script, quota_key

log = logging.getLogger(__name__)

WINDOW_SECONDS: Final = 60
#: A count takes a fraction of a millisecond; a Redis that takes this long is taken for away, and the caller goes on.
ANSWER_SECONDS: Final = 1.0
#: For so long nobody asks a Redis that was away, so that only one call in that time waits for it.
RETRY_SECONDS: Final = 1.0

# ARGV: calls, window in milliseconds. Answers the calls made in this window, and how many milliseconds are left of it.
# A minute that a replica does not know of is no loss to wait for.
_COUNT = Script("""
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = tonumber(ARGV[2])
  redis.call('PEXPIRE', KEYS[1], left)
end
return {count, left}
""", writes=False)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a call found: its place among the calls of this minute, and the seconds that are left of it."""

    limit: int
    place: int
    reset: int

    @property
    def is_exceeded(self) -> bool:
        """Whether the call is one too many."""
        return self.place > self.limit

    @property
    def remaining(self) -> int:
        """How many more calls there are in this minute."""
        return max(0, self.limit - self.place)


_Place = tuple[int, int]


class RateLimiter:
    """Counts calls."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, list[asyncio.Future[_Place]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_away = False
        self._ask_from = 0.0

    async def spend(self, app_id: int, scope: str, limit: int) -> Quota:
        """Count a call of an app to a part of the API, of which there may be *limit* a minute."""
        if time.monotonic() < self._ask_from:
            return Quota(limit, 0, WINDOW_SECONDS)
        place: asyncio.Future[_Place] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(quota_key(app_id, scope), []).append(place)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._count(), name="rate-limits")
        return Quota(limit, *await place)

    async def _count(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    replies = await self._redis.run([
                        _COUNT((key,), len(callers), WINDOW_SECONDS * 1000) for key, callers in waiting.items()])
            except (StoreUnavailable, TimeoutError) as error:
                self._note_away(str(error) or "no answer in time")
                replies = [(0, WINDOW_SECONDS * 1000)] * len(waiting)
            except Exception:
                log.exception("calls could not be counted")
                replies = [(0, WINDOW_SECONDS * 1000)] * len(waiting)
            else:
                self._note_back()
            for callers, (count, left) in zip(waiting.values(), replies, strict=True):
                _settle(callers, count, left)

    def _note_away(self, problem: str) -> None:
        self._ask_from = time.monotonic() + RETRY_SECONDS
        if not self._is_away:
            self._is_away = True
            log.warning("rate limits are not enforced until Redis is back: %s", problem)

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("rate limits are enforced again")


def _settle(callers: list[asyncio.Future[_Place]], count: int, left: int) -> None:
    """Give each caller its place; *count* is that of the last."""
    first = count - len(callers) + 1
    for place, caller in enumerate(callers, first):
        if not caller.done():
            caller.set_result((max(place, 0), max(1, math.ceil(left / 1000))))
