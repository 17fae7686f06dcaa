"""Pusher Beams Device API: devices register, name their interests and their user; servers delete users.

Quirks kept on purpose, because a mobile SDK that is answered otherwise stops, or asks for ever:

* FCM may register without ``bundleIdentifier``, which the page requires and the Android SDK never sends.
* ``PUT …/user`` has no body and need not have a content type; neither need a GET or a DELETE.
* Deleting a device that is not there is a 200, in an instance that is not there too: Android repeats it on anything
  else. To everything else that names a device which is not there, 404 lets the SDKs register again; the page has no
  such row for adding and removing an interest, but a 400 would make them give up.
* A body that is too large is a 400, and nobody is ever told 429.

Titles and texts are those of the page's tables, down to the letter case, which differs between rows.
Source: https://pusher.com/docs/beams/reference/device-api
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import orjson
from aiohttp import hdrs, web

from reportsvc.api.auth import APPS
from reportsvc.api.beams import (CORS, FORBIDDEN_STATUSES, FRAMEWORK, INSTANCE, Incomplete, InvalidContentType,
                                 check_content_type, error_body)
from reportsvc.api.common import Dialect, json_response, read_body
from reportsvc.api.events import CLOCK
from reportsvc.api.user_tokens import BadClaim, user_of
from reportsvc.errors import (BadRequest, Conflict, Forbidden, NotFound, ReportError, StoreUnavailable, TooLarge,
                              Unauthorized)
from reportsvc.model import INTEREST, MAX_INTERESTS, MAX_USER_CHARACTERS, PLATFORM_OF_GATEWAY, App, Profile
from reportsvc.pipeline.profiles import ProfileRegistrar
from reportsvc.registry import vapid
from reportsvc.registry.apps import signing_secrets
from reportsvc.registry.profiles import OtherUser, TooManyInterests, UnknownDevice
from reportsvc.registry.users import TooManyDevices

PROFILES: Final = web.AppKey("profiles", ProfileRegistrar)

MAX_PAGE: Final = 100
#: The longest tokens are those of browsers, a subscription in base64 of a few hundred bytes.
MAX_TOKEN_CHARACTERS: Final = 4096
#: What there is of a version number beyond this tells nothing.
MAX_METADATA_CHARACTERS: Final = 256
# gateway -> what may be told of a device
METADATA: Final = {"apns": ("sdkVersion", "iosVersion", "macosVersion"), "fcm": ("sdkVersion", "androidVersion"),
                   "web": ("sdkVersion",)}
# gateway -> what the tables call a missing token, when registering and when refreshing
TOKEN_NAMES: Final = {"apns": ("APNs token", "APNs token"), "fcm": ("FCM token", "FCM Registration Id"),
                      "web": ("web token", "web token")}
#: Any id that some server of this API may have given: one that is unknown lets the SDK register anew, and must not be
#: taken for malformed.
DEVICE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")


class InstanceNotFound(NotFound):
    """Nobody owns the instance."""


class InvalidId(BadRequest):
    """An id, a limit or a cursor is malformed."""


class InvalidInterest(BadRequest):
    """An interest's name is malformed."""


@dataclass(frozen=True)
class _DeviceDialect(Dialect):
    """Beams, where errors of the registry have texts of the vendor's."""

    texts: Mapping[type[ReportError], str] = field(default_factory=dict)

    def answer(self, error: ReportError) -> web.Response:
        """The response for *error*."""
        text = self.texts.get(type(error))
        return super().answer(error) if text is None else self.respond(*self.errors[type(error)], text)


