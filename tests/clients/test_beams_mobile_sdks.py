"""Requests as the Android and Swift SDKs of Beams write them, and the answers that would stop or wedge a phone.

Those SDKs cannot run here; what they send and how they take each status was read in their sources:
Android 1.9.2 ``PushNotificationsAPI.kt`` and ``ServerSyncHandler.kt``, Swift 4.0.0 ``NetworkService.swift`` and
``ServerSyncProcessHandler.swift``. A phone that gets a wrong status does not show an error to anybody: it asks again
for ever, registers again and again, or never again.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from typing import Any

import pytest
import pytest_asyncio

from tests.support.beams import DEVICE_NOT_FOUND, INSTANCE_NOT_FOUND, NOBODY, Phone, base, error, push, user_token
from tests.support.service import Account, Answer, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANDROID = {"x-pusher-library": "push-notifications-android 1.9.2", "User-Agent": "okhttp/4.9.3"}
GSON = ANDROID | {"Content-Type": "application/json; charset=UTF-8"}
#: Swift sets both on every request, also where there is no body.
SWIFT = {"X-Pusher-Library": "push-notifications-swift 4.0.0", "Content-Type": "application/json"}
#: What Swift takes for "the gateway refuses the token", if a 401 or 403 has it in its description.
SWIFT_BAD_TOKEN = "device token"


@pytest_asyncio.fixture(loop_scope="module")
async def account(shared_service: Running) -> Account:
    """A new app of the service that the tests of this file share."""
    return await shared_service.make_account(f"test {uuid.uuid4()}")


class Android:
    """An Android phone: what its SDK sends."""

    def __init__(self, service: Running, account: Account, fcm_token: str = "fcm-token") -> None:
        self.service = service
        self.account = account
        self.fcm_token = fcm_token
        self.device_id = ""

    async def start(self) -> Answer:
        """Register, as ``registerFCM`` does."""
        answer = await self.service.call("POST", f"{base(self.account)}/devices/fcm", headers=GSON, json={
            "token": self.fcm_token, "knownPreviousClientIds": [],
            "metadata": {"sdkVersion": "1.9.2", "androidVersion": "14"}})
        if answer.status == 200:
            self.device_id = answer.json["id"]
        return answer

    async def send(self, method: str, rest: str = "", body: Any = None, **headers: str) -> Answer:
        """A request about the device; one without a body has no content type."""
        options: dict[str, Any] = {"headers": ANDROID | headers} if body is None else {"headers": GSON, "json": body}
        if method in ("POST", "PUT") and body is None:
            # OkHttp writes an empty body, without a type.
            options |= {"data": b"", "skip_auto_headers": ["Content-Type"]}
        return await self.service.call(method, f"{base(self.account)}/devices/fcm/{self.device_id}{rest}", **options)

    async def set_user(self, user: str) -> Answer:
        """``setUserId``."""
        return await self.send("PUT", "/user", Authorization=self.bearer(user))

    def bearer(self, user: str) -> str:
        """The header for a user."""
        return f"Bearer {user_token(self.account, user, now=self.service.clock())}"


class Swift:
    """An iPhone: what its SDK sends."""

    def __init__(self, service: Running, account: Account, apns_token: str = "0a" * 32) -> None:
        self.service = service
        self.account = account
        self.apns_token = apns_token
        self.device_id = ""

    async def start(self) -> Answer:
        """Register, as ``register`` does; Codable leaves out what is nil."""
        answer = await self.service.call("POST", f"{base(self.account)}/devices/apns", headers=SWIFT, json={
            "token": self.apns_token, "bundleIdentifier": "com.example.app",
            "metadata": {"sdkVersion": "4.0.0", "iosVersion": "17.1"}})
        if answer.status == 200:
            self.device_id = answer.json["id"]
        return answer

    async def send(self, method: str, rest: str = "", body: Any = None, **headers: str) -> Answer:
        """A request about the device."""
        return await self.service.call(method, f"{base(self.account)}/devices/apns/{self.device_id}{rest}",
                                       headers=SWIFT | headers, **({} if body is None else {"json": body}))

    async def set_user(self, user: str) -> Answer:
        """``setUserId``."""
        return await self.send("PUT", "/user", Authorization=f"Bearer {self.token(user)}")

    def token(self, user: str) -> str:
        """What the app's server gives it."""
        return user_token(self.account, user, now=self.service.clock())


