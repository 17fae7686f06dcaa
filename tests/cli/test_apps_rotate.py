"""``reportsvc apps rotate`` and ``apps set``, and what ``apps show`` tells of the use of keys."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from typing import Any

import jwt
import orjson
import pytest
from aiohttp import encode_basic_auth

from reportsvc.config import Config
from reportsvc.registry import uses
from reportsvc.registry.apps import AppStore
from reportsvc.storage.redis import apps_key, uses_key
from tests.cli.program import reportsvc
from tests.support.service import Clock, Running, eventually

Keys = dict[str, Any]
WORKS = {"basic": True, "pushy": True, "sign in": True, "server": True}
FAILS = dict.fromkeys(WORKS, False)


@pytest.fixture(autouse=True)
def short_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses are written soon."""
    monkeypatch.setattr(uses, "FLUSH_SECONDS", 0.05)


async def run(config: Config, *arguments: str) -> Any:
    """The JSON that one of the commands prints: an app's keys, most of them."""
    done = await reportsvc("apps", *arguments, "--json", redis_url=config.redis_url)
    assert (done.status, done.errors) == (0, "")
    return done.json


async def opens(service: Running, keys: Keys) -> dict[str, bool]:
    """What an app's keys open: HTTP Basic, the Pushy API, a user's signing in on a device, the deletion of a user."""
    basic = {"Authorization": encode_basic_auth(keys["app_key"], keys["master_secret"])}
    instance = keys["beams_instance_id"]
    devices = f"/device_api/v1/instances/{instance}/devices/fcm"
    device = (await service.call("POST", devices, json={"token": "t"})).json["id"]
    token = jwt.encode({"iss": f"https://{instance}.pushnotifications.pusher.com", "sub": "alice",
                        "exp": int(service.clock()) + 600}, keys["beams_secret_key"], "HS256")
    calls = {
        "basic": await service.call("GET", "/v3/received?msg_ids=1", headers=basic),
        "pushy": await service.call("GET", f"/pushes/1?api_key={keys['pushy_api_key']}"),
        "sign in": await service.call("PUT", f"{devices}/{device}/user", headers={"Authorization": f"Bearer {token}"}),
        "server": await service.call("DELETE", f"/customer_api/v1/instances/{instance}/users/nobody",
                                     headers={"Authorization": f"Bearer {keys['beams_secret_key']}"}),
    }
    # An unknown push is a 400, which a known key may learn.
    assert {answer.status for answer in calls.values()} <= {200, 400, 401}
    return {name: answer.status != 401 for name, answer in calls.items()}


async def eventually_opens(service: Running, keys: Keys, expected: dict[str, bool]) -> None:
    """Wait until the service has heard of a change."""
    async def is_so() -> bool:
        return await opens(service, keys) == expected
    await eventually(is_so)


async def test_both_keys_work_in_the_overlap(config: Config, running_service: Running, clock: Clock) -> None:
    """After a rotation new and old keys open everything until the overlap is over; then the old ones open nothing."""
    # second  0              3599          3601
    # old     rotate  works  works         stopped
    # new             works  works         works

    old = await run(config, "create", "shop")
    began = int(time.time())
    new = await run(config, "rotate", "shop", "--overlap", "3600")
    await eventually_opens(running_service, new, WORKS)
    meanwhile = await opens(running_service, old)
    clock.ahead = 3590 - (time.time() - began)
    late = await opens(running_service, old)
    clock.ahead = 3610
    after = {"old": await opens(running_service, old), "new": await opens(running_service, new)}

    assert (meanwhile, late) == (WORKS, WORKS)
    assert after == {"old": FAILS, "new": WORKS}


