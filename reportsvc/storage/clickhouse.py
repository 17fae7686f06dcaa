"""The client of ClickHouse: a server over HTTP, or the same engine inside this process (chDB).

The driver blocks its thread, so calls run in two small pools of threads, each thread with a client of its own: one
pool for reports, one for the aggregator's writes, so that a slow insert never makes a report wait. Every insert of
this service is a union or a keyed upsert; the driver may therefore send one again.

The engine in this process takes a write that the kernel refuses for one that worked (seen with chDB 26.9): an insert or
a merge that runs out of disk is answered well, and its rows are gone. Nothing is therefore written, and nothing merged,
while there is less free space than a reserve that no insert can use up.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error as DriverError

from reportsvc.errors import StoreUnavailable
from reportsvc.storage import cluster_schema

T = TypeVar("T")
log = logging.getLogger(__name__)

DEFAULT_DATABASE: Final = "reportsvc"
#: A report is a point query of a few milliseconds; one that takes this long will not become useful.
REPORT_TIMEOUT_SECONDS: Final = 15
#: Where the server does not give up by itself by then, it hangs, and the report must not hang with it.
REPORT_GRACE_SECONDS: Final = 3
#: An insert of a large batch, or the removal of swept messages, may wait for merges.
WRITE_TIMEOUT_SECONDS: Final = 120
REPORT_THREADS: Final = 4
WRITE_THREADS: Final = 2
#: Free space without which the engine in this process writes nothing: many inserts, and seconds of a busy Redis beside.
DISK_RESERVE_BYTES: Final = 256 << 20

#: Server codes that mean the statement itself is wrong: a bug here, which must not look like an outage.
#: https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
_BUG_CODES: Final = frozenset({
    6, 27, 33, 36, 38, 41, 42, 43, 44, 46, 47, 48, 53, 62, 70, 72, 117, 130, 131, 184, 215, 386,
})


class ClickHouse:
    """A database, reached through :meth:`query`, :meth:`command` and :meth:`insert`."""

    def __init__(self, url: str = "", directory: Path | None = None, database: str = "",
                 observe: Callable[[str, float], None] = lambda label, seconds: None, *, cluster: str = "",
                 disk_reserve: int = DISK_RESERVE_BYTES) -> None:
        """Connect lazily to *url*, or, without one, open the engine on *directory* in this process.

        *database* is that of the URL, or ``reportsvc``, unless given. *observe* is told the label of each query that
        was answered, and the seconds that took. *cluster*: the name of the cluster that the server at *url* belongs
        to, where there is one. *disk_reserve*: bytes that have to be free where *directory* is.
        """
        self._disk_reserve = disk_reserve
        self._is_disk_low = False
        self.cluster = cluster
        self._observe = observe
        self._url = url
        self._directory = directory
        self.database = database or _database_of(url)
        self._local = threading.local()
        self._clients: list[Client] = []
        self._opening = threading.Lock()
        self._reports = ThreadPoolExecutor(REPORT_THREADS, "clickhouse-report", self._wait_for,
                                           (REPORT_TIMEOUT_SECONDS + REPORT_GRACE_SECONDS,))
        self._writes = ThreadPoolExecutor(WRITE_THREADS, "clickhouse-write", self._wait_for, (WRITE_TIMEOUT_SECONDS,))

    def stored(self, table: str) -> str:
        """Whom to tell to delete rows of *table*: a table of a cluster does not hold them itself."""
        return f"{table}{cluster_schema.SUFFIX}{cluster_schema.on(self.cluster)}" if self.cluster else table

    async def query(self, sql: str, parameters: Mapping[str, Any], *, label: str) -> Sequence[Sequence[Any]]:
        """Rows of a report's query; *label* names the report and the request in the server's query log."""
        def run(client: Client) -> Sequence[Sequence[Any]]:
            return client.query(sql, parameters=dict(parameters), settings={
                "log_comment": label, "max_execution_time": REPORT_TIMEOUT_SECONDS}).result_rows
        started = time.perf_counter()
        rows = await self._in_thread(self._reports, run)
        self._observe(label, time.perf_counter() - started)
        return rows

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None, *, label: str = "") -> Any:
        """Run a statement that changes something."""
        def run(client: Client) -> Any:
            self._check_disk(client)
            return client.command(sql, parameters=dict(parameters or {}),
                                  settings={"log_comment": label} if label else None)
        return await self._in_thread(self._writes, run)

    async def insert(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Insert *rows*, encoded as RowBinary in the order of *columns*."""
        def run(client: Client) -> None:
            self._check_disk(client)
            client.raw_insert(table, column_names=columns, insert_block=rows, fmt="RowBinary")
        await self._in_thread(self._writes, run)

    async def close(self) -> None:
        """Finish running calls and give the connections back."""
        await asyncio.to_thread(self._reports.shutdown)
        await asyncio.to_thread(self._writes.shutdown)
        if self._is_disk_low and self._clients:  # the engine may have other users in this process
            self._clients[0].command("SYSTEM START MERGES")
        for client in self._clients:
            client.close()
        self._clients.clear()

    def _check_disk(self, client: Client) -> None:
        """Refuse to write where the disk may fill up meanwhile; see the module."""
        if self._url:
            return
        free = shutil.disk_usage(str(self._directory)).free
        is_low = free < self._disk_reserve
        if is_low != self._is_disk_low:
            client.command(f"SYSTEM {'STOP' if is_low else 'START'} MERGES")
            self._is_disk_low = is_low
        if is_low:
            raise StoreUnavailable("clickhouse", f"{self._directory} has {free >> 20} MiB of free space, and "
                                                 f"{self._disk_reserve >> 20} MiB are needed to write there")

    def _wait_for(self, seconds: float) -> None:
        """Set how long the client of this thread waits for an answer."""
        self._local.timeout = seconds

    async def _in_thread(self, pool: ThreadPoolExecutor, run: Callable[[Client], T]) -> T:
        call = asyncio.get_running_loop().run_in_executor(pool, self._guarded, run)
        # Where the caller has gone away, nobody else takes the outcome, and asyncio would complain of that.
        call.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(call)

    def _guarded(self, run: Callable[[Client], T]) -> T:
        try:
            return run(self._client())
        except DriverError as error:
            if getattr(error, "code", None) in _BUG_CODES:
                raise
            raise StoreUnavailable("clickhouse", _first_line(error)) from error
        except (OSError, RuntimeError) as error:
            raise StoreUnavailable("clickhouse", _first_line(error)) from error

    def _client(self) -> Client:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._connect() if self._url else self._open()
            self._clients.append(client)
            self._local.client = client
        return client

    def _open(self) -> Client:
        with self._opening:
            client = clickhouse_connect.get_client(interface="chdb", path=str(self._directory))
            client.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")
            client.command(f"USE {self.database}")
            client.database = self.database
            return client

    def _connect(self) -> Client:
        parts = urlsplit(self._url)
        # Sessions refuse concurrent queries; nothing here needs one.
        options: dict[str, Any] = {
            "interface": parts.scheme, "host": parts.hostname, "port": parts.port or 0,
            "username": unquote(parts.username or "") or None, "password": unquote(parts.password or ""),
            "autogenerate_session_id": False, "form_encode_query_params": True,
            "connect_timeout": 5, "send_receive_timeout": self._local.timeout,
        }
        first = clickhouse_connect.get_client(**options)
        first.command(cluster_schema.make_database(self.database, self.cluster))
        first.close()
        settings = dict(cluster_schema.SETTINGS) if self.cluster else None
        return clickhouse_connect.get_client(**options, database=self.database, settings=settings)


def _database_of(url: str) -> str:
    name = unquote(urlsplit(url).path.strip("/"))
    return name or DEFAULT_DATABASE


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
