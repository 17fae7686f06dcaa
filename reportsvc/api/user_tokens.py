"""The token with which an app's server lets a user sign in on a device: a JWT, signed with the app's Beams secret.

The library checks the form and the signature, with the one algorithm that is allowed. The claims are checked here, with
the service's clock, because each of them has an answer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import jwt
from jwt.types import Options

from reportsvc.errors import BadRequest, Forbidden, Unauthorized
from reportsvc.model import MAX_USER_CHARACTERS, App
from reportsvc.registry.apps import signing_secrets

ALGORITHM: Final = "HS256"
#: A server whose clock is a little ahead signs tokens in our future.
MAX_SKEW_SECONDS: Final = 30
_ONLY_SIGNATURE: Final[Options] = {
    "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False, "verify_iss": False,
    "verify_sub": False, "verify_jti": False}


class BadClaim(BadRequest):
    """A claim of the token is missing or breaks its rule."""


def user_of(header: str, app: App, now: float, note_use: Callable[[str], None] | None = None) -> str:
    """The user whom the token in an Authorization *header* lets in; *note_use* is told the secret that signed it.

    Raises:
        Unauthorized: There is none, it is no token, it is not the app's, or not of this time.
        BadClaim: A claim is missing or malformed.
        Forbidden: It was made for another instance.
    """
    claims, secret = _claims(header, app, now)
    expires_at = _time(claims, "exp")
    if expires_at is None:
        raise BadClaim("Missing expiration (exp) field in JWT")
    user_id = _subject(claims)
    issuer = claims.get("iss")
    if issuer in (None, ""):
        raise BadClaim("Missing issuer (iss) field in JWT")
    if issuer != f"https://{app.beams_instance_id}.pushnotifications.pusher.com":
        raise Forbidden("Invalid JWT issuer")
    if expires_at <= now:
        raise Unauthorized("Invalid JWT claims: Token is expired")
    if (_time(claims, "iat") or 0) > now + MAX_SKEW_SECONDS:
        raise Unauthorized("Invalid JWT claims: Token used before issued")
    if (_time(claims, "nbf") or 0) > now + MAX_SKEW_SECONDS:
        raise Unauthorized("Invalid JWT claims: Token is not valid yet")
    if note_use is not None:
        note_use(secret)
    return user_id


def _claims(header: str, app: App, now: float) -> tuple[Mapping[str, Any], str]:
    """What the token says, and the secret that signed it."""
    if not header.strip():
        raise Unauthorized("Authorization header token is missing")
    scheme, _, token = header.strip().partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise jwt.DecodeError
        secrets = signing_secrets(app, now)
        for secret in secrets[:-1]:
            with suppress(jwt.InvalidSignatureError):
                return _decode(token, secret), secret
        return _decode(token, secrets[-1]), secrets[-1]
    except jwt.InvalidSignatureError as error:
        raise Unauthorized("Invalid JWT signature") from error
    except jwt.InvalidAlgorithmError as error:
        raise Unauthorized(f"JWT must be signed with {ALGORITHM}") from error
    except (jwt.PyJWTError, RecursionError) as error:
        raise Unauthorized("Authorization header token is malformed") from error


def _decode(token: str, secret: str) -> Mapping[str, Any]:
    claims: Mapping[str, Any] = jwt.decode(token.strip(), secret, algorithms=[ALGORITHM], options=_ONLY_SIGNATURE)
    return claims


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    if subject is None:
        raise BadClaim("Missing subject (sub) field in JWT")
    # Half of a surrogate pair is no character.
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_USER_CHARACTERS or not _is_text(subject):
        raise BadClaim(f"JWT subject (sub) must be between 1-{MAX_USER_CHARACTERS} characters long")
    return subject


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
