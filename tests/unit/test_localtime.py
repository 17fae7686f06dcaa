"""Hours and days as people have them: buckets, boundaries, and what happens when the clocks change."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reportsvc.localtime import hour_start, instant, local_now

QUARTER = 900
HOUR = 3600
DAY = 86400
NOW = int(time.time()) // QUARTER * QUARTER
TWO_YEARS = 2 * 365 * DAY

ZONES = st.sampled_from(sorted(available_timezones()))
#: Quarters of an hour, because that is what times are kept to.
TIMES = st.integers(-TWO_YEARS // QUARTER, TWO_YEARS // QUARTER).map(lambda quarters: NOW + quarters * QUARTER)


def utc(text: str) -> int:
    """``2026-03-29 01:00`` as unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def changes(zone: str) -> list[int]:
    """When the clocks of *zone* change within two years of now, unix seconds."""
    def offset(moment: int) -> timedelta | None:
        return datetime.fromtimestamp(moment, ZoneInfo(zone)).utcoffset()
    days = [day for day in range(NOW - TWO_YEARS, NOW + TWO_YEARS, DAY) if offset(day) != offset(day + DAY)]
    return [moment for day in days for moment in range(day + QUARTER, day + DAY + QUARTER, QUARTER)
            if offset(moment) != offset(moment - QUARTER)]


@st.composite
def _near_a_change(draw: st.DrawFn) -> tuple[str, int]:
    zone = draw(st.sampled_from(sorted(CHANGES)))
    return zone, draw(st.sampled_from(CHANGES[zone])) + draw(st.integers(-16, 16)) * QUARTER


#: Zones whose clocks change in every way there is: whole hours, half an hour, two hours, at quarter to, at midnight.
CHANGES = {zone: changes(zone) for zone in (
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Pacific/Chatham", "America/Havana",
    "America/Santiago", "Africa/Cairo", "Africa/Casablanca")}
#: Times anywhere, and as often around a change.
PLACES = st.one_of(st.tuples(ZONES, TIMES), _near_a_change())
#: The first use of a zone reads its file, which may take long on a busy machine.
at_leisure = settings(deadline=None)


def test_zones_of_the_examples_do_change() -> None:
    """The zones that stand for daylight saving have it: four changes in four years at least."""
    assert [zone for zone, moments in CHANGES.items() if len(moments) < 4] == []


@at_leisure
@given(PLACES)
def test_bucket_is_the_wall_clock_hour(place: tuple[str, int]) -> None:
    """Two moments share a bucket exactly if a wall clock shows the same day and hour at both."""
    zone, moment = place

    for other in (moment - HOUR, moment - QUARTER, moment + QUARTER, moment + HOUR):
        shown = [local_now(zone, one).strftime("%Y-%m-%d %H") for one in (moment, other)]
        assert (hour_start(zone, moment) == hour_start(zone, other)) == (shown[0] == shown[1])


@at_leisure
@given(PLACES)
def test_bucket_begins_on_the_hour_or_when_the_clocks_change(place: tuple[str, int]) -> None:
    """A bucket begins at the first moment of its hour: the second before it, the clock shows another hour."""
    zone, moment = place
    start = hour_start(zone, moment)
    before, at_start, now = (local_now(zone, one).strftime("%Y-%m-%d %H") for one in (start - 1, start, moment))

    assert start <= moment
    assert start % QUARTER == 0
    assert at_start == now != before


@at_leisure
@given(PLACES)
def test_day_is_a_union_of_hours(place: tuple[str, int]) -> None:
    """An hour's bucket begins within the local day of every moment in it, so the hours of a day add up to the day."""
    zone, moment = place
    day = local_now(zone, moment).replace(hour=0, minute=0)
    start, end = instant(zone, day), instant(zone, day + timedelta(days=1))

    assert start <= hour_start(zone, moment) < end
    assert start <= moment < end


