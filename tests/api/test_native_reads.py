"""``/v1/messages``: the list, one message in its parts, and how it spread over hours and days."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest

from reportsvc.config import Config
from reportsvc.reports.titles import title_of
from reportsvc.storage import queries
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.queries import Queries
from tests.api.helpers import at_noon, native_error, reached
from tests.support.clickhouse_http import ClickHouseHttp, clickhouse_http_server
from tests.support.service import Account, Clock, Running, eventually, running

HOUR = 3600
DAY = 86400
NO_TOTALS = dict.fromkeys(("target", "sent", "online_push", "received", "display", "click"))
NO_RATES = dict.fromkeys(("received", "display", "click"))
#: A message of which nothing but an id is known.
BARE = {"vendor": None, "kind": None, "created_at": None, "expires_at": None, "first_event_at": None,
        "last_event_at": None, "title": None, "totals": NO_TOTALS, "rates": NO_RATES}


async def read(service: Running, account: Account, path: str) -> Any:
    """The body of a successful answer."""
    answer = await service.call("GET", path, account)
    assert answer.status == 200, answer.body
    return answer.json


async def register(service: Running, account: Account, msg_id: str, **push: Any) -> None:
    """Register a push, and wait until reports have it."""
    answer = await service.call("POST", "/v1/pushes", account, json={"msg_id": msg_id, "audience": "all"} | push)
    assert answer.status == 201, answer.body
    await service.applied()


async def listed(service: Running, account: Account, query: str = "") -> list[str]:
    """The ids on a page."""
    return [message["msg_id"] for message in (await read(service, account, f"/v1/messages{query}"))["messages"]]


# ------------------------------------------------------------------------------------------------------------- the list
async def test_list_has_pushes_and_reported_messages(running_service: Running, account: Account, clock: Clock) -> None:
    """A registered push has its time and title, a message that was only reported the hours of its events; newest first.
    """

    # 10:30             11:00-12:00            12:30 (now)
    # push "old" made   "seen" is reported     push "old" is reported, push "new" made
    noon = int(at_noon(clock).timestamp())
    hour = noon - HOUR // 2
    await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": f"d{number}", "platform": "android"} for number in range(4)])
    await register(running_service, account, "old", vendor="jpush", created_at=noon - 2 * HOUR, time_to_live=DAY,
                   payload={"notification": {"alert": "Good morning"}})
    await register(running_service, account, "new", payload={"badge": 1}, kind="message",
                   audience={"device_ids": ["d0"]})
    events = [{"msg_id": "seen", "stage": "received", "device_id": "d0", "ts": noon - HOUR},
              {"msg_id": "seen", "stage": "click", "device_id": "d0", "ts": noon}]
    events += [{"msg_id": "old", "stage": stage, "device_id": f"d{number}", "ts": noon}
               for stage, count in (("received", 3), ("display", 2), ("click", 1)) for number in range(count)]
    await running_service.send(account, *events, *events)

    created_at = (await read(running_service, account, "/v1/messages/new"))["message"]["created_at"]
    assert noon <= created_at < noon + 60
    assert await read(running_service, account, "/v1/messages") == {"timezone": "UTC", "next": None, "messages": [
        BARE | {"msg_id": "new", "kind": "message", "created_at": created_at, "expires_at": created_at + 30 * DAY,
                "totals": NO_TOTALS | {"target": 1}},
        BARE | {"msg_id": "seen", "first_event_at": hour - HOUR, "last_event_at": hour,
                "totals": NO_TOTALS | {"received": 1, "click": 1}, "rates": NO_RATES | {"click": 1.0}},
        BARE | {"msg_id": "old", "vendor": "jpush", "kind": "notification", "created_at": noon - 2 * HOUR,
                "expires_at": noon - 2 * HOUR + DAY, "first_event_at": hour, "last_event_at": hour,
                "title": "Good morning",
                "totals": NO_TOTALS | {"target": 4, "received": 3, "display": 2, "click": 1},
                "rates": {"received": 0.75, "display": 0.666667, "click": 0.333333}},
    ]}


@pytest.mark.parametrize(("stages", "rate"), [
    ({"target": 4, "sent": 3, "online_push": 2, "received": 1}, 0.25),
    ({"sent": 3, "online_push": 2, "received": 1}, 0.333333),
    ({"online_push": 2, "received": 1}, 0.5),
    ({"received": 1}, None),
    ({"target": 1}, None),
    ({"target": 1, "received": 3}, 3.0),
])
async def test_rate_is_of_the_devices_that_were_meant(running_service: Running, account: Account,
                                                      stages: dict[str, int], rate: float | None) -> None:
    """Received is a part of the targets, or where nobody said whom, of those it was sent to; never of nothing."""

    await running_service.send(account, *(
        event for stage, count in stages.items() for event in reached("m", stage, count, "android")))

    message, = (await read(running_service, account, "/v1/messages"))["messages"]
    assert (message["totals"], message["rates"]) == (NO_TOTALS | stages, NO_RATES | {"received": rate})


@pytest.mark.parametrize("rows", [(8, 512), (1, 2), (1, 3)])
async def test_pages_have_every_message_once(running_service: Running, account: Account, clock: Clock,
                                             monkeypatch: pytest.MonkeyPatch, rows: tuple[int, int]) -> None:
    """Walking from page to page meets each message once, also those of one second, while newer ones come in; wherever
    the rows stop that are looked at first."""

    monkeypatch.setattr(queries, "_FIRST_ROWS", rows[0])
    monkeypatch.setattr(queries, "_MORE_ROWS", rows[1])
    noon = int(at_noon(clock).timestamp())
    made = {f"m{number}": noon - (number // 7) * HOUR for number in range(24)}
    for msg_id, created_at in made.items():
        await running_service.call("POST", "/v1/pushes", account, json={
            "msg_id": msg_id, "audience": {"device_ids": ["d"]}, "created_at": created_at})
    await running_service.applied()
    # More rows of old messages, newer than those that give them their places.
    await running_service.send(account, *({"msg_id": f"m{number}", "stage": "sent", "device_id": "d"}
                                          for number in range(12, 24)))
    expected = sorted(made, key=lambda msg_id: (made[msg_id], msg_id), reverse=True)
    assert await listed(running_service, account) == expected

    walked: list[str] = []
    sizes: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await read(running_service, account, f"/v1/messages?limit=5{cursor and '&before=' + cursor}")
        walked += [message["msg_id"] for message in page["messages"]]
        sizes.append(len(page["messages"]))
        cursor = page["next"]
        await register(running_service, account, f"newer{len(sizes)}")
        await running_service.send(account, {"msg_id": walked[0], "stage": "received", "device_id": "d"})

    assert (walked, sizes) == (expected, [5, 5, 5, 5, 4])
    # A page that the last message just fills is the last one.
    assert (await read(running_service, account, "/v1/messages?limit=29"))["next"] is None
    assert (await read(running_service, account, "/v1/messages?limit=28"))["next"] is not None


async def test_polls_share_the_work(running_service: Running, account: Account,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet of dashboards that polls at one moment costs a query or two, and sees what was reported before."""

    asked = []
    newest_messages = Queries.newest_messages

    async def counted(self: Queries, *arguments: Any) -> Any:
        asked.append(arguments)
        return await newest_messages(self, *arguments)
    await running_service.send(account, *reached("m", "received", 2, "ios"))
    monkeypatch.setattr(Queries, "newest_messages", counted)

    pages = await asyncio.gather(*(read(running_service, account, "/v1/messages") for _ in range(50)))

    assert {page["messages"][0]["totals"]["received"] for page in pages} == {2}
    assert 1 <= len(asked) <= 5
    await running_service.send(account, *reached("m", "received", 3, "ios"))
    assert (await read(running_service, account, "/v1/messages"))["messages"][0]["totals"]["received"] == 3


