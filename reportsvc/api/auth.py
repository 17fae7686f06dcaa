"""Who is calling: HTTP Basic with an app's key and secret, for the JPush and native dialects.

``aiohttp-basicauth`` frames it; the header is parsed here, because the class it uses for that is deprecated in aiohttp.
The directory of apps compares secrets by digest, in a time that tells nothing.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple, NoReturn

from aiohttp import hdrs, web
from aiohttp_basicauth import BasicAuthMiddleware

from reportsvc.errors import Unauthorized
from reportsvc.model import App
from reportsvc.registry.apps import AppDirectory

APPS: Final = web.AppKey("apps", AppDirectory)
APP: Final = web.RequestKey("app", App)


class _Credentials(NamedTuple):
    """The attributes that the parent class reads."""

    login: str
    password: str


class BasicAuth(BasicAuthMiddleware):  # type: ignore[misc]  # the package has no types
    """Finds the app of a request and keeps it under :data:`APP`."""

    def parse_auth_header(self, request: web.Request) -> _Credentials | None:
        """The user and password of the Authorization header; None if it has none."""
        scheme, _, encoded = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            login, separator, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return _Credentials(login, password) if separator else None

    async def check_credentials(self, username: str, password: str, request: web.Request) -> bool:
        """Whether *password* is the master secret of the app with this key."""
        app = await request.app[APPS].by_master_secret(username, password)
        if app is None:
            return False
        request[APP] = app
        return True

    def challenge(self) -> NoReturn:
        """Let the dialect say it."""
        raise Unauthorized("Basic authentication failed")


basic_auth: Final = BasicAuth()
