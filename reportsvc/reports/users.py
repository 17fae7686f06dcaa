"""New, online and active devices of an app, by hour, day or month of its timezone.

Each figure counts distinct devices over its whole period: a day is the union of its hours, not their sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from reportsvc.localtime import instant
from reportsvc.model import PLATFORMS, UNKNOWN_PLATFORM, App
from reportsvc.storage.queries import Queries

MEASURES: Final = ("new", "online", "active")
PLATFORM_ORDER: Final = {platform: place for place, platform in enumerate((*PLATFORMS[1:], UNKNOWN_PLATFORM))}
#: platform -> measure (``new``, ``online``, ``active``) -> devices; without those that have no data.
Figures = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of local time, from *start* to the *start* of the next."""

    label: str
    start: datetime


class UsersReport:
    """Figures about devices rather than messages."""

    def __init__(self, queries: Queries, clock: Callable[[], float] = time.time) -> None:
        self._queries = queries
        self.clock = clock

    async def figures(self, app: App, periods: Sequence[Period], end: datetime, label: str) -> list[Figures]:
        """The figures of each of *periods*, which follow one another up to *end*; local times of the app."""
        starts = [instant(app.timezone, period.start) for period in periods]
        counts = await self._queries.users(app.id, starts, instant(app.timezone, end), label)
        figures: list[Figures] = [{} for _ in periods]
        for count in sorted(counts, key=lambda count: (PLATFORM_ORDER[count.platform], MEASURES.index(count.measure))):
            figures[count.period].setdefault(count.platform, {})[count.measure] = count.count
        return figures
