"""The Beams Device API: every operation, every row of the page's tables that can occur here, and what lies between."""

from __future__ import annotations

import asyncio
import base64
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import jwt
import orjson
import pytest
import pytest_asyncio

from reportsvc.registry import vapid
from reportsvc.registry.devices import DeviceRegistry
from reportsvc.storage.redis import apps_key
from tests.api.helpers import at_noon
from tests.support.beams import (DEVICE_NOT_FOUND, INSTANCE_NOT_FOUND, NOBODY, Phone, base, error, pending, push,
                                 register, registration, statuses, user_token)
from tests.support.service import Account, Answer, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLATFORMS = ["apns", "fcm", "web"]
UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
UNREADABLE = error("Bad request", "Failed to read body as a JSON object")
BAD_TYPE = error("Invalid content type", "Only application/json is supported")
BAD_INTEREST = error("Invalid interest name", "interest-name given is not valid")
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(loop_scope="module")
async def account(shared_service: Running) -> Account:
    """A new app of the service that the tests of this file share."""
    return await shared_service.make_account(f"test {uuid.uuid4()}")


async def devices_of(service: Running, account: Account) -> int:
    """How many devices the app has now."""
    return (await DeviceRegistry(service.service.redis).extent(account.app.id)).alive


# ------------------------------------------------------------------------------------------------------------- register
@pytest.mark.parametrize("platform", PLATFORMS)
async def test_register(shared_service: Running, account: Account, platform: str) -> None:
    """A new token makes a device of the app, whose id says its platform and which has no interest yet."""

    answer = await shared_service.call("POST", f"{base(account)}/devices/{platform}",
                                       json=registration(platform, "t"))

    assert (answer.status, answer.json) == (200, {"id": answer.json["id"], "initialInterestSet": []})
    assert re.fullmatch(f"{platform}-{UUID4}", answer.json["id"])
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert await devices_of(shared_service, account) == 1


async def test_token_seen_again_is_the_same_device(shared_service: Running, account: Account) -> None:
    """A second registration finds the device, tells its interests, takes the new metadata, and forgets the user: the
    SDK that registers knows of none, and would be refused another one for ever."""

    phone = await register(shared_service, account, token="t", metadata={"sdkVersion": "1"})
    await phone.add("news", "Sport")
    assert (await phone.sign_in("alice")).status == 200

    again = await shared_service.call("POST", f"{base(account)}/devices/fcm", json={
        "token": "t", "metadata": {"sdkVersion": "2"}})

    assert again.json == {"id": phone.id, "initialInterestSet": ["Sport", "news"]}
    assert (await phone.call("GET")).json == {"id": phone.id, "userId": None, "metadata": {"sdkVersion": "2"}}
    assert await push(shared_service, account, "to-alice", users=["alice"]) == 0
    assert (await phone.sign_in("bob")).status == 200
    assert await devices_of(shared_service, account) == 1


async def test_registrations_at_once_make_one_device(shared_service: Running, account: Account) -> None:
    """Twenty registrations of one token at the same moment are answered with one id, and there is one device."""

    phones = await asyncio.gather(*(register(shared_service, account, token="t") for _ in range(20)))

    assert len({phone.id for phone in phones}) == 1
    assert await devices_of(shared_service, account) == 1


