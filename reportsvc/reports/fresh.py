"""Answers that are kept for as long as they are true.

Dashboards ask the same question many times between two changes. The aggregator counts up an app's *epoch* whenever a
batch is in both stores, before the batch counts as applied; an answer is kept with the epoch read before it was made,
and serves as long as the epoch stands. Nothing stale is ever served: a caller who was told that his event is applied
sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from reportsvc.errors import StoreUnavailable
from reportsvc.reports.coalesce import Coalescer
from reportsvc.storage.redis import Redis, epoch_key

#: Answers kept, some ten kilobytes each.
_CAPACITY: Final = 2000
#: Characters of a question whose answer is kept: a hundred ids of the usual sort have two thousand.
_LONGEST_QUESTION: Final = 16_384
#: A message dies, and a store goes away, without a change of epoch; so much later it may be noticed. Long enough for a
#: fleet of dashboards to share one query.
_LONGEST_SECONDS: Final = 0.2
#: Redis tells the epoch in a fraction of a millisecond; one that takes longer than the query would is not waited for.
_EPOCH_SECONDS: Final = 0.25


def _size(question: Sequence[str]) -> int:
    return sum(map(len, question))


class _Answer(NamedTuple):
    """An answer, or the making of it: the epoch and the time before it was begun, and its text."""

    epoch: int
    made_at: float
    text: asyncio.Future[bytes]


class FreshAnswers:
    """Rendered answers of reports, by app and question."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._epochs: Coalescer[int, int] = Coalescer(self._read_epochs)
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()

    async def get(self, app_id: int, question: Sequence[str],
                  answer: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """The answer to *question*, from ``answer()`` unless the last one is still true."""
        epoch = await self._epoch(app_id)
        if epoch is None or _size(question) > _LONGEST_QUESTION:
            return await answer()
        key = app_id, tuple(question)
        kept = self._answers.get(key)
        if kept is None or kept.epoch != epoch or abs(self._clock() - kept.made_at) >= _LONGEST_SECONDS:
            # Whoever asks the same at the same epoch, while this is being made, waits for it too.
            kept = self._answers[key] = _Answer(epoch, self._clock(), asyncio.ensure_future(answer()))
            kept.text.add_done_callback(lambda made: self._drop_failed(key, made))
            while len(self._answers) > _CAPACITY:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        # A caller who goes away must not take the answer from the others.
        return await asyncio.shield(kept.text)

    def _drop_failed(self, key: Hashable, made: asyncio.Future[bytes]) -> None:
        kept = self._answers.get(key)
        if (made.cancelled() or made.exception()) and kept is not None and kept.text is made:
            del self._answers[key]

    async def _epoch(self, app_id: int) -> int | None:
        """The app's epoch; None while Redis is away, which must not keep counters from being answered."""
        try:
            async with asyncio.timeout(_EPOCH_SECONDS):
                return (await self._epochs.get([app_id]))[app_id]
        except (StoreUnavailable, TimeoutError):
            return None

    async def _read_epochs(self, app_ids: list[int]) -> Mapping[int, int]:
        replies = await self._redis.run([("GET", epoch_key(app_id)) for app_id in app_ids])
        return {app_id: int(reply or 0) for app_id, reply in zip(app_ids, replies, strict=True)}
