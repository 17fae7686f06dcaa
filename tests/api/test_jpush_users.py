"""JPush ``/v3/users``: new, online and active devices by hour, day and month of the app's timezone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tests.api.helpers import at_noon, jpush_error
from tests.support.service import Account, Clock, Running


def online(device_id: str, moment: datetime, platform: str = "android") -> dict[str, Any]:
    """A device was connected."""
    return {"stage": "online", "device_id": device_id, "platform": platform, "ts": int(moment.timestamp())}


def active(device_id: str, moment: datetime, platform: str = "android") -> dict[str, Any]:
    """A device's user opened the app."""
    return online(device_id, moment, platform) | {"stage": "active"}


async def ask(service: Running, account: Account, unit: str, start: str, duration: object) -> Any:
    """The body for a call that is well formed."""
    answer = await service.call("GET", "/v3/users", account, params={
        "time_unit": unit, "start": start, "duration": str(duration)})
    assert answer.status == 200, answer.body
    return answer.json


async def test_users_answers_the_published_example(running_service: Running, account: Account, clock: Clock) -> None:
    """The vendor's example, by DAY for 3 days: a day without data has its time only, a counter without data is left
    out."""

    # day          D-2     D-1            D (noon)
    # android              a active       a active, a and b online (both known for 20 days)
    noon = at_noon(clock)
    days = [noon - timedelta(days=2), noon - timedelta(days=1), noon]
    await running_service.send(
        account, *(online(device_id, noon - timedelta(days=20)) for device_id in ("a", "b")),
        active("a", days[1]), active("a", days[2]), online("b", days[2]))
    start = days[0].strftime("%Y-%m-%d")

    answer = await running_service.call("GET", f"/v3/users?time_unit=DAY&start={start}&duration=3", account)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    # The example has a day with "active" and no "online"; here a device that is active has been online.
    assert answer.body.decode() == (
        f'{{"time_unit":"DAY","start":"{start}","duration":3,"items":[{{"time":"{start}"}},'
        f'{{"time":"{days[1]:%Y-%m-%d}","android":{{"online":1,"active":1}}}},'
        f'{{"time":"{days[2]:%Y-%m-%d}","android":{{"online":2,"active":1}}}}]}}')


async def test_what_counts_as_new_online_and_active(running_service: Running, account: Account, clock: Clock) -> None:
    """New is a device's first hour, online any sign of life or a registration, active a click or ``active``."""

    today = at_noon(clock).strftime("%Y-%m-%d")
    await running_service.send(
        account, {"msg_id": 1, "stage": "received", "device_id": "a", "platform": "android"},
        {"msg_id": 1, "stage": "click", "device_id": "b", "platform": "ios"},
        {"stage": "active", "device_id": "c", "platform": "web"}, {"stage": "online", "device_id": "d"})
    await running_service.call("POST", "/v1/devices", account, json=[{"device_id": "e", "platform": "hmos"}])
    await running_service.call("POST", "/v1/pushes", account, json={"audience": {"device_ids": ["only-a-target"]}})
    await running_service.applied()

    assert await ask(running_service, account, "DAY", today, 1) == {
        "time_unit": "DAY", "start": today, "duration": 1, "items": [
            {"time": today, "android": {"new": 1, "online": 1}, "ios": {"new": 1, "online": 1, "active": 1},
             "web": {"new": 1, "online": 1, "active": 1}, "hmos": {"new": 1, "online": 1},
             "unknown": {"new": 1, "online": 1}}]}


async def test_longer_periods_are_unions_not_sums(running_service: Running, account: Account, clock: Clock) -> None:
    """A device of several hours counts once a day, and one of several days once a month."""

    # hour    D 08   09   10          D-1
    # online    a    ab   b           a c
    noon = at_noon(clock)
    day = noon - timedelta(days=2)
    eight = day.replace(hour=8)
    await running_service.send(account, *(
        online(device_id, moment) for device_id, moment in (
            ("a", eight), ("a", eight + timedelta(hours=1)), ("b", eight + timedelta(hours=1)),
            ("b", eight + timedelta(hours=2)), ("a", eight - timedelta(days=1)), ("c", eight - timedelta(days=1)))))
    date = day.strftime("%Y-%m-%d")

    hours = await ask(running_service, account, "HOUR", f"{date} 07", 5)
    days = await ask(running_service, account, "DAY", (day - timedelta(days=1)).strftime("%Y-%m-%d"), 2)
    months = await ask(running_service, account, "MONTH", (day - timedelta(days=1)).strftime("%Y-%m"), 2)

    assert hours["items"] == [
        {"time": f"{date} 07"}, {"time": f"{date} 08", "android": {"online": 1}},
        {"time": f"{date} 09", "android": {"new": 1, "online": 2}}, {"time": f"{date} 10", "android": {"online": 1}},
        {"time": f"{date} 11"}]
    assert [item["android"] for item in days["items"]] == [{"new": 2, "online": 2}, {"new": 1, "online": 2}]
    assert sum(item.get("android", {}).get("new", 0) for item in months["items"]) == 3


