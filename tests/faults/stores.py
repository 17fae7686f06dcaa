"""One Redis and one ClickHouse server for several processes of the service, and clients that know them all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, encode_basic_auth

from reportsvc.pipeline import ledger
from reportsvc.pipeline.aggregator import GROUP
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis, journal_key
from tests.cli.program import Serving, reportsvc, serving
from tests.support.clickhouse_http import clickhouse_http_server
from tests.support.service import Answer, eventually


@dataclass
class Stores:
    """The servers, and what one may do with processes on them."""

    directory: Path
    redis_url: str
    clickhouse_url: str
    session: ClientSession
    redis: Redis
    auth: str = ""
    #: Every process that may be asked; a client goes on to the next when one does not answer.
    urls: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    @property
    def settings(self) -> dict[str, object]:
        """What makes a process one on these stores; all share a data directory, in which there is nothing."""
        return {"redis_url": self.redis_url, "clickhouse_url": self.clickhouse_url,
                "data_dir": self.directory / "data"}

    def process(self, *arguments: str, **settings: object) -> AbstractAsyncContextManager[Serving]:
        """``reportsvc serve`` with *arguments*."""
        return serving(self.directory / f"process-{next(self.numbers)}", *arguments, **self.settings | settings)

    async def make_app(self) -> None:
        """An app, which is ours."""
        made = await reportsvc("apps", "create", "test", "--json", **self.settings)
        self.auth = encode_basic_auth(made.json["app_key"], made.json["master_secret"])

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """One request with our credentials, to the first process that answers."""
        headers = {"Authorization": self.auth} | options.pop("headers", {})
        for url in list(self.urls):
            try:
                async with self.session.request(method, url + path, headers=headers, **options) as response:
                    return Answer(response.status, dict(response.headers), await response.read())
            except (ClientError, OSError):
                # What may or may not have been taken is sent again, to another; and this one is asked last from now.
                self.urls.sort(key=url.__eq__)
        raise ClientError("nobody answers")

    async def pending(self) -> int:
        """Entries that some aggregator has read and not finished."""
        return int((await self.redis.call("XPENDING", journal_key(0), GROUP))["pending"])

    async def applied(self, seconds: float = 30) -> dict[str, int]:
        """Wait until all that was accepted is applied; the ledger."""
        async def is_settled() -> bool:
            counts = await ledger.read(self.redis, 1)
            return counts["accepted"] == counts["applied"] + counts["dead"]
        await eventually(is_settled, seconds)
        return await ledger.read(self.redis, 1)


@asynccontextmanager
async def shared_stores(directory: Path) -> AsyncIterator[Stores]:
    """Both servers, running and empty."""
    redis_server = EmbeddedRedis(directory / "redis", "everysec")
    await redis_server.start()
    redis = Redis(redis_server.url)
    try:
        # Each request has a connection of its own, as those of a killed process are no good.
        async with (clickhouse_http_server(directory / "clickhouse") as clickhouse,
                    ClientSession(timeout=ClientTimeout(total=30), headers={"Connection": "close"}) as session):
            yield Stores(directory, redis_server.url, clickhouse.url, session, redis)
    finally:
        await redis.close()
        await asyncio.shield(redis_server.stop())