# ---------------------------------------------------------------------------------------------------------- one message
async def test_message_in_its_parts(running_service: Running, account: Account, clock: Clock) -> None:
    """Each part counts distinct devices: a device of two channels is in both, and once in its platform and in all."""

    noon = int(at_noon(clock).timestamp())
    hour = noon - HOUR // 2
    await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": "known", "platform": "ios"}, {"device_id": "a", "platform": "android"}])
    payload = {"title": "Sale", "aps": {"alert": {"body": "Today"}}, "n": [1.5, None, "ü"]}
    await register(running_service, account, "m", payload=payload, created_at=noon - DAY, vendor="beams",
                   audience={"device_ids": ["known", "a", "stranger"]})
    event = {"msg_id": "m", "stage": "received", "ts": noon}
    await running_service.send(
        account,
        event | {"device_id": "a", "channel": "xiaomi"}, event | {"device_id": "a", "channel": "fcm"},
        event | {"device_id": "a", "ts": noon - DAY}, event | {"device_id": "known"},
        event | {"device_id": "known", "kind": "message"}, event | {"device_id": "stranger"},
        event | {"device_id": "apns-1", "stage": "click"}, event | {"device_id": "w", "platform": "web"})

    one, two = {"target": 1, "received": 1}, {"received": 1}
    ios, unknown = {"target": 1, "received": 1, "click": 1}, {"target": 1, "received": 1}
    assert await read(running_service, account, "/v1/messages/m") == {"message": {
        "msg_id": "m", "vendor": "beams", "kind": "notification", "created_at": noon - DAY,
        "expires_at": noon + 29 * DAY, "first_event_at": hour - DAY, "last_event_at": hour, "title": "Sale",
        "totals": NO_TOTALS | {"target": 3, "received": 4, "click": 1},
        "rates": {"received": 1.333333, "display": None, "click": 0.25},
        "payload": payload, "audience": {"device_ids": 3},
        "breakdown": [
            {"platform": "android", "channel": "fcm", "kind": "notification", "totals": two},
            {"platform": "android", "channel": "jg_android", "kind": "notification", "totals": one},
            {"platform": "android", "channel": "xiaomi", "kind": "notification", "totals": two},
            {"platform": "ios", "channel": "apns", "kind": "notification", "totals": ios},
            {"platform": "ios", "channel": "jg_ios", "kind": "message", "totals": two},
            {"platform": "web", "channel": "webpush", "kind": "notification", "totals": two},
            {"platform": "unknown", "channel": "unknown", "kind": "notification", "totals": unknown}],
        "platforms": {"android": one, "ios": ios, "web": two, "unknown": unknown},
        "channels": {"apns": ios, "fcm": two, "jg_android": one, "jg_ios": two, "unknown": unknown, "webpush": two,
                     "xiaomi": two},
        "kinds": {"message": two, "notification": {"target": 3, "received": 4, "click": 1}}}}


