"""What commands do with the stores themselves, beside a service or without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from reportsvc.config import Config
from reportsvc.model import App
from reportsvc.pipeline import records
from reportsvc.pipeline.journal import append
from reportsvc.registry.apps import AppStore, Credentials
from reportsvc.storage.embedded import redis_for_command
from reportsvc.storage.redis import Redis


@asynccontextmanager
async def redis_of(config: Config) -> AsyncIterator[Redis]:
    """The service's Redis, for as long as a command needs it."""
    async with redis_for_command(config) as url:
        redis = Redis(url, replicas=config.redis_replicas)
        try:
            yield redis
        finally:
            await redis.close()


async def create_app(redis: Redis, name: str, timezone: str = "UTC", vip: bool = True,
                     rate_limit: int | None = None) -> Credentials:
    """Make an app, and its durable copy.

    Raises:
        BadConfig: The name is taken, or the timezone is none.
    """
    credentials, version = await AppStore(redis).create(name, timezone=timezone, vip=vip, rate_limit=rate_limit)
    await record_app(redis, credentials.app, version)
    return credentials


async def record_app(redis: Redis, app: App, version: int) -> None:
    """Let the durable copy of an app follow a change."""
    await redis.run([append(0, [(1, records.app(asdict(app), version))])])
