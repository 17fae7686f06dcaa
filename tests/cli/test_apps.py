"""``reportsvc apps``: make, list, show and delete apps, with and without a running service."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

from aiohttp import encode_basic_auth

from reportsvc.config import Config
from reportsvc.model import App
from reportsvc.registry.apps import AppStore
from reportsvc.storage.embedded import redis_for_command
from reportsvc.storage.redis import Redis, app_keys_pattern, apps_key
from tests.cli.program import Done, reportsvc
from tests.support.service import Running, eventually

PUBLIC = ["name", "app_key", "beams_instance_id", "timezone", "vip"]
SECRETS = ["master_secret", "pushy_api_key", "beams_secret_key"]


async def create(redis_url: str, name: str, *options: str) -> dict[str, Any]:
    """A new app's credentials."""
    done = await reportsvc("apps", "create", name, "--json", *options, redis_url=redis_url)
    assert (done.status, done.errors) == (0, "")
    credentials: dict[str, Any] = done.json
    return credentials


def authorization(credentials: dict[str, Any]) -> dict[str, str]:
    """The header with an app's key and secret."""
    return {"Authorization": encode_basic_auth(credentials["app_key"], credentials["master_secret"])}


async def test_create_prints_the_credentials(config: Config) -> None:
    """A new app's keys look as those of the vendors do, and each setting is as asked."""
    credentials = await create(config.redis_url, "shop", "--timezone", "Asia/Shanghai", "--no-vip")

    assert list(credentials) == ["name", "app_key", "master_secret", "pushy_api_key", "beams_instance_id",
                                 "beams_secret_key", "timezone", "vip"]
    assert {name: credentials[name] for name in ("name", "timezone", "vip")} == {
        "name": "shop", "timezone": "Asia/Shanghai", "vip": False}
    forms = {"app_key": "[0-9a-f]{24}", "master_secret": "[0-9a-f]{24}", "pushy_api_key": "[0-9a-f]{64}",
             "beams_instance_id": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "beams_secret_key": "[0-9A-F]{64}"}
    assert [name for name, form in forms.items() if not re.fullmatch(form, credentials[name])] == []


async def test_defaults_and_plain_output(config: Config) -> None:
    """Without options an app is in UTC and may use everything; a person gets a line for each value."""
    done = await reportsvc("apps", "create", "shop", redis_url=config.redis_url)
    lines = dict(line.split(None, 1) for line in done.output.splitlines())

    assert (done.status, done.errors) == (0, "")
    assert sorted(lines) == sorted([*PUBLIC, *SECRETS])
    assert (lines["name"], lines["timezone"], lines["vip"]) == ("shop", "UTC", "True")


async def test_list_and_show_tell_no_secret(config: Config) -> None:
    """Apps are listed oldest first; a secret is shown when its app is made and never again."""
    made = [await create(config.redis_url, "shop"),
            await create(config.redis_url, "news", "--timezone", "Europe/Berlin", "--no-vip")]
    public = [{name: one[name] for name in PUBLIC} for one in made]

    listed = await reportsvc("apps", "list", "--json", redis_url=config.redis_url)
    plain = await reportsvc("apps", "list", redis_url=config.redis_url)
    by_name = await reportsvc("apps", "show", "news", "--json", redis_url=config.redis_url)
    by_key = await reportsvc("apps", "show", made[1]["app_key"], redis_url=config.redis_url)

    assert listed.json == public
    assert plain.output == (f"{'shop':24} {made[0]['app_key']}  UTC\n"
                            f"{'news':24} {made[1]['app_key']}  Europe/Berlin  no vip\n")
    assert by_name.json == public[1]
    assert by_key.output == "".join(f"{name:18} {value}\n" for name, value in public[1].items())


async def test_no_secret_is_stored_in_clear(config: Config) -> None:
    """The store has digests of the secrets; only the Beams one, which signs, is there as it is."""
    credentials = await create(config.redis_url, "shop")
    redis = Redis(config.redis_url)
    stored = repr(await redis.call("HGETALL", apps_key())) + repr([
        await redis.call("XRANGE", key, "-", "+") for key in await redis.scan("j{*")])
    await redis.close()

    assert credentials["app_key"] in stored
    assert [name for name in SECRETS if credentials[name] in stored] == ["beams_secret_key"]


REFUSALS: Final = {
    ("create", "shop"): "an app named 'shop' exists; choose another name, or delete it first",
    ("create", "news", "--timezone", "Mars/Olympus"):
        "timezone 'Mars/Olympus' does not exist; write an IANA name such as Asia/Shanghai",
    ("create", "news", "--timezone", "../etc/passwd"):
        "timezone '../etc/passwd' does not exist; write an IANA name such as Asia/Shanghai",
    ("create", ""): "an app's name is 1 to 100 printable characters",
    ("create", "a\nb"): "an app's name is 1 to 100 printable characters",
    ("create", "a" * 101): "an app's name is 1 to 100 printable characters",
    ("show", "news"): "there is no app 'news'; `reportsvc apps list` shows them",
    ("delete", "news"): "there is no app 'news'; `reportsvc apps list` shows them",
}