async def test_platform_learnt_late_moves_its_parts(running_service: Running, account: Account) -> None:
    """What a device reported without a platform counts for the one it turns out to be of, by its channel there too."""

    async def parts() -> Any:
        message = (await read(running_service, account, "/v1/messages/m"))["message"]
        return message["totals"]["received"], message["platforms"], message["channels"]
    event = {"msg_id": "m", "stage": "received"}
    await running_service.send(account, event | {"device_id": "a"}, event | {"device_id": "b"},
                               event | {"device_id": "b", "platform": "hmos"})
    one = {"received": 1}
    assert await parts() == (2, {"hmos": one, "unknown": one}, {"hmpns": one, "unknown": one})

    await running_service.call("POST", "/v1/devices", account, json={"device_id": "a", "platform": "quickapp"})
    await running_service.applied()

    assert await parts() == (2, {"quickapp": one, "hmos": one}, {"quick_jg": one, "hmpns": one})


async def test_push_is_told_at_once(running_service: Running, account: Account,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever registers a push and asks in the next moment is told of it, before any report can have it."""

    async def nothing(*_: Any, **__: Any) -> dict[str, Any]:
        return {}
    monkeypatch.setattr(Queries, "pushes", nothing)
    monkeypatch.setattr(Queries, "reach", nothing)
    now = int(running_service.clock())
    await running_service.call("POST", "/v1/pushes", account, json={
        "msg_id": "m", "payload": "Hello", "created_at": now, "expires_at": now + 60, "audience": "all"})

    assert await read(running_service, account, "/v1/messages/m") == {"message": BARE | {
        "msg_id": "m", "kind": "notification", "created_at": now, "expires_at": now + 60, "title": "Hello",
        "payload": "Hello", "audience": "all", "breakdown": [], "platforms": {}, "channels": {}, "kinds": {}}}
    assert await read(running_service, account, "/v1/messages/m/timeline") == {
        "msg_id": "m", "interval": "hour", "timezone": "UTC", "series": []}


async def test_large_payload_is_told_of_one_message_only(running_service: Running, account: Account) -> None:
    """A payload of any size is in the answer about its message; in the list it does not even make a title."""

    payload = {"title": "Large", "data": "x" * 100_000}
    await register(running_service, account, "m", payload=payload)

    message = (await read(running_service, account, "/v1/messages/m"))["message"]
    assert (message["payload"], message["title"]) == (payload, "Large")
    one, = (await read(running_service, account, "/v1/messages"))["messages"]
    assert one == BARE | {"msg_id": "m", "kind": "notification", "created_at": message["created_at"],
                          "expires_at": message["expires_at"]}


@pytest.mark.parametrize("msg_id", ["1613113584", "9" * 40, "ü ä", "a%2Fb", "a/b", "'; SELECT 1", "\\", "a{b}c"])
async def test_ids_of_any_characters(running_service: Running, account: Account, msg_id: str) -> None:
    """An id comes back as it was sent, in the list, alone and with its timeline."""

    await running_service.send(account, *reached(msg_id, "received", 1, "android"))

    path = f"/v1/messages/{quote(msg_id, safe='')}"
    assert await listed(running_service, account) == [msg_id]
    assert (await read(running_service, account, path))["message"]["msg_id"] == msg_id
    assert (await read(running_service, account, f"{path}/timeline"))["msg_id"] == msg_id


# --------------------------------------------------------------------------------------------------------- the timeline
# local (+05:45)  10:00-11:00     11:00-12:00     12:00-13:00
# received        a b             a c             c
# click                           a               a
async def test_timeline_by_hour(running_service: Running, clock: Clock) -> None:
    """A device is new in its first hour only, and the hour is that of the app, also at a quarter to."""

    account = await running_service.make_account("Kathmandu", timezone="Asia/Kathmandu")
    at_noon(clock)
    first = int(datetime.fromtimestamp(clock(), UTC).replace(hour=4, minute=15, second=0, microsecond=0).timestamp())
    event = {"msg_id": "m", "platform": "android", "stage": "received"}
    await running_service.send(account, *(
        event | {"device_id": device, "ts": first + hours * HOUR + 10} for device, hours in (
            ("a", 0), ("b", 0), ("a", 1), ("c", 1), ("c", 2))),
        *(event | {"device_id": "a", "stage": "click", "ts": first + hours * HOUR} for hours in (1, 2)))

    day = datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d")
    assert await read(running_service, account, "/v1/messages/m/timeline") == {
        "msg_id": "m", "interval": "hour", "timezone": "Asia/Kathmandu", "series": [
            {"time": f"{day} 10:00", "start": first, "new": {"received": 2}, "cumulative": {"received": 2}},
            {"time": f"{day} 11:00", "start": first + HOUR, "new": {"received": 1, "click": 1},
             "cumulative": {"received": 3, "click": 1}}]}
    assert (await read(running_service, account, "/v1/messages"))["timezone"] == "Asia/Kathmandu"


async def test_timeline_by_platform(running_service: Running, account: Account, clock: Clock) -> None:
    """One platform's series has the devices that are of it now; those of no platform are a series of their own."""

    noon = int(at_noon(clock).timestamp())
    event = {"msg_id": "m", "stage": "received"}
    await running_service.send(account, event | {"device_id": "named", "platform": "ios", "ts": noon - HOUR},
                               event | {"device_id": "late", "ts": noon - HOUR}, event | {"device_id": "none"},
                               event | {"device_id": "a", "platform": "android"})
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "late", "platform": "ios"})
    await running_service.applied()

    async def counts(query: str) -> list[tuple[dict[str, int], dict[str, int]]]:
        body = await read(running_service, account, f"/v1/messages/m/timeline?{query}")
        return [(one["new"], one["cumulative"]) for one in body["series"]]
    one, two, four = {"received": 1}, {"received": 2}, {"received": 4}
    assert await counts("platform=ios") == [(two, two)]
    assert await counts("platform=android") == [(one, one)]
    assert await counts("platform=unknown") == [(one, one)]
    assert await counts("platform=web") == []
    assert await counts("interval=day&platform=ios") == [(two, two)]
    assert await counts("interval=hour") == [(two, two), (two, four)]


