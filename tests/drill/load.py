"""The load: several apps with the same ids in them, told over HTTP and to their oracles; the same for the same seed.

Of the events, three in ten are repetitions of earlier ones; the rest come in any order, up to a week late. Beside them
run three scripts, one an app, of what depends on order: pushes to everyone, devices that are deleted and come back,
devices that register themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import jwt
import orjson
from aiohttp import encode_basic_auth

from tests.drill.client import Client
from tests.drill.oracle import TODAY, Json, Oracle

DAY: Final = 86400
#: The platform of device n, by n; it goes round differently in each app.
PLATFORMS: Final = ("android", "android", "ios", "android", "winphone", "ios", "web", "", "quickapp")
STAGES: Final = ("target", "sent", "sent", "online_push", "received", "received", "received", "display", "click",
                 "online", "active")
DUPLICATES: Final = 0.3
TIMEZONES: Final = ("UTC", "Asia/Shanghai", "America/St_Johns")
SENDERS: Final = 8
INTERESTS: Final = ("news", "sports", "weather", "all")
#: Events happened from nine to two days ago: what is registered today is on no day that is asked for.
FIRST_DAY: Final = 9
LAST_DAY: Final = 2
#: Devices that are deleted and come back.
MORTALS: Final = 40


@dataclass
class Phone:
    """A device that registered itself: by its token, under an id that the service made."""

    platform: str
    token: str
    id: str = ""
    interests: set[str] = field(default_factory=set)
    user: str = ""


class Tenant:
    """An app, its oracle, and what is said about it."""

    def __init__(self, index: int, credentials: Json, seed: str, now: float, *, devices: int, messages: int) -> None:
        self.index = index
        self.credentials = credentials
        self.oracle = Oracle(credentials["timezone"])
        self.receivers = [f"fcm-{number}" for number in range(devices // 10)]
        self.devices = [f"d{number}" for number in range(devices)] + self.receivers
        self.messages = [f"m{number}" for number in range(messages)]
        self.phones = [Phone(("fcm", "apns", "web")[number % 3], f"token-{number}") for number in range(24)]
        self.headers = {"Authorization": encode_basic_auth(credentials["app_key"], credentials["master_secret"])}
        self.rng = random.Random(f"{seed}/{index}")
        self.script_rng = random.Random(f"{seed}/script/{index}")
        self.midnight = int(datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0).timestamp())
        self._told: deque[Json] = deque(maxlen=50_000)
        self._pushes = 0

    def platform(self, device: str) -> str:
        """What an event may name for a device; empty for one of which nobody ever says."""
        return "" if device.startswith("fcm-") else PLATFORMS[(int(device[1:]) + self.index) % len(PLATFORMS)]

    # ----------------------------------------------------------------------------------------------------------- events
    def event(self) -> Json:
        """The next event."""
        rng = self.rng
        if self._told and rng.random() < DUPLICATES:
            return rng.choice(self._told)
        device, stage = rng.choice(self.devices), rng.choice(STAGES)
        event = {"stage": stage, "device_id": device, "ts": self._time()}
        if stage not in ("online", "active"):
            event["msg_id"] = rng.choice(self.messages)
            if int(device.rpartition("-")[2].removeprefix("d")) % 4 == 0:
                event["kind"] = "message"
        platform = self.platform(device)
        if platform and rng.random() < 0.8:
            event["platform"] = platform
        self._told.append(event)
        return event

    def _time(self) -> int:
        return self.midnight - FIRST_DAY * DAY + self.rng.randrange((FIRST_DAY - LAST_DAY) * DAY)

    def batch(self, size: int) -> list[Json]:
        """The next events, which the oracle knows of from now on."""
        events = [self.event() for _ in range(size)]
        for event in events:
            self.oracle.event(event)
        return events

    def receipt(self) -> Json:
        """The next event that a device reports by itself."""
        rng = self.rng
        phones = [phone.id for phone in self.phones if phone.id]
        device = rng.choice(phones if phones and rng.random() < 0.5 else self.receivers)
        kind, message, moment = rng.choice(("delivery", "Delivery", "open")), rng.choice(self.messages), self._time()
        is_shown = rng.random() < 0.5
        stages = ["click"] if kind == "open" else ["received", "display"] if is_shown else ["received"]
        for stage in stages:
            self.oracle.event({"msg_id": message, "stage": stage, "device_id": device, "ts": moment})
        return {"event": kind, "publishId": message, "deviceId": device, "timestampSecs": moment,
                "appInBackground": is_shown, "hasDisplayableContent": True}

    # ---------------------------------------------------------------------------------------------------------- scripts
    async def register(self, client: Client, devices: list[str]) -> None:
        """Make devices known, before anything else is said of them."""
        for start in range(0, len(devices), 5000):
            part = devices[start:start + 5000]
            await client.insist("POST", "/v1/devices", headers=self.headers, body=[
                {"device_id": device, "platform": self.platform(device) or "unknown"} for device in part])
            for device in part:
                self.oracle.seen(device, TODAY, self.platform(device))

    async def push(self, client: Client, audience: Any, devices: list[str]) -> None:
        """Register a push to *audience*, which is *devices*."""
        msg_id = f"p{self._pushes}"
        self._pushes += 1
        created_at = self.midnight + self._pushes
        payload = {"text": f"push {msg_id} of {self.index} – ünïcode", "n": self._pushes / 4}
        await client.insist("POST", "/v1/pushes", headers=self.headers, body={
            "msg_id": msg_id, "audience": audience, "payload": payload, "created_at": created_at})
        self.oracle.pushes[msg_id] = {"date": created_at, "payload": payload, "expiration": created_at + 30 * DAY}
        self.oracle.target(msg_id, devices)
        self.messages.append(msg_id)

    async def push_to_all(self, client: Client) -> None:
        """A push to everyone; nobody joins or leaves this app."""
        await self.push(client, "all", self.devices)

    async def come_and_go(self, client: Client) -> None:
        """Pushes to lists of devices, some of which are deleted, and come back."""
        rng = self.script_rng
        devices = rng.sample(self.devices, rng.choice((1, 3, 40, len(self.devices) // 2)))
        await self.push(client, {"device_ids": devices}, devices)
        more = rng.sample(self.devices, 20)
        msg_id = f"p{self._pushes - 1}"
        await client.insist("POST", f"/v1/pushes/{msg_id}/targets", headers=self.headers, body=more)
        self.oracle.target(msg_id, more)
        for device in rng.sample(self.devices[:MORTALS], 4):
            if device in self.oracle.deleted:
                await client.insist("POST", "/v1/devices", headers=self.headers, body={"device_id": device})
                self.oracle.seen(device, TODAY)
                self.oracle.deleted.discard(device)
            else:
                await client.insist("DELETE", f"/v1/devices/{device}", headers=self.headers)
                self.oracle.deleted.add(device)

    async def live(self, client: Client) -> None:
        """Phones register, subscribe, sign in and are deleted; pushes go to whoever is meant at that moment."""
        rng, base = self.script_rng, f"/device_api/v1/instances/{self.credentials['beams_instance_id']}/devices"
        for phone in rng.sample(self.phones, 4):
            path = f"{base}/{phone.platform}"
            if not phone.id:
                body = {"token": phone.token} | ({"bundleIdentifier": "app"} if phone.platform == "apns" else {})
                phone.id = (await client.insist("POST", path, body=body))["id"]
                platform = {"fcm": "android", "apns": "ios", "web": "web"}[phone.platform]
                self.oracle.seen(phone.id, TODAY, platform)
                continue
            path += f"/{phone.id}"
            action = rng.randrange(5)
            if action == 0:
                await client.insist("DELETE", path)
                self.oracle.deleted.add(phone.id)
                phone.id, phone.interests, phone.user = "", set(), ""
            elif action == 1:
                phone.interests = set(rng.sample(INTERESTS, 2))
                await client.insist("PUT", f"{path}/interests", body={"interests": sorted(phone.interests)})
            elif action == 2:
                interest = rng.choice(INTERESTS)
                await client.insist("DELETE", f"{path}/interests/{interest}")
                phone.interests.discard(interest)
            elif action == 3 and not phone.user:
                phone.user = rng.choice(("alice", "bob"))
                token = {"Authorization": f"Bearer {self._token(phone.user)}"}
                await client.insist("PUT", f"{path}/user", headers=token)
            else:
                interest = rng.choice(INTERESTS)
                await client.insist("POST", f"{path}/interests/{interest}")
                phone.interests.add(interest)
        interest, user = rng.choice(INTERESTS), rng.choice(("alice", "bob"))
        await self.push(client, {"interests": [interest]},
                        [phone.id for phone in self.phones if phone.id and interest in phone.interests])
        await self.push(client, {"users": [user]},
                        [phone.id for phone in self.phones if phone.id and phone.user == user])

    def _token(self, user: str) -> str:
        issuer = f"https://{self.credentials['beams_instance_id']}.pushnotifications.pusher.com"
        # Longer than any clock jumps.
        claims = {"iss": issuer, "sub": user, "exp": self.midnight + 90 * DAY}
        return jwt.encode(claims, self.credentials["beams_secret_key"], "HS256")


class Load:
    """Everybody who calls the service."""

    def __init__(self, client: Client, tenants: list[Tenant], seed: str) -> None:
        self.client = client
        self.tenants = tenants
        self.events = 0
        self._rng = random.Random(f"{seed}/load")

    async def run(self, meanwhile: Callable[[], Awaitable[None]], events: int, rate: float) -> None:
        """Send while *meanwhile* runs, at most *rate* events a second, and at least *events* in all; return when every
        request was answered well."""
        chaos = asyncio.get_running_loop().create_future()
        least = self.events + events
        turns = self._turns(lambda: chaos.done() and self.events >= least)
        scripts = (self.tenants[0].push_to_all, self.tenants[1].come_and_go, self.tenants[2].live)
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._send(turns, chaos, rate))
            for script in scripts:
                group.create_task(self._play(script, chaos))
            await meanwhile()
            chaos.set_result(None)

    def _turns(self, is_over: Callable[[], bool]) -> Iterator[tuple[Tenant, int]]:
        """Whose turn it is, and with how many events; 0 for a receipt of a device."""
        while not is_over():
            size = self._rng.choice((0, 0, 1, 5, 50, 200, 400))
            self.events += size or 1
            yield self._rng.choice(self.tenants), size

    async def _send(self, turns: Iterator[tuple[Tenant, int]], chaos: asyncio.Future[None], rate: float) -> None:
        for tenant, size in turns:
            if size == 0:
                instance = tenant.credentials["beams_instance_id"]
                path = f"/reporting_api/v2/instances/{instance}/events"
                await self.client.insist("POST", path, body=tenant.receipt())
                await self._pause(1, chaos, rate)
                continue
            events = tenant.batch(size)
            as_lines = self._rng.random() < 0.5
            answer = await self.client.insist(
                "POST", "/v1/events", headers=tenant.headers,
                body=b"\n".join(map(orjson.dumps, events)) if as_lines else events,
                content_type="application/x-ndjson" if as_lines else "application/json")
            assert answer == {"accepted": size, "rejected": 0, "errors": []}, answer
            await self._pause(size, chaos, rate)

    async def _pause(self, size: int, chaos: asyncio.Future[None], rate: float) -> None:
        if not chaos.done():
            await asyncio.wait([chaos], timeout=SENDERS * size / rate)

    async def _play(self, script: Callable[[Client], Awaitable[None]], chaos: asyncio.Future[None]) -> None:
        while True:
            await script(self.client)
            if chaos.done():
                return
            await asyncio.wait([chaos], timeout=2 + self._rng.random() * 2)