async def test_a_token_belongs_to_its_platform_and_its_app(shared_service: Running, account: Account) -> None:
    """The same token with another gateway, or in another app, is another device."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    phones = [await register(shared_service, one, platform, "t") for one in (account, other) for platform in PLATFORMS]

    assert len({phone.id for phone in phones}) == 6
    assert [await devices_of(shared_service, one) for one in (account, other)] == [3, 3]


NO_OBJECTS = (b"", b"{", b"[]", b"null", b'"t"', b"7", b"\xff", b'{"token":"t"', b'{"token":"\\ud800"}')
NO_METADATA: list[Any] = ["1.0", 1, [], True, {"sdkVersion": 1}, {"sdkVersion": {"a": 1}}]
NO_TOKENS: list[dict[str, Any]] = [{}, {"token": None}, {"token": " \t"}, {"token": 5}, {"token": ["t"]}, {"token": {}}]
NO_BUNDLES: list[dict[str, Any]] = [{}, {"bundleIdentifier": None}, {"bundleIdentifier": ""}, {"bundleIdentifier": 1}]
TOKEN_NAMES = {"apns": "APNs token", "fcm": "FCM token", "web": "web token"}
# platform, body, status, answer
BODIES: list[tuple[str, Any, int, dict[str, str]]] = [
    *((platform, body, 400, UNREADABLE) for platform in PLATFORMS for body in NO_OBJECTS),
    *((platform, registration(platform, "t") | {"metadata": metadata}, 400, UNREADABLE)
      for platform in PLATFORMS for metadata in NO_METADATA),
    *((platform, registration(platform, "") | body, 400, error("Bad request", f"Missing {name}"))
      for platform, name in TOKEN_NAMES.items() for body in NO_TOKENS),
    *((platform, registration(platform, "t" * 4097), 401, error("Unauthorized", f"Incorrect {name} supplied"))
      for platform, name in TOKEN_NAMES.items()),
    *(("apns", {"token": "t"} | body, 400, error("Bad request", "Missing App Bundle Identifier"))
      for body in NO_BUNDLES),
]


@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_register_refuses(shared_service: Running, account: Account, number: int) -> None:
    """A body that is no object, a token or bundle identifier that is missing or of no use: the row of the table that
    says so, and no device."""

    platform, body, status, expected = BODIES[number]
    options = {"data": body, "headers": JSON} if isinstance(body, bytes) else {"json": body}

    answer = await shared_service.call("POST", f"{base(account)}/devices/{platform}", **options)

    assert (answer.status, answer.json) == (status, expected)
    assert await devices_of(shared_service, account) == 0


async def test_longest_token_and_unknown_keys_are_taken(shared_service: Running, account: Account) -> None:
    """4096 characters are a token, nulls are missing, and what the API does not know does not matter."""

    phone = await register(shared_service, account, "apns", "t" * 4096, knownPreviousClientIds=[], nested=[{}],
                           metadata={"sdkVersion": "4.0.0", "iosVersion": None, "macosVersion": "14", "model": {}})

    assert (await phone.call("GET")).json == {
        "id": phone.id, "userId": None, "metadata": {"sdkVersion": "4.0.0", "macosVersion": "14"}}


@pytest.mark.parametrize("content_type", [
    "application/json", "application/json; charset=UTF-8", "application/json;charset:utf-8", "APPLICATION/JSON",
    "application/vnd.api+json"])
async def test_json_under_any_of_its_names(shared_service: Running, account: Account, content_type: str) -> None:
    """What the SDKs call JSON is taken for it, also with a charset that is none."""

    answer = await shared_service.call("POST", f"{base(account)}/devices/fcm", data=b'{"token":"t"}',
                                       headers={"Content-Type": content_type})

    assert answer.status == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
@pytest.mark.parametrize("method, rest", [("POST", ""), ("PUT", "/metadata"), ("PUT", "/token")])
async def test_other_content_types_are_refused(shared_service: Running, account: Account, method: str, rest: str,
                                               content_type: str) -> None:
    """Where the tables have the row, a body that is not called JSON is refused, before anything else is looked at."""

    path = f"/device_api/v1/instances/x/devices/fcm{'/fcm-1' if rest else ''}{rest}"

    answer = await shared_service.call(method, path, data=b"[", headers={"Content-Type": content_type})

    assert (answer.status, answer.json) == (400, BAD_TYPE)


# --------------------------------------------------------------------------------------------- instances, ids and paths
# name -> method, path below the instance, body
OPERATIONS: dict[str, tuple[str, str, Any]] = {
    "register apns": ("POST", "/devices/apns", registration("apns", "t")),
    "register fcm": ("POST", "/devices/fcm", registration("fcm", "t")),
    "register web": ("POST", "/devices/web", registration("web", "t")),
    "get": ("GET", "/devices/{}", None),
    "metadata": ("PUT", "/devices/{}/metadata", {}),
    "token": ("PUT", "/devices/{}/token", {"token": "t"}),
    "user": ("PUT", "/devices/{}/user", None),
    "get interests": ("GET", "/devices/{}/interests", None),
    "set interests": ("PUT", "/devices/{}/interests", {"interests": []}),
    "add interest": ("POST", "/devices/{}/interests/a", None),
    "remove interest": ("DELETE", "/devices/{}/interests/a", None),
    "vapid": ("GET", "/web-vapid-public-key", None),
    "delete": ("DELETE", "/devices/{}", None),
}
ABOUT_A_DEVICE = {name: operation for name, operation in OPERATIONS.items() if "{}" in operation[1]}


async def operate(service: Running, account: Account, name: str, instance: str = "", device: str = "") -> Answer:
    """One of OPERATIONS on a device (``platform/id``) of an instance."""
    method, path, body = OPERATIONS[name]
    instance = instance or account.app.beams_instance_id
    headers = {"Authorization": f"Bearer {user_token(account, now=service.clock())}"}
    return await service.call(method, f"/device_api/v1/instances/{instance}{path.format(device)}", headers=headers,
                              **({} if body is None else {"json": body}))


@pytest.mark.parametrize("instance", [
    "x", "0", NOBODY + "0", NOBODY[:-1], NOBODY.replace("-", ""), "%20", "g" + NOBODY[1:]])
async def test_malformed_instance(shared_service: Running, account: Account, instance: str) -> None:
    """An instance id that is none is 400 everywhere, before anything else is looked at."""

    answers = {name: await operate(shared_service, account, name, instance, "fcm/!") for name in OPERATIONS}

    expected = error("Bad Request", "instance-id given is not valid")
    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == dict.fromkeys(
        OPERATIONS, (400, expected))


async def test_unknown_instance(shared_service: Running, account: Account) -> None:
    """An instance that nobody owns is 404; but what is to be deleted from it is surely not there."""

    answers = {name: await operate(shared_service, account, name, NOBODY, "fcm/fcm-1") for name in OPERATIONS}

    deletion = answers.pop("delete")
    assert (deletion.status, deletion.body) == (200, b"")
    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == dict.fromkeys(
        answers, (404, INSTANCE_NOT_FOUND))


async def test_instance_in_any_letter_case(shared_service: Running, account: Account) -> None:
    """A UUID is the same in capitals."""

    answer = await operate(shared_service, account, "register fcm", account.app.beams_instance_id.upper())

    assert answer.status == 200


async def test_instance_is_looked_at_before_body_and_fields(shared_service: Running, account: Account) -> None:
    """Content type, then the form of the instance, then its existence, then the body, then its fields: the first that
    is wrong is told."""

    async def attempt(instance: str, body: bytes, content_type: str) -> Any:
        answer = await shared_service.call("POST", f"/device_api/v1/instances/{instance}/devices/apns", data=body,
                                           headers={"Content-Type": content_type})
        return answer.json["description"]

    own, json = account.app.beams_instance_id, "application/json"
    assert [await attempt("x", b"[", "text/plain"), await attempt("x", b"[", json), await attempt(NOBODY, b"[", json),
            await attempt(own, b"[", json), await attempt(own, b"{}", json),
            await attempt(own, b'{"token":"t"}', json)] == [
        "Only application/json is supported", "instance-id given is not valid", "Could not find the instance",
        "Failed to read body as a JSON object", "Missing APNs token", "Missing App Bundle Identifier"]


@pytest.mark.parametrize("device", [
    "fcm/fcm-426abfc7-41fe-492f-bcf1-27586fa9bd3f", "apns/apns-426abfc7-41fe-492f-bcf1-27586fa9bd3f",
    "web/web-1", "fcm/426abfc7-41fe-492f-bcf1-27586fa9bd3f", "apns/7B4D", "fcm/" + "a" * 256])
async def test_unknown_device(shared_service: Running, account: Account, device: str) -> None:
    """A device that is not there is 404, whatever a server before this one called it; deleting it succeeds."""

    answers = {name: await operate(shared_service, account, name, device=device) for name in ABOUT_A_DEVICE}

    deletion = answers.pop("delete")
    assert (deletion.status, deletion.body) == (200, b"")
    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == dict.fromkeys(
        answers, (404, DEVICE_NOT_FOUND))


@pytest.mark.parametrize("device_id", [
    "a" * 257, "fcm-%00", "fcm%20", "fcm-%C3%A9", "fcm-%FF", "%7B%7D", "a%2Fb", "fcm:1"])
async def test_malformed_device_id(shared_service: Running, account: Account, device_id: str) -> None:
    """An id that no server gives is called so where the tables have a row for it, and is unknown elsewhere; deleting
    it succeeds, because a phone would repeat it for ever."""

    answers = {name: await operate(shared_service, account, name, device=f"fcm/{device_id}")
               for name in ABOUT_A_DEVICE}

    assert {name: (answer.status, answer.body and answer.json) for name, answer in answers.items()} == {
        "get": (404, DEVICE_NOT_FOUND), "metadata": (404, DEVICE_NOT_FOUND), "token": (404, DEVICE_NOT_FOUND),
        "user": (400, error("Bad Request", "Invalid device id")),
        "get interests": (404, DEVICE_NOT_FOUND), "set interests": (404, DEVICE_NOT_FOUND),
        "add interest": (400, error("Bad Request", "device-id given is not valid")),
        "remove interest": (400, error("Incomplete Request", "device-id given is not valid")),
        "delete": (200, b"")}


async def test_a_device_has_one_platform_and_one_app(shared_service: Running, account: Account) -> None:
    """Under another platform, or in another app, a device is unknown, and nobody can delete it there."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    phone = await register(shared_service, account)
    strangers = [Phone(shared_service, account, "apns", phone.id), Phone(shared_service, account, "web", phone.id),
                 Phone(shared_service, other, "fcm", phone.id)]

    for stranger in strangers:
        for name in ABOUT_A_DEVICE:
            answer = await operate(shared_service, stranger.account, name, device=f"{stranger.platform}/{phone.id}")
            assert answer.status == (200 if name == "delete" else 404), name

    assert (await phone.call("GET")).json == {"id": phone.id, "userId": None, "metadata": {}}
    assert await phone.interests() == []


