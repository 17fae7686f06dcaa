"""Whether the service is up, and its figures: for load balancers, Prometheus and people, without credentials.

``/metrics`` has a credential if it is set so; load balancers have none to give.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from reportsvc.api.common import json_response
from reportsvc.errors import StoreUnavailable, Unauthorized
from reportsvc.metrics import Exposition, Metrics, Observe

log = logging.getLogger(__name__)

#: Name of a store -> a check that raises if it does not answer.
CHECKS: Final[web.AppKey[Mapping[str, Callable[[], Awaitable[object]]]]] = web.AppKey("checks")

EXPOSITION: Final = web.AppKey("exposition", Exposition)
#: What a caller of ``/metrics`` has to send; empty for nothing.
TOKEN: Final = web.AppKey("token", str)

#: A load balancer asks every few seconds and must not pile up questions.
CHECK_SECONDS: Final = 2.0


async def healthz(request: web.Request) -> web.Response:
    """``GET /healthz``: the process answers; no store is asked."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: every store answers; 503 names those that do not."""
    checks = request.app[CHECKS]
    states = dict(zip(checks, await asyncio.gather(*map(_state, checks.values())), strict=True))
    is_ready = all(state == "ok" for state in states.values())
    return json_response({"status": "ok" if is_ready else "unavailable", "stores": states},
                         status=200 if is_ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: everything there is to count, as Prometheus reads it."""
    token = request.app[TOKEN]
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if token and not (scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogatepass"), token.encode())):
        raise Unauthorized("a Bearer token is needed here, and this is none or another one")
    text, content_type = await request.app[EXPOSITION].text(request.headers.get(hdrs.ACCEPT, ""))
    return web.Response(body=text, headers={hdrs.CONTENT_TYPE: content_type})


def observer(counted: Metrics) -> Callable[[web.Request, int, float], None]:
    """What counts an answered request: by the template of its route, never by its path, which anybody may choose."""
    children: dict[tuple[Any, int], Observe] = {}

    def observe(request: web.Request, status: int, seconds: float) -> None:
        match = request._match_info  # request.match_info goes on telling the first one; see rewrite_paths
        route = None if match is None or match.route.resource is None else match.route
        key = route, status  # a path that is not there has no route, or rather a new one each time
        child = children.get(key)
        if child is None:
            child = children[key] = (
                counted.requests(route.method, route.resource.canonical, status)
                if route is not None and route.resource is not None else counted.requests("", "none", status))
        child(seconds)
    return observe


async def _state(check: Callable[[], Awaitable[object]]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:.0f} s"
    except StoreUnavailable as error:
        log.debug("readyz: %s", error)  # it names hosts and files of ours, and anybody may ask
        return f"{error.store} is unavailable"
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return type(error).__name__
    return "ok"
