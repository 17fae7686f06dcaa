"""The composition root: the only module that knows all others.

Resources open in one order and close in the reverse: stores, then pipeline, then traffic. Stopping therefore first
refuses new requests, then writes and applies what was accepted, and only then lets the stores go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from reportsvc import __version__
from reportsvc.api import (auth, beams_device, dashboard, events, express, jpush, limits, native, native_reads,
                           operations, pushy)
from reportsvc.api.common import MAX_BODY_BYTES, METRICS, failures, rewrite_paths
from reportsvc.api.openapi import handlers as openapi
from reportsvc.api.openapi.document import Documentation
from reportsvc.api.routes import OPERATIONS, ROUTES, dialect_of
from reportsvc.config import Config, Role
from reportsvc.errors import DataLost, StoreUnavailable
from reportsvc.metrics import Exposition, Identity, Metrics, Peers
from reportsvc.pipeline.aggregator import Aggregator
from reportsvc.pipeline.apply import Applier
from reportsvc.pipeline.figures import StoreFigures
from reportsvc.pipeline.journal import Journal
from reportsvc.pipeline.ledger import Ledger
from reportsvc.pipeline.presence import Presence
from reportsvc.pipeline.registration import Registrar
from reportsvc.pipeline.sweep import Sweep
from reportsvc.registry.apps import AppDirectory, AppStore
from reportsvc.registry.devices import DeviceRegistry, Floors
from reportsvc.registry.pushes import PushRegistry
from reportsvc.registry.ratelimit import RateLimiter
from reportsvc.reports.delivery import DeliveryReport
from reportsvc.reports.fresh import FreshAnswers
from reportsvc.reports.messages import MessagesReport
from reportsvc.reports.status import StatusReport
from reportsvc.reports.timeline import TimelineReport
from reportsvc.reports.users import UsersReport
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.device_set import small_chunk_limit
from reportsvc.storage.embedded import EmbeddedRedis, redis_directory
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Redis
from reportsvc.storage.schema import Schema

log = logging.getLogger(__name__)

Clock = Callable[[], float]

#: Between attempts to reach a ClickHouse server that was away when the service started.
_SCHEMA_RETRY_SECONDS: Final = 2.0
#: The one process on embedded stores keeps its name, so that after a restart it finds its own unfinished entries.
_ONLY_CONSUMER: Final = "embedded"


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service that its owner (or a test) may want to hold."""

    config: Config
    redis: Redis
    clickhouse: ClickHouse
    queries: Queries
    apps: AppDirectory
    floors: Floors
    journal: Journal
    ledger: Ledger
    registrar: Registrar
    aggregators: list[Aggregator]
    sweep: Sweep
    #: Whether Redis was seen to have all that ClickHouse has; False if ClickHouse was away at the start.
    is_complete: bool


SERVICE: Final = web.AppKey("service", Service)


def make_app(config: Config, *, clock: Clock = time.time, database: str = "",
             role: Role = Role.ALL, worker: int = 0, figures: Path | None = None) -> web.Application:
    """The whole service, or the part of it that *role* says; it opens its stores when the application starts.

    *database* overrides the ClickHouse database's name. *figures* is where the workers of one parent leave theirs for
    each other, and *worker* the number of this one.
    """
    metrics, identity = Metrics(), Identity(__version__, role, worker)
    decorate = limits.tell_strays if role.serves else None
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[
        failures(dialect_of, decorate, operations.observer(metrics)), rewrite_paths])
    app[METRICS], app[operations.TOKEN] = metrics, config.metrics_token
    app.add_routes(ROUTES if role.serves else OPERATIONS)
    app[events.CLOCK] = clock

    async def run(app: web.Application) -> AsyncIterator[None]:
        peers = None if figures is None else Peers(figures, metrics, identity)
        async with _Opened(config, clock, database, role, metrics, peers) as service:
            _provide_operations(app, service)
            app[operations.EXPOSITION] = Exposition(metrics, identity, peers, StoreFigures(
                service.redis, config.partitions, config.journal_max_bytes, service.queries.ping).read)
            if role.serves:
                _provide(app, service, clock)
            yield

    app.cleanup_ctx.append(run)
    return app


def _provide_operations(app: web.Application, service: Service) -> None:
    """The same for the handlers that every role has."""
    app[SERVICE] = service
    app[operations.CHECKS] = {
        "redis": service.apps.refresh,
        "clickhouse": service.queries.ping,
    }


