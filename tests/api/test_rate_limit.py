"""Rate limits: exact, per app, shared by all processes, told on every answer, and never in a device's way."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from aiohttp.web_routedef import RouteDef

from reportsvc.api.routes import ROUTES
from reportsvc.config import Config
from reportsvc.registry import ratelimit
from reportsvc.registry.apps import AppStore
from reportsvc.registry.ratelimit import Quota, RateLimiter
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis, quota_key
from tests.api.helpers import NOTHING_RECEIVED, jpush_error, native_error
from tests.support.service import Account, Answer, Clock, Running, eventually, running

RECEIVED = "/v3/received?msg_ids=1"
EXCEEDED = jpush_error(2002, "Rate limit exceeded")


def quota(answer: Answer) -> dict[str, int]:
    """What an answer tells of the limit."""
    return {name.removeprefix("X-Rate-Limit-"): int(value) if name != "X-Rate-Limit-Reset" else about(value)
            for name, value in answer.headers.items() if name.startswith("X-Rate-Limit-")}


def about(seconds: str | int) -> int:
    """10 or 60 for a time that was as long a few seconds ago: a busy machine takes its time."""
    return next((start for start in (10, 60) if start - 8 <= int(seconds) <= start), int(seconds))


def told(limit: int, remaining: int, reset: int = 60) -> dict[str, int]:
    """The same, as it should be."""
    return {"Limit": limit, "Quota": limit, "Remaining": remaining, "Reset": reset}


def called(route: RouteDef) -> tuple[str, str]:
    """Method and path of a call to *route*."""
    return route.method, re.sub(r"\{\w+(:.*?)?\}", "1", route.path)


def routes(*prefixes: str) -> list[Any]:
    """The routes under the first part of a path."""
    return [pytest.param(*called(route), id=f"{route.method} {route.path}") for route in ROUTES
            if isinstance(route, RouteDef) and route.path.startswith(prefixes)]


async def limit_to(service: Running, account: Account, calls: int | None) -> None:
    """Give an app a limit of its own."""
    await AppStore(service.service.redis).set_rate_limit(account.app, calls)
    await service.service.apps.refresh()


# --------------------------------------------------------------------------------------------------------- every answer
@pytest.mark.parametrize(("method", "path"), routes("/v3"))
async def test_every_report_counts_and_tells(running_service: Running, account: Account, method: str,
                                             path: str) -> None:
    """Each path of the reports tells where the app stands, refuses one call too many, and no one without a key."""

    await limit_to(running_service, account, 2)

    stranger = await running_service.call(method, path)
    answers = [await running_service.call(method, path, account) for _ in range(3)]

    assert (stranger.status, quota(stranger)) == (401, {})
    assert [answer.status for answer in answers] == [400, 400, 429]
    assert answers[2].json == EXCEEDED
    assert [quota(answer) for answer in answers] == [told(2, 1), told(2, 0), told(2, 0)]
    assert answers[2].headers["Retry-After"] == answers[2].headers["X-Rate-Limit-Reset"]


async def test_answers_of_every_kind_tell(running_service: Running, account: Account,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Good answers, bad requests, wrong paths and methods, refusals and our own faults all tell the default limit."""

    shy = await running_service.make_account("shy", vip=False)
    broken = BrokenReport()
    calls: list[tuple[str, str, Account, Any]] = [
        ("GET", RECEIVED, account, {}), ("GET", "/v3/received", account, {}), ("GET", "/v3/no/where", account, {}),
        ("DELETE", RECEIVED, account, {}), ("GET", f"//v3/{RECEIVED[3:]}", account, {}),
        ("POST", "/v3/status/message", account, {"data": b"no json"}),
        ("POST", "/v3/status/message", account, {"data": b"x", "headers": {"Content-Encoding": "gzip"}})]

    answers = [await running_service.call(method, path, who, **options) for method, path, who, options in calls]
    refused = await running_service.call("GET", "/v3/messages?msg_ids=1", shy)
    monkeypatch.setattr("reportsvc.reports.delivery.DeliveryReport.totals", broken)
    fault = await running_service.call("GET", "/v3/received?msg_ids=2", account)

    assert [(answer.status, quota(answer)) for answer in answers] == [
        (status, told(2400, 2400 - count)) for count, status in enumerate([200, 400, 404, 405, 200, 400, 400], 1)]
    assert (refused.status, quota(refused)) == (403, told(2400, 2399))
    assert (fault.status, fault.json) == (500, jpush_error(10, "Internal system error"))
    assert quota(fault) == told(2400, 2392)


