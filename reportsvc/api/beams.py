"""What the Beams dialects share: who is called, from where, and with what.

Source: https://pusher.com/docs/beams/reference/api
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from reportsvc.errors import BadRequest

#: Any page may call: browsers are devices, and what a call needs to know is in it, never in a cookie.
CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Pusher-Library",
    "Access-Control-Max-Age": "86400",
}
INSTANCE: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.I | re.A)
#: Title of an error that the framework made, by its status.
FRAMEWORK: Final[Mapping[int | None, str]] = {
    404: "Not found", 405: "Method not allowed", 500: "Something went wrong", None: "Bad request"}
#: The SDKs do not know these.
FORBIDDEN_STATUSES: Final = {413: 400, 414: 400, 431: 400}


class InvalidContentType(BadRequest):
    """The body is said to be something else than JSON."""


class Incomplete(BadRequest):
    """Something is missing from the path or the header."""


def error_body(title: Any, text: str) -> object:
    """An error as Beams writes it."""
    return {"error": title, "description": text}


async def preflight(request: web.Request) -> web.Response:
    """``OPTIONS``: any page may call."""
    return web.Response(status=204, headers=CORS)


def check_content_type(request: web.Request, text: str) -> None:
    """JSON under any of its names; a charset, also a malformed one, does not matter. Else an error with *text*."""
    content_type = request.content_type
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise InvalidContentType(text)