def _provide(app: web.Application, service: Service, clock: Clock) -> None:
    """Hand the parts to the handlers of the dialects."""
    app[auth.APPS] = service.apps
    config = service.config
    app[limits.LIMITS] = limits.Limits(
        RateLimiter(service.redis), config.rate_limit, config.rate_limit_native, config.rate_limit_pushy)
    app[events.JOURNAL] = service.journal
    app[events.LEDGER] = service.ledger
    app[express.EXPRESS] = express.Express(service.apps, service.journal, service.ledger, clock, app[METRICS])
    app[jpush.DELIVERY] = DeliveryReport(service.queries, clock, app[METRICS])
    app[jpush.STATUS] = StatusReport(service.redis, service.queries, clock, service.floors)
    app[jpush.FRESH] = FreshAnswers(service.redis, clock)
    app[jpush.USERS] = UsersReport(service.queries, clock)
    app[native.REGISTRAR] = service.registrar
    app[dashboard.ASSETS] = dashboard.Assets()
    app[beams_device.PROFILES] = service.registrar.profiles
    app[pushy.PUSHES] = pushes = PushRegistry(service.redis, service.queries)
    app[native_reads.MESSAGES] = MessagesReport(service.queries, pushes, clock)
    app[native_reads.TIMELINE] = TimelineReport(service.queries, clock)
    documentation = Documentation(ROUTES)
    app[openapi.DOCUMENT], app[openapi.PAGE] = documentation.json, documentation.page


class _Together:
    """Parts that stop at the same time: each waits for its own work to end."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    async def start(self) -> None:
        """Start them."""
        for part in self._parts:
            await part.start()

    async def stop(self) -> None:
        """Stop them, all at once."""
        await asyncio.gather(*(part.stop() for part in self._parts))


class _Opened:
    """Opens everything in order, and closes what was opened in the reverse, also when opening fails half-way."""

    def __init__(self, config: Config, clock: Clock, database: str, role: Role, metrics: Metrics,
                 peers: Peers | None) -> None:
        self._config = config
        self._role = role
        self._metrics = metrics
        self._peers = peers
        self._clock = clock
        self._database = database
        self._closers: list[Callable[[], Any]] = []

    async def __aenter__(self) -> Service:
        try:
            return await self._open()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        while self._closers:
            try:
                await self._closers.pop()()
            except Exception:
                log.exception("something did not close well")

    async def _open(self) -> Service:
        config, metrics = self._config, self._metrics
        if self._peers is not None:
            await self._started(self._peers)
        redis = await self._open_redis()
        clickhouse = ClickHouse(config.clickhouse_url, config.data_dir / "clickhouse", self._database, metrics.queried,
                                cluster=config.clickhouse_cluster, disk_reserve=config.disk_reserve)
        self._closers.append(clickhouse.close)
        await self._migrate(Schema(clickhouse))
        queries = Queries(clickhouse)
        limit = await small_chunk_limit(redis)
        floors = Floors(queries)
        is_complete = await self._compare(redis, queries, floors)
        await self._started(Presence(redis, self._role.value))
        apps = await self._started(AppDirectory(redis, self._clock))
        sweep = Sweep(redis, queries, config.sweep_interval, self._clock, metrics)
        applier = Applier(redis, clickhouse, apps, config.device_cache, limit, floors, metrics)
        aggregators = [Aggregator(
            redis, applier, partition, config.linger_ms / 1000, "" if config.redis_url else _ONLY_CONSUMER, metrics)
            for partition in range(config.partitions)] if self._role.applies else []
        ledger = Ledger(redis)
        journal = Journal(redis, config.partitions, config.journal_max_bytes, self._clock)
        if self._role.applies:
            await self._started(sweep)
            await self._started(_Together(aggregators))
        if self._role.serves:
            await self._started(ledger)
            await self._started(journal)
        registrar = Registrar(redis, queries, journal, limit, self._clock, floors)
        return Service(config, redis, clickhouse, queries, apps, floors, journal, ledger, registrar, aggregators, sweep,
                       is_complete)

    async def _open_redis(self) -> Redis:
        config = self._config
        url = config.redis_url
        if not url:
            server = EmbeddedRedis(redis_directory(config.data_dir), config.fsync)
            await server.start()
            self._closers.append(server.stop)
            url = server.url
        redis = Redis(url, replicas=config.redis_replicas)
        self._closers.append(redis.close)
        return redis

    async def _migrate(self, schema: Schema) -> None:
        """Bring the schema up to date; a server that is away gets it when it is back, and ingest does not wait."""
        try:
            await schema.up()
        except StoreUnavailable as error:
            if not self._config.clickhouse_url:
                raise
            log.warning("migrations wait: %s", error)
            task = asyncio.create_task(_migrate_later(schema), name="migrate")
            self._closers.append(lambda: _cancelled(task))

    async def _compare(self, redis: Redis, queries: Queries, floors: Floors) -> bool:
        """Refuse to go on with a Redis that lacks what ClickHouse has. While ClickHouse is away nobody can tell: False,
        and no device is numbered before it is back."""
        store = AppStore(redis)
        try:
            await floors.load()
            newest = await queries.apps_version()
        except StoreUnavailable as error:
            log.warning("whether Redis has everything will be seen later: %s", error)
            return False
        if await store.version() < newest:
            raise DataLost("redis", "apps that it had")
        for app in await store.all():
            await DeviceRegistry(redis, floors).extent(app.id)
        return True

    async def _started(self, part: Any) -> Any:
        await part.start()
        self._closers.append(part.stop)
        return part


async def _migrate_later(schema: Schema) -> None:
    while True:
        await asyncio.sleep(_SCHEMA_RETRY_SECONDS)
        try:
            await schema.up()
        except StoreUnavailable as error:
            log.debug("migrations wait: %s", error)
        else:
            log.info("migrations applied")
            return


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
