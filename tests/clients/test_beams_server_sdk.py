"""Pusher's own server SDK for Python, from PyPI, against a running service: it makes user tokens and deletes users."""

from __future__ import annotations

import asyncio
import urllib.parse
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import pusher_push_notifications
import pytest
import pytest_asyncio
from pusher_push_notifications import PusherAuthError, PusherMissingInstanceError, PushNotifications

from tests.support.beams import NOBODY, push, register, statuses
from tests.support.service import Account, Answer, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def account(shared_service: Running) -> Account:
    """A new app of the service that the tests of this file share."""
    return await shared_service.make_account(f"test {uuid.uuid4()}")


@pytest.fixture(autouse=True)
def plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK can be pointed at another host, but insists on https there."""
    monkeypatch.setattr(pusher_push_notifications, "_make_url", lambda scheme, host, path: urllib.parse.urlunparse((
        "http", host, path, None, None, None)))


@contextmanager
def sdk(service: Running, account: Account, instance: str = "", secret: str = "") -> Iterator[Any]:
    """The SDK's client, with an app's instance and secret unless others are given."""
    client = PushNotifications(instance or account.app.beams_instance_id, secret or account.app.beams_secret_key,
                               endpoint=service.url.removeprefix("http://"))
    try:
        yield client
    finally:
        client.session.close()


def generate_token(client: Any, user: str) -> str:
    """The token for a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks the time in a way that Python gives up
        token: str = client.generate_token(user)["token"]
    return token


async def test_token_of_the_sdk_signs_a_user_in(shared_service: Running, account: Account) -> None:
    """What ``generate_token`` makes, without a time of issue, is taken from a device of each platform."""

    with sdk(shared_service, account) as client:
        token = generate_token(client, "alice")
    assert set(jwt.decode(token, options={"verify_signature": False})) == {"iss", "sub", "exp"}

    phones = [await register(shared_service, account, platform) for platform in ("apns", "fcm", "web")]
    for phone in phones:
        await phone.do("PUT", "/user", headers={"Authorization": f"Bearer {token}"})

    assert [await phone.user() for phone in phones] == ["alice"] * 3
    assert await push(shared_service, account, "m", users=["alice"]) == 3


@pytest.mark.parametrize("user", ["alice", "a/b", "Stop!' said Fred", "\u4e2d\u6587", "100%", "a" * 164])
async def test_the_sdk_deletes_a_user(shared_service: Running, account: Account, user: str) -> None:
    """``delete_user`` removes the user and all of his devices, and needs a plain 200."""

    mine, other = [await register(shared_service, account) for _ in range(2)]
    with sdk(shared_service, account) as client:
        await mine.do("PUT", "/user", headers={"Authorization": f"Bearer {generate_token(client, user)}"})
        assert (await other.sign_in("somebody else")).status == 200

        assert await asyncio.to_thread(client.delete_user, user) is None
        assert await asyncio.to_thread(client.delete_user, user) is None

    assert [(await phone.call("GET")).status for phone in (mine, other)] == [404, 200]
    assert await statuses(shared_service, account, "m", mine.id, other.id) == [2, 3]


async def test_the_sdk_is_refused(shared_service: Running, account: Account) -> None:
    """A wrong key and a wrong instance are the SDK's own errors for them, with our words, and nothing is deleted."""

    phone = await register(shared_service, account)
    assert (await phone.sign_in("alice")).status == 200

    with sdk(shared_service, account, secret="A" * 64) as client, pytest.raises(PusherAuthError) as unauthorized:
        await asyncio.to_thread(client.delete_user, "alice")
    with sdk(shared_service, account, instance=NOBODY) as client, pytest.raises(PusherMissingInstanceError) as missing:
        await asyncio.to_thread(client.delete_user, "alice")

    assert [error.value.args for error in (unauthorized, missing)] == [
        ("Unauthorized: Incorrect Secret Key",), ("Instance not found: Could not find the instance",)]
    assert await phone.user() == "alice"


async def test_token_of_another_instance(shared_service: Running, account: Account) -> None:
    """A token that was made for another instance is refused, also when the key is right."""

    phone = await register(shared_service, account)
    answers: list[Answer] = []
    for instance, secret in ((NOBODY, ""), ("", "B" * 64)):
        with sdk(shared_service, account, instance, secret) as client:
            token = generate_token(client, "alice")
        answers.append(await phone.call("PUT", "/user", headers={"Authorization": f"Bearer {token}"}))

    assert [(answer.status, answer.json["description"]) for answer in answers] == [
        (403, "Invalid JWT issuer"), (401, "Invalid JWT signature")]
