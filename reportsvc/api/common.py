"""What the dialects share: reading bodies, writing JSON, and turning failures into a dialect's own words.

A *dialect* is a table from this service's errors to a vendor's HTTP status and code, and the shape of its error body.
One middleware catches every failure, the framework's own included, and lets the dialect of the path answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.typedefs import Handler

from reportsvc.errors import BadParameter, BadRequest, RateLimited, ReportError, StoreUnavailable, TooLarge
from reportsvc.metrics import Metrics
from reportsvc.model import MAX_ID_BYTES

T = TypeVar("T")
METRICS: Final = web.AppKey("metrics", Metrics)
log = logging.getLogger(__name__)

#: After decompression. 10 000 events of 500 bytes, three times over.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
#: A phone on a slow network sends its few hundred bytes in less, and 16 MiB need 7 Mbit/s; a client that stalls does
#: not hold us.
BODY_SECONDS: Final = 20.0
#: What all bodies that are larger than a chunk may take of this process's memory while they arrive. More are told to
#: come back: small ones, and with them every device, are never refused for it.
MAX_ARRIVING_BYTES: Final = 256 * 1024 * 1024
_CHUNK_BYTES: Final = 256 * 1024
#: What a caller is told to wait when a store is away; the stores' own restarts take a few seconds.
RETRY_AFTER_SECONDS: Final = 2


@dataclass(frozen=True)
class Dialect:
    """How one vendor's API says that something went wrong."""

    #: error class -> (HTTP status, vendor code); a subclass without a row of its own takes its parent's.
    errors: Mapping[type[ReportError], tuple[int, Any]]
    #: HTTP status of the framework's own errors -> vendor code; ``None`` is for all others.
    framework: Mapping[int | None, Any]
    #: vendor code, text -> body.
    body: Callable[[Any, str], object]
    internal_text: str = "Internal server error"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Statuses that this vendor's clients must never see -> the one they get.
    forbidden_statuses: Mapping[int, int] = field(default_factory=dict)

    def answer(self, error: ReportError) -> web.Response:
        """The response for *error*."""
        status, code = next(self.errors[kind] for kind in type(error).__mro__ if kind in self.errors)
        # What a driver says of a store names hosts and files of ours; the log has it.
        text = f"{error.store} is unavailable" if isinstance(error, StoreUnavailable) else str(error)
        response = self.respond(status, code, text)
        if isinstance(error, RateLimited):
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    def answer_status(self, status: int, reason: str) -> web.Response:
        """The response for an error of the framework."""
        code = self.framework.get(status, self.framework[None])
        return self.respond(status, code, self.internal_text if status >= 500 else reason)

    def respond(self, status: int, code: Any, text: str) -> web.Response:
        """An error response of this dialect."""
        status = self.forbidden_statuses.get(status, status)
        headers = dict(self.headers)
        if status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return json_response(self.body(code, text), status=status, headers=headers)


