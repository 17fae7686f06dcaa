"""What the reports must answer, computed from the events alone, in plain sets and without any of the service's code.

Also a seeded stream of events with duplicates and out of order, and the client that a careful sender is: it sends a
request again until it is answered 200.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import ClientError

from tests.support.service import Answer

Json = dict[str, Any]
#: ``await call(method, path, json=…)``, with the credentials of an app.
Call = Callable[..., Awaitable[Answer]]

PLATFORMS = ("android", "android", "ios", "winphone", "web", "")
STAGES = ("target", "sent", "online_push", "received", "received", "received", "display", "click")


@dataclass
class Oracle:
    """Every fact ever told, as a tuple in a set."""

    #: (message, stage, platform, kind, device); the devices of the streams here stick to one platform.
    facts: set[tuple[str, str, str, str, str]] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    platforms: dict[str, str] = field(default_factory=dict)

    def tell(self, events: Iterable[Json]) -> None:
        """Learn of *events*."""
        for event in events:
            device, platform = event["device_id"], event.get("platform", "")
            self.devices.add(device)
            if platform:
                self.platforms[device] = platform
            self.facts.add((event["msg_id"], event["stage"], platform, event.get("kind", "notification"), device))

    def _count(self, msg_id: str, stage: str, platform: str, kinds: Sequence[str] = ()) -> int | None:
        found = {device for message, reached, named, kind, device in self.facts
                 if (message, reached, named or self.platforms.get(device, "")) == (msg_id, stage, platform)
                 and (not kinds or kind in kinds)}
        return len(found) or None

    def received(self, msg_id: str) -> Json:
        """An item of ``/v3/received``."""
        return {
            "msg_id": msg_id,
            "android_received": self._count(msg_id, "received", "android"),
            "ios_apns_sent": self._count(msg_id, "sent", "ios", ["notification"]),
            "ios_apns_received": self._count(msg_id, "received", "ios", ["notification"]),
            "ios_msg_received": self._count(msg_id, "received", "ios", ["message"]),
            "wp_mpns_sent": self._count(msg_id, "sent", "winphone"),
        }

    def message(self, msg_id: str) -> Json:
        """An item of ``/v3/messages``."""
        return {
            "msg_id": msg_id,
            "android": {
                "target": self._count(msg_id, "target", "android"),
                "online_push": self._count(msg_id, "online_push", "android"),
                "received": self._count(msg_id, "received", "android"),
                "click": self._count(msg_id, "click", "android", ["notification"]),
                "msg_click": self._count(msg_id, "click", "android", ["message"]),
            },
            "ios": {
                "apns_target": self._count(msg_id, "target", "ios", ["notification"]),
                "apns_sent": self._count(msg_id, "sent", "ios", ["notification"]),
                "apns_received": self._count(msg_id, "received", "ios", ["notification"]),
                "click": self._count(msg_id, "click", "ios"),
                "target": self._count(msg_id, "target", "ios", ["message"]),
                "received": self._count(msg_id, "received", "ios", ["message"]),
            },
            "winphone": {
                "mpns_target": self._count(msg_id, "target", "winphone"),
                "mpns_sent": self._count(msg_id, "sent", "winphone"),
                "click": self._count(msg_id, "click", "winphone"),
            },
        }

    def statuses(self, msg_id: str, device_ids: Sequence[str]) -> Json:
        """The body of ``/v3/status/message``."""
        reached = {(stage, device) for message, stage, _, _, device in self.facts if message == msg_id}

        def status(device: str) -> int:
            if ("received", device) in reached:
                return 0
            if any((stage, device) in reached for stage in ("target", "sent", "online_push")):
                return 1
            return 3 if device in self.devices else 2
        return {device: {"status": status(device)} for device in device_ids}

    async def check(self, call: Call) -> None:
        """Every answer about every message and every device is as it must be."""
        messages = sorted({fact[0] for fact in self.facts}) + ["nobody-heard-of-it"]
        asked = ",".join(messages)
        compare((await call("GET", f"/v3/received?msg_ids={asked}")).json, [*map(self.received, messages)])
        compare((await call("GET", f"/v3/messages?msg_ids={asked}")).json, [*map(self.message, messages)])
        devices = [*sorted(self.devices)[:999], "never-seen"]
        for msg_id in messages:
            answer = await call("POST", "/v3/status/message", json={"msg_id": msg_id, "registration_ids": devices})
            compare([*answer.json.items()], [*self.statuses(msg_id, devices).items()])


def compare(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Assert that both are the same; says only where they are not."""
    assert found == expected, "\n".join([f"{len(found)} answers instead of {len(expected)}", *(
        f"found    {one}\nexpected {other}" for one, other in zip(found, expected, strict=False) if one != other)])


def stream(seed: int, count: int, *, messages: int = 8, devices: int = 120) -> list[Json]:
    """*count* events, a fifth of them duplicates, none in the order in which they happened."""
    rng = random.Random(seed)
    events = []
    for _ in range(count * 4 // 5):
        device = rng.randrange(devices)
        event = {"msg_id": f"m{rng.randrange(messages)}", "stage": rng.choice(STAGES), "device_id": f"d{device}"}
        platform = PLATFORMS[device % len(PLATFORMS)]
        # Some events leave the platform to what others say of the device.
        if platform and rng.random() < 0.8:
            event["platform"] = platform
        if device // len(PLATFORMS) % 3 == 0:
            event["kind"] = "message"
        events.append(event)
    events += rng.choices(events, k=count - len(events))
    rng.shuffle(events)
    return events


def in_batches(events: Sequence[Json], seed: int, largest: int = 40) -> list[list[Json]]:
    """*events* cut into requests of 1 to *largest*."""
    rng = random.Random(seed)
    batches, start = [], 0
    while start < len(events):
        end = start + rng.randint(1, largest)
        batches.append(list(events[start:end]))
        start = end
    return batches


async def send_until_taken(call: Call, batch: Sequence[Json]) -> list[int]:
    """Post *batch* again and again until the answer is 200; the statuses before that, 0 for a broken connection."""
    refusals: list[int] = []
    while True:
        try:
            answer = await call("POST", "/v1/events", data=orjson.dumps(batch),
                                headers={"Content-Type": "application/json"})
        except (ClientError, TimeoutError, OSError):
            refusals.append(0)
        else:
            if answer.status == 200:
                assert answer.json == {"accepted": len(batch), "rejected": 0, "errors": []}
                return refusals
            assert answer.status == 503, answer.body
            refusals.append(503)
        await asyncio.sleep(0.05)


async def send_all(call: Call, batches: Iterable[Sequence[Json]], senders: int = 4) -> list[int]:
    """All *batches*, by several senders at once; every refusal on the way."""
    waiting = iter(batches)

    async def send() -> list[int]:
        return [status for batch in waiting for status in await send_until_taken(call, batch)]

    refusals = await asyncio.gather(*(send() for _ in range(senders)))
    return [status for part in refusals for status in part]


async def send_while(is_wanted: Callable[[], bool], call: Call, oracle: Oracle, seed: int) -> list[int]:
    """Send events that *oracle* is told of, until nobody wants more of them; every refusal on the way."""
    refusals: list[int] = []
    for number in itertools.count():
        events = stream(seed * 1000 + number, 60)
        oracle.tell(events)
        refusals += await send_all(call, in_batches(events, seed, largest=10))
        if not is_wanted():
            return refusals
        await asyncio.sleep(0.02)
    raise AssertionError("never reached")
