"""The command line: ``reportsvc serve``, ``migrate``, ``apps``, ``ledger`` and ``deadletters``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from reportsvc import __version__
from reportsvc.commands import arguments as more_commands
from reportsvc.commands.stores import create_app, record_app, redis_of
from reportsvc.config import MAX_RATE_LIMIT, MAX_WORKERS, Config, Role
from reportsvc.errors import BadConfig, DataLost, ReportError, StoreUnavailable
from reportsvc.model import App
from reportsvc.pipeline import ledger, records
from reportsvc.pipeline.deadletter import DeadLetters
from reportsvc.pipeline.journal import append
from reportsvc.registry import vapid
from reportsvc.registry.apps import AppStore, Credentials
from reportsvc.storage.embedded import DataDirLock
from reportsvc.storage.redis import Redis

# What serves or migrates is imported where it is used: the other commands start in half the time without it.
if TYPE_CHECKING:
    from reportsvc.app import Service
    from reportsvc.storage.schema import Migration

log = logging.getLogger("reportsvc")

#: Made on a first start, so that the first curl line works.
DEFAULT_APP: Final = "default"
#: Seconds that the keys of before a rotation go on working: a day to roll the new ones out.
DEFAULT_OVERLAP: Final = 86_400
MAX_OVERLAP: Final = 365 * 86_400

Command = Callable[[argparse.Namespace, Config], Awaitable[None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 with advice on standard error when it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        config = Config.from_env(os.environ)
        asyncio.run(options.run(options, config))
    except ReportError as error:
        print(f"reportsvc: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"reportsvc: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reportsvc", description="Exact push-delivery statistics.")
    parser.add_argument("--version", action="version", version=f"reportsvc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service")
    serve.add_argument("--role", choices=[role.value for role in Role], default=Role.ALL.value,
                       help="what this process does: api answers calls, aggregator applies the journal, all does both")
    serve.add_argument("--workers", type=_workers, metavar="N", default=1, help="processes behind the one port (1)")
    serve.set_defaults(run=_serve)

    migrate = commands.add_parser("migrate", help="bring the ClickHouse schema up to date, or back")
    migrate.add_argument("--dry-run", action="store_true", help="show the statements and run none")
    migrate.add_argument("--down", type=_steps, metavar="N", default=0, help="undo the newest N migrations")
    migrate.set_defaults(run=_migrate)

    rebuild = commands.add_parser("rebuild", help="restore a Redis that has lost its data, from ClickHouse")
    rebuild.add_argument("--force", action="store_true", help="first remove what Redis has left, all but the journal")
    rebuild.set_defaults(run=_rebuild)

    _add_apps(commands)

    count = commands.add_parser("ledger", help="show how many events were received, accepted, applied, rejected, dead")
    count.add_argument("--json", action="store_true", help="print one JSON object")
    count.set_defaults(run=_ledger)

    letters = commands.add_parser("deadletters", help="entries that could not be applied")
    actions = letters.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="show them with their reasons")
    show.add_argument("--limit", type=int, default=100, help="how many of each partition (100)")
    show.add_argument("--json", action="store_true", help="print one JSON object a line, with the whole record")
    show.set_defaults(run=_list_dead_letters)
    replay = actions.add_parser("replay", help="send them back to be applied")
    replay.add_argument("ids", nargs="*", metavar="ID", help="as listed; all of them if none is named")
    replay.set_defaults(run=_replay_dead_letters)
    more_commands.add(commands)
    return parser


def _workers(text: str) -> int:
    number = _whole(text, MAX_WORKERS)
    if not number:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_WORKERS}, not {text!r}")
    return number


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r}")
    return int(text)


def _add_apps(commands: Any) -> None:
    apps = commands.add_parser("apps", help="make, list, change and delete apps (tenants)")
    actions = apps.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make an app and print its credentials, once")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--timezone", default="UTC", help="IANA name; days and hours of its reports (UTC)")
    create.add_argument("--no-vip", dest="vip", action="store_false", help="refuse /v3/messages and /v3/users")
    create.add_argument("--rate-limit", type=_rate_limit, metavar="N", help="calls to /v3 a minute; 0 is no limit")
    create.add_argument("--json", action="store_true", help="print one JSON object")
    create.set_defaults(run=_create_app)
    listing = actions.add_parser("list", help="show every app")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.set_defaults(run=_list_apps)
    for name, run, text in (("show", _show_app, "show an app, without its secrets"),
                            ("delete", _delete_app, "delete an app and everything counted for it")):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME", help="its name or its app_key")
        if name == "show":
            action.add_argument("--json", action="store_true", help="print one JSON object")
        action.set_defaults(run=run)
    pair = actions.add_parser("vapid", help="print the key pair with which to send to browsers")
    pair.add_argument("name", metavar="NAME", help="its name or its app_key")
    pair.add_argument("--json", action="store_true", help="print one JSON object")
    pair.set_defaults(run=_show_vapid)
    rotate = actions.add_parser("rotate", help="give an app new keys and print them, once")
    rotate.add_argument("name", metavar="NAME", help="its name or its app_key")
    rotate.add_argument("--overlap", type=_overlap, default=DEFAULT_OVERLAP, metavar="SECONDS",
                        help=f"how long the keys of before still work ({DEFAULT_OVERLAP}); 0 after a leak")
    rotate.add_argument("--json", action="store_true", help="print one JSON object")
    rotate.set_defaults(run=_rotate_app)
    change = actions.add_parser("set", help="change a setting of an app")
    change.add_argument("name", metavar="NAME", help="its name or its app_key")
    change.add_argument("--rate-limit", type=_rate_limit_or_default, metavar="N", required=True,
                        help="calls to /v3 a minute; 0 is no limit, `default` what REPORTSVC_RATE_LIMIT says")
    change.add_argument("--json", action="store_true", help="print one JSON object")
    change.set_defaults(run=_set_app)


def _whole(text: str, highest: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:18]) > highest or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 to {highest}")
    return int(text)


def _rate_limit(text: str) -> int:
    return _whole(text, MAX_RATE_LIMIT)


def _rate_limit_or_default(text: str) -> int | None:
    return None if text == "default" else _rate_limit(text)


def _overlap(text: str) -> int:
    return _whole(text, MAX_OVERLAP)


# ---------------------------------------------------------------------------------------------------------------- serve
async def _serve(options: argparse.Namespace, config: Config) -> None:
    from reportsvc import logs
    from reportsvc.app import SERVICE, make_app
    from reportsvc.server import serve
    from reportsvc.workers import Supervisor, Worker, check

    logs.configure(config.log_level)
    role = Role(options.role)
    check(config, role, options.workers)
    if options.workers > 1:
        await Supervisor(config, role, options.workers).run()
        return
    worker = Worker.from_env(os.environ)
    app = (make_app(config, role=role, worker=worker.number, figures=Path(worker.figures)) if worker
           else make_app(config, role=role))

    async def greet(url: str) -> None:
        service = app[SERVICE]
        credentials = await _first_app(service) if role.serves else None
        if credentials is not None:
            await service.apps.refresh()
        print(_greeting(url, credentials), flush=True)
        log.info("ready on %s", url)

    # Stores elsewhere leave nothing in the directory to keep others from.
    with nullcontext() if config.is_shareable else DataDirLock(config.data_dir):
        await (worker.serve(app, config, greet) if worker else serve(app, config, greet))
    log.info("stopped")


async def _first_app(service: Service) -> Credentials | None:
    """The app of a first start; None if there ever was one."""
    if await AppStore(service.redis).version():
        return None
    if not service.is_complete:
        raise StoreUnavailable("clickhouse", "and Redis is empty, so nobody can tell whether this is a first start or "
                                             "Redis has lost everything; start ClickHouse first")
    try:
        return await create_app(service.redis, DEFAULT_APP)
    except BadConfig:  # another process was first
        return None


def _greeting(url: str, credentials: Credentials | None) -> str:
    if credentials is None:
        return f"reportsvc is ready on {url}"
    app = credentials.app
    basic = shlex.quote(f"{app.app_key}:{credentials.master_secret}")
    lines = "\n".join(f"  {name:18} {value}" for name, value in credentials.document().items())
    return f"""reportsvc is ready on {url}