# error -> (HTTP status, Title)
ERRORS: Final[Mapping[type[ReportError], tuple[int, str]]] = {
    InvalidContentType: (400, "Invalid content type"), Incomplete: (400, "Incomplete Request"),
    InvalidId: (400, "Bad Request"), BadClaim: (400, "Bad Request"), OtherUser: (400, "Bad Request"),
    InvalidInterest: (400, "Invalid interest name"), TooManyInterests: (400, "Interest set too large"),
    BadRequest: (400, "Bad request"), TooLarge: (400, "Bad request"), Conflict: (400, "Bad request"),
    Unauthorized: (401, "Unauthorized"), Forbidden: (403, "Forbidden"),
    InstanceNotFound: (404, "Instance not found"), UnknownDevice: (404, "Device not found"),
    NotFound: (404, "Not found"), TooManyDevices: (422, "Unprocessable Entity"),
    StoreUnavailable: (503, "Service unavailable"), ReportError: (500, "Something went wrong"),
}
# error of the registry -> Description
TEXTS: Final[Mapping[type[ReportError], str]] = {
    UnknownDevice: "Could not find the device",
    OtherUser: "A User Id is already associated with this device",
    TooManyDevices: "User already has reached the maximum of 100 devices",
    TooManyInterests: "Too many interests are being set for this device. Only 5000 interests per device are allowed",
}
DIALECT: Final = _DeviceDialect(
    errors=ERRORS, framework=FRAMEWORK, body=error_body, headers=CORS, forbidden_statuses=FORBIDDEN_STATUSES,
    texts=TEXTS)
#: The same for servers, who are no pages.
SERVER_DIALECT: Final = _DeviceDialect(
    errors=ERRORS, framework=FRAMEWORK, body=error_body, forbidden_statuses=FORBIDDEN_STATUSES, texts=TEXTS)


# ------------------------------------------------------------------------------------------------------------- handlers
async def register(request: web.Request) -> web.Response:
    """``POST …/devices/<platform>``: make a device known, or find the one that had the token before."""
    gateway = parse_gateway(request)
    check_content_type(request, "Only application/json is supported")
    app = await find_app(request)
    body = await read_object(request)
    token = parse_token(gateway, body, TOKEN_NAMES[gateway][0], "Missing {}")
    bundle_id = parse_bundle_id(gateway, body)
    metadata = parse_metadata(gateway, body.get("metadata"))
    device_id, interests = await _profiles(request).register(app, gateway, token, bundle_id, metadata)
    return json_response({"id": device_id, "initialInterestSet": interests}, headers=CORS)


async def get_device(request: web.Request) -> web.Response:
    """``GET …/devices/<platform>/<device_id>``: what is known of a device."""
    app, gateway, device_id = await _known(request)
    return json_response(render_device(await _profiles(request).find(app, gateway, device_id)), headers=CORS)


async def delete_device(request: web.Request) -> web.Response:
    """``DELETE …/devices/<platform>/<device_id>``: whether it was there or not, it is not afterwards."""
    gateway, device_id = parse_gateway(request), request.match_info["device_id"]
    try:
        app = await find_app(request)
    except InstanceNotFound:
        await request.app[APPS].refresh()  # to know, and not only to believe, that it is not there
    else:
        if DEVICE_ID.fullmatch(device_id):
            await _profiles(request).unregister(app, gateway, device_id)
    return _done()


async def set_metadata(request: web.Request) -> web.Response:
    """``PUT …/metadata``: the versions of SDK and system."""
    check_content_type(request, "Only application/json is supported")
    app, gateway, device_id = await _known(request)
    metadata = parse_metadata(gateway, await read_object(request))
    await _profiles(request).set_metadata(app, gateway, device_id, metadata)
    return _done()


async def set_token(request: web.Request) -> web.Response:
    """``PUT …/token``: the gateway gave the device another token."""
    check_content_type(request, "Only application/json is supported")
    app, gateway, device_id = await _known(request)
    body = await read_object(request)
    token = parse_token(gateway, body, TOKEN_NAMES[gateway][1], "Missing token field with the {}")
    await _profiles(request).set_token(app, gateway, device_id, token)
    return _done()


async def set_user(request: web.Request) -> web.Response:
    """``PUT …/user``: the user of the token signs in on the device."""
    app, gateway, device_id = await _named(request, InvalidId("Invalid device id"))
    user_id = user_of(request.headers.get(hdrs.AUTHORIZATION, ""), app, request.app[CLOCK](),
                      request.app[APPS].note_secret)
    await _profiles(request).sign_in(app, gateway, device_id, user_id)
    return _done()


async def get_interests(request: web.Request) -> web.Response:
    """``GET …/interests``: a page of a device's interests.

    The cursor is the last name of the page before, and names come in their order: what is added or removed between
    two pages moves no other name across it.
    """
    app, gateway, device_id = await _known(request)
    limit, after = parse_limit(request.query.get("limit")), parse_cursor(request.query.get("cursor"))
    names = await _profiles(request).interests(app, gateway, device_id, after, limit + 1)
    return json_response(render_interests(names[:limit], is_last=len(names) <= limit), headers=CORS)


