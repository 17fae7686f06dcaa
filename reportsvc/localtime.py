"""Hours, days and months as people in an app's timezone have them, as instants.

An hour bucket is the instant at which the app-local hour began. In most timezones that is a whole hour of UTC; in
Kolkata it is half past, and a local day is always a union of such buckets, also when the clocks change: an hour that
comes twice is one bucket, and an hour that the clocks cut short begins when they move on.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo


@lru_cache(maxsize=100_000)
def hour_start(timezone: str, time: int) -> int:
    """When the local hour that holds *time* began; both in unix seconds."""
    return instant(timezone, local_now(timezone, time).replace(minute=0, second=0))


def instant(timezone: str, local: datetime) -> int:
    """The unix second at which a wall-clock hour, day or month of *timezone* begins.

    An hour that comes twice begins with the first; one that is skipped begins, and ends, when the clocks move on.
    """
    zone = ZoneInfo(timezone)
    before, after = (int(local.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    if after >= before:
        return before
    # No clock ever shows *local*. The two guesses, one with each offset, have the change between them.
    return after + bisect_left(range(after, before), local, key=lambda time: local_now(timezone, time))


def local_now(timezone: str, time: float) -> datetime:
    """The wall clock of *timezone* at *time*, without its offset."""
    return datetime.fromtimestamp(time, ZoneInfo(timezone)).replace(tzinfo=None)