# Berlin, days of 23 and of 25 hours: their first and their last second, and the seconds beside them.
@pytest.mark.parametrize("forward", [True, False])
async def test_timeline_by_day_around_a_change(running_service: Running, clock: Clock, forward: bool) -> None:
    """A day is as long as its wall clock says, and a device of two days is new on the first."""

    zone = ZoneInfo("Europe/Berlin")
    account = await running_service.make_account("Berlin", timezone="Europe/Berlin")
    day = datetime.fromtimestamp(clock(), zone).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    length = 23 if forward else 25
    while int((day + timedelta(days=1)).timestamp()) - int(day.timestamp()) != length * HOUR:
        day += timedelta(days=1)
    start, end = int(day.timestamp()), int((day + timedelta(days=1)).timestamp())
    clock.ahead += end + HOUR - clock()
    event = {"msg_id": "m", "stage": "received", "platform": "ios"}
    await running_service.send(account, *(event | {"device_id": device, "ts": moment} for device, moment in (
        ("before", start - 1), ("both", start - 1), ("both", start), ("first", start), ("last", end - 1),
        ("after", end), ("first", end))))

    def item(when: datetime, new: int, total: int) -> dict[str, Any]:
        return {"time": when.strftime("%Y-%m-%d"), "start": int(when.timestamp()), "new": {"received": new},
                "cumulative": {"received": total}}
    assert await read(running_service, account, "/v1/messages/m/timeline?interval=day") == {
        "msg_id": "m", "interval": "day", "timezone": "Europe/Berlin", "series": [
            item(day - timedelta(days=1), 2, 2), item(day, 2, 4), item(day + timedelta(days=1), 1, 5)]}


