"""The promise of the whole service: whatever is sent, in whatever order and however often, every number is exact.

A few lines of Python sets, the :class:`Model`, are told what a running service is told over HTTP; then every report is
asked for and has to say what the model says. The model is the shortest description there is of what the reports mean.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reportsvc.model import CHANNELS_BY_PLATFORM, KINDS, PLATFORM_OF_CHANNEL, STAGES
from reportsvc.pipeline import ledger
from tests.support.service import Account, Answer, Clock, Running, on_empty_redis, running

HOUR: Final = 3600
DAY: Final = 86400
#: When the examples play: the same today and next year, so that one that failed can be repeated.
EPOCH: Final = int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())

#: The devices of every app, each with the platform it truly is of; for some, nobody ever says. Ids that begin like
#: those of Beams tell a platform by themselves, which counts only as long as nobody says another.
DEVICES: Final = {
    "a-1": "android", "a-2": "android", "i-1": "ios", "w-1": "winphone", "q-1": "quickapp", "nobody-knows": "",
    "fcm-1": "", "apns-1": "ios", "web-1": "android",
}
PREFIXES: Final = {"fcm-": ("android", "fcm"), "apns-": ("ios", "apns"), "web-": ("web", "webpush")}
#: Ids as they are sent. Two of them are integers, one too large for 64 bits.
MESSAGES: Final = (7, "m-2", 18446744073709551617)
#: A device that reached one of these was meant to have the message.
TARGET_STAGES: Final = ("target", "sent", "online_push")


# ---------------------------------------------------------------------------------------------------------------- model
class Fact(NamedTuple):
    """A device reached a stage of a message; "" where nobody said on which platform, or who carried it."""

    msg_id: str
    stage: str
    kind: str
    platform: str
    channel: str
    device_id: str
    time: int


@dataclass
class Push:
    """A push that its sender registered."""

    created_at: int
    expires_at: int
    payload: object
    kind: str
    channel: str
    #: Since when no target lacks it; None while one does.
    complete_since: int | None = None


@dataclass
class Model:
    """One app: what was said of it, as sets. Saying something again adds nothing to a set, nor does another order."""

    timezone: str
    facts: set[Fact] = field(default_factory=set)
    #: (device, time) for each sign of life, and for each that the user opened something.
    online: set[tuple[str, int]] = field(default_factory=set)
    active: set[tuple[str, int]] = field(default_factory=set)
    first_seen: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    #: Since when a device is deleted; and from when to when others were, that came back.
    deleted: dict[str, int] = field(default_factory=dict)
    absences: set[tuple[str, int, int]] = field(default_factory=set)
    pushes: dict[str, Push] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- what it is told
    def saw(self, device_id: str, moment: int, *, is_active: bool = False) -> None:
        """A sign of life of a device."""
        self.known.add(device_id)
        self.online.add((device_id, moment))
        if is_active:
            self.active.add((device_id, moment))
        self.first_seen[device_id] = min(moment, self.first_seen.get(device_id, moment))

    def event(self, event: Mapping[str, Any], now: int) -> None:
        """A native event."""
        moment = clamped(event.get("ts", now), now)
        self.saw(event["device_id"], moment, is_active=event["stage"] in ("click", "active"))
        channel = event.get("channel", "")
        platform = event.get("platform") or PLATFORM_OF_CHANNEL.get(channel, "")
        if platform:
            self.named[event["device_id"]] = platform
        if "msg_id" in event:
            self.facts.add(Fact(str(event["msg_id"]), event["stage"], event.get("kind", "notification"), platform,
                                channel, event["device_id"], moment))

    def device(self, device: Mapping[str, Any], now: int) -> None:
        """A registration: a sign of life, and the one thing that brings a deleted device back."""
        device_id = device["device_id"]
        self.saw(device_id, now)
        self.first_seen[device_id] = min(self.first_seen[device_id], device.get("first_seen", now))
        if device.get("platform"):
            self.named[device_id] = device["platform"]
        if device_id in self.deleted:
            self.absences.add((device_id, self.deleted.pop(device_id), now))

    def target(self, msg_id: str, kind: str, channel: str, device_ids: Iterable[str], now: int) -> None:
        """A sender names devices that a message is meant for; that is no sign of life."""
        for device_id in device_ids:
            self.known.add(device_id)
            self.facts.add(Fact(msg_id, "target", kind, "", channel, device_id, now))

    def note_completions(self, now: int) -> None:
        """Something has happened: note which pushes every device has now. To lose the last device that lacks one
        completes it too; one for nobody is never complete."""
        for msg_id, push in self.pushes.items():
            if self.lacking(msg_id) or not self.reached(msg_id, *TARGET_STAGES):
                push.complete_since = None
            elif push.complete_since is None:
                push.complete_since = now

    def forget(self) -> None:
        """A month without a delivery has passed."""
        self.facts.clear()
        self.pushes.clear()

    # ------------------------------------------------------------------------------------------------ what it answers
    def reached(self, msg_id: str, *stages: str, before: int | None = None) -> set[str]:
        """The devices that reached one of *stages*."""
        return {fact.device_id for fact in self.facts if fact.msg_id == msg_id and fact.stage in stages
                and (before is None or fact.time < before)}

    def lacking(self, msg_id: str) -> set[str]:
        """The devices that a message is meant for, and that do not have it."""
        return self.reached(msg_id, *TARGET_STAGES) - self.reached(msg_id, "received") - set(self.deleted)

    def platform_of(self, device_id: str) -> str:
        """The platform that somebody named, or else the one that the id tells."""
        prefix = PREFIXES.get(device_id[:device_id.find("-") + 1], ("unknown", ""))
        return self.named.get(device_id, prefix[0])

    def count(self, msg_id: str, stage: str, platform: str, kinds: Sequence[str] = KINDS,
              channel: str = "") -> int | None:
        """Distinct devices; None where there is none."""
        devices = set()
        for fact in self.facts:
            its_platform = fact.platform or self.platform_of(fact.device_id)
            ios_default = "apns" if fact.kind in ("notification", "live_activity") else "jg_ios"
            if ((fact.msg_id, fact.stage, its_platform) == (msg_id, stage, platform) and fact.kind in kinds
                    and channel in ("", fact.channel or ios_default)):
                devices.add(fact.device_id)
        return len(devices) or None

    def received(self, msg_id: str) -> dict[str, Any]:
        """An item of ``/v3/received``."""
        return {
            "msg_id": msg_id,
            "android_received": self.count(msg_id, "received", "android"),
            "ios_apns_sent": self.count(msg_id, "sent", "ios", channel="apns"),
            "ios_apns_received": self.count(msg_id, "received", "ios", ["notification"]),
            "ios_msg_received": self.count(msg_id, "received", "ios", ["message"]),
            "wp_mpns_sent": self.count(msg_id, "sent", "winphone"),
        }

    def messages(self, msg_id: str) -> dict[str, Any]:
        """An item of ``/v3/messages``."""
        not_message = [kind for kind in KINDS if kind != "message"]
        return {
            "msg_id": msg_id,
            "android": {
                "target": self.count(msg_id, "target", "android"),
                "online_push": self.count(msg_id, "online_push", "android"),
                "received": self.count(msg_id, "received", "android"),
                "click": self.count(msg_id, "click", "android", not_message),
                "msg_click": self.count(msg_id, "click", "android", ["message"]),
            },
            "ios": {
                "apns_target": self.count(msg_id, "target", "ios", ["notification"]),
                "apns_sent": self.count(msg_id, "sent", "ios", channel="apns"),
                "apns_received": self.count(msg_id, "received", "ios", ["notification"]),
                "click": self.count(msg_id, "click", "ios"),
                "target": self.count(msg_id, "target", "ios", ["message"]),
                "received": self.count(msg_id, "received", "ios", ["message"]),
            },
            "winphone": {
                "mpns_target": self.count(msg_id, "target", "winphone"),
                "mpns_sent": self.count(msg_id, "sent", "winphone"),
                "click": self.count(msg_id, "click", "winphone"),
            },
        }

    def status(self, msg_id: str, device_id: str) -> int:
        """What ``/v3/status/message`` says now."""
        if device_id not in self.known or device_id in self.deleted:
            return 2
        if device_id in self.reached(msg_id, "received"):
            return 0
        return 1 if device_id in self.reached(msg_id, *TARGET_STAGES) else 3

    def past_status(self, msg_id: str, device_id: str, date: str) -> int:
        """What it says of the end of a past day.

        A device that nobody had heard of by then, and that a sender had only named, was a target of that message and
        nothing else.
        """
        midnight = datetime.fromisoformat(date) + timedelta(days=1)
        end = int(midnight.replace(tzinfo=ZoneInfo(self.timezone)).timestamp())
        is_target = device_id in self.reached(msg_id, *TARGET_STAGES, before=end)
        is_known = is_target or self.first_seen.get(device_id, end) < end
        is_deleted = self.deleted.get(device_id, end) < end or any(
            absent == device_id and start < end <= back for absent, start, back in self.absences)
        if is_deleted or not is_known:
            return 2
        if device_id in self.reached(msg_id, "received", before=end):
            return 0
        return 1 if is_target else 3

    def users(self, form: str, periods: Iterable[str]) -> list[dict[str, Any]]:
        """The items of ``/v3/users`` for *periods*, which *form*, a format of time, tells apart."""
        items: dict[str, dict[str, Any]] = {period: {"time": period} for period in periods}
        seen = {"new": set(self.first_seen.items()), "online": self.online, "active": self.active}
        for measure, sightings in seen.items():
            for period, device_id in {(self.local(moment, form), device_id) for device_id, moment in sightings}:
                if period in items:
                    counters = items[period].setdefault(self.platform_of(device_id), {})
                    counters[measure] = counters.get(measure, 0) + 1
        return list(items.values())

    def push(self, msg_id: str, now: int) -> dict[str, Any]:
        """What ``/pushes/<id>`` says; pending devices in any order."""
        push = self.pushes.get(msg_id)
        if push is None or push.expires_at <= now or (
                push.complete_since is not None and push.complete_since + 2 * DAY <= now):
            return {"code": "INVALID_PUSH_ID", "error": "The push notification ID provided is invalid."}
        return {"push": {"date": push.created_at, "payload": push.payload, "expiration": push.expires_at,
                         "pending_devices": {device_id for device_id in self.lacking(msg_id)
                                             if self.platform_of(device_id) in ("android", "unknown")}}}

    def local(self, moment: float, form: str) -> str:
        """What a clock and a calendar in the app's timezone show."""
        return datetime.fromtimestamp(moment, ZoneInfo(self.timezone)).strftime(form)


