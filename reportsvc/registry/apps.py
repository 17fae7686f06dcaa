"""The apps: tenants with their credentials and settings.

All of them live in one small Redis hash and in the memory of every process, which looks for changes twice a second:
checking a request's credentials costs no round trip, and goes on while Redis is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import orjson

from reportsvc.errors import BadConfig, DataLost, StoreUnavailable
from reportsvc.model import App, FormerKeys
from reportsvc.registry import vapid
from reportsvc.registry.uses import Uses, forget_uses, last_uses
from reportsvc.storage.redis import Redis, Script, apps_key

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 0.5
#: An unknown key may belong to an app made a moment ago; it is looked for at once, but no more often than this.
_LOOK_AGAIN_SECONDS: Final = 0.1
_VERSION: Final = "v"
_LAST_ID: Final = "n"

# ARGV: name, JSON without the id. Answers the id and the version, or nothing when the name is taken.
_CREATE = Script("""
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= 'v' and all[i] ~= 'n' and cjson.decode(all[i + 1]).name == ARGV[1] then return false end
end
local id = redis.call('HINCRBY', KEYS[1], 'n', 1)
redis.call('HSET', KEYS[1], id, (string.gsub(ARGV[2], '"id":0', '"id":' .. id, 1)))
return {id, redis.call('HINCRBY', KEYS[1], 'v', 1)}
""")

_DELETE = Script("""
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return false end
return redis.call('HINCRBY', KEYS[1], 'v', 1)
""")


# ARGV: id, JSON it has, JSON it gets. Answers the version, or nothing when the app has changed meanwhile or is gone.
_CHANGE = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return false end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return redis.call('HINCRBY', KEYS[1], 'v', 1)
""")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A new app together with its secrets, which exist in clear only here."""

    app: App
    master_secret: str = field(repr=False)
    pushy_api_key: str = field(repr=False)

    def document(self) -> dict[str, Any]:
        """What the command line prints."""
        return {
            "name": self.app.name, "app_key": self.app.app_key, "master_secret": self.master_secret,
            "pushy_api_key": self.pushy_api_key, "beams_instance_id": self.app.beams_instance_id,
            "beams_secret_key": self.app.beams_secret_key, "timezone": self.app.timezone, "vip": self.app.vip,
        }


class AppStore:
    """The apps in Redis: what the command line works on."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def version(self) -> int:
        """A number that grows with every change."""
        return int(await self._redis.call("HGET", apps_key(), _VERSION) or 0)

    async def all(self) -> list[App]:
        """Every app, oldest first."""
        fields = await self._redis.call("HGETALL", apps_key())
        pairs: Iterable[tuple[bytes, bytes]] = (
            fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True))
        apps = [app_of(orjson.loads(value)) for key, value in pairs if key.isdigit()]
        return sorted(apps, key=lambda app: app.id)

    async def clear(self) -> None:
        """Forget every app, for :meth:`restore` to bring back."""
        await self._redis.call("UNLINK", apps_key())

    async def restore(self, records: Mapping[int, str], version: int, last_id: int) -> None:
        """Put back the JSON of every app at once; *version* and *last_id* are the largest there ever were."""
        words = [word for app_id, record in records.items() for word in (app_id, record)]
        await self._redis.call("HSET", apps_key(), _VERSION, version, _LAST_ID, last_id, *words)

    async def create(self, name: str, *, timezone: str = "UTC", vip: bool = True,
                     rate_limit: int | None = None) -> tuple[Credentials, int]:
        """A new app with fresh credentials, and the version that has it.

        Raises:
            BadConfig: The name is taken or empty, or the timezone does not exist.
        """
        _check(name, timezone)
        master_secret, pushy_api_key, beams_secret_key = _new_keys()
        app = App(id=0, name=name, app_key=secrets.token_hex(12), master_secret_sha256=digest(master_secret),
                  pushy_api_key_sha256=digest(pushy_api_key), beams_instance_id=str(uuid.uuid4()),
                  beams_secret_key=beams_secret_key, timezone=timezone, vip=vip, rate_limit=rate_limit,
                  vapid_private_key=vapid.make_private_key())
        reply = await self._redis.call(*_CREATE((apps_key(),), name, orjson.dumps(asdict(app))))
        if reply is None:
            raise BadConfig(f"an app named {name!r} exists; choose another name, or delete it first")
        created = App(**(asdict(app) | {"id": reply[0]}))
        return Credentials(created, master_secret, pushy_api_key), reply[1]

    async def rotate(self, app: App, overlap: int, now: int) -> tuple[Credentials, int]:
        """Fresh keys for *app*, and the version that has them; every older key stops *overlap* seconds from *now*.

        The app_key and the instance id name the app and stay; so does the VAPID key, which browsers are bound to.

        Raises:
            BadConfig: The app was deleted meanwhile.
        """
        master_secret, pushy_api_key, beams_secret_key = _new_keys()

        def rotated(current: App) -> App:
            former = FormerKeys(current.master_secret_sha256, current.pushy_api_key_sha256, current.beams_secret_key,
                                until=now + overlap)
            kept = [replace(keys, until=min(keys.until, now + overlap)) for keys in (former, *current.former_keys)]
            return replace(
                current, master_secret_sha256=digest(master_secret), pushy_api_key_sha256=digest(pushy_api_key),
                beams_secret_key=beams_secret_key, former_keys=[keys for keys in kept if keys.until > now])
        before, after, version = await self._change(app.id, rotated)
        await forget_uses(self._redis, set(keys_of(before).values()) - set(keys_of(after).values()))
        return Credentials(after, master_secret, pushy_api_key), version

    async def set_rate_limit(self, app: App, rate_limit: int | None) -> tuple[App, int]:
        """The app with another limit, and the version that has it.

        Raises:
            BadConfig: The app was deleted meanwhile.
        """
        _, after, version = await self._change(app.id, lambda current: replace(current, rate_limit=rate_limit))
        return after, version

    async def _change(self, app_id: int, change: Callable[[App], App]) -> tuple[App, App, int]:
        """The app before and after *change*, whatever others change at the same time, and the version that has it."""
        while True:
            stored: bytes | None = await self._redis.call("HGET", apps_key(), app_id)
            if stored is None:
                raise BadConfig("the app was deleted meanwhile")
            before = app_of(orjson.loads(stored))
            after = change(before)
            version = await self._redis.call(*_CHANGE((apps_key(),), app_id, stored, orjson.dumps(asdict(after))))
            if version is not None:
                return before, after, version

    async def delete(self, app: App) -> int | None:
        """Remove an app's credentials; the version without it, or None if it was gone."""
        version: int | None = await self._redis.call(*_DELETE((apps_key(),), app.id))
        await forget_uses(self._redis, keys_of(app).values())
        return version

    async def last_uses(self, app: App) -> dict[str, int]:
        """Name of a key -> when it was last used, unix seconds; keys that never were are left out."""
        names = keys_of(app)
        uses = await last_uses(self._redis, list(names.values()))
        return {name: uses[key] for name, key in names.items() if key in uses}


