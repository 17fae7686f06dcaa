"""ClickHouse's HTTP interface in front of chDB, in a process of its own, with a switch that makes it fail.

The tests have no ClickHouse server to install, but the production client speaks HTTP to one, and outages of one are
what the service promises to survive. chDB is the same engine; this is the part of the HTTP interface in front of it
that clickhouse-connect uses: statements in the body, in the URL or in a form, parameters, settings, uploads in any
format, errors. It does not check credentials, keep sessions, or compress answers.

By hand: ``python -m tests.support.clickhouse_http --path DIR --port 8123``. In a test::

    async with clickhouse_http_server(directory) as clickhouse:
        await clickhouse.refuse()
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import chdb
import lz4.frame
from aiohttp import ClientSession, web
# chdb.ChdbError is another class of that name, which nothing raises.
from chdb._exceptions import ChdbError

#: As many statements as run at once; each has a connection, and so a session, of its own.
THREADS: Final = 8
START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 15.0
REPOSITORY: Final = Path(__file__).resolve().parents[2]

#: Arguments of the URL that are not settings of the engine.
TRANSPORT: Final = frozenset({
    "query", "database", "default_format", "user", "password", "quota_key", "role", "query_id", "session_id",
    "session_timeout", "session_check", "compress", "decompress", "wait_end_of_query", "buffer_size",
    "client_protocol_version", "enable_http_compression", "send_progress_in_http_headers",
    "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close",
})
#: Where the HTTP status of an error is not 500: syntax and types, and things that do not exist.
#: https://github.com/ClickHouse/ClickHouse/blob/master/src/Server/HTTP/exceptionCodeToHTTPStatus.cpp
STATUS: Final = {**dict.fromkeys((6, 26, 27, 36, 38, 41, 42, 43, 53, 62, 72), 400),
                 **dict.fromkeys((46, 47, 50, 56, 60, 81, 115), 404)}

#: ``INSERT INTO table (columns) SETTINGS … FORMAT Name`` with data behind it.
_UPLOAD: Final = re.compile(
    rb"\s*(INSERT\s+INTO\s+(?:TABLE\s+)?(?:`[^`]+`|\"[^\"]+\"|[\w.])+\s*(?:\([^()]*\))?)"
    rb"(\s+SETTINGS\s[^\n]*?)?\s+FORMAT\s+(\w+)[ \t]*(?:\r?\n|\Z)", re.IGNORECASE)
_TRAILING_FORMAT: Final = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_ERROR: Final = re.compile(r"Code: (\d+)\. .*", re.DOTALL)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Statement:
    """One request, whichever way it came in."""

    sql: bytes
    database: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a statement gave; *format* is empty when it has no result, as an INSERT."""

    body: bytes
    format: str
    summary: Mapping[str, str]


#: A cluster of one node, which is this engine itself; two cannot be had without a server that listens.
CLUSTER: Final = "test"
CONFIG: Final = f"""<clickhouse><tcp_port>9000</tcp_port><remote_servers><{CLUSTER}><shard>
<internal_replication>true</internal_replication><replica><host>127.0.0.1</host><port>9000</port></replica>
</shard></{CLUSTER}></remote_servers></clickhouse>"""
_ON_CLUSTER: Final = re.compile(f" ON CLUSTER `?{CLUSTER}`?".encode())
_REPLICATED: Final = re.compile(rb"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?")


class Engine:
    """chDB on one directory, for calls from any thread.

    With *cluster*, it is the one node of a cluster named ``test``. Distributed tables are the engine's own. It cannot
    have Keeper: statements ``ON CLUSTER`` are carried out at once, and replicated tables are made as plain ones.
    """

    def __init__(self, path: Path, *, cluster: bool = False) -> None:
        self._path = str(path)
        self._is_cluster = cluster
        if cluster:
            path.mkdir(parents=True, exist_ok=True)
            (path / "cluster.xml").write_text(CONFIG)
            self._path += f"?config-file={path / 'cluster.xml'}"
        # The engine stops with its last connection; this one keeps it up.
        self._keeper = chdb.connect(self._path)
        zone, version = self._keeper.query("SELECT timezone(), version()", "TabSeparated").bytes().decode().split()
        self.timezone: str = zone
        self.version: str = version

    def close(self) -> None:
        """Stop the engine."""
        self._keeper.close()

    def run(self, statement: Statement) -> Result:
        """Run one statement in a session of its own."""
        if self._is_cluster and _ON_CLUSTER.search(statement.sql):
            statement = replace(statement, sql=_REPLICATED.sub(rb"\1(", _ON_CLUSTER.sub(b"", statement.sql)))
        with closing(chdb.connect(self._path)) as session:
            if statement.database:
                session.query(f"USE {_quote(statement.database, '`')}")
            if statement.settings:
                pairs = (f"{_quote(name, '`')} = {_quote(value)}" for name, value in statement.settings.items())
                session.query("SET " + ", ".join(pairs))
            if upload := _UPLOAD.match(statement.sql):
                return _upload(session, upload)
            return _query(session, statement)


