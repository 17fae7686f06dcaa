"""Pushy, described."""

from __future__ import annotations

from typing import Final

from reportsvc.api import pushy
from reportsvc.api.openapi.operation import EVERYWHERE, Answer, Content, Example, Operation, Section
from reportsvc.api.openapi.schemas import array, closed_object, ref, string
from reportsvc.errors import RateLimited, StoreUnavailable, Unauthorized
from reportsvc.model import MAX_ID_BYTES
from reportsvc.registry.pushes import MAX_PENDING
from reportsvc.registry.ratelimit import WINDOW_SECONDS

STATUS: Final = Operation(
    id="pushyNotificationStatus", summary="One push, and the devices that do not have it yet",
    description=f"At most {MAX_PENDING} pending devices, Android's and those of an unknown platform only. A push that "
                f"every device has is kept for {pushy.DELIVERED_SECONDS // 86400} days; then, and once it has expired, "
                "its id is invalid.",
    answers={200: Answer("The push.", Content(ref("PushyStatus"), [Example("the vendor's example", {
        "push": {"date": 1464003935, "payload": {"message": "Hello World!"}, "expiration": 1466595935,
                 "pending_devices": ["fe8f7b2c102e883e5b41d2"]}})]))},
    errors=(pushy.InvalidPush(), pushy.Scheduled(), StoreUnavailable("redis"), StoreUnavailable("clickhouse")))

SECTION: Final = Section(
    tag="Pushy", description="Pushy's Notification Status API: what was pushed, and who does not have it yet.",
    source="https://pushy.me/docs/api/notification-status", dialect=pushy.DIALECT, security=[{"pushyKey": []}],
    operations={pushy.notification_status: STATUS},
    path_parameters={"push_id": string("The push notification's id.", minLength=1, maxLength=MAX_ID_BYTES,
                                       examples=["5ea9b214b47cad768a35f13a"])},
    errors=(Unauthorized("The provided API key is invalid."), RateLimited(WINDOW_SECONDS), *EVERYWHERE),
    schemas={"PushyStatus": closed_object({"push": closed_object({
        "date": ref("UnixTime"), "payload": {"description": "As it was registered: any JSON."},
        "expiration": ref("UnixTime"),
        "pending_devices": array(string(), maxItems=MAX_PENDING)})})})
