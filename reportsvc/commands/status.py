"""``reportsvc status``: how the service and its stores are, on one screen, and what is wrong, in words.

Everything is asked of the stores themselves, with a time limit each, so that it is told also while the service is not
well. An embedded ClickHouse belongs to the process that opened it; while that runs, nobody else can ask it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

from reportsvc import __version__, metrics
from reportsvc.commands.stores import redis_of
from reportsvc.config import Config
from reportsvc.errors import ReportError, StoreUnavailable
from reportsvc.model import App
from reportsvc.pipeline import ledger
from reportsvc.pipeline.figures import StoreFigures
from reportsvc.pipeline.presence import processes
from reportsvc.registry.apps import AppStore
from reportsvc.registry.devices import DeviceRegistry, Floors
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.embedded import DataDirLock
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Redis
from reportsvc.storage.schema import Schema

T = TypeVar("T")
Document = dict[str, Any]

#: For everything that is asked of one store.
_STORE_SECONDS: Final = 15.0
_SERVICE_SECONDS: Final = 5.0
#: Of what a driver says.
_PROBLEM_CHARACTERS: Final = 200
#: An event is in every report within a second; one that waits for so long shows that something is wrong.
_LAG_SECONDS: Final = 10.0
#: Of the journal's bound: ingest stops at all of it.
_FULL: Final = 0.8
_HELD: Final = "held by the running service"
#: What Redis tells of itself, by the section it is in.
_REDIS_INFO: Final = ("redis_version", "tcp_port", "used_memory", "maxmemory", "maxmemory_policy", "aof_enabled",
                      "aof_last_write_status", "loading", "uptime_in_seconds")


async def run(options: argparse.Namespace, config: Config) -> None:
    """Print it; the exit status is 1 if something is wrong."""
    # What is wrong is said here; the driver would say it once more, on its own.
    logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())
    problems: list[str] = []
    document: Document = {"version": __version__, "data_dir": str(config.data_dir)}
    document["service"] = await _service(config)
    document |= await _from_redis(config, problems)
    document["clickhouse"] = await _from_clickhouse(config, document.get("apps", []), problems)
    _judge(document, config, problems)
    document["problems"] = problems
    print(orjson.dumps(document).decode() if options.json else _screen(document))
    if problems:
        raise SystemExit(1)


# --------------------------------------------------------------------------------------------------------- the service
async def _service(config: Config) -> Document:
    """Whether this machine's port answers, and what it says of its stores."""
    if not config.port:
        return {"url": None, "answers": False}
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    url = f"http://{host}:{config.port}"
    try:
        async with ClientSession(timeout=ClientTimeout(total=_SERVICE_SECONDS)) as session:
            async with session.get(f"{url}/readyz") as response:
                body = orjson.loads(await response.read())
    except (ClientError, OSError, TimeoutError, ValueError):
        return {"url": url, "answers": False}
    return {"url": url, "answers": isinstance(body, dict) and "stores" in body,
            "stores": body.get("stores", {}) if isinstance(body, dict) else {}}


# -------------------------------------------------------------------------------------------------------------- stores
async def _from_redis(config: Config, problems: list[str]) -> Document:
    """All that Redis knows; without it, a problem."""
    try:
        async with redis_of(config) as redis:
            return await _limited(_ask_redis(redis, config), "redis")
    except ReportError as error:
        problems.append(_shortened(f"Redis: {error}"))
        return {"redis": {"answers": False}}


async def _ask_redis(redis: Redis, config: Config) -> Document:
    servers = [_server(info) for info in await redis.about()]
    at_work = await processes(redis)

    async def silent() -> None:
        """ClickHouse is asked elsewhere."""
    shared = await StoreFigures(redis, config.partitions, config.journal_max_bytes, silent).read()

    def total(metric: metrics.Metric, over: Any = sum) -> Any:
        return over([value for _, value in shared.values.get(metric, [])] or [0])
    registry = DeviceRegistry(redis, Floors(None))
    apps = [_app(app) | {"devices": (await registry.extent(app.id)).alive} for app in await AppStore(redis).all()]
    return {
        "redis": {"answers": True, "servers": servers},
        "processes": [asdict(process) for process in at_work],
        "ledger": await ledger.read(redis, config.partitions),
        "journal": {
            "partitions": config.partitions, "entries": int(total(metrics.JOURNAL_ENTRIES)),
            "being_applied": int(total(metrics.JOURNAL_PENDING)), "bytes": int(total(metrics.JOURNAL_BYTES)),
            "max_bytes": config.journal_max_bytes, "oldest_seconds": round(total(metrics.JOURNAL_OLDEST, max), 3),
            "aggregators": int(total(metrics.AGGREGATORS, max)), "dead_letters": int(total(metrics.DEAD_LETTERS))},
        "apps": apps,
    }


