"""What devices registered of themselves, in Redis: the profile of each, and which interests it has.

A profile is a hash; the names of the device's interests stand beside it in a sorted set of one score, which Redis keeps
in order, so that a page of them begins where another ended whatever was added or removed in between. Both have one hash
tag and change in one script, and each change gets a version that is larger than any before: ClickHouse keeps the row of
the largest. Of a deleted profile the version is kept for a while, so that what a request that was under way makes of it
is newer than the deletion.

Fields: ``p`` gateway, ``t`` token, ``i`` bundle id, ``m`` metadata, ``u`` the user who signed in, ``w`` the user that a
sender named, ``n`` number, ``z`` the version of the last replacement of all interests, ``v`` version, ``x`` being
removed. A hash without ``p`` is of a device that only a sender knows; no device may change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from reportsvc.errors import Conflict, NotFound, TooLarge
from reportsvc.model import MAX_INTERESTS, Profile
from reportsvc.storage.redis import Command, Redis, Script, interests_key, profile_key

#: Longer than any request takes, and than the clocks of two processes differ.
_GRAVE_SECONDS: Final = 3600

_LIBRARY: Final = """
local key, names, now = KEYS[1], KEYS[2], ARGV[1]
local function is_registered() return redis.call('HEXISTS', key, 'p') == 1 and redis.call('HEXISTS', key, 'x') == 0 end
local function advance()
  local version = math.max(tonumber(redis.call('HGET', key, 'v') or 0) + 1, tonumber(now))
  redis.call('HSET', key, 'v', string.format('%.0f', version))
end
local function answer(code) return {code, redis.call('HGETALL', key)} end
"""

# ARGV: now, '1' to make one if there is none, then fields and values; an empty value removes. Answers the profile
# before and after.
_SAVE = Script(_LIBRARY + """
if redis.call('HEXISTS', key, 'x') == 1 or ARGV[2] == '0' and not is_registered() then return false end
local before = redis.call('HGETALL', key)
redis.call('PERSIST', key)
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', key, ARGV[i]) else redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
end
advance()
return {before, redis.call('HGETALL', key)}
""")

# ARGV: now, user.
_SIGN_IN = Script(_LIBRARY + """
if not is_registered() then return false end
local user = redis.call('HGET', key, 'u')
if user and user ~= ARGV[2] then return answer(0) end
redis.call('HSET', key, 'u', ARGV[2])
advance()
return answer(1)
""")

# ARGV: now, user. Takes a user that a sender named off the device.
_UNNAME = Script(_LIBRARY + """
if redis.call('HEXISTS', key, 'n') == 0 then return false end
if redis.call('HGET', key, 'w') == ARGV[2] then
  redis.call('HDEL', key, 'w')
  advance()