def clamped(moment: int, now: int) -> int:
    """A time as it counts: one over 31 days old or 5 minutes ahead is taken for now, and milliseconds for seconds."""
    moment = moment // 1000 if moment >= 100_000_000_000 else moment
    return moment if now - 31 * DAY <= moment <= now + 300 else now


# ---------------------------------------------------------------------------------------------------------------- steps
class StandingClock(Clock):
    """A clock that moves only when it is told to. It is set anew for each example, which meets apps of its own only;
    and always to a time when Redis, which has a clock of its own, has not yet dropped anything."""

    def __call__(self) -> float:
        return EPOCH + self.ahead


@dataclass
class App:
    """An app of the service, and its model."""

    service: Running
    account: Account
    model: Model
    #: Requests of events as they were sent, to be sent again.
    sent: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def now(self) -> int:
        """The time."""
        return int(self.service.clock())

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """A request with the app's credentials."""
        return await self.service.call(method, path, self.account, **options)


class Step:
    """Something that happens to an app: told to the service, and to the model."""

    async def happen(self, app: App) -> None:
        """Make it happen."""
        raise NotImplementedError


@dataclass(frozen=True)
class Send(Step):
    """Events, in one of the forms they may be sent in; *age* is in place of ``ts``."""

    events: list[dict[str, Any]]
    form: str
    copies: int

    async def happen(self, app: App) -> None:
        events = [self._stamped(event, app.now) for event in self.events]
        app.sent.append(events)
        for _ in range(self.copies):
            await send(app, events, self.form)

    @staticmethod
    def _stamped(event: dict[str, Any], now: int) -> dict[str, Any]:
        age, *rest = event.get("age", [None])
        stamped = {name: value for name, value in event.items() if name != "age"}
        return stamped if age is None else stamped | {"ts": (now - age) * 1000 + 999 if rest else now - age}


