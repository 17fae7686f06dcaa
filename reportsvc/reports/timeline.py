"""How a message spread: by hour or by day of the app's timezone, how many devices were new at each stage, and how many
had reached it by then.

A device is new at a stage in the first interval it was there, and in no other: the figures of a chart add up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from reportsvc.localtime import instant, local_now
from reportsvc.model import App
from reportsvc.reports.coalesce import Coalescer
from reportsvc.storage.queries import MESSAGE_STAGES, Growth, Queries

INTERVALS: Final = ("hour", "day")
_FORMATS: Final = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d"}


@dataclass(frozen=True, slots=True)
class Interval:
    """An hour or a day; *start* in unix seconds. Stages without devices are in neither map."""

    time: str
    start: int
    new: Mapping[str, int]
    cumulative: Mapping[str, int]


class TimelineReport:
    """The series of one message. Callers who ask the same while it is being answered share the next answer."""

    def __init__(self, queries: Queries, clock: Callable[[], float] = time.time) -> None:
        self._queries = queries
        self._clock = clock
        self._growth: Coalescer[tuple[int, str, str], list[Growth]] = Coalescer(self._read)

    async def series(self, app: App, msg_id: str, interval: str, platform: str) -> list[Interval]:
        """The intervals in which a device was new at some stage, oldest first; of one *platform*, or of all (``""``).

        Between two of them nothing changed. Empty for a message without living statistics.
        """
        key = app.id, msg_id, platform
        growth = (await self._growth.get([key]))[key]
        return _series(growth, app.timezone, interval)

    async def _read(self, keys: list[tuple[int, str, str]]) -> Mapping[Any, list[Growth]]:
        now = int(self._clock())
        found = await asyncio.gather(*(self._queries.growth(*key, now, "timeline") for key in keys))
        return dict(zip(keys, found, strict=True))


def _series(growth: Sequence[Growth], timezone: str, interval: str) -> list[Interval]:
    """Fold hours into intervals: what a stage has at the end of one is what it has at the end of its last hour."""
    by_start: dict[int, dict[str, int]] = {}
    for one in growth:
        by_start.setdefault(_start(timezone, one.hour, interval), {})[one.stage] = one.count
    series, total = [], dict.fromkeys(MESSAGE_STAGES, 0)
    for start, counts in by_start.items():
        new = {stage: counts[stage] - total[stage] for stage in MESSAGE_STAGES
               if counts.get(stage, 0) > total[stage]}
        if new:
            total |= counts
            label = local_now(timezone, start).strftime(_FORMATS[interval])
            series.append(Interval(label, start, new, {stage: count for stage, count in total.items() if count}))
    return series


def _start(timezone: str, hour: int, interval: str) -> int:
    if interval == "hour":
        return hour
    return instant(timezone, datetime.combine(local_now(timezone, hour).date(), datetime.min.time()))
