"""Messages as people look at them: the newest ones with their totals, and one of them in all its parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from reportsvc.errors import NotFound
from reportsvc.model import App
from reportsvc.registry.pushes import PushRecord, PushRegistry
from reportsvc.reports.coalesce import Coalescer
from reportsvc.reports.titles import title_of
from reportsvc.storage.queries import Part, Queries, Reach, StoredPush

#: A place in the list of messages: the time and the id of one of them.
Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class PushInfo:
    """What is told of a push; times in unix seconds. *title* is a short text of its payload."""

    vendor: str
    kind: str
    created_at: int
    expires_at: int
    targets: int
    for_everyone: bool
    title: str | None
    payload: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A message with its push, if one is registered, and its reach, if any device was heard of."""

    msg_id: str
    push: PushInfo | None
    reach: Reach | None
    #: The devices by stage, of each platform, channel and kind; see :meth:`Queries.breakdown`. Empty in a list.
    parts: Sequence[Part] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Some messages, newest first, and the place after which the next page begins, if there is one."""

    messages: Sequence[Message]
    next: Place | None


class MessagesReport:
    """Lists and tells messages. Callers who ask the same while it is being answered share the next answer."""

    def __init__(self, queries: Queries, pushes: PushRegistry, clock: Callable[[], float] = time.time) -> None:
        self._queries = queries
        self._pushes = pushes
        self._clock = clock
        self._pages: Coalescer[tuple[int, int, Place | None], Page] = Coalescer(self._read_pages)
        self._messages: Coalescer[tuple[int, str], Message] = Coalescer(self._read_messages)

    async def newest(self, app: App, limit: int, before: Place | None) -> Page:
        """The *limit* newest messages, or those that follow *before*."""
        key = app.id, limit, before
        return (await self._pages.get([key]))[key]

    async def one(self, app: App, msg_id: str) -> Message:
        """One message with its parts.

        Raises:
            NotFound: The app has neither a push nor an event of it, or has them no more.
        """
        key = app.id, msg_id
        message = (await self._messages.get([key])).get(key)
        if message is not None:
            return message
        push = await self.registered_push(app, msg_id)
        if push is None:
            raise NotFound(f"message {msg_id} is not known")
        return Message(msg_id, push, None)

    async def registered_push(self, app: App, msg_id: str) -> PushInfo | None:
        """A push that may have been registered this moment: Redis has it before ClickHouse does."""
        push, state = await self._pushes.find(app.id, msg_id)
        return None if push is None or not state.is_kept(push.expires_at, self._clock()) else _of_record(push)

    # ------------------------------------------------------------------------------------------------------------ pages
    async def _read_pages(self, keys: list[tuple[int, int, Place | None]]) -> Mapping[Any, Page]:
        return await _each(self._read_page, keys)

    async def _read_page(self, key: tuple[int, int, Place | None]) -> Page:
        app_id, limit, before = key
        now = int(self._clock())
        places = await self._queries.newest_messages(app_id, before, limit + 1, now, "recent messages")
        msg_ids = [msg_id for _, msg_id in places[:limit]]
        reach, pushes = await self._read(app_id, msg_ids, now, "recent messages", whole=False) if msg_ids else ({}, {})
        return Page([Message(msg_id, pushes.get(msg_id), reach.get(msg_id)) for msg_id in msg_ids],
                    places[limit - 1] if len(places) > limit else None)

    async def _read(self, app_id: int, msg_ids: Sequence[str], now: int, label: str,
                    *, whole: bool) -> tuple[Mapping[str, Reach], Mapping[str, PushInfo]]:
        reach, pushes = await asyncio.gather(
            self._queries.reach(app_id, msg_ids, now, label),
            self._queries.pushes(app_id, msg_ids, now, label, whole=whole))
        return reach, {msg_id: _of_row(push) for msg_id, push in pushes.items()}

    # --------------------------------------------------------------------------------------------------------- messages
    async def _read_messages(self, keys: list[tuple[int, str]]) -> Mapping[Any, Message]:
        by_app: dict[int, list[str]] = {}
        for app_id, msg_id in keys:
            by_app.setdefault(app_id, []).append(msg_id)
        found = await asyncio.gather(*(self._read_of_app(*item) for item in by_app.items()))
        return {key: message for messages in found for key, message in messages.items()}

    async def _read_of_app(self, app_id: int, msg_ids: list[str]) -> Mapping[Any, Message]:
        now = int(self._clock())
        (reach, pushes), parts = await asyncio.gather(
            self._read(app_id, msg_ids, now, "message", whole=True),
            self._queries.breakdown(app_id, msg_ids, now, "message"))
        return {(app_id, msg_id): Message(msg_id, pushes.get(msg_id), reach.get(msg_id), parts.get(msg_id, ()))
                for msg_id in msg_ids if msg_id in pushes or msg_id in reach}


async def _each(read: Callable[[Any], Any], keys: Sequence[Hashable]) -> dict[Any, Any]:
    """``read(key)`` of each key, side by side."""
    return dict(zip(keys, await asyncio.gather(*map(read, keys)), strict=True))


def _of_row(push: StoredPush) -> PushInfo:
    payload = orjson.loads(push.record).get("payload") if push.record else None
    return PushInfo(push.vendor, push.kind, push.created_at, push.expires_at, push.targets, push.for_everyone,
                    title_of(payload), payload)


def _of_record(push: PushRecord) -> PushInfo:
    return PushInfo(push.vendor, push.kind, push.created_at, push.expires_at, push.targets, bool(push.ends),
                    title_of(push.payload), push.payload)