def is_done(answer: Answer) -> bool:
    """Any 2xx is success to both SDKs; ours has nothing to say."""
    return (answer.status, answer.body) == (200, b"")


# ------------------------------------------------------------------------------------------------------------- Android
async def test_android_starts_uses_everything_and_stops(shared_service: Running, account: Account) -> None:
    """Every call of the Android SDK, written as it writes it, succeeds."""

    phone = Android(shared_service, account)
    answer = await phone.start()
    assert (answer.status, answer.json) == (200, {"id": phone.device_id, "initialInterestSet": []})

    answers = [
        await phone.send("POST", "/interests/hello"), await phone.send("POST", "/interests/donuts%3Ba%2Cb"),
        await phone.send("DELETE", "/interests/hello"),
        await phone.send("PUT", "/interests", {"interests": ["a", "b"]}),
        await phone.send("PUT", "/interests", {"interests": []}), await phone.set_user("alice"),
        await phone.send("PUT", "/metadata", {"sdkVersion": "1.9.3", "androidVersion": "15"}),
        await phone.send("PUT", "/token", {"token": "another"}), await phone.send("DELETE")]

    assert [is_done(answer) for answer in answers] == [True] * 9


async def test_android_registers_without_a_bundle_identifier(shared_service: Running, account: Account) -> None:
    """Android never sends ``bundleIdentifier`` and repeats a registration that was answered 400 for ever: it is 200."""

    assert (await Android(shared_service, account).start()).status == 200


async def test_android_needs_the_set_of_interests(shared_service: Running, account: Account) -> None:
    """``initialInterestSet`` is non-null in Kotlin, and the SDK sends no interests if it equals those it wants: it has
    to be there, and to be what the server has."""

    phone = Android(shared_service, account)
    assert (await phone.start()).json["initialInterestSet"] == []
    await phone.send("PUT", "/interests", {"interests": ["b", "a"]})

    reinstalled = Android(shared_service, account)

    assert (await reinstalled.start()).json == {"id": phone.device_id, "initialInterestSet": ["a", "b"]}


async def test_android_deletes_what_is_not_there(shared_service: Running, account: Account) -> None:
    """Android repeats a deletion for ever that was answered anything but 2xx, 404 and 400 included: it is 200 for a
    device that is deleted, that never was, whose id is none, and in an instance that is gone."""

    phone = Android(shared_service, account)
    await phone.start()
    first, again = await phone.send("DELETE"), await phone.send("DELETE")
    answers = [await shared_service.call("DELETE", f"{path}", headers=ANDROID) for path in (
        f"{base(account)}/devices/fcm/fcm-{NOBODY}", f"{base(account)}/devices/fcm/{NOBODY}",
        f"{base(account)}/devices/fcm/%21", f"/device_api/v1/instances/{NOBODY}/devices/fcm/fcm-{NOBODY}")]

    assert [is_done(answer) for answer in (first, again, *answers)] == [True] * 6


@pytest.mark.parametrize("method, rest, body", [
    ("POST", "/interests/a", None), ("DELETE", "/interests/a", None), ("PUT", "/interests", {"interests": ["a"]}),
    ("PUT", "/metadata", {"sdkVersion": "1"}), ("PUT", "/token", {"token": "t"})])
async def test_android_makes_its_device_anew(shared_service: Running, account: Account, method: str, rest: str,
                                             body: Any) -> None:
    """On 404, and on nothing else, Android registers again and repeats the call: a device that is gone is 404 for each,
    and the device it then registers takes the call."""

    phone = Android(shared_service, account)
    await phone.start()
    before = phone.device_id
    await phone.send("DELETE")

    answer = await phone.send(method, rest, body)
    assert (answer.status, answer.json) == (404, DEVICE_NOT_FOUND)
    await phone.start()

    assert phone.device_id != before
    assert is_done(await phone.send(method, rest, body))


async def test_android_makes_its_device_anew_to_set_the_user(shared_service: Running, account: Account) -> None:
    """The same for the user, so that a server that deleted the user's devices meets the phone again."""

    phone = Android(shared_service, account)
    await phone.start()
    await phone.send("DELETE")

    assert (await phone.set_user("alice")).status == 404
    await phone.start()

    assert is_done(await phone.set_user("alice"))


