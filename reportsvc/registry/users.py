"""Whose a device is: the devices on which a user signed in, and those that a sender named a user for.

Two lists a user, because they differ in who may write them: a device must show a token that the app signed, and then a
user has at most 100 devices; a sender may name as many as he likes. What an event says of a user is in neither: anybody
can send one, and a push to a user may be private.

A device's profile and the list of its user are on different keys, so no transaction holds them together. A device that
signs in takes a place in the list first, which is where the limit is, then its profile is written, then the place is
made good. One that changes hands leaves the list first; one that is deleted falls back to a place, and leaves when its
profile is gone, so that the deletion of a user who is deleted once more finds what was left of the first time. A place
is in no audience, and is given up when it is old and needed. Whoever has written a list looks at the profile
afterwards, and writes what it says now if somebody else changed it meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from reportsvc.errors import Conflict
from reportsvc.model import MAX_DEVICES, Profile
from reportsvc.registry.profiles import Changed, OtherUser, ProfileStore
from reportsvc.storage.redis import Command, Redis, Script, named_key, signed_in_key

#: A sign-in takes milliseconds; a place that is not made good for so long was left by one that broke off.
_PLACE_MICROSECONDS: Final = 60_000_000

# ARGV: how many devices a user may have, now, how long a place is held, device id, number. A place is held as
# `number:since`.
_JOIN = Script("""
local key, most, now = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('HEXISTS', key, ARGV[4]) == 1 then return 1 end
if redis.call('HLEN', key) >= most then
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local since = string.match(all[i + 1], ':(%d+)$')
    if since and tonumber(since) + tonumber(ARGV[3]) < now then redis.call('HDEL', key, all[i]) end
  end
  if redis.call('HLEN', key) >= most then return 0 end
end
redis.call('HSET', key, ARGV[4], ARGV[5] .. ':' .. ARGV[2])
return 1
""")


class TooManyDevices(Conflict):
    """The user may have no more devices."""

    def __init__(self) -> None:
        super().__init__(f"a user has at most {MAX_DEVICES} devices")


class Users:
    """The users of every app. Times are in microseconds."""

    def __init__(self, redis: Redis, profiles: ProfileStore) -> None:
        self._redis = redis
        self._profiles = profiles

    # ---------------------------------------------------------------------------------------------------------- sign in
    async def sign_in(self, app_id: int, profile: Profile, user_id: str, now: int) -> Profile:
        """Make a registered device the user's; saying so again changes nothing.

        Raises:
            UnknownDevice: It is not registered any more.
            OtherUser: It is another user's.
            TooManyDevices: The user has as many as he may.
        """
        if profile.user_id not in ("", user_id):
            raise OtherUser
        if not await self._redis.call(*_JOIN((signed_in_key(app_id, user_id),), MAX_DEVICES, now, _PLACE_MICROSECONDS,
                                             profile.device_id, profile.number)):
            raise TooManyDevices
        try:
            return await self._profiles.sign_in(app_id, profile.device_id, user_id, now)
        finally:
            await self.settle(app_id, profile.device_id, user_id)

    async def settle(self, app_id: int, device_id: str, user_id: str) -> None:
        """Make the list of a user say of a device what the device's profile says."""
        key, version = signed_in_key(app_id, user_id), -1
        while True:
            profile, = await self._profiles.load(app_id, [device_id])
            present = profile.version if profile else 0
            if present == version:
                return
            version = present
            if profile and profile.user_id == user_id:
                await self._redis.call("HSET", key, device_id, profile.number)
            else:
                await self._redis.call("HDEL", key, device_id)

    async def sign_out(self, app_id: int, profile: Profile) -> None:
        """Take a device off the list of its user, who will be taken out of its profile next."""
        if profile.user_id:
            await self._redis.call("HDEL", signed_in_key(app_id, profile.user_id), profile.device_id)

    async def signed_in(self, app_id: int, user_id: str) -> list[str]:
        """The devices on which a user signed in."""
        return [device_id.decode() for device_id in await self._redis.call("HKEYS", signed_in_key(app_id, user_id))]

    # ------------------------------------------------------------------------------------------------------------- name
    async def name(self, app_id: int, users: Mapping[str, tuple[int, str]], now: int) -> list[Profile]:
        """Make each device (id -> number, user) that of the user whom a sender names for it; what has changed."""
        profiles = await self._profiles.load(app_id, list(users))
        await self._redis.run([
            ("HDEL", named_key(app_id, profile.named_user), profile.device_id) for profile in profiles
            if profile and profile.named_user not in ("", users[profile.device_id][1])])
        done = [change for change in await self._profiles.name(app_id, users, now) if change is not None]
        changes: Sequence[Changed] = done
        while changes:
            await self._redis.run([command for change in changes for command in _renaming(app_id, change)])
            profiles = await self._profiles.load(app_id, [change.after.device_id for change in changes])
            now_named = [profile or replace(change.after, named_user="")
                         for change, profile in zip(changes, profiles, strict=True)]
            changes = [Changed(change.after, profile) for change, profile in zip(changes, now_named, strict=True)
                       if profile.named_user != change.after.named_user]
        return [change.after for change in done]

    async def unname(self, app_id: int, user_id: str, now: int) -> list[Profile]:
        """Take a user off every device that a sender named him for; they are on his list until :meth:`drop`."""
        device_ids = [device_id.decode() for device_id in await self._redis.call("HKEYS", named_key(app_id, user_id))]
        return await self._profiles.unname(app_id, device_ids, user_id, now)

    async def drop(self, app_id: int, user_id: str, profiles: Iterable[Profile]) -> None:
        """Take devices off the list of those that a sender named the user for."""
        await self._redis.run([("HDEL", named_key(app_id, user_id), profile.device_id) for profile in profiles])

    # ------------------------------------------------------------------------------------------------------------- both
    async def leave(self, app_id: int, profile: Profile, now: int) -> None:
        """Take a device that is being deleted out of every audience of its users."""
        commands: list[Command] = []
        if profile.user_id:
            commands.append(("HSET", signed_in_key(app_id, profile.user_id), profile.device_id,
                             f"{profile.number}:{now}"))
        if profile.named_user:
            commands.append(("HDEL", named_key(app_id, profile.named_user), profile.device_id))
        await self._redis.run(commands)

    def restore(self, app_id: int, profile: Profile) -> list[Command]:
        """What writes a device into the lists that its profile says."""
        keys = [signed_in_key(app_id, profile.user_id)] * bool(profile.user_id)
        keys += [named_key(app_id, profile.named_user)] * bool(profile.named_user)
        return [("HSET", key, profile.device_id, profile.number) for key in keys]

    async def numbers(self, app_id: int, user_ids: Iterable[str]) -> list[int]:
        """The numbers of all devices of some users."""
        replies = await self._redis.run([
            ("HVALS", key(app_id, user_id)) for user_id in user_ids for key in (signed_in_key, named_key)])
        return [int(value) for reply in replies for value in reply if b":" not in value]


def _renaming(app_id: int, change: Changed) -> list[Command]:
    device_id, user_id = change.after.device_id, change.after.named_user
    commands: list[Command] = []
    if user_id:
        commands.append(("HSET", named_key(app_id, user_id), device_id, change.after.number))
    if change.before and change.before.named_user not in ("", user_id):
        commands.append(("HDEL", named_key(app_id, change.before.named_user), device_id))
    return commands