class BrokenReport:
    """Stands in for a report with a bug."""

    async def __call__(self, *_: object) -> None:
        raise KeyError("bug")


# ------------------------------------------------------------------------------------------------------------- counting
async def test_limit_is_exact_in_a_burst_over_two_processes(config: Config, clock: Clock, database: str) -> None:
    """Of 200 calls at once to two services on one Redis, as many are answered as the limit says; each has its place."""

    config = replace(config, rate_limit=50)
    async with running(config, clock, database) as first, running(config, clock, f"{database}b") as second:
        account = await first.make_account()
        await second.service.apps.refresh()
        answers = await asyncio.gather(*(
            service.call("GET", RECEIVED, account) for _ in range(100) for service in (first, second)))

    assert Counter(answer.status for answer in answers) == {200: 50, 429: 150}
    assert sorted(quota(answer)["Remaining"] for answer in answers if answer.status == 200) == list(range(50))
    assert {quota(answer)["Remaining"] for answer in answers if answer.status == 429} == {0}


async def test_minute_ends_for_the_app_as_a_whole(running_service: Running, account: Account) -> None:
    """The minute begins with the first call, is told in seconds, and when it is over all calls are there again."""
    # second    0    ...   50           60
    # calls     1, 2, 3!   4!           5
    # answered  ok ok 429  429          ok

    redis, key = running_service.service.redis, quota_key(account.app.id, "reports")
    await limit_to(running_service, account, 2)
    before = [await running_service.call("GET", RECEIVED, account) for _ in range(3)]
    began = await redis.call("PTTL", key)
    await redis.call("PEXPIRE", key, 10_000)
    late = await running_service.call("GET", RECEIVED, account)
    await redis.call("PEXPIRE", key, 1)

    async def is_over() -> bool:
        return not await redis.call("EXISTS", key)
    await eventually(is_over)
    after = await running_service.call("GET", RECEIVED, account)

    assert [answer.status for answer in before] == [200, 200, 429]
    assert 50_000 < began <= 60_000
    assert (late.status, quota(late), about(late.headers["Retry-After"])) == (429, told(2, 0, 10), 10)
    assert (after.status, quota(after)) == (200, told(2, 1))


async def test_calls_at_once_share_a_round_trip(running_service: Running) -> None:
    """However many calls wait, they are counted in few commands; each still learns its own place."""

    redis = running_service.service.redis
    limiter = RateLimiter(redis)
    await limiter.spend(7, "reports", 1000)
    await redis.call("CONFIG", "RESETSTAT")
    found = await asyncio.gather(*(limiter.spend(7, "reports", 1000) for _ in range(500)))
    statistics = await redis.call("INFO", "commandstats")

    assert [one.place for one in found] == list(range(2, 502))
    assert statistics["cmdstat_evalsha"]["calls"] <= 10


async def test_counter_that_lost_its_end_gets_one(running_service: Running) -> None:
    """A counter that does not expire, whatever did that to it, cannot lock an app out for ever."""

    redis = running_service.service.redis
    await redis.call("SET", quota_key(7, "reports"), 5000)

    found = await RateLimiter(redis).spend(7, "reports", 10)

    assert (found, found.is_exceeded, found.remaining) == (Quota(10, 5001, 60), True, 0)
    assert 0 < await redis.call("PTTL", quota_key(7, "reports")) <= 60_000