# ------------------------------------------------------------------------------------------------------------ retention
# day      0             20            40        45        52 (a month after 20)
# m        2 received    1 received    there     there     gone
# push     made, expires on 60                             there, without totals
async def test_messages_live_a_month_from_the_last_delivery(running_service: Running, account: Account,
                                                            clock: Clock) -> None:
    """A silent message leaves the list, its page and its timeline as a whole; a push stays until it expires."""

    at_noon(clock)
    now = int(clock())
    await register(running_service, account, "push", expires_at=now + 60 * DAY, created_at=now - 1, payload="Hello")
    await running_service.send(account, *reached("m", "received", 2, "ios"), *reached("push", "click", 1, "ios"))
    clock.ahead += 20 * DAY
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "x", "platform": "ios"})
    clock.ahead += 25 * DAY
    assert await listed(running_service, account) == ["push", "m"]
    assert (await read(running_service, account, "/v1/messages/m"))["message"]["totals"]["received"] == 3
    series = (await read(running_service, account, "/v1/messages/m/timeline?interval=day"))["series"]
    assert [one["cumulative"] for one in series] == [{"received": 2}, {"received": 3}]
    kept = {"kind": "notification", "created_at": now - 1, "expires_at": now + 60 * DAY, "title": "Hello"}

    for _ in range(2):  # before the sweep and after it
        clock.ahead += 7 * DAY
        assert await read(running_service, account, "/v1/messages") == {
            "timezone": "UTC", "messages": [BARE | {"msg_id": "push"} | kept], "next": None}
        assert await read(running_service, account, "/v1/messages/push") == {"message": BARE | kept | {
            "msg_id": "push", "payload": "Hello", "audience": "all", "breakdown": [], "platforms": {}, "channels": {},
            "kinds": {}}}
        assert (await read(running_service, account, "/v1/messages/push/timeline"))["series"] == []
        for path in ("/v1/messages/m", "/v1/messages/m/timeline"):
            answer = await running_service.call("GET", path, account)
            assert (answer.status, answer.json) == (404, native_error("not_found", "message m is not known"))
        await running_service.service.sweep.run()

    clock.ahead += 7 * DAY
    assert await listed(running_service, account) == []
    assert (await running_service.call("GET", "/v1/messages/push", account)).status == 404
    await running_service.service.sweep.run()
    rows = await running_service.service.clickhouse.query("SELECT count() FROM messages", {}, label="test")
    assert rows[0][0] == 0


# ----------------------------------------------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize(("path", "message"), [
    *((f"/v1/messages?limit={limit}", "limit: must be 1 to 200") for limit in ("0", "201", "-1", "", "ten", "1.5")),
    *((f"/v1/messages?before={cursor}", "before: must be what `next` of another page was")
      for cursor in ("", "x", "bnVsbA==", "WzEsMl0=", "WyJhIiwiYiJd", "Wy0xLCJhIl0=", "WzEsImEiLDJd", "%C3%BC")),
    ("/v1/messages/m/timeline?interval=week", "interval: must be one of hour, day"),
    ("/v1/messages/m/timeline?interval=", "interval: must be one of hour, day"),
    ("/v1/messages/m/timeline?platform=amiga",
     "platform: must be one of android, ios, web, winphone, quickapp, hmos, unknown"),
    (f"/v1/messages/{'x' * 257}", "msg_id: at most 256 bytes"),
])
async def test_bad_parameters(running_service: Running, account: Account, path: str, message: str) -> None:
    """What cannot be answered is refused with the name of the parameter and its rule."""

    answer = await running_service.call("GET", path, account)

    assert (answer.status, answer.json) == (400, native_error("invalid_request", message))