async def test_months(running_service: Running, account: Account, clock: Clock) -> None:
    """MONTH covers the calendar month up to now, and last month whole."""

    # The first of a month, 00:30, is put at "now": last month's devices and this month's cannot mix.
    first = (at_noon(clock).replace(day=1) + timedelta(days=32)).replace(day=1, hour=0)
    clock.ahead += first.timestamp() - clock()
    before = first - timedelta(hours=1)
    await running_service.send(account, online("a", before), active("a", before - timedelta(days=20)),
                               online("a", first), online("b", first))

    body = await ask(running_service, account, "MONTH", before.strftime("%Y-%m"), 2)

    assert body == {"time_unit": "MONTH", "start": before.strftime("%Y-%m"), "duration": 2, "items": [
        {"time": before.strftime("%Y-%m"), "android": {"new": 1, "online": 1, "active": 1}},
        {"time": first.strftime("%Y-%m"), "android": {"new": 1, "online": 2}}]}


async def test_hours_end_with_the_start_day(running_service: Running, account: Account, clock: Clock) -> None:
    """HOUR answers the asked hours of one day, cut at its end; ``duration`` is echoed as asked."""

    day = (at_noon(clock) - timedelta(days=3)).strftime("%Y-%m-%d")

    whole = await ask(running_service, account, "HOUR", f"{day} 00", 24)
    cut = await ask(running_service, account, "HOUR", f"{day} 04", 24)
    last = await ask(running_service, account, "HOUR", f"{day} 23", 24)

    assert whole == {"time_unit": "HOUR", "start": f"{day} 00", "duration": 24,
                     "items": [{"time": f"{day} {hour:02}"} for hour in range(24)]}
    assert cut == {"time_unit": "HOUR", "start": f"{day} 04", "duration": 24,
                   "items": [{"time": f"{day} {hour:02}"} for hour in range(4, 24)]}
    assert last == {"time_unit": "HOUR", "start": f"{day} 23", "duration": 24, "items": [{"time": f"{day} 23"}]}


async def test_every_spelling_of_the_space_in_start(running_service: Running, account: Account, clock: Clock) -> None:
    """The space before the hour may come as ``+`` or as ``%20``; it is echoed as a space."""

    noon = at_noon(clock)
    await running_service.send(account, online("a", noon))
    day = noon.strftime("%Y-%m-%d")

    answers = [(await running_service.call("GET", f"/v3/users?time_unit=HOUR&start={day}{space}12&duration=1",
                                           account)).json for space in ("+", "%20")]

    assert answers == [{"time_unit": "HOUR", "start": f"{day} 12", "duration": 1, "items": [
        {"time": f"{day} 12", "android": {"new": 1, "online": 1}}]}] * 2


async def test_days_are_of_the_apps_timezone(running_service: Running, clock: Clock) -> None:
    """Hours and days begin when they begin for the app, also where that is at half past."""

    # UTC        D-1 18:15   18:45           D 12:30 (now)
    # Kolkata    D-1 23:45 | D 00:15         D 18:00
    # online     a           b
    account = await running_service.make_account("kolkata", timezone="Asia/Kolkata")
    noon = at_noon(clock)
    evening = (noon - timedelta(days=1)).replace(hour=18, minute=15)
    await running_service.send(account, online("a", evening), online("b", evening + timedelta(minutes=30)))
    yesterday, today = (noon - timedelta(days=1)).strftime("%Y-%m-%d"), noon.strftime("%Y-%m-%d")
    one = {"android": {"new": 1, "online": 1}}

    assert (await ask(running_service, account, "DAY", yesterday, 2))["items"] == [
        {"time": yesterday} | one, {"time": today} | one]
    assert (await ask(running_service, account, "HOUR", f"{yesterday} 22", 5))["items"] == [
        {"time": f"{yesterday} 22"}, {"time": f"{yesterday} 23"} | one]
    assert (await ask(running_service, account, "HOUR", f"{today} 00", 2))["items"] == [
        {"time": f"{today} 00"} | one, {"time": f"{today} 01"}]