# ---------------------------------------------------------------------------------------------------- whose limit it is
async def test_each_app_has_its_own(running_service: Running, account: Account) -> None:
    """An app's own limit goes before the service's, does not touch another app, and may be none."""

    other, free = [await running_service.make_account(name) for name in ("other", "free")]
    await limit_to(running_service, account, 1)
    await limit_to(running_service, free, 0)

    limited = [await running_service.call("GET", RECEIVED, account) for _ in range(2)]
    unhurt = await running_service.call("GET", RECEIVED, other)
    unlimited = await running_service.call("GET", RECEIVED, free)
    await limit_to(running_service, account, None)
    default = await running_service.call("GET", RECEIVED, account)

    assert [(answer.status, quota(answer)) for answer in (*limited, unhurt, unlimited, default)] == [
        (200, told(1, 0)), (429, told(1, 0)), (200, told(2400, 2399)), (200, {}), (200, told(2400, 2397))]


async def test_no_limit_at_all(config: Config, clock: Clock, database: str) -> None:
    """With 0 nothing is counted and nothing told, but for an app with a limit of its own."""

    async with running(replace(config, rate_limit=0), clock, database) as service:
        account, strict = await service.make_account(), await service.make_account("strict")
        await limit_to(service, strict, 1)
        answers = [await service.call("GET", RECEIVED, account) for _ in range(3)]
        exceeded = [await service.call("GET", RECEIVED, strict) for _ in range(2)]
        counters = [await service.service.redis.scan(quota_key(app.app.id, "*")) for app in (account, strict)]

    assert [(answer.status, quota(answer)) for answer in answers] == [(200, {})] * 3
    assert [answer.status for answer in exceeded] == [200, 429]
    assert counters == [[], [quota_key(strict.app.id, "reports").encode()]]


# --------------------------------------------------------------------------------------------------- the other dialects
@pytest.fixture
async def strict_service(config: Config, clock: Clock, database: str) -> AsyncIterator[Running]:
    """A service that allows one call a minute, everywhere."""
    config = replace(config, rate_limit=1, rate_limit_native=1, rate_limit_pushy=1)
    async with running(config, clock, database) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), routes("/v1", "/pushes"))
async def test_native_and_pushy_may_have_a_limit(strict_service: Running, method: str, path: str) -> None:
    """Each of these paths counts if the service is set so, and refuses in its dialect's words."""

    account = await strict_service.make_account()
    words: dict[str, Any] = native_error("rate_limited", "Rate limit exceeded")
    if path.startswith("/pushes"):
        path += f"?api_key={account.pushy_api_key}"
        words = {"code": "RATE_LIMIT_EXCEEDED", "error": "Rate limit exceeded"}

    first = await strict_service.call(method, path, account, data=b"{}")
    second = await strict_service.call(method, path, account, data=b"{}")

    assert first.status != 429
    assert (second.status, second.json, about(second.headers["Retry-After"])) == (429, words, 60)


async def test_parts_of_the_api_are_counted_apart(strict_service: Running) -> None:
    """A dashboard that has used up its calls does not stop the sender of the same app."""

    account = await strict_service.make_account()
    event = {"msg_id": "1", "stage": "received", "device_id": "d"}
    calls = [("GET", RECEIVED), ("POST", "/v1/events"), ("GET", f"/pushes/1?api_key={account.pushy_api_key}")]

    answers = [await strict_service.call(method, path, account, json=event) for method, path in calls]
    again = [await strict_service.call(method, path, account, json=event) for method, path in calls]

    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [answer.status for answer in again] == [429, 429, 429]