async def test_a_device_that_only_a_sender_knows_is_not_touched(shared_service: Running, account: Account) -> None:
    """Nobody deletes or changes a sender's device without the sender's key, whatever its id looks like."""

    ids = ["fcm-1", "1507bfd3a7c568d4761"]
    await shared_service.call("POST", "/v1/devices", account, json=[{"device_id": one, "user_id": "a"} for one in ids])

    for device_id in ids:
        for name in ABOUT_A_DEVICE:
            answer = await operate(shared_service, account, name, device=f"fcm/{device_id}")
            assert answer.status == (200 if name == "delete" else 404), name

    assert await devices_of(shared_service, account) == 2
    assert await statuses(shared_service, account, "m", *ids) == [3, 3]


INSTANCE_MISSING = error("Incomplete Request", "instance-id param is missing from path")
DEVICE_MISSING = error("Incomplete Request", "device-id param is missing from path")
INTEREST_MISSING = error("Incomplete Request", "interest-name param is missing from path")


@pytest.mark.parametrize("method, path, expected", [
    ("POST", "/instances//devices/apns", INSTANCE_MISSING), ("POST", "/instances/devices/fcm", INSTANCE_MISSING),
    ("GET", "/instances//devices/fcm/fcm-1", INSTANCE_MISSING),
    ("GET", "/instances//web-vapid-public-key", INSTANCE_MISSING),
    ("DELETE", "/instances//devices/fcm/fcm-1", INSTANCE_MISSING),
    ("PUT", "/instances//devices/fcm/fcm-1/user", INSTANCE_MISSING),
    ("POST", "/instances//devices/fcm/fcm-1/interests/a", INSTANCE_MISSING),
    ("GET", "/instances/{}/devices/apns/", DEVICE_MISSING), ("GET", "/instances/{}/devices/fcm", DEVICE_MISSING),
    ("DELETE", "/instances/{}/devices/fcm/", DEVICE_MISSING),
    ("PUT", "/instances/{}/devices/fcm//metadata", DEVICE_MISSING),
    ("PUT", "/instances/{}/devices/fcm//token", DEVICE_MISSING),
    ("PUT", "/instances/{}/devices/apns//user", DEVICE_MISSING),
    ("GET", "/instances/{}/devices/web//interests", DEVICE_MISSING),
    ("PUT", "/instances/{}/devices/web//interests", DEVICE_MISSING),
    ("POST", "/instances/{}/devices/fcm//interests/a", DEVICE_MISSING),
    ("DELETE", "/instances/{}/devices/fcm//interests/a", DEVICE_MISSING),
    ("POST", "/instances/{}/devices/fcm/fcm-1/interests/", INTEREST_MISSING),
    ("DELETE", "/instances/{}/devices/fcm/fcm-1/interests", INTEREST_MISSING),
])
async def test_incomplete_path(shared_service: Running, account: Account, method: str, path: str,
                               expected: dict[str, str]) -> None:
    """A path that lacks an id says which; it is no 404, which would make a phone register again."""

    path = "/device_api/v1" + path.format(account.app.beams_instance_id)

    answer = await shared_service.call(method, path, json={"token": "t"})

    assert (answer.status, answer.json) == (400, expected)


async def test_doubled_and_trailing_slashes_are_the_same_path(shared_service: Running, account: Account) -> None:
    """As everywhere in this service, a slash too many changes nothing, also around an interest."""

    phone = await register(shared_service, account)
    path = phone.path.replace("/devices/", "//devices//")
    for end in ("a", "b/", "/c", "//d//"):
        answer = await shared_service.call("POST", f"{path}/interests/{end}")
        assert (answer.status, answer.body) == (200, b"")

    answer = await shared_service.call("GET", f"{path}//interests//")
    assert answer.json == {"interests": ["a", "b", "c", "d"], "responseMetadata": {}}


@pytest.mark.parametrize("path", ["/devices/safari", "/devices/safari/x", "/devices/fcm/x/y", "/nothing"])
async def test_other_paths_are_404_in_json(shared_service: Running, account: Account, path: str) -> None:
    """There is nothing else, and that too is said in the words of Beams, to any page."""

    answer = await shared_service.call("GET", base(account) + path)

    assert (answer.status, answer.json) == (404, error("Not found", "there is nothing at this path"))
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_wrong_method_is_405_in_json(shared_service: Running, account: Account) -> None:
    """A path with another method tells which it has."""

    answer = await shared_service.call("PATCH", f"{base(account)}/devices/fcm")

    assert (answer.status, answer.json) == (405, error("Method not allowed", "Method Not Allowed"))
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["Allow"].split(","))


@pytest.mark.parametrize("name", OPERATIONS)
async def test_preflight(shared_service: Running, account: Account, name: str) -> None:
    """A browser that asks before an operation is told that any page may, with the headers that the SDK sends."""

    method, path, _ = OPERATIONS[name]

    answer = await shared_service.call("OPTIONS", base(account) + path.format("web/web-1"), headers={
        "Origin": "https://example.com", "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type"})

    assert (answer.status, answer.body) == (204, b"")
    assert {name: answer.headers[name] for name in answer.headers if name.startswith("Access-Control")} == {
        "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Pusher-Library",
        "Access-Control-Max-Age": "86400"}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_any_page_may_read_the_answer(shared_service: Running, account: Account, name: str) -> None:
    """Answers and errors alike carry the header without which a browser hides them from the page."""

    phone = await register(shared_service, account, "web")

    answers = [await operate(shared_service, account, name, device=f"web/{device_id}")
               for device_id in (phone.id, "web-1")]

    assert [answer.headers["Access-Control-Allow-Origin"] for answer in answers] == ["*", "*"]