def _query(session: Any, statement: Statement) -> Result:
    named = _TRAILING_FORMAT.search(statement.sql)
    # With the names of the columns, an empty result can be told from no result.
    result = session.query(statement.sql, "TabSeparatedWithNames", params=dict(statement.parameters))
    body: bytes = result.bytes() or b""
    if named:
        return Result(body, named[1].decode(), _summary(result))
    return Result(body.partition(b"\n")[2], "TabSeparated" if body else "", _summary(result))


def _upload(session: Any, upload: re.Match[bytes]) -> Result:
    """Insert what follows the statement, by way of a file: in a statement chDB ends the data at the first newline."""
    insert, settings, format_ = (group.decode() for group in upload.groups(b""))
    with tempfile.NamedTemporaryFile() as file:
        file.write(upload.string[upload.end():])
        file.flush()
        sql = f"{insert} FROM INFILE {_quote(file.name)}{settings} FORMAT {format_}"
        return Result(b"", "", _summary(session.query(sql)))


def _summary(result: Any) -> Mapping[str, str]:
    return {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read()),
            "written_rows": str(result.rows_written()), "written_bytes": str(result.bytes_written()),
            "elapsed_ns": str(int(result.elapsed() * 1e9))}


def _quote(text: str, mark: str = "'") -> str:
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


@dataclass
class Faults:
    """The switch: ``ok``, ``refuse``, ``hang`` or ``full``."""

    mode: str = "ok"
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def switch(self, mode: str) -> None:
        """Go over to *mode*; requests that hang look again."""
        self.mode = mode
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait(self) -> None:
        """Return unless, or as soon as not, hanging."""
        while self.mode == "hang":
            await self.changed.wait()


ENGINE: Final = web.AppKey("engine", Engine)
FAULTS: Final = web.AppKey("faults", Faults)
THREAD_POOL: Final = web.AppKey("thread_pool", ThreadPoolExecutor)


async def run_statement(request: web.Request) -> web.Response:
    """``GET`` or ``POST /``: one statement."""
    engine = request.app[ENGINE]
    statement = await parse_statement(request)
    if request.app[FAULTS].mode == "full" and statement.sql.lstrip()[:6].upper() == b"INSERT":
        return render_error("Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space: this is a test. "
                            "(NOT_ENOUGH_SPACE)", engine.version)
    try:
        result = await asyncio.get_running_loop().run_in_executor(request.app[THREAD_POOL], engine.run, statement)
    except ChdbError as exc:
        return render_error(str(exc), engine.version)
    headers = {"X-ClickHouse-Summary": web.json_response(result.summary).text or "",
               "X-ClickHouse-Query-Id": request.query.get("query_id", ""),
               "X-ClickHouse-Timezone": engine.timezone, "X-ClickHouse-Server-Display-Name": "chdb"}
    if result.format:
        headers["X-ClickHouse-Format"] = result.format
    return web.Response(body=result.body, headers=headers)


async def parse_statement(request: web.Request) -> Statement:
    """The statement is in the body, in ``query`` with its data in the body, or in the form field ``query``."""
    fields = dict(request.query)
    body = b""
    if request.content_type == "multipart/form-data":
        fields |= {name: str(value) for name, value in (await request.post()).items()}
    else:
        # aiohttp has undone gzip, deflate and zstd itself by now.
        body = await request.read()
        if request.headers.get("Content-Encoding") == "lz4":
            body = lz4.frame.decompress(body)
    return Statement(
        sql=b"\n".join(part for part in (fields.get("query", "").encode(), body) if part),
        database=fields.get("database", ""),
        parameters={name.removeprefix("param_"): value for name, value in fields.items() if name.startswith("param_")},
        settings={name: value for name, value in fields.items()
                  if name not in TRANSPORT and not name.startswith("param_")},
    )


def render_error(text: str, version: str) -> web.Response:
    """An error as the server words it: the text as the body, its number in a header."""
    found = _ERROR.search(text)
    code = int(found[1]) if found else 1002
    return web.Response(status=STATUS.get(code, 500), text=f"{found[0] if found else text} (version {version})\n",
                        headers={"X-ClickHouse-Exception-Code": str(code)})


