"""The usual report of a Beams device, taken without the web framework around it.

Devices send one small event a request, and there are many of them. For a request that is just that, routing, the
request and response objects and their tasks cost several times what the event itself does. The server therefore offers
each parsed request here first. Whatever is in the least unusual, and whatever is wrong, is left to the ordinary route,
``beams_reporting.report_event``, so that there is one place that refuses, and one that explains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11
from aiohttp.http_parser import RawRequestMessage

from reportsvc.api.beams import CORS
from reportsvc.api.beams_reporting import parse_event
from reportsvc.api.common import Tried
from reportsvc.metrics import Metrics
from reportsvc.pipeline.journal import Journal
from reportsvc.pipeline.ledger import Ledger
from reportsvc.registry.apps import AppDirectory

_PREFIX: Final = "/reporting_api/v2/instances/"
_SUFFIX: Final = "/events"
_INSTANCE: Final = slice(len(_PREFIX), len(_PREFIX) + 36)
_PATH_LENGTH: Final = len(_PREFIX) + 36 + len(_SUFFIX)
#: As the SDKs write it, in small letters.
_CONTENT_TYPES: Final = frozenset({"application/json", "application/json; charset=utf-8",
                                   "application/json;charset=utf-8"})


class Express:
    """Takes single events straight to the journal."""

    def __init__(self, apps: AppDirectory, journal: Journal, ledger: Ledger, clock: Callable[[], float],
                 metrics: Metrics) -> None:
        self._observe = metrics.requests("POST", f"{_PREFIX}{{instance_id}}{_SUFFIX}", 200)
        self._apps = apps
        self._journal = journal
        self._ledger = ledger
        self._clock = clock
        self._dated = ""
        self._response = b""

    def take(self, message: RawRequestMessage, payload: StreamReader) -> Taken | None:
        """The event of a request that is here as a whole; None, with nothing changed, for any other request."""
        path, headers = message.path, message.headers
        if (len(path) != _PATH_LENGTH or not path.startswith(_PREFIX) or not path.endswith(_SUFFIX)
                or message.method != "POST" or message.version != HttpVersion11 or message.should_close
                or message.upgrade or message.chunked or message.compression or "Expect" in headers
                or not payload.is_eof() or headers.get("Content-Type", "").lower() not in _CONTENT_TYPES):
            return None
        app = self._apps.known_instance(path[_INSTANCE])
        if app is None:
            return None
        body = payload.read_nowait(-1)
        try:
            done = self._journal.append(parse_event(body, app.id, int(self._clock())))
        except Exception as error:  # noqa: BLE001  # whatever it is, the ordinary route meets it too, and answers it
            done = asyncio.get_running_loop().create_future()
            done.set_exception(error)
        return Taken(message, body, done)

    def lost(self) -> None:
        """The event did not get into the journal, and nobody is there any more to be told: counted as received."""
        self._ledger.add("received")

    def response(self, taken: Taken) -> bytes:
        """What is sent once the event is in the journal: the same as the ordinary route's, and counted like that."""
        self._observe(perf_counter() - taken.started)
        self._ledger.add("received")
        date = rfc822_formatted_time()
        if date != self._dated:
            self._dated = date
            headers = {**CORS, "Content-Length": "0", "Date": date, "Server": SERVER_SOFTWARE}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self._response = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()
        return self._response


class Taken:
    """A request whose event is on its way to the journal. *done* tells when it is there; where it fails, the ordinary
    route has to answer the same request with that failure (see :meth:`replay`).
    """

    __slots__ = ("message", "body", "done", "started")

    def __init__(self, message: RawRequestMessage, body: bytes, done: asyncio.Future[None]) -> None:
        self.message = message
        self.body = body
        self.done = done
        self.started = perf_counter()

    def replay(self, error: BaseException, protocol: Any,
               loop: asyncio.AbstractEventLoop) -> tuple[RawRequestMessage, StreamReader]:
        """The request as it was before it was taken, for the ordinary route, and what became of its event."""
        payload = Tried(protocol, len(self.body) + 1, loop=loop)  # all of it at once: nobody is to be paused
        payload.error = error
        payload.feed_data(self.body)
        payload.feed_eof()
        return self.message, payload


EXPRESS: Final = web.AppKey("express", Express)
