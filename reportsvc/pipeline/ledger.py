"""The event ledger: what was received, accepted, rejected and why, applied, and dead.

``accepted``, ``applied`` and ``dead`` change in the transactions they describe, so that
``accepted = applied + dead`` holds whenever the journal is empty, whatever crashed before. What was received and
refused is counted in memory and written every second; a crash may lose the last second of those, never of the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, Final

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis import Redis, ledger_key, rejections_key

log = logging.getLogger(__name__)

#: Why an event is refused: the field that is wrong, or what could not be read at all. A closed list, counted one by one
#: as ``rejected_<reason>``.
REASONS: Final = ("json", "event", "stage", "kind", "platform", "channel", "device_id", "msg_id", "ts", "user_id",
                  "beams_event")

_FLUSH_SECONDS: Final = 1.0


class Ledger:
    """Counters of what came in at the door."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._counts: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def add(self, name: str, count: int = 1) -> None:
        """Count something: ``received``, ``skewed``, or ``rejected_<reason>``."""
        self._counts[name] += count

    async def start(self) -> None:
        """Write the counts now and then."""
        self._task = asyncio.create_task(self._repeat(), name="ledger")

    async def stop(self) -> None:
        """Write what is left."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            await self._redis.run([("HINCRBY", rejections_key(), name, count) for name, count in counts.items()])
        except StoreUnavailable:
            self._counts.update(counts)  # kept until Redis is back


async def read(redis: Redis, partitions: int) -> dict[str, int]:
    """Every counter, summed over the partitions."""
    replies = await redis.run([
        ("HGETALL", rejections_key()), *(("HGETALL", ledger_key(partition)) for partition in range(partitions))])
    totals: Counter[str] = Counter(received=0, accepted=0, applied=0, dead=0)
    for reply in replies:
        for name, value in _pairs(reply):
            totals[name.decode()] += int(value)
    return dict(totals)


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))