def app_of(record: dict[str, Any]) -> App:
    """The app that *record*, which ``asdict`` made, stands for."""
    former_keys = [FormerKeys(**keys) for keys in record.get("former_keys", ())]
    return App(**(record | {"former_keys": former_keys}))


def keys_of(app: App) -> dict[str, str]:
    """Name of each key that works, or did until lately -> what stands for it in :class:`Uses`."""
    keys = {"master_secret": app.master_secret_sha256, "pushy_api_key": app.pushy_api_key_sha256,
            "beams_secret_key": digest(app.beams_secret_key), "beams_instance_id": app.beams_instance_id}
    for age, former in enumerate(app.former_keys, 1):
        suffix = f"_{age}" if age > 1 else ""
        keys |= {f"former_master_secret{suffix}": former.master_secret_sha256,
                 f"former_pushy_api_key{suffix}": former.pushy_api_key_sha256,
                 f"former_beams_secret_key{suffix}": digest(former.beams_secret_key)}
    return keys


def signing_secrets(app: App, now: float) -> list[str]:
    """The Beams secrets of an app that work: its own, and those that were replaced and have not stopped yet."""
    return [app.beams_secret_key, *(keys.beams_secret_key for keys in app.former_keys if now < keys.until)]


def _new_keys() -> tuple[str, str, str]:
    """A master secret of 96 random bits, as JPush's own, and a Pushy and a Beams key of 256."""
    return secrets.token_hex(12), secrets.token_hex(32), secrets.token_hex(32).upper()


def _check(name: str, timezone: str) -> None:
    if not name or len(name) > 100 or not name.isprintable():
        raise BadConfig("an app's name is 1 to 100 printable characters")
    if timezone not in available_timezones():
        raise BadConfig(f"timezone {timezone!r} does not exist; write an IANA name such as Asia/Shanghai")
    ZoneInfo(timezone)