@at_leisure
@given(PLACES)
def test_instant_undoes_the_wall_clock(place: tuple[str, int]) -> None:
    """The instant of what a clock shows is that moment, or an earlier one at which it showed the same."""
    zone, moment = place
    shown = local_now(zone, moment)

    assert instant(zone, shown) <= moment
    assert local_now(zone, instant(zone, shown)) == shown


@at_leisure
@given(PLACES, st.integers(1, 6))
def test_instants_ascend_with_the_wall_clock(place: tuple[str, int], hours: int) -> None:
    """A later hour of the wall clock never begins earlier, also among hours that the clocks skip."""
    zone, moment = place
    label = local_now(zone, moment).replace(minute=0)

    assert instant(zone, label) <= instant(zone, label + timedelta(hours=hours))


# UTC     00:00     00:30     01:00     01:30     02:00
# Berlin  01:00     01:30  |  03:00     03:30     04:00       29 March 2026: 02:00 is skipped
# Berlin  02:00     02:30  |  02:00     02:30     03:00       25 October 2026: 02:00 comes twice
@pytest.mark.parametrize(("zone", "moment", "start"), [
    ("Asia/Kolkata", "2026-03-29 00:15", "2026-03-28 23:30"),
    ("Europe/Berlin", "2026-03-29 00:59", "2026-03-29 00:00"),
    ("Europe/Berlin", "2026-03-29 01:15", "2026-03-29 01:00"),
    ("Europe/Berlin", "2026-10-25 00:15", "2026-10-25 00:00"),
    ("Europe/Berlin", "2026-10-25 01:15", "2026-10-25 00:00"),
    # 4 October 2026, 02:00 → 02:30: hour 02 has half an hour. 5 April 2026, 02:00 → 01:30: hour 01 has an hour and a
    # half.
    ("Australia/Lord_Howe", "2026-10-03 15:45", "2026-10-03 15:30"),
    ("Australia/Lord_Howe", "2026-10-03 15:15", "2026-10-03 14:30"),
    ("Australia/Lord_Howe", "2026-04-04 15:15", "2026-04-04 14:00"),
    # 29 March 2026, 01:00 → 03:00: 03 is the hour after 00.
    ("Antarctica/Troll", "2026-03-29 01:15", "2026-03-29 01:00"),
    # 27 September 2026, 02:45 → 03:45: hour 03 has a quarter.
    ("Pacific/Chatham", "2026-09-26 14:00", "2026-09-26 14:00"),
])
def test_hours_around_a_change(zone: str, moment: str, start: str) -> None:
    """Hours cut short and hours that come twice begin where the comment above each says."""
    assert hour_start(zone, utc(moment)) == utc(start)


@pytest.mark.parametrize(("zone", "local", "moment"), [
    ("UTC", "2026-03-29 00:00", "2026-03-29 00:00"),
    ("Asia/Kolkata", "2026-03-29 00:00", "2026-03-28 18:30"),
    ("Europe/Berlin", "2026-03-29 02:00", "2026-03-29 01:00"),
    ("Europe/Berlin", "2026-10-25 02:00", "2026-10-25 00:00"),
    ("Australia/Lord_Howe", "2026-10-04 02:00", "2026-10-03 15:30"),
    ("Antarctica/Troll", "2026-03-29 01:00", "2026-03-29 01:00"),
    ("Antarctica/Troll", "2026-03-29 02:00", "2026-03-29 01:00"),
    ("Pacific/Chatham", "2026-09-27 03:00", "2026-09-26 14:00"),
    # Midnight itself is skipped, and the day begins at one.
    ("America/Santiago", "2026-09-06 00:00", "2026-09-06 04:00"),
    ("Africa/Cairo", "2026-04-24 00:00", "2026-04-23 22:00"),
    # Midnight comes twice, and the day begins with the first.
    ("America/Havana", "2026-11-01 00:00", "2026-11-01 04:00"),
])
def test_instants_around_a_change(zone: str, local: str, moment: str) -> None:
    """An hour that is skipped begins when the clocks move on, one that comes twice with the first."""
    assert instant(zone, datetime.fromisoformat(local)) == utc(moment)
