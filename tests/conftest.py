"""Real stores for every test: one redis-server and one chDB engine start with the suite.

chDB allows one data path in a process, so each test gets a ClickHouse database and an empty Redis of its own instead.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reportsvc.config import Config
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis
from tests.support.service import Account, Clock, Running, running

_DATABASES = itertools.count(1)


@pytest.fixture(scope="session")
def suite_dir() -> Iterator[Path]:
    """A directory for the suite; short, because a unix socket's path may have 100 bytes only."""
    directory = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory for one test."""
    directory = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(suite_dir: Path) -> AsyncIterator[Path]:
    """The directory of the suite's chDB engine, which stays open until the end."""
    directory = suite_dir / "clickhouse"
    keeper = ClickHouse(directory=directory, database="keeper")
    await keeper.command("SELECT 1")
    yield suite_dir
    await keeper.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_url(suite_dir: Path) -> AsyncIterator[str]:
    """A redis-server for the suite."""
    server = EmbeddedRedis(suite_dir / "redis", "everysec")
    await server.start()
    yield server.url
    await server.stop()


@pytest.fixture
async def config(engine: Path, redis_url: str) -> Config:
    """Settings for the suite's stores, with an empty Redis."""
    redis = Redis(redis_url)
    await redis.call("FLUSHALL")
    await redis.close()
    return Config(host="127.0.0.1", port=0, data_dir=engine, redis_url=redis_url, linger_ms=10)


@pytest.fixture
def clock() -> Clock:
    """The service's clock."""
    return Clock()


@pytest.fixture
def database() -> str:
    """A name for the test's own ClickHouse database."""
    return f"t{next(_DATABASES)}"


@pytest.fixture
async def running_service(config: Config, clock: Clock, database: str) -> AsyncIterator[Running]:
    """A running service on empty stores."""
    async with running(config, clock, database) as service:
        yield service


@pytest.fixture
async def account(running_service: Running) -> Account:
    """An app of that service."""
    return await running_service.make_account()
