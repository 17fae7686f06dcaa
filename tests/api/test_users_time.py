"""``/v3/users`` and ``date`` where time is difficult: half-hour offsets, month ends, and clocks that change."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from reportsvc.model import STAGES
from tests.api.helpers import at_noon
from tests.support.service import Account, Clock, Running


def local(zone: str, moment: float) -> datetime:
    """What clocks in *zone* show."""
    return datetime.fromtimestamp(moment, ZoneInfo(zone))


def unix(zone: str, shown: datetime) -> int:
    """When clocks in *zone* (first) show that."""
    return int(shown.replace(tzinfo=ZoneInfo(zone)).timestamp())


def advance(clock: Clock, moment: float) -> None:
    """Put the clock forward to *moment*."""
    assert moment >= clock(), "the clock is never put back"
    clock.ahead += moment - clock()


def next_change(zone: str, after: float, *, forward: bool) -> int:
    """The first second with another offset: when clocks in *zone* are next put forward, or back."""
    def offset(moment: int) -> timedelta:
        return local(zone, moment).utcoffset() or timedelta()
    moment = int(after) // 900 * 900 + 900
    while not (offset(moment) > offset(moment - 1) if forward else offset(moment) < offset(moment - 1)):
        moment += 900
    return moment


def online(device_id: str, moment: float, **more: Any) -> dict[str, Any]:
    """A sign of life of an Android device."""
    return {"stage": "online", "device_id": device_id, "platform": "android", "ts": int(moment)} | more


async def items(service: Running, account: Account, unit: str, start: datetime, duration: int) -> dict[str, Any]:
    """The items of a call, by their time; each without it."""
    text = start.strftime({"HOUR": "%Y-%m-%d %H", "DAY": "%Y-%m-%d", "MONTH": "%Y-%m"}[unit])
    answer = await service.call("GET", "/v3/users", account, params={
        "time_unit": unit, "start": text, "duration": str(duration)})
    assert {name: answer.json.get(name) for name in ("time_unit", "start", "duration")} == {
        "time_unit": unit, "start": text, "duration": duration}
    return {item.pop("time"): item for item in answer.json["items"]}


def android(new: int, online: int) -> dict[str, Any]:
    """An item in which only Android has data."""
    return {"android": {name: count for name, count in (("new", new), ("online", online)) if count}}


# -------------------------------------------------------------------------------------------------- when clocks change
# The change takes no time: "after" comes one second after "before". The device "both" is online in both.
#
# Berlin, spring     01:59:59 | 03:00:00      hour 02 is skipped
# Lord Howe, spring  01:59:59 | 02:30:00      hour 02 is half an hour
# Santiago, spring   23:59:59 | 01:00:00      the new day begins at one
# Berlin, autumn     02:59:59 | 02:00:00      hour 02 is two hours
# Lord Howe, autumn  01:59:59 | 01:30:00      hour 01 is an hour and a half
# Santiago, autumn   23:59:59 | 23:00:00      hour 23 is two hours, and the day has 25
@pytest.mark.parametrize(("zone", "forward", "first_hour", "hours", "days"), [
    ("Europe/Berlin", True, 1, [android(2, 2), {}, android(1, 2)], [{}, android(3, 3)]),
    ("America/New_York", True, 1, [android(2, 2), {}, android(1, 2)], [{}, android(3, 3)]),
    ("Australia/Lord_Howe", True, 1, [android(2, 2), android(1, 2), {}], [{}, android(3, 3)]),
    ("America/Santiago", True, 0, [{}, android(1, 2), {}], [android(2, 2), android(1, 2)]),
    ("Pacific/Chatham", True, 2, [android(2, 2), android(1, 2), {}], [{}, android(3, 3)]),
    ("Europe/Berlin", False, 1, [{}, android(3, 3), {}], [{}, android(3, 3)]),
    ("America/New_York", False, 0, [{}, android(3, 3), {}], [{}, android(3, 3)]),
    ("Australia/Lord_Howe", False, 0, [{}, android(3, 3), {}], [{}, android(3, 3)]),
    ("America/Santiago", False, 22, [{}, android(3, 3)], [{}, android(3, 3)]),
    ("Africa/Cairo", False, 22, [{}, android(3, 3)], [{}, android(3, 3)]),
])
async def test_hours_and_days_around_a_change(running_service: Running, clock: Clock, zone: str, forward: bool,
                                              first_hour: int, hours: list[Any], days: list[Any]) -> None:
    """Each moment counts in the hour and on the day that a wall clock shows, and a device of two hours once a day."""

    account = await running_service.make_account("traveller", timezone=zone)
    change = next_change(zone, clock(), forward=forward)
    advance(clock, change + 36 * 3600)
    day = local(zone, change).replace(hour=0, minute=0, second=0, tzinfo=None)

    await running_service.send(account, online("before", change - 1), online("both", change - 1),
                               online("after", change), online("both", change))

    assert list((await items(running_service, account, "HOUR", day.replace(hour=first_hour), 3)).values()) == hours
    assert list((await items(running_service, account, "DAY", day - timedelta(days=1), 2)).values()) == days


@pytest.mark.parametrize("forward", [True, False])
async def test_day_of_a_change_is_the_union_of_its_hours(running_service: Running, clock: Clock, forward: bool) -> None:
    """A day of 23 or 25 hours has every device of its hours, once, and none of the days beside it."""

    # Berlin      00:00 the day before … 00:00 … clocks change … 00:00 … 00:00 the day after
    # online      a device each quarter of an hour, and "always" in each
    zone = "Europe/Berlin"
    account = await running_service.make_account("traveller", timezone=zone)
    change = next_change(zone, clock(), forward=forward)
    advance(clock, change + 60 * 3600)
    day = local(zone, change).replace(hour=0, minute=0, second=0, tzinfo=None)
    start, end = unix(zone, day), unix(zone, day + timedelta(days=1))
    moments = range(unix(zone, day - timedelta(days=1)), unix(zone, day + timedelta(days=2)), 900)

    await running_service.send(account, *(online(f"at {moment}", moment) for moment in moments),
                               *(online("always", moment) for moment in moments))

    quarters = (end - start) // 900
    assert quarters == (23 if forward else 25) * 4
    by_day = await items(running_service, account, "DAY", day - timedelta(days=1), 3)
    by_hour = await items(running_service, account, "HOUR", day, 24)
    assert list(by_day.values()) == [android(97, 97), android(quarters, quarters + 1), android(96, 97)]
    assert [item.get("android", {}).get("new", 0) for item in by_hour.values()] == [
        0 if forward and hour == 2 else 8 if not forward and hour == 2 else 4 for hour in range(24)]


# -------------------------------------------------------------------------------------------------------- month ends
@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Pacific/Kiritimati", "America/St_Johns"])
async def test_months_and_days_end_at_local_midnight(running_service: Running, clock: Clock, zone: str) -> None:
    """The last second of a month counts in it, and the next second in the next, wherever UTC has its midnight."""

    # local     23:59:59 on the last | 00:00:00 on the first        10:00 (now)
    # online    a c                    b c
    account = await running_service.make_account("months", timezone=zone)
    first = (local(zone, clock()).replace(day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
             + timedelta(days=32)).replace(day=1)
    midnight = unix(zone, first)
    advance(clock, midnight + 10 * 3600)
    last = first - timedelta(days=1)

    await running_service.send(account, online("a", midnight - 1), online("c", midnight - 1),
                               online("b", midnight), online("c", midnight))

    assert await items(running_service, account, "MONTH", last, 2) == {
        f"{last:%Y-%m}": android(2, 2), f"{first:%Y-%m}": android(1, 2)}
    assert await items(running_service, account, "MONTH", first, 1) == {f"{first:%Y-%m}": android(1, 2)}
    assert await items(running_service, account, "DAY", last, 2) == {
        f"{last:%Y-%m-%d}": android(2, 2), f"{first:%Y-%m-%d}": android(1, 2)}
    assert await items(running_service, account, "HOUR", last.replace(hour=22), 3) == {
        f"{last:%Y-%m-%d} 22": {}, f"{last:%Y-%m-%d} 23": android(2, 2)}
    assert await items(running_service, account, "HOUR", first, 2) == {
        f"{first:%Y-%m-%d} 00": android(1, 2), f"{first:%Y-%m-%d} 01": {}}


@pytest.mark.parametrize(("zone", "is_ahead"), [("Pacific/Kiritimati", True), ("Pacific/Pago_Pago", False)])
async def test_the_sixty_days_are_local_days(running_service: Running, clock: Clock, zone: str, is_ahead: bool) -> None:
    """What "today" and "60 days ago" are is the app's calendar's to say, not that of UTC."""

    # Kiritimati is 14 hours ahead: at noon it is tomorrow there. Pago Pago is 11 behind: at six it is yesterday.
    account = await running_service.make_account("calendar", timezone=zone)
    now = at_noon(clock)
    if not is_ahead:
        now += timedelta(hours=18)
        advance(clock, now.timestamp())
    today = local(zone, now.timestamp()).replace(tzinfo=None)
    assert today.date() - now.date() == timedelta(days=1 if is_ahead else -1)

    async def code(unit: str, start: str) -> object:
        answer = await running_service.call("GET", "/v3/users", account, params={
            "time_unit": unit, "start": start, "duration": "1"})
        return answer.status if answer.status == 200 else answer.json["error"]["code"]

    def day(days: int) -> str:
        return (today + timedelta(days=days)).strftime("%Y-%m-%d")

    assert {days: await code("DAY", day(days)) for days in (-61, -60, 0, 1)} == {
        -61: 3005, -60: 200, 0: 200, 1: 3005}
    assert {hour: await code("HOUR", hour) for hour in (f"{day(-61)} 23", f"{day(-60)} 00")} == {
        f"{day(-61)} 23": 3005, f"{day(-60)} 00": 200}
    assert await code("HOUR", f"{day(0)} {today:%H}") == 200
    assert await code("HOUR", f"{day(0)} {today + timedelta(hours=1):%H}") == 3005


# ------------------------------------------------------------------------------------------- what new and online mean
async def test_new_moves_back_when_an_earlier_event_comes_late(running_service: Running, account: Account,
                                                               clock: Clock) -> None:
    """A device is new once, in the earliest period it was ever heard of, however late that becomes known."""

    # day         D-20     D-9     D-3     D
    # told 1st                             online
    # told 2nd                     click
    # told 3rd             first_seen
    # told 4th    received
    noon = at_noon(clock)
    start = (noon - timedelta(days=25)).replace(tzinfo=None)

    def ago(days: int) -> float:
        return noon.timestamp() - days * 86400

    async def new_on() -> list[int]:
        """How many days before D each new device was new."""
        by_day = await items(running_service, account, "DAY", start, 26)
        return [25 - place for place, item in enumerate(by_day.values())
                for _ in range(item.get("android", {}).get("new", 0))]

    await running_service.send(account, online("a", ago(0)))
    assert await new_on() == [0]

    await running_service.send(account, online("a", ago(3), stage="click", msg_id=1))
    assert await new_on() == [3]

    for days in (9, 5):  # the later of the two changes nothing
        answer = await running_service.call("POST", "/v1/devices", account, json={
            "device_id": "a", "platform": "android", "first_seen": int(ago(days))})
        assert answer.json == {"accepted": 1, "rejected": 0, "errors": []}
        await running_service.applied()
        assert await new_on() == [9]

    await running_service.send(account, online("a", ago(20), stage="received", msg_id=1), online("a", ago(1)))
    assert await new_on() == [20]


async def test_first_seen_before_the_window_is_not_new_in_it(running_service: Running, account: Account,
                                                             clock: Clock) -> None:
    """An importer tells since when he has known his devices, and they are not new today; one from the future is."""

    now = int(at_noon(clock).timestamp())
    answer = await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": "old", "platform": "android", "first_seen": now - 400 * 86400},
        {"device_id": "fast clock", "platform": "android", "first_seen": now + 86400}])
    assert answer.json == {"accepted": 2, "rejected": 0, "errors": []}
    await running_service.applied()
    today = local("UTC", now).replace(tzinfo=None)

    by_day = await items(running_service, account, "DAY", today - timedelta(days=59), 60)

    assert list(by_day.values())[-2:] == [{}, android(1, 2)]
    assert not any(list(by_day.values())[:-1])


async def test_each_stage_is_a_sign_of_life(running_service: Running, account: Account, clock: Clock) -> None:
    """An event of any stage makes its device online, and the two that say the user opened something make it active."""

    today = at_noon(clock)
    await running_service.send(account, *(online(f"by {stage}", clock(), stage=stage, msg_id=1) for stage in STAGES))

    assert await items(running_service, account, "DAY", today, 1) == {
        f"{today:%Y-%m-%d}": {"android": {"new": len(STAGES), "online": len(STAGES), "active": 2}}}


async def test_platform_learnt_late_holds_for_the_past(running_service: Running, account: Account,
                                                       clock: Clock) -> None:
    """Hours reported before a device's platform was known count for that platform once it is."""

    # day        D-2                    D
    # told       a, b, c online         a names its platform; b is registered with its own; c never does
    then = at_noon(clock) - timedelta(days=2)
    await running_service.send(account, *(
        {"stage": "active", "device_id": device_id, "ts": int(then.timestamp())} for device_id in "abc"))
    assert list((await items(running_service, account, "DAY", then, 1)).values()) == [
        {"unknown": {"new": 3, "online": 3, "active": 3}}]

    await running_service.call("POST", "/v1/devices", account, json={"device_id": "b", "platform": "ios"})
    await running_service.send(account, {"msg_id": 1, "stage": "received", "device_id": "a", "channel": "xiaomi"})

    one = {"new": 1, "online": 1, "active": 1}
    assert list((await items(running_service, account, "DAY", then, 1)).values()) == [
        {"android": one, "ios": one, "unknown": one}]