async def test_rotation_changes_the_secrets_alone(config: Config, running_service: Running) -> None:
    """The name, the app_key, the instance and the settings stay; each secret is new and of the form it had."""

    old = await run(config, "create", "shop", "--timezone", "Asia/Shanghai", "--no-vip", "--rate-limit", "7")
    until = int(time.time()) + 86_400
    new = await run(config, "rotate", old["app_key"])
    shown = await run(config, "show", "shop")
    stored = repr(await running_service.service.redis.call("HGETALL", apps_key()))

    secrets = ["master_secret", "pushy_api_key", "beams_secret_key"]
    assert {name: new[name] for name in old if name not in secrets} == {
        name: old[name] for name in old if name not in secrets}
    assert [name for name in secrets if new[name] == old[name]] == []
    assert [len(new[name]) for name in secrets] == [24, 64, 64]
    stopping = datetime.strptime(new["former_keys_until"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    assert until <= stopping <= until + 60
    assert shown == {name: old[name] for name in ("name", "app_key", "beams_instance_id", "timezone", "vip")} | {
        "rate_limit": 7, "former_keys_until": new["former_keys_until"]}
    # Of old and new alike, only the Beams secret is stored as it is.
    assert [name for name in secrets for keys in (old, new) if keys[name] in stored] == ["beams_secret_key"] * 2


async def test_no_overlap_stops_every_older_key(config: Config, running_service: Running) -> None:
    """After a leak nothing that was there before works, not even what an earlier overlap still allowed."""

    first = await run(config, "create", "shop")
    second = await run(config, "rotate", "shop")
    third = await run(config, "rotate", "shop")
    await eventually_opens(running_service, third, WORKS)
    before = [await opens(running_service, keys) for keys in (first, second)]
    last = await run(config, "rotate", "shop", "--overlap", "0")
    await eventually_opens(running_service, last, WORKS)

    assert before == [WORKS, WORKS]
    assert [await opens(running_service, keys) for keys in (first, second, third)] == [FAILS] * 3


async def test_short_overlap_shortens_the_earlier_one(config: Config, running_service: Running, clock: Clock) -> None:
    """No older key outlives the latest rotation's overlap."""

    first = await run(config, "create", "shop")
    await run(config, "rotate", "shop", "--overlap", "86400")
    latest = await run(config, "rotate", "shop", "--overlap", "60")
    await eventually_opens(running_service, latest, WORKS)
    before = await opens(running_service, first)
    clock.ahead = 120

    assert before == WORKS
    assert await opens(running_service, first) == FAILS


async def test_rotating_one_app_leaves_the_others(config: Config, running_service: Running) -> None:
    """Another app's keys go on, and the new keys open nothing of it."""

    await run(config, "create", "shop")
    other = await run(config, "create", "other")
    new = await run(config, "rotate", "shop", "--overlap", "0")
    await eventually_opens(running_service, new, WORKS)
    mixed = new | {name: other[name] for name in ("app_key", "beams_instance_id")}

    assert await opens(running_service, other) == WORKS
    # The Pushy key names its app by itself.
    assert await opens(running_service, mixed) == FAILS | {"pushy": True}


@pytest.mark.parametrize("change", [("rotate", "shop"), ("set", "shop", "--rate-limit", "9")], ids=["rotate", "set"])
async def test_durable_copy_follows(config: Config, running_service: Running, change: tuple[str, ...]) -> None:
    """What ClickHouse keeps of an app, for the day Redis is lost, has the new keys and settings."""

    await run(config, "create", "shop")
    await run(config, *change)
    await running_service.applied()
    rows = await running_service.service.clickhouse.query("SELECT record FROM apps FINAL", {}, label="test")
    stored = [value for key, value in (await running_service.service.redis.call("HGETALL", apps_key())).items()
              if key.isdigit()]

    assert [orjson.loads(row[0]) for row in rows] == [orjson.loads(value) for value in stored]
    assert len(rows) == 1


async def test_changes_at_once_lose_none(config: Config, running_service: Running) -> None:
    """Two changes of one app at the same moment both happen."""

    await run(config, "create", "shop")
    store = AppStore(running_service.service.redis)
    app, = await store.all()
    await asyncio.gather(*(store.rotate(app, 1000 + number, 1000) for number in range(10)),
                         *(store.set_rate_limit(app, number) for number in range(10)))
    changed, = await store.all()

    assert len(changed.former_keys) == 10
    assert changed.rate_limit is not None
    assert await store.version() == 21


async def test_last_use_is_shown_for_each_key(config: Config, running_service: Running, clock: Clock) -> None:
    """Each key tells when it was last used, old and new apart; a wrong key is no use, one never used is not there."""

    old = await run(config, "create", "shop")
    unused = await run(config, "create", "unused")
    await run(config, "rotate", "shop")
    new = await run(config, "rotate", "shop")
    clock.ahead = 600
    await eventually_opens(running_service, old, WORKS)
    wrong = {"Authorization": encode_basic_auth(unused["app_key"], new["master_secret"])}
    assert (await running_service.call("GET", "/v3/received?msg_ids=1", headers=wrong)).status == 401
    basic = {"Authorization": encode_basic_auth(new["app_key"], new["master_secret"])}
    clock.ahead = 1200
    await running_service.call("GET", "/v3/received?msg_ids=1", headers=basic)
    expected = {"beams_instance_id": 600, "former_master_secret_2": 600, "former_pushy_api_key_2": 600,
                "former_beams_secret_key_2": 600, "master_secret": 1200}

    async def is_written() -> bool:
        return "master_secret" in (await run(config, "show", "shop")).get("last_use", {})
    await eventually(is_written)
    shown, listed = await run(config, "show", "shop"), await run(config, "list")
    plain = await reportsvc("apps", "list", redis_url=config.redis_url)
    by_line = await reportsvc("apps", "show", "shop", redis_url=config.redis_url)

    def ahead(text: str) -> int:
        then = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        return round((then - time.time()) / 600) * 600
    assert {name: ahead(text) for name, text in shown["last_use"].items()} == expected
    assert listed == [shown, {name: unused[name] for name in (
        "name", "app_key", "beams_instance_id", "timezone", "vip")}]
    assert re.findall(r"(\w+) +\w+  UTC(?:  last used (\S+))?\n", plain.output) == [
        ("shop", max(shown["last_use"].values())), ("unused", "")]
    assert f"last_use.master_secret {shown['last_use']['master_secret']}\n" in by_line.output


async def test_uses_cost_no_command_each(config: Config, running_service: Running) -> None:
    """A thousand uses of a key are one field of one command, some moments later; keys that are gone leave nothing."""

    redis = running_service.service.redis
    keys = await run(config, "create", "shop")
    await running_service.service.apps.refresh()
    await redis.call("CONFIG", "RESETSTAT")
    found = [await running_service.service.apps.by_master_secret(keys["app_key"], keys["master_secret"])
             for _ in range(1000)]

    async def is_written() -> bool:
        return bool(await redis.call("EXISTS", uses_key()))
    await eventually(is_written)
    statistics = await redis.call("INFO", "commandstats")
    before = await redis.call("HLEN", uses_key())
    deleted = await reportsvc("apps", "delete", "shop", redis_url=config.redis_url)

    assert all(found)
    assert deleted.status == 0
    assert statistics["cmdstat_hset"]["calls"] <= 5
    assert (before, await redis.call("HLEN", uses_key())) == (1, 0)


async def test_rate_limit_is_set_and_unset(config: Config, running_service: Running) -> None:
    """A limit given to an app holds in the running service a moment later, is shown, and can be taken back."""

    keys = await run(config, "create", "shop", "--rate-limit", "5")
    basic = {"Authorization": encode_basic_auth(keys["app_key"], keys["master_secret"])}

    async def limit() -> str | None:
        answer = await running_service.call("GET", "/v3/received?msg_ids=1", headers=basic)
        assert answer.status in (200, 429)
        return answer.headers.get("X-Rate-Limit-Limit")

    async def becomes(expected: str | None) -> None:
        async def is_so() -> bool:
            return await limit() == expected
        await eventually(is_so)

    assert await limit() == "5"
    assert (await run(config, "show", "shop"))["rate_limit"] == 5
    assert (await reportsvc("apps", "list", redis_url=config.redis_url)).output.startswith(
        f"{'shop':24} {keys['app_key']}  UTC  limit 5")
    assert (await run(config, "set", "shop", "--rate-limit", "0"))["rate_limit"] == 0
    await becomes(None)
    assert "rate_limit" not in await run(config, "set", "shop", "--rate-limit", "default")
    await becomes("2400")


@pytest.mark.parametrize("arguments", [
    ("rotate", "shop", "--overlap", "-1"), ("rotate", "shop", "--overlap", "1.5"),
    ("rotate", "shop", "--overlap", "31536001"), ("rotate", "shop", "--overlap", "١"),
    ("set", "shop", "--rate-limit", "many"), ("set", "shop", "--rate-limit", "1000000001"), ("set", "shop"),
    ("create", "news", "--rate-limit", "default"),
])
async def test_wrong_arguments_are_refused(config: Config, arguments: tuple[str, ...]) -> None:
    """A number that is none, or out of range, changes nothing."""

    made = await run(config, "create", "shop")
    done = await reportsvc("apps", *arguments, redis_url=config.redis_url)

    assert (done.status, done.output) == (2, "")
    assert await run(config, "list") == [{name: made[name] for name in (
        "name", "app_key", "beams_instance_id", "timezone", "vip")}]


@pytest.mark.parametrize("arguments", [("rotate", "news"), ("set", "news", "--rate-limit", "1")])
async def test_unknown_app_is_named(config: Config, arguments: tuple[str, ...]) -> None:
    """An app that is not there cannot be changed, and the refusal says where to look."""

    done = await reportsvc("apps", *arguments, redis_url=config.redis_url)

    assert (done.status, done.output, done.errors) == (
        1, "", "reportsvc: there is no app 'news'; `reportsvc apps list` shows them\n")
