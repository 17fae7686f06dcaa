"""Pusher Beams, described: Reporting, Device, and what servers call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from reportsvc.api import beams, beams_device, beams_reporting, user_tokens
from reportsvc.api.openapi.operation import (BODY, EVERYWHERE, Answer, Content, Example, Failure, Framework, Operation,
                                             Section, query, said)
from reportsvc.api.openapi.schemas import (INSTANCE_ID, Schema, array, boolean, closed_object, integer, nullable,
                                           open_object, ref, string, whole, words)
from reportsvc.errors import BadRequest, Forbidden, NotFound, StoreUnavailable, Unauthorized
from reportsvc.model import INTEREST, MAX_DEVICES, MAX_ID_BYTES, MAX_INTERESTS, MAX_USER_CHARACTERS, PLATFORM_OF_GATEWAY
from reportsvc.registry.profiles import OtherUser, TooManyInterests, UnknownDevice
from reportsvc.registry.users import TooManyDevices

_DONE: Final = {200: Answer("Done; no body.", headers=tuple(beams.CORS))}
_REDIS_AWAY: Final = StoreUnavailable("redis")
#: Of what reads a body, these dialects say in their own words that it could not be read.
_BODY: Final = tuple(failure for failure in BODY if not isinstance(failure, BadRequest))
_JSON_ONLY: Final = "JSON under any of its names; a charset does not matter."

PREFLIGHT: Final = Operation(
    id="preflight", summary="What browsers ask before they call",
    description="Any page may call, with the headers that the SDKs send.",
    answers={204: Answer("Any page may call.", headers=tuple(beams.CORS))}, security=[])

# ----------------------------------------------------------------------------------------------------------- reporting
_EVENT: Final = {"event": "delivery", "publishId": "pubid-1a2b3c4d-0000-4000-8000-000000000001",
                 "deviceId": "fcm-426abfc7-41fe-492f-bcf1-27586fa9bd3f", "timestampSecs": 1700000000}


def _event_error(**changes: Any) -> Any:
    return said(beams_reporting.parse_event, orjson.dumps(_EVENT | changes), 1, _EVENT["timestampSecs"])


_EVENT_ID: Final = {"type": ["string", "integer"], "minLength": 1, "maxLength": MAX_ID_BYTES}
_EVENT_BODY: Final = open_object({
    "event": string("In any letter case: the mobile SDKs write `Delivery` and `Open`.", pattern="^(?:" + "|".join(
        "".join(f"[{letter}{letter.upper()}]" for letter in word) for word in beams_reporting.STAGES) + ")$"),
    "publishId": _EVENT_ID | {"description": "The publish request that led to the notification."},
    "deviceId": _EVENT_ID | {"description": "The device."},
    "timestampSecs": {"type": "number", "description": "Unix time in seconds."},
    "userId": nullable(string("The user who is signed in.")),
    "appInBackground": nullable(boolean("Whether the app was in the background.")),
    "hasDisplayableContent": nullable(boolean("Whether there was something to show. Shown in the background counts as "
                                              "`display` too.")),
    "hasData": nullable(boolean("Whether it carried data.")),
}, beams_reporting.REQUIRED)
REPORT: Final = Operation(
    id="beamsReportEvent", summary="A notification arrived at a device, or was opened there",
    description=f"`delivery` counts as `{beams_reporting.STAGES['delivery']}`, `open` as "
                f"`{beams_reporting.STAGES['open']}`. 200 means that the event is durable. Answers are 200, 400, 500 "
                "or 503 only: the mobile SDKs stop or start over on anything else. " + _JSON_ONLY,
    body=[Content(ref("BeamsEvent"), [
        Example("a delivery", _EVENT | {"userId": "alice", "appInBackground": True, "hasDisplayableContent": True,
                                        "hasData": False}),
        Example("an open", _EVENT | {"event": "open", "userId": None})])],
    answers=_DONE,
    errors=(beams.InvalidContentType("Only `application/json` is supported"),
            beams.Incomplete("`instance-id` param is missing from path"), BadRequest(beams_reporting.NO_INSTANCE),
            said(beams_reporting.parse_event, b"[]", 1, 0),
            *(_event_error(**{name: None}) for name in beams_reporting.REQUIRED), _event_error(event="shown"),
            _event_error(publishId=[]), _event_error(deviceId="d" * (MAX_ID_BYTES + 1)),
            _event_error(timestampSecs="now"), BadRequest("Could not find the instance"), *BODY,
            StoreUnavailable("journal"), _REDIS_AWAY))
REPORTING: Final = Section(
    tag="Beams Reporting", description="Pusher's Reporting API v2, which its SDKs on devices call. Public by design, "
                                       "from any origin.",
    source="https://pusher.com/docs/beams/reference/reporting-api", dialect=beams_reporting.DIALECT,
    operations={beams_reporting.report_event: REPORT, beams.preflight: PREFLIGHT},
    path_parameters={"instance_id": INSTANCE_ID | {"examples": ["426abfc7-41fe-492f-bcf1-27586fa9bd3f"]}},
    errors=EVERYWHERE, headers=tuple(beams.CORS), schemas={"BeamsEvent": _EVENT_BODY})

# -------------------------------------------------------------------------------------------------------------- device
_ONLY_JSON: Final = beams.InvalidContentType("Only application/json is supported")
_INSTANCE: Final[tuple[Failure, ...]] = (
    beams.Incomplete("instance-id param is missing from path"),
    beams_device.InvalidId("instance-id given is not valid"))
_NO_INSTANCE: Final = beams_device.InstanceNotFound("Could not find the instance")
_NO_PLATFORM: Final = Framework(404, "there is nothing at this path")
_NO_DEVICE_ID: Final = beams.Incomplete("device-id param is missing from path")
_NO_INTEREST: Final = beams.Incomplete("interest-name param is missing from path")
#: A device's path, where the device has to be there.
_DEVICE: Final = (*_INSTANCE, _NO_DEVICE_ID, _NO_INSTANCE, UnknownDevice(), _NO_PLATFORM, _REDIS_AWAY,
                  StoreUnavailable("journal"))
_TOKEN: Final = string("What the gateway knows the device by.", minLength=1,
                       maxLength=beams_device.MAX_TOKEN_CHARACTERS)
_METADATA: Final = open_object(
    {name: nullable(string(f"Of {' and '.join(having)}.")) for name, having in (
        (name, [gateway for gateway, names in beams_device.METADATA.items() if name in names])
        for name in dict.fromkeys(name for names in beams_device.METADATA.values() for name in names))},
    description=f"Versions; {beams_device.MAX_METADATA_CHARACTERS} characters of each are kept.")
#: What SDKs send, the vendor's pages having only lists of fields.
_REGISTRATIONS: Final = {
    "apns": {"token": "a" * 64, "bundleIdentifier": "com.example.app",
             "metadata": {"sdkVersion": "4.0.0", "iosVersion": "17.5"}},
    "fcm": {"token": "dQw4w9WgXcQ:APA91b", "metadata": {"sdkVersion": "1.9.2", "androidVersion": "14"}},
    "web": {"token": "eyJlbmRwb2ludCI6Imh0dHBzOi8vcHVzaC5leGFtcGxlIn0=", "metadata": {"sdkVersion": "2.1.0"}},
}


def _token_errors(place: int, missing: str) -> Sequence[Failure]:
    return [said(beams_device.parse_token, gateway, {}, names[place], missing)
            for gateway, names in beams_device.TOKEN_NAMES.items()] + [
        said(beams_device.parse_token, gateway, {"token": "t" * (beams_device.MAX_TOKEN_CHARACTERS + 1)}, "", "")
        for gateway in beams_device.TOKEN_NAMES]


REGISTER: Final = Operation(
    id="beamsRegisterDevice", summary="Register a device",
    description="A token that is seen again is the same device. APNs has to send `bundleIdentifier`, others need not. "
                + _JSON_ONLY,
    body=[Content(ref("BeamsRegistration"),
                  [Example(f"registration of {gateway}", body) for gateway, body in _REGISTRATIONS.items()])],
    answers={200: Answer("The device's id, and the interests that it has from before.", Content(
        ref("BeamsRegistered"), [Example("a new device", {
            "id": "fcm-426abfc7-41fe-492f-bcf1-27586fa9bd3f", "initialInterestSet": []})]))},
    errors=(_ONLY_JSON, *_INSTANCE, beams_device.unreadable(), *_token_errors(0, "Missing {}"),
            said(beams_device.parse_bundle_id, "apns", {}), _NO_INSTANCE, _NO_PLATFORM, *_BODY, _REDIS_AWAY,
            StoreUnavailable("journal")))
GET_DEVICE: Final = Operation(
    id="beamsGetDevice", summary="What is known of a device",
    answers={200: Answer("The device.", Content(ref("BeamsDevice"), [Example("a device of a user", {
        "id": "fcm-426abfc7-41fe-492f-bcf1-27586fa9bd3f", "userId": "alice",
        "metadata": {"sdkVersion": "1.9.2", "androidVersion": "14"}})]))},
    errors=_DEVICE)
DELETE_DEVICE: Final = Operation(
    id="beamsDeleteDevice", summary="Delete a device",
    description="200 whether it was there or not, and in an instance that is not there too: the Android SDK repeats a "
                "deletion for ever on anything else.",
    answers=_DONE, errors=(*_INSTANCE, _NO_DEVICE_ID, _NO_PLATFORM, _REDIS_AWAY, StoreUnavailable("journal")))
SET_METADATA: Final = Operation(
    id="beamsSetMetadata", summary="Update a device's metadata", description=_JSON_ONLY,
    body=[Content(ref("BeamsMetadata"), [Example(f"metadata of {gateway}", body["metadata"])
                                         for gateway, body in _REGISTRATIONS.items()])],
    answers=_DONE, errors=(_ONLY_JSON, *_DEVICE, beams_device.unreadable(), *_BODY))
SET_TOKEN: Final = Operation(
    id="beamsSetToken", summary="Update a device's token", description=_JSON_ONLY,
    body=[Content(ref("BeamsToken"), [Example("another token", {"token": "fVxW2YqkQ1m:APA91b"})])],
    answers=_DONE,
    errors=(_ONLY_JSON, *_DEVICE, beams_device.unreadable(),
            *_token_errors(1, "Missing token field with the {}"), *_BODY))
SET_USER: Final = Operation(
    id="beamsSetUser", summary="The user of the token signs in on the device",
    description=f"No body. At most {MAX_DEVICES} devices a user.", security=[{"beamsUserToken": []}], answers=_DONE,
    errors=(*_DEVICE, beams_device.InvalidId("Invalid device id"),
            *(user_tokens.BadClaim(text) for text in (
                "Missing expiration (exp) field in JWT", "Missing subject (sub) field in JWT",
                f"JWT subject (sub) must be between 1-{MAX_USER_CHARACTERS} characters long",
                "Missing issuer (iss) field in JWT")),
            OtherUser(), TooManyDevices(), Forbidden("Invalid JWT issuer"),
            *(Unauthorized(text) for text in (
                "Authorization header token is missing", "Authorization header token is malformed",
                "Invalid JWT signature", f"JWT must be signed with {user_tokens.ALGORITHM}",
                "Invalid JWT claims: Token is expired", "Invalid JWT claims: Token used before issued",
                "Invalid JWT claims: Token is not valid yet"))))
GET_INTERESTS: Final = Operation(
    id="beamsGetInterests", summary="A device's interests, page by page",
    description="No name is lost or repeated while the set changes between two pages.",
    parameters=[
        query("limit", integer(minimum=1, maximum=beams_device.MAX_PAGE, default=beams_device.MAX_PAGE),
              "How many names a page may have."),
        query("cursor", string(), "`nextCursor` of the page before.")],
    answers={200: Answer("A page; the last one has no cursor.", Content(ref("BeamsInterests"), [
        Example("the only page", beams_device.render_interests(["donuts", "news"], is_last=True)),
        Example("a page before another", beams_device.render_interests(["donuts", "news"], is_last=False))]))},
    errors=(*_DEVICE, said(beams_device.parse_limit, "0"), said(beams_device.parse_cursor, "?")))
SET_INTERESTS: Final = Operation(
    id="beamsSetInterests", summary="Replace a device's interests",
    body=[Content(ref("BeamsInterestSet"), [Example("two interests", {"interests": ["donuts", "news"]})])],
    answers=_DONE,
    errors=(*_DEVICE, beams_device.unreadable(), beams_device.invalid_interest(), TooManyInterests(), *_BODY))
ADD_INTEREST: Final = Operation(
    id="beamsAddInterest", summary="Subscribe a device to an interest", answers=_DONE,
    errors=(*_DEVICE, beams_device.InvalidId("device-id given is not valid"), beams_device.invalid_interest(),
            _NO_INTEREST, TooManyInterests()))
REMOVE_INTEREST: Final = Operation(
    id="beamsRemoveInterest", summary="Unsubscribe a device from an interest",
    description="The subscription need not exist.", answers=_DONE,
    errors=(*_DEVICE, beams.Incomplete("device-id given is not valid"), beams_device.invalid_interest(), _NO_INTEREST))
VAPID_KEY: Final = Operation(
    id="beamsWebVapidPublicKey", summary="What a browser subscribes with",
    answers={200: Answer("The app's public key.", Content(ref("BeamsVapidKey"), [Example("a key", {
        "vapidPublicKey": "BNcRdreALRFXTkOOUHK1EtK2wtaz5Ry4YfYCA_0QTpQtUbVlUls0VJXg7A8u-Ts1XbjhazAkj7I99e8QcYP7DkM"})
    ]))},
    errors=(*_INSTANCE, _NO_INSTANCE,
            NotFound("this app was made before browsers could register; make a new one"), _REDIS_AWAY))

_PATH: Final[dict[str, Schema]] = {
    "instance_id": INSTANCE_ID | {"examples": ["426abfc7-41fe-492f-bcf1-27586fa9bd3f"]},
    "platform": words(PLATFORM_OF_GATEWAY, "Who takes notifications to the device.", examples=["fcm"]),
    "device_id": string("The id that its registration was answered.", pattern=whole(beams_device.DEVICE_ID),
                        examples=["fcm-426abfc7-41fe-492f-bcf1-27586fa9bd3f"]),
    "interest": string("An interest's name.", pattern=whole(INTEREST), examples=["donuts"]),
}
DEVICE: Final = Section(
    tag="Beams Device", description="Pusher's Device API: devices register, name their interests, and their user signs "
                                    "in on them. Its SDKs call it, from any origin; only signing in needs a token.",
    source="https://pusher.com/docs/beams/reference/device-api", dialect=beams_device.DIALECT,
    operations={
        beams_device.register: REGISTER, beams_device.get_device: GET_DEVICE,
        beams_device.delete_device: DELETE_DEVICE, beams_device.set_metadata: SET_METADATA,
        beams_device.set_token: SET_TOKEN, beams_device.set_user: SET_USER,
        beams_device.get_interests: GET_INTERESTS, beams_device.set_interests: SET_INTERESTS,
        beams_device.add_interest: ADD_INTEREST, beams_device.remove_interest: REMOVE_INTEREST,
        beams_device.vapid_public_key: VAPID_KEY, beams.preflight: PREFLIGHT,
    },
    path_parameters=_PATH, errors=EVERYWHERE, headers=tuple(beams.CORS),
    schemas={
        "BeamsMetadata": _METADATA, "BeamsToken": open_object({"token": _TOKEN}, ["token"]),
        "BeamsRegistration": open_object({
            "token": _TOKEN, "metadata": nullable(ref("BeamsMetadata")),
            "bundleIdentifier": nullable(string("The app's identifier; APNs only."))}, ["token"]),
        "BeamsRegistered": closed_object({"id": string(pattern="^(?:" + "|".join(PLATFORM_OF_GATEWAY) + ")-"),
                                          "initialInterestSet": array(ref("BeamsInterest"))}),
        "BeamsDevice": closed_object({
            "id": string(), "userId": nullable(string(maxLength=MAX_USER_CHARACTERS)),
            "metadata": closed_object(dict.fromkeys(_METADATA["properties"], string()),
                                      optional=tuple(_METADATA["properties"]))}),
        "BeamsInterest": _PATH["interest"] | {"description": "An interest's name."},
        "BeamsInterestSet": open_object({"interests": array(ref("BeamsInterest"), maxItems=MAX_INTERESTS)},
                                        ["interests"]),
        "BeamsInterests": closed_object({
            "interests": array(ref("BeamsInterest"), maxItems=beams_device.MAX_PAGE),
            "responseMetadata": closed_object({"nextCursor": string()}, optional=("nextCursor",))}),
        "BeamsVapidKey": closed_object({"vapidPublicKey": string(pattern="^[A-Za-z0-9_-]{87}$")}),
    })

# ------------------------------------------------------------------------------------------------------------- servers
DELETE_USER: Final = Operation(
    id="beamsDeleteUser", summary="Delete a user with every device he signed in on",
    description="Server SDKs call it under one of two prefixes.",
    answers={200: Answer("Done; no body.")},
    errors=(beams.Incomplete("Authorization header is missing"), Unauthorized("Incorrect Secret Key"), _NO_INSTANCE,
            BadRequest(f"'User id' is too long, max length is {MAX_USER_CHARACTERS}"), _REDIS_AWAY,
            StoreUnavailable("journal")))
SERVERS: Final = Section(
    tag="Beams Servers", description="What Pusher's server SDKs call beside publishing.",
    source="https://pusher.com/docs/beams/reference/customer-api", dialect=beams_device.SERVER_DIALECT,
    security=[{"beamsSecretKey": []}], operations={beams_device.delete_user: DELETE_USER},
    path_parameters=_PATH | {"user_id": string("The user.", minLength=1, maxLength=MAX_USER_CHARACTERS,
                                               examples=["alice"])},
    errors=EVERYWHERE)