async def test_devices_are_never_limited(strict_service: Running) -> None:
    """However strict the limits are, no call of a device is 429, nor tells of a limit."""

    account = await strict_service.make_account()
    instance = account.app.beams_instance_id
    event = {"publishId": "1", "event": "open", "deviceId": "fcm-1", "timestampSecs": int(strict_service.clock())}
    report, devices = f"/reporting_api/v2/instances/{instance}/events", f"/device_api/v1/instances/{instance}/devices"

    reported = [await strict_service.call("POST", report, json=event) for _ in range(5)]
    registered = [await strict_service.call("POST", f"{devices}/fcm", json={"token": str(number)})
                  for number in range(5)]

    assert [(answer.status, quota(answer)) for answer in (*reported, *registered)] == [(200, {})] * 10


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_operators_are_never_limited(strict_service: Running, path: str) -> None:
    """Load balancers ask as often as they like."""

    assert [(await strict_service.call("GET", path)).status for _ in range(5)] == [200] * 5


async def test_strangers_cost_redis_nothing_each(running_service: Running, account: Account) -> None:
    """Callers with keys and instances that nobody has are refused from memory; one look at Redis is for all of them."""

    event = {"publishId": "1", "event": "open", "deviceId": "fcm-1", "timestampSecs": int(running_service.clock())}
    report = "/reporting_api/v2/instances/426abfc7-41fe-492f-bcf1-27586fa9bd3f/events"
    wrong = {"Authorization": encode_basic_auth(account.app.app_key, "wrong")}
    redis = running_service.service.redis
    await redis.call("CONFIG", "RESETSTAT")

    answers = await asyncio.gather(*(one for _ in range(100) for one in (
        running_service.call("GET", RECEIVED, headers=wrong), running_service.call("GET", "/pushes/1?api_key=wrong"),
        running_service.call("POST", report, json=event))))
    statistics = await redis.call("INFO", "commandstats")

    assert Counter(answer.status for answer in answers) == {401: 200, 400: 100}
    # Looks come 0.1 s apart at least.
    assert statistics.get("cmdstat_hget", {"calls": 0})["calls"] <= 150


# ------------------------------------------------------------------------------------------------------------- no Redis
@pytest.fixture
async def own_redis(short_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    """A redis-server of the test's own, which nobody starts again when it dies."""
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start(supervise=False)
    yield server
    await server.stop()


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the limiter logged, without the reason."""
    return [record.getMessage().partition(":")[0] for record in caplog.records
            if record.name == "reportsvc.registry.ratelimit"]


async def test_reports_go_on_without_redis(config: Config, database: str, own_redis: EmbeddedRedis,
                                           caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away counters are answered without limit; that is logged once, and the limit holds again after."""

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(ratelimit, "RETRY_SECONDS", 0.05)
    config = replace(config, rate_limit=1, redis_url=own_redis.url)
    async with running(config, database=database) as service:
        account = await service.make_account()
        os.kill(own_redis.pid, signal.SIGKILL)
        away = []
        for _ in range(5):
            away.append(await service.call("GET", RECEIVED, account))
            await asyncio.sleep(0.1)
        logged = notices(caplog)
        await own_redis.start(supervise=False)

        async def is_limited() -> bool:
            return (await service.call("GET", RECEIVED, account)).status == 429
        await eventually(is_limited)

    assert [(answer.status, answer.json, quota(answer)) for answer in away] == [
        (200, [{"msg_id": "1"} | NOTHING_RECEIVED], told(1, 1))] * 5
    assert logged == ["rate limits are not enforced until Redis is back"]
    assert notices(caplog) == [*logged, "rate limits are enforced again"]


async def test_redis_that_hangs_is_not_waited_for(redis_url: str, own_redis: EmbeddedRedis,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that takes calls and answers none costs one short wait, not one for each call."""

    monkeypatch.setattr(ratelimit, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(ratelimit, "RETRY_SECONDS", 60.0)
    redis = Redis(own_redis.url)
    limiter = RateLimiter(redis)
    counted = await limiter.spend(1, "reports", 1)
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(3):
            hanging = await asyncio.gather(*(limiter.spend(1, "reports", 1) for _ in range(10)))
            later = [await limiter.spend(1, "reports", 1) for _ in range(100)]
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    await redis.close()

    assert counted == Quota(1, 1, 60)
    assert [*hanging, *later] == [Quota(1, 0, 60)] * 110
    assert not any(one.is_exceeded for one in hanging)