async def test_unknown_message(running_service: Running, account: Account) -> None:
    """A message that this app never had is 404, also where another app has one of that id."""

    other = await running_service.make_account("other")
    await running_service.send(other, *reached("m", "received", 1, "ios"))
    await register(running_service, other, "p")

    for msg_id in ("m", "p", "q"):
        for path in (f"/v1/messages/{msg_id}", f"/v1/messages/{msg_id}/timeline?interval=day"):
            answer = await running_service.call("GET", path, account)
            assert (answer.status, answer.json) == (404, native_error("not_found", f"message {msg_id} is not known"))
    assert await read(running_service, account, "/v1/messages") == {"timezone": "UTC", "messages": [], "next": None}


PATHS = ("/v1/messages", "/v1/messages/m", "/v1/messages/m/timeline")


@pytest.fixture
async def clickhouse(short_dir: Path) -> AsyncIterator[ClickHouseHttp]:
    """A ClickHouse server of the test's own."""
    async with clickhouse_http_server(short_dir / "clickhouse") as server:
        yield server


async def test_clickhouse_away(config: Config, clickhouse: ClickHouseHttp) -> None:
    """Without ClickHouse all three are 503, never an empty list, and are back with it."""

    async with running(replace(config, clickhouse_url=clickhouse.url)) as service:
        account = await service.make_account()
        await service.send(account, *reached("m", "received", 1, "ios"))
        before = [await read(service, account, path) for path in PATHS]
        service.clock.ahead += 1  # kept answers are older than they may be
        await clickhouse.refuse()
        for path in PATHS:
            answer = await service.call("GET", path, account)
            assert (answer.status, answer.json, answer.headers["Retry-After"]) == (
                503, native_error("unavailable", "clickhouse is unavailable"), "2")
        await asyncio.to_thread(clickhouse.kill)
        await clickhouse.start()
        assert [await read(service, account, path) for path in PATHS] == before


async def test_redis_away(config: Config, database: str, short_dir: Path) -> None:
    """Without Redis all three go on; only whether an unknown message was registered this moment cannot be told."""

    redis = EmbeddedRedis(short_dir / "redis", "everysec")
    await redis.start(supervise=False)
    try:
        async with running(replace(config, redis_url=redis.url), database=database) as service:
            account = await service.make_account()
            await register(service, account, "m", payload="Hello")
            await service.send(account, *reached("m", "received", 1, "ios"))
            before = [await read(service, account, path) for path in PATHS]
            os.kill(redis.pid, signal.SIGKILL)

            async def is_gone() -> bool:
                return (await service.call("POST", "/v1/events", account, json={})).status != 200 and (
                    await service.call("GET", "/v1/messages/other", account)).status == 503
            await eventually(is_gone)
            assert [await read(service, account, path) for path in PATHS] == before
            answer = await service.call("GET", "/v1/messages/other", account)
            assert (answer.status, answer.json) == (503, native_error("unavailable", "redis is unavailable"))
            await redis.start(supervise=False)
    finally:
        await redis.stop()


# --------------------------------------------------------------------------------------------------------------- titles
@pytest.mark.parametrize(("payload", "title"), [
    (None, None), ({}, None), ([], None), (5, None), ("", None), ("  ", None), ("Hello", "Hello"),
    ({"message": "Hello World!"}, "Hello World!"),
    ({"notification": {"alert": "Hi", "android": {"title": "Other"}}}, "Hi"),
    ({"notification": {"android": {"alert": "Text", "title": "Title"}}}, "Title"),
    ({"message": {"msg_content": "Silent", "title": ""}}, "Silent"),
    ({"aps": {"alert": {"body": "Body", "title": "Title"}, "badge": 1}}, "Title"),
    ({"apns": {"aps": {"alert": "A"}}, "fcm": {"notification": {"title": "F"}}}, "F"),
    ({"apns": {"aps": {"alert": "A"}}, "fcm": {"notification": {"body": "F"}}}, "A"),
    ({"fcm": {"notification": {"title": "F", "body": "B"}}}, "F"),
    ({"title": {"nested": 1}, "body": "  two\n words "}, "two words"),
    ({"a": {"b": {"c": {"d": {"e": {"title": "too deep"}}}}}}, None),
    ({"title": "x" * 200}, "x" * 119 + "…"),
])
def test_title_is_found_in_any_gateways_payload(payload: object, title: str | None) -> None:
    """The title, or else the text, of the outermost part of a payload that has either."""
    assert title_of(payload) == title
