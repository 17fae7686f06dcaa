"""Hours, days and months as people in an app's timezone have them, as instants.

An hour bucket is the instant at which the app-local hour began. In most timezones that is a whole hour of UTC; in
Kolkata it is half past, and a local day is always a union of such buckets, also when the clocks change.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_HOUR = 3600


@lru_cache(maxsize=100_000)
def hour_start(timezone: str, time: int) -> int:
    """When the local hour that holds *time* began; both in unix seconds."""
    offset = datetime.fromtimestamp(time, ZoneInfo(timezone)).utcoffset() or timedelta()
    seconds = int(offset.total_seconds())
    return (time + seconds) // _HOUR * _HOUR - seconds


def instant(timezone: str, local: datetime) -> int:
    """The unix second at which a wall-clock hour, day or month of *timezone* begins.

    An hour that comes twice begins with the first; one that is skipped begins, and ends, when the clocks move on.
    """
    return int(local.replace(tzinfo=ZoneInfo(timezone), fold=0).timestamp())


def local_now(timezone: str, time: float) -> datetime:
    """The wall clock of *timezone* at *time*, without its offset."""
    return datetime.fromtimestamp(time, ZoneInfo(timezone)).replace(tzinfo=None)
