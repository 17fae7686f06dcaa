"""A running service for tests: real HTTP, a real redis-server, chDB, and a clock that the test holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import ClientSession, encode_basic_auth, web

from reportsvc.app import SERVICE, Service, make_app
from reportsvc.config import Config
from reportsvc.model import App
from reportsvc.pipeline import ledger
from reportsvc.registry.apps import AppStore
from reportsvc.server import make_runner
from reportsvc.storage.redis import Redis


class Clock:
    """The service's clock: real time plus what the test adds. It must not be set back: Redis has a clock of its own."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True)
class Account:
    """An app as its owner has it: with its secrets."""

    app: App
    master_secret: str
    pushy_api_key: str

    @property
    def auth(self) -> str:
        """The Authorization header for the JPush and native dialects."""
        return encode_basic_auth(self.app.app_key, self.master_secret)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)


@dataclass
class Running:
    """A running service and a client of it."""

    service: Service
    url: str
    session: ClientSession
    clock: Clock

    async def make_account(self, name: str = "test", timezone: str = "UTC", vip: bool = True) -> Account:
        """A new app."""
        credentials, _ = await AppStore(self.service.redis).create(name, timezone=timezone, vip=vip)
        await self.service.apps.refresh()
        return Account(credentials.app, credentials.master_secret, credentials.pushy_api_key)

    async def call(self, method: str, path: str, account: Account | None = None, **options: Any) -> Answer:
        """One request; with *account*, with its Basic credentials."""
        if account is not None:
            options["headers"] = {"Authorization": account.auth} | options.get("headers", {})
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def send(self, account: Account, *events: dict[str, Any]) -> None:
        """Post *events*, all of them good, and wait until reports have them."""
        for start in range(0, len(events), 10_000):
            answer = await self.call("POST", "/v1/events", account, json=list(events[start:start + 10_000]))
            assert answer.json == {"accepted": len(events[start:start + 10_000]), "rejected": 0, "errors": []}
        await self.applied()

    async def applied(self, seconds: float = 30.0, *, may_die: bool = False) -> None:
        """Wait until everything accepted is applied; with *may_die*, or dead."""
        async def is_settled() -> bool:
            counts = await ledger.read(self.service.redis, self.service.config.partitions)
            assert may_die or not counts["dead"], counts
            return counts["accepted"] == counts["applied"] + counts["dead"]
        await eventually(is_settled, seconds)


async def on_empty_redis(engine: Path, redis_url: str) -> Config:
    """Settings for the suite's stores, once Redis has been emptied."""
    redis = Redis(redis_url)
    await redis.call("FLUSHALL")
    await redis.close()
    return Config(host="127.0.0.1", port=0, data_dir=engine, redis_url=redis_url, linger_ms=10)


async def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until ``await condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(config: Config, clock: Clock | None = None, database: str = "") -> AsyncIterator[Running]:
    """Start the service on a free port, and stop it in order at the end."""
    clock = clock or Clock()
    app = make_app(config, clock=clock, database=database)
    runner = make_runner(app, config)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession() as session:
            yield Running(app[SERVICE], f"http://127.0.0.1:{runner.addresses[0][1]}", session, clock)
    finally:
        await runner.cleanup()
