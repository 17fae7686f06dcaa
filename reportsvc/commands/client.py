"""A service as its callers have it: over HTTP, with an app's key and secret.

What passes by itself is waited out: a service that is starting again, a store that is away, a journal that is full, a
rate limit. Everything that is sent this way may be sent twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, InvalidURL, encode_basic_auth

from reportsvc.errors import BadConfig, StoreUnavailable

log = logging.getLogger(__name__)

#: A batch may wait for a busy service; one that takes this long is lost.
_CALL_SECONDS: Final = 120.0
#: Between two attempts where the service does not say how long to wait.
_WAIT_SECONDS: Final = 2.0
_LONGEST_WAIT_SECONDS: Final = 60.0
#: A service that is away for longer needs somebody to look at it.
PATIENCE_SECONDS: Final = 15 * 60.0
#: Statuses that say "not now".
_PASSING: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is, and as whom to call it."""

    url: str
    app_key: str
    master_secret: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is neither "not now" nor "who are you"."""

    status: int
    json: Any


class Client:
    """Calls a service; an asynchronous context."""

    def __init__(self, access: Access, on_wait: Callable[[str], None] = lambda reason: None,
                 patience: float = PATIENCE_SECONDS) -> None:
        """*on_wait* is told why a call waits, and an empty text once it goes on."""
        self._access = access
        self._on_wait = on_wait
        self._patience = patience
        self._session: ClientSession | None = None
        self._is_known = False

    async def __aenter__(self) -> Client:
        self._session = ClientSession(
            headers={"Authorization": encode_basic_auth(self._access.app_key, self._access.master_secret)},
            timeout=ClientTimeout(total=_CALL_SECONDS))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, *, body: bytes | None = None, content_type: str = "application/json",
                   params: Mapping[str, str] | None = None) -> Reply:
        """The answer to one call.

        Raises:
            BadConfig: Nothing answers at all, or it does not know the key.
            StoreUnavailable: It was not able to answer for a quarter of an hour.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            reply, problem, pause = await self._attempt(method, path, body, content_type, params)
            if reply is not None:
                self._is_known = True
                self._on_wait("")
                return reply
            if loop.time() + pause > deadline:
                raise StoreUnavailable("the service", problem)
            self._on_wait(problem)
            await asyncio.sleep(pause)

    async def get(self, path: str, **params: str) -> Any:
        """What a path answers.

        Raises:
            BadConfig: It refuses.
        """
        reply = await self.call("GET", path, params=params)
        if reply.status != 200:
            raise BadConfig(f"the service refused: {_text(reply.json)}")
        return reply.json

    async def _attempt(self, method: str, path: str, body: bytes | None, content_type: str,
                       params: Mapping[str, str] | None) -> tuple[Reply | None, str, float]:
        """The answer, or why there is none and how long to wait."""
        assert self._session is not None
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            async with self._session.request(method, self._access.url + path, data=body, params=params,
                                             headers=headers) as response:
                text = await response.read()
        except InvalidURL:
            raise BadConfig(f"{self._access.url} is not the URL of a service") from None
        except (ClientConnectionError, TimeoutError, OSError) as error:
            if not self._is_known:
                raise BadConfig(f"nothing answers at {self._access.url}; is the service running there?") from error
            return None, f"no answer: {type(error).__name__}", _WAIT_SECONDS
        if response.status in _PASSING:
            return None, _text(_json(text)), _pause(response.headers.get("Retry-After", ""))
        if response.status == 401:
            raise BadConfig(f"{self._access.url} does not know this key and secret")
        return Reply(response.status, _json(text)), "", 0.0


def _pause(retry_after: str) -> float:
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else _WAIT_SECONDS
    return min(max(seconds, 0.1), _LONGEST_WAIT_SECONDS)


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _text(body: Any) -> str:
    """What an error of either shape says."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else "it is not available"
