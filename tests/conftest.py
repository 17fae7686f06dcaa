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
from tests.support.redis_cluster import redis_cluster
from tests.support.service import Account, Clock, Running, on_empty_redis, running

_DATABASES = itertools.count(1)
#: What runs on a Redis Cluster too, each time: a few of every sort. ``pytest --redis=cluster`` runs them all on one.
_ON_CLUSTER = {
    "tests/api/test_beams_audiences.py",
    "tests/api/test_isolation.py",
    "tests/api/test_jpush_status.py",
    "tests/api/test_pushy.py",
    "tests/api/test_rate_limit.py::test_limit_is_exact_in_a_burst_over_two_processes",
    "tests/faults/test_rebuild.py::test_everything_is_as_before",
    "tests/pipeline/test_aggregator.py::test_kills_during_a_stream_change_nothing",
    "tests/pipeline/test_aggregator.py::test_story_without_a_fault",
    "tests/pipeline/test_aggregator.py::test_two_on_one_partition_count_once",
    "tests/pipeline/test_audiences.py",
    "tests/pipeline/test_dead_letters.py",
    "tests/pipeline/test_device_set.py::test_behaves_as_a_set_with_large_intsets",
    "tests/pipeline/test_device_set.py::test_delete_removes_every_chunk_below_the_end",
    "tests/pipeline/test_device_set.py::test_empty_chunks_leave_no_key",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--redis=cluster``: the tests whose Redis is the suite's run on a cluster."""
    parser.addoption("--redis", choices=("server", "cluster"), default="",
                     help="run every test on one server or on a cluster of three (default: on a server, some on both)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, on a cluster, what asks one server for its figures or makes it a replica."""
    if config.getoption("redis") == "cluster":
        items[:] = [item for item in items if item.get_closest_marker("one_redis") is None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of the list above on both."""
    path, _, name = metafunc.definition.nodeid.partition("::")
    if ("redis_url" in metafunc.fixturenames and not metafunc.config.getoption("redis")
            and {path, f"{path}::{name}"} & _ON_CLUSTER):
        metafunc.parametrize("redis_url", ["server", "cluster"], indirect=True, scope="session")


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
async def redis_server_url(suite_dir: Path) -> AsyncIterator[str]:
    """A redis-server for the suite."""
    server = EmbeddedRedis(suite_dir / "redis", "everysec")
    await server.start()
    yield server.url
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_cluster_url(suite_dir: Path) -> AsyncIterator[str]:
    """A Redis Cluster of three masters for the suite."""
    directory = suite_dir / "cluster"
    directory.mkdir()
    async with redis_cluster(directory, appendonly=False) as cluster:
        yield cluster.url


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The one or the other."""
    kind = getattr(request, "param", "") or request.config.getoption("redis") or "server"
    url: str = request.getfixturevalue(f"redis_{kind}_url")
    return url


@pytest.fixture
async def config(engine: Path, redis_url: str) -> Config:
    """Settings for the suite's stores, with an empty Redis."""
    return await on_empty_redis(engine, redis_url)


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_service(engine: Path, redis_url: str) -> AsyncIterator[Running]:
    """A running service for all tests of a file, where each makes an app of its own and nothing reaches across apps.

    To start one for each test takes most of the time of a file with many small ones.
    """
    # A database of its own each time: the numbers in the last one are none of an empty Redis.
    async with running(await on_empty_redis(engine, redis_url), database=f"t{next(_DATABASES)}") as service:
        yield service
