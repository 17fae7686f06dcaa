"""How many devices a message reached: totals by any selection of stage, platform, channel and kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from reportsvc.metrics import Metrics
from reportsvc.model import App
from reportsvc.reports.coalesce import Coalescer
from reportsvc.storage.queries import Queries, Selection

Totals = Mapping[str, int]


class DeliveryReport:
    """Counts of distinct devices."""

    def __init__(self, queries: Queries, clock: Callable[[], float] = time.time,
                 metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._queries = queries
        self._clock = clock
        self._coalescers: dict[tuple[int, str], Coalescer[str, tuple[int, ...]]] = {}

    async def totals(self, app: App, msg_ids: Sequence[str], report: str,
                     counters: Mapping[str, Selection]) -> dict[str, Totals]:
        """The *counters* of each message that is alive; a message nobody heard of is left out.

        *report* names the set of counters: calls with one name share queries, and must ask for the same counters.
        """
        coalescer = self._coalescers.get((app.id, report))
        if coalescer is None:
            coalescer = self._coalescers[app.id, report] = self._coalescer(app.id, report, list(counters.values()))
        found = await coalescer.get(msg_ids)
        return {msg_id: dict(zip(counters, counts, strict=True)) for msg_id, counts in found.items()}

    def _coalescer(self, app_id: int, report: str,
                   selections: Sequence[Selection]) -> Coalescer[str, tuple[int, ...]]:
        async def query(msg_ids: list[str]) -> Mapping[str, tuple[int, ...]]:
            return await self._queries.totals(app_id, msg_ids, selections, int(self._clock()), report)
        return Coalescer(query, partial(self._metrics.shared, report))
