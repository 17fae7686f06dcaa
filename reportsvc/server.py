"""The HTTP server around the application: limits, signals, and JSON also where a request cannot even be parsed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from reportsvc.api.routes import dialect_of
from reportsvc.config import Config
from reportsvc.logs import AccessLogger

#: A hundred ids of 256 bytes, percent-encoded, in one query.
MAX_LINE_BYTES: Final = 128 * 1024
#: A proxy in front keeps connections for about a minute; ours must not end first.
KEEPALIVE_SECONDS: Final = 75.0
#: How long running requests may take to end when the service stops.
SHUTDOWN_SECONDS: Final = 10.0


class _JsonErrors(RequestHandler):
    """Answers what is no HTTP in JSON, as every other error."""

    __slots__ = ()

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """The response to a request that could not be parsed or handled."""
        response = super().handle_error(request, status, exc, message)
        reason = "the request is not valid HTTP" if status < 500 else ""
        answer = dialect_of(request.path).answer_status(status, reason)
        answer.force_close()
        response.force_close()
        return answer


class _JsonServer(Server):
    """Makes :class:`_JsonErrors` handlers."""

    def __call__(self) -> RequestHandler:
        """A handler for a new connection."""
        return _JsonErrors(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """An application runner on :class:`_JsonServer`."""

    async def _make_server(self) -> Server:
        server = await super()._make_server()
        return _JsonServer(server.request_handler, request_factory=server.request_factory, **server._kwargs)


def make_runner(app: web.Application, config: Config) -> web.AppRunner:
    """A runner with this service's limits."""
    options: dict[str, Any] = {"access_log_class": AccessLogger} if config.access_log else {"access_log": None}
    return _Runner(app, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS,
                   max_line_size=MAX_LINE_BYTES, max_field_size=16 * 1024, **options)


async def serve(app: web.Application, config: Config, on_ready: Callable[[str], Any]) -> None:
    """Serve until SIGTERM or SIGINT; *on_ready* is awaited with the URL once requests are taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = make_runner(app, config)
    try:
        await runner.setup()
        site = web.TCPSite(runner, config.host, config.port, backlog=1024)
        await site.start()
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        await on_ready(f"http://{host}:{runner.addresses[0][1]}")
        await stop.wait()
    finally:
        await runner.cleanup()
