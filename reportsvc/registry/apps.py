"""The apps: tenants with their credentials and settings.

All of them live in one small Redis hash and in the memory of every process, which looks for changes twice a second:
checking a request's credentials costs no round trip, and goes on while Redis is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import orjson

from reportsvc.errors import BadConfig, StoreUnavailable
from reportsvc.model import App
from reportsvc.storage.redis import Redis, Script, apps_key

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 0.5
#: An unknown key may belong to an app made a moment ago; it is looked for at once, but no more often than this.
_LOOK_AGAIN_SECONDS: Final = 0.1
_VERSION: Final = "v"

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


@dataclass(frozen=True, slots=True)
class Credentials:
    """A new app together with its secrets, which exist in clear only here."""

    app: App
    master_secret: str
    pushy_api_key: str

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
        apps = [App(**orjson.loads(value)) for key, value in pairs if key.isdigit()]
        return sorted(apps, key=lambda app: app.id)

    async def create(self, name: str, *, timezone: str = "UTC", vip: bool = True) -> tuple[Credentials, int]:
        """A new app with fresh credentials, and the version that has it.

        Raises:
            BadConfig: The name is taken or empty, or the timezone does not exist.
        """
        _check(name, timezone)
        master_secret, pushy_api_key = secrets.token_hex(12), secrets.token_hex(32)
        app = App(id=0, name=name, app_key=secrets.token_hex(12), master_secret_sha256=digest(master_secret),
                  pushy_api_key_sha256=digest(pushy_api_key), beams_instance_id=str(uuid.uuid4()),
                  beams_secret_key=secrets.token_hex(32).upper(), timezone=timezone, vip=vip)
        reply = await self._redis.call(*_CREATE((apps_key(),), name, orjson.dumps(asdict(app))))
        if reply is None:
            raise BadConfig(f"an app named {name!r} exists; choose another name, or delete it first")
        created = App(**(asdict(app) | {"id": reply[0]}))
        return Credentials(created, master_secret, pushy_api_key), reply[1]

    async def delete(self, app: App) -> int | None:
        """Remove an app's credentials; the version without it, or None if it was gone."""
        version: int | None = await self._redis.call(*_DELETE((apps_key(),), app.id))
        return version


def _check(name: str, timezone: str) -> None:
    if not name or len(name) > 100 or not name.isprintable():
        raise BadConfig("an app's name is 1 to 100 printable characters")
    if timezone not in available_timezones():
        raise BadConfig(f"timezone {timezone!r} does not exist; write an IANA name such as Asia/Shanghai")
    ZoneInfo(timezone)


def digest(secret: str) -> str:
    """What is stored of a secret. Secrets are random and long, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def matches(secret: str, stored_digest: str) -> bool:
    """Whether *secret* is the one, in a time that tells nothing."""
    return hmac.compare_digest(digest(secret), stored_digest)


class AppDirectory:
    """The apps in memory, kept fresh by a task."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = AppStore(redis)
        self._clock = clock
        self._version = -1
        self._looked_at = 0.0
        self._by_id: dict[int, App] = {}
        self._by_app_key: dict[str, App] = {}
        self._by_pushy_digest: dict[str, App] = {}
        self._by_instance: dict[str, App] = {}
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    async def start(self) -> None:
        """Load the apps, then keep them fresh."""
        await self.refresh()
        self._task = asyncio.create_task(self._follow(), name="apps-refresh")

    async def stop(self) -> None:
        """End the task."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Load the apps if they have changed."""
        async with self._refreshing:
            self._looked_at = self._clock()
            version = await self._store.version()
            if version != self._version:
                self._load(await self._store.all())
                self._version = version

    def by_id(self, app_id: int) -> App | None:
        """An app by its number."""
        return self._by_id.get(app_id)

    async def by_app_key(self, app_key: str) -> App | None:
        """An app by its JPush key."""
        return await self._find(lambda: self._by_app_key.get(app_key))

    async def by_pushy_api_key(self, api_key: str) -> App | None:
        """An app by its Pushy secret. Looking up its digest tells nothing about any other."""
        key = digest(api_key)
        return await self._find(lambda: self._by_pushy_digest.get(key))

    async def by_instance(self, instance_id: str) -> App | None:
        """An app by its Beams instance, in any letter case."""
        app = self._by_instance.get(instance_id)
        return app or await self._find(lambda: self._by_instance.get(instance_id.lower()))

    async def _find(self, look_up: Callable[[], App | None]) -> App | None:
        app = look_up()
        if app is None and self._clock() - self._looked_at > _LOOK_AGAIN_SECONDS:
            try:
                await self.refresh()
            except StoreUnavailable:
                if not self._by_id:
                    raise  # nothing was ever loaded: "unknown" would be a guess
            app = look_up()
        return app

    def _load(self, apps: Iterable[App]) -> None:
        known = list(apps)
        self._by_id = {app.id: app for app in known}
        self._by_app_key = {app.app_key: app for app in known}
        self._by_pushy_digest = {app.pushy_api_key_sha256: app for app in known}
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
