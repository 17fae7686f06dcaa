"""Who a push is meant for at this moment, when it names interests or users: a union of device sets, chunk by chunk.

No device is looked at by itself: a chunk of a large interest is a bitmap of 8 KiB, and a million devices are sixteen of
them, whether one interest has them or a hundred together.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import orjson

from reportsvc.registry.devices import DeviceRegistry
from reportsvc.registry.interests import subscribers
from reportsvc.registry.profiles import ProfileStore
from reportsvc.registry.users import Users
from reportsvc.storage.device_set import Numbers, chunk_of, chunks_below, count_of, decode_chunk, split, union_of
from reportsvc.storage.redis import Redis

#: Chunks read in one round trip: 4 MiB of bitmaps at most.
_READS: Final = 512


@dataclass(frozen=True, slots=True)
class Members:
    """A set of device numbers, chunk by chunk, each in a form of :mod:`reportsvc.storage.device_set`."""

    chunks: Mapping[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(count_of, self.chunks.values()))

    @classmethod
    def of(cls, numbers: Numbers) -> Members:
        """The set of *numbers*, in any order."""
        return cls({chunk: chunk_of(offsets) for chunk, offsets, _ in split(numbers)})

    @property
    def numbers(self) -> Numbers:
        """The members, ascending; for small sets."""
        parts = [decode_chunk(chunk, members) for chunk, members in sorted(self.chunks.items())]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def parts(self, chunks: int) -> Iterator[Members]:
        """The same in parts of up to so many *chunks*."""
        for start in range(0, len(self.chunks), chunks):
            yield Members(dict(islice(self.chunks.items(), start, start + chunks)))

    def document(self) -> dict[str, str]:
        """As JSON values."""
        return {str(chunk): base64.b64encode(members).decode() for chunk, members in self.chunks.items()}

    def dump(self) -> bytes:
        """As JSON; empty for an empty set."""
        return orjson.dumps(self.document()) if self.chunks else b""

    @classmethod
    def load(cls, text: bytes) -> Members:
        """Undo :meth:`dump`."""
        return cls.parse(orjson.loads(text))

    @classmethod
    def parse(cls, document: Mapping[str, str]) -> Members:
        """Undo :meth:`document`."""
        return cls({int(chunk): base64.b64decode(members) for chunk, members in document.items()})


class Audiences:
    """The audiences of every app."""

    def __init__(self, redis: Redis, devices: DeviceRegistry) -> None:
        self._redis = redis
        self._devices = devices
        self._users = Users(redis, ProfileStore(redis))

    async def with_interests(self, app_id: int, interests: Sequence[str]) -> Members:
        """The devices that have at least one of *interests* now."""
        names = list(dict.fromkeys(interests))
        chunks = chunks_below((await self._devices.extent(app_id)).end)
        found: dict[int, bytes] = {}
        step = max(1, _READS // max(1, len(names)))
        for start in range(0, len(chunks), step):
            part = chunks[start:start + step]
            replies = iter(await self._redis.run([
                subscribers(app_id, name).read_command(chunk) for chunk in part for name in names]))
            for chunk in part:
                if members := union_of([next(replies) for _ in names]):
                    found[chunk] = members
        return Members(found)

    async def of_users(self, app_id: int, user_ids: Iterable[str]) -> Members:
        """The devices of *user_ids* now."""
        return Members.of(np.array(await self._users.numbers(app_id, dict.fromkeys(user_ids)), np.uint32))