A first app was made. Keep its credentials; they are not shown again:
{lines}

Paste these: two devices, a push to them, one receipt, and the reports.

curl -u {basic} {url}/v1/devices -d '[{{"device_id":"1507bfd3a7c568d4761","platform":"android"}},\
{{"device_id":"02078f0f1b8","platform":"android"}}]'
curl -u {basic} {url}/v1/pushes -d '{{"msg_id":"1613113584","payload":{{"message":"Hello World!"}},"audience":"all"}}'
curl -u {basic} {url}/v1/events -d '{{"msg_id":"1613113584","stage":"received",\
"device_id":"1507bfd3a7c568d4761"}}'
sleep 1
curl -u {basic} '{url}/v3/received?msg_ids=1613113584'
curl -u {basic} {url}/v3/status/message -d '{{"msg_id":1613113584,\
"registration_ids":["1507bfd3a7c568d4761","02078f0f1b8","0207870a9b8"]}}'
curl -u {basic} '{url}/v3/messages?msg_ids=1613113584'
curl -u {basic} "{url}/v3/users?time_unit=DAY&start=$(date -u +%F)&duration=1"
curl '{url}/pushes/1613113584?api_key={credentials.pushy_api_key}'
curl {url}/reporting_api/v2/instances/{app.beams_instance_id}/events -H 'Content-Type: application/json' \
-d '{{"event":"delivery","publishId":"1613113584","deviceId":"fcm-0001","timestampSecs":'$(date +%s)'}}'
"""


# -------------------------------------------------------------------------------------------------------------- migrate
async def _migrate(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.storage.clickhouse import ClickHouse
    from reportsvc.storage.schema import Schema

    if not config.clickhouse_url and DataDirLock.is_held(config.data_dir):
        raise BadConfig("the service is running on this data directory and has applied every migration; "
                        "stop it to migrate by hand")
    config.data_dir.mkdir(parents=True, exist_ok=True)
    clickhouse = ClickHouse(config.clickhouse_url, config.data_dir / "clickhouse", cluster=config.clickhouse_cluster,
                            disk_reserve=config.disk_reserve)
    try:
        schema = Schema(clickhouse)
        if options.dry_run:
            chosen = await (schema.reversible(options.down) if options.down else schema.pending())
            print("\n".join(_describe(migration, options.down > 0) for migration in chosen) or "nothing to do")
        else:
            done = await (schema.down(options.down) if options.down else schema.up())
            print("\n".join(f"{'undid' if options.down else 'applied'} {one.number:04} {one.name}" for one in done)
                  or "nothing to do")
    finally:
        await clickhouse.close()


def _describe(migration: Migration, down: bool) -> str:
    statements = migration.down if down else migration.up
    return "\n\n".join([f"-- {migration.number:04} {migration.name}", *(f"{one};" for one in statements)])


# -------------------------------------------------------------------------------------------------------------- rebuild
async def _rebuild(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.pipeline.rebuild import Rebuild
    from reportsvc.storage.clickhouse import ClickHouse
    from reportsvc.storage.schema import Schema

    with DataDirLock(config.data_dir):
        async with redis_of(config) as redis:
            clickhouse = ClickHouse(config.clickhouse_url, config.data_dir / "clickhouse",
                                    cluster=config.clickhouse_cluster, disk_reserve=config.disk_reserve)
            try:
                await Schema(clickhouse).up()
                counts = await Rebuild(redis, clickhouse, lambda line: print(line, flush=True)).run(force=options.force)
            finally:
                await clickhouse.close()
    print("restored " + ", ".join(f"{count} {name}" for name, count in counts.items()))


# ----------------------------------------------------------------------------------------------------------------- apps
async def _refuse_if_lost(config: Config) -> None:
    """Redis has no app: it must not have lost them, or a new one would take the place of an old one."""
    from reportsvc.storage.clickhouse import ClickHouse
    from reportsvc.storage.queries import Queries
    from reportsvc.storage.schema import Schema

    directory = config.data_dir / "clickhouse"
    if not config.clickhouse_url and (DataDirLock.is_held(config.data_dir) or not directory.exists()):
        return
    clickhouse = ClickHouse(config.clickhouse_url, directory, cluster=config.clickhouse_cluster)
    try:
        if await Schema(clickhouse).applied() and await Queries(clickhouse).apps_version():
            raise DataLost("redis", "apps that it had")
    finally:
        await clickhouse.close()


async def _create_app(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        if not await AppStore(redis).version():
            await _refuse_if_lost(config)
        credentials = await create_app(redis, options.name, options.timezone, options.vip, options.rate_limit)
    _print(credentials.document(), as_json=options.json)


async def _list_apps(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        store = AppStore(redis)
        apps = [(app, await store.last_uses(app)) for app in await store.all()]
    if options.json:
        print(orjson.dumps([_public(app, uses) for app, uses in apps]).decode())
        return
    for app, uses in apps:
        limit = "" if app.rate_limit is None else f"  limit {app.rate_limit}"
        used = f"  last used {_time(max(uses.values()))}" if uses else ""
        print(f"{app.name:24} {app.app_key}  {app.timezone}{'' if app.vip else '  no vip'}{limit}{used}")


async def _show_app(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        app = await _find_app(redis, options.name)
        uses = await AppStore(redis).last_uses(app)
    _print(_public(app, uses), as_json=options.json)


async def _show_vapid(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        app = await _find_app(redis, options.name)
    if not app.vapid_private_key:
        raise BadConfig(f"{app.name} was made before browsers could register; make a new app for them")
    _print({"vapid_public_key": vapid.public_key(app.vapid_private_key),
            "vapid_private_key": vapid.shareable(app.vapid_private_key)}, as_json=options.json)


async def _rotate_app(options: argparse.Namespace, config: Config) -> None:
    now = int(time.time())
    async with redis_of(config) as redis:
        app = await _find_app(redis, options.name)
        credentials, version = await AppStore(redis).rotate(app, options.overlap, now)
        await record_app(redis, credentials.app, version)
    _print(credentials.document() | {"former_keys_until": _time(now + options.overlap)}, as_json=options.json)


async def _set_app(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        app, version = await AppStore(redis).set_rate_limit(
            await _find_app(redis, options.name), options.rate_limit)
        await record_app(redis, app, version)
    _print(_public(app, {}), as_json=options.json)


async def _delete_app(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        app = await _find_app(redis, options.name)
        version = await AppStore(redis).delete(app)
        if version is not None:
            await redis.run([append(0, [(1, records.app_deletion(app.id, version))])])
    print(f"deleted {app.name}; what was counted for it goes as soon as the service runs")


async def _find_app(redis: Redis, name: str) -> App:
    for app in await AppStore(redis).all():
        if name in (app.name, app.app_key):
            return app
    raise BadConfig(f"there is no app {name!r}; `reportsvc apps list` shows them")


def _public(app: App, uses: Mapping[str, int]) -> dict[str, Any]:
    """An app without its secrets; what is not set, or was never used, is left out."""
    document: dict[str, Any] = {
        "name": app.name, "app_key": app.app_key, "beams_instance_id": app.beams_instance_id,
        "timezone": app.timezone, "vip": app.vip}
    if app.rate_limit is not None:
        document["rate_limit"] = app.rate_limit
    if app.former_keys:
        document["former_keys_until"] = _time(max(keys.until for keys in app.former_keys))
    if uses:
        document["last_use"] = {name: _time(used) for name, used in uses.items()}
    return document


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(document).decode())
        return
    for name, value in document.items():
        if isinstance(value, dict):
            _print({f"{name}.{part}": one for part, one in value.items()}, as_json=False)
        else:
            print(f"{name:18} {value}")


# ------------------------------------------------------------------------------------------------- ledger, dead letters
async def _ledger(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        _print(await ledger.read(redis, config.partitions), as_json=options.json)


async def _list_dead_letters(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        letters = await DeadLetters(redis, config.partitions).list(options.limit)
    for letter in letters:
        if options.json:
            document = asdict(letter) | {"record": letter.record.decode("utf-8", "replace")}
            print(orjson.dumps(document).decode())
        else:
            print(f"{letter.partition}/{letter.id}  {letter.events} events  {letter.reason}  {letter.detail}")


async def _replay_dead_letters(options: argparse.Namespace, config: Config) -> None:
    async with redis_of(config) as redis:
        store = DeadLetters(redis, config.partitions)
        letters = [letter for letter in await store.list(limit=10_000)
                   if not options.ids or f"{letter.partition}/{letter.id}" in options.ids or letter.id in options.ids]
        print(f"sent {await store.replay(letters)} events of {len(letters)} entries back")


if __name__ == "__main__":
    sys.exit(main())