# ------------------------------------------------------------------------------------------------------ get and delete
async def test_get_device(shared_service: Running, account: Account) -> None:
    """Each platform's device has its id, its user and what was told of it."""

    told = {"sdkVersion": "1", "iosVersion": "2", "macosVersion": "3", "androidVersion": "4", "other": "5"}
    phones = [await register(shared_service, account, platform, metadata=told) for platform in PLATFORMS]
    assert (await phones[0].sign_in("cucas")).status == 200

    assert [(await phone.call("GET")).json for phone in phones] == [
        {"id": phones[0].id, "userId": "cucas",
         "metadata": {"sdkVersion": "1", "iosVersion": "2", "macosVersion": "3"}},
        {"id": phones[1].id, "userId": None, "metadata": {"sdkVersion": "1", "androidVersion": "4"}},
        {"id": phones[2].id, "userId": None, "metadata": {"sdkVersion": "1"}}]


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_deleted_device(shared_service: Running, account: Account, platform: str) -> None:
    """A deleted device is gone for everybody and stays gone; deleting it again succeeds, and its token makes a new
    device with nothing of the old one."""

    phone = await register(shared_service, account, platform, "t")
    await phone.add("news")
    assert (await phone.sign_in("alice")).status == 200

    await phone.do("DELETE")
    await phone.do("DELETE")

    for name in ABOUT_A_DEVICE:
        answer = await operate(shared_service, account, name, device=f"{platform}/{phone.id}")
        assert answer.status == (200 if name == "delete" else 404), name
    assert await devices_of(shared_service, account) == 0
    assert await push(shared_service, account, "m", interests=["news"]) == 0
    assert await push(shared_service, account, "n", users=["alice"]) == 0
    heir = await register(shared_service, account, platform, "t")
    assert heir.id != phone.id
    assert (await heir.call("GET")).json == {"id": heir.id, "userId": None, "metadata": {}}
    assert await heir.interests() == []


async def test_sender_deletes_a_registered_device(shared_service: Running, account: Account) -> None:
    """Deleted with the app's key, a device is as gone as if it had deleted itself."""

    phone = await register(shared_service, account, token="t")
    await phone.add("news")

    answer = await shared_service.call("DELETE", f"/v1/devices/{phone.id}", account)

    assert answer.json == {"device_id": phone.id, "deleted": True}
    assert (await phone.call("GET")).status == 404
    assert await push(shared_service, account, "m", interests=["news"]) == 0
    assert (await register(shared_service, account, token="t")).id != phone.id


# --------------------------------------------------------------------------------------------------- metadata and token
@pytest.mark.parametrize("platform, metadata", [
    ("apns", {"sdkVersion": "4.0.1", "iosVersion": "17.1"}), ("fcm", {"sdkVersion": "1.9.3", "androidVersion": "15"}),
    ("web", {"sdkVersion": "2.1.0"}), ("fcm", {})])
async def test_metadata_is_replaced(shared_service: Running, account: Account, platform: str,
                                    metadata: dict[str, str]) -> None:
    """What is not told any more is forgotten."""

    phone = await register(shared_service, account, platform, metadata={
        "sdkVersion": "1", "iosVersion": "1", "macosVersion": "1", "androidVersion": "1"})

    await phone.do("PUT", "/metadata", json=metadata)

    assert (await phone.call("GET")).json["metadata"] == metadata


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"sdkVersion":1}'])
async def test_malformed_metadata(shared_service: Running, account: Account, body: bytes) -> None:
    """Metadata that is no object of strings is refused, and what was known stays."""

    phone = await register(shared_service, account, metadata={"sdkVersion": "1"})

    answer = await phone.call("PUT", "/metadata", data=body, headers=JSON)

    assert (answer.status, answer.json) == (400, UNREADABLE)
    assert (await phone.call("GET")).json["metadata"] == {"sdkVersion": "1"}


async def test_token_is_refreshed(shared_service: Running, account: Account) -> None:
    """The device is found by its new token, and the old token is nobody's."""

    phone = await register(shared_service, account, token="old")

    await phone.do("PUT", "/token", json={"token": "new"})
    await phone.do("PUT", "/token", json={"token": "new"})

    assert (await register(shared_service, account, token="new")).id == phone.id
    assert (await register(shared_service, account, token="old")).id != phone.id


async def test_token_of_another_device(shared_service: Running, account: Account) -> None:
    """A token moves to the device that says it has it; the device that had it is the same installation of before, and
    is deleted."""

    before = await register(shared_service, account, token="t")
    await before.add("news")
    phone = await register(shared_service, account)

    await phone.do("PUT", "/token", json={"token": "t"})

    assert (await before.call("GET")).status == 404
    assert await push(shared_service, account, "m", interests=["news"]) == 0
    assert (await register(shared_service, account, token="t")).id == phone.id
    assert await devices_of(shared_service, account) == 1


@pytest.mark.parametrize("body, expected", [
    *((body, error("Bad request", "Missing token field with the FCM Registration Id"))
      for body in (b"{}", b'{"token":null}', b'{"token":""}', b'{"token":1}')),
    *((body, UNREADABLE) for body in (b"", b"[]", b"{"))])
async def test_malformed_token(shared_service: Running, account: Account, body: bytes,
                               expected: dict[str, str]) -> None:
    """A refresh without a token is refused, and the device keeps the one it had."""

    phone = await register(shared_service, account, token="t")

    answer = await phone.call("PUT", "/token", data=body, headers=JSON)

    assert (answer.status, answer.json) == (400, expected)
    assert (await register(shared_service, account, token="t")).id == phone.id


# ----------------------------------------------------------------------------------------------------------------- user
@pytest.mark.parametrize("platform", PLATFORMS)
async def test_user_signs_in(shared_service: Running, account: Account, platform: str) -> None:
    """A signed token makes the device the user's; the same user again is no change, another one is refused."""

    phone = await register(shared_service, account, platform)

    answers = [await phone.sign_in(user) for user in ("alice", "alice", "bob")]

    assert [(answer.status, answer.body and answer.json) for answer in answers] == [
        (200, b""), (200, b""), (400, error("Bad Request", "A User Id is already associated with this device"))]
    assert await phone.user() == "alice"
    assert [await push(shared_service, account, user, users=[user]) for user in ("alice", "bob")] == [1, 0]


async def test_user_moves_to_another_device(shared_service: Running, account: Account) -> None:
    """A user has the devices he is signed in on: a second one at once, and only it when the first is gone."""

    first, second = [await register(shared_service, account) for _ in range(2)]
    for phone in (first, second):
        assert (await phone.sign_in("alice")).status == 200
    assert await push(shared_service, account, "both", users=["alice"]) == 2

    await first.do("DELETE")

    assert await push(shared_service, account, "one", users=["alice"]) == 1
    assert await statuses(shared_service, account, "one", first.id, second.id) == [2, 1]
    assert (await second.sign_in("bob")).status == 400


@pytest.mark.parametrize("user", ["a", "a" * 164, "\u00fc" * 164, "\U0001f600" * 164, "a/b?c#d e%", "}{:", "\n", "\0"])
async def test_any_user_of_164_characters(shared_service: Running, account: Account, user: str) -> None:
    """A user id is any text of 1 to 164 characters, counted as such and not as bytes."""

    phone = await register(shared_service, account)

    assert (await phone.sign_in(user)).status == 200

    assert await phone.user() == user
    assert await push(shared_service, account, "m", users=[user]) == 1