async def set_interests(request: web.Request) -> web.Response:
    """``PUT …/interests``: the only interests that the device has from now on."""
    app, gateway, device_id = await _known(request)
    interests = parse_interests(await read_object(request))
    await _profiles(request).set_interests(app, gateway, device_id, interests)
    return _done()


async def add_interest(request: web.Request) -> web.Response:
    """``POST …/interests/<interest>``: subscribe."""
    app, gateway, device_id = await _named(request, InvalidId("device-id given is not valid"))
    await _profiles(request).add_interest(app, gateway, device_id, parse_interest(request))
    return _done()


async def remove_interest(request: web.Request) -> web.Response:
    """``DELETE …/interests/<interest>``: end a subscription, which need not exist."""
    app, gateway, device_id = await _named(request, Incomplete("device-id given is not valid"))
    await _profiles(request).remove_interest(app, gateway, device_id, parse_interest(request))
    return _done()


async def vapid_public_key(request: web.Request) -> web.Response:
    """``GET …/web-vapid-public-key``: what a browser has to subscribe with."""
    app = await find_app(request)
    if not app.vapid_private_key:
        raise NotFound("this app was made before browsers could register; make a new one")
    return json_response({"vapidPublicKey": vapid.public_key(app.vapid_private_key)}, headers=CORS)


async def delete_user(request: web.Request) -> web.Response:
    """``DELETE /customer_api/v1/…`` and ``/user_api/v1/…``: delete a user with all devices he signed in on."""
    app = await authenticate(request)
    user_id = request.match_info["user_id"]
    if len(user_id) > MAX_USER_CHARACTERS:
        raise BadRequest(f"'User id' is too long, max length is {MAX_USER_CHARACTERS}")
    await _profiles(request).delete_user(app, user_id)
    return web.Response()


async def missing_instance(request: web.Request) -> web.Response:
    """A path without an instance id."""
    raise Incomplete("instance-id param is missing from path")


async def missing_device(request: web.Request) -> web.Response:
    """A path without a device id."""
    parse_gateway(request)
    await find_app(request)
    raise Incomplete("device-id param is missing from path")


async def missing_interest(request: web.Request) -> web.Response:
    """A path without an interest's name."""
    parse_gateway(request)
    await find_app(request)
    raise Incomplete("interest-name param is missing from path")


def _profiles(request: web.Request) -> ProfileRegistrar:
    return request.app[PROFILES]


def _done() -> web.Response:
    return web.Response(headers=CORS)


# --------------------------------------------------------------------------------------------------------- who and what
async def find_app(request: web.Request) -> App:
    """The app that owns the instance in the path."""
    instance_id = request.match_info["instance_id"]
    if not INSTANCE.fullmatch(instance_id):
        raise InvalidId("instance-id given is not valid")
    app = await request.app[APPS].by_instance(instance_id)
    if app is None:
        raise InstanceNotFound("Could not find the instance")
    return app


async def authenticate(request: web.Request) -> App:
    """The app that owns the instance in the path and whose secret stands in the header."""
    header = request.headers.get(hdrs.AUTHORIZATION, "").strip()
    if not header:
        raise Incomplete("Authorization header is missing")
    app = await request.app[APPS].by_instance(request.match_info["instance_id"])
    if app is None:
        raise InstanceNotFound("Could not find the instance")
    scheme, _, secret = header.partition(" ")
    given = secret.strip().encode("utf-8", "surrogatepass")
    found = [one for one in signing_secrets(app, request.app[CLOCK]()) if hmac.compare_digest(given, one.encode())]
    if not found or scheme.lower() != "bearer":
        raise Unauthorized("Incorrect Secret Key")
    request.app[APPS].note_secret(found[0])
    return app


def parse_gateway(request: web.Request) -> str:
    """The gateway in the path."""
    gateway = request.match_info["platform"]
    if gateway not in PLATFORM_OF_GATEWAY:
        raise web.HTTPNotFound
    return gateway


async def _named(request: web.Request, malformed: ReportError) -> tuple[App, str, str]:
    """App, gateway and device id of the path; *malformed* for an id that no server gives."""
    gateway, device_id = parse_gateway(request), request.match_info["device_id"]
    app = await find_app(request)
    if not DEVICE_ID.fullmatch(device_id):
        raise malformed
    return app, gateway, device_id


