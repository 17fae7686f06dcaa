"""What became of one message on given devices, now or as it stood at the end of a past day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from enum import IntEnum

import numpy as np

from reportsvc.errors import BadParameter
from reportsvc.localtime import instant, local_now
from reportsvc.model import App, dies_at
from reportsvc.registry.devices import Device, DeviceRegistry, Floors
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
        devices, (push, state) = await asyncio.gather(
            self._devices.find(app.id, wanted), self._pushes.find(app.id, msg_id))
        known = {device_id: device for device_id, device in zip(wanted, devices, strict=True) if device is not None}
        statuses = dict.fromkeys(wanted, Status.NOT_OF_APP)
        if known:
            found = await (self._now(app, msg_id, list(known.values()), push, state.last) if day in (None, today)
                           else self._on(app, msg_id, list(known.values()), day or today, label))
            statuses.update(zip(known, found, strict=True))
        return statuses

    async def _now(self, app: App, msg_id: str, devices: Sequence[Device], push: PushRecord | None,
                   last: int) -> list[Status]:
        if dies_at(last) <= self._clock():
            return [Status.NOT_OF_APP if device.deleted_at else Status.NOT_A_TARGET for device in devices]
        numbers = np.array([device.number for device in devices], np.uint32)
        received, targets = await contains(
            [received_by(app.id, msg_id), targets_of(app.id, msg_id)], self._redis, numbers)
        return [_status(device, got, meant, push)
                for device, got, meant in zip(devices, received.tolist(), targets.tolist(), strict=True)]

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
                statuses.append(_status(Device(device.number, device.rank), got, meant, None))
        return statuses


def _status(device: Device, received: bool, target: bool, push: PushRecord | None) -> Status:
    if device.deleted_at:
        return Status.NOT_OF_APP
    if received:
        return Status.RECEIVED
    if target or push is not None and push.covers(device):
        return Status.PENDING
    return Status.NOT_A_TARGET
