"""Turns device ids into numbers, fast, and notes what ClickHouse has not been told about them.

An aggregator remembers the devices that *it* has stored in ClickHouse, and no others: after a restart each device is
stored once more, which costs little and can never lose one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from reportsvc.model import platform_rank
from reportsvc.registry.devices import DeviceRegistry
from reportsvc.storage.device_set import Numbers
from reportsvc.storage.queries import NEVER

#: First-seen times are kept to the quarter of an hour: every timezone's hours begin on one.
QUARTER_SECONDS: Final = 900
NEVER_QUARTER: Final = NEVER // QUARTER_SECONDS

Integers = npt.NDArray[np.int64]


class DeviceFact(NamedTuple):
    """What ClickHouse has to learn of a device; ``first_seen`` in quarters of an hour."""

    device_id: str
    number: int
    rank: int
    first_seen: int


@dataclass(slots=True)
class _AppCache:
    """Two generations: what was not asked for since the last change of generation is dropped at the next."""

    young: dict[str, int] = field(default_factory=dict)
    old: dict[str, int] = field(default_factory=dict)


class Numbering:
    """Numbers devices for one aggregator; remembers up to *capacity* of them."""

    def __init__(self, registry: DeviceRegistry, capacity: int) -> None:
        self._registry = registry
        self._capacity = capacity
        self._caches: dict[int, _AppCache] = {}

    async def resolve(self, app_id: int, device_ids: Sequence[str], ranks: Integers,
                      quarters: Integers, now: int) -> tuple[Numbers, list[DeviceFact]]:
        """The numbers of *device_ids*, and the facts to store before they are used.

        *ranks* are those of the platforms that events name (0 where one names none) and *quarters* when each event
        happened (:data:`NEVER_QUARTER` where the device was only named by somebody else). Call :meth:`remember` with
        the facts once they are stored.
        """
        values = self._look_up(app_id, device_ids)
        numbers = (values & 0xFFFF_FFFF).astype(np.uint32)
        unsure = (values < 0) | (ranks > (values >> 32 & 15)) | (quarters < values >> 36)
        positions = np.flatnonzero(unsure)
        if not len(positions):
            return numbers, []
        wanted: dict[str, tuple[int, int]] = {}
        for position in positions.tolist():
            device_id = device_ids[position]
            rank, quarter = wanted.get(device_id) or (platform_rank(device_id, ""), NEVER_QUARTER)
            wanted[device_id] = max(rank, int(ranks[position])), min(quarter, int(quarters[position]))
        devices = await self._registry.number(app_id, {one: rank for one, (rank, _) in wanted.items()}, now,
                                              registering=False)
        facts = {device_id: DeviceFact(device_id, device.number, device.rank, wanted[device_id][1])
                 for device_id, device in zip(wanted, devices, strict=True)}
        for position in positions.tolist():
            numbers[position] = facts[device_ids[position]].number
        return numbers, list(facts.values())

    def remember(self, app_id: int, facts: Sequence[DeviceFact]) -> None:
        """*facts* are stored in ClickHouse now."""
        young = self._caches.setdefault(app_id, _AppCache()).young
        for fact in facts:
            known = young.get(fact.device_id)
            first_seen = fact.first_seen if known is None else min(fact.first_seen, known >> 36)
            young[fact.device_id] = fact.number | fact.rank << 32 | first_seen << 36
        self._age()

    def forget(self, app_id: int) -> None:
        """An app is gone."""
        self._caches.pop(app_id, None)

    def _look_up(self, app_id: int, device_ids: Sequence[str]) -> Integers:
        cache = self._caches.setdefault(app_id, _AppCache())
        get = cache.young.get
        values = np.fromiter(map(get, device_ids, repeat(-1)), np.int64, len(device_ids))
        if cache.old:
            for position in np.flatnonzero(values < 0).tolist():
                device_id = device_ids[position]
                value = cache.old.get(device_id)
                if value is not None:
                    values[position] = cache.young[device_id] = value
        return values

    def _age(self) -> None:
        if sum(len(cache.young) for cache in self._caches.values()) > self._capacity // 2:
            for cache in self._caches.values():
                cache.old, cache.young = cache.young, {}