async def test_refusals_say_what_to_do(config: Config) -> None:
    """What cannot be done ends with status 1 and advice, and changes nothing."""
    shop = await create(config.redis_url, "shop")

    done = await asyncio.gather(*(reportsvc("apps", *arguments, redis_url=config.redis_url) for arguments in REFUSALS))

    assert dict(zip(REFUSALS, done, strict=True)) == {
        arguments: Done(1, "", f"reportsvc: {advice}\n") for arguments, advice in REFUSALS.items()}
    listed = await reportsvc("apps", "list", "--json", redis_url=config.redis_url)
    assert [app["app_key"] for app in listed.json] == [shop["app_key"]]


async def test_app_of_a_running_service_is_usable_at_once(config: Config, running_service: Running) -> None:
    """The service accepts the credentials of an app that was made a moment ago, on every dialect."""
    credentials = await create(config.redis_url, "shop")

    async def asked(path: str, **options: Any) -> int:
        return (await running_service.call("GET", path, **options)).status

    assert await asked("/v3/received?msg_ids=1", headers=authorization(credentials)) == 200
    # Unknown push, known key.
    assert await asked(f"/pushes/1?api_key={credentials['pushy_api_key']}") == 400
    answer = await running_service.call(
        "POST", f"/reporting_api/v2/instances/{credentials['beams_instance_id']}/events", json={
            "event": "open", "publishId": "1", "deviceId": "fcm-1", "timestampSecs": int(running_service.clock())})
    assert answer.status == 200


async def test_deleted_app_leaves_nothing(config: Config, running_service: Running) -> None:
    """A deleted app is refused, everything counted for it goes from both stores, and no other app loses anything."""
    gone, kept = [await create(config.redis_url, name) for name in ("gone", "kept")]
    headers = {app["name"]: authorization(app) for app in (gone, kept)}
    for app in ("gone", "kept"):
        for path, body in (
                ("/v1/devices", [{"device_id": "d1", "platform": "android", "user_id": "alice"}]),
                ("/v1/pushes", {"msg_id": "1", "audience": "all"}),
                ("/v1/events", [{"msg_id": "1", "stage": "received", "device_id": "d2", "platform": "android"}])):
            answer = await running_service.call("POST", path, headers=headers[app], json=body)
            assert answer.status in (200, 201)
    await running_service.applied()
    service = running_service.service
    ids = {app.name: app.id for app in await stored_apps(running_service)}
    assert (await rows_of(running_service, ids["gone"]), await keys_of(running_service, ids["gone"])) != (0, [])

    done = await reportsvc("apps", "delete", "gone", redis_url=config.redis_url)

    assert (done.status, done.output) == (0, "deleted gone; what was counted for it goes as soon as the service runs\n")

    async def is_refused() -> bool:
        answer = await running_service.call("GET", "/v3/received?msg_ids=1", headers=headers["gone"])
        return answer.status == 401
    await eventually(is_refused)
    await running_service.applied()
    assert await rows_of(running_service, ids["gone"]) == 0
    assert await keys_of(running_service, ids["gone"]) == []
    assert await service.redis.call("HEXISTS", apps_key(), ids["gone"]) == 0
    answer = await running_service.call("GET", "/v3/received?msg_ids=1", headers=headers["kept"])
    assert answer.json[0]["android_received"] == 1
    assert len(await keys_of(running_service, ids["kept"])) > 0


async def stored_apps(service: Running) -> list[App]:
    """The apps as they are stored."""
    return await AppStore(service.service.redis).all()


async def rows_of(service: Running, app_id: int) -> int:
    """How many rows ClickHouse has of an app, in every table that has an ``app``, but for the mark that it is gone."""
    clickhouse = service.service.clickhouse
    tables = await clickhouse.query(
        "SELECT table FROM system.columns WHERE database = currentDatabase() AND name = 'app' "
        "AND table NOT IN ('apps', 'ingest') AND table NOT LIKE '%_to_%'", {}, label="test")
    assert len(tables) > 4
    counts = [await clickhouse.query(f"SELECT count() FROM {table} WHERE app = {{app:UInt32}}", {"app": app_id},
                                     label="test") for table, in tables]
    return sum(count[0][0] for count in counts)


async def keys_of(service: Running, app_id: int) -> list[bytes]:
    """The keys that Redis has of an app."""
    return await service.service.redis.scan(app_keys_pattern(app_id))


async def test_apps_without_a_service(short_dir: Path) -> None:
    """Apps can be made, listed and deleted before any service has run on a data directory."""
    settings = {"data_dir": short_dir / "data"}
    assert (await reportsvc("apps", "list", "--json", **settings)).json == []
    made = await reportsvc("apps", "create", "shop", "--json", **settings)

    listed = await reportsvc("apps", "list", "--json", **settings)
    deleted = await reportsvc("apps", "delete", "shop", **settings)

    assert [app["app_key"] for app in listed.json] == [made.json["app_key"]]
    assert deleted.status == 0
    assert (await reportsvc("apps", "list", **settings)).output == ""
    # The redis-server that the commands started is gone with them, and what they wrote is on the disk.
    assert not (short_dir / "data/redis/redis.sock").exists()
    async with redis_for_command(Config(data_dir=short_dir / "data")) as url:
        redis = Redis(url)
        assert await redis.call("HGET", apps_key(), "v") == b"2"
        await redis.close()