async def test_android_drops_what_is_wrong(shared_service: Running, account: Account) -> None:
    """Android gives up on a 400 about interests, metadata and token, and repeats 401, 403 and 422 for ever there: what
    can never be right is 400, also when it is too large to be read."""

    phone = Android(shared_service, account)
    await phone.start()

    async def huge(rest: str) -> Answer:
        """A body over the limit of this service."""
        return await shared_service.call("PUT", f"{base(account)}/devices/fcm/{phone.device_id}{rest}", headers=GSON,
                                         data=io.BytesIO(b'{"token":"' + b"a" * (17 << 20)))

    answers = [
        await phone.send("POST", "/interests/a%20b"), await phone.send("DELETE", "/interests/a%20b"),
        await phone.send("PUT", "/interests", {"interests": ["a b"]}), await phone.send("PUT", "/interests", {}),
        await phone.send("PUT", "/interests", {"interests": [str(number) for number in range(5001)]}),
        await phone.send("PUT", "/metadata", []), await phone.send("PUT", "/token", {"token": ""}),
        await huge("/interests"), await huge("/token")]

    assert [answer.status for answer in answers] == [400] * 9
    assert all(set(answer.json) == {"error", "description"} for answer in answers)


async def test_android_reports_a_bad_user(shared_service: Running, account: Account) -> None:
    """Setting a user ends with the app being told on 400, 401, 403 and 422, and goes on for ever on anything else: each
    way to be wrong is one of those."""

    now = shared_service.clock()
    phone = Android(shared_service, account)
    await phone.start()
    tokens = [user_token(account, now=now, exp=None), user_token(account, now=now, exp=int(now) - 9),
              user_token(account, now=now, iss="https://example.com"), user_token(account, now=now, secret="b" * 64),
              "abc"]
    answers = [await phone.send("PUT", "/user", Authorization=f"Bearer {token}") for token in tokens]
    assert is_done(await phone.set_user("alice"))
    answers.append(await phone.set_user("bob"))

    assert [answer.status for answer in answers] == [400, 401, 403, 401, 401, 400]


async def test_android_sets_another_user_after_a_reinstall(shared_service: Running, account: Account) -> None:
    """A phone that was reinstalled knows of no user, and a 400 would keep the next one out for ever: a registration
    frees the device, and what was sent to the user of before does not reach it."""

    phone = Android(shared_service, account)
    await phone.start()
    assert is_done(await phone.set_user("alice"))

    reinstalled = Android(shared_service, account)
    await reinstalled.start()

    assert reinstalled.device_id == phone.device_id
    assert await push(shared_service, account, "m", users=["alice"]) == 0
    assert is_done(await reinstalled.set_user("bob"))


async def test_android_is_told_of_an_unknown_instance(shared_service: Running, account: Account) -> None:
    """An instance id that was mistyped in the app shows in its log, as title and description."""

    answer = await shared_service.call("POST", f"/device_api/v1/instances/{NOBODY}/devices/fcm", headers=GSON,
                                       json={"token": "t"})

    assert (answer.status, answer.json) == (404, INSTANCE_NOT_FOUND)


# --------------------------------------------------------------------------------------------------------------- Swift
async def test_swift_starts_uses_everything_and_stops(shared_service: Running, account: Account) -> None:
    """Every call of the Swift SDK, written as it writes it, succeeds: JSON is named as the type of nothing at all."""

    phone = Swift(shared_service, account)
    answer = await phone.start()
    assert (answer.status, answer.json) == (200, {"id": phone.device_id, "initialInterestSet": []})

    answers = [
        await phone.send("POST", "/interests/hello"), await phone.send("POST", "/interests/a;b,c=@d._-"),
        await phone.send("DELETE", "/interests/hello"),
        await phone.send("PUT", "/interests", {"interests": ["a", "b"]}),
        await phone.set_user("alice"),
        await phone.send("PUT", "/metadata", {"sdkVersion": "4.0.1", "macosVersion": "14.0"})]
    assert [is_done(answer) for answer in answers] == [True] * 6
    answer = await phone.send("GET")
    assert answer.json == {"id": phone.device_id, "userId": "alice",
                           "metadata": {"sdkVersion": "4.0.1", "macosVersion": "14.0"}}

    assert is_done(await phone.send("DELETE"))
    assert is_done(await phone.send("DELETE"))


@pytest.mark.parametrize("metadata", [None, {}, {"sdkVersion": None, "iosVersion": None, "macosVersion": None}])
async def test_swift_registers_with_nulls(shared_service: Running, account: Account, metadata: Any) -> None:
    """Null and missing mean the same, wherever they stand."""

    answer = await shared_service.call("POST", f"{base(account)}/devices/apns", headers=SWIFT, json={
        "token": "0a", "bundleIdentifier": "missing-bundle-id", "metadata": metadata})

    phone = Phone(shared_service, account, "apns", answer.json["id"])
    assert (await phone.call("GET")).json == {"id": phone.id, "userId": None, "metadata": {}}


