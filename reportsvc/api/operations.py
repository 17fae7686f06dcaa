"""Whether the service is up: for load balancers and people, without credentials."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from reportsvc.api.common import json_response
from reportsvc.errors import StoreUnavailable

log = logging.getLogger(__name__)

#: Name of a store -> a check that raises if it does not answer.
CHECKS: Final[web.AppKey[Mapping[str, Callable[[], Awaitable[object]]]]] = web.AppKey("checks")

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