HOUR = 3600
NO_EXPIRATION = error("Bad Request", "Missing expiration (exp) field in JWT")
BAD_SUBJECT = error("Bad Request", "JWT subject (sub) must be between 1-164 characters long")
NO_SUBJECTS = {"empty": "", "too long": "a" * 165, "number": 5, "list": ["a"], "half a pair": "\ud800"}
# name -> claims (times from now), status, answer
CLAIMS: dict[str, tuple[dict[str, Any], int, dict[str, str]]] = {
    **{f"expiration {value}": ({"exp": value}, 400, NO_EXPIRATION)
       for value in (None, "soon", True, float("inf"), float("nan"))},
    "no subject": ({"sub": None}, 400, error("Bad Request", "Missing subject (sub) field in JWT")),
    **{f"subject {label}": ({"sub": subject}, 400, BAD_SUBJECT) for label, subject in NO_SUBJECTS.items()},
    "no issuer": ({"iss": None}, 400, error("Bad Request", "Missing issuer (iss) field in JWT")),
    "empty issuer": ({"iss": ""}, 400, error("Bad Request", "Missing issuer (iss) field in JWT")),
    **{f"issuer {issuer}": ({"iss": issuer}, 403, error("Forbidden", "Invalid JWT issuer"))
       for issuer in (f"https://{NOBODY}.pushnotifications.pusher.com", "https://example.com", 5)},
    "expired": ({"exp": -1}, 401, error("Unauthorized", "Invalid JWT claims: Token is expired")),
    "expires now": ({"exp": 0}, 401, error("Unauthorized", "Invalid JWT claims: Token is expired")),
    "issued in an hour": ({"iat": HOUR}, 401, error("Unauthorized", "Invalid JWT claims: Token used before issued")),
    "valid in an hour": ({"nbf": HOUR}, 401, error("Unauthorized", "Invalid JWT claims: Token is not valid yet")),
}


@pytest.mark.parametrize("name", CLAIMS)
async def test_each_claim_has_its_own_answer(shared_service: Running, account: Account, name: str) -> None:
    """A token that the app signed is refused for the first claim that is wrong, in the words of the table."""

    claims, status, expected = CLAIMS[name]
    shared_service.clock.ahead += 86400  # the service's clock counts, not the machine's
    now = shared_service.clock()
    claims = {claim: int(now) + value if claim in ("exp", "iat", "nbf") and type(value) is int else value
              for claim, value in claims.items()}
    phone = await register(shared_service, account)

    answer = await phone.call("PUT", "/user", headers={
        "Authorization": f"Bearer {user_token(account, now=now, **claims)}"})

    assert (answer.status, answer.json) == (status, expected)
    assert await phone.user() is None


@pytest.mark.parametrize("claims", [
    {"iat": -HOUR}, {"iat": 5}, {"nbf": 0}, {"exp": HOUR * 24 * 3650}, {"exp": 0.5}, {"aud": "anybody"}, {"jti": 7},
    {"iat": None}, {"iat": "yesterday"}])
async def test_claims_that_are_right_or_do_not_matter(shared_service: Running, account: Account,
                                                      claims: dict[str, Any]) -> None:
    """Older than now, a little ahead of our clock, without a time of issue, or with claims that nobody asked for."""

    now = shared_service.clock()
    claims = {claim: now + value + 1 if claim in ("exp", "iat", "nbf") and isinstance(value, (int, float)) else value
              for claim, value in claims.items()}
    phone = await register(shared_service, account)

    await phone.do("PUT", "/user", headers={"Authorization": f"bearer  {user_token(account, now=now, **claims)} "})

    assert await phone.user() == "alice"