async def _known(request: web.Request) -> tuple[App, str, str]:
    """The same where the tables know no malformed ids, only unknown ones."""
    return await _named(request, UnknownDevice())


# ---------------------------------------------------------------------------------------------------------------- parse
async def read_object(request: web.Request) -> dict[str, Any]:
    """The body, a JSON object."""
    try:
        body = orjson.loads(await read_body(request))
    except (BadRequest, orjson.JSONDecodeError):
        body = None
    if not isinstance(body, dict):
        raise unreadable()
    return body


def unreadable() -> BadRequest:
    """The body is no JSON object, or something in it is of another type than it has to be."""
    return BadRequest("Failed to read body as a JSON object")


def parse_token(gateway: str, body: Mapping[str, Any], name: str, missing: str) -> str:
    """The token in a body; *name* and *missing* are the words of the table."""
    token = body.get("token")
    if not isinstance(token, str) or not token.strip():
        raise BadRequest(missing.format(name))
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthorized(f"Incorrect {TOKEN_NAMES[gateway][0]} supplied")
    return token


def parse_bundle_id(gateway: str, body: Mapping[str, Any]) -> str:
    """The app's identifier, which only Apple's devices send and have to send."""
    bundle_id = body.get("bundleIdentifier")
    if gateway == "apns" and (not isinstance(bundle_id, str) or not bundle_id):
        raise BadRequest("Missing App Bundle Identifier")
    return bundle_id[:MAX_METADATA_CHARACTERS] if isinstance(bundle_id, str) else ""


def parse_metadata(gateway: str, value: Any) -> dict[str, str]:
    """What is told of a device; other keys and nulls do not matter."""
    if not isinstance(value, dict | None):
        raise unreadable()
    metadata = {name: value[name] for name in METADATA[gateway] if value and value.get(name) is not None}
    if not all(isinstance(text, str) for text in metadata.values()):
        raise unreadable()
    return {name: text[:MAX_METADATA_CHARACTERS] for name, text in metadata.items()}


def parse_interests(body: Mapping[str, Any]) -> list[str]:
    """A set of interests, each once."""
    names = body.get("interests")
    if not isinstance(names, list):
        raise unreadable()
    if not all(isinstance(name, str) and INTEREST.fullmatch(name) for name in names):
        raise invalid_interest()
    distinct = list(dict.fromkeys(names))
    if len(distinct) > MAX_INTERESTS:
        raise TooManyInterests
    return distinct


def parse_interest(request: web.Request) -> str:
    """The name at the end of the path: all of it, so that a name with a slash is a bad name and not a missing path."""
    tail = request.rel_url.raw_path.partition("/interests/")[2]
    name = unquote(tail.strip("/"))
    if not INTEREST.fullmatch(name):
        raise invalid_interest()
    return name


def invalid_interest() -> InvalidInterest:
    """An interest has no such name."""
    return InvalidInterest("interest-name given is not valid")


def parse_limit(text: str | None) -> int:
    """How many names a page may have."""
    if text is None:
        return MAX_PAGE
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidId("limit given is not valid")
    return int(text)


def parse_cursor(text: str | None) -> str:
    """The last name of the page before; empty for the first page."""
    if not text:
        return ""
    try:
        name = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        name = ""
    if not INTEREST.fullmatch(name) or render_cursor(name) != text:
        raise InvalidId("cursor given is not valid")
    return name


# --------------------------------------------------------------------------------------------------------------- render
def render_device(profile: Profile) -> dict[str, Any]:
    """The body of ``GET …/devices/<platform>/<device_id>``."""
    return {"id": profile.device_id, "userId": profile.user_id or None, "metadata": dict(profile.metadata)}


def render_interests(names: Sequence[str], *, is_last: bool) -> dict[str, Any]:
    """A page of interests; the last has no cursor."""
    return {"interests": list(names), "responseMetadata": {} if is_last else {"nextCursor": render_cursor(names[-1])}}


def render_cursor(name: str) -> str:
    """What is given out for the page after *name*."""
    return base64.urlsafe_b64encode(name.encode()).rstrip(b"=").decode()