def digest(secret: str) -> str:
    """What is stored of a secret. Secrets are random and long, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


#: What the secret of an unknown app is compared with, so that it takes as long as that of a known one.
_NOBODY: Final = digest("no app has this secret")


class AppDirectory:
    """The apps in memory, kept fresh by a task."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._store = AppStore(redis)
        self._uses = Uses(redis, clock)
        self._clock = clock
        self._version = -1
        self._is_lost = False
        self._looked_at = 0.0
        self._by_id: dict[int, App] = {}
        self._by_app_key: dict[str, App] = {}
        # digest -> the app, and until when, unix seconds
        self._by_pushy_digest: dict[str, tuple[App, float]] = {}
        self._by_instance: dict[str, App] = {}
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    async def start(self) -> None:
        """Load the apps, then keep them fresh."""
        await self.refresh()
        await self._uses.start()
        self._task = asyncio.create_task(self._follow(), name="apps-refresh")

    async def stop(self) -> None:
        """End the tasks."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._uses.stop()

    async def refresh(self) -> None:
        """Load the apps if they have changed."""
        async with self._refreshing:
            await self._load_changes()

    async def _look_again(self) -> None:
        # Whoever waited here while another looked has nothing to look for any more: strangers must not queue at Redis.
        async with self._refreshing:
            if time.monotonic() - self._looked_at > _LOOK_AGAIN_SECONDS:
                await self._load_changes()

    async def _load_changes(self) -> None:
        self._looked_at = time.monotonic()
        version = await self._store.version()
        # Numbers only grow. Whatever else Redis has lost with its apps, nothing that it says can be relied on now.
        was_lost, self._is_lost = self._is_lost, version < self._version
        if self._is_lost:
            lost = DataLost("redis", "apps that it had")
            if not was_lost:
                log.error("%s", lost)
            raise lost
        if version != self._version:
            self._load(await self._store.all())
            self._version = version

    def by_id(self, app_id: int) -> App | None:
        """An app by its number."""
        return self._by_id.get(app_id)

    async def by_master_secret(self, app_key: str, secret: str) -> App | None:
        """The app with this JPush key, if *secret* is its own or one that still works after a rotation.

        Neither the answer nor the time it takes tells an unknown app from a wrong secret.
        """
        given = digest(secret)
        return await self._find(lambda: self._check_secret(app_key, given))

    def _check_secret(self, app_key: str, given: str) -> App | None:
        app = self._by_app_key.get(app_key)
        found = _NOBODY if app is None else app.master_secret_sha256
        is_right = hmac.compare_digest(given, found)
        if app is None:
            return None
        if not is_right and app.former_keys:
            now = self._clock()
            for former in app.former_keys:
                if hmac.compare_digest(given, former.master_secret_sha256) and now < former.until:
                    is_right, found = True, given
        if not is_right:
            return None
        self._uses.note(found)
        return app

    async def by_pushy_api_key(self, api_key: str) -> App | None:
        """An app by its Pushy secret. Looking up its digest tells nothing about any other."""
        key = digest(api_key)
        return await self._find(lambda: self._check_digest(key))

    def _check_digest(self, given: str) -> App | None:
        app, until = self._by_pushy_digest.get(given, (None, 0.0))
        if app is None or self._clock() >= until:
            return None
        self._uses.note(given)
        return app

    def note_secret(self, secret: str) -> None:
        """A Beams secret was used: it came with a call, or had signed a token."""
        self._uses.note(digest(secret))

    async def by_instance(self, instance_id: str) -> App | None:
        """An app by its Beams instance, in any letter case."""
        app = self.known_instance(instance_id)
        if app is None:
            app = await self._find(lambda: self._by_instance.get(instance_id.lower()))
            if app is not None:
                self._uses.note(app.beams_instance_id)
        return app

    def known_instance(self, instance_id: str) -> App | None:
        """The same for an instance that is written as it was given out, and known here at this moment."""
        app = None if self._is_lost else self._by_instance.get(instance_id)
        if app is not None:
            self._uses.note(instance_id)
        return app

    async def _find(self, look_up: Callable[[], App | None]) -> App | None:
        if self._is_lost:
            raise DataLost("redis", "apps that it had")
        app = look_up()
        if app is None and time.monotonic() - self._looked_at > _LOOK_AGAIN_SECONDS:
            try:
                await self._look_again()
            except DataLost:
                raise
            except StoreUnavailable:
                if not self._by_id:
                    raise  # nothing was ever loaded: "unknown" would be a guess
            app = look_up()
        return app

    def _load(self, apps: Iterable[App]) -> None:
        known = list(apps)
        self._by_id = {app.id: app for app in known}
        self._by_app_key = {app.app_key: app for app in known}
        self._by_pushy_digest = {
            former.pushy_api_key_sha256: (app, former.until) for app in known for former in app.former_keys}
        self._by_pushy_digest |= {app.pushy_api_key_sha256: (app, math.inf) for app in known}
        self._by_instance = {app.beams_instance_id: app for app in known}

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.debug("apps could not be refreshed: %s", error)
            except Exception:
                log.exception("apps could not be refreshed")
