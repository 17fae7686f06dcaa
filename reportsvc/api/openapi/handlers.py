"""The description of every path, for programs and for people; without credentials.

Both are made when somebody first asks. The page has no script and asks nobody for anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import hdrs, web

from reportsvc.api.openapi.page import STYLE

#: What makes the document, and the page.
DOCUMENT: Final[web.AppKey[Callable[[], bytes]]] = web.AppKey("document")
PAGE: Final[web.AppKey[Callable[[], bytes]]] = web.AppKey("page")

_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: Other pages may read the document; nothing but the page's own style is let in.
DOCUMENT_HEADERS: Final[dict[str, str]] = {hdrs.CACHE_CONTROL: "no-cache", hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*"}
PAGE_HEADERS: Final[dict[str, str]] = {
    hdrs.CACHE_CONTROL: "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
}


async def openapi_json(request: web.Request) -> web.Response:
    """``GET /openapi.json``: every path, as OpenAPI 3.1."""
    return _answer(request, request.app[DOCUMENT](), "application/json", None, DOCUMENT_HEADERS)


async def docs(request: web.Request) -> web.Response:
    """``GET /docs``: the same, to be read."""
    return _answer(request, request.app[PAGE](), "text/html", "utf-8", PAGE_HEADERS)


def _answer(request: web.Request, body: bytes, content_type: str, charset: str | None,
            headers: Mapping[str, str]) -> web.Response:
    digest = hashlib.sha256(body).hexdigest()[:20]
    if any(tag.value in (digest, "*") for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=body, content_type=content_type, charset=charset, headers=headers)
        response.enable_compression()
    response.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
    response.headers[hdrs.ETAG] = f'W/"{digest}"'
    return response
