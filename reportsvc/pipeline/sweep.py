"""The retention sweep: removes messages whose month is over, from both stores, and only those.

A message is first marked in Redis; an aggregator that has a new delivery of it then waits for the removal to end, so
that nothing new is removed with the old. The mark names its sweep: of several, each removes what it has marked, and
none touches what another is removing, which may be alive again by the time the other is done. Reads never depend on the
sweep: they leave dead messages out by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.metrics import Metrics
from reportsvc.registry.devices import DeviceRegistry
from reportsvc.registry.messages import Messages, received_by, targets_of
from reportsvc.storage.device_set import chunks_below
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Command, Redis

log = logging.getLogger(__name__)

#: Messages removed together: a mutation of ClickHouse costs much the same for one as for many, but an aggregator may
#: wait for this long.
_BATCH: Final = 500
#: No month is shorter. A message that was dead when it was looked for had its last delivery before that.
_SHORTEST_MONTH_SECONDS: Final = 28 * 86400


class Sweep:
    """Removes dead messages, now and then."""

    def __init__(self, redis: Redis, queries: Queries, interval: float, clock: Callable[[], float] = time.time,
                 metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._redis = redis
        self._queries = queries
        self._interval = interval
        self._clock = clock
        self._messages = Messages(redis)
        self._devices = DeviceRegistry(redis)
        self._name = uuid.uuid4().hex
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Sweep in the background."""
        self._task = asyncio.create_task(self._repeat(), name="sweep")

    async def stop(self) -> None:
        """End; a message half removed is finished by the next sweep."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> int:
        """Remove every message that is dead now; how many were removed."""
        removed = 0
        while True:
            now = int(self._clock())
            messages = await self._queries.dead_messages(now, _BATCH)
            done = await self._remove(messages, now) if messages else 0
            removed += done
            if not done:
                return removed

    async def _remove(self, messages: list[tuple[int, str]], now: int) -> int:
        silent_since = now - _SHORTEST_MONTH_SECONDS
        chunks = await self._messages.mark_dead(messages, now, silent_since, self._name)
        marked = [(message, found) for message, found in zip(messages, chunks, strict=True) if found is not None]
        if not marked:
            return 0
        commands: list[Command] = []
        for (app_id, msg_id), found in marked:
            # Redis may have dropped the hash of a message dead for long; its sets can then be anywhere.
            for chunk in found or chunks_below((await self._devices.extent(app_id)).end):
                commands += [("UNLINK", targets_of(app_id, msg_id).chunk_key(chunk)),
                             ("UNLINK", received_by(app_id, msg_id).chunk_key(chunk))]
        await self._redis.run(commands)
        await self._queries.delete_messages([message for message, _ in marked], silent_since)
        await self._redis.run([self._messages.forget(app_id, msg_id, self._name) for (app_id, msg_id), _ in marked])
        return len(marked)

    async def _repeat(self) -> None:
        while True:
            try:
                if removed := await self.run():
                    log.info("removed %d messages that were silent for a month", removed)
            except StoreUnavailable as error:
                self._metrics.failed(error.store, "sweep")
                log.warning("the sweep waits: %s", error)
            except Exception:
                log.exception("the sweep stumbled; it goes on")
            await asyncio.sleep(self._interval)