def _server(info: Mapping[str, Any]) -> Document:
    keys = sum(value["keys"] for name, value in info.items() if name.startswith("db") and isinstance(value, dict))
    return {name: info.get(name) for name in _REDIS_INFO} | {"keys": keys}


def _app(app: App) -> Document:
    return {"id": app.id, "name": app.name, "app_key": app.app_key, "timezone": app.timezone}


async def _from_clickhouse(config: Config, apps: list[Document], problems: list[str]) -> Document:
    """All that ClickHouse knows; without it, a problem, unless the service has it."""
    directory = config.data_dir / "clickhouse"
    if not config.clickhouse_url:
        if DataDirLock.is_held(config.data_dir):
            return {"answers": None, "state": _HELD}
        if not directory.exists():
            return {"answers": None, "state": "not there yet"}
    clickhouse = ClickHouse(config.clickhouse_url, directory, cluster=config.clickhouse_cluster)
    try:
        return await _limited(_ask_clickhouse(clickhouse, apps), "clickhouse")
    except ReportError as error:
        problems.append(_shortened(f"ClickHouse: {error}"))
        return {"answers": False}
    finally:
        await clickhouse.close()


async def _ask_clickhouse(clickhouse: ClickHouse, apps: list[Document]) -> Document:
    queries = Queries(clickhouse)
    pending = [migration.number for migration in await Schema(clickhouse).pending()]
    found: Document = {"answers": True, "version": await queries.version(), "pending_migrations": pending,
                       "tables": [asdict(table) for table in await queries.sizes()]}
    if not pending:
        counts = await queries.count_messages()
        for app in apps:
            app["messages"] = counts.get(app["id"], 0)
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= _PROBLEM_CHARACTERS else text[:_PROBLEM_CHARACTERS] + "…"


async def _limited(call: Awaitable[T], store: str) -> T:
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            return await call
    except TimeoutError as error:
        raise StoreUnavailable(store, f"no answer within {_STORE_SECONDS:.0f} s") from error


# ------------------------------------------------------------------------------------------------------- what is wrong
def _judge(document: Mapping[str, Any], config: Config, problems: list[str]) -> None:
    """Add what somebody should look at."""
    service = document["service"]
    if service["answers"]:
        problems += [f"the service at {service['url']} says: {name}: {state}"
                     for name, state in service["stores"].items() if state != "ok"]
    elif not document.get("processes"):
        problems.append(f"no process of the service is at work; nothing answers at {service['url']}"
                        if service["url"] else "no process of the service is at work")
    if document["redis"]["answers"]:
        servers = document["redis"]["servers"]
        for server in servers:
            name = f"Redis on port {server['tcp_port']}" if len(servers) > 1 else "Redis"
            problems += [f"{name} {wrong}" for wrong in _wrong_with_redis(server)]
        problems += wrong_with_journal(document["journal"], service["answers"] or bool(document["processes"]))
    pending = document["clickhouse"].get("pending_migrations")
    if pending:
        problems.append(f"ClickHouse lacks migrations {', '.join(f'{number:04}' for number in pending)}; "
                        "`serve` and `reportsvc migrate` apply them")


def _wrong_with_redis(redis: Mapping[str, Any]) -> list[str]:
    wrong = []
    if redis["loading"]:
        wrong.append("is reading its data from disk")
    if redis["aof_enabled"] == 0:
        wrong.append("keeps no append-only file: what it accepts is lost when it stops; set appendonly yes")
    if redis["aof_last_write_status"] not in (None, "ok"):
        wrong.append("could not write its append-only file; is the disk full?")
    if redis["maxmemory_policy"] not in (None, "noeviction"):
        wrong.append(f"throws keys away when its memory is full ({redis['maxmemory_policy']}); set "
                     "maxmemory-policy noeviction")
    if redis["maxmemory"] and redis["used_memory"] > _FULL * redis["maxmemory"]:
        wrong.append(f"has used {_percent(redis['used_memory'], redis['maxmemory'])} of its maxmemory")
    return wrong


