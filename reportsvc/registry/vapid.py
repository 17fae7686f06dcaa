"""The key pair that identifies an app to the push services of browsers (VAPID, RFC 8292).

A browser subscribes with the public key, and only who has the private one can send to it. This service never sends: it
makes the pair, once for each app, hands out the public key to browsers and both to the app's owner. For that one
multiplication on the curve P-256 it needs no library of 5 MB; signing, where the time it takes would tell something of
the key, is the sender's.
"""

from __future__ import annotations

import base64
import secrets
from functools import lru_cache
from typing import Final

# Curve P-256, FIPS 186-5: y² = x³ - 3x + B modulo PRIME, and a point (X, Y) that generates ORDER points.
PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
_X: Final = 0x6B17D1F2_E12C4247_F8BCE6E5_63A440F2_77037D81_2DEB33A0_F4A13945_D898C296
_Y: Final = 0x4FE342E2_FE1A7F9B_8EE7EB4A_7C0F9E16_2BCE3357_6B315ECE_CBB64068_37BF51F5

#: A point, or None for the one at infinity.
_Point = tuple[int, int] | None


def make_private_key() -> str:
    """A new private key, as 64 hexadecimal digits."""
    return f"{1 + secrets.randbelow(ORDER - 1):064x}"


@lru_cache(maxsize=10_000)
def public_key(private_key: str) -> str:
    """The public key as browsers take it: the uncompressed point in base64url, without padding."""
    point = _multiply(int(private_key, 16))
    if point is None:
        raise ValueError("the private key is not between 0 and the order of the curve")
    return _base64url(b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32))


def shareable(private_key: str) -> str:
    """The private key as sending libraries take it: base64url, without padding."""
    return _base64url(int(private_key, 16).to_bytes(32))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _multiply(factor: int) -> _Point:
    """The generating point, added *factor* times."""
    result: _Point = None
    addend: _Point = (_X, _Y)
    while factor:
        if factor & 1:
            result = _add(result, addend)
        addend = _add(addend, addend)
        factor >>= 1
    return result


def _add(one: _Point, other: _Point) -> _Point:
    if one is None or other is None:
        return one or other
    if one[0] == other[0]:
        if (one[1] + other[1]) % PRIME == 0:
            return None
        slope = 3 * (one[0] ** 2 - 1) * pow(2 * one[1], -1, PRIME)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, PRIME)
    x = (slope ** 2 - one[0] - other[0]) % PRIME
    return x, (slope * (one[0] - x) - one[1]) % PRIME
