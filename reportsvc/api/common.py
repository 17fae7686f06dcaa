"""What the dialects share: reading bodies, writing JSON, and turning failures into a dialect's own words.

A *dialect* is a table from this service's errors to a vendor's HTTP status and code, and the shape of its error body.
One middleware catches every failure, the framework's own included, and lets the dialect of the path answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from reportsvc.errors import BadParameter, BadRequest, ReportError, TooLarge
from reportsvc.model import MAX_ID_BYTES

T = TypeVar("T")
log = logging.getLogger(__name__)

#: After decompression. 10 000 events of 500 bytes, three times over.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
#: A phone on a slow network sends its few hundred bytes in less; a client that stalls does not hold us.
BODY_SECONDS: Final = 25.0
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
        return self.respond(status, code, str(error))

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
def failures(dialect_of: Callable[[str], Dialect]) -> Any:
    """The middleware that answers every failure in the dialect of the request's path."""
    @web.middleware
    async def answer_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ReportError as error:
            return dialect_of(request.path).answer(error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = dialect_of(request.path).answer_status(error.status, _reason(error))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return dialect_of(request.path).answer_status(500, "")
    return answer_failures


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
    return await match.handler(rewritten)


# -------------------------------------------------------------------------------------------------------------- bodies
async def read_body(request: web.Request) -> bytes:
    """The whole body, decompressed.

    Raises:
        BadRequest: It ended early, came too slowly, or is not compressed as its header says.
        TooLarge: It is over :data:`MAX_BODY_BYTES`.
    """
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge(f"the body is over {MAX_BODY_BYTES} bytes") from error
    except TimeoutError as error:
        raise BadRequest(f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise BadRequest("the body cannot be read; check Content-Encoding and Content-Length") from error


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
        except (ValueError, RecursionError) as error:
            raise BadRequest("the body is not valid JSON") from error


def load_exactly(body: bytes) -> Any:
    """The JSON value in *body*, slowly, with integers as they are; raises ValueError."""
    return json.loads(body, parse_float=_RealFloat)


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