async def ping(request: web.Request) -> web.Response:
    """``GET /ping``."""
    return web.Response(text="Ok.\n")


async def set_fault(request: web.Request) -> web.Response:
    """``POST /_fault?mode=refuse|hang|full|ok``: what every other request meets from now on."""
    mode = request.query.get("mode", "")
    if mode not in ("ok", "refuse", "hang", "full"):
        raise web.HTTPBadRequest(text="mode is one of ok, refuse, hang, full")
    request.app[FAULTS].switch(mode)
    return web.Response(text="Ok.\n")


@web.middleware
async def fail_on_demand(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep requests from their handlers as the switch says."""
    faults = request.app[FAULTS]
    if request.path == "/_fault":
        return await handler(request)
    await faults.wait()
    if faults.mode == "refuse":
        return render_error("Code: 241. DB::Exception: Memory limit (total) exceeded: this is a test. "
                            "(MEMORY_LIMIT_EXCEEDED)", request.app[ENGINE].version)
    return await handler(request)


def make_app(path: Path, *, cluster: bool = False) -> web.Application:
    """The server on the engine in *path*."""
    app = web.Application(middlewares=[fail_on_demand], client_max_size=1 << 30)
    app[ENGINE] = Engine(path, cluster=cluster)
    app[FAULTS] = Faults()
    app[THREAD_POOL] = ThreadPoolExecutor(THREADS)
    app.add_routes([web.get("/ping", ping), web.post("/_fault", set_fault),
                    web.get("/", run_statement), web.post("/", run_statement)])
    return app


async def serve(path: Path, port: int, parent: int, *, cluster: bool = False) -> None:
    """Serve until SIGTERM or, when *parent* is not 0, until that is no longer our parent process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    app = make_app(path, cluster=cluster)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    while not stopped.is_set() and parent in (0, os.getppid()):
        await asyncio.wait([asyncio.create_task(stopped.wait())], timeout=1)
    await runner.cleanup()
    app[THREAD_POOL].shutdown()
    app[ENGINE].close()


class ClickHouseHttp:
    """Such a server in a process of its own; on one port, whatever happens to it."""

    def __init__(self, path: Path, port: int = 0, *, cluster: bool = False) -> None:
        self.path = path
        self.port = port
        self.cluster = cluster
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it listens, once it was started."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, for the first time or after :meth:`kill`, and return when it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.clickhouse_http", "--path", str(self.path), "--port", str(self.port),
             "--parent", str(os.getpid()), *["--cluster"] * self.cluster],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), START_TIMEOUT)
        assert line.startswith("listening on "), "the ClickHouse server ended while it started"
        self.port = int(line.rpartition(":")[2])

    async def refuse(self) -> None:
        """Answer every request with an error of the server, until :meth:`recover`."""
        await self._switch("refuse")

    async def hang(self) -> None:
        """Answer no request at all until :meth:`recover`, and carry them out then."""
        await self._switch("hang")

    async def fill(self) -> None:
        """Refuse to write, as a server does whose disk is full, until :meth:`recover`. (Its engine, which is chDB,
        would itself take writes that fail for good ones.)"""
        await self._switch("full")

    async def recover(self) -> None:
        """Work again."""
        await self._switch("ok")

    def kill(self) -> None:
        """``kill -9``, at once."""
        self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it in order, if it runs."""
        await asyncio.to_thread(self._end, signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    async def _switch(self, mode: str) -> None:
        async with ClientSession() as session, session.post(f"{self.url}/_fault", params={"mode": mode}) as answer:
            answer.raise_for_status()


@asynccontextmanager
async def clickhouse_http_server(path: Path, port: int = 0, *,
                                 cluster: bool = False) -> AsyncIterator[ClickHouseHttp]:
    """A running server on the engine in *path*, on *port* or a free one; with *cluster*, it is a node of one."""
    server = ClickHouseHttp(path, port, cluster=cluster)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="ClickHouse's HTTP interface from chDB, for tests.")
    parser.add_argument("--path", type=Path, required=True, help="directory of the data")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes any free one")
    parser.add_argument("--parent", type=int, default=0, help="end when this process is no longer the parent")
    parser.add_argument("--cluster", action="store_true", help="stand for a cluster of one node")
    options = parser.parse_args()
    asyncio.run(serve(options.path, options.port, options.parent, cluster=options.cluster))


if __name__ == "__main__":
    main()
