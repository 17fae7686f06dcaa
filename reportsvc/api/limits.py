"""Rate limits at the door: which limit holds for a path, and how a vendor's clients are told where they stand.

Only ``/v3`` has a limit by default, and tells on every answer; ``/v1`` and ``/pushes`` have one if the service is set
so. Devices never meet one: the mobile SDKs drop an event for good on a 429.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from reportsvc.api import jpush
from reportsvc.api.auth import APP, basic_auth
from reportsvc.api.common import failure
from reportsvc.errors import RateLimited
from reportsvc.model import App
from reportsvc.registry.ratelimit import Quota, RateLimiter

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Calls a minute for each app, by part of the API; 0 is no limit."""

    limiter: RateLimiter
    reports: int
    native: int
    pushy: int


LIMITS: Final = web.AppKey("limits", Limits)


def limited_reports(handler: Handler) -> Handler:
    """The handler of a ``/v3`` path whose caller is known: within the limit, and telling where the app stands."""
    @functools.wraps(handler)
    async def wrapped(request: web.Request) -> web.StreamResponse:
        quota = await _spend_reports(request, request[APP])
        if quota is None:
            return await handler(request)
        response: web.StreamResponse
        try:
            if quota.is_exceeded:
                raise RateLimited(quota.reset)
            response = await handler(request)
        except Exception as error:
            response = failure(error, request, jpush.DIALECT)
        tell(response, quota)
        return response
    return wrapped


def limited_native(handler: Handler) -> Handler:
    """The handler of a ``/v1`` path whose caller is known: within the limit, if there is one."""
    @functools.wraps(handler)
    async def wrapped(request: web.Request) -> web.StreamResponse:
        if request.app[LIMITS].native:
            await check(request, request[APP], "native", request.app[LIMITS].native)
        return await handler(request)
    return wrapped


async def check_pushy(request: web.Request, app: App) -> None:
    """Raise if *app* has made too many calls to ``/pushes``."""
    if request.app[LIMITS].pushy:
        await check(request, app, "pushy", request.app[LIMITS].pushy)


async def check(request: web.Request, app: App, scope: str, limit: int) -> None:
    """Count a call.

    Raises:
        RateLimited: It is one too many.
    """
    quota = await request.app[LIMITS].limiter.spend(app.id, scope, limit)
    if quota.is_exceeded:
        raise RateLimited(quota.reset)


async def _spend_reports(request: web.Request, app: App) -> Quota | None:
    limits = request.app[LIMITS]
    limit = limits.reports if app.rate_limit is None else app.rate_limit
    return await limits.limiter.spend(app.id, "reports", limit) if limit else None


def tell(response: web.StreamResponse, quota: Quota) -> None:
    """Write where the app stands; the limit has two names in the vendor's documentation."""
    response.headers["X-Rate-Limit-Limit"] = response.headers["X-Rate-Limit-Quota"] = str(quota.limit)
    response.headers["X-Rate-Limit-Remaining"] = str(quota.remaining)
    response.headers["X-Rate-Limit-Reset"] = str(quota.reset)


async def tell_strays(request: web.Request, response: web.StreamResponse) -> None:
    """The same for what no handler of ``/v3`` answered, a wrong path or method, if its caller can be known."""
    if request.path.lstrip("/").partition("/")[0] == "v3" and await basic_auth.authenticate(request):
        quota = await _spend_reports(request, request[APP])
        if quota is not None:
            tell(response, quota)
