"""A client as careful senders are: it repeats a request until it is answered well, on whichever service is up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

#: A store that hangs makes the service answer 503 after some seconds; nobody waits much longer for one that hangs.
TIMEOUT: Final = ClientTimeout(total=12)
GOOD: Final = (200, 201)


class Client:
    """Requests to any of the services whose URLs *urls* tells at that moment; an empty one is down."""

    def __init__(self, urls: Callable[[], Sequence[str]]) -> None:
        self._urls = urls
        # Connections of killed processes are no good.
        self._session = ClientSession(timeout=TIMEOUT, headers={"Connection": "close"})
        #: How often each status was answered; 0 where the connection broke.
        self.statuses: Counter[int] = Counter()
        #: Answers that a service in trouble must not give either.
        self.wrong: list[str] = []

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    async def once(self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None,
                   content_type: str = "application/json") -> tuple[int, Any]:
        """One request; status 0 if the connection broke."""
        url = random.choice([url for url in self._urls() if url] or [""])
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        sent = {**({"Content-Type": content_type} if data is not None else {}), **(headers or {})}
        try:
            if not url:
                raise ConnectionRefusedError
            async with self._session.request(method, url + path, data=data, headers=sent) as reply:
                text = await reply.read()
        except (ClientError, TimeoutError, OSError):
            self.statuses[0] += 1
            return 0, None
        self.statuses[reply.status] += 1
        if reply.status not in (*GOOD, 503):
            self.wrong.append(f"{method} {path[:80]}: {reply.status} {text[:200].decode(errors='replace')}")
        return reply.status, orjson.loads(text) if text else None

    async def insist(self, method: str, path: str, **options: Any) -> Any:
        """Repeat the request until it is answered 200 or 201; that answer's body."""
        pause = 0.05
        while True:
            status, answer = await self.once(method, path, **options)
            if status in GOOD:
                return answer
            if len(self.wrong) > 100:
                raise AssertionError("too many wrong answers:\n" + "\n".join(self.wrong[:10]))
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)
