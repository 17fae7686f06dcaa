"""What the reports of one app must say, from plain sets: a thing said twice, late or in another order changes nothing.

Every device of the load is of one platform; some events name it, and for some devices nobody ever does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

Json = dict[str, Any]
TARGETS: Final = ("target", "sent", "online_push")
PREFIXES: Final = {"fcm-": "android", "apns-": "ios", "web-": "web"}
#: When a registration happened: after every day that is asked for.
TODAY: Final = 1 << 40
QUARTER: Final = 900


@dataclass
class Oracle:
    """One app."""

    timezone: str
    #: message -> (stage, kind, device) -> when first.
    facts: dict[str, dict[tuple[str, str, str], int]] = field(default_factory=lambda: defaultdict(dict))
    #: (device, quarter of an hour)
    online: set[tuple[str, int]] = field(default_factory=set)
    active: set[tuple[str, int]] = field(default_factory=set)
    first_seen: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    pushes: dict[str, Json] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- what it is told
    def event(self, event: Json) -> None:
        """A device did something at ``ts``."""
        device, stage, time = event["device_id"], event["stage"], event["ts"]
        self.seen(device, time, event.get("platform", ""))
        self.online.add((device, time // QUARTER))
        if stage in ("click", "active"):
            self.active.add((device, time // QUARTER))
        if "msg_id" in event:
            self._fact(event["msg_id"], stage, event.get("kind", "notification"), device, time)

    def seen(self, device: str, time: int, platform: str = "") -> None:
        """A device was heard of."""
        self.known.add(device)
        self.first_seen[device] = min(time, self.first_seen.get(device, time))
        if platform:
            self.named[device] = platform

    def target(self, msg_id: str, devices: Iterable[str], kind: str = "notification") -> None:
        """A sender means a message for *devices*."""
        for device in devices:
            self.known.add(device)
            self._fact(msg_id, "target", kind, device, TODAY)

    def _fact(self, msg_id: str, stage: str, kind: str, device: str, time: int) -> None:
        facts, fact = self.facts[msg_id], (stage, kind, device)
        facts[fact] = min(time, facts.get(fact, time))

    # ------------------------------------------------------------------------------------------------ what it answers
    def platform(self, device: str) -> str:
        """What the device is."""
        return self.named.get(device) or PREFIXES.get(device[:device.find("-") + 1], "unknown")

    def reached(self, msg_id: str, *stages: str, before: int = TODAY + 1) -> set[str]:
        """The devices that reached one of *stages*."""
        return {device for (stage, _, device), time in self.facts[msg_id].items() if stage in stages and time < before}

    def received(self, msg_id: str) -> Json:
        """An item of ``/v3/received``."""
        count = self._counts(msg_id)
        return {
            "msg_id": msg_id,
            "android_received": count("received", "android"),
            "ios_apns_sent": count("sent", "ios", "notification"),
            "ios_apns_received": count("received", "ios", "notification"),
            "ios_msg_received": count("received", "ios", "message"),
            "wp_mpns_sent": count("sent", "winphone"),
        }

    def message(self, msg_id: str) -> Json:
        """An item of ``/v3/messages``."""
        count = self._counts(msg_id)
        return {
            "msg_id": msg_id,
            "android": {"target": count("target", "android"), "online_push": count("online_push", "android"),
                        "received": count("received", "android"), "click": count("click", "android", "notification"),
                        "msg_click": count("click", "android", "message")},
            "ios": {"apns_target": count("target", "ios", "notification"),
                    "apns_sent": count("sent", "ios", "notification"),
                    "apns_received": count("received", "ios", "notification"), "click": count("click", "ios"),
                    "target": count("target", "ios", "message"), "received": count("received", "ios", "message")},
            "winphone": {"mpns_target": count("target", "winphone"), "mpns_sent": count("sent", "winphone"),
                         "click": count("click", "winphone")},
        }

    def _counts(self, msg_id: str) -> Any:
        # A device that reached a stage of both kinds is one device of the message.
        found = {(stage, self.platform(device), kind, device) for stage, kind, device in self.facts[msg_id]}
        found |= {(stage, platform, "", device) for stage, platform, _, device in found}
        counts = Counter(fact[:3] for fact in found)
        return lambda stage, platform, kind="": counts[stage, platform, kind] or None

    def statuses(self, msg_id: str, devices: Sequence[str]) -> Json:
        """``/v3/status/message`` now."""
        received, targets = self.reached(msg_id, "received"), self.reached(msg_id, *TARGETS)
        return {device: {"status": 2 if device not in self.known or device in self.deleted else 0 if device in received
                         else 1 if device in targets else 3} for device in devices}

    def past_statuses(self, msg_id: str, devices: Sequence[str], date: str) -> Json:
        """The same as of the end of a past day; no device was deleted then."""
        midnight = datetime.fromisoformat(date) + timedelta(days=1)
        end = int(midnight.replace(tzinfo=ZoneInfo(self.timezone)).timestamp())
        received = self.reached(msg_id, "received", before=end)
        targets = self.reached(msg_id, *TARGETS, before=end)

        def status(device: str) -> int:
            if device not in targets and self.first_seen.get(device, end) >= end:
                return 2
            return 0 if device in received else 1 if device in targets else 3
        return {device: {"status": status(device)} for device in devices}

    def pending(self, msg_id: str) -> set[str]:
        """The devices that ``/pushes/<id>`` may list."""
        lacking = self.reached(msg_id, *TARGETS) - self.reached(msg_id, "received") - self.deleted
        return {device for device in lacking if self.platform(device) in ("android", "unknown")}

    def users(self, form: str, periods: Iterable[str]) -> list[Json]:
        """The items of ``/v3/users`` for *periods*, which *form*, a format of time, tells apart."""
        items: dict[str, Json] = {period: {"time": period} for period in periods}
        names: dict[int, str] = {}
        new = {(device, time // QUARTER) for device, time in self.first_seen.items() if time < TODAY}
        for measure, sightings in (("new", new), ("online", self.online), ("active", self.active)):
            found = set()
            for device, quarter in sightings:
                if quarter not in names:
                    names[quarter] = datetime.fromtimestamp(quarter * QUARTER, ZoneInfo(self.timezone)).strftime(form)
                found.add((names[quarter], device))
            for period, device in found:
                if period in items:
                    counters = items[period].setdefault(self.platform(device), {})
                    counters[measure] = counters.get(measure, 0) + 1
        return list(items.values())