async def test_swift_does_not_register_in_a_circle(shared_service: Running, account: Account) -> None:
    """On 404 Swift registers and repeats the call without any pause, again and again: the device that a registration
    answers is there for each call, also with the token of one that was deleted, and in the moment of its deletion."""

    phone = Swift(shared_service, account)
    await phone.start()
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/interests/a", None), ("DELETE", "/interests/a", None), ("PUT", "/interests", {"interests": []}),
        ("PUT", "/metadata", {}), ("GET", "", None)]

    for method, rest, body in calls:
        await asyncio.gather(phone.send("DELETE"), phone.send("DELETE"))
        assert (await phone.send(method, rest, body)).status == 404
        await phone.start()
        assert (await phone.send(method, rest, body)).status == 200, rest
    for _ in range(10):
        deletion, registration = await asyncio.gather(phone.send("DELETE"), phone.start())
        assert (deletion.status, registration.status) == (200, 200)
        if (await phone.send("GET")).status == 404:  # the deletion came last
            await phone.start()
        assert (await phone.send("GET")).status == 200


async def test_swift_never_meets_a_404_for_a_name(shared_service: Running, account: Account) -> None:
    """Swift writes names into the path as they are; whatever is in them, the answer is no 404, which it would take for
    the loss of its device."""

    phone = Swift(shared_service, account)
    await phone.start()

    answers = [await phone.send(method, f"/interests/{name}") for method in ("POST", "DELETE")
               for name in ("a/b", "a%2Fb", "a b", "ä", "{a}", "a" * 165)]

    assert [(answer.status, answer.json) for answer in answers] == [
        (400, error("Invalid interest name", "interest-name given is not valid"))] * 12


async def test_swift_is_not_told_of_a_bad_token_for_a_bad_user(shared_service: Running, account: Account) -> None:
    """Swift takes a 401 or 403 whose text has "device token" in it for the end of its registration: no answer about a
    user has, each has a text, and no 5xx makes its queue wait."""

    now = shared_service.clock()
    phone = Swift(shared_service, account)
    await phone.start()
    tokens = [user_token(account, now=now, iss="x"), user_token(account, now=now, secret="c" * 64), "abc", "",
              user_token(account, now=now, exp=int(now) - 1), user_token(account, now=now, iat=int(now) + 3600)]

    answers = [await phone.send("PUT", "/user", Authorization=f"Bearer {token}") for token in tokens]

    assert [answer.status for answer in answers] == [403, 401, 401, 401, 401, 401]
    assert not any(SWIFT_BAD_TOKEN in answer.json["description"] for answer in answers)


async def test_swift_waits_for_a_place(shared_service: Running, account: Account) -> None:
    """Swift repeats a 422, with growing pauses, and nothing else meanwhile: as soon as one of the user's hundred
    devices is gone it is let in, and nothing but that is 422."""

    others = [Swift(shared_service, account, f"{number:064x}") for number in range(100)]
    await asyncio.gather(*(other.start() for other in others))
    assert all(map(is_done, await asyncio.gather(*(other.set_user("alice") for other in others))))
    phone = Swift(shared_service, account, "ff" * 32)
    await phone.start()

    full = await phone.set_user("alice")
    assert (full.status, full.json) == (422, error(
        "Unprocessable Entity", "User already has reached the maximum of 100 devices"))
    await others[0].send("DELETE")

    assert is_done(await phone.set_user("alice"))


async def test_a_phone_that_comes_from_another_server(shared_service: Running, account: Account) -> None:
    """When an app is pointed here, its phones have ids of the server before, of whatever form: 404 makes both SDKs
    register here, where a 400 would make them drop their calls."""

    android, swift = Android(shared_service, account), Swift(shared_service, account)
    for device_id in (NOBODY, f"fcm-{NOBODY}", f"apns-{NOBODY}", "0123456789abcdef"):
        android.device_id = swift.device_id = device_id
        for phone in (android, swift):
            answer = await phone.send("POST", "/interests/a")
            assert (answer.status, answer.json) == (404, DEVICE_NOT_FOUND)
            assert (await phone.start()).status == 200
            assert is_done(await phone.send("POST", "/interests/a"))