def json_response(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """*document* as JSON."""
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json", headers=headers)


# ------------------------------------------------------------------------------------------------------------ failures
def failures(dialect_of: Callable[[str], Dialect],
             decorate: Callable[[web.Request, web.Response], Awaitable[None]] | None = None,
             observe: Callable[[web.Request, int, float], None] = lambda request, status, seconds: None) -> Any:
    """The middleware that answers every failure in the dialect of the request's path.

    *decorate* may add headers to the answers of the framework, such as that of a path that does not exist. *observe* is
    told the status of each answer and the seconds that it took.
    """
    @web.middleware
    async def answer_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = perf_counter()
        response: web.StreamResponse
        try:
            response = await handler(request)
        except Exception as error:
            response = answer = failure(error, request, dialect_of(request.path))
            if decorate is not None and isinstance(error, web.HTTPException):
                await decorate(request, answer)
        observe(request, response.status, perf_counter() - started)
        return response
    return answer_failures


def failure(error: Exception, request: web.Request, dialect: Dialect) -> web.Response:
    """The answer to a request that failed with *error*."""
    if isinstance(error, ReportError):
        if isinstance(error, StoreUnavailable):
            request.app[METRICS].failed(error.store, "request")
            log.debug("%s %s: %s", request.method, request.path, error)
        response = dialect.answer(error)
    elif isinstance(error, web.HTTPException):
        if error.status < 400:
            raise error
        response = dialect.answer_status(error.status, _reason(error))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    else:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        response = dialect.answer_status(500, "")
    if request.content.exception() is not None or not request.content.is_eof():
        response.force_close()  # the body broke off or is not all here; the next request could begin anywhere
    return response


def _reason(error: web.HTTPException) -> str:
    if error.status == 404:
        return "there is nothing at this path"
    if error.status == 413:
        return f"the body is over {MAX_BODY_BYTES} bytes"
    return error.reason or f"HTTP {error.status}"


_SLASHES: Final = re.compile("/{2,}")


@web.middleware
async def rewrite_paths(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve doubled and trailing slashes as if they were not there; real SDKs send both and follow no redirect."""
    if not isinstance(request.match_info.http_exception, web.HTTPNotFound):
        return await handler(request)
    raw = request.rel_url.raw_path
    path = _SLASHES.sub("/", raw).rstrip("/") or "/"
    if path == raw:
        return await handler(request)
    rewritten = request.clone(rel_url=request.rel_url.with_path(path, encoded=True, keep_query=True))
    match = await request.app.router.resolve(rewritten)
    match.add_app(request.app)
    match.freeze()
    rewritten._match_info = match  # what Application._handle does with the first match
    request._match_info = match  # what is counted is the path that answers
    return await match.handler(rewritten)


# -------------------------------------------------------------------------------------------------------------- bodies
async def read_body(request: web.Request) -> bytes:
    """The whole body, decompressed.

    Raises:
        BadRequest: It ended early, came too slowly, or is not compressed as its header says.
        TooLarge: It is over :data:`MAX_BODY_BYTES`.
        StoreUnavailable: Too many large bodies arrive at this moment.
    """
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise TooLarge(f"the body is over {MAX_BODY_BYTES} bytes")
    try:
        if request.content.is_eof():
            return await _read(request.content)
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request.content)
    except TimeoutError as error:
        raise BadRequest(f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise BadRequest("the body cannot be read; check Content-Encoding and Content-Length") from error


class Tried(StreamReader):
    """A body whose event, if it is one, was given to the journal already, which ended with *error*; see ``express``."""

    error: BaseException


def error_of_tried(request: web.Request) -> BaseException | None:
    """What became of the event of such a body; None for any other."""
    return request.content.error if isinstance(request.content, Tried) else None


_arriving = 0


async def _read(content: StreamReader) -> bytes:
    """What *content* holds, in chunks: what is unpacked is never much more than what was asked for."""
    global _arriving
    first = await content.readany()
    if content.at_eof():
        return first
    content.set_read_chunk_size(_CHUNK_BYTES)
    body, counted = bytearray(first), 0
    try:
        while chunk := await content.readany():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise TooLarge(f"the body is over {MAX_BODY_BYTES} bytes")
            if len(body) > _CHUNK_BYTES:
                _arriving += len(body) - counted
                counted = len(body)
                if _arriving > MAX_ARRIVING_BYTES:
                    raise StoreUnavailable("memory", "too many large bodies arrive at once")
    finally:
        _arriving -= counted
    return bytes(body)


def load_json(body: bytes) -> Any:
    """The JSON value in *body*. An integer too large for 64 bits comes as a float; see :func:`with_large_ids`.

    Raises:
        BadRequest: It is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("the body is not valid JSON") from error


class FloatId(Exception):
    """An id was decoded as a float: it was an integer of more than 64 bits, or really a float."""


def with_large_ids(body: bytes, parse: Callable[[Any], T]) -> T:
    """``parse(JSON value of body)``, where ids may be integers of any size.

    The fast decoder turns an integer beyond 64 bits into a float; only then is the body decoded once more.
    """
    try:
        return parse(load_json(body))
    except FloatId:
        try:
            return parse(load_exactly(body))
        except ValueError as error:
            raise BadRequest("the body is not valid JSON") from error


def load_exactly(body: bytes) -> Any:
    """The JSON value in *body*, slowly, with integers as they are; raises ValueError."""
    orjson.loads(body)  # the other decoder takes more than JSON allows: NaN, half of a surrogate pair
    try:
        return json.loads(body, parse_float=_RealFloat)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def encodable(name: str, value: Any) -> Any:
    """*value*, which may come from :func:`load_exactly`, as the fast decoder has it, and fit to be encoded again.

    Raises:
        BadParameter: It is nested too deeply for that.
    """
    try:
        orjson.dumps([value])  # it will be stored a level deeper
    except TypeError:
        try:
            value = orjson.loads(json.dumps(value))
            orjson.dumps([value])
        except (TypeError, RecursionError) as error:
            raise BadParameter(name, "nested too deeply") from error
    return value


class _RealFloat(float):
    """A number that was written with a point or an exponent."""


def parse_id(name: str, value: object) -> str:
    """An id as a string: a non-empty string or an integer, of at most 256 bytes.

    Raises:
        BadParameter: It is something else.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if -10**300 < value < 10**300 else ""
    elif isinstance(value, float) and not isinstance(value, _RealFloat):
        raise FloatId
    elif value is None:
        raise BadParameter(name, "required")
    else:
        raise BadParameter(name, "must be a string or an integer")
    if not text:
        raise BadParameter(name, "must not be empty")
    if len(text) > MAX_ID_BYTES // 4 and len(text.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise BadParameter(name, f"at most {MAX_ID_BYTES} bytes")
    return text