def wrong_with_journal(journal: Mapping[str, Any], is_running: bool) -> list[str]:
    """What is wrong with the journal; *is_running*: whether any process of the service is."""
    wrong = []
    if journal["oldest_seconds"] > _LAG_SECONDS:
        who = ("no aggregator is at work" if not journal["aggregators"] else
               "the aggregator does not keep up, or a store is away")
        wrong.append(f"events have waited to be counted for {_duration(journal['oldest_seconds'])}: {who}")
    elif journal["entries"] and not is_running:
        wrong.append(f"{journal['entries']:,} entries of the journal wait to be counted")
    if journal["bytes"] > _FULL * journal["max_bytes"]:
        wrong.append(f"the journal is {_percent(journal['bytes'], journal['max_bytes'])} full; at 100 % events are "
                     "answered 503")
    if journal["dead_letters"]:
        wrong.append(f"{journal['dead_letters']:,} entries could not be applied; `reportsvc deadletters list` shows "
                     "them")
    return wrong


# ---------------------------------------------------------------------------------------------------------- the screen
def _screen(document: Mapping[str, Any]) -> str:
    lines = [("reportsvc", f"{document['version']}, data in {document['data_dir']}"), *_service_lines(document)]
    if document["redis"]["answers"]:
        lines += _redis_lines(document)
    lines += _clickhouse_lines(document["clickhouse"])
    lines += _app_lines(document.get("apps", []))
    problems = [f"! {problem}" for problem in document["problems"]] or ["All is well."]
    return "\n".join([*(f"{name:12}{text}".rstrip() for name, text in lines), "", *problems])


def _service_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    service = document["service"]
    lines = [("service", f"{service['url']} {'answers' if service['answers'] else 'does not answer'}"
              if service["url"] else "on any free port")]
    return lines + [("process", f"{one['name']} {one['role']}, for {_duration(time.time() - one['since'])}")
                    for one in document.get("processes", [])]


def _redis_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, journal = document["ledger"], document["journal"]
    rejected = sum(count for name, count in counts.items() if name.startswith("rejected_"))
    return [
        ("ledger", f"{counts['received']:,} received, {counts['accepted']:,} accepted, {counts['applied']:,} applied, "
                   f"{rejected:,} rejected, {counts['dead']:,} dead, {counts.get('skewed', 0):,} skewed"),
        ("journal", f"{journal['entries']:,} entries, {_size(journal['bytes'])} of {_size(journal['max_bytes'])}, "
                    f"oldest {_duration(journal['oldest_seconds'])}, {journal['being_applied']:,} being applied, "
                    f"{journal['aggregators']} at work on it"),
        ("dead", f"{journal['dead_letters']:,} entries"),
        *(("redis", _server_line(server)) for server in document["redis"]["servers"])]


def _server_line(redis: Mapping[str, Any]) -> str:
    port = f", port {redis['tcp_port']}" if redis["tcp_port"] else ""
    limit = f" of {_size(redis['maxmemory'])}" if redis["maxmemory"] else ""
    log = "on" if redis["aof_enabled"] else "off"
    return (f"{redis['redis_version']}{port}, {_size(redis['used_memory'])}{limit}, {redis['keys']:,} keys, "
            f"append-only file {log}, up {_duration(redis['uptime_in_seconds'])}")


def _clickhouse_lines(clickhouse: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not clickhouse["answers"]:
        return [("clickhouse", clickhouse.get("state", "does not answer"))]
    tables = clickhouse["tables"]
    total = f"{_size(sum(table['bytes'] for table in tables))} in {sum(table['parts'] for table in tables):,} parts"
    return [("clickhouse", f"{clickhouse['version']}, {total}"),
            *(("", f"{table['name']:20}{table['rows']:>14,} rows {_size(table['bytes']):>10} {table['parts']:>5} parts")
              for table in tables)]


def _app_lines(apps: list[Document]) -> list[tuple[str, str]]:
    return [("app", f"{app['name']}: {app['devices']:,} devices"
             + (f", {app['messages']:,} messages" if "messages" in app else "") + f", {app['timezone']}")
            for app in apps]


def _size(count: float) -> str:
    if count < 1024:
        return f"{count:,.0f} B"
    for unit in "KiB MiB GiB".split():
        count /= 1024
        if count < 1024:
            return f"{count:,.1f} {unit}"
    return f"{count / 1024:,.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds // 86400:.0f} days"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"