@dataclass(frozen=True)
class SendAgain(Step):
    """What was sent before, by a client that does not know whether it arrived."""

    which: int
    form: str

    async def happen(self, app: App) -> None:
        if app.sent:
            await send(app, app.sent[self.which % len(app.sent)], self.form)


async def send(app: App, events: list[dict[str, Any]], form: str) -> None:
    """Post *events*, which are all good."""
    lines = "\n".join(json.dumps(event) for event in events).encode()
    requests: dict[str, list[dict[str, Any]]] = {
        "one by one": [{"data": json.dumps(event)} for event in events],
        "array": [{"data": json.dumps(events)}],
        "lines": [{"data": lines, "headers": {"Content-Type": "application/x-ndjson"}}],
        "packed lines": [{"data": gzip.compress(lines), "headers": {
            "Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}}],
    }
    answers = await asyncio.gather(*(app.call("POST", "/v1/events", **request) for request in requests[form]))
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert sum(answer.json["accepted"] for answer in answers) == len(events)
    for event in events:
        app.model.event(event, app.now)


@dataclass(frozen=True)
class Report(Step):
    """A Beams device reports for itself."""

    event: str
    msg_id: object
    device_id: str
    age: int
    is_shown: bool

    async def happen(self, app: App) -> None:
        moment = app.now - self.age
        answer = await app.service.call(
            "POST", f"/reporting_api/v2/instances/{app.account.app.beams_instance_id}/events", json={
                "event": self.event, "publishId": str(self.msg_id), "deviceId": self.device_id, "timestampSecs": moment,
                "appInBackground": self.is_shown, "hasDisplayableContent": True})
        assert answer.status == 200
        stage = {"delivery": "received", "open": "click"}[self.event.lower()]
        stages = [stage, "display"] if self.is_shown and stage == "received" else [stage]
        channel = PREFIXES[self.device_id[:self.device_id.find("-") + 1]][1]
        moment = clamped(moment, app.now)
        app.model.saw(self.device_id, moment, is_active=stage == "click")
        app.model.facts |= {Fact(str(self.msg_id), stage, "notification", "", channel, self.device_id, moment)
                            for stage in stages}


@dataclass(frozen=True)
class Register(Step):
    """Devices become known; *age* is in place of ``first_seen``."""

    devices: list[dict[str, Any]]

    async def happen(self, app: App) -> None:
        devices = [{name: value for name, value in device.items() if name != "age"}
                   | ({"first_seen": app.now - device["age"]} if "age" in device else {}) for device in self.devices]
        answer = await app.call("POST", "/v1/devices", json=devices)
        assert answer.json == {"accepted": len(devices), "rejected": 0, "errors": []}
        for device in devices:
            app.model.device(device, app.now)


@dataclass(frozen=True)
class Announce(Step):
    """A sender registers a push to devices, or to everyone (None), and tells it twice."""

    msg_id: object
    kind: str
    channel: str
    device_ids: list[str] | None

    async def happen(self, app: App) -> None:
        await app.service.applied()  # everyone is: every device that the service knows by now
        everyone = app.model.known - set(app.model.deleted)
        audience: object = "all" if self.device_ids is None else {"device_ids": self.device_ids}
        payload = {"message": f"{self.kind} by {self.channel} to {audience}"}
        body = {"msg_id": self.msg_id, "kind": self.kind, "payload": payload, "audience": audience}
        body |= {"channel": self.channel} if self.channel else {}
        answers = [await app.call("POST", "/v1/pushes", data=json.dumps(body)) for _ in range(2)]
        msg_id, is_new = str(self.msg_id), str(self.msg_id) not in app.model.pushes
        if not is_new and app.model.pushes[msg_id].payload != payload:
            assert [answer.status for answer in answers] == [409, 409]
            return
        device_ids = set(everyone if self.device_ids is None else self.device_ids)
        assert [answer.status for answer in answers] == [201 if is_new else 200, 200]
        if is_new:
            assert [answer.json for answer in answers] == [{"msg_id": msg_id, "targets": len(device_ids)}] * 2
            app.model.pushes[msg_id] = Push(app.now, app.now + 30 * DAY, payload, self.kind, self.channel)
        if is_new or self.device_ids is not None:
            app.model.target(msg_id, self.kind, self.channel, device_ids, app.now)


@dataclass(frozen=True)
class Deliver(Step):
    """Every device that lacks a message receives it."""

    msg_id: object

    async def happen(self, app: App) -> None:
        lacking = app.model.lacking(str(self.msg_id))
        if lacking:
            await send(app, [{"device_id": device_id, "msg_id": self.msg_id, "stage": "received"}
                             for device_id in sorted(lacking)], "array")


@dataclass(frozen=True)
class Widen(Step):
    """A sender adds targets to a push."""

    msg_id: object
    device_ids: list[str]

    async def happen(self, app: App) -> None:
        msg_id = str(self.msg_id)
        answer = await app.call("POST", f"/v1/pushes/{quote(msg_id)}/targets", json=self.device_ids)
        if msg_id not in app.model.pushes:
            assert answer.status == 404
            return
        assert answer.status == 200
        push = app.model.pushes[msg_id]
        app.model.target(msg_id, push.kind, push.channel, self.device_ids, app.now)


@dataclass(frozen=True)
class Erase(Step):
    """A device is deleted."""

    device_id: str

    async def happen(self, app: App) -> None:
        await app.service.applied()  # what the service has not numbered yet cannot be deleted
        answer = await app.call("DELETE", f"/v1/devices/{self.device_id}")
        assert answer.status == (200 if self.device_id in app.model.known else 404)
        if self.device_id in app.model.known:
            app.model.deleted.setdefault(self.device_id, app.now)
        await app.service.applied()  # from here on nobody waits for it


@dataclass(frozen=True)
class Pass(Step):
    """Time passes."""

    seconds: int

    async def happen(self, app: App) -> None:
        await app.service.applied()
        app.service.clock.ahead += self.seconds


@dataclass(frozen=True)
class Stumble(Step):
    """An aggregator dies wherever it is, and another takes its place."""

    which: int

    async def happen(self, app: App) -> None:
        aggregators = app.service.service.aggregators
        aggregator = aggregators[self.which % len(aggregators)]
        aggregator.kill()
        await aggregator.start()


# ------------------------------------------------------------------------------------------------------------- examples
FORMS: Final = st.sampled_from(["array", "one by one", "lines", "packed lines"])
MSG_IDS: Final = st.sampled_from(MESSAGES)
DEVICE_IDS: Final = st.sampled_from(sorted(DEVICES))
#: Seconds ago: mostly lately, some a little ahead, some late, and some no longer believed.
AGES: Final = st.one_of(
    st.integers(-200, 2 * HOUR), st.integers(0, 3 * DAY),
    st.sampled_from([-301, -300, DAY, 20 * DAY, 31 * DAY, 31 * DAY + 1, 400 * DAY]))


@st.composite
def event(draw: st.DrawFn) -> dict[str, Any]:
    """A good event; ``age`` is how long ago it happened, as a list, with a second element to say it in milliseconds."""
    device_id = draw(DEVICE_IDS)
    platform = DEVICES[device_id]
    made: dict[str, Any] = {"device_id": device_id, "stage": draw(st.sampled_from(STAGES))}
    if made["stage"] not in ("online", "active"):
        made["msg_id"] = draw(MSG_IDS)
    if platform and draw(st.booleans()):
        made["platform"] = platform
    if platform and draw(st.booleans()):
        made["channel"] = draw(st.sampled_from(CHANNELS_BY_PLATFORM[platform]))
    if draw(st.booleans()):
        made["kind"] = draw(st.sampled_from(KINDS))
    if draw(st.booleans()):
        made["age"] = [draw(AGES), *draw(st.sampled_from([(), ("ms",)]))]
    return made


@st.composite
def device(draw: st.DrawFn) -> dict[str, Any]:
    """A registration."""
    made: dict[str, Any] = {"device_id": draw(DEVICE_IDS)}
    if DEVICES[made["device_id"]] and draw(st.booleans()):
        made["platform"] = DEVICES[made["device_id"]]
    if draw(st.booleans()):
        made["age"] = draw(st.integers(-HOUR, 70 * DAY))
    return made


def changes(timezone: str) -> list[int]:
    """When its clocks change within two years, seconds after the epoch."""
    def offset(day: float) -> timedelta | None:
        return datetime.fromtimestamp(EPOCH + day * DAY, ZoneInfo(timezone)).utcoffset()
    days = [day for day in range(2 * 365) if offset(day) != offset(day + 1)]
    return [int((day + quarter / 96) * DAY) for day in days for quarter in range(1, 97)
            if offset(day + quarter / 96) != offset(day + (quarter - 1) / 96)]


@st.composite
def places(draw: st.DrawFn) -> tuple[int, list[str]]:
    """When an example begins, seconds after the epoch, and the timezones of its apps: half of all not long before or
    after a change of clocks."""
    timezones = draw(st.lists(st.sampled_from(sorted(CHANGES)), min_size=2, max_size=2))
    if draw(st.booleans()):
        return draw(st.integers(0, 2 * 365 * DAY)), timezones
    return draw(st.sampled_from(CHANGES[timezones[0]] or [0])) + draw(st.integers(-HOUR, 50 * HOUR)), timezones


CHANGES: Final = {timezone: changes(timezone) for timezone in (
    "UTC", "Asia/Kolkata", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago")}
AUDIENCES: Final = st.lists(DEVICE_IDS, min_size=1, max_size=6)
STEPS: Final[st.SearchStrategy[Step]] = st.one_of(
    st.builds(Send, st.lists(event(), min_size=1, max_size=10), FORMS, st.integers(1, 2)),
    st.builds(Send, st.lists(event(), min_size=1, max_size=10), FORMS, st.integers(1, 2)),
    st.builds(SendAgain, st.integers(0, 3), FORMS),
    st.builds(Report, st.sampled_from(["delivery", "Delivery", "open", "Open"]), MSG_IDS,
              st.sampled_from([one for one in DEVICES if one[:one.find("-") + 1] in PREFIXES]), AGES, st.booleans()),
    st.builds(Register, st.lists(device(), min_size=1, max_size=4)),
    st.builds(Announce, MSG_IDS, st.sampled_from(KINDS), st.sampled_from(["", "apns", "xiaomi"]),
              st.one_of(st.none(), AUDIENCES)),
    st.builds(Deliver, MSG_IDS),
    st.builds(Widen, MSG_IDS, AUDIENCES),
    st.builds(Erase, DEVICE_IDS),
    st.builds(Pass, st.sampled_from([1, 20 * 60, 7 * HOUR, 30 * HOUR])),
    st.builds(Stumble, st.integers(0, 2)),
)


# --------------------------------------------------------------------------------------------------------------- checks
class Question(NamedTuple):
    """A call, and what the model has for an answer."""

    expected: Any
    method: str
    path: str
    options: dict[str, Any] = {}


async def check(app: App, questions: Mapping[str, Question]) -> None:
    """Ask all *questions* at once; every answer is the model's."""
    answers = await asyncio.gather(*(app.call(one.method, one.path, **one.options) for one in questions.values()))
    found = {name: answer.json for name, answer in zip(questions, answers, strict=True)}
    for answer in found.values():
        if "push" in answer:
            pending = answer["push"]["pending_devices"]
            answer["push"]["pending_devices"] = set(pending)
            assert len(pending) == len(set(pending))

    assert found == {name: question.expected for name, question in questions.items()}


def about_messages(app: App) -> dict[str, Question]:
    """What is to be known of the messages now."""
    msg_ids, device_ids = [*map(str, MESSAGES), "unheard-of"], [*sorted(DEVICES), "unheard-of"]
    model, joined = app.model, ",".join(msg_ids)
    questions = {
        "received": Question([model.received(one) for one in msg_ids], "GET", f"/v3/received?msg_ids={joined}"),
        "messages": Question([model.messages(one) for one in msg_ids], "GET", f"/v3/messages?msg_ids={joined}")}
    for msg_id in msg_ids:
        questions[f"push {msg_id}"] = Question(
            model.push(msg_id, app.now), "GET", f"/pushes/{msg_id}?api_key={app.account.pushy_api_key}")
        questions[f"status {msg_id}"] = Question(
            {device_id: {"status": model.status(msg_id, device_id)} for device_id in device_ids},
            "POST", "/v3/status/message", {"json": {"msg_id": msg_id, "registration_ids": device_ids}})
    return questions


def about_the_past(app: App) -> dict[str, Question]:
    """What is to be known of days gone by; of at most five on which something happened."""
    model, questions = app.model, {}
    today = datetime.fromisoformat(model.local(app.now, "%Y-%m-%d"))
    days = sorted({model.local(moment, "%Y-%m-%d") for moment in [
        *(fact.time for fact in model.facts), *model.first_seen.values(), *model.deleted.values()]
        if moment > app.now - 59 * DAY})
    days = days[:2] + days[2:][-3:]

    def users(unit: str, form: str, periods: Sequence[str]) -> None:
        questions[f"users by {unit} from {periods[0]}"] = Question(
            {"time_unit": unit, "start": periods[0], "duration": len(periods), "items": model.users(form, periods)},
            "GET", "/v3/users", {"params": {
                "time_unit": unit, "start": periods[0], "duration": str(len(periods))}})

    users("DAY", "%Y-%m-%d", [f"{today - timedelta(days=ago):%Y-%m-%d}" for ago in range(59, -1, -1)])
    users("MONTH", "%Y-%m", [f"{today.replace(day=1) - timedelta(days=1):%Y-%m}", f"{today:%Y-%m}"])
    for day in days:
        users("HOUR", "%Y-%m-%d %H", [f"{day} {hour:02}" for hour in range(24)])
    for day, msg_id in itertools.product([day for day in days if day < f"{today:%Y-%m-%d}"], map(str, MESSAGES)):
        questions[f"status {msg_id} on {day}"] = Question(
            {device_id: {"status": model.past_status(msg_id, device_id, day)} for device_id in DEVICES},
            "POST", "/v3/status/message", {"json": {
                "msg_id": msg_id, "registration_ids": list(DEVICES), "date": day}})
    return questions


# ----------------------------------------------------------------------------------------------------------------- test
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(engine: Path, redis_url: str) -> AsyncIterator[Running]:
    """One service for all examples, with three aggregators that take turns; each example makes apps of its own."""
    config = replace(await on_empty_redis(engine, redis_url), partitions=3)
    async with running(config, StandingClock(), "exactness") as service:
        yield service


NUMBERS: Final = itertools.count()
#: The last device that lacks a push is deleted; and a push for nobody, as nobody is there.
DELETED: Final = [(0, Announce(7, "notification", "", ["a-1", "a-2"])), (0, Deliver(7)),
                  (0, Announce("m-2", "notification", "", ["a-1"])), (0, Pass(HOUR)), (0, Erase("a-1"))]
NOBODY: Final = [(0, Announce(7, "notification", "", None))]


@pytest.mark.asyncio(loop_scope="module")
@settings(deadline=None, max_examples=int(os.environ.get("EXACTNESS_EXAMPLES", "15")), print_blob=True)
@example(place=(0, ["UTC", "UTC"]), steps=DELETED)
@example(place=(0, ["UTC", "UTC"]), steps=NOBODY)
@given(place=places(), steps=st.lists(st.tuples(st.integers(0, 1), STEPS), min_size=1, max_size=14))
async def test_every_report_is_exact(service: Running, place: tuple[int, list[str]],
                                     steps: list[tuple[int, Step]]) -> None:
    """After anything that can happen to two apps with the same ids, each report of each app equals its model: at once,
    two days later, when pushes that everybody has are gone, and a month later, when all messages are forgotten."""
    service.clock.ahead, timezones = place
    apps = [App(service, await service.make_account(f"app {next(NUMBERS)}", timezone), Model(timezone))
            for timezone in timezones]

    for which, step in steps:
        await step.happen(apps[which])
        apps[which].model.note_completions(apps[which].now)
    await service.applied()

    for app in apps:
        await check(app, about_messages(app) | about_the_past(app))
    service.clock.ahead += 2 * DAY
    for app in apps:
        await check(app, about_messages(app))
    service.clock.ahead += 31 * DAY
    for app in apps:
        app.model.forget()
        await check(app, about_messages(app))
    counts = await ledger.read(service.service.redis, service.service.config.partitions)
    assert (counts["accepted"], counts["dead"]) == (counts["applied"], 0)