# --------------------------------------------------------------------------------------------------------- status, date
async def statuses(service: Running, account: Account, date: datetime, device_ids: Iterable[str]) -> dict[str, int]:
    """The statuses of message 1 at the end of a day."""
    answer = await service.call("POST", "/v3/status/message", account, json={
        "msg_id": 1, "registration_ids": list(device_ids), "date": date.strftime("%Y-%m-%d")})
    return {device_id: status["status"] for device_id, status in answer.json.items()}


@pytest.mark.parametrize(("zone", "change"), [
    ("Asia/Kolkata", None), ("Europe/Berlin", False), ("Europe/Berlin", True), ("America/Santiago", True),
    ("America/Santiago", False)])
async def test_date_ends_at_local_midnight(running_service: Running, clock: Clock, zone: str,
                                           change: bool | None) -> None:
    """A past day includes its last second and not one more, also a day of 23 or 25 hours."""

    # local       D 12:00           D 23:59:59 | D+1 00:00:00        D+1 18:00 (now)
    # told        a, b, c sent      a received   b received          c received
    account = await running_service.make_account("status", timezone=zone)
    in_it = clock() if change is None else next_change(zone, clock(), forward=change) - 1
    day = local(zone, in_it).replace(hour=12, minute=0, second=0, microsecond=0, tzinfo=None)
    midnight = unix(zone, day.replace(hour=0) + timedelta(days=1))
    assert [local(zone, moment).day for moment in (midnight - 1, midnight)] == [day.day, (day + timedelta(days=1)).day]
    advance(clock, midnight + 18 * 3600)

    sent = [online(device_id, unix(zone, day), stage="sent", msg_id=1) for device_id in "abc"]
    received = [online(device_id, moment, stage="received", msg_id=1)
                for device_id, moment in (("a", midnight - 1), ("b", midnight), ("c", clock()))]
    await running_service.send(account, *sent, *received)

    before, tomorrow = day - timedelta(days=1), day + timedelta(days=1)
    assert await statuses(running_service, account, before, "abc") == {"a": 2, "b": 2, "c": 2}
    assert await statuses(running_service, account, day, "abc") == {"a": 0, "b": 1, "c": 1}
    assert await statuses(running_service, account, tomorrow, "abc") == {"a": 0, "b": 0, "c": 0}
