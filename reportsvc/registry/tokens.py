"""Which device a gateway's token belongs to: a token that is seen again is the device that it was.

Tokens are long, so only a digest is kept here. The first to claim a token decides, in one script on one key, so that a
registration that is sent twice at once makes one device.
"""

from __future__ import annotations

import hashlib
from typing import Final

from reportsvc.storage.redis import Command, Redis, Script, tokens_key

#: As many as the device registry has, for the same reasons.
BUCKETS: Final = 64

# ARGV: digest, device id, the device id to replace or ''. Answers whose the token is now.
_CLAIM = Script("""
local key = KEYS[1]
local owner = redis.call('HGET', key, ARGV[1])
if owner and owner ~= ARGV[3] then return owner end
redis.call('HSET', key, ARGV[1], ARGV[2])
return ARGV[2]
""")

# ARGV: digest, device id.
_RELEASE = Script("""
local key = KEYS[1]
return redis.call('HGET', key, ARGV[1]) == ARGV[2] and redis.call('HDEL', key, ARGV[1]) or 0
""")


class Tokens:
    """The tokens of every app."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def claim(self, app_id: int, gateway: str, token: str, device_id: str, instead_of: str = "") -> str:
        """Whose the token is now: *device_id*'s if it was nobody's or that of *instead_of*."""
        key, digest = _place(app_id, gateway, token)
        owner: bytes = await self._redis.call(*_CLAIM((key,), digest, device_id, instead_of))
        return owner.decode()

    def restore(self, app_id: int, gateway: str, token: str, device_id: str) -> Command:
        """What writes whose the token is."""
        key, digest = _place(app_id, gateway, token)
        return ("HSET", key, digest, device_id)

    async def release(self, app_id: int, gateway: str, token: str, device_id: str) -> None:
        """The token is not that device's any more; if it is another's, it stays so."""
        key, digest = _place(app_id, gateway, token)
        await self._redis.call(*_RELEASE((key,), digest, device_id))


def _place(app_id: int, gateway: str, token: str) -> tuple[str, bytes]:
    digest = hashlib.blake2b(token.encode(), digest_size=16).digest()
    return tokens_key(app_id, gateway, digest[0] % BUCKETS), digest
