"""What became of one message on given devices, now or as it stood at the end of a past day."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from reportsvc.errors import BadParameter
from reportsvc.localtime import instant, local_now
from reportsvc.model import App, dies_at
from reportsvc.registry.devices import Device, DeviceRegistry, Floors, Found
from reportsvc.registry.messages import received_by, targets_of
from reportsvc.registry.pushes import PushRecord, PushRegistry
from reportsvc.storage.device_set import contains
from reportsvc.storage.queries import Queries
from reportsvc.storage.redis import Redis


class Status(IntEnum):
    """The numbers are JPush's, and the order in which they win."""

    RECEIVED = 0
    PENDING = 1
    NOT_OF_APP = 2
    NOT_A_TARGET = 3
    UNKNOWN = 4


_STATUSES: Final = sorted(Status)


class StatusReport:
    """Statuses of devices."""

    def __init__(self, redis: Redis, queries: Queries, clock: Callable[[], float] = time.time,
                 floors: Floors | None = None) -> None:
        self._redis = redis
        self._queries = queries
        self._clock = clock
        self._devices = DeviceRegistry(redis, floors)
        self._pushes = PushRegistry(redis, queries)

    async def statuses(self, app: App, msg_id: str, device_ids: Sequence[str], day: date | None,
                       label: str) -> dict[str, Status]:
        """The status of each device; *day* is one of the app's timezone, None or today for now.

        Raises:
            BadParameter: *day* is in the future.
            StoreUnavailable: A store could not say for any device.
        """
        today = local_now(app.timezone, self._clock()).date()
        if day is not None and day > today:
            raise BadParameter("date", "it is in the future")
        wanted = list(dict.fromkeys(device_ids))
        # Asked together, though only today's status is about the push as it is now: one wait instead of two.
        found, (push, state) = await self._redis.ask(
            self._devices.question(app.id, wanted), self._pushes.question(app.id, msg_id))
        if day in (None, today):
            codes = await self._now(app, msg_id, found, push, state.last)
            return dict(zip(wanted, map(_STATUSES.__getitem__, codes.tolist()), strict=True))
        statuses = dict.fromkeys(wanted, Status.NOT_OF_APP)
        known = {device_id: device for device_id, device in zip(wanted, found.devices(), strict=True)
                 if device is not None}
        if known:
            past = await self._on(app, msg_id, list(known.values()), day or today, label)
            statuses.update(zip(known, past, strict=True))
        return statuses

    async def _now(self, app: App, msg_id: str, found: Found, push: PushRecord | None,
                   last: int) -> npt.NDArray[np.int64]:
        codes = np.where(found.numbers >= 0, Status.NOT_A_TARGET, Status.NOT_OF_APP)
        known = np.flatnonzero(found.numbers >= 0)
        if len(known) and dies_at(last) > self._clock():
            received, targets = await contains([received_by(app.id, msg_id), targets_of(app.id, msg_id)], self._redis,
                                               found.numbers[known].astype(np.uint32))
            codes[known[targets]] = Status.PENDING
            if push is not None:
                for position in np.flatnonzero(codes == Status.NOT_A_TARGET).tolist():
                    device = found.device(position)
                    if device is not None and push.covers(device):
                        codes[position] = Status.PENDING
            codes[known[received]] = Status.RECEIVED
        for position, device in found.marked.items():
            if device.deleted_at:
                codes[position] = Status.NOT_OF_APP
        return codes

    async def _on(self, app: App, msg_id: str, devices: Sequence[Device], day: date, label: str) -> list[Status]:
        end = instant(app.timezone, datetime.combine(day + timedelta(days=1), datetime.min.time()))
        numbers = [device.number for device in devices]
        stored = await self._queries.devices(app.id, numbers, label)
        members = await self._queries.membership(app.id, msg_id, numbers, end, int(self._clock()), label)
        statuses = []
        for device, (got, meant) in zip(devices, members or [(False, False)] * len(devices), strict=True):
            row = stored.get(device.number)
            was_there = row is not None and (row.first_seen < end or meant) and not 0 < row.deleted_at < end
            if row is None:
                statuses.append(Status.UNKNOWN)
            elif not was_there and not (row.registered_at > row.deleted_at and row.registered_at < end):
                statuses.append(Status.NOT_OF_APP)
            else:
                statuses.append(Status.RECEIVED if got else Status.PENDING if meant else Status.NOT_A_TARGET)
        return statuses