MISSING = error("Unauthorized", "Authorization header token is missing")
MALFORMED = error("Unauthorized", "Authorization header token is malformed")
Header = Callable[[Account, float], str]
HEADERS: dict[str, tuple[Header, dict[str, str]]] = {
    "empty": (lambda account, now: "", MISSING), "blank": (lambda account, now: "  ", MISSING),
    "no scheme": (lambda account, now: user_token(account, now=now), MALFORMED),
    "basic": (lambda account, now: f"Basic {user_token(account, now=now)}", MALFORMED),
    "no token": (lambda account, now: "Bearer", MALFORMED), "one part": (lambda account, now: "Bearer abc", MALFORMED),
    "three empty parts": (lambda account, now: "Bearer ..", MALFORMED),
    "cut": (lambda account, now: f"Bearer {user_token(account, now=now).rpartition('.')[0]}", MALFORMED),
    "deep header": (lambda account, now: f"Bearer {base64.b64encode(b'[' * 6000).decode()}.e30.e30", MALFORMED),
    "deep claims": (lambda account, now: "Bearer " + jwt.api_jws.encode(
        b"[" * 6000, account.app.beams_secret_key, "HS256"), MALFORMED),
    "claims are a list": (lambda account, now: "Bearer " + jwt.api_jws.encode(
        b"[]", account.app.beams_secret_key, "HS256"), MALFORMED),
    "another key": (lambda account, now: f"Bearer {user_token(account, now=now, secret='A' * 64)}",
                    error("Unauthorized", "Invalid JWT signature")),
    "changed": (lambda account, now: "Bearer " + ".".join((
        *user_token(account, now=now).split(".")[:2], user_token(account, "bob", now=now).split(".")[2])),
        error("Unauthorized", "Invalid JWT signature")),
    "another algorithm": (lambda account, now: f"Bearer {user_token(account, now=now, algorithm='HS512')}",
                          error("Unauthorized", "JWT must be signed with HS256")),
    "not signed": (lambda account, now: "Bearer " + jwt.encode(
        jwt.decode(user_token(account, now=now), options={"verify_signature": False}), "", "none"),
        error("Unauthorized", "JWT must be signed with HS256")),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_tokens_that_are_not_the_apps(shared_service: Running, account: Account, name: str) -> None:
    """No token, no JWT, one that somebody else signed, or signed otherwise than with HS256: 401, whatever it claims.
    """

    header, expected = HEADERS[name]
    phone = await register(shared_service, account)

    answer = await phone.call("PUT", "/user", headers={"Authorization": header(account, shared_service.clock())})

    assert (answer.status, answer.json) == (401, expected)
    assert await phone.user() is None


async def test_token_without_header_and_of_another_app(shared_service: Running, account: Account) -> None:
    """A request without the header lacks its token, and what one app signs is nothing to another."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    phone = await register(shared_service, account)
    issuer = f"https://{account.app.beams_instance_id}.pushnotifications.pusher.com"
    token = user_token(other, now=shared_service.clock(), iss=issuer)

    answers = [await phone.call("PUT", "/user"),
               await phone.call("PUT", "/user", headers={"Authorization": f"Bearer {token}"})]

    assert [(answer.status, answer.json) for answer in answers] == [
        (401, MISSING), (401, error("Unauthorized", "Invalid JWT signature"))]


async def test_a_user_has_at_most_100_devices_under_concurrent_requests(shared_service: Running,
                                                                        account: Account) -> None:
    """Of 130 devices that ask at the same moment, exactly 100 become the user's; one that leaves makes room for one."""

    phones = await asyncio.gather(*(register(shared_service, account, platform)
                                    for platform in ["apns", "fcm", "web"] * 43 + ["fcm"]))

    answers = await asyncio.gather(*(phone.sign_in("alice") for phone in phones))

    full = error("Unprocessable Entity", "User already has reached the maximum of 100 devices")
    outcomes = [(answer.status, answer.body and answer.json) for answer in answers]
    assert sorted(outcomes, key=str) == [(200, b"")] * 100 + [(422, full)] * 30
    users = await asyncio.gather(*(phone.user() for phone in phones))
    assert users == ["alice" if answer.status == 200 else None for answer in answers]
    assert await push(shared_service, account, "m", users=["alice"]) == 100

    signed_in = [phone for phone, answer in zip(phones, answers, strict=True) if answer.status == 200]
    waiting = [phone for phone, answer in zip(phones, answers, strict=True) if answer.status == 422]
    assert (await signed_in[0].sign_in("alice")).status == 200
    await signed_in[0].do("DELETE")
    again = await asyncio.gather(*(phone.sign_in("alice") for phone in waiting))
    assert sorted(answer.status for answer in again) == [200] + [422] * 29
    assert await push(shared_service, account, "n", users=["alice"]) == 100


async def test_one_of_two_users_at_once_gets_the_device(shared_service: Running, account: Account) -> None:
    """Users who sign in on one device at the same moment: one has it, and the others have no place of it."""

    users = [f"user{number}" for number in range(8)]
    phone = await register(shared_service, account)

    answers = await asyncio.gather(*(phone.sign_in(user) for user in users))

    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    winner = users[[answer.status for answer in answers].index(200)]
    assert await phone.user() == winner
    assert [await push(shared_service, account, user, users=[user]) for user in users] == [
        int(user == winner) for user in users]


# ------------------------------------------------------------------------------------------------------------ interests
async def test_interests_are_added_removed_and_replaced(shared_service: Running, account: Account) -> None:
    """A device has what was added and not removed since; adding twice and removing nothing change nothing."""

    phone = await register(shared_service, account)
    await phone.add("b", "a", "B", "a")
    assert (await phone.call("GET", "/interests")).json == {"interests": ["B", "a", "b"], "responseMetadata": {}}

    await phone.do("DELETE", "/interests/a")
    await phone.do("DELETE", "/interests/a")
    await phone.do("DELETE", "/interests/never")
    assert await phone.interests() == ["B", "b"]

    await phone.do("PUT", "/interests", json={"interests": ["c", "b", "c"]})
    assert await phone.interests() == ["b", "c"]

    await phone.do("PUT", "/interests", json={"interests": []})
    assert await phone.interests() == []


async def test_every_character_a_name_may_have(shared_service: Running, account: Account) -> None:
    """Names of one and of 164 characters, of all that are allowed, percent-encoded or not, come back as they are."""

    names = ["-", "0", "=", "@", "A", "_", "z", ",", ";", "a" * 164, "donuts;a,b", "_-=@,.;aZ09"]
    one, other = [await register(shared_service, account) for _ in range(2)]

    for name in names:
        await one.do("POST", "/interests/" + "".join(f"%{ord(character):02X}" for character in name))
    # Clients take a dot in a path for the folder it is in, as they should; the name can be set.
    await other.do("PUT", "/interests", json={"interests": [*names, ".", ".."]})

    assert await one.interests() == sorted(names)
    assert await other.interests() == sorted([*names, ".", ".."])
    for name in names:
        await one.do("DELETE", f"/interests/{name.replace(';', '%3b')}")
    assert await one.interests() == []


NAMES = ["a b", "a/b", "a+b", "a:b", "a#b", "\u00e4", "a\n", "", "a" * 165, "a\0", "<a>", "a%"]


@pytest.mark.parametrize("name", NAMES)
async def test_malformed_interest(shared_service: Running, account: Account, name: str) -> None:
    """A name that an interest cannot have is refused in a path and in a body, and changes nothing."""

    phone = await register(shared_service, account)
    await phone.add("a")
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())

    answers = [await phone.call("PUT", "/interests", json={"interests": ["b", name]})]
    if encoded:
        answers += [await phone.call(method, f"/interests/{encoded}") for method in ("POST", "DELETE")]

    assert [(answer.status, answer.json) for answer in answers] == [(400, BAD_INTEREST)] * len(answers)
    assert await phone.interests() == ["a"]


@pytest.mark.parametrize("path", ["a/b", "%61/b", "%FF", "a//b"])
async def test_malformed_interest_is_no_missing_path(shared_service: Running, account: Account, path: str) -> None:
    """A slash in a name, as Swift would send it, is a bad name: a 404 would make the phone register again and again."""

    phone = await register(shared_service, account)

    answers = [await phone.call(method, f"/interests/{path}") for method in ("POST", "DELETE")]

    assert [(answer.status, answer.json) for answer in answers] == [(400, BAD_INTEREST)] * 2


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"interests":null}', b'{"interests":"a"}',
                                  b'{"interests":{"a":1}}', b'["a"]'])
async def test_malformed_set_of_interests(shared_service: Running, account: Account, body: bytes) -> None:
    """What is no list of interests is refused, and changes nothing."""

    phone = await register(shared_service, account)
    await phone.add("a")

    answer = await phone.call("PUT", "/interests", data=body, headers=JSON)

    assert (answer.status, answer.json) == (400, UNREADABLE)
    assert await phone.interests() == ["a"]


@pytest.mark.parametrize("name", [1, None, ["a"], True])
async def test_interest_that_is_no_text(shared_service: Running, account: Account, name: Any) -> None:
    """Only texts are names."""

    phone = await register(shared_service, account)

    answer = await phone.call("PUT", "/interests", json={"interests": [name]})

    assert (answer.status, answer.json) == (400, BAD_INTEREST)


async def test_5000_interests(shared_service: Running, account: Account) -> None:
    """A device has up to 5000 interests, in fifty pages; one more is refused and changes nothing, however it is added,
    while one that it has already can be added again."""

    names = [f"interest{number:04}" for number in range(5000)]
    phone = await register(shared_service, account)
    await phone.do("PUT", "/interests", json={"interests": names + names[:10]})
    assert await phone.interests() == names

    answers = [await phone.call("POST", "/interests/one-more"),
               await phone.call("PUT", "/interests", json={"interests": [*names, "one-more"]})]

    too_many = error("Interest set too large", "Too many interests are being set for this device. "
                                               "Only 5000 interests per device are allowed")
    assert [(answer.status, answer.json) for answer in answers] == [(400, too_many)] * 2
    assert await phone.interests() == names
    await phone.add(names[0])
    await phone.do("DELETE", f"/interests/{names[0]}")
    await phone.add("one-more")
    assert await phone.interests() == [*names[1:], "one-more"]