async def test_bad_users_queries(running_service: Running, account: Account, clock: Clock) -> None:
    """A missing or bad parameter is 3002, a ``start`` of another form than the unit's 3004, another time 3005."""

    noon = at_noon(clock)
    today = noon.strftime("%Y-%m-%d")
    unit = jpush_error(3002, "time_unit: must be HOUR, DAY or MONTH")
    durations = {limit: jpush_error(3002, f"duration: must be 1 to {limit[1]} with time_unit {limit[0]}")
                 for limit in (("HOUR", 24), ("DAY", 60), ("MONTH", 2))}
    looks = {name: jpush_error(3004, f"start: with time_unit {name} it must look like {example}") for name, example in (
        ("HOUR", f"{today} 12"), ("DAY", today), ("MONTH", today[:7]))}
    too_far = jpush_error(3005, "start: only the last 60 days can be asked for")
    bad = {
        "": unit, f"?start={today}&duration=1": unit, f"?time_unit=WEEK&start={today}&duration=1": unit,
        f"?time_unit=day&start={today}&duration=1": unit,
        "?time_unit=DAY&duration=1": jpush_error(3002, "start: required"),
        "?time_unit=DAY&start=&duration=1": jpush_error(3002, "start: required"),
        f"?time_unit=DAY&start={today}": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=0": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=-1": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=1.5": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=%D9%A3": durations["DAY", 60],
        f"?time_unit=DAY&start={today}&duration=61": durations["DAY", 60],
        f"?time_unit=HOUR&start={today}+10&duration=25": durations["HOUR", 24],
        f"?time_unit=MONTH&start={today[:7]}&duration=3": durations["MONTH", 2],
        f"?time_unit=DAY&start={today}+10&duration=1": looks["DAY"],
        f"?time_unit=DAY&start={today[:7]}&duration=1": looks["DAY"],
        "?time_unit=DAY&start=yesterday&duration=1": looks["DAY"],
        "?time_unit=DAY&start=2026-02-30&duration=1": looks["DAY"],
        f"?time_unit=HOUR&start={today}&duration=1": looks["HOUR"],
        f"?time_unit=HOUR&start={today}+24&duration=1": looks["HOUR"],
        f"?time_unit=HOUR&start={today}+1&duration=1": looks["HOUR"],
        f"?time_unit=MONTH&start={today}&duration=1": looks["MONTH"],
        f"?time_unit=MONTH&start={today[:4]}-13&duration=1": looks["MONTH"],
        f"?time_unit=DAY&start={noon - timedelta(days=61):%Y-%m-%d}&duration=1": too_far,
        f"?time_unit=DAY&start={noon + timedelta(days=1):%Y-%m-%d}&duration=1": too_far,
        f"?time_unit=HOUR&start={today}+13&duration=1": too_far,
        f"?time_unit=HOUR&start={noon - timedelta(days=61):%Y-%m-%d}+23&duration=1": too_far,
        f"?time_unit=MONTH&start={noon - timedelta(days=93):%Y-%m}&duration=1": too_far,
        f"?time_unit=MONTH&start={noon + timedelta(days=31):%Y-%m}&duration=1": too_far,
        "?time_unit=DAY&start=0001-01-01&duration=1": too_far, "?time_unit=DAY&start=9999-12-31&duration=60": too_far,
        "?time_unit=DAY&start=2014-06-10&duration=3": too_far,
    }

    answers = {query: await running_service.call("GET", "/v3/users" + query, account) for query in bad}

    assert {query: (answer.status, answer.json) for query, answer in answers.items()} == {
        query: (400, body) for query, body in bad.items()}


async def test_sixty_days_back_is_within_the_limit(running_service: Running, account: Account, clock: Clock) -> None:
    """The oldest day that may be asked for is the one 60 days ago, with a duration that reaches to yesterday."""

    oldest = at_noon(clock) - timedelta(days=60)

    body = await ask(running_service, account, "DAY", oldest.strftime("%Y-%m-%d"), 60)

    assert body["items"] == [{"time": (oldest + timedelta(days=days)).strftime("%Y-%m-%d")} for days in range(60)]
