"""Devices of the Beams Device API, for tests: what an SDK calls, and the tokens that an app's server signs."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import jwt

from tests.support.service import Account, Answer, Running

_TOKENS = itertools.count(1)
#: An instance that nobody owns.
NOBODY = "426abfc7-41fe-492f-bcf1-27586fa9bd3f"
DEVICE_NOT_FOUND = {"error": "Device not found", "description": "Could not find the device"}
INSTANCE_NOT_FOUND = {"error": "Instance not found", "description": "Could not find the instance"}


def error(title: str, description: str) -> dict[str, str]:
    """An error as Beams writes it."""
    return {"error": title, "description": description}


def base(account: Account) -> str:
    """The path of an app's Device API."""
    return f"/device_api/v1/instances/{account.app.beams_instance_id}"


def registration(platform: str, token: str) -> dict[str, Any]:
    """The least that registers a device."""
    return {"token": token} | ({"bundleIdentifier": "com.example"} if platform == "apns" else {})


def user_token(account: Account, user: object = "alice", *, now: float, secret: str = "", algorithm: str = "HS256",
               **claims: Any) -> str:
    """What an app's server signs for *user*; a claim that is None is left out."""
    default = {"iss": f"https://{account.app.beams_instance_id}.pushnotifications.pusher.com", "sub": user,
               "exp": int(now) + 86400}
    said = {name: value for name, value in (default | claims).items() if value is not None}
    # The library would refuse to sign some of what a test wants to be refused.
    return jwt.api_jws.encode(json.dumps(said).encode(), secret or account.app.beams_secret_key, algorithm)


@dataclass(frozen=True)
class Phone:
    """A registered device."""

    service: Running
    account: Account
    platform: str
    id: str

    @property
    def path(self) -> str:
        """The path of the device."""
        return f"{base(self.account)}/devices/{self.platform}/{self.id}"

    async def call(self, method: str, rest: str = "", **options: Any) -> Answer:
        """One request about the device."""
        return await self.service.call(method, self.path + rest, **options)

    async def do(self, method: str, rest: str = "", **options: Any) -> None:
        """One request that must succeed, with nothing to say."""
        answer = await self.call(method, rest, **options)
        assert (answer.status, answer.body) == (200, b"")

    async def add(self, *interests: str) -> None:
        """Subscribe."""
        for interest in interests:
            await self.do("POST", f"/interests/{interest}")

    async def sign_in(self, user: str) -> Answer:
        """Ask for the device to be the user's."""
        token = user_token(self.account, user, now=self.service.clock())
        return await self.call("PUT", "/user", headers={"Authorization": f"Bearer {token}"})

    async def interests(self) -> list[str]:
        """Every interest, page by page."""
        names: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = (await self.call("GET", f"/interests?cursor={cursor}")).json
            names += page["interests"]
            cursor = page["responseMetadata"].get("nextCursor")
        return names

    async def user(self) -> Any:
        """Whose it is."""
        return (await self.call("GET")).json["userId"]


async def register(service: Running, account: Account, platform: str = "fcm", token: str = "", **body: Any) -> Phone:
    """A device, new unless *token* was seen before."""
    body = registration(platform, token or f"token-{next(_TOKENS)}") | body
    answer = await service.call("POST", f"{base(account)}/devices/{platform}", json=body)
    assert answer.status == 200, answer
    return Phone(service, account, platform, answer.json["id"])


async def push(service: Running, account: Account, msg_id: str, **audience: Any) -> int:
    """Register a push; how many devices it is for."""
    answer = await service.call("POST", "/v1/pushes", account, json={"msg_id": msg_id, "audience": audience})
    assert (answer.status, answer.json) == (201, {"msg_id": msg_id, "targets": answer.json.get("targets")})
    targets: int = answer.json["targets"]
    return targets


async def statuses(service: Running, account: Account, msg_id: str, *device_ids: str) -> list[int]:
    """The status of a message on each device."""
    answer = await service.call("POST", "/v3/status/message", account,
                                json={"msg_id": msg_id, "registration_ids": list(device_ids)})
    return [answer.json[device_id]["status"] for device_id in device_ids]


async def pending(service: Running, account: Account, msg_id: str) -> set[str]:
    """The devices that a push is on the way to."""
    answer = await service.call("GET", f"/pushes/{msg_id}?api_key={account.pushy_api_key}")
    return set(answer.json["push"]["pending_devices"])
