"""The test server that stands in for ClickHouse: what the real client does with the real thing works with it."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import struct
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import lz4.frame
import pytest
import pytest_asyncio
from backports import zstd
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from clickhouse_connect.driver.httputil import get_pool_manager

from tests.support.clickhouse_http import ClickHouseHttp, clickhouse_http_server

_DATABASES = itertools.count(1)
COMPRESSORS: dict[str | None, Any] = {
    "gzip": gzip.compress, "lz4": lz4.frame.compress, "zstd": zstd.compress, None: bytes,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[ClickHouseHttp]:
    """One server for all tests of this module; it takes a second to start."""
    with tempfile.TemporaryDirectory(prefix="rs-") as directory:
        async with clickhouse_http_server(Path(directory)) as running:
            yield running


@pytest.fixture
async def server(shared: ClickHouseHttp) -> ClickHouseHttp:
    """That server, in working order whatever the last test did."""
    if shared.process is None:
        await shared.start()
    await shared.recover()
    return shared


@pytest.fixture
def connect(server: ClickHouseHttp) -> Iterator[Callable[..., Client]]:
    """Makes production clients, each on connections of its own, in a database for this test alone."""
    database = f"t{next(_DATABASES)}"
    clients: list[Client] = []

    def make(**options: Any) -> Client:
        clients.append(clickhouse_connect.get_client(
            interface="http", host="127.0.0.1", port=server.port, pool_mgr=get_pool_manager(), **options))
        clients[-1].command(f"CREATE DATABASE IF NOT EXISTS {database}")
        clients[-1].database = database
        return clients[-1]

    yield make
    for client in clients:
        client.close_connections()


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    """A client with the usual options."""
    return connect()


def row(msg_id: str, devices: list[int]) -> bytes:
    """A row of (String, Array(UInt32)) in RowBinary."""
    name = msg_id.encode()
    return bytes([len(name)]) + name + bytes([len(devices)]) + struct.pack(f"<{len(devices)}I", *devices)


def test_counters_work_as_in_production(client: Client) -> None:
    """A Null table, a view that keeps bitmaps, RowBinary uploads and a query with parameters give exact counts."""
    client.command("CREATE TABLE ingest (msg_id String, devices Array(UInt32)) ENGINE = Null")
    client.command("CREATE TABLE delivery (msg_id String, devices AggregateFunction(groupBitmap, UInt32)) "
                   "ENGINE = AggregatingMergeTree ORDER BY msg_id")
    client.command("CREATE MATERIALIZED VIEW delivery_of_ingest TO delivery AS "
                   "SELECT msg_id, groupBitmapArrayState(devices) AS devices FROM ingest GROUP BY msg_id")
    # Device 10 is a newline and 59 a semicolon, which must not end the data.
    for upload in (row("a", [10, 59, 3]) + row("b", [0]), row("a", [3, 4])):
        summary = client.raw_insert("ingest", ["msg_id", "devices"], upload, fmt="RowBinary")

    assert int(summary.summary["read_rows"]) == 1
    assert client.query(
        "SELECT msg_id, groupBitmapMerge(devices) FROM delivery WHERE msg_id IN {ids:Array(String)} "
        "GROUP BY msg_id ORDER BY msg_id", parameters={"ids": ["a", "b", "it's", "none\t"]},
    ).result_rows == [("a", 4), ("b", 1)]


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_uploads_may_be_compressed(client: Client, compression: Any) -> None:
    """Bodies arrive whole, in every encoding the client knows."""
    client.command("CREATE TABLE words (word String) ENGINE = MergeTree ORDER BY word")
    body = COMPRESSORS[compression](b"\x05a\nb;c")
    client.raw_insert("words", ["word"], body, fmt="RowBinary", compression=compression)

    assert client.query("SELECT word FROM words").result_rows == [("a\nb;c",)]


@pytest.mark.parametrize("options", [{}, {"compress": False}, {"form_encode_query_params": True}])
def test_rows_inserted_are_the_rows_read(connect: Callable[..., Client], options: dict[str, Any]) -> None:
    """The native format goes both ways, with or without compression, parameters in the URL or in a form."""
    client = connect(**options)
    client.command("CREATE TABLE pairs (number UInt64, word Nullable(String)) ENGINE = MergeTree ORDER BY number")
    rows = [(number, None if number % 3 else f"word {number}\n") for number in range(1000)]
    client.insert("pairs", rows, column_names=["number", "word"])

    assert client.query("SELECT * FROM pairs WHERE number >= {least:UInt64} ORDER BY number",
                        parameters={"least": 0}).result_rows == rows
    assert client.query("SELECT * FROM pairs WHERE number > 1000").result_rows == []


def test_commands_answer_as_the_server_does(client: Client) -> None:
    """One value, several, none, and raw text; in the format that was asked for."""
    assert client.command("SELECT 1") == 1
    assert client.command("SELECT 'a', 'b'") == ["a", "b"]
    assert client.command("EXISTS TABLE nothing") == 0
    assert client.raw_query("SELECT 1 AS one, 'x' AS two", fmt="JSONEachRow") == b'{"one":1,"two":"x"}\n'
    assert client.raw_query("SELECT 2") == b"2\n"
    assert client.ping()


def test_settings_hold_for_one_request(client: Client) -> None:
    """A setting reaches the engine with its query, and does not stay for the next."""
    query = "SELECT getSetting('max_block_size'), getSetting('log_comment')"

    assert client.query(query, settings={"max_block_size": 7, "log_comment": "it's a report"}).result_rows == [
        (7, "it's a report")]
    assert client.query(query).result_rows[0][1] == ""


@pytest.mark.parametrize(("sql", "code", "name"), [
    ("SELECT * FROM nowhere", 60, "UNKNOWN_TABLE"),
    ("SELEC 1", 62, "SYNTAX_ERROR"),
    ("SELECT throwIf(1, 'no')", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
])
def test_errors_are_those_of_the_server(client: Client, sql: str, code: int, name: str) -> None:
    """The client raises its usual exception, with the number and the name of the error."""
    with pytest.raises(DatabaseError) as failure:
        client.query(sql)

    assert (failure.value.code, failure.value.name) == (code, name)


def test_bad_upload_is_an_error(client: Client) -> None:
    """Data that is cut short is refused, not half taken."""
    client.command("CREATE TABLE words (word String) ENGINE = MergeTree ORDER BY word")
    with pytest.raises(DatabaseError, match="CANNOT_READ_ALL_DATA"):
        client.raw_insert("words", ["word"], b"\x05abc", fmt="RowBinary")

    assert client.command("SELECT count() FROM words") == 0


def test_unknown_database_is_an_error(client: Client) -> None:
    """The database of the request has to exist."""
    client.database = "nowhere"
    with pytest.raises(DatabaseError) as failure:
        client.query("SELECT 1")

    assert failure.value.code == 81


def test_requests_run_side_by_side(connect: Callable[..., Client]) -> None:
    """A slow query does not make a quick one wait."""
    slow, quick = connect(), connect()
    waiting = threading.Thread(target=slow.query, args=("SELECT sleep(1)",))
    waiting.start()
    time.sleep(0.2)
    started = time.monotonic()
    assert quick.query("SELECT 1").result_rows == [(1,)]
    assert time.monotonic() - started < 0.5
    waiting.join()


async def test_refusing_server_answers_errors_until_it_recovers(server: ClickHouseHttp, client: Client) -> None:
    """An outage that answers: every request is an error of the server, and none after it."""
    await server.refuse()
    with pytest.raises(DatabaseError) as failure:
        await asyncio.to_thread(client.query, "SELECT 1")
    assert failure.value.code == 241
    assert not await asyncio.to_thread(client.ping)

    await server.recover()
    assert await asyncio.to_thread(client.command, "SELECT 1") == 1


async def test_hanging_server_answers_after_it_recovers(server: ClickHouseHttp, client: Client) -> None:
    """An outage that does not answer: the request waits, and is carried out in the end."""
    await server.hang()
    waiting = asyncio.create_task(asyncio.to_thread(client.command, "CREATE DATABASE late"))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done

    await server.recover()
    await waiting
    assert await asyncio.to_thread(client.command, "EXISTS DATABASE late") == 1


async def test_killed_server_comes_back_with_its_data(server: ClickHouseHttp, client: Client) -> None:
    """After ``kill -9`` nobody listens; started again, it is on the same port, and what it confirmed is there."""
    await asyncio.to_thread(client.command, "CREATE TABLE words (word String) ENGINE = MergeTree ORDER BY word")
    await asyncio.to_thread(client.insert, "words", [["kept"]], column_names=["word"])
    url = server.url
    server.kill()
    with pytest.raises(OperationalError):
        await asyncio.to_thread(client.query, "SELECT 1")

    await server.start()
    assert server.url == url
    assert await asyncio.to_thread(client.command, "SELECT word FROM words") == "kept"
