"""Which devices subscribe to an interest: a device set for each, kept in step with the lists of the devices.

A device's own list (``registry.profiles``) and the set of an interest are on different keys, so no transaction holds
them together. Two rules do:

* A set never has a device whose list lacks the interest, wherever a change breaks off: a list grows before the set and
  shrinks after it. Removing a device can therefore go by its list, and whoever repeats a change that broke off, as
  every SDK does that had no answer, completes it: sets are written whether the list changed or not.
* Whoever has written sets looks at the list's version afterwards, and writes what the list says now if somebody else
  changed it meanwhile. The last to look leaves both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reportsvc.model import Profile
from reportsvc.registry.profiles import ProfileStore
from reportsvc.storage.device_set import DeviceSet
from reportsvc.storage.redis import Redis, subscribers_key


def subscribers(app_id: int, interest: str) -> DeviceSet:
    """The devices that have an interest."""
    return DeviceSet(subscribers_key(app_id, interest))


class Interests:
    """The interests of every app. Times are in microseconds.

    Every change answers the profile with the version that has it, and raises
    :class:`~reportsvc.registry.profiles.UnknownDevice` for a device that is not registered.
    """

    def __init__(self, redis: Redis, profiles: ProfileStore, small_chunk_limit: int) -> None:
        self._redis = redis
        self._profiles = profiles
        self._limit = small_chunk_limit

    async def add(self, app_id: int, device_id: str, interest: str, now: int) -> Profile:
        """Subscribe a device to an interest.

        Raises:
            TooManyInterests: It has as many as it may.
        """
        profile = await self._profiles.subscribe(app_id, device_id, interest, now)
        await self._settle(app_id, profile, {interest: True})
        return profile

    async def remove(self, app_id: int, profile: Profile, interest: str, now: int) -> Profile:
        """End a subscription, which need not exist."""
        await self._write(app_id, profile.number, {interest: False})
        profile = await self._profiles.unsubscribe(app_id, profile.device_id, interest, now)
        await self._settle(app_id, profile, {interest: False})
        return profile

    async def replace(self, app_id: int, profile: Profile, interests: Sequence[str], now: int) -> Profile:
        """Make *interests* the only ones of a device."""
        wanted = dict.fromkeys(interests, True)
        before = await self._profiles.interests(app_id, profile.device_id)
        await self._write(app_id, profile.number, {name: False for name in before if name not in wanted})
        profile, before = await self._profiles.replace(app_id, profile.device_id, list(wanted), now)
        await self._settle(app_id, profile, dict.fromkeys(before, False) | wanted)
        return profile

    async def drop(self, app_id: int, number: int, interests: Iterable[str]) -> None:
        """Take a device that is being removed out of the sets."""
        await self._write(app_id, number, dict.fromkeys(interests, False))

    async def _settle(self, app_id: int, profile: Profile, wanted: Mapping[str, bool]) -> None:
        """Write the sets until they say what the list says."""
        version = profile.version
        while wanted:
            await self._write(app_id, profile.number, wanted)
            version, wanted = await self._profiles.subscribed(app_id, profile.device_id, list(wanted), version)

    async def _write(self, app_id: int, number: int, wanted: Mapping[str, bool]) -> None:
        numbers = np.array([number], np.uint32)
        await self._redis.run([
            command for name, is_wanted in wanted.items()
            for command in (subscribers(app_id, name).add(numbers, self._limit) if is_wanted
                            else subscribers(app_id, name).remove(numbers))])
