"""One query for many callers: load makes batches larger instead of queues longer.

Callers that come while a query runs share the next one, all their keys in it. A point query of ClickHouse costs
several milliseconds whether it asks for one message or a hundred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Coalescer(Generic[K, V]):
    """Answers for keys, by means of *query*, which takes many and leaves out those without an answer."""

    def __init__(self, query: Callable[[list[K]], Awaitable[Mapping[K, V]]],
                 note: Callable[[int], None] = lambda callers: None) -> None:
        """*note* is told how many callers share a query, for each that begins."""
        self._query = query
        self._note = note
        self._callers = 0
        self._next: tuple[set[K], asyncio.Future[Mapping[K, V]]] | None = None
        self._runner: asyncio.Task[None] | None = None

    async def get(self, keys: Iterable[K]) -> dict[K, V]:
        """The answers for *keys*, from a query that starts after this call; raises what the query raises."""
        wanted = list(keys)
        if self._next is None:
            self._next = set(), asyncio.get_running_loop().create_future()
        pending, answer = self._next
        pending.update(wanted)
        self._callers += 1
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        # A caller who goes away must not take the answer from the others.
        found = await asyncio.shield(answer)
        return {key: found[key] for key in wanted if key in found}

    async def _run(self) -> None:
        while self._next is not None:
            (keys, answer), self._next = self._next, None
            callers, self._callers = self._callers, 0
            self._note(callers)
            try:
                result = await self._query(list(keys))
            except Exception as error:  # noqa: BLE001  # every caller gets it
                answer.set_exception(error)
                answer.exception()  # all callers may have gone away
            else:
                answer.set_result(result)
