"""What the stores tell of the pipeline, for ``/metrics``: the ledger, the journal, and whether they answer.

Whoever asks is answered within a second, also while a store hangs: then there are no figures of that store, and one
that says so. At most one question is under way to each store, however many ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from reportsvc import metrics
from reportsvc.metrics import Labels, Metric, Shared
from reportsvc.pipeline import ledger
from reportsvc.pipeline.aggregator import GROUP
from reportsvc.storage.redis import Redis, Script, dead_letters_key, journal_key

#: Prometheus waits ten seconds by default; a store that is well answers in milliseconds.
ANSWER_SECONDS: Final = 1.0
#: An aggregator asks ten times a second while it is idle, and every two seconds while a store is away.
_AT_WORK_MILLISECONDS: Final = 30_000
_STATES: Final = ("received", "accepted", "applied", "dead", "skewed")

# ARGV: group, milliseconds. Answers entries, those that are being worked on, the age of the oldest in milliseconds, and
# consumers that asked within the time.
_LOOK = Script("""
local first, time = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1], redis.call('TIME')
local now, age, pending, working = time[1] * 1000 + math.floor(time[2] / 1000), 0, 0, 0
if first then age = math.max(0, now - tonumber(string.match(first[1], '^%d+'))) end
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if not consumers['err'] then
  for _, pairs in ipairs(consumers) do
    local consumer = {}
    for i = 1, #pairs, 2 do consumer[pairs[i]] = pairs[i + 1] end
    pending = pending + consumer['pending']
    if consumer['idle'] < tonumber(ARGV[2]) then working = working + 1 end
  end
end
return {redis.call('XLEN', KEYS[1]), pending, age, working}
""")

Values = dict[Metric, list[tuple[Labels, float]]]


class StoreFigures:
    """Asks both stores, and never waits long."""

    def __init__(self, redis: Redis, partitions: int, max_bytes: int, ping: Callable[[], Awaitable[None]]) -> None:
        """*ping* returns if ClickHouse answers."""
        self._redis = redis
        self._partitions = partitions
        self._max_bytes = max_bytes
        self._ping = ping
        self._asking: dict[str, asyncio.Task[Any]] = {}

    async def read(self) -> Shared:
        """What they say now."""
        redis, clickhouse = await asyncio.gather(self._ask("redis", self._look), self._ask("clickhouse", self._ping))
        values: Values = redis[0] if redis else {}
        values[metrics.UP] = [(("redis",), len(redis)), (("clickhouse",), len(clickhouse))]
        values[metrics.JOURNAL_BOUND] = [((), self._max_bytes)]
        return Shared(values)

    async def _ask(self, store: str, question: Callable[[], Awaitable[Any]]) -> Sequence[Any]:
        """The answer in a list; an empty one for no answer."""
        task = self._asking.get(store)
        if task is None or task.done():
            task = self._asking[store] = asyncio.ensure_future(_answer(question))
        done, _ = await asyncio.wait([task], timeout=ANSWER_SECONDS)
        return task.result() if done else []

    async def _look(self) -> Values:
        """What Redis says."""
        partitions = range(self._partitions)
        counts = await ledger.read(self._redis, self._partitions)
        looks = await self._redis.run([
            _LOOK((journal_key(partition),), GROUP, _AT_WORK_MILLISECONDS) for partition in partitions])
        sizes = await self._redis.run([("MEMORY", "USAGE", journal_key(partition)) for partition in partitions])
        letters = await self._redis.run([("XLEN", dead_letters_key(partition)) for partition in partitions])

        def by_partition(values: Sequence[float]) -> list[tuple[Labels, float]]:
            return [((str(partition),), value) for partition, value in enumerate(values)]
        return {
            metrics.EVENTS: [((state,), counts.get(state, 0)) for state in _STATES],
            metrics.REJECTED: list(_by_reason(counts, "rejected_")), metrics.DEAD: list(_by_reason(counts, "dead_")),
            metrics.DEAD_LETTERS: by_partition(letters),
            metrics.JOURNAL_ENTRIES: by_partition([look[0] for look in looks]),
            metrics.JOURNAL_PENDING: by_partition([look[1] for look in looks]),
            metrics.JOURNAL_OLDEST: by_partition([look[2] / 1000 for look in looks]),
            metrics.JOURNAL_BYTES: [
                ((str(partition), self._redis.node_of(journal_key(partition))), size or 0)
                for partition, size in enumerate(sizes)],
            metrics.AGGREGATORS: by_partition([look[3] for look in looks]),
        }


def _by_reason(counts: dict[str, int], prefix: str) -> Iterator[tuple[Labels, float]]:
    for name, count in counts.items():
        if name.startswith(prefix):
            yield (name.removeprefix(prefix),), count


async def _answer(question: Callable[[], Awaitable[Any]]) -> list[Any]:
    try:
        return [await question()]
    except Exception:  # noqa: BLE001  # whatever it is: there is no answer
        return []
