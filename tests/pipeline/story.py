"""A short story with something of every kind in it, and what every report has to say when it is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.service import Account, Clock, Running


@dataclass
class Story:
    """Something of every kind of record, and what every report must say of it.

    clock   :00 devices   :10 a3 deleted   :20 pushes   :30 a3 returns, events
    "all"                                  a1 a2 i1 are its targets: a3 is away, the others are not numbered yet
    """

    running: Running
    clock: Clock
    account: Account
    today: str = ""

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """The body of an answer."""
        return (await self.running.call(method, path, self.account, **options)).json

    async def tell(self) -> None:
        """Tell it; nothing of it is applied yet."""
        now = datetime.fromtimestamp(self.clock(), UTC)
        if not 6 <= now.hour < 18:  # it must not begin on one day and end on the next
            self.clock.ahead += (now.replace(hour=12) + timedelta(days=1) - now).total_seconds()
        self.today = datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%d")
        assert await self.call("POST", "/v1/devices", json=[
            {"device_id": "a1", "platform": "android", "user_id": "alice"}, {"device_id": "a2", "platform": "android"},
            {"device_id": "a3", "platform": "android"}, {"device_id": "i1", "platform": "ios"},
        ]) == {"accepted": 4, "rejected": 0, "errors": []}
        self.clock.ahead += 10
        assert await self.call("DELETE", "/v1/devices/a3") == {"device_id": "a3", "deleted": True}
        self.clock.ahead += 10
        for msg_id, audience, targets in (
                ("all", "all", 3), ("some", {"device_ids": ["a1", "a2", "new"]}, 3),
                ("done", {"device_ids": ["a2"]}, 1)):
            assert await self.call("POST", "/v1/pushes", json={
                "msg_id": msg_id, "audience": audience, "payload": {"n": 1}}) == {"msg_id": msg_id, "targets": targets}
        self.clock.ahead += 10
        await self.call("POST", "/v1/devices", json={"device_id": "a3", "platform": "android"})
        events = [
            {"msg_id": "all", "stage": "received", "device_id": "a1", "platform": "android"},
            {"msg_id": "all", "stage": "received", "device_id": "a1", "platform": "android"},
            {"msg_id": "all", "stage": "received", "device_id": "i1", "platform": "ios"},
            {"msg_id": "some", "stage": "received", "device_id": "a1"},
            {"msg_id": "some", "stage": "click", "device_id": "a1", "platform": "android", "user_id": "alice"},
            {"msg_id": "done", "stage": "received", "device_id": "a2"},
            {"msg_id": "done", "stage": "received", "device_id": "stranger"},
            {"stage": "active", "device_id": "i1"},
        ]
        for event in events:
            assert await self.call("POST", "/v1/events", json=event) == {"accepted": 1, "rejected": 0, "errors": []}

    async def check(self) -> None:
        """On the day it is told, every report says what it must."""
        nothing = dict.fromkeys(("android_received", "ios_apns_sent", "ios_apns_received", "ios_msg_received",
                                 "wp_mpns_sent"))
        assert await self.call("GET", "/v3/received?msg_ids=all,some,done") == [
            {"msg_id": "all"} | nothing | {"android_received": 1, "ios_apns_received": 1},
            {"msg_id": "some"} | nothing | {"android_received": 1},
            {"msg_id": "done"} | nothing | {"android_received": 1}]
        android = dict.fromkeys(("target", "online_push", "received", "click", "msg_click"))
        ios = dict.fromkeys(("apns_target", "apns_sent", "apns_received", "click", "target", "received"))
        winphone = dict.fromkeys(("mpns_target", "mpns_sent", "click"))
        assert await self.call("GET", "/v3/messages?msg_ids=all,some,done") == [
            {"msg_id": "all", "android": android | {"target": 2, "received": 1},
             "ios": ios | {"apns_target": 1, "apns_received": 1}, "winphone": winphone},
            {"msg_id": "some", "android": android | {"target": 2, "received": 1, "click": 1}, "ios": ios,
             "winphone": winphone},
            {"msg_id": "done", "android": android | {"target": 1, "received": 1}, "ios": ios, "winphone": winphone}]
        for msg_id, statuses in (("all", [0, 1, 3, 0, 3, 3, 2]), ("some", [0, 1, 3, 3, 1, 3, 2]),
                                 ("done", [3, 0, 3, 3, 3, 0, 2])):
            devices = ["a1", "a2", "a3", "i1", "new", "stranger", "nobody"]
            assert await self.call("POST", "/v3/status/message", json={
                "msg_id": msg_id, "registration_ids": devices}) == {
                    device: {"status": status} for device, status in zip(devices, statuses, strict=True)}
        for msg_id, pending in (("all", ["a2"]), ("some", ["a2", "new"]), ("done", [])):
            answer = await self.call("GET", f"/pushes/{msg_id}?api_key={self.account.pushy_api_key}")
            assert sorted(answer["push"]["pending_devices"]) == pending
        assert await self.call("GET", f"/v3/users?time_unit=DAY&start={self.today}&duration=1") == {
            "time_unit": "DAY", "start": self.today, "duration": 1, "items": [{
                "time": self.today, "android": {"new": 3, "online": 3, "active": 1},
                "ios": {"new": 1, "online": 1, "active": 1}, "unknown": {"new": 1, "online": 1}}]}

    async def check_later(self) -> None:
        """Two days after its only target had it, "done" is over: the moment of that was noted."""
        assert await self.call("GET", f"/pushes/done?api_key={self.account.pushy_api_key}") == {
            "code": "INVALID_PUSH_ID", "error": "The push notification ID provided is invalid."}