async def test_pages(shared_service: Running, account: Account) -> None:
    """Pages of any size follow one another without gap or overlap, and only the last has no cursor."""

    names = sorted(f"i{number}" for number in range(105))
    phone = await register(shared_service, account)
    await phone.do("PUT", "/interests", json={"interests": names})

    first = await phone.call("GET", "/interests")
    assert first.json == {"interests": names[:100],
                          "responseMetadata": {"nextCursor": first.json["responseMetadata"]["nextCursor"]}}
    for limit in (1, 35, 100):
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await phone.call("GET", f"/interests?limit={limit}&cursor={cursor}")).json
            seen += page["interests"]
            assert len(page["interests"]) <= limit
            if page["responseMetadata"] == {}:
                break
            cursor = page["responseMetadata"]["nextCursor"]
        assert seen == names


NO_LIMITS = ("0", "101", "-1", "1.5", "ten", "", "1e1", "%201", "99999999999999999999", "\u0661")
NO_CURSORS = ("!", "a", "YQ=", "YWI_!", "IA", "_w", "a" * 300, "\u00e4", "YQ%3D%3D%3D")


@pytest.mark.parametrize("query, text", [
    *((f"limit={limit}", "limit given is not valid") for limit in NO_LIMITS),
    *((f"cursor={cursor}", "cursor given is not valid") for cursor in NO_CURSORS)])
async def test_malformed_limit_and_cursor(shared_service: Running, account: Account, query: str, text: str) -> None:
    """A limit is a number of 1 to 100, a cursor what a page gave out."""

    phone = await register(shared_service, account)
    await phone.add("a", "b")

    answer = await phone.call("GET", f"/interests?{query}")

    assert (answer.status, answer.json) == (400, error("Bad Request", text))


@pytest.mark.parametrize("seed", range(5))
async def test_cursors_while_the_set_changes(shared_service: Running, account: Account, seed: int) -> None:
    """Between pages, interests before, at and after the cursor come and go: each that was there all the time is listed
    exactly once, none twice, and none that never was."""

    chance = random.Random(seed)
    names = [f"{number:03}" for number in range(120)]
    stays = set(chance.sample(names, 60))
    changes = [name for name in names if name not in stays]
    phone = await register(shared_service, account)
    present = stays | set(chance.sample(changes, 30))
    ever = set(present)
    await phone.do("PUT", "/interests", json={"interests": list(present)})

    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await phone.call("GET", f"/interests?limit={chance.randint(1, 20)}&cursor={cursor}")).json
        seen += page["interests"]
        assert set(page["interests"]) <= present
        cursor = page["responseMetadata"].get("nextCursor")
        for name in [*chance.sample(changes, 6), *(name for name in seen[-1:] if name in changes)]:
            present ^= {name}
            ever.add(name)
            await phone.do("POST" if name in present else "DELETE", f"/interests/{name}")

    assert len(seen) == len(set(seen))
    assert stays <= set(seen) <= ever
    assert seen == sorted(seen)


# ---------------------------------------------------------------------------------------------------------------- VAPID
async def test_vapid_public_key(shared_service: Running, account: Account) -> None:
    """Each app has a key of its own, always the same: a point of the curve P-256 as browsers take it."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")

    answers = [await shared_service.call("GET", f"{base(one)}/web-vapid-public-key")
               for one in (account, account, other)]

    keys = [vapid.public_key(one.app.vapid_private_key) for one in (account, account, other)]
    assert [(answer.status, answer.json) for answer in answers] == [(200, {"vapidPublicKey": key}) for key in keys]
    assert keys[0] == keys[1] != keys[2]


async def test_app_that_was_made_before_browsers_could_register(shared_service: Running, account: Account) -> None:
    """An app without a key says so, instead of handing out one that nobody can send with."""

    redis = shared_service.service.redis
    old = orjson.dumps(asdict(account.app) | {"vapid_private_key": ""})
    await redis.run([("HSET", apps_key(), account.app.id, old), ("HINCRBY", apps_key(), "v", 1)])
    await shared_service.service.apps.refresh()

    answer = await shared_service.call("GET", f"{base(account)}/web-vapid-public-key")

    assert (answer.status, answer.json) == (
        404, error("Not found", "this app was made before browsers could register; make a new one"))


# -------------------------------------------------------------------------------------------------------- delete a user
async def delete_user(service: Running, account: Account, user: str, api: str = "customer_api",
                      secret: str = "") -> Answer:
    """What a server SDK sends; *user* as it stands in the path."""
    return await service.call("DELETE", f"/{api}/v1/instances/{account.app.beams_instance_id}/users/{user}",
                              headers={"Authorization": f"Bearer {secret or account.app.beams_secret_key}"})


@pytest.mark.parametrize("api", ["customer_api", "user_api"])
async def test_delete_user(shared_service: Running, account: Account, api: str) -> None:
    """A user goes with all devices he signed in on, in this app and no other; others stay, and so do devices that only
    a sender named him for, as nobody's."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    mine = [await register(shared_service, account, platform, platform) for platform in PLATFORMS]
    bobs, elsewhere = await register(shared_service, account), await register(shared_service, other)
    for phone in (*mine, elsewhere):
        assert (await phone.sign_in("alice")).status == 200
    assert (await bobs.sign_in("bob")).status == 200
    await shared_service.call("POST", "/v1/devices", account, json={"device_id": "d", "user_id": "alice"})

    answer = await delete_user(shared_service, account, "alice", api)

    assert (answer.status, answer.body) == (200, b"")
    assert [(await phone.call("GET")).status for phone in mine] == [404] * 3
    assert [await bobs.user(), await elsewhere.user()] == ["bob", "alice"]
    assert await push(shared_service, account, "m", users=["alice"]) == 0
    assert await statuses(shared_service, account, "m", *(phone.id for phone in mine), bobs.id, "d") == [2, 2, 2, 3, 3]
    assert (await register(shared_service, account, "fcm", "fcm")).id not in {phone.id for phone in mine}


@pytest.mark.parametrize("user, path", [
    ("a/b", "a/b"), ("a/b", "a%2Fb"), ("a//b", "a//b"), ("a/", "a/"), ("Stop!' said Fred", "Stop!'%20said%20Fred"),
    ("\u4e2d\u6587", "%E4%B8%AD%E6%96%87"), ("100%", "100%25"), ("a?b", "a%3Fb"), ("a+b", "a+b"),
    ("a" * 164, "a" * 164)])
