"""An app that never was: its devices, its pushes and what became of them; the same for the same seed and moment.

The figures are made to look like those of a shop: most devices are Android phones of several makers, receipts come
within a minute or when a phone is next picked up, people sleep at night, and few open what they get.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

HOUR: Final = 3600
DAY: Final = 86_400

# platform, channel, share of all devices, how many of those sent to confirm receipt, how readily they are opened
_MAKES: Final = (
    ("android", "fcm", 0.22, 0.84, 1.0), ("android", "xiaomi", 0.12, 0.91, 0.9), ("android", "huawei", 0.11, 0.9, 1.0),
    ("android", "oppo", 0.08, 0.82, 0.8), ("android", "vivo", 0.06, 0.8, 0.8), ("ios", "apns", 0.31, 0.58, 1.5),
    ("web", "webpush", 0.06, 0.62, 0.5), ("hmos", "hmpns", 0.04, 0.88, 1.1))
_TEXTS: Final = (
    ("Your order is on its way", "It leaves our house today."), ("Weekend sale", "Up to 40 % off until Sunday night."),
    ("Back in stock", "Something you looked at is here again."), ("Your basket is waiting", "Two items, one click."),
    ("Good morning", "Five things that are new today."), ("Price drop", "Three of your favourites cost less now."),
    ("Rate your last order", "It takes ten seconds."), ("Tonight only", "Free delivery until midnight."),
    ("New in your size", "Forty pieces came in this week."), ("Thank you", "Here are ten points for you."))
_VENDORS: Final = ("jpush", "pushy", "beams")
#: How lively people are, by hour of the day.
_LIVELINESS: Final = (2, 1, 1, 1, 1, 2, 5, 9, 10, 8, 7, 8, 10, 8, 7, 7, 8, 9, 11, 12, 12, 10, 7, 4)
#: When pushes are made: hour of the day.
_SLOTS: Final = (9, 12, 18, 20)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    days: int
    devices: int
    pushes_a_day: int


@dataclass(frozen=True, slots=True)
class _Device:
    device_id: str
    platform: str
    channel: str
    receipts: float
    clicks: float
    first_seen: int
    #: How often it is used: from seldom to always.
    liveliness: float


class Demo:
    """Everything that happened up to *now* (unix seconds)."""

    def __init__(self, size: Size, seed: int, now: int) -> None:
        self._size = size
        self._random = random.Random(seed)
        self._now = now
        self._start = now // DAY * DAY - (size.days - 1) * DAY
        self._devices = [self._device(number) for number in range(size.devices)]
        self._pushes = list(self._make_pushes())

    def devices(self) -> Iterator[dict[str, Any]]:
        """Registrations, for ``POST /v1/devices``."""
        for number, device in enumerate(self._devices):
            yield {"device_id": device.device_id, "platform": device.platform, "first_seen": device.first_seen,
                   "user_id": f"customer-{number // 2}"}

    def pushes(self) -> list[dict[str, Any]]:
        """Registrations, for ``POST /v1/pushes``, oldest first."""
        return [push for push, _ in self._pushes]

    def events(self) -> Iterator[dict[str, Any]]:
        """What happened, for ``POST /v1/events``, message by message."""
        for push, audience in self._pushes:
            appeal = self._random.uniform(0.02, 0.12)
            for device in audience:
                yield from self._delivery(push, device, appeal)
        for day in range(self._size.days):
            yield from self._presence(self._start + day * DAY)

    def _device(self, number: int) -> _Device:
        rng = self._random
        platform, channel, _, receipts, clicks = rng.choices(_MAKES, [make[2] for make in _MAKES])[0]
        age = rng.uniform(0, 60 * DAY) + self._size.days * DAY if number % 5 < 3 else \
            rng.uniform(0, self._size.days * DAY)
        return _Device(f"{rng.getrandbits(64):016x}", platform, channel, receipts, clicks, int(self._now - age),
                       rng.betavariate(2, 2.5))

    def _make_pushes(self) -> Iterator[tuple[dict[str, Any], list[_Device]]]:
        rng, number = self._random, 0
        for day in range(self._size.days):
            for place in range(self._size.pushes_a_day):
                slot = _SLOTS[place % len(_SLOTS)] * HOUR + (place // len(_SLOTS)) * 600 + rng.randrange(1200)
                created_at = self._start + day * DAY + slot
                if created_at > self._now:
                    return
                share = 1.0 if number % 10 == 1 else rng.uniform(0.1, 0.35)
                audience = [device for device in self._devices
                            if device.first_seen < created_at and rng.random() < share]
                title, text = _TEXTS[number % len(_TEXTS)]
                push = {"msg_id": f"{rng.getrandbits(53):016d}", "vendor": _VENDORS[number % len(_VENDORS)],
                        "kind": "message" if number % 8 == 6 else "notification", "created_at": created_at,
                        "time_to_live": 30 * DAY, "payload": {"title": title, "message": text}}
                number += 1
                if audience:
                    yield push | {"audience": {"device_ids": [device.device_id for device in audience]}}, audience

    def _delivery(self, push: Mapping[str, Any], device: _Device, appeal: float) -> Iterator[dict[str, Any]]:
        rng, sent_at = self._random, push["created_at"]
        event = {"msg_id": push["msg_id"], "device_id": device.device_id, "platform": device.platform,
                 "channel": device.channel}
        if push["kind"] != "notification":
            event |= {"kind": push["kind"]}
        if device.platform == "ios" and push["kind"] == "message":
            event |= {"channel": "jg_ios"}

        def at(stage: str, moment: float) -> list[dict[str, Any]]:
            return [event | {"stage": stage, "ts": int(moment)}] if moment <= self._now else []
        yield from at("target", sent_at)
        if rng.random() > 0.97:
            return  # its token is no good any more
        yield from at("sent", sent_at + rng.uniform(0, 5))
        if rng.random() > device.receipts:
            return
        is_awake = rng.random() < 0.35 + 0.4 * device.liveliness
        received_at = sent_at + 1 + (rng.expovariate(1 / 40) if is_awake else rng.lognormvariate(1.0, 0.9) * HOUR)
        if not is_awake:
            received_at = self._by_day(received_at)
        yield from at("received", received_at)
        if rng.random() > 0.85 - (0.25 if push["kind"] == "message" else 0.0):
            return
        shown_at = received_at + rng.uniform(0, 3)
        yield from at("display", shown_at)
        if rng.random() < appeal * device.clicks * (0.5 + device.liveliness):
            yield from at("click", self._by_day(shown_at + rng.expovariate(1 / 5400)))

    def _by_day(self, moment: float) -> float:
        """*moment*, or the next morning if it is in the night."""
        hour = moment % DAY / HOUR
        return moment if hour >= 6.5 else moment + (6.5 - hour) * HOUR + abs(self._random.gauss(0, 1.2)) * HOUR

    def _presence(self, midnight: int) -> Iterator[dict[str, Any]]:
        rng = self._random
        weekend = midnight // DAY % 7 in (2, 3)  # 1970 began on a Thursday
        for device in self._devices:
            if rng.random() > device.liveliness * (0.9 if weekend else 0.75):
                continue
            hour = rng.choices(range(24), _LIVELINESS)[0]
            moment = midnight + hour * HOUR + rng.randrange(HOUR)
            if device.first_seen < moment <= self._now:
                yield {"stage": "active" if rng.random() < 0.6 else "online", "device_id": device.device_id,
                       "platform": device.platform, "ts": moment}
