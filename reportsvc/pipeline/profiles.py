"""What devices register of themselves: profiles, interests, users; visible at once, durable when answered.

A change is decided in Redis, by a script on the profile, and only then written to the journal, because only there is
it known whether it may be made and which version it has. A crash in between leaves a change that nobody was told of and
that ClickHouse lacks; every SDK repeats what it got no answer to, and a repetition is journaled like a change, also
when there is nothing left to change.

A device that was deleted never comes back: its id is dead, and the same token makes a new device. A registration
therefore looks, when it is done, whether the device was deleted meanwhile, and then begins anew.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from reportsvc.errors import StoreUnavailable
from reportsvc.model import PLATFORM_OF_GATEWAY, App, DeviceUpsert, Profile, platform_rank
from reportsvc.pipeline import records
from reportsvc.pipeline.journal import Journal
from reportsvc.registry.devices import DeviceRegistry
from reportsvc.registry.interests import Interests
from reportsvc.registry.profiles import Changed, ProfileStore, UnknownDevice
from reportsvc.registry.tokens import Tokens
from reportsvc.registry.users import Users
from reportsvc.storage.redis import Redis

#: Each attempt but the first means that the device was deleted in the very moment of its registration.
_ATTEMPTS: Final = 5


class ProfileRegistrar:
    """Registers and changes profiles on behalf of devices.

    Every method raises :class:`UnknownDevice` for a device that is not registered with the gateway, unless it says
    otherwise. Sending anything again is safe.
    """

    def __init__(self, redis: Redis, devices: DeviceRegistry, journal: Journal, small_chunk_limit: int,
                 clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._devices = devices
        self._tokens = Tokens(redis)
        self._profiles = ProfileStore(redis)
        self._interests = Interests(redis, self._profiles, small_chunk_limit)
        self._users = Users(redis, self._profiles)

    async def register(self, app: App, gateway: str, token: str, bundle_id: str,
                       metadata: Mapping[str, str]) -> tuple[str, list[str]]:
        """Make a device known; its id, and the interests that it has already.

        A token that is seen again is the same device, without its user: the SDK has forgotten that there was one, could
        never set another, and sets him again if there is one.
        """
        at, _ = self._now()
        profile = await self._create(app, gateway, token, bundle_id, metadata)
        upsert = DeviceUpsert(profile.device_id, PLATFORM_OF_GATEWAY[gateway])
        await self._append(records.devices(app.id, [upsert], at), records.profiles(app.id, [profile], at, seen=True))
        return profile.device_id, await self._profiles.interests(app.id, profile.device_id)

    async def _create(self, app: App, gateway: str, token: str, bundle_id: str,
                      metadata: Mapping[str, str]) -> Profile:
        at, now = self._now()
        dead = ""
        for _ in range(_ATTEMPTS):
            device_id = await self._tokens.claim(app.id, gateway, token, f"{gateway}-{uuid.uuid4()}", dead)
            ranks = {device_id: platform_rank(device_id, PLATFORM_OF_GATEWAY[gateway])}
            device, = await self._devices.number(app.id, ranks, at, registering=False)
            if not device.deleted_at:
                await self._release(app, device_id, token)
                changed = await self._profiles.save(
                    app.id, device_id, now, create=True, number=device.number, gateway=gateway, token=token,
                    bundle_id=bundle_id, metadata=metadata, user_id="")
                if changed is not None and await self._is_settled(app, changed, token):
                    return changed.after
            dead = device_id
        raise StoreUnavailable("redis", "the device is being deleted again and again")

    async def _release(self, app: App, device_id: str, token: str) -> None:
        """Undo what leads to a device by what it will not have any more."""
        profile, = await self._profiles.load(app.id, [device_id])
        if profile is not None:
            await self._users.sign_out(app.id, profile)
            if profile.token not in ("", token):
                await self._tokens.release(app.id, profile.gateway, profile.token, device_id)

    async def _is_settled(self, app: App, changed: Changed, token: str) -> bool:
        """Whether a device that was registered is one still, and has its token; if not, it is deleted.

        What leads to it by its token, and by the user it had, is made to say what its profile says by now.
        """
        device_id, before = changed.after.device_id, changed.before
        if before is not None and before.user_id:
            await self._users.settle(app.id, device_id, before.user_id)
        device, = await self._devices.find(app.id, [device_id])
        if device is None or device.deleted_at:
            await self._profiles.discard(app.id, device_id)
            return False
        return await self._settle_tokens(app, changed.after, {token, before.token if before else token})

    async def _settle_tokens(self, app: App, profile: Profile, tokens: Iterable[str]) -> bool:
        """Make the owner of each token what the profile of a device says; False if the device lost its own, and with
        it its reason to be: another device, the same installation later, has it."""
        version = -1
        while True:
            present, = await self._profiles.load(app.id, [profile.device_id])
            if (present.version if present else 0) == version:
                return True
            version = present.version if present else 0
            for token in tokens:
                if present is None or token != present.token:
                    await self._tokens.release(app.id, profile.gateway, token, profile.device_id)
                elif await self._tokens.claim(app.id, profile.gateway, token, profile.device_id) != profile.device_id:
                    await self.delete(app, profile.device_id)
                    return False

    async def find(self, app: App, gateway: str, device_id: str) -> Profile:
        """The profile of a device."""
        _require(gateway, device_id)
        profile, = await self._profiles.load(app.id, [device_id])
        if profile is None or not profile.gateway:
            raise UnknownDevice
        return profile

    async def set_metadata(self, app: App, gateway: str, device_id: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of a device."""
        at, now = self._now()
        _require(gateway, device_id)
        await self._saved(app, await self._profiles.save(app.id, device_id, now, metadata=metadata), at)

    async def set_token(self, app: App, gateway: str, device_id: str, token: str) -> None:
        """Give a device another token. A device that had the token before is deleted: the one that says it has the
        token now is the same installation, later."""
        at, now = self._now()
        profile = await self.find(app, gateway, device_id)
        owner = await self._tokens.claim(app.id, gateway, token, device_id)
        while owner != device_id:
            await self.delete(app, owner)
            owner = await self._tokens.claim(app.id, gateway, token, device_id, instead_of=owner)
        if profile.token != token:
            await self._tokens.release(app.id, gateway, profile.token, device_id)
        changed = await self._profiles.save(app.id, device_id, now, token=token)
        if not await self._settle_tokens(app, profile, {token, profile.token}):
            raise UnknownDevice
        await self._saved(app, changed, at)

    async def sign_in(self, app: App, gateway: str, device_id: str, user_id: str) -> None:
        """Make a device the user's.

        Raises:
            OtherUser: It is another user's.
            TooManyDevices: The user has as many as he may.
        """
        at, now = self._now()
        profile = await self.find(app, gateway, device_id)
        profile = await self._users.sign_in(app.id, profile, user_id, now)
        await self._append(records.profiles(app.id, [profile], at, seen=True))

    # -------------------------------------------------------------------------------------------------------- interests
    async def interests(self, app: App, gateway: str, device_id: str, after: str, limit: int) -> list[str]:
        """Up to *limit* interests of a device that come after the name *after*, in the order of their bytes."""
        await self.find(app, gateway, device_id)
        return await self._profiles.interests(app.id, device_id, after, limit)

    async def add_interest(self, app: App, gateway: str, device_id: str, interest: str) -> None:
        """Subscribe a device to an interest.

        Raises:
            TooManyInterests: It has as many as it may.
        """
        at, now = self._now()
        _require(gateway, device_id)
        profile = await self._interests.add(app.id, device_id, interest, now)
        await self._append(records.interests(app.id, profile, [interest], at, subscribed=True))

    async def remove_interest(self, app: App, gateway: str, device_id: str, interest: str) -> None:
        """End a subscription, which need not exist."""
        at, now = self._now()
        profile = await self.find(app, gateway, device_id)
        profile = await self._interests.remove(app.id, profile, interest, now)
        await self._append(records.interests(app.id, profile, [interest], at, subscribed=False))

    async def set_interests(self, app: App, gateway: str, device_id: str, interests: Sequence[str]) -> None:
        """Make *interests* the only ones of a device."""
        at, now = self._now()
        profile = await self.find(app, gateway, device_id)
        profile = await self._interests.replace(app.id, profile, interests, now)
        await self._append(records.profiles(app.id, [profile], at, seen=True),
                           records.interests(app.id, profile, interests, at, subscribed=True))

    # ---------------------------------------------------------------------------------------------------------- senders
    async def name_users(self, app: App, users: Mapping[str, tuple[int, str]]) -> None:
        """Make each device (id -> number, user) that of the user whom a sender names for it."""
        at, now = self._now()
        if users:
            profiles = await self._users.name(app.id, users, now)
            await self._append(records.profiles(app.id, profiles, at, seen=False))
            for device_id, device in zip(users, await self._devices.find(app.id, list(users)), strict=True):
                if device is not None and device.deleted_at:  # meanwhile, and without what was named
                    await self.delete(app, device_id)

    # ---------------------------------------------------------------------------------------------------------- removal
    async def unregister(self, app: App, gateway: str, device_id: str) -> None:
        """Delete a device at its own wish; one that is not registered with the gateway is left alone."""
        if await self._profiles.gateway(app.id, device_id) == gateway:
            await self.delete(app, device_id)

    async def delete(self, app: App, device_id: str) -> bool:
        """Make a device no device of the app any more, and remove its profile; False if it never was one.

        The profile goes last but one, as everything else is found through it: a deletion that breaks off is completed
        by its repetition.
        """
        at, now = self._now()
        left = await self._profiles.leave(app.id, device_id, now)
        if left is not None:
            profile, interests = left
            await self._interests.drop(app.id, profile.number, interests)
            await self._users.leave(app.id, profile, now)
            if profile.token:
                await self._tokens.release(app.id, profile.gateway, profile.token, device_id)
        device = await self._devices.delete(app.id, device_id, at)
        if device is None:
            return False
        gone = [records.deletion(app.id, device_id, device.deleted_at)]
        if left is not None:
            gone.append(records.profile_deletion(app.id, left[0], at))
        await self._append(*gone)
        if left is not None:
            await self._profiles.erase(app.id, device_id)
            await self._users.sign_out(app.id, left[0])
        return True

    async def delete_user(self, app: App, user_id: str) -> None:
        """Delete every device on which a user signed in, and take him off those that a sender named him for."""
        at, now = self._now()
        for device_id in await self._users.signed_in(app.id, user_id):
            profile, = await self._profiles.load(app.id, [device_id])
            if profile is not None and profile.user_id == user_id or profile is None and await self._profiles.gateway(
                    app.id, device_id):  # a deletion that broke off
                await self.delete(app, device_id)
            else:
                await self._users.settle(app.id, device_id, user_id)
        profiles = await self._users.unname(app.id, user_id, now)
        if profiles:
            await self._append(records.profiles(app.id, profiles, at, seen=False))
            await self._users.drop(app.id, user_id, profiles)

    async def _saved(self, app: App, changed: Changed | None, at: int) -> None:
        if changed is None:
            raise UnknownDevice
        await self._append(records.profiles(app.id, [changed.after], at, seen=True))

    async def _append(self, *entries: bytes) -> None:
        await asyncio.gather(*[self._journal.append_record(entry) for entry in entries])

    def _now(self) -> tuple[int, int]:
        now = self._clock()
        return int(now), int(now * 1_000_000)


def _require(gateway: str, device_id: str) -> None:
    """A device is registered with the gateway that its id names."""
    if not device_id.startswith(f"{gateway}-"):
        raise UnknownDevice
