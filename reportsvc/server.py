"""The HTTP server around the application: limits, signals, and JSON also where a request cannot even be parsed."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_server import Server

from reportsvc.api.express import EXPRESS, Express, Taken
from reportsvc.api.routes import dialect_of
from reportsvc.config import Config
from reportsvc.logs import AccessLogger

#: A hundred ids of 256 bytes, percent-encoded, in one query.
MAX_LINE_BYTES: Final = 128 * 1024
#: A header with a user's token or a page's cookies in it has a few kilobytes.
MAX_FIELD_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 128
#: The request line and all headers, while they are not all here.
MAX_HEAD_BYTES: Final = MAX_LINE_BYTES + 64 * 1024
#: From connecting, or from the first byte of a later request, to the last header. That is one packet or two.
HEAD_SECONDS: Final = 15.0
#: What comes after an answer is read and thrown away for so long, so that a caller who is still sending can read it.
LINGER_SECONDS: Final = 5.0
#: A caller who takes none of his answer for so long will not take it.
SEND_SECONDS: Final = 20.0
#: Connections beside files of the stores; the usual limit of 1024 is one of shells.
MAX_FILES: Final = 65536
#: Connections that wait to be accepted, for each socket.
BACKLOG: Final = 1024
#: How long running requests may take to end when the service stops.
SHUTDOWN_SECONDS: Final = 10.0
#: What the request with raw spaces in it begins with.
_REPORT: Final = b"GET /v3/"


class _Connection(RequestHandler):
    """Answers what is no HTTP in JSON, as every other error, and forgives the one fault that a real SDK has.

    It also ends what callers leave unfinished: a connection without a request, half of a head, an answer nobody takes.
    Bodies have their own deadline where they are read; see ``read_body``.
    """

    __slots__ = ("_line", "_head_bytes", "_expects_head", "_wire", "_send_deadline", "_express", "_taken", "_held")

    def __init__(self, manager: Server, express: Express | None, **options: Any) -> None:
        super().__init__(manager, **options)
        # The log of requests is written where the framework answers them.
        self._express = None if self._logging_enabled else express
        #: The event that is being written to the journal; nothing else is read meanwhile.
        self._taken: Taken | None = None
        self._held = b""
        #: Where the last request began; enough of it to tell the dialect.
        self._line = b""
        #: What is here of a head that is not complete.
        self._head_bytes = 0
        #: Whether the timer is that of a head.
        self._expects_head = False
        self._wire: asyncio.Transport | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller connected."""
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._wire = None
        if self._send_deadline is not None:
            self._send_deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes from the caller."""
        if self._taken is not None:
            self._hold(data)
            return
        waiter = self._waiter
        if waiter is None or waiter.done():  # a request is being answered, and this is its body, or the next one
            super().data_received(data)
            self._fail_body()
            return
        if not self._head_bytes:
            if data.startswith(_REPORT):
                data = without_raw_spaces(data)
            self._line = data[:64]
        self._waiter = None  # nobody is woken before we have looked
        super().data_received(data)
        self._waiter = waiter
        if self._messages and not waiter.done() and not self._take():
            waiter.set_result(None)
        if waiter.done() or self._taken is not None:
            self._head_bytes = 0
            if self._expects_head:
                self._stop_timer()
        elif data:
            self._wait_for_head(waiter, len(data))

    def _fail_body(self) -> None:
        """Tell whoever reads a body that what came of it cannot be unpacked; the framework only notes it for later."""
        request = self._current_request
        if (request is not None and self._messages and isinstance(self._messages[-1][0], _ErrInfo)
                and not request.content.is_eof() and request.content.exception() is None):
            request.content.set_exception(web.RequestPayloadError("the body cannot be read"))

    def _take(self) -> bool:
        """Whether what was just read is one event that needs no framework."""
        if (self._express is None or len(self._messages) > 1 or self._paused or self._reading_paused
                or self._parser is None):
            return False
        message, payload = self._messages.popleft()  # reading a body may come back here, and must find nothing
        taken = None if isinstance(message, _ErrInfo) else self._express.take(message, payload)
        if taken is None:
            self._messages.append((message, payload))
            return False
        self._parser.message_consumed()
        self._taken = taken
        taken.done.add_done_callback(self._answer)
        return True

    def _answer(self, done: asyncio.Future[None]) -> None:
        taken, self._taken = self._taken, None
        assert taken is not None and self._express is not None
        error: BaseException | None = asyncio.CancelledError() if done.cancelled() else done.exception()
        response = b"" if error else self._express.response(taken)  # it counts, also where nobody is there any more
        if self._wire is None:
            if error:
                self._express.lost()
            return
        if error is None:
            self._wire.write(response)
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        elif self._waiter is None or self._waiter.done():  # the service is stopping
            self._wire.close()
        else:  # the ordinary route says what is wrong
            self._messages.append(taken.replay(error, self, self._loop))
            self._waiter.set_result(None)
        if self._held:
            held, self._held = self._held, b""
            self._resume_reading_for_buffer()
            self.data_received(held)

    def _hold(self, data: bytes) -> None:
        # A client that sends the next request before it has the answer waits; the socket's buffers hold the rest.
        self._held += data
        self._pause_reading_for_buffer()

    def _process_keepalive(self) -> None:
        if self._taken is None:
            super()._process_keepalive()
        else:  # not idle, though no task of the framework is at work
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def close(self) -> None:
        """Take nothing more. What would answer an event that fails is kept until then."""
        if self._taken is None:
            super().close()
        else:
            self._close = True

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Answer what is under way, then close."""
        if self._taken is not None:
            self._force_close = True  # nothing more is read
            await asyncio.wait([self._taken.done], timeout=timeout)
            await asyncio.sleep(0)  # the answer is written by then, or the ordinary route is at work on it
            super().close()
        await super().shutdown(timeout)

    def _wait_for_head(self, waiter: asyncio.Future[None], size: int) -> None:
        if not self._head_bytes:
            self._expect_head()
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            error = HttpProcessingError(message=f"the request line and headers are over {MAX_HEAD_BYTES} bytes")
            self._messages.append((_ErrInfo(431, error, error.message), EMPTY_PAYLOAD))
            waiter.set_result(None)

    def _expect_head(self) -> None:
        # The parent's timer for idle connections, set to another time: one timer a connection is enough.
        self._stop_timer()
        self._expects_head = True
        self._next_keepalive_close_time = self._loop.time() + HEAD_SECONDS
        self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def _stop_timer(self) -> None:
        self._expects_head = False
        if self._keepalive_handle is not None:
            self._keepalive_handle.cancel()
            self._keepalive_handle = None  # the parent sets it again after the answer

    def pause_writing(self) -> None:
        """More waits to be sent than should."""
        super().pause_writing()
        if self._wire is not None:
            self._send_deadline = self._loop.call_later(SEND_SECONDS, self._wire.abort)

    def resume_writing(self) -> None:
        """Enough of it is sent."""
        super().resume_writing()
        if self._send_deadline is not None:
            self._send_deadline.cancel()

    async def start(self) -> None:
        """Answer requests until the connection closes, which it does when all is sent, or SEND_SECONDS later."""
        try:
            await super().start()
        finally:
            if self._wire is not None and self._wire.get_write_buffer_size():
                self._loop.call_later(SEND_SECONDS, self._wire.abort)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a failure; that a caller sent no HTTP, or a body that breaks off, is none of ours."""
        if isinstance(kw.get("exc_info"), (HttpProcessingError, web.RequestPayloadError)):
            self.log_debug(*args, **kw)
        else:
            super().log_exception(*args, **kw)

    async def finish_response(self, request: web.BaseRequest, resp: web.StreamResponse,
                              start_time: float | None) -> tuple[web.StreamResponse, bool]:
        """Send a response; the only one the middlewares have not seen is the refusal of an ``Expect`` header."""
        if isinstance(resp, web.HTTPException):
            resp = dialect_of(request.path).answer_status(400, "Expect: only 100-continue is supported")
        return await super().finish_response(request, resp, start_time)

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """The response to a request that could not be parsed or handled."""
        response = super().handle_error(request, status, exc, message)
        if isinstance(exc, HttpProcessingError):
            answer = dialect_of(target_of(self._line)).answer_status(*refusal(exc))
        else:
            answer = dialect_of(request.path).answer_status(status, "")
        answer.force_close()
        response.force_close()
        return answer


class _JsonServer(Server):
    """Makes :class:`_Connection` handlers."""

    express: Express | None = None

    def __call__(self) -> RequestHandler:
        """A handler for a new connection."""
        return _Connection(self, self.express, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """An application runner on :class:`_JsonServer`."""

    async def _make_server(self) -> Server:
        server = await super()._make_server()
        json_server = _JsonServer(server.request_handler, request_factory=server.request_factory, **server._kwargs)
        json_server.express = self.app.get(EXPRESS)
        return json_server


def target_of(line: bytes) -> str:
    """The path, or its beginning, in the first bytes of a request; ``/`` where there is none."""
    words = line.partition(b"\r\n")[0].split(b" ")
    return words[1].decode("latin-1") if len(words) > 1 and words[1].startswith(b"/") else "/"


def refusal(error: HttpProcessingError) -> tuple[int, str]:
    """Status and text for a request that cannot be parsed. Nothing of it is repeated: it may hold a secret."""
    if error.code == 0:  # our own
        return 431, error.message
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_LINE_BYTES:
            return 414, f"the request line is over {MAX_LINE_BYTES} bytes"
        return 431, f"a header is over {MAX_FIELD_BYTES} bytes"
    if error.message.startswith("Too many headers"):
        return 431, f"there are more than {MAX_FIELDS} headers"
    return 400, "the request is not valid HTTP"


def without_raw_spaces(request: bytes) -> bytes:
    """*request* with the spaces inside its target encoded.

    JPush's PHP SDK writes ``start=2026-11-20 09`` into the request line as it stands.
    """
    line, end, rest = request.partition(b"\r\n")
    method, _, target_and_version = line.partition(b" ")
    target, _, version = target_and_version.rpartition(b" ")
    if not version.startswith(b"HTTP/"):
        return request
    return b"".join((method, b" ", target.replace(b" ", b"%20"), b" ", version, end, rest))


def make_runner(app: web.Application, config: Config) -> web.AppRunner:
    """A runner with this service's limits."""
    options: dict[str, Any] = {"access_log_class": AccessLogger} if config.access_log else {"access_log": None}
    return _Runner(app, keepalive_timeout=config.keepalive, shutdown_timeout=SHUTDOWN_SECONDS,
                   lingering_time=LINGER_SECONDS, max_line_size=MAX_LINE_BYTES, max_field_size=MAX_FIELD_BYTES,
                   max_headers=MAX_FIELDS, **options)


def raise_file_limit() -> None:
    """Let this process, and the stores it starts, open as many files as it may, up to :data:`MAX_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def url_of(host: str, port: int) -> str:
    """What a caller on this machine writes to reach *port*."""
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"


async def serve(app: web.Application, config: Config, on_ready: Callable[[str], Any],
                sockets: Sequence[socket.socket] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; *on_ready* is awaited with the URL once requests are taken.

    *sockets* are bound already, and somebody else's: they stay open there. With none of them nobody can call.
    """
    raise_file_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = make_runner(app, config)
    try:
        await runner.setup()
        sites: list[web.BaseSite] = [web.TCPSite(runner, config.host, config.port, backlog=BACKLOG)]
        if sockets is not None:
            sites = [web.SockSite(runner, one, backlog=BACKLOG) for one in sockets]
        for site in sites:
            await site.start()
        await on_ready(url_of(config.host, runner.addresses[0][1]) if sites else "no port")
        await stop.wait()
    finally:
        await runner.cleanup()