async def test_user_is_deleted_whatever_his_id(shared_service: Running, account: Account, user: str,
                                               path: str) -> None:
    """An id is taken from the path as the SDKs write it there: slashes left alone by one, encoded by another."""

    phone = await register(shared_service, account)
    assert (await phone.sign_in(user)).status == 200

    answer = await delete_user(shared_service, account, path)

    assert answer.status == 200
    assert (await phone.call("GET")).status == 404


async def test_unknown_user_is_deleted(shared_service: Running, account: Account) -> None:
    """Nobody is not there afterwards either."""

    answer = await delete_user(shared_service, account, "nobody")

    assert (answer.status, answer.body) == (200, b"")


async def test_delete_user_refuses(shared_service: Running, account: Account) -> None:
    """No key, a wrong one, another app's, an unknown instance, a user id that is none: the user stays."""

    other = await shared_service.make_account(f"other {uuid.uuid4()}")
    phone = await register(shared_service, account)
    assert (await phone.sign_in("alice")).status == 200
    path = "/customer_api/v1/instances/{}/users/{}"
    key = account.app.beams_secret_key

    async def attempt(instance: str, user: str, header: str | None) -> tuple[int, Any]:
        headers = {} if header is None else {"Authorization": header}
        answer = await shared_service.call("DELETE", path.format(instance, user), headers=headers)
        return answer.status, answer.json

    instance = account.app.beams_instance_id
    wrong = (401, error("Unauthorized", "Incorrect Secret Key"))
    assert [
        await attempt(instance, "alice", None), await attempt(instance, "alice", "Bearer nonsense"),
        await attempt(instance, "alice", f"Bearer {other.app.beams_secret_key}"), await attempt(instance, "alice", key),
        await attempt(instance, "alice", f"Basic {key}"), await attempt(instance, "alice", "Bearer \u00e4"),
        await attempt(instance, "alice", f"Bearer {key.lower()}"), await attempt(NOBODY, "alice", f"Bearer {key}"),
        await attempt("x", "alice", f"Bearer {key}"), await attempt(instance, "a" * 165, f"Bearer {key}"),
    ] == [
        (400, error("Incomplete Request", "Authorization header is missing")), wrong, wrong, wrong, wrong, wrong, wrong,
        (404, INSTANCE_NOT_FOUND), (404, INSTANCE_NOT_FOUND),
        (400, error("Bad request", "'User id' is too long, max length is 164"))]
    assert await phone.user() == "alice"


async def test_path_without_a_user_is_404_in_json(shared_service: Running, account: Account) -> None:
    """There is no user with an empty id."""

    answer = await delete_user(shared_service, account, "")

    assert (answer.status, answer.json) == (404, error("Not found", "there is nothing at this path"))


# ------------------------------------------------------------------------------------------------- what the reports see
async def users_today(service: Running, account: Account) -> dict[str, dict[str, int]]:
    """New, online and active devices of today, by platform."""
    await service.applied()
    day = datetime.fromtimestamp(service.clock(), UTC).date()
    answer = await service.call("GET", f"/v3/users?time_unit=DAY&start={day}&duration=1", account)
    item: dict[str, Any] = answer.json["items"][0]
    assert item.pop("time") == str(day)
    return item


async def test_registration_and_activity_feed_the_users_report(shared_service: Running, account: Account) -> None:
    """A registration is a new device that is online; on a later day, what a device changes of itself makes it online
    again, and a click makes it active."""

    # day      1: two apns, one fcm, one web register    2: an fcm adds an interest, a web clicks    3: nothing
    at_noon(shared_service.clock)
    phones = [await register(shared_service, account, platform) for platform in ("apns", "apns", "fcm", "web")]
    assert await users_today(shared_service, account) == {
        "ios": {"new": 2, "online": 2}, "android": {"new": 1, "online": 1}, "web": {"new": 1, "online": 1}}

    shared_service.clock.ahead += 86400
    await phones[2].add("news")
    answer = await shared_service.call(
        "POST", f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events",
        json={"event": "open", "publishId": "m", "deviceId": phones[3].id,
              "timestampSecs": int(shared_service.clock())})
    assert answer.status == 200
    assert await users_today(shared_service, account) == {
        "android": {"online": 1}, "web": {"online": 1, "active": 1}}

    shared_service.clock.ahead += 86400
    assert await users_today(shared_service, account) == {}


@pytest.mark.parametrize("change", ["metadata", "token", "user", "set interests", "add interest", "remove interest"])
async def test_every_change_a_device_makes_counts_it_as_online(shared_service: Running, account: Account,
                                                               change: str) -> None:
    """A device that changes something of itself is there."""

    at_noon(shared_service.clock)
    phone = await register(shared_service, account)
    shared_service.clock.ahead += 86400

    assert (await operate(shared_service, account, change, device=f"fcm/{phone.id}")).status == 200

    assert await users_today(shared_service, account) == {"android": {"online": 1}}


async def test_deleted_device_in_the_reports(shared_service: Running, account: Account) -> None:
    """A deleted device is status 2 and on no list of pending devices, and what it received still counts."""

    phones = [await register(shared_service, account) for _ in range(3)]
    for phone in phones:
        await phone.add("news")
    ids = [phone.id for phone in phones]
    assert await push(shared_service, account, "m", interests=["news"]) == 3
    await shared_service.send(account, *({"msg_id": "m", "stage": "received", "device_id": one} for one in ids[:2]))
    assert await statuses(shared_service, account, "m", *ids) == [0, 0, 1]
    assert await pending(shared_service, account, "m") == {ids[2]}

    await phones[0].do("DELETE")
    await phones[2].do("DELETE")
    await shared_service.applied()

    assert await statuses(shared_service, account, "m", *ids) == [2, 0, 2]
    assert await pending(shared_service, account, "m") == set()
    assert (await shared_service.call("GET", "/v3/messages?msg_ids=m", account)).json == [{
        "android": {"received": 2, "target": 3, "online_push": None, "click": None, "msg_click": None},
        "ios": dict.fromkeys(("apns_sent", "apns_target", "apns_received", "click", "target", "received")),
        "winphone": dict.fromkeys(("mpns_target", "mpns_sent", "click")), "msg_id": "m"}]


async def test_events_do_not_bring_a_deleted_device_back(shared_service: Running, account: Account) -> None:
    """A receipt that arrives after the deletion counts, but the device stays deleted and is in no later audience."""

    phone = await register(shared_service, account)
    await phone.do("DELETE")
    await shared_service.send(account, {"msg_id": "m", "stage": "received", "device_id": phone.id})

    assert await statuses(shared_service, account, "m", phone.id) == [2]
    assert (await phone.call("GET")).status == 404
    answer = await shared_service.call("GET", "/v3/received?msg_ids=m", account)
    assert answer.json[0]["android_received"] == 1