end
return answer(1)
""")

# ARGV: now, how many interests a device may have, names.
_SUBSCRIBE = Script(_LIBRARY + """
if not is_registered() then return false end
local fresh = {}
for i = 3, #ARGV do
  if not redis.call('ZSCORE', names, ARGV[i]) then fresh[#fresh + 1] = ARGV[i] end
end
if redis.call('ZCARD', names) + #fresh > tonumber(ARGV[2]) then return answer(0) end
for _, name in ipairs(fresh) do redis.call('ZADD', names, 0, name) end
if #fresh > 0 then advance() end
return answer(1)
""")

# ARGV: now, names.
_UNSUBSCRIBE = Script(_LIBRARY + """
if not is_registered() then return false end
local removed = 0
for i = 2, #ARGV do removed = removed + redis.call('ZREM', names, ARGV[i]) end
if removed > 0 then advance() end
return answer(1)
""")

# ARGV: now, names. Answers also the names that the device had before.
_REPLACE = Script(_LIBRARY + """
if not is_registered() then return false end
local before = redis.call('ZRANGE', names, 0, -1)
redis.call('DEL', names)
for i = 2, #ARGV do redis.call('ZADD', names, 0, ARGV[i]) end
advance()
redis.call('HSET', key, 'z', redis.call('HGET', key, 'v'))
return {1, redis.call('HGETALL', key), before}
""")

# ARGV: a version, names. Answers the present version, and if that is another, a flag for each name.
_SUBSCRIBED = Script("""
local key, names = KEYS[1], KEYS[2]
local version = redis.call('HGET', key, 'v') or ''
if version == ARGV[1] then return {version, ''} end
local flags = {}
local leaving = redis.call('HEXISTS', key, 'x') == 1
for i = 2, #ARGV do flags[i - 1] = not leaving and redis.call('ZSCORE', names, ARGV[i]) and '1' or '0' end
return {version, table.concat(flags)}
""", writes=False)

# ARGV: now. From here on the device can do nothing more; answers what it had.
_LEAVE = Script(_LIBRARY + """
if redis.call('HEXISTS', key, 'n') == 0 then return false end
redis.call('HSET', key, 'x', now)
advance()
return {1, redis.call('HGETALL', key), redis.call('ZRANGE', names, 0, -1)}
""")


# ARGV: '1' to leave alone what somebody else is about to erase, how long to keep the version. Interests of before are
# void also for what comes after.
_ERASE = Script("""
local key, names = KEYS[1], KEYS[2]
if ARGV[1] == '1' and redis.call('HEXISTS', key, 'x') == 1 then return 0 end
local version = redis.call('HGET', key, 'v')
redis.call('UNLINK', key, names)
if version then
  redis.call('HSET', key, 'v', version, 'z', version)
  redis.call('EXPIRE', key, ARGV[2])
end
return 1
""")


class UnknownDevice(NotFound):
    """No such device is registered."""

    def __init__(self) -> None:
        super().__init__("the device is not registered")


class OtherUser(Conflict):
    """Another user signed in on the device."""

    def __init__(self) -> None:
        super().__init__("another user signed in on the device")


class TooManyInterests(TooLarge):
    """The device may have no more interests."""

    def __init__(self) -> None:
        super().__init__(f"a device has at most {MAX_INTERESTS} interests")


@dataclass(frozen=True, slots=True)
class Changed:
    """A profile before a change and after it."""

    before: Profile | None
    after: Profile


class ProfileStore:
    """The profiles of every app. Times are in microseconds."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def load(self, app_id: int, device_ids: Sequence[str]) -> list[Profile | None]:
        """The profiles of these devices, in their order; None where there is none, or it is being removed."""
        replies = await self._redis.run([("HGETALL", profile_key(app_id, device_id)) for device_id in device_ids])
        return [_live(device_id, reply) for device_id, reply in zip(device_ids, replies, strict=True)]

    async def gateway(self, app_id: int, device_id: str) -> str:
        """The gateway that a device is registered with, also while it is being removed; empty if there is none."""
        gateway: bytes | None = await self._redis.call("HGET", profile_key(app_id, device_id), "p")
        return (gateway or b"").decode()

    async def save(self, app_id: int, device_id: str, now: int, *, create: bool = False, number: int | None = None,
                   gateway: str | None = None, token: str | None = None, bundle_id: str | None = None,
                   metadata: Mapping[str, str] | None = None, user_id: str | None = None) -> Changed | None:
        """Change what is given; *create* makes a profile where there is none. None if it is gone."""
        fields = {"n": number, "p": gateway, "t": token, "i": bundle_id, "u": user_id,
                  "m": None if metadata is None else orjson.dumps(dict(metadata))}
        reply = await self._run(_SAVE, app_id, device_id, now, int(create), *_words(fields))
        return _changed(device_id, reply)

    async def name(self, app_id: int, users: Mapping[str, tuple[int, str]], now: int) -> list[Changed | None]:
        """Note the user (beside the number) that a sender named for each device, in that order."""
        replies = await self._redis.run([
            _SAVE(_keys(app_id, device_id), now, 1, *_words({"n": number, "w": user}))
            for device_id, (number, user) in users.items()])
        return [_changed(device_id, reply) for device_id, reply in zip(users, replies, strict=True)]

    async def unname(self, app_id: int, device_ids: Sequence[str], user: str, now: int) -> list[Profile]:
        """Take a user that a sender named off these devices; their profiles now."""
        replies = await self._redis.run([_UNNAME(_keys(app_id, device_id), now, user) for device_id in device_ids])
        return [_parse(device_id, reply[1])
                for device_id, reply in zip(device_ids, replies, strict=True) if reply is not None]

    async def sign_in(self, app_id: int, device_id: str, user_id: str, now: int) -> Profile:
        """Make the device the user's.

        Raises:
            UnknownDevice: It is not registered.
            OtherUser: It is another user's.
        """
        code, fields = _registered(await self._run(_SIGN_IN, app_id, device_id, now, user_id))
        if not code:
            raise OtherUser
        return _parse(device_id, fields)

    # -------------------------------------------------------------------------------------------------------- interests
    async def subscribe(self, app_id: int, device_id: str, interest: str, now: int) -> Profile:
        """Add one interest.

        Raises:
            UnknownDevice: It is not registered.
            TooManyInterests: It has as many as it may.
        """
        code, fields = _registered(await self._run(_SUBSCRIBE, app_id, device_id, now, MAX_INTERESTS, interest))
        if not code:
            raise TooManyInterests
        return _parse(device_id, fields)

    async def unsubscribe(self, app_id: int, device_id: str, interest: str, now: int) -> Profile:
        """Remove one interest.

        Raises:
            UnknownDevice: It is not registered.
        """
        _, fields = _registered(await self._run(_UNSUBSCRIBE, app_id, device_id, now, interest))
        return _parse(device_id, fields)

    async def replace(self, app_id: int, device_id: str, interests: Sequence[str],
                      now: int) -> tuple[Profile, list[str]]:
        """Make *interests* all that the device has; what it had before stands beside the profile.

        Raises:
            UnknownDevice: It is not registered.
        """
        _, fields, before = _registered(await self._run(_REPLACE, app_id, device_id, now, *interests))
        return _parse(device_id, fields), _names(before)

    async def subscribed(self, app_id: int, device_id: str, interests: Sequence[str],
                         version: int) -> tuple[int, dict[str, bool]]:
        """The present version, and, if it is another than *version*, which of *interests* the device has."""
        present, flags = await self._run(_SUBSCRIBED, app_id, device_id, version, *interests)
        return int(present or 0), {name: flag == "1" for name, flag in zip(interests, flags.decode())}

    async def interests(self, app_id: int, device_id: str, after: str = "", limit: int = MAX_INTERESTS) -> list[str]:
        """Up to *limit* interests of the device that come after the name *after*, in the order of their bytes."""
        start = f"({after}" if after else "-"
        return _names(await self._redis.call(
            "ZRANGEBYLEX", interests_key(app_id, device_id), start, "+", "LIMIT", 0, limit))

    # ---------------------------------------------------------------------------------------------------------- rebuild
    def restore(self, app_id: int, profile: Profile) -> Command:
        """What writes a profile as it is."""
        fields = {"n": profile.number, "p": profile.gateway, "t": profile.token, "i": profile.bundle_id,
                  "m": orjson.dumps(dict(profile.metadata)) if profile.gateway else "", "u": profile.user_id,
                  "w": profile.named_user, "z": profile.interests_since or "", "v": profile.version}
        return ("HSET", profile_key(app_id, profile.device_id), *_words(
            {name: None if value == "" else value for name, value in fields.items()}))

    def restore_interests(self, app_id: int, device_id: str, names: Sequence[str], version: int) -> list[Command]:
        """What adds interests to a restored profile, and gives it the *version* of their latest change."""
        commands: list[Command] = [("HSET", profile_key(app_id, device_id), "v", version)]
        if names:
            commands.append(("ZADD", interests_key(app_id, device_id), *(word for name in names for word in (0, name))))
        return commands

    # ---------------------------------------------------------------------------------------------------------- removal
    async def leave(self, app_id: int, device_id: str, now: int) -> tuple[Profile, list[str]] | None:
        """Bar the way to the profile, and tell it and the interests, for whoever has to undo them; None if there is
        none. May be repeated until :meth:`erase`."""
        reply = await self._run(_LEAVE, app_id, device_id, now)
        return None if reply is None else (_parse(device_id, reply[1]), _names(reply[2]))

    async def erase(self, app_id: int, device_id: str) -> None:
        """Remove the profile and the list of interests."""
        await self._run(_ERASE, app_id, device_id, 0, _GRAVE_SECONDS)

    async def discard(self, app_id: int, device_id: str) -> None:
        """The same, unless somebody else is about to do it."""
        await self._run(_ERASE, app_id, device_id, 1, _GRAVE_SECONDS)

    async def _run(self, script: Script, app_id: int, device_id: str, *args: Any) -> Any:
        return await self._redis.call(*script(_keys(app_id, device_id), *args))


def _keys(app_id: int, device_id: str) -> tuple[str, str]:
    return profile_key(app_id, device_id), interests_key(app_id, device_id)


def _words(fields: Mapping[str, Any]) -> list[Any]:
    return [word for name, value in fields.items() if value is not None for word in (name, value)]


def _registered(reply: Any) -> Any:
    if reply is None:
        raise UnknownDevice
    return reply


def _names(reply: Iterable[bytes]) -> list[str]:
    return [name.decode() for name in reply]


def _fields(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _live(device_id: str, reply: Any) -> Profile | None:
    fields = _fields(reply)
    return _parse(device_id, fields) if b"n" in fields and b"x" not in fields else None


def _changed(device_id: str, reply: Any) -> Changed | None:
    return None if reply is None else Changed(_live(device_id, reply[0]), _parse(device_id, reply[1]))


def _parse(device_id: str, reply: Any) -> Profile:
    fields = {name.decode(): value.decode() for name, value in _fields(reply).items()}
    return Profile(
        device_id, int(fields["n"]), fields.get("p", ""), fields.get("t", ""), fields.get("i", ""),
        orjson.loads(fields.get("m", "{}")), fields.get("u", ""), fields.get("w", ""), int(fields.get("z", 0)),
        int(fields["v"]))
